//! `hydractl status`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Answer, Client, Outcome};
use crate::api::wire::{Docker, Status};
use crate::render::{self, Format, escape};

pub(super) fn run(client: &Client, output: Format) -> Outcome {
    let status: Status = client.get("/v1/status", &())?;
    match output {
        Format::Table => render::data(&for_people(&status))?,
        Format::Json | Format::Yaml => render::object(&status, output)?,
    }
    Ok(Answer::yes_if(status.healthy))
}

fn for_people(status: &Status) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<13}{value}");
    };
    row("healthy", if status.healthy { "yes".into() } else { "no".into() });
    row(
        "policy",
        match status.revision {
            0 => "none yet".into(),
            n => format!("{}, revision {n}, mode {}", escape(&status.policy), escape(&status.mode)),
        },
    );
    row("agent", escape(&status.agent_version));
    row("docker", docker(&status.docker));
    row("endpoints", status.endpoints.to_string());
    row("flows", format!("{} of {}", status.flows, status.flow_capacity));
    if status.pickup_seconds > 0 {
        let minutes = status.pickup_seconds.div_ceil(60);
        row("pickup", format!("TCP connections from before are taken up, for {minutes} min more"));
    }
    let mut hooks: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for hook in &status.hooks {
        *hooks.entry((&hook.hook, &hook.mechanism)).or_default() += 1;
    }
    let hooks: Vec<_> = hooks
        .iter()
        .map(|((hook, mechanism), n)| format!("{n} {} ({})", escape(hook), escape(mechanism)))
        .collect();
    row("hooks", if hooks.is_empty() { "none".into() } else { hooks.join(", ") });
    if status.events_lost > 0 {
        row("events lost", status.events_lost.to_string());
    }
    if !status.not_enforced.is_empty() {
        out.push_str("\nnot enforced:\n");
        for item in &status.not_enforced {
            let _ = writeln!(out, "  {}: {}", escape(&item.what), escape(&item.why));
        }
    }
    for (title, remarks) in [("closed", &status.closed), ("warnings", &status.warnings)] {
        if !remarks.is_empty() {
            let _ = writeln!(out, "\n{title}:");
        }
        for item in remarks {
            let _ = writeln!(out, "  {}: {}", escape(&item.what), escape(&item.why));
            let _ = writeln!(out, "    hint: {}", escape(&item.hint));
        }
    }
    out
}

fn docker(docker: &Docker) -> String {
    match docker.state.as_str() {
        "up" => escape(&docker.version),
        "off" => "not asked".into(),
        _ => format!("does not answer: {}", escape(&docker.error)),
    }
}
