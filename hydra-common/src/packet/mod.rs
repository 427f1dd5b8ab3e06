//! From the bytes of a frame to what the verdict needs to know of it. Bounded walks over VLAN tags, IPv4 options and IPv6
//! extension headers; what is cut short, contradicts itself or is not understood is a [`Reason`], never a guess.
//!
//! Of a fragmented datagram (RFC 791, RFC 8200 4.5) the first piece is read like a whole packet; what the later ones belong to is
//! found by [`crate::decide`].

mod icmp;
mod ip;
mod plain;

use crate::address::{Address, Mac};
use crate::flow::{FlowKey, Side};
use crate::tables::Fragment;
use crate::track::{protocol, tcp};
use crate::verdict::Reason;

/// VLAN tags that are walked.
const MAX_TAGS: usize = 2;
/// Ethernet header.
const ETHERNET: usize = 14;

pub use plain::{Begin, Front};

/// Reads a frame. Offsets count from the destination MAC.
pub trait Bytes {
    /// `N` bytes at an offset, or `None` where the frame ends before.
    fn load<const N: usize>(&self, offset: usize) -> Option<Chunk<N>>;
    /// Length of the frame in bytes; that of the super-packet under GSO.
    fn length(&self) -> usize;
    /// Whether the device took a VLAN tag off the frame (`skb->vlan_tci`).
    fn tagged(&self) -> bool;

    /// [`Packet::ipv4`]. This and what follows are places where the kernel's programs are taken apart, see [`crate::decide::Parts`].
    fn ipv4(&self, packet: &mut Packet) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet.ipv4(self)
    }

    /// [`Packet::ipv6`].
    fn ipv6(&self, packet: &mut Packet) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet.ipv6(self)
    }

    /// [`Packet::transport_header`].
    fn transport_header(&self, packet: &mut Packet) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet.transport_header(self)
    }

    /// [`Packet::icmp`].
    fn icmp(&self, packet: &mut Packet) -> Result<(), Reason>
    where
        Self: Sized,
    {
        packet.icmp(self)
    }
}

/// A frame in memory, no tag taken off.
impl Bytes for &[u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<Chunk<N>> {
        Some(Chunk(self.get(offset..offset.checked_add(N)?)?.try_into().ok()?))
    }

    fn length(&self) -> usize {
        self.len()
    }

    fn tagged(&self) -> bool {
        false
    }
}

/// Bytes of a frame. Aligned for the sake of a target that copies what is not byte by byte.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Chunk<const N: usize>(pub [u8; N]);

impl<const N: usize> Chunk<N> {
    /// `M` of the bytes, from `AT`: a copy of words, where taking them apart would be one of bytes.
    #[inline(always)]
    pub fn part<const AT: usize, const M: usize>(&self) -> [u8; M] {
        const { assert!(AT + M <= N) };
        let mut part = [0; M];
        part.copy_from_slice(&self.0[AT..AT + M]);
        part
    }

    /// Two of the bytes as a number in network order.
    #[inline(always)]
    fn number<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes(self.part::<AT, 2>())
    }

    /// Four of the bytes as a number in network order.
    #[inline(always)]
    fn long<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes(self.part::<AT, 4>())
    }
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
    /// Multicast listener report or done (RFC 2710, RFC 3810), for the link alone.
    Listener,
    /// A DHCP client's broadcast or multicast (RFC 2131, RFC 8415).
    DhcpClient,
    /// An answer to one.
    DhcpServer,
    /// An ICMP error; `key` and `side` are those of the packet that it is about.
    IcmpError,
    /// A later piece of a datagram: its ports are in the first one.
    Piece,
}

/// What part of a datagram a packet holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Piece {
    /// All of it.
    #[default]
    Whole,
    /// Its begin, with the transport header.
    First,
    /// What comes after.
    Later,
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
    /// ARP, neighbour discovery, listener reports, a DHCP client: the address that the sender says is its own; unspecified where it
    /// claims none.
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
    /// SCTP: the type of the first chunk.
    pub chunk: u8,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP acknowledgment number.
    pub acknowledgment: u32,
    /// What part of a datagram it holds.
    pub piece: Piece,
    /// Of a piece: the datagram's identification.
    pub piece_id: u32,
    /// Of a piece: where it begins in the datagram, in bytes behind the headers that every piece has.
    pub piece_at: u32,
    /// Of a piece: where it ends, likewise.
    pub piece_end: u32,
    /// Offset of the IP header.
    pub network: u16,
    /// Offset of what follows it and its extension headers.
    pub transport: u16,
    /// Where the IP packet ends: padding of the frame follows.
    pub end: u32,
    /// Offset behind the TCP, UDP … header: what GSO repeats in front of each segment.
    pub payload: u16,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Flow key of the packet, or of the one that an ICMP error is about.
    pub key: FlowKey,
    /// Who sent it, in that key: a [`Side`] as a number.
    pub sender: u8,
}

