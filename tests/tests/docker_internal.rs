//! Containers on internal networks only. Since Docker 26.1 they have no way out of their own subnet, so that what the policy
//! allows takes a route, which hydra puts there and takes away with the rule.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hydra_tests::agent::Agent;
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::Topology;

const ALLOWED: &str = "
version: 1
name: internal
tiers:
  front: { networks: [hyfront] }
  back: { networks: [hyback] }
rules:
  - { name: calls, from: front, to: back, ports: [tcp/80] }
";
const DENIED: &str = "
version: 1
name: internal
tiers:
  front: { networks: [hyfront] }
  back: { networks: [hyback] }
rules: []
";
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn internal_networks_on_20() {
    internal_networks(Version::V20).unwrap();
}

#[test]
fn internal_networks_on_28() {
    internal_networks(Version::V28).unwrap();
}

fn internal_networks(version: Version) -> Result<()> {
    let engine = Engine::start(version, Options::default(), &Topology::default())?;
    engine.add_network(&Network::new("hyfront", &["172.31.1.1/24", "fd31:0:0:1::1/64"]).internal())?;
    engine.add_network(&Network::new("hyback", &["172.31.2.1/24", "fd31:0:0:2::1/64"]).internal())?;
    engine.add_container(&Container::new("caller", &["hyfront"], "nothing"))?;
    engine.add_container(&Container::new("called", &["hyback"], "web 80"))?;
    engine.exec_until("called", &["curl", "-sS", "http://127.0.0.1/"])?;
    ensure!(!calls(&engine, &engine.addresses("called", "hyback")?[0].to_string())?, "open before hydra");
    let before = routes(&engine)?;

    let agent = engine.agent(ALLOWED)?;
    for address in engine.addresses("called", "hyback")? {
        let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let start = Instant::now();
        while !calls(&engine, &address)? {
            ensure!(
                start.elapsed() < PATIENCE,
                "{address} is not reached; the agent's log:\n{}",
                agent.log().join("\n")
            );
        }
    }
    if version == Version::V28 {
        ensure!(routes(&engine)? != before, "it was reached without a route of ours?");
    }
    agent.apply(engine.world(), DENIED)?;
    ensure!(
        !calls(&engine, &engine.addresses("called", "hyback")?[0].to_string())?,
        "still open without the rule"
    );
    let start = Instant::now();
    while routes(&engine)? != before {
        ensure!(start.elapsed() < PATIENCE, "routes stay behind: {}", routes(&engine)?);
    }
    never_where_it_is_told_not_to(&engine, agent, &before)
}

fn never_where_it_is_told_not_to(engine: &Engine, agent: Agent, before: &str) -> Result<()> {
    agent.stop()?;
    let socket = engine.socket();
    let agent =
        Agent::start_with(engine.world(), &["--docker", &socket.to_string_lossy(), "--routes", "false"])?;
    agent.apply(engine.world(), ALLOWED)?;
    let reached = calls(engine, &engine.addresses("called", "hyback")?[0].to_string())?;
    ensure!(routes(engine)? == before, "a route was put in although the settings forbid it");
    ensure!(reached == (engine.version() == Version::V20), "{:?}: reached: {reached}", engine.version());
    Ok(())
}

fn calls(engine: &Engine, host: &str) -> Result<bool> {
    let said = engine.exec("caller", &["curl", "-sS", "--max-time", "2", &format!("http://{host}/")])?;
    Ok(said.status.success())
}

/// All routes of both containers, as text.
fn routes(engine: &Engine) -> Result<String> {
    let mut all = String::new();
    for container in ["caller", "called"] {
        for family in ["-4", "-6"] {
            let output = engine.exec(container, &["ip", family, "route"])?;
            all += &String::from_utf8_lossy(&output.stdout);
        }
    }
    Ok(all)
}
