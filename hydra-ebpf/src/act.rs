//! Judge, record, count, act: the walk of one frame.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::TcContext;
use hydra_common::decide::{At, Outcome, Step, counts, decide, each, fragment, one};
use hydra_common::names::{MARK_CARRIED, MARK_CHECKED, MARK_JUDGED, MARK_LEFT, MARK_MASK, carrier};
use hydra_common::packet::Packet;
use hydra_common::verdict::{Hook, Reason, Verdict};

use crate::entry::note;
use crate::global::{decoded_unit, global};
use crate::maps::{self, Maps, Scratch};
use crate::pass::pass;
use crate::report;
use crate::skb::{self, ETHERNET, Frame};

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the next program, then the kernel, decide.
pub const NEXT: i32 = -1;
/// `PACKET_LOOPBACK`: see [`own_copy`].
pub const PACKET_LOOPBACK: u32 = 5;

/// One frame at one hook.
#[inline(always)]
pub fn run(ctx: &TcContext, hook: Hook) -> i32 {
    let frame = Frame::new(ctx);
    // SAFETY: the context is valid while the program runs.
    let (ifindex, ingress, mark) =
        unsafe { ((*frame.raw()).ifindex, (*frame.raw()).ingress_ifindex, (*frame.raw()).mark) };
    if judged_before(hook, mark) || own_copy(&frame, hook, mark) {
        return NEXT;
    }
    let Some(Scratch { tick, packet, outcome, flow: fresh, .. }) = maps::scratch() else {
        return TC_ACT_SHOT;
    };
    let now = coarse(tick);
    // On the program's own stack: what was written there the compiler knows, the hook above all, and leaves out what only other hooks'
    // frames need.
    let at = &At { hook, ifindex, ingress, mark, now };
    // SAFETY: the context is valid while the program runs.
    let looped = matches!(hook, Hook::PortIn) && unsafe { (*frame.raw()).pkt_type } == PACKET_LOOPBACK;
    // At other hooks the packet's bytes are read as a header of a kind that is not known, and denied: no breach, and said in the status.
    let bare = matches!(hook, Hook::UplinkIn) && frame.bare();
    let plain = !looped && !bare && packet.plain(&frame);
    let parsed = if looped {
        // A container's copy for itself: a bridge does not take it, so that no other hook would see it on its way to this host.
        skb::clear(packet);
        Err(Reason::Malformed)
    } else if plain {
        Ok(())
    } else {
        skb::clear(packet);
        decoded_unit(if bare {
            skb::parse_behind(frame.raw(), packet)
        } else {
            skb::parse(frame.raw(), packet)
        })
    };
    let live = decide(&Maps, packet, parsed, at, outcome);
    #[cfg(feature = "log")]
    log(ctx, outcome, hook);
    if counts(outcome) {
        let carried = carrier(mark).is_some() && matches!(hook, Hook::PortOut | Hook::BridgeOut);
        // SAFETY: the context is valid while the program runs.
        let taken = if carried { unsafe { (*frame.raw()).tc_index } } else { 0 };
        limit(packet, outcome, at, taken);
    }
    if matches!(hook, Hook::UplinkIn) && outcome.unseen() {
        return NEXT;
    }
    // Not by what is known already: the verifier would follow both to the end.
    let headless = matches!(hook, Hook::UplinkIn) && u64::from(packet.network) < ETHERNET;
    let count = frame.wire(packet.payload, if headless { ETHERNET } else { 0 });
    note(packet, outcome, fresh, live, &count, at);
    if matches!(outcome.verdict, Verdict::Allowed | Verdict::Audited) && fragment::begins(packet, at, outcome)
    {
        remember(packet, outcome, at);
    }
    if matches!((outcome.verdict, outcome.step), (Verdict::Allowed, Step::Count)) {
        report::passed(outcome, &count);
    } else if matches!(outcome.verdict, Verdict::Denied) || !outcome.elsewhere {
        report::report(packet, outcome, at, &count);
    }
    match outcome.verdict {
        Verdict::Denied => TC_ACT_SHOT,
        Verdict::Allowed | Verdict::Audited => pass(&frame, packet, outcome, mark),
    }
}

