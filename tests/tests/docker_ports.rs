//! `hydractl ports` on real engines: every binding that Docker tells is a row with the container behind it, and follows it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hydra_tests::agent::Agent;
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::{Machine, Topology};
use serde_json::Value;

const POLICY: &str = "
version: 1
name: ports
tiers:
  apps:
    networks: [hyapps]
    services:
      page: { containers: [page] }
  databases: { networks: [hydatabases] }
  office: { addresses: [203.0.113.0/24] }
rules:
  - { name: users, from: external, to: apps/page, ports: [tcp/80, udp/53] }
  - { name: desks, from: office, to: databases, ports: [tcp/80] }
  - { name: clients, from: apps, to: databases, ports: [tcp/80] }
";

/// Less than the pause between two regular looks: only an event can have told.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn ports_of_20() {
    every_binding_is_a_row(Version::V20).unwrap();
}

#[test]
fn ports_of_28() {
    every_binding_is_a_row(Version::V28).unwrap();
}

#[test]
fn ports_of_28_without_docker_proxy() {
    without_docker_proxy(Version::V28).unwrap();
}

fn start(version: Version, options: Options) -> Result<Engine> {
    let around = Topology {
        uplink: vec!["198.51.100.1/24".parse()?, "2001:db8:51::1/64".parse()?],
        machines: vec![Machine {
            name: "user".to_owned(),
            addresses: vec!["198.51.100.2".parse()?, "2001:db8:51::2".parse()?],
        }],
        ..Topology::default()
    };
    let engine = Engine::start(version, options, &around)?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    engine.add_network(&Network::new("hydatabases", &["172.31.2.1/24"]))?;
    Ok(engine)
}

fn every_binding_is_a_row(version: Version) -> Result<()> {
    let engine = start(version, Options::default())?;
    let page = [
        "--publish=8080:80",
        "--publish=0.0.0.0:8081:80",
        "--publish=127.0.0.1:8082:80",
        "--publish=198.51.100.1:8083:80",
        "--publish=5353:53/udp",
        "--publish=9000-9002:9000-9002",
    ];
    engine.add_container(&Container::new("page", &["hyapps"], "web 80").options(&page))?;
    // The first network by name has the default route, whichever was there first.
    let both = Container::new("both", &["hydatabases", "hyapps"], "web 80").options(&["--publish=8084:80"]);
    engine.add_container(&both)?;
    engine.add_container(
        &Container::new("store", &["hydatabases"], "web 80").options(&["--publish=0.0.0.0:8086:80"]),
    )?;
    engine.add_container(&Container::new("lone", &["bridge"], "web 80").options(&["--publish=8085:80"]))?;
    engine.add_container(&Container::new("any", &["hyapps"], "web 80").options(&["--publish=80"]))?;
    let agent = engine.agent(POLICY)?;
    let ports = agent.json(engine.world(), &["ports"])?;

    let all = ["page", "both", "store", "lone", "any"];
    let mut told = BTreeSet::new();
    for container in all {
        told.extend(bindings(&engine, container)?);
    }
    ensure!(shown(&ports)? == told, "{ports:#}\ninstead of {told:#?}");
    for (fields, docker) in [
        (
            vec![
                ("address", "0.0.0.0"),
                ("port", "8080"),
                ("tier", "apps"),
                ("service", "page"),
                ("external", "allowed"),
                ("tiers", "apps"),
                ("blocks", "not 203.0.113.0/24 (office)"),
                ("unmanaged", "denied"),
                ("host", "allowed"),
            ],
            "Docker lets everybody in, ",
        ),
        (
            vec![("address", "127.0.0.1"), ("port", "8082"), ("external", "denied"), ("host", "allowed")],
            "only this host",
        ),
        (
            vec![("address", "198.51.100.1"), ("port", "8083"), ("external", "allowed")],
            "who reaches 198.51.100.1",
        ),
        (vec![("port", "5353"), ("protocol", "udp"), ("target_port", "53"), ("external", "allowed")], ""),
        (vec![("port", "9001"), ("target_port", "9001"), ("external", "denied"), ("tiers", "apps")], ""),
        (vec![("port", "8084"), ("tier", "apps"), ("service", ""), ("network", "hyapps")], ""),
        (
            vec![
                ("port", "8086"),
                ("tier", "databases"),
                ("external", "denied"),
                ("tiers", "apps, databases"),
                ("blocks", "203.0.113.0/24 (office)"),
            ],
            "",
        ),
        (vec![("port", "8085"), ("tier", "unmanaged"), ("external", "not judged")], ""),
    ] {
        let found = rows(&ports, &fields)?;
        ensure!(!found.is_empty(), "no row with {fields:?}: {ports:#}");
        ensure!(found.iter().all(|r| r["docker"].as_str().is_some_and(|d| d.contains(docker))), "{found:#?}");
    }
    // Docker's own word for where it leads is in its rules.
    let target = rows(&ports, &[("port", "8084"), ("address", "0.0.0.0")])?;
    let target = target.first().and_then(|row| row["target"].as_str()).context("no target")?;
    ensure!(target == engine.address("both", "hyapps")?.to_string(), "{target}");

    for (from, to, port, code, wanted) in [
        ("external", "198.51.100.1", "tcp/8080", 0, [("rule", "users"), ("published", "page tcp/80")]),
        ("external", "198.51.100.1", "tcp/8086", 1, [("reason", "no-rule"), ("published", "store tcp/80")]),
        ("both", "172.31.1.1", "tcp/8086", 0, [("rule", "clients"), ("destination", "databases")]),
        ("store", "172.31.2.1", "tcp/8080", 1, [("reason", "no-rule"), ("destination", "apps/page")]),
        ("store", "172.31.2.1", "tcp/8089", 1, [("destination", "host"), ("published", "")]),
    ] {
        let output = agent.ctl(engine.world(), &["explain", from, to, port, "-o", "json"])?;
        let said: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.code() == Some(code), "{from} {to} {port}: {said:#}");
        ensure!(
            !rows(&Value::Array(vec![said.clone()]), &wanted)?.is_empty(),
            "{from} {to} {port}: {said:#}"
        );
    }
    let hooks = agent.json(engine.world(), &["status"])?;
    ensure!(
        !rows(&hooks["hooks"], &[("interface", "docker0"), ("hook", "uplink-in")])?.is_empty(),
        "{hooks:#}"
    );
    ensure!(hooks["healthy"] == true, "{hooks:#}");
    live(&engine, &agent)?;
    moves(&engine, &agent)
}

