//! The policy's own tests: every `expect` row asked of the policy's tables.

use serde::Serialize;

use super::doubt::Doubt;
use super::explain::{Question, explain};
use super::file::Answer as Wanted;
use super::model::{Expect, Model};
use super::rows::Compiled;
use crate::diagnostic::{Diagnostic, Place};

/// How one row came out. The row of `hydractl policy test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// FROM as written.
    pub from: String,
    /// TO as written.
    pub to: String,
    /// The port as written.
    pub port: String,
    /// The verdict that the row wants.
    pub wanted: String,
    /// The rule that the row wants, or empty.
    pub wanted_rule: String,
    /// The verdict that the policy gives.
    pub verdict: String,
    /// The reason's word.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// Whether the row holds.
    pub passed: bool,
    /// The row's line in the file.
    pub line: u32,
    /// Where the row's verdict stands.
    #[serde(skip)]
    pub place: Place,
    /// Where the row's rule stands.
    #[serde(skip)]
    pub rule_place: Option<Place>,
}

/// Asks every row. Under `mode: audit` of the whole policy a row that wants `denied` holds where enforcing would deny, so that the
/// mode can be switched without touching the rows.
pub fn run(model: &Model, compiled: &Compiled, now: i64) -> Vec<Outcome> {
    model.expect.iter().map(|row| one(model, compiled, row, now)).collect()
}

fn one(model: &Model, compiled: &Compiled, row: &Expect, now: i64) -> Outcome {
    let question = Question { from: row.from.clone(), to: row.to.clone(), packets: row.packets.clone() };
    let answers = explain(model, compiled, &question, now);
    let wanted = row.verdict.as_str();
    let rule = row.rule.as_deref();
    let holds = |a: &super::explain::Answer| {
        (a.verdict == wanted || (row.verdict == Wanted::Denied && a.enforced_verdict == wanted))
            && rule.is_none_or(|r| a.rule == r)
    };
    let passed = !answers.is_empty() && answers.iter().all(holds);
    // Of two families the one that contradicts is the one to show.
    let shown = answers.iter().find(|a| !holds(a)).or_else(|| answers.first());
    let text = |f: fn(&super::explain::Answer) -> &String| shown.map(|a| f(a).clone()).unwrap_or_default();
    Outcome {
        from: row.from.to_string(),
        to: row.to.to_string(),
        port: row.port.clone(),
        wanted: wanted.to_owned(),
        wanted_rule: row.rule.clone().unwrap_or_default(),
        verdict: text(|a| &a.verdict),
        reason: text(|a| &a.reason),
        rule: text(|a| &a.rule),
        passed,
        line: row.place.line,
        place: row.place,
        rule_place: row.rule_place,
    }
}

/// The rows that do not hold, as errors; less those that could hold if rules with errors meant the right thing.
pub fn failures(
    model: &Model,
    compiled: &Compiled,
    doubts: &[Doubt],
    source: &str,
    now: i64,
) -> Vec<Diagnostic> {
    let sure = |row: &Expect, o: &Outcome| !doubts.iter().any(|d| d.could_mend(model, compiled, row, o));
    let outcomes = run(model, compiled, now);
    let failed = model.expect.iter().zip(&outcomes).filter(|(row, o)| !o.passed && sure(row, o));
    failed.map(|(_, o)| failure(o, source)).collect()
}

fn failure(o: &Outcome, source: &str) -> Diagnostic {
    let why = if o.rule.is_empty() { format!("reason {}", o.reason) } else { format!("rule `{}`", o.rule) };
    let question = format!("`{}` to `{}` on `{}`", o.from, o.to, o.port);
    let (message, place) = if o.verdict == o.wanted {
        (format!("{question} is {} by another rule than `{}`: {why}", o.verdict, o.wanted_rule), o.rule_place)
    } else {
        (format!("{question} is {}, not {}: {why}", o.verdict, o.wanted), None)
    };
    let hint = format!("ask `hydractl explain --policy {} {} {} {}`", file(source), o.from, o.to, o.port);
    Diagnostic::error(message).at(place.unwrap_or(o.place)).hint(hint)
}

/// What messages call a text, as a shell takes it, where that is a file.
fn file(source: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,@%=:".contains(c);
    match source {
        "" => "FILE".to_owned(),
        _ if source.starts_with(['<', '-']) => "FILE".to_owned(),
        _ if source.chars().all(plain) => source.to_owned(),
        _ => format!("'{}'", source.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::file;

    #[test]
    fn a_hint_names_the_file_as_a_shell_takes_it() {
        assert_eq!(file("policies/hydra.yaml"), "policies/hydra.yaml");
        assert_eq!(file("my policy's.yaml"), r"'my policy'\''s.yaml'");
        assert_eq!(file("<stdin>"), "FILE");
    }
}
