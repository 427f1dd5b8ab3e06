//! What is read from the kernel: flows, counters, events.

use aya::maps::HashMap;
use aya::programs::SchedClassifier;
use aya::{TestRun, TestRunOptions};
use hydra_agent::published::Reader;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::names;
use hydra_common::tables::{self};
use hydra_common::verdict::{Hook, Reason};

use crate::support::*;

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
            flows
                .insert(key, Flow { seen, created: 1, flags: [1, 1], counted: 1, ..Flow::default() }, 0)
                .unwrap();
        }
        assert_eq!(reader.flows().unwrap().len(), 10_000);
        // Nobody but the agent's own count says how many there are: these were put in from outside.
        assert_eq!(reader.counters().unwrap().flows, 0);
        let mut collector = datapath.collector().unwrap();
        let (mut removed, mut steps) = (0, 0);
        loop {
            assert!(collector.due(), "a round that has begun goes on");
            let step = collector.step_at(now.max(7_200_000_000_000)).unwrap();
            removed += step.removed;
            steps += 1;
            if step.round {
                break;
            }
        }
        assert!(steps > 1, "a few thousand at a time");
        assert!(!collector.due(), "and the next one can wait");
        let left = reader.flows().unwrap();
        assert_eq!(removed + left.len(), 10_000);
        if now > 7_200_000_000_000 {
            assert_eq!(left.len(), 5_000);
            assert!(left.iter().all(|(_, flow)| flow.seen == now));
        }
        // Counted by the first round in which the kernel's own count did not move.
        while !collector.step_at(now).unwrap().round {}
        let counters = reader.counters().unwrap();
        assert!(counters.traffic.is_empty());
        assert_eq!(counters.flows, left.len() as u64, "counted by the round");
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
