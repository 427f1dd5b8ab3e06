//! One conversation, both directions: the key that both find, and the entry behind it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;
use crate::id::{Container, Identity};

/// Which end of a canonical key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// The end with the smaller (address, port).
    A = 0,
    /// The other.
    B = 1,
}

impl Side {
    /// The other end.
    #[must_use]
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 0 or 1, for the pairs in a [`Flow`].
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// From a [`Flow`]'s `opener`.
    #[inline(always)]
    pub const fn from_row(n: u8) -> Self {
        if n & 1 == 0 { Self::A } else { Self::B }
    }
}

/// The key of a flow: the same for both directions. Ports in network order; for ICMP queries the opener's "port" is the
/// identifier and the responder's the request's type, so that two ends that ping each other have two flows.
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
pub struct FlowKey {
    /// The smaller end's address.
    pub a: Address,
    /// The other end's address.
    pub b: Address,
    /// The smaller end's port, network order.
    pub port_a: [u8; 2],
    /// The other end's port, network order.
    pub port_b: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Zero: a key is compared byte by byte.
    pub zero: [u8; 3],
}

impl FlowKey {
    /// The canonical key of a packet from (`source`, `source_port`) to (`destination`, `destination_port`), and the side
    /// that sent it. Ports in host order.
    #[inline(always)]
    pub fn of(
        source: Address,
        source_port: u16,
        destination: Address,
        destination_port: u16,
        protocol: u8,
    ) -> (Self, Side) {
        let ordered = ordered(&source, source_port, &destination, destination_port);
        let (a, b) = if ordered { (source, destination) } else { (destination, source) };
        let (ap, bp) =
            if ordered { (source_port, destination_port) } else { (destination_port, source_port) };
        let ports = u64::from(ap) << 48 | u64::from(bp) << 32 | u64::from(protocol) << 24;
        let ([a0, a1], [b0, b1]) = (a.halves(), b.halves());
        // In words: a look-up reads them so, and waits for stores that are narrower than what it reads.
        let key = zerocopy::transmute!([a0, a1, b0, b1, ports.to_be()]);
        (key, if ordered { Side::A } else { Side::B })
    }

    /// Puts the smaller (address, port) first. Returns where the end is that was side A before.
    #[inline(always)]
    pub fn canonical(&mut self) -> Side {
        let (ap, bp) = (u16::from_be_bytes(self.port_a), u16::from_be_bytes(self.port_b));
        if ordered(&self.a, ap, &self.b, bp) {
            return Side::A;
        }
        core::mem::swap(&mut self.a, &mut self.b);
        core::mem::swap(&mut self.port_a, &mut self.port_b);
        Side::B
    }

    /// Ports and protocol as a number, in one word as they were written.
    #[inline(always)]
    pub(crate) fn last(&self) -> u64 {
        let [.., last]: [u64; 5] = zerocopy::transmute!(*self);
        last
    }

    /// The address of one end.
    #[inline(always)]
    pub const fn address(&self, side: Side) -> Address {
        match side {
            Side::A => self.a,
            Side::B => self.b,
        }
    }

    /// The port of one end, host order.
    #[inline(always)]
    pub const fn port(&self, side: Side) -> u16 {
        match side {
            Side::A => u16::from_be_bytes(self.port_a),
            Side::B => u16::from_be_bytes(self.port_b),
        }
    }
}

/// Whether the first end is the smaller one.
#[inline(always)]
fn ordered(a: &Address, ap: u16, b: &Address, bp: u16) -> bool {
    let (ah, bh) = (a.high(), b.high());
    let (al, bl) = (a.low(), b.low());
    if ah != bh {
        ah < bh
    } else if al != bl {
        al < bl
    } else {
        ap < bp
    }
}

/// The entry of a flow that passed. `[_; 2]` is by [`Side`]: what side A sent, what side B sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Flow {
    /// The tables' generation under which it was decided. An older one is decided again.
    pub generation: u32,
    /// The policy's revision under which it was decided.
    pub revision: u32,
    /// Seconds of the monotonic clock at which the deciding rule ends; 0 = never.
    pub until: u32,
    /// The rule that decided: its place in the policy, counted from 1; 0 = none.
    pub rule: u16,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// The [`Side`] that opened it.
    pub opener: u8,
    /// [`Path`].
    pub path: u8,
    /// TCP flags seen from each side, ORed (RFC 9293, 3.1), and of the opener [`crate::track::MORE`]; for other protocols bit 0 says
    /// that the side has sent.
    pub flags: [u8; 2],
    /// Who opened it.
    pub source: Identity,
    /// Who was called.
    pub destination: Identity,
    /// The cell of the traffic counters, see [`crate::tables::traffic_index`].
    pub traffic: u32,
    /// What may send from an end that is no container of this host: [`Far`]. Where an address of this host was called, or a machine
    /// that the policy names, the first answer says.
    pub ends: [u8; 2],
    /// [`Flow::PUBLISHED`], [`Flow::CARRIED`], [`Flow::TO_HOST`], [`Flow::MASQUERADED`].
    pub marks: u8,
    /// Zero.
    pub zero: u8,
    /// TCP: the sequence number behind what each side has sent (RFC 9293, 3.3.1).
    pub next: [u32; 2],
    /// TCP: what each side has acknowledged.
    pub acked: [u32; 2],
    /// The containers at both ends, if they are on this host.
    pub containers: [Container; 2],
    /// TCP: the number of the opener's last SYN.
    pub syn: u32,
    /// The limit that it took from when it began, by [`crate::tables::Limit::bucket`] counted from 1; 0 = none.
    pub taken: u16,
    /// By what it is counted on the share of its opener: see [`crate::share::counted`].
    pub counted: u16,
    /// First packet, nanoseconds of the monotonic clock. 0: the entry is being removed or replaced, by whoever has written that.
    pub created: u64,
    /// Last packet, nanoseconds of the monotonic clock.
    pub seen: u64,
    /// Wire packets.
    pub packets: [u64; 2],
    /// Bytes of the wire frames, Ethernet header included, FCS not: what the interface counters of Linux count.
    pub bytes: [u64; 2],
}

impl Flow {
    /// To a published port of this host: the entry says by container and identity who was called, and what he answers may have
    /// another key.
    pub const PUBLISHED: u8 = 1;
    /// Its opener came with [`crate::names::MARK_CARRIED`]: the entry's identities say who it is, its addresses do not.
    pub const CARRIED: u8 = 2;
    /// To an address of this host, which may send it on: its opener's packets go on with [`crate::names::MARK_CARRIED`].
    pub const TO_HOST: u8 = 4;
    /// Comes with [`Flow::CARRIED`]: its opener has no address of his own, and what answers him goes where the kernel's address
    /// translation says, as long as it remembers.
    pub const MASQUERADED: u8 = 8;
}

/// What sends from an end of a flow that is no container of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Far {
    /// Not known: a container, or nobody yet.
    Unset = 0,
    /// This host.
    Host = 1,
    /// An interface to the outside, or a port behind which nobody lists who is there.
    Outside = 2,
    /// A container on a network that the policy does not name.
    Unmanaged = 3,
    /// Somebody whose identity came with the mark.
    Carried = 4,
}

/// The way that a flow's packets take through the host, the same for its whole life and both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// The kernel's own: bridge, routing, netfilter.
    Stack = 0,
    /// Straight from the source's port into the destination's namespace.
    Peer = 1,
}

impl Path {
    /// From a [`Flow`]'s `path`.
    #[inline(always)]
    pub const fn from_row(n: u8) -> Self {
        if n == 1 { Self::Peer } else { Self::Stack }
    }
}
