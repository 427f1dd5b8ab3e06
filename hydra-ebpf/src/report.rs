//! Counters, always, and events, where they tell an operator something: lossy and limited per CPU.

use hydra_common::decide::{At, Outcome, Step};
use hydra_common::event::{EVENT_WINDOW_NS, EVENTS_PER_WINDOW, Event};
use hydra_common::packet::Packet;
use hydra_common::tables::{Count, DropKey, Gauge};
use hydra_common::verdict::Verdict;

use crate::global::global;
use crate::maps::{self, Maps};

global!(
/// Counts a frame by its reason, and, where it was denied or would have been, by its tiers; tells user space.
pub fn report = hydra_report(packet: of Packet, outcome: of Outcome, at: of At, count: of Count) {
    add(maps::reason(outcome.reason as u8), count);
    if !matches!(outcome.verdict, Verdict::Allowed) {
        let key = drop_key(outcome);
        add(maps::drop_slot(&key).or_else(|| maps::drops(&key)), count);
    }
    if noteworthy(outcome) {
        tell(packet, outcome, at, count);
    }
});

/// An event, where there may be another now.
#[inline(always)]
fn tell(packet: &Packet, outcome: &Outcome, at: &At, count: &Count) {
    if !in_window(at.now) || write(packet, outcome, at, count) == 0 {
        self::count(Gauge::EventsLost, 1);
    }
}

global!(
/// Writes an event; 0 where there is no room.
fn write = hydra_event(packet: of Packet, outcome: of Outcome, at: of At, count: of Count) -> u32 or 0; {
    let Some(mut room) = maps::reserve_event() else { return 0 };
    room.write(event(packet, outcome, at, count));
    room.submit(0);
    self::count(Gauge::Events, 1);
    1
});

/// [`report`] of a packet that is allowed and no news.
#[inline(always)]
pub fn passed(outcome: &Outcome, count: &Count) {
    if !outcome.elsewhere {
        add(maps::reason(outcome.reason as u8), count);
    }
}

/// What a packet that was denied, or would have been, is counted by.
#[inline(always)]
pub fn drop_key(outcome: &Outcome) -> DropKey {
    let (source, destination) = outcome.tiers(&Maps);
    DropKey {
        source,
        destination,
        reason: outcome.reason as u8,
        verdict: outcome.verdict as u8,
        rule: outcome.rule,
    }
}

/// Whether a packet makes an event: what is denied, and the first of what is not.
#[inline(always)]
pub fn noteworthy(outcome: &Outcome) -> bool {
    match outcome.verdict {
        Verdict::Allowed => matches!(outcome.step, Step::Create | Step::Renew),
        Verdict::Audited => !matches!(outcome.step, Step::Count),
        Verdict::Denied => true,
    }
}

/// Adds to a gauge.
#[inline(always)]
pub fn count(gauge: Gauge, n: u64) {
    if let Some(value) = maps::gauge(gauge as u32) {
        // SAFETY: this CPU's own value; a program is not interrupted by another TC program on its CPU.
        unsafe { *value += n };
    }
}

/// Adds one to a number of this CPU.
#[inline(always)]
pub fn one_more(value: Option<*mut u64>) {
    if let Some(value) = value {
        // SAFETY: this CPU's own value, aligned; in one instruction, since a process may be interrupted.
        unsafe { add_atomic(value, 1) };
    }
}

/// Adds to a per-CPU counter.
#[inline(always)]
pub fn add(cell: Option<*mut Count>, count: &Count) {
    if let Some(cell) = cell {
        // SAFETY: this CPU's own value, as in `count`.
        unsafe {
            (*cell).packets += count.packets;
            (*cell).bytes += count.bytes;
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

/// Whether this CPU may write another event now; takes one of its share.
#[inline(always)]
pub fn in_window(now: u64) -> bool {
    let Some(window) = maps::event_window() else { return false };
    // SAFETY: this CPU's own value, as in `count`.
    let window = unsafe { &mut *window };
    if now.saturating_sub(window.start) >= EVENT_WINDOW_NS {
        window.start = now;
        window.count = 0;
    }
    window.count += 1;
    window.count <= EVENTS_PER_WINDOW
}

/// What user space is told of a packet.
#[inline(always)]
pub fn event(packet: &Packet, outcome: &Outcome, at: &At, count: &Count) -> Event {
    Event {
        time: at.now,
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        source_identity: outcome.source,
        destination_identity: outcome.destination,
        source_container: outcome.source_container,
        destination_container: outcome.destination_container,
        ifindex: at.ifindex,
        length: count.bytes as u32,
        revision: outcome.revision,
        rule: outcome.rule,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        verdict: outcome.verdict as u8,
        reason: outcome.reason as u8,
        hook: at.hook as u8,
        ethertype: packet.ethertype,
        ..Event::default()
    }
}
