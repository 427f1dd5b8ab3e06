//! Ports that come to a bridge of the policy while nobody looks.

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use hydra_agent::datapath::{Datapath, Mechanism, OBJECT, Room, purge};
use hydra_agent::desired::Desired;
use hydra_agent::published::HookView;
use hydra_common::tables;
use hydra_common::verdict::Hook;
use std::path::Path;
use std::process::Command;

use crate::support::*;

/// A bridge of the policy, whose ports are covered from now on.
fn bridge(datapath: &mut Datapath, desired: &mut Desired) -> u32 {
    ip("link add hybr type bridge");
    let bridge = index("hybr");
    desired.hooks.extend([(bridge, Hook::BridgeIn), (bridge, Hook::BridgeOut)]);
    datapath.sync(desired).unwrap();
    bridge
}

/// Such a bridge, and a port that came to it since.
fn bridge_with_a_port(datapath: &mut Datapath, desired: &mut Desired) -> u32 {
    let bridge = bridge(datapath, desired);
    let port = veth("hyc");
    datapath.early().unwrap().port(port, Some(bridge));
    port
}

/// Filters on both sides of the new port, and links.
fn programs() -> ([usize; 2], [usize; 2]) {
    let links = |side| SchedClassifier::query_tcx("hyc", side).unwrap().1.len();
    let filters = [filters("hyc", "ingress"), filters("hyc", "egress")];
    (filters, [links(TcAttachType::Ingress), links(TcAttachType::Egress)])
}

/// The port's filters go, by somebody else's hand.
fn remove_qdisc() {
    let removed = Command::new("tc").args(["qdisc", "del", "dev", "hyc", "clsact"]).status();
    assert!(removed.unwrap().success());
}

const NONE: ([usize; 2], [usize; 2]) = ([0, 0], [0, 0]);
const FILTERS: ([usize; 2], [usize; 2]) = ([1, 1], [0, 0]);
const LINKS: ([usize; 2], [usize; 2]) = ([0, 0], [1, 1]);

/// Of the hooks of one interface: hook, mechanism, position.
fn names(hooks: &[HookView], port: u32) -> Vec<(&str, &str, u32)> {
    let on = hooks.iter().filter(|h| h.ifindex == port);
    on.map(|h| (h.hook.as_str(), h.mechanism.as_str(), h.position)).collect()
}

fn marks(bpffs: &Path) -> usize {
    let links = std::fs::read_dir(root(bpffs).join("links")).unwrap();
    links.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("-clsact")).count()
}

#[test]
fn a_new_port_has_filters_at_once_and_links_when_it_is_calm() {
    apart(|bpffs| {
        let (mut desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        let early = datapath.early().unwrap();
        let c = veth("hyc");
        early.port(c, Some(7));
        assert_eq!(programs(), NONE, "without a policy they would deny everything");
        let bridge = bridge(&mut datapath, &mut desired);
        early.port(c, Some(bridge + 1));
        assert_eq!(programs(), NONE, "a bridge that the policy does not name");
        early.port(c, Some(bridge));
        early.port(c, Some(bridge));
        early.port(a, Some(bridge));
        assert_eq!((programs(), marks(bpffs)), (FILTERS, 2));
        assert_eq!(filters("hya", "ingress"), 0, "it has its links");

        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.covered.first().map(|(port, _)| *port), Some(c));
        assert_eq!((programs(), report.detached), (FILTERS, vec![]), "a pass that began before it came");
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.repaired, programs()), (vec![], vec![], FILTERS));
        let wait = (names(&report.hooks, c), datapath.verify(&desired));
        assert_eq!(wait, (vec![("port-in", "clsact", 0), ("port-out", "clsact", 0)], vec![]));
        assert_eq!(
            endpoint(bpffs, "10.1.0.3").unwrap().flags & tables::Endpoint::ATTACHED,
            tables::Endpoint::ATTACHED
        );
        assert!(datapath.settle().is_none(), "a port is new");
        let hooks = settle(&mut datapath);
        assert_eq!(names(&hooks, c), [("port-in", "tcx", 0), ("port-out", "tcx", 0)]);
        assert_eq!((programs(), marks(bpffs), datapath.verify(&desired)), (LINKS, 0, vec![]));
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.mended, report.hooks), (vec![], vec![], hooks));
        assert!(datapath.settle().is_none(), "nothing waits any more");

        // What the kernel says of a port that has its programs makes it no newer.
        early.port(c, Some(bridge));
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
        early.port(c, Some(bridge));
        datapath.sync(&desired).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.detached, [(c, Hook::PortIn), (c, Hook::PortOut)], "one that has seen where it is");
        assert_eq!((programs(), marks(bpffs)), (NONE, 0));

        desired.hooks.retain(|(index, _)| *index != bridge);
        datapath.sync(&desired).unwrap();
        early.port(c, Some(bridge));
        assert_eq!(programs(), NONE, "the policy names the bridge no more");
    });
}

