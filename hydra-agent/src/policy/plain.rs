//! A tree of nodes from the parser's events: of a text that is plain YAML, without anchors, aliases, tags, and without anything that is
//! wrong. Of every other text it says nothing, and `yaml` asks the library above the same parser, whose words refusals have.
//!
//! The parser takes more time than all else that is done to a policy: a long list of rules is read in pieces, side by side.

use std::borrow::Cow;
use std::thread;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, StructureStyle};

use super::by_line;
use super::yaml::{MAX_DEPTH, MAX_NODES, Node, Value};
use crate::beside::both;
use crate::diagnostic::Place;

/// The section whose entries are read in pieces.
const SECTION: &str = "\nrules:\n";
/// Bytes from which on a text is worth a second thread.
const LONG: usize = 64 << 10;
/// More threads than this gain nothing: what follows the reading does not share itself.
const MOST_PIECES: usize = 4;

/// Reads a text, if it is plain and nothing is wrong with it. Lines end with a line feed, behind a carriage return or not.
pub(super) fn read(text: &str) -> Option<Node<'_>> {
    let pieces = if text.len() < LONG {
        0
    } else {
        thread::available_parallelism().map_or(1, usize::from).min(MOST_PIECES)
    };
    read_in(text, pieces)
}

/// The same with the list in so many pieces, if it can be taken apart; 0: by the parser alone. Of a piece that is not plain or wrong the
/// whole has it too, but for a cut inside of quotes, which is rare enough for the library.
fn read_in(text: &str, pieces: usize) -> Option<Node<'_>> {
    let apart = if pieces == 0 { None } else { Pieces::of(text, pieces) };
    match apart.map_or(Err(Not::Apart), Pieces::read) {
        Ok(node) => Some(node),
        Err(Not::Plain) => None,
        Err(Not::Apart) => Piece::of(text, 0, 0).map(|piece| piece.node).ok(),
    }
}

/// Why pieces are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Not {
    /// Cut elsewhere, or not at all, they might be.
    Apart,
    /// The parser refuses one, or it is none that is read here.
    Plain,
}

/// A text that is taken apart where entries of its list of rules begin.
///
/// At such a line the parser has nothing open but the document's mapping and the list, if the piece before it, read for itself, is
/// whole and ends in an entry in braces: then it goes on as it would begin with a text of entries alone. That the lines are
/// what they look like is not assumed, each piece is asked: an entry that lies in a quoted text, in another list or at another
/// column than that of the list lets the piece before it end otherwise.
struct Pieces<'t> {
    /// From the text's beginning to the first entry of the list.
    head: &'t str,
    /// Entries.
    middle: Vec<&'t str>,
    /// The sections behind the list, nothing for none.
    tail: &'t str,
    /// The column of the list.
    column: u32,
}

impl<'t> Pieces<'t> {
    fn of(text: &'t str, pieces: usize) -> Option<Self> {
        let begin = text.find(SECTION)? + SECTION.len();
        let indent = text[begin..].bytes().take_while(|b| *b == b' ').count();
        let dash = format!("\n{}- ", " ".repeat(indent));
        let end = after(text, begin);
        if indent == 0 {
            return None;
        }
        // The first entry shows that it is a list.
        let mut cuts = vec![begin + text[begin..end].find(&dash)? + 1];
        for n in 1..pieces {
            let about = (begin + (end - begin) / pieces * n).max(cuts.last().copied().unwrap_or_default());
            let about = (about..end).find(|at| text.is_char_boundary(*at))?;
            match text[about..end].find(&dash) {
                Some(at) => cuts.push(about + at + 1),
                None => break,
            }
        }
        cuts.push(end);
        let middle = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        Some(Self { head: &text[..cuts[0]], middle, tail: &text[end..], column: indent as u32 + 1 })
    }

