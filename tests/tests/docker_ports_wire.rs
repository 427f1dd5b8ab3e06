//! What `hydractl ports` says of a published port is what happens to whoever calls it, whichever way Docker leads him.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::{HOST, Machine, Topology};
use serde_json::Value;

const POLICY: &str = "
version: 1
name: wire
tiers:
  apps:
    networks: [hyapps]
    services:
      page: { containers: [page] }
  databases: { networks: [hydatabases] }
rules:
  - { name: users, from: external, to: apps/page, ports: [tcp/80] }
  - { name: clients, from: apps, to: databases, ports: [tcp/80] }
  - { name: others, from: unmanaged, to: apps, ports: [tcp/80] }
";

const PATIENCE: Duration = Duration::from_secs(2);

#[test]
fn the_wire_on_20() {
    the_wire(Version::V20, Options::default()).unwrap();
}

#[test]
fn the_wire_on_28() {
    the_wire(Version::V28, Options::default()).unwrap();
}

#[test]
fn the_wire_on_28_with_bridge_netfilter() {
    the_wire(Version::V28, Options { bridge_netfilter: true, ..Options::default() }).unwrap();
}

#[test]
fn the_wire_on_28_without_docker_proxy() {
    the_wire(Version::V28, Options { no_proxy: true, ..Options::default() }).unwrap();
}

/// Who calls, and what `ports` calls him.
const SOURCES: [(&str, Named); 5] = [
    ("user", Named::Field("external")),
    ("any", Named::Tier("apps")),
    ("store", Named::Tier("databases")),
    ("lone", Named::Field("unmanaged")),
    (HOST, Named::Field("host")),
];

#[derive(Clone, Copy, Debug)]
enum Named {
    /// A field with a verdict.
    Field(&'static str),
    /// A name in the list of tiers.
    Tier(&'static str),
}

impl Named {
    /// What the row says of him; none where it says that nobody judges.
    fn passes(self, row: &Value) -> Option<bool> {
        match self {
            Self::Field(name) if row[name] == "not judged" => None,
            Self::Field(name) => Some(row[name] == "allowed"),
            Self::Tier(name) => row["tiers"].as_str().map(|tiers| tiers.split(", ").any(|tier| tier == name)),
        }
    }
}

/// One call.
#[derive(Debug)]
struct Call {
    from: &'static str,
    named: Named,
    to: SocketAddr,
    server: &'static str,
    before: bool,
}

fn the_wire(version: Version, options: Options) -> Result<()> {
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
    let served = [
        ("page", "hyapps", "8080:80", 8080),
        ("any", "hyapps", "8081:80", 8081),
        ("store", "hydatabases", "8082:80", 8082),
        ("lone", "bridge", "8083:80", 8083),
        ("local", "hyapps", "127.0.0.1:8084:80", 8084),
    ];
    for (name, network, publish, _) in served {
        let options = ["--publish", publish];
        engine.add_container(&Container::new(name, &[network], "web 80").options(&options))?;
    }
    for (name, ..) in served {
        engine.exec_until(name, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    let mut calls = Vec::new();
    for (server, _, publish, port) in served {
        for (from, named) in SOURCES.into_iter().filter(|(from, _)| *from != server) {
            // Containers have no IPv6, and nobody's loopback address but the host's own leads to the host.
            let addresses: &[&str] = match (publish.starts_with("127"), from) {
                (true, HOST) => &["127.0.0.1"],
                (true, _) => &[],
                (false, "user" | HOST) => &["198.51.100.1", "2001:db8:51::1"],
                (false, _) => &["198.51.100.1", "172.31.2.1"],
            };
            for address in addresses {
                let to = SocketAddr::new(address.parse()?, port);
                let before = reaches(&engine, from, to, server)?;
                calls.push(Call { from, named, to, server, before });
            }
        }
    }
    let agent = engine.agent(POLICY)?;
    let ports = agent.json(engine.world(), &["ports"])?;
    let mut wrong = Vec::new();
    for call in &calls {
        let after = reaches(&engine, call.from, call.to, call.server)?;
        let Ok(row) = row(&ports, call.to) else {
            // Without docker-proxy nothing leads from IPv6 to a container that has none: Docker binds no port there.
            ensure!(!call.before && !after, "{call:?} has no row: {ports:#}");
            continue;
        };
        let passes = call.named.passes(row);
        // What nobody judges, and what is allowed, is as Docker has it.
        let expected = call.before && passes.unwrap_or(true);
        if after != expected {
            wrong.push(format!("{call:?}: {passes:?} and {after}"));
        }
        explains(&engine, &agent, call, passes)?;
    }
    ensure!(wrong.is_empty(), "{wrong:#?}\n{ports:#}\n{}", agent.log().join("\n"));
    // Of both kinds there were some that hydra alone can have decided.
    for passes in [true, false] {
        let decided = |call: &&Call| {
            let said = row(&ports, call.to).ok().and_then(|row| call.named.passes(row));
            call.before && said == Some(passes)
        };
        ensure!(calls.iter().filter(decided).count() > 1, "{calls:#?}");
    }
    let drops = agent.json(engine.world(), &["drops"])?;
    let uplink = [("hook", "uplink-in"), ("source_tier", "external"), ("destination_container", "store")];
    ensure!(!rows(&drops, &uplink)?.is_empty(), "{drops:#}");
    let port = [("hook", "port-in"), ("source_container", "store"), ("destination_container", "page")];
    ensure!(!rows(&drops, &port)?.is_empty(), "{drops:#}");
    Ok(())
}

/// The row of the binding that a call meets.
fn row(ports: &Value, to: SocketAddr) -> Result<&Value> {
    let everywhere = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let port = to.port().to_string();
    for address in [to.ip().to_string().as_str(), everywhere] {
        if let Some(row) = rows(ports, &[("address", address), ("port", &port)])?.first() {
            return Ok(row);
        }
    }
    None.with_context(|| format!("no row for {to}"))
}

/// `explain` says the same as `ports`.
fn explains(
    engine: &Engine,
    agent: &hydra_tests::agent::Agent,
    call: &Call,
    passes: Option<bool>,
) -> Result<()> {
    let Some(passes) = passes else { return Ok(()) };
    let from = match call.named {
        Named::Field(name) => name,
        Named::Tier(_) => call.from,
    };
    let (to, port) = (call.to.ip().to_string(), format!("tcp/{}", call.to.port()));
    let output = agent.ctl(engine.world(), &["explain", from, &to, &port])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() == passes, "{call:?}: {passes} and\n{said}");
    ensure!(said.contains(&format!("is published for `{}`", call.server)), "{call:?}: {said}");
    Ok(())
}

/// Whether the server itself answers.
fn reaches(engine: &Engine, from: &str, to: SocketAddr, server: &str) -> Result<bool> {
    let said = if from == "user" || from == HOST {
        engine.world().enter(from, || get(to))?.unwrap_or_default()
    } else {
        let url = match to.ip() {
            IpAddr::V4(ip) => format!("http://{ip}:{}/", to.port()),
            IpAddr::V6(ip) => format!("http://[{ip}]:{}/", to.port()),
        };
        let output = engine.exec(from, &["curl", "-sS", "--max-time", "2", &url])?;
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    Ok(said.starts_with(&format!("{server} ")))
}

fn get(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.lines().last()?.trim().to_owned())
}
