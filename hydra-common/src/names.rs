//! The names of maps and programs, in one place. The kernel keeps 15 bytes of a name.

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
/// `LruHashMap<FlowKey, Flow>`.
pub const FLOWS: &str = "HYDRA_FLOWS";
/// `PerCpuArray<Count>`, see [`crate::tables::traffic_index`].
pub const TRAFFIC: &str = "HYDRA_TRAFFIC";
/// `PerCpuHashMap<DropKey, Count>`.
pub const DROPS: &str = "HYDRA_DROPS";
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

/// All maps, in the order above.
pub const MAPS: [&str; 18] = [
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
    FLOWS,
    TRAFFIC,
    DROPS,
    REASONS,
    GAUGES,
    EVENTS,
    EVENT_WINDOW,
    SCRATCH,
];

/// TC programs by [`crate::verdict::Hook`].
pub const PROGRAMS: [&str; 4] = ["hydra_port_in", "hydra_port_out", "hydra_bridge_in", "hydra_bridge_out"];

/// Bits of the packet mark that hydra uses (others are left as they are).
pub const MARK_MASK: u32 = 0xe000_0000;
/// Judged and let pass: later hooks neither judge nor count again.
pub const MARK_JUDGED: u32 = 0xa000_0000;
/// The source is checked, the receiver's hook judges: frames for several receivers.
pub const MARK_CHECKED: u32 = 0x6000_0000;
