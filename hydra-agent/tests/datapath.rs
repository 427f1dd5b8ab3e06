//! The datapath against a real kernel: each test in a network and mount namespace of its own, with a BPF file system of its own.
//! Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that can't go on ends here, one that can't begin says why"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{EbpfLoader, TestRun, TestRunOptions};
use hydra_agent::datapath::{Datapath, DatapathError, Mechanism, OBJECT, purge};
use hydra_agent::desired::{Desired, Endpoint, Link};
use hydra_agent::policy::rows::{Class, Compiled, Owner};
use hydra_agent::published::Reader;
use hydra_common::address::{Address, Mac};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::tables::{self, Cell, Decision, IdentityRow, LinkKind, PrefixData, PrefixRow};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_common::{ABI, names};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs a test in namespaces of its own; they end with its thread.
fn apart(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::Builder::new().prefix("hy").tempdir().unwrap();
        mount(Some("hybpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip("link set lo up");
        test(&directory.path().join("hydra"));
        nix::mount::umount2(directory.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// A veth pair; gives the index of the named end.
fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    index(name)
}

const APPS: Identity = Identity(4);
const DATABASES: Identity = Identity(5);

/// Two tiers; the first may call the second where `open`.
fn policy(open: bool) -> Compiled {
    let mut compiled = Compiled::default();
    for (number, owner) in [
        (Identity::EXTERNAL, Owner::External),
        (Identity::HOST, Owner::Host),
        (Identity::UNMANAGED, Owner::Unmanaged),
        (APPS, Owner::Tier("apps".into())),
        (DATABASES, Owner::Tier("databases".into())),
    ] {
        let flags = if number >= Identity::FIRST_DECLARED {
            IdentityRow::INTERIOR | IdentityRow::DECLARED
        } else {
            0
        };
        compiled.tiers.insert(Tier(number.0), owner.tier().to_owned());
        compiled.identities.insert(
            number,
            (Class { owner, blocks: Vec::new() }, IdentityRow { tier: Tier(number.0), flags }),
        );
    }
    let row = |verdict: Verdict, reason: Reason, rule| Decision {
        verdict: verdict as u8,
        reason: reason as u8,
        rule,
        ..Decision::default()
    };
    compiled.decisions = vec![
        (row(Verdict::Denied, Reason::BadTable, 0), None),
        (row(Verdict::Denied, Reason::NoRule, 0), None),
        (row(Verdict::Allowed, Reason::Rule, 1), None),
    ];
    for source in compiled.identities.keys() {
        for destination in compiled.identities.keys() {
            compiled.cells.insert((*source, *destination), Cell::decision(1));
        }
    }
    if open {
        compiled.cells.insert((APPS, DATABASES), Cell::decision(2));
    }
    for (block, identity) in [("10.1.0.0/16", APPS), ("10.2.0.0/16", DATABASES)] {
        compiled.prefixes.insert(block.parse().unwrap(), PrefixRow { identity, flags: PrefixRow::INTERIOR });
    }
    compiled.rules = vec!["db-clients".to_owned()];
    compiled
}

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

/// A container of a tier at a port.
fn container(desired: &mut Desired, port: u32, number: u32, at: &str, identity: Identity) {
    desired.endpoints.insert(
        address(at),
        Endpoint {
            identity,
            container: Container(number),
            port,
            flags: tables::Endpoint::ATTACHED | tables::Endpoint::PEER,
            mtu: 1500,
            ..Endpoint::default()
        },
    );
    desired.links.insert(
        port,
        Link {
            identity,
            container: Container(number),
            bridge: 0,
            kind: LinkKind::Port,
            flags: 0,
            mac: Mac::ZERO,
            gateway_mac: Mac::ZERO,
        },
    );
    desired.hooks.extend([(port, Hook::PortIn), (port, Hook::PortOut)]);
}

/// Revision 1 with one container at each of two ports.
fn two_containers() -> (Desired, u32, u32) {
    let (a, b) = (veth("hya"), veth("hyb"));
    let mut desired = Desired { revision: 1, compiled: Arc::new(policy(true)), ..Desired::default() };
    container(&mut desired, a, 1, "10.1.0.2", APPS);
    container(&mut desired, b, 2, "10.2.0.2", DATABASES);
    (desired, a, b)
}

fn open(bpffs: &Path) -> Datapath {
    Datapath::open(bpffs, Mechanism::Auto).unwrap()
}

fn root(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI}"))
}

/// (hook, program, link) by interface: what must stay over a restart.
fn ids(datapath: &Datapath) -> BTreeSet<(u32, String, u32, u32)> {
    datapath.hooks().into_iter().map(|h| (h.ifindex, h.hook, h.program_id, h.link_id)).collect()
}

fn map(bpffs: &Path, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(root(bpffs).join("maps").join(name)).unwrap()).unwrap()
}

fn map_ids(bpffs: &Path) -> BTreeMap<&'static str, u32> {
    names::MAPS
        .iter()
        .map(|name| (*name, aya::maps::MapInfo::from_pin(root(bpffs).join("maps").join(name)).unwrap().id()))
        .collect()
}

