//! Goes round the flow table: takes silent flows out, a few thousand entries at a time, and at once those of containers that are gone;
//! counts what each source has, and fills the bits anew that say where there may be entries.
//!
//! What is taken out is read here and removed by a program in the kernel, which looks whether it still is what was read: between a look
//! and a removal by system call the next flow of the same ends could have come. So that no packet is under way with an entry that is
//! removed for its silence, it stays for [`GRACE`] after it counts no more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::Container;
use hydra_common::names;
use hydra_common::share::{self, Meetings, Word};
use hydra_common::tables::{SWEEPS, Sweep};
use hydra_common::track;
use tracing::warn;
use zerocopy::IntoBytes;

use super::error::{DatapathError, table};
use super::maps::{BATCH, Batch, Table};
use super::places::Places;
use super::raw::{self, Cursor};
use super::room::Words;
use super::store::open;
use super::sync::Datapath;

/// How long an entry that counts no more is left, in nanoseconds: more than any packet takes through a program.
pub const GRACE: u64 = 2_000_000_000;
/// A round begins at the earliest so long after the one before has begun, in nanoseconds: of a small table it takes one step.
const PACE: u64 = 10_000_000_000;
/// The same where there is plenty of room: all sources together have less than half of what one may have, and less than a quarter of
/// the first table; nothing had to go to the second.
const LEISURE: u64 = 3 * PACE;
/// A count that is off by less is left: entries come and go while the table is read.
const SLACK: u64 = 64;

/// Goes round the flow table. Verdicts do not need it: an entry that was silent for too long lets nothing pass. Its room does.
#[derive(Debug)]
pub struct Collector {
    first: Table<FlowKey, Flow>,
    second: Table<FlowKey, Flow>,
    shares: Table<Address, u64>,
    places: Places,
    words: Words,
    program: OwnedFd,
    cursor: Cursor,
    batch: Batch<FlowKey, Flow>,
    round: Round,
    /// When the last round began.
    begun: Option<u64>,
}

/// What a round knows so far.
#[derive(Debug, Default)]
struct Round {
    /// The first table is done; what [`Word::Spilled`] was then.
    second: Option<u64>,
    /// The bank of [`Places`] that gets what is read.
    filling: Option<u32>,
    /// Entries of the second table.
    spilled: usize,
    /// Entries that stay in the first table, by source.
    held: HashMap<Address, u64>,
    used: u64,
    /// What the kernel had counted when the round began.
    before: Option<Counted>,
    /// Entries were taken out meanwhile that may have been counted: what the kernel says may be right and this round wrong.
    disturbed: bool,
}

/// What the kernel counts.
#[derive(Debug, Default)]
struct Counted {
    held: BTreeMap<Address, u64>,
    used: u64,
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
    /// A collector with descriptors of its own.
    pub fn collector(&self) -> Result<Collector, DatapathError> {
        let words = Words::open(&self.pins)?;
        let known = words.get(Word::Meetings).map_err(table("read", "flow table's words"))?;
        if Meetings::from_word(known).bank().is_none() {
            let hint = "`hydra-agent purge` and a start make the tables anew, which ends connections";
            warn!(
                hint,
                "it is not known where the flow tables have entries: what opens nothing costs two look-ups more"
            );
        }
        Ok(Collector {
            first: open(&self.pins, names::FLOWS, Table::open)?,
            second: open(&self.pins, names::SPILL, Table::open)?,
            shares: open(&self.pins, names::SHARES, Table::open)?,
            places: Places::open(&self.pins)?,
            words,
            program: self.programs.sweep.try_clone().map_err(|e| DatapathError::Load(e.to_string()))?,
            cursor: Cursor::default(),
            batch: Batch::default(),
            round: Round::default(),
            begun: None,
        })
    }
}

impl Collector {
    /// Steps that make a round in about twenty seconds where two and a half lie between two ticks.
    pub fn steps(&self) -> usize {
        (self.first.room() as usize / BATCH / 8).max(8)
    }

    /// Whether it is time for a step: a round goes on, or may begin.
    pub fn due(&self) -> bool {
        let rested = |begun| raw::monotonic().saturating_sub(begun) >= self.pace();
        self.round.before.is_some() || self.begun.is_none_or(rested)
    }

