//! Datagrams in pieces: a port that is denied gets not a byte of them whatever they do, and those to an allowed one arrive.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use hydra_tests::agent::Agent;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::sample;
use hydra_tests::sniffer::{Sniffer, send_frames};
use hydra_tests::topology::HOST;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send,
    setsockopt, socket, sockopt,
};
use serde_json::Value;

const OPEN: u16 = 7001;
const SHUT: u16 = 7002;
/// Longer than the sending stack's largest frame, several times.
const LENGTH: usize = 8000;

fn policy() -> String {
    sample::policy()
        + "  - { name: pieces,  from: web/shop, to: data/db,  ports: [udp/7001] }
  - { name: inbound, from: external, to: web/shop, ports: [udp/7001] }
  - { name: outward, from: web/shop, to: external, ports: [udp/7001] }
  - { name: to-host, from: web/shop, to: host,     ports: [udp/7001] }
"
}

/// A UDP socket on a port of a place's first address.
fn listen(lab: &Lab, place: &str, port: u16, v6: bool) -> UdpSocket {
    let address = lab.address(place, v6).unwrap();
    let socket = lab.world.enter(place, || UdpSocket::bind((address, port))).unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Bytes that a socket has got.
fn drain(socket: &UdpSocket) -> usize {
    let mut bytes = vec![0; 65_536];
    let mut sum = 0;
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) => sum += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return sum,
            Err(error) => unreachable!("{error}"),
        }
    }
}

/// What an attacker in `shop` sends towards `db`: the pieces of datagrams to a port, each in its own way.
fn attacks(lab: &Lab, v6: bool, port: u16) -> Vec<(&'static str, Vec<Packet>)> {
    let (s, d) = (lab.address("shop", v6).unwrap(), lab.address("db", v6).unwrap());
    let whole = |port: u16| Packet::new(s, d, Transport::Udp(40_000, port, vec![0x5a; 56]));
    let two = |id| whole(port).pieces(id, &[32]);
    let all: Vec<usize> = (8..64).step_by(8).collect();
    let turned = |mut pieces: Vec<Packet>| {
        pieces.reverse();
        pieces
    };
    let first = |id| whole(OPEN).pieces(id, &[32]).remove(0);
    vec![
        ("in order", two(100)),
        ("pieces of 8 bytes", whole(port).pieces(101, &all)),
        ("turned round", turned(two(102))),
        ("pieces of 8 bytes, turned round", turned(whole(port).pieces(103, &all))),
        ("without the first", two(104).split_off(1)),
        ("over the begin of an allowed one", [vec![first(105)], two(105)].concat()),
        ("one whose begin is written over", {
            let over = whole(port).pieces(106, &[8]).remove(0);
            vec![first(106), over, whole(OPEN).pieces(106, &[32]).remove(1)]
        }),
        ("written over before the first", {
            let over = whole(port).pieces(107, &[8]).remove(0);
            vec![over, first(107), whole(OPEN).pieces(107, &[32]).remove(1)]
        }),
    ]
}

/// Bytes at the port after each attack. An allowed datagram behind each tells that it is over.
fn delivered(lab: &Lab, v6: bool, port: u16) -> BTreeMap<&'static str, usize> {
    let (target, guard) = (listen(lab, "db", port, v6), listen(lab, "db", 7999, v6));
    let db = lab.address("db", v6).unwrap();
    let api = lab
        .world
        .enter("cron", || UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" }))
        .unwrap()
        .unwrap();
    let (source, gateway) = (lab.world.mac("shop", "eth0").unwrap(), gateway(lab));
    let mut bytes = BTreeMap::new();
    for (name, packets) in attacks(lab, v6, port) {
        let frames: Vec<Vec<u8>> = packets.iter().map(|p| Frame::ip(source, gateway, p).bytes()).collect();
        send_frames(&lab.world, "shop", "eth0", &frames).unwrap();
        api.send_to(b"over", (db, 7999)).unwrap();
        assert!(eventually(|| drain(&guard) > 0));
        bytes.insert(name, drain(&target));
    }
    bytes
}

fn gateway(lab: &Lab) -> [u8; 6] {
    lab.world.mac(HOST, &lab.deployment.bridge("front").unwrap()).unwrap()
}

