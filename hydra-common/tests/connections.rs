//! TCP connections: who may open one, how far it has come, and what ends it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

mod common;

use common::{APP, DB, NOW, Plain, at, ethernet, frame, judge, mac, network, pass, segment, tcp, udp, world};
use hydra_common::decide::{Outcome, Step};
use hydra_common::flow::{Far, Flow};
use hydra_common::id::{Container, Identity};
use hydra_common::names;
use hydra_common::tables::Cell;
use hydra_common::track::{State, expired};
use hydra_common::verdict::{Hook, Reason, Verdict};

const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const RST_ACK: u8 = 0x14;

/// `APP -> DB` is allowed by rule 1; only a SYN opens.
fn open() -> Plain {
    let mut t = world();
    t.heads[1].pickup_until = 0;
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    t
}

/// From the opener, `APP`, or from the end that it calls, `DB`: flags, sequence, acknowledgment, bytes of data.
#[derive(Clone, Copy)]
enum Sent {
    App(u8, u32, u32, usize),
    Db(u8, u32, u32, usize),
}

use Sent::{App, Db};

fn send(t: &mut Plain, which: Sent) -> Outcome {
    match which {
        App(flags, seq, ack, data) => {
            let payload = segment(4000, 5432, flags, seq, ack, data);
            pass(t, &frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &payload), &at(Hook::PortIn, 11, 0))
        }
        Db(flags, seq, ack, data) => {
            let payload = segment(5432, 4000, flags, seq, ack, data);
            pass(t, &frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &payload), &at(Hook::PortIn, 21, 0))
        }
    }
}

fn only(t: &Plain) -> Flow {
    assert_eq!(t.flows.len(), 1);
    *t.flows.values().next().unwrap()
}

fn state(t: &Plain) -> State {
    State::of(&only(t), 6)
}

const HANDSHAKE: [Sent; 3] = [App(SYN, 100, 0, 0), Db(SYN_ACK, 900, 101, 0), App(ACK, 101, 901, 0)];

fn established() -> Plain {
    let mut t = open();
    for step in HANDSHAKE {
        assert_eq!(send(&mut t, step).verdict, Verdict::Allowed);
    }
    assert_eq!(state(&t), State::Established);
    t
}

fn flip(t: &mut Plain) {
    t.generation += 2;
    t.heads[1].generation = t.generation;
}

#[test]
fn only_a_syn_opens() {
    let mut t = open();
    for flags in [ACK, FIN, RST, RST_ACK, SYN_ACK, 0x18, 0x19] {
        let o = send(&mut t, App(flags, 1, 1, 0));
        assert_eq!((o.verdict, o.reason, o.step), (Verdict::Denied, Reason::NoConnection, Step::Nothing));
        // The policy's reason stands before it.
        let o = send(&mut t, Db(flags, 1, 1, 0));
        assert_eq!((o.verdict, o.reason), (Verdict::Denied, Reason::NoRule), "{flags:#x}");
    }
    for flags in [0, 0x29, 0x03, 0x3f] {
        assert_eq!(send(&mut t, App(flags, 1, 1, 0)).reason, Reason::Malformed);
    }
    assert!(t.flows.is_empty());
    let o = send(&mut t, App(SYN, 1, 0, 0));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Create));
}

#[test]
fn in_its_window_any_packet_of_an_allowed_direction_opens() {
    let mut t = open();
    let seconds = (NOW / 1_000_000_000) as u32;
    t.heads[1].pickup_until = seconds;
    assert_eq!(send(&mut t, App(ACK, 5000, 7000, 10)).reason, Reason::NoConnection);
    t.heads[1].pickup_until = seconds + 1;
    assert_eq!(send(&mut t, Db(ACK, 7000, 5000, 10)).reason, Reason::NoRule);
    let o = send(&mut t, App(ACK, 5000, 7000, 10));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Create));
    assert_eq!(state(&t), State::New);
    // Of the other end nothing is known yet: where it stands is what it says.
    assert_eq!(send(&mut t, Db(ACK, 7_070_000, 5010, 10)).reason, Reason::Reply);
    assert_eq!(state(&t), State::Established);
    // It lives on after the window, and ends like any other.
    t.heads[1].pickup_until = 0;
    assert_eq!(send(&mut t, App(FIN, 5010, 7_070_010, 0)).reason, Reason::Reply);
    assert_eq!(state(&t), State::Closing);
}

#[test]
fn what_was_judged_where_it_was_sent_opens_with_any_packet() {
    let mut t = open();
    t.cells.insert((Identity::HOST.0, DB.0), Cell::decision(3));
    let f = ethernet(mac(10), mac(21), 0x0800, &network("10.2.0.1", "10.2.0.21", 6, &tcp(4000, 5432, ACK)));
    let mut here = at(Hook::PortOut, 21, 0);
    assert_eq!(judge(&t, &f, &here).1.reason, Reason::NoConnection);
    here.mark = names::carried(APP);
    assert_ne!(judge(&t, &f, &here).1.reason, Reason::NoConnection);
}

