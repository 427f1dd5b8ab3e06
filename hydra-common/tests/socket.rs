//! What a process is refused at once, and what is left to its packets, on tables in plain collections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use common::{APP, DB, NOW, Plain, ip, world};
use hydra_common::decide::socket::{Call, Refusal, refusal};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::tables::{Cell, Cgroup, CgroupKey, Endpoint, Head, Publish, PublishKey};
use hydra_common::verdict::Reason;

const CGROUP: u64 = 77;
const TCP: u32 = 6;
const UDP: u32 = 17;

/// The tests' world with a cgroup of container 1, an APP, and this host at 192.0.2.1.
fn scene() -> Plain {
    let mut t = world();
    let row = Cgroup {
        netns: 5,
        address: ip("10.1.0.11"),
        identity: [APP; 2],
        container: Container(1),
        ..Cgroup::default()
    };
    t.cgroups.insert(CgroupKey::new(CGROUP, 0), row);
    let host = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
    t.endpoints.insert(ip("192.0.2.1"), host);
    t
}

fn host_stack(t: &mut Plain) {
    let row = t.cgroups.get_mut(&CgroupKey::new(CGROUP, 0)).unwrap();
    (row.flags, row.container) = (Cgroup::HOST, Container::NONE);
}

fn call(to: &str, protocol: u32, port: u16) -> Call {
    Call { cgroup: CGROUP, netns: 5, destination: ip(to), port, source_port: 0, protocol, now: NOW }
}

fn said(t: &Plain, to: &str) -> Option<Refusal> {
    refusal(t, &call(to, TCP, 5432))
}

#[test]
fn what_no_rule_allows_is_refused_with_both_ends() {
    let refusal = said(&scene(), "10.2.0.21").unwrap();
    assert_eq!((refusal.reason, refusal.rule, refusal.protocol), (Reason::NoRule, 0, 6));
    assert_eq!((refusal.source, refusal.destination), (APP, DB));
    assert_eq!((refusal.source_container, refusal.destination_container), (Container(1), Container(3)));
    assert_eq!(refusal.tiers, (Tier(APP.0), Tier(DB.0)));
    assert!(said(&scene(), "10.1.0.12").is_none(), "its own tier");
}

#[test]
fn a_mapped_address_and_multipath_are_what_they_stand_for() {
    let t = scene();
    assert_eq!(said(&t, "::ffff:10.2.0.21"), said(&t, "10.2.0.21"));
    assert_eq!(refusal(&t, &call("10.2.0.21", 262, 5432)), said(&t, "10.2.0.21"));
}

#[test]
fn without_a_policy_or_where_nothing_is_dropped_nobody_is_refused() {
    let mut t = scene();
    t.generation = 0;
    assert!(said(&t, "10.2.0.21").is_none());
    let mut t = scene();
    t.heads[1].flags = Head::AUDIT;
    assert!(said(&t, "10.2.0.21").is_none());
    let mut t = scene();
    t.heads[1].generation += 2;
    assert!(said(&t, "10.2.0.21").is_none());
}

#[test]
fn only_the_own_namespace_and_known_cgroups_count() {
    let t = scene();
    assert!(refusal(&t, &Call { netns: 6, ..call("10.2.0.21", TCP, 5432) }).is_none());
    assert!(refusal(&t, &Call { cgroup: 78, ..call("10.2.0.21", TCP, 5432) }).is_none());
    let mut t = scene();
    t.cgroups.get_mut(&CgroupKey::new(CGROUP, 0)).unwrap().netns = 0;
    assert!(refusal(&t, &Call { netns: 6, ..call("10.2.0.21", TCP, 5432) }).is_some(), "not known: any");
    t.cgroups.get_mut(&CgroupKey::new(CGROUP, 0)).unwrap().flags = Cgroup::MANY;
    assert!(said(&t, "10.2.0.21").is_none());
}

