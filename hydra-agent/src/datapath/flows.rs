//! Takes flows out of the table: silent ones, a few thousand entries at a time, and at once those of containers that are gone.

use std::collections::BTreeSet;
use std::io;

use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::Container;
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
    /// Takes out every entry of a flow with one of these containers; gives their number. For a container that is gone: the next one
    /// with its address has another number, and no right to them.
    pub fn forget(&mut self, gone: &BTreeSet<Container>) -> io::Result<usize> {
        let mut cursor = Cursor::default();
        let mut removed = 0;
        loop {
            let mut entries = Vec::new();
            let more = self.flows.some(&mut cursor, &mut entries)?;
            for (key, flow) in entries {
                if flow.containers.iter().any(|c| gone.contains(c))
                    && self.remove(&key, |a| a.created == flow.created)?
                {
                    removed += 1;
                }
            }
            if !more {
                return Ok(removed);
            }
        }
    }

    /// Takes an entry out if it still is what was read.
    fn remove(&self, key: &FlowKey, same: impl FnOnce(&Flow) -> bool) -> io::Result<bool> {
        Ok(self.flows.get(key)?.is_some_and(|again| same(&again)) && self.flows.remove(key)?)
    }

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
            if self.remove(&key, |again| again.seen == flow.seen && again.created == flow.created)? {
                collected.removed += 1;
            }
        }
        if !more {
            self.cursor = Cursor::default();
        }
        Ok(collected)
    }
}
