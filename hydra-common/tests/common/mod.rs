//! Tables in plain collections, and frames by hand: what the tests of this crate share.
#![allow(dead_code, missing_docs, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on ends here")]

pub mod ports;

use std::cell::{Cell as Counter, RefCell};
use std::collections::HashMap;

use hydra_common::address::{Address, Mac};
use hydra_common::decide::{At, Outcome, Parts, decide};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::packet::Packet;
use hydra_common::tables::*;
use hydra_common::verdict::{Hook, Reason, Verdict};

/// The generation that the tests' tables have.
pub const GENERATION: u32 = 7;
/// Nanoseconds at which the tests' packets come.
pub const NOW: u64 = 1_000_000_000_000;

/// Two containers of one tier on bridge 10 (ports 11, 12), one of another on bridge 20 (port 21), one that is not known yet on
/// port 13, an uplink 2, an unmanaged bridge 30.
pub const APP: Identity = Identity(4);
pub const DB: Identity = Identity(5);

#[derive(Clone, Default)]
pub struct Plain {
    pub generation: u32,
    pub heads: [Head; 2],
    pub links: HashMap<u32, Link>,
    pub endpoints: HashMap<Address, Endpoint>,
    pub published: HashMap<PublishKey, Publish>,
    pub cgroups: HashMap<CgroupKey, Cgroup>,
    pub prefixes: Vec<(Address, u32, PrefixRow)>,
    pub identities: HashMap<u16, IdentityRow>,
    pub cells: HashMap<(u16, u16), Cell>,
    pub sets: Vec<RuleSet>,
    pub intervals: Vec<Interval>,
    pub decisions: Vec<Decision>,
    pub flows: HashMap<FlowKey, Flow>,
    pub fragments: HashMap<FragmentKey, Fragment>,
    /// As the agent counts it; 0: nothing is kept near.
    pub rows: u64,
    /// What is kept near, by what the kernel keeps it by.
    pub kept: RefCell<HashMap<(u32, Address, Address, u16), Moment>>,
    /// What was there until somebody has looked so often for a published port: rows of those, and the generation.
    pub before: Option<(HashMap<PublishKey, Publish>, u32)>,
    pub looks: Counter<u32>,
}

fn pass_key(packet: &Packet, at: &At) -> (u32, Address, Address, u16) {
    (at.ifindex, packet.source, packet.destination, packet.destination_port)
}

impl Parts for Plain {}

impl Tables for Plain {
    type Flow<'a> = &'a Flow;

    fn generation(&self) -> u32 {
        match &self.before {
            Some((_, generation)) if self.looks.get() > 0 => *generation,
            _ => self.generation,
        }
    }
    fn head(&self, bank: u32) -> Option<&Head> {
        self.heads.get(bank as usize)
    }
    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }
    fn endpoint(&self, address: &Address) -> Option<&Endpoint> {
        self.endpoints.get(address)
    }
    fn moment(&self) -> Moment {
        Moment { rows: self.rows, generation: self.generation() }
    }
    fn passed(&self, packet: &Packet, at: &At, since: &Moment) -> bool {
        since.rows != 0 && self.kept.borrow().get(&pass_key(packet, at)) == Some(since)
    }
    fn passes(&self, packet: &Packet, at: &At, since: &Moment) {
        self.kept.borrow_mut().insert(pass_key(packet, at), *since);
    }
    fn published(&self, key: &PublishKey) -> Option<&Publish> {
        let looks = self.looks.get();
        self.looks.set(looks.saturating_sub(1));
        let before = self.before.as_ref().filter(|_| looks > 0);
        before.map_or(&self.published, |(published, _)| published).get(key)
    }
    fn cgroup(&self, key: &CgroupKey) -> Option<&Cgroup> {
        self.cgroups.get(key)
    }
    fn prefix(&self, _: u32, address: &Address) -> Option<&PrefixRow> {
        let bits = |a: &Address| u128::from_be_bytes(a.octets());
        self.prefixes
            .iter()
            .filter(|(block, length, _)| (bits(block) ^ bits(address)).leading_zeros() >= *length)
            .max_by_key(|(_, length, _)| *length)
            .map(|(_, _, row)| row)
    }
    fn identity(&self, _: u32, identity: Identity) -> Option<&IdentityRow> {
        self.identities.get(&identity.0)
    }
    fn cell(&self, _: u32, source: Identity, destination: Identity) -> Option<Cell> {
        self.cells.get(&(source.0, destination.0)).copied()
    }
    fn rule_set(&self, _: u32, index: u32) -> Option<&RuleSet> {
        self.sets.get(index as usize)
    }
    fn interval(&self, _: u32, index: u32) -> Option<&Interval> {
        self.intervals.get(index as usize)
    }
    fn decision(&self, _: u32, index: u32) -> Option<&Decision> {
        self.decisions.get(index as usize)
    }
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        self.fragments.get(key)
    }
}

