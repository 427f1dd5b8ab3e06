//! What the kernel should hold in worlds made by hand.

use hydra_common::id::Tier;
use hydra_common::tables::{Cell, Decision, IdentityRow, Interval, RuleSet};
use hydra_common::verdict::Reason;

use super::*;
use crate::desired::Publish;
use crate::inventory::snapshot::Binding;
use crate::placement::tests::{Scene, ip, lan, mac};
use crate::placement::{TierClaim, tests::strings};
use crate::policy::rows::Class;
use crate::published::NotEnforced;

/// A matrix of these owners, where only these pairs pass.
fn matrix(owners: &[&str], allowed: &[(&str, &str)]) -> Arc<Compiled> {
    let mut c = Compiled::default();
    let decision = |verdict: Verdict| {
        (Decision { verdict: verdict as u8, reason: Reason::NoRule as u8, ..Decision::default() }, None)
    };
    c.decisions = vec![decision(Verdict::Denied), decision(Verdict::Allowed)];
    let all: Vec<&str> =
        ["external", "host", "unmanaged"].into_iter().chain(owners.iter().copied()).collect();
    let number = |name: &str| Identity(all.iter().position(|o| *o == name).unwrap() as u16 + 1);
    for name in &all {
        let class = Class { owner: owner(name), blocks: Vec::new() };
        c.names.insert(class.owner.clone(), number(name));
        c.identities.insert(number(name), (class, IdentityRow { tier: Tier(1), flags: 0 }));
    }
    for (a, b) in allowed {
        c.cells.insert((number(a), number(b)), Cell::decision(1));
    }
    Arc::new(c)
}

fn owner(text: &str) -> Owner {
    match (text, text.split_once('/')) {
        ("external", _) => Owner::External,
        ("host", _) => Owner::Host,
        ("unmanaged", _) => Owner::Unmanaged,
        (_, Some((tier, service))) => Owner::Service { tier: tier.into(), service: service.into() },
        (_, None) => Owner::Tier(text.into()),
    }
}

const OWNERS: &[&str] = &["apps", "databases", "databases/postgres"];
const APPS: Identity = Identity(4);
const DATABASES: Identity = Identity(5);
const POSTGRES: Identity = Identity(6);

fn wanted(s: &Scene) -> Desired {
    desired(7, &matrix(OWNERS, &[]), &s.place(), &s.snapshot, &Uplinks::Auto)
}

#[test]
fn an_endpoint_is_whole() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
    let d = wanted(&s);
    assert_eq!(d.revision, 7);
    let pg = d.endpoints[&Address::from(ip("10.2.0.5"))];
    assert_eq!(
        pg,
        Endpoint {
            identity: POSTGRES,
            container: Container(1),
            port: 101,
            bridge: 20,
            flags: tables::Endpoint::ATTACHED | tables::Endpoint::PEER,
            mtu: 1500,
            mac: mac(0x1000 + 101),
            gateway_mac: mac(20),
        }
    );
    let web = d.endpoints[&Address::from(ip("10.1.0.5"))];
    assert_eq!((web.identity, web.container), (APPS, Container(2)));
    let gateway = d.endpoints[&Address::from(ip("10.2.0.1"))];
    assert_eq!(
        gateway,
        Endpoint { identity: Identity::HOST, flags: tables::Endpoint::HOST, ..Endpoint::default() }
    );
}

#[test]
fn a_port_has_the_link_local_address_of_its_mac_unless_another_has_it_too() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("both", &[(102, 10, "front", &["10.1.0.5"]), (103, 20, "back", &["10.2.0.6"])]);
    let local = |n: u32| Address::link_local_of(&mac(0x1000 + n));
    let d = wanted(&s);
    let row = d.endpoints[&local(101)];
    assert_eq!((row.identity, row.container, row.port, row.bridge), (POSTGRES, Container(2), 101, 20));
    assert_eq!(row.mac, mac(0x1000 + 101));
    // What no service names is on each of its networks what that makes of it.
    assert_eq!((d.endpoints[&local(102)].identity, d.endpoints[&local(103)].identity), (APPS, DATABASES));
    s.snapshot.stacks[1].attachments[0].mac = mac(0x1000 + 101);
    let d = wanted(&s);
    assert!(!d.endpoints.contains_key(&local(101)));
    assert!(d.endpoints.contains_key(&local(103)));
}

