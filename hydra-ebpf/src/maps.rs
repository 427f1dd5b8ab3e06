//! The tables, private to this file; the rest sees functions. Names, keys and values are those of `hydra_common::names` and
//! `hydra_common::tables`; the contract test holds the built object against them.

use core::ops::Deref;
use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use hydra_common::address::Address;
use hydra_common::decide::{At, Outcome};
use hydra_common::event::{Event, EventWindow};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Identity, MAX_IDENTITIES};
use hydra_common::packet::Packet;
use hydra_common::share::Word;
use hydra_common::tables::{
    BucketKey, Cell, Cgroup, CgroupKey, Count, DROP_SLOTS, Decision, DropKey, DropSlot, Endpoint, Fragment,
    FragmentKey, GAUGES, Head, IdentityRow, Interval, Limit, Link, MAX_BUCKETS, MAX_CGROUP_DEPTH,
    MAX_CGROUPS, MAX_DECISIONS, MAX_ENDPOINTS, MAX_FRAGMENTS, MAX_INTERVALS, MAX_LIMITS, MAX_LINKS,
    MAX_PREFIXES, MAX_PUBLISHED, MAX_RULE_SETS, Moment, Owner, PrefixData, PrefixRow, Publish, PublishKey,
    RuleSet, TRAFFIC_CELLS, Tables, cell_index,
};

use crate::flows;
use crate::global::global;
use crate::near;

#[map]
static HYDRA_GEN: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static HYDRA_HEADS: Array<Head> = Array::with_max_entries(2, 0);
#[map]
static HYDRA_IDS: Array<IdentityRow> = Array::with_max_entries(2 * MAX_IDENTITIES, BPF_F_MMAPABLE);
#[map]
static HYDRA_CELLS: Array<Cell> =
    Array::with_max_entries(2 * MAX_IDENTITIES * MAX_IDENTITIES, BPF_F_MMAPABLE);
