//! The rows that the agent writes and the verdict function reads, and the trait it reads them through.
//!
//! What belongs to a policy is kept twice, in two banks; the generation's lowest bit says which one counts. The agent writes
//! the other bank and then changes the generation, so no packet meets a mixture. Rows of containers (`Link`, `Endpoint`) hold
//! their identity once per bank for the same reason.

mod cgroups;
mod counts;
mod left;
mod places;
mod policy;

pub use cgroups::{Cgroup, CgroupKey};
pub use counts::{Count, DROP_SLOTS, DropKey, DropSlot, GAUGES, Gauge, TRAFFIC_CELLS, traffic_index};
pub use left::{BucketKey, Fragment, FragmentKey, SWEEPS, Sweep};
pub use places::{Endpoint, Link, LinkKind, Owner, PrefixData, PrefixRow, Publish, PublishKey};
pub use policy::{Cell, Decision, Head, IdentityRow, Interval, Limit, RuleSet, cell_index, selector};

use crate::address::Address;
use crate::decide::At;
use crate::flow::{Flow, FlowKey};
use crate::id::Identity;
use crate::packet::Packet;

/// Rule sets per bank.
pub const MAX_RULE_SETS: u32 = 65_536;
/// Intervals per bank, over all rule sets.
pub const MAX_INTERVALS: u32 = 262_144;
/// Decisions per bank.
pub const MAX_DECISIONS: u32 = 131_072;
/// Rules per policy: their number is 16 bits in a flow.
pub const MAX_RULES: u32 = 65_535;
/// Address prefixes, both banks together.
pub const MAX_PREFIXES: u32 = 65_536;
/// Addresses of endpoints and of this host.
pub const MAX_ENDPOINTS: u32 = 65_536;
/// Interfaces of this host.
pub const MAX_LINKS: u32 = 16_384;
/// Published ports.
pub const MAX_PUBLISHED: u32 = 16_384;
/// Fragmented datagrams under way.
pub const MAX_FRAGMENTS: u32 = 8_192;
/// Limits per bank.
pub const MAX_LIMITS: u32 = 4_096;
/// Sources that limits remember.
pub const MAX_BUCKETS: u32 = 65_536;
/// Rows of cgroups.
pub const MAX_CGROUPS: u32 = 16_384;
/// Addresses that one cgroup may have: those of its stack. A process of more is left to the packet hooks.
pub const MAX_CGROUP_PLACES: u32 = 4;
/// Identities on this host's own stack that calls of its addresses can be left to.
pub const MAX_OWN: u32 = 8;
/// Levels of cgroups below the root that are looked at for a row.
pub const MAX_CGROUP_DEPTH: u32 = 12;
/// Halvings of an interval search: enough for `MAX_INTERVALS` in one rule set.
pub const SEARCH_STEPS: u32 = 18;
/// Decisions that may follow each other when rules expire or their limits are used up.
pub const MAX_CHAIN: u32 = 8;

/// When rows were read, as numbers that change with them: what was found out since is so as long as both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// [`crate::share::Word::Rows`]; 0: nothing is kept.
    pub rows: u64,
    /// The flipped word: the policy's rows change with it, and those of published ports.
    pub generation: u32,
}

/// How the verdict function reads its tables: maps in the kernel, plain collections in user space.
pub trait Tables {
    /// A live flow entry. The kernel's points into the map.
    type Flow<'a>: Copy + core::ops::Deref<Target = Flow>
    where
        Self: 'a;

    /// The flipped word. 0 = no policy yet.
    fn generation(&self) -> u32;
    /// By bank.
    fn head(&self, bank: u32) -> Option<&Head>;
    /// By interface index.
    fn link(&self, ifindex: u32) -> Option<&Link>;
    /// By exact address.
    fn endpoint(&self, address: &Address) -> Option<&Endpoint>;
    /// The same as [`Tables::link`], of a frame's sender, once for each frame: may be kept near.
    #[inline(always)]
    fn sender(&self, ifindex: u32) -> Option<&Link> {
        self.link(ifindex)
    }
    /// Whose the source address of a frame from an interface is, once for each frame: may be kept near.
    #[inline(always)]
    fn owner(&self, _ifindex: u32, source: &Address) -> Option<Owner> {
        let e = self.endpoint(source)?;
        Some(e.owner())
    }
    /// The same as [`Tables::endpoint`], of a frame's destination: may be kept near.
    #[inline(always)]
    fn receiver(&self, destination: &Address) -> Option<&Endpoint> {
        self.endpoint(destination)
    }
    /// Now: before any row is read. By default nothing is kept.
    #[inline(always)]
    fn moment(&self) -> Moment {
        Moment { rows: 0, generation: self.generation() }
    }
    /// Whether what [`Tables::passes`] was told holds for a frame: from and to the same addresses, to the same port, by the same interface.
    #[inline(always)]
    fn passed(&self, _packet: &Packet, _at: &At, _since: &Moment) -> bool {
        false
    }
    /// A frame of TCP that opens nothing has passed an interface to the outside, by nothing but rows that were read since: may be kept.
    #[inline(always)]
    fn passes(&self, _packet: &Packet, _at: &At, _since: &Moment) {}
    /// By the called address, or the unspecified one of its family.
    fn published(&self, key: &PublishKey) -> Option<&Publish>;
    /// By cgroup and place.
    fn cgroup(&self, key: &CgroupKey) -> Option<&Cgroup>;
    /// By longest match within the bank.
    fn prefix(&self, bank: u32, address: &Address) -> Option<&PrefixRow>;
    /// By bank and identity.
    fn identity(&self, bank: u32, identity: Identity) -> Option<&IdentityRow>;
    /// By bank, source and destination.
    fn cell(&self, bank: u32, source: Identity, destination: Identity) -> Option<Cell>;
    /// By bank and index.
    fn rule_set(&self, bank: u32, index: u32) -> Option<&RuleSet>;
    /// By bank and index.
    fn interval(&self, bank: u32, index: u32) -> Option<&Interval>;
    /// By bank and index.
    fn decision(&self, bank: u32, index: u32) -> Option<&Decision>;
    /// By canonical key.
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// The first piece of a datagram.
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment>;
}
