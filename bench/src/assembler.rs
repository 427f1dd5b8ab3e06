//! An assembler for the programs that hydra's are compared with, and those that make frames: a dozen instructions each, so that nothing
//! but what they are for is in them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::bpf::{self, Load};

/// Registers by the kernel's names.
pub mod register {
    #![allow(missing_docs, reason = "r0 to r10 are what they are")]
    pub const R0: u8 = 0;
    pub const R1: u8 = 1;
    pub const R2: u8 = 2;
    pub const R3: u8 = 3;
    pub const R4: u8 = 4;
    pub const R6: u8 = 6;
    pub const R7: u8 = 7;
    pub const R10: u8 = 10;
}

/// How wide a load or store is, as in the operation's code.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    B = 0x10,
    /// Two.
    H = 0x08,
    /// Four.
    W = 0x00,
    /// Eight.
    D = 0x18,
}

/// A program that is being written. Jumps only go forward, to [`Code::end`].
#[derive(Debug, Default)]
pub struct Code {
    bytes: Vec<u8>,
    jumps: Vec<usize>,
}

impl Code {
    /// Any instruction: code, destination, source, offset, number (`Documentation/bpf/standardization/instruction-set.rst`).
    pub fn op(&mut self, code: u8, to: u8, from: u8, offset: i16, number: i32) -> &mut Self {
        self.bytes.extend([code, to | from << 4]);
        self.bytes.extend(offset.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self
    }

    /// `to = number`
    pub fn set(&mut self, to: u8, number: i32) -> &mut Self {
        self.op(0xb7, to, 0, 0, number)
    }

    /// `to = from`
    pub fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.op(0xbf, to, from, 0, 0)
    }

    /// `to += number`
    pub fn add(&mut self, to: u8, number: i32) -> &mut Self {
        self.op(0x07, to, 0, 0, number)
    }

    /// `to = *(from + offset)`
    pub fn load(&mut self, width: Width, to: u8, from: u8, offset: i16) -> &mut Self {
        self.op(0x61 | width as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = from`
    pub fn store(&mut self, width: Width, to: u8, offset: i16, from: u8) -> &mut Self {
        self.op(0x63 | width as u8, to, from, offset, 0)
    }

    /// `*(to + offset) = number`
    pub fn put(&mut self, width: Width, to: u8, offset: i16, number: i32) -> &mut Self {
        self.op(0x62 | width as u8, to, 0, offset, number)
    }

    /// `lock *(u64 *)(to + offset) += from`
    pub fn add_atomic(&mut self, to: u8, offset: i16, from: u8) -> &mut Self {
        self.op(0xdb, to, from, offset, 0)
    }

    /// `to = map`
    pub fn map(&mut self, to: u8, map: &OwnedFd) -> &mut Self {
        const PSEUDO_MAP_FD: u8 = 1;
        self.op(0x18, to, PSEUDO_MAP_FD, 0, map.as_raw_fd()).op(0, 0, 0, 0, 0)
    }

    /// `r0 = helper(r1, …)`
    pub fn helper(&mut self, number: i32) -> &mut Self {
        self.op(0x85, 0, 0, 0, number)
    }

    /// To the end if `a > b`.
    pub fn end_if_above(&mut self, a: u8, b: u8) -> &mut Self {
        self.jumps.push(self.bytes.len());
        self.op(0x2d, a, b, 0, 0)
    }

    /// To the end if `a == 0`.
    pub fn end_if_zero(&mut self, a: u8) -> &mut Self {
        self.jumps.push(self.bytes.len());
        self.op(0x15, a, 0, 0, 0)
    }

    /// `return number`
    pub fn give(&mut self, number: i32) -> &mut Self {
        self.set(register::R0, number).op(0x95, 0, 0, 0, 0)
    }

    /// To the end if `a != number`.
    pub fn end_unless(&mut self, a: u8, number: i32) -> &mut Self {
        self.jumps.push(self.bytes.len());
        self.op(0x55, a, 0, 0, number)
    }

    /// Where the jumps lead to: `return number`. Loads it as a program of a type.
    pub fn end(&mut self, kind: u32, number: i32) -> io::Result<OwnedFd> {
        self.end_with(Load { kind, ..Load::default() }, number)
    }

    /// The same with more than a type.
    pub fn end_with(&mut self, how: Load<'_>, number: i32) -> io::Result<OwnedFd> {
        let here = self.bytes.len();
        for jump in std::mem::take(&mut self.jumps) {
            let distance = i16::try_from((here - jump) / 8 - 1).map_err(io::Error::other)?;
            self.bytes[jump + 2..jump + 4].copy_from_slice(&distance.to_ne_bytes());
        }
        self.give(number);
        bpf::load(&mut Load { code: &self.bytes, ..how })
    }
}
