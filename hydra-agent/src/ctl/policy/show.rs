//! `hydractl policy show`.

use super::super::{Answer, Client, Outcome};
use crate::api::wire::PolicyReply;
use crate::render::{self, Format, escape_lines};

pub(super) fn run(client: &Client, output: Format) -> Outcome {
    let policy: PolicyReply = client.get("/v1/policy", &())?;
    match output {
        Format::Table => {
            render::words(&format!("revision {}", policy.revision));
            render::data(&(escape_lines(policy.text.trim_end_matches('\n')) + "\n"))?;
        }
        Format::Json | Format::Yaml => render::object(&policy, output)?,
    }
    Ok(Answer::Yes)
}
