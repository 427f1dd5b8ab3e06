//! Flows are counted exactly, in wire packets and wire bytes, each way.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::UdpSocket;
use std::time::Duration;

use hydra_tests::lab::{Lab, eventually};
use hydra_tests::probe::{Echo, Kind, Stream};
use hydra_tests::sample;
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