impl Packet {
    /// Who sent it, in `key`.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        Side::from_row(self.sender)
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

    /// Whether a frame is for several receivers, or for whoever is on the link. Not so the link-local addresses of IPv4: hosts
    /// route them (a cloud's metadata service has one).
    #[inline(always)]
    pub fn is_group(&self) -> bool {
        let a = &self.destination;
        self.destination_mac.is_group() || a.is_group() || (!a.is_v4() && a.is_link_local())
    }

    /// Reads a frame. On an error as much is filled in as was understood, for the event.
    #[inline(always)]
    pub fn parse<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let h = bytes.load::<ETHERNET>(0).ok_or(Reason::Malformed)?;
        self.destination_mac = Mac(h.part::<0, 6>());
        self.source_mac = Mac(h.part::<6, 6>());
        self.ethertype = h.number::<12>();
        self.behind(bytes, ETHERNET as u16)
    }

    /// Reads a frame whose Ethernet header somebody has taken off; it ended with this EtherType. Both MACs stay as they are.
    #[inline(always)]
    pub fn parse_behind<B: Bytes>(&mut self, bytes: &B, ethertype: u16) -> Result<(), Reason> {
        self.ethertype = ethertype;
        self.behind(bytes, 0)
    }

    /// What follows the EtherType, from this offset.
    #[inline(always)]
    fn behind<B: Bytes>(&mut self, bytes: &B, mut at: u16) -> Result<(), Reason> {
        let mut tagged = bytes.tagged();
        for _ in 0..MAX_TAGS {
            // 802.1Q and 802.1ad (IEEE 802.1Q-2018, table 9-1).
            if self.ethertype != 0x8100 && self.ethertype != 0x88a8 {
                break;
            }
            self.ethertype = bytes.load::<4>(usize::from(at)).ok_or(Reason::Malformed)?.number::<2>();
            tagged = true;
            at += 4;
        }
        self.network = at;
        let understood = self.network_header(bytes);
        self.sender = self.key.canonical() as u8;
        match understood {
            // What this host might read behind a tag of priority alone, and we do not.
            Err(Reason::HeaderChain | Reason::SourceRoute | Reason::Fragment) => understood,
            Ok(()) | Err(_) if tagged => Err(Reason::Vlan),
            Ok(()) | Err(_) => understood,
        }
    }

    /// Reads a packet that begins with its IP header, where there is no frame around it.
    #[inline(always)]
    pub fn parse_bare<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let Chunk([first]) = bytes.load::<1>(0).ok_or(Reason::Malformed)?;
        self.ethertype = match first >> 4 {
            4 => 0x0800,
            6 => 0x86dd,
            _ => return Err(Reason::Malformed),
        };
        let understood = self.network_header(bytes);
        self.sender = self.key.canonical() as u8;
        understood
    }

    // From here on offsets go through `self`: see `crate::decide` on what the verifier makes of that.
    #[inline(always)]
    fn network_header<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        match self.ethertype {
            0x0800 => bytes.ipv4(self),
            0x86dd => bytes.ipv6(self),
            0x0806 => return self.arp(bytes),
            _ => return Err(Reason::EtherType),
        }
        .and_then(|()| bytes.transport_header(self))
        .map_err(|reason| match (reason, self.piece) {
            // All headers are in the first piece (RFC 7112; RFC 1858, 3, for IPv4).
            (Reason::Malformed, Piece::First) => Reason::Fragment,
            (reason, _) => reason,
        })
    }

    #[inline(never)]
    fn arp<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let a = bytes.load::<28>(usize::from(self.network)).ok_or(Reason::Malformed)?;
        // Ethernet, IPv4, 6 and 4 bytes, request or reply (RFC 826).
        if a.part::<0, 6>() != [0, 1, 8, 0, 6, 4] || !matches!(a.number::<6>(), 1 | 2) {
            return Err(Reason::Malformed);
        }
        self.source = Address::v4(a.part::<14, 4>());
        self.destination = Address::v4(a.part::<24, 4>());
        self.claim = self.source;
        if Mac(a.part::<8, 6>()) != self.source_mac {
            return Err(Reason::SpoofedArp);
        }
        self.kind = Kind::Arp;
        Ok(())
    }

    /// What follows the IP header and its extensions.
    #[inline(always)]
    pub fn transport_header<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let (at, end) = (usize::from(self.transport), self.end as usize);
        if matches!(self.piece, Piece::Later) {
            self.kind = Kind::Piece;
            self.payload = self.transport;
            return Ok(());
        }
        self.kind = Kind::Ip;
        let v4 = self.ethertype == 0x0800;
        let whole = matches!(self.piece, Piece::Whole);
        let mut header = 0;
        match self.protocol {
            protocol::TCP => {
                let h = load_within::<14, B>(bytes, at, end)?;
                header = usize::from(h.0[12] >> 4) * 4;
                if header < 20 || at + header > end {
                    return Err(Reason::Malformed);
                }
                self.ports(&h);
                self.tcp_flags = h.0[13];
                self.sequence = h.long::<4>();
                self.acknowledgment = h.long::<8>();
                if !tcp::sensible(self.tcp_flags) {
                    return Err(Reason::Malformed);
                }
            }
            protocol::UDP => {
                let h = load_within::<8, B>(bytes, at, end)?;
                let length = usize::from(h.number::<4>());
                // 0 in a jumbogram (RFC 2675, 4).
                if length != 0 && (length < 8 || (whole && at + length > end)) {
                    return Err(Reason::Malformed);
                }
                header = 8;
                self.ports(&h);
                if whole {
                    self.dhcp();
                }
            }
            protocol::SCTP => {
                // Without a chunk it is nothing (RFC 9260, 3).
                let h = load_within::<16, B>(bytes, at, end)?;
                header = 12;
                self.ports(&h);
                self.chunk = h.0[12];
            }
            protocol::ICMP | protocol::ICMPV6 => {
                if v4 != (self.protocol == protocol::ICMP) {
                    return Err(Reason::Malformed);
                }
                header = 8;
                bytes.icmp(self)?;
                // Nothing that an error quotes and no neighbour discovery (RFC 6980) needs more than one packet.
                if !whole && !matches!(self.kind, Kind::Ip) {
                    return Err(Reason::Fragment);
                }
                if matches!(self.kind, Kind::IcmpError) {
                    return Ok(());
                }
            }
            _ => {}
        }
        self.payload = (at + header) as u16;
        self.fill_key();
        Ok(())
    }

    /// The key of what the packet says of itself, not yet canonical.
    #[inline(always)]
    fn fill_key(&mut self) {
        self.key.a = self.source;
        self.key.b = self.destination;
        self.key.port_a = self.source_port.to_be_bytes();
        self.key.port_b = self.destination_port.to_be_bytes();
        self.key.protocol = self.protocol;
    }

    /// Gives a later piece what the first one says of both.
    #[inline(always)]
    pub(crate) fn complete(&mut self, first: &Fragment) {
        self.kind = Kind::Ip;
        self.protocol = first.protocol;
        self.source_port = first.source_port;
        self.destination_port = first.destination_port;
        self.icmp_type = first.icmp_type;
        self.icmp_reply = first.icmp_reply != 0;
        self.fill_key();
        self.sender = self.key.canonical() as u8;
    }

    #[inline(always)]
    fn ports<const N: usize>(&mut self, h: &Chunk<N>) {
        self.source_port = h.number::<0>();
        self.destination_port = h.number::<2>();
    }

    #[inline(always)]
    fn dhcp(&mut self) {
        // 255.255.255.255, or a group of IPv6: a group of IPv4 is nobody's DHCP.
        let all = self.destination.is_group()
            && (!self.destination.is_v4() || self.destination.low() as u32 == u32::MAX);
        self.kind = match (self.source_port, self.destination_port) {
            (68, 67) | (546, 547) if all => Kind::DhcpClient,
            (67, 68) | (547, 546) => Kind::DhcpServer,
            _ => return,
        };
        self.claim = self.source;
    }
}

/// `N` bytes that must lie before the packet's end.
#[inline(always)]
fn load_within<const N: usize, B: Bytes>(bytes: &B, at: usize, end: usize) -> Result<Chunk<N>, Reason> {
    if at + N > end {
        return Err(Reason::Malformed);
    }
    bytes.load::<N>(at).ok_or(Reason::Malformed)
}
