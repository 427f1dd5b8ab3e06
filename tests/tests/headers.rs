//! Header games don't move the port: random frames, well made, broken and in between, to the kernel's program, to `decide` in user
//! space, and to second opinions that share no code with either. `HYDRA_FRAMES` says how many, `HYDRA_SEED` which. What once found
//! something, and one frame for every reason, stands in `corpus/frames`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hydra_agent::policy::tables::PolicyTables;
use hydra_agent::policy::unix_now;
use hydra_common::address::{Address, Mac};
use hydra_common::decide::{At, Outcome, decide};
use hydra_common::packet::{Bytes, Chunk, Packet as Parsed};
use hydra_common::tables::{Endpoint, Link};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::judge::judge;
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::messages::{
    Arp, BROADCAST, dhcp_discover, dhcpv6_solicit, listener_report, neighbour_advertisement,
    neighbour_solicitation, router_advertisement,
};
use hydra_tests::packets::{Extension, Frame, Packet, Transport, flags, protocol};
use hydra_tests::random::Random;
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

/// Who sends: alone on its bridge with its own tier, and beside a container of another.
const SENDERS: [&str; 2] = ["shop", "cache"];
/// A test run of the kernel takes no less: an Ethernet header, and one of IPv4, or of IPv6 where the EtherType says so.
const SHORTEST: usize = 34;
const SHORTEST6: usize = 54;

fn count(otherwise: usize) -> usize {
    std::env::var("HYDRA_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The bytes of a frame, as `decide` reads them without a kernel.
struct Plain<'a>(&'a [u8]);

impl Bytes for Plain<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<Chunk<N>> {
        Some(Chunk(self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()?))
    }
    fn length(&self) -> usize {
        self.0.len()
    }
    fn tagged(&self) -> bool {
        false
    }
}

/// The stage's rows in user space.
fn tables(stage: &Stage) -> PolicyTables<'_> {
    let mut tables = PolicyTables::new(&stage.desired.compiled);
    for (address, e) in &stage.desired.endpoints {
        let row = Endpoint {
            identity: [e.identity; 2],
            container: e.container,
            port: e.port,
            bridge: e.bridge,
            flags: e.flags,
            mtu: e.mtu,
            mac: e.mac,
            gateway_mac: e.gateway_mac,
        };
        tables.endpoints.insert(*address, row);
    }
    for (ifindex, l) in &stage.desired.links {
        let row = Link {
            identity: [l.identity; 2],
            container: l.container,
            bridge: l.bridge,
            kind: l.kind as u8,
            flags: l.flags,
            mac: l.mac,
            gateway_mac: l.gateway_mac,
            zero: [0; 2],
        };
        tables.links.insert(*ifindex, row);
    }
    tables
}

/// Three opinions on one frame; `Err` says how they differ, else the reason that all have.
fn opinions(
    stage: &Stage,
    runner: &mut Runner,
    tables: &PolicyTables<'_>,
    sender: &str,
    frame: &[u8],
) -> Result<Reason, String> {
    let now = unix_now();
    let ifindex = stage.port(sender, 0).unwrap();
    let must = judge(stage, sender, frame, now).unwrap();
    let mut packet = Parsed::default();
    let parsed = packet.parse(&Plain(frame));
    let at = At {
        hook: Hook::PortIn,
        ifindex,
        ingress: ifindex,
        mark: 0,
        now: now.unsigned_abs() * 1_000_000_000,
    };
    let mut outcome = Outcome::CLOSED;
    let _ = decide(tables, &packet, parsed, &at, &mut outcome);
    runner.forget().unwrap();
    let shot = Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame: frame.to_vec() };
    let seen = runner.run(&shot).unwrap();
    let rules = &stage.desired.compiled;
    // A rule is known to the kernel's tables of what was dropped or has an entry.
    let (said, kernel) = (rules.rule(outcome.rule), rules.rule(seen.rule()));
    let recorded = seen.flow.is_some() || seen.verdict() == Verdict::Denied;
    let same = (outcome.verdict, outcome.reason) == (seen.verdict(), seen.reason.unwrap_or(Reason::BadTable))
        && (!recorded || said == kernel);
    if !same || !must.is(outcome.verdict, Some(outcome.reason), said) {
        return Err(format!(
            "kernel {:?} {:?} {kernel:?}, decide {:?} {:?} {said:?}, oracle {must:?}\n{}",
            seen.verdict(),
            seen.reason,
            outcome.verdict,
            outcome.reason,
            written(stage, sender, frame)
        ));
    }
    Ok(outcome.reason)
}

