//! One `connect` by `io_uring` (`include/uapi/linux/io_uring.h`): a queue of one entry, by hand.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

const OFFSET_SQ: i64 = 0;
const OFFSET_CQ: i64 = 0x0800_0000;
const OFFSET_SQES: i64 = 0x1000_0000;
const GETEVENTS: u32 = 1;
const OP_CONNECT: u8 = 16;
/// `-EINPROGRESS` of a socket that does not wait.
const GOES_ON: i32 = -libc::EINPROGRESS;
const PAGE: usize = 4096;

#[derive(Default)]
#[repr(C)]
struct Params {
    entries: [u32; 2],
    rest: [u32; 8],
    sq: SqOffsets,
    cq: CqOffsets,
}

#[derive(Default)]
#[repr(C)]
struct SqOffsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    rest: [u32; 3],
}

#[derive(Default)]
#[repr(C)]
struct CqOffsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    overflow: u32,
    cqes: u32,
    rest: [u32; 4],
}

/// The part of a submission that a `connect` reads; 64 bytes in all.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    /// The address's length.
    offset: u64,
    address: u64,
    rest: [u64; 5],
}

/// Asks for the connection, and waits for what the kernel says at once: the socket is made not to wait.
pub fn connect(socket: &OwnedFd, to: &SockaddrStorage) -> io::Result<()> {
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let mut params = Params::default();
    // SAFETY: `params` is a live argument of the size that the kernel writes (120 bytes); the descriptor is nobody else's.
    let ring = unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
    };
    let (sq, cq) = (map(&ring, OFFSET_SQ)?, map(&ring, OFFSET_CQ)?);
    let entries = map(&ring, OFFSET_SQES)?;
    let submission = Submission {
        opcode: OP_CONNECT,
        flags: 0,
        priority: 0,
        fd: socket.as_raw_fd(),
        offset: u64::from(to.len()),
        address: to.as_ptr() as u64,
        rest: [0; 5],
    };
    // SAFETY: the three maps are a page each, which a queue of one entry does not fill; the offsets are the kernel's. It reads the
    // entry after the tail is stored, and `to` lives until the answer is there.
    unsafe {
        entries.cast::<Submission>().write(submission);
        sq.byte_add(params.sq.array as usize).cast::<u32>().write(0);
        (*sq.byte_add(params.sq.tail as usize).cast::<AtomicU32>()).store(1, Ordering::Release);
        if libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, GETEVENTS, 0, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        // `struct io_uring_cqe`: eight bytes of the asker's, then the result.
        let result = cq.byte_add(params.cq.cqes as usize + 8).cast::<i32>().read_volatile();
        if result < 0 && result != GOES_ON { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

/// A page of the ring, until the process ends.
fn map(ring: &OwnedFd, offset: i64) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            ring.as_raw_fd(),
            offset,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at) }
}
