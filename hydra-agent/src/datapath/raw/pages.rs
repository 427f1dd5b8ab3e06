//! Pages of an array of the kernel's that was made with `BPF_F_MMAPABLE` (Linux 5.5), in words of 8 bytes: what programs read and write.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

/// Words of an array from one of them on, as they are now: whoever reads rows while they are written may see one half written. The kernel
/// refuses (`EINVAL`) what goes beyond the array's last page.
pub fn copy(fd: BorrowedFd<'_>, from: usize, count: usize) -> io::Result<Vec<u64>> {
    let page = sysconf(SysconfVar::PAGE_SIZE)?.ok_or(io::ErrorKind::Unsupported)?;
    let page = usize::try_from(page).map_err(io::Error::other)?;
    let first = from * size_of::<u64>();
    let skipped = first % page;
    let length = skipped + count * size_of::<u64>();
    let pages = Pages::map(fd, first - skipped, length, ProtFlags::PROT_READ)?;
    // Relaxed loads of a word are what atomics may do to pages that are only read (`core::sync::atomic`).
    let words = pages.words().iter().skip(skipped / size_of::<u64>());
    Ok(words.map(|word| word.load(Ordering::Relaxed)).collect())
}

/// An array's first words, to be changed: by atomic instructions, as programs do.
#[derive(Debug)]
pub struct Shared(Pages);

impl Shared {
    /// Maps so many.
    pub fn map(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let length = count * size_of::<u64>();
        Pages::map(fd, 0, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).map(Self)
    }

    /// All of them.
    pub fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }
}

/// A mapping.
#[derive(Debug)]
struct Pages {
    begin: NonNull<AtomicU64>,
    /// Bytes.
    length: usize,
}

// SAFETY: memory that no thread owns. Programs change it by atomic instructions, the kernel for system calls, and this process by the
// atomics of `words` alone.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Bytes of an array from a page on. Without `PROT_WRITE` its words may only be loaded, relaxed.
    fn map(fd: BorrowedFd<'_>, offset: usize, length: usize, access: ProtFlags) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at a place of the kernel's choice, of pages of the array (`array_map_mmap`), which stays as long as the
        // mapping.
        let begin = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { begin: begin.cast(), length })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: as many words lie there as long as `self` lives, aligned as a page is.
        unsafe { std::slice::from_raw_parts(self.begin.as_ptr(), self.length / size_of::<u64>()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, and nothing borrows it any more.
        let _ = unsafe { munmap(self.begin.cast(), self.length) };
    }
}