#[test]
fn groups_the_own_stack_and_unknown_neighbours_are_left_to_packets() {
    let t = scene();
    for to in ["224.0.0.1", "255.255.255.255", "ff02::1", "fe80::1", "10.1.0.11", "fd00:1::11", "10.2.0.99"] {
        assert!(said(&t, to).is_none(), "{to}");
    }
    for to in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::"] {
        assert!(said(&t, to).is_none(), "{to}: a container's own loopback");
    }
    assert!(refusal(&t, &call("10.2.0.21", UDP, 0)).is_none(), "asks for a route");
    assert!(refusal(&t, &call("10.2.0.21", UDP, 53)).is_some());
}

#[test]
fn on_the_hosts_stack_loopback_is_the_host() {
    let mut t = scene();
    host_stack(&mut t);
    for to in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "192.0.2.1"] {
        assert_eq!(said(&t, to).map(|r| r.destination), Some(Identity::HOST), "{to}");
    }
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    assert!(said(&t, "127.0.0.1").is_none(), "allowed");
    assert!(said(&t, "10.2.0.21").is_some());
}

#[test]
fn a_published_port_is_its_containers_and_never_the_hosts() {
    let mut t = scene();
    t.cells.insert((APP.0, Identity::HOST.0), Cell::decision(4));
    assert!(said(&t, "192.0.2.1").is_none());
    let mut key =
        PublishKey { address: ip("0.0.0.0"), port: 5432u16.to_be_bytes(), protocol: 6, zero: [0; 5] };
    let row = Publish { identity: [DB; 2], container: Container(3), port: 1, flags: 0 };
    t.published.insert(key, row);
    assert_eq!(said(&t, "192.0.2.1").map(|r| r.destination), Some(DB));
    // Bound to this address it is another's.
    key.address = ip("192.0.2.1");
    t.published.insert(key, Publish { identity: [APP; 2], container: Container(2), ..row });
    assert!(said(&t, "192.0.2.1").is_none());
    host_stack(&mut t);
    assert_eq!(said(&t, "127.0.0.1").map(|r| r.destination), Some(DB), "a proxy listens there");
}

#[test]
fn one_identity_that_may_is_enough() {
    let mut t = scene();
    let first = t.cgroups[&CgroupKey::new(CGROUP, 0)];
    t.cgroups.insert(CgroupKey::new(CGROUP, 1), Cgroup { identity: [DB; 2], ..first });
    assert!(said(&t, "10.2.0.21").is_none(), "as one of its own tier");
    t.cells.insert((DB.0, DB.0), Cell::decision(0));
    assert_eq!(said(&t, "10.2.0.21").map(|r| r.source), Some(APP), "the first refusal is told");
}

#[test]
fn what_neither_end_protects_is_not_judged() {
    let mut t = scene();
    t.cgroups.get_mut(&CgroupKey::new(CGROUP, 0)).unwrap().identity = [Identity::UNMANAGED; 2];
    assert!(said(&t, "192.0.2.1").is_none());
    assert!(said(&t, "198.51.100.1").is_none());
    assert!(said(&t, "10.2.0.21").is_some());
}

#[test]
fn the_answer_of_a_datagram_server_is_left_to_its_packets() {
    let mut t = scene();
    let asked = Call { source_port: 53, ..call("10.2.0.21", UDP, 4000) };
    assert!(refusal(&t, &asked).is_some(), "nobody has asked");
    let mut key = FlowKey {
        a: ip("10.2.0.21"),
        b: ip("10.1.0.11"),
        port_a: 4000u16.to_be_bytes(),
        port_b: 53u16.to_be_bytes(),
        protocol: 17,
        ..FlowKey::default()
    };
    key.canonical();
    t.flows.insert(key, Flow { seen: NOW, created: NOW, ..Flow::default() });
    assert!(refusal(&t, &asked).is_none());
    assert!(refusal(&t, &Call { source_port: 54, ..asked }).is_some(), "by another socket");
    host_stack(&mut t);
    assert!(refusal(&t, &Call { source_port: 54, ..asked }).is_none(), "its packets have their own hook");
}