pub fn ip(text: &str) -> Address {
    match text.parse().unwrap() {
        std::net::IpAddr::V4(a) => Address::v4(a.octets()),
        std::net::IpAddr::V6(a) => Address::v6(a.octets()),
    }
}

pub fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// The world of the tests: see [`APP`].
pub fn world() -> Plain {
    let mut t = Plain { generation: GENERATION, ..Plain::default() };
    t.heads[1] = Head { generation: GENERATION, revision: 3, flags: 0, pickup_until: u32::MAX };
    for n in 1..=3u16 {
        t.identities.insert(n, IdentityRow { tier: Tier(n), flags: 0 });
    }
    for n in [APP, DB] {
        let flags = IdentityRow::DECLARED | IdentityRow::INTERIOR;
        t.identities.insert(n.0, IdentityRow { tier: Tier(n.0), flags });
    }
    for (port, bridge, identity, container) in
        [(11, 10, APP, 1), (12, 10, APP, 2), (21, 20, DB, 3), (13, 10, Identity::UNKNOWN, 0)]
    {
        t.links.insert(
            port,
            Link {
                identity: [identity; 2],
                container: Container(container),
                bridge,
                kind: LinkKind::Port as u8,
                mac: mac(port as u8),
                gateway_mac: mac(bridge as u8),
                ..Link::default()
            },
        );
    }
    for (index, kind) in
        [(10, LinkKind::Bridge), (20, LinkKind::Bridge), (2, LinkKind::Uplink), (30, LinkKind::Unmanaged)]
    {
        t.links.insert(index, Link { kind: kind as u8, bridge: index, ..Link::default() });
    }
    for (text, port, bridge, identity, container) in [
        ("10.1.0.11", 11, 10, APP, 1),
        ("fd00:1::11", 11, 10, APP, 1),
        ("10.1.0.12", 12, 10, APP, 2),
        ("10.2.0.21", 21, 20, DB, 3),
        ("fd00:2::21", 21, 20, DB, 3),
    ] {
        t.endpoints.insert(
            ip(text),
            Endpoint {
                identity: [identity; 2],
                container: Container(container),
                port,
                bridge,
                flags: Endpoint::ATTACHED | Endpoint::PEER,
                mtu: 1500,
                mac: mac(port as u8),
                gateway_mac: mac(bridge as u8),
            },
        );
    }
    for gateway in ["10.1.0.1", "10.2.0.1"] {
        t.endpoints.insert(
            ip(gateway),
            Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() },
        );
    }
    for (block, length, identity) in [("10.1.0.0", 120, APP), ("10.2.0.0", 120, DB)] {
        t.prefixes.push((ip(block), length, PrefixRow { identity, flags: PrefixRow::INTERIOR }));
    }
    let decision = |verdict: Verdict, reason: Reason, rule| Decision {
        verdict: verdict as u8,
        reason: reason as u8,
        rule,
        ..Decision::default()
    };
    t.decisions = vec![
        Decision::default(),
        decision(Verdict::Denied, Reason::NoRule, 0),
        decision(Verdict::Allowed, Reason::IntraTier, 0),
        decision(Verdict::Allowed, Reason::FromHost, 0),
        decision(Verdict::Allowed, Reason::Rule, 1),
        decision(Verdict::Denied, Reason::Rule, 2),
    ];
    let all = [1, 2, 3, APP.0, DB.0];
    for s in all {
        for d in all {
            t.cells.insert((s, d), Cell::decision(if s == 2 { 3 } else { 1 }));
        }
    }
    t.cells.insert((APP.0, APP.0), Cell::decision(2));
    t.cells.insert((DB.0, DB.0), Cell::decision(2));
    t
}

