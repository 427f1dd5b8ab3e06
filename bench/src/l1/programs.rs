//! The programs that hydra's are compared with, and the one that gives them another packet each time.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use hydra_tests::kernel::NEXT;

use crate::assembler::register::{R0, R1, R2, R3, R4, R6, R10};
use crate::assembler::{Code, Width};
use crate::bpf::{self, SCHED_CLS};
use crate::header::{self, Layout};

/// What a run comes to that did not get where it should.
const LOST: i32 = 99;
/// Offsets of `data` and `data_end` in `struct __sk_buff`.
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// Helpers (`include/uapi/linux/bpf.h`).
const LOOK_UP: i32 = 1;
const TAIL_CALL: i32 = 12;
/// As many rows as hydra's flow table, keys of its size, and two counters.
const ROWS: u32 = 131_072;
const KEY: usize = 40;
const VALUE: usize = 16;

/// Nothing.
pub fn empty() -> Result<OwnedFd> {
    Code::default().end(SCHED_CLS, NEXT).context("cannot load the empty program")
}

/// Reads addresses and ports of a frame, looks a row of that key up, and counts a packet and its bytes there. There are rows for these
/// frames, all of one family.
pub fn look_up(frames: &[&[u8]]) -> Result<OwnedFd> {
    let map = bpf::hash(KEY as u32, VALUE as u32, ROWS).context("cannot make a hash table")?;
    for frame in frames {
        bpf::update(&map, &key(frame), &[0; VALUE])?;
    }
    let frame = frames.first().context("no frame")?;
    let layout = Layout::of(frame);
    let mut code = Code::default();
    code.load(Width::W, R2, R1, DATA).load(Width::W, R3, R1, DATA_END);
    code.copy(R4, R2).add(R4, i32::from(layout.ports) + 4).end_if_above(R4, R3);
    for word in 0..KEY as i16 / 8 {
        code.put(Width::D, R10, word * 8 - KEY as i16, 0);
    }
    let parts = layout.length * 2 / 4;
    for part in 0..parts {
        code.load(Width::W, R4, R2, layout.addresses + part * 4);
        code.store(Width::W, R10, part * 4 - KEY as i16, R4);
    }
    code.load(Width::W, R4, R2, layout.ports).store(Width::W, R10, -8, R4);
    code.map(R1, &map).copy(R2, R10).add(R2, -(KEY as i32)).helper(LOOK_UP).end_if_zero(R0);
    code.set(R1, 1).add_atomic(R0, 0, R1).set(R1, frame.len() as i32).add_atomic(R0, 8, R1);
    // The program keeps the map.
    code.give(NEXT).end(SCHED_CLS, LOST).context("cannot load the program of one look-up")
}

/// The key that the program makes.
fn key(frame: &[u8]) -> [u8; KEY] {
    let layout = Layout::of(frame);
    let mut key = [0; KEY];
    let (begin, length) = (layout.addresses as usize, layout.length as usize * 2);
    key[..length].copy_from_slice(&frame[begin..begin + length]);
    key[32..36].copy_from_slice(&frame[layout.ports as usize..layout.ports as usize + 4]);
    key
}

/// Programs that others can go on with.
pub struct Table {
    map: OwnedFd,
    used: AtomicU32,
}

impl Table {
    const SLOTS: u32 = 16;

    /// None yet.
    pub fn new() -> Result<Self> {
        let map = bpf::programs(Self::SLOTS).context("cannot make a table of programs")?;
        Ok(Self { map, used: AtomicU32::new(0) })
    }

    /// Takes a program in; where it is.
    pub fn put(&self, program: &OwnedFd) -> Result<u32> {
        let slot = self.used.fetch_add(1, Ordering::Relaxed);
        ensure!(slot < Self::SLOTS, "the table of programs is full");
        bpf::update(&self.map, &slot.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())
            .context("cannot write a table of programs")?;
        Ok(slot)
    }

    /// A program that writes a frame's MACs, TTL and ports, the source port anew each time with these bits at random, and goes on with
    /// the program of a slot.
    pub fn shake(&self, frame: &[u8], random: u16, slot: u32) -> Result<OwnedFd> {
        let mut code = Code::default();
        code.copy(R6, R1);
        header::write(&mut code, frame, random, DATA, DATA_END)?;
        code.copy(R1, R6).map(R2, &self.map).set(R3, slot.cast_signed()).helper(TAIL_CALL);
        code.end(SCHED_CLS, LOST).context("cannot load the program that writes the header")
    }
}
