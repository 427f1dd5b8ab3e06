//! How far a conversation has come, and how long it may be silent.
//!
//! Of TCP each side's [`Flow::flags`] hold what it has sent that belongs to the connection, and [`Flow::next`] and [`Flow::acked`]
//! how far it is (RFC 9293, 3.3.1). What does not belong changes nothing here and passes to the other end, which judges by itself:
//! a reset that one end would obey and hydra would drop leaves a connection that is dead at one side.

use crate::flow::{Far, Flow, Side};
use crate::packet::{Packet, Piece};

/// TCP flags (RFC 9293, 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens.
    pub const SYN: u8 = 2;
    /// Ends at once.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
    /// The urgent pointer counts.
    pub const URG: u8 = 32;

    /// Whether a well-behaved end sends these flags together (RFC 9293, 3.10; those that Linux's conntrack takes). PSH and the bits
    /// of RFC 3168 go with all of them.
    #[inline(always)]
    pub const fn sensible(flags: u8) -> bool {
        matches!(flags & (FIN | SYN | RST), SYN | RST) && flags & URG == 0
            || flags & (SYN | RST | ACK) == ACK
            || flags & (FIN | SYN | RST | ACK) == SYN
    }
}

/// SCTP (RFC 9260, 3.2).
pub mod sctp {
    /// The chunk that opens an association; alone in its packet (RFC 9260, 6.10).
    pub const INIT: u8 = 1;
}

/// IP protocol numbers (IANA) that hydra knows more of than the number.
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// RFC 9260.
    pub const SCTP: u8 = 132;
}

/// A conversation's state, for operators and for the time that it may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Only the opener has sent.
    New,
    /// Both have sent.
    Established,
    /// TCP: an end has sent FIN or RST.
    Closing,
}

impl State {
    /// Of a flow. TCP is established when the opener has acknowledged what the other end answered to its SYN: the SYNs and answers
    /// of a connection that never comes to be keep no entry alive. Of one to this host only the opener may be seen.
    #[inline(always)]
    pub fn of(flow: &Flow, protocol: u8) -> Self {
        let (a, b) = (flow.flags[0], flow.flags[1]);
        if protocol == protocol::TCP {
            let opener = if flow.opener == Side::A as u8 { a } else { b };
            let alone = half(flow) && opener & tcp::ACK != 0;
            return if (a | b) & (tcp::FIN | tcp::RST) != 0 {
                Self::Closing
            } else if a & b & tcp::ACK != 0 || alone {
                Self::Established
            } else {
                Self::New
            };
        }
        if a != 0 && b != 0 { Self::Established } else { Self::New }
    }
}

const SECOND: u64 = 1_000_000_000;

/// How long a conversation may be silent before its entry counts no more, in nanoseconds. An entry that counts no more lets no
/// reply pass; the opener's next packet is judged as a first one. TCP's established time is that of Linux's conntrack
/// (`nf_conntrack_tcp_timeout_established`, five days): shorter ones cut idle database connections.
#[inline(always)]
pub const fn timeout(protocol: u8, state: State) -> u64 {
    match (protocol, state) {
        (protocol::TCP | protocol::SCTP, State::Established) => 432_000 * SECOND,
        (protocol::TCP, State::Closing) => 120 * SECOND,
        (protocol::TCP | protocol::SCTP | protocol::UDP, State::New) => 60 * SECOND,
        (protocol::UDP, _) => 180 * SECOND,
        (protocol::ICMP | protocol::ICMPV6, _) => 30 * SECOND,
        _ => 600 * SECOND,
    }
}

/// How long a flow whose address the kernel translates may be silent: shorter than the kernel remembers the translation. After that
/// an answer would reach whatever has the port of this host. Linux 6.18: 30 s (`nf_conntrack_udp_timeout`), 210 s
/// (`nf_conntrack_sctp_timeout_established`). TCP's own is left: what does not open is refused by whom it was not meant for.
#[inline(always)]
const fn translated(protocol: u8, state: State) -> u64 {
    match (protocol, state) {
        (protocol::TCP, _) => timeout(protocol, state),
        (protocol::SCTP, State::Established) => 180 * SECOND,
        _ => 25 * SECOND,
    }
}

/// How long a connection from outside is kept whose answers no hook sees: nobody can tell it from two forged packets. What comes after that is
/// judged by the policy alone.
const UNANSWERED: u64 = 300 * SECOND;

#[inline(always)]
fn unanswered(flow: &Flow, protocol: u8) -> bool {
    let (opener, other) = if flow.opener == Side::A as u8 { (0, 1) } else { (1, 0) };
    protocol == protocol::TCP
        && flow.marks & Flow::PUBLISHED != 0
        && flow.flags[other] == 0
        && flow.ends[opener] == Far::Outside as u8
}

