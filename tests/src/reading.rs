//! A second opinion on what a frame says, written from the RFCs and from the list of stated rules alone: it reads bytes one by one,
//! shares nothing with `hydra_common::packet`, and collects everything that is wrong with a frame, where the parser stops at the first.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hydra_common::verdict::Reason;

use crate::oracle::What;
use crate::packets::{flags, protocol};

/// How many tags, options and extension headers are walked; ARCHITECTURE, "Stated rules".
const TAGS: usize = 2;
const OPTIONS: usize = 10;
const HEADERS: usize = 6;
const ND_OPTIONS: usize = 3;

/// What a frame says.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Ethernet destination.
    pub to: Vec<u8>,
    /// Ethernet source.
    pub from: Vec<u8>,
    /// Everything that is wrong with it.
    pub faults: BTreeSet<Reason>,
    /// What it says, as far as that can be read.
    pub said: Option<Said>,
}

/// A message.
#[allow(missing_docs, reason = "from whom, to whom; the rest is said at each")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// ARP by whoever says that this address is his.
    Arp(Ipv4Addr),
    /// Neighbour discovery: who says that which address is his, and to whom.
    Neighbour { from: Ipv6Addr, claim: Ipv6Addr, to: Ipv6Addr },
    /// A report of multicast groups.
    Listener(Ipv6Addr),
    /// A DHCP client's question.
    Dhcp(IpAddr),
    /// A packet for the policy; `error` for an ICMP error.
    Packet { from: IpAddr, to: IpAddr, what: What, error: bool, flags: u8 },
}

/// Reads a frame that a container has sent.
pub fn read(frame: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let Some(head) = frame.get(..14) else {
        reading.faults.insert(Reason::Malformed);
        return reading;
    };
    reading.to = head[..6].to_vec();
    reading.from = head[6..12].to_vec();
    let mut at = 12;
    let mut tags = 0;
    let mut kind = number(frame, at);
    while tags < TAGS && matches!(kind, Some(0x8100 | 0x88a8)) {
        reading.faults.insert(Reason::Vlan);
        tags += 1;
        at += 4;
        kind = number(frame, at);
    }
    let Some(kind) = kind else {
        reading.faults.insert(Reason::Malformed);
        return reading;
    };
    let payload = &frame[at + 2..];
    let said = match kind {
        0x0800 => v4(payload, &reading.from, &mut reading.faults),
        0x86dd => v6(payload, &reading.from, &mut reading.faults),
        0x0806 => arp(payload, &reading.from, &mut reading.faults),
        _ => Err(Reason::EtherType),
    };
    match said {
        Ok(said) => reading.said = Some(said),
        Err(reason) => drop(reading.faults.insert(reason)),
    }
    if tags > 0 {
        // Whatever is behind the tag: it is not looked at for its own sake, but for what this host might read and hydra does not.
        let told =
            [Reason::Vlan, Reason::Malformed, Reason::HeaderChain, Reason::SourceRoute, Reason::Fragment];
        reading.faults.retain(|r| told.contains(r));
        if kind_is_whole(frame, tags) {
            reading.faults.remove(&Reason::Malformed);
        }
        reading.said = None;
    }
    reading
}

