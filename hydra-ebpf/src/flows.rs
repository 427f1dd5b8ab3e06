//! The flow table: the first one, which never evicts, the second for what finds no room there, and what each source has of the first.
//! Who is to have what is said in `hydra_common::share`.
//!
//! An entry is removed, or another put in its place, only by whoever has changed its `created` to 0: nobody else touches the key until
//! that is done, so what is removed is what was looked at, and never the next flow of the same ends. (In the second table the kernel
//! evicts by itself; what is lost there was evictable.)

use core::mem::size_of;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::TcContext;
use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::share::{self, MAX_SHARES, Meetings, Place, WORDS, Word};
use hydra_common::tables::{SWEEPS, Sweep};

use crate::global::global;
use crate::maps::{LiveFlow, compare_exchange};
use crate::report::add_atomic;

// The sizes of the two and of `HYDRA_MEETINGS` are the agent's to say when it loads them.
#[map]
static HYDRA_FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(131_072, 0);
#[map]
static HYDRA_SPILL: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(32_768, 0);
#[map]
static HYDRA_SHARES: LruHashMap<Address, u64> = LruHashMap::with_max_entries(MAX_SHARES, 0);
#[map]
static HYDRA_TABLE: Array<u64> = Array::with_max_entries(WORDS, 0);
#[map]
static HYDRA_MEETINGS: Array<u64> = Array::with_max_entries(Meetings::rows(131_072), BPF_F_MMAPABLE);

/// There is no room for the entry.
pub const FULL: u32 = 0;
/// The entry is written.
pub const MADE: u32 = 1;
/// Another one is there.
pub const THERE: u32 = 2;
/// None is there.
const GONE: u32 = 3;

const EEXIST: i32 = -17;
/// Ethernet header.
const HEADER: u32 = 14;

/// A flow's entry. Of an established one this is one look-up.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<LiveFlow> {
    if !met(key) {
        return None;
    }
    let found = match HYDRA_FLOWS.get_ptr_mut(key) {
        None if spilled() => HYDRA_SPILL.get_ptr_mut(key),
        found => found,
    };
    found.and_then(NonNull::new).map(LiveFlow::new)
}

/// Whether there may be an entry.
#[inline(always)]
fn met(key: &FlowKey) -> bool {
    let place = Place::of(key);
    match HYDRA_MEETINGS.get_ptr(Meetings::from_word(word(Word::Meetings)).read(place)) {
        // SAFETY: an aligned value that lives as long as the program; others change it in one instruction.
        Some(row) => unsafe { ptr::read_volatile(row) & place.bit != 0 },
        None => true,
    }
}

global!(
/// Notes that there may be an entry: in both banks, before it is there, and in the same run of the program. The agent waits for runs.
fn meet = hydra_meet(key: of FlowKey) {
    let (meetings, place) = (Meetings::from_word(word(Word::Meetings)), Place::of(key));
    for bank in 0..2 {
        if let Some(row) = HYDRA_MEETINGS.get_ptr_mut(meetings.of(bank, place)) {
            // SAFETY: an aligned value that lives as long as the program.
            unsafe { core::arch::asm!("lock *(u64 *)({p} + 0) |= {n}", p = in(reg) row, n = in(reg) place.bit) };
        }
    }
});

/// Whether there may be anything in the second table.
#[inline(always)]
fn spilled() -> bool {
    word(Word::Spilled) != word(Word::Empty)
}

#[inline(always)]
pub fn word(word: Word) -> u64 {
    // SAFETY: an aligned value that lives as long as the program; others change it in one instruction.
    HYDRA_TABLE.get_ptr(word as u32).map_or(0, |p| unsafe { ptr::read_volatile(p) })
}

#[inline(always)]
fn add(word: Word, n: i64) {
    if let Some(p) = HYDRA_TABLE.get_ptr_mut(word as u32) {
        // SAFETY: an aligned value that lives as long as the program.
        unsafe { add_atomic(p, n as u64) };
    }
}

/// Whether a source may have another entry of the first table.
#[inline(always)]
fn admitted(source: &Option<Address>, counted: u16) -> bool {
    let Some(source) = source else { return false };
    // SAFETY: as in `word`.
    let held = HYDRA_SHARES.get_ptr(source).map_or(0, |p| unsafe { ptr::read_volatile(p) });
    let room = share::room(counted, word(Word::Capacity));
    share::admits(held, word(Word::Used), room, word(Word::Share))
}

/// One more of a source.
#[inline(always)]
fn more(source: &Option<Address>) {
    let Some(source) = source else { return };
    if HYDRA_SHARES.get_ptr(source).is_none()
        && HYDRA_SHARES.insert(source, 1, u64::from(BPF_NOEXIST)).is_ok()
    {
        return;
    }
    // Where it has no room it is not counted: the agent counts again.
    if let Some(held) = HYDRA_SHARES.get_ptr_mut(source) {
        // SAFETY: an aligned value of a map that lives until the program ends.
        unsafe { add_atomic(held, 1) };
    }
}

/// One less.
#[inline(always)]
fn less(source: &Option<Address>) {
    let Some(source) = source else { return };
    if let Some(held) = HYDRA_SHARES.get_ptr_mut(source) {
        // SAFETY: as above.
        unsafe {
            if ptr::read_volatile(held) != 0 {
                add_atomic(held, u64::MAX);
            }
        }
    }
}

/// Makes an entry the caller's to remove or replace, if it is the one that began at `created`.
#[inline(always)]
fn claim(live: *mut Flow, created: u64) -> bool {
    // SAFETY: the entry lives until the program ends, and the field is aligned.
    created != 0 && unsafe { compare_exchange(&raw mut (*live).created, created, 0) } == created
}