/// No flow may be silent for less than this: of most packets' flows nothing else needs to be known.
const SHORTEST: u64 = 25 * SECOND;

const _: () = {
    let mut protocol = 0;
    while protocol < u8::MAX {
        let mut n = 0;
        while n < 3 {
            let state = [State::New, State::Established, State::Closing][n];
            assert!(timeout(protocol, state) >= SHORTEST && translated(protocol, state) >= SHORTEST);
            n += 1;
        }
        protocol += 1;
    }
    assert!(UNANSWERED >= SHORTEST);
};

/// Whether a flow has been silent for too long. `now` in nanoseconds of the monotonic clock.
#[inline(always)]
pub fn expired(flow: &Flow, protocol: u8, now: u64) -> bool {
    silent(flow, now) && ended(flow, protocol, now)
}

/// Whether a flow has been silent for so long that it may be for too long.
#[inline(always)]
pub fn silent(flow: &Flow, now: u64) -> bool {
    now.saturating_sub(flow.seen) > SHORTEST
}

/// [`expired`] of a flow that is [`silent`].
#[inline(always)]
pub fn ended(flow: &Flow, protocol: u8, now: u64) -> bool {
    let state = State::of(flow, protocol);
    let limit = if unanswered(flow, protocol) {
        timeout(protocol, state).min(UNANSWERED)
    } else if flow.marks & (Flow::MASQUERADED | Flow::PUBLISHED) != 0 {
        translated(protocol, state)
    } else {
        timeout(protocol, state)
    };
    now.saturating_sub(flow.seen) > limit
}

/// Whether a flow's answers may come another way: its opener called this host, which may lead him to a container.
#[inline(always)]
const fn half(flow: &Flow) -> bool {
    flow.marks & (Flow::PUBLISHED | Flow::TO_HOST) != 0
}

/// What is kept of one side: its part of [`Flow::flags`], [`Flow::next`] and [`Flow::acked`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// What it has sent.
    pub flags: u8,
    /// TCP: the sequence number behind that.
    pub next: u32,
    /// TCP: what it has acknowledged.
    pub acked: u32,
    /// TCP: the number of the opener's last SYN, whoever the sender is.
    pub syn: u32,
}

/// Of [`Flow::flags`] of the opener of a TCP connection or an SCTP association: it has sent something else since its last SYN or INIT.
/// The bit is that of PSH, which is not kept.
pub const MORE: u8 = 8;

/// Whether a SYN or an INIT of the opener is its last one, sent again: the same number, and nothing else since. Whoever acknowledges, or resets,
/// has had an answer, also where that went another way than the entry's.
#[inline(always)]
pub fn repeats(flow: &Flow, packet: &Packet) -> bool {
    flow.flags[packet.side().index()] & MORE == 0 && flow.syn == packet.sequence
}

/// Bytes beyond the expected ones that may still belong: what a window without scaling holds (RFC 9293, 3.1). Between the frames
/// that hydra sees some may be lost.
const NEAR: u32 = 65_535;

/// Where the opener stands after the packet that makes an entry.
#[inline(always)]
pub fn begin(packet: &Packet) -> Stand {
    if packet.protocol != protocol::TCP {
        return Stand { flags: 1 | more(packet), ..Stand::default() };
    }
    // Without a SYN it is a connection from before: what it says of itself is all there is.
    let flags = packet.tcp_flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK);
    let more = if flags == tcp::SYN { 0 } else { MORE };
    Stand { flags: flags | more, next: end(packet), acked: packet.acknowledgment, syn: packet.sequence }
}

/// Of SCTP, whose verification tag is not kept: whoever has opened an association has answered with more than an INIT.
#[inline(always)]
const fn more(packet: &Packet) -> u8 {
    if packet.protocol == protocol::SCTP && packet.chunk != sctp::INIT { MORE } else { 0 }
}

/// Where a packet's sender stands after it.
#[inline(always)]
pub fn follow(flow: &Flow, packet: &Packet) -> Stand {
    let side = packet.side().index();
    let stand =
        Stand { flags: flow.flags[side], next: flow.next[side], acked: flow.acked[side], syn: flow.syn };
    if packet.protocol != protocol::TCP {
        let opener = flow.opener == packet.sender;
        let kept = matches!(packet.piece, Piece::Later);
        let more = if kept { stand.flags & MORE } else { more(packet) };
        return Stand { flags: if opener { 1 | more } else { 1 }, ..stand };
    }
    // A later piece has no header of its own.
    if matches!(packet.piece, Piece::Later) {
        return stand;
    }
    let mut stand = match packet.tcp_flags & (tcp::SYN | tcp::RST) {
        0 => acknowledged(flow, packet, stand),
        tcp::SYN => opening(flow, packet, stand),
        _ => reset(flow, packet, stand),
    };
    if flow.opener == packet.sender && packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) != tcp::SYN {
        stand.flags |= MORE;
    }
    stand
}

