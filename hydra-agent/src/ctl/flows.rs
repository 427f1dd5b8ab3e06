//! `hydractl flows`.

use clap::Args;

use super::{Answer, Client, Outcome, Output};
use crate::api::wire::{Filter, FlowRow};
use crate::render;

const COLUMNS: [&str; 16] = [
    "protocol",
    "source",
    "source_port",
    "source_container",
    "source_tier",
    "destination",
    "destination_port",
    "destination_container",
    "destination_tier",
    "verdict",
    "rule",
    "packets",
    "bytes",
    "reply_packets",
    "reply_bytes",
    "state",
];

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Only flows opened by this tier, service, container, address or address block
    #[arg(long, value_name = "FROM")]
    from: Option<String>,
    /// Only flows to this tier, service, container, address or address block
    #[arg(long, value_name = "TO")]
    to: Option<String>,
    /// Only flows to this port: `tcp/5432`, `tcp`, or `5432` of any protocol
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Only flows with this verdict: `allowed` or `audited`
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: Asked) -> Outcome {
    let Asked { from, to, port, verdict, limit, output } = asked;
    let filter = Filter { from, to, port, verdict, reason: None, limit };
    let rows: Vec<FlowRow> = client.get("/v1/flows", &filter)?;
    render::list(&rows, &COLUMNS, output.output)?;
    Ok(Answer::Yes)
}
