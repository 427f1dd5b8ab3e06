//! `hydractl policy validate`.

use clap::Args;
use serde_json::Value;

use super::super::failure::{Failure, problems};
use super::super::{Answer, Client, Outcome, Output};
use super::{Source, read_all};
use crate::api::wire::{ValidateReply, ValidateRequest};
use crate::diagnostic::Diagnostics;
use crate::policy;
use crate::render::{self, Format, RenderError, escape};

const COLUMNS: [&str; 5] = ["severity", "message", "file", "line", "column"];

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// Policy files, or `-` for the standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// Ask the agent as well whether what the policy names is on this host
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: &Asked) -> Outcome {
    let mut valid = true;
    let mut rows: Vec<Value> = Vec::new();
    for source in read_all(&asked.files)? {
        let said = check(client, &source, asked.live)?;
        let good = !said.has_errors();
        valid &= good;
        if asked.output.output == Format::Table {
            problems(&said);
            let name = escape(&source.name);
            render::words(&if good { format!("`{name}` is valid") } else { format!("`{name}` is refused") });
        } else if let Value::Array(more) = serde_json::to_value(&said).map_err(RenderError::from)? {
            rows.extend(more);
        }
    }
    if asked.output.output != Format::Table {
        render::list(&rows, &COLUMNS, asked.output.output)?;
    }
    Ok(Answer::yes_if(valid))
}

/// Everything there is to say about a policy.
fn check(client: &Client, source: &Source, live: bool) -> Result<Diagnostics, Failure> {
    let warnings = match policy::parse_bytes(&source.bytes, &source.name) {
        Ok((_, warnings)) => warnings,
        Err(said) => return Ok(said),
    };
    if !live {
        return Ok(warnings);
    }
    let text = source.text()?;
    let request = ValidateRequest { text: text.to_owned(), source: source.name.clone(), live };
    match client.post::<ValidateReply>("/v1/policy/validate", &request) {
        Ok(reply) => Ok(reply.warnings.with_source(&source.name).with_text(text)),
        Err(Failure::Agent(reply)) if !reply.diagnostics.is_empty() => {
            Ok(reply.diagnostics.with_source(&source.name).with_text(text))
        }
        Err(other) => Err(other),
    }
}
