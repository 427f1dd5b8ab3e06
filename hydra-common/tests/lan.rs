//! Packets of processes on interfaces without a port, on tables in plain collections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use common::{APP, DB, NOW, Plain, at, frame, ip, tcp, udp, world};
use hydra_common::address::{Address, Mac};
use hydra_common::decide::lan::{concerns, lan};
use hydra_common::decide::{At, Outcome, Step, entry};
use hydra_common::flow::Flow;
use hydra_common::id::{Container, Identity};
use hydra_common::packet::Packet;
use hydra_common::tables::{Cell, Cgroup, CgroupKey, Endpoint, Head, IdentityRow, PrefixRow};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SYN: u8 = 2;
const ACK: u8 = 0x10;
/// The cgroup of a container of APP with one interface on the network, and one on bridge 10 by which it is 10.1.0.12.
const FIRST: u64 = 70;
/// One of a container of DB, on the network alone.
const SECOND: u64 = 71;
const A: &str = "203.0.113.10";
const A6: &str = "2001:db8::10";
const B: &str = "203.0.113.11";
const USER: &str = "198.51.100.9";
const HOST: &str = "192.0.2.1";
/// Container 3, of DB, behind port 21.
const BRIDGED: &str = "10.2.0.21";

fn scene() -> Plain {
    let mut t = world();
    let row = |address, identity, container, interface, flags| Cgroup {
        netns: 5,
        address: ip(address),
        identity: [identity; 2],
        container: Container(container),
        flags,
        interface,
        ..Cgroup::default()
    };
    t.cgroups.insert(CgroupKey::new(FIRST, 0), row(A, APP, 2, 0, Cgroup::LAN));
    t.cgroups.insert(CgroupKey::new(FIRST, 1), row(A6, APP, 2, 0, Cgroup::LAN));
    t.cgroups.insert(CgroupKey::new(FIRST, 2), row("10.1.0.12", APP, 2, 8, 0));
    t.cgroups.insert(CgroupKey::new(SECOND, 0), row(B, DB, 9, 0, Cgroup::LAN));
    for (address, identity) in [(A, APP), (A6, APP), (B, DB)] {
        t.prefixes.push((ip(address), 128, PrefixRow { identity, flags: PrefixRow::LAN }));
    }
    let host = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
    t.endpoints.insert(ip(HOST), host);
    for identity in [APP, DB] {
        t.identities.entry(identity.0).or_default().flags |= IdentityRow::DECLARED;
    }
    t.heads[1].pickup_until = 0;
    t
}

fn keep(t: &mut Plain, packet: &Packet, out: &Outcome) {
    match out.step {
        Step::End => {
            t.flows.remove(&packet.key);
        }
        _ if matches!(out.verdict, Verdict::Denied) => {}
        Step::Create => {
            let mut flow = Flow::default();
            entry(packet, out, 0, NOW, &mut flow);
            t.flows.insert(packet.key, flow);
        }
        Step::Renew => {
            let flow = t.flows.get_mut(&packet.key).unwrap();
            (flow.source, flow.destination, flow.generation) = (out.source, out.destination, out.generation);
        }
        Step::Nothing | Step::Count => {}
    }
}

fn pass(t: &mut Plain, cgroup: u64, hook: Hook, bytes: &[u8]) -> Outcome {
    came(t, cgroup, hook, Mac::ZERO, bytes)
}

/// The same in a frame for that MAC.
fn came(t: &mut Plain, cgroup: u64, hook: Hook, to: Mac, bytes: &[u8]) -> Outcome {
    let mut packet = Packet::default();
    let parsed = packet.parse_bare(&&bytes[14..]);
    packet.destination_mac = to;
    let at = At { hook, ifindex: 2, ingress: 0, mark: 0, now: NOW };
    let mut out = Outcome::CLOSED;
    lan(&*t, &packet, parsed, &at, cgroup, &mut out);
    keep(t, &packet, &out);
    out
}

fn segment(from: &str, to: &str, ports: (u16, u16), flags: u8) -> Vec<u8> {
    frame(0, 0, from, to, 6, &tcp(ports.0, ports.1, flags))
}

fn sends(t: &mut Plain, cgroup: u64, from: &str, to: &str, ports: (u16, u16), flags: u8) -> Outcome {
    pass(t, cgroup, Hook::CgroupOut, &segment(from, to, ports, flags))
}

