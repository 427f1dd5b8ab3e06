//! Published ports on tables in plain collections: whoever calls one is judged as calling the container, wherever he comes from and
//! however the bytes go on; and who may answer from an end that is no container.

mod common;

use common::ports::{
    ACK, NO_RULE, RULE, SYN, SYN_ACK, allow, answer, call, deny, flip, led, marked, publish, published, says,
};
use common::{APP, DB, NOW, Plain, at, ethernet, frame, ip, judge, mac, network, pass, tcp, udp, world};
use hydra_common::decide::{At, Step, Way};
use hydra_common::flow::{Far, Flow};
use hydra_common::id::{Container, Identity};
use hydra_common::names::carried;
use hydra_common::tables::*;
use hydra_common::track::{State, protocol};
use hydra_common::verdict::{Hook, Reason, Verdict};

#[test]
fn a_published_port_is_its_container_at_every_address_of_this_host_and_never_the_host() {
    let mut t = published();
    let own = ["10.1.0.1", "10.2.0.1", "198.51.100.1", "2001:db8::1"];
    for to in own {
        let o = pass(&mut t, &call(to, 8081, SYN), &at(Hook::PortIn, 11, 0));
        assert_eq!(says(&o), NO_RULE, "{to}");
        assert_eq!((o.source, o.destination, o.destination_container), (APP, DB, Container(3)), "{to}");
        let (_, o) = judge(&t, &call(to, 8082, SYN), &at(Hook::PortIn, 11, 0));
        assert_eq!((says(&o), o.destination, o.way), (RULE, Identity::HOST, Way::Carried), "{to}");
    }
    assert!(t.flows.is_empty());
    allow(&mut t, APP);
    for to in own {
        let o = pass(&mut t, &call(to, 8081, SYN), &at(Hook::PortIn, 11, 0));
        assert_eq!((says(&o), o.destination, o.step, o.way), (RULE, DB, Step::Create, Way::Carried), "{to}");
        assert_eq!(o.marks, Flow::PUBLISHED | Flow::TO_HOST, "{to}");
        let o = pass(&mut t, &call(to, 8081, ACK), &at(Hook::PortIn, 11, 0));
        assert_eq!(
            (o.reason, o.step, o.way, o.source),
            (Reason::Reply, Step::Count, Way::Carried, APP),
            "{to}"
        );
    }
    // The right is to the container's own port, whatever the host's is called.
    publish(&mut t, "0.0.0.0", 5432, DB, 3, 0);
    t.published.values_mut().for_each(|row| row.port = 80);
    let (_, o) = judge(&t, &call("10.1.0.1", 5432, SYN), &at(Hook::PortIn, 11, 0));
    assert_eq!(says(&o), NO_RULE);
}

#[test]
fn a_binding_to_one_address_stands_before_one_to_all() {
    let mut t = published();
    publish(&mut t, "10.1.0.1", 8081, APP, 2, 0);
    let (_, o) = judge(&t, &call("10.1.0.1", 8081, SYN), &at(Hook::PortIn, 11, 0));
    assert_eq!((o.reason, o.destination, o.destination_container), (Reason::IntraTier, APP, Container(2)));
    assert_eq!(judge(&t, &call("10.2.0.1", 8081, SYN), &at(Hook::PortIn, 11, 0)).1.destination, DB);
}

