//! The rows that the agent writes and the verdict function reads, and the trait it reads them through.
//!
//! What belongs to a policy is kept twice, in two banks; the generation's lowest bit says which one counts. The agent writes
//! the other bank and then changes the generation, so no packet meets a mixture. Rows of containers (`Link`, `Endpoint`) hold
//! their identity once per bank for the same reason.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{Address, Mac};
use crate::decide::At;
use crate::flow::{Flow, FlowKey};
use crate::id::{Container, Identity, MAX_IDENTITIES, MAX_TIERS, Tier};
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

/// Key of the prefix table: the bank (network order), then the address.
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
pub struct PrefixData {
    /// 0 or 1, network order.
    pub bank: [u8; 4],
    /// The block's address as in [`Address::octets`].
    pub address: [u8; 16],
}

impl PrefixData {
    /// Bits before the address; an IPv4 block adds another 96.
    pub const BANK_BITS: u32 = 32;
}

/// Whose addresses a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrefixRow {
    /// The identity of an address in it that no endpoint has.
    pub identity: Identity,
    /// [`PrefixRow::INTERIOR`], [`PrefixRow::OPEN`], [`PrefixRow::LAN`].
    pub flags: u16,
}

impl PrefixRow {
    /// The subnet of a network or bridge of this host: an address in it that no endpoint has is unknown, not the tier's.
    pub const INTERIOR: u16 = 1;
    /// An interior subnet with ports whose addresses nobody can list (a tap, a card): an unlisted address is the tier's.
    pub const OPEN: u16 = 2;
    /// The address of a container of this host that has no port: see [`Cgroup::LAN`]. What it sends is counted where it does.
    pub const LAN: u16 = 4;
}

/// An address of a container on this host, or of this host itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// Its identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose it is; [`Container::NONE`] for the host's own addresses.
    pub container: Container,
    /// The host-side veth; 0 for the host's own addresses.
    pub port: u32,
    /// The bridge that the port is on.
    pub bridge: u32,
    /// [`Endpoint::HOST`], [`Endpoint::ATTACHED`], [`Endpoint::PEER`].
    pub flags: u16,
    /// The endpoint's MTU in bytes.
    pub mtu: u16,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// The bridge's MAC: the source of what is forwarded to the endpoint.
    pub gateway_mac: Mac,
}

impl Endpoint {
    /// An address of this host.
    pub const HOST: u16 = 1;
    /// Its port has hydra's programs: bridge hooks leave it to them.
    pub const ATTACHED: u16 = 2;
    /// Its port is a veth whose peer is in another namespace: `bpf_redirect_peer` reaches it.
    pub const PEER: u16 = 4;
}

/// When rows were read, as numbers that change with them: what was found out since is so as long as both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// [`crate::share::Word::Rows`]; 0: nothing is kept.
    pub rows: u64,
    /// The flipped word: the policy's rows change with it, and those of published ports.
    pub generation: u32,
}

/// An interface of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Link {
    /// The identity of what is behind it, one per bank, where the address does not say more.
    pub identity: [Identity; 2],
    /// Whose port it is.
    pub container: Container,
    /// The bridge that it is a port of, or its own index for a bridge; 0 elsewhere.
    pub bridge: u32,
    /// [`LinkKind`].
    pub kind: u8,
    /// [`Link::UNBOUND`].
    pub flags: u8,
    /// The endpoint's MAC for a port; the device's own for a bridge.
    pub mac: Mac,
    /// The bridge's MAC.
    pub gateway_mac: Mac,
    /// Zero.
    pub zero: [u8; 2],
}

impl Link {
    /// A port whose MAC and addresses nobody can list: any address of its tier that no endpoint has is true on it.
    pub const UNBOUND: u8 = 1;
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkKind {
    /// Not known: closed.
    Unknown = 0,
    /// A port of an endpoint that the policy protects.
    Port = 1,
    /// A bridge of a tier.
    Bridge = 2,
    /// A bridge or port of a network that the policy does not name.
    Unmanaged = 3,
    /// Any other interface: the outside.
    Uplink = 4,
}

impl LinkKind {
    /// From a [`Link`]'s `kind`.
    #[inline(always)]
    pub const fn from_row(n: u8) -> Self {
        match n {
            1 => Self::Port,
            2 => Self::Bridge,
            3 => Self::Unmanaged,
            4 => Self::Uplink,
            _ => Self::Unknown,
        }
    }
}

/// Key of the published ports: where this host takes connections for a container.
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
pub struct PublishKey {
    /// The binding's address, or the unspecified one of its family for a binding to all.
    pub address: Address,
    /// The host's port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Zero: a key is compared byte by byte.
    pub zero: [u8; 5],
}

/// The container behind a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Publish {
    /// The container's identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose it is; [`Container::NONE`] where no tier has it.
    pub container: Container,
    /// The container's own port, host order.
    pub port: u16,
    /// [`Publish::PROXIED`].
    pub flags: u16,
}

impl Publish {
    /// The container has no address of the binding's family: a process of this host carries the bytes.
    pub const PROXIED: u16 = 1;
}

/// Key of the cgroups whose processes are somebody's.
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
pub struct CgroupKey {
    /// The kernel's number of the cgroup in the v2 hierarchy: the inode of its folder. 0, which no folder has: the identities of
    /// all processes on this host's own stack, where the hook on their packets sees every process of the machine.
    pub id: u64,
    /// Which of its addresses, counted from 0 without gaps, below [`MAX_CGROUP_PLACES`]; which identity, below [`MAX_OWN`].
    pub place: u32,
    /// Zero: a key is compared byte by byte.
    pub zero: u32,
}