#[test]
fn closed_ports_are_nobodys_on_whatever_network_they_are() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("both", &[(103, 20, "back", &["10.2.0.6"]), (104, 30, "bridge", &["172.17.0.6"])]);
    let open = wanted(&s);
    assert_eq!(open.links[&104].identity, Identity::UNMANAGED);
    assert!(open.endpoints.contains_key(&Address::from(ip("10.2.0.6"))));
    s.claims.multihome = crate::policy::file::Multihome::Deny;
    let d = wanted(&s);
    for port in [103, 104] {
        let link = d.links[&port];
        assert_eq!(
            (link.kind, link.identity, link.container),
            (LinkKind::Port, Identity::UNKNOWN, Container::NONE)
        );
        assert_eq!(link.flags, 0);
        let local = d.endpoints[&Address::link_local_of(&link.mac)];
        assert_eq!((local.identity, local.container, local.port), (Identity::UNKNOWN, Container::NONE, port));
        assert!(
            d.hooks.contains(&(port, Hook::PortIn)) && d.hooks.contains(&(port, Hook::PortOut)),
            "{port}"
        );
    }
    for address in ["10.2.0.6", "172.17.0.6"] {
        let row = d.endpoints[&Address::from(ip(address))];
        assert_eq!((row.identity, row.container), (Identity::UNKNOWN, Container::NONE), "{address}");
        assert_ne!(row.flags & tables::Endpoint::ATTACHED, 0, "{address}");
    }
}

#[test]
fn every_interface_but_loopback_has_a_kind() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("lone", &[(103, 30, "bridge", &["172.17.0.2"])]);
    s.namespace("lan", &[(104, 0, "", &["192.0.2.1"])]);
    s.link(105, "veth-fresh", LinkType::Veth, Some(20), []);
    s.link(106, "tap0", LinkType::Other, Some(20), []);
    s.bridge(40, "br-lan", ["192.0.2.200/24"]);
    s.link(41, "eth1", LinkType::Other, Some(40), []);
    let d = wanted(&s);
    let kind = |n: u32| (d.links[&n].kind, d.links[&n].identity, d.links[&n].container, d.links[&n].bridge);
    assert!(!d.links.contains_key(&1));
    assert_eq!(kind(2), (LinkKind::Uplink, Identity::EXTERNAL, Container::NONE, 0));
    assert_eq!(kind(20), (LinkKind::Bridge, DATABASES, Container::NONE, 20));
    assert_eq!(kind(30), (LinkKind::Unmanaged, Identity::UNMANAGED, Container::NONE, 30));
    assert_eq!(kind(101), (LinkKind::Port, POSTGRES, Container(2), 20));
    assert_eq!(kind(103), (LinkKind::Unmanaged, Identity::UNMANAGED, Container::NONE, 30));
    assert_eq!(kind(104), (LinkKind::Uplink, Identity::EXTERNAL, Container::NONE, 0));
    assert_eq!(kind(105), (LinkKind::Port, Identity::UNKNOWN, Container::NONE, 20), "closed until known");
    assert_eq!(kind(106), (LinkKind::Port, DATABASES, Container::NONE, 20));
    assert_eq!(d.links[&106].flags, tables::Link::UNBOUND);
    assert_eq!(kind(40), (LinkKind::Uplink, Identity::EXTERNAL, Container::NONE, 40), "the way to the LAN");
    assert_eq!(kind(41), (LinkKind::Uplink, Identity::EXTERNAL, Container::NONE, 40));
    let judged = d.hooks.iter().filter(|(_, hook)| *hook != Hook::UplinkIn);
    let hooked: BTreeSet<u32> = judged.map(|(index, _)| *index).collect();
    assert_eq!(hooked, [10, 20, 101, 105, 106].into());
    assert!(d.hooks.contains(&(20, Hook::BridgeIn)) && d.hooks.contains(&(105, Hook::PortOut)));
    let lone = d.endpoints[&Address::from(ip("172.17.0.2"))];
    assert_eq!((lone.identity, lone.container), (Identity::UNMANAGED, Container::NONE));
}

#[test]
fn a_declared_containers_ports_are_judged_on_every_network() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("web", &[(101, 10, "front", &["10.1.0.5"]), (102, 30, "bridge", &["172.17.0.9"])]);
    let d = wanted(&s);
    assert!(d.hooks.contains(&(102, Hook::PortIn)));
    assert_eq!((d.links[&102].kind, d.links[&102].container), (LinkKind::Port, Container(1)));
    let e = d.endpoints[&Address::from(ip("172.17.0.9"))];
    assert_eq!((e.identity, e.container), (Identity::UNMANAGED, Container(1)));
}