#[map]
static HYDRA_SETS: Array<RuleSet> = Array::with_max_entries(2 * MAX_RULE_SETS, BPF_F_MMAPABLE);
#[map]
static HYDRA_RANGES: Array<Interval> = Array::with_max_entries(2 * MAX_INTERVALS, BPF_F_MMAPABLE);
#[map]
static HYDRA_DECIDE: Array<Decision> = Array::with_max_entries(2 * MAX_DECISIONS, BPF_F_MMAPABLE);
#[map]
static HYDRA_PREFIX: LpmTrie<PrefixData, PrefixRow> =
    LpmTrie::with_max_entries(MAX_PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_ENDPTS: HashMap<Address, Endpoint> = HashMap::with_max_entries(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_LINKS: HashMap<u32, Link> = HashMap::with_max_entries(MAX_LINKS, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_PUBLISH: HashMap<PublishKey, Publish> =
    HashMap::with_max_entries(MAX_PUBLISHED, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_CGROUPS: HashMap<CgroupKey, Cgroup> = HashMap::with_max_entries(MAX_CGROUPS, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_FRAGS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static HYDRA_LIMITS: Array<Limit> = Array::with_max_entries(2 * MAX_LIMITS, BPF_F_MMAPABLE);
#[map]
static HYDRA_BUCKETS: LruHashMap<BucketKey, u64> = LruHashMap::with_max_entries(MAX_BUCKETS, 0);
#[map]
static HYDRA_LIMITED: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_LIMITS, 0);
#[map]
static HYDRA_TRAFFIC: PerCpuArray<Count> = PerCpuArray::with_max_entries(TRAFFIC_CELLS, 0);
#[map]
static HYDRA_DROPS: PerCpuHashMap<DropKey, Count> =
    PerCpuHashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
#[map]
static HYDRA_REASONS: PerCpuArray<Count> = PerCpuArray::with_max_entries(256, 0);
#[map]
static HYDRA_GAUGES: PerCpuArray<u64> = PerCpuArray::with_max_entries(GAUGES, 0);
#[map]
static HYDRA_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static HYDRA_EVWIN: PerCpuArray<EventWindow> = PerCpuArray::with_max_entries(1, 0);
#[map]
static HYDRA_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static HYDRA_ROOMS: HashMap<u64, Scratch> = HashMap::with_max_entries(1_024, 0);

#[map]
static HYDRA_DROPSLOT: PerCpuArray<DropSlot> = PerCpuArray::with_max_entries(DROP_SLOTS, 0);

/// What does not fit on a stack of 512 bytes. A CPU runs one program of interfaces at a time, to its end: those of XDP run where it
/// receives (`NAPI`, or `__netif_receive_skb_core` for the generic kind), which a classifier is not interrupted by, since all run with
/// bottom halves off. What a classifier sends on is received after it has ended (a `veth` and the backlog queue it, Linux 4.19 and before).
#[repr(C)]
pub struct Scratch {
    /// A tick, and the time that it began at.
    pub tick: [u64; 2],
    /// The frame being judged.
    pub packet: Packet,
    /// The verdict on it.
    pub outcome: Outcome,
    /// The flow entry being made.
    pub flow: Flow,
    /// Nothing: with another size this is another layout, since the maps of it are pinned.
    pub spare: [u64; 3],
}

/// This CPU's scratch.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the only reference on this CPU, see `Scratch`; all its bit patterns were written by us or are zero.
    HYDRA_SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Room for one run of a program that another can interrupt: a process's packet is judged with a classifier's, or another process's,
/// in between (`migrate_disable` keeps it on its CPU, and no more). Taken for a number that nobody else has.
#[inline(always)]
pub fn take_room(number: u64) -> Option<&'static mut Scratch> {
    // What is in there does not matter.
    let content = HYDRA_SCRATCH.get_ptr(0)?;
    // SAFETY: this CPU's own scratch, which is only copied.
    HYDRA_ROOMS.insert(&number, unsafe { &*content }, u64::from(BPF_NOEXIST)).ok()?;
    // SAFETY: nobody else knows the number until it is given back.
    HYDRA_ROOMS.get_ptr_mut(&number).map(|p| unsafe { &mut *p })
}

/// Gives a room back.
#[inline(always)]
pub fn leave_room(number: u64) {
    // It is there: `take_room` has made it.
    let _ = HYDRA_ROOMS.remove(&number);
}

/// The kernel's tables.
pub struct Maps;

/// An entry of the flow table: memory of the map, valid until the program ends.
#[derive(Clone, Copy)]
pub struct LiveFlow(NonNull<Flow>);

impl LiveFlow {
    /// Of a value that a look-up has just found.
    #[inline(always)]
    pub const fn new(found: NonNull<Flow>) -> Self {
        Self(found)
    }

    /// The entry, for the atomic counters and the fields that one writer at a time may set.
    #[inline(always)]
    pub fn pointer(self) -> *mut Flow {
        self.0.as_ptr()
    }
}

impl Deref for LiveFlow {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        // SAFETY: the value is the map's as long as the map is. The kernel may give the place of an entry that was removed or evicted
        // to another flow at once (`preallocated` maps): what is read then is a flow's that passed, and only counts are wrong.
        unsafe { self.0.as_ref() }
    }
}

impl Tables for Maps {
    type Flow<'a> = LiveFlow;

    #[inline(always)]
    fn generation(&self) -> u32 {
        HYDRA_GEN.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn head(&self, bank: u32) -> Option<&Head> {
        HYDRA_HEADS.get(bank & 1)
    }

    #[inline(always)]
    fn link(&self, ifindex: u32) -> Option<&Link> {
        // SAFETY: rows are replaced whole, never written in place, by the one writer in user space.
        unsafe { HYDRA_LINKS.get(&ifindex) }
    }

    #[inline(always)]
    fn endpoint(&self, address: &Address) -> Option<&Endpoint> {
        find_endpoint(address)
    }

    #[inline(always)]
    fn sender(&self, ifindex: u32) -> Option<&Link> {
        near::sender(ifindex, || self.link(ifindex))
    }

    #[inline(always)]
    fn owner(&self, ifindex: u32, source: &Address) -> Option<Owner> {
        near::owner(ifindex, source, || self.endpoint(source))
    }

    #[inline(always)]
    fn receiver(&self, destination: &Address) -> Option<&Endpoint> {
        near::receiver(destination, || self.endpoint(destination))
    }

    #[inline(always)]
    fn moment(&self) -> Moment {
        Moment { rows: flows::word(Word::Rows), generation: self.generation() }
    }

    #[inline(always)]
    fn passed(&self, packet: &Packet, at: &At, since: &Moment) -> bool {
        near::passed(packet, at, since)
    }

    #[inline(always)]
    fn passes(&self, packet: &Packet, at: &At, since: &Moment) {
        near::passes(packet, at, since);
    }

    #[inline(always)]
    fn published(&self, key: &PublishKey) -> Option<&Publish> {
        find_published(key)
    }

    #[inline(always)]
    fn cgroup(&self, key: &CgroupKey) -> Option<&Cgroup> {
        find_cgroup(key)
    }

    #[inline(always)]
    fn prefix(&self, bank: u32, address: &Address) -> Option<&PrefixRow> {
        find_prefix(bank, address)
    }

    #[inline(always)]
    fn identity(&self, bank: u32, identity: Identity) -> Option<&IdentityRow> {
        HYDRA_IDS.get((bank & 1) * MAX_IDENTITIES + u32::from(identity.0) % MAX_IDENTITIES)
    }

    #[inline(always)]
    fn cell(&self, bank: u32, source: Identity, destination: Identity) -> Option<Cell> {
        HYDRA_CELLS.get(cell_index(bank, source, destination)).copied()
    }

    #[inline(always)]
    fn rule_set(&self, bank: u32, index: u32) -> Option<&RuleSet> {
        HYDRA_SETS.get(banked(bank, index, MAX_RULE_SETS)?)
    }

    #[inline(always)]
    fn interval(&self, bank: u32, index: u32) -> Option<&Interval> {
        HYDRA_RANGES.get(banked(bank, index, MAX_INTERVALS)?)
    }

    #[inline(always)]
    fn decision(&self, bank: u32, index: u32) -> Option<&Decision> {
        HYDRA_DECIDE.get(banked(bank, index, MAX_DECISIONS)?)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<LiveFlow> {
        flows::find(key)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        // SAFETY: a row is only ever replaced whole; one that the kernel reuses for another datagram meanwhile is of the same shape,
        // and what it says is judged like any packet.
        unsafe { HYDRA_FRAGS.get(key) }
    }
}

/// Inlined: a call costs a third of a look-up.
#[inline(always)]
fn find_endpoint(address: &Address) -> Option<&'static Endpoint> {
    // SAFETY: rows are replaced whole, never written in place, by the one writer in user space.
    unsafe { HYDRA_ENDPTS.get(address) }
}

/// A cgroup's row.
#[inline(always)]
pub fn find_cgroup(key: &CgroupKey) -> Option<&'static Cgroup> {
    // SAFETY: rows are replaced whole, never written in place, by the one writer in user space.
    unsafe { HYDRA_CGROUPS.get(key) }
}

/// The nearest cgroup that has a row, with its number: `ancestor` gives the one at a level below the root, 0 where there is none.
#[inline(always)]
pub fn nearest_cgroup(ancestor: impl Fn(i32) -> u64) -> Option<(u64, &'static Cgroup)> {
    let mut found = None;
    for level in 1..=MAX_CGROUP_DEPTH {
        let id = ancestor(level as i32);
        if id == 0 {
            break;
        }
        if let Some(row) = find_cgroup(&CgroupKey::new(id, 0)) {
            found = Some((id, row));
        }
    }
    found
}

/// A function of its own in the object: it is asked for at many places.
#[inline(never)]
fn find_published(key: &PublishKey) -> Option<&'static Publish> {
    // SAFETY: rows are replaced whole, never written in place, by the one writer in user space.
    unsafe { HYDRA_PUBLISH.get(key) }
}

/// A function of its own in the object, for its key's room on the stack.
#[inline(never)]
fn find_prefix(bank: u32, address: &Address) -> Option<&'static PrefixRow> {
    let data = PrefixData { bank: (bank & 1).to_be_bytes(), address: address.octets() };
    HYDRA_PREFIX.get(&Key::new(PrefixData::BANK_BITS + 128, data))
}

