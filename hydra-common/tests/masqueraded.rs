//! Answers to calls whose address was translated: they go on as what they are, since the kernel may have forgotten whom they are for,
//! and what the kernel forgets hydra has forgotten before.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

mod common;

use common::ports::{
    ACK, NO_RULE, RULE, SYN, SYN_ACK, allow, answer, call, deny, flip, led, marked, published, says,
};
use common::{APP, DB, NOW, Plain, at, frame, ip, judge, pass, segment, udp};
use hydra_common::decide::{At, Outcome, Step, Way};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Container, Identity};
use hydra_common::names::carried;
use hydra_common::packet::Packet;
use hydra_common::tables::{Cell, Publish};
use hydra_common::track::{State, expired, protocol};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SECOND: u64 = 1_000_000_000;
/// Linux's `nf_conntrack_udp_timeout`: how long the kernel remembers a call that nobody has answered, or that was answered once.
const KERNEL: u64 = 30 * SECOND;

/// SCTP with one chunk of this type (RFC 9260, 3).
fn sctp(source: u16, destination: u16, chunk: u8) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    [&ports[..], &[0; 8], &[chunk, 0, 0, 4]].concat()
}

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const DATA: u8 = 0;

/// `APP` may call the databases' container by any protocol.
fn called() -> Plain {
    let mut t = published();
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    t
}

fn translated(payload: &[u8], number: u8) -> Vec<u8> {
    frame(20, 21, "10.2.0.1", "10.2.0.21", number, payload)
}

fn answers(payload: &[u8], number: u8) -> Vec<u8> {
    frame(21, 20, "10.2.0.21", "10.2.0.1", number, payload)
}

fn later(at: At, nanoseconds: u64) -> At {
    At { now: at.now + nanoseconds, ..at }
}

/// The mark that an outcome's packet gets.
fn mark(f: &[u8], o: &Outcome) -> u32 {
    let mut packet = Packet::default();
    let _ = packet.parse(&f);
    assert_eq!(o.way, Way::Carried);
    carried(o.speaker(packet.side()))
}

#[test]
fn an_answer_goes_on_with_its_own_identity() {
    for (number, open, back) in [
        (17, udp(4000, 5432), udp(5432, 4000)),
        (6, segment(4000, 5432, SYN, 0, 0, 0), segment(5432, 4000, SYN_ACK, 0, 1, 0)),
        (132, sctp(4000, 5432, INIT), sctp(5432, 4000, INIT_ACK)),
    ] {
        let mut t = called();
        let port = at(Hook::PortIn, 21, 0);
        assert_eq!(says(&pass(&mut t, &translated(&open, number), &marked(APP))), RULE, "{number}");
        let f = answers(&back, number);
        let o = pass(&mut t, &f, &port);
        assert_eq!((o.reason, o.step, mark(&f, &o)), (Reason::Reply, Step::Count, carried(DB)), "{number}");
        // In the tables of another policy as well.
        flip(&mut t);
        let o = pass(&mut t, &f, &port);
        assert_eq!((says(&o), o.step, mark(&f, &o)), (RULE, Step::Renew, carried(DB)), "{number}");
        // What the opener sends is marked with his.
        assert_eq!(
            judge(&t, &translated(&open, number), &marked(APP))
                .1
                .speaker(common::parse(&translated(&open, number)).0.side()),
            APP
        );
    }
}

#[test]
fn who_gets_an_answer_judges_it_again() {
    let mut t = called();
    let port = at(Hook::PortOut, 11, 20);
    let call = frame(11, 10, "10.1.0.11", "10.1.0.1", 17, &udp(4000, 8081));
    let reply = frame(10, 11, "10.1.0.1", "10.1.0.11", 17, &udp(8081, 4000));
    let from_db = At { mark: carried(DB), ..port };
    // Led to a port that nobody has called from: by the databases' own right.
    assert_eq!(says(&judge(&t, &reply, &from_db).1), NO_RULE);
    assert_eq!(says(&pass(&mut t, &call, &at(Hook::PortIn, 11, 0))), RULE);
    let o = pass(&mut t, &reply, &from_db);
    assert_eq!(
        (o.verdict, o.reason, o.step, o.way),
        (Verdict::Allowed, Reason::Reply, Step::Count, Way::Judged)
    );
    assert!(o.elsewhere, "counted by tiers where it was sent");
    flip(&mut t);
    let o = pass(&mut t, &reply, &from_db);
    assert_eq!((says(&o), o.step, o.source, o.destination), (RULE, Step::Renew, APP, DB));
    deny(&mut t, APP);
    flip(&mut t);
    assert_eq!(says(&judge(&t, &reply, &from_db).1), NO_RULE);
}