#[test]
fn audit_learns_connections_from_their_middle() {
    let mut t = open();
    t.heads[1].flags = hydra_common::tables::Head::AUDIT;
    let o = send(&mut t, App(ACK, 1, 1, 0));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Create));
    flip(&mut t);
    t.heads[1].flags = 0;
    assert_eq!(send(&mut t, App(ACK, 1, 1, 0)).reason, Reason::Rule);
}

#[test]
fn states_are_those_of_the_segments_that_belong() {
    let over = |steps: &[Sent]| {
        let mut t = open();
        let said: Vec<Verdict> = steps.iter().map(|s| send(&mut t, *s).verdict).collect();
        assert!(said.iter().all(|v| *v == Verdict::Allowed), "{said:?}");
        state(&t)
    };
    let after = |more: &[Sent]| over(&[&HANDSHAKE[..], more].concat());
    let cases: &[(&str, State, State)] = &[
        ("SYN", over(&HANDSHAKE[..1]), State::New),
        ("SYN, SYN-ACK", over(&HANDSHAKE[..2]), State::New),
        (
            "SYN and SYN-ACK, again and again",
            over(&[HANDSHAKE[0], HANDSHAKE[1], HANDSHAKE[0], HANDSHAKE[1], HANDSHAKE[0], HANDSHAKE[1]]),
            State::New,
        ),
        ("a handshake", after(&[]), State::Established),
        (
            "its last step with data",
            over(&[HANDSHAKE[0], HANDSHAKE[1], App(0x18, 101, 901, 50)]),
            State::Established,
        ),
        (
            "an acknowledgment of a SYN that was not sent",
            over(&[HANDSHAKE[0], HANDSHAKE[1], App(ACK, 101, 950, 0)]),
            State::New,
        ),
        (
            "an answer without SYN",
            over(&[HANDSHAKE[0], Db(ACK, 900, 101, 0), App(ACK, 101, 901, 0)]),
            State::New,
        ),
        (
            "the opener's own SYN-ACK",
            over(&[HANDSHAKE[0], App(SYN_ACK, 100, 1, 0), App(ACK, 101, 901, 0)]),
            State::New,
        ),
        (
            "another SYN before the answer",
            over(&[HANDSHAKE[0], App(SYN, 5000, 0, 0), Db(SYN_ACK, 900, 5001, 0), App(ACK, 5001, 901, 0)]),
            State::Established,
        ),
        (
            "fast open",
            over(&[App(SYN, 100, 0, 10), Db(SYN_ACK, 900, 111, 0), App(ACK, 111, 901, 0)]),
            State::Established,
        ),
        ("a SYN in the middle", after(&[App(SYN, 70_000, 0, 0)]), State::Established),
        ("a SYN-ACK in the middle", after(&[Db(SYN_ACK, 70_000, 101, 0)]), State::Established),
        ("a refusal", over(&[HANDSHAKE[0], Db(RST_ACK, 0, 101, 0)]), State::Closing),
        ("a refusal of something else", over(&[HANDSHAKE[0], Db(RST_ACK, 0, 102, 0)]), State::New),
        ("a refusal without saying of what", over(&[HANDSHAKE[0], Db(RST, 0, 0, 0)]), State::New),
        ("the opener gives up", over(&[HANDSHAKE[0], App(RST, 101, 0, 0)]), State::Closing),
        ("FIN of the opener", after(&[App(FIN, 101, 901, 0)]), State::Closing),
        ("FIN with data", after(&[Db(0x19, 901, 101, 300)]), State::Closing),
        ("FIN after a frame that was lost", after(&[Db(FIN, 1901, 101, 0)]), State::Closing),
        ("FIN out of the window", after(&[Db(FIN, 901 + 70_000, 101, 0)]), State::Established),
        ("FIN from long ago", after(&[Db(FIN, 800, 101, 0)]), State::Established),
        ("RST", after(&[App(RST, 101, 0, 0)]), State::Closing),
        ("RST behind data", after(&[App(0x18, 101, 901, 99), App(RST_ACK, 200, 901, 0)]), State::Closing),
        (
            "RST with what the other end waits for",
            after(&[App(0x18, 101, 901, 99), App(RST, 101, 0, 0)]),
            State::Closing,
        ),
        ("RST one off", after(&[App(RST, 102, 0, 0)]), State::Established),
        ("RST one short", after(&[App(RST, 100, 0, 0)]), State::Established),
        ("RST of 0", after(&[Db(RST_ACK, 0, 101, 0)]), State::Established),
        ("RST between the two", after(&[App(0x18, 101, 901, 99), App(RST, 150, 0, 0)]), State::Established),
        (
            "RST behind a jump",
            after(&[App(0x18, 2_000_000, 901, 99), App(RST, 2_000_099, 0, 0)]),
            State::Established,
        ),
        (
            "RST behind frames that were lost, which the other end has",
            after(&[App(0x18, 50_000, 901, 99), Db(ACK, 901, 300_000, 0), App(RST, 300_000, 0, 0)]),
            State::Closing,
        ),
        (
            "numbers that wrap",
            {
                let steps = [
                    App(SYN, u32::MAX, 0, 0),
                    Db(SYN_ACK, u32::MAX - 1, 0, 0),
                    App(ACK, 0, u32::MAX, 0),
                    Db(0x18, u32::MAX, 0, 10),
                    App(ACK, 0, 9, 0),
                    Db(FIN, 9, 0, 0),
                ];
                over(&steps)
            },
            State::Closing,
        ),
    ];
    for (name, seen, expected) in cases {
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn a_forged_reset_ends_nothing() {
    let mut t = established();
    for guess in (0..u32::MAX).step_by(0x0100_0007).filter(|n| *n != 101) {
        let _ = send(&mut t, App(RST, guess, 0, 0));
        let _ = send(&mut t, Db(RST, guess, 0, 0));
    }
    assert_eq!(state(&t), State::Established);
    assert!(!expired(&only(&t), 6, NOW + 86_400_000_000_000), "a day of silence is nothing to it");
}

#[test]
fn after_a_reset_the_conversation_goes_on_as_long_as_its_ends_do() {
    let mut t = established();
    let _ = send(&mut t, App(RST, 101, 0, 0));
    for n in 0..3 {
        let o = send(&mut t, Db(0x18, 901 + n * 10, 101, 10));
        assert_eq!((o.verdict, o.reason), (Verdict::Allowed, Reason::Reply));
    }
}

#[test]
fn a_syn_on_a_live_entry_is_judged_by_what_holds_now() {
    let mut t = established();
    let o = send(&mut t, App(SYN, 70_000, 0, 0));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Renew));
    let before = only(&t);
    // Between the same ports after the end it is a new conversation, of whoever opens it.
    let _ = send(&mut t, App(RST, 101, 0, 0));
    let o = send(&mut t, Db(SYN, 1, 0, 0));
    assert_eq!((o.verdict, o.reason), (Verdict::Denied, Reason::NoRule));
    assert_eq!(only(&t).opener, before.opener);
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    let o = send(&mut t, Db(SYN, 1, 0, 0));
    assert_eq!((o.verdict, o.step, o.source), (Verdict::Allowed, Step::Create, DB));
    assert_ne!(only(&t).opener, before.opener);
    assert_eq!(state(&t), State::New);
}

