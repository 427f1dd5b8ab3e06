//! The committed object has the maps and programs that `hydra-common` says, with the sizes of its rows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aya_obj::generated::bpf_map_type::{self, *};
use aya_obj::{Object, ProgramSection};
use hydra_agent::datapath::OBJECT;
use hydra_common::ABI;
use hydra_common::address::Address;
use hydra_common::event::EventWindow;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::names;
use hydra_common::share::{Meetings, WORDS};
use hydra_common::tables::{
    BucketKey, Cell, Cgroup, CgroupKey, Count, DROP_SLOTS, Decision, DropKey, DropSlot, Endpoint, Fragment,
    FragmentKey, GAUGES, Head, IdentityRow, Interval, Limit, Link, MAX_LIMITS, PrefixData, PrefixRow,
    Publish, PublishKey, RuleSet, TRAFFIC_CELLS,
};
use hydra_common::verdict::Reason;

const ARRAY: bpf_map_type = BPF_MAP_TYPE_ARRAY;
const PERCPU: bpf_map_type = BPF_MAP_TYPE_PERCPU_ARRAY;

/// Name, type, key size, value size.
fn maps() -> BTreeMap<&'static str, (bpf_map_type, usize, usize)> {
    BTreeMap::from([
        (names::GENERATION, (ARRAY, 4, 4)),
        (names::HEADS, (ARRAY, 4, size_of::<Head>())),
        (names::IDENTITIES, (ARRAY, 4, size_of::<IdentityRow>())),
        (names::CELLS, (ARRAY, 4, size_of::<Cell>())),
        (names::RULE_SETS, (ARRAY, 4, size_of::<RuleSet>())),
        (names::INTERVALS, (ARRAY, 4, size_of::<Interval>())),
        (names::DECISIONS, (ARRAY, 4, size_of::<Decision>())),
        (names::PREFIXES, (BPF_MAP_TYPE_LPM_TRIE, 4 + size_of::<PrefixData>(), size_of::<PrefixRow>())),
        (names::ENDPOINTS, (BPF_MAP_TYPE_HASH, size_of::<Address>(), size_of::<Endpoint>())),
        (names::LINKS, (BPF_MAP_TYPE_HASH, 4, size_of::<Link>())),
        (names::PUBLISHED, (BPF_MAP_TYPE_HASH, size_of::<PublishKey>(), size_of::<Publish>())),
        (names::CGROUPS, (BPF_MAP_TYPE_HASH, size_of::<CgroupKey>(), size_of::<Cgroup>())),
        (names::FRAGMENTS, (BPF_MAP_TYPE_LRU_HASH, size_of::<FragmentKey>(), size_of::<Fragment>())),
        (names::LIMITS, (ARRAY, 4, size_of::<Limit>())),
        (names::BUCKETS, (BPF_MAP_TYPE_LRU_HASH, size_of::<BucketKey>(), 8)),
        (names::LIMITED, (PERCPU, 4, 8)),
        (names::FLOWS, (BPF_MAP_TYPE_HASH, size_of::<FlowKey>(), size_of::<Flow>())),
        (names::SPILL, (BPF_MAP_TYPE_LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>())),
        (names::SHARES, (BPF_MAP_TYPE_LRU_HASH, size_of::<Address>(), 8)),
        (names::TABLE, (ARRAY, 4, 8)),
        (names::MEETINGS, (ARRAY, 4, 8)),
        (names::DROP_SLOTS, (PERCPU, 4, size_of::<DropSlot>())),
        (names::TRAFFIC, (PERCPU, 4, size_of::<Count>())),
        (names::DROPS, (BPF_MAP_TYPE_PERCPU_HASH, size_of::<DropKey>(), size_of::<Count>())),
        (names::REASONS, (PERCPU, 4, size_of::<Count>())),
        (names::GAUGES, (PERCPU, 4, 8)),
        (names::EVENTS, (BPF_MAP_TYPE_RINGBUF, 0, 0)),
        (names::EVENT_WINDOW, (PERCPU, 4, size_of::<EventWindow>())),
    ])
}