    /// Takes out every entry of a flow with one of these containers; gives their number. For a container that is gone: the next one
    /// with its address has another number, and no right to them.
    pub fn forget(&mut self, gone: &BTreeSet<Container>) -> io::Result<usize> {
        let mut removed = 0;
        for table in [&self.first, &self.second] {
            let mut cursor = Cursor::default();
            loop {
                let more = table.some(&mut cursor, &mut self.batch)?;
                let theirs = |flow: &Flow| flow.containers.iter().any(|c| gone.contains(c));
                let list = self.batch.entries().filter(|(_, flow)| theirs(flow));
                let list = list.map(|(key, flow)| Sweep { key: *key, created: flow.created, seen: 0 });
                removed += self.sweep(&list.collect::<Vec<_>>())?;
                self.round.disturbed |= removed > 0;
                if !more {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Has entries removed; gives the number that were.
    fn sweep(&self, list: &[Sweep]) -> io::Result<usize> {
        let mut removed = 0;
        for some in list.chunks(SWEEPS as usize) {
            removed += raw::run(self.program.as_fd(), some.as_bytes())? as usize;
        }
        Ok(removed)
    }

    /// Looks at the next few thousand entries.
    pub fn step(&mut self) -> io::Result<Collected> {
        self.step_at(raw::monotonic())
    }

    /// The same at another time (nanoseconds of the monotonic clock), for tests.
    pub fn step_at(&mut self, now: u64) -> io::Result<Collected> {
        let stepped = self.go_on(now);
        if stepped.is_err() {
            // What this round has not read may be missing from its bits.
            (self.round, self.cursor) = (Round::default(), Cursor::default());
        }
        stepped
    }

    fn go_on(&mut self, now: u64) -> io::Result<Collected> {
        if self.round.before.is_none() {
            self.round.filling = self.places.begin(&self.words)?;
            self.round.before = Some(self.counted()?);
            self.begun = Some(raw::monotonic());
        }
        let table = if self.round.second.is_none() { &self.first } else { &self.second };
        let more = table.some(&mut self.cursor, &mut self.batch)?;
        if self.batch.singly {
            self.round.filling = None;
        }
        let entries = self.batch.entries();
        let seen = entries.len();
        let mut silent = Vec::new();
        for (key, flow) in entries {
            if let Some(bank) = self.round.filling {
                self.places.fill(bank, key);
            }
            if track::expired(flow, key.protocol, now.saturating_sub(GRACE)) {
                silent.push(Sweep { key: *key, created: flow.created, seen: flow.seen });
            } else if let Some(source) = share::source(key, flow) {
                *self.round.held.entry(source).or_default() += 1;
            }
        }
        if self.round.second.is_some() {
            self.round.spilled += seen;
        } else {
            self.round.used += (seen - silent.len()) as u64;
        }
        let removed = self.sweep(&silent)?;
        if more {
            return Ok(Collected { seen, removed, round: false });
        }
        self.cursor = Cursor::default();
        if self.round.second.is_none() {
            // Before the second table is looked at: what comes into it later changes the word.
            self.round.second = Some(self.words.get(Word::Spilled)?);
            return Ok(Collected { seen, removed, round: false });
        }
        self.finish()?;
        Ok(Collected { seen, removed, round: true })
    }

    fn pace(&self) -> u64 {
        let words = [Word::Used, Word::Capacity, Word::Share, Word::Spilled, Word::Empty];
        let read: io::Result<Vec<u64>> = words.into_iter().map(|word| self.words.get(word)).collect();
        match read.as_deref() {
            Ok(&[used, capacity, share, spilled, empty]) => pace(used, capacity, share, spilled != empty),
            Ok(_) | Err(_) => PACE,
        }
    }

    fn counted(&self) -> io::Result<Counted> {
        Ok(Counted { held: self.shares.sorted()?, used: self.words.get(Word::Used)? })
    }

    /// Ends a round. What the kernel counts is exact but where it forgot a source: put right here where it did not move meanwhile.
    fn finish(&mut self) -> io::Result<()> {
        let round = std::mem::take(&mut self.round);
        if let Some(bank) = round.filling {
            self.places.read(&self.words, bank)?;
        }
        if let (Some(word), 0) = (round.second, round.spilled) {
            self.words.put(Word::Empty, word)?;
        }
        if round.disturbed {
            return Ok(());
        }
        let (before, now) = (round.before.unwrap_or_default(), self.counted()?);
        if let Some(used) = corrected(before.used, now.used, round.used) {
            self.words.put(Word::Used, used)?;
        }
        let sources: BTreeSet<Address> = now.held.keys().chain(round.held.keys()).copied().collect();
        for source in sources {
            let of = |held: &BTreeMap<Address, u64>| held.get(&source).copied().unwrap_or(0);
            let truth = round.held.get(&source).copied().unwrap_or(0);
            if let Some(held) = corrected(of(&before.held), of(&now.held), truth) {
                self.shares.put(&source, &held)?;
            }
        }
        Ok(())
    }
}

/// How long after a round's begin the next one may begin. `share`: hundredths that one source may have.
fn pace(used: u64, capacity: u64, share: u64, spilled: bool) -> u64 {
    let roomy = used < capacity.saturating_mul(share.min(50)) / 200;
    if roomy && !spilled { LEISURE } else { PACE }
}

/// What a count should be, if it was the same before and after the entries were counted and they were another number.
fn corrected(before: u64, now: u64, counted: u64) -> Option<u64> {
    (before == now && now.abs_diff(counted) > SLACK).then_some(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_room_is_wanted_nothing_is_put_off() {
        assert_eq!(pace(0, 131_072, 50, false), LEISURE);
        assert_eq!(pace(32_767, 131_072, 50, false), LEISURE);
        assert_eq!(pace(32_768, 131_072, 50, false), PACE);
        assert_eq!(pace(32_768, 131_072, 100, false), PACE);
        assert_eq!(pace(3_276, 131_072, 5, false), PACE, "what has ended counts for a source");
        assert_eq!(pace(1, 131_072, 50, true), PACE, "a source has used up its share");
        assert_eq!(pace(0, 0, 0, false), PACE, "the agent has not written the words");
    }

    #[test]
    fn only_what_stood_still_is_put_right() {
        assert_eq!(corrected(100, 100, 100), None);
        assert_eq!(corrected(100, 100, 5_000), Some(5_000));
        assert_eq!(corrected(5_000, 5_000, 100), Some(100));
        assert_eq!(corrected(4_000, 5_000, 100), None, "it moves");
        assert_eq!(corrected(0, 0, SLACK), None, "entries come and go while they are counted");
    }
}
