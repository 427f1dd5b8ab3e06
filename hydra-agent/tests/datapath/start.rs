//! Start, restart, upgrade, and the end.

use aya::maps::{Array, HashMap, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use hydra_agent::datapath::{Datapath, Mechanism, OBJECT, Purged, Room, purge};
use hydra_common::id::Container;
use hydra_common::names;
use hydra_common::share::{Meetings, Word};
use hydra_common::tables::{self, Cell};
use std::collections::BTreeSet;

use crate::support::*;

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
        assert_eq!((second.held().generation, second.held().revision), (1, 1));
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
        let mut second = Datapath::open_object(bpffs, Mechanism::Auto, Room::default(), &other).unwrap();
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
fn what_another_version_with_other_tables_left_goes_when_this_one_is_there() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut first = open(bpffs);
        first.sync(&desired).unwrap();
        let before = ids(&first);
        drop(first);
        let old = bpffs.join("v0");
        std::fs::rename(root(bpffs), &old).unwrap();

        let mut second = open(bpffs);
        assert_eq!(second.held().generation, 0, "its tables are its own");
        assert!(old.exists(), "opening takes nothing away");
        let report = second.sync(&desired).unwrap();
        assert_eq!((report.attached.len(), &report.not_enforced), (4, &Vec::new()));
        assert!(!old.exists());
        assert!(ids(&second).is_disjoint(&before));
        assert!(report.hooks.iter().all(|hook| hook.position == 0));
        for hook in &report.hooks {
            let ingress = hook.hook == "port-in";
            let direction = if ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
            let (_, chain) = SchedClassifier::query_tcx(&hook.interface, direction).unwrap();
            assert_eq!(chain.len(), 1, "one program of hydra's, and no other behind it");
        }
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
fn flows_whose_bits_are_lost_are_always_looked_for() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let mut first = open(bpffs);
        first.sync(&desired).unwrap();
        let words = || Array::<_, u64>::try_from(map(bpffs, names::TABLE)).unwrap();
        let read = || Meetings::from_word(words().get(&(Word::Meetings as u32), 0).unwrap()).bank();
        assert_eq!(read(), Some(0));
        let before: BTreeSet<_> = ids(&first).into_iter().map(|(_, _, program, _)| program).collect();
        drop(first);
        std::fs::remove_file(root(bpffs).join("maps").join(names::MEETINGS)).unwrap();
        let mut second = open(bpffs);
        second.sync(&desired).unwrap();
        let after: BTreeSet<_> = ids(&second).into_iter().map(|(_, _, program, _)| program).collect();
        assert!(before.is_disjoint(&after), "programs that write where nobody reads went");
        assert_eq!(read(), None);
        let mut collector = second.collector().unwrap();
        while !collector.step().unwrap().round {}
        assert_eq!(read(), None);
        drop((collector, second));
        // The next one leaves it so.
        open(bpffs).sync(&desired).unwrap();
        assert_eq!(read(), None);
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
fn without_rights_it_says_which_are_missing() {
    apart(|bpffs| {
        let bpffs = bpffs.to_owned();
        // This thread alone: the library's own call would change the whole process.
        let error = std::thread::spawn(move || {
            // SAFETY: plain numbers; affects nothing but the credentials of this thread, which ends with the test.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(result, 0);
            Datapath::open(&bpffs, Mechanism::Auto).unwrap_err()
        })
        .join()
        .unwrap();
        assert_eq!(
            error.to_string(),
            "the kernel refuses BPF to this process: it lacks CAP_BPF and CAP_NET_ADMIN"
        );
        assert!(error.hint().is_some_and(|hint| hint.starts_with("run it as root")));
    });
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
        assert_eq!(purge(bpffs).unwrap(), Purged::default(), "a second time there is nothing to do");
        // And from there it starts anew.
        let (a, mut desired) = (index("hya"), desired);
        desired.hooks.retain(|(ifindex, _)| *ifindex == a);
        assert_eq!(open(bpffs).sync(&desired).unwrap().generation, 1);
    });
}

#[test]
fn the_flow_table_has_the_size_of_the_setting_and_one_in_use_keeps_its_own() {
    apart(|bpffs| {
        let (desired, ..) = two_containers();
        let sized = |flows| Datapath::open_with(bpffs, Mechanism::Auto, Room { flows, share: 10 });
        let room =
            |name| aya::maps::MapInfo::from_pin(root(bpffs).join("maps").join(name)).unwrap().max_entries();
        let word =
            |word: Word| Array::<_, u64>::try_from(map(bpffs, names::TABLE)).unwrap().get(&(word as u32), 0);
        let mut first = sized(2_048).unwrap();
        first.sync(&desired).unwrap();
        let maps = map_ids(bpffs);
        assert_eq!((room(names::FLOWS), room(names::SPILL)), (2_048, 512));
        assert_eq!((word(Word::Capacity).unwrap(), word(Word::Share).unwrap()), (2_048, 10));
        drop(first);
        // Another setting: the programs in use go on with what they have, and so does what they are told.
        let second = sized(4_096).unwrap();
        assert_eq!(map_ids(bpffs), maps);
        assert_eq!(second.reader().unwrap().flow_capacity(), 2_048);
        assert_eq!(word(Word::Capacity).unwrap(), 2_048);
        assert!(second.held().generation > 0, "enforcement goes on");
        drop(second);
        assert!(purge(bpffs).unwrap().failed.is_empty());
        assert_eq!(sized(4_096).unwrap().reader().unwrap().flow_capacity(), 4_096);
    });
}

#[test]
fn a_flow_table_that_memory_does_not_hold_is_refused() {
    apart(|bpffs| {
        let flows = u32::MAX / 2;
        let error = Datapath::open_with(bpffs, Mechanism::Auto, Room { flows, share: 25 }).unwrap_err();
        assert!(error.to_string().starts_with("a table of 2147483647 flows takes 561152 MiB"), "{error}");
        assert!(error.hint().unwrap().contains("`flows: "));
        let made = std::fs::read_dir(root(bpffs).join("maps")).unwrap().count();
        assert_eq!(made, 0);
    });
}
