//! A pinned map as a typed table: single entries, ranges of arrays, and everything at once, batched where the kernel can.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::Path;

use hydra_common::tables::Count;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::raw::{self, Cursor, Map};

/// Entries per system call: far more than any hash bucket holds, few enough to stay in the cache.
pub const BATCH: usize = 4096;
/// Entries of the first call on a table: of most tables that is all of them, and the room for more is not touched.
const FIRST: usize = 256;

/// What keys and values are made of.
pub trait Bytes: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Bytes for T {}

/// A map whose keys are `K` and whose values are `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    map: Map,
    types: PhantomData<(K, V)>,
}

impl<K: Bytes, V: Bytes> Table<K, V> {
    /// Opens a pin; a map of other sizes is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(raw::open_pin(path)?)
    }

    /// Takes a map's descriptor; a map of other sizes is refused.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let map = Map::new(fd)?;
        let info = map.info();
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::other(format!(
                "its keys have {} bytes and its values {}, expected {} and {}",
                info.key_size,
                info.value_size,
                size_of::<K>(),
                size_of::<V>()
            )));
        }
        Ok(Self { map, types: PhantomData })
    }

    /// Entries that it can hold.
    pub fn room(&self) -> u32 {
        self.map.info().max_entries
    }

    /// One entry.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.map.get(key.as_bytes(), value.as_mut_bytes())?.then_some(value))
    }

    /// Writes one entry, new or not.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.put(key.as_bytes(), value.as_bytes())
    }

    /// Removes one entry; it may be gone already.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        self.map.remove(key.as_bytes())
    }

    /// Writes many entries; on an error some of them are written.
    pub fn put_all(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        let count = keys.len().min(values.len());
        if count == 0 {
            return Ok(());
        }
        match self.map.put_batch(keys.as_bytes(), values.as_bytes(), count) {
            Err(e) if raw::no_batches(&e) => {
                keys.iter().zip(values).try_for_each(|(key, value)| self.put(key, value))
            }
            result => result,
        }
    }

    /// Every entry. What changes meanwhile may be missing; nothing is there twice where the kernel reads batches, a bucket at a time.
    pub fn all(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.each(|key, value| all.push((*key, *value)))?;
        Ok(all)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> io::Result<bool> {
        let (mut cursor, mut batch) = (Cursor::default(), Batch::default());
        loop {
            let more = self.some(&mut cursor, &mut batch)?;
            if batch.count > 0 || !more {
                return Ok(batch.count == 0);
            }
        }
    }

    /// Shows every entry.
    pub fn each(&self, mut see: impl FnMut(&K, &V)) -> io::Result<()> {
        let (mut cursor, mut batch) = (Cursor::default(), Batch::default());
        loop {
            let more = self.some(&mut cursor, &mut batch)?;
            batch.entries().for_each(|(key, value)| see(key, value));
            if !more {
                return Ok(());
            }
        }
    }

    /// The same in the order of their keys.
    pub fn sorted(&self) -> io::Result<BTreeMap<K, V>>
    where
        K: Ord,
    {
        Ok(self.all()?.into_iter().collect())
    }

    /// The next few thousand entries in place of those that are in `batch`; false after the last.
    pub fn some(&self, cursor: &mut Cursor, batch: &mut Batch<K, V>) -> io::Result<bool> {
        batch.count = 0;
        let mut room = batch.keys.len().max(if cursor.is_new() { FIRST } else { BATCH });
        loop {
            batch.keys.resize(room, K::new_zeroed());
            batch.values.resize(room, V::new_zeroed());
            let (keys, values) = (batch.keys.as_mut_bytes(), batch.values.as_mut_bytes());
            match self.map.get_batch(cursor, keys, values, room) {
                Ok(got) => {
                    batch.count = got.count;
                    return Ok(!got.end);
                }
                // One bucket holds more.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 4,
                Err(e) if raw::no_batches(&e) => {
                    self.one_by_one(batch)?;
                    batch.singly = true;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn one_by_one(&self, into: &mut Batch<K, V>) -> io::Result<()> {
        (into.keys, into.values) = (Vec::new(), Vec::new());
        let mut key: Option<K> = None;
        let mut next = K::new_zeroed();
        // The kernel starts again from the front when the key it stands on is deleted: this bounds that.
        for _ in 0..self.room() {
            if !self.map.next(key.as_ref().map(IntoBytes::as_bytes), next.as_mut_bytes())? {
                break;
            }
            if let Some(value) = self.get(&next)? {
                into.keys.push(next);
                into.values.push(value);
            }
            key = Some(next);
        }
        into.count = into.keys.len();
        Ok(())
    }
}

/// What was read at once, and the room for it, which is used again: a table of a million entries is some hundred megabytes of them.
#[derive(Debug)]
pub struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    count: usize,
    /// The kernel has no batches: what was there all the time may be missing.
    pub singly: bool,
}

impl<K, V> Default for Batch<K, V> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), count: 0, singly: false }
    }
}

impl<K, V> Batch<K, V> {
    /// The entries.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&K, &V)> {
        self.keys[..self.count].iter().zip(&self.values)
    }
}

impl<V: Bytes> Table<u32, V> {
    /// Writes a range of an array.
    pub fn put_range(&self, from: u32, values: &[V]) -> io::Result<()> {
        for (n, chunk) in values.chunks(BATCH).enumerate() {
            let first = from + (n * BATCH) as u32;
            let keys: Vec<u32> = (first..first + chunk.len() as u32).collect();
            self.put_all(&keys, chunk)?;
        }
        Ok(())
    }