#[test]
fn every_map_has_its_type_and_the_sizes_of_its_rows() {
    let object = Object::parse(OBJECT).unwrap();
    let known = maps();
    for name in names::MAPS.into_iter().filter(|name| !names::PRIVATE.contains(name)) {
        let map = object.maps.get(name).unwrap_or_else(|| panic!("the object has no map {name}"));
        let (kind, key, value) = known[name];
        assert_eq!(map.map_type(), kind as u32, "{name}: type");
        assert_eq!(map.key_size() as usize, key, "{name}: key size");
        assert_eq!(map.value_size() as usize, value, "{name}: value size");
        assert!(map.max_entries() > 0, "{name}: no room");
    }
}

/// What an agent compares with the pins that it finds: where they differ it does not start. Another layout has another number.
#[test]
fn pins_of_the_same_layout_have_the_same_shape() {
    let object = Object::parse(OBJECT).unwrap();
    let mut shapes = String::new();
    for name in names::MAPS {
        let map = &object.maps[name];
        let (kind, key, value) = (map.map_type(), map.key_size(), map.value_size());
        let _ = writeln!(
            shapes,
            "{name:<16} type {kind:2}  key {key:2}  value {value:3}  rows {:7}  flags {:#x}",
            map.max_entries(),
            map.map_flags()
        );
    }
    insta::assert_snapshot!(format!("layout_{ABI}"), shapes);
}

#[test]
fn counters_have_room_for_everything_that_is_counted() {
    let object = Object::parse(OBJECT).unwrap();
    let most = Reason::ALL.iter().map(|r| *r as u32).max().unwrap();
    assert!(object.maps[names::REASONS].max_entries() > most);
    assert!(object.maps[names::GAUGES].max_entries() >= GAUGES);
    assert!(object.maps[names::LIMITED].max_entries() >= MAX_LIMITS);
    assert!(object.maps[names::TABLE].max_entries() >= WORDS);
    assert_eq!(object.maps[names::MEETINGS].max_entries(), Meetings::rows(131_072));
    assert_eq!(object.maps[names::DROP_SLOTS].max_entries(), DROP_SLOTS);
    assert!(object.maps[names::TRAFFIC].max_entries() >= TRAFFIC_CELLS);
}

#[test]
fn no_map_is_left_unnamed() {
    let object = Object::parse(OBJECT).unwrap();
    // The compiler's constants are a map too, of each program's own.
    for name in object.maps.keys().filter(|name| !name.starts_with(".rodata")) {
        assert!(names::MAPS.contains(&name.as_str()), "{name} is not listed in hydra_common::names");
    }
}

#[test]
fn every_program_is_what_its_name_says() {
    let object = Object::parse(OBJECT).unwrap();
    let programs: Vec<&str> = object.programs.keys().map(String::as_str).collect();
    for name in names::PROGRAMS.into_iter().chain([names::SWEEP_PROGRAM]) {
        let program =
            object.programs.get(name).unwrap_or_else(|| panic!("no program {name} among {programs:?}"));
        assert!(matches!(program.section, ProgramSection::SchedClassifier), "{name}: {:?}", program.section);
    }
    for name in names::SOCKET_PROGRAMS {
        let program =
            object.programs.get(name).unwrap_or_else(|| panic!("no program {name} among {programs:?}"));
        assert!(
            matches!(program.section, ProgramSection::CgroupSockAddr { .. }),
            "{name}: {:?}",
            program.section
        );
    }
    for name in names::PACKET_PROGRAMS {
        let program =
            object.programs.get(name).unwrap_or_else(|| panic!("no program {name} among {programs:?}"));
        assert!(matches!(program.section, ProgramSection::CgroupSkb { .. }), "{name}: {:?}", program.section);
    }
    let predrop = &object.programs[names::PREDROP_PROGRAM];
    assert!(matches!(predrop.section, ProgramSection::Xdp { frags: false, .. }), "{:?}", predrop.section);
    let known = names::PROGRAMS.len() + 2 + names::SOCKET_PROGRAMS.len() + names::PACKET_PROGRAMS.len();
    assert_eq!(programs.len(), known, "{programs:?}");
}

#[test]
fn names_fit_what_the_kernel_keeps() {
    for name in names::MAPS {
        assert!(name.len() <= 15 && name.starts_with("HYDRA_"), "{name}");
    }
}