fn kind_is_whole(frame: &[u8], tags: usize) -> bool {
    frame.len() >= 14 + 4 * tags
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

type Faults = BTreeSet<Reason>;

/// RFC 826.
fn arp(m: &[u8], mac: &[u8], faults: &mut Faults) -> Result<Said, Reason> {
    let m = m.get(..28).ok_or(Reason::Malformed)?;
    let right = number(m, 0) == Some(1) && number(m, 2) == Some(0x0800) && m[4] == 6 && m[5] == 4;
    if !right || !matches!(number(m, 6), Some(1 | 2)) {
        return Err(Reason::Malformed);
    }
    if m[8..14] != *mac {
        faults.insert(Reason::SpoofedArp);
    }
    Ok(Said::Arp(Ipv4Addr::new(m[14], m[15], m[16], m[17])))
}

/// RFC 791.
fn v4(p: &[u8], mac: &[u8], faults: &mut Faults) -> Result<Said, Reason> {
    if p.len() < 20 || p[0] >> 4 != 4 {
        return Err(Reason::Malformed);
    }
    let (header, total) = (usize::from(p[0] & 15) * 4, usize::from(number(p, 2).unwrap_or(0)));
    if header < 20 || total < header || total > p.len() {
        return Err(Reason::Malformed);
    }
    let p = &p[..total];
    let mut at = 20;
    let mut walked = 0;
    while at < header {
        if walked == OPTIONS {
            return Err(Reason::HeaderChain);
        }
        walked += 1;
        match p[at] {
            0 => break,
            1 => at += 1,
            131 | 137 => return Err(Reason::SourceRoute),
            _ => {
                let length = usize::from(*p.get(at + 1).ok_or(Reason::Malformed)?);
                if length < 2 || at + length > header {
                    return Err(Reason::Malformed);
                }
                at += length;
            }
        }
    }
    let offset = usize::from(p[6] & 0x1f) * 256 + usize::from(p[7]);
    let first = piece(p[6] & 0x20 != 0, offset * 8, total - header)?;
    let address = |at: usize| Ipv4Addr::new(p[at], p[at + 1], p[at + 2], p[at + 3]);
    let (from, to) = (address(12).into(), address(16).into());
    payload(&Carried { number: p[9], bytes: &p[header..], from, to, hops: p[8], mac, first }, faults)
}

/// RFC 8200.
fn v6(p: &[u8], mac: &[u8], faults: &mut Faults) -> Result<Said, Reason> {
    if p.len() < 40 || p[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let length = usize::from(number(p, 4).unwrap_or(0));
    let behind = p[40..].len() > length;
    let rest = p[40..].get(..length).ok_or(Reason::Malformed)?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&p[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let (from, to) = (address(8), address(24));
    if from.to_ipv4_mapped().is_some() || to.to_ipv4_mapped().is_some() {
        return Err(Reason::Malformed);
    }
    let mut next = p[6];
    let mut rest = rest;
    let mut walked = 0;
    let (mut first, mut pieces) = (false, 0);
    loop {
        let extension = matches!(
            next,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::AUTH
                | protocol::DESTINATION
        );
        if !extension {
            break;
        }
        if walked == HEADERS || (next == protocol::HOP_BY_HOP && walked > 0) {
            return Err(Reason::HeaderChain);
        }
        if next == protocol::FRAGMENT {
            walked += 1;
            pieces += 1;
            if pieces > 1 {
                return Err(Reason::Fragment);
            }
            let header = rest.get(..8).ok_or(Reason::Malformed)?;
            next = header[0];
            rest = &rest[8..];
            let field = u16::from_be_bytes([header[2], header[3]]);
            first = piece(field & 1 != 0, usize::from(field & 0xfff8), rest.len())?;
            continue;
        }
        // All headers are in the first piece.
        let cut = if first { Reason::Fragment } else { Reason::Malformed };
        // What follows the packet's end in the frame is padding, and no part of a header; which of its two faults is told is all one.
        if next == protocol::ROUTING && rest.len() < 4 && behind {
            faults.insert(Reason::SourceRoute);
        }
        let whole = match next {
            protocol::AUTH => (usize::from(*rest.get(1).ok_or(cut)?) + 2) * 4,
            _ => (usize::from(*rest.get(1).ok_or(cut)?) + 1) * 8,
        };
        if next == protocol::ROUTING {
            let (kind, left) = (rest.get(2).ok_or(cut)?, rest.get(3).ok_or(cut)?);
            if *kind == 0 || *left != 0 {
                if rest.len() < whole {
                    faults.insert(Reason::Malformed);
                }
                return Err(Reason::SourceRoute);
            }
        }
        next = rest[0];
        rest = rest.get(whole..).ok_or(cut)?;
        walked += 1;
    }
    payload(
        &Carried { number: next, bytes: rest, from: from.into(), to: to.into(), hops: p[7], mac, first },
        faults,
    )
}

/// What part of a datagram follows: `true` for the first of several. Nobody has sent the first piece before a later one here.
fn piece(more: bool, offset: usize, length: usize) -> Result<bool, Reason> {
    if !more && offset == 0 {
        return Ok(false);
    }
    let whole = length > 0 && offset + length <= 65_535 && (!more || length.is_multiple_of(8));
    if whole && offset == 0 { Ok(true) } else { Err(Reason::Fragment) }
}

/// What an IP packet carries, and what its header said.
struct Carried<'a> {
    number: u8,
    bytes: &'a [u8],
    from: IpAddr,
    to: IpAddr,
    hops: u8,
    mac: &'a [u8],
    first: bool,
}

/// A first piece has all headers (RFC 7112), and is of nothing that one packet is enough for (RFC 6980).
fn payload(c: &Carried<'_>, faults: &mut Faults) -> Result<Said, Reason> {
    let said = whole(c, faults);
    let judged = matches!(said, Ok(Said::Packet { error: false, .. }));
    if c.first && !judged {
        faults.insert(Reason::Fragment);
        faults.remove(&Reason::Malformed);
        return if said == Err(Reason::Malformed) { Err(Reason::Fragment) } else { said };
    }
    said
}

fn whole(c: &Carried<'_>, faults: &mut Faults) -> Result<Said, Reason> {
    let b = c.bytes;
    let port = |at| number(b, at).ok_or(Reason::Malformed);
    let packet = |what| Said::Packet { from: c.from, to: c.to, what, error: false, flags: 0 };
    match c.number {
        protocol::TCP => {
            let header = usize::from(*b.get(12).ok_or(Reason::Malformed)? >> 4) * 4;
            let bits = *b.get(13).ok_or(Reason::Malformed)?;
            if header < 20 || header > b.len() || !sensible(bits) {
                return Err(Reason::Malformed);
            }
            Ok(Said::Packet { from: c.from, to: c.to, what: What::Tcp(port(2)?), error: false, flags: bits })
        }
        protocol::UDP => {
            let length = usize::from(number(b, 4).ok_or(Reason::Malformed)?);
            if b.len() < 8 || (length != 0 && (length < 8 || (!c.first && length > b.len()))) {
                return Err(Reason::Malformed);
            }
            let everybody = match c.to {
                IpAddr::V4(ip) => ip == Ipv4Addr::BROADCAST,
                IpAddr::V6(ip) => ip.is_multicast(),
            };
            let client = matches!((port(0)?, port(2)?), (68, 67) | (546, 547));
            Ok(if client && everybody && !c.first { Said::Dhcp(c.from) } else { packet(What::Udp(port(2)?)) })
        }
        protocol::SCTP if b.len() < 16 => Err(Reason::Malformed),
        protocol::SCTP => Ok(packet(What::Sctp(port(2)?))),
        protocol::ICMP | protocol::ICMPV6 if (c.number == protocol::ICMPV6) != c.from.is_ipv6() => {
            Err(Reason::Malformed)
        }
        protocol::ICMP | protocol::ICMPV6 if b.len() < 8 => Err(Reason::Malformed),
        protocol::ICMP => match b[0] {
            3 | 4 | 11 | 12 => Ok(error(c, What::Icmp(b[0]), faults)),
            5 | 9 => Err(Reason::RouterMessage),
            kind => Ok(packet(What::Icmp(kind))),
        },
        protocol::ICMPV6 => match (b[0], c.from, c.to) {
            (1..=4, _, _) => Ok(error(c, What::Icmpv6(b[0]), faults)),
            (134 | 137, _, _) => Err(Reason::RouterMessage),
            (133 | 135 | 136, IpAddr::V6(from), IpAddr::V6(to)) => neighbour(c, from, to, faults),
            (131 | 132 | 143, IpAddr::V6(from), IpAddr::V6(to)) if c.hops == 1 && to.is_multicast() => {
                Ok(Said::Listener(from))
            }
            (kind, _, _) => Ok(packet(What::Icmpv6(kind))),
        },
        number => Ok(packet(What::Other(number))),
    }
}

/// Whether an end sends these TCP flags together (RFC 9293, 3.10): one of SYN, RST and ACK says what it is for.
fn sensible(bits: u8) -> bool {
    const URG: u8 = 32;
    let has = |flag| bits & flag != 0;
    let (fin, syn, rst, ack) = (has(flags::FIN), has(flags::SYN), has(flags::RST), has(flags::ACK));
    match (syn, rst) {
        (true, true) => false,
        (true, false) => !fin && (!ack || !has(URG)),
        (false, true) => !fin && !has(URG),
        (false, false) => ack,
    }
}

/// Without a flow that it could be about, every error is denied: for what it quotes, or for quoting badly.
fn error(c: &Carried<'_>, what: What, faults: &mut Faults) -> Said {
    let quoted = &c.bytes[8..];
    let version = if c.from.is_ipv6() { 6 } else { 4 };
    let header = if c.from.is_ipv6() { 40 } else { 20 };
    let whole = quoted.len() >= header + 8 && quoted[0] >> 4 == version;
    faults.insert(Reason::UnmatchedError);
    // Extension headers of what is quoted may be cut short as well.
    let chained = version == 6 && quoted.get(6).is_some_and(|next| matches!(next, 0 | 43 | 44 | 60));
    if !whole || chained || (version == 4 && quoted[0] & 15 != 5) {
        faults.insert(Reason::Malformed);
    }
    Said::Packet { from: c.from, to: c.to, what, error: true, flags: 0 }
}

/// RFC 4861, 4.1, 4.3, 4.4 and 4.6.
fn neighbour(c: &Carried<'_>, from: Ipv6Addr, to: Ipv6Addr, faults: &mut Faults) -> Result<Said, Reason> {
    let b = c.bytes;
    if c.hops != 255 {
        return Err(Reason::SpoofedNeighbour);
    }
    let mut at = if b[0] == 133 { 8 } else { 24 };
    let mut claim = from;
    if b[0] != 133 {
        let target: [u8; 16] = b.get(8..24).and_then(|t| t.try_into().ok()).ok_or(Reason::Malformed)?;
        if b[0] == 136 {
            claim = target.into();
        }
    }
    let mut walked = 0;
    while at < b.len() {
        if walked == ND_OPTIONS {
            return Err(Reason::HeaderChain);
        }
        walked += 1;
        let option = b.get(at..at + 8).ok_or(Reason::Malformed)?;
        if option[1] == 0 {
            return Err(Reason::Malformed);
        }
        if option[0] <= 2 && option[2..8] != *c.mac {
            faults.insert(Reason::SpoofedNeighbour);
        }
        at += usize::from(option[1]) * 8;
    }
    Ok(Said::Neighbour { from, claim, to })
}