/// A container that is stopped publishes nothing, and one that starts may get another port of the host.
fn live(engine: &Engine, agent: &Agent) -> Result<()> {
    let before = bindings(engine, "any")?;
    engine.docker(&["stop", "--time=0", "any"])?;
    until(engine, agent, "any is gone", |ports| Ok(rows(ports, &[("container", "any")])?.is_empty()))?;
    engine.docker(&["start", "any"])?;
    let after = bindings(engine, "any")?;
    ensure!(!after.is_empty() && after != before, "Docker chose the same port: {before:?}");
    until(engine, agent, "any is back", |ports| {
        let own = rows(ports, &[("container", "any")])?.into_iter().cloned().collect();
        Ok(shown(&Value::Array(own))? == after)
    })
}

/// A container that loses the network that its ports led by has them on the other one, with that one's rights.
fn moves(engine: &Engine, agent: &Agent) -> Result<()> {
    engine.docker(&["network", "disconnect", "hyapps", "both"])?;
    until(engine, agent, "both moves", |ports| {
        let moved = rows(ports, &[("container", "both"), ("tier", "databases"), ("network", "hydatabases")])?;
        Ok(!moved.is_empty() && moved.len() == rows(ports, &[("container", "both")])?.len())
    })
}

fn without_docker_proxy(version: Version) -> Result<()> {
    let engine = start(version, Options { no_proxy: true, ..Options::default() })?;
    engine.add_container(&Container::new("page", &["hyapps"], "web 80").options(&["--publish=8080:80"]))?;
    let agent = engine.agent(POLICY)?;
    let ports = agent.json(engine.world(), &["ports"])?;
    let told = bindings(&engine, "page")?;
    ensure!(shown(&ports)? == told, "{ports:#}\ninstead of {told:#?}");
    let row = rows(&ports, &[("address", "0.0.0.0"), ("port", "8080"), ("service", "page")])?;
    let docker = row.first().and_then(|r| r["docker"].as_str()).context("no row of 8080")?;
    ensure!(docker.contains("it runs no docker-proxy"), "{docker}");
    Ok(())
}

/// What the engine says of a container's live bindings, as `ADDRESS PROTOCOL/PORT CONTAINER TARGET`.
fn bindings(engine: &Engine, container: &str) -> Result<BTreeSet<String>> {
    let inspected = engine.inspect(container)?;
    let ports = inspected["NetworkSettings"]["Ports"].as_object().context("no ports")?;
    let mut all = BTreeSet::new();
    for (target, bound) in ports {
        let (number, protocol) = target.split_once('/').context("a port without a protocol")?;
        for one in bound.as_array().into_iter().flatten() {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            all.insert(format!("{} {protocol}/{} {container} {number}", text("HostIp"), text("HostPort")));
        }
    }
    Ok(all)
}

/// The same of `hydractl ports`.
fn shown(ports: &Value) -> Result<BTreeSet<String>> {
    let row = |row: &Value| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let (address, protocol, container) = (text("address"), text("protocol"), text("container"));
        format!("{address} {protocol}/{} {container} {}", row["port"], row["target_port"])
    };
    Ok(ports.as_array().context("no list")?.iter().map(row).collect())
}

fn until(engine: &Engine, agent: &Agent, what: &str, is_so: impl Fn(&Value) -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        let ports = agent.json(engine.world(), &["ports"])?;
        if is_so(&ports)? {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "never: {what}: {ports:#}; {}", agent.log().join("\n"));
    }
}