#[test]
fn a_port_that_leads_to_nobody_known_is_closed_to_everybody() {
    let mut t = published();
    publish(&mut t, "0.0.0.0", 8081, Identity::UNKNOWN, 0, 0);
    let (_, o) = judge(&t, &call("10.1.0.1", 8081, SYN), &at(Hook::PortIn, 11, 0));
    assert_eq!(o.reason, Reason::UnknownDestination);
    let user = frame(99, 2, "198.51.100.77", "198.51.100.1", 6, &tcp(4000, 8081, SYN));
    assert_eq!(judge(&t, &user, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::UnknownDestination);
}

#[test]
fn icmp_to_the_host_is_the_hosts() {
    let mut t = published();
    let key = PublishKey { address: ip("0.0.0.0"), port: 8u16.to_be_bytes(), protocol: 1, zero: [0; 5] };
    t.published.insert(key, Publish { identity: [DB; 2], ..Publish::default() });
    let ping = frame(11, 10, "10.1.0.11", "10.1.0.1", 1, &[8, 0, 0, 0, 0, 7, 0, 1]);
    assert_eq!(judge(&t, &ping, &at(Hook::PortIn, 11, 0)).1.destination, Identity::HOST);
}

#[test]
fn where_the_bytes_are_led_the_true_receivers_rule_decides() {
    let mut t = published();
    // Masqueraded: the gateway's address, and the caller's identity in the mark.
    let o = pass(&mut t, &led("10.2.0.1", 4000, SYN), &marked(APP));
    assert_eq!((says(&o), o.source, o.destination), (NO_RULE, APP, DB));
    assert!(!o.elsewhere || o.verdict == Verdict::Denied);
    // Without the mark it would be the host's own call, or nobody's.
    assert_eq!(judge(&t, &led("10.2.0.1", 4000, SYN), &at(Hook::PortOut, 21, 0)).1.reason, Reason::FromHost);
    assert_eq!(
        judge(&t, &led("10.2.0.1", 4000, SYN), &at(Hook::PortOut, 21, 10)).1.reason,
        Reason::UnknownSource
    );
    allow(&mut t, APP);
    let o = pass(&mut t, &led("10.2.0.1", 4000, SYN), &marked(APP));
    assert_eq!((says(&o), o.step, o.way, o.elsewhere), (RULE, Step::Create, Way::Judged, true));
    assert_eq!(o.marks, Flow::CARRIED | Flow::MASQUERADED);
    let flow = t.flows.values().next().unwrap();
    assert!(flow.ends.contains(&(Far::Carried as u8)) && flow.containers.contains(&Container::NONE));
    let o = pass(&mut t, &answer("10.2.0.1", 4000, SYN_ACK), &at(Hook::PortIn, 21, 0));
    assert_eq!((o.reason, o.way, o.elsewhere), (Reason::Reply, Way::Carried, false));
    // An identity that is nobody's.
    assert_eq!(judge(&t, &led("10.2.0.1", 4001, SYN), &marked(Identity::UNKNOWN)).1.reason, Reason::BadTable);
    // At the bridge of a port without a program.
    t.endpoints.get_mut(&ip("10.2.0.21")).unwrap().flags = Endpoint::PEER;
    let bridge = At { mark: carried(APP), ..at(Hook::BridgeOut, 20, 10) };
    assert_eq!(says(&judge(&t, &led("10.2.0.1", 4002, SYN), &bridge).1), RULE);
    deny(&mut t, APP);
    assert_eq!(says(&judge(&t, &led("10.2.0.1", 4002, SYN), &bridge).1), NO_RULE);
}

#[test]
fn an_answer_goes_straight_to_a_neighbour_whose_address_was_not_translated() {
    let mut t = published();
    t.cells.insert((APP.0, APP.0), Cell::decision(2));
    let carried_in = At { mark: carried(APP), ..at(Hook::PortOut, 12, 11) };
    let inward =
        ethernet(mac(11), mac(12), 0x0800, &network("10.1.0.11", "10.1.0.12", 6, &tcp(4000, 80, SYN)));
    assert_eq!(pass(&mut t, &inward, &carried_in).reason, Reason::IntraTier);
    assert!(t.flows.values().next().unwrap().containers.contains(&Container(1)));
    let back =
        ethernet(mac(12), mac(11), 0x0800, &network("10.1.0.12", "10.1.0.11", 6, &tcp(80, 4000, SYN_ACK)));
    let (_, o) = judge(&t, &back, &at(Hook::PortIn, 12, 0));
    assert_eq!((o.verdict, o.reason, o.way), (Verdict::Allowed, Reason::Reply, Way::Judged));
}

#[test]
fn a_tighter_policy_ends_both_halves_and_a_looser_one_neither() {
    let mut t = published();
    allow(&mut t, APP);
    let both = |t: &mut Plain| {
        [
            pass(t, &call("10.1.0.1", 8081, ACK), &at(Hook::PortIn, 11, 0)),
            pass(t, &led("10.2.0.1", 4000, ACK), &marked(APP)),
        ]
    };
    both(&mut t);
    let reply = |t: &Plain| judge(t, &answer("10.2.0.1", 4000, ACK), &at(Hook::PortIn, 21, 0)).1;
    // The same policy again, then one that allows more, each met by a reply first.
    flip(&mut t);
    let o = reply(&t);
    assert_eq!((says(&o), o.step, o.source, o.destination), (RULE, Step::Renew, APP, DB));
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    flip(&mut t);
    assert_eq!(says(&reply(&t)), RULE);
    assert!(both(&mut t).iter().all(|o| says(o) == RULE && o.step == Step::Renew));
    // The host's right is not the caller's.
    deny(&mut t, APP);
    flip(&mut t);
    assert_eq!(says(&reply(&t)), NO_RULE);
    assert!(both(&mut t).iter().all(|o| says(o) == NO_RULE));
    // A container that the binding leads to by now.
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    flip(&mut t);
    assert!(both(&mut t).iter().all(|o| says(o) == RULE));
    publish(&mut t, "0.0.0.0", 8081, APP, 2, 0);
    flip(&mut t);
    let o = pass(&mut t, &call("10.1.0.1", 8081, ACK), &at(Hook::PortIn, 11, 0));
    assert_eq!((o.reason, o.destination, o.destination_container), (Reason::IntraTier, APP, Container(2)));
}

#[test]
fn what_a_process_of_this_host_answers_for_the_container_passes_and_asks_for_the_callers_right() {
    let mut t = published();
    allow(&mut t, APP);
    assert_eq!(says(&pass(&mut t, &call("10.1.0.1", 8081, SYN), &at(Hook::PortIn, 11, 0))), RULE);
    let proxy = frame(10, 11, "10.1.0.1", "10.1.0.11", 6, &tcp(8081, 4000, SYN_ACK));
    let o = pass(&mut t, &proxy, &at(Hook::PortOut, 11, 0));
    assert_eq!((o.reason, o.source, o.destination, o.way), (Reason::Reply, APP, DB, Way::Judged));
    flip(&mut t);
    let o = pass(&mut t, &proxy, &at(Hook::PortOut, 11, 0));
    assert_eq!((says(&o), o.step, o.source, o.destination), (RULE, Step::Renew, APP, DB));
    assert_eq!(t.flows.values().next().unwrap().marks & Flow::PUBLISHED, Flow::PUBLISHED);
    // Nobody else answers for it.
    assert_ne!(judge(&t, &proxy, &at(Hook::PortOut, 11, 30)).1.verdict, Verdict::Allowed);
    // Not the right of the host, which may call everybody: the caller's.
    deny(&mut t, APP);
    flip(&mut t);
    assert_eq!(says(&judge(&t, &proxy, &at(Hook::PortOut, 11, 0)).1), NO_RULE);
}

#[test]
fn a_port_that_translation_chose_is_not_a_published_one() {
    let mut t = published();
    // The databases answer a caller who was given port 8081 of their gateway.
    allow(&mut t, APP);
    let _ = pass(&mut t, &led("10.2.0.1", 8081, SYN), &marked(APP));
    flip(&mut t);
    let o = judge(&t, &answer("10.2.0.1", 8081, SYN_ACK), &at(Hook::PortIn, 21, 0)).1;
    assert_eq!((says(&o), o.source, o.destination, o.step), (RULE, APP, DB, Step::Renew));
}

#[test]
fn a_translated_port_that_is_given_to_somebody_else_is_judged_by_his_right() {
    let mut t = published();
    allow(&mut t, APP);
    let _ = pass(&mut t, &led("10.2.0.1", 4000, SYN), &marked(APP));
    let o = judge(&t, &led("10.2.0.1", 4000, ACK), &marked(Identity::UNMANAGED)).1;
    assert_eq!((says(&o), o.source), (NO_RULE, Identity::UNMANAGED));
    t.cells.insert((Identity::UNMANAGED.0, DB.0), Cell::decision(4));
    let o = judge(&t, &led("10.2.0.1", 4000, ACK), &marked(Identity::UNMANAGED)).1;
    assert_eq!((says(&o), o.step), (RULE, Step::Create));
}

#[test]
fn what_may_reach_a_process_of_this_host_takes_both_rights() {
    let mut t = published();
    let own = "fe80::ff:fe00:b";
    let (to_all, to_gateway) = ("255.255.255.255", "fe80::ff:fe00:a");
    let shots = [
        frame(11, 10, own, to_gateway, 6, &tcp(4000, 8081, SYN)),
        ethernet(mac(11), mac(0xff), 0x0800, &network("10.1.0.11", to_all, 17, &udp(4000, 8081))),
    ];
    t.endpoints.insert(ip(own), Endpoint { port: 11, ..t.endpoints[&ip("fd00:1::11")] });
    let bridge = At { mark: hydra_common::names::MARK_CHECKED, ..at(Hook::BridgeIn, 10, 10) };
    for shot in &shots {
        let (_, o) = judge(&t, shot, &at(Hook::PortIn, 11, 0));
        assert_eq!(o.way, Way::Checked);
        let (_, o) = judge(&t, shot, &bridge);
        assert_eq!((says(&o), o.destination), (NO_RULE, DB));
    }
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    for shot in &shots {
        let (_, o) = judge(&t, shot, &bridge);
        assert_eq!((says(&o), o.way, o.step), (RULE, Way::Carried, Step::Nothing));
    }
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(1));
    for shot in &shots {
        assert_eq!(says(&judge(&t, shot, &bridge).1), NO_RULE);
    }
}

