//! Ways around the verdict that were open once, and true packets that it once refused.

mod common;

use common::{
    APP, DB, GENERATION, Plain, at, ethernet, frame, ip, judge, mac, network, pass, segment, tcp, udp, world,
};
use hydra_common::decide::{Step, Way};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{Cell, Endpoint, PrefixRow};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SYN: u8 = 2;
const RST_ACK: u8 = 0x14;
const ACK: u8 = 0x10;

fn open() -> Plain {
    let mut t = world();
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    t
}

fn says(t: &Plain, f: &[u8], hook: Hook, ifindex: u32, ingress: u32) -> (Verdict, Reason) {
    let (_, o) = judge(t, f, &at(hook, ifindex, ingress));
    (o.verdict, o.reason)
}

/// With another hop limit or TTL.
fn hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    let at = if frame[12..14] == [0x08, 0] { 14 + 8 } else { 14 + 7 };
    frame[at] = hops;
    frame
}

fn flip(t: &mut Plain) {
    t.generation += 2;
    t.heads[1].generation = t.generation;
}

#[test]
fn a_clouds_metadata_service_is_outside_and_answers() {
    let mut t = world();
    let ask = frame(11, 10, "10.1.0.11", "169.254.169.254", 6, &tcp(4000, 80, SYN));
    assert_eq!(says(&t, &ask, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::NoRule));
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(4));
    let o = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    assert_eq!(
        (o.verdict, o.reason, o.destination, o.way),
        (Verdict::Allowed, Reason::Rule, Identity::EXTERNAL, Way::Judged)
    );
    let answer =
        ethernet(mac(10), mac(11), 0x0800, &network("169.254.169.254", "10.1.0.11", 6, &tcp(80, 4000, 0x12)));
    assert_eq!(says(&t, &answer, Hook::PortOut, 11, 2), (Verdict::Allowed, Reason::Reply));
}

#[test]
fn an_icmp_error_from_a_container_that_is_no_end_of_the_flow_is_denied() {
    let mut t = open();
    let _ = pass(
        &mut t,
        &frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, SYN)),
        &at(Hook::PortIn, 11, 0),
    );
    let quoted = network("10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, SYN));
    let error = [&[3, 4, 0, 0, 0, 0, 0, 68][..], &quoted].concat();
    let meddler = frame(12, 10, "10.1.0.12", "10.1.0.11", 1, &error);
    assert_eq!(says(&t, &meddler, Hook::PortIn, 12, 0), (Verdict::Denied, Reason::UnmatchedError));
    let end = frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &error);
    assert_eq!(says(&t, &end, Hook::PortIn, 21, 0), (Verdict::Allowed, Reason::Related));
    let router = ethernet(mac(10), mac(11), 0x0800, &network("192.0.2.1", "10.1.0.11", 1, &error));
    assert_eq!(says(&t, &router, Hook::PortOut, 11, 2), (Verdict::Allowed, Reason::Related));
    assert_eq!(says(&t, &router, Hook::PortOut, 11, 30), (Verdict::Denied, Reason::UnmatchedError));
}

