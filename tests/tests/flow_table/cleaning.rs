//! Cleaning takes nothing that lives, and counts again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hydra_agent::datapath::GRACE;
use hydra_agent::published::Reader as _;
use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::share::Word;
use hydra_tests::kernel::Runner;
use hydra_tests::packets::{flags, protocol};
use hydra_tests::stage::Stage;

use crate::support::*;

#[test]
fn a_flow_that_spilled_is_exact_and_the_second_table_goes_out_of_use() {
    stage(room(1_024, 1), |stage, runner| {
        let calls = Calls::new(stage, "cron", "cache");
        // A hundredth: eleven entries.
        for n in 0..20 {
            assert!(calls.open(runner, 40_000 + n));
        }
        let held = runner.held(&Address::from(address(stage, "cron")));
        let spilled = |runner: &Runner, n: u16| {
            runner.flow(&calls.there.key((40_000 + n, 5432), protocol::TCP)).unwrap()
        };
        assert_eq!((held, spilled(runner, 0).1, spilled(runner, 19).1), (11, false, true));
        for _ in 0..50 {
            assert!(calls.lives(runner, 40_019));
            assert!(calls.there.tcp(runner, (40_019, 5432), flags::ACK));
        }
        let (flow, _) = spilled(runner, 19);
        let mut packets = flow.packets;
        packets.sort_unstable();
        assert_eq!(packets, [51, 52], "each packet once: SYN, ACK and 50; SYN-ACK and 50");

        // Once everything was silent for too long both are empty, and look-ups end at the first table again.
        let mut collector = runner.collector().unwrap();
        let later = flow.seen + 6 * 86_400_000_000_000;
        let mut removed = 0;
        loop {
            let step = collector.step_at(later).unwrap();
            removed += step.removed;
            if step.round {
                break;
            }
        }
        assert_eq!((removed, runner.word(Word::Used).unwrap()), (20, 0));
        while !collector.step_at(later).unwrap().round {}
        assert_eq!(runner.word(Word::Empty).unwrap(), runner.word(Word::Spilled).unwrap());
        assert!(!calls.lives(runner, 40_019), "its entry is gone");
        // And in use again with the next that spills.
        for n in 0..20 {
            assert!(calls.open(runner, 50_000 + n) && calls.lives(runner, 50_000 + n));
        }
    });
}

#[test]
fn counts_that_the_kernel_lost_are_put_right() {
    stage(room(8_192, 25), |stage, runner| {
        let calls = Calls::new(stage, "cron", "cache");
        for n in 0..500 {
            assert!(calls.there.udp(runner, tuple(n)));
        }
        let mut table = first(stage);
        // Entries that nobody counted, as if the row had been forgotten meanwhile.
        let (model, _) = runner.flow(&calls.there.key(tuple(0), protocol::UDP)).unwrap();
        for n in 500..1_000 {
            table.insert(calls.there.key(tuple(n), protocol::UDP), model, 0).unwrap();
        }
        let source = Address::from(address(stage, "cron"));
        assert_eq!((runner.held(&source), runner.word(Word::Used).unwrap()), (500, 500));
        let mut collector = runner.collector().unwrap();
        while !collector.step().unwrap().round {}
        assert_eq!((runner.held(&source), runner.word(Word::Used).unwrap()), (1_000, 1_000));
    });
}

/// How the entries of a reuse are cleaned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cleaning {
    /// As the agent does it.
    Swept,
    /// What was read as expired is removed by its key, whatever is there by then.
    ByKey,
}

