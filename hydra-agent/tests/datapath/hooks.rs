//! Programs on interfaces that come and go, beside those of others.

use aya::maps::HashMap;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType};
use hydra_agent::datapath::{Datapath, Mechanism, purge};
use hydra_common::address::Address;
use hydra_common::names;
use hydra_common::tables::{self};
use hydra_common::verdict::Hook;
use std::process::Command;

use crate::support::*;

#[test]
fn a_port_that_comes_back_is_covered_again() {
    apart(|bpffs| {
        let (mut desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();

        // The same index, another interface: the pin's link is dead.
        ip("link del hya");
        ip(&format!("link add hya index {a} type veth peer name hyap"));
        let complaints = datapath.verify(&desired);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints.iter().all(|c| c.what == "hya" && c.why.starts_with("no program at port-")));
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.attached, [(a, Hook::PortIn), (a, Hook::PortOut)]);
        assert_eq!(datapath.verify(&desired), Vec::new());

        // Another index: what was the old one's goes away.
        ip("link del hya");
        let c = veth("hyc");
        desired.links.remove(&a);
        desired.hooks.retain(|(ifindex, _)| *ifindex != a);
        container(&mut desired, c, 1, "10.1.0.2", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.detached, [(a, Hook::PortIn), (a, Hook::PortOut)]);
        assert_eq!(report.attached, [(c, Hook::PortIn), (c, Hook::PortOut)]);
        assert!(report.flipped, "a link went away");
        assert_eq!(datapath.verify(&desired), Vec::new());
        assert_eq!(endpoint(bpffs, "10.1.0.2").unwrap().port, c);
    });
}

#[test]
fn a_port_that_can_not_be_attached_is_not_promised() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        container(&mut desired, 4_000, 3, "10.1.0.3", APPS);
        let report = open(bpffs).sync(&desired).unwrap();
        assert_eq!(report.not_enforced.len(), 2, "{:?}", report.not_enforced);
        assert!(report.not_enforced.iter().all(|n| n.what == "#4000"), "{:?}", report.not_enforced);
        assert_eq!(endpoint(bpffs, "10.1.0.3").unwrap().flags, tables::Endpoint::PEER);
        assert_eq!(
            endpoint(bpffs, "10.1.0.2").unwrap().flags,
            tables::Endpoint::PEER | tables::Endpoint::ATTACHED
        );
    });
}

#[test]
fn a_foreign_program_in_front_is_reported_and_passed() {
    apart(|bpffs| {
        let (desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let mut other = foreign();
        let program: &mut SchedClassifier =
            other.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
        program
            .attach_with_options("hya", TcAttachType::Ingress, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .unwrap();
        let other_id = program.info().unwrap().id();
        let complaints = datapath.verify(&desired);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert_eq!(
            (complaints[0].what.as_str(), complaints[0].why.as_str()),
            ("hya", format!("others run before hydra's at port-in: program {other_id}").as_str())
        );
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.mended, [(a, Hook::PortIn)]);
        assert_eq!(report.repaired, complaints);
        assert_eq!((datapath.verify(&desired), datapath.hooks()), (Vec::new(), report.hooks));
        let (_, chain) = SchedClassifier::query_tcx("hya", TcAttachType::Ingress).unwrap();
        let chain: Vec<u32> = chain.iter().map(ProgramInfo::id).collect();
        let ours =
            datapath.hooks().iter().find(|h| h.ifindex == a && h.hook == "port-in").unwrap().program_id;
        assert_eq!(chain, [ours, other_id], "the other one is still there, and nothing of the move is left");
    });
}

#[test]
fn a_pass_looks_at_no_hook_that_no_look_found_wrong() {
    apart(|bpffs| {
        let (desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        let before = datapath.sync(&desired).unwrap().hooks;
        let mut other = foreign();
        let program: &mut SchedClassifier =
            other.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options("hya", TcAttachType::Ingress, first).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.mended, report.hooks), (vec![], before), "each look takes the lock of all links");
        assert_eq!(datapath.verify(&desired).len(), 1);
        assert_eq!(datapath.sync(&desired).unwrap().mended, [(a, Hook::PortIn)]);
        ip("link set hya name hyz");
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.hooks.iter().filter(|h| h.interface == "hyz").count(), 2, "names are today's");
    });
}

#[test]
fn clsact_carries_the_programs_where_it_is_chosen() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        // Somebody else's filter in the same place.
        qdisc_add_clsact("hya").unwrap();
        let mut other = foreign();
        let program: &mut SchedClassifier =
            other.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
        let options = NlOptions { priority: 1, handle: TcHandle::new(0, 1), classid: None };
        program.attach_with_options("hya", TcAttachType::Ingress, TcAttachOptions::Netlink(options)).unwrap();

        let mut datapath = Datapath::open(bpffs, Mechanism::Clsact).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached.len(), report.not_enforced.len()), (4, 0), "{:?}", report.not_enforced);
        assert!(
            report.hooks.iter().all(|h| h.mechanism == "clsact" && h.position == 0),
            "{:?}",
            report.hooks
        );
        assert_eq!(datapath.verify(&desired), Vec::new());
        let hooks = ids(&datapath);
        drop(datapath);

        let mut datapath = Datapath::open(bpffs, Mechanism::Clsact).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert!(report.attached.is_empty() && report.mended.is_empty(), "adopted: {report:?}");
        assert_eq!(ids(&datapath), hooks);
        drop(datapath);

        // To TCX and back: never without one of the two.
        let mut datapath = Datapath::open(bpffs, Mechanism::Tcx).unwrap();
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.attached, report.mended, report.hooks.len()), (vec![], vec![], 4));
        assert!(settle(&mut datapath).iter().all(|h| h.mechanism == "tcx" && h.position == 0));
        assert_eq!(datapath.verify(&desired), Vec::new());
        assert_eq!(filters("hyb", "ingress"), 0, "the filter went");
        assert_eq!(filters("hya", "ingress"), 1, "the other one's stays");
        drop(datapath);

        let mut datapath = Datapath::open(bpffs, Mechanism::Clsact).unwrap();
        assert_eq!(datapath.sync(&desired).unwrap().attached.len(), 4);
        assert_eq!(datapath.verify(&desired), Vec::new());
        let (_, chain) = SchedClassifier::query_tcx("hya", TcAttachType::Ingress).unwrap();
        assert!(chain.is_empty(), "the link went");
        drop(datapath);

        let purged = purge(bpffs).unwrap();
        assert_eq!(purged.failed, Vec::<String>::new());
        assert_eq!(filters("hya", "ingress"), 1, "the other one's stays");
        assert_eq!(filters("hya", "egress") + filters("hyb", "ingress") + filters("hyb", "egress"), 0);
    });
}

