//! The oracle for "nothing was delivered": every frame that a place's interfaces receive, seen below all of its own filters; and
//! the way to send a frame that no well-behaved stack would.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::ready::Ready;
use crate::world::World;

/// What [`Sniffer::behind_programs`] listens to.
pub const BEHIND: [i32; 3] = [libc::ETH_P_IP, libc::ETH_P_IPV6, libc::ETH_P_ARP];

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Index of the interface that received it, as its place counts.
    pub ifindex: u32,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

/// Listens on all interfaces of a place until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    ears: Arc<Ears>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The sockets, and what was read from them.
#[derive(Debug)]
struct Ears {
    fds: Vec<OwnedFd>,
    seen: Mutex<Vec<Seen>>,
}

impl Ears {
    /// Reads whatever the kernel has: what was received before this call is in the list.
    fn read(&self) -> MutexGuard<'_, Vec<Seen>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for fd in &self.fds {
            while let Ok(frame) = receive(fd) {
                seen.extend(frame);
            }
        }
        seen
    }
}

impl Sniffer {
    /// Starts: what arrives after this call returned is seen, also what a program at the interface's ingress then drops.
    pub fn start(world: &World, place: &str) -> Result<Self> {
        Self::of(world, place, &[libc::ETH_P_ALL])
    }

    /// The same behind the programs at the interfaces' ingress, and for what is of IPv4, IPv6 or ARP alone: what the place's own stack
    /// gets. (`__netif_receive_skb_core` serves sockets of all protocols before TC, those of one protocol after it.)
    pub fn behind_programs(world: &World, place: &str) -> Result<Self> {
        Self::of(world, place, &BEHIND)
    }

    fn of(world: &World, place: &str, protocols: &[i32]) -> Result<Self> {
        let fds: Vec<OwnedFd> = world
            .enter(place, || protocols.iter().map(|&p| packet_socket(p)).collect::<io::Result<_>>())?
            .with_context(|| format!("cannot listen in {place}"))?;
        let mut ready = Ready::new()?;
        for (number, fd) in fds.iter().enumerate() {
            ready.add(fd.as_raw_fd(), number)?;
        }
        let ears = Arc::new(Ears { fds, seen: Mutex::default() });
        let stop = Arc::new(AtomicBool::new(false));
        let (reader, end) = (Arc::clone(&ears), Arc::clone(&stop));
        let thread = thread::Builder::new().name("hy-sniffer".into()).spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if ready.wait(20).is_err() {
                    return;
                }
                drop(reader.read());
            }
        })?;
        Ok(Self { ears, stop, thread: Some(thread) })
    }

    /// The frames so far that satisfy a condition.
    pub fn frames(&self, which: impl Fn(&[u8]) -> bool) -> Vec<Seen> {
        self.ears.read().iter().filter(|s| which(&s.frame)).cloned().collect()
    }

    /// The frames so far that carry these bytes anywhere.
    pub fn with(&self, mark: &[u8]) -> Vec<Seen> {
        self.frames(|frame| frame.windows(mark.len()).any(|w| w == mark))
    }

    /// Waits until at least one frame carries these bytes.
    pub fn wait_for(&self, mark: &[u8], patience: Duration) -> bool {
        let start = Instant::now();
        while self.with(mark).is_empty() {
            if start.elapsed() > patience {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends frames as they are from an interface of a place.
pub fn send_frames(world: &World, place: &str, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    world
        .enter(place, || -> Result<()> {
            let index = nix::net::if_::if_nametoindex(interface)?;
            let fd = packet_socket(libc::ETH_P_ALL)?;
            let mut to = link_address();
            to.sll_ifindex = i32::try_from(index)?;
            for frame in frames {
                // SAFETY: both pointers come with the length of what they point to.
                let sent = unsafe {
                    libc::sendto(
                        fd.as_raw_fd(),
                        frame.as_ptr().cast(),
                        frame.len(),
                        0,
                        (&raw const to).cast(),
                        size_of::<libc::sockaddr_ll>() as libc::socklen_t,
                    )
                };
                if sent < 0 {
                    return Err(io::Error::last_os_error()).context("cannot send a frame");
                }
            }
            Ok(())
        })?
        .with_context(|| format!("from {interface} of {place}"))
}

fn packet_socket(protocol: i32) -> io::Result<OwnedFd> {
    let protocol = i32::from(u16::try_from(protocol).map_err(io::Error::other)?.to_be());
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, flags, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn link_address() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}

/// `None` for a frame that the place itself sent.
fn receive(fd: &OwnedFd) -> io::Result<Option<Seen>> {
    let mut frame = vec![0; 65_536];
    let mut from = link_address();
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both buffers come with their length.
    let length = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut size,
        )
    };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    frame.truncate(length);
    let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
    Ok((!outgoing).then_some(Seen { ifindex: from.sll_ifindex.unsigned_abs(), frame }))
}