fn receives(t: &mut Plain, cgroup: u64, from: &str, to: &str, ports: (u16, u16), flags: u8) -> Outcome {
    pass(t, cgroup, Hook::CgroupIn, &segment(from, to, ports, flags))
}

fn said(out: &Outcome) -> (Verdict, Reason) {
    (out.verdict, out.reason)
}

const fn denied(reason: Reason) -> (Verdict, Reason) {
    (Verdict::Denied, reason)
}

const NO_RULE: (Verdict, Reason) = denied(Reason::NoRule);
const ALLOWED: (Verdict, Reason) = (Verdict::Allowed, Reason::Rule);
const REPLY: (Verdict, Reason) = (Verdict::Allowed, Reason::Reply);
const UNMATCHED: (Verdict, Reason) = denied(Reason::UnmatchedError);
const RELATED: (Verdict, Reason) = (Verdict::Allowed, Reason::Related);
const ND: (Verdict, Reason) = (Verdict::Allowed, Reason::Neighbour);

fn allow(t: &mut Plain, from: Identity, to: Identity) {
    t.cells.insert((from.0, to.0), Cell::decision(4));
}

#[test]
fn every_interface_is_judged_that_no_port_judges() {
    let t = scene();
    assert!(!concerns(&t, FIRST, 1), "its own loopback interface");
    assert!(!concerns(&t, FIRST, 8), "the end of a port");
    assert!(concerns(&t, FIRST, 2) && concerns(&t, FIRST, 99), "one that nobody lists too");
    assert!(concerns(&t, SECOND, 8) && concerns(&t, SECOND, 0));
}

#[test]
fn calls_to_and_from_the_outside_take_a_rule_and_replies_return() {
    let mut t = scene();
    assert_eq!(said(&sends(&mut t, FIRST, A, USER, (4000, 80), SYN)), NO_RULE);
    assert_eq!(said(&receives(&mut t, FIRST, USER, A, (4000, 80), SYN)), NO_RULE);
    allow(&mut t, APP, Identity::EXTERNAL);
    let out = sends(&mut t, FIRST, A, USER, (4000, 80), SYN);
    assert_eq!((said(&out), out.step, out.elsewhere), (ALLOWED, Step::Create, false));
    let out = receives(&mut t, FIRST, USER, A, (80, 4000), ACK);
    assert_eq!((said(&out), out.elsewhere), (REPLY, false));
    let none = receives(&mut t, FIRST, USER, A, (81, 4000), ACK);
    assert_eq!(said(&none), NO_RULE, "nobody was called there");
    allow(&mut t, Identity::EXTERNAL, APP);
    let none = receives(&mut t, FIRST, USER, A, (81, 4000), ACK);
    assert_eq!(said(&none), denied(Reason::NoConnection));
    assert_eq!(said(&receives(&mut t, FIRST, USER, A, (4001, 80), SYN)), ALLOWED);
    let out = sends(&mut t, FIRST, A, USER, (80, 4001), ACK);
    assert_eq!((said(&out), out.source, out.destination), (REPLY, Identity::EXTERNAL, APP));
    // A tightened policy.
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    assert_eq!(said(&sends(&mut t, FIRST, A, USER, (80, 4001), ACK)), NO_RULE);
    let six = frame(0, 0, A6, "2001:db8:9::9", 6, &tcp(4000, 80, SYN));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &six)), ALLOWED, "of either family");
}

#[test]
fn what_was_open_before_it_was_known_goes_on_for_a_time() {
    let mut t = scene();
    t.heads[1].pickup_until = 0;
    allow(&mut t, APP, Identity::EXTERNAL);
    allow(&mut t, Identity::EXTERNAL, APP);
    for (until, verdict) in [(0, denied(Reason::NoConnection)), (u32::MAX, ALLOWED)] {
        t.cgroups.get_mut(&CgroupKey::new(FIRST, 0)).unwrap().pickup_until = until;
        assert_eq!(said(&sends(&mut t, FIRST, A, USER, (4000, 80), ACK)), verdict);
        assert_eq!(said(&receives(&mut t, FIRST, USER, A, (4001, 80), ACK)), verdict);
    }
}

