//! The `bpf(2)` commands that aya has no call for, and the clocks: all of the datapath's `unsafe`, and what fills its pointers.
//!
//! The argument structs are the parts of the kernel's `union bpf_attr` (`include/uapi/linux/bpf.h`) that each command reads; the
//! kernel takes a shorter argument as one whose rest is zero. zerocopy refuses hidden padding at compile time.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

mod bits;
mod map;
mod pages;
mod run;
mod stand_in;

pub use bits::Bits;
pub use map::{Cursor, GracePeriod, Map, no_batches};
pub use run::run;
pub use stand_in::{StandIn, idle};

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_NEXT_ID: u32 = 11;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_F_BEFORE`: without a relative the first of the chain.
const BEFORE: u32 = 1 << 3;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TCX: u32 = 11;
/// `BPF_LINK_TYPE_XDP`.
pub const LINK_XDP: u32 = 6;
/// `BPF_PROG_TYPE_XDP`.
pub const PROG_XDP: u32 = 6;
/// `BPF_XDP`.
const XDP: u32 = 37;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const PROG_SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;
/// `BPF_CGROUP_INET_INGRESS` and its like.
pub const CGROUP_INGRESS: u32 = 0;
pub const CGROUP_EGRESS: u32 = 1;
pub const CGROUP_CONNECT4: u32 = 10;
pub const CGROUP_CONNECT6: u32 = 11;
pub const CGROUP_SENDMSG4: u32 = 14;
pub const CGROUP_SENDMSG6: u32 = 15;
/// `BPF_LINK_TYPE_CGROUP`.
pub const LINK_CGROUP: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
pub const PROG_CGROUP_SKB: u32 = 8;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
pub const PROG_SOCK_ADDR: u32 = 18;

fn call<A>(command: u32, attr: &mut A) -> io::Result<i64> {
    loop {
        // SAFETY: `attr` is a live, exclusively borrowed argument of the length given; every pointer in it was made by the caller
        // in this module from a live buffer of at least the length that the command reads or writes.
        let r = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
        if r >= 0 {
            return Ok(r);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) && error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
    }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: only called with what a successful `bpf(2)` returned: a descriptor that nobody else holds.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn at<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>() as u64
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    flags: u32,
}

/// Opens a pin.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = text(path)?;
    call(OBJ_GET, &mut Object { pathname: at(path.as_ptr()), bpf_fd: 0, flags: 0 }).map(owned)
}

/// Pins.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = text(path)?;
    call(OBJ_PIN, &mut Object { pathname: at(path.as_ptr()), bpf_fd: number(object), flags: 0 }).map(drop)
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct InfoRequest {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn info<T: FromBytes + IntoBytes>(object: BorrowedFd<'_>, mut info: T) -> io::Result<T> {
    let mut attr = InfoRequest {
        bpf_fd: number(object),
        info_len: size_of::<T>() as u32,
        info: at(std::ptr::from_mut(&mut info)),
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The start of `struct bpf_map_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// What a map is.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map, MapInfo::default())
}

/// The start of `struct bpf_link_info`, with the arm of a TCX link; that of XDP has the interface at the same place, and no type.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    zero: u32,
    /// 0 where the interface is gone.
    pub ifindex: u32,
    pub attach_type: u32,
}

/// What a link is.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link, LinkInfo::default())
}

/// The start of `struct bpf_link_info`, with the arm of a cgroup's link.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct CgroupLinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    zero: u32,
    /// 0 where the cgroup is gone.
    pub cgroup: u64,
    pub attach_type: u32,
    zero2: u32,
}

/// What a cgroup's link is.
pub fn cgroup_link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    info(link, CgroupLinkInfo::default())
}

/// The start of `struct bpf_prog_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ProgramInfo {
    pub kind: u32,
    pub id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// What a program is, and the ids of the maps that it uses.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<(ProgramInfo, Vec<u32>)> {
    let mut ids = [0u32; 64];
    let request =
        ProgramInfo { map_count: ids.len() as u32, maps: at(ids.as_mut_ptr()), ..ProgramInfo::default() };
    let info = info(program, request)?;
    let count = (info.map_count as usize).min(ids.len());
    Ok((info, ids[..count].to_vec()))
}

/// The number of the next program of the kernel, of any type; none after the last.
pub fn next_program(after: u32) -> io::Result<Option<u32>> {
    let mut attr = [after, 0, 0];
    Ok(there(call(PROG_GET_NEXT_ID, &mut attr))?.map(|_| attr[1]))
}

/// A program by its number; none where it is gone.
pub fn program(id: u32) -> io::Result<Option<OwnedFd>> {
    Ok(there(call(PROG_GET_FD_BY_ID, &mut [id, 0, 0]))?.map(owned))
}