/// The MACs of a world, which every world has of its own, by the words that the corpus has for them.
fn macs(stage: &Stage, sender: &str) -> BTreeMap<String, [u8; 6]> {
    let containers = &stage.deployment.topology.containers;
    let ports = containers.iter().flat_map(|c| (0..c.ports.len()).map(move |index| (&c.name, index)));
    let mut macs: BTreeMap<String, [u8; 6]> =
        ports.map(|(name, index)| (format!("{name}.{index}"), stage.mac(name, index).unwrap())).collect();
    macs.insert("gateway".into(), stage.gateway(sender, 0).unwrap());
    macs
}

/// A line of the corpus: the sender, and the frame in hexadecimal with words for MACs.
fn written(stage: &Stage, sender: &str, frame: &[u8]) -> String {
    let macs = macs(stage, sender);
    let mut line = format!("{sender} ");
    let mut at = 0;
    while at < frame.len() {
        let word = frame.get(at..at + 6).and_then(|b| macs.iter().find(|(_, mac)| **mac == *b));
        match word {
            Some((name, _)) => {
                line.push_str(&format!("{{{name}}}"));
                at += 6;
            }
            None => {
                line.push_str(&format!("{:02x}", frame[at]));
                at += 1;
            }
        }
    }
    line
}

/// The other way.
fn frame_of(stage: &Stage, line: &str) -> (String, Vec<u8>) {
    let (sender, text) = line.split_once(' ').unwrap();
    let macs = macs(stage, sender);
    let mut frame = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(word) = rest.strip_prefix('{') {
            let (name, after) = word.split_once('}').unwrap();
            frame.extend(macs.get(name).unwrap_or_else(|| panic!("no MAC {name}")));
            rest = after;
        } else {
            frame.push(u8::from_str_radix(&rest[..2], 16).unwrap());
            rest = &rest[2..];
        }
    }
    (sender.to_owned(), frame)
}

/// An address to send from or to: mostly true ones, some of nobody, some special.
fn address(random: &mut Random, stage: &Stage, v6: bool) -> IpAddr {
    let special: [&str; 12] = [
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.169.254",
        "10.70.3.255",
        "10.70.2.200",
        "::",
        "ff02::1",
        "fe80::1",
        "fd70:2::c8",
        "2001:db8:cafe::5",
        "203.0.113.5",
    ];
    let of_family = |ip: &IpAddr| ip.is_ipv6() == v6;
    if random.one_in(4) {
        let fitting: Vec<IpAddr> = special.iter().map(|s| s.parse().unwrap()).filter(of_family).collect();
        return *random.one(&fitting);
    }
    let topology = &stage.deployment.topology;
    let all: Vec<IpAddr> =
        topology.places().iter().flat_map(|place| topology.addresses(place)).filter(of_family).collect();
    *random.one(&all)
}

