//! How large the flow table is: what the setting asks for, what the machine has memory for, and what is pinned.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use hydra_common::flow::{Flow, FlowKey};
use hydra_common::names;
use hydra_common::share::{Meetings, Word};
use tracing::warn;

use super::error::{DatapathError, table};
use super::maps::Table;
use super::pins::Pins;
use super::raw;
use super::store::open;

/// What is asked of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Flows that the first table holds.
    pub flows: u32,
    /// Hundredths of the room left by others that one source may have; 100: all.
    pub share: u8,
}

impl Default for Room {
    fn default() -> Self {
        Self { flows: 131_072, share: 25 }
    }
}

impl Room {
    /// The fewest flows that can be asked for.
    pub const FEWEST: u32 = 1_024;
    /// The most.
    pub const MOST: u32 = 4_194_304;

    /// Flows that the second table holds.
    pub const fn spill(self) -> u32 {
        self.flows / 4
    }

    /// Rows of bits that say where there may be entries.
    pub const fn meetings(self) -> u32 {
        Meetings::rows(self.flows)
    }

    /// Bytes of kernel memory that both tables take: an element's head, key and value, and 16 bytes for each bucket (`htab_elem` and
    /// `bucket` of `kernel/bpf/hashtab.c`); and those bits.
    fn bytes(self) -> u64 {
        let element = 48 + size_of::<FlowKey>() as u64 + size_of::<Flow>() as u64;
        let tables = [self.flows, self.spill()];
        let tables = tables.map(|n| u64::from(n) * element + u64::from(n.next_power_of_two()) * 16);
        tables.iter().sum::<u64>() + u64::from(self.meetings()) * 8
    }

    /// Refuses what the machine has no memory for, where the tables are still to be made: the kernel would push everybody else out first.
    pub(super) fn check(self, pins: &Pins) -> Result<(), DatapathError> {
        if pins.maps.join(names::FLOWS).exists() {
            return Ok(());
        }
        let available = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available);
        available.map_or(Ok(()), |available| self.within(available))
    }

    /// Whether so many bytes are enough; else how many it takes, and the largest power of two that they are enough for.
    fn within(self, available: u64) -> Result<(), DatapathError> {
        let needed = self.bytes();
        if needed <= available {
            return Ok(());
        }
        let sizes = (0..=self.flows.ilog2()).rev().map(|bits| 1 << bits);
        let fits = sizes
            .filter(|flows| *flows < self.flows && (Self::FEWEST..=Self::MOST).contains(flows))
            .find(|flows| Self { flows: *flows, ..self }.bytes() <= available);
        let (needed, available) = (needed.div_ceil(1 << 20), available >> 20);
        Err(DatapathError::NoMemory { flows: self.flows, needed, available, fits })
    }

    /// Tells the programs how large the first table is and how much of it one source may have; says so where the pinned one is of another
    /// size than the setting: programs in use cannot be given another one.
    pub(super) fn tell(self, pins: &Pins) -> Result<(), DatapathError> {
        let words = Words::open(pins)?;
        let path = pins.maps.join(names::FLOWS);
        let capacity = raw::open_pin(&path)
            .and_then(|fd| raw::map_info(fd.as_fd()))
            .map_err(|e| DatapathError::pin("look at", &path, e))?
            .max_entries;
        if capacity != self.flows {
            warn!(
                setting = self.flows,
                capacity,
                "the flow table in use has another size than the setting `flows`, which counts from the next boot, or after `hydra-agent purge`"
            );
        }
        // The words may be newer than the second table: where that has entries it is looked into until a round has found it empty.
        let before = words.get(Word::Spilled).map_err(table("read", "flow table's words"))?;
        let second: Table<FlowKey, Flow> = open(pins, names::SPILL, Table::open)?;
        let free = second.is_empty().map_err(table("read", "flow table"))?;
        let empty = (Word::Empty, if free { before } else { u64::MAX });
        for (word, value) in
            [(Word::Capacity, u64::from(capacity)), (Word::Share, u64::from(self.share)), empty]
        {
            words.put(word, value).map_err(table("write", "flow table's words"))?;
        }
        Ok(())
    }
}

/// Bytes that the kernel can give without pushing anybody out, from `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The words that kernel and agent share.
#[derive(Debug)]
pub struct Words(Table<u32, u64>);

impl Words {
    /// Opens their pin.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self(open(pins, names::TABLE, Table::open)?))
    }

    /// One of them.
    pub fn get(&self, word: Word) -> io::Result<u64> {
        Ok(self.0.get(&(word as u32))?.unwrap_or(0))
    }

    /// Writes one of them.
    pub fn put(&self, word: Word, value: u64) -> io::Result<()> {
        self.0.put(&(word as u32), &value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_table_takes() {
        let mib = |flows| (Room { flows, ..Room::default() }).bytes() >> 20;
        assert_eq!(mib(131_072), 34);
        assert_eq!(mib(1_048_576), 274);
    }

    #[test]
    fn a_table_without_memory_is_refused_with_the_size_that_would_do() {
        let said = |flows, available: u64| {
            let error = Room { flows, ..Room::default() }.within(available << 20).unwrap_err();
            format!("{error} ({})", error.hint().unwrap_or_default())
        };
        assert_eq!(
            said(1_048_576, 100),
            "a table of 1048576 flows takes 274 MiB, and the machine has 100 MiB available \
             (`flows: 262144` in the settings file, or --flows=262144, for which there is room now)"
        );
        // What it names is taken, and the next larger one is not.
        let room = |flows| Room { flows, ..Room::default() };
        assert!(room(262_144).within(100 << 20).is_ok() && room(524_288).within(100 << 20).is_err());
        assert!(said(1_048_577, 275).contains("`flows: 1048576`"), "{}", said(1_048_577, 275));
        assert_eq!(
            said(Room::FEWEST, 0),
            "a table of 1024 flows takes 1 MiB, and the machine has 0 MiB available (free memory: the smallest table finds none)"
        );
        assert!(room(Room::MOST).within(u64::MAX).is_ok());
    }

    #[test]
    fn free_memory_is_what_the_kernel_says() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(available("MemAvailable: much\n"), None);
    }
}