#[test]
fn the_kernel_does_not_forget_a_translation_before_its_flow_is() {
    let port = at(Hook::PortIn, 21, 0);
    let mut t = called();
    let call = translated(&udp(4000, 5432), 17);
    let answer = answers(&udp(5432, 4000), 17);
    let _ = pass(&mut t, &call, &marked(APP));
    assert_eq!(judge(&t, &answer, &later(port, 20 * SECOND)).1.reason, Reason::Reply);
    assert_eq!(says(&judge(&t, &answer, &later(port, KERNEL)).1), RULE, "who may call this host may go on");
    t.cells.insert((DB.0, Identity::HOST.0), Cell::decision(1));
    assert_eq!(says(&judge(&t, &answer, &later(port, KERNEL)).1), NO_RULE);
    // As long as it is used it lives.
    for n in 1..10 {
        assert_eq!(pass(&mut t, &answer, &later(port, n * 20 * SECOND)).reason, Reason::Reply, "{n}");
    }
    assert_eq!(says(&judge(&t, &answer, &later(port, 9 * 20 * SECOND + KERNEL)).1), NO_RULE);
    // A process of this host has its own address.
    let own = At { ingress: 0, ..marked(APP) };
    let process = frame(20, 21, "10.2.0.1", "10.2.0.21", 17, &udp(4001, 5432));
    assert_eq!(pass(&mut t, &process, &own).marks, Flow::CARRIED);
    let back = frame(21, 20, "10.2.0.21", "10.2.0.1", 17, &udp(5432, 4001));
    let o = judge(&t, &back, &later(port, KERNEL)).1;
    assert_eq!((o.reason, o.way), (Reason::Reply, Way::Judged));
    // Whose address was not translated has nothing that the kernel could forget.
    let direct = frame(20, 21, "10.1.0.11", "10.2.0.21", 17, &udp(4000, 5432));
    let _ = pass(&mut t, &direct, &marked(APP));
    let back = frame(21, 20, "10.2.0.21", "10.1.0.11", 17, &udp(5432, 4000));
    let o = judge(&t, &back, &later(port, KERNEL)).1;
    assert_eq!((o.reason, o.way), (Reason::Reply, Way::Judged));
}

#[test]
fn the_callers_half_lives_no_longer() {
    let mut t = called();
    t.cells.insert((APP.0, APP.0), Cell::decision(1));
    let call = frame(11, 10, "10.1.0.11", "10.1.0.1", 17, &udp(4000, 8081));
    assert_eq!(says(&pass(&mut t, &call, &at(Hook::PortIn, 11, 0))), RULE);
    // A third one, masqueraded to the port that was called.
    let third = frame(10, 11, "10.1.0.1", "10.1.0.11", 17, &udp(8081, 4000));
    let port = At { mark: carried(Identity::UNMANAGED), ..at(Hook::PortOut, 11, 30) };
    assert_eq!(says(&judge(&t, &third, &later(port, KERNEL)).1), NO_RULE);
}

#[test]
fn only_an_init_opens_an_association() {
    let mut t = called();
    let port = at(Hook::PortIn, 21, 0);
    t.cells.insert((DB.0, Identity::HOST.0), Cell::decision(1));
    assert_eq!(says(&pass(&mut t, &translated(&sctp(4000, 5432, INIT), 132), &marked(APP))), RULE);
    assert_eq!(pass(&mut t, &answers(&sctp(5432, 4000, INIT_ACK), 132), &port).reason, Reason::Reply);
    // To whatever listens on the port of this host that the caller was given.
    assert_eq!(says(&judge(&t, &answers(&sctp(5432, 4000, INIT), 132), &port).1), NO_RULE);
    let o = judge(&t, &answers(&sctp(5432, 4000, DATA), 132), &later(port, 150 * SECOND)).1;
    assert_eq!(o.reason, Reason::Reply);
    // Linux's `nf_conntrack_sctp_timeout_established`.
    assert_eq!(
        says(&judge(&t, &answers(&sctp(5432, 4000, DATA), 132), &later(port, 210 * SECOND)).1),
        NO_RULE
    );
}

