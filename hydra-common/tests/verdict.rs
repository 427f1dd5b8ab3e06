//! The verdict function on tables in plain collections: each reason, each line of the precedence that needs a packet, and what
//! follows from it. Lines 3 to 7 are resolved by the compiler and tested there.

mod common;

use common::{
    APP, DB, NOW, Plain, at, ethernet, frame, ip, judge, mac, network, pass, segment, tcp, udp, world,
};
use hydra_common::decide::{Step, Way};
use hydra_common::flow::Path;
use hydra_common::id::{Container, Identity};
use hydra_common::names::{MARK_CHECKED, MARK_JUDGED};
use hydra_common::tables::{
    Cell, Decision, Endpoint, Head, Interval, LinkKind, PrefixRow, RuleSet, selector,
};
use hydra_common::verdict::{Hook, Reason, Verdict};

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

fn syn(from: &str, to: &str) -> Vec<u8> {
    frame(11, 10, from, to, 6, &tcp(4000, 5432, SYN))
}

/// The world with `APP -> DB` allowed by rule 1.
fn open() -> Plain {
    let mut t = world();
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    t
}

fn says(t: &Plain, f: &[u8], hook: Hook, ifindex: u32, ingress: u32) -> (Verdict, Reason) {
    let (_, o) = judge(t, f, &at(hook, ifindex, ingress));
    (o.verdict, o.reason)
}

#[test]
fn without_a_policy_or_with_a_half_written_bank_nothing_passes() {
    let f = syn("10.1.0.11", "10.1.0.12");
    let mut t = world();
    t.generation = 0;
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::NoPolicy));
    let mut t = world();
    t.heads[1].generation += 2;
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::BadTable));
}

#[test]
fn an_empty_cell_denies() {
    let mut t = world();
    t.cells.clear();
    assert_eq!(
        says(&t, &syn("10.1.0.11", "10.2.0.21"), Hook::PortIn, 11, 0),
        (Verdict::Denied, Reason::BadTable)
    );
    t.cells.insert((APP.0, DB.0), Cell::default());
    assert_eq!(
        says(&t, &syn("10.1.0.11", "10.2.0.21"), Hook::PortIn, 11, 0),
        (Verdict::Denied, Reason::BadTable)
    );
}

#[test]
fn the_matrix_decides_for_both_families_and_names_the_rule() {
    for (from, to) in [("10.1.0.11", "10.2.0.21"), ("fd00:1::11", "fd00:2::21")] {
        let (_, o) = judge(&world(), &syn(from, to), &at(Hook::PortIn, 11, 0));
        assert_eq!(
            (o.verdict, o.reason, o.source, o.destination),
            (Verdict::Denied, Reason::NoRule, APP, DB)
        );
        let (_, o) = judge(&open(), &syn(from, to), &at(Hook::PortIn, 11, 0));
        assert_eq!((o.verdict, o.reason, o.rule, o.step), (Verdict::Allowed, Reason::Rule, 1, Step::Create));
        assert_eq!((o.way, o.path), (Way::Peer, Path::Peer));
        assert_eq!((o.hop.port, o.hop.mac, o.hop.gateway_mac, o.hop.routed), (21, mac(21), mac(20), 1));
    }
}

#[test]
fn same_network_goes_straight_without_a_hop() {
    let f = ethernet(mac(11), mac(12), 0x0800, &network("10.1.0.11", "10.1.0.12", 6, &tcp(1, 2, SYN)));
    let (_, o) = judge(&world(), &f, &at(Hook::PortIn, 11, 0));
    assert_eq!((o.verdict, o.reason, o.way), (Verdict::Allowed, Reason::IntraTier, Way::Peer));
    assert_eq!((o.hop.routed, o.hop.mac, o.hop.gateway_mac), (0, mac(12), mac(11)));
}

#[test]
fn replies_pass_and_the_other_end_may_not_open() {
    let mut t = open();
    assert_eq!(
        pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0)).verdict,
        Verdict::Allowed
    );
    let reply = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, SYN_ACK));
    let o = pass(&mut t, &reply, &at(Hook::PortIn, 21, 0));
    assert_eq!((o.verdict, o.reason, o.rule, o.step), (Verdict::Allowed, Reason::Reply, 1, Step::Count));
    assert_eq!((o.source, o.destination, o.way), (APP, DB, Way::Peer));
    let opening = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, SYN));
    assert_eq!(says(&t, &opening, Hook::PortIn, 21, 0), (Verdict::Denied, Reason::NoRule));
    let unasked = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4001, SYN_ACK));
    assert_eq!(says(&t, &unasked, Hook::PortIn, 21, 0), (Verdict::Denied, Reason::NoRule));
}

