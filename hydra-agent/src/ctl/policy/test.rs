//! `hydractl policy test`.

use clap::Args;
use serde::Serialize;

use super::super::failure::problems;
use super::super::{Answer, Outcome, Output};
use super::read_all;
use crate::policy::{self, expect};
use crate::render::{self, escape};

const COLUMNS: [&str; 10] =
    ["passed", "file", "line", "from", "to", "port", "expected", "expected_rule", "verdict", "rule"];

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// Policy files, or `-` for the standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// An `expect` row and its outcome.
#[derive(Debug, Serialize)]
struct Row {
    file: String,
    line: u32,
    from: String,
    to: String,
    port: String,
    expected: String,
    expected_rule: String,
    verdict: String,
    rule: String,
    reason: String,
    passed: bool,
}

pub(super) fn run(asked: &Asked) -> Outcome {
    let mut rows: Vec<Row> = Vec::new();
    let mut good = true;
    for source in read_all(&asked.files)? {
        let Ok(text) = source.text() else {
            good = false;
            continue;
        };
        let now = policy::unix_now();
        let (made, said) = policy::examine(text, &source.name, now);
        let Some((model, compiled)) = made else {
            problems(&said);
            render::words(&format!("`{}` is refused: its rows were not asked", escape(&source.name)));
            good = false;
            continue;
        };
        rows.extend(expect::run(&model, &compiled, now).into_iter().map(|o| Row {
            file: source.name.clone(),
            line: o.line,
            from: o.from,
            to: o.to,
            port: o.port,
            expected: o.wanted,
            expected_rule: o.wanted_rule,
            verdict: o.verdict,
            rule: o.rule,
            reason: o.reason,
            passed: o.passed,
        }));
    }
    render::list(&rows, &COLUMNS, asked.output.output)?;
    let failed = rows.iter().filter(|r| !r.passed).count();
    if good || !rows.is_empty() {
        render::words(&format!("{} of {} passed", rows.len() - failed, rows.len()));
    }
    Ok(Answer::yes_if(good && failed == 0))
}
