//! From the policy's text to the rows of the kernel's tables: `file` (what YAML looks like) -> `model` (what it means, valid by
//! construction) -> `compile` (rows). Pure: nothing here asks Docker or the
//! kernel, and the clock only where no moment is given.

mod again;
mod bits;
mod by_line;
mod check;
pub mod compile;
pub mod diff;
mod doubt;
pub mod expect;
pub mod explain;
pub mod file;
pub mod limit;
pub mod model;
mod plain;
pub mod ports;
mod precedence;
mod regions;
pub mod rows;
pub mod schema;
mod shape;
mod suggest;
pub mod tables;
pub(crate) mod taken;
mod useless;
pub mod yaml;

pub(crate) use suggest::nearest;

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::diagnostic::{Diagnostic, Diagnostics, Place, Severity};
pub(crate) use again::Known;
use compile::World;
use model::Model;
use rows::{Compiled, Numbers};
use shape::{MOST_PROBLEMS, Read as _};
use taken::{Last, Made};

/// A map that lives as long as one reading or compiling, of texts by those who may apply them: its hash is quick and no more.
type QuickMap<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// Reads, checks and tests a policy's text, which messages call `source`. `Ok` comes with the warnings, `Err` with everything that is
/// wrong, warnings included.
pub fn parse(text: &str, source: &str) -> Result<(Model, Diagnostics), Diagnostics> {
    parse_at(text, source, unix_now())
}

/// The same for bytes that may not be a text at all.
pub fn parse_bytes(bytes: &[u8], source: &str) -> Result<(Model, Diagnostics), Diagnostics> {
    match yaml::utf8(bytes) {
        Ok(text) => parse(text, source),
        Err(problem) => {
            let mut problems = Diagnostics::new(source, String::from_utf8_lossy(bytes));
            problems.push(problem);
            Err(problems)
        }
    }
}

/// [`parse`] at a moment, in Unix seconds: what has expired then is as if it were not there.
pub fn parse_at(text: &str, source: &str, now: i64) -> Result<(Model, Diagnostics), Diagnostics> {
    let (model, problems) = examine(text, source, now);
    match model {
        Some((model, _)) if !problems.has_errors() => Ok((model, problems)),
        Some(_) | None => Err(problems),
    }
}

/// The model and its rows as far as they could be made, and everything that there is to say.
pub(crate) fn examine(text: &str, source: &str, now: i64) -> (Option<(Model, Compiled)>, Diagnostics) {
    let (model, mut problems) = read(text, source, now, None);
    let mut made = None;
    if let Some(model) = model {
        match tested(&model, source, now, None) {
            Ok(((compiled, _), failures)) => {
                problems.extend(failures);
                problems.extend(remarks(&model, &compiled, now));
                made = Some((model, compiled));
            }
            Err(problem) => problems.push(problem),
        }
        problems.sort();
    }
    (made, problems)
}

/// Reads and checks. With a model nothing is wrong that is said; its tables are still to be asked ([`tested`], [`remarks`]). A text that is
/// known makes it quicker, and no difference.
pub(crate) fn read(
    text: &str,
    source: &str,
    now: i64,
    known: Option<&Known>,
) -> (Option<Model>, Diagnostics) {
    let mut problems = Diagnostics::new(source, text.strip_prefix('\u{feff}').unwrap_or(text));
    if let Some((model, warnings)) = known.and_then(|known| again::read(known, text, now)) {
        problems.extend(warnings);
        return (Some(model), problems);
    }
    let mut made = None;
    match yaml::read(text) {
        Err(problem) => problems.push(problem),
        Ok(node) => {
            let mut list = Vec::new();
            if let Some(file) = file::File::read(&node, &mut list) {
                let misread = list.iter().filter_map(|d| d.place).collect();
                let (model, more, doubts) = check::check(&file, misread, now);
                let errors =
                    |list: &[Diagnostic]| list.iter().filter(|d| d.severity == Severity::Error).count();
                let full = errors(&list) >= MOST_PROBLEMS || errors(&more) >= MOST_PROBLEMS;
                list.extend(more);
                problems.extend(list);
                if full {
                    let message = format!("there are more problems than the {MOST_PROBLEMS} that are told");
                    problems.push(Diagnostic::error(message));
                } else if !problems.has_errors() {
                    made = Some(model);
                } else if only_in_rules_and_rows(&node, &problems) {
                    // Tiers are whole, so rows that fail whatever the bad rules mean can be told beside them.
                    if let Ok(compiled) = compile::compile(&model, &World::default(), &mut Numbers::default())
                    {
                        problems.extend(expect::failures(&model, &compiled, &doubts, source, now));
                    }
                }
            } else {
                problems.extend(list);
            }
        }
    }
    problems.sort();
    (made, problems)
}

/// Whether every error lies in the sections `rules` and `expect`.
fn only_in_rules_and_rows(node: &yaml::Node, problems: &Diagnostics) -> bool {
    let yaml::Value::Map(entries) = &node.value else { return false };
    let section = |place: Place| {
        let key = entries.iter().rev().map(|(key, _)| key).find(|key| key.place <= place)?;
        match &key.value {
            yaml::Value::Text(name) => Some(&**name),
            yaml::Value::Null | yaml::Value::Bool(_) | yaml::Value::List(_) | yaml::Value::Map(_) => None,
        }
    };
    problems.iter().filter(|d| d.severity == Severity::Error).all(|d| {
        let section = d.place.and_then(section);
        // A key of the document itself, unknown or doubled, may be anything.
        let own = entries.iter().any(|(key, _)| Some(key.place) == d.place);
        !own && matches!(section, Some("rules" | "expect"))
    })
}

/// What a policy's tables alone can refuse: whether they fit, and which `expect` rows fail. The tables are those of no host.
pub(crate) fn tested(
    model: &Model,
    source: &str,
    now: i64,
    last: Option<Last<'_>>,
) -> Result<(Made, Vec<Diagnostic>), Diagnostic> {
    let made = compile::compile_after(model, &World::default(), &mut Numbers::default(), last)
        .map_err(|error| Diagnostic::error(error.to_string()))?;
    let failures = expect::failures(model, &made.0, &[], source, now);
    Ok((made, failures))
}

/// Warnings that take tables, those of no host: rules that never decide.
pub(crate) fn remarks(model: &Model, compiled: &Compiled, now: i64) -> Vec<Diagnostic> {
    useless::rules(model, compiled, now)
}

/// The clock of `expires`.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Unix seconds as a policy writes a moment.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let moment = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    moment.and_then(|t| t.format(format).ok()).unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests;