fn generation(bpffs: &Path) -> u32 {
    Array::<_, u32>::try_from(map(bpffs, names::GENERATION)).unwrap().get(&0, 0).unwrap()
}

fn endpoint(bpffs: &Path, at: &str) -> Option<tables::Endpoint> {
    HashMap::<_, Address, tables::Endpoint>::try_from(map(bpffs, names::ENDPOINTS))
        .unwrap()
        .get(&address(at), 0)
        .ok()
}

/// What the bank that packets read says about a pair.
fn cell(bpffs: &Path, source: Identity, destination: Identity) -> Cell {
    let bank = generation(bpffs) & 1;
    Array::<_, Cell>::try_from(map(bpffs, names::CELLS))
        .unwrap()
        .get(&tables::cell_index(bank, source, destination), 0)
        .unwrap()
}

#[test]
fn a_restart_adopts_what_is_pinned_and_flips_nothing() {
    apart(|bpffs| {
        let (desired, a, b) = two_containers();
        let mut first = open(bpffs);
        let report = first.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped, &report.not_enforced), (1, true, &Vec::new()));
        assert_eq!(report.attached.len(), 4);
        assert!(report.hooks.iter().all(|h| h.position == 0 && h.mechanism == "tcx"), "{:?}", report.hooks);
        assert_eq!(cell(bpffs, APPS, DATABASES), Cell::decision(2));
        let row = endpoint(bpffs, "10.1.0.2").unwrap();
        assert_eq!(row.flags, tables::Endpoint::ATTACHED | tables::Endpoint::PEER);
        assert_eq!(row.identity[1], APPS, "bank 1 is read in generation 1");
        let (maps, hooks) = (map_ids(bpffs), ids(&first));
        assert_eq!(hooks.iter().map(|h| h.0).collect::<BTreeSet<_>>(), BTreeSet::from([a, b]));
        drop(first);

        let mut second = open(bpffs);
        assert_eq!(second.held().generation, 1);
        assert_eq!(second.held().endpoints[&address("10.2.0.2")].container, Container(2));
        assert_eq!((map_ids(bpffs), ids(&second)), (maps.clone(), hooks.clone()));
        let report = second.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped, report.rows), (1, false, 0));
        assert!(report.attached.is_empty() && report.mended.is_empty() && report.detached.is_empty());
        assert_eq!((map_ids(bpffs), ids(&second)), (maps, hooks));
        assert_eq!(second.verify(&desired), Vec::new());
    });
}

#[test]
fn another_object_replaces_the_programs_under_the_links() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut first = open(bpffs);
        first.sync(&desired).unwrap();
        let (maps, before) = (map_ids(bpffs), ids(&first));
        drop(first);

        // Bytes after an ELF file's end change nothing but its fingerprint.
        let mut other = OBJECT.to_vec();
        other.extend([0; 8]);
        let mut second = Datapath::open_object(bpffs, Mechanism::Auto, &other).unwrap();
        assert_eq!(ids(&second), before, "opening changes no hook");
        assert_eq!(second.verify(&desired).len(), 4, "old programs are not hydra's own any more");
        let report = second.sync(&desired).unwrap();
        assert_eq!((report.mended.len(), report.attached.len(), report.flipped), (4, 0, false));
        let after = ids(&second);
        assert_eq!(map_ids(bpffs), maps);
        for ((i, hook, old_program, old_link), (j, other_hook, program, link)) in before.iter().zip(&after) {
            assert_eq!((i, hook, old_link), (j, other_hook, link), "the link stays");
            assert_ne!(old_program, program);
        }
        assert_eq!(
            std::fs::read_dir(root(bpffs).join("programs")).unwrap().count(),
            1,
            "the old ones are gone"
        );
        assert_eq!(second.verify(&desired), Vec::new());
    });
}

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

