//! Who may have how much of the flow table. Pure.
//!
//! Entries live in two tables. The first never evicts: what is in it stays until it ends. The second takes the flows that find no room
//! in the first, and there the one that was silent longest makes room for a new one. A flow stays where it began.
//!
//! A source may fill a part of the room that the others leave free. So whoever sprays gets his share of the first table and makes
//! only what he sends beyond it evictable; and however many spray, some of the table stays free for who comes next (dynamic
//! thresholds, Choudhury and Hahne, 1998).

use crate::address::Address;
use crate::decide::Outcome;
use crate::flow::{Far, Flow, FlowKey, Side};

/// Words that the kernel and the agent share: indexes of an array of `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Word {
    /// Entries that the first table has room for. The agent writes it.
    Capacity = 0,
    /// Hundredths of the room left by others that one source may have; 100 or more: all. The agent writes it.
    Share = 1,
    /// Entries of the first table.
    Used = 2,
    /// Entries ever made in the second table.
    Spilled = 3,
    /// What [`Word::Spilled`] was before the second table was last found empty: nothing is in it while the two are equal. The agent
    /// writes it.
    Empty = 4,
    /// Changes with the rows of interfaces and endpoints, after they were written: what a program has kept near of them counts no more.
    /// 0: nothing is kept. The agent writes it.
    Rows = 5,
    /// Which rows of bits say where there may be entries: [`Meetings`]. 0: nothing does. The agent writes it.
    Meetings = 6,
}

/// Number of [`Word`]s.
pub const WORDS: u32 = 7;

/// What [`Word::Meetings`] says of the rows of bits that tell where there may be entries, in either table: 64 bits a row, a place for each
/// bit, and of each key one place ([`Place`]). While that is 0 there is no entry: known from a small table, where the flow table's own answer
/// comes from memory that is cold, another place for each tuple that a flood tries.
///
/// The rows are two banks. Whoever writes an entry has set its bits in both before. Only one is read; the other is cleared and filled
/// anew with what is in the tables, and takes its place: bits of what has ended, or was evicted, go so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meetings(u64);

impl Meetings {
    /// Places of a bank for each entry of the first table.
    const PLACES: u32 = 16;

    /// Rows of both banks for a first table of so many entries: a power of two.
    #[must_use]
    pub const fn rows(flows: u32) -> u32 {
        2 * flows.div_ceil(u64::BITS / Self::PLACES).next_power_of_two()
    }

    /// Of so many rows, as [`Self::rows`] gives them. `bank`: the one that is read; none: it is not known where entries are, and each
    /// key is looked for.
    #[must_use]
    pub const fn new(rows: u32, bank: Option<u32>) -> Self {
        let (each, none) = (rows / 2, 0);
        let end = match bank {
            Some(bank) => each * (1 + (bank & 1)),
            None => none,
        };
        Self((end as u64) << 32 | each.wrapping_sub(1) as u64)
    }

    /// From [`Word::Meetings`].
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// For [`Word::Meetings`].
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The bank that is read.
    #[must_use]
    pub const fn bank(self) -> Option<u32> {
        match self.0 >> 32 {
            0 => None,
            end => Some((end > self.each() as u64) as u32),
        }
    }

    /// Rows of each bank.
    #[must_use]
    #[inline(always)]
    pub const fn each(self) -> u32 {
        (self.0 as u32).wrapping_add(1)
    }

    /// The row that says whether there may be an entry. Beyond all rows where it is not known: what is not written says that too.
    #[must_use]
    #[inline(always)]
    pub const fn read(self, place: Place) -> u32 {
        // From the bank's end: without one that wraps.
        ((self.0 >> 32) as u32).wrapping_sub(1).wrapping_sub(self.among(place))
    }

    /// The row of a bank.
    #[must_use]
    #[inline(always)]
    pub const fn of(self, bank: u32, place: Place) -> u32 {
        let each = self.each();
        each.wrapping_mul(1 + bank).wrapping_sub(1).wrapping_sub(self.among(place))
    }

    /// Which of a bank's rows: by the highest bits, which all of a key has a part in.
    #[inline(always)]
    const fn among(self, place: Place) -> u32 {
        ((place.row as u64 * (1 + (self.0 as u32) as u64)) >> 32) as u32
    }
}

