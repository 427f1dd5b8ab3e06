//! Containers without a port on this host: on a macvlan network they are judged at their sockets, by the same rules and flows.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::TcpListener;

use anyhow::{Result, ensure};
use hydra_tests::engine::container::{Attachment, Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version, user};
use hydra_tests::lab::eventually;
use hydra_tests::topology::HOST;

/// What `curl` ends with when the kernel refuses the connection, and when nobody answers.
const REFUSED: i32 = 7;
const WAITED: i32 = 28;

const LAN: &str = "
version: 1
name: lan
tiers:
  lan: { networks: [hylan] }
  apps: { networks: [hyapps] }
  stores: { services: { vault: { containers: [vault] } } }
rules:
  - { name: in,   from: external, to: lan,    ports: [tcp/80] }
  - { name: pair, from: lan,      to: stores, ports: [tcp/80] }
  - { name: out,  from: lan,      to: external, ports: [tcp/9000] }
  - { name: web,  from: external, to: stores, ports: [tcp/80] }
  - { name: back, from: apps,     to: stores, ports: [tcp/81] }
  - { name: far,  from: apps,     to: lan,    ports: [tcp/80] }
";

#[test]
fn containers_on_macvlan_on_20() {
    lan(Version::V20).unwrap();
}

#[test]
fn containers_on_macvlan_on_28() {
    lan(Version::V28).unwrap();
}

