//! Pages of an array of the kernel's that lie in this process's memory too.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Values of an array that was made with `BPF_F_MMAPABLE` (Linux 5.5), in words of 8 bytes: what programs read and write, not a copy.
#[derive(Debug)]
pub struct Pages {
    /// The first page.
    begin: NonNull<u8>,
    /// Bytes from there to the last word.
    length: usize,
    /// Bytes from there to the first word.
    skipped: usize,
}

// SAFETY: memory that is read and changed by atomic instructions alone, and that no thread owns.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Some words of an array, from a word on, to read or to change too. The kernel refuses (`EINVAL`) what goes beyond the array's last page.
    pub fn map(fd: BorrowedFd<'_>, from: usize, count: usize, write: bool) -> io::Result<Self> {
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let first = from * size_of::<u64>();
        let skipped = first % page;
        let length = skipped + count * size_of::<u64>();
        let offset = libc::off_t::try_from(first - skipped).map_err(io::Error::other)?;
        let access = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at a place of the kernel's choice, of pages of the array (`array_map_mmap`), which stays as long as the
        // mapping.
        let begin = unsafe {
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if begin == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let begin = NonNull::new(begin.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { begin, length, skipped })
    }

    /// The words. Who did not map them to change them must not: the process would end.
    pub fn words(&self) -> &[AtomicU64] {
        let count = (self.length - self.skipped) / size_of::<u64>();
        // SAFETY: as many words lie there as long as `self` lives, aligned because pages are and whole words are skipped; all that
        // changes them does so atomically or where nobody reads.
        unsafe { std::slice::from_raw_parts(self.begin.as_ptr().add(self.skipped).cast(), count) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nothing borrows it any more.
        unsafe { libc::munmap(self.begin.as_ptr().cast(), self.length) };
    }
}