#[test]
fn a_pin_that_was_removed_by_hand_is_made_again() {
    apart(|bpffs| {
        let (desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        std::fs::remove_file(root(bpffs).join("links").join(format!("{a}-port-out"))).unwrap();
        let complaints = datapath.verify(&desired);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert_eq!(complaints[0].why, "no program at port-out");
        assert_eq!(datapath.sync(&desired).unwrap().attached, [(a, Hook::PortOut)]);
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
}

#[test]
fn two_looks_find_what_a_whole_one_finds_and_it_is_said_until_it_is_right() {
    apart(|bpffs| {
        let (desired, a, _) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let looks = |datapath: &mut Datapath| [0; 3].map(|_| datapath.look(&desired));
        assert_eq!(looks(&mut datapath), [vec![], vec![], vec![]]);
        std::fs::remove_file(root(bpffs).join("links").join(format!("{a}-port-out"))).unwrap();
        let mut endpoints =
            HashMap::<_, Address, tables::Endpoint>::try_from(map(bpffs, names::ENDPOINTS)).unwrap();
        endpoints.remove(&address("10.2.0.2")).unwrap();
        let [_, both, again] = looks(&mut datapath);
        assert_eq!(both.len(), 2, "{both:?}");
        assert_eq!((&both, &both), (&again, &datapath.verify(&desired)));
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.repaired.len(), 2, "{report:?}");
        assert_eq!(looks(&mut datapath), [vec![], vec![], vec![]]);
    });
}

#[test]
fn pins_of_maps_and_programs_are_made_again() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let (maps, hooks) = (map_ids(bpffs), ids(&datapath));
        for name in names::MAPS {
            std::fs::remove_file(root(bpffs).join("maps").join(name)).unwrap();
        }
        let programs =
            std::fs::read_dir(root(bpffs).join("programs")).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_dir_all(&programs).unwrap();
        let complaints = datapath.verify(&desired);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints[0].why.contains(names::GENERATION) && complaints[0].why.contains(names::PROGRAMS[3])
        );
        assert_eq!(datapath.sync(&desired).unwrap().repaired, complaints);
        assert_eq!(datapath.verify(&desired), Vec::new());
        drop(datapath);
        let mut datapath = open(bpffs);
        let report = datapath.sync(&desired).unwrap();
        assert!(!report.flipped && report.attached.is_empty() && report.mended.is_empty(), "{report:?}");
        assert_eq!((map_ids(bpffs), ids(&datapath)), (maps, hooks), "the same ones");
    });
}

#[test]
fn a_foreign_filter_in_front_is_passed_and_one_of_another_protocol_reported() {
    apart(|bpffs| {
        let (desired, a, _) = two_containers();
        let mut datapath = Datapath::open(bpffs, Mechanism::Clsact).unwrap();
        datapath.sync(&desired).unwrap();
        let mut other = foreign();
        let program: &mut SchedClassifier =
            other.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
        let before = |handle| NlOptions { priority: 1, handle: TcHandle::new(0, handle), classid: None };
        for handle in 1..4 {
            let options = TcAttachOptions::Netlink(before(handle));
            program.attach_with_options("hya", TcAttachType::Ingress, options).unwrap();
            let complaints = datapath.verify(&desired);
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            let report = datapath.sync(&desired).unwrap();
            assert_eq!((report.mended, report.repaired), (vec![(a, Hook::PortIn)], complaints));
            assert_eq!(datapath.verify(&desired), Vec::new());
            assert_eq!(filters("hya", "ingress"), 1 + usize::from(handle), "theirs stay, one of ours");
        }
        // The whole qdisc goes, and a filter of another protocol has our priority before we are back: it can't be shared then.
        let (pin, id) = (bpffs.with_file_name("other"), program.info().unwrap().id());
        program.pin(&pin).unwrap();
        tc("qdisc del dev hya clsact");
        tc("qdisc add dev hya clsact");
        tc(&format!("filter add dev hya ingress pref 1 protocol ip bpf da object-pinned {}", pin.display()));
        assert_eq!(datapath.verify(&desired).len(), 2);
        datapath.sync(&desired).unwrap();
        let left = datapath.verify(&desired);
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(left[0].why, format!("others run before hydra's at port-in: program {id}"));
        datapath.sync(&desired).unwrap();
        assert_eq!(datapath.verify(&desired), left);
        tc("filter del dev hya ingress pref 1");
        assert_eq!(datapath.verify(&desired), Vec::new());
        std::fs::remove_file(pin).unwrap();
    });
}

fn tc(arguments: &str) {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
