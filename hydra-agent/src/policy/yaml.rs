//! A YAML text as a tree of nodes with places: one document, within budgets, no merge keys. Meaning is `file`'s matter; a tree
//! stands between so that every unknown or doubled key is found at once, where serde would stop at the first.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Location, Spanned};

use super::plain;
use crate::diagnostic::{Diagnostic, Place};

/// The longest text that is read, in bytes.
pub const MAX_TEXT: usize = 4 << 20;
/// How deep lists and mappings may lie in each other.
pub(super) const MAX_DEPTH: usize = 32;
/// Nodes, so that a text of nothing but commas ends early.
pub(super) const MAX_NODES: usize = 1 << 20;
/// Nodes that aliases may repeat.
const MAX_REPEATED: usize = 20_000;

/// One value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<'t> {
    /// What it is.
    pub value: Value<'t>,
    /// Where it is used: for an alias the alias, not the anchor.
    pub place: Place,
}

/// The kinds of values.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'t> {
    /// Nothing, or `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A scalar as it is written, without its quotes.
    Text(Cow<'t, str>),
    /// A sequence.
    List(Vec<Node<'t>>),
    /// A mapping with its keys in the order of the text, doubled ones included.
    Map(Vec<(Node<'t>, Node<'t>)>),
}

impl Node<'_> {
    /// What it is, for "expected X, found Y".
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads bytes that should be a policy's text.
pub fn utf8(bytes: &[u8]) -> Result<&str, Diagnostic> {
    if bytes.len() > MAX_TEXT {
        return Err(too_long(bytes.len()));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Diagnostic::error("the text is UTF-16, not UTF-8").hint("save the file as UTF-8"));
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let good = &bytes[..e.valid_up_to()];
        let line = good.split(|b| *b == b'\n').count() as u32;
        let tail = good.rsplit(|b| *b == b'\n').next().unwrap_or_default();
        let column = String::from_utf8_lossy(tail).chars().count() as u32 + 1;
        let place = Place { line, column, length: 1 };
        Diagnostic::error("the text is not UTF-8").at(place).hint("save the file as UTF-8")
    })
}

fn too_long(bytes: usize) -> Diagnostic {
    Diagnostic::error(format!("the text is too long: {bytes} bytes, at most {MAX_TEXT}"))
}

/// Reads a text. After a syntax error only that is known.
pub fn read(text: &str) -> Result<Node<'_>, Diagnostic> {
    if text.len() > MAX_TEXT {
        return Err(too_long(text.len()));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(at) = text.find('\0') {
        return Err(Diagnostic::error("the text holds a NUL character").at(place_at(text, at)));
    }
    // YAML takes one for the end of a line (1.2.2, 5.4), an editor may not: the two would speak of different lines.
    let lone = |(at, _): &(usize, &str)| !text[at + 1..].starts_with('\n');
    if let Some((at, _)) = text.match_indices('\r').find(lone) {
        return Err(Diagnostic::error("the text holds a carriage return without a line feed")
            .at(place_at(text, at))
            .hint("end lines with a line feed"));
    }
    // What tells values apart, at least one each: a text of little else is refused before it fills the memory.
    let marks = text.bytes().filter(|b| matches!(b, b',' | b':' | b'[' | b'{' | b'\n')).count();
    let dashes = text.as_bytes().windows(2).filter(|pair| pair == b"- ").count();
    let marks = marks + dashes;
    if marks > MAX_NODES {
        return Err(over_budget("Nodes"));
    }
    // The library says nothing of what is no YAML behind a document's end: rules there would be as if they were not written.
    if let Some(at) = behind_the_end(text) {
        return Err(over_budget("Documents").at(place_at(text, at)));
    }
    plain::read(text).map_or_else(|| by_library(text), Ok)
}

