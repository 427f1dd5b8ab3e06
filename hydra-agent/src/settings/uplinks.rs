//! The setting `uplinks`: where clients of published ports come from outside.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::{Error, SeqAccess, Visitor};

/// Interfaces on which clients of published ports come from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Uplinks {
    /// Every interface that is neither a tier's nor a container's.
    #[default]
    Auto,
    /// None.
    None,
    /// These, as soon as they are there.
    Named(BTreeSet<String>),
}

impl FromStr for Uplinks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            names => Self::named(names.split(',')),
        }
    }
}

impl Uplinks {
    /// The kernel's own rule for names of interfaces (`dev_valid_name`), and no word of ours among them.
    fn named<'n>(names: impl Iterator<Item = &'n str>) -> Result<Self, String> {
        let good = |n: &&str| {
            let odd = |c: char| c == '/' || c == ':' || c == ',' || c.is_whitespace() || c.is_control();
            !n.is_empty() && n.len() <= 15 && !n.contains(odd) && !["auto", "none", ".", ".."].contains(n)
        };
        let names: Vec<&str> = names.collect();
        if let Some(bad) = names.iter().find(|n| !good(n)) {
            return Err(format!(
                "expected `auto`, `none` or names of interfaces: `{}` is none",
                bad.escape_debug()
            ));
        }
        if names.is_empty() {
            return Err("expected `auto`, `none` or names of interfaces: the list is empty".into());
        }
        Ok(Self::Named(names.into_iter().map(str::to_owned).collect()))
    }
}

/// One of the words of the command line, or a list of names.
pub(super) fn listed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uplinks>, D::Error> {
    struct Listed;

    impl<'de> Visitor<'de> for Listed {
        type Value = Option<Uplinks>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`auto`, `none` or a list of names of interfaces")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut names: Vec<String> = Vec::new();
            while let Some(name) = list.next_element()? {
                names.push(name);
            }
            Uplinks::named(names.iter().map(String::as_str)).map(Some).map_err(A::Error::custom)
        }
    }

    deserializer.deserialize_any(Listed)
}