fn transport(random: &mut Random, v6: bool) -> Transport {
    if random.one_in(3) {
        // What the sample allows to some.
        return match random.below(3) {
            0 => Transport::Tcp(40_000, 8004, flags::SYN, vec![]),
            1 => Transport::Icmp(if v6 { 128 } else { 8 }, 0, [0, 7, 0, 1], vec![0x68; 9]),
            _ => Transport::Udp(40_000, 53, vec![0x68; 9]),
        };
    }
    let ports = [0, 22, 53, 67, 68, 80, 546, 547, 5432, 6379, 8000, 8004, 8009, 8010, 9003, 40_000];
    let (from, to) = (*random.one(&ports), *random.one(&ports));
    let data = vec![0x68; random.below(20)];
    match random.below(10) {
        0..=2 => Transport::Tcp(from, to, flags::SYN, data),
        3 | 4 => Transport::Udp(from, to, data),
        5 => Transport::Sctp(from, to, 1),
        6 | 7 => {
            let kinds: [u8; 24] = [
                0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 17, 18, 128, 129, 130, 131, 133, 134, 137, 143,
                155,
            ];
            let kind = *random.one(&kinds);
            // What an error quotes must begin like a packet of its family to be more than malformed.
            let version = if v6 { 0x60 } else { 0x45 };
            Transport::Icmp(kind, 0, [0, 7, 0, 1], [vec![version], vec![0; random.below(60)]].concat())
        }
        _ => {
            let numbers =
                [0, 1, 2, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 89, 132, 135, 139, 140, 253, 255];
            let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.number() as u8).collect();
            Transport::Raw(*random.one(&numbers), bytes)
        }
    }
}

fn extension(random: &mut Random) -> Extension {
    let options = |random: &mut Random| match random.below(4) {
        0 => vec![],
        1 => vec![5, 2, 0, 0],
        2 => vec![0; 6 + 8 * random.below(4)],
        _ => (0..6).map(|_| random.number() as u8).collect(),
    };
    match random.below(12) {
        0..=2 => Extension::HopByHop(options(random)),
        3..=5 => Extension::Destination(options(random)),
        6 => Extension::Routing(random.below(5) as u8, random.below(3) as u8),
        7 => Extension::Routing(2, 0),
        8 => Extension::Fragment(random.below(3) as u16, random.one_in(2), 9),
        9 | 10 => Extension::Auth(random.below(6) as u8),
        _ => Extension::Raw(
            *random.one(&[protocol::DESTINATION, protocol::AUTH, protocol::ROUTING, 135, 59]),
            (0..8).map(|_| random.below(12) as u8).collect(),
        ),
    }
}

/// IPv4 options: some that exist, some nonsense, in random order.
fn options(random: &mut Random) -> Vec<u8> {
    let some: [&[u8]; 9] = [
        &[1],
        &[0],
        &[7, 7, 4, 0, 0, 0, 0],
        &[148, 4, 0, 0],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[131, 7, 4, 10, 0, 0, 1],
        &[137, 3, 4],
        &[7, 1],
        &[130, 40],
    ];
    let mut options: Vec<u8> = Vec::new();
    for _ in 0..random.below(13) {
        // The harmless ones mostly: the rest ends the walk.
        let next = if random.one_in(6) { *random.one(&some) } else { some[[0, 2, 3, 4][random.below(4)]] };
        if options.len() + next.len() <= 40 {
            options.extend(next);
        }
    }
    options
}

