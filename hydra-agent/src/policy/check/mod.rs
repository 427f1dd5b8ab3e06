//! Everything that can be wrong with a policy's meaning, all of it at once, each with its place. What passes becomes a `Model`.

mod blocks;
pub(super) mod rules;
mod tiers;

use std::collections::BTreeMap;

use super::doubt::Doubt;
use super::file::{Action, File, Mode, Multihome, SharedStack};
use super::model::{Defaults, Index, Model};
use super::shape::{At, MOST_PROBLEMS};
use super::suggest::nearest;
use super::yaml::reads_as_address;
use crate::diagnostic::{Diagnostic, Place};

/// Words that name no tier, service or rule.
pub const RESERVED: [&str; 5] = ["any", "internal", "external", "host", "unmanaged"];

/// Problems, and what is known of names while the model grows.
#[derive(Default)]
struct Checker {
    problems: Vec<Diagnostic>,
    errors: usize,
    /// Places of errors of the reader.
    misread: Vec<Place>,
    doubts: Vec<Doubt>,
}

impl Checker {
    fn error(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        if !self.full() {
            self.errors += 1;
            self.problems.push(Diagnostic { hint, ..Diagnostic::error(message).at(place) });
        }
    }

    fn warn(&mut self, place: Place, message: impl Into<String>, hint: Option<String>) {
        self.problems.push(Diagnostic { hint, ..Diagnostic::warning(message).at(place) });
    }

    /// Whether no more errors are told. What is read from then on may be wrong without a word.
    fn full(&self) -> bool {
        self.errors >= MOST_PROBLEMS
    }

    /// A name that the policy gives to a tier, service or rule.
    fn name(&mut self, what: &str, name: &At<String>) {
        let text = &name.value;
        if RESERVED.contains(&text.as_str()) {
            let hint = "reserved: `any`, `internal`, `external`, `host`, `unmanaged`".to_owned();
            self.error(name.place, format!("{what} `{text}` has a reserved name"), Some(hint));
        } else if reads_as_address(text) {
            self.error(name.place, format!("{what} `{text}` has a name that reads as an address"), None);
        } else if !is_name(text) {
            let hint = "1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit".to_owned();
            self.error(name.place, format!("{what} `{text}` has a name outside the pattern"), Some(hint));
        }
    }

    fn unknown<'a>(
        &mut self,
        place: Place,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        if self.full() {
            return;
        }
        let hint = nearest(name, known).map(|n| format!("did you mean `{n}`?"));
        self.error(place, format!("unknown {what} `{name}`"), hint);
    }
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first && text.len() <= 63 && text.bytes().all(inner)
}

/// Makes the model, and says what is wrong on the way; `misread` are the places of errors that reading the file gave. The model is
/// only to be used when no problem is an error, or, with its doubts, to say more of what is wrong.
pub fn check(file: &File, misread: Vec<Place>, now: i64) -> (Model, Vec<Diagnostic>, Vec<Doubt>) {
    let File {
        place: _,
        version: _,
        name,
        mode,
        defaults,
        multihome,
        shared_stack,
        networks,
        tiers,
        rules,
        expect,
    } = file;
    let mut checker = Checker { misread, ..Checker::default() };
    let mut model = Model {
        name: name.as_ref().map_or_else(|| "policy".to_owned(), |n| n.value.0.clone()),
        audit: mode.as_ref().is_some_and(|m| m.value == Mode::Audit),
        multihome: multihome.as_ref().map_or_else(Multihome::default, |m| m.value),
        shared_stack: shared_stack.as_ref().map_or_else(SharedStack::default, |s| s.value),
        defaults: checker.defaults(defaults.as_ref()),
        networks: BTreeMap::new(),
        tiers: Vec::new(),
        rules: Vec::new(),
        expect: Vec::new(),
        index: Index::default(),
    };
    checker.networks(networks.as_ref(), &mut model);
    if let Some(tiers) = tiers {
        checker.tiers(tiers, file.place, &mut model);
        checker.blocks(networks.as_ref(), tiers, &model);
    }
    checker.rules(rules.as_ref(), &mut model, now);
    checker.expect(expect.as_ref(), &mut model);
    (model, checker.problems, checker.doubts)
}

impl Checker {
    fn defaults(&mut self, defaults: Option<&super::file::Defaults>) -> Defaults {
        let mut result =
            Defaults { intra_tier: Action::Allow, from_host: Action::Allow, cross_tier: Action::Deny };
        let Some(super::file::Defaults { place: _, intra_tier, from_host, cross_tier }) = defaults else {
            return result;
        };
        if let Some(action) = intra_tier {
            result.intra_tier = action.value;
        }
        if let Some(action) = from_host {
            result.from_host = action.value;
        }
        if let Some(action) = cross_tier {
            result.cross_tier = action.value;
            if action.value == Action::Allow {
                let hint = "write `deny` or `audit`; to allow everything write a rule from `any` to `any`";
                self.error(action.place, "`cross-tier` can not be `allow`", Some(hint.to_owned()));
            }
        }
        result
    }
}
