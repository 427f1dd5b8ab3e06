//! Programs for the moment in which another one moves: one that runs it, since the kernel can neither move a link nor run one program
//! twice in a chain, and one that does nothing, so that two do not judge the same packet.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use zerocopy::{Immutable, IntoBytes};

use super::map::{Map, program_array};
use super::{PROG_SCHED_CLS, at, call, owned};

const PROG_LOAD: u32 = 5;
/// `BPF_PSEUDO_MAP_FD`: the immediate is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// `bpf_tail_call`.
const TAIL_CALL: i32 = 12;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;
/// `TCX_NEXT`.
const NEXT: i32 = -1;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// See the module. Where it cannot run the other program, it drops: that is so once this value is gone.
#[derive(Debug)]
pub struct StandIn {
    program: OwnedFd,
    /// The kernel empties an array of programs when user space lets go of it.
    _array: Map,
}

impl StandIn {
    /// Loads one that runs `program`, a classifier.
    pub fn of(program: BorrowedFd<'_>) -> io::Result<Self> {
        let array = program_array()?;
        array.put(&0u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())?;
        // The context stays in r1: r2 = the array, r3 = 0, tail call; where that comes back, r0 = TC_ACT_SHOT and exit.
        let map = array.as_fd().as_raw_fd();
        let code = [
            instruction(0x18, 2 | PSEUDO_MAP_FD << 4, map),
            instruction(0, 0, 0),
            instruction(0xb7, 3, 0),
            instruction(0x85, 0, TAIL_CALL),
            instruction(0xb7, 0, SHOT),
            instruction(0x95, 0, 0),
        ];
        Ok(Self { program: load(&code)?, _array: array })
    }
}

/// Loads a classifier that leaves everything to whoever comes after it.
pub fn idle() -> io::Result<OwnedFd> {
    load(&[instruction(0xb7, 0, NEXT), instruction(0x95, 0, 0)])
}

fn load(code: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let (license, mut name) = (c"GPL", [0; 16]);
    name[..14].copy_from_slice(b"hydra_stand_in");
    let mut attr = ProgramLoad {
        kind: PROG_SCHED_CLS,
        count: code.len() as u32,
        code: at(code.as_ptr()),
        license: at(license.as_ptr()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    call(PROG_LOAD, &mut attr).map(owned)
}

impl AsFd for StandIn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// One eBPF instruction (`struct bpf_insn`): operation, registers (destination, source shifted by four), no offset, immediate.
fn instruction(operation: u8, registers: u8, immediate: i32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_ne_bytes();
    [operation, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets are the contract with the kernel (`include/uapi/linux/bpf.h`).
    #[test]
    fn the_argument_lies_where_the_kernel_reads_it() {
        assert_eq!(std::mem::offset_of!(ProgramLoad, name), 48);
    }
}