    fn read(self) -> Result<Node<'t>, Not> {
        let Self { head, middle, tail, column } = self;
        let first = Piece::of(head, 0, 0)?;
        if first.ends != Some(End { depth: 1, column }) {
            return Err(Not::Apart);
        }
        let mut line = lines(head);
        let later: Vec<(&str, u32)> = middle
            .into_iter()
            .map(|text| {
                let first = line;
                line += lines(text);
                (text, first)
            })
            .collect();
        let others = side_by_side(&later, column)?;
        let rest = if tail.is_empty() { None } else { Some(Piece::of(tail, line, 0)?) };
        let nodes = first.nodes + rest.as_ref().map_or(0, |piece| piece.nodes);
        if nodes + others.iter().map(|entries| entries.nodes).sum::<usize>() > MAX_NODES {
            return Err(Not::Apart);
        }
        let Node { value: Value::Map(mut pairs), place } = first.node else { return Err(Not::Apart) };
        if !first.block || place.column != 1 {
            return Err(Not::Apart);
        }
        let Some((_, Node { value: Value::List(list), .. })) = pairs.last_mut() else {
            return Err(Not::Apart);
        };
        list.reserve(others.iter().map(|entries| entries.list.len()).sum());
        list.extend(others.into_iter().flat_map(|entries| entries.list));
        if let Some(piece) = rest {
            let Value::Map(sections) = piece.node.value else { return Err(Not::Apart) };
            if !piece.block || piece.node.place.column != 1 {
                return Err(Not::Apart);
            }
            pairs.extend(sections);
        }
        Ok(Node { value: Value::Map(pairs), place })
    }
}

/// Reads entries, each text on a thread of its own.
fn side_by_side<'t>(texts: &[(&'t str, u32)], column: u32) -> Result<Vec<Entries<'t>>, Not> {
    let Some(((text, line), rest)) = texts.split_first() else { return Ok(Vec::new()) };
    let first = || Entries::of(text, *line, column);
    let (others, first) = if rest.is_empty() {
        (Ok(Vec::new()), first())
    } else {
        both("hydra-reader", || side_by_side(rest, column), first)
    };
    let mut all = vec![first?];
    all.extend(others?);
    Ok(all)
}

/// A part of a list: whole entries.
struct Entries<'t> {
    list: Vec<Node<'t>>,
    nodes: usize,
}

impl<'t> Entries<'t> {
    /// Reads lines that begin with an entry, and that `before` lines are before: those that are an entry each for themselves, what is
    /// between them by the parser. Each of these begins where an entry does and must end as pieces do: the entry behind it is read with it.
    fn of(text: &'t str, before: u32, column: u32) -> Result<Self, Not> {
        let mut reader = by_line::Reader { indent: column as usize - 1, nodes: 0 };
        let mut all = Self { list: Vec::new(), nodes: 0 };
        // Where what the parser has to read begins, and how many lines are before it.
        let mut run: Option<(usize, u32)> = None;
        let (mut at, mut line) = (0, before);
        for one in text.split_inclusive('\n') {
            if let Some(entry) = reader.entry(one, line + 1) {
                match run.take() {
                    // Its nodes are counted twice.
                    Some(run) => all.parse(&text[run.0..at + one.len()], run.1, column)?,
                    None => all.list.push(entry),
                }
            } else if run.is_none() && !by_line::says_nothing(one) {
                if !reader.begins(one) {
                    return Err(Not::Apart);
                }
                run = Some((at, line));
            }
            at += one.len();
            line += 1;
        }
        if let Some(run) = run {
            all.parse(&text[run.0..], run.1, column)?;
        }
        all.nodes += reader.nodes;
        Ok(all)
    }

    fn parse(&mut self, text: &'t str, before: u32, column: u32) -> Result<(), Not> {
        let piece = Piece::of(text, before, 1)?;
        let Value::List(entries) = piece.node.value else { return Err(Not::Apart) };
        if piece.ends != Some(End { depth: 1, column }) || piece.node.place.column != column {
            return Err(Not::Apart);
        }
        self.nodes += piece.nodes;
        self.list.extend(entries);
        Ok(())
    }
}

/// Where the first line behind `begin` begins that has a key in its first column; the end of the text, if none has.
fn after(text: &str, begin: usize) -> usize {
    let mut at = begin;
    for line in text[begin..].split_inclusive('\n') {
        if line.starts_with(|c: char| c.is_ascii_lowercase()) {
            return at;
        }
        at += line.len();
    }
    at
}

fn lines(text: &str) -> u32 {
    text.bytes().filter(|b| *b == b'\n').count() as u32
}

