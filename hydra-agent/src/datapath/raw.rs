//! The `bpf(2)` commands that aya has no call for, and the clocks: all of the datapath's `unsafe`.
//!
//! The argument structs are the parts of the kernel's `union bpf_attr` (`include/uapi/linux/bpf.h`) that each command reads; the
//! kernel takes a shorter argument as one whose rest is zero. zerocopy refuses hidden padding at compile time.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `BPF_F_BEFORE`: without a relative the first of the chain.
const BEFORE: u32 = 1 << 3;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TCX: u32 = 11;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const PROG_SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_PERCPU_HASH: u32 = 10;
/// The kernel's own "not supported" that never became a POSIX number; map types without batches answer with it.
const ENOTSUPP: i32 = 524;

fn call<A>(command: u32, attr: &mut A) -> io::Result<i64> {
    loop {
        // SAFETY: `attr` is a live, exclusively borrowed argument of the length given; every pointer in it was made by the caller
        // in this file from a live buffer of at least the length that the command reads or writes.
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

/// What `BPF_MAP_CREATE` reads.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct MapSpec {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub inner_map_fd: u32,
    pub numa_node: u32,
    pub name: [u8; 16],
}

/// Makes a map.
pub fn map_create(spec: MapSpec, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = MapSpec { inner_map_fd: inner.map_or(0, number), ..spec };
    call(MAP_CREATE, &mut attr).map(owned)
}

/// A map and what the kernel says of it, so that no buffer handed to the kernel can be shorter than the kernel takes it for.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    value_size: usize,
}