#[test]
fn no_piece_reaches_a_denied_port() {
    let lab = Lab::of(&policy()).unwrap();
    // The gateway knows the way.
    let warm = |v6| {
        for place in ["shop", "cron"] {
            let _ = lab.try_one(place, "db", hydra_tests::probe::Kind::Ping, v6).unwrap();
        }
    };
    // Whoever overlaps gets nothing through Linux itself (RFC 5722; for IPv4 since 4.19): there is nothing to show without hydra.
    let linux = |name: &str| !name.contains("over") && !name.starts_with("without");
    for v6 in [false, true] {
        warm(v6);
        let control = delivered(&lab, v6, SHUT);
        for (name, bytes) in &control {
            assert_eq!(
                *bytes > 0,
                linux(name),
                "without hydra, IPv6 {v6}, {name}: {bytes} bytes; {control:?}"
            );
        }
    }
    let agent = Agent::start(&lab.world, &policy()).unwrap();
    for v6 in [false, true] {
        let shut = delivered(&lab, v6, SHUT);
        assert!(shut.values().all(|bytes| *bytes == 0), "IPv6 {v6}: {shut:?}");
        // What is not in order is stated not to pass to an allowed port either.
        let open = delivered(&lab, v6, OPEN);
        for (name, bytes) in &open {
            let passes = matches!(*name, "in order" | "pieces of 8 bytes");
            assert!(*bytes > 0 || !passes, "IPv6 {v6}, {name}: {open:?}");
            assert!(*bytes == 0 || !name.contains("turned"), "IPv6 {v6}, {name}: {open:?}");
        }
        assert!(lab.dropped(&agent, "fragment").unwrap() > 0);
        assert!(lab.dropped(&agent, "no-rule").unwrap() > 0);
    }
}

#[test]
fn a_tcp_header_in_two_pieces_opens_nothing() {
    let lab = Lab::of(&policy()).unwrap();
    let _listener =
        hydra_tests::probe::Echo::start(&lab.world, &[("api".into(), hydra_tests::probe::Kind::Tcp(8004))])
            .unwrap();
    let (source, gateway) = (lab.world.mac("shop", "eth0").unwrap(), gateway(&lab));
    let answers = |v6, from: u16| {
        let (s, d) = (lab.address("shop", v6).unwrap(), lab.address("api", v6).unwrap());
        let _ = lab.try_one("shop", "api", hydra_tests::probe::Kind::Ping, v6).unwrap();
        let sniffer = Sniffer::start(&lab.world, "shop").unwrap();
        let syn = Packet::new(s, d, Transport::Tcp(from, 8004, flags::SYN, vec![]));
        let frames: Vec<Vec<u8>> =
            syn.pieces(from, &[8]).iter().map(|p| Frame::ip(source, gateway, p).bytes()).collect();
        send_frames(&lab.world, "shop", "eth0", &frames).unwrap();
        let ports = [8004_u16.to_be_bytes(), from.to_be_bytes()].concat();
        sniffer.wait_for(&ports, Duration::from_millis(700))
    };
    assert!(answers(false, 41_000), "without hydra it is answered");
    // Linux refuses it in IPv6 by itself (5.11, RFC 8200, 4.5).
    assert!(!answers(true, 41_001));
    let agent = Agent::start(&lab.world, &policy()).unwrap();
    assert!(!answers(false, 41_002) && !answers(true, 41_003));
    assert!(lab.dropped(&agent, "fragment").unwrap() >= 4);
}

