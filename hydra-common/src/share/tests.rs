//! Shares and places, with tables in plain collections.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::vec::Vec;

use super::*;
use crate::id::{Container, Identity};

/// Both tables as the kernel keeps them, with plain collections.
struct Tables {
    capacity: usize,
    share: u64,
    first: HashMap<FlowKey, Flow>,
    second: VecDeque<FlowKey>,
    held: BTreeMap<Address, u64>,
}

impl Tables {
    fn new(capacity: usize, share: u64) -> Self {
        let (first, second, held) = Default::default();
        Self { capacity, share, first, second, held }
    }

    /// A new flow; gives the one that was evicted for it.
    fn open(&mut self, from: Address, port: u16) -> Option<FlowKey> {
        let (key, side) = FlowKey::of(from, port, Address::v4([10, 2, 0, 2]), 53, 17);
        let flow = Flow { opener: side as u8, counted: ADDRESS, ..Flow::default() };
        let source = source(&key, &flow).unwrap();
        let held = self.held.entry(source).or_default();
        if admits(*held, self.first.len() as u64, self.capacity as u64, self.share)
            && self.first.len() < self.capacity
        {
            *held += 1;
            self.first.insert(key, flow);
            return None;
        }
        self.second.push_back(key);
        if self.second.len() > self.capacity / 4 { self.second.pop_front() } else { None }
    }

    fn of(&self, from: Address) -> usize {
        self.first.keys().filter(|key| key.a == from || key.b == from).count()
    }
}

fn address(n: u8) -> Address {
    Address::v4([10, 1, 0, n])
}

#[test]
fn who_sprays_evicts_only_himself() {
    for capacity in [1_024, 4_096] {
        let mut tables = Tables::new(capacity, 25);
        for n in 0..100 {
            assert_eq!(tables.open(address(1), n), None);
        }
        let mut evicted = Vec::new();
        for n in 0..20_000 {
            evicted.extend(tables.open(address(2), n));
        }
        assert!(!evicted.is_empty());
        assert!(evicted.iter().all(|key| key.a == address(2) || key.b == address(2)));
        // A quarter of what the others left.
        let room = capacity - 100;
        assert_eq!(tables.of(address(2)), room.div_ceil(4));
        assert_eq!(tables.of(address(1)), 100);
        // Others find room.
        for n in 0..150 {
            assert_eq!(tables.open(address(3), n), None);
        }
        assert_eq!(tables.of(address(3)), 150);
    }
}

#[test]
fn however_many_spray_some_of_the_table_stays_free() {
    for n in [1usize, 2, 4, 16, 64] {
        let mut tables = Tables::new(8_192, 25);
        for port in 0..8_000 {
            for sprayer in 0..n {
                tables.open(address(sprayer as u8), port);
            }
        }
        let each = 8_192 / (3 + n);
        for sprayer in 0..n {
            assert!(tables.of(address(sprayer as u8)).abs_diff(each) <= 2, "{n}");
        }
        assert_eq!(tables.open(address(200), 1), None);
        assert_eq!(tables.of(address(200)), 1, "{n} sprayers leave room");
    }
}

/// The control: without shares one source fills the table, and the next one's flows can be evicted.
#[test]
fn without_shares_one_source_takes_all() {
    let mut tables = Tables::new(1_024, 100);
    for n in 0..2_000 {
        tables.open(address(2), n);
    }
    assert_eq!(tables.of(address(2)), 1_024);
    tables.open(address(3), 1);
    assert_eq!(tables.of(address(3)), 0);
    let evicted: Vec<_> = (2_000..3_000).filter_map(|n| tables.open(address(2), n)).collect();
    assert!(evicted.iter().any(|key| key.a == address(3) || key.b == address(3)));
}

#[test]
fn keys_have_places_of_their_own_in_each_bank() {
    let rows = Meetings::rows(131_072);
    assert_eq!(rows, 2 * 32_768, "512 KiB");
    let (first, second) = (Meetings::new(rows, Some(0)), Meetings::new(rows, Some(1)));
    assert_eq!((first.bank(), second.bank(), first.each()), (Some(0), Some(1), rows / 2));
    assert_eq!(Meetings::from_word(second.word()), second);
    let mut places = BTreeSet::new();
    for n in 0..65_536u32 {
        let (key, _) = FlowKey::of(address(1), n as u16, address(2), 5432, 6);
        let place = Place::of(&key);
        assert!(place.bit.is_power_of_two());
        assert_eq!((first.read(place), second.read(place)), (first.of(0, place), first.of(1, place)));
        assert!(first.read(place) < rows / 2);
        assert!((rows / 2..rows).contains(&second.read(place)));
        places.insert((first.read(place), place.bit));
    }
    assert!(places.len() > 63_000, "{} places of 65,536 differ", places.len());
    // Another port, which has no entry, by the same ends: as many meet as at random, one in 32.
    for closed in [22, 53, 80, 443, 5433, 5440, 8_080] {
        let met = (0..=u16::MAX).filter(|n| {
            let place = Place::of(&FlowKey::of(address(1), *n, address(2), closed, 6).0);
            places.contains(&(first.read(place), place.bit))
        });
        let met = met.count();
        assert!((1_400..2_800).contains(&met), "{met} of 65,536 at {closed}");
    }
}

