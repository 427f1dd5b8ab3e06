//! The walk of a packet of a process on this host's own stack, or on an interface without a port: judge, record, count; then drop it, or
//! say in the mark who sends.
//!
//! These programs run in a process or in a soft interrupt, and each can be interrupted by others on the same CPU: see
//! [`maps::take_room`], and `sock` on counters.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns,
    bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use hydra_common::address::Address;
use hydra_common::decide::ends::LOOPBACK;
use hydra_common::decide::lan::concerns;
use hydra_common::decide::own::{left, own};
use hydra_common::decide::{self, At, Outcome, Way, counts};
use hydra_common::id::{Container, Identity};
use hydra_common::names::{MARK_CHECKED, MARK_IDENTITY, MARK_LEFT, MARK_MASK, carried, carrier};
use hydra_common::packet::{Bytes, Chunk, Packet};
use hydra_common::tables::{Cgroup, CgroupKey, Count, Endpoint, Tables as _};
use hydra_common::verdict::{Hook, Verdict};

use crate::act::{PACKET_LOOPBACK, limit};
use crate::entry::note;
use crate::global::{decoded_unit, global};
use crate::maps::{self, Maps, Scratch};
use crate::report::{drop_key, event, noteworthy};
use crate::skb::{self, ETHERNET, Frame};
use crate::sock::{add, tell};

const DROP: i32 = 0;
const PASS: i32 = 1;

/// One packet at one hook.
#[inline(always)]
pub fn run(ctx: &SkBuffContext, hook: Hook) -> i32 {
    let skb = ctx.skb.skb;
    let nobody = NOBODY;
    // A process may have a network namespace of its own, in which it can have any address: what it sends to itself there is nobody's
    // business, and what leaves it is its port's.
    // SAFETY: the context is valid while the program runs (for these programs since Linux 6.15).
    let netns = unsafe { bpf_get_netns_cookie(skb.cast()) };
    let here = |row: &Cgroup| row.netns == 0 || row.netns == netns;
    let mut cgroup = 0;
    let row = match row(skb, &mut cgroup) {
        Some(row) if row.flags & Cgroup::HOST != 0 && here(row) => row,
        Some(row) if row.flags & Cgroup::LAN != 0 && here(row) => {
            // SAFETY: the context is valid while the program runs.
            if !concerns(&Maps, cgroup, unsafe { (*skb).ifindex }) {
                return PASS;
            }
            // SAFETY: as above, and its mark may be written here. What a container has set would go on with the packet.
            unsafe { (*skb).mark &= !(MARK_MASK | MARK_IDENTITY) };
            row
        }
        // What nobody may send to `host` was left to the processes of tiers.
        // SAFETY: the context is valid while the program runs.
        _ if matches!(hook, Hook::CgroupIn) && unsafe { (*skb).mark } & MARK_MASK == MARK_LEFT => {
            match maps::find_cgroup(&CgroupKey::new(0, 0)) {
                Some(own) if here(own) => &nobody,
                Some(_) => return PASS,
                // The tiers' processes have just gone.
                None => return DROP,
            }
        }
        _ => return PASS,
    };
    let own_stack = row.flags & Cgroup::HOST != 0;
    if own_stack && matches!(hook, Hook::CgroupOut) {
        // SAFETY: the context is valid while the program runs, and its mark may be read and written here.
        unsafe {
            let identity = row.identity[(Maps.generation() & 1) as usize];
            (*skb).mark = ((*skb).mark & !(MARK_MASK | MARK_IDENTITY)) | carried(identity);
        }
        let (mut source, mut destination) = (Address::default(), Address::default());
        if ends_of(skb, &mut source, &mut destination) && left(&Maps, &source, &destination) {
            return PASS;
        }
    }
    // SAFETY: no arguments; two runs on one CPU at once have different numbers, but for one in four thousand million.
    let number = unsafe { (u64::from(bpf_get_smp_processor_id()) << 32) | u64::from(bpf_get_prandom_u32()) };
    let Some(room) = maps::take_room(number) else { return DROP };
    let verdict = walk(skb, hook, row, if own_stack { 0 } else { cgroup }, room);
    maps::leave_room(number);
    match verdict {
        Verdict::Denied => DROP,
        Verdict::Allowed | Verdict::Audited => PASS,
    }
}

