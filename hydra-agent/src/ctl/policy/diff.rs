//! `hydractl policy diff`.

use clap::Args;
use serde::Serialize;

use super::super::failure::Failure;
use super::super::{Answer, Client, Outcome, Output};
use super::{model, read};
use crate::api::wire::{DiffReply, PolicyText};
use crate::policy;
use crate::render::{self, Format};

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// The policy file that is compared with the agent's policy, or `-` for the standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Compare FILE with this one, and ask no agent
    #[arg(value_name = "OTHER")]
    other: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Row<'c> {
    change: &'c str,
}

pub(super) fn run(client: &Client, asked: &Asked) -> Outcome {
    let changes = match &asked.other {
        Some(other) => between(&asked.file, other)?,
        None => with_agent(client, &asked.file)?,
    };
    if asked.output.output == Format::Table {
        render::data(&super::changes(&changes))?;
        if changes.is_empty() {
            render::words("they mean the same");
        }
    } else {
        let rows: Vec<_> = changes.iter().map(|change| Row { change }).collect();
        render::list(&rows, &["change"], asked.output.output)?;
    }
    Ok(Answer::yes_if(changes.is_empty()))
}

fn between(file: &str, other: &str) -> Result<Vec<String>, Failure> {
    let files = super::read_all(&[file.to_owned(), other.to_owned()])?;
    let models = files.iter().map(model).collect::<Result<Vec<_>, _>>()?;
    let [(old, _), (new, _)] = models.as_slice() else { return Ok(Vec::new()) };
    let diff = policy::diff::diff(Some(old), new, policy::unix_now());
    diff.map(|d| d.to_lines()).map_err(|e| Failure::Unusable(e.to_string()))
}

fn with_agent(client: &Client, file: &str) -> Result<Vec<String>, Failure> {
    let source = read(file)?;
    let text = source.text().map_err(Failure::unusable)?;
    let request = PolicyText { text: text.to_owned(), source: source.name.clone() };
    let reply: DiffReply = client
        .post("/v1/policy/diff", &request)
        .map_err(|failure| failure.with_text(&source.name, text).unusable())?;
    Ok(reply.changes)
}