#[test]
fn filters_that_an_agent_left_when_it_died_are_found_by_the_next_and_by_purge() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        let bridge = index("hybr");
        drop(datapath);
        assert_eq!(programs(), FILTERS);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let mut datapath = open(bpffs);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.mended, programs()), (vec![], vec![], FILTERS), "they go on");
        settle(&mut datapath);
        assert_eq!((programs(), marks(bpffs)), (LINKS, 0));

        ip("link del hyc");
        let c = veth("hyc");
        datapath.early().unwrap().port(c, Some(bridge));
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
        datapath.early().unwrap().port(c, Some(bridge));
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
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.mended), (vec![], vec![]));
        assert_eq!((programs(), datapath.verify(&desired)), (FILTERS, vec![]));
    });
}

#[test]
fn a_filter_that_waits_for_its_link_lets_nobody_in_front_and_is_not_missed() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        datapath.sync(&desired).unwrap();
        assert_eq!(datapath.verify(&desired), vec![]);

        // Programs of others are TCX's, which run before every filter.
        let mut other = foreign();
        let program: &mut SchedClassifier =
            other.program_mut(hydra_common::names::PROGRAMS[0]).unwrap().try_into().unwrap();
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options("hyc", TcAttachType::Ingress, first).unwrap();
        let wrong = datapath.verify(&desired);
        let why = format!("others run before hydra's at port-in: program {}", program.info().unwrap().id());
        assert_eq!(wrong.iter().map(|w| (w.what.as_str(), &w.why)).collect::<Vec<_>>(), [("hyc", &why)]);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.mended, report.repaired), (vec![(c, Hook::PortIn)], wrong));
        assert_eq!((programs(), datapath.verify(&desired)), (([0, 1], [2, 0]), vec![]));
        assert_eq!(names(&report.hooks, c), [("port-in", "tcx", 0), ("port-out", "clsact", 0)]);

        // Somebody takes the other filter away.
        remove_qdisc();
        let wrong = datapath.verify(&desired);
        assert_eq!(wrong.iter().map(|w| w.why.as_str()).collect::<Vec<_>>(), ["no program at port-out"]);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.repaired), (vec![(c, Hook::PortOut)], wrong));
        assert_eq!((programs(), marks(bpffs), datapath.verify(&desired)), (([0, 0], [2, 1]), 0, vec![]));
    });
}

#[test]
fn another_object_takes_the_place_of_filters_that_wait() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        datapath.sync(&desired).unwrap();
        drop(datapath);
        let object = [OBJECT, &[0]].concat();
        let mut datapath = Datapath::open_object(bpffs, Mechanism::Auto, Room::default(), &object).unwrap();
        let report = datapath.sync(&desired).unwrap();
        let mended = |hook| report.mended.contains(&(c, hook));
        assert!(mended(Hook::PortIn) && mended(Hook::PortOut), "{:?}", report.mended);
        assert_eq!((programs(), datapath.verify(&desired)), (FILTERS, vec![]));
        assert_eq!(
            std::fs::read_dir(root(bpffs).join("programs")).unwrap().count(),
            1,
            "the old ones are gone"
        );
        settle(&mut datapath);
        assert_eq!((programs(), marks(bpffs), datapath.verify(&desired)), (LINKS, 0, vec![]));
    });
}

#[test]
fn a_port_is_looked_at_once_as_long_as_it_is_one() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let bridge = bridge(&mut datapath, &mut desired);
        let early = datapath.early().unwrap();
        let c = veth("hyc");
        let again = |between: Option<Option<u32>>| {
            early.port(c, Some(bridge));
            remove_qdisc();
            if let Some(master) = between {
                early.port(c, master);
            }
            early.port(c, Some(bridge));
            let there = programs();
            early.port(c, None);
            there
        };
        assert_eq!(again(None), NONE, "somebody else's hand is the passes' matter");
        assert_eq!(again(Some(None)), FILTERS, "it left the bridge, or its number is another's now");
        assert_eq!(again(Some(Some(bridge + 1))), FILTERS);
    });
}

#[test]
fn a_filter_that_lost_its_mark_does_not_stay_beside_the_link() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        for hook in ["port-in", "port-out"] {
            std::fs::remove_file(root(bpffs).join("links").join(format!("{c}-{hook}-clsact"))).unwrap();
        }
        assert_eq!((programs(), marks(bpffs)), (FILTERS, 0));
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.attached, [(c, Hook::PortIn), (c, Hook::PortOut)]);
        assert_eq!((programs(), datapath.verify(&desired)), (LINKS, vec![]), "a packet is judged once");
    });
}

#[test]
fn a_port_that_comes_with_the_number_of_one_that_is_gone_is_another() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let c = bridge_with_a_port(&mut datapath, &mut desired);
        let bridge = index("hybr");
        let early = datapath.early().unwrap();
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        datapath.sync(&desired).unwrap();
        settle(&mut datapath);
        assert_eq!(programs(), LINKS);
        ip("link del hyc");
        early.port(c, None);
        ip(&format!("link add hyc index {c} type veth peer name hycp"));
        early.port(c, Some(bridge));
        let report = datapath.sync(&desired).unwrap();
        let waiting = [("port-in", "clsact", 0), ("port-out", "clsact", 0)];
        assert_eq!((names(&report.hooks, c), programs()), (waiting.to_vec(), FILTERS));
        let hooks = settle(&mut datapath);
        assert_eq!(names(&hooks, c), [("port-in", "tcx", 0), ("port-out", "tcx", 0)]);
        assert_eq!((programs(), datapath.verify(&desired)), (LINKS, vec![]));
    });
}
