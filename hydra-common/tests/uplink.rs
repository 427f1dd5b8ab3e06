//! What comes in by an interface to the outside: no piece and no tag hides a call of a published port, and what is no call goes on.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

mod common;

use common::ports::{ACK, NO_RULE, SYN, SYN_ACK, allow, deny, flip, published, says};
use common::{Plain, at, frame, judge, pass, segment, udp};
use hydra_common::decide::{Outcome, Step, Way};
use hydra_common::id::Identity;
use hydra_common::verdict::{Hook, Reason, Verdict};

/// From a user outside to a published port of this host.
fn user(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = if v6 { ("2001:db8::77", "2001:db8::1") } else { ("198.51.100.77", "198.51.100.1") };
    frame(99, 2, from, to, protocol, payload)
}

/// A piece that begins `at` bytes.
fn piece(v6: bool, protocol: u8, at: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    if v6 {
        let field = (at | u16::from(more)).to_be_bytes();
        let header = [protocol, 0, field[0], field[1], 0, 0, 0, 9];
        return user(true, 44, &[&header, payload].concat());
    }
    let mut f = user(false, protocol, payload);
    f[20..22].copy_from_slice(&((at / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
    f
}

fn comes(t: &Plain, f: &[u8]) -> Outcome {
    judge(t, f, &at(Hook::UplinkIn, 2, 2)).1
}

fn unseen(t: &Plain, f: &[u8]) -> bool {
    let o = comes(t, f);
    (o.reason, o.way, o.elsewhere) == (Reason::NotJudged, Way::Leave, true)
}

#[test]
fn a_first_piece_without_its_ports_does_not_come_in() {
    let mut t = published();
    let syn = segment(4000, 8081, SYN, 1, 0, 0);
    for v6 in [false, true] {
        // The host puts them together for a process that listens.
        for (name, f) in [
            ("a header in two", piece(v6, 6, 0, true, &syn[..8])),
            ("all but four bytes", piece(v6, 6, 0, true, &syn[..16])),
            (
                "odd bytes, which Linux cuts off",
                piece(v6, 17, 0, true, &[&udp(4000, 8081)[..], &[0]].concat()),
            ),
        ] {
            let o = comes(&t, &f);
            assert_eq!((o.verdict, o.reason), (Verdict::Denied, Reason::Fragment), "{name}, IPv6 {v6}");
            let tagged = [&f[..12], &[0x81, 0, 0, 0], &f[12..]].concat();
            assert_eq!(
                comes(&t, &tagged).reason,
                Reason::Fragment,
                "{name}, IPv6 {v6}, with a tag of priority"
            );
        }
        // The rest without it is nothing.
        assert!(unseen(&t, &piece(v6, 6, 8, false, &syn[8..])));
        assert!(unseen(&t, &piece(v6, 17, 16, true, &[0; 9])));
    }
    // Two headers that say "piece", the second one inside the first piece.
    let nested = [&[17, 0, 0, 1, 0, 0, 0, 8][..], &udp(4000, 8081)].concat();
    assert_eq!(comes(&t, &piece(true, 44, 0, true, &nested)).reason, Reason::Fragment);
    // What nobody publishes comes in: a datagram for the host's own service, what is no service, another machine's.
    let whole = [&udp(4000, 53)[..], &[0; 1472]].concat();
    for v6 in [false, true] {
        assert!(unseen(&t, &piece(v6, 17, 0, true, &whole)));
        assert!(unseen(&t, &piece(v6, 17, 1480, false, &[0; 100])));
        assert!(unseen(&t, &piece(v6, 50, 0, true, &[0; 8])));
        let error = [&[if v6 { 1 } else { 3 }, 1, 0, 0, 0, 0, 0, 0][..], &[0; 48]].concat();
        assert!(unseen(&t, &piece(v6, if v6 { 58 } else { 1 }, 0, true, &error)));
    }
    t.endpoints.remove(&common::ip("198.51.100.1"));
    assert!(unseen(&t, &piece(false, 6, 0, true, &syn[..8])));
}

#[test]
fn what_hides_behind_a_tag_of_priority_does_not_come_in() {
    let t = published();
    let chain: Vec<u8> = (0..7).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
    let routed = [&[6, 0, 4, 1, 0, 0, 0, 0][..], &segment(4000, 8081, SYN, 1, 0, 0)].concat();
    for (f, reason) in
        [(user(true, 60, &chain), Reason::HeaderChain), (user(true, 43, &routed), Reason::SourceRoute)]
    {
        let tagged = [&f[..12], &[0x81, 0, 0, 0], &f[12..]].concat();
        assert_eq!((comes(&t, &f).reason, comes(&t, &tagged).reason), (reason, reason));
    }
}

#[test]
fn pieces_from_outside_take_no_room_from_those_of_containers() {
    let mut t = published();
    allow(&mut t, Identity::EXTERNAL);
    t.cells.insert((Identity::EXTERNAL.0, common::DB.0), hydra_common::tables::Cell::decision(4));
    let uplink = at(Hook::UplinkIn, 2, 2);
    for (v6, port) in [(false, 53), (false, 8081), (true, 53), (true, 8081)] {
        let first = piece(v6, 17, 0, true, &[&udp(4000, port)[..], &[0; 1472]].concat());
        let o = pass(&mut t, &first, &uplink);
        assert_eq!(o.verdict, Verdict::Allowed, "{v6} {port}");
        // To a process of this host, whose flow is kept here: the others follow the first one.
        let proxied = v6 && port == 8081;
        assert_eq!(o.way == Way::Carried, proxied);
        assert_eq!(o.step == Step::Create, proxied);
        assert!(unseen(&t, &piece(v6, 17, 1480, false, &[0; 100])));
    }
    assert!(t.fragments.is_empty());
}

#[test]
fn an_answer_to_a_port_that_translation_chose_comes_in_where_the_outside_may_call_it() {
    let mut t = published();
    t.heads[1].pickup_until = 0;
    let answer = |flags| user(true, 6, &segment(443, 8081, flags, 1, 1, 0));
    for flags in [SYN_ACK, ACK] {
        assert_eq!(says(&comes(&t, &answer(flags))), NO_RULE);
    }
    allow(&mut t, Identity::EXTERNAL);
    for flags in [SYN_ACK, ACK] {
        assert!(unseen(&t, &answer(flags)), "{flags}");
    }
    let _ = pass(&mut t, &answer(SYN), &at(Hook::UplinkIn, 2, 2));
    assert_eq!(comes(&t, &answer(ACK)).reason, Reason::Reply);
    // A connection that the policy took away stays so.
    deny(&mut t, Identity::EXTERNAL);
    flip(&mut t);
    for _ in 0..2 {
        assert_eq!(says(&pass(&mut t, &answer(ACK), &at(Hook::UplinkIn, 2, 2))), NO_RULE);
    }
    assert!(t.flows.is_empty());
}
