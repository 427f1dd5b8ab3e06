//! Reading the flow table for export: all of a million flows, and all of a table of the usual size as often as an exporter does.
//! Beside it the same table read one entry after the other, as `bpf_map_get_next_key` and `bpf_map_lookup_elem` do.
//!
//! What is done with a flow is to add its counters up: what an exporter makes of it is its own affair. And the agent's own round over a
//! table of the usual size, which looks for silent flows and counts those of each source, as often.

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use hydra_agent::datapath::{Collector, Datapath, KernelReader, Mechanism, Room};
use hydra_agent::published::Reader as _;
use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::{ABI, names};
use hydra_tests::topology::{HOST, Topology};
use hydra_tests::world::World;

use super::Form;
use crate::cpu;
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::stats::interleave;

/// Flows of the large table, and of the usual one.
const MANY: u32 = 1_000_000;
const USUAL: u32 = 131_072;
/// Containers that opened them.
const SOURCES: u32 = 250;
/// An exporter reads all flows as often, seconds.
const EVERY: f64 = 10.0;

/// A table with flows in it.
struct Table {
    flows: u32,
    reader: KernelReader,
    collector: RefCell<Collector>,
    map: HashMap<MapData, FlowKey, Flow>,
}

/// What is measured in turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Million,
    Usual,
    Round,
    OneByOne,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Million => "a million flows read",
            Self::Usual => "131,072 flows read every 10 s",
            Self::Round => "131,072 flows cleaned every 10 s",
            Self::OneByOne => "a million flows read one by one",
        })
    }
}

const LONGEST: &str = "longest call of them";

/// Adds what it takes.
pub fn measure(form: &Form, report: &mut Report, progress: &mut Progress) -> Result<()> {
    let rounds = if form.long { 20 } else { 3 };
    let world = World::build(&Topology::default())?;
    progress.at("a million flows");
    let many = world.enter(HOST, || Table::filled(&world, "many", MANY))??;
    let usual = world.enter(HOST, || Table::filled(&world, "usual", USUAL))??;
    let mut cases = [Case::Usual, Case::Million, Case::Round, Case::OneByOne];
    let samples = interleave(
        &mut cases,
        rounds,
        |case| match case {
            Case::Million => many.spent(Table::read),
            // What was read of the other table before has taken its place in the caches, as ten seconds of other work do.
            Case::Usual => Ok(usual.spent(Table::read)? / EVERY * 100.0),
            Case::Round => Ok(usual.spent(Table::clean)? / EVERY * 100.0),
            Case::OneByOne => many.spent(Table::read_singly),
        },
        |done| progress.at(&format!("flows read, round {done} of {rounds}")),
    )?;
    for (case, samples) in cases.iter().zip(samples) {
        let unit = if matches!(case, Case::Usual | Case::Round) { "% of a core" } else { "s of CPU" };
        report.add(&case.to_string(), unit, samples)?;
    }
    let mut longest = (Duration::ZERO, Duration::ZERO);
    for round in 1..=rounds {
        progress.at(&format!("single calls, round {round} of {rounds}"));
        let (worked, waited) = many.longest()?;
        longest = (longest.0.max(worked), longest.1.max(waited));
    }
    let milliseconds = |time: Duration| vec![time.as_secs_f64() * 1e3];
    report.add(LONGEST, "ms of CPU", milliseconds(longest.0))?;
    report.add(&format!("{LONGEST}, by the clock on the wall"), "ms", milliseconds(longest.1))?;
    report.aim(&Case::Million.to_string(), Goal::Most(12, 0.5))?;
    report.aim(&Case::Usual.to_string(), Goal::Most(12, 0.5))?;
    report.aim(LONGEST, Goal::Most(12, 5.0))?;
    report.compare(&Case::OneByOne.to_string(), &Case::Million.to_string(), None)
}

impl Table {
    /// With as many flows, each of other ends.
    fn filled(world: &World, name: &str, flows: u32) -> Result<Self> {
        let pins = world.bpffs().join(name);
        let room = Room { flows: flows.next_power_of_two(), ..Room::default() };
        let datapath = Datapath::open_with(&pins, Mechanism::Auto, room)?;
        let pin = pins.join(format!("v{ABI}/maps/{}", names::FLOWS));
        let map = MapData::from_pin(&pin).with_context(|| format!("cannot open `{}`", pin.display()))?;
        let mut map = HashMap::try_from(Map::from_map_data(map)?)?;
        // All of them live: seen when the clock began, at which they are looked at.
        for n in 0..flows {
            let (from, to) = (Address::v4([172, 30, 1, (n % SOURCES) as u8]), Address::v4([172, 30, 3, 10]));
            let (key, opener) = FlowKey::of(from, (n / SOURCES) as u16 + 1_024, to, 5432, 6);
            let flow = Flow {
                opener: opener as u8,
                counted: 1,
                created: 1,
                seen: 1,
                packets: [3, 2],
                ..Flow::default()
            };
            map.insert(key, flow, 0)?;
        }
        let (reader, collector) = (datapath.reader()?, datapath.collector()?.into());
        Ok(Self { flows, reader, collector, map })
    }

    /// Seconds of CPU that it takes.
    fn spent(&self, read: impl Fn(&Self) -> Result<(u32, u64)>) -> Result<f64> {
        let before = cpu::of_thread()?;
        let (seen, packets) = read(self)?;
        let spent = cpu::of_thread()?.saturating_sub(before);
        ensure!(
            seen == self.flows && packets == 5 * u64::from(self.flows),
            "{seen} flows with {packets} packets were read, of {}",
            self.flows
        );
        Ok(spent.as_secs_f64())
    }

    fn read(&self) -> Result<(u32, u64)> {
        let (mut seen, mut packets) = (0, 0);
        self.reader.each_flow(&mut |key, flow| {
            black_box(key);
            seen += 1;
            packets += flow.packets[0] + flow.packets[1];
        })?;
        Ok((seen, packets))
    }

    fn read_singly(&self) -> Result<(u32, u64)> {
        let (mut seen, mut packets) = (0, 0);
        for entry in &self.map {
            let (key, flow) = entry?;
            black_box(key);
            seen += 1;
            packets += flow.packets[0] + flow.packets[1];
        }
        Ok((seen, packets))
    }

    /// A round, which takes nothing out.
    fn clean(&self) -> Result<(u32, u64)> {
        let (mut collector, mut seen) = (self.collector.borrow_mut(), 0);
        loop {
            let step = collector.step_at(1)?;
            ensure!(step.removed == 0, "live flows were taken out");
            seen += step.seen as u32;
            if step.round {
                return Ok((seen, u64::from(seen) * 5));
            }
        }
    }

    /// The longest time between two flows: of this thread's CPU, and by the clock on the wall. That is a system call, since nothing
    /// else lies between, with a look at both clocks.
    fn longest(&self) -> Result<(Duration, Duration)> {
        let mut last = (cpu::of_thread()?, Instant::now());
        let (mut worked, mut waited, mut failed) = (Duration::ZERO, Duration::ZERO, None);
        self.reader.each_flow(&mut |_, _| match cpu::of_thread() {
            Ok(cpu) => {
                let now = (cpu, Instant::now());
                let (work, wait) = (now.0.saturating_sub(last.0), now.1.saturating_duration_since(last.1));
                (worked, waited) = (worked.max(work), waited.max(wait));
                last = now;
            }
            Err(error) => failed = Some(error),
        })?;
        failed.map_or(Ok((worked, waited)), Err)
    }
}
