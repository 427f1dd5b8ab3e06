//! `hydractl policy show`.

use clap::Args;

use super::super::{Answer, Client, Outcome, Output};
use crate::api::wire::{PolicyReply, PolicyRequest};
use crate::render::{self, Format, escape_lines};

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// Which revision; without it the one in force
    #[arg(value_name = "REV", value_parser = clap::value_parser!(u32).range(1..))]
    revision: Option<u32>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: &Asked) -> Outcome {
    let policy: PolicyReply = client.get("/v1/policy", &PolicyRequest { revision: asked.revision })?;
    match asked.output.output {
        Format::Table => {
            render::words(&format!("revision {}", policy.revision));
            render::data(&(escape_lines(policy.text.trim_end_matches('\n')) + "\n"))?;
        }
        output @ (Format::Json | Format::Yaml) => render::object(&policy, output)?,
    }
    Ok(Answer::Yes)
}
