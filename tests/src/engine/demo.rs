//! The demonstration on a real engine with real containers: the same policy, the same attempts and the same grid as without Docker.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};

use super::stage::is_forwarded;
use super::{Engine, Options, Version};
use crate::binary::root;
use crate::demo::{attempts, compare};
use crate::deployment::Deployment;
use crate::matrix;

/// Runs it and prints. `false`: something differed.
pub fn run(out: &mut impl Write) -> Result<bool> {
    let begun = Instant::now();
    let path = root().join("policies/hydra.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let deployment = Deployment::of(&text)?;
    let topology = &deployment.topology;
    writeln!(
        out,
        "policy `policies/hydra.yaml`: {} networks and {} containers of an engine of their own, {} machines outside",
        topology.bridges.len(),
        topology.containers.len(),
        topology.machines.len()
    )?;
    out.flush()?;
    let engine = Engine::deploy(Version::V28, Options::default(), &deployment, |_| "nothing".to_owned())?;
    let version = engine.docker(&["version", "--format", "{{.Server.Version}}"])?;
    writeln!(out, "Docker Engine {version} with its own settings; all containers run")?;

    let mut trials = matrix::trials(&deployment);
    let _echo = matrix::listen(engine.world(), &trials)?;
    attempts(out, "without hydra", engine.world(), &mut trials)?;
    let forwarded = |trial: &matrix::Trial| is_forwarded(trial, &deployment);
    let opened = trials.iter().filter(|t| forwarded(t) && t.seen() == Some(false)).count();
    let closed = trials.iter().filter(|t| !t.expected() && t.seen() == Some(true)).count();
    writeln!(out, "  Docker passes {closed} that the policy denies, and stops {opened} that it allows")?;
    let all = trials.len();
    let shows = |trial: &matrix::Trial| !trial.expected() || forwarded(trial) || trial.seen() == Some(true);
    let left_out =
        trials.iter().filter(|t| !shows(t)).map(|t| (t.probe.from.clone(), t.to.clone())).collect();
    trials.retain(shows);
    writeln!(
        out,
        "  {} that Docker closes to the outside are left out: hydra opens only what is between containers",
        all - trials.len()
    )?;

    compare(out, engine.world(), &deployment, (&mut trials, &left_out), begun, || engine.agent(&text))
}