/// The time of the tick, which is asked for once in each: 4 ms at worst, and another 4 where the clock is behind the tick's number.
/// Linux 5.11; that number is a load and no call (Linux 5.6).
#[inline(always)]
pub fn coarse(tick: &mut [u64; 2]) -> u64 {
    // SAFETY: no arguments.
    let number = unsafe { bpf_jiffies64() };
    if tick[0] != number {
        // SAFETY: as above.
        *tick = [number, unsafe { bpf_ktime_get_coarse_ns() }];
    }
    tick[1]
}

/// Whether an earlier hook has had the last word. Of a frame whose sender is carried only its receiver's has.
#[inline(always)]
fn judged_before(hook: Hook, mark: u32) -> bool {
    match hook {
        // The last three are no classifier's.
        Hook::PortIn | Hook::Connect | Hook::CgroupIn | Hook::CgroupOut => false,
        Hook::BridgeIn | Hook::UplinkIn => matches!(mark & MARK_MASK, MARK_JUDGED | MARK_CARRIED | MARK_LEFT),
        Hook::PortOut | Hook::BridgeOut => mark & MARK_MASK == MARK_JUDGED,
    }
}

/// Whether this is the kernel's copy, for this host alone, of what this host sends to a group or to all of a network: egress judges what
/// leaves, and of host to host nothing is judged. (What this host routes to a group that it listens to has come in by a hook before, which let
/// it reach this host.) It comes without an Ethernet header, at the ingress of the interface that it goes out
/// by (`dev_loopback_xmit`; the interface of a VRF has what its own host sends to itself of that type, `vrf_local_xmit`).
///
/// Neither programs nor netfilter can set the type (`skb_pkt_type_ok`). What a container sends has lost it when it arrives
/// (`skb_scrub_packet`; by `bpf_redirect_peer`, which leads to a port's hook, only since Linux 6.15: there it is denied). What a container has sent to a group, and this host routes on, was judged for this host and goes `carried`;
/// [`MARK_CHECKED`], it was not.
#[inline(always)]
fn own_copy(frame: &Frame<'_>, hook: Hook, mark: u32) -> bool {
    matches!(hook, Hook::BridgeIn | Hook::UplinkIn)
        && mark & MARK_MASK != MARK_CHECKED
        // SAFETY: the context is valid while the program runs.
        && unsafe { (*frame.raw()).pkt_type } == PACKET_LOOPBACK
}

/// One line for each frame. Few words: a message is put together on the stack.
#[cfg(feature = "log")]
#[inline(never)]
fn log(ctx: &TcContext, outcome: &Outcome, hook: Hook) {
    let said = u32::from(outcome.verdict as u8) << 8 | u32::from(outcome.reason as u8);
    let ends = u32::from(outcome.source.0) << 16 | u32::from(outcome.destination.0);
    aya_log_ebpf::debug!(ctx, "hook {} verdict+reason {:x} identities {:x}", hook as u32, said, ends);
}

global!(
/// Takes the flow that begins here from its limit, if it has not taken from it where it was sent: `carried` is what that hook wrote.
/// Each packet that finds all limits used up counts for the first of them, of two that have to hold for the one that denied it.
pub fn limit = hydra_limit(packet: of Packet, outcome: into Outcome, at: of At, carried: plain u32) {
    outcome.taken = carried as u16;
    each(&Maps, at.seconds(), outcome, |outcome| draw(packet, outcome, at, carried));
});

global!(
/// The same for one of two limits that have to hold.
fn draw = hydra_draw(packet: of Packet, outcome: into Outcome, at: of At, carried: plain u32) {
    let bank = outcome.bank();
    let mut first = u32::MAX;
    let mut from = u32::from(outcome.taken);
    let before = |index| carried != 0 && maps::limit(bank, index).is_some_and(|l| l.bucket + 1 == carried);
    one(&Maps, at.seconds(), outcome, before, |index| {
        let Some(limit) = maps::limit(bank, index) else { return false };
        let taken = maps::take(&packet.source, limit, at) != 0;
        if taken {
            from = limit.bucket + 1;
        } else if first == u32::MAX {
            first = limit.bucket;
        }
        taken
    });
    outcome.taken = from as u16;
    if matches!(outcome.verdict, Verdict::Denied) {
        report::one_more(maps::limited(first));
    }
});

global!(
/// Notes the first piece of a datagram for those that follow.
fn remember = hydra_remember(packet: of Packet, outcome: of Outcome, at: of At) {
    let (key, row) = fragment::first(packet, outcome, at.now);
    maps::put_fragment(&key, &row);
});