#[test]
fn it_sends_only_from_its_own_address_there() {
    let mut t = scene();
    allow(&mut t, APP, Identity::EXTERNAL);
    for forged in ["10.1.0.12", B, HOST, USER] {
        let out = sends(&mut t, FIRST, forged, "198.51.100.20", (4000, 80), SYN);
        assert_eq!((said(&out), out.source), (denied(Reason::SpoofedAddress), APP), "{forged}");
    }
    let out = receives(&mut t, FIRST, USER, "10.1.0.12", (4000, 80), SYN);
    assert_eq!(said(&out), denied(Reason::UnknownDestination), "what is for its port's address");
    let inside = receives(&mut t, FIRST, "10.2.0.99", A, (4000, 80), SYN);
    assert_eq!(said(&inside), denied(Reason::SpoofedAddress), "an address of a bridge of this host");
    let looped = receives(&mut t, FIRST, "127.0.0.1", A, (4000, 80), SYN);
    assert_eq!(said(&looped), denied(Reason::Loopback));
}

#[test]
fn two_of_them_are_judged_as_each_other_and_counted_once() {
    let mut t = scene();
    assert_eq!(said(&sends(&mut t, FIRST, A, B, (4000, 5432), SYN)), NO_RULE);
    allow(&mut t, APP, DB);
    let out = sends(&mut t, FIRST, A, B, (4000, 5432), SYN);
    assert_eq!((said(&out), out.destination, out.elsewhere), (ALLOWED, DB, false));
    let out = receives(&mut t, SECOND, A, B, (4000, 5432), SYN);
    assert_eq!((said(&out), out.source, out.elsewhere, out.begins), (ALLOWED, APP, true, false));
    let out = sends(&mut t, SECOND, B, A, (5432, 4000), ACK);
    assert_eq!((said(&out), out.elsewhere), (REPLY, false));
    let out = receives(&mut t, FIRST, B, A, (5432, 4000), ACK);
    assert_eq!((said(&out), out.elsewhere), (REPLY, true));
    assert_eq!(said(&sends(&mut t, SECOND, B, A, (4001, 80), SYN)), NO_RULE, "not the other way");
    allow(&mut t, DB, APP);
    let forged = receives(&mut t, FIRST, B, A, (4001, 80), SYN);
    assert_eq!(said(&forged), denied(Reason::SpoofedAddress), "it has sent nothing");
    assert_eq!(said(&sends(&mut t, SECOND, B, A, (4001, 80), SYN)), ALLOWED, "the control");
    assert_eq!(said(&receives(&mut t, FIRST, B, A, (4001, 80), SYN)), ALLOWED);
}

