//! Judge, record, count, act: the walk of one frame.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::{
    bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_l3_csum_replace, bpf_redirect_peer, bpf_skb_change_type,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use hydra_common::decide::{At, Hop, Outcome, Step, Way, counts, decide, each, entry, fragment, one, opens};
use hydra_common::flow::Flow;
use hydra_common::names::{
    MARK_CARRIED, MARK_CHECKED, MARK_IDENTITY, MARK_JUDGED, MARK_LEFT, MARK_MASK, carried, carrier, left,
};
use hydra_common::packet::{Bytes as _, Chunk, Packet};
use hydra_common::share;
use hydra_common::tables::{Count, Gauge, Tables as _};
use hydra_common::track;
use hydra_common::verdict::{Hook, Reason, Verdict};

use crate::flows;
use crate::global::{decoded_unit, global};
use crate::maps::{self, LiveFlow, Maps, Scratch};
use crate::report;
use crate::skb::{self, ETHERNET, Frame};
use crate::sock;

/// `TCX_NEXT` and `TC_ACT_UNSPEC`: the next program, then the kernel, decide.
const NEXT: i32 = -1;
/// Two CPUs that make the same entry do so within this many nanoseconds, two ticks of the coarse clock included.
const AT_ONCE: u64 = 100_000_000;
/// How often this one tries while another CPU replaces the entry.
const TRIES: u32 = 8;
/// `PACKET_HOST`: for this machine.
const PACKET_HOST: u32 = 0;
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

/// Notes a packet in the flow table. What finds no room there is denied: its replies could not return.
#[inline(always)]
pub fn note(
    packet: &Packet,
    outcome: &mut Outcome,
    fresh: &mut Flow,
    live: Option<LiveFlow>,
    count: &Count,
    at: &At,
) {
    if matches!(outcome.verdict, Verdict::Denied) {
        if let (Step::End, Some(flow)) = (outcome.step, live) {
            flows::end(&packet.key, flow.created, 0);
        }
        return;
    }
    match (outcome.step, live) {
        (Step::Nothing | Step::End, _) => {}
        (Step::Create, _) => create(packet, outcome, fresh, count, at),
        (Step::Count, Some(flow)) => {
            tally(packet, outcome, flow.pointer(), count, at);
            along(packet, flow.pointer());
        }
        (Step::Renew, Some(flow)) => renew(packet, outcome, flow.pointer(), count, at),
        (Step::Count | Step::Renew, None) => outcome.verdict = Verdict::Denied,
    }
}

global!(
/// Writes a new flow.
fn create = hydra_create(
    packet: of Packet, outcome: into Outcome, fresh: into Flow, count: of Count, at: of At
) {
    let traffic = outcome.traffic(&Maps);
    entry(packet, outcome, traffic, at.now, fresh);
    if !counted_there(outcome, at) {
        let side = packet.side().index();
        fresh.packets[side] = count.packets;
        fresh.bytes[side] = count.bytes;
    }
    fresh.counted = share::counted(fresh, outcome);
    match make(packet, fresh, |fresh| join(packet, outcome, fresh, count, at)) {
        Made::Fresh if outcome.elsewhere => {}
        Made::Fresh => add(maps::traffic(traffic), count, at),
        Made::Twin => {}
        Made::No => {
            sock::gauge(Gauge::FlowsRefused);
            no_room(outcome);
        }
    }
});

global!(
/// Counts a packet on the entry that another CPU has just made for the same flow. 0: there is none.
fn join = hydra_join(
    packet: of Packet, outcome: of Outcome, fresh: of Flow, count: of Count, at: of At
) -> u32 or 0; {
    let Some(live) = twin(packet, fresh, at.now) else { return 0 };
    tally(packet, outcome, live.pointer(), count, at);
    advance(packet, live.pointer());
    1
});

/// What became of a new entry.
enum Made {
    /// It is there, with what it counts.
    Fresh,
    /// Another CPU was first with the same flow: its entry has counted this packet too.
    Twin,
    /// There is no room.
    No,
}

/// Puts a new entry in the place of none, or of an old one that counts no more. `join` counts the packet on the entry of another CPU, if
/// that has just made it for the same flow: it says 0 where not.
#[inline(always)]
fn make(packet: &Packet, fresh: &mut Flow, join: impl Fn(&Flow) -> u32) -> Made {
    let mut made = flows::begin(&packet.key, fresh);
    for _ in 0..TRIES {
        if made != flows::THERE {
            break;
        }
        if join(fresh) != 0 {
            return Made::Twin;
        }
        made = flows::replace(&packet.key, fresh);
    }
    if made == flows::MADE { Made::Fresh } else { Made::No }
}

/// The entry that another CPU has just made for the flow of a new one.
#[inline(always)]
fn twin(packet: &Packet, fresh: &Flow, now: u64) -> Option<LiveFlow> {
    Maps.flow(&packet.key).filter(|twin| {
        twin.created != 0
            && twin.generation == fresh.generation
            && (twin.source, twin.destination) == (fresh.source, fresh.destination)
            && twin.containers == fresh.containers
            && now.saturating_sub(twin.created) < AT_ONCE
            && track::State::of(twin, packet.protocol) != track::State::Closing
            && (!opens(packet) || track::repeats(twin, packet))
    })
}

