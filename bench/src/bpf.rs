//! The few `bpf(2)` calls that measuring takes.
//!
//! The argument structs are the parts of the kernel's `union bpf_attr` (`include/uapi/linux/bpf.h`) that each command reads.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: u32 = 0;
const MAP_LOOK_UP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const OBJ_INFO: u32 = 15;
const BTF_LOAD: u32 = 18;
const LINK_CREATE: u32 = 28;

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROG_ARRAY: u32 = 3;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
pub const XDP_PROGRAM: u32 = 6;
/// `BPF_TCX_INGRESS`.
pub const TCX_INGRESS: u32 = 46;
/// `BPF_XDP`.
pub const XDP: u32 = 37;
/// `BPF_F_TEST_XDP_LIVE_FRAMES` (Linux 5.18).
const LIVE: u32 = 1 << 1;
/// Size of `struct __sk_buff`, and where it has the interface.
const CONTEXT: usize = 192;
const IFINDEX: usize = 40;

fn call<A>(command: u32, attr: &mut A) -> io::Result<i32> {
    loop {
        // SAFETY: `attr` is a live, exclusively borrowed argument of the length given; every pointer in it was made by the caller in
        // this module from a live buffer of at least the length that the command reads or writes.
        let r = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
        if r >= 0 {
            return i32::try_from(r).map_err(io::Error::other);
        }
        let error = io::Error::last_os_error();
        // The verifier gives way to a signal.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with what a successful `bpf(2)` returned: a descriptor that nobody else holds.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn at<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

/// What is loaded as a program.
#[derive(Debug, Default)]
pub struct Load<'a> {
    /// `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// `BPF_CGROUP_*` and its like, where the type has several.
    pub attach: u32,
    /// The instructions, eight bytes each.
    pub code: &'a [u8],
    /// Type information, and what belongs to it: records and the size of one.
    pub btf: Option<(BorrowedFd<'a>, &'a [u8], u32)>,
    /// Where the verifier writes what it does, and how much of it (`BPF_LOG_*`).
    pub log: Option<(&'a mut [u8], u32)>,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf: u32,
}

/// Loads a program.
pub fn load(program: &mut Load<'_>) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = ProgLoad {
        kind: program.kind,
        attach: program.attach,
        count: (program.code.len() / 8) as u32,
        code: at(program.code),
        license: license.as_ptr() as u64,
        ..ProgLoad::default()
    };
    if let Some((btf, functions, size)) = &program.btf {
        attr.btf = btf.as_raw_fd().cast_unsigned();
        attr.function_size = *size;
        attr.functions = at(functions);
        attr.function_count = functions.len() as u32 / size;
    }
    if let Some((log, level)) = &mut program.log {
        attr.log_level = *level;
        attr.log_size = log.len() as u32;
        attr.log = log.as_mut_ptr() as u64;
    }
    call(PROG_LOAD, &mut attr).map(owned)
}

/// Loads type information.
pub fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        bytes: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        zero: u32,
    }
    let size = bytes.len() as u32;
    call(BTF_LOAD, &mut Attr { bytes: at(bytes), log: 0, size, log_size: 0, log_level: 0, zero: 0 })
        .map(owned)
}

/// Opens a pin.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    call(OBJ_GET, &mut Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(owned)
}

/// A hash table: bytes of a key, bytes of a value, rows.
pub fn hash(key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    create([HASH, key, value, entries, 0])
}

/// A table of numbers of eight bytes.
pub fn numbers(entries: u32) -> io::Result<OwnedFd> {
    create([ARRAY, 4, 8, entries, 0])
}

/// A table of programs to go on with.
pub fn programs(entries: u32) -> io::Result<OwnedFd> {
    create([PROG_ARRAY, 4, 4, entries, 0])
}

/// A map: type, bytes of a key, bytes of a value, rows, flags.
pub fn create(mut map: [u32; 5]) -> io::Result<OwnedFd> {
    call(MAP_CREATE, &mut map).map(owned)
}

/// Writes a row. Key and value must have the table's sizes.
pub fn update(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    let map = map.as_raw_fd().cast_unsigned();
    call(MAP_UPDATE, &mut [u64::from(map), at(key), at(value), 0]).map(drop)
}

/// Fills the first words of a program's description (`struct bpf_prog_info`).
pub fn info(program: &OwnedFd, words: &mut [u32]) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        size: u32,
        info: u64,
    }
    let size = size_of_val(words) as u32;
    let fd = program.as_raw_fd().cast_unsigned();
    call(OBJ_INFO, &mut Attr { fd, size, info: words.as_mut_ptr() as u64 }).map(drop)
}

/// Puts a program on an interface, by [`TCX_INGRESS`] (behind those that are there) or [`XDP`], as long as the answer lives.
pub fn attach(program: &OwnedFd, ifindex: u32, kind: u32) -> io::Result<OwnedFd> {
    attach_with(program, ifindex, kind, 0)
}

/// The same by [`TCX_INGRESS`], before those that are there.
pub fn attach_first(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    attach_with(program, ifindex, TCX_INGRESS, BEFORE)
}

fn attach_with(program: &OwnedFd, ifindex: u32, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = [0u32; 16];
    attr[..4].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), ifindex, kind, flags]);
    call(LINK_CREATE, &mut attr).map(owned)
}

/// Reads a number of a table of numbers.
pub fn read(map: &OwnedFd, index: u32) -> io::Result<u64> {
    let mut value = [0u64];
    let key = [index];
    let map = map.as_raw_fd().cast_unsigned();
    call(MAP_LOOK_UP, &mut [u64::from(map), at(&key), at(&value), 0])?;
    // The kernel wrote it.
    Ok(std::hint::black_box(&mut value)[0])
}

/// Runs a classifier on a frame at an interface so many times; what it returned last. The frame stays changed from run to run.
pub fn test_run(program: &OwnedFd, frame: &[u8], ifindex: u32, repeat: u32) -> io::Result<i32> {
    let mut context = [0u8; CONTEXT];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    run(program, frame, &context, repeat, 0).map(|run| run.returned)
}

/// Lets so many frames arrive at an interface that a program of [`XDP`] sits on, as if its driver had received them; each goes the way
/// that this program of XDP says. Returns when all are on it, and answers the nanoseconds of one by the kernel's clock, rounded down
/// (`bpf_test_timer_continue`, kernel 6.18): without the pool of pages, without turns that others get between batches, and without the two
/// grace periods of a call (`bpf_dispatcher_update`), which are some ticks.
pub fn send(program: &OwnedFd, frame: &[u8], ifindex: u32, frames: u32) -> io::Result<u32> {
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, frame.len() as u32, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
    run(program, frame, &context, frames, LIVE).map(|run| run.duration)
}

/// What the kernel says of the runs of a program.
struct Run {
    /// By the last.
    returned: i32,
    /// Nanoseconds of one.
    duration: u32,
}

fn run(program: &OwnedFd, frame: &[u8], context: &[u8], repeat: u32, flags: u32) -> io::Result<Run> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
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
        flags: u32,
        cpu: u32,
        batch: u32,
        zero: u32,
    }
    let mut attr = Attr {
        program: program.as_raw_fd().cast_unsigned(),
        size_in: frame.len() as u32,
        data_in: at(frame),
        repeat,
        context_size_in: context.len() as u32,
        context_in: at(context),
        flags,
        ..Attr::default()
    };
    call(PROG_TEST_RUN, &mut attr)?;
    Ok(Run { returned: attr.returned.cast_signed(), duration: attr.duration })
}