/// A frame, well made.
fn whole(random: &mut Random, stage: &Stage, sender: &str) -> Frame {
    let own = stage.mac(sender, 0).unwrap();
    let v6 = random.one_in(2);
    let of = |v6: bool| {
        let all = stage.deployment.topology.addresses(sender);
        all.into_iter().find(|a| a.is_ipv6() == v6).unwrap()
    };
    let containers = &stage.deployment.topology.containers;
    let to_mac = match random.below(8) {
        0 => {
            let container = random.one(containers);
            stage.mac(&container.name, random.below(container.ports.len())).unwrap()
        }
        1 => *random.one(&[BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]]),
        _ => stage.gateway(sender, 0).unwrap(),
    };
    let source = if random.one_in(8) { address(random, stage, v6) } else { of(v6) };
    if random.one_in(12) {
        if let (IpAddr::V4(source), IpAddr::V4(target)) = (source, address(random, stage, false)) {
            let arp = Arp { operation: random.below(4) as u16, ..Arp::request((own, source), target) };
            return arp.frame(own, to_mac);
        }
        if let (IpAddr::V6(source), IpAddr::V6(target)) = (source, address(random, stage, true)) {
            let IpAddr::V6(to) = address(random, stage, true) else { panic!("no IPv6") };
            let packet = match random.below(3) {
                0 => neighbour_advertisement(source, to, target, own),
                1 => neighbour_advertisement(source, to, source, own),
                _ => neighbour_solicitation(source, own, target),
            };
            return Frame::ip(own, to_mac, &packet);
        }
    }
    if random.one_in(25) {
        let source = match source {
            IpAddr::V6(source) => source,
            IpAddr::V4(_) => Address::link_local_of(&Mac(own)).octets().into(),
        };
        let mut packet = match random.below(4) {
            0 => dhcp_discover(own),
            1 => dhcpv6_solicit(source),
            2 => listener_report(source, "ff02::fb".parse().unwrap()),
            _ => router_advertisement(source),
        };
        if random.one_in(3) {
            packet.source = address(random, stage, packet.source.is_ipv6());
        }
        if random.one_in(4) {
            packet.destination = address(random, stage, packet.source.is_ipv6());
        }
        return Frame::ip(own, to_mac, &packet);
    }
    let destination = address(random, stage, v6);
    let mut packet = Packet::new(source, destination, transport(random, v6));
    packet.ttl = *random.one(&[64, 64, 64, 1, 0, 255]);
    if v6 {
        if random.one_in(2) {
            for _ in 0..random.below(9) {
                packet = packet.extension(extension(random));
            }
        }
    } else {
        if random.one_in(2) {
            packet = packet.options(&options(random));
        }
        if random.one_in(12) {
            packet = packet.fragment(random.below(3) as u16 * 100, random.one_in(2));
        }
    }
    Frame::ip(own, to_mac, &packet)
}

/// And what an attacker makes of it.
fn broken(random: &mut Random, frame: &Frame) -> Vec<u8> {
    let mut frame = frame.clone();
    if random.one_in(20) {
        for _ in 0..=random.below(3) {
            frame = frame.tag(*random.one(&[0x8100, 0x88a8, 0x9100]), random.below(4096) as u16);
        }
    }
    let mut bytes = frame.bytes();
    if random.one_in(2) {
        return bytes;
    }
    for _ in 0..=random.below(4) {
        let value = random.number() as u8;
        let small = *random.one(&[0, 1, 2, 4, 5, 6, 15, 17, 43, 44, 51, 58, 60, 0x40, 0x60, 0xff]);
        let mut set = |at: usize, value: u8| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        };
        match random.below(10) {
            // Version and header length.
            0 => set(14, 0x40 | (value & 15)),
            1 => set(14, value),
            // Lengths, of IPv4 and of IPv6.
            2 => set(17, value),
            3 => set(19, value),
            4 => set(*random.one(&[16, 18, 38, 39, 58, 59]), small),
            // The type, the protocol, and where other headers begin.
            5 => set(*random.one(&[12, 13]), *random.one(&[0x08, 0x00, 0x86, 0xdd, 0x06, 0x81, 0x88])),
            6 => set(*random.one(&[20, 21, 23, 34, 35, 46, 47, 54, 55, 62, 63]), small),
            7 => set(14 + random.below(80), value),
            8 => {
                let length = SHORTEST + random.below(bytes.len().max(SHORTEST + 1) - SHORTEST);
                bytes.truncate(length);
            }
            _ => bytes.extend((0..random.below(30)).map(|_| small)),
        }
    }
    bytes
}

