//! `hydractl policy rollback`.

use clap::Args;

use super::super::{Answer, Client, Outcome, Output};
use super::apply::report;
use crate::api::wire::RollbackRequest;
use crate::published::ApplyReport;

#[derive(Debug, Args)]
pub(in crate::ctl) struct Asked {
    /// Which revision; without it the one before the current
    #[arg(value_name = "REV", value_parser = clap::value_parser!(u32).range(1..))]
    revision: Option<u32>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: &Asked) -> Outcome {
    let request = RollbackRequest { revision: asked.revision };
    let done: ApplyReport = client.post("/v1/policy/rollback", &request)?;
    report(&done, false, asked.output.output)?;
    Ok(Answer::Yes)
}
