//! Builds frames of every shape that the parser must understand or refuse: each layer is said as data, and bytes come out with
//! right lengths and checksums unless something else is asked for. etherparse reads them back in the tests below.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;

/// Numbers of IP protocols and IPv6 headers.
pub mod protocol {
    #![allow(missing_docs, reason = "the registry's names")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AUTH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod flags {
    #![allow(missing_docs, reason = "the names of RFC 9293, 3.1")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// (EtherType, TCI) of each VLAN tag, outermost first.
    pub tags: Vec<(u16, u16)>,
    /// What the payload is.
    pub ethertype: u16,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Around an IP packet.
    pub fn ip(source: [u8; 6], destination: [u8; 6], packet: &Packet) -> Self {
        let ethertype = if packet.source.is_ipv6() { 0x86dd } else { 0x0800 };
        Self { destination, source, tags: Vec::new(), ethertype, payload: packet.bytes() }
    }

    /// With one more tag, inside those that are there: 0x8100 is 802.1Q, 0x88a8 is 802.1ad.
    #[must_use]
    pub fn tag(mut self, ethertype: u16, vlan: u16) -> Self {
        self.tags.push((ethertype, vlan));
        self
    }

    /// As on the wire, without the FCS.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.destination, self.source].concat();
        for (ethertype, tci) in &self.tags {
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend(self.ethertype.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options: these bytes of options, padded to a multiple of 8.
    HopByHop(Vec<u8>),
    /// Destination options.
    Destination(Vec<u8>),
    /// A routing header of this type, with this many segments left.
    Routing(u8, u8),
    /// A fragment header: offset in units of 8 bytes, more to come, identification.
    Fragment(u16, bool, u32),
    /// An authentication header with this many 32-bit words of check value.
    Auth(u8),
    /// Any number, any bytes (the first will be overwritten with the next header's number).
    Raw(u8, Vec<u8>),
}

impl Extension {
    /// Its number.
    pub fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => protocol::HOP_BY_HOP,
            Self::Destination(_) => protocol::DESTINATION,
            Self::Routing(..) => protocol::ROUTING,
            Self::Fragment(..) => protocol::FRAGMENT,
            Self::Auth(_) => protocol::AUTH,
            Self::Raw(number, _) => *number,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let padded = |options: &[u8]| {
            let mut bytes = vec![next, 0];
            bytes.extend(options);
            let missing = bytes.len().next_multiple_of(8) - bytes.len();
            match missing {
                0 => {}
                1 => bytes.push(0),
                n => {
                    bytes.extend([1, (n - 2) as u8]);
                    bytes.resize(bytes.len() + n - 2, 0);
                }
            }
            bytes[1] = (bytes.len() / 8 - 1) as u8;
            bytes
        };
        match self {
            Self::HopByHop(options) | Self::Destination(options) => padded(options),
            Self::Routing(kind, left) => {
                let mut bytes = vec![next, 2 * left, *kind, *left, 0, 0, 0, 0];
                bytes.resize(8 + 16 * usize::from(*left), 0);
                bytes
            }
            Self::Fragment(offset, more, id) => {
                let field = (offset << 3) | u16::from(*more);
                [&[next, 0][..], &field.to_be_bytes(), &id.to_be_bytes()].concat()
            }
            Self::Auth(words) => {
                let mut bytes = vec![next, words + 1];
                bytes.resize(12 + 4 * usize::from(*words), 0);
                bytes
            }
            Self::Raw(_, bytes) => {
                let mut bytes = bytes.clone();
                if let Some(first) = bytes.first_mut() {
                    *first = next;
                }
                bytes
            }
        }
    }
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP: source port, destination port, flags, data.
    Tcp(u16, u16, u8, Vec<u8>),
    /// UDP: source port, destination port, data.
    Udp(u16, u16, Vec<u8>),
    /// SCTP with one chunk of this type: source port, destination port, chunk type.
    Sctp(u16, u16, u8),
    /// ICMP or ICMPv6, by the packet's family: type, code, the four bytes after the checksum, data.
    Icmp(u8, u8, [u8; 4], Vec<u8>),
    /// Any protocol by number, any bytes.
    Raw(u8, Vec<u8>),
}

/// An IP packet of either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 options; padded to a multiple of 4.
    pub options: Vec<u8>,
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 fragment offset in units of 8 bytes, and whether more come.
    pub fragment: (u16, bool),
    /// IPv6 extension headers in their order.
    pub extensions: Vec<Extension>,
    /// TCP's sequence number, and what it acknowledges.
    pub numbers: [u32; 2],
    /// What it carries.
    pub transport: Transport,
}

