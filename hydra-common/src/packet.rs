//! From the bytes of a frame to what the verdict needs to know of it. Bounded walks over VLAN tags, IPv4 options and IPv6
//! extension headers; what is cut short, contradicts itself or is not understood is a [`Reason`], never a guess.
//!
//! Fragments (RFC 791, RFC 8200 4.5) are refused whole, first ones included: a port rule cannot be held against the others.

use crate::address::{Address, Mac};
use crate::flow::{FlowKey, Side};
use crate::track::protocol;
use crate::verdict::Reason;

/// VLAN tags that are walked.
const MAX_TAGS: usize = 2;
/// IPv4 options that are walked.
const MAX_OPTIONS: usize = 10;
/// IPv6 extension headers that are walked.
const MAX_HEADERS: usize = 6;
/// Neighbour discovery options that are walked.
const MAX_ND_OPTIONS: usize = 3;
/// Ethernet header.
const ETHERNET: usize = 14;

/// Reads a frame. Offsets count from the destination MAC.
pub trait Bytes {
    /// `N` bytes at an offset, or `None` where the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Length of the frame in bytes; that of the super-packet under GSO.
    fn length(&self) -> usize;
    /// Whether the device took a VLAN tag off the frame (`skb->vlan_tci`).
    fn tagged(&self) -> bool;
}

/// What a frame is, beside its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not understood as far as this.
    #[default]
    Unknown,
    /// IP, to be judged.
    Ip,
    /// ARP (RFC 826): `source` is the sender's protocol address.
    Arp,
    /// Router and neighbour solicitation, neighbour advertisement (RFC 4861): `claim` is what the sender says it has.
    Neighbour,
    /// Router advertisement and redirect, both families.
    Router,
    /// Multicast listener report or done (RFC 2710, RFC 3810).
    Listener,
    /// A DHCP client's broadcast or multicast (RFC 2131, RFC 8415).
    DhcpClient,
    /// An answer to one.
    DhcpServer,
    /// An ICMP error; `key` and `side` are those of the packet that it is about.
    IcmpError,
}

/// A frame, understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// EtherType behind the tags, host order.
    pub ethertype: u16,
    /// What it is.
    pub kind: Kind,
    /// IP protocol behind the extension headers; 0 where it is not IP.
    pub protocol: u8,
    /// Source address; for ARP the sender's.
    pub source: Address,
    /// Destination address; for ARP the target's.
    pub destination: Address,
    /// Neighbour discovery: the address that the sender says is its own; unspecified where it claims none.
    pub claim: Address,
    /// Source port; for an ICMP query the identifier, for its reply the query's type.
    pub source_port: u16,
    /// Destination port; for an ICMP query its type, for its reply the identifier, for other ICMP the type.
    pub destination_port: u16,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP reply: belongs to a query's flow or to none, and opens none.
    pub icmp_reply: bool,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Offset of the IP header.
    pub network: u16,
    /// Offset behind the TCP, UDP … header: what GSO repeats in front of each segment.
    pub payload: u16,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Flow key of the packet, or of the one that an ICMP error is about.
    pub key: FlowKey,
    /// Who sent it, in that key.
    pub sent_by_b: bool,
}