/// Sends datagrams of [`LENGTH`] bytes, a few at a time, and returns how many of them arrived whole.
fn transfer(lab: &Lab, from: &str, to: (&str, u16), v6: bool, count: usize) -> (usize, UdpSocket) {
    let receiver = listen(lab, to.0, to.1, v6);
    let target = receiver.local_addr().unwrap();
    let any: SocketAddr = if v6 { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    let sender = lab.world.enter(from, || UdpSocket::bind(any)).unwrap().unwrap();
    sender.connect(target).unwrap();
    let (mut arrived, mut sent) = (0, 0);
    while sent < count {
        let batch = 8.min(count - sent);
        for _ in 0..batch {
            sender.send(&[7; LENGTH]).unwrap();
        }
        sent += batch;
        // Only what is lost costs this time.
        let start = Instant::now();
        let mut got = 0;
        while got < batch * LENGTH && start.elapsed() < Duration::from_millis(500) {
            got += drain(&receiver);
            std::thread::yield_now();
        }
        assert_eq!(got % LENGTH, 0);
        arrived += got / LENGTH;
    }
    (arrived, sender)
}

fn number(flow: &Value, key: &str) -> u64 {
    flow[key].as_u64().unwrap()
}

#[test]
fn allowed_datagrams_arrive_and_each_piece_is_counted() {
    const MANY: usize = 10_000;
    let (lab, agent) = Lab::start(&policy()).unwrap();
    for v6 in [false, true] {
        // Across networks, straight to the peer.
        let (arrived, sender) = transfer(&lab, "shop", ("db", OPEN), v6, MANY);
        println!("IPv6 {v6}: {arrived} of {MANY}");
        assert!(arrived * 10_000 >= MANY * 9_999, "IPv6 {v6}: {arrived} of {MANY}");
        let port = u64::from(sender.local_addr().unwrap().port());
        let flows = lab.flows(&agent, "shop", "db").unwrap();
        let flow = flows.iter().find(|f| number(f, "source_port") == port).unwrap();
        // 8,008 bytes behind headers of 20, or of 40 and 8, in frames of 1,514.
        let (pieces, headers) = if v6 { (6, 14 + 40 + 8) } else { (6, 14 + 20) };
        let each = (LENGTH + 8) as u64 + pieces * headers;
        assert_eq!(number(flow, "packets"), pieces * MANY as u64, "{flow}");
        assert_eq!(number(flow, "bytes"), each * MANY as u64, "{flow}");
        assert_eq!((&flow["rule"], &flow["path"]), (&Value::from("pieces"), &Value::from("peer")));
    }
    assert_eq!(lab.dropped(&agent, "fragment").unwrap(), 0);
}

#[test]
fn pieces_pass_on_every_way_with_and_without_conntrack() {
    const SOME: usize = 200;
    let (lab, agent) = Lab::start(&policy()).unwrap();
    let ways = [
        ("inside a network", "cache", ("db", 7500)),
        ("across networks", "shop", ("db", OPEN)),
        ("across networks, through the stack", "shop", ("db", 53)),
        ("from the host", HOST, ("db", OPEN)),
        ("to the host", "shop", (HOST, OPEN)),
        ("from outside", "outside", ("shop", OPEN)),
        ("to the outside", "shop", ("outside", OPEN)),
    ];
    for conntrack in [false, true] {
        if conntrack {
            // From here on the host puts datagrams together at its door and takes them apart again behind.
            for tool in ["iptables", "ip6tables"] {
                let mut rule = Command::new(tool);
                rule.args(["-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"]);
                let output = lab.world.output(HOST, rule).unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
        for v6 in [false, true] {
            for (name, from, to) in ways {
                let (arrived, _sender) = transfer(&lab, from, to, v6, SOME);
                assert_eq!(arrived, SOME, "{name}, IPv6 {v6}, conntrack {conntrack}");
            }
            largest_ping(&lab, "db", "shop", v6);
        }
        assert_eq!(lab.dropped(&agent, "fragment").unwrap(), 0);
    }
    // With the first piece go the others.
    let (arrived, _sender) = transfer(&lab, "shop", ("db", SHUT), false, 1);
    assert_eq!(arrived, 0);
    assert!(eventually(|| lab.dropped(&agent, "fragment").unwrap() == 5));
}

/// An echo request of 65,535 bytes with its header, and the whole answer.
fn largest_ping(lab: &Lab, from: &str, to: &str, v6: bool) {
    let target = SockaddrStorage::from(SocketAddr::new(lab.address(to, v6).unwrap(), 0));
    let (family, protocol, kind) = if v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6, 128)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp, 8)
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = lab.world.enter(from, || socket(family, SockType::Datagram, flags, protocol)).unwrap().unwrap();
    let patience = nix::sys::time::TimeVal::new(10, 0);
    setsockopt(&fd, sockopt::ReceiveTimeout, &patience).unwrap();
    setsockopt(&fd, sockopt::SndBuf, &1_000_000).unwrap();
    connect(fd.as_raw_fd(), &target).unwrap();
    let mut message = vec![0x5a; 65_515];
    message[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(send(fd.as_raw_fd(), &message, MsgFlags::empty()).unwrap(), message.len());
    let mut answer = vec![0; 70_000];
    assert_eq!(recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap(), message.len());
    assert_eq!(answer[8..message.len()], message[8..]);
}