/// Gives it back: the kernel did not do it.
#[inline(always)]
fn release(live: *mut Flow, created: u64) {
    // SAFETY: as above.
    unsafe { compare_exchange(&raw mut (*live).created, 0, created) };
}

/// Whether what was claimed is the key's. An entry that another CPU removed between the look-up and the claim may be another key's by then, and is
/// given back; one that is claimed stays where it is.
#[inline(always)]
fn still(found: Option<*mut Flow>, live: *mut Flow, created: u64) -> bool {
    let same = found == Some(live);
    if !same {
        release(live, created);
    }
    same
}

/// When it began.
#[inline(always)]
fn created(live: *mut Flow) -> u64 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*live).created) }
}

global!(
/// Writes a new entry where there is none: [`MADE`], [`THERE`] or [`FULL`].
pub fn begin = hydra_begin(key: of FlowKey, fresh: into Flow) -> u32 or FULL; {
    // First of all: what is found here is written over by the same run.
    meet(key);
    if spilled() && HYDRA_SPILL.get_ptr(key).is_some() {
        return THERE;
    }
    let source = share::source(key, fresh);
    let counted = fresh.counted;
    if admitted(&source, counted) {
        match HYDRA_FLOWS.insert(key, &*fresh, u64::from(BPF_NOEXIST)) {
            Ok(()) => {
                more(&source);
                add(Word::Used, 1);
                return MADE;
            }
            Err(EEXIST) => return THERE,
            Err(_) => {}
        }
    } else if HYDRA_FLOWS.get_ptr(key).is_some() {
        return THERE;
    }
    fresh.counted = share::NOBODY;
    match HYDRA_SPILL.insert(key, &*fresh, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            // After the entry, and before its packet goes on: see `Word::Empty`.
            add(Word::Spilled, 1);
            MADE
        }
        Err(EEXIST) => {
            fresh.counted = counted;
            THERE
        }
        Err(_) => FULL,
    }
});

/// Writes a new entry over the one that [`begin`] has found: [`MADE`], [`THERE`] where another CPU is about to, or [`FULL`].
#[inline(always)]
pub fn replace(key: &FlowKey, fresh: &mut Flow) -> u32 {
    match over(key, fresh) {
        GONE => begin(key, fresh),
        made => made,
    }
}

global!(
/// The same, but for [`GONE`]: not a step deeper in the calls.
fn over = hydra_replace(key: of FlowKey, fresh: into Flow) -> u32 or FULL; {
    if let Some(live) = HYDRA_FLOWS.get_ptr_mut(key) {
        let began = created(live);
        if !claim(live, began) || !still(HYDRA_FLOWS.get_ptr_mut(key), live, began) {
            return THERE;
        }
        // SAFETY: the entry lives until the program ends; nobody changes these fields of it.
        let old = share::source(key, unsafe { &*live });
        let new = share::source(key, fresh);
        if HYDRA_FLOWS.insert(key, &*fresh, 0).is_err() {
            release(live, began);
            return FULL;
        }
        if old != new {
            less(&old);
            more(&new);
        }
        return MADE;
    }
    if let Some(live) = HYDRA_SPILL.get_ptr_mut(key) {
        let began = created(live);
        if !claim(live, began) || !still(HYDRA_SPILL.get_ptr_mut(key), live, began) {
            return THERE;
        }
        fresh.counted = share::NOBODY;
        if HYDRA_SPILL.insert(key, &*fresh, 0).is_err() {
            release(live, began);
            return FULL;
        }
        add(Word::Spilled, 1);
        return MADE;
    }
    GONE
});

global!(
/// Takes an entry away, if it began then and, where `seen` is not 0, was seen last then. 1: it is gone.
pub fn end = hydra_end(key: of FlowKey, began: plain u64, seen: plain u64) -> u32 or 0; {
    if let Some(live) = HYDRA_FLOWS.get_ptr_mut(key)
        && silent(live, seen)
    {
        if claim(live, began) && still(HYDRA_FLOWS.get_ptr_mut(key), live, began) {
            // SAFETY: the entry lives until the program ends; nobody changes these fields of it.
            let source = share::source(key, unsafe { &*live });
            if HYDRA_FLOWS.remove(key).is_err() {
                release(live, began);
                return 0;
            }
            less(&source);
            add(Word::Used, -1);
            return 1;
        }
    }
    if let Some(live) = HYDRA_SPILL.get_ptr_mut(key)
        && silent(live, seen)
        && claim(live, began)
        && still(HYDRA_SPILL.get_ptr_mut(key), live, began)
    {
        if HYDRA_SPILL.remove(key).is_ok() {
            return 1;
        }
        release(live, began);
    }
    0
});

#[inline(always)]
fn silent(live: *mut Flow, seen: u64) -> bool {
    // SAFETY: as in `created`.
    seen == 0 || unsafe { ptr::read_volatile(&raw const (*live).seen) } == seen
}

/// Takes away what the agent lists: gives the number.
#[inline(always)]
pub fn sweep(ctx: &TcContext) -> i32 {
    let mut gone = 0;
    for n in 0..SWEEPS {
        gone += one(ctx.skb.skb, n);
    }
    gone as i32
}

global!(fn one = hydra_sweep_one(skb: plain *mut __sk_buff, n: plain u32) -> u32 or 0; {
    let mut wanted = Sweep::default();
    let size = size_of::<Sweep>() as u32;
    let into = (&raw mut wanted).cast();
    // SAFETY: `wanted` has room for as many bytes, and any bytes are one.
    if n >= SWEEPS || unsafe { bpf_skb_load_bytes(skb.cast(), HEADER + n * size, into, size) } != 0 {
        return 0;
    }
    if wanted.created == 0 {
        return 0;
    }
    end(&wanted.key, wanted.created, wanted.seen)
});