/// Old entries are cleaned while their ends use the same ports again: how many flows that had just begun were removed, of how many.
fn reuse(stage: &Stage, runner: &mut Runner, cleaning: Cleaning, rounds: u32, flows: u32) -> (u64, u64) {
    let calls = Calls::new(stage, "cron", "cache");
    assert!(calls.there.udp(runner, tuple(0)));
    let (model, _) = runner.flow(&calls.there.key(tuple(0), protocol::UDP)).unwrap();
    let keys: Vec<FlowKey> = (0..flows).map(|n| calls.there.key(tuple(n), protocol::UDP)).collect();
    let (lost, cleaned) = (AtomicU64::new(0), AtomicU64::new(0));
    for _ in 0..rounds {
        // All of them silent for just too long.
        let mut table = first(stage);
        let now = runner.reader().unwrap().clocks().0;
        let old = now.saturating_sub(60_000_000_000 + GRACE + 1_000_000_000);
        for key in &keys {
            table.insert(key, Flow { seen: old, created: old, ..model }, 0).unwrap();
        }
        let mut collector = runner.collector().unwrap();
        let reader = runner.reader().unwrap();
        let done = AtomicBool::new(false);
        let shared: &Runner = runner;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if cleaning == Cleaning::Swept {
                        cleaned.fetch_add(collector.step().unwrap().removed as u64, Ordering::Relaxed);
                        continue;
                    }
                    for (key, flow) in reader.flows().unwrap() {
                        if flow.seen == old && table.remove(&key).is_ok() {
                            cleaned.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
            // From the end that the cleaning comes to last, to meet it.
            for n in 0..flows {
                assert!(calls.there.udp(shared, tuple(n)));
            }
            done.store(true, Ordering::Relaxed);
        });
        for key in &keys {
            lost.fetch_add(u64::from(runner.flow(key).is_none_or(|(f, _)| f.seen == old)), Ordering::Relaxed);
        }
    }
    (lost.into_inner(), cleaned.into_inner())
}

#[test]
fn cleaning_removes_no_flow_that_lives() {
    // The long form: a million flows that reuse the ports of old ones.
    let reused = number(std::env::var("HYDRA_REUSED"), 40_000);
    stage(room(131_072, 100), |stage, runner| {
        let (lost, cleaned) = reuse(stage, runner, Cleaning::Swept, reused / 20_000, 20_000);
        println!(
            "{reused} ports were used again while {cleaned} old entries were cleaned: {lost} flows lost"
        );
        assert!(cleaned > u64::from(reused) / 20, "the two met: {cleaned}");
        assert_eq!(lost, 0);
        let entries = runner.flows().unwrap().len() as u64;
        assert!(runner.word(Word::Used).unwrap() <= entries, "what was put in from outside is not counted");
        // The control.
        let (lost, cleaned) = reuse(stage, runner, Cleaning::ByKey, 2, 20_000);
        println!("by key alone, after {cleaned}: {lost} flows lost");
        assert!(lost > 0);
    });
}

/// What something gives, and the CPU time that it took of this thread (`proc_pid_schedstat` in the kernel: the first number,
/// nanoseconds).
fn spent<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let cpu = || {
        let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(spent.split(' ').next().unwrap().parse().unwrap())
    };
    let before = cpu();
    let gave = run();
    (gave, cpu().saturating_sub(before))
}

#[test]
fn reading_and_cleaning_go_by_batches() {
    let entries = number(std::env::var("HYDRA_ENTRIES"), 65_536);
    stage(room(entries.next_power_of_two(), 100), |stage, runner| {
        let calls = Calls::new(stage, "cron", "cache");
        assert!(calls.there.udp(runner, tuple(0)));
        let (model, _) = runner.flow(&calls.there.key(tuple(0), protocol::UDP)).unwrap();
        let mut table = first(stage);
        for n in 1..entries {
            table.insert(calls.there.key(tuple(n), protocol::UDP), model, 0).unwrap();
        }
        let (reader, mut collector) = (runner.reader().unwrap(), runner.collector().unwrap());
        let (read, batched) = spent(|| reader.flows().unwrap().len());
        let (found, singly) = spent(|| table.iter().flatten().count());
        assert_eq!((read, found), (entries as usize, entries as usize));
        let mut longest = Duration::ZERO;
        let mut whole = |now| {
            let mut removed = 0;
            loop {
                let begun = Instant::now();
                let step = collector.step_at(now).unwrap();
                longest = longest.max(begun.elapsed());
                removed += step.removed;
                if step.round {
                    return removed;
                }
            }
        };
        let (kept, round) = spent(|| whole(model.seen));
        let (removed, sweep) = spent(|| whole(model.seen + 600_000_000_000));
        println!(
            "{entries} entries: read in batches {batched:?}, one by one {singly:?}; a round {round:?}; removed in {sweep:?}; \
             the longest step {longest:?}"
        );
        assert_eq!((kept, removed), (0, entries as usize));
        assert!(batched * 3 < singly * 2, "a ratio of two runs of one thread");
    });
}
