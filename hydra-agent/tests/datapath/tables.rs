//! Rows: what is written, what is flipped, what stays when something fails.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap};
use hydra_agent::datapath::DatapathError;
use hydra_agent::desired::{Desired, Endpoint};
use hydra_agent::policy::rows::{Class, Owner};
use hydra_common::address::Address;
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::names;
use hydra_common::tables::{self, Cell, Decision, IdentityRow, Interval, Limit, PrefixData, PrefixRow};
use hydra_common::verdict::Reason;
use std::sync::Arc;

use crate::support::*;

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
        // In the bank that is not read now: noticed when it is written next, and written whole.
        Array::<_, Cell>::try_from(map(bpffs, names::CELLS))
            .unwrap()
            .set(tables::cell_index(1, DATABASES, APPS), Cell::decision(2), 0)
            .unwrap();
        for revision in [2, 3] {
            assert!(datapath.sync(&Desired { revision, ..desired.clone() }).unwrap().flipped);
            assert_eq!(cell(bpffs, DATABASES, APPS), Cell::decision(1));
        }
        let desired = Desired { revision: 3, ..desired };
        assert!(endpoint(bpffs, "10.1.0.2").is_some());
        assert_eq!(datapath.verify(&desired), Vec::new());
    });
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
                large.intervals.push(Interval { from, decision: 3 + rule });
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
        println!("10,000 rules: {:?}, of a CPU {:?}", begun.0.elapsed(), cpu_time().saturating_sub(begun.1));
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

/// What this thread has used: on a busy machine the wall clock tells nothing.
fn cpu_time() -> std::time::Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    std::time::Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn a_wall_clock_that_is_set_is_noticed_and_ends_are_written_anew() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut compiled = policy(true);
        let end =
            i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap() + 1_000;
        compiled.decisions[2] = (Decision { next: 1, ..compiled.decisions[2].0 }, Some(end));
        desired.compiled = Arc::new(compiled.clone());
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        assert_eq!(datapath.verify(&desired), Vec::new());
        let until = |bank: u32| {
            let rows = Array::<_, Decision>::try_from(map(bpffs, names::DECISIONS)).unwrap();
            rows.get(&(bank * tables::MAX_DECISIONS + 2), 0).unwrap().until
        };
        let before = until(1);

        // A clock that was set an hour back is to these rows what ends an hour later are.
        for (generation, by) in [(2u32, 3_600i64), (3, -400), (4, -31_536_000)] {
            compiled.decisions[2].1 = Some(end + by);
            desired.compiled = Arc::new(compiled.clone());
            let wrong = datapath.verify(&desired);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(wrong[0].why.starts_with("the wall clock was set"), "{wrong:?}");
            let report = datapath.sync(&desired).unwrap();
            assert_eq!((report.generation, report.flipped), (generation, true));
            assert_eq!(datapath.verify(&desired), Vec::new());
            let expected = (i64::from(before) + by).max(1);
            assert!((i64::from(until(generation & 1)) - expected).abs() <= 2, "by {by}");
        }
    });
}

#[test]
fn limits_are_written_read_back_and_watched() {
    apart(|bpffs| {
        let (mut desired, ..) = two_containers();
        let mut compiled = policy(true);
        compiled.limits = vec![Limit { interval: 1_000_000_000, burst: 60, bucket: 7 }];
        desired.compiled = Arc::new(compiled);
        let mut datapath = open(bpffs);
        datapath.sync(&desired).unwrap();
        let mut rows = Array::<_, Limit>::try_from(map(bpffs, names::LIMITS)).unwrap();
        let held = rows.get(&tables::MAX_LIMITS, 0).unwrap();
        assert_eq!(held, Limit { interval: 1_000_000_000, burst: 60, bucket: 7 }, "of the bank in use");
        assert_eq!(rows.get(&0, 0).unwrap(), Limit::default(), "of the other one");
        assert_eq!(datapath.verify(&desired), Vec::new());
        rows.set(tables::MAX_LIMITS, Limit { burst: 6_000, ..held }, 0).unwrap();
        let wrong = datapath.verify(&desired);
        assert!(wrong.iter().any(|w| w.why.contains("limits")), "{wrong:?}");
        datapath.sync(&desired).unwrap();
        assert_eq!(datapath.verify(&desired), Vec::new());
        let bank = datapath.held().generation & 1;
        assert_eq!(rows.get(&(bank * tables::MAX_LIMITS), 0).unwrap(), held, "mended");
    });
}

#[test]
fn many_intervals_are_written_read_back_and_mended() {
    let many = 6_000;
    let large = move |decision: u32| {
        let mut compiled = policy(true);
        let first = compiled.intervals.len();
        compiled.intervals.extend((0..many).map(|n| Interval { from: n * 2, decision: decision + n % 2 }));
        (Arc::new(compiled), first as u32)
    };
    apart(move |bpffs| {
        let (mut desired, ..) = two_containers();
        let mut datapath = open(bpffs);
        let mut apply = |revision: u32| {
            let (compiled, first) = large(revision % 2 + 1);
            (desired.revision, desired.compiled) = (revision, compiled);
            let report = datapath.sync(&desired).unwrap();
            assert_eq!((report.generation, report.flipped), (revision, true));
            assert_eq!(datapath.verify(&desired), Vec::new());
            (revision & 1) * tables::MAX_INTERVALS + first
        };
        let mut rows = Array::<_, Interval>::try_from(map(bpffs, names::INTERVALS)).unwrap();
        // One of each half, which are written side by side.
        let first = apply(1);
        let (at, held) = (first + 5_000, Interval { from: 10_000, decision: 2 });
        let (at_first, held_first) = (first + 1_000, Interval { from: 2_000, decision: 2 });
        assert_eq!(rows.get(&at, 0).unwrap(), held);
        assert_eq!(rows.get(&at_first, 0).unwrap(), held_first);
        apply(2);
        // What nobody looks at now, and is not to be written again.
        rows.set(at, Interval::default(), 0).unwrap();
        rows.set(at_first, Interval::default(), 0).unwrap();
        assert_eq!(apply(3), first);
        assert_eq!(rows.get(&at, 0).unwrap(), held, "it was read back");
        assert_eq!(rows.get(&at_first, 0).unwrap(), held_first, "it was read back");
        rows.set(at, Interval::default(), 0).unwrap();
        let wrong = datapath.verify(&desired);
        assert!(wrong.iter().any(|w| w.why.contains("intervals")), "{wrong:?}");
    });
}
