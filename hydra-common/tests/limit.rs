//! Which packets a limit counts, and what becomes of an outcome whose limit is used up.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

mod common;

use common::{
    APP, DB, NOW, Plain, at, ethernet, frame, ip, judge, mac, network, pass, segment, tcp, udp, world,
};
use hydra_common::decide::{At, Outcome, Step, Way, counts, settle};
use hydra_common::flow::Path;
use hydra_common::id::{Container, Identity};
use hydra_common::names::{MARK_CHECKED, carried};
use hydra_common::tables::{Cell, Decision, Endpoint, Head, Publish, PublishKey};
use hydra_common::track::State;
use hydra_common::verdict::{Hook, Reason, Verdict};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// `APP -> DB` allowed by rule 1 with a limit, then by rule 3 with another.
fn limited() -> Plain {
    let mut t = world();
    let row = |verdict: Verdict, reason: Reason, rule, limit, spent| Decision {
        verdict: verdict as u8,
        reason: reason as u8,
        rule,
        limit,
        spent,
        ..Decision::default()
    };
    let first = t.decisions.len() as u32;
    t.decisions.push(row(Verdict::Allowed, Reason::Rule, 1, 1, first + 1));
    t.decisions.push(row(Verdict::Allowed, Reason::Rule, 3, 2, first + 2));
    t.decisions.push(row(Verdict::Denied, Reason::Limit, 1, 0, 0));
    t.cells.insert((APP.0, DB.0), Cell::decision(first));
    t
}

fn syn(port: u16) -> Vec<u8> {
    frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(port, 5432, SYN))
}

fn here() -> At {
    at(Hook::PortIn, 11, 0)
}

/// The outcome of a new flow while these limits are used up, and which were asked.
fn settled(t: &Plain, used: &[u32]) -> (Outcome, Vec<u32>) {
    let mut out = judge(t, &syn(4_000), &here()).1;
    assert!(counts(&out));
    let mut asked = Vec::new();
    settle(
        t,
        here().seconds(),
        &mut out,
        |_| false,
        |limit| {
            asked.push(limit);
            !used.contains(&limit)
        },
    );
    (out, asked)
}

#[test]
fn the_next_limit_is_asked_when_one_is_used_up() {
    let t = limited();
    let (out, asked) = settled(&t, &[]);
    assert_eq!((out.verdict, out.rule, out.way, out.path), (Verdict::Allowed, 1, Way::Peer, Path::Peer));
    assert_eq!(asked, [0]);
    let (out, asked) = settled(&t, &[0]);
    assert_eq!((out.verdict, out.rule, out.way, out.path), (Verdict::Allowed, 3, Way::Peer, Path::Peer));
    assert_eq!(asked, [0, 1]);
    let (out, asked) = settled(&t, &[0, 1]);
    assert_eq!(
        (out.verdict, out.reason, out.rule, out.way),
        (Verdict::Denied, Reason::Limit, 1, Way::Judged)
    );
    assert_eq!(asked, [0, 1]);
}

#[test]
fn under_audit_a_used_up_limit_passes_through_the_stack() {
    let mut t = limited();
    t.heads[1].flags = Head::AUDIT;
    let (out, _) = settled(&t, &[0, 1]);
    assert_eq!((out.verdict, out.reason, out.rule), (Verdict::Audited, Reason::Limit, 1));
    assert_eq!((out.step, out.way, out.path), (Step::Create, Way::Judged, Path::Stack));
}

#[test]
fn a_circle_of_rows_denies() {
    let mut t = limited();
    let last = t.decisions.len() - 1;
    t.decisions[last] = Decision { spent: last as u32, ..t.decisions[last - 1] };
    let (out, asked) = settled(&t, &[0, 1]);
    assert_eq!((out.verdict, out.reason), (Verdict::Denied, Reason::BadTable));
    assert_eq!(asked.len(), 8);
}

#[test]
fn a_link_out_of_the_table_denies() {
    let mut t = limited();
    let first = t.decisions.len() - 3;
    t.decisions[first].spent = 9_999;
    let (out, _) = settled(&t, &[0]);
    assert_eq!((out.verdict, out.reason), (Verdict::Denied, Reason::BadTable));
}

#[test]
fn a_live_flow_counts_no_more_whatever_the_policy() {
    let mut t = limited();
    let first = pass(&mut t, &syn(4_000), &here());
    assert!(counts(&first));
    let again = pass(&mut t, &syn(4_000), &here());
    assert_eq!(again.step, Step::Renew);
    assert!(!counts(&again), "sent again");
    // Another generation: judged again, without taking.
    t.generation += 2;
    t.heads[1].generation = t.generation;
    let renewed = pass(&mut t, &syn(4_000), &here());
    assert_eq!((renewed.step, renewed.verdict), (Step::Renew, Verdict::Allowed));
    assert!(!counts(&renewed));
    let other = judge(&t, &syn(4_001), &here()).1;
    assert!(counts(&other));
}