/// What every other process of this host is.
const NOBODY: Cgroup = Cgroup {
    netns: 0,
    address: Address::UNSPECIFIED6,
    identity: [Identity::HOST; 2],
    container: Container::NONE,
    flags: Cgroup::HOST,
    interface: 0,
    pickup_until: 0,
    zero: 0,
};

/// Where a packet comes from and goes, read from its header alone: most of what processes send is for ports to judge.
#[inline(never)]
fn ends_of(skb: *mut __sk_buff, source: &mut Address, destination: &mut Address) -> bool {
    let packet = &TcContext::new(skb);
    let bytes = Frame::new(packet);
    let Some(Chunk([first])) = bytes.load(0) else { return false };
    match first >> 4 {
        4 => {
            let Some(both) = bytes.load::<8>(12) else { return false };
            (*source, *destination) = (Address::v4(both.part::<0, 4>()), Address::v4(both.part::<4, 4>()));
        }
        6 => {
            let Some(both) = bytes.load::<32>(8) else { return false };
            (*source, *destination) = (Address::v6(both.part::<0, 16>()), Address::v6(both.part::<16, 16>()));
        }
        _ => return false,
    }
    true
}

/// `lan`: the cgroup's number, where an interface without a port is judged; 0 on this host's own stack.
#[inline(always)]
fn walk(skb: *mut __sk_buff, hook: Hook, row: &Cgroup, lan: u64, room: &mut Scratch) -> Verdict {
    let Scratch { packet, outcome, flow: fresh, .. } = room;
    // SAFETY: the context is valid while the program runs; the clock has no arguments.
    let (ifindex, kind, mark, now) =
        unsafe { ((*skb).ifindex, (*skb).pkt_type, (*skb).mark, bpf_ktime_get_coarse_ns()) };
    // On the stack: see `act::run`.
    let mut at = At { hook, ifindex, ingress: 0, mark, now };
    skb::clear(packet);
    let parsed = decoded_unit(skb::parse_bare(skb, packet));
    // The copy of what this host sends to a group comes by the interface that it goes out by: see `act::own_copy`. So does that of what it
    // routes there, of others.
    if lan == 0
        && matches!(hook, Hook::CgroupIn)
        && kind == PACKET_LOOPBACK
        && mark & MARK_MASK != MARK_CHECKED
        && Maps.endpoint(&packet.source).is_some_and(|from| from.flags & Endpoint::HOST != 0)
    {
        at.ifindex = LOOPBACK;
    }
    let at = &at;
    if lan != 0 && matches!(hook, Hook::CgroupIn) {
        skb::for_many(kind, packet);
    }
    let live = if lan == 0 {
        own(&Maps, packet, parsed, at, row, outcome)
    } else {
        decide::lan::lan(&Maps, packet, parsed, at, lan, outcome)
    };
    if counts(outcome) {
        let carried = carrier(mark).is_some() && matches!(hook, Hook::CgroupIn);
        // SAFETY: the context is valid while the program runs.
        let taken = if carried { unsafe { (*skb).tc_index } } else { 0 };
        limit(packet, outcome, at, taken);
    }
    // As if a wire's header stood in front.
    let count = Frame::new(&TcContext::new(skb)).wire(packet.payload, ETHERNET);
    note(packet, outcome, fresh, live, &count, at);
    if matches!(outcome.verdict, Verdict::Denied) || !outcome.elsewhere {
        record(packet, outcome, at, &count);
    }
    if matches!(outcome.way, Way::Left) {
        // SAFETY: the context is valid while the program runs, and its mark may be written here.
        unsafe { (*skb).mark |= MARK_LEFT };
    }
    outcome.verdict
}

/// The row of the nearest cgroup of the packet's socket that has one, and that cgroup's number.
#[inline(never)]
fn row(skb: *mut __sk_buff, cgroup: &mut u64) -> Option<&'static Cgroup> {
    // SAFETY: the context is valid while the program runs; a level below the socket's own answers 0.
    let (id, row) = maps::nearest_cgroup(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })?;
    *cgroup = id;
    Some(row)
}

global!(
/// Counts a packet by its reason, and, where it was denied or would have been, by its tiers; tells user space.
fn record = hydra_own_record(packet: of Packet, outcome: of Outcome, at: of At, count: of Count) {
    add(maps::reason(outcome.reason as u8), count);
    if !matches!(outcome.verdict, Verdict::Allowed) {
        add(maps::drops(&drop_key(outcome)), count);
    }
    if noteworthy(outcome) {
        tell(at.now, || event(packet, outcome, at, count));
    }
});