impl Map {
    /// Takes a map's descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        // Hash, array, LRU: one value for every possible CPU, each padded to 8 bytes (`bpf_map_value_size` in the kernel).
        let value_size = match info.kind {
            PERCPU_HASH | PERCPU_ARRAY | LRU_PERCPU_HASH => {
                (info.value_size as usize).next_multiple_of(8) * possible_cpus()?
            }
            _ => info.value_size as usize,
        };
        Ok(Self { fd, info, value_size })
    }

    /// What the kernel says of it.
    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of one entry's value as system calls carry it: all CPUs' for a per-CPU map.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    fn element(&self, command: u32, key: Option<&[u8]>, value: u64) -> io::Result<bool> {
        if key.is_some_and(|k| k.len() != self.info.key_size as usize) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let key = key.map_or(0, |k| at(k.as_ptr()));
        let mut attr = Element { map_fd: number(self.fd.as_fd()), zero: 0, key, value, flags: 0 };
        match call(command, &mut attr) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads one entry; false where there is none.
    pub fn get(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.fits(value.len(), self.value_size)?;
        self.element(MAP_LOOKUP_ELEM, Some(key), at(value.as_mut_ptr()))
    }

    /// Writes one entry.
    pub fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.fits(value.len(), self.value_size)?;
        match self.element(MAP_UPDATE_ELEM, Some(key), at(value.as_ptr()))? {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        }
    }

    /// Removes one entry; false where there is none.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.element(MAP_DELETE_ELEM, Some(key), 0)
    }

    /// The key after `key` (the first one for `None`) into `next`; false at the end.
    pub fn next(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.fits(next.len(), self.info.key_size as usize)?;
        self.element(MAP_GET_NEXT_KEY, key, at(next.as_mut_ptr()))
    }

    /// Reads up to `count` entries from `cursor` on and moves it.
    pub fn get_batch(
        &self,
        cursor: &mut Cursor,
        keys: &mut [u8],
        values: &mut [u8],
        count: usize,
    ) -> io::Result<Batched> {
        self.fits(keys.len(), count * self.info.key_size as usize)?;
        self.fits(values.len(), count * self.value_size)?;
        // Hash maps keep a 4-byte bucket number in it, others their last key.
        let mut out = vec![0u8; (self.info.key_size as usize).max(4)];
        self.fits(cursor.0.as_ref().map_or(out.len(), Vec::len), out.len())?;
        let mut attr = Batch {
            in_batch: cursor.0.as_ref().map_or(0, |c| at(c.as_ptr())),
            out_batch: at(out.as_mut_ptr()),
            keys: at(keys.as_mut_ptr()),
            values: at(values.as_mut_ptr()),
            count: count as u32,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        let end = match call(MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) => return Err(e),
        };
        cursor.0 = Some(out);
        Ok(Batched { count: (attr.count as usize).min(count), end })
    }

    /// Writes `count` entries; on an error some of them are written.
    pub fn put_batch(&self, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
        self.fits(keys.len(), count * self.info.key_size as usize)?;
        self.fits(values.len(), count * self.value_size)?;
        let mut attr = Batch {
            in_batch: 0,
            out_batch: 0,
            keys: at(keys.as_ptr()),
            values: at(values.as_ptr()),
            count: count as u32,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        call(MAP_UPDATE_BATCH, &mut attr).map(drop)
    }

    #[expect(clippy::unused_self, reason = "reads as a sentence at the call")]
    fn fits(&self, has: usize, needs: usize) -> io::Result<()> {
        if has < needs { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

/// Whether an error says that the kernel has no batches for this kind of map.
pub fn no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Where a batched read goes on. The kernel's own bytes.
#[derive(Clone, Debug, Default)]
pub struct Cursor(Option<Vec<u8>>);

impl Cursor {
    /// Of an array: the entry after this index.
    pub fn after(index: u32) -> Self {
        Self(Some(index.to_ne_bytes().to_vec()))
    }
}

/// What one batched read gave.
#[derive(Clone, Copy, Debug)]
pub struct Batched {
    /// Entries read.
    pub count: usize,
    /// That were the last ones.
    pub end: bool,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Element {
    map_fd: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// CPUs that can ever be there: per-CPU values come for all of them.
pub fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error)
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

/// The start of `struct bpf_link_info`, with the arm of a TCX link.
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

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
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

/// A classifier that drops everything: what stands first while a program of ours is moved.
pub fn load_barrier() -> io::Result<OwnedFd> {
    // `r0 = 2` (TC_ACT_SHOT), `exit`: eBPF instructions as bytes, the immediate in the machine's order.
    let shot = 2i32.to_ne_bytes();
    let code = [0xb7, 0, 0, 0, shot[0], shot[1], shot[2], shot[3], 0x95, 0, 0, 0, 0, 0, 0, 0];
    let license = c"GPL";
    let mut name = [0; 16];
    name[..13].copy_from_slice(b"hydra_barrier");
    let mut attr = ProgramLoad {
        kind: PROG_SCHED_CLS,
        count: 2,
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

/// Waits until no program runs that started before the call.
#[derive(Debug)]
pub struct GracePeriod {
    outer: Map,
    inner: OwnedFd,
}

impl GracePeriod {
    /// Makes the two small maps that it needs. The first `bpf(2)` of the agent: its error tells what is missing.
    pub fn new() -> io::Result<Self> {
        const ARRAY: u32 = 2;
        const ARRAY_OF_MAPS: u32 = 12;
        let spec = MapSpec {
            kind: ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            name: *b"hydra_grace_in\0\0",
            ..MapSpec::default()
        };
        let inner = map_create(spec, None)?;
        let spec = MapSpec { kind: ARRAY_OF_MAPS, name: *b"hydra_grace_out\0", ..spec };
        let outer = Map::new(map_create(spec, Some(inner.as_fd()))?)?;
        Ok(Self { outer, inner })
    }

    /// Blocks for a few milliseconds. The kernel's promise: since 4.20 (commit 1ae80cf31938, "bpf: wait for running BPF programs
    /// when updating map-in-map") an update of a map of maps returns only after an RCU grace period, and classifiers run
    /// inside an RCU read-side section.
    pub fn wait(&self) -> io::Result<()> {
        self.outer.put(&0u32.to_ne_bytes(), &self.inner.as_raw_fd().to_ne_bytes())
    }
}

/// A ring buffer that a task can wait for.
pub fn readable(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its map's descriptor, gives the same one every time and keeps it open until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    Ok(registered?)
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
        assert_eq!(std::mem::offset_of!(MapSpec, name), 28);
        assert_eq!(std::mem::offset_of!(Element, key), 8);
        assert_eq!(std::mem::offset_of!(Batch, count), 32);
        assert_eq!(std::mem::offset_of!(Query, links), 40);
        assert_eq!(std::mem::offset_of!(LinkCreate, relative), 16);
        assert_eq!(std::mem::offset_of!(LinkInfo, ifindex), 16);
        assert_eq!(std::mem::offset_of!(ProgramInfo, maps), 56);
        assert_eq!(std::mem::offset_of!(ProgramLoad, name), 48);
    }
}
