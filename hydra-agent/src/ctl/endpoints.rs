//! `hydractl endpoints`.

use super::{Answer, Client, Outcome};
use crate::api::wire::EndpointRow;
use crate::render::{self, Format};

const COLUMNS: [&str; 8] =
    ["container", "tier", "service", "network", "bridge", "port", "address", "attached"];

pub(super) fn run(client: &Client, output: Format) -> Outcome {
    let mut rows: Vec<EndpointRow> = client.get("/v1/endpoints", &())?;
    rows.sort_by(|a, b| (&a.tier, &a.container, &a.address).cmp(&(&b.tier, &b.container, &b.address)));
    render::list(&rows, &COLUMNS, output)?;
    Ok(Answer::Yes)
}