#[test]
fn a_flow_that_was_silent_too_long_lets_no_reply_pass() {
    let mut t = open();
    let ask = frame(11, 10, "10.1.0.11", "10.2.0.21", 17, &udp(1000, 53));
    let _ = pass(&mut t, &ask, &at(Hook::PortIn, 11, 0));
    let answer = frame(21, 20, "10.2.0.21", "10.1.0.11", 17, &udp(53, 1000));
    let mut later = at(Hook::PortIn, 21, 0);
    later.now = NOW + 59_000_000_000;
    assert_eq!(judge(&t, &answer, &later).1.reason, Reason::Reply);
    later.now = NOW + 61_000_000_000;
    assert_eq!(judge(&t, &answer, &later).1.reason, Reason::NoRule);
}

#[test]
fn an_older_generation_is_decided_again_by_the_openers_right_from_either_side() {
    let mut t = open();
    let _ = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    let reply = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, ACK));
    // The same policy again: the reply renews.
    t.generation += 2;
    t.heads[1].generation = t.generation;
    let o = judge(&t, &reply, &at(Hook::PortIn, 21, 0)).1;
    assert_eq!((o.verdict, o.reason, o.rule, o.step), (Verdict::Allowed, Reason::Rule, 1, Step::Renew));
    assert_eq!((o.source, o.destination, o.way), (APP, DB, Way::Peer));
    // A tighter one: both directions end.
    t.cells.insert((APP.0, DB.0), Cell::decision(5));
    for (f, port) in [(reply, 21), (frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, ACK)), 11)] {
        let o = judge(&t, &f, &at(Hook::PortIn, port, 0)).1;
        assert_eq!((o.verdict, o.reason, o.rule), (Verdict::Denied, Reason::Rule, 2));
    }
}

#[test]
fn rule_sets_find_the_interval_and_decisions_end_by_themselves() {
    let mut t = world();
    let later = (NOW / 1_000_000_000) as u32 + 10;
    t.decisions.push(Decision { until: later, next: 1, ..t.decisions[4] });
    t.sets = vec![RuleSet { start: 1, count: 5 }];
    let i = |from, decision| Interval { from, decision };
    t.intervals = vec![
        i(0, 4),
        i(0, 1),
        i(selector(6, 5432), 6),
        i(selector(6, 5433), 1),
        i(selector(17, 53), 4),
        i(selector(17, 54), 1),
    ];
    t.cells.insert((APP.0, DB.0), Cell::rule_set(0));
    let reason = |protocol, payload: &[u8], seconds: u64| {
        let mut a = at(Hook::PortIn, 11, 0);
        a.now += seconds * 1_000_000_000;
        let o = judge(&t, &frame(11, 10, "10.1.0.11", "10.2.0.21", protocol, payload), &a).1;
        (o.reason, o.until)
    };
    assert_eq!(reason(6, &tcp(1, 5432, SYN), 0), (Reason::Rule, later));
    assert_eq!(reason(6, &tcp(1, 5432, SYN), 9), (Reason::Rule, later));
    assert_eq!(reason(6, &tcp(1, 5432, SYN), 10), (Reason::NoRule, 0));
    assert_eq!(reason(6, &tcp(1, 5431, SYN), 0).0, Reason::NoRule);
    assert_eq!(reason(6, &tcp(1, 5433, SYN), 0).0, Reason::NoRule);
    assert_eq!(reason(17, &udp(1, 53), 0).0, Reason::Rule);
    assert_eq!(reason(17, &udp(1, 54), 0).0, Reason::NoRule);
    assert_eq!(reason(47, &[0; 8], 0).0, Reason::NoRule);
}