#[test]
fn a_denied_flow_and_one_without_a_limit_count_nothing() {
    let t = world();
    assert!(!counts(&judge(&t, &syn(4_000), &here()).1));
    let inside = frame(11, 10, "10.1.0.11", "10.1.0.12", 6, &tcp(1, 2, SYN));
    let out = judge(&t, &inside, &here()).1;
    assert_eq!(out.verdict, Verdict::Allowed);
    assert!(!counts(&out));
}

/// Of a flow that has taken from this limit where it was sent.
fn arriving(t: &Plain, mut out: Outcome, taken: u32) -> (Outcome, Vec<u32>) {
    let mut asked = Vec::new();
    settle(
        t,
        here().seconds(),
        &mut out,
        |limit| limit == taken,
        |limit| {
            asked.push(limit);
            true
        },
    );
    (out, asked)
}

#[test]
fn what_was_counted_where_it_was_sent_is_not_counted_where_it_arrives_and_what_was_not_is() {
    let t = limited();
    let carried = At { mark: carried(APP), ..at(Hook::PortOut, 21, 10) };
    let led = frame(20, 21, "10.2.0.1", "10.2.0.21", 6, &tcp(4000, 5432, SYN));
    let (_, out) = judge(&t, &led, &carried);
    assert!(counts(&out), "whoever sent it");
    // By this rule, by the next one, by another rule.
    let (o, asked) = arriving(&t, out, 0);
    assert_eq!((o.verdict, o.rule, asked), (Verdict::Allowed, 1, vec![]));
    let (o, asked) = arriving(&t, out, 1);
    assert_eq!((o.verdict, o.rule, asked), (Verdict::Allowed, 3, vec![]));
    let (o, asked) = arriving(&t, out, 7);
    assert_eq!((o.verdict, o.rule, asked), (Verdict::Allowed, 1, vec![0]));
}

/// A connection of `syn`'s: from the end that opens it, and from the other.
fn from_app(flags: u8, seq: u32, ack: u32, data: usize) -> Vec<u8> {
    frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &segment(4000, 5432, flags, seq, ack, data))
}

fn from_db(flags: u8, seq: u32, ack: u32, data: usize) -> Vec<u8> {
    frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &segment(5432, 4000, flags, seq, ack, data))
}

fn shake(t: &mut Plain, isn: u32, theirs: u32) -> bool {
    let counted = counts(&pass(t, &from_app(SYN, isn, 0, 0), &here()));
    for (shot, port) in
        [(from_db(SYN | ACK, theirs, isn + 1, 0), 21), (from_app(ACK, isn + 1, theirs + 1, 0), 11)]
    {
        assert_eq!(pass(t, &shot, &at(Hook::PortIn, port, 0)).reason, Reason::Reply);
    }
    assert_eq!(State::of(t.flows.values().next().unwrap(), 6), State::Established);
    counted
}

#[test]
fn one_token_opens_one_connection_whatever_its_opener_hides() {
    let mut t = limited();
    assert!(shake(&mut t, 100, 900));
    // What it says to end them does not belong, as far as can be seen: a number that is far off, a checksum that is wrong.
    for n in 1..4 {
        let _ = pass(&mut t, &from_app(ACK | FIN, 3_000_000, 901, 0), &here());
        assert!(shake(&mut t, 100 + n * 100_000, 900 + n * 100_000), "connection {n}");
    }
    // Nor with the same number.
    assert!(shake(&mut t, 300_100, 77));
    // Before anything is established.
    let mut t = limited();
    for n in 0..3 {
        assert!(counts(&pass(&mut t, &from_app(SYN, n * 9, 0, 0), &here())), "{n}");
    }
    // Where answers do not come by, an acknowledgment says that there was one; so does a reset.
    for more in [ACK, RST] {
        assert!(!counts(&pass(&mut t, &from_app(SYN, 18, 0, 0), &here())));
        let _ = pass(&mut t, &from_app(more, 19, 901, 0), &here());
        assert!(counts(&pass(&mut t, &from_app(SYN, 18, 0, 0), &here())));
    }
}