/// An index beyond the bank would read the other one's rows.
#[inline(always)]
fn banked(bank: u32, index: u32, size: u32) -> Option<u32> {
    if index < size { Some((bank & 1) * size + index) } else { None }
}

/// Notes the first piece of a datagram. Where there is no room the others are denied.
#[inline(always)]
pub fn put_fragment(key: &FragmentKey, first: &Fragment) {
    let _ = HYDRA_FRAGS.insert(key, first, 0);
}

/// A limit of a bank.
#[inline(always)]
pub fn limit(bank: u32, index: u32) -> Option<&'static Limit> {
    HYDRA_LIMITS.get(banked(bank, index, MAX_LIMITS)?)
}

/// Another CPU that takes from the same bucket makes this one try again: so often, then it is denied. Each try that fails is a flow
/// that another CPU let begin.
const TRIES: u32 = 16;

global!(
/// Takes one flow of a source from a limit; 0 where it is used up, or where there is no room to remember the source. Exact also
/// from two CPUs at once.
pub fn take = hydra_take(source: of Address, limit: of Limit, at: of At) -> u32 or 0; {
    let now = at.now;
    let key = BucketKey { source: *source, bucket: limit.bucket, zero: [0; 4] };
    let mut bucket = HYDRA_BUCKETS.get_ptr_mut(&key);
    if bucket.is_none() {
        let Some(next) = hydra_common::limit::take(0, now, limit) else { return 0 };
        if HYDRA_BUCKETS.insert(&key, &next, u64::from(BPF_NOEXIST)).is_ok() {
            return 1;
        }
        // Another CPU was first.
        bucket = HYDRA_BUCKETS.get_ptr_mut(&key);
    }
    let Some(bucket) = bucket else { return 0 };
    for _ in 0..TRIES {
        // SAFETY: an aligned value of a map that lives until the program ends; every change of it is atomic.
        let held = unsafe { core::ptr::read_volatile(bucket) };
        let Some(next) = hydra_common::limit::take(held, now, limit) else { return 0 };
        // SAFETY: as above.
        if unsafe { compare_exchange(bucket, held, next) } == held {
            return 1;
        }
    }
    0
});