#[test]
fn an_address_whose_class_the_matrix_lacks_asks_for_a_compile() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    let compiled = matrix(&["apps"], &[]);
    assert_eq!(missing(&compiled, &s.place()), [(owner("databases/postgres"), ip("10.2.0.5"))]);
    assert_eq!(missing(&matrix(OWNERS, &[]), &s.place()), []);
}

fn route(to: &str, via: &str) -> Route {
    Route { destination: to.parse().unwrap(), gateway: ip(via), interface: "eth0".into() }
}

#[test]
fn both_ends_of_what_is_allowed_get_routes_and_nobody_else() {
    let mut s = Scene::usual();
    s.bridge(30, "br-lab", ["10.3.0.1/24"]);
    s.network("lab", 30, ["10.3.0.0/24"]);
    s.tier("lab", TierClaim { networks: strings(["lab"]), ..TierClaim::default() });
    s.container("pg", &[(101, 20, "back", &["10.2.0.5", "fd02::5"])]);
    s.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
    s.container("other", &[(103, 30, "lab", &["10.3.0.5"])]);
    let compiled =
        matrix(&["apps", "databases", "databases/postgres", "lab"], &[("apps", "databases/postgres")]);
    let routes = routes(&compiled, &s.place(), 0);
    assert_eq!(routes["key-web"], [route("10.2.0.0/24", "10.1.0.1")].into());
    assert_eq!(routes["key-pg"], [route("10.1.0.0/24", "10.2.0.1")].into(), "replies go the same way back");
    assert_eq!(routes["key-other"], [].into());
}

#[test]
fn a_stack_on_the_peers_network_needs_no_route() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("web", &[(102, 10, "front", &["10.1.0.5"]), (103, 20, "back", &["10.2.0.6"])]);
    let compiled = matrix(OWNERS, &[("apps", "databases/postgres")]);
    let routes = routes(&compiled, &s.place(), 0);
    assert_eq!(routes["key-web"], [].into());
    assert_eq!(routes["key-pg"], [route("10.1.0.0/24", "10.2.0.1")].into());
}

#[test]
fn a_rule_set_or_a_chain_that_allows_anything_counts_until_it_expires() {
    let mut c = Compiled::clone(&matrix(OWNERS, &[]));
    c.rule_sets.push(RuleSet { start: 0, count: 2 });
    c.intervals = vec![Interval { from: 0, decision: 0 }, Interval { from: 6 << 16, decision: 2 }];
    // Denied until some day, then allowed.
    let closing = Decision { next: 1, verdict: Verdict::Denied as u8, ..Decision::default() };
    c.decisions.push((closing, Some(1_900_000_000)));
    c.cells.insert((APPS, DATABASES), Cell::rule_set(0));
    assert!(passes(&c, APPS, DATABASES, 0));
    assert!(!passes(&c, DATABASES, APPS, 0));
    // Allowed until some day, then denied.
    c.decisions[2] = (Decision { next: 0, verdict: Verdict::Allowed as u8, ..closing }, Some(1_900_000_000));
    assert!(passes(&c, APPS, DATABASES, 1_899_999_999));
    assert!(!passes(&c, APPS, DATABASES, 1_900_000_000));
}

#[test]
fn routes_are_added_where_none_leads_and_taken_away_with_their_reason() {
    let there = |to: &str, via: &str, ours: bool| StackRoute {
        destination: to.parse().unwrap(),
        gateway: Some(ip(via)),
        interface: "eth0".into(),
        ours,
    };
    let one = route("10.2.0.0/24", "10.1.0.1");
    let want: BTreeSet<Route> = [one.clone()].into();
    assert_eq!(route_changes(&want, &[]), (vec![one.clone()], vec![]));
    assert_eq!(route_changes(&want, &[there("10.2.0.0/24", "10.1.0.1", true)]), (vec![], vec![]));
    assert_eq!(route_changes(&want, &[there("0.0.0.0/0", "10.1.0.1", false)]), (vec![], vec![]));
    assert_eq!(route_changes(&want, &[there("::/0", "fd01::1", false)]), (vec![one.clone()], vec![]));
    assert_eq!(
        route_changes(
            &[].into(),
            &[there("10.2.0.0/24", "10.1.0.1", true), there("10.9.0.0/24", "10.1.0.1", false)]
        ),
        (vec![], vec![one.clone()])
    );
    // Its gateway has moved.
    assert_eq!(
        route_changes(&want, &[there("10.2.0.0/24", "10.1.0.254", true)]),
        (vec![one], vec![route("10.2.0.0/24", "10.1.0.254")])
    );
}

