//! What is counted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::{MAX_TIERS, Tier};

/// Packets and bytes, as in [`crate::flow::Flow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Count {
    /// Wire packets.
    pub packets: u64,
    /// Wire bytes.
    pub bytes: u64,
}

/// The cell of the traffic counters (a per-CPU array) of what passes from one tier to another.
#[inline(always)]
pub const fn traffic_index(source: Tier, destination: Tier, audited: bool) -> u32 {
    let (s, d) = (source.0 as u32 % MAX_TIERS, destination.0 as u32 % MAX_TIERS);
    (audited as u32 * MAX_TIERS + s) * MAX_TIERS + d
}

/// Entries of the traffic counters.
pub const TRAFFIC_CELLS: u32 = 2 * MAX_TIERS * MAX_TIERS;

/// Key of the drop counters.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct DropKey {
    /// Who sent.
    pub source: Tier,
    /// To whom.
    pub destination: Tier,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// [`crate::verdict::Verdict`]: denied, or audited.
    pub verdict: u8,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
}

impl DropKey {
    /// As a number. That of a denial between unknown ends for contradicting tables is 0, which no slot takes.
    #[inline(always)]
    pub const fn number(&self) -> u64 {
        self.source.0 as u64
            | (self.destination.0 as u64) << 16
            | (self.reason as u64) << 32
            | (self.verdict as u64) << 40
            | (self.rule as u64) << 48
    }

    /// Which slot it may have.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        (self.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - DROP_SLOTS.ilog2())) as u32
    }
}

/// Slots of drop counters on each CPU.
pub const DROP_SLOTS: u32 = 256;

/// Drop counters without a look-up: of the first key that came to the slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DropSlot {
    /// [`DropKey::number`]; 0: nobody's yet.
    pub key: u64,
    /// What was counted.
    pub count: Count,
}

impl DropSlot {
    /// Whose it is.
    pub const fn key(&self) -> DropKey {
        let n = self.key;
        DropKey {
            source: Tier(n as u16),
            destination: Tier((n >> 16) as u16),
            reason: (n >> 32) as u8,
            verdict: (n >> 40) as u8,
            rule: (n >> 48) as u16,
        }
    }
}

/// What the datapath counts beside packets: indexes of a per-CPU array of u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Gauge {
    /// Events written.
    Events = 0,
    /// Events that found no room or exceeded the rate.
    EventsLost = 1,
    /// Flow entries that could not be written.
    FlowsRefused = 2,
    /// Packets sent straight to the peer.
    Forwarded = 3,
    /// Packets of a flow on the peer path that went through the stack, in doubt.
    FellBack = 4,
}

/// Number of [`Gauge`]s.
pub const GAUGES: u32 = 5;
