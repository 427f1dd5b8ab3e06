//! The pinned maps as the tables of `hydra_common`, and one bank written to or read from them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use hydra_common::address::Address;
use hydra_common::id::{Identity, MAX_IDENTITIES};
use hydra_common::names;
use hydra_common::share::Word;
use hydra_common::tables::{
    Cell, Cgroup, CgroupKey, Decision, Endpoint, Head, IdentityRow, Interval, Limit, Link, MAX_DECISIONS,
    MAX_INTERVALS, MAX_LIMITS, MAX_RULE_SETS, PrefixRow, Publish, PublishKey, RuleSet, cell_index,
};
use ipnet::IpNet;

use super::error::{DatapathError, table};
use super::maps::{Bytes, Table};
use super::pins::Pins;
use super::raw;
use super::room::Words;
use super::tables::{Bank, PrefixKey};
use crate::beside::both;

/// Every table that the agent writes.
#[derive(Debug)]
pub struct Store {
    generation: Table<u32, u32>,
    heads: Table<u32, Head>,
    identities: Table<u32, IdentityRow>,
    cells: Table<u32, Cell>,
    rule_sets: Table<u32, RuleSet>,
    intervals: Table<u32, Interval>,
    decisions: Table<u32, Decision>,
    limits: Table<u32, Limit>,
    prefixes: Table<PrefixKey, PrefixRow>,
    /// Rows of containers.
    pub endpoints: Table<Address, Endpoint>,
    /// Rows of interfaces.
    pub links: Table<u32, Link>,
    /// Rows of published ports.
    pub published: Table<PublishKey, Publish>,
    /// Rows of cgroups.
    pub cgroups: Table<CgroupKey, Cgroup>,
    words: Words,
}

/// Opens one map by its name.
pub fn open<T>(pins: &Pins, name: &str, open: impl Fn(&Path) -> io::Result<T>) -> Result<T, DatapathError> {
    let path = pins.maps.join(name);
    open(&path).map_err(|e| DatapathError::pin("open", &path, e))
}