/// Somebody else's program: ours under another loader, with maps of its own.
fn foreign() -> aya::Ebpf {
    let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
    program.load().unwrap();
    ebpf
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
        let complaints = datapath.verify(&desired);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert_eq!(
            (complaints[0].what.as_str(), complaints[0].why.as_str()),
            ("hya", "1 programs run before hydra's at port-in")
        );
        let report = datapath.sync(&desired).unwrap();
        assert_eq!(report.mended, [(a, Hook::PortIn)]);
        assert_eq!(datapath.verify(&desired), Vec::new());
        let (_, chain) = SchedClassifier::query_tcx("hya", TcAttachType::Ingress).unwrap();
        assert_eq!(chain.len(), 2, "the other one is still there, and nothing of the move is left");
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
        assert_eq!(datapath.sync(&desired).unwrap().attached.len(), 4);
        assert!(datapath.hooks().iter().all(|h| h.mechanism == "tcx" && h.position == 0));
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

fn filters(interface: &str, side: &str) -> usize {
    let output = Command::new("tc").args(["filter", "show", "dev", interface, side]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).matches(" handle ").count()
}

#[test]
fn purge_takes_everything_of_hydra_and_nothing_else() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        drop(datapath);
        // An older layout, and somebody else's directory beside.
        std::fs::create_dir_all(bpffs.join("v0/maps")).unwrap();
        std::fs::create_dir_all(bpffs.join("other")).unwrap();
        // A link whose interface is gone.
        ip("link del hyb");
        let purged = purge(bpffs).unwrap();
        assert_eq!(purged.failed, Vec::<String>::new());
        let left: Vec<_> = std::fs::read_dir(bpffs).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
        let (_, chain) = SchedClassifier::query_tcx("hya", TcAttachType::Ingress).unwrap();
        assert!(chain.is_empty(), "detached at once, not when the kernel gets to it");
        std::fs::remove_dir(bpffs.join("other")).unwrap();
        assert_eq!(purge(bpffs).unwrap().removed, [format!("directory {}", bpffs.display())]);
        assert_eq!(purge(bpffs).unwrap(), Default::default(), "a second time there is nothing to do");
        // And from there it starts anew.
        let (a, mut desired) = (index("hya"), desired);
        desired.hooks.retain(|(ifindex, _)| *ifindex == a);
        assert_eq!(open(bpffs).sync(&desired).unwrap().generation, 1);
    });
}

#[test]
fn a_failing_write_leaves_the_old_generation_whole() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let rows = datapath.held().endpoints.clone();
        // The prefix table full of what somebody else wrote into the bank in use.
        {
            let mut prefixes =
                LpmTrie::<_, PrefixData, PrefixRow>::try_from(map(bpffs, names::PREFIXES)).unwrap();
            let mut n = 0u32;
            loop {
                let at = Address::v6([&[0xfd; 12][..], &n.to_be_bytes()].concat().try_into().unwrap());
                let data = PrefixData { bank: 1u32.to_be_bytes(), address: at.octets() };
                if prefixes.insert(&Key::new(160, data), PrefixRow::default(), 0).is_err() {
                    break;
                }
                n += 1;
            }
            assert!(n > 65_000, "filled with {n}");
        }
        desired.revision = 2;
        desired.compiled = Arc::new(policy(false));
        desired.endpoints.remove(&address("10.2.0.2"));
        let error = datapath.sync(&desired).unwrap_err();
        assert!(matches!(error, DatapathError::Table { table: "address blocks", .. }), "{error}");
        assert_eq!(generation(bpffs), 1);
        assert_eq!(cell(bpffs, APPS, DATABASES), Cell::decision(2), "the old policy stays");
        assert_eq!(endpoint(bpffs, "10.2.0.2"), rows.get(&address("10.2.0.2")).copied());

        // With room again it goes through, and what was in the way is cleaned with its bank.
        let mut prefixes =
            LpmTrie::<_, PrefixData, PrefixRow>::try_from(map(bpffs, names::PREFIXES)).unwrap();
        let one = prefixes
            .keys()
            .map(Result::unwrap)
            .filter(|k| k.prefix_len() == 160)
            .take(10)
            .collect::<Vec<_>>();
        for key in one {
            prefixes.remove(&key).unwrap();
        }
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped), (2, true));
        assert_eq!(cell(bpffs, APPS, DATABASES), Cell::decision(1));
        assert_eq!(endpoint(bpffs, "10.2.0.2"), None);
        assert_eq!(prefixes.keys().count(), 2, "only the new bank's own");
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
}