/// A text that was read for itself.
struct Piece<'t> {
    node: Node<'t>,
    nodes: usize,
    /// It is a mapping or list without braces and brackets.
    block: bool,
    /// What it ends in, if that is a list of lines the last of which is an entry in braces.
    ends: Option<End>,
}

/// A list of lines that ended with its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// In how many others it lies.
    depth: usize,
    column: u32,
}

impl<'t> Piece<'t> {
    /// Reads a text that `line` lines are before, and that lies in `under` lists and mappings.
    fn of(text: &'t str, line: u32, under: usize) -> Result<Self, Not> {
        Self::plain(text, line, under).ok_or(Not::Plain)
    }

    fn plain(text: &'t str, line: u32, under: usize) -> Option<Self> {
        let mut options = Options::default();
        options.emit_comments = false;
        // As the library has them.
        options.strict_indentation = false;
        options.simple_key_max_lookahead = 1_024;
        let parser = Parser::new_from_str_with_options(text, options);
        let mut events = Events { parser, line, nodes: 0, brace: false, ends: None };
        let (Event::StreamStart, _) = events.next()? else { return None };
        let (Event::DocumentStart(_, None), _) = events.next()? else { return None };
        let (event, span) = events.next()?;
        let block = matches!(
            event,
            Event::MappingStart(StructureStyle::Block, ..) | Event::SequenceStart(StructureStyle::Block, ..)
        );
        let node = events.node(event, span, under)?;
        // An end that is written (`...`) is one of the whole text.
        let (Event::DocumentEnd, end) = events.next()? else { return None };
        if !end.is_empty() {
            return None;
        }
        let (Event::StreamEnd, _) = events.next()? else { return None };
        (node.value != Value::Null).then_some(Self { node, nodes: events.nodes, block, ends: events.ends })
    }
}

struct Events<'t> {
    parser: Parser<'t, StrInput<'t>>,
    line: u32,
    nodes: usize,
    /// What ended last is a mapping in braces.
    brace: bool,
    ends: Option<End>,
}

impl<'t> Events<'t> {
    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        self.parser.next()?.ok()
    }

    /// The node that begins with an event.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Option<Node<'t>> {
        self.nodes += 1;
        let deep = depth >= MAX_DEPTH && !matches!(event, Event::Scalar(..));
        if self.nodes > MAX_NODES || deep {
            return None;
        }
        let place = self.place(span);
        #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that may grow")]
        let value = match event {
            Event::Scalar(text, style, 0, None) => {
                (self.brace, self.ends) = (false, None);
                if style == ScalarStyle::Plain { plain(text)? } else { Value::Text(text) }
            }
            Event::SequenceStart(style, 0, None) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => list.push(self.node(event, span, depth + 1)?),
                    }
                }
                let ends = style == StructureStyle::Block && self.brace && !list.is_empty();
                self.ends = ends.then_some(End { depth, column: place.column });
                self.brace = false;
                Value::List(list)
            }
            Event::MappingStart(style, 0, None) => {
                let mut pairs = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, _) => break,
                        (event, span) => {
                            let key = self.key(event, span, depth + 1)?;
                            let (event, span) = self.next()?;
                            pairs.push((key, self.node(event, span, depth + 1)?));
                        }
                    }
                }
                self.brace = style == StructureStyle::Flow;
                if self.brace || pairs.is_empty() {
                    self.ends = None;
                }
                Value::Map(pairs)
            }
            // Anchors, aliases and tags, and what a newer parser may say.
            _ => return None,
        };
        Some(Node { value, place })
    }

    /// A key that is a name: no number, which the library compares by its value, and nothing that is no text.
    fn key(&mut self, event: Event<'t>, span: Span, depth: usize) -> Option<Node<'t>> {
        let key = self.node(event, span, depth)?;
        match &key.value {
            Value::Text(name) if name.starts_with(|c: char| c.is_ascii_alphabetic()) => Some(key),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => None,
        }
    }

    fn place(&self, span: Span) -> Place {
        Place {
            line: self.line + span.start.line() as u32,
            column: span.start.col() as u32 + 1,
            length: u32::try_from(span.len()).unwrap_or(1).max(1),
        }
    }
}