impl Packet {
    /// A plain packet.
    pub fn new(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, transport: Transport) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            ttl: 64,
            options: Vec::new(),
            id: 1,
            fragment: (0, false),
            extensions: Vec::new(),
            numbers: [1, 0],
            transport,
        }
    }

    /// A TCP SYN.
    pub fn syn(source: IpAddr, destination: IpAddr, from: u16, to: u16) -> Self {
        Self::new(source, destination, Transport::Tcp(from, to, flags::SYN, Vec::new()))
    }

    /// A UDP datagram.
    pub fn udp(source: IpAddr, destination: IpAddr, from: u16, to: u16) -> Self {
        Self::new(source, destination, Transport::Udp(from, to, b"hydra".to_vec()))
    }

    /// An echo request.
    pub fn ping(source: IpAddr, destination: IpAddr, id: u16) -> Self {
        let kind = if source.is_ipv6() { 128 } else { 8 };
        let id = id.to_be_bytes();
        Self::new(source, destination, Transport::Icmp(kind, 0, [id[0], id[1], 0, 1], b"hydra".to_vec()))
    }

    /// The answer to an echo request.
    pub fn pong(source: IpAddr, destination: IpAddr, id: u16) -> Self {
        let kind = if source.is_ipv6() { 129 } else { 0 };
        let id = id.to_be_bytes();
        Self::new(source, destination, Transport::Icmp(kind, 0, [id[0], id[1], 0, 1], b"hydra".to_vec()))
    }

    /// An ICMP error about another packet, from whoever says so to that packet's sender.
    pub fn error(from: IpAddr, kind: u8, code: u8, about: &Self) -> Self {
        let mut quoted = about.bytes();
        // RFC 792 asks for the header and 8 bytes; RFC 4443 for as much as fits.
        quoted.truncate(if from.is_ipv6() { 1232 } else { 20 + about.options.len().next_multiple_of(4) + 8 });
        Self::new(from, about.source, Transport::Icmp(kind, code, [0; 4], quoted))
    }

    /// With this TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With these IPv4 options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With these numbers of TCP.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledged: u32) -> Self {
        self.numbers = [sequence, acknowledged];
        self
    }

    /// As an IPv4 fragment.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = (offset, more);
        self
    }

    /// The same in pieces of one datagram, cut at these offsets, multiples of 8 bytes.
    #[must_use]
    pub fn pieces(&self, id: u16, cuts: &[usize]) -> Vec<Self> {
        let (number, bytes) = self.transport_bytes();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let begins = [0].into_iter().chain(cuts.iter().copied());
        begins
            .zip(ends)
            .map(|(begin, end)| {
                let mut piece = self.clone();
                piece.transport = Transport::Raw(number, bytes[begin..end].to_vec());
                let (offset, more) = ((begin / 8) as u16, end < bytes.len());
                if self.source.is_ipv6() {
                    piece.extension(Extension::Fragment(offset, more, id.into()))
                } else {
                    Self { id, ..piece.fragment(offset, more) }
                }
            })
            .collect()
    }

    /// With one more IPv6 extension header after those that are there.
    #[must_use]
    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// From the IP header on.
    pub fn bytes(&self) -> Vec<u8> {
        let (number, transport) = self.transport_bytes();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination, number, &transport),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination, number, &transport),
            // Said by a test that wants it: the header is the source's, the other address its mapped form.
            (IpAddr::V6(source), IpAddr::V4(d)) => self.v6(source, d.to_ipv6_mapped(), number, &transport),
            (IpAddr::V4(s), IpAddr::V6(destination)) => {
                self.v6(s.to_ipv6_mapped(), destination, number, &transport)
            }
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, number: u8, transport: &[u8]) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let length = 20 + options.len();
        let total = (length + transport.len()) as u16;
        let (offset, more) = self.fragment;
        let fragment = offset | if more { 0x2000 } else { 0 };
        let mut bytes = vec![0x40 | (length / 4) as u8, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.ttl, number, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(options);
        let sum = Sum16BitWords::new().add_slice(&bytes).ones_complement().to_ne_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend(transport);
        bytes
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, number: u8, transport: &[u8]) -> Vec<u8> {
        let mut tail = transport.to_vec();
        let mut next = number;
        for extension in self.extensions.iter().rev() {
            tail = [extension.bytes(next), tail].concat();
            next = extension.number();
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((tail.len() as u16).to_be_bytes());
        bytes.extend([next, self.ttl]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(tail);
        bytes
    }

    fn transport_bytes(&self) -> (u8, Vec<u8>) {
        let v6 = self.source.is_ipv6();
        let (number, mut bytes, sum_at) = match &self.transport {
            Transport::Tcp(from, to, flags, data) => {
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                bytes.extend(self.numbers.map(u32::to_be_bytes).concat());
                bytes.extend([0x50, *flags, 0x10, 0, 0, 0, 0, 0]);
                bytes.extend(data);
                (protocol::TCP, bytes, Some(16))
            }
            Transport::Udp(from, to, data) => {
                let length = (8 + data.len()) as u16;
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
                bytes.extend(data);
                (protocol::UDP, bytes, Some(6))
            }
            Transport::Sctp(from, to, chunk) => {
                let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
                // Verification tag, checksum, one chunk: type, flags, length, initiate tag and 12 bytes.
                bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, *chunk, 0, 0, 20]);
                bytes.resize(bytes.len() + 16, 0);
                (protocol::SCTP, bytes, None)
            }
            Transport::Icmp(kind, code, rest, data) => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                bytes.extend(data);
                (if v6 { protocol::ICMPV6 } else { protocol::ICMP }, bytes, Some(2))
            }
            Transport::Raw(number, bytes) => (*number, bytes.clone(), None),
        };
        if let Some(at) = sum_at {
            let mut sum = Sum16BitWords::new().add_slice(&bytes);
            if number != protocol::ICMP {
                sum = match (self.source, self.destination) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => sum.add_4bytes(s.octets()).add_4bytes(d.octets()),
                    (s, d) => sum.add_16bytes(mapped(s).octets()).add_16bytes(mapped(d).octets()),
                };
                sum = sum.add_2bytes([0, number]).add_2bytes((bytes.len() as u16).to_be_bytes());
            }
            let sum = sum.to_ones_complement_with_no_zero().to_ne_bytes();
            bytes[at..at + 2].copy_from_slice(&sum);
        }
        (number, bytes)
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests;