#[test]
fn an_expired_rule_ends_its_flows_without_the_agent() {
    let mut t = world();
    let later = (NOW / 1_000_000_000) as u32 + 10;
    t.decisions.push(Decision { until: later, next: 1, ..t.decisions[4] });
    t.cells.insert((APP.0, DB.0), Cell::decision(6));
    let _ = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    let reply = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, ACK));
    let mut a = at(Hook::PortIn, 21, 0);
    assert_eq!(judge(&t, &reply, &a).1.reason, Reason::Reply);
    a.now += 10_000_000_000;
    assert_eq!(judge(&t, &reply, &a).1.reason, Reason::NoRule);
}

#[test]
fn nobody_is_believed_about_mac_or_address() {
    let t = open();
    let forged = ethernet(mac(12), mac(10), 0x0800, &network("10.1.0.11", "10.2.0.21", 6, &tcp(1, 2, SYN)));
    assert_eq!(says(&t, &forged, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::SpoofedMac));
    for from in
        ["10.1.0.12", "10.2.0.21", "10.1.0.1", "10.1.0.99", "8.8.8.8", "0.0.0.0", "fd00:2::21", "fe80::1"]
    {
        let to = if from.contains('.') { "10.2.0.21" } else { "fd00:2::21" };
        assert_eq!(
            says(&t, &syn(from, to), Hook::PortIn, 11, 0),
            (Verdict::Denied, Reason::SpoofedAddress),
            "{from}"
        );
    }
}

#[test]
fn a_multi_homed_container_may_use_any_of_its_addresses_on_any_of_its_ports() {
    let mut t = open();
    let other = Endpoint { port: 22, bridge: 20, ..t.endpoints[&ip("10.1.0.11")] };
    t.endpoints.insert(ip("10.2.0.11"), other);
    assert_eq!(
        says(&t, &syn("10.2.0.11", "10.2.0.21"), Hook::PortIn, 11, 0),
        (Verdict::Allowed, Reason::Rule)
    );
}

#[test]
fn a_reply_with_a_forged_source_finds_the_entry_and_is_still_refused() {
    let mut t = open();
    let _ = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    // Container 2 pretends to be the database that container 1 has called, with its own MAC.
    let forged = frame(12, 10, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, ACK));
    assert_eq!(says(&t, &forged, Hook::PortIn, 12, 0), (Verdict::Denied, Reason::SpoofedAddress));
}

#[test]
fn a_port_that_is_not_known_yet_is_closed_and_so_is_the_bridge_behind_it() {
    let t = open();
    let f = frame(13, 10, "10.1.0.11", "10.2.0.21", 6, &tcp(1, 2, SYN));
    assert_eq!(says(&t, &f, Hook::PortIn, 13, 0), (Verdict::Denied, Reason::UnknownSource));
    assert_eq!(says(&t, &f, Hook::PortIn, 99, 0), (Verdict::Denied, Reason::UnknownSource));
    assert_eq!(says(&t, &f, Hook::BridgeIn, 10, 10), (Verdict::Denied, Reason::UnknownSource));
    for ingress in [13, 10, 99] {
        assert_eq!(
            says(&t, &f, Hook::PortOut, 21, ingress),
            (Verdict::Denied, Reason::UnknownSource),
            "{ingress}"
        );
    }
}

#[test]
fn an_address_of_a_tiers_network_that_nobody_has_is_unknown_but_to_the_host() {
    let t = open();
    let f = syn("10.1.0.11", "10.2.0.99");
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::UnknownDestination));
    let f = frame(10, 20, "10.2.0.1", "10.2.0.99", 6, &tcp(1, 2, SYN));
    assert_eq!(says(&t, &f, Hook::BridgeOut, 20, 0), (Verdict::Allowed, Reason::FromHost));
}

#[test]
fn a_frame_for_somebody_elses_mac_is_refused() {
    let mut t = world();
    t.cells.insert((APP.0, 1), Cell::decision(4));
    // Allowed to the outside, but addressed to a neighbour's MAC: he would get it.
    let f = ethernet(mac(11), mac(12), 0x0800, &network("10.1.0.11", "8.8.8.8", 17, &udp(1, 53)));
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::WrongMac));
    let f = frame(11, 10, "10.1.0.11", "8.8.8.8", 17, &udp(1, 53));
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Rule));
}