#[test]
fn a_syn_that_was_lost_is_sent_again_for_nothing() {
    let mut t = limited();
    for (n, data) in [(0, 500), (1, 0), (2, 0)] {
        // With the data of a fast open, which the second one leaves out.
        let o = pass(&mut t, &from_app(SYN, 100, 0, data), &here());
        assert_eq!(counts(&o), n == 0, "{n}");
    }
    assert!(!counts(&pass(&mut t, &from_db(SYN | ACK, 900, 101, 0), &at(Hook::PortIn, 21, 0))));
    assert!(!counts(&pass(&mut t, &from_app(SYN, 100, 0, 0), &here())), "the answer was lost");
    assert!(!counts(&pass(&mut t, &from_app(ACK, 101, 901, 0), &here())));
}

#[test]
fn a_new_connection_between_the_ports_of_one_that_ended_unseen_takes_its_place() {
    let mut t = limited();
    assert!(shake(&mut t, 100, 900));
    assert!(shake(&mut t, 7_000_000, 8_000_000), "both ends have forgotten the first");
    // Its end is the entry's end.
    let _ = pass(&mut t, &from_app(ACK | FIN, 7_000_001, 8_000_001, 0), &here());
    assert_eq!(State::of(t.flows.values().next().unwrap(), 6), State::Closing);
    let mut t = limited();
    assert!(shake(&mut t, 100, 900) && shake(&mut t, 7_000_000, 8_000_000));
    let _ = pass(&mut t, &from_db(RST, 8_000_001, 0, 0), &at(Hook::PortIn, 21, 0));
    assert_eq!(State::of(t.flows.values().next().unwrap(), 6), State::Closing);
}

#[test]
fn a_stray_syn_ends_no_connection() {
    let mut t = limited();
    assert!(shake(&mut t, 100, 900));
    let before = *t.flows.values().next().unwrap();
    assert!(counts(&pass(&mut t, &from_app(SYN, 7_000_000, 0, 0), &here())));
    // RFC 9293, 3.10.7.4: the other end challenges it.
    for (shot, port) in [
        (from_db(ACK, 901, 101, 0), 21),
        (from_app(ACK, 101, 901, 10), 11),
        (from_db(ACK, 901, 111, 5), 21),
        (from_app(ACK, 111, 906, 0), 11),
    ] {
        assert_eq!(pass(&mut t, &shot, &at(Hook::PortIn, port, 0)).reason, Reason::Reply);
    }
    let flow = *t.flows.values().next().unwrap();
    assert_eq!((flow.created, State::of(&flow, 6)), (before.created, State::Established));
    assert_eq!((flow.next, flow.acked), ([111, 906], [906, 111]), "its numbers go on");
    let day = NOW + 86_400_000_000_000;
    assert!(!hydra_common::track::expired(&flow, 6, day), "a day of silence is nothing to it");
    let _ = pass(&mut t, &from_app(ACK | FIN, 111, 906, 0), &here());
    assert_eq!(State::of(t.flows.values().next().unwrap(), 6), State::Closing);
}

#[test]
fn a_limit_that_is_used_up_leaves_the_connection_alone_that_a_syn_came_upon() {
    let mut t = limited();
    assert!(shake(&mut t, 100, 900));
    let mut out = judge(&t, &from_app(SYN, 7_000_000, 0, 0), &here()).1;
    settle(&t, here().seconds(), &mut out, |_| false, |_| false);
    assert_eq!((out.verdict, out.reason, out.step), (Verdict::Denied, Reason::Limit, Step::Renew));
    assert_eq!(pass(&mut t, &from_app(ACK, 101, 901, 10), &here()).reason, Reason::Reply);
}

#[test]
fn the_called_end_s_own_syn_counts_by_its_own_rule() {
    let mut t = limited();
    let _ = pass(&mut t, &from_app(SYN, 100, 0, 0), &here());
    t.cells.insert((DB.0, APP.0), t.cells[&(APP.0, DB.0)]);
    for _ in 0..2 {
        let o = pass(&mut t, &from_db(SYN, 900, 0, 0), &at(Hook::PortIn, 21, 0));
        assert!(counts(&o));
    }
}