impl Store {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        Ok(Self {
            generation: open(pins, names::GENERATION, Table::open)?,
            heads: open(pins, names::HEADS, Table::open)?,
            identities: open(pins, names::IDENTITIES, Table::open)?,
            cells: open(pins, names::CELLS, Table::open)?,
            rule_sets: open(pins, names::RULE_SETS, Table::open)?,
            intervals: open(pins, names::INTERVALS, Table::open)?,
            decisions: open(pins, names::DECISIONS, Table::open)?,
            limits: open(pins, names::LIMITS, Table::open)?,
            prefixes: open(pins, names::PREFIXES, Table::open)?,
            endpoints: open(pins, names::ENDPOINTS, Table::open)?,
            links: open(pins, names::LINKS, Table::open)?,
            published: open(pins, names::PUBLISHED, Table::open)?,
            cgroups: open(pins, names::CGROUPS, Table::open)?,
            words: Words::open(pins)?,
        })
    }

    /// The flipped word.
    pub fn generation(&self) -> Result<u32, DatapathError> {
        Ok(self.generation.get(&0).map_err(table("read", "generations"))?.unwrap_or(0))
    }

    /// Rows of interfaces and endpoints have changed: what programs keep near of them counts no more.
    pub fn rows_changed(&self) -> Result<(), DatapathError> {
        let before = self.words.get(Word::Rows).map_err(table("read", "flow table's words"))?;
        // Upwards also where the word is newer than what is kept under it: then its beginning is later than all that was.
        let next = before.wrapping_add(1).max(raw::monotonic());
        self.words.put(Word::Rows, next).map_err(table("write", "flow table's words"))
    }

    /// The head of a bank.
    pub fn head(&self, bank: u32) -> Result<Head, DatapathError> {
        Ok(self.heads.get(&bank).map_err(table("read", "heads"))?.unwrap_or_default())
    }

    /// Flips: from here on packets read the other bank.
    pub fn flip(&self, generation: u32) -> Result<(), DatapathError> {
        self.generation.put(&0, &generation).map_err(table("write", "generations"))?;
        if self.generation()? == generation {
            Ok(())
        } else {
            Err(DatapathError::ReadBack { table: "generations" })
        }
    }

    /// Makes a bank that no packet reads hold `new`, and reads it back. `old` is what it is believed to hold: rows that are there
    /// already are not written again, unless the reading back shows that they are not.
    pub fn write(&self, bank: u32, new: &Bank, old: Option<&Bank>) -> Result<(), DatapathError> {
        // Most rows of a large policy are intervals: half of all rows are some of these.
        let rows = new.intervals.len() + new.decisions.len() + new.rule_sets.len();
        let half = (rows / 2).min(new.intervals.len());
        let (first, from) = (&new.intervals[..half], bank * MAX_INTERVALS);
        let before = old.map(|old| &old.intervals[..half.min(old.intervals.len())]);
        let some = || hold(&self.intervals, "intervals", from, first, before);
        let rest = || self.write_rest(bank, new, old, half);
        let (some, rest) = if rows < MANY { (some(), rest()) } else { both("hydra-tables", some, rest) };
        some.and(rest)
    }

    /// All but the first intervals. What is not known needs no cleaning: rows count only by what points to them, and that is all written
    /// here.
    fn write_rest(
        &self,
        bank: u32,
        new: &Bank,
        old: Option<&Bank>,
        first: usize,
    ) -> Result<(), DatapathError> {
        self.heads.put(&bank, &new.head).map_err(table("write", "heads"))?;
        equal("heads", self.head(bank)? == new.head)?;
        // Rows of identities decide what counts of all the others: the whole bank of them, always.
        let mut identities = new.identities.clone();
        identities.resize((MAX_IDENTITIES as usize).max(identities.len()), IdentityRow::default());
        let from = bank * MAX_IDENTITIES;
        put(&self.identities, "identities", from, &identities, &[])?;
        let found = get(&self.identities, "identities", from, new.identities.len())?;
        equal("identities", found == new.identities)?;
        for (source, row) in &new.cells {
            let from = cell_index(bank, Identity(*source), Identity(0));
            let before = old.map(|old| old.cells.get(source).map_or(&[][..], Vec::as_slice));
            hold(&self.cells, "cells", from, row, before)?;
        }
        for (source, row) in old.iter().flat_map(|old| &old.cells) {
            if !new.cells.contains_key(source) {
                put(&self.cells, "cells", cell_index(bank, Identity(*source), Identity(0)), &[], row)?;
            }
        }
        let before = old.map(|old| &*old.rule_sets);
        hold(&self.rule_sets, "rule sets", bank * MAX_RULE_SETS, &new.rule_sets, before)?;
        let before = old.map(|old| &old.intervals[first.min(old.intervals.len())..]);
        let from = bank * MAX_INTERVALS + first as u32;
        hold(&self.intervals, "intervals", from, &new.intervals[first..], before)?;
        let before = old.map(|old| &*old.decisions);
        hold(&self.decisions, "decisions", bank * MAX_DECISIONS, &new.decisions, before)?;
        let before = old.map(|old| &*old.limits);
        hold(&self.limits, "limits", bank * MAX_LIMITS, &new.limits, before)?;
        self.write_prefixes(bank, &new.prefixes)?;
        equal("address blocks", self.prefixes(bank)? == new.prefixes)
    }

    /// Makes a bank's part of the prefix table hold these.
    pub fn write_prefixes(
        &self,
        bank: u32,
        prefixes: &BTreeMap<IpNet, PrefixRow>,
    ) -> Result<(), DatapathError> {
        let wanted: BTreeMap<PrefixKey, PrefixRow> =
            prefixes.iter().map(|(block, row)| (PrefixKey::new(bank, block), *row)).collect();
        let all = self.prefixes.all().map_err(table("read", "address blocks"))?;
        let held: BTreeMap<PrefixKey, PrefixRow> =
            all.into_iter().filter(|(key, _)| key.bank() == bank).collect();
        for key in held.keys().filter(|key| !wanted.contains_key(key)) {
            self.prefixes.remove(key).map_err(table("write", "address blocks"))?;
        }
        for (key, row) in wanted.iter().filter(|(key, row)| held.get(key) != Some(row)) {
            self.prefixes.put(key, row).map_err(table("write", "address blocks"))?;
        }
        Ok(())
    }

    /// What a bank holds where `like` has rows, and all of its prefixes.
    pub fn read(&self, bank: u32, like: &Bank) -> Result<Bank, DatapathError> {
        let mut cells = BTreeMap::new();
        for (source, row) in &like.cells {
            let from = cell_index(bank, Identity(*source), Identity(0));
            cells.insert(*source, get(&self.cells, "cells", from, row.len())?);
        }
        Ok(Bank {
            head: self.head(bank)?,
            identities: get(&self.identities, "identities", bank * MAX_IDENTITIES, like.identities.len())?,
            cells,
            rule_sets: get(&self.rule_sets, "rule sets", bank * MAX_RULE_SETS, like.rule_sets.len())?,
            intervals: get(&self.intervals, "intervals", bank * MAX_INTERVALS, like.intervals.len())?,
            decisions: get(&self.decisions, "decisions", bank * MAX_DECISIONS, like.decisions.len())?,
            limits: get(&self.limits, "limits", bank * MAX_LIMITS, like.limits.len())?,
            prefixes: self.prefixes(bank)?,
        })
    }

    /// A bank's part of the prefix table.
    fn prefixes(&self, bank: u32) -> Result<BTreeMap<IpNet, PrefixRow>, DatapathError> {
        let all = self.prefixes.all().map_err(table("read", "address blocks"))?;
        let own = all.into_iter().filter(|(key, _)| key.bank() == bank);
        Ok(own.filter_map(|(key, row)| Some((key.block()?, row))).collect())
    }

    /// Compares a bank with what it should hold, to the last bit.
    pub fn check(&self, bank: u32, wanted: &Bank) -> Result<(), DatapathError> {
        let found = self.read(bank, wanted)?;
        for (same, table) in [
            (found.head == wanted.head, "heads"),
            (found.identities == wanted.identities, "identities"),
            (found.cells == wanted.cells, "cells"),
            (found.rule_sets == wanted.rule_sets, "rule sets"),
            (found.intervals == wanted.intervals, "intervals"),
            (found.decisions == wanted.decisions, "decisions"),
            (found.limits == wanted.limits, "limits"),
            (found.prefixes == wanted.prefixes, "address blocks"),
        ] {
            equal(table, same)?;
        }
        Ok(())
    }
}

