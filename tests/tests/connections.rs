//! TCP connections: only a SYN opens one, those from before are taken up for a time that is stated, and what does not belong to one
//! changes nothing of it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::IpAddr;
use std::time::Duration;

use hydra_tests::agent::{Agent, write};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::probe::{Echo, Kind, Outcome, Stream};
use hydra_tests::sample;
use hydra_tests::sniffer::{Sniffer, send_frames};
use hydra_tests::topology::HOST;
use serde_json::Value;

const SHORT: Duration = Duration::from_secs(2);

/// An agent with this `pickup`.
fn start(lab: &Lab, pickup: &str) -> Agent {
    write(&lab.world, "policy.yaml", &sample::policy()).unwrap();
    let policy = lab.world.scratch("policy.yaml");
    Agent::start_with(&lab.world, &["--policy", &policy.to_string_lossy(), "--pickup", pickup]).unwrap()
}

fn listen(lab: &Lab) -> Echo {
    Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("db".into(), Kind::Tcp(5432))]).unwrap()
}

/// Sends packets from a container's first interface to its gateway.
fn send(lab: &Lab, place: &str, network: &str, packets: &[Packet]) {
    let source = lab.world.mac(place, "eth0").unwrap();
    let gateway = lab.world.mac(HOST, &lab.deployment.bridge(network).unwrap()).unwrap();
    let frames: Vec<Vec<u8>> = packets.iter().map(|p| Frame::ip(source, gateway, p).bytes()).collect();
    send_frames(&lab.world, place, "eth0", &frames).unwrap();
}

/// The flow with this source port.
fn flow(lab: &Lab, agent: &Agent, from: &str, to: &str, port: u16) -> Option<Value> {
    lab.flows(agent, from, to).unwrap().into_iter().find(|f| f["source_port"] == port)
}

#[test]
fn what_is_no_syn_opens_nothing() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let fin = flags::FIN | flags::ACK;
    let kinds =
        [flags::ACK, fin, flags::FIN, flags::FIN | flags::PSH | 32, 0, flags::SYN | flags::ACK, flags::RST];
    // To a port that is denied, and to one that is allowed: `shop` may not call `db`, and may call `api`.
    let tried = |v6: bool, to: &str, port: u16| {
        let (s, d) = (lab.address("shop", v6).unwrap(), lab.address(to, v6).unwrap());
        let _ = lab.try_one("shop", to, Kind::Ping, v6).unwrap();
        let sniffer = Sniffer::start(&lab.world, to).unwrap();
        let packets: Vec<Packet> = kinds
            .iter()
            .map(|flags| Packet::new(s, d, Transport::Tcp(43_000, port, *flags, b"no-syn".to_vec())))
            .collect();
        send(&lab, "shop", "front", &packets);
        // An allowed packet behind them tells that they are over.
        send(
            &lab,
            "shop",
            "front",
            &[Packet::new(s, d, Transport::Icmp(if v6 { 128 } else { 8 }, 0, [0; 4], b"over".to_vec()))],
        );
        assert!(sniffer.wait_for(b"over", SHORT));
        sniffer.with(b"no-syn").len()
    };
    for (to, port) in [("db", 5432), ("api", 8004)] {
        for v6 in [false, true] {
            assert_eq!(tried(v6, to, port), kinds.len(), "without hydra, {to}, IPv6 {v6}");
        }
    }
    let agent = start(&lab, "0");
    for (to, port) in [("db", 5432), ("api", 8004)] {
        for v6 in [false, true] {
            assert_eq!(tried(v6, to, port), 0, "{to}, IPv6 {v6}");
        }
    }
    // FIN alone, Xmas and NULL, twice each and in both families; the others by the policy at `db` and by their state at `api`.
    for (reason, packets) in [("malformed", 12), ("no-rule", 8), ("no-connection", 8)] {
        assert_eq!(lab.dropped(&agent, reason).unwrap(), packets, "{reason}");
    }
    assert!(lab.flows(&agent, "shop", "db").unwrap().iter().all(|f| f["protocol"] != "tcp"));
}

#[test]
fn a_forged_reset_ends_nothing_and_the_connections_own_end_does() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    for v6 in [false, true] {
        let (api, db) = (lab.address("cron", v6).unwrap(), lab.address("db", v6).unwrap());
        let mut stream = Stream::open(&lab.world, "cron", (db, 5432).into()).unwrap();
        stream.turn(SHORT).unwrap();
        let port = stream.local().unwrap().port();
        let state = || flow(&lab, &agent, "cron", "db", port).map(|f| f["state"].clone());
        assert_eq!(state(), Some("established".into()));
        // Its numbers begin anywhere: with the builder's own it is out of the window.
        let end = |s: (IpAddr, u16), d: (IpAddr, u16), flags| {
            Packet::new(s.0, d.0, Transport::Tcp(s.1, d.1, flags, b"forged".to_vec()))
        };
        let (client, server) = ((api, port), (db, 5432));
        let sniffer = Sniffer::start(&lab.world, "db").unwrap();
        for flags in [flags::RST, flags::RST | flags::ACK, flags::FIN | flags::ACK] {
            send(&lab, "cron", "back", &[end(client, server, flags)]);
            send(&lab, "db", "store", &[end(server, client, flags)]);
        }
        // The other end judges those of the connection's own end; nobody else's arrive.
        assert!(sniffer.wait_for(b"forged", SHORT));
        let own = sniffer.with(b"forged").len();
        send(&lab, "cache", "store", &[end(client, server, flags::RST)]);
        // The opener's tier may be called back by nobody, not even with a SYN between the same ports.
        let thief = Sniffer::start(&lab.world, "cron").unwrap();
        send(&lab, "db", "store", &[end(server, client, flags::SYN)]);
        stream.turn(SHORT).unwrap();
        assert_eq!(sniffer.with(b"forged").len(), own);
        assert!(thief.with(b"forged").is_empty());
        assert_eq!(state(), Some("established".into()), "IPv6 {v6}");
        drop(stream);
        assert!(eventually(|| state() == Some("closed".into())));
    }
    assert!(lab.dropped(&agent, "spoofed-address").unwrap() >= 2);
    // The port again, at once: a new conversation.
    assert_eq!(lab.try_one("cron", "db", Kind::Tcp(5432), false).unwrap(), Outcome::Answered);
}