#[test]
fn nothing_stands_in_for_the_mac_of_what_is_behind_an_unlisted_port() {
    // Port 14 of the first bridge leads to what nobody lists: its tier's unlisted addresses are true on it.
    let mut t = world();
    let unbound = hydra_common::tables::Link {
        identity: [APP; 2],
        bridge: 10,
        kind: LinkKind::Port as u8,
        flags: hydra_common::tables::Link::UNBOUND,
        gateway_mac: mac(10),
        ..hydra_common::tables::Link::default()
    };
    t.links.insert(14, unbound);
    t.prefixes.retain(|(_, _, row)| row.identity != APP);
    let flags = PrefixRow::INTERIOR | PrefixRow::OPEN;
    t.prefixes.push((ip("10.1.0.0"), 120, PrefixRow { identity: APP, flags }));
    t.cells.insert((APP.0, 1), Cell::decision(4));
    for (address, macs) in [("10.1.0.11", 11), ("10.1.0.12", 12)] {
        let row = t.endpoints[&ip(address)];
        t.endpoints.insert(hydra_common::address::Address::link_local_of(&mac(macs)), row);
    }
    let sent = |by: u32, to_mac: u8, from: &str, to: &str| {
        let f = ethernet(mac(by as u8), mac(to_mac), 0x0800, &network(from, to, 17, &udp(1, 53)));
        judge(&t, &f, &at(Hook::PortIn, by, 0)).1.reason
    };
    // A machine there to a container, to another machine there, to the outside by the gateway and by a router of its own.
    assert_eq!(sent(14, 11, "10.1.0.77", "10.1.0.11"), Reason::IntraTier);
    assert_eq!(sent(14, 78, "10.1.0.77", "10.1.0.78"), Reason::IntraTier);
    assert_eq!(sent(14, 10, "10.1.0.77", "8.8.8.8"), Reason::Rule);
    assert_eq!(sent(14, 99, "10.1.0.77", "8.8.8.8"), Reason::Rule);
    // Under the right of somebody else's address to a container's MAC.
    for to in ["8.8.8.8", "10.1.0.78", "10.1.0.12"] {
        assert_eq!(sent(14, 11, "10.1.0.77", to), Reason::WrongMac, "{to}");
    }
    assert_eq!(sent(14, 99, "10.1.0.77", "10.1.0.11"), Reason::WrongMac);
    // A container to a machine there, and to nobody else's MAC in its name.
    assert_eq!(sent(11, 78, "10.1.0.11", "10.1.0.78"), Reason::IntraTier);
    assert_eq!(sent(11, 12, "10.1.0.11", "10.1.0.78"), Reason::WrongMac);
    assert_eq!(sent(11, 99, "10.1.0.11", "8.8.8.8"), Reason::WrongMac);
}

#[test]
fn host_and_outside_are_judged_where_the_container_receives() {
    let mut t = world();
    let to = |from: &str| frame(10, 21, from, "10.2.0.21", 6, &tcp(40_000, 5432, SYN));
    let o = judge(&t, &to("10.2.0.1"), &at(Hook::PortOut, 21, 0)).1;
    assert_eq!(
        (o.verdict, o.reason, o.way, o.path),
        (Verdict::Allowed, Reason::FromHost, Way::Judged, Path::Stack)
    );
    assert_eq!(says(&t, &to("192.0.2.9"), Hook::PortOut, 21, 2), (Verdict::Denied, Reason::NoRule));
    t.cells.insert((1, DB.0), Cell::decision(4));
    assert_eq!(says(&t, &to("192.0.2.9"), Hook::PortOut, 21, 2), (Verdict::Allowed, Reason::Rule));
    // The bridge leaves to the port what the port's own program judges.
    let o = judge(&t, &to("192.0.2.9"), &at(Hook::BridgeOut, 20, 2)).1;
    assert_eq!((o.verdict, o.way, o.step), (Verdict::Allowed, Way::Leave, Step::Nothing));
    t.endpoints.get_mut(&ip("10.2.0.21")).unwrap().flags = 0;
    assert_eq!(says(&t, &to("198.51.100.1"), Hook::BridgeOut, 20, 2), (Verdict::Allowed, Reason::Rule));
}

