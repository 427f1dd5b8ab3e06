//! `L4`: what the agent itself takes, as it is released: a policy's text to the rows of the kernel's tables, and from the order to apply
//! it to the first packet that the new one lets through; the flow table read for export; and what it takes at rest.
//!
//! Each part is a module with one function that adds what it measured to the level's report.

mod apply;
mod compile;
mod export;
mod policy;
mod rest;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::progress::Progress;
use crate::report::Report;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    rounds: usize,
    long: bool,
}

impl Form {
    /// Less than a minute.
    pub const SHORT: Self = Self { rounds: 20, long: false };
    /// Some minutes.
    pub const LONG: Self = Self { rounds: 60, long: true };
}

/// What the page says of how it is measured.
pub const HOW: &str = "The agent and the compiler as they are released, optimised. `Text to rows` is reading, checking and testing the text \
    (`hydractl policy validate` does that much) and then the rows for a host; its parts are measured in the same rounds, `checked` by \
    compiling once for the warnings. A policy is applied to a running agent, on a host of namespaces with two containers and without \
    Docker, whose state is on this machine's disk; a datagram every 100 µs goes from one container to the other, in turns to a port that the policy allows and to one that \
    the next one will. `To the verdict` is from the start of the command, or of the request on the socket, to the first datagram that \
    arrives at the other port; `to the answer` until `hydractl` has ended, or the agent has answered. A look before each apply sees that nothing arrives there, one after it that nothing \
    arrives any more at the port before. `All rules` changes each of them, `one rule` one: first with another policy in the bank that \
    is written, then with the one that differs in that rule alone. Flows are read from two full tables by the agent's own reader, which shows one \
    after the other to whoever exports them; here its counters are added up. `One by one` is the same with two system calls for each. \
    CPU time is the thread's own; the time of single calls is measured in rounds of its own, by looking at two clocks between any two flows. \
    At rest there are fifty containers in three tiers that say nothing (namespaces, without Docker); CPU time is that of the agent's process in spans of thirty seconds, each of which holds all that it does \
    regularly, and its memory what is resident of it at the end of each, with the pages that it shares with others and, proportionally, without.";

/// Measures; `folder` is on a disk.
pub fn run(form: &Form, folder: &Path, progress: &mut Progress) -> Result<Report> {
    let mut report = Report::new("L4", form.long)?;
    compile::measure(form, &mut report, progress)?;
    apply::measure(form, folder, &mut report, progress)?;
    export::measure(form, &mut report, progress)?;
    rest::measure(form, &mut report, progress)?;
    Ok(report)
}

/// Milliseconds since then.
fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
