//! Header games don't move the port: random frames, well made, broken and in between, to the kernel's program, to `decide` in user
//! space, and to second opinions that share no code with either. `HYDRA_FRAMES` says how many, `HYDRA_SEED` which. What once found
//! something, and one frame for every reason, stands in `corpus/frames`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::collections::{BTreeMap, BTreeSet};

use hydra_agent::policy::rows::Compiled;
use hydra_agent::policy::tables::PolicyTables;
use hydra_agent::policy::unix_now;
use hydra_common::decide::{At, Outcome, Step, decide, fragment};
use hydra_common::packet::Packet as Parsed;
use hydra_common::tables::{DropKey, Endpoint, Link};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::frames::hostile;
use hydra_tests::judge::{Must, judge};
use hydra_tests::kernel::{Runner, Shot, Sweep, Wanted};
use hydra_tests::packets::{Frame, Packet, Transport};
use hydra_tests::random::Random;
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

/// Who sends: alone on its bridge with its own tier, and beside a container of another.
const SENDERS: [&str; 2] = ["shop", "cache"];
/// Frames between two looks at the whole tables.
const ROUND: usize = 1_000;

fn count(otherwise: usize) -> usize {
    std::env::var("HYDRA_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// What is asked on the sample's stage, of the kernel's programs and of its rows in user space.
fn on_stage<T: Send>(ask: impl FnOnce(&Stage, &mut Runner, &PolicyTables<'_>) -> T + Send) -> T {
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let open = || ask(&stage, &mut Runner::open(&bpffs, &stage.desired).unwrap(), &tables(&stage));
    stage.world.enter(HOST, open).unwrap()
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

/// What `decide` says of one frame in user space, and the oracle.
struct Opinions {
    must: Must,
    outcome: Outcome,
    wanted: Wanted,
}

impl Opinions {
    fn of(stage: &Stage, tables: &PolicyTables<'_>, shot: &Shot, sender: &str) -> Self {
        let now = unix_now();
        let must = judge(stage, sender, &shot.frame, now).unwrap();
        let mut packet = Parsed::default();
        let parsed = packet.parse(&&shot.frame[..]);
        let at = At {
            hook: shot.hook,
            ifindex: shot.ifindex,
            ingress: shot.ingress,
            mark: shot.mark,
            now: now.unsigned_abs() * 1_000_000_000,
        };
        let mut outcome = Outcome::CLOSED;
        let _ = decide(tables, &mut packet, parsed, &at, &mut outcome);
        let Outcome { verdict, reason, rule, .. } = outcome;
        let (source, destination) = outcome.tiers(tables);
        let drop = DropKey { source, destination, reason: reason as u8, verdict: verdict as u8, rule };
        let flow = (verdict != Verdict::Denied && outcome.step == Step::Create).then_some(packet.key);
        let begins = verdict != Verdict::Denied && fragment::begins(&packet, &at, &outcome);
        let fragment = begins.then(|| fragment::first(&packet, &outcome, at.now).0);
        Self { must, outcome, wanted: Wanted { verdict, reason, rule, drop, flow, fragment } }
    }

    /// The two that need no kernel.
    fn agree(&self, rules: &Compiled) -> bool {
        self.must.is(self.outcome.verdict, Some(self.outcome.reason), rules.rule(self.outcome.rule))
    }
}

fn shot(stage: &Stage, sender: &str, frame: Vec<u8>) -> Shot {
    let ifindex = stage.port(sender, 0).unwrap();
    Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame }
}

/// Three opinions on one frame; `Err` says how they differ, else the reason that all have.
fn opinions(
    stage: &Stage,
    runner: &mut Runner,
    tables: &PolicyTables<'_>,
    sender: &str,
    frame: &[u8],
) -> Result<Reason, String> {
    let shot = shot(stage, sender, frame.to_vec());
    let own = Opinions::of(stage, tables, &shot, sender);
    let outcome = &own.outcome;
    runner.forget().unwrap();
    let seen = runner.run(&shot).unwrap();
    if own.wanted.fragment.is_some() {
        // No frame is to follow another.
        runner.forget_pieces().unwrap();
    }
    let rules = &stage.desired.compiled;
    // A rule is known to the kernel's tables of what was dropped or has an entry.
    let (said, kernel) = (rules.rule(outcome.rule), rules.rule(seen.rule()));
    let recorded = seen.flow.is_some() || seen.verdict() == Verdict::Denied;
    let same = (outcome.verdict, outcome.reason) == (seen.verdict(), seen.reason.unwrap_or(Reason::BadTable))
        && (!recorded || said == kernel);
    if !same || !own.agree(rules) {
        return Err(format!(
            "kernel {:?} {:?} {kernel:?}, decide {:?} {:?} {said:?}, oracle {:?}\n{}",
            seen.verdict(),
            seen.reason,
            outcome.verdict,
            outcome.reason,
            own.must,
            written(stage, sender, frame)
        ));
    }
    Ok(outcome.reason)
}

/// The opinions on many frames at once; how often each reason was met, and how they differ.
fn round(
    stage: &Stage,
    runner: &mut Runner,
    tables: &PolicyTables<'_>,
    frames: &[(&str, Vec<u8>)],
    reasons: &mut BTreeMap<Reason, usize>,
) -> Vec<String> {
    let mut sweep = Sweep::begin(runner).unwrap();
    let mut all = true;
    for (sender, frame) in frames {
        let shot = shot(stage, sender, frame.clone());
        let own = Opinions::of(stage, tables, &shot, sender);
        all = own.agree(&stage.desired.compiled) && sweep.holds(&shot, &own.wanted).unwrap();
        if !all {
            break;
        }
        *reasons.entry(own.outcome.reason).or_default() += 1;
    }
    let ended = sweep.end();
    if all && ended.is_ok() {
        return Vec::new();
    }
    // Each by itself says what it was.
    runner.forget_pieces().unwrap();
    let alone = |(sender, frame): &(&str, Vec<u8>)| opinions(stage, runner, tables, sender, frame).err();
    let mut wrong: Vec<String> = frames.iter().filter_map(alone).collect();
    if wrong.is_empty() {
        wrong.push(format!(
            "each agrees alone, but not all together: {}",
            ended.err().map_or_else(String::new, |e| format!("{e:#}"))
        ));
    }
    wrong
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
    let frames = count(100_000);
    let (reasons, wrong) = on_stage(|stage, runner, tables| {
        let mut random = Random::from_environment();
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        let (mut wrong, mut left) = (Vec::new(), frames);
        while left > 0 && wrong.is_empty() {
            let some = left.min(ROUND);
            left -= some;
            let mut one = || {
                let sender = *random.one(&SENDERS);
                (sender, hostile(&mut random, stage, sender).unwrap())
            };
            let batch: Vec<_> = (0..some).map(|_| one()).collect();
            wrong = round(stage, runner, tables, &batch, &mut reasons);
        }
        (reasons, wrong)
    });
    assert!(wrong.is_empty(), "{} disagree:\n{}", wrong.len(), wrong.join("\n"));
    println!("figure: {frames} frames, 0 disagreements: {reasons:?}");
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
    let text = std::fs::read_to_string(hydra_tests::binary::root().join("tests/corpus/frames")).unwrap();
    on_stage(|stage, runner, tables| {
        let mut reached = BTreeSet::new();
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (word, line) = line.split_once(' ').unwrap();
            let (sender, frame) = frame_of(stage, line);
            let reason = opinions(stage, runner, tables, &sender, &frame).unwrap();
            assert_eq!(reason.as_str(), word, "{line}");
            reached.insert(reason);
        }
        assert_eq!(reached, at_the_port());
    });
}

/// All of them: what hydra judges is IPv4, IPv6 and ARP, and nothing else has any other answer than its own.
#[test]
fn every_ethertype_but_three_is_refused() {
    on_stage(|stage, runner, tables| {
        let (own, db) = (stage.mac("cache", 0).unwrap(), stage.mac("db", 0).unwrap());
        let topology = &stage.deployment.topology;
        let (cache, db_address) = (topology.addresses("cache")[0], topology.addresses("db")[0]);
        // Long enough for what the kernel wants of a test run where the type says IPv6.
        let packet = Packet::new(cache, db_address, Transport::Udp(40_000, 53, vec![0x68; 40]));
        for ethertype in 0..=u16::MAX {
            let frame = Frame { ethertype, ..Frame::ip(own, db, &packet) }.bytes();
            let reason = opinions(stage, runner, tables, "cache", &frame).unwrap();
            let wanted = match ethertype {
                0x0800 => Reason::IntraTier,
                0x0806 | 0x86dd => Reason::Malformed,
                0x8100 | 0x88a8 => Reason::Vlan,
                _ => Reason::EtherType,
            };
            assert_eq!(reason, wanted, "{ethertype:#06x}");
        }
    });
}

/// The control: a round is over at the first frame that is not as it must be, and looks at its end for what nobody expected.
#[test]
fn a_round_notices_what_was_not_expected() {
    on_stage(|stage, runner, tables| {
        let topology = &stage.deployment.topology;
        let (cache, db) = (topology.addresses("cache")[0], topology.addresses("db")[0]);
        let packet = Packet::new(cache, db, Transport::Udp(40_000, 53, vec![0x68; 40]));
        let frame = |to| Frame::ip(stage.mac("cache", 0).unwrap(), to, &packet).bytes();
        let passes = shot(stage, "cache", frame(stage.mac("db", 0).unwrap()));
        let denied = shot(stage, "cache", frame([2; 6]));
        let [own, other] = [&passes, &denied].map(|s| Opinions::of(stage, tables, s, "cache").wanted);
        assert_eq!((own.reason, other.reason), (Reason::IntraTier, Reason::WrongMac));
        let mut told = |wanted: &[(&Shot, Wanted, bool)]| {
            let mut sweep = Sweep::begin(runner).unwrap();
            for (shot, wanted, holds) in wanted {
                assert_eq!(sweep.holds(shot, wanted).unwrap(), *holds, "{wanted:?}");
            }
            sweep.end().is_ok()
        };
        assert!(told(&[(&passes, own, true), (&denied, other, true), (&passes, own, true)]));
        assert!(!told(&[(&passes, other, false)]));
        assert!(!told(&[(&denied, own, false)]));
        assert!(!told(&[(&denied, Wanted { reason: Reason::NoRule, ..other }, false)]));
        assert!(!told(&[(&denied, Wanted { drop: DropKey { rule: 7, ..other.drop }, ..other }, false)]));
        // Its rule, its verdict or its entry are not what they must be, all else is.
        assert!(told(&[(&passes, Wanted { rule: own.rule + 1, ..own }, false)]));
        assert!(!told(&[(&passes, Wanted { flow: None, ..own }, true)]), "it has left an entry");
        let first =
            Frame::ip(stage.mac("cache", 0).unwrap(), stage.mac("db", 0).unwrap(), &packet.fragment(0, true));
        let piece = shot(stage, "cache", first.bytes());
        let own = Opinions::of(stage, tables, &piece, "cache").wanted;
        assert!(told(&[(&piece, own, true)]));
        assert!(!told(&[(&piece, Wanted { fragment: None, ..own }, true)]), "it has left a row");
    });
}