fn equal(table: &'static str, equal: bool) -> Result<(), DatapathError> {
    if equal { Ok(()) } else { Err(DatapathError::ReadBack { table }) }
}

/// Rows from which on a second thread is worth its while.
const MANY: usize = 4_096;
/// Rows that are written where one of them differs.
const PIECE: usize = 512;

/// Makes a map hold rows from `from` on, and reads them back. Where they are not what was believed to be there, all are written.
fn hold<V: Bytes + PartialEq>(
    map: &Table<u32, V>,
    name: &'static str,
    from: u32,
    rows: &[V],
    before: Option<&[V]>,
) -> Result<(), DatapathError> {
    let held = || Ok(get(map, name, from, rows.len())? == rows);
    put(map, name, from, rows, before.unwrap_or_default())?;
    let mut same = held()?;
    if !same && before.is_some() {
        put(map, name, from, rows, &[])?;
        same = held()?;
    }
    equal(name, same)
}

/// Writes rows from `from` on where they are not what was there before, and zeroes over the rest of that.
fn put<V: Bytes + PartialEq>(
    map: &Table<u32, V>,
    name: &'static str,
    from: u32,
    rows: &[V],
    before: &[V],
) -> Result<(), DatapathError> {
    // What lies together is written at once.
    let mut first = 0;
    for begin in (0..rows.len()).step_by(PIECE) {
        let end = (begin + PIECE).min(rows.len());
        if before.get(begin..end) == Some(&rows[begin..end]) {
            map.put_range(from + first as u32, &rows[first..begin]).map_err(table("write", name))?;
            first = end;
        }
    }
    map.put_range(from + first as u32, &rows[first..]).map_err(table("write", name))?;
    let left = before.len().saturating_sub(rows.len());
    map.put_range(from + rows.len() as u32, &vec![V::new_zeroed(); left]).map_err(table("write", name))
}

fn get<V: Bytes>(
    map: &Table<u32, V>,
    name: &'static str,
    from: u32,
    count: usize,
) -> Result<Vec<V>, DatapathError> {
    map.range(from, count).map_err(table("read", name))
}