/// Any text, at least to say what is wrong with it.
pub(super) fn by_library(text: &str) -> Result<Node<'_>, Diagnostic> {
    let options = |duplicate_keys| {
        serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 4 * MAX_NODES, max_nodes: MAX_NODES, max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH,
                max_documents: 1, max_total_scalar_bytes: MAX_TEXT, max_aliases: 10_000, max_anchors: 10_000,
                max_recorded_anchor_events: MAX_REPEATED, max_recorded_anchor_bytes: MAX_TEXT,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: MAX_REPEATED, max_replay_stack_depth: 16,
            },
            duplicate_keys: duplicate_keys, merge_keys: MergeKeyPolicy::Error, strict_booleans: true, with_snippet: false, reject_unsupported_tags: true,
        }
    };
    let parsed = serde_saphyr::from_str_with_options::<Raw>(text, options(DuplicateKeyPolicy::LastWins));
    let mut integer_keys = false;
    let node = finish(parsed.map_err(|e| syntax(&e))?, text, &mut integer_keys);
    if node.value == Value::Null {
        return Err(
            Diagnostic::error("the text is empty").hint("a policy has at least `version: 1` and `tiers:`")
        );
    }
    if integer_keys {
        // Keys that read as numbers are the only ones of which the reader itself drops doubles.
        let strict = options(DuplicateKeyPolicy::Error);
        if let Err(e) = serde_saphyr::from_str_with_options::<serde::de::IgnoredAny>(text, strict) {
            return Err(syntax(&e));
        }
    }
    Ok(node)
}

/// Where something begins behind a line that ends the document: `...` in the first column does so wherever it stands (YAML 1.2.2,
/// 9.1.3), comments may follow.
fn behind_the_end(text: &str) -> Option<usize> {
    let (mut begun, mut ended, mut at) = (false, false, 0);
    for line in text.split_inclusive('\n') {
        let words = line.trim_matches([' ', '\t', '\r', '\n']);
        let says = !words.is_empty() && !words.starts_with('#');
        if ended && says {
            return Some(at);
        }
        let end = line
            .strip_prefix("...")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        // One that nothing is before ends nothing.
        ended |= end && begun;
        begun |= says && !end;
        at += line.len();
    }
    None
}

/// The place of a character, by its byte.
fn place_at(text: &str, at: usize) -> Place {
    let line = text[..at].matches('\n').count() as u32 + 1;
    let column = text[..at].rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1;
    Place { line, column, length: 1 }
}

/// A syntax error as a diagnostic: the reader's own words where they are good.
fn syntax(error: &serde_saphyr::Error) -> Diagnostic {
    use serde_saphyr::Error as E;
    let error = error.without_snippet();
    let place = error.location().map(place_of);
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum of many kinds that may grow")]
    let diagnostic = match error {
        E::MultipleDocuments { .. } => over_budget("Documents"),
        E::MergeKeyNotAllowed { .. } => {
            Diagnostic::error("merge keys (`<<`) are not part of the language").hint("write the keys out")
        }
        E::DuplicateMappingKey { key, .. } => {
            Diagnostic::error(format!("key `{}` is there twice", key.as_deref().unwrap_or("?")))
        }
        E::RecursiveReferencesRequireWeakTypes { .. } => Diagnostic::error("an alias refers to itself"),
        E::UnsupportedTag { tag, .. } => {
            Diagnostic::error(format!("tag `{tag}` is not part of the language"))
        }
        E::Budget { breach, .. } => over_budget(&format!("{breach:?}")),
        E::AliasReplayLimitExceeded { .. }
        | E::AliasExpansionLimitExceeded { .. }
        | E::AliasReplayStackDepthExceeded { .. } => {
            Diagnostic::error("aliases repeat too much of the text").hint("write less of it with `&` and `*`")
        }
        other => match words(&other.to_string()) {
            message if message.contains("budget breached") || message.contains("recursion limit") => {
                over_budget(&message)
            }
            message => Diagnostic::error(format!("the text is not YAML: {message}")),
        },
    };
    match place {
        Some(place) if place.line > 0 => diagnostic.at(place),
        Some(_) | None => diagnostic,
    }
}

