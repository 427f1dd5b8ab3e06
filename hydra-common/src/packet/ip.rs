//! IPv4 with its options, IPv6 with its extension headers.

use super::{Bytes, Chunk, Packet, Piece};
use crate::address::Address;
use crate::verdict::Reason;

/// IPv4 options that are walked.
const MAX_OPTIONS: usize = 10;
/// IPv6 extension headers that are walked.
const MAX_HEADERS: usize = 6;

impl Packet {
    /// An IPv4 header with its options.
    #[inline(always)]
    pub fn ipv4<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let at = usize::from(self.network);
        let h = bytes.load::<20>(at).ok_or(Reason::Malformed)?;
        if h.0[0] >> 4 != 4 || h.0[0] & 15 < 5 {
            return Err(Reason::Malformed);
        }
        let header = usize::from(h.0[0] & 15) * 4;
        self.ttl = h.0[8];
        self.protocol = h.0[9];
        self.source = Address::v4(h.part::<12, 4>());
        self.destination = Address::v4(h.part::<16, 4>());
        self.transport = (at + header) as u16;
        // BIG TCP writes 0 (Linux 6.3, b1a78b9b9886).
        self.ends(bytes, usize::from(h.number::<2>()), 0)?;
        if header > 20 {
            self.ipv4_options(bytes)?;
        }
        // More fragments, or an offset.
        let field = h.number::<6>();
        let (at, more) = (field << 3, field & 0x2000 != 0);
        if at == 0 && !more {
            return Ok(());
        }
        self.piece(u32::from(h.number::<4>()), at, more)
    }

    /// Notes which part of which datagram follows the headers so far. `at` in bytes.
    #[inline(always)]
    fn piece(&mut self, id: u32, at: u16, more: bool) -> Result<(), Reason> {
        let length = self.end - u32::from(self.transport);
        self.piece = if at == 0 { Piece::First } else { Piece::Later };
        self.piece_id = id;
        self.piece_at = u32::from(at);
        self.piece_end = self.piece_at + length;
        // Pieces that others follow are multiples of 8 bytes: what a receiver cuts off (Linux, `ip_frag_queue`) would be room for
        // another one.
        let odd = more && length & 7 != 0;
        if odd || length == 0 || self.piece_end > 65_535 { Err(Reason::Fragment) } else { Ok(()) }
    }

    /// Takes the packet's length from its header, or from the frame where a super-packet's does not fit there and says `jumbo`.
    #[inline(always)]
    fn ends<B: Bytes>(&mut self, bytes: &B, length: usize, jumbo: usize) -> Result<(), Reason> {
        let room = bytes.length().saturating_sub(usize::from(self.network));
        let length = if length == jumbo && room > 65_535 { room } else { length };
        self.end = (usize::from(self.network) + length) as u32;
        if length > room || u32::from(self.transport) > self.end { Err(Reason::Malformed) } else { Ok(()) }
    }

    /// Looks for a source route among the options (RFC 791, 3.1).
    #[inline(never)]
    fn ipv4_options<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let end = usize::from(self.transport);
        let mut here = usize::from(self.network) + 20;
        for _ in 0..MAX_OPTIONS {
            if here >= end {
                return Ok(());
            }
            let Chunk([kind]) = bytes.load::<1>(here).ok_or(Reason::Malformed)?;
            match kind {
                0 => return Ok(()),
                1 => here += 1,
                131 | 137 => return Err(Reason::SourceRoute),
                _ => {
                    let Chunk([length]) = bytes.load::<1>(here + 1).ok_or(Reason::Malformed)?;
                    here += usize::from(length);
                    if length < 2 || here > end {
                        return Err(Reason::Malformed);
                    }
                }
            }
        }
        if here >= end { Ok(()) } else { Err(Reason::HeaderChain) }
    }

    /// An IPv6 header with its extensions.
    #[inline(always)]
    pub fn ipv6<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let at = usize::from(self.network);
        let h = bytes.load::<40>(at).ok_or(Reason::Malformed)?;
        if h.0[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        self.protocol = h.0[6];
        self.ttl = h.0[7];
        self.source = Address::v6(h.part::<8, 16>());
        self.destination = Address::v6(h.part::<24, 16>());
        self.transport = (at + 40) as u16;
        // A jumbogram (RFC 2675), as BIG TCP makes them inside the host, says 0.
        self.ends(bytes, 40 + usize::from(h.number::<4>()), 40)?;
        if self.source.is_v4() || self.destination.is_v4() {
            return Err(Reason::Malformed);
        }
        match self.protocol {
            0 | 43 | 44 | 51 | 60 => self.ipv6_chain(bytes),
            _ => Ok(()),
        }
    }

    /// Walks the extension headers (RFC 8200, 4).
    #[inline(never)]
    fn ipv6_chain<B: Bytes>(&mut self, bytes: &B) -> Result<(), Reason> {
        let mut fragment = false;
        for n in 0..MAX_HEADERS {
            let here = usize::from(self.transport);
            let length = match self.protocol {
                // Hop-by-hop options come first or not at all (RFC 8200, 4.1).
                0 if n > 0 => return Err(Reason::HeaderChain),
                44 if fragment => return Err(Reason::Fragment),
                44 => {
                    let h = bytes.load::<8>(here).ok_or(Reason::Malformed)?;
                    let field = h.number::<2>();
                    fragment = true;
                    self.protocol = h.0[0];
                    self.transport = (here + 8) as u16;
                    if u32::from(self.transport) > self.end {
                        return Err(Reason::Malformed);
                    }
                    // Without an offset and without more to come it is a whole packet (RFC 6946).
                    if field & 0xfff9 != 0 {
                        self.piece(h.long::<4>(), field & 0xfff8, field & 1 != 0)?;
                    }
                    if matches!(self.piece, Piece::Later) {
                        return Ok(());
                    }
                    continue;
                }
                kind @ (0 | 43 | 51 | 60) => {
                    let Chunk([next, units, routing, left]) =
                        bytes.load::<4>(here).ok_or(Reason::Malformed)?;
                    if kind == 43 && (routing == 0 || left != 0) {
                        // Somebody behind the destination would get it (RFC 5095; RFC 8754 for segment routing).
                        return Err(Reason::SourceRoute);
                    }
                    self.protocol = next;
                    // The authentication header counts words, less two (RFC 4302, 2.2).
                    if kind == 51 { (usize::from(units) + 2) * 4 } else { (usize::from(units) + 1) * 8 }
                }
                _ => return Ok(()),
            };
            self.transport = (here + length) as u16;
            if u32::from(self.transport) > self.end {
                return Err(Reason::Malformed);
            }
        }
        if matches!(self.protocol, 0 | 43 | 44 | 51 | 60) { Err(Reason::HeaderChain) } else { Ok(()) }
    }
}