#[test]
fn another_container_with_the_same_address_inherits_nothing() {
    let mut t = established();
    flip(&mut t);
    let row = t.endpoints.get_mut(&common::ip("10.2.0.21")).unwrap();
    row.container = Container(9);
    t.links.get_mut(&21).unwrap().container = Container(9);
    assert_eq!(send(&mut t, Db(ACK, 901, 101, 0)).reason, Reason::NoRule);
    let o = send(&mut t, App(SYN, 5, 0, 0));
    assert_eq!((o.verdict, o.step), (Verdict::Allowed, Step::Create));
    assert_eq!(state(&t), State::New);
    // And the other way round.
    t.links.get_mut(&11).unwrap().container = Container(8);
    t.endpoints.get_mut(&common::ip("10.1.0.11")).unwrap().container = Container(8);
    flip(&mut t);
    assert_eq!(send(&mut t, App(ACK, 6, 0, 0)).reason, Reason::NoConnection);
    assert_eq!(send(&mut t, App(SYN, 6, 0, 0)).step, Step::Create);
}

#[test]
fn a_simultaneous_open_is_two_questions() {
    let mut t = open();
    let _ = send(&mut t, App(SYN, 100, 0, 0));
    assert_eq!(send(&mut t, Db(SYN, 900, 0, 0)).reason, Reason::NoRule);
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    let o = send(&mut t, Db(SYN, 900, 0, 0));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Count));
    for step in [App(SYN_ACK, 100, 901, 0), Db(SYN_ACK, 900, 101, 0), App(ACK, 101, 901, 0)] {
        assert_eq!(send(&mut t, step).reason, Reason::Reply);
    }
    assert_eq!(state(&t), State::Established);
}