#[test]
fn listener_queries_are_this_hosts() {
    let mut t = world();
    // `from-host: deny`.
    t.cells.insert((2, APP.0), Cell::decision(5));
    let query =
        |from: &str, limit| hops(frame(10, 11, from, "ff02::1", 58, &[130, 0, 0, 0, 0, 0, 0, 0]), limit);
    assert_eq!(says(&t, &query("fe80::10", 1), Hook::PortOut, 11, 0), (Verdict::Allowed, Reason::Mld));
    assert_eq!(says(&t, &query("fe80::10", 2), Hook::PortOut, 11, 0), (Verdict::Denied, Reason::Rule));
    // A container's is judged where it is received.
    let query = hops(frame(11, 10, "fd00:1::11", "ff02::1", 58, &[130, 0, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(says(&t, &query, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::NotJudged));
    assert_eq!(says(&t, &query, Hook::PortOut, 21, 11), (Verdict::Denied, Reason::NoRule));
}

#[test]
fn listener_reports_are_for_the_link_and_from_a_true_address() {
    let t = world();
    let report =
        |from: &str, to: &str, limit| hops(frame(11, 10, from, to, 58, &[143, 0, 0, 0, 0, 0, 0, 0]), limit);
    let own = "fe80::ff:fe00:b";
    for from in [own, "::", "fd00:1::11"] {
        let f = report(from, "ff02::16", 1);
        assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Mld), "{from}");
    }
    let f = report("fd00:1::12", "ff02::16", 1);
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::SpoofedNeighbour));
    // To one receiver, or farther than the link, it is a packet like any other.
    let f = report("fd00:1::11", "fd00:2::21", 1);
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::NoRule));
    let f = report("fd00:1::11", "ff05::16", 64);
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::NotJudged));
    assert_eq!(judge(&t, &f, &at(Hook::PortIn, 11, 0)).1.way, Way::Checked);
    let outside = hops(
        ethernet(
            mac(10),
            mac(11),
            0x86dd,
            &network("2001:db8::9", "fd00:1::11", 58, &[143, 0, 0, 0, 0, 0, 0, 0]),
        ),
        1,
    );
    assert_eq!(says(&t, &outside, Hook::PortOut, 11, 2), (Verdict::Denied, Reason::NoRule));
}

#[test]
fn neighbour_discovery_does_not_leave_the_link() {
    let mut t = world();
    t.endpoints.insert(
        ip("fd00:1::12"),
        Endpoint { port: 12, bridge: 10, container: Container(2), mac: mac(12), ..Endpoint::default() },
    );
    let host = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
    t.endpoints.insert(ip("fd00:1::1"), host);
    let message = |to: &str| {
        let icmp = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &ip("fd00:1::11").octets()].concat();
        hops(frame(11, 10, "fd00:1::11", to, 58, &icmp), 255)
    };
    for to in ["ff02::1", "fd00:1::12", "fd00:1::1", "fe80::1"] {
        assert_eq!(
            says(&t, &message(to), Hook::PortIn, 11, 0),
            (Verdict::Allowed, Reason::Neighbour),
            "{to}"
        );
    }
    for to in ["fd00:2::21", "2001:db8::1"] {
        assert_eq!(
            says(&t, &message(to), Hook::PortIn, 11, 0),
            (Verdict::Denied, Reason::SpoofedNeighbour),
            "{to}"
        );
    }
}

#[test]
fn an_answer_about_its_own_address_is_not_sent_from_anothers() {
    let t = world();
    let message = |from: &str| {
        let icmp = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &ip("fd00:1::11").octets()].concat();
        hops(frame(11, 10, from, "ff02::1", 58, &icmp), 255)
    };
    for from in ["fd00:1::11", "fe80::ff:fe00:b"] {
        let said = says(&t, &message(from), Hook::PortIn, 11, 0);
        assert_eq!(said, (Verdict::Allowed, Reason::Neighbour), "{from}");
    }
    for from in ["fd00:1::1", "fd00:2::21", "fe80::1", "2001:db8::1"] {
        let said = says(&t, &message(from), Hook::PortIn, 11, 0);
        assert_eq!(said, (Verdict::Denied, Reason::SpoofedNeighbour), "{from}");
    }
}

#[test]
fn dhcp_is_for_everybody_on_the_link_from_nobody_or_a_true_address_and_answered_by_the_host() {
    let t = world();
    let ask = |from: &str, to: &str| frame(11, 10, from, to, 17, &udp(68, 67));
    for from in ["0.0.0.0", "10.1.0.11"] {
        let f = ask(from, "255.255.255.255");
        assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Dhcp), "{from}");
    }
    let f = ask("10.1.0.12", "255.255.255.255");
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::SpoofedAddress));
    let f = ask("10.1.0.11", "239.1.2.3");
    assert_eq!(judge(&t, &f, &at(Hook::PortIn, 11, 0)).1.way, Way::Checked, "judged where it is received");
    let answer =
        |from: &str| ethernet(mac(10), mac(11), 0x0800, &network(from, "10.1.0.11", 17, &udp(67, 68)));
    assert_eq!(says(&t, &answer("10.1.0.1"), Hook::PortOut, 11, 0), (Verdict::Allowed, Reason::Dhcp));
    assert_eq!(says(&t, &answer("192.0.2.9"), Hook::PortOut, 11, 2), (Verdict::Denied, Reason::NoRule));
}