/// Programs of other builds have set bits by it in the same rows: another hash is another layout.
#[test]
fn a_key_s_place_stays_while_the_layout_s_number_does() {
    let rows = Meetings::new(Meetings::rows(131_072), Some(0));
    let at = |(key, _): (FlowKey, Side)| (rows.read(Place::of(&key)), Place::of(&key).bit.trailing_zeros());
    let v6 = |last| Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, last]);
    assert_eq!(crate::ABI, 6, "then these may be others");
    assert_eq!(at(FlowKey::of(address(1), 40_000, address(2), 5432, 6)), (13_074, 16));
    assert_eq!(at(FlowKey::of(v6(1), 40_000, v6(2), 53, 17)), (30_854, 51));
}

#[test]
fn what_differs_in_its_network_alone_has_another_place() {
    for flows in [1_024, 131_072] {
        let rows = Meetings::new(Meetings::rows(flows), Some(0));
        let places = |keys: &mut dyn Iterator<Item = (Address, Address)>| {
            let at = |(a, b)| Place::of(&FlowKey::of(a, 1_000, b, 53, 17).0);
            keys.map(at).map(|place| (rows.read(place), place.bit)).collect::<BTreeSet<_>>().len()
        };
        let v4 = |n: u16| Address::v4([(n >> 8) as u8, n as u8, 2, 3]);
        let v6 = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 1])
        };
        let all = 1_024;
        for (what, found) in [
            ("the called network", places(&mut (0..all).map(|n| (address(1), v4(n + 0x1000))))),
            ("the caller's", places(&mut (0..all).map(|n| (v4(n + 0x1000), Address::v4([250, 1, 1, 1]))))),
            ("that of both, IPv6", places(&mut (0..all).map(|n| (v6(n), v6(n))))),
            ("the called one's, IPv6", places(&mut (0..all).map(|n| (v6(0), v6(n))))),
        ] {
            assert!(found > 960, "{what}: {found} places of {all}, {flows} flows");
        }
    }
}

#[test]
fn where_nothing_is_known_there_is_no_row() {
    for flows in [1_024, 131_072, 4_194_304] {
        let rows = Meetings::rows(flows);
        let nothing = Meetings::new(rows, None);
        assert_eq!((nothing.bank(), nothing.each()), (None, rows / 2));
        for n in 0..2_000 {
            let place = Place::of(&FlowKey::of(address(1), n, address(2), 53, 17).0);
            assert!(nothing.read(place) >= rows && Meetings::from_word(0).read(place) >= rows);
            // What is written meanwhile is there when a bank is read.
            assert_eq!(nothing.of(1, place), Meetings::new(rows, Some(1)).read(place));
        }
    }
}

#[test]
fn edges_of_the_share() {
    assert!(admits(0, 700, room(ADDRESS, 1_024), 25) && admits(0, 700, room(NETWORK, 1_024), 25));
    assert!(admits(0, 800, room(ADDRESS, 1_024), 25) && !admits(0, 800, room(NETWORK, 1_024), 25));
    assert!(admits(0, 1_023, 1_024, 25) && !admits(0, 1_024, 1_024, 25));
    assert!(admits(255, 255, 1_024, 25) && !admits(256, 256, 1_024, 25));
    assert!(!admits(0, 2_000, 1_024, 25), "more than the agent counted");
    assert!(admits(5_000, 5_000, 1_024, 100));
    assert!(admits(u64::MAX, u64::MAX, 1_024, 25), "one less than none is none");
}

#[test]
fn who_is_counted_together() {
    let of = |from: Address, counted: u16| {
        let (key, side) = FlowKey::of(from, 9, Address::v4([10, 2, 0, 2]), 53, 17);
        source(&key, &Flow { opener: side as u8, counted, ..Flow::default() })
    };
    let v6 = |last: u8| Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, last]);
    assert_eq!(of(v6(1), NETWORK), of(v6(2), NETWORK));
    assert_ne!(of(v6(1), ADDRESS), of(v6(2), ADDRESS));
    assert_ne!(of(address(1), NETWORK), of(address(2), NETWORK));
    assert_eq!(of(address(1), NETWORK), of(address(1), ADDRESS));
    let named = |identity: u16| IDENTITY | identity;
    assert_eq!(of(address(1), named(70)), of(address(2), named(70)));
    assert_ne!(of(address(1), named(70)), of(address(1), named(71)));
    assert_eq!(of(address(1), NOBODY), None);
    let both = |from, identity| of(from, IDENTITY | BOTH | identity);
    assert_ne!(both(address(1), 70), both(address(1), 71), "two units");
    assert_ne!(both(address(1), 70), both(address(2), 70), "two containers of a tier");
    assert_ne!(both(v6(1), 70), both(v6(2), 70));
    assert_ne!(both(address(1), 70), of(address(1), IDENTITY | 0x46));

    let mut container = Outcome::CLOSED;
    container.source_container = Container(5);
    let masqueraded = Flow { marks: Flow::MASQUERADED, source: Identity(70), ..Flow::default() };
    assert_eq!(counted(&Flow::default(), &container), ADDRESS);
    assert_eq!(counted(&masqueraded, &container), named(70));
}
