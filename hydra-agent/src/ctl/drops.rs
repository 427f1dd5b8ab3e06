//! `hydractl drops`: single packets as the kernel told them, as they come with `--follow`, or exact sums with `--totals`.

use clap::Args;

use super::failure::Failure;
use super::{Answer, Client, Outcome};
use crate::api::wire::{DropRow, DropTotalRow, Filter, FollowLine};
use crate::render::{self, Format, RenderError, Stream};

const COLUMNS: [&str; 13] = [
    "time",
    "verdict",
    "reason",
    "rule",
    "protocol",
    "source",
    "source_port",
    "source_container",
    "source_tier",
    "destination",
    "destination_port",
    "destination_container",
    "destination_tier",
];
const TOTALS: [&str; 7] =
    ["source_tier", "destination_tier", "verdict", "reason", "rule", "packets", "bytes"];

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Print what comes from now on, until interrupted; with `-n N` after the last N
    #[arg(short, long, conflicts_with = "totals")]
    follow: bool,
    /// Print exact counts by tiers, reason and rule instead of single packets
    #[arg(long, conflicts_with_all = ["from", "to", "port", "verdict", "reason", "limit"])]
    totals: bool,
    /// Only packets of this tier, service, container, address or address block
    #[arg(long, value_name = "FROM")]
    from: Option<String>,
    /// Only packets to this tier, service, container, address or address block
    #[arg(long, value_name = "TO")]
    to: Option<String>,
    /// Only packets to this port: `tcp/5432`, `tcp`, or `5432` of any protocol
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Only packets with this verdict: `denied`, or `audited` for what passed all the same
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// Only packets with this reason: `no-rule`, `rule`, `spoofed-address` …
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// At most so many, the newest
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    /// How data is printed [default: table; with --follow JSON lines where stdout is no terminal]
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
}

pub(super) fn run(client: &Client, asked: Asked) -> Outcome {
    let Asked { follow, totals, from, to, port, verdict, reason, limit, output } = asked;
    let filter = Filter { from, to, port, verdict, reason, limit };
    if follow {
        return self::follow(client, &filter, output);
    }
    let format = output.unwrap_or_default();
    if totals {
        let rows: Vec<DropTotalRow> = client.get("/v1/drops/totals", &())?;
        render::list(&rows, &TOTALS, format)?;
    } else {
        let rows: Vec<DropRow> = client.get("/v1/drops", &filter)?;
        render::list(&rows, &COLUMNS, format)?;
    }
    Ok(Answer::Yes)
}

fn follow(client: &Client, filter: &Filter, output: Option<Format>) -> Outcome {
    let mut shown = Stream::new(&COLUMNS, output);
    let done = client.follow("/v1/drops/follow", filter, |line| {
        match serde_json::from_slice(line).map_err(|e| client.other(e))? {
            FollowLine::Drop(row) => Ok(shown.row(&row)?),
            FollowLine::Lost { lost } => {
                render::words(&format!("{lost} packets were not told: this reader is too slow"));
                Ok(())
            }
        }
    });
    match done {
        Ok(()) | Err(Failure::Render(RenderError::HungUp)) => Ok(Answer::Yes),
        Err(failure) => Err(failure),
    }
}
