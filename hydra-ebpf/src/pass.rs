//! A frame that passes: marked, or sent straight to its destination.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_store_bytes};
use hydra_common::decide::{Hop, Outcome, Way};
use hydra_common::names::{
    MARK_CARRIED, MARK_CHECKED, MARK_IDENTITY, MARK_JUDGED, MARK_LEFT, MARK_MASK, carried, left,
};
use hydra_common::packet::{Bytes as _, Chunk, Packet};
use hydra_common::tables::Gauge;

use crate::act::NEXT;
use crate::report;
use crate::skb::Frame;

/// `PACKET_HOST`: for this machine.
const PACKET_HOST: u32 = 0;

/// Marks a frame, or sends it straight to its destination.
#[inline(always)]
pub fn pass(frame: &Frame<'_>, packet: &Packet, outcome: &Outcome, mark: u32) -> i32 {
    match outcome.way {
        Way::Leave => return NEXT,
        Way::Judged => set_mark(frame, mark, MARK_JUDGED),
        Way::Checked => set_mark(frame, mark, MARK_CHECKED),
        Way::Carried => {
            set_mark(frame, mark, carried(outcome.speaker(packet.side())));
            // An answer has taken nothing.
            let counted = if outcome.opener as u8 == packet.sender { u32::from(outcome.taken) } else { 0 };
            // Stays with the packet through netfilter and over bridges; only other programs' verdicts on its way in overwrite it
            // (`tc_run` and `tcx_action_code`, Linux 6.6). Where it is lost the flow is counted twice.
            // SAFETY: the context is valid while the program runs.
            unsafe { (*frame.raw()).tc_index = counted };
        }
        Way::Left => {
            set_mark(frame, mark, left(outcome.source));
            // It has taken from no limit, whatever its sender has written there.
            // SAFETY: the context is valid while the program runs.
            unsafe { (*frame.raw()).tc_index = 0 };
        }
        Way::Peer => {
            if let Some(action) = to_peer(frame, packet, &outcome.hop) {
                report::count(Gauge::Forwarded, 1);
                return action;
            }
            report::count(Gauge::FellBack, 1);
            set_mark(frame, mark, MARK_JUDGED);
        }
    }
    NEXT
}

#[inline(always)]
fn set_mark(frame: &Frame<'_>, mark: u32, ours: u32) {
    let names = |mark: u32| matches!(mark & MARK_MASK, MARK_CARRIED | MARK_LEFT);
    let either = names(mark) || names(ours);
    let others = if either { !(MARK_MASK | MARK_IDENTITY) } else { !MARK_MASK };
    // SAFETY: the context is valid while the program runs.
    unsafe { (*frame.raw()).mark = (mark & others) | ours };
}

/// Rewrites what a router would and hands the frame to the other namespace. `None`, with the frame as it was: the stack must
/// answer (time exceeded, packet too big).
#[inline(always)]
fn to_peer(frame: &Frame<'_>, packet: &Packet, hop: &Hop) -> Option<i32> {
    let skb = frame.raw();
    // SAFETY: the context is valid while the program runs.
    let (length, gso) = unsafe { ((*skb).len, (*skb).gso_size) };
    let headers = u32::from(packet.payload.saturating_sub(packet.network));
    let largest = if gso == 0 { length.saturating_sub(u32::from(packet.network)) } else { gso + headers };
    if largest > u32::from(hop.mtu) || (hop.routed != 0 && packet.ttl <= 1) {
        return None;
    }
    if hop.routed != 0 && !decrement(frame, packet) {
        return None;
    }
    // A frame that stays on its bridge has the MACs that it arrives with.
    if hop.routed != 0 && !readdress(frame, hop) {
        return Some(TC_ACT_SHOT);
    }
    // SAFETY: the context is valid while the program runs. The type is PACKET_OTHERHOST where the frame was for the gateway, and the
    // peer would drop it (Linux before 6.15 does not reset it on this path).
    unsafe {
        bpf_skb_change_type(skb.cast(), PACKET_HOST);
        Some(bpf_redirect_peer(hop.port, 0) as i32)
    }
}

/// The MACs of the last hop.
#[inline(always)]
fn readdress(frame: &Frame<'_>, hop: &Hop) -> bool {
    let (d, s) = (hop.mac.0, hop.gateway_mac.0);
    let mut macs = [d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5]];
    // SAFETY: 12 bytes; a frame that was parsed has them.
    unsafe { bpf_skb_store_bytes(frame.raw().cast(), 0, macs.as_mut_ptr().cast(), 12, 0) == 0 }
}

/// One hop less: IPv4 TTL with its checksum (RFC 1141), IPv6 hop limit.
#[inline(always)]
fn decrement(frame: &Frame<'_>, packet: &Packet) -> bool {
    let skb = frame.raw();
    let at = u32::from(packet.network);
    let less = [packet.ttl - 1];
    if packet.ethertype == 0x86dd {
        // SAFETY: one byte inside the header that was parsed.
        return unsafe { bpf_skb_store_bytes(skb.cast(), at + 7, less.as_ptr().cast(), 1, 0) == 0 };
    }
    let Some(Chunk([ttl, protocol])) = frame.load::<2>(usize::from(packet.network) + 8) else { return false };
    let old = u64::from(u16::from_ne_bytes([ttl, protocol]));
    let new = u64::from(u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]));
    // SAFETY: two and one bytes inside the header that was parsed.
    unsafe {
        bpf_l3_csum_replace(skb.cast(), at + 10, old, new, 2) == 0
            && bpf_skb_store_bytes(skb.cast(), at + 8, less.as_ptr().cast(), 1, 0) == 0
    }
}