#[test]
fn what_has_no_entry_counts_each_time() {
    let mut t = limited();
    t.cells.insert((APP.0, APP.0), t.cells[&(APP.0, DB.0)]);
    let link = |n: u8| format!("fe80::ff:fe00:{n:x}");
    for n in [11u8, 12] {
        let row = t.endpoints[&ip("fd00:1::11")];
        let row = Endpoint { port: n.into(), container: t.links[&u32::from(n)].container, ..row };
        t.endpoints.insert(ip(&link(n)), row);
    }
    let comes = At { mark: MARK_CHECKED, ..at(Hook::PortOut, 12, 11) };
    let mut send = |protocol, payload: &[u8]| {
        let bytes = network(&link(11), &link(12), protocol, payload);
        let o = pass(&mut t, &ethernet(mac(11), mac(12), 0x86dd, &bytes), &comes);
        assert_eq!((o.verdict, o.step), (Verdict::Allowed, Step::Nothing));
        counts(&o)
    };
    assert!(send(6, &tcp(1, 2, SYN)) && send(6, &tcp(1, 2, SYN)), "each SYN");
    assert!(!send(6, &tcp(1, 2, ACK)), "a connection");
    assert!(send(17, &udp(1, 2)) && send(17, &udp(1, 2)), "each datagram");
}

#[test]
fn datagrams_that_a_new_policy_turns_round_count() {
    let mut t = limited();
    let both = t.cells[&(APP.0, DB.0)];
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 17, &udp(500, 500));
    let answer = frame(21, 20, "10.2.0.21", "10.1.0.11", 17, &udp(500, 500));
    assert!(counts(&pass(&mut t, &ask, &here())));
    assert!(!counts(&pass(&mut t, &answer, &at(Hook::PortIn, 21, 0))));
    t.cells.insert((APP.0, DB.0), Cell::decision(1));
    t.cells.insert((DB.0, APP.0), both);
    t.generation += 2;
    t.heads[1].generation = t.generation;
    assert!(counts(&pass(&mut t, &answer, &at(Hook::PortIn, 21, 0))));
}

/// A call of all of this host by a link-local address: a process of the host, or the databases' container by its published port.
fn called_both(t: &mut Plain) -> Outcome {
    let (own, all) = ("fe80::ff:fe00:b", "fe80::ff:fe00:a");
    t.endpoints.insert(ip(own), Endpoint { port: 11, ..t.endpoints[&ip("fd00:1::11")] });
    let key = PublishKey { address: ip("::"), port: 8081u16.to_be_bytes(), protocol: 6, zero: [0; 5] };
    let row = Publish { identity: [DB; 2], container: Container(3), port: 5432, flags: 0 };
    t.published.insert(key, row);
    let bridge = At { mark: MARK_CHECKED, ..at(Hook::BridgeIn, 10, 10) };
    judge(t, &frame(11, 10, own, all, 6, &tcp(4000, 8081, SYN)), &bridge).1
}

#[test]
fn of_two_rights_the_one_with_a_limit_is_the_stricter_and_of_two_limits_both_hold() {
    let mut t = limited();
    let limit = t.cells[&(APP.0, DB.0)];
    // Only the container's right has a limit.
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let o = called_both(&mut t);
    assert!(counts(&o));
    assert_eq!((o.destination, o.limit, arriving(&t, o, 99).1), (DB, 1, vec![0]));
    // Only the host's.
    t.cells.insert((APP.0, Identity::HOST.0), limit);
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    let o = called_both(&mut t);
    assert!(counts(&o));
    assert_eq!((o.destination, arriving(&t, o, 99).1), (Identity::HOST, vec![0]));
    // Both: one after the other.
    let mut second = t.decisions[limit.index().0 as usize];
    (second.limit, second.rule, second.spent) = (4, 9, limit.index().0 + 2);
    t.decisions.push(second);
    t.cells.insert((APP.0, DB.0), Cell::decision(t.decisions.len() as u32 - 1));
    let o = called_both(&mut t);
    assert_eq!(arriving(&t, o, 99).1, [0, 3]);
    for used in [[0, 1], [3, 3]] {
        let mut out = o;
        settle(&t, here().seconds(), &mut out, |_| false, |limit| !used.contains(&limit));
        assert_eq!((out.verdict, out.reason), (Verdict::Denied, Reason::Limit), "{used:?}");
    }
    // A denial stands before both.
    t.cells.insert((APP.0, DB.0), Cell::decision(1));
    assert_eq!(called_both(&mut t).reason, Reason::NoRule);
}

#[test]
fn one_token_opens_one_association() {
    let mut t = limited();
    let mut send = |chunk: u8| {
        let payload = [&[0xf, 0xa0, 0x15, 0x38, 0, 0, 0, 0, 0, 0, 0, 0, chunk, 0, 0, 4][..]].concat();
        counts(&pass(&mut t, &frame(11, 10, "10.1.0.11", "10.2.0.21", 132, &payload), &here()))
    };
    let (init, echo) = (1, 10);
    assert!(send(init) && !send(init) && !send(echo) && !send(echo));
    assert!(send(init) && !send(init), "another one");
}
