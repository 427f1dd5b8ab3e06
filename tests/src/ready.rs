//! Waiting for many sockets at once (epoll): what is ready costs, what is silent does not.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Sockets that are waited for, each with a number.
#[derive(Debug)]
pub(crate) struct Ready {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Ready {
    /// None yet.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else has.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Waits for a socket to be readable, or for a new connection to be made. Closing the socket ends it.
    pub(crate) fn add(&self, socket: RawFd, number: usize) -> io::Result<()> {
        // Edge-triggered: a writable socket is told once, then only what changes.
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: number as u64 };
        // SAFETY: the pointer is to a struct of the right type that outlives the call.
        let done =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket, &raw mut event) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The numbers of what is ready, none when so many milliseconds have passed.
    pub(crate) fn wait(&mut self, milliseconds: i32) -> io::Result<Vec<usize>> {
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: pointer and length are one vector's.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), room, milliseconds) };
        match usize::try_from(count) {
            Ok(count) => Ok(self.events[..count].iter().map(|e| e.u64 as usize).collect()),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
                error => Err(error),
            },
        }
    }
}