#[test]
fn a_connection_to_a_published_port_is_known_by_its_opener_alone() {
    let mut t = open();
    let _ = send(&mut t, App(SYN, 100, 0, 0));
    for flow in t.flows.values_mut() {
        flow.marks = Flow::PUBLISHED;
    }
    assert_eq!(state(&t), State::New);
    let _ = send(&mut t, App(ACK, 101, 901, 0));
    assert_eq!(state(&t), State::Established);
    let _ = send(&mut t, App(0x18, 101, 901, 40));
    let _ = send(&mut t, App(RST, 150, 901, 0));
    assert_eq!(state(&t), State::Established);
    let _ = send(&mut t, App(FIN, 141, 901, 0));
    assert_eq!(state(&t), State::Closing);
}

#[test]
fn a_connection_that_is_no_longer_allowed_ends() {
    for from_opener in [true, false] {
        let mut t = established();
        // Its other end may open connections of its own: this one is none of them.
        t.cells.insert((APP.0, DB.0), Cell::decision(1));
        t.cells.insert((DB.0, APP.0), Cell::decision(4));
        flip(&mut t);
        let (app, db) = (App(ACK, 101, 901, 0), Db(ACK, 901, 101, 0));
        let o = send(&mut t, if from_opener { app } else { db });
        assert_eq!((o.verdict, o.reason, o.step), (Verdict::Denied, Reason::NoRule, Step::End));
        assert!(t.flows.is_empty());
        assert_eq!(send(&mut t, app).reason, Reason::NoRule);
        assert_eq!(send(&mut t, db).reason, Reason::NoConnection);
    }
    // While connections are learnt from their middle the entry stays, or the other end would take it over.
    let mut t = established();
    t.cells.insert((APP.0, DB.0), Cell::decision(1));
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    flip(&mut t);
    t.heads[1].pickup_until = u32::MAX;
    for step in [App(ACK, 101, 901, 0), Db(ACK, 901, 101, 0)] {
        assert_eq!(send(&mut t, step).reason, Reason::NoRule);
    }
    assert_eq!(t.flows.len(), 1);
}

#[test]
fn datagrams_that_a_new_policy_turns_round_are_a_new_flow() {
    let mut t = open();
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 17, &udp(500, 500));
    let answer = frame(21, 20, "10.2.0.21", "10.1.0.11", 17, &udp(500, 500));
    assert_eq!(pass(&mut t, &ask, &at(Hook::PortIn, 11, 0)).reason, Reason::Rule);
    assert_eq!(pass(&mut t, &answer, &at(Hook::PortIn, 21, 0)).reason, Reason::Reply);
    t.cells.insert((APP.0, DB.0), Cell::decision(1));
    flip(&mut t);
    let o = pass(&mut t.clone(), &answer, &at(Hook::PortIn, 21, 0));
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Denied, Reason::NoRule, Step::End));
    t.cells.insert((DB.0, APP.0), Cell::decision(4));
    let o = pass(&mut t, &answer, &at(Hook::PortIn, 21, 0));
    assert_eq!((o.verdict, o.reason, o.step, o.source), (Verdict::Allowed, Reason::Rule, Step::Create, DB));
    assert_eq!(pass(&mut t, &ask, &at(Hook::PortIn, 11, 0)).reason, Reason::Reply);
}

#[test]
fn an_error_between_a_change_and_the_flows_next_packet_passes_by_the_flows_right() {
    let quoted = network("10.1.0.11", "10.2.0.21", 6, &segment(4000, 5432, ACK, 101, 901, 0));
    let error =
        frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &[&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted].concat());
    let says = |t: &Plain| judge(t, &error, &at(Hook::PortIn, 21, 0)).1.reason;
    let mut t = established();
    flip(&mut t);
    assert_eq!(says(&t), Reason::Related);
    t.cells.insert((APP.0, DB.0), Cell::decision(1));
    assert_eq!(says(&t), Reason::UnmatchedError);
    let mut t = established();
    flip(&mut t);
    t.endpoints.get_mut(&common::ip("10.1.0.11")).unwrap().identity = [DB; 2];
    assert_eq!(says(&t), Reason::UnmatchedError);
}

#[test]
fn a_connection_from_outside_whose_answers_nobody_sees_is_kept_for_minutes() {
    const MINUTES: u64 = 301_000_000_000;
    let led_on = |end: Far, answered: bool| Flow {
        marks: Flow::PUBLISHED | Flow::TO_HOST,
        flags: [SYN | ACK, if answered { ACK } else { 0 }],
        ends: [end as u8, 0],
        seen: NOW,
        ..Flow::default()
    };
    assert!(expired(&led_on(Far::Outside, false), 6, NOW + MINUTES));
    assert!(!expired(&led_on(Far::Outside, false), 6, NOW + MINUTES - 2_000_000_000));
    for flow in [led_on(Far::Outside, true), led_on(Far::Unset, false), led_on(Far::Unmanaged, false)] {
        assert_eq!(State::of(&flow, 6), State::Established);
        assert!(!expired(&flow, 6, NOW + MINUTES), "{flow:?}");
    }
}
