//! What a packet leaves in its entry of the flow table: that it was there, the entry that a first one makes, or none any more.

use hydra_common::decide::{At, Outcome, Step, entry, opens};
use hydra_common::flow::Flow;
use hydra_common::packet::Packet;
use hydra_common::share;
use hydra_common::tables::{Count, Gauge, Tables as _};
use hydra_common::track;
use hydra_common::verdict::{Hook, Reason, Verdict};

use crate::flows;
use crate::global::global;
use crate::maps::{self, LiveFlow, Maps};
use crate::report::{self, add_atomic};
use crate::sock;

/// Two CPUs that make the same entry do so within this many nanoseconds, two ticks of the coarse clock included.
const AT_ONCE: u64 = 100_000_000;
/// How often this one tries while another CPU replaces the entry.
const TRIES: u32 = 8;

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