/// The place of a key among [`Meetings`]. Others may have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// A fraction of all rows, of 2^32.
    row: u32,
    /// The bit in its row.
    pub bit: u64,
}

impl Place {
    /// Of a key.
    #[must_use]
    #[inline(always)]
    pub fn of(key: &FlowKey) -> Self {
        // Odd numbers with as many ones as zeros (the golden ratio, and two of SplitMix64). Of a product the high bits count; two of them and
        // a sum without carries, or what differs in its ports alone would meet what does so too everywhere or nowhere.
        let (a, b) = (key.a.low().wrapping_add(key.a.high()), key.b.low().wrapping_add(key.b.high()));
        let ends = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.rotate_left(16);
        let mixed = ends ^ key.last().wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self { row: (mixed >> 32) as u32, bit: 1 << (mixed >> 32 & 63) }
    }
}

/// Sources that are counted; beyond that the kernel forgets the one that opened nothing for longest.
pub const MAX_SHARES: u32 = 16_384;

/// [`Flow::counted`]: in the second table, on nobody's share.
pub const NOBODY: u16 = 0;
/// By the opener's address.
const ADDRESS: u16 = 1;
/// By its first 64 bits: a customer of IPv6 has all of such a network (RFC 6177).
const NETWORK: u16 = 2;
/// With the identity in the bits below: by that, since the address is that of whoever translated it.
const IDENTITY: u16 = 0x8000;
/// With [`IDENTITY`]: by the address as well.
const BOTH: u16 = 0x4000;

/// By what a new flow of the packet's sender is counted.
#[inline(always)]
pub fn counted(flow: &Flow, out: &Outcome) -> u16 {
    if flow.marks & Flow::MASQUERADED != 0 {
        return IDENTITY | flow.source.0;
    }
    match out.near() {
        Far::Outside | Far::Unmanaged => NETWORK,
        // Units have this host's addresses together.
        Far::Carried => IDENTITY | BOTH | flow.source.0,
        Far::Unset | Far::Host => ADDRESS,
    }
}

/// The source that an entry is counted for: a key of the shares.
#[inline(always)]
pub fn source(key: &FlowKey, flow: &Flow) -> Option<Address> {
    let address = key.address(Side::from_row(flow.opener));
    match flow.counted {
        NOBODY => None,
        NETWORK if !address.is_v4() => {
            let o = address.octets();
            Some(Address::v6([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], 0, 0, 0, 0, 0, 0, 0, 0]))
        }
        ADDRESS | NETWORK => Some(address),
        identity => {
            let [high, low] = (identity & !(IDENTITY | BOTH)).to_be_bytes();
            // A group address opens no flow (RFC 4291, 2.7).
            if identity & BOTH != 0 {
                let o = address.octets();
                return Some(Address::v6([
                    0xff, 1, high, low, o[4], o[5], o[6], o[7], o[8], o[9], o[10], o[11], o[12], o[13],
                    o[14], o[15],
                ]));
            }
            Some(Address::v6([0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low]))
        }
    }
}

/// How many of the table's entries are for such a source: a quarter of them is never for the outside, whose addresses cost nothing.
#[must_use]
#[inline(always)]
pub const fn room(counted: u16, capacity: u64) -> u64 {
    if counted == NETWORK { capacity - capacity / 4 } else { capacity }
}

/// Whether a source with `held` entries may have another one in the first table, of whose `capacity` entries `used` are taken. Alone
/// it comes to `share` hundredths; of n sources that take what they can each comes to share / (100 + (n - 1) · share) of the table.
#[must_use]
#[inline(always)]
pub const fn admits(held: u64, used: u64, capacity: u64, share: u64) -> bool {
    let (held, used) = (number(held), number(used));
    share >= 100 || held * (100 - share) < capacity.saturating_sub(used) * share
}

/// A count as it is kept: less than none is none. That comes of entries that were made or taken away behind the kernel's back, and of a
/// row that was forgotten between two decrements.
#[must_use]
#[inline(always)]
pub const fn number(count: u64) -> u64 {
    if count > u32::MAX as u64 { 0 } else { count }
}

#[cfg(test)]
mod tests;