#[test]
fn connections_from_before_are_taken_up_in_their_window_alone() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let before = |v6| {
        let api = lab.address("api", v6).unwrap();
        let mut stream = Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap();
        stream.turn(SHORT).unwrap();
        stream
    };
    let seconds = |agent: &Agent| {
        let status = agent.json(&lab.world, &["status"]).unwrap();
        status["pickup_seconds"].as_u64().unwrap()
    };
    let mut streams = [before(false), before(true)];
    let mut late = [before(false), before(true)];
    let agent = start(&lab, "1h");
    for stream in &mut streams {
        stream.turn(SHORT).unwrap();
    }
    let left = seconds(&agent);
    assert!(left > 3000 && left <= 3600, "{left}");
    // A restart begins nothing anew, and does not lengthen what was begun.
    agent.kill().unwrap();
    let agent = start(&lab, "2h");
    assert!(seconds(&agent) <= left);
    // It may end it.
    agent.stop().unwrap();
    let agent = start(&lab, "0");
    assert_eq!(seconds(&agent), 0);
    for (known, unknown) in streams.iter_mut().zip(&mut late) {
        known.turn(SHORT).unwrap();
        assert!(unknown.turn(SHORT).is_err());
    }
    assert!(lab.dropped(&agent, "no-connection").unwrap() > 0);
    agent.stop().unwrap();
    let agent = start(&lab, "1h");
    assert_eq!(seconds(&agent), 0, "nothing became protected");
}

#[test]
fn an_apply_that_protects_more_takes_up_what_runs_there() {
    // Only the web tier is protected at first: `api` and `db` are strangers.
    let (web, rest) = sample::TIERS.split_once("  app:\n").unwrap();
    let partner = rest.lines().find(|l| l.trim_start().starts_with("partner")).unwrap();
    let small = format!("version: 1\nname: sample\n{web}{partner}\nrules: []\n");
    let lab = Lab::of(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let db = lab.address("db", false).unwrap();
    write(&lab.world, "policy.yaml", &small).unwrap();
    let policy = lab.world.scratch("policy.yaml");
    let arguments = ["--policy", &policy.to_string_lossy(), "--pickup", "0"];
    let agent = Agent::start_with(&lab.world, &arguments).unwrap();
    let mut stream = Stream::open(&lab.world, "cron", (db, 5432).into()).unwrap();
    stream.turn(SHORT).unwrap();
    agent.stop().unwrap();
    let agent = Agent::start_with(&lab.world, &["--policy", &policy.to_string_lossy()]).unwrap();
    let seconds = || agent.json(&lab.world, &["status"]).unwrap()["pickup_seconds"].as_u64().unwrap();
    assert_eq!(seconds(), 0);
    agent.apply(&lab.world, &sample::policy()).unwrap();
    let left = seconds();
    assert!(left > 3000, "{left}");
    stream.turn(SHORT).unwrap();
    // The same again protects nothing more.
    agent.apply(&lab.world, &(sample::policy() + "# again\n")).unwrap();
    assert!(seconds() <= left);
    stream.turn(SHORT).unwrap();
}

#[test]
fn a_connection_that_is_cut_is_no_longer_listed() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let agent = start(&lab, "0");
    for v6 in [false, true] {
        let api = lab.address("api", v6).unwrap();
        let mut stream = Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap();
        stream.turn(SHORT).unwrap();
        let port = stream.local().unwrap().port();
        assert!(flow(&lab, &agent, "shop", "api", port).is_some());
        let policy = sample::policy();
        let without: Vec<&str> = policy.lines().filter(|l| !l.contains("name: shop-api,")).collect();
        agent.apply(&lab.world, &(without.join("\n") + "\n")).unwrap();
        assert!(stream.turn(Duration::from_millis(500)).is_err());
        assert!(eventually(|| flow(&lab, &agent, "shop", "api", port).is_none()));
        // What is allowed again is allowed to connections that begin.
        agent.apply(&lab.world, &policy).unwrap();
        assert!(stream.turn(SHORT).is_err());
        assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), v6).unwrap(), Outcome::Answered);
    }
    assert!(lab.dropped(&agent, "no-rule").unwrap() > 0);
    assert!(lab.dropped(&agent, "no-connection").unwrap() > 0);
}