#[test]
fn what_flows_rest_on_takes_a_new_generation_and_a_new_container_does_not() {
    apart(|bpffs| {
        let (mut desired, _, b) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();

        let c = veth("hyc");
        container(&mut desired, c, 3, "10.1.0.3", APPS);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped, report.rows), (1, false, 2), "two rows, no flip");
        assert_eq!(endpoint(bpffs, "10.1.0.3").unwrap().identity, [APPS; 2]);

        // The address goes to another container.
        container(&mut desired, b, 4, "10.2.0.2", DATABASES);
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped), (2, true));
        let row = endpoint(bpffs, "10.2.0.2").unwrap();
        assert_eq!((row.container, row.identity[0]), (Container(4), DATABASES));

        // An address appears that was the outside's: flows to it were judged as such.
        desired.endpoints.insert(address("192.0.2.1"), Endpoint { identity: APPS, ..Endpoint::default() });
        assert!(datapath.sync(&desired).unwrap().flipped);

        // It goes again.
        desired.endpoints.remove(&address("192.0.2.1"));
        let report = datapath.sync(&desired).unwrap();
        assert_eq!((report.generation, report.flipped), (4, true));
        assert_eq!(endpoint(bpffs, "192.0.2.1"), None);
        assert!(!datapath.sync(&desired).unwrap().flipped);
    });
}

#[test]
fn rows_that_somebody_changed_are_noticed_and_mended() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        Array::<_, Cell>::try_from(map(bpffs, names::CELLS))
            .unwrap()
            .set(tables::cell_index(1, DATABASES, APPS), Cell::decision(2), 0)
            .unwrap();
        HashMap::<_, Address, tables::Endpoint>::try_from(map(bpffs, names::ENDPOINTS))
            .unwrap()
            .remove(&address("10.1.0.2"))
            .unwrap();
        let wrong: Vec<String> = datapath.verify(&desired).into_iter().map(|n| n.why).collect();
        assert_eq!(
            wrong,
            [
                "the rows of endpoints were changed by somebody else",
                "the table of cells does not hold what was written to it"
            ]
        );
        assert!(datapath.sync(&desired).unwrap().flipped);
        assert_eq!(cell(bpffs, DATABASES, APPS), Cell::decision(1));
        assert!(endpoint(bpffs, "10.1.0.2").is_some());
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
}

#[test]
fn a_map_of_another_layout_is_refused_with_its_name() {
    apart(|bpffs| {
        drop(open(bpffs));
        let path = root(bpffs).join("maps").join(names::LINKS);
        std::fs::remove_file(&path).unwrap();
        HashMap::<MapData, u32, u64>::create(16, 0).unwrap().pin(&path).unwrap();
        let error = Datapath::open(bpffs, Mechanism::Auto).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the pinned map `HYDRA_LINKS` has another layout: its value size is 8, expected {}",
                size_of::<tables::Link>()
            )
        );
        assert!(error.hint().unwrap().starts_with("hydra-agent purge --bpffs "));
    });
}

#[test]
fn a_lost_map_gets_programs_of_its_own_again() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut first = open(bpffs);
        first.sync(&desired).unwrap();
        drop(first);
        std::fs::remove_file(root(bpffs).join("maps").join(names::GENERATION)).unwrap();
        // The old programs still read the old map: they must go, or the agent would write where nobody reads.
        let mut second = open(bpffs);
        assert_eq!(second.held().generation, 0);
        let report = second.sync(&desired).unwrap();
        assert_eq!((report.mended.len(), report.generation), (4, 1));
        assert_eq!(second.verify(&desired), Vec::new());
    });
}

#[test]
fn silent_flows_are_collected_and_live_ones_stay() {
    apart(|bpffs| {
        let datapath = open(bpffs);
        let reader = datapath.reader().unwrap();
        let (now, _) = reader.clocks();
        let mut flows = HashMap::<_, FlowKey, Flow>::try_from(map(bpffs, names::FLOWS)).unwrap();
        for n in 0..10_000u16 {
            let (key, _) = FlowKey::of(address("10.1.0.2"), n, address("10.2.0.2"), 53, 17);
            // Half of them an hour ago.
            let seen = if n % 2 == 0 { now } else { now.saturating_sub(3_600_000_000_000).max(1) };
            flows.insert(key, Flow { seen, created: 1, flags: [1, 1], ..Flow::default() }, 0).unwrap();
        }
        assert_eq!(reader.flows().unwrap().len(), 10_000);
        let mut collector = datapath.collector().unwrap();
        let (mut removed, mut steps) = (0, 0);
        loop {
            let step = collector.step_at(now.max(7_200_000_000_000)).unwrap();
            removed += step.removed;
            steps += 1;
            if step.round {
                break;
            }
        }
        assert!(steps > 1, "a few thousand at a time");
        let left = reader.flows().unwrap();
        assert_eq!(removed + left.len(), 10_000);
        if now > 7_200_000_000_000 {
            assert_eq!(left.len(), 5_000);
            assert!(left.iter().all(|(_, flow)| flow.seen == now));
        }
        assert!(reader.counters().unwrap().traffic.is_empty());
    });
}