    /// Reads a range of an array that was made with `BPF_F_MMAPABLE`, from the memory that programs read.
    pub fn range(&self, from: u32, count: usize) -> io::Result<Vec<V>> {
        let words = self.map.words(from, count)?;
        Ok(parts(words.as_bytes()).collect())
    }
}

/// A per-CPU array whose values say by themselves what they are of.
#[derive(Debug)]
pub struct PerCpu<V> {
    map: Map,
    types: PhantomData<V>,
}

impl<V: Bytes> PerCpu<V> {
    /// Opens a pin; a map of other sizes is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { map: Table::<u32, V>::open(path)?.map, types: PhantomData })
    }

    /// Every CPU's value of one entry.
    pub fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut values = vec![0u8; self.map.value_size()];
        self.map.get(index.as_bytes(), &mut values)?;
        Ok(parts(&values).collect())
    }

    /// Every CPU's values.
    pub fn all(&self) -> io::Result<Vec<V>> {
        Ok(parts(&array(&self.map, 0, self.map.info().max_entries as usize)?).collect())
    }
}

/// Values that follow each other: those of an array, or what each CPU has of one or of several. Each begins at a multiple of 8 bytes
/// (`array_map_alloc`, `bpf_percpu_array_copy`).
fn parts<V: Bytes>(values: &[u8]) -> impl Iterator<Item = V> {
    let each = values.chunks_exact(size_of::<V>().next_multiple_of(8));
    each.filter_map(|value| V::read_from_prefix(value).ok().map(|(value, _)| value))
}

/// The values of a range of an array, each with every CPU's part.
fn array(map: &Map, from: u32, count: usize) -> io::Result<Vec<u8>> {
    let size = map.value_size();
    let mut cursor = if from == 0 { Cursor::default() } else { Cursor::after(from - 1) };
    let (mut keys, mut values) = (vec![0u32; count], vec![0u8; count * size]);
    match map.get_batch(&mut cursor, keys.as_mut_bytes(), &mut values, count) {
        Ok(got) => values.truncate(got.count * size),
        Err(e) if raw::no_batches(&e) => {
            for (n, value) in (from..).zip(values.chunks_exact_mut(size)) {
                if !map.get(n.as_bytes(), value)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Err(e) => return Err(e),
    }
    Ok(values)
}

/// A per-CPU map of counters, read as sums.
#[derive(Debug)]
pub struct Sums<K, V> {
    map: Map,
    types: PhantomData<(K, V)>,
}

/// What can be summed over the CPUs.
pub trait Sum: Bytes {
    /// Adds; counters wrap rather than end an agent.
    fn add(&mut self, other: &Self);
}

impl Sum for u64 {
    fn add(&mut self, other: &Self) {
        *self = self.wrapping_add(*other);
    }
}

impl Sum for Count {
    fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl<K: Bytes, V: Sum> Sums<K, V> {
    /// Opens a pin; a map of other sizes is refused.
    pub fn open(path: &Path) -> io::Result<Self> {
        let table = Table::<K, V>::open(path)?;
        Ok(Self { map: table.map, types: PhantomData })
    }

    /// Entries that it can hold.
    pub fn room(&self) -> u32 {
        self.map.info().max_entries
    }

    fn sum(value: &[u8]) -> V {
        let mut total = V::new_zeroed();
        parts(value).for_each(|part| total.add(&part));
        total
    }

    /// The sum of one entry.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0; self.map.value_size()];
        Ok(self.map.get(key.as_bytes(), &mut value)?.then(|| Self::sum(&value)))
    }

    /// The sums of every entry.
    pub fn all(&self) -> io::Result<Vec<(K, V)>> {
        let size = self.map.value_size();
        let mut cursor = Cursor::default();
        let mut all = Vec::new();
        loop {
            let mut keys = vec![K::new_zeroed(); BATCH];
            let mut values = vec![0u8; BATCH * size];
            match self.map.get_batch(&mut cursor, keys.as_mut_bytes(), &mut values, BATCH) {
                Ok(got) => {
                    all.extend(
                        keys.into_iter().zip(values.chunks_exact(size).map(Self::sum)).take(got.count),
                    );
                    if got.end {
                        return Ok(all);
                    }
                }
                Err(e) if raw::no_batches(&e) => return self.one_by_one(),
                Err(e) => return Err(e),
            }
        }
    }

    fn one_by_one(&self) -> io::Result<Vec<(K, V)>> {
        let (mut all, mut key, mut next) = (Vec::new(), None::<K>, K::new_zeroed());
        for _ in 0..self.room() {
            if !self.map.next(key.as_ref().map(IntoBytes::as_bytes), next.as_mut_bytes())? {
                break;
            }
            all.extend(self.get(&next)?.map(|sum| (next, sum)));
            key = Some(next);
        }
        Ok(all)
    }
}

impl<V: Sum> Sums<u32, V> {
    /// The sums of a range of an array.
    pub fn range(&self, from: u32, count: usize) -> io::Result<Vec<V>> {
        let values = array(&self.map, from, count)?;
        Ok(values.chunks_exact(self.map.value_size()).map(Self::sum).collect())
    }
}
