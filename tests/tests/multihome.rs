//! Stacks that more than one owner has a claim on: containers on the networks of two tiers, and network stacks that containers of
//! two services share.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hydra_tests::agent::Agent;
use hydra_tests::lab::{SILENCE, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, probe};
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{Bridge, Container, HOST, Port, Topology};
use hydra_tests::world::{NAMES, World};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const HTTP: Kind = Kind::Tcp(80);
const NAMESERVER: Kind = Kind::Udp(53);

fn policy(keys: &str, rules: &str) -> String {
    format!(
        "version: 1
{keys}
tiers:
  apps:
    bridges: [hyapps]
    services: {{ torrent: {{ containers: [hytorrent] }} }}
  databases:
    bridges: [hydbs]
    services: {{ vpn: {{ containers: [hyvpn] }} }}
rules:
  - {{ name: unused, from: external, to: apps, ports: tcp/1 }}
{rules}"
    )
}

/// `hyboth` is on both bridges, `hyweb` and `hypg` on one of them each, `hyvpn` on the databases'.
fn world() -> (World, Echo) {
    let bridge = |name: &str, net: u8| Bridge {
        name: name.into(),
        addresses: vec![
            format!("10.93.{net}.1/24").parse().unwrap(),
            format!("fd93:{net}::1/64").parse().unwrap(),
        ],
    };
    let port = |bridge: &str, net: u8, number: u8| Port {
        bridge: bridge.into(),
        addresses: vec![
            format!("10.93.{net}.{number}/24").parse().unwrap(),
            format!("fd93:{net}::{number}/64").parse().unwrap(),
        ],
    };
    let container = |name: &str, ports: Vec<Port>| Container { name: name.into(), ports };
    let containers = vec![
        container("hyweb", vec![port("hyapps", 1, 10)]),
        container("hypg", vec![port("hydbs", 2, 10)]),
        container("hyboth", vec![port("hyapps", 1, 20), port("hydbs", 2, 20)]),
        container("hyvpn", vec![port("hydbs", 2, 30)]),
    ];
    let listeners: Vec<_> =
        containers.iter().flat_map(|c| [HTTP, NAMESERVER].map(|kind| (c.name.clone(), kind))).collect();
    let topology = Topology {
        bridges: vec![bridge("hyapps", 1), bridge("hydbs", 2)],
        containers,
        ..Topology::default()
    };
    let world = World::build(&topology).unwrap();
    let echo = Echo::start(&world, &listeners).unwrap();
    (world, echo)
}

/// Which of these get an answer, by (from, to), over TCP, UDP and ICMP, where all of them must agree.
fn answered(world: &World, pairs: &[(&str, &str)]) -> Vec<bool> {
    let probes: Vec<Probe> = pairs
        .iter()
        .flat_map(|(from, to)| {
            let to: IpAddr = to.parse().unwrap();
            [HTTP, NAMESERVER, Kind::Ping].map(|kind| Probe { from: (*from).into(), source: None, to, kind })
        })
        .collect();
    let outcomes = probe(world, &probes, SILENCE).unwrap();
    outcomes
        .chunks(3)
        .zip(pairs)
        .map(|(three, pair)| {
            assert!(
                three.iter().all(|o| matches!(o, Outcome::Answered | Outcome::TimedOut)),
                "{pair:?}: {three:?}"
            );
            assert!(three.iter().all(|o| o == &three[0]), "{pair:?}: {three:?}");
            three[0] == Outcome::Answered
        })
        .collect()
}

fn names(status: &Value, list: &str) -> Vec<String> {
    let rows = status[list].as_array().unwrap();
    rows.iter().map(|r| format!("{}: {}", r["what"].as_str().unwrap(), r["why"].as_str().unwrap())).collect()
}

/// `hydractl explain`: verdict and reason.
fn explains(agent: &Agent, world: &World, from: &str, to: &str) -> (String, String) {
    let said = agent.json(world, &["explain", from, to, "tcp/80"]).unwrap();
    let text = |key: &str| said[key].as_str().unwrap().to_owned();
    (text("verdict"), text("reason"))
}

fn said(verdict: &str, reason: &str) -> (String, String) {
    (verdict.to_owned(), reason.to_owned())
}

/// Reasons of the drops between two places, by containers' names; of an end that is nobody the name is empty.
fn reasons(agent: &Agent, world: &World, from: &str, to: &str) -> Vec<String> {
    let drops = agent.json(world, &["drops"]).unwrap();
    let mut found: Vec<String> = drops
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["source"] == from && d["destination"] == to)
        .map(|d| d["reason"].as_str().unwrap().to_owned())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