#[test]
fn an_answer_of_sctp_to_a_port_that_translation_chose_is_no_call() {
    let mut t = published();
    let key = hydra_common::tables::PublishKey {
        address: ip("0.0.0.0"),
        port: 8081_u16.to_be_bytes(),
        protocol: protocol::SCTP,
        zero: [0; 5],
    };
    t.published.insert(key, Publish { identity: [DB; 2], container: Container(3), port: 5432, flags: 0 });
    let comes = |chunk| {
        let f = frame(99, 2, "198.51.100.77", "198.51.100.1", 132, &sctp(4000, 8081, chunk));
        judge(&t, &f, &at(Hook::UplinkIn, 2, 2)).1
    };
    assert_eq!(says(&comes(INIT)), NO_RULE);
    for chunk in [INIT_ACK, DATA] {
        assert_eq!((comes(chunk).reason, comes(chunk).way), (Reason::NotJudged, Way::Leave));
    }
}

#[test]
fn a_connection_to_this_host_that_is_led_to_a_container_is_established() {
    for (to, port) in [("10.1.0.1", 9999), ("10.1.0.1", 8081)] {
        let mut t = called();
        for flags in [SYN, ACK] {
            assert_eq!(
                pass(&mut t, &call(to, port, flags), &at(Hook::PortIn, 11, 0)).verdict,
                Verdict::Allowed
            );
        }
        let (key, flow): (FlowKey, Flow) = t.flows.iter().map(|(k, f)| (*k, *f)).next().unwrap();
        assert_eq!(
            State::of(&flow, protocol::TCP),
            State::Established,
            "{port}: its answers take another way"
        );
        assert!(!expired(&flow, key.protocol, NOW + 3600 * SECOND));
        // A SYN alone keeps nothing.
        let mut t = called();
        let _ = pass(&mut t, &call(to, port, SYN), &at(Hook::PortIn, 11, 0));
        assert!(expired(t.flows.values().next().unwrap(), protocol::TCP, NOW + 61 * SECOND));
    }
}

/// ICMP "fragmentation needed" about what `from` has sent to `to`.
fn too_big(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let quoted = common::network(from.0, to.0, 6, &segment(from.1, to.1, ACK, 1, 1, 0));
    [&[3, 4, 0, 0, 0, 0, 5, 120][..], &quoted].concat()
}

#[test]
fn the_path_mtu_of_a_translated_connection_is_told_after_a_change_of_policy_too() {
    let mut t = published();
    allow(&mut t, APP);
    let _ = pass(&mut t, &call("10.1.0.1", 8081, SYN), &at(Hook::PortIn, 11, 0));
    let _ = pass(&mut t, &led("10.2.0.1", 4000, SYN), &marked(APP));
    let _ = pass(&mut t, &answer("10.2.0.1", 4000, SYN_ACK), &at(Hook::PortIn, 21, 0));
    let to_caller =
        frame(10, 11, "10.1.0.1", "10.1.0.11", 1, &too_big(("10.1.0.11", 4000), ("10.1.0.1", 8081)));
    let to_called =
        frame(20, 21, "10.2.0.1", "10.2.0.21", 1, &too_big(("10.2.0.21", 5432), ("10.2.0.1", 4000)));
    let both = |t: &Plain| {
        [(&to_caller, 11), (&to_called, 21)].map(|(f, port)| {
            let o = judge(t, f, &at(Hook::PortOut, port, 0)).1;
            (o.verdict, o.reason)
        })
    };
    let passes = [(Verdict::Allowed, Reason::Related); 2];
    let refused = [(Verdict::Denied, Reason::UnmatchedError); 2];
    assert_eq!(both(&t), passes);
    flip(&mut t);
    assert_eq!(both(&t), passes);
    // By the container's own port and the caller's right, and to the container that was called.
    deny(&mut t, APP);
    assert_eq!(both(&t), refused);
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    common::ports::publish(&mut t, "0.0.0.0", 8081, DB, 7, 0);
    assert_eq!(both(&t), [refused[0], passes[0]]);
    t.published.clear();
    assert_eq!(both(&t), [refused[0], passes[0]]);
}