#[test]
fn loopback_addresses_are_on_no_wire() {
    let mut t = published();
    let home = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
    for own in ["127.0.0.1", "::1"] {
        t.endpoints.insert(ip(own), home);
        publish(&mut t, own, 8082, DB, 3, 0);
    }
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    for (from, to) in
        [("10.1.0.11", "127.0.0.1"), ("127.0.0.1", "10.2.0.21"), ("fd00:1::11", "::1"), ("::1", "fd00:2::21")]
    {
        let shot = frame(11, 10, from, to, 6, &tcp(4000, 8082, SYN));
        assert_eq!(judge(&t, &shot, &at(Hook::PortIn, 11, 0)).1.reason, Reason::Loopback, "{from} {to}");
        assert_eq!(judge(&t, &shot, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::Loopback, "{from} {to}");
    }
}

#[test]
fn an_uplink_sees_nothing_but_published_ports() {
    let mut t = published();
    let unseen = |t: &Plain, shot: &[u8]| {
        let (_, o) = judge(t, shot, &at(Hook::UplinkIn, 2, 2));
        (o.reason, o.way, o.elsewhere) == (Reason::NotJudged, Way::Leave, true)
    };
    let from_user = |to: &str, payload: &[u8], protocol| {
        let from = if to.contains('.') { "198.51.100.77" } else { "2001:db8::77" };
        frame(99, 2, from, to, protocol, payload)
    };
    let ssh = from_user("198.51.100.1", &tcp(4000, 22, SYN), 6);
    let through = from_user("10.2.0.21", &tcp(4000, 5432, SYN), 6);
    let page = from_user("198.51.100.1", &tcp(4000, 8081, SYN), 6);
    let answer = from_user("198.51.100.1", &tcp(443, 8081, ACK), 6);
    let mut piece = from_user("198.51.100.1", &udp(4000, 8081), 17);
    // What has no ports is nothing without its first piece, which is judged by them.
    piece[21] = 2;
    for shot in [&ssh, &through, &answer, &piece, &vec![0; 60], &vec![0; 5]] {
        assert!(unseen(&t, shot), "{shot:?}");
    }
    let mut first = piece.clone();
    (first[20], first[21]) = (0x20, 0);
    assert_eq!(says(&judge(&t, &first, &at(Hook::UplinkIn, 2, 2)).1), NO_RULE);
    let (_, o) = judge(&t, &page, &at(Hook::UplinkIn, 2, 2));
    assert_eq!((says(&o), o.source, o.destination), (NO_RULE, Identity::EXTERNAL, DB));
    // A tag of priority alone, or of a VLAN whose interface asks again.
    let tagged = [&page[..12], &[0x81, 0, 0, 0], &page[12..]].concat();
    assert_eq!(says(&judge(&t, &tagged, &at(Hook::UplinkIn, 2, 2)).1), NO_RULE);
    let forged = frame(99, 2, "10.1.0.11", "198.51.100.1", 6, &tcp(4000, 8081, SYN));
    assert_eq!(judge(&t, &forged, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::SpoofedAddress);
    let near = frame(99, 2, "fe80::77", "fe80::1", 6, &tcp(4000, 8081, SYN));
    assert_eq!(says(&judge(&t, &near, &at(Hook::UplinkIn, 2, 2)).1), NO_RULE);

    allow(&mut t, Identity::EXTERNAL);
    let (_, o) = judge(&t, &page, &at(Hook::UplinkIn, 2, 2));
    assert_eq!((o.verdict, o.step, o.way, o.elsewhere), (Verdict::Allowed, Step::Nothing, Way::Leave, true));
    // Whatever state the tables are in.
    deny(&mut t, Identity::EXTERNAL);
    t.generation = 0;
    assert!(unseen(&t, &ssh));
    assert_eq!(judge(&t, &page, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::NoPolicy);
    t.generation = common::GENERATION;
    t.links.clear();
    assert!(unseen(&t, &ssh));
    assert_eq!(judge(&t, &page, &at(Hook::UplinkIn, 2, 2)).1.reason, Reason::UnknownSource);
}

#[test]
fn a_policy_that_only_audits_drops_nothing_at_an_uplink_and_leaves_the_record_to_the_port() {
    let mut t = published();
    t.heads[1].flags = Head::AUDIT;
    let page = frame(99, 2, "198.51.100.77", "198.51.100.1", 6, &tcp(4000, 8081, SYN));
    let (_, o) = judge(&t, &page, &at(Hook::UplinkIn, 2, 2));
    assert_eq!(
        (o.verdict, o.reason, o.way, o.elsewhere),
        (Verdict::Audited, Reason::NoRule, Way::Leave, true)
    );
}

#[test]
fn what_only_a_proxy_can_carry_has_its_flow_at_the_uplink() {
    let mut t = published();
    let uplink = at(Hook::UplinkIn, 2, 2);
    let user = |flags| frame(99, 2, "2001:db8::77", "2001:db8::1", 6, &tcp(4000, 8081, flags));
    assert_eq!(says(&pass(&mut t, &user(SYN), &uplink)), NO_RULE);
    assert!(t.flows.is_empty());
    allow(&mut t, Identity::EXTERNAL);
    let o = pass(&mut t, &user(SYN), &uplink);
    assert_eq!((says(&o), o.step, o.way, o.elsewhere), (RULE, Step::Create, Way::Carried, false));
    let half = *t.flows.values().next().unwrap();
    assert_eq!(State::of(&half, protocol::TCP), State::New);
    let o = pass(&mut t, &user(ACK), &uplink);
    assert_eq!((o.reason, o.step), (Reason::Reply, Step::Count));
    let flow = *t.flows.values().next().unwrap();
    assert_eq!(State::of(&flow, protocol::TCP), State::Established, "its answers are not seen here");
    assert_eq!(State::of(&Flow { marks: 0, ..flow }, protocol::TCP), State::New);
    deny(&mut t, Identity::EXTERNAL);
    flip(&mut t);
    assert_eq!(says(&pass(&mut t, &user(ACK), &uplink)), NO_RULE);
}

#[test]
fn a_container_of_no_tier_is_carried_from_its_bridge() {
    let mut t = published();
    let block =
        (ip("10.3.0.0"), 120, PrefixRow { identity: Identity::UNMANAGED, flags: PrefixRow::INTERIOR });
    t.prefixes.push(block);
    let bridge = at(Hook::UplinkIn, 30, 30);
    let stranger = |to: &str, port, flags| frame(31, 30, "10.3.0.31", to, 6, &tcp(4000, port, flags));
    let (_, o) = judge(&t, &stranger("10.1.0.1", 8081, SYN), &bridge);
    assert_eq!((says(&o), o.source, o.destination), (NO_RULE, Identity::UNMANAGED, DB));
    // Translated inside the bridge (`bridge-nf-call-iptables`): the container's port judges, by the mark.
    let (_, o) = judge(&t, &stranger("10.2.0.21", 5432, SYN), &bridge);
    assert_eq!((o.reason, o.way, o.source), (Reason::NotJudged, Way::Carried, Identity::UNMANAGED));
    assert_eq!(says(&judge(&t, &led("10.2.0.1", 4000, SYN), &marked(Identity::UNMANAGED)).1), NO_RULE);
    allow(&mut t, Identity::UNMANAGED);
    let (_, o) = judge(&t, &stranger("10.1.0.1", 8081, SYN), &bridge);
    assert_eq!(
        (o.verdict, o.way, o.step, o.elsewhere),
        (Verdict::Allowed, Way::Carried, Step::Nothing, true)
    );
    let (_, o) = judge(&t, &led("10.2.0.1", 4000, SYN), &marked(Identity::UNMANAGED));
    assert_eq!((says(&o), o.elsewhere), (RULE, false), "counted where it was not passed on only");
    // An answer of its own to a port that the translation chose goes on unjudged, and so does what is for this host alone.
    let (_, o) = judge(&t, &stranger("10.1.0.1", 8081, ACK), &bridge);
    assert_eq!((o.reason, o.way), (Reason::NotJudged, Way::Carried));
    let (_, o) = judge(&t, &stranger("10.1.0.1", 22, SYN), &bridge);
    assert_eq!((o.reason, o.way), (Reason::NotJudged, Way::Leave));
    let forged = frame(31, 30, "10.1.0.12", "10.1.0.1", 6, &tcp(4000, 8081, SYN));
    assert_eq!(judge(&t, &forged, &bridge).1.reason, Reason::SpoofedAddress);
}

#[test]
fn what_a_bridge_has_translated_is_no_call_of_the_host_s_port_of_that_number() {
    for (own, stranger, container) in
        [("10.1.0.1", "10.3.0.31", "10.1.0.11"), ("2001:db8::1", "fd00:3::31", "fd00:1::11")]
    {
        let mut t = published();
        let row = PrefixRow { identity: Identity::UNMANAGED, flags: PrefixRow::INTERIOR };
        t.prefixes.extend([(ip("10.3.0.0"), 120, row), (ip("fd00:3::"), 64, row)]);
        for allowed in [false, true] {
            if allowed {
                t.cells.insert((Identity::UNMANAGED.0, DB.0), Cell::decision(4));
            }
            for (protocol, payload) in [(6, tcp(4000, 8081, SYN)), (17, udp(4000, 8081))] {
                let calls = |to| {
                    judge(&t, &frame(31, 30, stranger, to, protocol, &payload), &at(Hook::UplinkIn, 30, 30)).1
                };
                // The control: of the host's address it is a call of the databases.
                let o = calls(own);
                assert_eq!((says(&o), o.destination), (if allowed { RULE } else { NO_RULE }, DB), "{own}");
                // 8081 of an application is its own, and nothing of the databases': its port judges, by the mark.
                let o = calls(container);
                assert_eq!(
                    (o.reason, o.way, o.step, o.source),
                    (Reason::NotJudged, Way::Carried, Step::Nothing, Identity::UNMANAGED),
                    "{container}, {protocol}, the databases allowed: {allowed}"
                );
            }
        }
    }
}

#[test]
fn ends_that_are_no_container_are_not_interchangeable() {
    let mut t = world();
    t.cells.insert((APP.0, Identity::EXTERNAL.0), Cell::decision(4));
    t.cells.insert((Identity::EXTERNAL.0, APP.0), Cell::decision(4));
    let ask = frame(11, 10, "10.1.0.11", "203.0.113.9", 17, &udp(4000, 53));
    assert_eq!(says(&pass(&mut t, &ask, &at(Hook::PortIn, 11, 0))), RULE);
    let reply = frame(10, 11, "203.0.113.9", "10.1.0.11", 17, &udp(53, 4000));
    let comes = |t: &Plain, ingress| judge(t, &reply, &at(Hook::PortOut, 11, ingress)).1;
    assert_eq!(comes(&t, 2).reason, Reason::Reply);
    assert_eq!(comes(&t, 0).reason, Reason::Reply, "this host translates and proxies");
    let o = comes(&t, 30);
    assert_eq!((says(&o), o.source), (NO_RULE, Identity::UNMANAGED), "a stranger with a forged address");

    // Who opens.
    let open = frame(10, 11, "203.0.113.9", "10.1.0.11", 17, &udp(9, 9));
    assert_eq!(says(&pass(&mut t, &open, &at(Hook::PortOut, 11, 2))), RULE);
    assert_eq!(says(&judge(&t, &open, &at(Hook::PortOut, 11, 30)).1), NO_RULE);
    assert_eq!(judge(&t, &open, &at(Hook::PortOut, 11, 2)).1.reason, Reason::Reply);

    // A machine that the policy names may be on any interface: the first to answer is who answers.
    t.prefixes.push((ip("192.0.2.10"), 128, PrefixRow { identity: Identity(6), flags: 0 }));
    t.identities.insert(6, IdentityRow { tier: hydra_common::id::Tier(6), flags: IdentityRow::DECLARED });
    t.cells.insert((APP.0, 6), Cell::decision(4));
    let ask = frame(11, 10, "10.1.0.11", "192.0.2.10", 17, &udp(4002, 99));
    assert_eq!(says(&pass(&mut t, &ask, &at(Hook::PortIn, 11, 0))), RULE);
    let reply = frame(10, 11, "192.0.2.10", "10.1.0.11", 17, &udp(99, 4002));
    assert_eq!(pass(&mut t, &reply, &at(Hook::PortOut, 11, 30)).reason, Reason::Reply);
    assert_ne!(judge(&t, &reply, &at(Hook::PortOut, 11, 2)).1.verdict, Verdict::Allowed);

    // So may an address of this host, which may have been sent on.
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let ask = frame(11, 10, "10.1.0.11", "10.1.0.1", 17, &udp(4001, 99));
    let _ = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    let reply = frame(10, 11, "10.1.0.1", "10.1.0.11", 17, &udp(99, 4001));
    assert_eq!(pass(&mut t, &reply, &at(Hook::PortOut, 11, 2)).reason, Reason::Reply);
    assert_ne!(judge(&t, &reply, &at(Hook::PortOut, 11, 30)).1.verdict, Verdict::Allowed);
}

#[test]
fn a_call_of_a_published_port_that_is_silent_stays_known_as_long_as_an_open_connection() {
    let mut t = published();
    allow(&mut t, APP);
    for flags in [SYN, ACK] {
        let _ = pass(&mut t, &call("10.1.0.1", 8081, flags), &at(Hook::PortIn, 11, 0));
    }
    let later = At { now: NOW + 3_600_000_000_000, ..at(Hook::PortIn, 11, 0) };
    assert_eq!(judge(&t, &call("10.1.0.1", 8081, ACK), &later).1.reason, Reason::Reply);
}