const PAIRS: [(&str, &str); 9] = [
    ("hyweb", "10.93.1.20"),
    ("hyweb", "fd93:1::20"),
    ("hyboth", "10.93.1.10"),
    ("hyboth", "10.93.2.10"),
    ("hyboth", "fd93:2::10"),
    ("hypg", "10.93.2.20"),
    ("hypg", "fd93:2::20"),
    (HOST, "10.93.1.20"),
    (HOST, "fd93:2::20"),
];

#[test]
fn a_container_on_the_networks_of_two_tiers_is_what_the_policy_says() {
    let (world, _echo) = world();
    let all = vec![true; PAIRS.len()];
    assert_eq!(answered(&world, &PAIRS), all, "without hydra");
    let agent = Agent::start(&world, &policy("", "")).unwrap();
    let status = agent.json(&world, &["status"]).unwrap();
    let warning =
        "hyboth: on networks of `apps` and `databases`: whoever controls it can carry traffic between them";
    assert_eq!((names(&status, "warnings"), names(&status, "closed")), (vec![warning.to_owned()], vec![]));
    assert_eq!(status["healthy"], true, "{status:#}");
    let text = String::from_utf8(agent.ctl(&world, &["status"]).unwrap().stdout).unwrap();
    assert!(
        text.contains(&format!("\nwarnings:\n  {warning}\n    hint: name `hyboth` in a service")),
        "{text}"
    );
    // Inside each tier it is a member of it.
    assert_eq!(answered(&world, &PAIRS), all, "it is only warned of");

    agent.apply(&world, &policy("multihome: allow", "")).unwrap();
    let status = agent.json(&world, &["status"]).unwrap();
    assert_eq!((names(&status, "warnings"), names(&status, "closed")), (vec![], vec![]));
    assert_eq!(answered(&world, &PAIRS), all);

    agent.apply(&world, &policy("multihome: deny", "")).unwrap();
    let status = agent.json(&world, &["status"]).unwrap();
    let why = "hyboth: on networks of `apps` and `databases`: `multihome: deny` closes its ports";
    assert_eq!((names(&status, "warnings"), names(&status, "closed")), (vec![], vec![why.to_owned()]));
    let seen = ["hyweb", "hypg", "hyboth"].map(|place| Sniffer::start(&world, place).unwrap());
    assert_eq!(answered(&world, &PAIRS), vec![false; PAIRS.len()]);
    for (sniffer, place) in seen.iter().zip(["hyweb", "hypg", "hyboth"]) {
        let datagrams = sniffer.with(b"hydra");
        assert!(datagrams.is_empty(), "a datagram reached {place}: {datagrams:x?}");
    }
    assert_eq!(reasons(&agent, &world, "10.93.2.20", "10.93.2.10"), ["unknown-source"]);
    assert_eq!(reasons(&agent, &world, "10.93.1.10", "10.93.1.20"), ["unknown-destination"]);
    assert_eq!(reasons(&agent, &world, "10.93.1.1", "10.93.1.20"), ["unknown-destination"]);
    for (from, to, reason) in [
        ("hyboth", "hypg", "unknown-source"),
        ("10.93.2.20", "hypg", "unknown-source"),
        ("hyweb", "hyboth", "unknown-destination"),
        (HOST, "hyboth", "unknown-destination"),
    ] {
        assert_eq!(explains(&agent, &world, from, to), said("denied", reason), "{from} to {to}");
    }
    // The others are not touched.
    assert_eq!(answered(&world, &[("hyvpn", "10.93.2.10"), (HOST, "10.93.1.10")]), [true, true]);

    // It leaves one of the networks, and is whole again on the other.
    world.ip("hyboth", &["link del eth1".to_owned()]).unwrap();
    assert!(
        eventually(|| answered(&world, &[("hyweb", "10.93.1.20")]) == [true]),
        "{}",
        agent.log().join("\n")
    );
    // The kernel enforces it before the status says so.
    let quiet = || {
        let status = agent.json(&world, &["status"]).unwrap();
        names(&status, "warnings").is_empty() && names(&status, "closed").is_empty()
    };
    assert!(eventually(quiet), "{:#}", agent.json(&world, &["status"]).unwrap());
}

