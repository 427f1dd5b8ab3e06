//! Packets of processes on the host's own stack, on tables in plain collections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use common::{APP, DB, NOW, Plain, at, frame, ip, tcp, world};
use hydra_common::decide::own::own;
use hydra_common::decide::{At, Outcome, Step, Way, entry};
use hydra_common::flow::Flow;
use hydra_common::id::{Container, Identity};
use hydra_common::names::{MARK_JUDGED, carried, left};
use hydra_common::packet::Packet;
use hydra_common::tables::{Cell, Cgroup, CgroupKey, Endpoint, Head, PrefixRow, Publish, PublishKey};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const LO: u32 = 1;
const CARD: u32 = 2;
const US: &str = "192.0.2.1";
const USER: &str = "198.51.100.9";
/// The unit's tier is APP.
const UNIT: Cgroup = Cgroup {
    netns: 0,
    address: hydra_common::address::Address::UNSPECIFIED6,
    identity: [APP; 2],
    container: Container::NONE,
    flags: Cgroup::HOST,
    interface: 0,
    pickup_until: 0,
    zero: 0,
};

fn scene() -> Plain {
    let mut t = world();
    let host = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
    t.endpoints.insert(ip(US), host);
    t
}

/// Judges a packet, and keeps the flow table as the kernel does.
fn pass(t: &mut Plain, row: &Cgroup, hook: Hook, (ifindex, mark): (u32, u32), bytes: &[u8]) -> Outcome {
    let mut packet = Packet::default();
    let parsed = packet.parse_bare(&&bytes[14..]);
    let at = At { hook, ifindex, ingress: 0, mark, now: NOW };
    let mut out = Outcome::CLOSED;
    own(&*t, &packet, parsed, &at, row, &mut out);
    match out.step {
        Step::Create if !matches!(out.verdict, Verdict::Denied) => {
            let mut flow = Flow::default();
            entry(&packet, &out, 0, NOW, &mut flow);
            t.flows.insert(packet.key, flow);
        }
        Step::Renew if !matches!(out.verdict, Verdict::Denied) => {
            let flow = t.flows.get_mut(&packet.key).unwrap();
            (flow.source, flow.destination, flow.generation) = (out.source, out.destination, out.generation);
        }
        Step::Create | Step::Renew | Step::Nothing | Step::Count | Step::End => {}
    }
    out
}

fn sends(t: &mut Plain, to: &str, ports: (u16, u16), flags: u8) -> Outcome {
    let bytes = frame(0, 0, US, to, 6, &tcp(ports.0, ports.1, flags));
    // As the hook has marked it before.
    pass(t, &UNIT, Hook::CgroupOut, (CARD, carried(APP)), &bytes)
}

fn receives(t: &mut Plain, from: &str, ports: (u16, u16), flags: u8, by: (u32, u32)) -> Outcome {
    let bytes = frame(0, 0, from, US, 6, &tcp(ports.0, ports.1, flags));
    pass(t, &UNIT, Hook::CgroupIn, by, &bytes)
}

fn said(out: &Outcome) -> (Verdict, Reason) {
    (out.verdict, out.reason)
}

const NO_RULE: (Verdict, Reason) = (Verdict::Denied, Reason::NoRule);
const ALLOWED: (Verdict, Reason) = (Verdict::Allowed, Reason::Rule);
const REPLY: (Verdict, Reason) = (Verdict::Allowed, Reason::Reply);

#[test]
fn what_it_sends_outside_takes_a_rule_and_replies_return() {
    let mut t = scene();
    assert_eq!(said(&sends(&mut t, USER, (4000, 80), SYN)), NO_RULE);
    assert_eq!(said(&receives(&mut t, USER, (80, 4000), ACK, (CARD, 0))), NO_RULE, "nobody was called");
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(4));
    let out = sends(&mut t, USER, (4000, 80), SYN);
    assert_eq!((said(&out), out.step), (ALLOWED, Step::Create));
    let out = receives(&mut t, USER, (80, 4000), ACK, (CARD, 0));
    assert_eq!((said(&out), out.step), (REPLY, Step::Count));
}