#[test]
fn views_are_what_an_operator_asks_for() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    let views = views(&matrix(OWNERS, &[]), &s.place(), &s.snapshot, &[101].into());
    let v = &views[0];
    assert_eq!(
        (v.container.as_str(), v.tier.as_str(), v.service.as_str(), v.network.as_str(), v.bridge.as_str()),
        ("pg", "databases", "postgres", "back", "br-back")
    );
    assert_eq!(
        (v.port.as_str(), v.address.as_str(), v.identity, v.attached),
        ("veth101", "10.2.0.5", POSTGRES, true)
    );
}

fn publish(s: &mut Scene, container: &str, address: &str, port: u16, target: &str, proxied: bool) {
    s.snapshot.bindings.push(Binding {
        address: ip(address),
        protocol: 6,
        port,
        container: container.into(),
        stack: Some(format!("key-{container}")),
        network: String::new(),
        target: Some(ip(target)),
        target_port: 80,
        proxied,
    });
}

fn key(address: &str, port: u16) -> tables::PublishKey {
    let address = Address::from(ip(address));
    tables::PublishKey { address, port: port.to_be_bytes(), protocol: 6, zero: [0; 5] }
}

#[test]
fn a_published_port_has_the_identity_behind_it_and_nobody_s_where_that_is_not_known() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("lone", &[(103, 30, "bridge", &["172.17.0.2"])]);
    publish(&mut s, "pg", "0.0.0.0", 5432, "10.2.0.5", false);
    publish(&mut s, "pg", "::", 5432, "10.2.0.5", true);
    publish(&mut s, "lone", "198.51.100.5", 9000, "172.17.0.2", false);
    publish(&mut s, "gone", "0.0.0.0", 9001, "10.2.0.9", false);
    let d = wanted(&s);
    let row = |address, port| d.published[&key(address, port)];
    let pg = Publish { identity: POSTGRES, container: Container(2), port: 80, flags: 0 };
    let pg = Publish { container: row("0.0.0.0", 5432).container, ..pg };
    assert_ne!(pg.container, Container::NONE);
    assert_eq!(row("0.0.0.0", 5432), pg);
    assert_eq!(row("::", 5432), Publish { flags: tables::Publish::PROXIED, ..pg });
    let lone = Publish { identity: Identity::UNMANAGED, container: Container::NONE, port: 80, flags: 0 };
    assert_eq!(row("198.51.100.5", 9000), lone, "no tier has it");
    assert_eq!(row("0.0.0.0", 9001), Publish { identity: Identity::UNKNOWN, ..lone });
    assert_eq!(d.published.len(), 4);
}

/// An uplink, a bridge that leads outside with a card, a tap and a veth, an unmanaged bridge with a container, a cable.
fn around() -> Scene {
    let mut s = Scene::usual();
    s.bridge(40, "br0", ["192.0.2.1/24"]);
    s.link(41, "eth1", LinkType::Other, Some(40), []);
    s.link(42, "tap0", LinkType::Other, Some(40), []);
    s.link(43, "vethvm", LinkType::Veth, Some(40), []);
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
    s.container("lone", &[(103, 30, "bridge", &["172.17.0.2"])]);
    s.namespace("lan", &[(104, 0, "", &["192.0.2.1"])]);
    s
}

fn uplinks(s: &Scene, uplinks: &Uplinks) -> Vec<String> {
    let d = desired(7, &matrix(OWNERS, &[]), &s.place(), &s.snapshot, uplinks);
    let hooked = d.hooks.iter().filter(|(_, hook)| *hook == Hook::UplinkIn);
    hooked.map(|(index, _)| s.snapshot.links[index].name.clone()).collect()
}

fn named(names: &[&str]) -> Uplinks {
    Uplinks::Named(names.iter().map(ToString::to_string).collect())
}

#[test]
fn clients_of_published_ports_are_met_on_every_way_in_once() {
    let mut s = around();
    s.link(51, "fresh", LinkType::Veth, None, []);
    s.snapshot.links.get_mut(&51).unwrap().peer_elsewhere = false;
    // Not on lo, on a veth that is about to be moved, on a tier's bridge or port, on a port of docker0, or again on br0.
    assert_eq!(uplinks(&s, &Uplinks::Auto), ["eth0", "docker0", "eth1", "tap0", "vethvm", "veth104"]);
    assert_eq!(uplinks(&s, &Uplinks::None), ["docker0"], "what is unmanaged is no matter of uplinks");
    assert_eq!(uplinks(&s, &named(&["eth0", "wg0"])), ["eth0", "docker0"], "wg0 may come");
    assert_eq!(uplinks(&s, &named(&["br0"])), ["docker0", "eth1", "tap0", "vethvm"]);
}