#[test]
fn inner_addresses_from_outside_are_forged() {
    let t = open();
    for from in ["10.1.0.11", "10.1.0.99", "10.1.0.1"] {
        let f = frame(10, 21, from, "10.2.0.21", 6, &tcp(1, 5432, SYN));
        assert_eq!(
            says(&t, &f, Hook::PortOut, 21, 2),
            (Verdict::Denied, Reason::SpoofedAddress),
            "uplink {from}"
        );
        assert_eq!(
            says(&t, &f, Hook::PortOut, 21, 30),
            (Verdict::Denied, Reason::SpoofedAddress),
            "unmanaged {from}"
        );
    }
    let f = frame(10, 21, "172.17.0.5", "10.2.0.21", 6, &tcp(1, 5432, SYN));
    let o = judge(&t, &f, &at(Hook::PortOut, 21, 30)).1;
    assert_eq!((o.verdict, o.reason, o.source), (Verdict::Denied, Reason::NoRule, Identity::UNMANAGED));
}

#[test]
fn machines_elsewhere_have_the_tier_of_their_block() {
    let mut t = world();
    let row = PrefixRow { identity: APP, flags: 0 };
    t.prefixes.push((ip("192.168.1.250"), 128, row));
    t.cells.insert((APP.0, DB.0), Cell::decision(4));
    let f = |from| frame(10, 21, from, "10.2.0.21", 6, &tcp(1, 5432, SYN));
    assert_eq!(says(&t, &f("192.168.1.250"), Hook::PortOut, 21, 2), (Verdict::Allowed, Reason::Rule));
    assert_eq!(says(&t, &f("192.168.1.251"), Hook::PortOut, 21, 2), (Verdict::Denied, Reason::NoRule));
}

#[test]
fn frames_for_many_are_checked_where_sent_and_judged_where_received() {
    let t = world();
    let f = ethernet(
        mac(11),
        hydra_common::address::Mac([1, 0, 0x5e, 0, 0, 251]),
        0x0800,
        &network("10.1.0.11", "224.0.0.251", 17, &udp(5353, 5353)),
    );
    let o = judge(&t, &f, &at(Hook::PortIn, 11, 0)).1;
    assert_eq!(
        (o.verdict, o.reason, o.way, o.step),
        (Verdict::Allowed, Reason::NotJudged, Way::Checked, Step::Nothing)
    );
    assert_eq!(says(&t, &f, Hook::PortOut, 12, 11), (Verdict::Allowed, Reason::IntraTier));
    assert_eq!(says(&t, &f, Hook::PortOut, 21, 11), (Verdict::Denied, Reason::NoRule));
    let mut host = at(Hook::BridgeIn, 10, 10);
    host.mark = MARK_CHECKED;
    assert_eq!(judge(&t, &f, &host).1.reason, Reason::NoRule);
    host.mark = MARK_JUDGED & 0x1fff_ffff;
    assert_eq!(judge(&t, &f, &host).1.reason, Reason::UnknownSource);
}

#[test]
fn a_group_message_from_the_address_of_another_port_reaches_the_host() {
    // Container 1 gets a second port, 22 on the other bridge, with an address of its own.
    let mut t = world();
    let first = t.links[&11];
    t.links
        .insert(22, hydra_common::tables::Link { bridge: 20, mac: mac(22), gateway_mac: mac(20), ..first });
    let row = t.endpoints[&ip("10.1.0.11")];
    t.endpoints.insert(ip("10.2.0.22"), Endpoint { port: 22, bridge: 20, mac: mac(22), ..row });
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let to = hydra_common::address::Mac([1, 0, 0x5e, 0, 0, 251]);
    let f = ethernet(mac(11), to, 0x0800, &network("10.2.0.22", "224.0.0.251", 17, &udp(5353, 5353)));
    assert_eq!(judge(&t, &f, &at(Hook::PortIn, 11, 0)).1.way, Way::Checked);
    let mut host = at(Hook::BridgeIn, 10, 10);
    host.mark = MARK_CHECKED;
    assert_eq!(judge(&t, &f, &host).1.reason, Reason::Rule);
    // What no port has checked is not believed, and the port still checks.
    host.mark = 0;
    assert_eq!(judge(&t, &f, &host).1.reason, Reason::UnknownSource);
    assert_eq!(says(&t, &f, Hook::PortIn, 22, 0), (Verdict::Denied, Reason::SpoofedMac));
}

