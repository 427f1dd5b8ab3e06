//! `hydractl policy apply`.

use std::fmt::Write as _;

use clap::Args;

use super::super::failure::Failure;
use super::super::{Answer, Client, Outcome, Output};
use super::read;
use crate::api::wire::ApplyRequest;
use crate::published::ApplyReport;
use crate::render::{self, Format, escape};

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// The policy file, or `-` for the standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Only show what would change and which live flows it would cut
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: &Asked) -> Outcome {
    let policy = read(&asked.file)?;
    let text = policy.text()?;
    let request = ApplyRequest { text: text.to_owned(), source: policy.name.clone(), dry_run: asked.dry_run };
    let done: ApplyReport =
        client.post("/v1/policy/apply", &request).map_err(|failure| failure.with_text(&policy.name, text))?;
    report(&done, asked.dry_run, asked.output.output)?;
    Ok(Answer::Yes)
}

/// What an apply did, or would do.
pub(super) fn report(done: &ApplyReport, dry_run: bool, output: Format) -> Result<(), Failure> {
    for warning in &done.warnings {
        render::warning(warning);
    }
    if output != Format::Table {
        return Ok(render::object(done, output)?);
    }
    render::data(&for_people(done, dry_run))?;
    let name = escape(&done.policy);
    render::words(&match (dry_run, done.restores) {
        (true, _) => format!("nothing was changed: `{name}` would be revision {}", done.revision),
        (false, Some(old)) => {
            format!("`{name}` is in force as revision {}, with the text of revision {old}", done.revision)
        }
        (false, None) => format!("`{name}` is in force as revision {}", done.revision),
    });
    Ok(())
}

fn for_people(done: &ApplyReport, dry_run: bool) -> String {
    let mut out = String::new();
    if done.changes.is_empty() {
        out.push_str("no change of meaning\n");
    }
    out += &super::changes(&done.changes);
    if !done.cut.is_empty() {
        let n = done.cut.len();
        let flows = if n == 1 { "live flow" } else { "live flows" };
        let _ = writeln!(out, "\n{n} {flows} {}:", if dry_run { "would be cut" } else { "cut" });
        for line in super::changes(&done.cut).lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}
