//! Takes silent flows out of the table, a few thousand entries at a time.

use std::io;

use hydra_common::flow::{Flow, FlowKey};
use hydra_common::names;
use hydra_common::track;

use super::error::DatapathError;
use super::maps::Table;
use super::raw::{self, Cursor};
use super::store::open;
use super::sync::Datapath;

/// Goes round the flow table. Correctness does not need it: an entry that was silent for too long lets nothing pass.
#[derive(Debug)]
pub struct Collector {
    flows: Table<FlowKey, Flow>,
    cursor: Cursor,
}

/// What one step saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries read.
    pub seen: usize,
    /// Entries taken out.
    pub removed: usize,
    /// The round is complete; the next step begins another.
    pub round: bool,
}

impl Datapath {
    /// A collector with a descriptor of its own.
    pub fn collector(&self) -> Result<Collector, DatapathError> {
        Ok(Collector { flows: open(&self.pins, names::FLOWS, Table::open)?, cursor: Cursor::default() })
    }
}

impl Collector {
    /// Looks at the next few thousand entries.
    pub fn step(&mut self) -> io::Result<Collected> {
        self.step_at(raw::monotonic())
    }

    /// The same at another time (nanoseconds of the monotonic clock), for tests.
    pub fn step_at(&mut self, now: u64) -> io::Result<Collected> {
        let mut entries = Vec::new();
        let more = self.flows.some(&mut self.cursor, &mut entries)?;
        let mut collected = Collected { seen: entries.len(), removed: 0, round: !more };
        for (key, flow) in entries {
            if !track::expired(&flow, key.protocol, now) {
                continue;
            }
            // A packet may have come since it was read: the entry is the kernel's, only what stayed silent goes.
            let again = self.flows.get(&key)?;
            if again.is_some_and(|again| again.seen == flow.seen && again.created == flow.created)
                && self.flows.remove(&key)?
            {
                collected.removed += 1;
            }
        }
        if !more {
            self.cursor = Cursor::default();
        }
        Ok(collected)
    }
}
