//! When interfaces become ports of bridges, and when the filters of their hooks are there: as the kernel's own messages say it, at the
//! moment they come. Nobody is asked for anything meanwhile, so that nobody waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hydra_agent::datapath::rtnetlink::{attributes, half, word};
use hydra_common::names::PROGRAMS;
use hydra_common::verdict::Hook;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

// Numbers of `linux/rtnetlink.h`, `linux/if_link.h`, `linux/pkt_sched.h` and `linux/pkt_cls.h`.
const NEW_LINK: u16 = 16;
const SET_LINK: u16 = 19;
const NEW_FILTER: u16 = 44;
const LINKS: u32 = 1 << 0;
const FILTERS: u32 = 1 << 3;
const MASTER: u16 = 10;
const OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const ERROR: u16 = 2;
const REQUEST_ACK: u16 = 1 | 4;
/// Bytes of `nlmsghdr`, and of it with `ifinfomsg` and with `tcmsg`.
const HEAD: usize = 16;
const LINK: usize = 32;
const FILTER: usize = 36;
/// Messages that nobody has read yet.
const ROOM: usize = 8 << 20;
/// How often a thread looks whether it is to end.
const BREATH: TimeVal = TimeVal::new(0, 50_000);

/// What was seen of one port.
#[derive(Clone, Copy, Debug)]
struct Port {
    bridge: u32,
    since: Instant,
    /// Where packets come in, and where they go out.
    hooks: [Option<Instant>; 2],
}

#[derive(Debug, Default)]
struct Seen {
    ports: BTreeMap<u32, Port>,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    news: Condvar,
    ends: AtomicBool,
}