impl Packet {
    /// Who sent it, in `key`.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        if self.sent_by_b { Side::B } else { Side::A }
    }

    /// By what rule sets are searched, see [`crate::tables::selector`].
    #[inline(always)]
    pub const fn selector(&self) -> u32 {
        let port = match self.protocol {
            protocol::ICMP | protocol::ICMPV6 => self.icmp_type as u16,
            _ => self.destination_port,
        };
        crate::tables::selector(self.protocol, port)
    }

    /// Whether a frame is for several receivers, or for whoever is on the link.
    #[inline(always)]
    pub fn is_group(&self) -> bool {
        self.destination_mac.is_group() || self.destination.is_group() || self.destination.is_link_local()
    }

    /// Reads a frame. On an error as much is filled in as was understood, for the event.
    #[inline(always)]
    pub fn parse<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let ethernet = bytes.load::<ETHERNET>(0).ok_or(Reason::Malformed)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = ethernet;
        self.destination_mac = Mac([d0, d1, d2, d3, d4, d5]);
        self.source_mac = Mac([s0, s1, s2, s3, s4, s5]);
        self.ethertype = u16::from_be_bytes([t0, t1]);
        let mut at = ETHERNET;
        let mut tagged = bytes.tagged();
        for _ in 0..MAX_TAGS {
            // 802.1Q and 802.1ad (IEEE 802.1Q-2018, table 9-1).
            if self.ethertype != 0x8100 && self.ethertype != 0x88a8 {
                break;
            }
            let [_, _, t0, t1] = bytes.load::<4>(at).ok_or(Reason::Malformed)?;
            self.ethertype = u16::from_be_bytes([t0, t1]);
            tagged = true;
            at += 4;
        }
        let understood = self.network_header(bytes, at);
        if tagged { Err(Reason::Vlan) } else { understood }
    }

    #[inline(always)]
    fn network_header<B: Bytes>(&mut self, bytes: &B, at: usize) -> Result<(), Reason> {
        self.network = at as u16;
        match self.ethertype {
            0x0800 => {
                let (transport, end) = self.ipv4(bytes, at)?;
                self.transport(bytes, transport, end)
            }
            0x86dd => {
                let (transport, end) = self.ipv6(bytes, at)?;
                self.transport(bytes, transport, end)
            }
            0x0806 => self.arp(bytes, at),
            _ => Err(Reason::EtherType),
        }
    }

    #[inline(always)]
    fn arp<B: Bytes>(&mut self, bytes: &B, at: usize) -> Result<(), Reason> {
        let a = bytes.load::<28>(at).ok_or(Reason::Malformed)?;
        // Ethernet, IPv4, 6 and 4 bytes, request or reply (RFC 826).
        if a[0] != 0
            || a[1] != 1
            || a[2] != 8
            || a[3] != 0
            || a[4] != 6
            || a[5] != 4
            || a[6] != 0
            || a[7] == 0
            || a[7] > 2
        {
            return Err(Reason::Malformed);
        }
        self.source = Address::v4([a[14], a[15], a[16], a[17]]);
        self.destination = Address::v4([a[24], a[25], a[26], a[27]]);
        self.claim = self.source;
        if Mac([a[8], a[9], a[10], a[11], a[12], a[13]]) != self.source_mac {
            return Err(Reason::SpoofedArp);
        }
        self.kind = Kind::Arp;
        Ok(())
    }

    /// Offsets of the transport header and of the packet's end.
    #[inline(always)]
    fn ipv4<B: Bytes>(&mut self, bytes: &B, at: usize) -> Result<(usize, usize), Reason> {
        let h = bytes.load::<20>(at).ok_or(Reason::Malformed)?;
        if h[0] >> 4 != 4 || h[0] & 15 < 5 {
            return Err(Reason::Malformed);
        }
        let header = usize::from(h[0] & 15) * 4;
        let room = bytes.length() - at;
        let mut total = usize::from(u16::from_be_bytes([h[2], h[3]]));
        if total == 0 && room > 65_535 {
            // BIG TCP writes 0 (Linux 6.3, b1a78b9b9886).
            total = room;
        }
        self.ttl = h[8];
        self.protocol = h[9];
        self.source = Address::v4([h[12], h[13], h[14], h[15]]);
        self.destination = Address::v4([h[16], h[17], h[18], h[19]]);
        if total < header || total > room {
            return Err(Reason::Malformed);
        }
        if header > 20 {
            source_routed(bytes, at + 20, at + header)?;
        }
        if u16::from_be_bytes([h[6], h[7]]) & 0x3fff != 0 {
            return Err(Reason::Fragment);
        }
        Ok((at + header, at + total))
    }

    /// Offsets of the transport header and of the packet's end.
    #[inline(always)]
    fn ipv6<B: Bytes>(&mut self, bytes: &B, at: usize) -> Result<(usize, usize), Reason> {
        let h = bytes.load::<40>(at).ok_or(Reason::Malformed)?;
        if h[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let room = bytes.length() - at;
        let mut total = 40 + usize::from(u16::from_be_bytes([h[4], h[5]]));
        if total == 40 && room > 65_535 {
            // A jumbogram (RFC 2675), as BIG TCP makes them inside the host.
            total = room;
        }
        self.ttl = h[7];
        let mut next = h[6];
        self.source = Address::v6(sixteen::<8>(&h));
        self.destination = Address::v6(sixteen::<24>(&h));
        if total > room || self.source.is_v4() || self.destination.is_v4() {
            return Err(Reason::Malformed);
        }
        let end = at + total;
        let mut here = at + 40;
        for n in 0..=MAX_HEADERS {
            self.protocol = next;
            let length = match next {
                // Hop-by-hop options come first or not at all (RFC 8200, 4.1).
                0 if n > 0 => return Err(Reason::HeaderChain),
                0 | 43 | 60 => {
                    let [following, units, routing, left] = bytes.load::<4>(here).ok_or(Reason::Malformed)?;
                    if next == 43 && (routing == 0 || left != 0) {
                        // Somebody behind the destination would get it (RFC 5095; RFC 8754 for segment routing).
                        return Err(Reason::SourceRoute);
                    }
                    next = following;
                    (usize::from(units) + 1) * 8
                }
                // The authentication header counts words, less two (RFC 4302, 2.2).
                51 => {
                    let [following, words] = bytes.load::<2>(here).ok_or(Reason::Malformed)?;
                    next = following;
                    (usize::from(words) + 2) * 4
                }
                44 => return Err(Reason::Fragment),
                _ => return Ok((here, end)),
            };
            here += length;
            if here > end {
                return Err(Reason::Malformed);
            }
        }
        Err(Reason::HeaderChain)
    }

    #[inline(always)]
    fn transport<B: Bytes>(&mut self, bytes: &B, at: usize, end: usize) -> Result<(), Reason> {
        self.kind = Kind::Ip;
        let v4 = self.ethertype == 0x0800;
        let mut header = 0;
        match self.protocol {
            protocol::TCP => {
                let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, offset, flags] =
                    load_within::<14, B>(bytes, at, end)?;
                header = usize::from(offset >> 4) * 4;
                if header < 20 || at + header > end {
                    return Err(Reason::Malformed);
                }
                self.ports([s0, s1, d0, d1]);
                self.tcp_flags = flags;
            }
            protocol::UDP => {
                let [s0, s1, d0, d1, l0, l1, _, _] = load_within::<8, B>(bytes, at, end)?;
                let length = usize::from(u16::from_be_bytes([l0, l1]));
                // 0 in a jumbogram (RFC 2675, 4).
                if length != 0 && (length < 8 || at + length > end) {
                    return Err(Reason::Malformed);
                }
                header = 8;
                self.ports([s0, s1, d0, d1]);
                self.dhcp();
            }
            protocol::SCTP => {
                let [s0, s1, d0, d1, ..] = load_within::<12, B>(bytes, at, end)?;
                header = 12;
                self.ports([s0, s1, d0, d1]);
            }
            protocol::ICMP | protocol::ICMPV6 => {
                if v4 != (self.protocol == protocol::ICMP) {
                    return Err(Reason::Malformed);
                }
                header = 8;
                if self.icmp(bytes, at, end)? {
                    return Ok(());
                }
            }
            _ => {}
        }
        self.payload = (at + header) as u16;
        let (key, side) = FlowKey::of(
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
            self.protocol,
        );
        self.key = key;
        self.sent_by_b = matches!(side, Side::B);
        Ok(())
    }

    #[inline(always)]
    fn ports(&mut self, [s0, s1, d0, d1]: [u8; 4]) {
        self.source_port = u16::from_be_bytes([s0, s1]);
        self.destination_port = u16::from_be_bytes([d0, d1]);
    }

    #[inline(always)]
    fn dhcp(&mut self) {
        let group = self.destination.is_group();
        match (self.source_port, self.destination_port) {
            (68, 67) | (546, 547) if group => self.kind = Kind::DhcpClient,
            (67, 68) | (547, 546) => self.kind = Kind::DhcpServer,
            _ => {}
        }
    }

    /// `true` when `key` is already that of the packet an error is about.
    #[inline(always)]
    fn icmp<B: Bytes>(&mut self, bytes: &B, at: usize, end: usize) -> Result<bool, Reason> {
        let [kind, _, _, _, i0, i1, _, _] = load_within::<8, B>(bytes, at, end)?;
        self.icmp_type = kind;
        let identifier = u16::from_be_bytes([i0, i1]);
        (self.source_port, self.destination_port, self.icmp_reply) = query(self.protocol, kind, identifier);
        let v6 = self.protocol == protocol::ICMPV6;
        match (v6, kind) {
            // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792); 1 to 4 (RFC 4443, 2.1).
            (false, 3 | 4 | 11 | 12) | (true, 1..=4) => {
                self.kind = Kind::IcmpError;
                self.embedded(bytes, at + 8, end)?;
                return Ok(true);
            }
            // Redirect, router advertisement.
            (false, 5 | 9) | (true, 134 | 137) => self.kind = Kind::Router,
            (true, 133 | 135 | 136) => {
                self.kind = Kind::Neighbour;
                self.neighbour(bytes, at, end)?;
            }
            (true, 131 | 132 | 143) => self.kind = Kind::Listener,
            _ => {}
        }
        Ok(false)
    }

    /// RFC 4861, 4.1, 4.3, 4.4: hop limit 255, and a link-layer address option that is the frame's own source.
    #[inline(always)]
    fn neighbour<B: Bytes>(&mut self, bytes: &B, at: usize, end: usize) -> Result<(), Reason> {
        if self.ttl != 255 {
            return Err(Reason::SpoofedNeighbour);
        }
        let mut here = at + 8;
        if self.icmp_type == 133 {
            self.claim = self.source;
        } else {
            let target = load_within::<16, B>(bytes, here, end)?;
            self.claim = if self.icmp_type == 136 { Address::v6(target) } else { self.source };
            here += 16;
        }
        for _ in 0..MAX_ND_OPTIONS {
            if here >= end {
                return Ok(());
            }
            let [kind, units, a0, a1, a2, a3, a4, a5] = load_within::<8, B>(bytes, here, end)?;
            if units == 0 {
                return Err(Reason::Malformed);
            }
            if kind <= 2 && Mac([a0, a1, a2, a3, a4, a5]) != self.source_mac {
                return Err(Reason::SpoofedNeighbour);
            }
            here += usize::from(units) * 8;
        }
        if here >= end { Ok(()) } else { Err(Reason::HeaderChain) }
    }

    /// The packet that an ICMP error quotes: its key, and its sender, who must be the one that the error goes to.
    #[inline(always)]
    fn embedded<B: Bytes>(&mut self, bytes: &B, at: usize, end: usize) -> Result<(), Reason> {
        let (source, destination, inner, here) = if self.protocol == protocol::ICMP {
            let h = load_within::<20, B>(bytes, at, end)?;
            if h[0] >> 4 != 4 || h[0] & 15 < 5 {
                return Err(Reason::Malformed);
            }
            if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
                return Err(Reason::UnmatchedError);
            }
            let source = Address::v4([h[12], h[13], h[14], h[15]]);
            let destination = Address::v4([h[16], h[17], h[18], h[19]]);
            (source, destination, h[9], at + usize::from(h[0] & 15) * 4)
        } else {
            let h = load_within::<40, B>(bytes, at, end)?;
            if h[0] >> 4 != 6 {
                return Err(Reason::Malformed);
            }
            (Address::v6(sixteen::<8>(&h)), Address::v6(sixteen::<24>(&h)), h[6], at + 40)
        };
        let (source_port, destination_port) = match inner {
            protocol::TCP | protocol::UDP | protocol::SCTP => {
                let [s0, s1, d0, d1] = load_within::<4, B>(bytes, here, end)?;
                (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
            }
            protocol::ICMP | protocol::ICMPV6 => {
                let [kind, _, _, _, i0, i1] = load_within::<6, B>(bytes, here, end)?;
                let (s, d, _) = query(inner, kind, u16::from_be_bytes([i0, i1]));
                (s, d)
            }
            _ => (0, 0),
        };
        if source != self.destination {
            return Err(Reason::UnmatchedError);
        }
        let (key, side) = FlowKey::of(source, source_port, destination, destination_port, inner);
        self.key = key;
        self.sent_by_b = matches!(side, Side::B);
        Ok(())
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

/// Looks for a source route among IPv4 options (RFC 791, 3.1).
#[inline(always)]
fn source_routed<B: Bytes>(bytes: &B, at: usize, end: usize) -> Result<(), Reason> {
    let mut here = at;
    for _ in 0..MAX_OPTIONS {
        if here >= end {
            return Ok(());
        }
        let [kind] = bytes.load::<1>(here).ok_or(Reason::Malformed)?;
        match kind {
            0 => return Ok(()),
            1 => here += 1,
            131 | 137 => return Err(Reason::SourceRoute),
            _ => {
                let [length] = bytes.load::<1>(here + 1).ok_or(Reason::Malformed)?;
                if length < 2 {
                    return Err(Reason::Malformed);
                }
                here += usize::from(length);
                if here > end {
                    return Err(Reason::Malformed);
                }
            }
        }
    }
    if here >= end { Ok(()) } else { Err(Reason::HeaderChain) }
}

/// `N` bytes that must lie before the packet's end.
#[inline(always)]
fn load_within<const N: usize, B: Bytes>(bytes: &B, at: usize, end: usize) -> Result<[u8; N], Reason> {
    if at + N > end {
        return Err(Reason::Malformed);
    }
    bytes.load::<N>(at).ok_or(Reason::Malformed)
}

/// 16 bytes of an IPv6 header from `AT`.
#[inline(always)]
fn sixteen<const AT: usize>(h: &[u8; 40]) -> [u8; 16] {
    let mut a = [0; 16];
    let mut i = 0;
    while i < 16 {
        a[i] = h[AT + i];
        i += 1;
    }
    a
}