/// Gives the namespace of `hyvpn` a second name, as if another container had joined its stack.
fn share(world: &World) {
    world
        .enter(HOST, || {
            let (from, to) = (format!("{NAMES}/hyvpn"), format!("{NAMES}/hytorrent"));
            File::create(&to)?;
            mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            std::io::Result::Ok(())
        })
        .unwrap()
        .unwrap();
}

#[test]
fn a_stack_that_two_services_share_is_closed_or_may_do_what_both_may_do() {
    const VPN: &str = "10.93.2.30";
    // Both may be called by apps; only one by databases, and only one may call databases.
    let rules = "
  - { name: to-apps, from: apps, to: apps/torrent }
  - { name: to-vpn, from: apps, to: databases/vpn }
  - { name: from-torrent, from: apps/torrent, to: databases, ports: tcp/1 }
  - { name: from-vpn, from: databases/vpn, to: apps }
";
    let pairs = [
        ("hyweb", VPN),
        ("hypg", VPN),
        ("hyvpn", "10.93.1.10"),
        ("hyvpn", "10.93.2.10"),
        ("hyweb", "fd93:2::30"),
    ];
    let (world, _echo) = world();
    assert_eq!(answered(&world, &pairs), [true; 5], "without hydra");
    let agent = Agent::start(&world, &policy("", rules)).unwrap();
    assert_eq!(answered(&world, &pairs), [true; 5], "alone in its stack it is databases/vpn");
    share(&world);

    let closed = |agent: &Agent| names(&agent.json(&world, &["status"]).unwrap(), "closed");
    // The name of a namespace is no message of the kernel's: any message makes the agent look again.
    world.ip(HOST, &["link add hynew type bridge".to_owned()]).unwrap();
    assert!(eventually(|| !closed(&agent).is_empty()), "{}", agent.log().join("\n"));
    let [why] = closed(&agent).try_into().unwrap();
    assert!(why.contains("share one network stack: `shared-stack: refuse` closes its ports"), "{why}");
    assert_eq!(answered(&world, &pairs), [false; 5]);
    for name in ["hyvpn", "hytorrent"] {
        assert_eq!(explains(&agent, &world, name, "hypg"), said("denied", "unknown-source"), "{name}");
        assert_eq!(explains(&agent, &world, "hyweb", name), said("denied", "unknown-destination"), "{name}");
    }

    agent.apply(&world, &policy("shared-stack: restrict", rules)).unwrap();
    assert_eq!(closed(&agent), [""; 0]);
    // `databases` may not call torrent; torrent may call `databases` on one port only; `apps` both may call.
    assert_eq!(answered(&world, &pairs), [true, false, true, false, true]);
    for name in ["hyvpn", "hytorrent"] {
        assert_eq!(explains(&agent, &world, "hyweb", name), said("allowed", "rule"), "{name}");
        assert_eq!(explains(&agent, &world, name, "hyweb"), said("allowed", "intra-tier"), "{name}");
        assert_eq!(explains(&agent, &world, "hypg", name), said("denied", "no-rule"), "{name}");
        assert_eq!(explains(&agent, &world, name, "hypg"), said("denied", "no-rule"), "{name}");
    }
    assert!(reasons(&agent, &world, "10.93.2.10", VPN).contains(&"no-rule".to_owned()));
    let endpoints = agent.json(&world, &["endpoints"]).unwrap();
    let row = endpoints.as_array().unwrap().iter().find(|e| e["address"] == VPN).unwrap();
    assert_eq!((&row["tier"], &row["service"]), (&"apps".into(), &"apps/torrent+databases/vpn".into()));
    let flows = agent.json(&world, &["flows", "--to", VPN]).unwrap();
    assert!(
        flows.as_array().unwrap().iter().any(|f| f["destination_service"] == row["service"]),
        "{flows:#}"
    );

    // A new datagram of a flow that both may have is delivered, one that one of them may not have is not.
    let to: SocketAddr = format!("{VPN}:9").parse().unwrap();
    let receiver = Sniffer::start(&world, "hyvpn").unwrap();
    for (from, mark) in [("hypg", b"not for both".as_slice()), ("hyweb", b"for both")] {
        world.enter(from, || UdpSocket::bind("0.0.0.0:0")?.send_to(mark, to)).unwrap().unwrap();
    }
    assert!(receiver.wait_for(b"for both", Duration::from_secs(5)));
    assert!(receiver.with(b"not for both").is_empty());
}
