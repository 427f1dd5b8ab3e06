//! The commonest frames: no tag, IPv4 without options or IPv6 without extension headers, whole, TCP or UDP, and nothing odd about it.
//! Everything stands at a fixed place, so that nothing is walked. What is not like that is for [`Packet::parse`], which says the same
//! of these: the one test of every frame that any test makes is that both agree.

use super::{Bytes, ETHERNET, Kind, Packet, Piece};
use crate::address::{Address, Mac};
use crate::flow::FlowKey;
use crate::track::{protocol, tcp};

/// Where the transport header begins behind an IPv4 and an IPv6 header.
const V4: usize = ETHERNET + 20;
const V6: usize = ETHERNET + 40;
/// Fixed parts of the transport headers.
const TCP: usize = 20;
const UDP: usize = 8;

/// A frame whose first bytes can be read together.
pub trait Begin: Bytes {
    /// What [`Begin::front`] gives.
    type Front: Front;

    /// At least `n` bytes, where they lie in one piece.
    fn front(&self, n: usize) -> Option<Self::Front>;
}

/// A frame in memory.
impl<'a> Begin for &'a [u8] {
    type Front = &'a [u8];

    fn front(&self, n: usize) -> Option<&'a [u8]> {
        self.get(..n)
    }
}

/// The first bytes of a frame: numbers at fixed places, as the machine orders their bytes. A place behind the end reads as 0, where it
/// can be read at all.
pub trait Front {
    /// One byte.
    fn byte<const AT: usize>(&self) -> u8;
    /// Two.
    fn half<const AT: usize>(&self) -> u16;
    /// Four.
    fn word<const AT: usize>(&self) -> u32;
    /// Eight.
    fn long<const AT: usize>(&self) -> u64;
}

impl Front for &[u8] {
    fn byte<const AT: usize>(&self) -> u8 {
        u8::from_ne_bytes(some(self, AT))
    }

    fn half<const AT: usize>(&self) -> u16 {
        u16::from_ne_bytes(some(self, AT))
    }

    fn word<const AT: usize>(&self) -> u32 {
        u32::from_ne_bytes(some(self, AT))
    }

    fn long<const AT: usize>(&self) -> u64 {
        u64::from_ne_bytes(some(self, AT))
    }
}

fn some<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|some| some.try_into().ok()).unwrap_or([0; N])
}

impl Packet {
    /// Reads a frame of the commonest kind, over whatever was there; the claim, which such a packet has none of, is left as it is.
    /// `false`: it is none, and what was filled in counts for nothing.
    #[inline(always)]
    pub fn plain<B: Begin>(&mut self, bytes: &B) -> bool {
        let Some(front) = bytes.front(V4 + UDP) else { return false };
        if bytes.tagged() {
            return false;
        }
        self.destination_mac = Mac::words([front.half::<0>(), front.half::<2>(), front.half::<4>()]);
        self.source_mac = Mac::words([front.half::<6>(), front.half::<8>(), front.half::<10>()]);
        self.ethertype = u16::from_be(front.half::<12>());
        self.network = ETHERNET as u16;
        self.kind = Kind::Ip;
        self.icmp_type = 0;
        self.icmp_reply = false;
        self.chunk = 0;
        (self.piece, self.piece_id, self.piece_at, self.piece_end) = (Piece::Whole, 0, 0, 0);
        let room = bytes.length().saturating_sub(ETHERNET) as u32;
        let length = match self.ethertype {
            0x0800 => {
                // More fragments, or an offset.
                if front.byte::<14>() != 0x45 || u16::from_be(front.half::<20>()) & 0x3fff != 0 {
                    return false;
                }
                self.ttl = front.byte::<22>();
                self.protocol = front.byte::<23>();
                self.source = Address::v4_word(u32::from_be(front.word::<26>()));
                self.destination = Address::v4_word(u32::from_be(front.word::<30>()));
                u32::from(u16::from_be(front.half::<16>()))
            }
            0x86dd => {
                let Some(front) = bytes.front(V6 + UDP) else { return false };
                // 0 is a jumbogram.
                if front.byte::<14>() >> 4 != 6 || front.half::<18>() == 0 {
                    return false;
                }
                self.protocol = front.byte::<20>();
                self.ttl = front.byte::<21>();
                self.source = Address::words([front.long::<22>(), front.long::<30>()]);
                self.destination = Address::words([front.long::<38>(), front.long::<46>()]);
                if self.source.is_v4() || self.destination.is_v4() {
                    return false;
                }
                40 + u32::from(u16::from_be(front.half::<18>()))
            }
            _ => return false,
        };
        if length > room {
            return false;
        }
        self.end = ETHERNET as u32 + length;
        let understood = if self.ethertype == 0x0800 {
            self.plain_transport::<B, V4, { V4 + 2 }, { V4 + 4 }, { V4 + 8 }, { V4 + 12 }, { V4 + 13 }>(bytes)
        } else {
            self.plain_transport::<B, V6, { V6 + 2 }, { V6 + 4 }, { V6 + 8 }, { V6 + 12 }, { V6 + 13 }>(bytes)
        };
        if !understood {
            return false;
        }
        let (key, side) = FlowKey::of(
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
            self.protocol,
        );
        (self.key, self.sender) = (key, side as u8);
        true
    }

    /// The transport header at `AT`, and places in it by what stands there.
    #[inline(always)]
    fn plain_transport<
        B: Begin,
        const AT: usize,
        const TO: usize,
        const FOUR: usize,
        const EIGHT: usize,
        const HEADER: usize,
        const FLAGS: usize,
    >(
        &mut self,
        bytes: &B,
    ) -> bool {
        self.transport = AT as u16;
        // Each asks for its own bytes: what is read stands behind what was asked for in the program's text, too.
        match self.protocol {
            protocol::TCP => {
                let Some(front) = bytes.front(AT + TCP) else { return false };
                self.source_port = u16::from_be(front.half::<AT>());
                self.destination_port = u16::from_be(front.half::<TO>());
                let header = u32::from(front.byte::<HEADER>() >> 4) * 4;
                self.tcp_flags = front.byte::<FLAGS>();
                self.sequence = u32::from_be(front.word::<FOUR>());
                self.acknowledgment = u32::from_be(front.word::<EIGHT>());
                self.payload = (AT as u32 + header) as u16;
                header >= TCP as u32 && AT as u32 + header <= self.end && tcp::sensible(self.tcp_flags)
            }
            protocol::UDP => {
                let Some(front) = bytes.front(AT + UDP) else { return false };
                self.source_port = u16::from_be(front.half::<AT>());
                self.destination_port = u16::from_be(front.half::<TO>());
                let length = u32::from(u16::from_be(front.half::<FOUR>()));
                (self.tcp_flags, self.sequence, self.acknowledgment) = (0, 0, 0);
                self.payload = (AT + UDP) as u16;
                // What may be DHCP is looked at closer.
                let dhcp = |port| matches!(port, 67 | 68 | 546 | 547);
                let named = dhcp(self.source_port) && dhcp(self.destination_port);
                length >= UDP as u32 && AT as u32 + length <= self.end && !named
            }
            _ => false,
        }
    }
}