#[test]
fn what_it_receives_takes_a_rule_and_its_answers_leave() {
    let mut t = scene();
    assert_eq!(said(&receives(&mut t, USER, (4000, 80), SYN, (CARD, 0))), NO_RULE);
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(4));
    assert_eq!(said(&receives(&mut t, USER, (4000, 80), SYN, (CARD, 0))), ALLOWED);
    let out = sends(&mut t, USER, (80, 4000), ACK);
    assert_eq!((said(&out), out.source, out.destination), (REPLY, Identity::EXTERNAL, APP));
}

#[test]
fn a_tightened_policy_ends_both_directions_by_the_openers_right() {
    let mut t = scene();
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(4));
    assert_eq!(said(&receives(&mut t, USER, (4000, 80), SYN, (CARD, 0))), ALLOWED);
    (t.generation, t.heads[1].generation) = (9, 9);
    let out = sends(&mut t, USER, (80, 4000), ACK);
    assert_eq!((said(&out), out.step), (ALLOWED, Step::Renew), "still its right");
    (t.generation, t.heads[1].generation) = (11, 11);
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(1));
    assert_eq!(said(&sends(&mut t, USER, (80, 4000), ACK)), NO_RULE);
    assert_eq!(said(&receives(&mut t, USER, (4000, 80), ACK, (CARD, 0))), NO_RULE);
}

#[test]
fn only_a_syn_opens_and_an_entry_that_the_policy_denies_goes() {
    let mut t = scene();
    t.heads[1].pickup_until = 0;
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(4));
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(4));
    let none = (Verdict::Denied, Reason::NoConnection);
    assert_eq!(said(&sends(&mut t, USER, (4000, 80), ACK)), none);
    assert_eq!(said(&receives(&mut t, USER, (80, 4000), ACK, (CARD, 0))), none);
    assert_eq!(said(&sends(&mut t, USER, (4000, 80), SYN)), ALLOWED);
    assert_eq!(said(&receives(&mut t, USER, (80, 4000), ACK, (CARD, 0))), REPLY);
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    let out = sends(&mut t, USER, (4000, 80), ACK);
    assert_eq!((said(&out), out.step), (NO_RULE, Step::End));
}

#[test]
fn what_a_unit_opened_before_it_was_known_goes_on_for_a_time() {
    let mut t = scene();
    t.heads[1].pickup_until = 0;
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(4));
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(4));
    let young = Cgroup { pickup_until: u32::MAX, ..UNIT };
    let out = frame(0, 0, US, USER, 6, &tcp(4000, 80, ACK));
    let back = frame(0, 0, USER, US, 6, &tcp(4001, 80, ACK));
    for (row, verdict) in [(&UNIT, (Verdict::Denied, Reason::NoConnection)), (&young, ALLOWED)] {
        assert_eq!(said(&pass(&mut t, row, Hook::CgroupOut, (CARD, carried(APP)), &out)), verdict);
        assert_eq!(said(&pass(&mut t, row, Hook::CgroupIn, (CARD, 0), &back)), verdict);
    }
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(1));
    t.flows.clear();
    assert_eq!(said(&pass(&mut t, &young, Hook::CgroupOut, (CARD, carried(APP)), &out)), NO_RULE);
}

#[test]
fn what_goes_to_a_port_is_left_to_it() {
    let mut t = scene();
    let out = sends(&mut t, "10.2.0.21", (4000, 5432), SYN);
    assert_eq!((said(&out), out.way), ((Verdict::Allowed, Reason::NotJudged), Way::Leave));
    t.endpoints.get_mut(&ip("10.2.0.21")).unwrap().flags = 0;
    assert_eq!(said(&sends(&mut t, "10.2.0.21", (4000, 5432), SYN)), NO_RULE, "no program is there yet");
    assert_eq!(
        said(&sends(&mut t, "10.2.0.99", (4000, 5432), SYN)),
        (Verdict::Denied, Reason::UnknownDestination)
    );
}

