//! What the API shows of the kernel's tables: live flows and counters.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::Path;

use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{MAX_IDENTITIES, MAX_TIERS, Tier};
use hydra_common::names;
use hydra_common::share::{self, Word};
use hydra_common::tables::{Count, DropKey, DropSlot, GAUGES, IdentityRow, traffic_index};
use hydra_common::verdict::Reason;

use super::error::DatapathError;
use super::maps::{PerCpu, Sum as _, Sums, Table};
use super::pins::Pins;
use super::room::Words;
use super::store::open;
use super::sync::{Datapath, clocks};
use crate::published::{Counters, Reader};

/// The tables by descriptors of its own: it goes on reading whatever the agent does meanwhile.
#[derive(Debug)]
pub struct KernelReader {
    flows: Table<FlowKey, Flow>,
    spill: Table<FlowKey, Flow>,
    words: Words,
    identities: Table<u32, IdentityRow>,
    traffic: Sums<u32, Count>,
    drops: Drops,
    reasons: Sums<u32, Count>,
    gauges: Sums<u32, u64>,
    limited: Sums<u32, u64>,
}

/// The drop counters: two maps, each of which may have a part of a row.
#[derive(Debug)]
pub struct Drops {
    rows: Sums<DropKey, Count>,
    slots: PerCpu<DropSlot>,
}

impl Drops {
    /// Opens their pins, which are in this directory.
    pub fn open(maps: &Path) -> Result<Self, DatapathError> {
        let (rows, slots) = (maps.join(names::DROPS), maps.join(names::DROP_SLOTS));
        Ok(Self {
            rows: Sums::open(&rows).map_err(|e| DatapathError::pin("open", &rows, e))?,
            slots: PerCpu::open(&slots).map_err(|e| DatapathError::pin("open", &slots, e))?,
        })
    }

    /// One row.
    pub fn get(&self, key: &DropKey) -> io::Result<Count> {
        let mut sum = self.rows.get(key)?.unwrap_or_default();
        for slot in self.slots.get(key.slot())?.iter().filter(|slot| slot.key == key.number()) {
            sum.add(&slot.count);
        }
        Ok(sum)
    }

    /// What was dropped, or would have been. A slot that is being taken has its key at the next look.
    pub fn all(&self) -> io::Result<BTreeMap<DropKey, Count>> {
        let mut all: BTreeMap<DropKey, Count> = self.rows.all()?.into_iter().collect();
        for slot in self.slots.all()?.iter().filter(|slot| slot.key != 0 && slot.count != Count::default()) {
            all.entry(slot.key()).or_default().add(&slot.count);
        }
        Ok(all)
    }
}

impl Datapath {
    /// A reader of the tables.
    pub fn reader(&self) -> Result<KernelReader, DatapathError> {
        KernelReader::open(&self.pins)
    }
}

impl KernelReader {
    fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            flows: open(pins, names::FLOWS, Table::open)?,
            spill: open(pins, names::SPILL, Table::open)?,
            words: Words::open(pins)?,
            identities: open(pins, names::IDENTITIES, Table::open)?,
            traffic: open(pins, names::TRAFFIC, Sums::open)?,
            drops: Drops::open(&pins.maps)?,
            reasons: open(pins, names::REASONS, Sums::open)?,
            gauges: open(pins, names::GAUGES, Sums::open)?,
            limited: open(pins, names::LIMITED, Sums::open)?,
        })
    }

    /// Flows that the first table can hold.
    pub fn flow_capacity(&self) -> u32 {
        self.flows.room()
    }

    /// Shows what is in the second table: nothing, as a rule, and then it is not looked into.
    fn each_spilled(&self, see: impl FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        if self.words.get(Word::Spilled)? == self.words.get(Word::Empty)? {
            return Ok(());
        }
        self.spill.each(see)
    }

    /// The tiers of either bank: the whole matrix of counters has 65,536 cells per CPU, and few are in use.
    fn tiers(&self) -> io::Result<BTreeSet<u16>> {
        let rows = self.identities.range(0, 2 * MAX_IDENTITIES as usize)?;
        let mut tiers: BTreeSet<u16> = (0..Tier::FIRST_DECLARED.0).collect();
        tiers.extend(rows.iter().map(|row| row.tier.0).filter(|tier| u32::from(*tier) < MAX_TIERS));
        Ok(tiers)
    }

    fn traffic(&self) -> io::Result<BTreeMap<(u16, u16, bool), Count>> {
        let tiers = self.tiers()?;
        let width = tiers.last().map_or(0, |last| usize::from(*last) + 1);
        let mut traffic = BTreeMap::new();
        for audited in [false, true] {
            for source in &tiers {
                let row = self.traffic.range(traffic_index(Tier(*source), Tier(0), audited), width)?;
                for (destination, count) in row.into_iter().enumerate() {
                    if count != Count::default() {
                        traffic.insert((*source, destination as u16, audited), count);
                    }
                }
            }
        }
        Ok(traffic)
    }
}

impl Reader for KernelReader {
    fn each_flow(&self, see: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        let whole = |flow: &Flow| flow.created != 0;
        let mut spilled = HashMap::new();
        self.each_spilled(|key, flow| {
            if whole(flow) {
                spilled.insert(*key, *flow);
            }
        })?;
        self.flows.each(|key, flow| {
            if whole(flow) {
                // Two CPUs that make the same entry may come to put it into one table each: the first is the one that packets find.
                if !spilled.is_empty() {
                    spilled.remove(key);
                }
                see(key, flow);
            }
        })?;
        for (key, flow) in &spilled {
            see(key, flow);
        }
        Ok(())
    }

    fn counters(&self) -> io::Result<Counters> {
        let reasons = self.reasons.range(0, self.reasons.room() as usize)?;
        let reasons = Reason::ALL
            .iter()
            .filter_map(|reason| Some((*reason, *reasons.get(*reason as usize)?)))
            .filter(|(_, count)| *count != Count::default())
            .collect();
        let mut gauges = [0; GAUGES as usize];
        for (gauge, sum) in gauges.iter_mut().zip(self.gauges.range(0, GAUGES as usize)?) {
            *gauge = sum;
        }
        let mut flows = share::number(self.words.get(Word::Used)?);
        self.each_spilled(|_, _| flows += 1)?;
        Ok(Counters {
            traffic: self.traffic()?,
            drops: self.drops.all()?,
            reasons,
            limited: self.limited.range(0, self.limited.room() as usize)?,
            gauges,
            flows,
            spilled: self.words.get(Word::Spilled)?,
        })
    }

    fn clocks(&self) -> (u64, i128) {
        let now = clocks();
        (now.monotonic, now.unix)
    }
}
