//! Rows that a CPU keeps near count only as long as the agent has written no others.

use hydra_common::address::Mac;
use hydra_common::share::Word;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::support::*;

#[test]
fn a_row_that_was_written_counts_at_once() {
    stage(room(1_024, 25), |stage, runner| {
        // Each CPU has its own. The thread ends with the test.
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::count()).find(|cpu| all.is_set(*cpu) == Ok(true)).unwrap()).unwrap();
        sched_setaffinity(this, &one).unwrap();
        let calls = Calls::new(stage, "cron", "cache");
        assert!(calls.there.udp(runner, (40_000, 53)) && calls.there.udp(runner, (40_001, 53)));
        let before = runner.word(Word::Rows).unwrap();
        let mut moved = stage.desired.clone();
        moved.links.get_mut(&stage.port("cron", 0).unwrap()).unwrap().mac = Mac([2, 0, 0, 0, 0, 99]);
        runner.sync(&moved).unwrap();
        let now = runner.word(Word::Rows).unwrap();
        assert_ne!(now, before);

        // The control: without that word the port's old row, with the frame's MAC, is still near.
        let mut words = words(stage);
        words.set(Word::Rows as u32, before, 0).unwrap();
        assert!(calls.there.udp(runner, (40_002, 53)), "nothing is kept");
        words.set(Word::Rows as u32, now, 0).unwrap();
        assert!(!calls.there.udp(runner, (40_003, 53)), "the MAC is another's now");
        runner.sync(&stage.desired).unwrap();
        assert!(calls.there.udp(runner, (40_004, 53)), "and its own again");
    });
}
