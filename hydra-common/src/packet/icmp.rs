//! ICMP and ICMPv6: queries and their replies, neighbour discovery, and the packets that errors quote.

use super::{Bytes, Kind, Packet, load_within};
use crate::address::{Address, Mac};
use crate::track::protocol;
use crate::verdict::Reason;

/// Neighbour discovery options that are walked.
const MAX_ND_OPTIONS: usize = 3;
/// Extension headers of a quoted packet that are walked.
const MAX_QUOTED: usize = 3;

impl Packet {
    /// An ICMP or ICMPv6 message.
    #[inline(always)]
    pub fn icmp<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let (at, end) = (usize::from(self.transport), self.end as usize);
        let h = load_within::<8, B>(bytes, at, end)?;
        let (kind, identifier) = (h.0[0], h.number::<4>());
        self.icmp_type = kind;
        (self.source_port, self.destination_port, self.icmp_reply) = query(self.protocol, kind, identifier);
        let v6 = self.protocol == protocol::ICMPV6;
        match (v6, kind) {
            // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792); 1 to 4 (RFC 4443, 2.1).
            (false, 3 | 4 | 11 | 12) | (true, 1..=4) => {
                self.kind = Kind::IcmpError;
                self.embedded(bytes)?;
            }
            // Redirect, router advertisement.
            (false, 5 | 9) | (true, 134 | 137) => self.kind = Kind::Router,
            (true, 133 | 135 | 136) => {
                self.kind = Kind::Neighbour;
                self.neighbour(bytes)?;
            }
            // RFC 2710, 3, and RFC 3810, 5: hop limit 1, to a group. Anything else would get farther than the link.
            (true, 130..=132 | 143) if self.ttl == 1 && self.destination.is_group() => {
                self.kind = Kind::Listener;
                self.claim = self.source;
            }
            _ => {}
        }
        Ok(())
    }

    /// RFC 4861, 4.1, 4.3, 4.4: hop limit 255, and a link-layer address option that is the frame's own source, where there is a frame.
    #[inline(never)]
    fn neighbour<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let (at, end) = (usize::from(self.transport), self.end as usize);
        if self.ttl != 255 {
            return Err(Reason::SpoofedNeighbour);
        }
        let mut here = at + 8;
        if self.icmp_type == 133 {
            self.claim = self.source;
        } else {
            let target = load_within::<16, B>(bytes, here, end)?.0;
            self.claim = if self.icmp_type == 136 { Address::v6(target) } else { self.source };
            here += 16;
        }
        for _ in 0..MAX_ND_OPTIONS {
            if here >= end {
                return Ok(());
            }
            let h = load_within::<8, B>(bytes, here, end)?;
            let [kind, units] = h.part::<0, 2>();
            if units == 0 {
                return Err(Reason::Malformed);
            }
            if kind <= 2 && self.network != 0 && Mac(h.part::<2, 6>()) != self.source_mac {
                return Err(Reason::SpoofedNeighbour);
            }
            here += usize::from(units) * 8;
        }
        if here >= end { Ok(()) } else { Err(Reason::HeaderChain) }
    }

    /// The packet that an ICMP error quotes: its key, and its sender, who must be the one that the error goes to.
    #[inline(never)]
    fn embedded<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let (at, end) = (usize::from(self.transport) + 8, self.end as usize);
        let here = if self.protocol == protocol::ICMP {
            let h = load_within::<20, B>(bytes, at, end)?;
            if h.0[0] >> 4 != 4 || h.0[0] & 15 < 5 {
                return Err(Reason::Malformed);
            }
            if h.number::<6>() & 0x1fff != 0 {
                return Err(Reason::UnmatchedError);
            }
            self.key.a = Address::v4(h.part::<12, 4>());
            self.key.b = Address::v4(h.part::<16, 4>());
            self.key.protocol = h.0[9];
            at + usize::from(h.0[0] & 15) * 4
        } else {
            let h = load_within::<40, B>(bytes, at, end)?;
            if h.0[0] >> 4 != 6 {
                return Err(Reason::Malformed);
            }
            self.key.a = Address::v6(h.part::<8, 16>());
            self.key.b = Address::v6(h.part::<24, 16>());
            self.key.protocol = h.0[6];
            self.quoted_chain(bytes, at + 40)?
        };
        match self.key.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let h = load_within::<4, B>(bytes, here, end)?;
                self.key.port_a = h.part::<0, 2>();
                self.key.port_b = h.part::<2, 2>();
            }
            inner @ (protocol::ICMP | protocol::ICMPV6) => {
                let h = load_within::<6, B>(bytes, here, end)?;
                let (s, d, _) = query(inner, h.0[0], h.number::<4>());
                self.key.port_a = s.to_be_bytes();
                self.key.port_b = d.to_be_bytes();
            }
            _ => {}
        }
        if self.key.a == self.destination { Ok(()) } else { Err(Reason::UnmatchedError) }
    }

    /// Where the transport header of a quoted IPv6 packet begins.
    #[inline(always)]
    fn quoted_chain<B: Bytes>(&mut self, bytes: &B, mut here: usize) -> Result<usize, Reason> {
        for _ in 0..MAX_QUOTED {
            let kind = self.key.protocol;
            if !matches!(kind, 0 | 43 | 44 | 60) {
                break;
            }
            let h = load_within::<8, B>(bytes, here, self.end as usize)?;
            // Whose port a later piece was for it does not say.
            if kind == 44 && h.number::<2>() & 0xfff8 != 0 {
                return Err(Reason::UnmatchedError);
            }
            self.key.protocol = h.0[0];
            here += if kind == 44 { 8 } else { (usize::from(h.0[1]) + 1) * 8 };
        }
        Ok(here)
    }
}

/// (source "port", destination "port", whether it is a reply) of an ICMP message.
#[inline(always)]
fn query(protocol: u8, kind: u8, identifier: u16) -> (u16, u16, bool) {
    match (protocol, kind) {
        // Echo, timestamp, information, address mask (RFC 792, RFC 950); echo (RFC 4443).
        (protocol::ICMP, 8 | 13 | 15 | 17) | (protocol::ICMPV6, 128) => (identifier, u16::from(kind), false),
        (protocol::ICMP, 0) => (8, identifier, true),
        (protocol::ICMP, 14 | 16 | 18) | (protocol::ICMPV6, 129) => (u16::from(kind) - 1, identifier, true),
        _ => (0, u16::from(kind), false),
    }
}
