//! Maps: entries and batches by system call, arrays from their pages, and the wait for running programs.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use zerocopy::{Immutable, IntoBytes};

use super::{MapInfo, at, call, map_info, number, owned, pages};

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_PERCPU_HASH: u32 = 10;
/// The kernel's own "not supported" that never became a POSIX number; map types without batches answer with it.
const ENOTSUPP: i32 = 524;

/// What `BPF_MAP_CREATE` reads.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct MapSpec {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes a map.
fn map_create(spec: MapSpec, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
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

    /// Its descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
        if self.element(MAP_UPDATE_ELEM, Some(key), at(value.as_ptr()))? {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
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

    /// Values of an array that was made with `BPF_F_MMAPABLE`, each a multiple of 8 bytes long: without the look-up and the copies that
    /// a batch takes for each.
    pub fn words(&self, from: u32, count: usize) -> io::Result<Vec<u64>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if from as usize + count > self.info.max_entries as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let each = self.value_size.div_ceil(size_of::<u64>());
        pages::copy(self.as_fd(), from as usize * each, count * each)
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
            after: cursor.0.as_ref().map_or(0, |c| at(c.as_ptr())),
            last: at(out.as_mut_ptr()),
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
            after: 0,
            last: 0,
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

    /// Whether nothing has been read by it yet.
    pub fn is_new(&self) -> bool {
        self.0.is_none()
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
    after: u64,
    last: u64,
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

/// An array of programs with one place.
pub fn program_array() -> io::Result<Map> {
    const PROGRAM_ARRAY: u32 = 3;
    let spec = MapSpec {
        kind: PROGRAM_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        name: *b"hydra_stand_in\0\0",
        ..MapSpec::default()
    };
    Map::new(map_create(spec, None)?)
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
    }
}
