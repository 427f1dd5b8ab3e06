//! A deployment in a world with the real agent on it: where the tests of the whole product begin.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::agent::Agent;
use crate::deployment::Deployment;
use crate::probe::{Kind, Outcome, Probe, probe};
use crate::topology::HOST;
use crate::world::World;

/// How long silence must last to count as silence.
pub const SILENCE: Duration = Duration::from_millis(1200);

/// See the module. The agent is apart, so that a test can end it.
pub struct Lab {
    /// The world.
    pub world: World,
    /// What it was built from.
    pub deployment: Deployment,
}

impl Lab {
    /// Builds the world of a policy; no agent yet.
    pub fn of(text: &str) -> Result<Self> {
        let deployment = Deployment::of(text)?;
        let world = World::build(&deployment.topology)?;
        Ok(Self { world, deployment })
    }

    /// And starts the agent with it.
    pub fn start(text: &str) -> Result<(Self, Agent)> {
        let lab = Self::of(text)?;
        let agent = Agent::start(&lab.world, text)?;
        Ok((lab, agent))
    }

    /// The first address of a place in one family.
    pub fn address(&self, place: &str, v6: bool) -> Result<IpAddr> {
        let all = self.deployment.topology.addresses(place);
        all.into_iter().find(|a| a.is_ipv6() == v6).with_context(|| format!("{place} has no such address"))
    }

    /// One attempt at a place's first address.
    pub fn try_one(&self, from: &str, to: &str, kind: Kind, v6: bool) -> Result<Outcome> {
        let probes = [Probe { from: from.to_owned(), source: None, to: self.address(to, v6)?, kind }];
        Ok(probe(&self.world, &probes, SILENCE)?[0])
    }

    /// The flows that hydractl knows between two places.
    pub fn flows(&self, agent: &Agent, from: &str, to: &str) -> Result<Vec<Value>> {
        let all = agent.json(&self.world, &["flows", "--from", from, "--to", to])?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }

    /// Packets that were denied for this reason so far.
    pub fn dropped(&self, agent: &Agent, reason: &str) -> Result<u64> {
        let rows = agent.json(&self.world, &["drops", "--totals"])?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        Ok(rows.iter().filter(|r| r["reason"] == reason).filter_map(|r| r["packets"].as_u64()).sum())
    }

    /// How many classic filters are on both sides of an interface of this host.
    pub fn filters(&self, interface: &str) -> Result<usize> {
        let mut count = 0;
        for side in ["ingress", "egress"] {
            let mut command = Command::new("tc");
            command.args(["filter", "show", "dev", interface, side]);
            let output = self.world.output(HOST, command)?;
            count += String::from_utf8_lossy(&output.stdout).matches(" handle ").count();
        }
        Ok(count)
    }
}

/// Asks until the answer is yes, at most ten seconds long.
pub fn eventually(mut question: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if question() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    question()
}
