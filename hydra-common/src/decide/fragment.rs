//! Pieces of fragmented datagrams: the first one, which has the ports, is judged like a whole packet and remembered when it passed;
//! the others are what it says, and are judged as such. They grant nothing by themselves.

use super::enter::left_to_port;
use super::{At, Outcome, Way};
use crate::packet::{Kind, Packet, Piece};
use crate::tables::{Fragment, FragmentKey, Tables};
use crate::verdict::{Hook, Reason};

/// How long the first piece counts, in nanoseconds: as long as a receiver waits for the rest (Linux, `ipfrag_time`).
const LIFETIME: u64 = 30_000_000_000;

/// Fills in what a later piece belongs to. `false`: not for this hook to judge.
#[inline(always)]
pub fn resolve<T: Tables>(
    tables: &T,
    packet: &mut Packet,
    at: &At,
    out: &mut Outcome,
) -> Result<bool, Reason> {
    let Some(first) = tables.fragment(&key(packet)) else {
        // Its first piece was left to the port, too.
        let left = matches!(at.hook, Hook::BridgeOut) && left_to_port(tables, packet, packet.is_group());
        if left {
            out.not_judged(Way::Leave);
            return Ok(false);
        }
        return Err(Reason::Fragment);
    };
    // One that reaches into the first piece would be another header to some receivers (RFC 1858, 4; RFC 5722).
    let overlaps = packet.piece_at < first.end;
    if overlaps || first.container != out.source_container || at.now.saturating_sub(first.seen) > LIFETIME {
        return Err(Reason::Fragment);
    }
    packet.complete(first);
    Ok(true)
}

/// Whether a packet that passed is to be remembered with [`first`]. At an uplink later pieces are not looked at.
#[inline(always)]
pub fn begins(packet: &Packet, at: &At, out: &Outcome) -> bool {
    let left = matches!((at.hook, out.way), (Hook::UplinkIn, _) | (Hook::BridgeOut, Way::Leave));
    matches!((packet.piece, packet.kind), (Piece::First, Kind::Ip)) && !left
}

/// What a first piece that passed says of the others.
#[inline(always)]
pub fn first(packet: &Packet, out: &Outcome, now: u64) -> (FragmentKey, Fragment) {
    let row = Fragment {
        seen: now,
        container: out.source_container,
        end: packet.piece_end,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        icmp_type: packet.icmp_type,
        icmp_reply: u8::from(packet.icmp_reply),
        zero: 0,
    };
    (key(packet), row)
}

#[inline(always)]
fn key(packet: &Packet) -> FragmentKey {
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.piece_id,
        protocol: if packet.source.is_v4() { packet.protocol } else { 0 },
        zero: [0; 3],
    }
}
