//! Flows are counted exactly, in wire packets and wire bytes, each way.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::UdpSocket;
use std::time::Duration;

use hydra_common::verdict::Hook;
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Frame, Packet, Transport};
use hydra_tests::probe::{Echo, Kind, Stream};
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;
use serde_json::Value;

fn number(flow: &Value, key: &str) -> u64 {
    flow[key].as_u64().unwrap()
}

#[test]
fn datagrams_are_counted_one_by_one() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Udp(53))]).unwrap();
    for (v6, headers) in [(false, 14 + 20 + 8), (true, 14 + 40 + 8)] {
        let db = lab.address("db", v6).unwrap();
        let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
        let socket = lab.world.enter("cron", || UdpSocket::bind(any)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 2048];
        for size in 100..200 {
            socket.send_to(&bytes[..size], (db, 53)).unwrap();
            assert_eq!(socket.recv(&mut bytes).unwrap(), size);
        }
        let port = u64::from(socket.local_addr().unwrap().port());
        let flows = lab.flows(&agent, "cron", "db").unwrap();
        let flow = flows.iter().find(|f| number(f, "source_port") == port).unwrap();
        let sum: u64 = (100..200).map(|size| size + headers).sum();
        for (packets, bytes) in [("packets", "bytes"), ("reply_packets", "reply_bytes")] {
            assert_eq!((number(flow, packets), number(flow, bytes)), (100, sum), "{flow}");
        }
        for (key, value) in [
            ("source_container", "cron"),
            ("destination_container", "db"),
            ("source_tier", "app"),
            ("source_service", "cron"),
            ("destination_tier", "data"),
            ("destination_service", "db"),
            ("verdict", "allowed"),
            ("rule", "app-data"),
            ("state", "established"),
            ("protocol", "udp"),
        ] {
            assert_eq!(flow[key], value, "{key}: {flow}");
        }
    }
}

#[test]
fn segments_of_super_packets_are_counted_as_they_are_on_the_wire() {
    const LENGTH: usize = 3_000_000;
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432)), ("cron".into(), Kind::Tcp(9))]).unwrap();
    // A segment that comes before its turn is answered with options of other lengths.
    for place in ["cron", "cache", "host", "db"] {
        lab.world.enter(place, || std::fs::write("/proc/sys/net/ipv4/tcp_sack", "0")).unwrap().unwrap();
    }
    // Across networks and inside one: straight to the peer, and from it to the host, through the stack.
    for (from, v6) in [("cron", false), ("cron", true), ("cache", false), ("host", false)] {
        let db = lab.address("db", v6).unwrap();
        let mut stream = Stream::open(&lab.world, from, (db, 5432).into()).unwrap();
        stream.exchange(LENGTH, Duration::from_secs(20)).unwrap();
        let port = u64::from(stream.local().unwrap().port());
        // Ethernet, IP, TCP with timestamps; the first packet of each side has 8 bytes of options more.
        let headers = 14 + if v6 { 40 } else { 20 } + 32;
        let mut seen = Value::Null;
        let whole = eventually(|| {
            let flows = lab.flows(&agent, from, "db").unwrap();
            let Some(flow) = flows.into_iter().find(|f| number(f, "source_port") == port) else {
                return false;
            };
            let payload =
                |packets: &str, bytes: &str| number(&flow, bytes) - number(&flow, packets) * headers - 8;
            // The reply has the server's greeting, too.
            let right = payload("packets", "bytes") == LENGTH as u64
                && payload("reply_packets", "reply_bytes") == LENGTH as u64 + 1
                && number(&flow, "packets") >= (LENGTH / 1448) as u64;
            seen = flow;
            right
        });
        // What was sent again was counted again, as it was on the wire.
        assert!(whole || stream.sent_again().unwrap() > 0, "{from}: {seen}");
    }
}

#[test]
fn segments_that_their_sender_has_not_counted_are_counted() {
    const DATA: usize = 950;
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let run = || {
        let mut runner = Runner::open(&bpffs, &stage.desired).unwrap();
        let ifindex = stage.port("cron", 0).unwrap();
        for v6 in [false, true] {
            let headers = 14 + if v6 { 40 } else { 20 } + 8;
            // The control: one frame of that length is one.
            for (size, packets) in [(0, 1), (1_000, 1), (950, 1), (100, 10)] {
                runner.forget().unwrap();
                let [from, to] = ["cron", "db"].map(|place| {
                    let addresses = stage.deployment.topology.addresses(place);
                    addresses.into_iter().find(|address| address.is_ipv6() == v6).unwrap()
                });
                let packet = Packet::new(from, to, Transport::Udp(4_000, 53, vec![0; DATA]));
                let (mac, gateway) = (stage.mac("cron", 0).unwrap(), stage.gateway("cron", 0).unwrap());
                let frame = Frame::ip(mac, gateway, &packet).bytes();
                let shot = Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame };
                let (_, flow) = runner.coalesced(&shot, size).unwrap().flow.unwrap();
                let counted: Vec<_> = flow.packets.into_iter().zip(flow.bytes).collect();
                let wire = (packets, DATA as u64 + packets * headers);
                assert!(counted.contains(&wire), "{size}, IPv6 {v6}: {counted:?}, not {wire:?}");
            }
        }
    };
    stage.world.enter(HOST, run).unwrap();
}
