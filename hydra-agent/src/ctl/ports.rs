//! `hydractl ports`.

use clap::Args;

use super::{Answer, Client, Outcome, Output};
use crate::api::wire::{PortFilter, PortRow};
use crate::render;

const COLUMNS: [&str; 13] = [
    "address",
    "protocol",
    "port",
    "container",
    "tier",
    "service",
    "target_port",
    "external",
    "blocks",
    "tiers",
    "unmanaged",
    "host",
    "docker",
];

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Only ports that this tier, service, container or address can reach
    #[arg(long, value_name = "FROM")]
    from: Option<String>,
    /// Only ports of this tier, service or container, or on this address or address block of the host
    #[arg(long, value_name = "TO")]
    to: Option<String>,
    /// Only this port of the host: `tcp/8080`, `tcp`, or `8080` of any protocol
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: Asked) -> Outcome {
    let Asked { from, to, port, limit, output } = asked;
    let filter = PortFilter { from, to, port, limit };
    let rows: Vec<PortRow> = client.get("/v1/ports", &filter)?;
    render::list(&rows, &COLUMNS, output.output)?;
    Ok(Answer::Yes)
}
