//! How typed values are read from a YAML tree: every unknown, doubled, missing or mistyped key of the whole text is collected, and
//! each shape describes itself for the JSON schema. Knows no key of the policy; `file` lists those.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::slice;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::suggest::nearest;
use super::yaml::{Node, Value};
use crate::beside::both;
use crate::diagnostic::{Diagnostic, Place};

/// A value with its place in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// Problems of one text that are told; whoever has more has other worries than the rest.
pub const MOST_PROBLEMS: usize = 1_000;

/// Tells a problem, unless too many are told.
pub fn tell(problems: &mut Vec<Diagnostic>, problem: Diagnostic) {
    if problems.len() < MOST_PROBLEMS {
        problems.push(problem);
    }
}

/// What can be read from a node. What cannot is told to `problems`, and nothing comes back.
pub trait Read: Sized {
    /// Reads it.
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self>;
}

/// A scalar of some form.
pub trait Leaf: Sized {
    /// What is expected, for messages: "expected X, found Y".
    const EXPECTED: &'static str;
    /// Reads it; `Err` is a message and a hint that say more than "expected X".
    fn leaf(value: &Value) -> Result<Self, Option<(String, Option<String>)>>;
    /// Its JSON schema.
    fn schema() -> Schema;
}

/// Lets a JSON schema refer to a leaf as itself.
impl<T: Leaf> JsonSchema for At<T> {
    fn schema_name() -> Cow<'static, str> {
        T::EXPECTED.into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

impl<T: Leaf> Read for At<T> {
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self> {
        match T::leaf(&node.value) {
            Ok(value) => Some(Self { value, place: node.place }),
            Err(said) => {
                let mut d = match said {
                    Some((message, hint)) => Diagnostic { hint, ..Diagnostic::error(message) },
                    None => Diagnostic::error(format!("expected {}, found {}", T::EXPECTED, node.kind())),
                };
                d.place = Some(node.place);
                tell(problems, d);
                None
            }
        }
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq)]
pub struct List<T> {
    /// The values that could be read.
    pub items: Vec<T>,
    /// Where the list stands.
    pub place: Place,
    /// Whether it was written with nothing in it.
    pub empty: bool,
}

impl<T: Read> Read for List<T> {
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self> {
        let nodes = match &node.value {
            Value::List(nodes) => nodes.as_slice(),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::Map(_) => slice::from_ref(node),
        };
        // Most have one: what `collect` makes has room for four.
        let mut items = Vec::with_capacity(nodes.len());
        items.extend(nodes.iter().filter_map(|n| T::read(n, problems)));
        let empty = matches!(&node.value, Value::List(nodes) if nodes.is_empty());
        Some(Self { items, place: node.place, empty })
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("list of {}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// A list of entries, and nothing but a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries<T>(pub Vec<T>);

/// Entries from which on a second thread is worth its while.
const MANY: usize = 1_000;

/// What can be read of these, in their order.
fn read_all<T: Read + Send>(nodes: &[Node], problems: &mut Vec<Diagnostic>) -> Vec<T> {
    let each = |nodes: &[Node], problems: &mut Vec<Diagnostic>| -> Vec<T> {
        let mut all = Vec::with_capacity(nodes.len());
        all.extend(nodes.iter().filter_map(|node| T::read(node, problems)));
        all
    };
    if nodes.len() < MANY {
        return each(nodes, problems);
    }
    let (first, second) = nodes.split_at(nodes.len() / 2);
    let later = || {
        let mut told = Vec::new();
        (each(second, &mut told), told)
    };
    let ((others, told), mut all) = both("hydra-reader", later, || each(first, problems));
    for problem in told {
        tell(problems, problem);
    }
    all.extend(others);
    all
}

impl<T: Read + Send> Read for Entries<T> {
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self> {
        match &node.value {
            Value::List(nodes) => Some(Self(read_all(nodes, problems))),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::Map(_) => {
                let message = format!("expected a list, found {}", node.kind());
                let hint = "begin each entry with `- `, or write `[]` for none";
                tell(problems, Diagnostic::error(message).at(node.place).hint(hint));
                None
            }
        }
    }
}

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("entries of {}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "type": "array", "items": one })
    }
}

/// Names with what they name, in the order of the text. A value that could not be read keeps its name, so that its users are not
/// told that it is unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named<T>(pub Vec<(At<String>, Option<T>)>);

impl<T: Read> Read for Named<T> {
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self> {
        let entries = entries(node, problems)?;
        let named = |(key, value): (At<&str>, &Node)| {
            (At { value: key.value.to_owned(), place: key.place }, T::read(value, problems))
        };
        Some(Self(entries.into_iter().map(named).collect()))
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("named {}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "type": "object", "additionalProperties": one })
    }
}

/// Keys that are looked through one by one for a doubled one.
const FEW: usize = 16;

/// The entries of a mapping, doubled keys told and left out. Nothing at all is an empty mapping.
pub fn entries<'n>(
    node: &'n Node<'n>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Vec<(At<&'n str>, &'n Node<'n>)>> {
    let pairs = match &node.value {
        Value::Map(pairs) => pairs.as_slice(),
        Value::Null => &[],
        Value::Bool(_) | Value::Text(_) | Value::List(_) => {
            tell(
                problems,
                Diagnostic::error(format!("expected a mapping, found {}", node.kind())).at(node.place),
            );
            return None;
        }
    };
    let mut seen = BTreeMap::new();
    let mut entries: Vec<(At<&str>, &Node)> = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let name = match &key.value {
            Value::Text(name) => &**name,
            Value::Bool(true) => "true",
            Value::Bool(false) => "false",
            Value::Null | Value::List(_) | Value::Map(_) => {
                tell(
                    problems,
                    Diagnostic::error(format!("expected a name, found {}", key.kind())).at(key.place),
                );
                continue;
            }
        };
        let before = if pairs.len() <= FEW {
            entries.iter().find(|(before, _)| before.value == name).map(|(before, _)| before.place.line)
        } else {
            seen.get(name).copied()
        };
        if let Some(first) = before {
            let d = Diagnostic::error(format!("key `{name}` is there twice")).at(key.place);
            tell(problems, d.hint(format!("the first one is in line {first}")));
            continue;
        }
        if pairs.len() > FEW {
            seen.insert(name, key.place.line);
        }
        entries.push((At { value: name, place: key.place }, value));
    }
    Some(entries)
}

/// Says that a key is not one of `known`.
pub fn unknown_key(key: &At<&str>, known: &[&str], problems: &mut Vec<Diagnostic>) {
    if problems.len() >= MOST_PROBLEMS {
        return;
    }
    let hint = nearest(key.value, known.iter().copied())
        .map_or_else(|| format!("known here: {}", ticked(known)), |n| format!("did you mean `{n}`?"));
    problems.push(Diagnostic::error(format!("unknown key `{}`", key.value)).at(key.place).hint(hint));
}

/// Names in back-ticks, with commas.
pub fn ticked(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// A mapping with known keys: the struct, how it is read, and its JSON schema, from one list. Every field is an `Option`: a missing
/// required key is told when it is read, and the rest is still looked at.
macro_rules! shape {
    (
        $(#[doc = $doc:literal])*
        $name:ident {
            $( $(#[doc = $field_doc:literal])* $need:ident $key:literal $field:ident : $kind:ty, )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            /// Where it stands.
            pub place: $crate::diagnostic::Place,
            $( $(#[doc = $field_doc])* pub $field: Option<$kind>, )*
        }

        impl $crate::policy::shape::Read for $name {
            fn read(
                node: &$crate::policy::yaml::Node,
                problems: &mut Vec<$crate::diagnostic::Diagnostic>,
            ) -> Option<Self> {
                const KNOWN: &[&str] = &[$($key),*];
                const REQUIRED: &[&str] = &[$($crate::policy::shape::shape!(@missing $need $key)),*];
                let mut shape = Self { place: node.place, $($field: None),* };
                let entries = $crate::policy::shape::entries(node, problems)?;
                for (key, value) in &entries {
                    match key.value {
                        // Nothing behind a key is as if the key were not there, where it may be left out.
                        $( $key if $crate::policy::shape::shape!(@absent $need value) => {}
                           $key => shape.$field = $crate::policy::shape::Read::read(value, problems), )*
                        _ => $crate::policy::shape::unknown_key(key, KNOWN, problems),
                    }
                }
                let there = |key: &str| entries.iter().any(|(there, _)| there.value == key);
                for key in REQUIRED.iter().filter(|key| !key.is_empty() && !there(key)) {
                    let message = format!("`{key}` is missing");
                    let problem = $crate::diagnostic::Diagnostic::error(message).at(node.place);
                    $crate::policy::shape::tell(problems, problem);
                }
                Some(shape)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut properties = serde_json::Map::new();
                $(
                    let mut schema = generator.subschema_for::<$kind>();
                    schema.insert("description".into(), concat!($($field_doc),*).trim().into());
                    properties.insert($key.into(), schema.into());
                )*
                let mut required: Vec<&str> = vec![$($crate::policy::shape::shape!(@missing $need $key)),*];
                required.retain(|key| !key.is_empty());
                schemars::json_schema!({
                    "type": "object",
                    "description": concat!($($doc),*).trim(),
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
        }
    };
    (@missing required $key:literal) => { $key };
    (@missing optional $key:literal) => { "" };
    (@absent required $value:ident) => { false };
    (@absent optional $value:ident) => { matches!($value.value, $crate::policy::yaml::Value::Null) };
}
pub(crate) use shape;