/// What a scalar without quotes is; nothing said of one that may be a number other than digits and points, not all of which are accepted.
pub(super) fn plain(text: Cow<'_, str>) -> Option<Value<'_>> {
    /// The longest address.
    const LONGEST: usize = 39;
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    // Longer than every word that means something.
    if text.len() > "infinity".len() && text.as_bytes()[0].is_ascii_alphabetic() {
        return Some(Value::Text(text));
    }
    if text.is_empty() || &*text == "~" || is("null") {
        return Some(Value::Null);
    }
    if is("true") {
        return Some(Value::Bool(true));
    }
    if is("false") {
        return Some(Value::Bool(false));
    }
    let digit = |b: u8| b.is_ascii_digit() || b == b'.';
    // Of which numbers are written, in any base, and the words for those that are none.
    let odd = |b: u8| digit(b) || b.is_ascii_hexdigit() || b"xXoO_+-iInNfFtTyY".contains(&b);
    let first = text.as_bytes().first().copied().unwrap_or_default();
    let word = first.is_ascii_alphabetic() && !["nan", "inf", "infinity"].into_iter().any(is);
    let certain = word || text.bytes().any(|b| !odd(b)) || (text.len() <= LONGEST && text.bytes().all(digit));
    certain.then_some(Value::Text(text))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::super::yaml::by_library;
    use super::*;

    /// What is read as the library reads it, in any number of pieces; whether it is plain.
    fn agrees(text: &str) -> bool {
        let whole = read_in(text, 0);
        for pieces in 0..5 {
            if let Some(node) = read_in(text, pieces) {
                assert_eq!(by_library(text).as_ref(), Ok(&node), "{pieces} pieces of {text:?}");
            } else {
                let apart = Pieces::of(text, pieces).map(Pieces::read);
                assert!(
                    whole.is_none() || matches!(apart, Some(Err(Not::Plain))),
                    "{pieces} pieces of {text:?}"
                );
            }
        }
        whole.is_some()
    }

    fn taken_apart(text: &str) -> bool {
        let pieces = Pieces::of(text, 3).filter(|pieces| !pieces.middle.is_empty());
        agrees(text);
        pieces.is_some_and(|pieces| pieces.read().is_ok())
    }

    fn rules(n: usize) -> String {
        (0..n).fold(String::new(), |mut text, n| {
            let _ = writeln!(text, "  - {{ name: rule-{n}, from: [a, 'b c'], to: \"d\", ports: tcp/{n} }}");
            text
        })
    }

    const HEAD: &str = "version: 1\nname: ü\ntiers:\n  a: { addresses: [10.0.0.1, 2001:db8::/32] }\nrules:\n";
    const TAIL: &str = "# and then\nexpect:\n  - { from: a, to: d, port: tcp/1 }\n";

    #[test]
    fn plain_texts_are_read_as_the_library_reads_them() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies");
        let mut read = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml") {
                read += usize::from(agrees(&std::fs::read_to_string(&path).unwrap()));
            }
        }
        // One names an alias.
        assert!(read >= 3, "{read} policies are plain");
        for seed in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/policy")).unwrap() {
            if let Ok(text) = std::str::from_utf8(&std::fs::read(seed.unwrap().path()).unwrap())
                && !text.contains(['\0', '\r'])
            {
                agrees(text);
            }
        }
    }

    #[test]
    fn a_long_list_is_read_in_pieces() {
        assert!(taken_apart(&format!("{HEAD}{}", rules(9))));
        assert!(taken_apart(&format!("{HEAD}{}{TAIL}", rules(9))));
        assert!(taken_apart(&format!("{HEAD}{}\n  # a word\n\n{}{TAIL}", rules(5), rules(5))));
        assert!(taken_apart(&format!("{HEAD}{}", rules(9)).replace("\n  - ", "\n     - ")));
    }

    #[test]
    fn a_list_is_read_in_pieces_whatever_stands_between_entries_in_one_line() {
        let words = "  - { name: web, from: [a, b], to: c }\n".repeat(9);
        for between in [
            "  - name: x\n    from: a\n    to: b\n",
            "  - name: x\n    from: a\n\n    # of it\n    to: b\n",
            "  - name: x\n  - name: y\n    to: |\n      z\n  # and\n",
            "  - - x\n",
            "# Zugriffe für X\n",
            "  #\tü \u{2028}\u{2029}\u{1f980}\n  - name: ü\n    to: '\u{1f980}'\n",
            "# ü\n  - name: x\n    # ü\n    to: b\n\n # \u{2028}- { a: b }\n",
        ] {
            for list in [&words, &rules(9)] {
                assert!(taken_apart(&format!("{HEAD}{list}{between}{list}{TAIL}")), "{between}");
            }
        }
        // The last of a piece has none behind it that shows where it ends.
        assert!(!taken_apart(&format!("{HEAD}{words}  - name: x\n    from: a\n")));
    }

    #[test]
    fn what_is_wrong_in_a_piece_is_not_read_again_as_a_whole() {
        for entry in
            ["  - &a { a: b }\n", "  - { a: 0x1 }\n", "  - { a: b\n", "  - {}\n    @\n", "  - { true: a }\n"]
        {
            let text = format!("{HEAD}{}{entry}{}{TAIL}", rules(9), rules(9));
            let pieces = Pieces::of(&text, 3).unwrap().read();
            assert_eq!(pieces.err(), Some(Not::Plain), "{entry}");
            assert!(!agrees(&text), "{entry}");
        }
        // Nothing is wrong, but where it ends.
        let text = format!("{HEAD}{}  - name: x\n    from: a\n{TAIL}", rules(9));
        assert_eq!(Pieces::of(&text, 3).unwrap().read().err(), Some(Not::Apart));
        assert!(agrees(&text));
    }

    /// Whether a line is read without the parser; what is read so is what the library reads.
    fn by_line(line: &str) -> bool {
        let text = format!("{HEAD}  - {{ name: first }}\n{line}\n  - {{ name: last }}\n{TAIL}");
        agrees(&text);
        by_line::Reader { indent: 2, nodes: 0 }.entry(&format!("{line}\n"), 1).is_some()
    }

    #[test]
    fn entries_of_words_in_one_line_are_read_without_the_parser() {
        for line in [
            "  - { name: web, from: [a, b], to: c/d, ports: [tcp/80, tcp/8000-8999], action: deny }",
            "  - {name: web,from: [a,b],  to:   c}",
            "  - { name: web, from: { cidr: 10.0.0.0/8, except: [10.1.0.0/16] }, to: any, limit: 60/min }",
            "  - { name: web, expires: 2026-12-01T00:00:00Z, optional: true, a: null, b: 10, c: 1.5 }",
            "  - { name: web }\r",
        ] {
            assert!(by_line(line), "{line}");
        }
        for line in [
            "  - { name: web } # as ever",
            "  - { name: web, }",
            "  - { name: 'web' }",
            "  - { name: a b }",
            "  - { name: a#b }",
            "  - { name: a: b }",
            "  - { name: a:b: c }",
            "  - { name: ü }",
            "  - { name }",
            "  - { name: }",
            "  - { name:web }",
            "  - { true: web }",
            "  - { 1: web }",
            "  - { name: 1e5 }",
            "  - { name: 0x1 }",
            "  - { name: ::1 }",
            "  - { name: a::b }",
            "  - { name: [] }",
            "  - [a]",
            "  - {}",
            "  -  { name: web }",
            "   - { name: web }",
            " - { name: web }",
            "  - { name: web } ",
            "  - { name: web }: b",
            "  - &a { name: web }",
            "  - { a: { a: { a: { a: { a: b } } } } }",
        ] {
            assert!(!by_line(line), "{line}");
        }
        assert!(!by_line(&format!("  - {{ name: {} }}", "a".repeat(1_000))));
    }

    #[test]
    fn what_only_looks_like_entries_is_not_taken_apart() {
        // In quotes, in braces, behind a `|`, as a plain text of several lines, one list deeper, in another section's list.
        for (before, after) in [
            ("  - { name: x, to: 'a\n", "' }\n"),
            ("  - { name: x, to: \"a\n", "\" }\n"),
            ("  - [\n", "  ]\n"),
            ("  - { x: {\n", "  } }\n"),
            ("  |\n", ""),
            ("  >-\n", ""),
            ("  a plain text\n", ""),
            ("  x:\n", ""),
            ("  &a\n", ""),
            ("", "  - *a\n"),
            ("", "  ]\n"),
            ("", "  - !!str x\n"),
            ("", " - { name: less }\n"),
            ("", "   - { name: more }\n"),
            ("", "  - { name: block,\n"),
            ("", "Expect: x\n'quoted': y\n"),
            ("", "--- \nversion: 1\n"),
        ] {
            let text = format!("{HEAD}{before}{}{after}", rules(9));
            assert!(!taken_apart(&text), "{text}");
        }
        for text in [
            format!("version: 1\nname: \"x\nrules:\n{}\"\n", rules(9)),
            format!("version: 1\nname: |\n x\nrules:\n{}", rules(9).replace("  - ", "- ")),
            format!("{{ version: 1, name: x\nrules:\n{}}}\n", rules(9)),
        ] {
            assert!(!taken_apart(&text), "{text}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_library() {
        for text in [
            "a: &x 1\nb: *x\n",
            "a: !!str 1\n",
            "<<: { a: b }\n",
            "1: a\n1: b\n",
            "? [a]\n: b\n",
            "a: .nan\n",
            "a: 1e999\n",
            "a: -1\n",
            "a: 0x10\n",
            "~: a\n",
            "null: a\n",
            "true: a\n",
            "a: [b\n",
            "a: b\n---\nc: d\n",
            "",
            "# nothing\n",
            "%YAML 1.2\n---\na: b\n",
            "inf: a\n",
            "a: b\n...\n",
        ] {
            assert!(!agrees(text), "{text:?}");
        }
        for text in [
            "a: 1\n",
            "a: 1.5\n",
            "a: 10.1.0.0/16\n",
            "a: ~\nb:\nc: NULL\nd: 'null'\n",
            "a: True\nb: \"true\"\n",
            "a: 2026-01-01T00:00:00Z\n",
            "a: 60/min\n",
            "--- \na: b\n",
            "a: yes\nb: off\n",
            "a: |\n  b\n  c\nd: >\n  e\n  f\n",
            "a: \"\\u00e9\\n\"\n",
            "- a\n- - b\n  - c\n",
            "[a: b, c]\n",
            "a: 'it''s'\n",
        ] {
            assert!(agrees(text), "{text:?}");
        }
    }

    #[test]
    fn a_text_is_as_deep_as_the_library_lets_it_be() {
        for deep in 28..36 {
            let nested = |n: usize| format!("{}x{}", "[".repeat(n), "]".repeat(n));
            for text in [
                nested(deep),
                format!("a: {}\n", nested(deep)),
                format!("{HEAD}{}  - {}\n{}", rules(4), nested(deep), rules(9)),
                format!("{HEAD}{}  - {{ a: {} }}\n{}{TAIL}", rules(9), nested(deep), rules(4)),
            ] {
                agrees(&text);
                assert!(by_library(&text).is_err() || read_in(&text, 0).is_some(), "{text}");
            }
        }
    }

    /// A second parser in the tree would be a second reading of the same policy.
    #[test]
    fn the_library_stands_on_this_parser() {
        let locked = include_str!("../../../Cargo.lock");
        assert_eq!(locked.matches("name = \"granit-parser\"").count(), 1);
    }

    fn line() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "...",
            "... # c",
            "...\n# c",
            "...\n\u{feff}",
            "---",
            "--- # c",
            "%YAML 1.2",
            "%BAD",
            "@",
            "# c",
            "# Zugriffe für X",
            "    #\tc\u{2028}  - { a: b }\u{2029}",
            "#\u{fffd}\u{e000}\u{10ffff}",
            "# \u{fffe}",
            "# \u{7f}\u{85}",
            "# \u{feff}",
            "# \u{1}",
            "\t# c",
            "",
            "\t",
            " ",
            "\u{feff}",
            "rules:",
            "expect:",
            "Expect: x",
            "'q': x",
            "? a",
            ": b",
            "a",
            "  text",
            "  'x",
            "  \"x",
            "  |",
            "  - |",
            "  - >-",
            "    - { a: b }",
            " - { a: b }",
            "   - { a: b }",
            "- { a: b }",
            "  - [a,",
            "  - { a: b",
            "  ]",
            "  }",
            "  - &a { a: b }",
            "  - *a",
            "  -",
            "  - - { a: b }",
            "  - { a: b } x",
            "  - { a: b }: c",
            "  - ? { a: b }",
            "  - { a: b }\u{2028}",
            "  - { a: b }\u{85}",
            "  -\t{ a: b }",
            "  - { a: b, a: c }",
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn one_line_that_is_no_entry_makes_no_difference_to_the_library(
            (before, after, other) in (0..9usize, 0..9usize, line()), (ends, windows, first) in any::<(bool, bool, bool)>(),
        ) {
            let (start, end) = (if first { "\u{feff}" } else { "" }, if ends { TAIL } else { "" });
            let text = format!("{start}{HEAD}{}{other}\n{}{end}", rules(before), rules(after));
            agrees(&if windows { text.replace('\n', "\r\n") } else { text });
        }

        /// Most of the lines are entries, so that most texts are taken apart.
        #[test]
        fn comments_shift_nothing_of_the_entries_behind_them(
            lines in prop::collection::vec(prop::sample::select(vec![
                "  - { name: web, from: [a, b], to: c }", "  - { a: b }", "  - { a: b }", "  - { a: b }", "  - { a: 'ü' }", "  - a: b\n    c: ü",
                "# ü", "#\t\u{1f980}", "    # \u{a0}\u{2028}\u{2029}x", "#\u{e000}\u{fffd}\u{d7ff}\u{10ffff}", "# \u{80}", "# \u{85}", "# \u{7f}",
                "# \u{feff}", "# \u{fffe}", "# \u{1b}", "# c", "", "#",
            ]), 1..24),
            windows in any::<bool>(),
        ) {
            let text = format!("{HEAD}  - {{ a: b }}\n{}\n{TAIL}", lines.join("\n"));
            agrees(&if windows { text.replace('\n', "\r\n") } else { text });
        }

        #[test]
        fn any_line_in_braces_is_read_as_the_library_reads_it(
            words in prop::collection::vec(prop::sample::select(vec![
                "{ ", "{", " }", "}", "[", "]", ", ", ", ", ",", ": ", ": ", ": ", ":", " ", "a", "b", "name", "t1/s.x_y-z", "10", "1.5", "tcp/80",
                "10.0.0.0/8", "2001:db8:0:1:2:3:4:5", "2001:db8::", "::1", "null", "NULL", "true", "False", "~", "0x1f", "1e5", "1_0", "-", "_", ".",
                "/", "12:30", "a:b", "nan", "inf", "'", "\"", "#", " #", "&", "*", "!", "|", ">", "?", "%", "@", "`", "ü", "\t", "yes", "<<",
            ]), 0..14),
            (open, close) in any::<(bool, bool)>(),
        ) {
            let (open, close) = (if open { "{ a: " } else { "{ " }, if close { " }" } else { "}" });
            by_line(&format!("  - {open}{}{close}", words.concat()));
        }

        #[test]
        fn any_text_of_such_lines_is_read_as_the_library_reads_it(
            lines in prop::collection::vec(prop::sample::select(vec![
                "rules:", "rules:", "version: 1", "expect:", "a:", "x: 'y", "'", "\"", "x: |", "x: >2", "# c", "# ü", "  #\t\u{1f980}", "#\u{2028}- { a: b }", "# \u{feff}", "# \u{85}", "", "  x: y",
                "  - { a: b }", "  - { a: b }", "  - { a: b }", "  - { a: b }", "  - { a: 'b }", "  - { a: b,", "    c: d }", "  - a: b",
                "    c: |", "      e", "  - [a, b]", "  - { a: { b: c } }", "  - - { a: b }", "- { a: b }", "   - { a: b }", " - { a: b }",
                "  - { a: b } # c", "  - { a: b }: c", "  : d", "---", "...", "  - |", "    - { a: b }", "  - plain", "  text", "  - ? a",
                "\t- { a: b }", "  - { a: b }x", "  -", "rules: |", "rules: 'x", "  - &a { a: b }", "  - *a", "}", "  }", "  ]", "  - [", "%A",
                "  - { 1: b }", "  - { ü: \u{2028} }", "  - { a: 1e5, b: .5, c: 0x1, d: 1.2.3, e: ff, f: -, g: infx }",
            ]), 0..24)
        ) {
            agrees(&format!("version: 1\nrules:\n{}\n", lines.join("\n")));
            agrees(&format!("{}\n", lines.join("\n")));
        }
    }
}
