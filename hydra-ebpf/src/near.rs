//! Rows of interfaces and endpoints that each CPU keeps near, of those that its last frames were about: without a look-up in a hash table.
//! What is kept was read while [`Word::Rows`] was what it is now; the agent changes that after it has written rows, and before they count.
//! And what was found out of packets that need nothing but rows, with the policy's: those have the generation.
//!
//! Classifiers alone use it, once for each frame: a process's packet can be interrupted by one.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use hydra_common::address::Address;
use hydra_common::decide::At;
use hydra_common::packet::Packet;
use hydra_common::share::Word;
use hydra_common::tables::{Endpoint, Link, Moment, Owner};

use crate::flows;

/// Copies a row in words. The compiler, left to itself, calls a loop of bytes.
macro_rules! copy {
    ($row:ty, $from:expr, $to:expr) => {{
        const { assert!(size_of::<$row>() % 4 == 0 && align_of::<$row>() == 4) };
        let (from, to): (&$row, &mut $row) = ($from, $to);
        // SAFETY: reads the whole of the one and writes the whole of the other.
        unsafe {
            core::arch::asm!(
                ".rept {words}",
                "{word} = *(u32 *)({from} + 0)",
                "*(u32 *)({to} + 0) = {word}",
                "{from} += 4",
                "{to} += 4",
                ".endr",
                words = const size_of::<$row>() / 4,
                word = out(reg) _,
                from = inout(reg) &raw const *from => _,
                to = inout(reg) &raw mut *to => _,
                options(nostack),
            );
        }
    }};
}
#[map]
static HYDRA_NEARLINK: PerCpuArray<NearLink> = PerCpuArray::with_max_entries(NEAR, 0);
#[map]
static HYDRA_NEARENDP: PerCpuArray<NearEndpoint> = PerCpuArray::with_max_entries(NEAR, 0);
#[map]
static HYDRA_NEARPASS: PerCpuArray<NearPass> = PerCpuArray::with_max_entries(NEAR, 0);

/// Rows that a CPU keeps near, of interfaces and of endpoints.
const NEAR: u32 = 1_024;

/// An interface's row, as it was while [`Word::Rows`] was the same, and whose the last source address on it was: what a frame needs of its
/// sender, in one line of the cache.
#[repr(C, align(8))]
pub struct NearLink {
    rows: u64,
    ifindex: u32,
    link: Link,
    source: Address,
    owner: Owner,
}

/// An endpoint's row, likewise.
#[repr(C, align(8))]
pub struct NearEndpoint {
    rows: u64,
    address: Address,
    endpoint: Endpoint,
}

/// What passes an interface to the outside unseen where it opens nothing.
#[repr(C, align(8))]
pub struct NearPass {
    rows: u64,
    source: Address,
    destination: Address,
    generation: u32,
    ifindex: u32,
    port: u32,
}

/// An interface's row, by `find` where it is not near.
#[inline(always)]
pub fn sender<'t>(ifindex: u32, find: impl FnOnce() -> Option<&'t Link>) -> Option<&'static Link> {
    let (rows, near) = (flows::word(Word::Rows), near_link(ifindex)?);
    if near.rows != rows || near.ifindex != ifindex || rows == 0 {
        // The number was read before the row: a row that changes meanwhile is kept under a number that counts no more.
        let link = find()?;
        near.rows = rows;
        near.ifindex = ifindex;
        copy!(Link, link, &mut near.link);
        // Nobody's until it has been asked for.
        near.source = Address::UNSPECIFIED6;
        near.owner = Owner::NOBODY;
    }
    // One place, whichever way: to the verifier what follows is the same.
    Some(&near.link)
}

/// Whose the source address of a frame from an interface is, by `find` where it is not near.
#[inline(always)]
pub fn owner<'t>(
    ifindex: u32,
    source: &Address,
    find: impl FnOnce() -> Option<&'t Endpoint>,
) -> Option<Owner> {
    let (rows, near) = (flows::word(Word::Rows), near_link(ifindex)?);
    let same = near.rows == rows && near.ifindex == ifindex && rows != 0;
    if same && near.source == *source {
        return Some(near.owner);
    }
    let owner = find()?.owner();
    if same {
        near.source = *source;
        near.owner = owner;
    }
    Some(owner)
}

/// An endpoint's row, by `find` where it is not near.
#[inline(always)]
pub fn receiver<'t>(
    destination: &Address,
    find: impl FnOnce() -> Option<&'t Endpoint>,
) -> Option<&'static Endpoint> {
    let (rows, near) = (flows::word(Word::Rows), near_endpoint(destination)?);
    if near.rows != rows || near.address != *destination || rows == 0 {
        let endpoint = find()?;
        near.rows = rows;
        near.address = *destination;
        copy!(Endpoint, endpoint, &mut near.endpoint);
    }
    Some(&near.endpoint)
}

/// Whether what a frame is one of has passed, at a moment that is still the same.
#[inline(always)]
pub fn passed(packet: &Packet, at: &At, since: &Moment) -> bool {
    let Some(near) = near_pass(packet) else { return false };
    let same = near.rows == since.rows && near.generation == since.generation && since.rows != 0;
    let there = near.ifindex == at.ifindex && near.port == u32::from(packet.destination_port);
    same && there && near.source == packet.source && near.destination == packet.destination
}

/// Keeps that it has.
#[inline(always)]
pub fn passes(packet: &Packet, at: &At, since: &Moment) {
    let Some(near) = near_pass(packet) else { return };
    near.rows = since.rows;
    near.source = packet.source;
    near.destination = packet.destination;
    near.generation = since.generation;
    near.ifindex = at.ifindex;
    near.port = u32::from(packet.destination_port);
}

/// The slot that a frame's way may have: of one sender at each port.
#[inline(always)]
fn near_pass(packet: &Packet) -> Option<&'static mut NearPass> {
    let source = packet.source.low();
    let slot = (source ^ source >> 10 ^ u64::from(packet.destination_port)) as u32 % NEAR;
    // SAFETY: as below.
    HYDRA_NEARPASS.get_ptr_mut(slot).map(|p| unsafe { &mut *p })
}

/// The slot that an interface's row may have.
#[inline(always)]
fn near_link(ifindex: u32) -> Option<&'static mut NearLink> {
    // SAFETY: this CPU's own, which runs one classifier at a time; all its bit patterns are values of it.
    HYDRA_NEARLINK.get_ptr_mut(ifindex % NEAR).map(|p| unsafe { &mut *p })
}

/// The same of an endpoint's.
#[inline(always)]
fn near_endpoint(address: &Address) -> Option<&'static mut NearEndpoint> {
    let slot = (address.low() ^ address.low() >> 10) as u32 % NEAR;
    // SAFETY: as above.
    HYDRA_NEARENDP.get_ptr_mut(slot).map(|p| unsafe { &mut *p })
}
