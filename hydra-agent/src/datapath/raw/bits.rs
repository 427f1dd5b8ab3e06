//! An array of the kernel's that lies in this process's memory too: bits that programs set as well.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::map_info;

/// The rows of an array of `u64` that was made with `BPF_F_MMAPABLE` (Linux 5.5).
#[derive(Debug)]
pub struct Bits {
    rows: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: memory that is changed by atomic instructions alone, and that no thread owns.
unsafe impl Send for Bits {}
// SAFETY: as above.
unsafe impl Sync for Bits {}

impl Bits {
    /// Takes a map's descriptor; what is no such array is refused.
    pub fn map(fd: &OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        if info.value_size as usize != size_of::<u64>() || info.max_entries == 0 {
            return Err(io::Error::other(format!("its values have {} bytes, expected 8", info.value_size)));
        }
        let count = info.max_entries as usize;
        // SAFETY: a new mapping at a place of the kernel's choice. The kernel refuses what is longer than the array's pages
        // (`array_map_mmap`), and keeps the map as long as the mapping.
        let rows = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if rows == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let rows = NonNull::new(rows.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { rows, count })
    }

    /// Rows.
    pub fn count(&self) -> u32 {
        self.count as u32
    }

    fn rows(&self) -> &[AtomicU64] {
        // SAFETY: as many values lie there as long as `self` lives, aligned as a page is; all that changes them does so atomically.
        unsafe { std::slice::from_raw_parts(self.rows.as_ptr(), self.count) }
    }

    /// Sets bits of a row.
    pub fn set(&self, row: u32, bits: u64) {
        if let Some(row) = self.rows().get(row as usize) {
            row.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Clears the rows from `first` on.
    pub fn clear(&self, first: u32, count: u32) {
        self.rows()
            .iter()
            .skip(first as usize)
            .take(count as usize)
            .for_each(|row| row.store(0, Ordering::Relaxed));
    }
}

impl Drop for Bits {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nothing borrows it any more.
        unsafe { libc::munmap(self.rows.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}