#[test]
fn a_group_message_whose_address_was_translated_on_the_bridge_keeps_its_sender() {
    let t = world();
    let to = hydra_common::address::Mac([1, 0, 0x5e, 0, 0, 251]);
    let f = ethernet(mac(11), to, 0x0800, &network("10.1.0.1", "224.0.0.251", 17, &udp(5353, 5353)));
    assert_eq!(says(&t, &f, Hook::PortOut, 12, 11), (Verdict::Denied, Reason::SpoofedAddress));
    let mut checked = at(Hook::PortOut, 12, 11);
    checked.mark = MARK_CHECKED;
    assert_eq!(judge(&t, &f, &checked).1.reason, Reason::IntraTier);
    checked.ifindex = 21;
    assert_eq!(judge(&t, &f, &checked).1.reason, Reason::NoRule);
    // To one receiver there is no such mark, and none is believed.
    let f = frame(11, 10, "10.1.0.1", "10.1.0.12", 17, &udp(5353, 5353));
    checked.ifindex = 12;
    assert_eq!(judge(&t, &f, &checked).1.reason, Reason::SpoofedAddress);
}

#[test]
fn the_link_local_address_of_a_port_reaches_the_host() {
    let mut t = world();
    let own = hydra_common::address::Address::link_local_of(&mac(11));
    let row = t.endpoints[&ip("10.1.0.11")];
    let own_text = std::net::Ipv6Addr::from(own.octets()).to_string();
    t.endpoints.insert(own, row);
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    let f = frame(11, 10, &own_text, "fe80::10", 6, &tcp(1, 53, SYN));
    assert_eq!(judge(&t, &f, &at(Hook::PortIn, 11, 0)).1.way, Way::Checked);
    let mut host = at(Hook::BridgeIn, 10, 10);
    host.mark = MARK_CHECKED;
    assert_eq!(judge(&t, &f, &host).1.reason, Reason::Rule);
    // Nobody else has it.
    let f = frame(12, 10, &own_text, "fe80::10", 6, &tcp(1, 53, SYN));
    assert_eq!(says(&t, &f, Hook::PortIn, 12, 0), (Verdict::Denied, Reason::SpoofedAddress));
}

#[test]
fn nobody_reaches_a_closed_port_the_host_included() {
    let mut t = world();
    let row = t.endpoints[&ip("10.1.0.11")];
    let nobody = Endpoint { identity: [Identity::UNKNOWN; 2], container: Container::NONE, port: 13, ..row };
    t.endpoints.insert(ip("10.1.0.13"), nobody);
    let f = frame(10, 13, "10.1.0.1", "10.1.0.13", 6, &tcp(1, 80, SYN));
    assert_eq!(judge(&t, &f, &at(Hook::BridgeOut, 10, 0)).1.way, Way::Leave);
    assert_eq!(says(&t, &f, Hook::PortOut, 13, 0), (Verdict::Denied, Reason::UnknownDestination));
    let f = frame(11, 13, "10.1.0.11", "10.1.0.13", 6, &tcp(1, 80, SYN));
    assert_eq!(says(&t, &f, Hook::PortIn, 11, 0), (Verdict::Denied, Reason::UnknownDestination));
    let f = frame(11, 13, "10.1.0.11", "10.1.0.13", 6, &tcp(1, 80, SYN));
    assert_eq!(says(&t, &f, Hook::PortOut, 13, 11), (Verdict::Denied, Reason::UnknownDestination));
}