/// `page` is on the network of the uplink alone, `vault` on it and on a bridge, `shop` on the bridge alone.
fn lan(version: Version) -> Result<()> {
    let mut engine = Engine::start(version, Options::default(), &user::around()?)?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    let made = "network create --driver=macvlan --opt=parent=hyup0 --subnet=198.51.100.0/24 --gateway=198.51.100.9 hylan";
    engine.docker(&made.split(' ').collect::<Vec<_>>())?;
    let on = |name: &str, address: &str| -> Result<Attachment> {
        Ok(Attachment { network: name.to_owned(), addresses: vec![address.parse()?] })
    };
    let mut page = Container::new("page", &[], "web 80 81");
    page.networks = vec![on("hylan", "198.51.100.20")?];
    engine.add_container(&page)?;
    let mut vault = Container::new("vault", &[], "web 80 81");
    vault.networks = vec![on("hylan", "198.51.100.21")?, on("hyapps", "172.31.1.21")?];
    engine.add_container(&vault)?;
    engine.add_container(&Container::new("shop", &["hyapps"], "web 80"))?;
    for container in ["page", "vault", "shop"] {
        engine.exec_until(container, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    // On the same wire, and not behind this host.
    engine.world().ip("user", &["route add 198.51.100.16/28 dev eth0".to_owned()])?;
    // Who is on a bridge comes by a router: the host itself does not reach what is on its own interface.
    engine.adopt("page")?;
    for (name, value) in
        [("ip_forward", "1"), ("conf.all.send_redirects", "0"), ("conf.eth0.send_redirects", "0")]
    {
        engine.world().sysctl("user", &format!("net.ipv4.{name}"), value)?;
    }
    engine.world().ip(HOST, &["route add 198.51.100.20 via 198.51.100.2".to_owned()])?;
    engine.world().ip("page", &["route add 198.51.100.1 via 198.51.100.2".to_owned()])?;
    let servers: Vec<TcpListener> = engine.world().enter("user", || {
        ["198.51.100.2:9000", "198.51.100.2:9001"]
            .into_iter()
            .map(TcpListener::bind)
            .collect::<Result<_, _>>()
    })??;
    let (own, other, bridged) = ("198.51.100.20", "198.51.100.21", "172.31.1.21");
    let outside = |to: &str, port: u16| -> Result<bool> { Ok(user::ask(&engine, to, port)?.is_some()) };
    // A server that only listens takes the connection and says nothing: curl waits in vain.
    let inside = |from: &str, to: &str, port: u16| -> Result<Option<i32>> {
        let url = format!("http://{to}:{port}/");
        Ok(engine.exec(from, &["curl", "-sS", "--max-time", "2", &url])?.status.code())
    };
    for (to, port) in [(own, 80), (own, 81), (other, 80), (other, 81)] {
        ensure!(outside(to, port)?, "{to} {port} is closed from outside without hydra");
    }
    for (from, to, port) in [
        ("page", other, 80),
        ("page", other, 81),
        ("vault", own, 80),
        ("shop", bridged, 80),
        ("shop", bridged, 81),
        ("shop", own, 80),
        ("shop", own, 81),
    ] {
        ensure!(inside(from, to, port)? == Some(0), "{from} does not reach {to} {port} without hydra");
    }
    for port in [9000, 9001] {
        ensure!(inside("page", "198.51.100.2", port)? == Some(WAITED), "{port} outside without hydra");
    }
    // Open before hydra comes: only the hook on its packets sees this one.
    let talks = "exec 3>/dev/udp/198.51.100.2/9001; while sleep 0.1; do echo x >&3; done";
    engine.docker(&["exec", "--detach", "page", "bash", "-c", talks])?;

    let agent = engine.agent_on_processes(LAN)?;
    let status = agent.json(engine.world(), &["status"])?;
    ensure!(status["not_enforced"].as_array().is_some_and(Vec::is_empty), "{status:#}");
    let endpoints = agent.json(engine.world(), &["endpoints"])?;
    for (container, address, tier) in [("page", own, "lan"), ("vault", other, "stores")] {
        let row = [("container", container), ("address", address), ("tier", tier), ("network", "hylan")];
        ensure!(!rows(&endpoints, &row)?.is_empty(), "{endpoints:#}");
    }
    for (to, port, passes) in [(own, 80, true), (own, 81, false), (other, 80, true), (other, 81, false)] {
        ensure!(outside(to, port)? == passes, "from outside to {to} {port}");
    }
    for (from, to, port, code) in [
        ("page", other, 80, 0),
        ("page", other, 81, REFUSED),
        ("vault", own, 80, REFUSED),
        ("page", "198.51.100.2", 9000, WAITED),
        ("page", "198.51.100.2", 9001, REFUSED),
        ("shop", bridged, 81, 0),
        ("shop", bridged, 80, REFUSED),
        ("shop", own, 80, 0),
        ("shop", own, 81, REFUSED),
    ] {
        let said = inside(from, to, port)?;
        ensure!(said == Some(code), "{from} to {to} {port}: {said:?} instead of {code}");
    }
    let talked = || -> Result<bool> {
        let drops = agent.json(engine.world(), &["drops"])?;
        let wanted = [("hook", "cgroup-out"), ("reason", "no-rule"), ("source", own), ("protocol", "udp")];
        Ok(!rows(&drops, &wanted)?.is_empty())
    };
    ensure!(eventually(|| talked().unwrap_or(false)), "what was open is not denied");
    let drops = agent.json(engine.world(), &["drops"])?;
    for (container, tier) in [(own, "lan"), (other, "stores")] {
        let wanted = [
            ("hook", "cgroup-in"),
            ("reason", "no-rule"),
            ("source_tier", "external"),
            ("destination_tier", tier),
            ("destination", container),
            ("destination_port", "81"),
        ];
        ensure!(!rows(&drops, &wanted)?.is_empty(), "{tier}: {drops:#}");
    }
    let flows = agent.json(engine.world(), &["flows"])?;
    let pair = rows(&flows, &[("source_tier", "lan"), ("destination_tier", "stores"), ("rule", "pair")])?;
    ensure!(!pair.is_empty(), "{flows:#}");
    // What is open goes by the policy of now: a container without a port as any.
    agent.apply(
        engine.world(),
        &LAN.replace("name: in, ", "name: none,")
            .replace("tcp/80] }\n  - { name: pair", "tcp/8] }\n  - { name: pair"),
    )?;
    ensure!(!outside(own, 80)?, "a tightened policy");
    ensure!(outside(other, 80)?, "and who still may");
    drop(servers);
    Ok(())
}
