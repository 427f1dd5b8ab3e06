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
mod tests;
