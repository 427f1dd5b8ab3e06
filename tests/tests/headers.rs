//! Header games don't move the port: random frames, well made, broken and in between, to the kernel's program, to `decide` in user
//! space, and to second opinions that share no code with either. `HYDRA_FRAMES` says how many, `HYDRA_SEED` which. What once found
//! something, and one frame for every reason, stands in `corpus/frames`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::collections::{BTreeMap, BTreeSet};

use hydra_agent::policy::tables::PolicyTables;
use hydra_agent::policy::unix_now;
use hydra_common::decide::{At, Outcome, decide};
use hydra_common::packet::Packet as Parsed;
use hydra_common::tables::{Endpoint, Link};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::frames::hostile;
use hydra_tests::judge::judge;
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::packets::{Frame, Packet, Transport};
use hydra_tests::random::Random;
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

/// Who sends: alone on its bridge with its own tier, and beside a container of another.
const SENDERS: [&str; 2] = ["shop", "cache"];
fn count(otherwise: usize) -> usize {
    std::env::var("HYDRA_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The stage's rows in user space.
fn tables(stage: &Stage) -> PolicyTables<'_> {
    let mut tables = PolicyTables::new(&stage.desired.compiled).strict();
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
    let parsed = packet.parse(&frame);
    let at = At {
        hook: Hook::PortIn,
        ifindex,
        ingress: ifindex,
        mark: 0,
        now: now.unsigned_abs() * 1_000_000_000,
    };
    let mut outcome = Outcome::CLOSED;
    let _ = decide(tables, &mut packet, parsed, &at, &mut outcome);
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
        let (text, length) = match word {
            Some((name, _)) => (format!("{{{name}}}"), 6),
            None => (format!("{:02x}", frame[at]), 1),
        };
        line += &text;
        at += length;
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
                let frame = hostile(&mut random, &stage, sender).unwrap();
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