#[test]
fn three_opinions_of_random_frames_agree() {
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let frames = count(100_000);
    let (reasons, wrong) = stage
        .world
        .enter(HOST, || {
            let mut runner = Runner::open(&bpffs, &stage.desired).unwrap();
            let tables = tables(&stage);
            let mut random = Random::from_environment();
            let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
            let mut wrong = Vec::new();
            for _ in 0..frames {
                let sender = *random.one(&SENDERS);
                let mut frame = whole(&mut random, &stage, sender);
                if random.one_in(40) {
                    frame.source = stage.mac(*random.one(&["db", "cron"]), 0).unwrap();
                }
                let mut frame = broken(&mut random, &frame);
                let shortest = if frame[12..14] == [0x86, 0xdd] { SHORTEST6 } else { SHORTEST };
                if frame.len() < shortest {
                    frame.resize(shortest, 0);
                }
                match opinions(&stage, &mut runner, &tables, sender, &frame) {
                    Ok(reason) => *reasons.entry(reason).or_default() += 1,
                    Err(how) => wrong.push(how),
                }
                if wrong.len() > 20 {
                    break;
                }
            }
            (reasons, wrong)
        })
        .unwrap();
    assert!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong.join("\n"));
    println!("{frames} frames: {reasons:?}");
    let missed: Vec<Reason> = at_the_port().into_iter().filter(|r| !reasons.contains_key(r)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

/// The reasons that a container's first frame can meet at its own port.
fn at_the_port() -> BTreeSet<Reason> {
    [
        Reason::Rule,
        Reason::IntraTier,
        Reason::Arp,
        Reason::Neighbour,
        Reason::Dhcp,
        Reason::Mld,
        Reason::NotJudged,
        Reason::NoRule,
        Reason::SpoofedMac,
        Reason::SpoofedAddress,
        Reason::SpoofedArp,
        Reason::SpoofedNeighbour,
        Reason::RouterMessage,
        Reason::WrongMac,
        Reason::UnknownDestination,
        Reason::Malformed,
        Reason::EtherType,
        Reason::Vlan,
        Reason::Fragment,
        Reason::HeaderChain,
        Reason::SourceRoute,
        Reason::UnmatchedError,
    ]
    .into()
}

#[test]
fn three_opinions_of_the_corpus_agree_and_it_has_every_reason() {
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let text = std::fs::read_to_string(hydra_tests::binary::root().join("tests/corpus/frames")).unwrap();
    stage
        .world
        .enter(HOST, || {
            let mut runner = Runner::open(&bpffs, &stage.desired).unwrap();
            let tables = tables(&stage);
            let mut reached = BTreeSet::new();
            for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
                let (word, line) = line.split_once(' ').unwrap();
                let (sender, frame) = frame_of(&stage, line);
                let reason = opinions(&stage, &mut runner, &tables, &sender, &frame).unwrap();
                assert_eq!(reason.as_str(), word, "{line}");
                reached.insert(reason);
            }
            assert_eq!(reached, at_the_port());
        })
        .unwrap();
}

/// All of them: what hydra judges is IPv4, IPv6 and ARP, and nothing else has any other answer than its own.
#[test]
fn every_ethertype_but_three_is_refused() {
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    stage
        .world
        .enter(HOST, || {
            let mut runner = Runner::open(&bpffs, &stage.desired).unwrap();
            let tables = tables(&stage);
            let (own, db) = (stage.mac("cache", 0).unwrap(), stage.mac("db", 0).unwrap());
            let topology = &stage.deployment.topology;
            let (cache, db_address) = (topology.addresses("cache")[0], topology.addresses("db")[0]);
            // Long enough for what the kernel wants of a test run where the type says IPv6.
            let packet = Packet::new(cache, db_address, Transport::Udp(40_000, 53, vec![0x68; 40]));
            for ethertype in 0..=u16::MAX {
                let frame = Frame { ethertype, ..Frame::ip(own, db, &packet) }.bytes();
                let reason = opinions(&stage, &mut runner, &tables, "cache", &frame).unwrap();
                let wanted = match ethertype {
                    0x0800 => Reason::IntraTier,
                    0x0806 | 0x86dd => Reason::Malformed,
                    0x8100 | 0x88a8 => Reason::Vlan,
                    _ => Reason::EtherType,
                };
                assert_eq!(reason, wanted, "{ethertype:#06x}");
            }
        })
        .unwrap();
}
