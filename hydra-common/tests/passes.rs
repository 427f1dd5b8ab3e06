//! What is kept near of frames that passed an interface to the outside: with it each frame is judged as without it, whatever was written
//! in between, as long as the agent says that something was.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

mod common;

use common::ports::{ACK, SYN, SYN_ACK, allow, flip, publish, published};
use common::{APP, DB, Plain, at, frame, ip, judge, tcp, udp};
use hydra_common::decide::{At, Outcome, Step, Way};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::*;
use hydra_common::verdict::{Hook, Reason, Verdict};
use proptest::prelude::*;

const USER: &str = "198.51.100.77";
const OWN: &str = "198.51.100.1";

fn kept(t: &Plain) -> usize {
    t.kept.borrow().len()
}

fn comes(t: &Plain, from: &str, port: u16, flags: u8) -> Outcome {
    judge(t, &frame(99, 2, from, OWN, 6, &tcp(4000, port, flags)), &at(Hook::UplinkIn, 2, 2)).1
}

/// Tables that keep.
fn keeping() -> Plain {
    let mut t = Plain { rows: 1, ..published() };
    allow(&mut t, Identity::EXTERNAL);
    t
}

#[test]
fn only_what_opens_nothing_and_passes_unseen_is_kept() {
    let t = keeping();
    let v6 = |port, flags| {
        let f = frame(99, 2, "2001:db8::77", "2001:db8::1", 6, &tcp(4000, port, flags));
        judge(&t, &f, &at(Hook::UplinkIn, 2, 2)).1
    };
    // Opens; is carried by a process, and has an entry; comes from nobody who is outside; is a datagram; has ended with a reason.
    assert_eq!(comes(&t, USER, 8081, SYN).reason, Reason::Rule);
    assert_eq!(v6(8081, ACK).verdict, Verdict::Allowed);
    assert_eq!(comes(&t, "10.1.0.11", 8081, ACK).reason, Reason::SpoofedAddress);
    let datagram = frame(99, 2, USER, OWN, 17, &udp(4000, 9999));
    assert_eq!(judge(&t, &datagram, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::NotJudged);
    let stranger = frame(99, 30, "198.51.100.78", OWN, 6, &tcp(4000, 8081, ACK));
    assert_eq!(judge(&t, &stranger, &at(Hook::UplinkIn, 30, 30)).1.reason, Reason::NotJudged);
    assert_eq!(kept(&t), 0);
    // The control: a user's packets to the port, and to this host itself.
    for (n, port) in [8081, 443].into_iter().enumerate() {
        let before = comes(&t, USER, port, ACK);
        assert_eq!((before.reason, kept(&t)), (Reason::NotJudged, n + 1));
        let after = comes(&t, USER, port, SYN_ACK);
        assert!(before.unseen() && after.unseen() && kept(&t) == n + 1);
    }
    // What opens is judged all the same.
    assert_eq!(comes(&t, USER, 8081, SYN).reason, Reason::Rule);
}

#[test]
fn what_was_written_counts_for_what_has_passed_before() {
    for what in [PROXIED, CLOSED, FORGED] {
        let mut t = keeping();
        assert!(comes(&t, USER, 8081, ACK).unseen());
        change(&mut t, what);
        // The control: nothing says so, and what is kept counts.
        assert!(comes(&t, USER, 8081, ACK).unseen());
        say(&mut t, what);
        assert!(!comes(&t, USER, 8081, ACK).unseen());
    }
    // Without a number nothing is kept.
    let mut t = Plain { rows: 0, ..keeping() };
    assert!(comes(&t, USER, 8081, ACK).unseen());
    change(&mut t, FORGED);
    assert_eq!(comes(&t, USER, 8081, ACK).reason, Reason::SpoofedAddress);
}

#[test]
fn a_row_of_before_the_flip_is_not_judged_by_the_policy_behind_it() {
    // To one address, the same in a frame of priority, and to all of the link. So many looks until a row is found.
    let plain = frame(99, 2, USER, OWN, 6, &tcp(4000, 8081, SYN));
    let tagged = [&plain[..12], &[0x81, 0, 0, 0], &plain[12..]].concat();
    let group = frame(99, 2, USER, "224.0.0.251", 17, &udp(4000, 8081));
    for (f, looks) in [(plain, 2), (tagged, 2), (group, 1)] {
        let mut t = keeping();
        t.cells.insert((Identity::EXTERNAL.0, DB.0), Cell::decision(4));
        let comes = |t: &Plain| judge(t, &f, &at(Hook::UplinkIn, 2, 2)).1;
        assert_eq!(comes(&t).reason, Reason::Rule);
        let before = (t.published.clone(), t.generation);
        // The port leads to somebody whom nobody outside may call, and a flip says so: while a call is under way that has looked already.
        publish(&mut t, "0.0.0.0", 8081, APP, 4, 0);
        flip(&mut t);
        assert_eq!(comes(&t).reason, Reason::NoRule);
        t.before = Some(before);
        t.looks.set(looks);
        let called = comes(&t);
        assert_eq!((called.reason, called.destination, t.looks.get()), (Reason::NoRule, APP, 0));
    }
}

const FROM: [&str; 7] = [USER, "203.0.113.9", "10.1.0.11", "10.2.0.99", OWN, "127.0.0.1", "2001:db8::77"];
const TO: [&str; 7] =
    [OWN, "10.1.0.1", "10.2.0.21", "203.0.113.8", "127.0.0.1", "224.0.0.251", "2001:db8::1"];
const PORTS: [u16; 3] = [8081, 8082, 443];
const FLAGS: [u8; 6] = [SYN, SYN_ACK, ACK, ACK | 1, 4, ACK | 4];

#[derive(Clone, Debug)]
enum Event {
    Frame { from: usize, to: usize, port: usize, flags: usize, protocol: u8, index: u32, shape: u8 },
    Write(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let common = (prop_oneof![4 => Just(0), 1 => 0..FROM.len()], prop_oneof![4 => Just(0), 1 => 0..TO.len()]);
    let rest = (0..PORTS.len(), 0..FLAGS.len(), prop_oneof![5 => Just(6u8), 1 => Just(17u8)]);
    let place = (prop_oneof![3 => Just(2u32), 1 => Just(30), 1 => Just(10)], 0..7u8);
    let frame = (common, rest, place).prop_map(|((from, to), (port, flags, protocol), (index, shape))| {
        Event::Frame { from, to, port, flags, protocol, index, shape }
    });
    prop_oneof![5 => frame, 1 => (0..8u8).prop_map(Event::Write)]
}

/// Bytes of a frame, of kinds that no short way may be for among them.
fn bytes(from: &str, to: &str, port: u16, flags: u8, protocol: u8, shape: u8) -> Vec<u8> {
    let payload = if protocol == 6 { tcp(4000, port, flags) } else { udp(4000, port) };
    let mut f = frame(99, 2, from, to, protocol, &payload);
    match shape {
        0 => f[0] |= 1,
        1 => {
            f.splice(12..12, [0x81, 0, 0, 0]);
        }
        // More fragments follow.
        2 if !from.contains(':') => f[20] |= 0x20,
        _ => {}
    }
    f
}

/// Some of what the agent may write: the port is a process's to carry, or leads to nobody, or a user's address is a container's.
const PROXIED: u8 = 1;
const CLOSED: u8 = 2;
const FORGED: u8 = 5;

/// Writes it.
fn change(t: &mut Plain, what: u8) {
    let row = |identity, flags| Endpoint { identity: [identity; 2], flags, ..Endpoint::default() };
    match what {
        0 => publish(t, "0.0.0.0", 8082, DB, 3, 0),
        PROXIED => publish(t, "0.0.0.0", 8081, DB, 3, Publish::PROXIED),
        CLOSED => publish(t, OWN, 8081, Identity::UNKNOWN, 0, 0),
        3 => t.published.clear(),
        4 => {
            t.prefixes.push((
                ip("203.0.113.0"),
                120,
                PrefixRow { identity: APP, flags: PrefixRow::INTERIOR },
            ));
        }
        FORGED => {
            if t.endpoints.remove(&ip(USER)).is_none() {
                t.endpoints.insert(ip(USER), Endpoint { container: Container(9), ..row(APP, 0) });
            }
        }
        6 => {
            if t.endpoints.remove(&ip(OWN)).is_none() {
                t.endpoints.insert(ip(OWN), row(Identity::HOST, Endpoint::HOST));
            }
        }
        _ => {
            let link = t.links.get_mut(&2).unwrap();
            let unmanaged = link.kind == LinkKind::Unmanaged as u8;
            link.kind = if unmanaged { LinkKind::Uplink } else { LinkKind::Unmanaged } as u8;
        }
    }
}

/// What the agent says of it.
fn say(t: &mut Plain, what: u8) {
    if what < FORGED {
        flip(t);
    } else {
        t.rows += 1;
    }
}

/// All that a program makes of an outcome.
fn made(o: &Outcome) -> Result<Outcome, (Verdict, Reason, Way, Step)> {
    // Of what leaves no trace nobody asks whose it was.
    if o.unseen() && !o.begins { Err((o.verdict, o.reason, o.way, o.step)) } else { Ok(*o) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn with_what_is_kept_each_frame_is_judged_as_without(events in prop::collection::vec(event(), 1..60)) {
        let mut t = keeping();
        for event in events {
            match event {
                Event::Write(what) => {
                    change(&mut t, what);
                    say(&mut t, what);
                }
                Event::Frame { from, to, port, flags, protocol, index, shape } => {
                    let (from, mut to) = (FROM[from], TO[to]);
                    if from.contains(':') != to.contains(':') {
                        to = if from.contains(':') { "2001:db8::1" } else { OWN };
                    }
                    let f = bytes(from, to, PORTS[port], FLAGS[flags], protocol, shape);
                    let at = At { mark: 0, ..at(Hook::UplinkIn, index, index) };
                    let without = Plain { rows: 0, kept: <_>::default(), ..t.clone() };
                    prop_assert_eq!(made(&judge(&t, &f, &at).1), made(&judge(&without, &f, &at).1));
                }
            }
        }
    }
}