#[test]
fn events_reach_every_listener() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let object = std::fs::read_dir(root(bpffs).join("programs")).unwrap().next().unwrap().unwrap().path();
        let program = SchedClassifier::from_pin(object.join(names::PROGRAMS[0])).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, mut one) = tokio::sync::broadcast::channel(16);
            let mut other = sender.subscribe();
            let task = tokio::spawn(datapath.events().unwrap().run(sender));
            for _ in 0..2 {
                // A frame of an interface that no row knows.
                let ran = program
                    .test_run(TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::default() })
                    .unwrap();
                assert_eq!(ran.return_value, 2, "TC_ACT_SHOT");
                for listener in [&mut one, &mut other] {
                    let event = listener.recv().await.unwrap();
                    assert_eq!(Reason::from_row(event.reason), Reason::UnknownSource);
                    assert_eq!((event.hook, event.revision), (Hook::PortIn as u8, 1));
                }
            }
            assert!(!task.is_finished());
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        });
        let counters = datapath.reader().unwrap().counters().unwrap();
        assert_eq!(counters.reasons[&Reason::UnknownSource].packets, 2);
        assert_eq!(counters.gauge(tables::Gauge::Events), 2);
        assert_eq!(counters.drops.values().map(|c| c.packets).sum::<u64>(), 2);
    });
}

#[test]
fn a_second_agent_is_kept_off_the_pins() {
    apart(|bpffs| {
        let first = open(bpffs);
        let error = Datapath::open(bpffs, Mechanism::Auto).unwrap_err();
        assert_eq!(error.to_string(), format!("another agent works on the pins in `{}`", bpffs.display()));
        drop(first);
        open(bpffs);
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

/// What this thread has used: on a busy machine the wall clock tells nothing.
fn cpu_time() -> std::time::Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    std::time::Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

/// Ten thousand rules between two hundred tiers.
#[test]
fn a_large_policy_is_applied_whole() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let mut large = policy(true);
        for number in 6..206u16 {
            let owner = Owner::Tier(format!("tier-{number}"));
            large.identities.insert(
                Identity(number),
                (Class { owner, blocks: Vec::new() }, IdentityRow { tier: Tier(number), flags: 3 }),
            );
            large.prefixes.insert(
                format!("10.{number}.0.0/16").parse().unwrap(),
                PrefixRow { identity: Identity(number), flags: PrefixRow::INTERIOR },
            );
        }
        for rule in 0..10_000u32 {
            large.decisions.push((
                Decision {
                    rule: rule as u16 + 1,
                    verdict: 1,
                    reason: Reason::Rule as u8,
                    ..Decision::default()
                },
                None,
            ));
            large.rule_sets.push(tables::RuleSet { start: rule * 3, count: 3 });
            for from in [0, 6 << 16, 7 << 16] {
                large.intervals.push(tables::Interval { from, decision: 3 + rule });
            }
        }
        let numbers: Vec<Identity> = large.identities.keys().copied().collect();
        for (n, (source, destination)) in
            numbers.iter().flat_map(|s| numbers.iter().map(move |d| (*s, *d))).enumerate()
        {
            large.cells.insert((source, destination), Cell::rule_set(n as u32 % 10_000));
        }
        let small = desired.clone();
        desired.revision = 2;
        desired.compiled = Arc::new(large);
        let begun = (std::time::Instant::now(), cpu_time());
        let report = datapath.sync(&desired).unwrap();
        println!("10,000 rules: {:?}, of a CPU {:?}", begun.0.elapsed(), cpu_time() - begun.1);
        assert_eq!((report.generation, report.flipped), (2, true));
        assert_eq!(
            cell(bpffs, Identity(205), Identity(204)),
            desired.compiled.cells[&(Identity(205), Identity(204))]
        );
        assert_eq!(datapath.verify(&desired), Vec::new());
        // And away again: what it held is cleaned when its bank is written next.
        let back = Desired { revision: 3, ..small };
        for revision in [3, 4, 5] {
            datapath.sync(&Desired { revision, ..back.clone() }).unwrap();
        }
        assert_eq!(cell(bpffs, Identity(205), Identity(204)), Cell::default());
        let prefixes = LpmTrie::<_, PrefixData, PrefixRow>::try_from(map(bpffs, names::PREFIXES)).unwrap();
        assert_eq!(prefixes.keys().count(), 2);
    });
}
