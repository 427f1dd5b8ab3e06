//! What packets leave behind for those that follow, beside flows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;
use crate::flow::FlowKey;
use crate::id::Container;

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
    /// See [`super::Limit::bucket`].
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
    /// Its [`crate::flow::Flow::created`]: another one under the same key stays.
    pub created: u64,
    /// Its [`crate::flow::Flow::seen`]: if a packet has come since, it stays. 0: it goes whatever came.
    pub seen: u64,
}

/// Entries in one run of [`crate::names::SWEEP_PROGRAM`]: what fits into the page that a test run's frame may fill.
pub const SWEEPS: u32 = 60;