/// What a call gave, if there is what it is about.
fn there(gave: io::Result<i64>) -> io::Result<Option<i64>> {
    match gave {
        Ok(gave) => Ok(Some(gave)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    zero: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The TCX chain of an interface, first to last: (program id, link id; 0 where it was attached without a link).
pub fn tcx_chain(ifindex: u32, attach_type: u32) -> io::Result<Vec<(u32, u32)>> {
    // The kernel's own limit (`BPF_MPROG_MAX`).
    let (mut programs, mut links) = ([0u32; 64], [0u32; 64]);
    let mut attr = Query {
        ifindex,
        attach_type,
        programs: at(programs.as_mut_ptr()),
        count: programs.len() as u32,
        links: at(links.as_mut_ptr()),
        ..Query::default()
    };
    match call(PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // Nothing was ever attached.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let count = (attr.count as usize).min(programs.len());
    Ok(programs.into_iter().zip(links).take(count).collect())
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreate {
    program: u32,
    /// For a cgroup its folder's descriptor.
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    zero: u32,
    expected_revision: u64,
}

/// Attaches a program as the first of an interface's TCX chain.
pub fn tcx_attach_first(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        ifindex,
        attach_type,
        flags: BEFORE,
        relative: 0,
        zero: 0,
        expected_revision: 0,
    };
    call(LINK_CREATE, &mut attr).map(owned)
}

/// Attaches a program of XDP to an interface that has none. `mode` is one of `XDP_FLAGS_MODES`.
pub fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32, mode: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        ifindex,
        attach_type: XDP,
        flags: mode,
        relative: 0,
        zero: 0,
        expected_revision: 0,
    };
    call(LINK_CREATE, &mut attr).map(owned)
}

/// Attaches a program to a cgroup, beside those that are there: all of them run, and each can refuse.
pub fn cgroup_attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: number(program),
        ifindex: number(cgroup),
        attach_type,
        flags: 0,
        relative: 0,
        zero: 0,
        expected_revision: 0,
    };
    call(LINK_CREATE, &mut attr).map(owned)
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts another program under a link, atomically: every packet meets the old one or the new one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: number(link), program: number(program), flags: 0, old_program: 0 };
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link now; closing its last descriptor does so later, on a kernel thread.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut number(link)).map(drop)
}

/// A ring buffer that a task can wait for.
pub fn readable(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its map's descriptor, gives the same one every time and keeps it open until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    Ok(registered?)
}

/// Lets this process lock as much memory as it wants: before Linux 5.11 maps count against that limit, and beyond it the kernel
/// answers as if rights were missing. Where it is refused the maps' own error tells.
pub fn lift_memory_limit() {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `all` is a live rlimit that the call only reads.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all) };
}

/// Bytes from which on what is free at the end of a heap goes back to the kernel at once, and those from which on a piece is a mapping of
/// its own, which does so too. glibc moves both by what a process frees, until somebody sets them; this is about where it leaves an agent's.
#[cfg(target_env = "gnu")]
const RETURNED: (libc::c_int, libc::c_int) = (1 << 20, 1 << 20);
/// The same where memory is kept: more than the largest policy takes, and the most that glibc allows for a piece.
#[cfg(target_env = "gnu")]
const KEPT: (libc::c_int, libc::c_int) = (1 << 30, 32 << 20);

/// Keeps memory that becomes free for what takes it next, until it is given back: to have it from the kernel again, page by page, takes
/// a third of the time in which a large policy is read. Other C libraries than glibc do as they will.
pub fn keep_memory() {
    #[cfg(target_env = "gnu")]
    limits_of_memory(KEPT);
}

/// Gives the memory back that is free in this process, and keeps none from then on: to load an object and compile a policy takes several
/// times what is kept of them. Other C libraries than glibc do not keep it.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    limits_of_memory(RETURNED);
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no arguments to be wrong and may be made at any time from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(target_env = "gnu")]
fn limits_of_memory((trim, map): (libc::c_int, libc::c_int)) {
    // SAFETY: the numbers are ones that mallopt(3) knows. The manual calls it unsafe beside itself and the first allocation (`MT-Unsafe
    // init const:mallopt`): the first is long made here, the setting is under the lock of the first arena, and what is set is a word each,
    // a limit and that limits are no longer found out (`no_dyn_threshold`). Others read them without a lock, and `free` on another thread
    // may put its own limits in their place until it sees the second: any value is good, they only say when memory goes back.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, trim);
        libc::mallopt(libc::M_MMAP_THRESHOLD, map);
    }
}

/// CLOCK_MONOTONIC, what `bpf_ktime_get_ns` reads, in nanoseconds.
pub fn monotonic() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a live timespec; this clock exists on every kernel, so the call does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets are the contract with the kernel (`include/uapi/linux/bpf.h`).
    #[test]
    fn arguments_lie_where_the_kernel_reads_them() {
        assert_eq!(std::mem::offset_of!(Query, links), 40);
        assert_eq!(std::mem::offset_of!(LinkCreate, relative), 16);
        assert_eq!(std::mem::offset_of!(LinkInfo, ifindex), 16);
        assert_eq!(std::mem::offset_of!(CgroupLinkInfo, attach_type), 24);
        assert_eq!(std::mem::offset_of!(ProgramInfo, maps), 56);
    }
}