#[test]
fn a_bridged_container_that_calls_it_gets_its_replies() {
    let mut t = scene();
    allow(&mut t, DB, APP);
    let call = |flags| frame(21, 20, BRIDGED, A, 6, &tcp(4000, 80, flags));
    let out = common::pass(&mut t, &call(SYN), &at(Hook::PortIn, 21, 21));
    assert_eq!((said(&out), out.destination), (ALLOWED, APP), "by who has the address");
    // By a router outside, its address as it was.
    let forged = receives(&mut t, FIRST, BRIDGED, A, (4001, 80), SYN);
    assert_eq!(said(&forged), denied(Reason::SpoofedAddress), "what its port has not let pass");
    let out = receives(&mut t, FIRST, BRIDGED, A, (4000, 80), SYN);
    assert_eq!((said(&out), out.source, out.elsewhere), (ALLOWED, DB, true));
    let out = sends(&mut t, FIRST, A, BRIDGED, (80, 4000), ACK);
    assert_eq!((said(&out), out.elsewhere), (REPLY, true), "counted by its port");
    let back = frame(20, 21, A, BRIDGED, 6, &tcp(80, 4000, ACK));
    assert_eq!(said(&common::pass(&mut t, &back, &at(Hook::PortOut, 21, 2))), REPLY);
    assert_eq!(said(&receives(&mut t, FIRST, BRIDGED, A, (4000, 80), ACK)), REPLY);
    // The policy no longer has it: both ends by the caller's right.
    t.cells.insert((DB.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    assert_eq!(said(&sends(&mut t, FIRST, A, BRIDGED, (80, 4000), ACK)), NO_RULE);
    assert_eq!(said(&receives(&mut t, FIRST, BRIDGED, A, (4000, 80), ACK)), denied(Reason::SpoofedAddress));
}

#[test]
fn it_may_call_a_bridged_container_by_the_rules_of_both() {
    let mut t = scene();
    assert_eq!(said(&sends(&mut t, FIRST, A, BRIDGED, (4000, 5432), SYN)), NO_RULE);
    allow(&mut t, APP, DB);
    let out = sends(&mut t, FIRST, A, BRIDGED, (4000, 5432), SYN);
    assert_eq!((said(&out), out.destination_container), (ALLOWED, Container(3)));
    let arrives = frame(20, 21, A, BRIDGED, 6, &tcp(4000, 5432, SYN));
    let out = common::pass(&mut t, &arrives, &at(Hook::PortOut, 21, 2));
    assert_eq!((said(&out), out.source), (ALLOWED, APP));
    let answer = frame(21, 20, BRIDGED, A, 6, &tcp(5432, 4000, ACK));
    assert_eq!(said(&common::pass(&mut t, &answer, &at(Hook::PortIn, 21, 21))), REPLY);
    let out = receives(&mut t, FIRST, BRIDGED, A, (5432, 4000), ACK);
    assert_eq!((said(&out), out.elsewhere), (REPLY, true));
}

#[test]
fn this_hosts_address_is_the_outside_but_where_it_was_called() {
    let mut t = scene();
    assert_eq!(said(&receives(&mut t, FIRST, HOST, A, (4000, 80), SYN)), NO_RULE, "anybody may say so");
    allow(&mut t, Identity::EXTERNAL, APP);
    assert_eq!(said(&receives(&mut t, FIRST, HOST, A, (4000, 80), SYN)), ALLOWED);
    assert_eq!(said(&sends(&mut t, FIRST, A, HOST, (80, 4000), ACK)), REPLY);
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    assert_eq!(said(&sends(&mut t, FIRST, A, HOST, (80, 4000), ACK)), NO_RULE, "not by the host's right");
    allow(&mut t, APP, Identity::HOST);
    let out = sends(&mut t, FIRST, A, HOST, (4001, 22), SYN);
    assert_eq!((said(&out), out.destination), (ALLOWED, Identity::HOST));
    assert_eq!(said(&receives(&mut t, FIRST, HOST, A, (22, 4001), ACK)), REPLY);
    (t.generation, t.heads[1].generation) = (11, 11);
    let out = receives(&mut t, FIRST, HOST, A, (22, 4001), ACK);
    assert_eq!((said(&out), out.destination), (ALLOWED, Identity::HOST), "by the right to the host");
}

#[test]
fn groups_and_dhcp_are_judged_as_the_outsides() {
    let mut t = scene();
    let group = frame(0, 0, A, "239.1.2.3", 17, &udp(4000, 5353));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &group)), NO_RULE);
    let heard = frame(0, 0, USER, "239.1.2.3", 17, &udp(4000, 5353));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &heard)), NO_RULE);
    allow(&mut t, APP, Identity::EXTERNAL);
    let out = pass(&mut t, FIRST, Hook::CgroupOut, &group);
    assert_eq!((said(&out), out.step), (ALLOWED, Step::Nothing), "without an entry");
    let forged = frame(0, 0, B, "239.1.2.3", 17, &udp(4000, 5353));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &forged)), denied(Reason::SpoofedAddress));
    let asks = frame(0, 0, "0.0.0.0", "255.255.255.255", 17, &udp(68, 67));
    let out = pass(&mut t, FIRST, Hook::CgroupOut, &asks);
    assert_eq!(said(&out), (Verdict::Allowed, Reason::Dhcp));
    let answer = frame(0, 0, USER, "255.255.255.255", 17, &udp(67, 68));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &answer)), NO_RULE, "nobody knows who serves");
}

#[test]
fn what_is_for_all_of_its_network_takes_the_outsides_right() {
    let mut t = scene();
    let all = frame(0, 0, USER, "203.0.113.255", 17, &udp(4000, 137));
    assert_eq!(said(&came(&mut t, FIRST, Hook::CgroupIn, Mac::BROADCAST, &all)), NO_RULE);
    allow(&mut t, Identity::EXTERNAL, APP);
    let out = came(&mut t, FIRST, Hook::CgroupIn, Mac::BROADCAST, &all);
    assert_eq!((said(&out), out.step), (ALLOWED, Step::Nothing), "without an entry");
    let alone = came(&mut t, FIRST, Hook::CgroupIn, Mac::ZERO, &all);
    assert_eq!(said(&alone), denied(Reason::UnknownDestination), "an address that is not listed");
    let own = frame(0, 0, USER, A, 17, &udp(4000, 137));
    let out = came(&mut t, FIRST, Hook::CgroupIn, Mac::BROADCAST, &own);
    assert_eq!(said(&out), denied(Reason::UnknownDestination), "its own is called alone");
}