#[test]
fn the_named_list_passes_with_true_addresses_alone() {
    let t = world();
    let arp = |sender: [u8; 4]| {
        let a = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 11][..], &sender, &[0, 0, 0, 0, 0, 0, 10, 1, 0, 1]]
            .concat();
        ethernet(mac(11), hydra_common::address::Mac([255; 6]), 0x0806, &a)
    };
    assert_eq!(says(&t, &arp([10, 1, 0, 11]), Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Arp));
    assert_eq!(says(&t, &arp([0; 4]), Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Arp));
    for claimed in [[10, 1, 0, 12], [10, 1, 0, 1], [10, 1, 0, 77]] {
        assert_eq!(
            says(&t, &arp(claimed), Hook::PortIn, 11, 0),
            (Verdict::Denied, Reason::SpoofedArp),
            "{claimed:?}"
        );
    }
    let message = |kind: u8, target: &str| {
        let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &ip(target).octets()].concat();
        let mut f = frame(11, 10, "fd00:1::11", "ff02::1", 58, &icmp);
        f[14 + 7] = 255;
        f
    };
    assert_eq!(
        says(&t, &message(136, "fd00:1::11"), Hook::PortIn, 11, 0),
        (Verdict::Allowed, Reason::Neighbour)
    );
    assert_eq!(
        says(&t, &message(136, "fd00:2::21"), Hook::PortIn, 11, 0),
        (Verdict::Denied, Reason::SpoofedNeighbour)
    );
    assert_eq!(
        says(&t, &message(134, "fd00:1::11"), Hook::PortIn, 11, 0),
        (Verdict::Denied, Reason::RouterMessage)
    );
    assert_eq!(
        says(&t, &message(137, "fd00:1::11"), Hook::PortIn, 11, 0),
        (Verdict::Denied, Reason::RouterMessage)
    );
    let mut report = message(143, "fd00:1::11");
    report[14 + 7] = 1;
    assert_eq!(says(&t, &report, Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Mld));
    let dhcp = |from: u16, to: u16| frame(11, 10, "0.0.0.0", "255.255.255.255", 17, &udp(from, to));
    assert_eq!(says(&t, &dhcp(68, 67), Hook::PortIn, 11, 0), (Verdict::Allowed, Reason::Dhcp));
    assert_eq!(says(&t, &dhcp(67, 68), Hook::PortIn, 11, 0), (Verdict::Denied, Reason::SpoofedAddress));
}

#[test]
fn an_icmp_error_passes_only_with_its_flow() {
    let mut t = open();
    let quoted = network("10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, SYN));
    let error =
        frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat());
    assert_eq!(says(&t, &error, Hook::PortIn, 21, 0), (Verdict::Denied, Reason::UnmatchedError));
    let _ = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    let o = judge(&t, &error, &at(Hook::PortIn, 21, 0)).1;
    assert_eq!(
        (o.verdict, o.reason, o.way, o.step),
        (Verdict::Allowed, Reason::Related, Way::Peer, Step::Nothing)
    );
}

#[test]
fn unasked_replies_of_icmp_open_no_flow() {
    let t = open();
    let reply = frame(11, 10, "10.1.0.11", "10.2.0.21", 1, &[0, 0, 0, 0, 0x12, 0x34, 0, 1]);
    let o = judge(&t, &reply, &at(Hook::PortIn, 11, 0)).1;
    assert_eq!((o.verdict, o.step), (Verdict::Allowed, Step::Nothing));
}

#[test]
fn a_port_that_was_closed_and_opened_again_is_a_new_conversation() {
    let mut t = open();
    let _ = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    let _ = pass(
        &mut t,
        &frame(11, 10, "10.1.0.11", "10.2.0.21", 6, &segment(4000, 5432, 4, 1, 0, 0)),
        &at(Hook::PortIn, 11, 0),
    );
    let o = judge(&t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0)).1;
    assert_eq!((o.verdict, o.reason, o.step), (Verdict::Allowed, Reason::Rule, Step::Create));
}

#[test]
fn audit_drops_nothing_keeps_the_reason_and_follows_the_conversation() {
    let mut t = world();
    t.heads[1].flags = Head::AUDIT;
    let o = pass(&mut t, &syn("10.1.0.11", "10.2.0.21"), &at(Hook::PortIn, 11, 0));
    assert_eq!(
        (o.verdict, o.reason, o.step, o.way),
        (Verdict::Audited, Reason::NoRule, Step::Create, Way::Judged)
    );
    let reply = frame(21, 20, "10.2.0.21", "10.1.0.11", 6, &tcp(5432, 4000, SYN_ACK));
    let o = judge(&t, &reply, &at(Hook::PortIn, 21, 0)).1;
    assert_eq!((o.verdict, o.reason, o.step, o.source), (Verdict::Audited, Reason::NoRule, Step::Count, APP));
    let forged = syn("10.2.0.21", "10.1.0.12");
    let o = judge(&t, &forged, &at(Hook::PortIn, 11, 0)).1;
    assert_eq!(
        (o.verdict, o.reason, o.step, o.way),
        (Verdict::Audited, Reason::SpoofedAddress, Step::Nothing, Way::Judged)
    );
}
