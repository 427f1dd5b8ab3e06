//! Bits in an array of the kernel's that programs set as well.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::map_info;
use super::pages::Shared;

/// The rows of an array of `u64` that was made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub struct Bits(Shared);

impl Bits {
    /// Takes a map's descriptor; what is no such array is refused.
    pub fn map(fd: &OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        if info.value_size as usize != size_of::<u64>() || info.max_entries == 0 {
            return Err(io::Error::other(format!("its values have {} bytes, expected 8", info.value_size)));
        }
        Shared::map(fd.as_fd(), info.max_entries as usize).map(Self)
    }

    /// Rows.
    pub fn count(&self) -> u32 {
        self.0.words().len() as u32
    }

    /// Sets bits of a row.
    pub fn set(&self, row: u32, bits: u64) {
        if let Some(row) = self.0.words().get(row as usize) {
            row.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Clears the rows from `first` on.
    pub fn clear(&self, first: u32, count: u32) {
        let rows = self.0.words().iter().skip(first as usize).take(count as usize);
        rows.for_each(|row| row.store(0, Ordering::Relaxed));
    }
}