/// [`follow`] of what most packets are: the next of an established conversation. Gives [`Stand::next`] and [`Stand::acked`], the rest stays;
/// `None`: it is not that.
#[inline(always)]
pub fn along(flow: &Flow, packet: &Packet) -> Option<(u32, u32)> {
    let side = packet.side();
    let (own, other) = (flow.flags[side.index()], flow.flags[side.other().index()]);
    let (next, acked) = (flow.next[side.index()], flow.acked[side.index()]);
    let opener = flow.opener == packet.sender;
    if packet.protocol == protocol::UDP {
        return if own == 1 { Some((next, acked)) } else { None };
    }
    // What has to be there: both have acknowledged, and the opener has sent more than a SYN.
    let all = if opener { tcp::ACK | MORE } else { tcp::ACK };
    let awaited = flow.acked[side.other().index()];
    if packet.protocol != protocol::TCP
        || packet.tcp_flags & (tcp::FIN | tcp::SYN | tcp::RST) != 0
        || matches!(packet.piece, Piece::Later)
        || !own & all | !other & tcp::ACK != 0
        || packet.sequence != next
        || after(awaited, next)
    {
        return None;
    }
    let acked = if after(packet.acknowledgment, acked) { packet.acknowledgment } else { acked };
    Some((end(packet), acked))
}

/// Whether the opener of an established connection has sent another SYN, and nothing since. The other end may know nothing of the
/// connection any more and answer it, or challenge it (RFC 9293, 3.10.7.4), and then the old one goes on. Until the one or the other
/// acts on it, each stands where it did.
#[inline(always)]
fn reopening(flow: &Flow) -> bool {
    flow.flags[Side::from_row(flow.opener).index()] & (tcp::ACK | MORE) == tcp::ACK
}

/// SYN: of the opener as long as nothing is established, with an acknowledgment of the other end as an answer to it.
#[inline(always)]
fn opening(flow: &Flow, packet: &Packet, stand: Stand) -> Stand {
    let opener = flow.opener == packet.sender;
    let answer = packet.tcp_flags & tcp::ACK != 0;
    let other = flow.flags[packet.side().other().index()];
    let called = other & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let own = opener && !answer;
    let new = Stand {
        flags: packet.tcp_flags & (tcp::SYN | tcp::ACK),
        next: end(packet),
        acked: packet.acknowledgment,
        syn: if own { packet.sequence } else { stand.syn },
    };
    if own && stand.flags & tcp::ACK != 0 {
        return Stand { flags: stand.flags & !MORE, syn: packet.sequence, ..stand };
    }
    let taken = reopening(flow) && follows(flow.syn, packet.acknowledgment);
    if own || (!opener && answer && (called || taken)) { new } else { stand }
}

/// Whether a number is behind a SYN of that one, and the data that it may bring along (RFC 7413).
#[inline(always)]
const fn follows(syn: u32, number: u32) -> bool {
    number.wrapping_sub(syn).wrapping_sub(1) <= NEAR
}

/// RST (RFC 9293, 3.10.7.3; RFC 5961, 3.2): exactly the number that the other end waits for, or has still to see; in answer to a
/// SYN by what it acknowledges.
#[inline(always)]
fn reset(flow: &Flow, packet: &Packet, stand: Stand) -> Stand {
    let other = packet.side().other().index();
    let told = flow.flags[other] & tcp::ACK != 0;
    let belongs = if stand.flags == 0 && !told {
        packet.tcp_flags & tcp::ACK != 0 && packet.acknowledgment == flow.next[other]
    } else {
        (stand.flags != 0 && packet.sequence == stand.next) || (told && packet.sequence == flow.acked[other])
    };
    Stand { flags: if belongs { stand.flags | tcp::RST } else { stand.flags }, ..stand }
}

