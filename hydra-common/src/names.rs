//! The names of maps and programs, in one place. The kernel keeps 15 bytes of a name.

use crate::id::{Identity, MAX_IDENTITIES};

/// The flipped word: `Array<u32>`, one entry.
pub const GENERATION: &str = "HYDRA_GEN";
/// `Array<Head>` by bank.
pub const HEADS: &str = "HYDRA_HEADS";
/// `Array<IdentityRow>` by bank and identity.
pub const IDENTITIES: &str = "HYDRA_IDS";
/// `Array<Cell>` by bank, source, destination.
pub const CELLS: &str = "HYDRA_CELLS";
/// `Array<RuleSet>` by bank and index.
pub const RULE_SETS: &str = "HYDRA_SETS";
/// `Array<Interval>` by bank and index.
pub const INTERVALS: &str = "HYDRA_RANGES";
/// `Array<Decision>` by bank and index.
pub const DECISIONS: &str = "HYDRA_DECIDE";
/// `LpmTrie<PrefixData, PrefixRow>`.
pub const PREFIXES: &str = "HYDRA_PREFIX";
/// `HashMap<Address, Endpoint>`.
pub const ENDPOINTS: &str = "HYDRA_ENDPTS";
/// `HashMap<u32, Link>` by interface index.
pub const LINKS: &str = "HYDRA_LINKS";
/// `HashMap<PublishKey, Publish>`.
pub const PUBLISHED: &str = "HYDRA_PUBLISH";
/// `HashMap<CgroupKey, Cgroup>`.
pub const CGROUPS: &str = "HYDRA_CGROUPS";
/// `LruHashMap<FragmentKey, Fragment>`.
pub const FRAGMENTS: &str = "HYDRA_FRAGS";
/// `Array<Limit>` by bank and index.
pub const LIMITS: &str = "HYDRA_LIMITS";
/// `LruHashMap<BucketKey, u64>`: the theoretical arrival time of a source's next flow, nanoseconds of the monotonic clock.
pub const BUCKETS: &str = "HYDRA_BUCKETS";
/// `PerCpuArray<u64>` by [`crate::tables::Limit::bucket`]: packets that were denied because the limit was used up.
pub const LIMITED: &str = "HYDRA_LIMITED";
/// `HashMap<FlowKey, Flow>`: the first table of [`crate::share`].
pub const FLOWS: &str = "HYDRA_FLOWS";
/// `LruHashMap<FlowKey, Flow>`: the second.
pub const SPILL: &str = "HYDRA_SPILL";
/// `LruHashMap<Address, u64>`: entries of the first table by [`crate::share::source`].
pub const SHARES: &str = "HYDRA_SHARES";
/// `Array<u64>` by [`crate::share::Word`].
pub const TABLE: &str = "HYDRA_TABLE";
/// `Array<u64>` by [`crate::share::Meetings`]: where there may be entries. User space maps it into its memory.
pub const MEETINGS: &str = "HYDRA_MEETINGS";
/// `PerCpuArray<Count>`, see [`crate::tables::traffic_index`].
pub const TRAFFIC: &str = "HYDRA_TRAFFIC";
/// `PerCpuHashMap<DropKey, Count>`.
pub const DROPS: &str = "HYDRA_DROPS";
/// `PerCpuArray<DropSlot>` by [`crate::tables::DropKey::slot`]: what classifiers have dropped, in the slot of the first row that came to
/// it. [`DROPS`] has the rest.
pub const DROP_SLOTS: &str = "HYDRA_DROPSLOT";
/// `PerCpuArray<Count>` by [`crate::verdict::Reason`]: every packet that a hook ended its judgement of.
pub const REASONS: &str = "HYDRA_REASONS";
/// `PerCpuArray<u64>` by [`crate::tables::Gauge`].
pub const GAUGES: &str = "HYDRA_GAUGES";
/// `RingBuf` of [`crate::event::Event`].
pub const EVENTS: &str = "HYDRA_EVENTS";
/// `PerCpuArray<EventWindow>`, one entry.
pub const EVENT_WINDOW: &str = "HYDRA_EVWIN";
/// `PerCpuArray` of the programs' own scratch, one entry; user space neither reads nor writes it.
pub const SCRATCH: &str = "HYDRA_SCRATCH";

/// `HashMap` of the programs' own rooms, by a number that is given for one run; user space neither reads nor writes it.
pub const ROOMS: &str = "HYDRA_ROOMS";