/// What becomes of a packet whose flow cannot be written.
#[inline(always)]
fn no_room(outcome: &mut Outcome) {
    outcome.verdict = if outcome.audit { Verdict::Audited } else { Verdict::Denied };
    outcome.reason = Reason::FlowTableFull;
}

global!(
/// Notes the first piece of a datagram for those that follow.
fn remember = hydra_remember(packet: of Packet, outcome: of Outcome, at: of At) {
    let (key, row) = fragment::first(packet, outcome, at.now);
    maps::put_fragment(&key, &row);
});

/// Whether another hook counts a process's packet on the same entry.
#[inline(always)]
fn counted_there(outcome: &Outcome, at: &At) -> bool {
    of_process(at) && outcome.elsewhere
}

#[inline(always)]
fn of_process(at: &At) -> bool {
    matches!(at.hook, Hook::CgroupIn | Hook::CgroupOut)
}

/// Adds to a counter of this CPU, at the hooks of processes in one instruction each: a classifier may come between.
#[inline(always)]
fn add(cell: Option<*mut Count>, count: &Count, at: &At) {
    if of_process(at) { sock::add(cell, count) } else { report::add(cell, count) }
}

/// Counts a packet on its flow: exact, also from two CPUs at once; and notes when the flow was seen last, and who answered first.
#[inline(always)]
fn tally(packet: &Packet, outcome: &Outcome, live: *mut Flow, count: &Count, at: &At) {
    // SAFETY: as below.
    let traffic = unsafe { (*live).traffic };
    if !outcome.elsewhere {
        add(maps::traffic(traffic), count, at);
    }
    let side = packet.side().index();
    // SAFETY: the entry lives until the program ends, and its fields are aligned. Counters are only ever added to, atomically;
    // of two stores to the other fields at once either is true enough.
    unsafe {
        if !counted_there(outcome, at) {
            add_atomic(&raw mut (*live).packets[side], count.packets);
            add_atomic(&raw mut (*live).bytes[side], count.bytes);
        }
        core::ptr::write_volatile(&raw mut (*live).seen, at.now);
        // The first answer of an end that is no container.
        let end = &raw mut (*live).ends[side];
        if *end == 0 {
            core::ptr::write_volatile(end, outcome.near() as u8);
        }
    }
}

/// [`advance`], of most packets without a call.
#[inline(always)]
fn along(packet: &Packet, live: *mut Flow) {
    // SAFETY: as in `tally`.
    match track::along(unsafe { &*live }, packet) {
        Some((next, acked)) => reached(packet, live, next, acked),
        None => advance(packet, live),
    }
}

global!(
/// Notes how far the sender is.
fn advance = hydra_advance(packet: of Packet, live: live Flow) {
    // SAFETY: as in `tally`.
    let stand = track::follow(unsafe { &*live }, packet);
    let side = packet.side().index();
    // SAFETY: as in `tally`.
    unsafe {
        if stand.flags != (*live).flags[side] {
            core::ptr::write_volatile(&raw mut (*live).flags[side], stand.flags);
        }
        core::ptr::write_volatile(&raw mut (*live).syn, stand.syn);
    }
    reached(packet, live, stand.next, stand.acked);
});

/// The same of sequence numbers. What stays is not written.
#[inline(always)]
fn reached(packet: &Packet, live: *mut Flow, next: u32, acked: u32) {
    let side = packet.side().index();
    // SAFETY: as in `tally`.
    unsafe {
        if next != (*live).next[side] {
            core::ptr::write_volatile(&raw mut (*live).next[side], next);
        }
        if acked != (*live).acked[side] {
            core::ptr::write_volatile(&raw mut (*live).acked[side], acked);
        }
    }
}

/// `lock *(u64 *)p += n`: `AtomicU64::fetch_add` does not exist for this target.
///
/// # Safety
/// `p` points to an aligned `u64` of a live map value.
#[inline(always)]
pub unsafe fn add_atomic(p: *mut u64, n: u64) {
    // SAFETY: as promised by the caller.
    unsafe { core::arch::asm!("lock *(u64 *)({p} + 0) += {n}", p = in(reg) p, n = in(reg) n) };
}

global!(
/// Writes a new decision into an old entry, the generation last: whoever sees it sees the rest. Then counts the packet.
fn renew = hydra_renew(packet: of Packet, outcome: of Outcome, live: live Flow, count: of Count, at: of At) {
    let traffic = outcome.traffic(&Maps);
    let side = packet.side();
    // SAFETY: the entry lives until the program ends. Two CPUs that renew at once write the same.
    unsafe {
        (*live).revision = outcome.revision;
        (*live).until = outcome.until;
        (*live).rule = outcome.rule;
        (*live).verdict = outcome.verdict as u8;
        (*live).reason = outcome.reason as u8;
        (*live).path = outcome.path as u8;
        (*live).marks = outcome.marks;
        (*live).taken = outcome.taken;
        (*live).source = outcome.source;
        (*live).destination = outcome.destination;
        (*live).traffic = traffic;
        (*live).containers[side.index()] = outcome.source_container;
        (*live).containers[side.other().index()] = outcome.destination_container;
        core::ptr::write_volatile(&raw mut (*live).generation, outcome.generation);
    }
    tally(packet, outcome, live, count, at);
    advance(packet, live);
});

/// Marks a frame, or sends it straight to its destination.
#[inline(always)]
fn pass(frame: &Frame<'_>, packet: &Packet, outcome: &Outcome, mark: u32) -> i32 {
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
