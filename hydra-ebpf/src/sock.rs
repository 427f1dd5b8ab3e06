//! A process opens a flow: who it is by its cgroup, and EPERM at once where its packets could only be denied.
//!
//! These programs run in a process, which a classifier may interrupt on the same CPU: they use no scratch, and add to counters in
//! one instruction.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_comm,
    bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_ktime_get_coarse_ns,
};
use aya_ebpf::programs::SockAddrContext;
use hydra_common::address::Address;
use hydra_common::decide::socket::{Call, Refusal, refusal};
use hydra_common::event::Event;
use hydra_common::tables::{CgroupKey, Count, DropKey, Gauge, Tables as _};
use hydra_common::verdict::{Hook, Verdict};

use crate::maps::{self, Maps};
use crate::report::{self, add_atomic};

/// What the kernel turns into EPERM, and what lets the call go on.
const REFUSE: i32 = 0;
const GO_ON: i32 = 1;

/// Which of the context's addresses counts. An IPv4-mapped one of IPv6 is the IPv4 address (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `user_ip4`.
    V4,
    /// `user_ip6`.
    V6,
}

/// One call.
#[inline(always)]
pub fn run(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(cgroup) = cgroup() else { return GO_ON };
    let raw = ctx.sock_addr;
    // SAFETY: no arguments; the context is valid while the program runs.
    let (now, netns, port, protocol) = unsafe {
        (
            bpf_ktime_get_coarse_ns(),
            bpf_get_netns_cookie(raw.cast()),
            u16::from_be((*raw).user_port as u16),
            (*raw).protocol,
        )
    };
    let destination = destination(raw, family);
    let call = Call { cgroup, netns, destination, port, source_port: source_port(raw), protocol, now };
    let mut why = Refusal::EMPTY;
    if !judge(&call, &mut why) {
        return GO_ON;
    }
    record(&call, &why, now);
    REFUSE
}

/// Whether the call is refused, and why. A function of its own in the object, for its own stack frame and for one copy of its code; not
/// one that returns an option: the kernel's BTF has no word for a tag in the middle.
#[inline(never)]
fn judge(call: &Call, why: &mut Refusal) -> bool {
    let Some(found) = refusal(&Maps, call) else { return false };
    *why = found;
    true
}

/// The nearest cgroup of the process that has a row: containers make cgroups inside their own.
#[inline(never)]
fn cgroup() -> Option<u64> {
    // SAFETY: no arguments.
    let own = unsafe { bpf_get_current_cgroup_id() };
    if Maps.cgroup(&CgroupKey::new(own, 0)).is_some() {
        return Some(own);
    }
    // SAFETY: a level below the process's own answers 0.
    maps::nearest_cgroup(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) }).map(|(id, _)| id)
}

#[inline(always)]
fn destination(raw: *mut bpf_sock_addr, family: Family) -> Address {
    // SAFETY: the context is valid while the program runs; its addresses are in network order. Read by words, as the verifier wants.
    unsafe {
        match family {
            Family::V4 => Address::v4((*raw).user_ip4.to_ne_bytes()),
            Family::V6 => {
                let words = [
                    core::ptr::read_volatile(&raw const (*raw).user_ip6[0]),
                    core::ptr::read_volatile(&raw const (*raw).user_ip6[1]),
                    core::ptr::read_volatile(&raw const (*raw).user_ip6[2]),
                    core::ptr::read_volatile(&raw const (*raw).user_ip6[3]),
                ];
                Address::v6(core::mem::transmute::<[u32; 4], [u8; 16]>(words))
            }
        }
    }
}

/// The port that the socket has already.
#[inline(always)]
fn source_port(raw: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the context is valid while the program runs, and with it the socket that it points to.
    unsafe {
        let sk = core::ptr::read_volatile(&raw const (*raw).__bindgen_anon_1.sk);
        if sk.is_null() { 0 } else { core::ptr::read_volatile(&raw const (*sk).src_port) as u16 }
    }
}

/// Counts a refused call as one packet without a byte, and tells user space who made it.
#[inline(never)]
fn record(call: &Call, refusal: &Refusal, now: u64) {
    let (source, destination) = refusal.tiers;
    let key = DropKey {
        source,
        destination,
        reason: refusal.reason as u8,
        verdict: Verdict::Denied as u8,
        rule: refusal.rule,
    };
    let count = Count { packets: 1, bytes: 0 };
    add(maps::reason(refusal.reason as u8), &count);
    add(maps::drops(&key), &count);
    tell(now, || Event {
        time: now,
        destination: call.destination,
        destination_port: call.port,
        source_identity: refusal.source,
        destination_identity: refusal.destination,
        source_container: refusal.source_container,
        destination_container: refusal.destination_container,
        revision: refusal.revision,
        rule: refusal.rule,
        protocol: refusal.protocol,
        verdict: Verdict::Denied as u8,
        reason: refusal.reason as u8,
        hook: Hook::Connect as u8,
        ethertype: if call.destination.is_v4() { 0x0800 } else { 0x86dd },
        // SAFETY: no arguments. The number that the machine's own namespace has for the process.
        process: unsafe { (bpf_get_current_pid_tgid() >> 32) as u32 },
        command: bpf_get_current_comm().unwrap_or_default(),
        ..Event::default()
    });
}

/// Tells user space, if this CPU may and there is room.
#[inline(always)]
pub fn tell(now: u64, event: impl FnOnce() -> Event) {
    if report::in_window(now)
        && let Some(mut room) = maps::reserve_event()
    {
        room.write(event());
        room.submit(0);
        gauge(Gauge::Events);
    } else {
        gauge(Gauge::EventsLost);
    }
}

/// Adds to a per-CPU counter, in one instruction each.
#[inline(always)]
pub fn add(cell: Option<*mut Count>, count: &Count) {
    if let Some(cell) = cell {
        // SAFETY: this CPU's own value, aligned.
        unsafe {
            add_atomic(&raw mut (*cell).packets, count.packets);
            add_atomic(&raw mut (*cell).bytes, count.bytes);
        }
    }
}

/// Adds one to a gauge, in one instruction.
#[inline(always)]
pub fn gauge(gauge: Gauge) {
    if let Some(value) = maps::gauge(gauge as u32) {
        // SAFETY: this CPU's own value, aligned.
        unsafe { add_atomic(value, 1) };
    }
}