/// Ethernet around a payload.
pub fn ethernet(from: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// IPv4 without options, or IPv6 without extension headers, around a payload.
pub fn network(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (a, b) = (ip(from).octets(), ip(to).octets());
    if from.contains('.') {
        let length = (20 + payload.len()) as u16;
        let mut h = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
        h[2..4].copy_from_slice(&length.to_be_bytes());
        [&h[..], &a[12..], &b[12..], payload].concat()
    } else {
        let length = (payload.len() as u16).to_be_bytes();
        [&[0x60, 0, 0, 0, length[0], length[1], protocol, 64][..], &a[..], &b[..], payload].concat()
    }
}

/// TCP: the SYN has the number 0, what comes after it 1.
pub fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    use hydra_common::track::tcp::{ACK, SYN};
    let (sequence, acknowledgment) = (u32::from(flags & SYN == 0), u32::from(flags & ACK != 0));
    segment(source, destination, flags, sequence, acknowledgment, 0)
}

/// TCP with its numbers and this many bytes of data.
pub fn segment(
    source: u16,
    destination: u16,
    flags: u8,
    sequence: u32,
    acknowledgment: u32,
    data: usize,
) -> Vec<u8> {
    let (s, d) = (source.to_be_bytes(), destination.to_be_bytes());
    let (n, a) = (sequence.to_be_bytes(), acknowledgment.to_be_bytes());
    [&s[..], &d[..], &n, &a, &[0x50, flags, 0, 0, 0, 0, 0, 0], &vec![0; data]].concat()
}

pub fn udp(source: u16, destination: u16) -> Vec<u8> {
    let (s, d) = (source.to_be_bytes(), destination.to_be_bytes());
    [&s[..], &d[..], &[0, 8, 0, 0]].concat()
}

/// A frame from a port's own MAC to its gateway's.
pub fn frame(port: u32, bridge: u32, from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ethertype = if from.contains('.') { 0x0800 } else { 0x86dd };
    ethernet(mac(port as u8), mac(bridge as u8), ethertype, &network(from, to, protocol, payload))
}

pub fn parse(frame: &[u8]) -> (Packet, Result<(), Reason>) {
    let mut packet = Packet::default();
    let parsed = packet.parse(&frame);
    (packet, parsed)
}

pub fn at(hook: Hook, ifindex: u32, ingress: u32) -> At {
    At { hook, ifindex, ingress, mark: 0, now: NOW }
}

/// Judges a frame.
pub fn judge(tables: &Plain, frame: &[u8], at: &At) -> (Packet, Outcome) {
    let (mut packet, parsed) = parse(frame);
    let mut outcome = Outcome::CLOSED;
    let _ = decide(tables, &mut packet, parsed, at, &mut outcome);
    (packet, outcome)
}

/// Judges a frame, and writes the flow table as the kernel would.
pub fn pass(tables: &mut Plain, frame: &[u8], at: &At) -> Outcome {
    use hydra_common::decide::{Step, entry, fragment};
    use hydra_common::track;
    let (packet, outcome) = judge(tables, frame, at);
    if outcome.verdict == Verdict::Denied {
        if outcome.step == Step::End {
            tables.flows.remove(&packet.key);
        }
        return outcome;
    }
    if fragment::begins(&packet, at, &outcome) {
        tables.fragments.extend([fragment::first(&packet, &outcome, at.now)]);
    }
    let mut flow = Flow::default();
    entry(&packet, &outcome, 0, at.now, &mut flow);
    match outcome.step {
        Step::Nothing | Step::End => return outcome,
        Step::Create => {}
        Step::Count | Step::Renew => {
            let old = tables.flows[&packet.key];
            if outcome.step == Step::Count {
                flow = Flow { seen: at.now, ..old };
            }
            (flow.flags, flow.next, flow.acked, flow.ends) = (old.flags, old.next, old.acked, old.ends);
            let (side, stand) = (packet.side().index(), track::follow(&old, &packet));
            (flow.flags[side], flow.next[side], flow.acked[side]) = (stand.flags, stand.next, stand.acked);
            flow.syn = stand.syn;
            if flow.ends[side] == 0 {
                flow.ends[side] = outcome.near() as u8;
            }
        }
    }
    tables.flows.insert(packet.key, flow);
    outcome
}
