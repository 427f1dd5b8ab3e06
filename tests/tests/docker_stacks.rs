//! Containers of a real engine that share one network stack (`network_mode: container:X`), and one on the networks of two tiers.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use anyhow::{Result, ensure};
use hydra_tests::agent::Agent;
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::lab::eventually;
use hydra_tests::topology::Topology;

const POLICY: &str = "version: 1
tiers:
  apps: { networks: [hyapps] }
  data:
    networks: [hydata]
    services:
      vpn: { containers: [vpn] }
      torrent: { containers: [torrent] }
rules:
  - { name: to-vpn, from: apps, to: data/vpn, ports: [tcp/80, tcp/81] }
  - { name: to-torrent, from: apps, to: data/torrent, ports: [tcp/81, tcp/82] }
";

#[test]
fn shared_stacks_on_20() {
    shared_stacks(Version::V20).unwrap();
}

#[test]
fn shared_stacks_on_28() {
    shared_stacks(Version::V28).unwrap();
}

fn shared_stacks(version: Version) -> Result<()> {
    let engine = Engine::start(version, Options::default(), &Topology::default())?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    engine.add_network(&Network::new("hydata", &["172.31.2.1/24"]))?;
    engine.add_container(&Container::new("caller", &["hyapps"], "nothing"))?;
    engine.add_container(&Container::new("vpn", &["hydata"], "web 80 81 82"))?;
    engine.exec_until("vpn", &["curl", "-sS", "http://127.0.0.1/"])?;
    let vpn = engine.address("vpn", "hydata")?.to_string();
    let reached =
        || -> Result<Vec<bool>> { [80, 81, 82].iter().map(|p| calls(&engine, "caller", &vpn, *p)).collect() };

    let agent = engine.agent(POLICY)?;
    ensure!(reached()? == [true, true, false], "alone it is data/vpn");
    engine.add_container(&Container::new("torrent", &[], "nothing").options(&["--network=container:vpn"]))?;
    let closed = || said(&agent, &engine, "closed");
    ensure!(eventually(|| closed().is_ok_and(|c| c.len() == 1)), "{}", agent.log().join("\n"));
    ensure!(
        closed()?
            == [
                "vpn: `vpn` of `data/vpn` and `torrent` of `data/torrent` share one network stack: `shared-stack: refuse` closes its ports"
            ],
        "{:?}",
        closed()?
    );
    ensure!(reached()? == [false; 3], "a closed stack was reached");
    for (from, to, reason) in
        [("caller", "torrent", "unknown-destination"), ("torrent", "caller", "unknown-source")]
    {
        explains(&agent, &engine, from, to, 81, "denied", reason)?;
    }

    agent.apply(engine.world(), &format!("shared-stack: restrict\n{POLICY}"))?;
    ensure!(closed()?.is_empty() && said(&agent, &engine, "warnings")?.len() == 1);
    ensure!(reached()? == [false, true, false], "both may be called on 81 alone");
    for name in ["vpn", "torrent"] {
        explains(&agent, &engine, "caller", name, 80, "denied", "no-rule")?;
        explains(&agent, &engine, "caller", name, 81, "allowed", "rule")?;
        explains(&agent, &engine, "caller", name, 82, "denied", "no-rule")?;
    }

    // The guest goes: what is left is one service again.
    engine.remove_container("torrent")?;
    ensure!(eventually(|| calls(&engine, "caller", &vpn, 80).unwrap_or(false)), "{}", agent.log().join("\n"));
    ensure!(reached()? == [true, true, false], "the stack did not become data/vpn again");
    Ok(())
}

#[test]
fn a_container_that_joins_a_second_tier_is_closed_while_it_is_there_on_28() {
    joins_a_second_tier().unwrap();
}

fn joins_a_second_tier() -> Result<()> {
    let engine = Engine::start(Version::V28, Options::default(), &Topology::default())?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    engine.add_network(&Network::new("hydata", &["172.31.2.1/24"]))?;
    engine.add_container(&Container::new("caller", &["hyapps"], "nothing"))?;
    engine.add_container(&Container::new("page", &["hyapps"], "web 80"))?;
    engine.exec_until("page", &["curl", "-sS", "http://127.0.0.1/"])?;
    let page = engine.address("page", "hyapps")?.to_string();
    let agent = engine.agent(&format!("multihome: deny\n{POLICY}"))?;
    let reached = || calls(&engine, "caller", &page, 80);
    ensure!(reached()?, "it is on one network");
    engine.docker(&["network", "connect", "hydata", "page"])?;
    ensure!(
        eventually(|| said(&agent, &engine, "closed").is_ok_and(|c| c.len() == 1)),
        "{}",
        agent.log().join("\n")
    );
    ensure!(!reached()?, "it is on two, and was reached");
    engine.docker(&["network", "disconnect", "hydata", "page"])?;
    ensure!(eventually(|| reached().unwrap_or(false)), "it did not come back; {}", agent.log().join("\n"));
    ensure!(said(&agent, &engine, "closed")?.is_empty());
    Ok(())
}

/// A list of remarks in the status.
fn said(agent: &Agent, engine: &Engine, list: &str) -> Result<Vec<String>> {
    let status = agent.json(engine.world(), &["status"])?;
    let rows = status[list].as_array().cloned().unwrap_or_default();
    Ok(rows
        .iter()
        .map(|r| format!("{}: {}", r["what"].as_str().unwrap(), r["why"].as_str().unwrap()))
        .collect())
}

fn explains(
    agent: &Agent,
    engine: &Engine,
    from: &str,
    to: &str,
    port: u16,
    verdict: &str,
    reason: &str,
) -> Result<()> {
    let answer = agent.json(engine.world(), &["explain", from, to, &format!("tcp/{port}")])?;
    ensure!(answer["verdict"] == verdict && answer["reason"] == reason, "{answer:#}");
    Ok(())
}

fn calls(engine: &Engine, from: &str, address: &str, port: u16) -> Result<bool> {
    let url = format!("http://{address}:{port}/");
    Ok(engine.exec(from, &["curl", "-sS", "--max-time", "2", &url])?.status.success())
}
