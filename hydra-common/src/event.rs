//! What the kernel tells user space about single packets: drops, would-be drops, and first packets of flows. Lossy; the counters
//! are not.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;
use crate::id::{Container, Identity};

/// One packet, as the ring buffer carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port or ICMP identifier, host order.
    pub source_port: u16,
    /// Destination port or ICMP type, host order.
    pub destination_port: u16,
    /// Who sent.
    pub source_identity: Identity,
    /// To whom.
    pub destination_identity: Identity,
    /// The sending container, if it is on this host.
    pub source_container: Container,
    /// The receiving container, if it is on this host.
    pub destination_container: Container,
    /// The interface whose program decided.
    pub ifindex: u32,
    /// Frame length in bytes.
    pub length: u32,
    /// The policy's revision.
    pub revision: u32,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
    /// IP protocol; 0 where the frame is not IP.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// [`crate::verdict::Hook`].
    pub hook: u8,
    /// Zero.
    pub zero: u8,
    /// EtherType, host order.
    pub ethertype: u16,
    /// Zero.
    pub zero2: [u8; 2],
    /// The process that opened the flow, as the host counts; 0 where a packet was judged.
    pub process: u32,
    /// What that process calls itself, up to the first zero byte: any bytes.
    pub command: [u8; 16],
    /// Zero.
    pub zero3: [u8; 4],
}

/// Events a CPU may write in [`EVENT_WINDOW_NS`]; the rest is counted as lost.
pub const EVENTS_PER_WINDOW: u32 = 128;
/// Length of a rate window in nanoseconds.
pub const EVENT_WINDOW_NS: u64 = 10_000_000;

/// A CPU's rate window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventWindow {
    /// When it began, nanoseconds of the monotonic clock.
    pub start: u64,
    /// Events since.
    pub count: u32,
    /// Zero.
    pub zero: u32,
}