/// See the module. Ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to listen in the calling thread's namespace. To each port of the bridge `other` the hooks are taken to be there when a
    /// request is answered that changes nothing, made at the kernel's message of it.
    pub fn open(other: u32) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (all, links, requests) = (listener(LINKS | FILTERS)?, listener(LINKS)?, listener(0)?);
        let (mine, theirs) = (Arc::clone(&shared), Arc::clone(&shared));
        let watch = move || {
            // What is seen late is measured wrong.
            hurry().unwrap_or_else(|error| mine.fail(&error));
            mine.listen(&all, |shared, message| {
                let now = Instant::now();
                let mut seen = shared.lock();
                if take(&mut seen.ports, message, now) {
                    shared.news.notify_all();
                }
                Ok(())
            });
        };
        let answer = move || {
            let mut known = BTreeMap::new();
            theirs.listen(&links, |shared, message| {
                let now = Instant::now();
                if !take(&mut known, message, now) {
                    return Ok(());
                }
                let Some(index) = word(message, HEAD + 4).filter(|index| known[index].bridge == other) else {
                    return Ok(());
                };
                // If this is before the other one.
                take(&mut shared.lock().ports, message, now);
                nothing(&requests)?;
                shared.found(index, Instant::now());
                Ok(())
            });
        };
        let threads = vec![
            thread::Builder::new().name("watch".to_owned()).spawn(watch)?,
            thread::Builder::new().name("answer".to_owned()).spawn(answer)?,
        ];
        Ok(Self { shared, threads })
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.shared.lock().ports.clear();
    }

    /// How long each port of a bridge was one without both of its hooks, in the order of their numbers, when so many have come and
    /// have them; none if that takes longer than `patience`.
    pub fn covered(&self, bridge: u32, count: usize, patience: Duration) -> Result<Option<Vec<Duration>>> {
        let begun = Instant::now();
        let mut seen = self.shared.lock();
        loop {
            if let Some(why) = &seen.failed {
                bail!("what the kernel says of its ports was lost: {why}");
            }
            let all: Option<Vec<Duration>> =
                seen.ports.values().filter(|port| port.bridge == bridge).map(waited).collect();
            if let Some(all) = all.filter(|all| all.len() == count) {
                return Ok(Some(all));
            }
            let Some(left) = patience.checked_sub(begun.elapsed()) else { return Ok(None) };
            seen = self.shared.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The ports of a bridge, and which of their hooks the kernel has not told of.
    pub fn missing(&self, bridge: u32) -> Vec<(u32, [bool; 2])> {
        let seen = self.shared.lock();
        let ports = seen.ports.iter().filter(|(_, port)| port.bridge == bridge);
        ports.map(|(index, port)| (*index, port.hooks.map(|hook| hook.is_none()))).collect()
    }

    /// All hooks of a port are there now.
    pub fn found(&self, index: u32) {
        self.shared.found(index, Instant::now());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &io::Error) {
        self.lock().failed = Some(error.to_string());
        self.news.notify_all();
    }

    /// Hands every message on until this is to end.
    fn listen(&self, socket: &OwnedFd, mut see: impl FnMut(&Self, &[u8]) -> io::Result<()>) {
        let mut buffer = vec![0; 4096];
        while !self.ends.load(Ordering::Relaxed) {
            let done = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => see(self, &buffer[..length]),
                Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = done {
                return self.fail(&error);
            }
        }
    }

    fn found(&self, index: u32, now: Instant) {
        if let Some(port) = self.lock().ports.get_mut(&index) {
            port.hooks = port.hooks.map(|hook| hook.or(Some(now)));
        }
        self.news.notify_all();
    }
}

/// From the first message of it as a port to the later of the two of its filters.
fn waited(port: &Port) -> Option<Duration> {
    let [first, second] = port.hooks;
    Some(first?.max(second?).duration_since(port.since))
}

/// Takes a message in; whether it says something new.
fn take(ports: &mut BTreeMap<u32, Port>, message: &[u8], now: Instant) -> bool {
    let (Some(kind), Some(index)) = (half(message, 4), word(message, HEAD + 4)) else { return false };
    match kind {
        // A bridge tells of its ports in messages of a family of its own.
        NEW_LINK if message.get(HEAD) == Some(&(libc::AF_UNSPEC as u8)) => {
            let master = attribute(message.get(LINK..).unwrap_or_default(), MASTER);
            let Some(bridge) = master.and_then(|value| word(value, 0)) else { return false };
            let new = !ports.contains_key(&index);
            ports.entry(index).or_insert(Port { bridge, since: now, hooks: [None; 2] });
            new
        }
        NEW_FILTER => {
            let (Some(side), Some(port)) = (side(message), ports.get_mut(&index)) else { return false };
            let hook = &mut port.hooks[side];
            let new = hook.is_none();
            hook.get_or_insert(now);
            new
        }
        _ => false,
    }
}

/// The side at which a filter is, if it is hydra's.
fn side(message: &[u8]) -> Option<usize> {
    let (side, hook) = match word(message, HEAD + 12)? {
        INGRESS => (0, Hook::PortIn),
        EGRESS => (1, Hook::PortOut),
        _ => return None,
    };
    let name = attribute(attribute(message.get(FILTER..)?, OPTIONS)?, BPF_NAME)?;
    (name.strip_suffix(b"\0")? == PROGRAMS[hook as usize].as_bytes()).then_some(side)
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn listener(groups: u32) -> Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM).context("messages need room")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &BREATH)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Before everything else that runs here.
fn hurry() -> io::Result<()> {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: `first` is a live parameter that the call reads; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for no change of `lo` and waits for the answer: that takes the lock of all network configuration and nothing else.
fn nothing(socket: &OwnedFd) -> io::Result<()> {
    let mut request = [0; LINK];
    request[..4].copy_from_slice(&(LINK as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SET_LINK.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    // Every namespace has `lo` as 1.
    request[HEAD + 4..HEAD + 8].copy_from_slice(&1u32.to_ne_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 512];
    loop {
        match recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Ok(_) => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match (half(&answer, 4), word(&answer, HEAD)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (_, code) => Err(io::Error::other(format!("a request that changes nothing was refused: {code:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, index: u32, length: usize, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![0; length];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[HEAD + 4..HEAD + 8].copy_from_slice(&index.to_ne_bytes());
        message.extend(rest);
        message
    }

    fn filter(index: u32, parent: u32, name: &[u8]) -> Vec<u8> {
        let options = attribute(OPTIONS | 1 << 15, &attribute(BPF_NAME, name));
        let mut message = message(NEW_FILTER, index, FILTER, &[attribute(1, b"bpf\0"), options].concat());
        message[HEAD + 12..HEAD + 16].copy_from_slice(&parent.to_ne_bytes());
        message
    }

    #[test]
    fn a_port_waits_from_its_first_message_to_its_second_filter() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut ports = BTreeMap::new();
        let link =
            |master: &[u8]| message(NEW_LINK, 7, LINK, &[attribute(3, b"veth1\0"), master.to_vec()].concat());
        assert!(!take(&mut ports, &link(&[]), at(0)), "no port yet");
        assert!(!take(&mut ports, &filter(7, INGRESS, b"hydra_port_in\0"), at(0)));
        let port = link(&attribute(MASTER, &4u32.to_ne_bytes()));
        assert!(take(&mut ports, &port, at(1)));
        assert!(!take(&mut ports, &port, at(2)), "the first counts");
        assert!(!take(&mut ports, &filter(7, INGRESS, b"somebody\0"), at(2)));
        assert!(!take(&mut ports, &filter(7, EGRESS, b"hydra_port_in\0"), at(2)), "the other side's");
        assert!(take(&mut ports, &filter(7, EGRESS, b"hydra_port_out\0"), at(3)));
        assert_eq!(waited(&ports[&7]), None);
        assert!(take(&mut ports, &filter(7, INGRESS, b"hydra_port_in\0"), at(5)));
        assert!(!take(&mut ports, &filter(7, INGRESS, b"hydra_port_in\0"), at(9)));
        assert_eq!(waited(&ports[&7]), Some(Duration::from_millis(4)));
        for length in 0..port.len() {
            take(&mut BTreeMap::new(), &port[..length], start);
        }
    }
}