/// `PerCpuArray` of rows of interfaces that classifiers keep near; user space neither reads nor writes it.
pub const NEAR_LINKS: &str = "HYDRA_NEARLINK";
/// The same of endpoints.
pub const NEAR_ENDPOINTS: &str = "HYDRA_NEARENDP";
/// The same of what passes interfaces to the outside unseen.
pub const NEAR_PASSES: &str = "HYDRA_NEARPASS";

/// All maps, in the order above.
pub const MAPS: [&str; 33] = [
    GENERATION,
    HEADS,
    IDENTITIES,
    CELLS,
    RULE_SETS,
    INTERVALS,
    DECISIONS,
    PREFIXES,
    ENDPOINTS,
    LINKS,
    PUBLISHED,
    CGROUPS,
    FRAGMENTS,
    LIMITS,
    BUCKETS,
    LIMITED,
    FLOWS,
    SPILL,
    SHARES,
    TABLE,
    MEETINGS,
    TRAFFIC,
    DROPS,
    DROP_SLOTS,
    REASONS,
    GAUGES,
    EVENTS,
    EVENT_WINDOW,
    SCRATCH,
    ROOMS,
    NEAR_LINKS,
    NEAR_ENDPOINTS,
    NEAR_PASSES,
];

/// Those of them that user space neither reads nor writes.
pub const PRIVATE: [&str; 5] = [SCRATCH, ROOMS, NEAR_LINKS, NEAR_ENDPOINTS, NEAR_PASSES];

/// TC programs by [`crate::verdict::Hook`].
pub const PROGRAMS: [&str; 5] =
    ["hydra_port_in", "hydra_port_out", "hydra_bridge_in", "hydra_bridge_out", "hydra_uplink_in"];

/// Programs on cgroups, which run where a process opens a flow.
pub const SOCKET_PROGRAMS: [&str; 4] =
    ["hydra_connect4", "hydra_connect6", "hydra_sendmsg4", "hydra_sendmsg6"];

/// Programs on cgroups that see the packets of processes on this host's own stack.
pub const PACKET_PROGRAMS: [&str; 2] = ["hydra_cgroup_in", "hydra_cgroup_out"];

/// The program of XDP, for interfaces to the outside.
pub const PREDROP_PROGRAM: &str = "hydra_predrop";

/// The TC program that the agent alone runs, to take entries out of the flow table: see [`crate::tables::Sweep`].
pub const SWEEP_PROGRAM: &str = "hydra_sweep";

/// Bits of the packet mark that hydra uses (others are left as they are).
pub const MARK_MASK: u32 = 0xe000_0000;
/// Judged and let pass: later hooks neither judge nor count again.
pub const MARK_JUDGED: u32 = 0xa000_0000;
/// The source is checked, the receiver's hook judges: frames for several receivers.
pub const MARK_CHECKED: u32 = 0x6000_0000;
/// The sender was judged where it sent, and the address will not say who it is: what a published port or a process of this host
/// sends on. Its identity is in [`MARK_IDENTITY`].
pub const MARK_CARRIED: u32 = 0xc000_0000;
/// The same of a sender who has no right to `host`: only a process that a tier has may receive it, and is judged there.
pub const MARK_LEFT: u32 = 0xe000_0000;
/// Where a packet of these two has its sender's identity; not hydra's bits on any other packet.
pub const MARK_IDENTITY: u32 = 0x1ff8_0000;

/// The mark of a packet whose sender is carried.
#[inline(always)]
pub const fn carried(identity: Identity) -> u32 {
    MARK_CARRIED | (((identity.0 as u32) << MARK_IDENTITY.trailing_zeros()) & MARK_IDENTITY)
}

/// The mark of a packet that is left to the hook of the process that receives it.
#[inline(always)]
pub const fn left(identity: Identity) -> u32 {
    carried(identity) | MARK_LEFT
}

/// The identity that a mark carries, if it does.
#[inline(always)]
pub const fn carrier(mark: u32) -> Option<Identity> {
    if matches!(mark & MARK_MASK, MARK_CARRIED | MARK_LEFT) {
        Some(Identity(((mark & MARK_IDENTITY) >> MARK_IDENTITY.trailing_zeros()) as u16))
    } else {
        None
    }
}

const _: () = assert!(MARK_IDENTITY >> MARK_IDENTITY.trailing_zeros() == MAX_IDENTITIES - 1);
