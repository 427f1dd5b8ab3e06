//! What a policy comes to: who may call whom, by what.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::{Identity, MAX_IDENTITIES, Tier};

/// What counts for a bank as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// The generation that this bank was written for. Differs from the flipped word only while a bank is written, and then
    /// nothing reads it; a packet that sees a difference is denied.
    pub generation: u32,
    /// The policy's revision.
    pub revision: u32,
    /// [`Head::AUDIT`].
    pub flags: u32,
    /// Seconds of the monotonic clock until which a TCP packet from the middle of a connection may make an entry; `u32::MAX`:
    /// always.
    pub pickup_until: u32,
}

impl Head {
    /// `mode: audit`: nothing is dropped.
    pub const AUDIT: u32 = 1;
}

/// What an identity is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentityRow {
    /// Whose counters it counts on.
    pub tier: Tier,
    /// [`IdentityRow::INTERIOR`], [`IdentityRow::DECLARED`].
    pub flags: u16,
}

impl IdentityRow {
    /// Its endpoints live on this host's networks or bridges: an address of it that comes from elsewhere is forged.
    pub const INTERIOR: u16 = 1;
    /// A tier or service of the policy; not reserved.
    pub const DECLARED: u16 = 2;
}

/// One cell of the matrix: a decision, or a rule set that finds one by protocol and port.
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
#[repr(transparent)]
pub struct Cell(pub u32);

impl Cell {
    const RULE_SET: u32 = 1 << 31;

    /// Every packet gets this decision. Decision 0 is always "denied, bad-table", so that an unwritten cell denies.
    #[inline(always)]
    pub const fn decision(index: u32) -> Self {
        Self(index)
    }

    /// The rule set decides.
    #[inline(always)]
    pub const fn rule_set(index: u32) -> Self {
        Self(index | Self::RULE_SET)
    }

    /// The index behind it, and whether that is a rule set's.
    #[inline(always)]
    pub const fn index(self) -> (u32, bool) {
        (self.0 & !Self::RULE_SET, self.0 & Self::RULE_SET != 0)
    }
}

/// The index of a cell in the matrix of both banks.
#[inline(always)]
pub const fn cell_index(bank: u32, source: Identity, destination: Identity) -> u32 {
    let (s, d) = (source.0 as u32 % MAX_IDENTITIES, destination.0 as u32 % MAX_IDENTITIES);
    ((bank & 1) * MAX_IDENTITIES + s) * MAX_IDENTITIES + d
}

/// The part of the intervals that belongs to one rule set.
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
pub struct RuleSet {
    /// Index of the first interval.
    pub start: u32,
    /// Number of intervals, at least 1.
    pub count: u32,
}

/// From here to the next interval's `from` every (protocol, port) has this decision. The first of a rule set has `from` 0.
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
pub struct Interval {
    /// [`selector`] of the first (protocol, port) in it.
    pub from: u32,
    /// Index of the decision.
    pub decision: u32,
}

/// The number by which rule sets are searched: protocol in the high bits, then the destination port of TCP, UDP and SCTP, the
/// type of ICMP and ICMPv6, and 0 for everything else.
#[inline(always)]
pub const fn selector(protocol: u8, port_or_type: u16) -> u32 {
    ((protocol as u32) << 16) | port_or_type as u32
}

/// What a cell or an interval says.
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
pub struct Decision {
    /// Seconds of the monotonic clock at which it ends and `next` takes its place; 0 = never.
    pub until: u32,
    /// The decision that follows when it ends. Only read when `until` is not 0.
    pub next: u32,
    /// The limit that new flows take from: its index, counted from 1; 0 = none.
    pub limit: u32,
    /// The decision for a new flow that finds the limit used up. Only read when `limit` is not 0.
    pub spent: u32,
    /// The rule that decided: its place in the policy, counted from 1; 0 = none.
    pub rule: u16,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`]: for an audited packet what enforcing would have said.
    pub reason: u8,
}

/// How many new flows a source address may open: one in `interval`, and `burst` of them at once.
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
pub struct Limit {
    /// Nanoseconds between two flows.
    pub interval: u64,
    /// Flows at once.
    pub burst: u32,
    /// The number that the rule's buckets have, the same as long as the rule has its name; below [`super::MAX_LIMITS`].
    pub bucket: u32,
}