/// Writes `new` where `old` is, and gives what was there: `AtomicU64::compare_exchange` does not exist for this target. Linux 5.12.
///
/// # Safety
/// `p` points to an aligned `u64` of a live map value.
#[inline(always)]
pub unsafe fn compare_exchange(p: *mut u64, old: u64, new: u64) -> u64 {
    let found;
    // SAFETY: as promised by the caller.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({p} + 0, r0, {new})",
            p = in(reg) p,
            new = in(reg) new,
            inlateout("r0") old => found,
        );
    }
    found
}

/// What this CPU has denied because a limit was used up, by the limit's number.
#[inline(always)]
pub fn limited(bucket: u32) -> Option<*mut u64> {
    HYDRA_LIMITED.get_ptr_mut(bucket)
}

/// A cell of the traffic counters of this CPU.
#[inline(always)]
pub fn traffic(index: u32) -> Option<*mut Count> {
    HYDRA_TRAFFIC.get_ptr_mut(index)
}

/// The counters of a reason on this CPU.
#[inline(always)]
pub fn reason(index: u8) -> Option<*mut Count> {
    HYDRA_REASONS.get_ptr_mut(u32::from(index))
}

/// A gauge of this CPU.
#[inline(always)]
pub fn gauge(index: u32) -> Option<*mut u64> {
    HYDRA_GAUGES.get_ptr_mut(index)
}

/// The drop counters of a key on this CPU, made at its first use.
#[inline(always)]
pub fn drops(key: &DropKey) -> Option<*mut Count> {
    if let Some(count) = HYDRA_DROPS.get_ptr_mut(key) {
        return Some(count);
    }
    // Another CPU may be first; what counts is that it is there.
    let _ = HYDRA_DROPS.insert(key, &Count { packets: 0, bytes: 0 }, u64::from(BPF_NOEXIST));
    HYDRA_DROPS.get_ptr_mut(key)
}

/// The counters of what a classifier drops, where the slot is the key's or nobody's.
#[inline(always)]
pub fn drop_slot(key: &DropKey) -> Option<*mut Count> {
    let number = key.number();
    let slot = HYDRA_DROPSLOT.get_ptr_mut(key.slot())?;
    // SAFETY: this CPU's own, which runs one classifier at a time.
    let slot = unsafe { &mut *slot };
    if slot.key == 0 {
        slot.key = number;
    }
    if slot.key == number && number != 0 { Some(&raw mut slot.count) } else { None }
}

/// This CPU's rate window of events.
#[inline(always)]
pub fn event_window() -> Option<*mut EventWindow> {
    HYDRA_EVWIN.get_ptr_mut(0)
}

/// Room for an event; `None`: there is none.
#[inline(always)]
pub fn reserve_event() -> Option<RingBufEntry<Event>> {
    HYDRA_EVENTS.reserve::<Event>(0)
}
