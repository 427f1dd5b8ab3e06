//! What is wrong with a text that somebody wrote, and where: collected all at once, printed with the source line and a caret,
//! sent as flat JSON objects. Knows nothing of policies.

use std::fmt::{self, Write as _};

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::{Deserialize, Serialize};

/// Bytes of the longest line that is shown; of a longer one only the place is named.
const LONGEST: usize = 10_000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The text is refused.
    Error,
    /// The text is accepted, and probably not what was meant.
    Warning,
}

impl Severity {
    /// The word that stands before the message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A piece of one line. All in characters, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Characters from there on, at least 1; what lies beyond the line's end does not count.
    pub length: u32,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What happened to what: no final period, names in back-ticks.
    pub message: String,
    /// Where; none for a problem of the whole.
    pub place: Option<Place>,
    /// A few words beside the caret.
    pub label: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), place: None, label: None, hint: None }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// The same, at a place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// The same, with words beside the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// All problems of one text, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    source: String,
    text: String,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// None yet, of a text that messages call `source`.
    pub fn new(source: impl Into<String>, text: impl Into<String>) -> Self {
        Self { source: source.into(), text: text.into(), list: Vec::new() }
    }

    /// What messages call the text: a file's name, usually.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The problems.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// One more.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// Several more.
    pub fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.list.extend(diagnostics);
    }

    /// By place, those without one last; equal ones once.
    pub fn sort(&mut self) {
        self.list.sort_by_key(|d| d.place.map_or((u32::MAX, u32::MAX), |p| (p.line, p.column)));
        self.list.dedup();
    }

    /// Nothing to say.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether one of them refuses the text.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The same list for the text itself: JSON carries places without it.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// The same list under another name: the sender's name of a file is not always the receiver's.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// All of them for a person, each with its line and a caret, a blank line between two. Ends with a newline unless empty.
    pub fn render(&self, colour: bool) -> String {
        let lines: Vec<&str> = self.text.split('\n').collect();
        let mut out = String::new();
        for (i, diagnostic) in self.list.iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            self.render_one(diagnostic, &lines, colour, &mut out);
        }
        out
    }

    fn render_one(&self, d: &Diagnostic, lines: &[&str], colour: bool, out: &mut String) {
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = level.primary_title(printable(&d.message)).elements(Vec::<Origin<'_>>::new());
        let shown;
        if let Some(place) = d.place {
            let source = printable(&self.source);
            let line = lines.get((place.line as usize).saturating_sub(1)).copied().unwrap_or_default();
            if line.is_empty() || line.len() > LONGEST {
                let (line, column) = (place.line as usize, place.column as usize);
                group = group.element(Origin::path(source).line(line).char_column(column));
            } else {
                shown = line.strip_suffix('\r').unwrap_or(line).replace('\t', " ");
                let mark = AnnotationKind::Primary.span(bytes(&shown, place)).label(d.label.clone());
                let line = Snippet::source(shown.as_str()).path(source).line_start(place.line as usize);
                group = group.element(line.annotation(mark));
            }
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        out.push_str(renderer.render(&[group]).trim_end());
        out.push('\n');
        if let Some(hint) = &d.hint {
            let style = if colour { anstyle::Style::new().bold() } else { anstyle::Style::new() };
            let _ = writeln!(out, "{style}hint{style:#}: {}", printable(hint));
        }
    }
}

/// The bytes of a line that the caret marks.
fn bytes(line: &str, place: Place) -> std::ops::Range<usize> {
    let offset = |n: usize| line.char_indices().nth(n).map_or(line.len(), |(at, _)| at);
    let first = place.column.max(1) as usize - 1;
    offset(first)..offset(first.saturating_add(place.length.max(1) as usize))
}

/// Text from outside without anything that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One problem as JSON carries it: flat, so that it is a table row too.
#[derive(Debug, Serialize, Deserialize)]
struct Flat {
    severity: Severity,
    message: String,
    file: String,
    line: Option<u32>,
    column: Option<u32>,
    #[serde(default)]
    length: Option<u32>,
    #[serde(default)]
    label: Option<String>,
    hint: Option<String>,
}

impl Serialize for Diagnostics {
    /// An array of flat objects: `severity`, `message`, `file`, `line`, `column`, `length`, `label`, `hint`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list.iter().map(|d| Flat {
            severity: d.severity,
            message: d.message.clone(),
            file: self.source.clone(),
            line: d.place.map(|p| p.line),
            column: d.place.map(|p| p.column),
            length: d.place.map(|p| p.length),
            label: d.label.clone(),
            hint: d.hint.clone(),
        }))
    }
}

