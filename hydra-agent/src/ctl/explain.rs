//! `hydractl explain`.

use std::fmt::Write as _;

use clap::Args;

use super::failure::Failure;
use super::policy::{model_to_ask, read};
use super::{Answer, Client, Outcome, Output};
use crate::api::explain::of_file;
use crate::api::wire::{ExplainRequest, Explanation};
use crate::policy::explain::{Question, explain};
use crate::policy::unix_now;
use crate::render::{self, Format, escape};

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Who opens the flow: a tier, service, container or address
    #[arg(value_name = "FROM")]
    from: String,
    /// Who is called: a tier, service, container or address
    #[arg(value_name = "TO")]
    to: String,
    /// On which port: `tcp/5432`, `udp/53`, `icmp/echo-request`, `ping`, `proto/47`, a service's name
    #[arg(value_name = "PORT")]
    port: String,
    /// Ask this policy file instead of the agent; needs neither root nor agent
    #[arg(long, value_name = "FILE")]
    policy: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(client: &Client, asked: Asked) -> Outcome {
    let Asked { from, to, port, policy, output } = asked;
    let request = ExplainRequest { from, to, port };
    let answer: Explanation = match policy {
        Some(file) => from_file(&file, &request)?,
        None => client.get("/v1/explain", &request)?,
    };
    match output.output {
        Format::Table => render::data(&for_people(&answer))?,
        Format::Json | Format::Yaml => render::object(&answer, output.output)?,
    }
    Ok(Answer::yes_if(answer.verdict != "denied"))
}

fn from_file(file: &str, asked: &ExplainRequest) -> Result<Explanation, Failure> {
    let (model, compiled) = model_to_ask(&read(file)?)?;
    let question = Question::read(&model, &asked.from, &asked.to, &asked.port)
        .map_err(|no| Failure::Question { what: no.message, hint: no.hint.unwrap_or_default() })?;
    Ok(of_file(asked, &explain(&model, &compiled, &question, unix_now())))
}

fn for_people(answer: &Explanation) -> String {
    let mut out = format!("{}: {}\n\n", render::verdict(&answer.verdict), escape(&answer.why));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "  {name:<12}{}", escape(value));
    };
    let end = |asked: &str, owner: &str, identity: Option<u16>| {
        let number = identity.map_or_else(String::new, |n| format!("identity {n}"));
        let mut about = Vec::new();
        if asked != owner {
            about.push(owner.to_owned());
        }
        if !number.is_empty() {
            about.push(number);
        }
        if about.is_empty() { asked.to_owned() } else { format!("{asked} ({})", about.join(", ")) }
    };
    row("from", &end(&answer.from, &answer.source, answer.source_identity));
    row("to", &end(&answer.to, &answer.destination, answer.destination_identity));
    row(
        "port",
        &if answer.port == answer.packet {
            answer.port.clone()
        } else {
            format!("{} ({})", answer.port, answer.packet)
        },
    );
    if !answer.published.is_empty() {
        row("published", &format!("for {}", answer.published));
    }
    row("reason", &answer.reason);
    row("rule", if answer.rule.is_empty() { "none" } else { &answer.rule });
    if !answer.limit.is_empty() {
        row("limit", &format!("{} per source (whether it is used up is not known here)", answer.limit));
    }
    if !answer.expires.is_empty() {
        row("expires", &answer.expires);
    }
    row("precedence", &format!("line {}", answer.line));
    if answer.revision > 0 {
        row("revision", &answer.revision.to_string());
    }
    if !answer.docker.is_empty() {
        row("docker", &answer.docker);
    }
    match answer.enforced {
        Some(true) => row("enforced", "yes"),
        Some(false) => row("enforced", &format!("not here: {}", answer.not_enforced)),
        None => {}
    }
    out
}
