//! `L4`: what the agent itself takes, as it is released: a policy's text to the rows of the kernel's tables, and from the order to apply
//! it to the first packet that the new one lets through; how long a container's port waits for its programs; the flow table read for
//! export; and what it takes at rest.
//!
//! Each part is a module with one function that adds what it measured to the level's report.

mod apply;
mod compile;
mod export;
mod policy;
mod ports;
mod rest;
mod watch;

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
    /// Four minutes.
    pub const SHORT: Self = Self { rounds: 20, long: false };
    /// A quarter of an hour.
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
    is written, then with the one that differs in that rule alone. `Port to programs` is from the kernel's message that a new veth is a port of a bridge of the policy, \
    which comes before the request that made it one is answered, to its message that the later of the two filters with hydra's programs is there; both are read by a thread that goes before every other, \
    and nobody is asked for anything meanwhile. What happens before that is closed (the tests of a start show it). Veths and addresses are made for namespaces that wait, one at a time or \
    twenty by four hands at once, without Docker's own work, and go again; beside ten containers that stay, under a policy of 10,000 rules; the agent idle, \
    or made to apply one policy after the other, all rules of which change. A port that has no filters then is asked for links after a tenth of a second. In turns with each as many ports of a bridge that the policy does not name, on the same host: at the \
    same message, or when it has the answer for the port before, somebody else makes an `empty request`, which changes nothing (`RTM_SETLINK` of `lo`) and is answered when it \
    has had the lock of all network configuration, which the agent's own looks at these ports take too. `p99` is what 99 of 100 do not exceed; the upper end of its interval is the \
    largest, which of so few may still be too low, and twenty at once are counted as if each had come for itself. Flows are read from two full tables by the agent's own reader, which shows one \
    after the other to whoever exports them; here its counters are added up. `One by one` is the same with two system calls for each. \
    CPU time is the thread's own; the time of single calls is measured in rounds of its own, by looking at two clocks between any two flows. \
    At rest there are fifty containers in three tiers that say nothing (namespaces, without Docker); CPU time is that of the agent's process in spans of thirty seconds, each of which holds all that it does \
    regularly, and its memory what is resident of it, looked at as often, with the pages that it shares with others and, proportionally, without.";

/// Measures; `folder` is on a disk.
pub fn run(form: &Form, folder: &Path, progress: &mut Progress) -> Result<Report> {
    let mut report = Report::new("L4", form.long)?;
    compile::measure(form, &mut report, progress)?;
    apply::measure(form, folder, &mut report, progress)?;
    ports::measure(form, &mut report, progress)?;
    export::measure(form, &mut report, progress)?;
    rest::measure(form, &mut report, progress)?;
    Ok(report)
}

/// Milliseconds since then.
fn since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