#[test]
fn a_translated_reply_renews_its_flow() {
    let mut t = world();
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.1", 6, &tcp(4000, 8080, SYN));
    let _ = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    // The host sent it on to an unmanaged container (30) or to a machine outside (2), and put its own address back.
    let answer = |flags| {
        ethernet(mac(10), mac(11), 0x0800, &network("10.2.0.1", "10.1.0.11", 6, &tcp(8080, 4000, flags)))
    };
    for way in [30, 2] {
        assert_eq!(says(&t, &answer(ACK), Hook::PortOut, 11, way), (Verdict::Allowed, Reason::Reply));
    }
    flip(&mut t);
    for way in [30, 2] {
        let (_, o) = judge(&t, &answer(ACK), &at(Hook::PortOut, 11, way));
        assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Renew));
        assert_eq!((o.source, o.destination), (APP, Identity::HOST));
        assert_eq!(says(&t, &answer(SYN), Hook::PortOut, 11, way), (Verdict::Denied, Reason::SpoofedAddress));
    }
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(1));
    assert_eq!(says(&t, &answer(ACK), Hook::PortOut, 11, 30), (Verdict::Denied, Reason::NoRule));
    t.flows.clear();
    assert_eq!(says(&t, &answer(ACK), Hook::PortOut, 11, 30), (Verdict::Denied, Reason::SpoofedAddress));
}

#[test]
fn a_port_that_was_refused_and_opens_again_is_a_new_conversation() {
    let mut t = open();
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, SYN));
    let _ = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    let refused = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &segment(5432, 4000, RST_ACK, 0, 1, 0));
    let _ = pass(&mut t, &refused, &at(Hook::PortIn, 21, 0));
    let o = judge(&t, &ask, &at(Hook::PortIn, 11, 0)).1;
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Create));
}

#[test]
fn a_flow_does_not_follow_its_address_to_another_container() {
    let mut t = open();
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, SYN));
    let _ = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    // Rows of containers are written before the flip.
    let row = t.endpoints.get_mut(&ip("10.2.0.21")).unwrap();
    (row.container, row.port, row.identity[(GENERATION & 1) as usize]) =
        (Container(9), 22, Identity::UNKNOWN);
    let more = frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, ACK));
    assert_eq!(says(&t, &more, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::UnknownDestination));
}

#[test]
fn an_address_that_this_host_had_once_makes_nobody_the_host() {
    let mut t = world();
    t.prefixes.push((ip("192.0.2.80"), 128, PrefixRow { identity: Identity::HOST, flags: 0 }));
    let f = ethernet(mac(10), mac(11), 0x0800, &network("192.0.2.80", "10.1.0.11", 6, &tcp(4000, 22, SYN)));
    for way in [2, 30] {
        assert_eq!(says(&t, &f, Hook::PortOut, 11, way), (Verdict::Denied, Reason::SpoofedAddress));
    }
}

/// A neighbour's port is no way to an entry under somebody else's address: its own program was away when the frame was sent, or somebody
/// took the mark from it.
#[test]
fn a_frame_to_a_neighbour_for_anothers_address_opens_no_way_to_the_other() {
    let mut t = world();
    let packet = network("10.1.0.11", "10.2.0.21", 17, &udp(4000, 53));
    let aside = ethernet(mac(11), mac(12), 0x0800, &packet);
    let o = pass(&mut t, &aside, &at(Hook::PortOut, 12, 11));
    assert_eq!((o.verdict, o.reason), (Verdict::Denied, Reason::UnknownDestination));
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 17, &udp(4000, 53));
    assert_eq!(says(&t, &ask, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::NoRule));
    // For the neighbour's own address it is as good as any.
    let own = ethernet(mac(11), mac(12), 0x0800, &network("10.1.0.11", "10.1.0.12", 17, &udp(4000, 53)));
    assert_eq!(says(&t, &own, Hook::PortOut, 12, 11), (Verdict::Allowed, Reason::IntraTier));
}
