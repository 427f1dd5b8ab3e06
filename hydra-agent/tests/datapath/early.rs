//! Ports that come to a bridge of the policy while nobody looks.

use aya::programs::{SchedClassifier, TcAttachType};
use hydra_agent::datapath::{Datapath, Mechanism, purge};
use hydra_agent::desired::Desired;
use hydra_common::verdict::Hook;
use std::path::Path;

use crate::support::*;

/// A bridge of the policy, whose ports are covered from now on.
fn bridge(datapath: &mut Datapath, desired: &mut Desired) -> u32 {
    ip("link add hybr type bridge");
    let bridge = index("hybr");
    desired.hooks.extend([(bridge, Hook::BridgeIn), (bridge, Hook::BridgeOut)]);
    datapath.sync(desired).unwrap();
    bridge
}

/// Filters on both sides of the new port, and links.
fn programs() -> ([usize; 2], [usize; 2]) {
    let links = |side| SchedClassifier::query_tcx("hyc", side).unwrap().1.len();
    let filters = [filters("hyc", "ingress"), filters("hyc", "egress")];
    (filters, [links(TcAttachType::Ingress), links(TcAttachType::Egress)])
}

const NONE: ([usize; 2], [usize; 2]) = ([0, 0], [0, 0]);
const FILTERS: ([usize; 2], [usize; 2]) = ([1, 1], [0, 0]);
const LINKS: ([usize; 2], [usize; 2]) = ([0, 0], [1, 1]);

fn marks(bpffs: &Path) -> usize {
    let links = std::fs::read_dir(root(bpffs).join("links")).unwrap();
    links.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("-clsact")).count()
}

#[test]
fn a_new_port_has_filters_at_once_and_links_with_the_next_pass() {
    apart(|bpffs| {
        let (mut desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        let early = datapath.early().unwrap();
        let c = veth("hyc");
        early.port(c, 7);
        assert_eq!(programs(), NONE, "without a policy they would deny everything");
        let bridge = bridge(&mut datapath, &mut desired);
        early.port(c, bridge + 1);
        assert_eq!(programs(), NONE, "a bridge that the policy does not name");
        early.port(c, bridge);
        early.port(c, bridge);
        early.port(a, bridge);
        assert_eq!((programs(), marks(bpffs)), (FILTERS, 2));
        assert_eq!(filters("hya", "ingress"), 0, "it has its links");

        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.covered.first().map(|(port, _)| *port), Some(c));
        assert_eq!((programs(), report.detached), (FILTERS, vec![]), "a pass that began before it came");
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.attached, [(c, Hook::PortIn), (c, Hook::PortOut)]);
        assert_eq!((programs(), marks(bpffs)), (LINKS, 0));
        assert_eq!((report.repaired, datapath.verify(&desired)), (vec![], vec![]));

        // What the kernel says of a port that has its programs makes it no newer.
        early.port(c, bridge);
        desired.hooks.retain(|(index, _)| *index != c);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.covered, report.detached), (vec![], vec![(c, Hook::PortIn), (c, Hook::PortOut)]));
        assert_eq!((programs(), marks(bpffs)), (NONE, 0));
    });
}

#[test]
fn filters_of_a_port_that_no_pass_wants_go() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let early = datapath.early().unwrap();
        let bridge = bridge(&mut datapath, &mut desired);
        let c = veth("hyc");
        early.port(c, bridge);
        datapath.sync(&desired).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.detached, [(c, Hook::PortIn), (c, Hook::PortOut)], "one that has seen where it is");
        assert_eq!((programs(), marks(bpffs)), (NONE, 0));

        desired.hooks.retain(|(index, _)| *index != bridge);
        datapath.sync(&desired).unwrap();
        early.port(c, bridge);
        assert_eq!(programs(), NONE, "the policy names the bridge no more");
    });
}

#[test]
fn filters_that_an_agent_left_when_it_died_are_found_by_the_next_and_by_purge() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let bridge = bridge(&mut datapath, &mut desired);
        let c = veth("hyc");
        datapath.early().unwrap().port(c, bridge);
        drop(datapath);
        assert_eq!(programs(), FILTERS);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        assert_eq!((programs(), marks(bpffs)), (LINKS, 0));

        ip("link del hyc");
        let c = veth("hyc");
        datapath.early().unwrap().port(c, bridge);
        drop(datapath);
        // As an older version would have left them.
        std::fs::rename(root(bpffs), bpffs.join("v1")).unwrap();
        desired.hooks.retain(|(index, _)| *index == c);
        desired.hooks.extend([(c, Hook::PortIn), (c, Hook::PortOut)]);
        desired.endpoints.clear();
        desired.links.clear();
        open(bpffs).sync(&desired).unwrap();
        assert_eq!((programs(), bpffs.join("v1").exists()), (LINKS, false));

        ip("link del hyc");
        let mut datapath = open(bpffs);
        let c = veth("hyc");
        desired.hooks = [(bridge, Hook::BridgeIn)].into();
        datapath.sync(&desired).unwrap();
        datapath.early().unwrap().port(c, bridge);
        drop(datapath);
        assert_eq!(programs(), FILTERS);
        assert_eq!(purge(bpffs).unwrap().failed, Vec::<String>::new());
        assert_eq!(programs(), NONE);
    });
}

#[test]
fn where_filters_are_what_is_used_the_pass_keeps_them() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = Datapath::open(bpffs, Mechanism::Clsact).unwrap();
        let bridge = bridge(&mut datapath, &mut desired);
        let c = veth("hyc");
        datapath.early().unwrap().port(c, bridge);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.mended), (vec![], vec![]));
        assert_eq!((programs(), datapath.verify(&desired)), (FILTERS, vec![]));
    });
}
