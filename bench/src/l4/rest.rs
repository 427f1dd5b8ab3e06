//! What an agent takes that has nothing to do: it goes on looking whether the kernel enforces what it should.
//!
//! Fifty containers in three tiers, nobody of whom says a word. What they take at their start, and the agent with them, is over
//! before anything is measured.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hydra_tests::agent::Agent;
use hydra_tests::topology::{Bridge, Container, Port, Topology};
use hydra_tests::world::World;

use super::Form;
use crate::cpu;
use crate::progress::Progress;
use crate::report::{Goal, Report};

/// Containers.
const CONTAINERS: usize = 50;
/// A span must hold what the agent does seldom: it looks at everything every thirty seconds.
pub const SPAN: Duration = Duration::from_secs(30);
/// How long it may take until all of them are covered.
const PATIENCE: Duration = Duration::from_mins(1);
/// Neighbour discovery, and what the agent does at its start, take a few seconds.
const CALM: Duration = Duration::from_secs(8);
const TIERS: [&str; 3] = ["apps", "jobs", "data"];
const SHARE: &str = "agent at rest, 50 containers";
const MEMORY: &str = "its memory";
const OWN: &str = "its memory, shared pages by their parts";

/// Adds what it takes.
pub fn measure(form: &Form, report: &mut Report, progress: &mut Progress) -> Result<()> {
    progress.at("fifty containers");
    let world = World::build(&topology()?)?;
    let agent = Agent::start(&world, &policy())?;
    let begun = Instant::now();
    while covered(&agent, &world)? < CONTAINERS {
        ensure!(begun.elapsed() < PATIENCE, "not all containers are covered: {:?}", agent.log());
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(CALM);
    // Moments, and what the agent had taken until each.
    let spans = if form.long { 8 } else { 3 };
    let (mut taken, mut memory, mut own) = (vec![moment(&agent)?], Vec::new(), Vec::new());
    for number in 1..=spans {
        progress.at(&format!("at rest, {number} of {spans} times {} s", SPAN.as_secs()));
        thread::sleep(SPAN);
        taken.push(moment(&agent)?);
        let pages = fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid()))?;
        memory.push(mebibytes(&pages, "Rss:")?);
        own.push(mebibytes(&pages, "Pss:")?);
    }
    let share = taken.iter().zip(&taken[1..]).map(|((from, before), (to, after))| {
        after.saturating_sub(*before).as_secs_f64() / to.duration_since(*from).as_secs_f64() * 100.0
    });
    let share = share.collect();
    // The control: it was there, and did its work.
    ensure!(covered(&agent, &world)? == CONTAINERS, "containers were lost meanwhile");
    report.add(SHARE, "% of a core", share)?;
    report.add(MEMORY, "MiB", memory)?;
    report.add(OWN, "MiB", own)?;
    report.aim(SHARE, Goal::Most(13, 0.2))?;
    report.aim(MEMORY, Goal::Most(13, 30.0))
}

/// Now, and the CPU time that the agent has taken until now.
fn moment(agent: &Agent) -> Result<(Instant, Duration)> {
    Ok((Instant::now(), cpu::of_process(agent.pid())?))
}

/// Containers whose port carries the programs.
fn covered(agent: &Agent, world: &World) -> Result<usize> {
    let endpoints = agent.json(world, &["endpoints"])?;
    let rows = endpoints.as_array().context("endpoints are a list")?;
    Ok(rows.iter().filter(|row| row["attached"] == true).count())
}

/// A line of `smaps_rollup` (`proc_pid_smaps`).
fn mebibytes(pages: &str, key: &str) -> Result<f64> {
    let line = pages.lines().find_map(|line| line.strip_prefix(key)).context("no resident memory")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

fn topology() -> Result<Topology> {
    let mut topology = Topology::default();
    for n in 0..TIERS.len() {
        let addresses = vec![format!("10.9{n}.0.1/16").parse()?];
        topology.bridges.push(Bridge { name: format!("hyrest{n}"), addresses });
    }
    for n in 0..CONTAINERS {
        let tier = n % TIERS.len();
        let addresses = vec![format!("10.9{tier}.0.{}/16", 10 + n).parse()?];
        let ports = vec![Port { bridge: format!("hyrest{tier}"), addresses }];
        topology.containers.push(Container { name: format!("rest{n}"), ports });
    }
    Ok(topology)
}

fn policy() -> String {
    let mut text = "version: 1\nname: rest\ntiers:\n".to_owned();
    for (n, tier) in TIERS.iter().enumerate() {
        let _ = writeln!(text, "  {tier}: {{ bridges: [hyrest{n}] }}");
    }
    text + "rules:\n  - { name: clients, from: apps, to: data, ports: [tcp/5432] }\n  \
            - { name: users, from: external, to: apps, ports: [tcp/80, tcp/443] }\n"
}
