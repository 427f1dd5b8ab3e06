//! Fills the bits anew that say where there may be entries of the flow table: [`Meetings`].
//!
//! A bit that is missing breaks a connection, so that a bank is read only when it has all of them. The programs set each entry's in both
//! banks, before it is there. The bank that nobody reads is cleared; once all programs have ended that were at work then, what they have
//! written is in the tables, and what others write after them they set in what was cleared. So what is in the tables from then on, and
//! what comes, has its bits when all of the tables were gone through.

use std::io;
use std::sync::atomic::{Ordering, fence};

use hydra_common::flow::FlowKey;
use hydra_common::names;
use hydra_common::share::{Meetings, Place, Word};

use super::error::{DatapathError, table};
use super::pins::Pins;
use super::raw::{self, Bits, GracePeriod};
use super::room::Words;

/// The rows of bits, and the wait for programs.
#[derive(Debug)]
pub struct Places {
    bits: Bits,
    grace: GracePeriod,
    /// No program reads another bank than the one that is said to be read.
    settled: bool,
}

impl Places {
    /// Opens their pin.
    pub fn open(pins: &Pins) -> Result<Self, DatapathError> {
        let path = pins.maps.join(names::MEETINGS);
        let fd = raw::open_pin(&path).map_err(|e| DatapathError::pin("open", &path, e))?;
        let bits = Bits::map(&fd).map_err(table("map", "flow table's bits"))?;
        let grace = GracePeriod::new().map_err(table("make", "wait for programs"))?;
        Ok(Self { bits, grace, settled: false })
    }

    /// Clears the bank that is not read, and gives it; none where neither is read. Blocks for some milliseconds.
    pub fn begin(&mut self, words: &Words) -> io::Result<Option<u32>> {
        let meetings = Meetings::from_word(words.get(Word::Meetings)?);
        // Programs that count where nobody reads may be left then: each entry is looked for until the tables are made anew.
        let Some(read) = meetings.bank() else { return Ok(None) };
        if meetings.each().checked_mul(2) != Some(self.bits.count()) {
            // The word is not of these rows.
            return Ok(None);
        }
        self.settle()?;
        let other = 1 - read;
        self.bits.clear(other * meetings.each(), meetings.each());
        self.grace.wait()?;
        Ok(Some(other))
    }

    /// Sets an entry's bit.
    pub fn fill(&self, bank: u32, key: &FlowKey) {
        let place = Place::of(key);
        self.bits.set(Meetings::new(self.bits.count(), Some(bank)).of(bank, place), place.bit);
    }

    /// Has a bank read that has all bits. Blocks for some milliseconds.
    pub fn read(&mut self, words: &Words, bank: u32) -> io::Result<()> {
        self.settled = false;
        // The bits before the word.
        fence(Ordering::SeqCst);
        words.put(Word::Meetings, Meetings::new(self.bits.count(), Some(bank)).word())?;
        self.settle()
    }

    /// Waits for programs that may still read the other bank.
    fn settle(&mut self) -> io::Result<()> {
        if !self.settled {
            self.grace.wait()?;
            self.settled = true;
        }
        Ok(())
    }
}
