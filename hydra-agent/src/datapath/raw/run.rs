//! Runs a program without a packet.

use std::io;
use std::os::fd::BorrowedFd;

use zerocopy::{Immutable, IntoBytes};

use super::{at, call, number};

const PROG_TEST_RUN: u32 = 10;
/// Ethernet header: what a classifier's frame begins with at least.
const HEADER: usize = 14;
/// IEEE 802, local experimental: the kernel looks no further into a frame of it.
const LOCAL: [u8; 2] = [0x88, 0xb5];

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct TestRun {
    program: u32,
    returned: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

/// Runs a classifier once, on a frame that holds `payload`; gives what it returned. What it returns has no effect.
pub fn run(program: BorrowedFd<'_>, payload: &[u8]) -> io::Result<u32> {
    let mut frame = vec![0; HEADER];
    frame[HEADER - 2..].copy_from_slice(&LOCAL);
    frame.extend_from_slice(payload);
    let mut attr = TestRun {
        program: number(program),
        size_in: frame.len() as u32,
        data_in: at(frame.as_ptr()),
        repeat: 1,
        ..TestRun::default()
    };
    call(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.returned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets are the contract with the kernel (`include/uapi/linux/bpf.h`).
    #[test]
    fn arguments_lie_where_the_kernel_reads_them() {
        assert_eq!(std::mem::offset_of!(TestRun, data_in), 16);
        assert_eq!(std::mem::offset_of!(TestRun, repeat), 32);
        assert_eq!(std::mem::offset_of!(TestRun, context_in), 48);
    }
}
