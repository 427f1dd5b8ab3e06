//! The test world itself: what it can show only counts if traffic passes in it without hydra, and if nothing of it stays.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::IpAddr;
use std::time::Duration;

use hydra_tests::probe::{Echo, Kind, Outcome, Probe, Stream, probe};
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{Bridge, Container, Machine, Port, Topology};
use hydra_tests::world::World;

fn two_bridges() -> Topology {
    let container = |name: &str, bridge: &str, addresses: &[&str]| Container {
        name: name.into(),
        ports: vec![Port {
            bridge: bridge.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }],
    };
    Topology {
        bridges: vec![
            Bridge {
                name: "hyone".into(),
                addresses: vec!["10.91.1.1/24".parse().unwrap(), "fd91:1::1/64".parse().unwrap()],
            },
            Bridge {
                name: "hytwo".into(),
                addresses: vec!["10.91.2.1/24".parse().unwrap(), "fd91:2::1/64".parse().unwrap()],
            },
        ],
        containers: vec![
            container("first", "hyone", &["10.91.1.2/24", "fd91:1::2/64"]),
            container("second", "hytwo", &["10.91.2.2/24", "fd91:2::2/64"]),
        ],
        uplink: vec!["198.51.100.1/24".parse().unwrap(), "2001:db8:51::1/64".parse().unwrap()],
        machines: vec![Machine {
            name: "outside".into(),
            addresses: vec!["198.51.100.2".parse().unwrap(), "2001:db8:ff::2".parse().unwrap()],
        }],
    }
}

#[test]
fn without_hydra_everybody_reaches_everybody() {
    let topology = two_bridges();
    let world = World::build(&topology).unwrap();
    let places = topology.places();
    let listeners: Vec<_> =
        places.iter().flat_map(|p| [Kind::Tcp(7), Kind::Udp(7)].map(|k| ((*p).to_owned(), k))).collect();
    let echo = Echo::start(&world, &listeners).unwrap();
    let mut probes = Vec::new();
    for from in &places {
        for to in places.iter().filter(|to| *to != from) {
            for address in topology.addresses(to) {
                for kind in [Kind::Tcp(7), Kind::Udp(7), Kind::Ping, Kind::Tcp(9)] {
                    probes.push(Probe { from: (*from).to_owned(), source: None, to: address, kind });
                }
            }
        }
    }
    let outcomes = probe(&world, &probes, Duration::from_secs(3)).unwrap();
    for (probe, outcome) in probes.iter().zip(outcomes) {
        if probe.kind == Kind::Tcp(9) {
            assert!(matches!(outcome, Outcome::Refused(_)), "{probe:?}: {outcome:?}");
        } else {
            assert_eq!(outcome, Outcome::Answered, "{probe:?}");
        }
    }
    assert!(echo.receipts().len() >= probes.len() / 2);
}

#[test]
fn a_stream_lives_and_a_sniffer_sees_it() {
    let world = World::build(&two_bridges()).unwrap();
    let _echo = Echo::start(&world, &[("second".into(), Kind::Tcp(7))]).unwrap();
    let sniffer = Sniffer::start(&world, "second").unwrap();
    let to: IpAddr = "fd91:2::2".parse().unwrap();
    let mut stream = Stream::open(&world, "first", (to, 7).into()).unwrap();
    for _ in 0..3 {
        stream.turn(Duration::from_secs(2)).unwrap();
    }
    assert!(sniffer.wait_for(&3_u64.to_be_bytes(), Duration::from_secs(2)));
}

#[test]
fn nothing_of_it_stays() {
    let links = || std::fs::read_to_string("/proc/net/dev").unwrap();
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
    let names = || {
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
        entries.map(|e| e.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = (mounts(), names());
    let world = World::build(&two_bridges()).unwrap();
    assert!(
        world
            .enter("host", || std::fs::read_to_string("/proc/thread-self/net/dev"))
            .unwrap()
            .unwrap()
            .contains("hyone")
    );
    assert!(!links().contains("hyone"));
    drop(world);
    assert_eq!(before, (mounts(), names()));
}
