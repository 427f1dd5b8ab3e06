//! Entries of a list that stand in one line each, in braces, and are made of words: `  - { name: web, from: [a, b], to: c }`. Long lists
//! of rules are written so, and a line is read in a twentieth of the time that the parser takes. Of every other line nothing is said.

use super::plain::plain;
use super::yaml::{Node, Value};
use crate::diagnostic::Place;

/// Bytes of the longest line: no key is as far from its line's beginning as the parser looks for its colon.
const LONGEST: usize = 1_000;
/// How deep braces and brackets may lie in an entry.
const DEEPEST: usize = 4;

/// Reads lines of a list whose dashes stand behind `indent` spaces.
pub(super) struct Reader {
    pub indent: usize,
    /// Nodes that were read.
    pub nodes: usize,
}

impl Reader {
    /// Whether a line begins an entry.
    pub fn begins(&self, line: &str) -> bool {
        let (spaces, rest) = line.as_bytes().split_at(self.indent.min(line.len()));
        rest.starts_with(b"- ") && spaces.iter().all(|b| *b == b' ')
    }

    /// The entry that a line is; `number` is that of the line, from 1.
    pub fn entry<'t>(&mut self, line: &'t str, number: u32) -> Option<Node<'t>> {
        let text = content(line);
        if text.len() > LONGEST || !self.begins(text) {
            return None;
        }
        let mut cursor = Cursor { text, at: self.indent + 2, line: number, nodes: 0 };
        if cursor.peek() != b'{' {
            return None;
        }
        let node = cursor.value(0)?;
        if cursor.at != text.len() {
            return None;
        }
        self.nodes += cursor.nodes;
        Some(node)
    }
}

/// Whether a line says nothing, wherever it stands between entries: it is empty, or a comment of characters that YAML lets one have
/// (1.2.2, 5.1 and 6.6). None of them ends a line for the parser.
pub(super) fn says_nothing(line: &str) -> bool {
    let text = content(line).trim_start_matches(' ');
    let allowed = |c: char| {
        c != '\u{feff}'
            && matches!(c, '\t' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    };
    text.is_empty() || (text.starts_with('#') && text.chars().all(allowed))
}

/// A line without its end.
fn content(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

struct Cursor<'t> {
    text: &'t str,
    at: usize,
    line: u32,
    nodes: usize,
}

impl<'t> Cursor<'t> {
    /// The byte here; 0 behind the last.
    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == byte).then(|| self.at += 1)
    }

    fn spaces(&mut self) {
        while self.peek() == b' ' {
            self.at += 1;
        }
    }

    /// What begins here.
    fn value(&mut self, depth: usize) -> Option<Node<'t>> {
        let place = self.place(1);
        match self.peek() {
            b'{' | b'[' if depth >= DEEPEST => None,
            b'{' => {
                let mut pairs = Vec::with_capacity(5);
                self.items(b'}', |cursor| {
                    let key = cursor.word()?;
                    cursor.take(b':')?;
                    cursor.take(b' ')?;
                    cursor.spaces();
                    let Value::Text(name) = &key.value else { return None };
                    name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(())?;
                    pairs.push((key, cursor.value(depth + 1)?));
                    Some(())
                })?;
                self.nodes += 1;
                Some(Node { value: Value::Map(pairs), place })
            }
            b'[' => {
                let mut list = Vec::with_capacity(2);
                self.items(b']', |cursor| {
                    list.push(cursor.value(depth + 1)?);
                    Some(())
                })?;
                self.nodes += 1;
                Some(Node { value: Value::List(list), place })
            }
            _ => self.word(),
        }
    }

    /// One or more, with commas between them, up to the end's byte.
    fn items(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        loop {
            self.spaces();
            item(self)?;
            self.spaces();
            if self.peek() == end {
                self.at += 1;
                return Some(());
            }
            self.take(b',')?;
        }
    }

    /// A scalar without quotes, of characters that mean nothing else wherever they stand. A colon is one of them between two others.
    fn word(&mut self) -> Option<Node<'t>> {
        let rest = &self.text.as_bytes()[self.at..];
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
        let colon = |at: usize| rest[at] == b':' && rest.get(at + 1).is_some_and(u8::is_ascii_alphanumeric);
        if !rest.first().is_some_and(u8::is_ascii_alphanumeric) {
            return None;
        }
        let length = (0..rest.len()).find(|at| !inner(rest[*at]) && !colon(*at)).unwrap_or(rest.len());
        let (text, place) = (&self.text[self.at..self.at + length], self.place(length as u32));
        self.at += length;
        self.nodes += 1;
        Some(Node { value: plain(text.into())?, place })
    }

    fn place(&self, length: u32) -> Place {
        Place { line: self.line, column: self.at as u32 + 1, length }
    }
}
