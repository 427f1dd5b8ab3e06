//! Plain texts are read as the library reads them.

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
            assert!(whole.is_none() || matches!(apart, Some(Err(Not::Plain))), "{pieces} pieces of {text:?}");
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
    let locked = include_str!("../../../../Cargo.lock");
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