impl<'de> Deserialize<'de> for Diagnostics {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rows = Vec::<Flat>::deserialize(deserializer)?;
        let source = rows.first().map(|r| r.file.clone()).unwrap_or_default();
        let list = rows
            .into_iter()
            .map(|r| Diagnostic {
                severity: r.severity,
                message: r.message,
                place: r.line.map(|line| Place {
                    line,
                    column: r.column.unwrap_or(1),
                    length: r.length.unwrap_or(1),
                }),
                label: r.label,
                hint: r.hint,
            })
            .collect();
        Ok(Self { source, text: String::new(), list })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Diagnostics {
        let mut d = Diagnostics::new("policy.yaml", "version: 1\ntiers:\n  wéb: { networks: [a, b] }\n");
        d.push(
            Diagnostic::error("name `wéb` is outside the pattern")
                .at(Place { line: 3, column: 3, length: 3 })
                .label("this name")
                .hint("use a-z, 0-9, `.`, `_` and `-`"),
        );
        d.push(Diagnostic::warning("network `b` belongs to no tier").at(Place {
            line: 3,
            column: 24,
            length: 1,
        }));
        d.push(Diagnostic::error("the file is odd").hint("look\u{1b}[31m at it"));
        d
    }

    #[test]
    fn the_house_form() {
        insta::assert_snapshot!(two().render(false), @r"
        error: name `wéb` is outside the pattern
         --> policy.yaml:3:3
          |
        3 |   wéb: { networks: [a, b] }
          |   ^^^ this name
        hint: use a-z, 0-9, `.`, `_` and `-`

        warning: network `b` belongs to no tier
         --> policy.yaml:3:24
          |
        3 |   wéb: { networks: [a, b] }
          |                        ^

        error: the file is odd
        hint: look\u{1b}[31m at it
        ");
    }

    #[test]
    fn a_place_beyond_the_text_and_a_very_long_line_still_render() {
        let mut d = Diagnostics::new("p", format!("{}x", "é".repeat(100_000)));
        d.push(Diagnostic::error("far right").at(Place { line: 1, column: 100_001, length: 1 }));
        d.push(Diagnostic::error("past the end").at(Place { line: 1, column: 200_001, length: 9 }));
        d.push(Diagnostic::error("no such line").at(Place { line: 9, column: 1, length: 1 }));
        let text = d.render(false);
        assert!(text.contains("p:1:100001"), "{text}");
        assert!(text.contains("p:9:1"), "{text}");
        assert!(text.len() < 3_000, "{}", text.len());
    }

    #[test]
    fn colour_only_adds_escapes() {
        assert_ne!(two().render(true), two().render(false));
        assert!(!two().render(false).contains('\u{1b}'));
    }

    #[test]
    fn json_there_and_back() {
        let json = serde_json::to_value(two()).unwrap();
        assert_eq!(json[0]["line"], 3);
        assert_eq!(json[0]["severity"], "error");
        assert_eq!(json[2]["line"], serde_json::Value::Null);
        let back: Diagnostics = serde_json::from_value(json).unwrap();
        assert_eq!(back.with_text("version: 1\ntiers:\n  wéb: { networks: [a, b] }\n"), two());
    }

    #[test]
    fn sorted_by_place_and_without_doubles() {
        let mut d = two();
        d.extend(two().list);
        d.sort();
        assert_eq!(d.len(), 3);
        assert!(d.iter().last().unwrap().place.is_none());
    }
}