/// What the reader's budget says, by the name of what was exceeded.
fn over_budget(breach: &str) -> Diagnostic {
    let has = |word: &str| breach.contains(word);
    if has("Documents") {
        return Diagnostic::error("there is more than one document in the text")
            .hint("a policy is one document: take the `---` or `...` away, or make two files");
    }
    if has("Anchor") || has("Alias") {
        return Diagnostic::error("aliases repeat too much of the text")
            .hint("write less of it with `&` and `*`");
    }
    if has("Depth") || has("Nesting") || has("recursion limit") {
        return Diagnostic::error(format!("the text is nested too deep: more than {MAX_DEPTH} levels"));
    }
    Diagnostic::error(format!("there are too many values in the text: more than {MAX_NODES}"))
}

/// The first line of a message, without the place that stands beside it anyway.
fn words(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    line.trim_start_matches("error: ").trim_end_matches('.').to_owned()
}

fn place_of(location: Location) -> Place {
    Place {
        line: location.line() as u32,
        column: location.column() as u32,
        length: u32::try_from(location.span().len()).unwrap_or(1).max(1),
    }
}

/// What the reader gives before scalars have their text: as large as a node, so that the tree is made where it lies.
struct Raw {
    value: RawValue,
    place: Place,
}

enum RawValue {
    Null,
    Bool(bool),
    /// A plain scalar that reads as a number: where its text is in the source, in bytes.
    Number(usize, usize),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { mut value, referenced, defined } = Spanned::<RawValue>::deserialize(deserializer)?;
        if let RawValue::Number(from, to) = &mut value {
            let span = defined.span();
            *from = span.byte_offset().unwrap_or(0) as usize;
            *to = *from + span.byte_len().unwrap_or(0) as usize;
        }
        Ok(Self { value, place: place_of(referenced) })
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = RawValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
                Ok(RawValue::Bool(value))
            }
            fn visit_i64<E>(self, _: i64) -> Result<RawValue, E> {
                Ok(RawValue::Number(0, 0))
            }
            fn visit_u64<E>(self, _: u64) -> Result<RawValue, E> {
                Ok(RawValue::Number(0, 0))
            }
            fn visit_i128<E>(self, _: i128) -> Result<RawValue, E> {
                Ok(RawValue::Number(0, 0))
            }
            fn visit_u128<E>(self, _: u128) -> Result<RawValue, E> {
                Ok(RawValue::Number(0, 0))
            }
            fn visit_f64<E>(self, _: f64) -> Result<RawValue, E> {
                Ok(RawValue::Number(0, 0))
            }
            fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
                Ok(RawValue::Text(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<RawValue, E> {
                Ok(RawValue::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    list.push(item);
                }
                Ok(RawValue::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    list.push(entry);
                }
                Ok(RawValue::Map(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn finish<'t>(raw: Raw, text: &'t str, integer_keys: &mut bool) -> Node<'t> {
    let value = match raw.value {
        RawValue::Null => Value::Null,
        RawValue::Bool(value) => Value::Bool(value),
        RawValue::Number(from, to) => Value::Text(text.get(from..to).unwrap_or_default().trim().into()),
        RawValue::Text(value) => Value::Text(value.into()),
        RawValue::List(list) => {
            Value::List(list.into_iter().map(|n| finish(n, text, integer_keys)).collect())
        }
        RawValue::Map(list) => Value::Map(
            list.into_iter()
                .map(|(key, value)| {
                    *integer_keys |= matches!(key.value, RawValue::Number(..));
                    (finish(key, text, integer_keys), finish(value, text, integer_keys))
                })
                .collect(),
        ),
    };
    Node { value, place: raw.place }
}

/// Whether a text reads as an address or a block of addresses.
pub fn reads_as_address(text: &str) -> bool {
    // Every address has one of these.
    text.contains(['.', ':']) && (text.parse::<IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok())
}