impl CgroupKey {
    /// One of a cgroup's addresses.
    #[inline(always)]
    pub const fn new(id: u64, place: u32) -> Self {
        Self { id, place, zero: 0 }
    }
}

/// Whose the processes of a cgroup are, and of those below it that have no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cgroup {
    /// The kernel's cookie of the network namespace that the identity holds in: a process may have made others for itself. 0: not
    /// known, any.
    pub netns: u64,
    /// The address that has the identity; unspecified on this host's own stack, which has all of the host's.
    pub address: Address,
    /// The address's identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose stack it is; [`Container::NONE`] in this host's own.
    pub container: Container,
    /// [`Cgroup::HOST`], [`Cgroup::MANY`], [`Cgroup::LAN`].
    pub flags: u32,
    /// Index, in its own namespace, of the interface that the address is on; 0 on this host's own stack, and where [`Cgroup::LAN`] is
    /// set: there it is every interface that no other row of the cgroup names.
    pub interface: u32,
    /// The second (monotonic) until which a TCP packet from the middle of a connection makes an entry where its direction is allowed:
    /// its processes run before this row is there. 0 for an address behind a port, which is closed until it has its rows.
    pub pickup_until: u32,
    /// Zero.
    pub zero: u32,
}

impl Cgroup {
    /// Its processes use this host's own network stack.
    pub const HOST: u32 = 1;
    /// It has more addresses than rows: what its processes open is not judged.
    pub const MANY: u32 = 2;
    /// The address is on an interface that has no port on this host (macvlan, ipvlan). A cgroup's first row has it if any has.
    pub const LAN: u32 = 4;
}

/// Key of a fragmented datagram (RFC 791, 3.2; RFC 8200, 4.5).
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
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification: 16 bits of IPv4, 32 of IPv6.
    pub id: u32,
    /// IP protocol of IPv4's header; 0 for IPv6, where only the first piece says it (RFC 8200, 4.5).
    pub protocol: u8,
    /// Zero: a key is compared byte by byte.
    pub zero: [u8; 3],
}

/// What the first piece of a datagram that passed says of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Fragment {
    /// When it passed, nanoseconds of the monotonic clock.
    pub seen: u64,
    /// Whose it was.
    pub container: Container,
    /// Where the first piece ended in the datagram, in bytes: no later one may begin before.
    pub end: u32,
    /// As in [`crate::packet::Packet`], host order.
    pub source_port: u16,
    /// As in [`crate::packet::Packet`], host order.
    pub destination_port: u16,
    /// IP protocol behind the extension headers.
    pub protocol: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// 1 for an ICMP reply.
    pub icmp_reply: u8,
    /// Zero.
    pub zero: u8,
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
    /// The number that the rule's buckets have, the same as long as the rule has its name; below [`MAX_LIMITS`].
    pub bucket: u32,
}

/// Key of a source's use of a limit.
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
pub struct BucketKey {
    /// Who opens.
    pub source: Address,
    /// See [`Limit::bucket`].
    pub bucket: u32,
    /// Zero: a key is compared byte by byte.
    pub zero: [u8; 4],
}

/// An entry of the flow table that the agent has read and wants gone: what [`crate::names::SWEEP_PROGRAM`] finds behind an Ethernet
/// header, up to [`SWEEPS`] of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sweep {
    /// Its key.
    pub key: FlowKey,
    /// Its [`Flow::created`]: another one under the same key stays.
    pub created: u64,
    /// Its [`Flow::seen`]: if a packet has come since, it stays. 0: it goes whatever came.
    pub seen: u64,
}

/// Entries in one run of [`crate::names::SWEEP_PROGRAM`]: what fits into the page that a test run's frame may fill.
pub const SWEEPS: u32 = 60;

/// Packets and bytes, as in [`Flow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Count {
    /// Wire packets.
    pub packets: u64,
    /// Wire bytes.
    pub bytes: u64,
}

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

/// Whose an address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Owner {
    /// As in [`Endpoint`].
    pub identity: [Identity; 2],
    /// As in [`Endpoint`].
    pub container: Container,
}

impl Owner {
    /// Whom nothing belongs to: what is sent with such an address is forged.
    pub const NOBODY: Self = Self { identity: [Identity::UNKNOWN; 2], container: Container::NONE };

    /// The identity in a bank. By a choice: the kernel's target has no place on the stack that an index may point into.
    #[inline(always)]
    pub const fn identity(&self, bank: u32) -> Identity {
        if bank & 1 == 0 { self.identity[0] } else { self.identity[1] }
    }
}

impl Endpoint {
    /// Whose it is.
    #[inline(always)]
    pub const fn owner(&self) -> Owner {
        Owner { identity: self.identity, container: self.container }
    }
}

/// The cell of the traffic counters (a per-CPU array) of what passes from one tier to another.
#[inline(always)]
pub const fn traffic_index(source: Tier, destination: Tier, audited: bool) -> u32 {
    let (s, d) = (source.0 as u32 % MAX_TIERS, destination.0 as u32 % MAX_TIERS);
    (audited as u32 * MAX_TIERS + s) * MAX_TIERS + d
}

/// Entries of the traffic counters.
pub const TRAFFIC_CELLS: u32 = 2 * MAX_TIERS * MAX_TIERS;

/// The index of a cell in the matrix of both banks.
#[inline(always)]
pub const fn cell_index(bank: u32, source: Identity, destination: Identity) -> u32 {
    let (s, d) = (source.0 as u32 % MAX_IDENTITIES, destination.0 as u32 % MAX_IDENTITIES);
    ((bank & 1) * MAX_IDENTITIES + s) * MAX_IDENTITIES + d
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
