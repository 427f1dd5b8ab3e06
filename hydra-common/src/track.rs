//! How far a conversation has come, and how long it may be silent.

use crate::flow::Flow;

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
    /// Of a flow.
    #[inline(always)]
    pub fn of(flow: &Flow, protocol: u8) -> Self {
        let (a, b) = (flow.flags[0], flow.flags[1]);
        // What the called container answers may have another key: here the opener's word, who has seen an answer, counts.
        let answered =
            flow.marks & Flow::PUBLISHED != 0 && protocol == protocol::TCP && (a | b) & tcp::ACK != 0;
        if protocol == protocol::TCP && (a | b) & (tcp::FIN | tcp::RST) != 0 {
            Self::Closing
        } else if answered || (a != 0 && b != 0) {
            Self::Established
        } else {
            Self::New
        }
    }

    /// The word that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

const SECOND: u64 = 1_000_000_000;

/// How long a conversation may be silent before its entry counts no more, in nanoseconds. An entry that counts no more lets no
/// reply pass; the opener's next packet is judged as a first one. TCP's established time is that of Linux's conntrack
/// (`nf_conntrack_tcp_timeout_established`, five days): shorter ones cut idle database connections.
#[inline(always)]
pub fn timeout(protocol: u8, state: State) -> u64 {
    match (protocol, state) {
        (protocol::TCP | protocol::SCTP, State::Established) => 432_000 * SECOND,
        (protocol::TCP, State::Closing) => 120 * SECOND,
        (protocol::TCP | protocol::SCTP | protocol::UDP, State::New) => 60 * SECOND,
        (protocol::UDP, _) => 180 * SECOND,
        (protocol::ICMP | protocol::ICMPV6, _) => 30 * SECOND,
        _ => 600 * SECOND,
    }
}

/// Whether a flow has been silent for too long. `now` in nanoseconds of the monotonic clock.
#[inline(always)]
pub fn expired(flow: &Flow, protocol: u8, now: u64) -> bool {
    now.saturating_sub(flow.seen) > timeout(protocol, State::of(flow, protocol))
}

/// What a packet adds to its sender's [`Flow::flags`].
#[inline(always)]
pub const fn mark(protocol: u8, tcp_flags: u8) -> u8 {
    if protocol == protocol::TCP { tcp_flags } else { 1 }
}