#[test]
fn a_container_is_believed_where_its_port_has_judged_it_and_nowhere_else() {
    let mut t = scene();
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    let forged = receives(&mut t, "10.2.0.21", (4000, 80), SYN, (CARD, 0));
    assert_eq!(said(&forged), (Verdict::Denied, Reason::SpoofedAddress));
    let unknown = receives(&mut t, "10.2.0.99", (4000, 80), SYN, (CARD, 0));
    assert_eq!(said(&unknown), (Verdict::Denied, Reason::SpoofedAddress));
    let out = receives(&mut t, "10.2.0.21", (4000, 80), SYN, (10, carried(DB)));
    assert_eq!((said(&out), out.source, out.elsewhere), (ALLOWED, DB, true), "counted by its port");
    let out = receives(&mut t, "203.0.113.7", (4001, 80), SYN, (10, carried(DB)));
    assert_eq!((said(&out), out.source), (ALLOWED, DB), "whatever the address");
    // What a port let pass without its sender's identity is an answer, or another's flow.
    let answer = (Verdict::Allowed, Reason::NotJudged);
    let out = receives(&mut t, "10.2.0.21", (5432, 4002), ACK, (10, MARK_JUDGED));
    assert_eq!((said(&out), out.way), (answer, Way::Leave));
    let opened = receives(&mut t, "10.2.0.21", (4000, 80), ACK, (10, MARK_JUDGED));
    assert_eq!((said(&opened), opened.source), (REPLY, DB), "by its entry");
    t.cells.insert((DB.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    let opened = receives(&mut t, "10.2.0.21", (4000, 80), ACK, (10, MARK_JUDGED));
    assert_eq!((said(&opened), opened.source), (NO_RULE, DB));
    let looped = receives(&mut t, "127.0.0.1", (4000, 80), SYN, (CARD, 0));
    assert_eq!(said(&looped), (Verdict::Denied, Reason::Loopback));
}

#[test]
fn two_units_on_the_loopback_interface_are_judged_as_each_other() {
    let mut t = scene();
    let other = Cgroup { identity: [DB; 2], ..UNIT };
    let call = frame(0, 0, "127.0.0.1", "127.0.0.1", 6, &tcp(4000, 80, SYN));
    let data = frame(0, 0, "127.0.0.1", "127.0.0.1", 6, &tcp(4000, 80, ACK));
    let answer = frame(0, 0, "127.0.0.1", "127.0.0.1", 6, &tcp(80, 4000, ACK));
    assert_eq!(said(&pass(&mut t, &UNIT, Hook::CgroupOut, (LO, 0), &call)), NO_RULE, "`host` is called");
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    assert_eq!(said(&pass(&mut t, &UNIT, Hook::CgroupOut, (LO, 0), &call)), ALLOWED);
    let mark = carried(APP);
    let out = pass(&mut t, &other, Hook::CgroupIn, (LO, mark), &call);
    assert_eq!((said(&out), out.source, out.destination), (NO_RULE, APP, DB), "and that unit is not");
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    assert_eq!(said(&pass(&mut t, &other, Hook::CgroupIn, (LO, mark), &call)), ALLOWED);
    let back = pass(&mut t, &other, Hook::CgroupOut, (LO, 0), &answer);
    assert_eq!(said(&back), REPLY);
    assert_eq!(said(&pass(&mut t, &UNIT, Hook::CgroupIn, (LO, carried(DB)), &answer)), REPLY);
    assert_eq!(said(&pass(&mut t, &UNIT, Hook::CgroupOut, (LO, 0), &data)), REPLY);
    let out = pass(&mut t, &other, Hook::CgroupIn, (LO, mark), &data);
    assert_eq!((said(&out), out.elsewhere), (REPLY, true), "counted where it was sent");
}

#[test]
fn this_host_may_call_a_unit_and_is_called_by_its_published_ports() {
    let mut t = scene();
    let call = frame(0, 0, "127.0.0.1", "127.0.0.1", 6, &tcp(4000, 80, SYN));
    let from_host = (Verdict::Allowed, Reason::FromHost);
    assert_eq!(said(&pass(&mut t, &UNIT, Hook::CgroupIn, (LO, 0), &call)), from_host);
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let key = PublishKey { address: ip("0.0.0.0"), port: 80u16.to_be_bytes(), protocol: 6, zero: [0; 5] };
    t.published.insert(key, Publish { identity: [DB; 2], container: Container(3), port: 5432, flags: 0 });
    let out = sends(&mut t, US, (4001, 80), SYN);
    assert_eq!((said(&out), out.destination), (NO_RULE, DB));
}

#[test]
fn what_is_not_understood_is_denied_and_an_audited_policy_drops_nothing() {
    let mut t = scene();
    let mut piece = frame(0, 0, US, USER, 6, &tcp(4000, 80, SYN));
    piece[14 + 6] = 0x20;
    let out = pass(&mut t, &UNIT, Hook::CgroupOut, (CARD, 0), &piece);
    assert_eq!(said(&out), (Verdict::Denied, Reason::Fragment));
    t.heads[1] = Head { flags: Head::AUDIT, ..t.heads[1] };
    let out = sends(&mut t, USER, (4000, 80), SYN);
    assert_eq!(said(&out), (Verdict::Audited, Reason::NoRule));
    t.generation = 0;
    assert_eq!(said(&sends(&mut t, USER, (4000, 80), SYN)), (Verdict::Denied, Reason::NoPolicy));
}

/// What the agent writes where the hook on packets sees every process: the identities on this host's own stack.
fn claim(t: &mut Plain, identity: Identity) {
    t.cgroups.insert(CgroupKey::new(0, 0), Cgroup { identity: [identity; 2], ..UNIT });
}

#[test]
fn who_may_call_a_unit_and_not_the_host_calls_the_unit() {
    let mut t = scene();
    t.heads[1].pickup_until = 0;
    t.cells.insert((DB.0, Identity::HOST.0), Cell::decision(1));
    let port = at(Hook::PortIn, 21, 21);
    let call = |flags| frame(21, 20, "10.2.0.21", US, 6, &tcp(4000, 80, flags));
    let out = common::pass(&mut t, &call(SYN), &port);
    assert_eq!(said(&out), NO_RULE, "nobody claims a port of this host");
    claim(&mut t, APP);
    assert_eq!(said(&common::pass(&mut t, &call(SYN), &port)), NO_RULE, "nor may it call the unit");
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    let out = common::pass(&mut t, &call(SYN), &port);
    let not_judged = (Verdict::Allowed, Reason::NotJudged);
    assert_eq!((said(&out), out.way, out.step, out.elsewhere), (not_judged, Way::Left, Step::Nothing, true));
    assert_eq!(said(&common::pass(&mut t, &call(ACK), &port)), not_judged, "it has no entry here");

    let by = (10, left(DB));
    let out = receives(&mut t, "10.2.0.21", (4000, 80), ACK, by);
    assert_eq!(said(&out), (Verdict::Denied, Reason::NoConnection), "where it is received only a SYN opens");
    let nobody = Cgroup { identity: [Identity::HOST; 2], ..UNIT };
    let bytes = call(SYN);
    assert_eq!(said(&pass(&mut t, &nobody, Hook::CgroupIn, by, &bytes)), NO_RULE, "another process");
    let out = receives(&mut t, "10.2.0.21", (4000, 80), SYN, by);
    assert_eq!((said(&out), out.source, out.step, out.elsewhere), (ALLOWED, DB, Step::Create, false));

    let out = common::pass(&mut t, &call(ACK), &port);
    assert_eq!(
        (said(&out), out.way, out.destination),
        (REPLY, Way::Carried, APP),
        "by the entry from now on"
    );
    assert_eq!(said(&receives(&mut t, "10.2.0.21", (4000, 80), ACK, (10, carried(DB)))), REPLY);
    let answer = frame(20, 21, US, "10.2.0.21", 6, &tcp(80, 4000, ACK));
    let back = At { mark: carried(APP), ..at(Hook::PortOut, 21, 0) };
    assert_eq!(said(&common::pass(&mut t, &answer, &back)), REPLY);
    t.cells.insert((DB.0, APP.0), Cell::decision(1));
    (t.generation, t.heads[1].generation) = (9, 9);
    assert_eq!(said(&common::pass(&mut t, &call(ACK), &port)), NO_RULE, "a tightened policy");
}

#[test]
fn only_sockets_are_left_to_their_own_hook() {
    let mut t = scene();
    t.cells.insert((DB.0, Identity::HOST.0), Cell::decision(1));
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    claim(&mut t, APP);
    let port = at(Hook::PortIn, 21, 21);
    let echo = frame(21, 20, "10.2.0.21", US, 1, &[8, 0, 0, 0, 0, 1, 0, 1]);
    assert_eq!(said(&common::pass(&mut t, &echo, &port)), NO_RULE, "the kernel would answer");
    let key = PublishKey { address: ip("0.0.0.0"), port: 80u16.to_be_bytes(), protocol: 6, zero: [0; 5] };
    t.published.insert(key, Publish { identity: [DB; 2], container: Container(9), port: 80, flags: 0 });
    t.cells.insert((DB.0, DB.0), Cell::decision(1));
    let call = frame(21, 20, "10.2.0.21", US, 6, &tcp(4000, 80, SYN));
    assert_eq!(said(&common::pass(&mut t, &call, &port)), NO_RULE, "a published port is its container's");
    t.published.clear();
    t.heads[1].flags = Head::AUDIT;
    assert_eq!(common::pass(&mut t, &call, &port).way, Way::Left, "an audited policy says what it would do");
}

const LONE: &str = "203.0.113.10";

#[test]
fn nobody_on_the_hosts_stack_sends_as_a_container() {
    let mut t = scene();
    t.cells.insert((APP.0, APP.0), Cell::decision(4));
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    // One that has no port.
    t.prefixes.push((ip(LONE), 128, PrefixRow { identity: APP, flags: PrefixRow::LAN }));
    for (from, to) in
        [("10.1.0.12", "10.2.0.21"), ("10.1.0.12", US), ("10.1.0.12", USER), (LONE, US), (LONE, USER)]
    {
        let bytes = frame(0, 0, from, to, 6, &tcp(4000, 80, SYN));
        let out = pass(&mut t, &UNIT, Hook::CgroupOut, (CARD, 0), &bytes);
        assert_eq!(said(&out), (Verdict::Denied, Reason::SpoofedAddress), "{from} to {to}");
    }
    assert!(t.flows.is_empty());
    assert!(left_to_port(&t, US, "10.2.0.21"), "the control");
    assert!(!left_to_port(&t, "10.1.0.12", "10.2.0.21"));
}

fn left_to_port(t: &Plain, from: &str, to: &str) -> bool {
    hydra_common::decide::own::left(t, &ip(from), &ip(to))
}

#[test]
fn what_opens_at_a_unit_was_for_somebody_else_when_its_port_let_it_pass() {
    let mut t = scene();
    let led = receives(&mut t, "10.2.0.21", (4000, 80), SYN, (10, MARK_JUDGED));
    assert_eq!((said(&led), led.source), (NO_RULE, DB));
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    assert_eq!(said(&receives(&mut t, "10.2.0.21", (4000, 80), SYN, (10, MARK_JUDGED))), ALLOWED);
}

#[test]
fn a_call_that_was_for_the_host_begins_a_flow_for_a_units_limit_too() {
    let mut t = scene();
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    // The port's own entry: its container called the host.
    let call = frame(0, 0, "10.2.0.21", US, 6, &tcp(4000, 80, SYN));
    let mut packet = Packet::default();
    packet.parse_bare(&&call[14..]).unwrap();
    let mut flow = Flow::default();
    let mut out = Outcome::CLOSED;
    (out.verdict, out.generation, out.opener) = (Verdict::Allowed, t.generation, packet.side());
    (out.source, out.source_container, out.destination) = (DB, Container(3), Identity::HOST);
    out.marks = Flow::TO_HOST;
    entry(&packet, &out, 0, NOW, &mut flow);
    t.flows.insert(packet.key, flow);
    let first = receives(&mut t, "10.2.0.21", (4000, 80), SYN, (10, carried(DB)));
    assert_eq!((said(&first), first.begins, first.destination), (ALLOWED, true, APP));
    let more = receives(&mut t, "10.2.0.21", (4000, 80), ACK, (10, carried(DB)));
    assert_eq!((said(&more), more.begins), (REPLY, false));
}

#[test]
fn what_is_on_the_named_list_reaches_a_unit() {
    let mut t = scene();
    let offer = frame(0, 0, "0.0.0.0", "255.255.255.255", 17, &common::udp(68, 67));
    let out = pass(&mut t, &UNIT, Hook::CgroupIn, (10, MARK_JUDGED), &offer);
    assert_eq!((said(&out), out.way), ((Verdict::Allowed, Reason::NotJudged), Way::Leave));
    let unmarked = pass(&mut t, &UNIT, Hook::CgroupIn, (10, 0), &offer);
    assert_eq!(unmarked.verdict, Verdict::Denied, "no port has let it pass");
}
