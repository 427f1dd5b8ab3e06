//! A packet of a flow that has an entry finds it, whatever becomes of the bits that say where there may be entries.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hydra_common::flow::FlowKey;
use hydra_common::share::Word;
use hydra_tests::kernel::Runner;
use hydra_tests::packets::protocol;
use hydra_tests::stage::Stage;

use crate::support::*;

fn key(calls: &Calls, port: u16) -> FlowKey {
    calls.there.key((port, 5432), protocol::TCP)
}

fn round(runner: &Runner) {
    let mut collector = runner.collector().unwrap();
    while !collector.step().unwrap().round {}
}

#[test]
fn bits_follow_both_tables() {
    stage(room(1_024, 1), |stage, runner| {
        let calls = Calls::new(stage, "cron", "cache");
        let before = Bits::of(stage);
        assert_eq!((before.meetings.bank(), before.count()), (Some(0), 0));
        // A hundredth of the first table is eleven entries, the others are in the second.
        let ports: Vec<u16> = (40_000..40_200).collect();
        for port in &ports {
            assert!(calls.open(runner, *port));
        }
        assert_eq!(runner.held(&address(stage, "cron").into()), 11);
        let entries = 200;
        assert!(ports.iter().all(|port| before.met(&key(&calls, *port))));
        assert!((entries - 10..=entries).contains(&before.count()), "{} bits", before.count());
        assert!(!before.met(&key(&calls, 50_000)), "of one that never was");

        // The other bank has the same after a round, and forgets what somebody else's hand has taken away.
        round(runner);
        let after = Bits::of(stage);
        assert_eq!((after.meetings.bank(), after.count()), (Some(1), before.count()));
        assert!(ports.iter().all(|port| calls.lives(runner, *port)));
        let (mut first, mut second) = (first(stage), second(stage));
        for port in &ports[5..100] {
            let _ = first.remove(&key(&calls, *port));
            let _ = second.remove(&key(&calls, *port));
        }
        assert_eq!(after.count(), before.count());
        round(runner);
        let least = Bits::of(stage);
        assert_eq!(least.meetings.bank(), Some(0));
        assert!((95..=105).contains(&least.count()), "{} bits", least.count());
        let living: Vec<bool> = ports.iter().map(|port| calls.lives(runner, *port)).collect();
        assert!((0..200).all(|n| living[n] != (5..100).contains(&n)));
    });
}

/// The control of all of it: a bit that is not there hides an entry. The next round finds it.
#[test]
fn without_its_bit_an_entry_is_not_found_until_a_round_sees_it() {
    stage(room(8_192, 25), |stage, runner| {
        let calls = Calls::new(stage, "cron", "cache");
        assert!(calls.open(runner, 40_000) && calls.lives(runner, 40_000));
        Bits::of(stage).forget(&key(&calls, 40_000));
        assert!(!calls.lives(runner, 40_000), "not found");
        round(runner);
        assert!(calls.lives(runner, 40_000), "found again");

        // Where nothing is known each is looked for, and rounds leave that.
        let mut words = words(stage);
        let nothing = Bits::of(stage).meetings.word() & u64::from(u32::MAX);
        Bits::of(stage).forget(&key(&calls, 40_000));
        assert!(!calls.lives(runner, 40_000));
        for word in [nothing, 0] {
            words.set(Word::Meetings as u32, word, 0).unwrap();
            assert!(calls.lives(runner, 40_000) && calls.open(runner, 41_000));
            round(runner);
            assert_eq!(runner.word(Word::Meetings).unwrap(), word);
        }
    });
}

/// How the bits come to be others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// As the agent does it.
    Round,
    /// The bank that is read is cleared and filled by hand.
    InPlace,
}

/// Connections that begin on two CPUs while the bits are filled anew: how many of them were lost, of how many, meanwhile how often.
fn lost(stage: &Stage, runner: &Runner, change: Change, each: u16) -> (u64, u64) {
    let pairs = [Calls::new(stage, "cron", "cache"), Calls::new(stage, "shop", "db")];
    let (lost, rounds, left) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(pairs.len() as u64));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut collector = runner.collector().unwrap();
            let mut bits = Bits::of(stage);
            while !done.load(Ordering::Relaxed) {
                match change {
                    Change::Round => while !collector.step().unwrap().round {},
                    Change::InPlace => {
                        let keys: Vec<FlowKey> =
                            runner.flows().unwrap().iter().map(|(key, _)| *key).collect();
                        for key in &keys {
                            bits.forget(key);
                        }
                        for key in &keys {
                            bits.note(key);
                        }
                    }
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for calls in &pairs {
            let (lost, left, done) = (&lost, &left, &done);
            scope.spawn(move || {
                for n in 0..each {
                    let port = 10_000 + n;
                    let opened = calls.open(runner, port);
                    // One that is older as well.
                    let lives = calls.lives(runner, port) && calls.lives(runner, 10_000 + n / 2);
                    lost.fetch_add(u64::from(!(opened && lives)), Ordering::Relaxed);
                }
                if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    done.store(true, Ordering::Relaxed);
                }
            });
        }
    });
    (lost.into_inner(), rounds.into_inner())
}

#[test]
fn no_connection_is_lost_while_bits_are_filled_anew() {
    let each = number(std::env::var("HYDRA_MET"), 10_000).min(50_000) as u16;
    stage(room(131_072, 100), |stage, runner| {
        let (hidden, rounds) = lost(stage, runner, Change::Round, each);
        println!("{} connections in {rounds} rounds: {hidden} lost", 2 * u32::from(each));
        assert!(rounds >= 4, "they met: {rounds}");
        assert_eq!(hidden, 0);
    });
    // The control.
    stage(room(131_072, 100), |stage, runner| {
        let (hidden, rounds) = lost(stage, runner, Change::InPlace, each);
        println!("in place, {rounds} times: {hidden} lost");
        assert!(hidden > 0);
    });
}
