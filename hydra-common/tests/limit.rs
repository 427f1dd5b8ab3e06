//! Which packets a limit counts, and what becomes of an outcome whose limit is used up.

mod common;

use common::{APP, DB, Plain, at, frame, judge, pass, tcp, world};
use hydra_common::decide::{At, Outcome, Step, Way, counts, settle};
use hydra_common::flow::Path;
use hydra_common::id::Identity;
use hydra_common::names::carried;
use hydra_common::tables::{Cell, Decision, Head};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SYN: u8 = 2;

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
    assert!(counts(t, &here(), &out));
    let mut asked = Vec::new();
    settle(t, here().seconds(), &mut out, |limit| {
        asked.push(limit);
        !used.contains(&limit)
    });
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
    assert!(counts(&t, &here(), &first));
    let again = pass(&mut t, &syn(4_000), &here());
    assert_eq!(again.step, Step::Renew);
    assert!(!counts(&t, &here(), &again), "sent again");
    // Another generation: judged again, without taking.
    t.generation += 2;
    t.heads[1].generation = t.generation;
    let renewed = pass(&mut t, &syn(4_000), &here());
    assert_eq!((renewed.step, renewed.verdict), (Step::Renew, Verdict::Allowed));
    assert!(!counts(&t, &here(), &renewed));
    let other = judge(&t, &syn(4_001), &here()).1;
    assert!(counts(&t, &here(), &other));
}

#[test]
fn a_denied_flow_and_one_without_a_limit_count_nothing() {
    let t = world();
    assert!(!counts(&t, &here(), &judge(&t, &syn(4_000), &here()).1));
    let inside = frame(11, 10, "10.1.0.11", "10.1.0.12", 6, &tcp(1, 2, SYN));
    let out = judge(&t, &inside, &here()).1;
    assert_eq!(out.verdict, Verdict::Allowed);
    assert!(!counts(&t, &here(), &out));
}

#[test]
fn what_a_port_of_a_tier_has_counted_is_not_counted_where_it_arrives() {
    let t = limited();
    let mut out = judge(&t, &syn(4_000), &here()).1;
    out.step = Step::Create;
    // By a tier's port or bridge; by an unmanaged bridge, the outside, this host itself, an interface that nobody knows.
    for (ingress, counted) in [(11, false), (10, false), (30, true), (2, true), (0, true), (99, true)] {
        let carried = At { mark: carried(APP), ..at(Hook::PortOut, 21, ingress) };
        assert_eq!(counts(&t, &carried, &out), counted, "carried, by {ingress}");
        let plain = at(Hook::PortOut, 21, ingress);
        assert!(counts(&t, &plain, &out), "by {ingress}");
    }
    assert_eq!(hydra_common::names::carrier(carried(Identity(7))), Some(Identity(7)));
}