#[test]
fn an_uplink_that_is_left_out_is_said_where_docker_proxy_would_hide_its_clients() {
    let mut s = around();
    let said = |s: &Scene, uplinks: &Uplinks| -> Vec<NotEnforced> {
        let placement = s.place();
        let d = desired(7, &matrix(OWNERS, &[]), &placement, &s.snapshot, uplinks);
        left_out(&d.links, &placement, &s.snapshot, uplinks)
    };
    publish(&mut s, "pg", "0.0.0.0", 5432, "10.2.0.5", false);
    publish(&mut s, "pg", "::1", 5432, "10.2.0.5", true);
    publish(&mut s, "lone", "::", 9000, "172.17.0.2", true);
    assert_eq!(
        said(&s, &Uplinks::None),
        [],
        "netfilter keeps the client's address; nobody comes to loopback"
    );
    publish(&mut s, "pg", "::", 5432, "10.2.0.5", true);
    assert_eq!(said(&s, &Uplinks::Auto), []);
    let open = said(&s, &named(&["eth0", "br0"]));
    assert_eq!(
        open,
        [NotEnforced {
            what: "veth104".into(),
            why: "the setting `uplinks` leaves it out: who reaches `pg` by docker-proxy there (:: tcp/5432) is not judged".into()
        }]
    );
    s.link(50, "wg0", LinkType::Other, None, ["203.0.113.1/24"]);
    s.snapshot.links.get_mut(&50).unwrap().mac = Mac::ZERO;
    assert!(!uplinks(&s, &Uplinks::Auto).contains(&"wg0".to_owned()));
    let [tunnel] = said(&s, &Uplinks::Auto).try_into().unwrap();
    assert_eq!(tunnel.what, "wg0");
    assert!(tunnel.why.starts_with("it carries no Ethernet frames: "), "{}", tunnel.why);
}

#[test]
fn a_cgroups_addresses_without_a_port_come_first_and_every_port_is_named() {
    let mut s = Scene::usual();
    s.network("lan", 0, ["198.51.100.0/24"]);
    s.snapshot.networks.get_mut("lan").unwrap().driver = "ipvlan".into();
    s.claims.tiers.get_mut("apps").unwrap().networks.insert("lan".into());
    let ports: &[(u32, u32, &str, &[&str])] =
        &[(101, 10, "front", &["10.1.0.5", "10.1.0.6", "10.1.0.7"]), (102, 20, "back", &["10.2.0.5"])];
    let stack = s.container("pg", ports);
    stack.cgroups = [70].into();
    stack.lans = vec![lan(&["198.51.100.20"])];
    let d = wanted(&s);
    let (lan, many) = (tables::Cgroup::LAN, tables::Cgroup::MANY);
    let rows: Vec<_> =
        d.cgroups.iter().map(|(key, row)| (key.id, key.place, row.flags, row.interface)).collect();
    assert_eq!(
        rows,
        [(70, 0, lan | many, 0), (70, 1, many, 301), (70, 2, many, 302), (70, 3, many, 301)],
        "an interface that no row names is judged"
    );
    assert!(d.cgroups.values().all(|row| row.identity == POSTGRES && row.container == Container(1)));
    // One that it may give itself takes nobody's place that has to be there.
    s.snapshot.networks.get_mut("lan").unwrap().subnets.push("2001:db8:7::/64".parse().unwrap());
    s.snapshot.stacks[0].lans[0].addresses.insert(ip("2001:db8:7::20"));
    let rows: Vec<_> = wanted(&s).cgroups.values().map(|row| (row.flags & lan, row.interface)).collect();
    assert_eq!(rows, [(lan, 0), (lan, 0), (0, 301), (0, 302)]);
    s.snapshot.stacks[0].attachments[0].addresses.clear();
    let rows: Vec<_> = wanted(&s).cgroups.values().map(|row| (row.flags & lan, row.interface)).collect();
    assert_eq!(rows, [(lan, 0), (lan, 0), (0, 302), (lan, 0)]);
    assert!(
        !d.endpoints.contains_key(&Address::from(ip("198.51.100.20"))),
        "it is the outside's to every port"
    );
    let views = views(&matrix(OWNERS, &[]), &s.place(), &s.snapshot, &[0].into());
    let view = views.iter().find(|v| v.address == "198.51.100.20").unwrap();
    assert_eq!((view.network.as_str(), view.port.as_str(), view.attached), ("lan", "", true));
}