/// Neighbour solicitation or advertisement about an address, with the option of a link-layer address that the kernel puts there.
fn neighbour(from: &str, to: &str, kind: u8, about: &str) -> Vec<u8> {
    let option = if kind == 135 { 1 } else { 2 };
    let target = about.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let message =
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target[..], &[option, 1, 2, 0, 0, 0, 0, 7][..]].concat();
    let mut bytes = frame(0, 0, from, to, 58, &message);
    bytes[14 + 7] = 255;
    bytes
}

/// The kernel sends these by a socket of the namespace, which is in the cgroup of whoever made that: the container's.
#[test]
fn neighbours_are_found_whatever_is_denied() {
    let mut t = scene();
    let mut out = |from, to, kind, about| {
        said(&pass(&mut t, FIRST, Hook::CgroupOut, &neighbour(from, to, kind, about)))
    };
    assert_eq!(out(A6, "ff02::1:ff00:9", 135, "2001:db8::9"), ND, "it asks");
    assert_eq!(out(A6, "2001:db8::9", 135, "2001:db8::9"), ND, "it asks whether one is still there");
    assert_eq!(out(A6, "2001:db8::9", 136, A6), ND, "it answers");
    assert_eq!(out("::", "ff02::1:ff00:10", 135, A6), ND, "whether its address is free");
    assert_eq!(out("fe80::7", "ff02::1:ff00:9", 135, "2001:db8::9"), ND);
    let forged = denied(Reason::SpoofedNeighbour);
    assert_eq!(out(A6, "2001:db8::9", 136, "2001:db8::11"), forged, "it has another's address");
    assert_eq!(out("2001:db8::11", "2001:db8::9", 135, "2001:db8::9"), forged);
}

#[test]
fn errors_come_with_their_flow() {
    let mut t = scene();
    allow(&mut t, APP, Identity::EXTERNAL);
    let quoted = segment(A, USER, (4000, 80), SYN);
    let payload = [&[3u8, 4, 0, 0, 0, 0, 5, 0][..], &quoted[14..]].concat();
    let error = frame(0, 0, "198.51.100.1", A, 1, &payload);
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &error)), denied(Reason::UnmatchedError));
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &quoted)), ALLOWED);
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &error)), RELATED);
    for somebody in [B, BRIDGED] {
        let error = frame(0, 0, somebody, A, 1, &payload);
        assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &error)), UNMATCHED, "{somebody} is no router");
    }
    // What it says itself is about what it was sent.
    allow(&mut t, Identity::EXTERNAL, APP);
    let call = segment(USER, A, (4001, 80), SYN);
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &call)), ALLOWED);
    let about =
        |quoted: &[u8], to| frame(0, 0, A, to, 1, &[&[3u8, 3, 0, 0, 0, 0, 0, 0][..], &quoted[14..]].concat());
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &about(&call, USER))), RELATED);
    allow(&mut t, Identity::EXTERNAL, DB);
    let others = segment(USER, B, (4002, 80), SYN);
    assert_eq!(said(&pass(&mut t, SECOND, Hook::CgroupIn, &others)), ALLOWED);
    let out = pass(&mut t, FIRST, Hook::CgroupOut, &about(&others, USER));
    assert_eq!(said(&out), UNMATCHED, "a flow of others");
    // Until its next packet an entry may be of an older generation: the flow's right counts.
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupIn, &error)), RELATED);
    assert_eq!(said(&pass(&mut t, FIRST, Hook::CgroupOut, &about(&call, USER))), UNMATCHED);
}

#[test]
fn what_the_agent_does_not_know_may_do_nothing() {
    let mut t = scene();
    let row = t.cgroups.get_mut(&CgroupKey::new(SECOND, 0)).unwrap();
    (row.identity, row.address) = ([Identity::UNKNOWN; 2], Address::default());
    assert_eq!(said(&sends(&mut t, SECOND, B, USER, (4000, 80), SYN)), denied(Reason::UnknownSource));
    assert_eq!(said(&receives(&mut t, SECOND, USER, B, (4000, 80), SYN)), denied(Reason::UnknownDestination));
}

#[test]
fn an_audited_policy_drops_nothing_and_none_drops_all() {
    let mut t = scene();
    t.heads[1] = Head { flags: Head::AUDIT, ..t.heads[1] };
    assert_eq!(said(&sends(&mut t, FIRST, A, USER, (4000, 80), SYN)), (Verdict::Audited, Reason::NoRule));
    t.generation = 0;
    assert_eq!(said(&sends(&mut t, FIRST, A, USER, (4001, 80), SYN)), denied(Reason::NoPolicy));
}
