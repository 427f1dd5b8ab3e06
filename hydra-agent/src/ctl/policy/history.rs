//! `hydractl policy history`.

use super::super::{Answer, Client, Outcome};
use crate::published::RevisionView;
use crate::render::{self, Format};

const COLUMNS: [&str; 5] = ["revision", "policy", "applied", "by", "bytes"];

pub(super) fn run(client: &Client, output: Format) -> Outcome {
    let rows: Vec<RevisionView> = client.get("/v1/policy/history", &())?;
    render::list(&rows, &COLUMNS, output)?;
    Ok(Answer::Yes)
}