/// Data, acknowledgment, FIN.
#[inline(always)]
fn acknowledged(flow: &Flow, packet: &Packet, stand: Stand) -> Stand {
    let other = packet.side().other().index();
    let told = flow.flags[other] & tcp::ACK != 0;
    let end = end(packet);
    if stand.flags == 0 {
        // Before its answer to a SYN the other end has nothing to say; of a connection from before it is believed.
        if flow.flags[other] & tcp::SYN != 0 {
            return stand;
        }
        return Stand {
            flags: packet.tcp_flags & (tcp::FIN | tcp::ACK),
            next: end,
            acked: packet.acknowledgment,
            ..stand
        };
    }
    if flow.opener == packet.sender && reopening(flow) && follows(stand.syn, packet.sequence) {
        // The other end has answered the new SYN.
        let flags = tcp::SYN | (packet.tcp_flags & (tcp::FIN | tcp::ACK));
        return Stand { flags, next: end, acked: packet.acknowledgment, ..stand };
    }
    let mut expected = stand.next;
    if told && after(flow.acked[other], expected) {
        expected = flow.acked[other];
    }
    let begins = packet.sequence.wrapping_sub(expected) <= NEAR;
    let covers = expected.wrapping_sub(packet.sequence) <= end.wrapping_sub(packet.sequence);
    if !begins && !covers {
        return stand;
    }
    let first = stand.flags & tcp::ACK == 0;
    if first && !half(flow) && (!told || after(packet.acknowledgment, flow.next[other])) {
        return stand;
    }
    Stand {
        flags: stand.flags | (packet.tcp_flags & (tcp::FIN | tcp::ACK)),
        next: if after(end, stand.next) { end } else { stand.next },
        acked: if first || after(packet.acknowledgment, stand.acked) {
            packet.acknowledgment
        } else {
            stand.acked
        },
        ..stand
    }
}

/// The sequence number behind a segment: SYN and FIN count as one byte each (RFC 9293, 3.4).
#[inline(always)]
fn end(packet: &Packet) -> u32 {
    let flags = packet.tcp_flags;
    let ends = u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
    packet.sequence.wrapping_add(packet.end.wrapping_sub(u32::from(packet.payload))).wrapping_add(ends)
}

/// Whether one sequence number is behind another (RFC 9293, 3.4).
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers that lie close to each other, also about the place where they begin anew.
    fn number() -> impl Strategy<Value = u32> {
        (prop::sample::select(&[0, 1 << 31, u32::MAX - 1][..]), 0u32..4).prop_map(|(a, b)| a.wrapping_add(b))
    }

    fn flags() -> impl Strategy<Value = u8> {
        prop_oneof![3 => Just(tcp::SYN | tcp::ACK | MORE), 1 => Just(1), 2 => 0u8..32]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50_000))]
        #[test]
        fn who_goes_along_stands_where_following_leads(
            (own, other, opener, sender) in (flags(), flags(), 0u8..2, 0u8..2),
            (next, awaited, acked, told) in (number(), number(), number(), number()),
            (sequence, acknowledgment, length) in (number(), number(), 0u32..3),
            sent in prop_oneof![3 => Just(tcp::ACK), 1 => 0u8..64],
            protocol in prop::sample::select(&[protocol::TCP, protocol::TCP, protocol::UDP, protocol::SCTP][..]),
            piece in prop::sample::select(&[Piece::Whole, Piece::Whole, Piece::First, Piece::Later][..]),
        ) {
            let packet = Packet {
                sender,
                protocol,
                piece,
                tcp_flags: if protocol == protocol::TCP { sent } else { 0 },
                sequence,
                acknowledgment,
                payload: 54,
                end: 54 + length,
                ..Packet::default()
            };
            let (a, b) = (packet.side().index(), packet.side().other().index());
            let mut flow = Flow { opener, ..Flow::default() };
            (flow.flags[a], flow.next[a], flow.acked[a]) = (own, next, acked);
            (flow.flags[b], flow.next[b], flow.acked[b]) = (other, told, awaited);
            if let Some((next, acked)) = along(&flow, &packet) {
                let stand = Stand { flags: own, next, acked, syn: flow.syn };
                prop_assert_eq!(stand, follow(&flow, &packet));
            }
        }
    }

    #[test]
    fn the_next_of_an_established_connection_goes_along() {
        let flow = Flow { flags: [26, 18], next: [7, 9], acked: [9, 7], ..Flow::default() };
        let of = |packet: Packet| along(&flow, &Packet { protocol: protocol::TCP, payload: 54, ..packet });
        let ack =
            Packet { tcp_flags: tcp::ACK, sequence: 7, acknowledgment: 9, end: 54, ..Packet::default() };
        assert_eq!(of(ack), Some((7, 9)));
        assert_eq!(of(Packet { end: 64, acknowledgment: 12, ..ack }), Some((17, 12)));
        assert_eq!(of(Packet { sender: 1, sequence: 9, acknowledgment: 7, end: 55, ..ack }), Some((10, 7)));
        assert_eq!(of(Packet { sequence: 8, ..ack }), None, "something is missing");
        for flags in [tcp::SYN, tcp::RST, tcp::FIN | tcp::ACK] {
            assert_eq!(of(Packet { tcp_flags: flags, ..ack }), None);
        }
    }
}
