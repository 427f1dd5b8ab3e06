//! Pieces of datagrams: what the first one is allowed holds for the others, and nothing else does.

mod common;

use common::{APP, DB, NOW, Plain, at, ethernet, frame, mac, network, pass, udp, world};
use hydra_common::decide::{Step, Way};
use hydra_common::tables::{Cell, Endpoint, Interval, RuleSet, selector};
use hydra_common::verdict::{Hook, Reason, Verdict};

/// The world with `APP -> DB` allowed for UDP port 53 alone.
fn open() -> Plain {
    let mut t = world();
    t.sets = vec![RuleSet { start: 0, count: 3 }];
    t.intervals = vec![
        Interval { from: 0, decision: 1 },
        Interval { from: selector(17, 53), decision: 4 },
        Interval { from: selector(17, 54), decision: 1 },
    ];
    t.cells.insert((APP.0, DB.0), Cell::rule_set(0));
    t
}

/// A piece of datagram `id` from `APP` to `DB`; `at` in bytes.
fn piece(v6: bool, id: u8, at: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    if v6 {
        let field = (at | u16::from(more)).to_be_bytes();
        let header = [17, 0, field[0], field[1], 0, 0, 0, id];
        return frame(11, 10, "fd00:1::11", "fd00:2::21", 44, &[&header, payload].concat());
    }
    let mut f = frame(11, 10, "10.1.0.11", "10.2.0.21", 17, payload);
    f[19] = id;
    f[20..22].copy_from_slice(&((at / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
    f
}

fn first(v6: bool, id: u8, port: u16) -> Vec<u8> {
    piece(v6, id, 0, true, &[&udp(1000, port)[..], &[0; 24]].concat())
}

fn says(t: &mut Plain, f: &[u8]) -> (Verdict, Reason) {
    let o = pass(t, f, &at(Hook::PortIn, 11, 0));
    (o.verdict, o.reason)
}

const REFUSED: (Verdict, Reason) = (Verdict::Denied, Reason::Fragment);

#[test]
fn the_others_follow_the_first() {
    for v6 in [false, true] {
        let mut t = open();
        assert_eq!(says(&mut t, &first(v6, 1, 53)), (Verdict::Allowed, Reason::Rule));
        let more = piece(v6, 1, 32, true, &[0; 16]);
        let o = pass(&mut t, &more, &at(Hook::PortIn, 11, 0));
        assert_eq!((o.verdict, o.reason, o.rule, o.step), (Verdict::Allowed, Reason::Reply, 1, Step::Count));
        assert_eq!((o.source, o.destination, o.way), (APP, DB, Way::Peer));
        // Later pieces may come in any order, and twice.
        for at in [64, 48, 48] {
            assert_eq!(says(&mut t, &piece(v6, 1, at, true, &[0; 16])), (Verdict::Allowed, Reason::Reply));
        }
        assert_eq!(says(&mut t, &piece(v6, 1, 80, false, &[0; 3])), (Verdict::Allowed, Reason::Reply));
    }
}

#[test]
fn without_a_first_one_that_passed_there_is_nothing_to_follow() {
    for v6 in [false, true] {
        let mut t = open();
        let later = |id| piece(v6, id, 32, false, &[0; 16]);
        assert_eq!(says(&mut t, &later(1)), REFUSED, "missing");
        assert_eq!(says(&mut t, &first(v6, 1, 54)), (Verdict::Denied, Reason::NoRule));
        assert_eq!(says(&mut t, &later(1)), REFUSED, "denied");
        assert_eq!(says(&mut t, &first(v6, 1, 53)), (Verdict::Allowed, Reason::Rule));
        assert_eq!(says(&mut t, &later(2)), REFUSED, "another datagram");
        assert_eq!(says(&mut t, &piece(v6, 1, 24, false, &[0; 16])), REFUSED, "into the first one");
        assert_eq!(says(&mut t, &piece(v6, 1, 8, true, &udp(1000, 54))), REFUSED, "over its begin");
        assert_eq!(says(&mut t, &later(1)), (Verdict::Allowed, Reason::Reply));
        // A second first piece is judged for itself.
        assert_eq!(says(&mut t, &first(v6, 1, 54)), (Verdict::Denied, Reason::NoRule));
        let mut late = at(Hook::PortIn, 11, 0);
        late.now = NOW + 31_000_000_000;
        assert_eq!(pass(&mut t, &later(1), &late).reason, Reason::Fragment, "too late");
    }
}

#[test]
fn nobody_adds_to_anothers_datagram() {
    let mut t = open();
    assert_eq!(says(&mut t, &first(false, 1, 53)), (Verdict::Allowed, Reason::Rule));
    let mut forged = frame(12, 10, "10.1.0.11", "10.2.0.21", 17, &[0; 16]);
    forged[19] = 1;
    forged[21] = 4;
    let o = pass(&mut t, &forged, &at(Hook::PortIn, 12, 0));
    assert_eq!((o.verdict, o.reason), REFUSED);
}

#[test]
fn a_policy_that_changes_between_two_pieces_holds_for_the_second() {
    let mut t = open();
    let _ = says(&mut t, &first(false, 1, 53));
    t.generation += 2;
    t.heads[1].generation = t.generation;
    t.intervals[1].decision = 5;
    assert_eq!(says(&mut t, &piece(false, 1, 32, false, &[0; 16])), (Verdict::Denied, Reason::Rule));
}

#[test]
fn the_bridge_leaves_to_the_port_all_pieces() {
    let mut t = open();
    t.cells.insert((1, DB.0), Cell::rule_set(0));
    let mut out = |payload: &[u8], field: u16, hook, ifindex| {
        let mut f = ethernet(mac(20), mac(21), 0x0800, &network("192.0.2.9", "10.2.0.21", 17, payload));
        f[20..22].copy_from_slice(&field.to_be_bytes());
        let o = pass(&mut t, &f, &at(hook, ifindex, 2));
        (o.verdict, o.reason, o.way)
    };
    let head = [&udp(1000, 53)[..], &[0; 24]].concat();
    let leave = (Verdict::Allowed, Reason::NotJudged, Way::Leave);
    assert_eq!(out(&[0; 16], 4, Hook::PortOut, 21).1, Reason::Fragment);
    assert_eq!(out(&head, 0x2000, Hook::BridgeOut, 20), leave);
    assert_eq!(out(&[0; 16], 4, Hook::BridgeOut, 20), leave);
    assert_eq!(out(&[0; 16], 4, Hook::PortOut, 21).1, Reason::Fragment, "the port has not seen the first");
    assert_eq!(out(&head, 0x2000, Hook::PortOut, 21), (Verdict::Allowed, Reason::Rule, Way::Judged));
    assert_eq!(out(&[0; 16], 4, Hook::PortOut, 21), (Verdict::Allowed, Reason::Reply, Way::Judged));
    // Where the port has no program yet the bridge judges.
    t.endpoints.values_mut().for_each(|e: &mut Endpoint| e.flags = 0);
    t.flows.clear();
    t.fragments.clear();
    let mut f = ethernet(mac(20), mac(21), 0x0800, &network("192.0.2.9", "10.2.0.21", 17, &[0; 16]));
    f[21] = 4;
    assert_eq!(pass(&mut t, &f, &at(Hook::BridgeOut, 20, 2)).reason, Reason::Fragment);
}

#[test]
fn a_ping_of_the_largest_size_and_its_answer_go_by_the_flow() {
    let mut t = world();
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    let icmp = |kind: u8| [&[kind, 0, 0, 0, 0, 7, 0, 1][..], &[0; 1472]].concat();
    let sent = |port: u32, from: &str, to: &str, payload: &[u8], field: u16| {
        let bridge = if port == 11 { 10 } else { 20 };
        let mut f = frame(port, bridge, from, to, 1, payload);
        f[20..22].copy_from_slice(&field.to_be_bytes());
        f
    };
    for (port, from, to, kind, reason) in
        [(11, "10.1.0.11", "10.2.0.21", 8, Reason::Rule), (21, "10.2.0.21", "10.1.0.11", 0, Reason::Reply)]
    {
        let here = at(Hook::PortIn, port, 0);
        let o = pass(&mut t, &sent(port, from, to, &icmp(kind), 0x2000), &here);
        assert_eq!((o.verdict, o.reason), (Verdict::Allowed, reason));
        for n in 1..44 {
            let f = sent(port, from, to, &[0; 1480], 0x2000 | (n * 185));
            assert_eq!(pass(&mut t, &f, &here).reason, Reason::Reply, "{from} {n}");
        }
        let o = pass(&mut t, &sent(port, from, to, &[0; 395], 44 * 185), &here);
        assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Reply, Step::Count));
    }
}
