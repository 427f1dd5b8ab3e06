//! The demonstration without Docker: the four tiers of `policies/hydra.yaml` as bridges and namespaces of an own host, the real
//! agent, real traffic, and what came of it beside what the policy says.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::binary::root;
use crate::deployment::Deployment;
use crate::matrix::{self, LeftOut, Trial};
use crate::world::World;

/// How long silence must last to count as silence. The first attempt of TCP is repeated after one second.
const SILENCE: Duration = Duration::from_millis(1200);
/// How many differences are printed in full.
const SHOWN: usize = 20;

/// Runs it and prints. `false`: something differed.
pub fn run(out: &mut impl Write) -> Result<bool> {
    let begun = Instant::now();
    let path = root().join("policies/hydra.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let deployment = Deployment::of(&text)?;
    let topology = &deployment.topology;
    writeln!(
        out,
        "policy `policies/hydra.yaml`: {} bridges, {} containers, {} machines outside, in a host namespace of their own",
        topology.bridges.len(),
        topology.containers.len(),
        topology.machines.len()
    )?;
    // Beside whatever tests are running: nothing here is measured.
    let world = World::beside(topology)?;
    let mut trials = matrix::trials(&deployment);
    let _echo = matrix::listen(&world, &trials)?;

    attempts(out, "without hydra", &world, &mut trials)?;
    let silent: Vec<&Trial> = trials.iter().filter(|t| t.seen() != Some(true)).collect();
    if let Some(first) = silent.first() {
        writeln!(
            out,
            "  {} attempts got no answer before hydra came, so they would show nothing",
            silent.len()
        )?;
        writeln!(out, "  the first: {first}")?;
        return Ok(false);
    }

    compare(out, &world, &deployment, (&mut trials, &LeftOut::new()), begun, || Agent::start(&world, &text))
}

/// The second half: starts the agent, makes all attempts again, and shows what came of them. `false`: something differed.
pub(crate) fn compare(
    out: &mut impl Write,
    world: &World,
    deployment: &Deployment,
    (trials, left_out): (&mut [Trial], &LeftOut),
    begun: Instant,
    start: impl FnOnce() -> Result<Agent>,
) -> Result<bool> {
    let starting = Instant::now();
    let agent = start()?;
    let seconds = starting.elapsed().as_secs_f64();
    let status = agent.json(world, &["status"])?;
    writeln!(
        out,
        "hydra-agent enforces revision {} of policy `{}` with programs on {} hooks ({seconds:.1} s)",
        status["revision"],
        status["policy"].as_str().unwrap_or_default(),
        status["hooks"].as_array().map_or(0, Vec::len)
    )?;
    attempts(out, "with hydra", world, trials)?;

    writeln!(
        out,
        "\nexpected (# everything passes, + some of it, . nothing, ! differs, blank: not tried):\n"
    )?;
    writeln!(out, "{}", matrix::grid(deployment, trials, left_out, false))?;
    writeln!(out, "seen:\n\n{}", matrix::grid(deployment, trials, left_out, true))?;
    flows(out, &agent.json(world, &["flows"])?)?;

    let differ: Vec<&Trial> = trials.iter().filter(|t| !t.agrees()).collect();
    for trial in differ.iter().take(SHOWN) {
        writeln!(out, "differs: {trial}")?;
    }
    let denied = trials.iter().filter(|t| !t.expected()).count();
    writeln!(
        out,
        "{} attempts over IPv4 and IPv6 with TCP, UDP and ICMP: {} allowed, {denied} denied, {} differ; {:.1} s",
        trials.len(),
        trials.len() - denied,
        differ.len(),
        begun.elapsed().as_secs_f64()
    )?;
    Ok(differ.is_empty())
}

/// Makes all attempts and says how many were answered.
pub(crate) fn attempts(out: &mut impl Write, what: &str, world: &World, trials: &mut [Trial]) -> Result<()> {
    let (all, begun) = (trials.len(), Instant::now());
    write!(out, "{what}: {all} attempts")?;
    out.flush()?;
    matrix::run(world, trials, SILENCE, |done| {
        let _ = write!(out, " … {done}");
        let _ = out.flush();
    })?;
    let answered = trials.iter().filter(|t| t.seen() == Some(true)).count();
    let seconds = begun.elapsed().as_secs_f64();
    writeln!(out, ": {answered} answered, {} not ({seconds:.1} s)", all - answered)?;
    Ok(())
}

/// What passed, by pairs of tiers, and one line of each kind of flow with its rule.
fn flows(out: &mut impl Write, flows: &Value) -> Result<()> {
    let rows = flows.as_array().context("hydractl flows printed no list")?;
    ensure!(!rows.is_empty(), "traffic passed, and hydractl knows no flow of it");
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mut sums: BTreeMap<(String, String, String), [u64; 5]> = BTreeMap::new();
    for row in rows {
        let why = match text(row, "rule") {
            rule if rule.is_empty() => text(row, "reason"),
            rule => rule,
        };
        let sum = sums.entry((text(row, "source_tier"), text(row, "destination_tier"), why)).or_default();
        sum[0] += 1;
        for (index, key) in ["packets", "bytes", "reply_packets", "reply_bytes"].iter().enumerate() {
            sum[index + 1] += row[*key].as_u64().unwrap_or_default();
        }
    }
    writeln!(out, "flows (`hydractl flows -o json`, {} of them), summed by tiers and rule:\n", rows.len())?;
    writeln!(
        out,
        "{:<14} {:<14} {:<16} {:>7} {:>9} {:>10} {:>9} {:>11}",
        "from", "to", "rule or reason", "flows", "packets", "bytes", "replies", "reply bytes"
    )?;
    for ((from, to, why), [flows, packets, bytes, replies, reply_bytes]) in sums {
        writeln!(
            out,
            "{from:<14} {to:<14} {why:<16} {flows:>7} {packets:>9} {bytes:>10} {replies:>9} {reply_bytes:>11}"
        )?;
    }
    writeln!(out)?;
    Ok(())
}
