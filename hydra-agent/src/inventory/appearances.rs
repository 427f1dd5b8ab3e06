//! Interfaces as they appear and become ports: read off the kernel's messages by a thread of its own, since whoever looks may be busy
//! with the look before.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::netlink::NetlinkError;

// Numbers of `linux/rtnetlink.h` and `linux/if_link.h`.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const MASTER: u16 = 10;
/// Bytes of `nlmsghdr` and `ifinfomsg`.
const HEAD: usize = 32;
/// Bytes that are read of a message, whose master stands near its beginning; the rest is cut off.
const CUT: usize = 4096;
/// Interfaces that are remembered. Only the newest are ever asked for.
const KEPT: usize = 4096;

type Times = Arc<Mutex<BTreeMap<u32, Instant>>>;

/// An interface, and the one that it is a port of now.
pub type Port = (u32, Option<u32>);

/// See the module.
#[derive(Debug)]
pub struct Appearances {
    times: Times,
}

impl Appearances {
    /// Begins to listen in the calling thread's namespace, for as long as the process lives. What every message says of an interface as
    /// a port is passed on.
    pub fn open(ports: Sender<Port>) -> Result<Self, NetlinkError> {
        let failed = |what: &'static str| move |source: io::Error| NetlinkError::Socket { what, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("opened"))?;
        let mask = 1 << (MulticastGroup::Link as u32 - 1);
        socket.bind(&SocketAddr::new(0, mask)).map_err(failed("bound"))?;
        let times = Times::default();
        let (mine, name) = (times.clone(), "hydra-links".to_owned());
        let listen = move || listen(&socket, &mine, &ports);
        std::thread::Builder::new().name(name).spawn(listen).map_err(failed("listened to"))?;
        Ok(Self { times })
    }

    /// When the kernel first told of this interface; none for one that was there before.
    pub fn of(&self, index: u32) -> Option<Instant> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).get(&index).copied()
    }
}

fn listen(socket: &Socket, times: &Times, ports: &Sender<Port>) {
    let mut buffer = Vec::with_capacity(CUT);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {
                note(times, &buffer, Instant::now());
                // Where nobody takes them any more the passes do it all.
                let _ = port(&buffer).map(|port| ports.send(port));
            }
            // Messages were lost: what they told of has no time, and the next pass finds it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => {}
            Err(error) => {
                tracing::warn!(%error, "new ports wait for a pass, and how long they do is not measured any more");
                return;
            }
        }
    }
}

fn half(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// A message's kind and interface. Bridges tell of their ports in messages of a family of their own.
fn head(message: &[u8]) -> Option<(u16, u32)> {
    let own = *message.get(16)? == libc::AF_UNSPEC as u8;
    Some((half(message, 4)?, word(message, 20)?)).filter(|_| own)
}

/// A port changes many times; its first message counts.
fn note(times: &Times, message: &[u8], now: Instant) {
    let Some((kind, index)) = head(message) else { return };
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    match kind {
        NEW_LINK => drop(times.entry(index).or_insert(now)),
        DELETE_LINK => drop(times.remove(&index)),
        _ => {}
    }
    if times.len() > KEPT {
        // The lowest index is that of the oldest interface.
        times.pop_first();
    }
}

/// What a message says of an interface.
fn port(message: &[u8]) -> Option<Port> {
    match head(message)? {
        (NEW_LINK, index) => Some((index, master(message))),
        (DELETE_LINK, index) => Some((index, None)),
        _ => None,
    }
}

fn master(message: &[u8]) -> Option<u32> {
    let mut at = HEAD;
    loop {
        let length = usize::from(half(message, at)?).max(4);
        if half(message, at + 2)? == MASTER {
            return word(message, at + 4);
        }
        at += length.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(kind: u16, index: u32) -> Vec<u8> {
        let mut message = vec![0; HEAD];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[20..24].copy_from_slice(&index.to_ne_bytes());
        message
    }

    #[test]
    fn the_first_message_counts_until_the_interface_is_gone() {
        let (times, start) = (Times::default(), Instant::now());
        let later = start + Duration::from_secs(1);
        let at = |index: u32| times.lock().unwrap().get(&index).copied();
        note(&times, &message(NEW_LINK, 7), start);
        note(&times, &message(NEW_LINK, 7), later);
        assert_eq!(at(7), Some(start));
        note(&times, &message(DELETE_LINK, 7), later);
        assert_eq!(at(7), None);
        note(&times, &message(NEW_LINK, 7), later);
        note(&times, &message(NEW_LINK, 8)[..21], later);
        assert_eq!((at(7), at(8)), (Some(later), None));
        for index in 100..5_000 {
            note(&times, &message(NEW_LINK, index), later);
        }
        assert_eq!(times.lock().unwrap().len(), KEPT);
        assert_eq!(at(4_999), Some(later));
    }

    #[test]
    fn a_port_is_what_has_a_master_now() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let name = attribute(3, b"veth1\0");
        let whole = [message(NEW_LINK, 7), name.clone(), attribute(MASTER, &4_u32.to_ne_bytes())].concat();
        assert_eq!(port(&whole), Some((7, Some(4))));
        for length in 0..whole.len() {
            let cut = port(&whole[..length]);
            assert_eq!(cut, (length >= 24).then_some((7, None)), "{length} bytes");
        }
        assert_eq!(port(&[message(NEW_LINK, 7), name].concat()), Some((7, None)));
        let gone = [message(DELETE_LINK, 7), attribute(MASTER, &4_u32.to_ne_bytes())].concat();
        assert_eq!(port(&gone), Some((7, None)));
        let odd = [message(NEW_LINK, 7), vec![0; 64]].concat();
        assert_eq!(port(&odd), Some((7, None)), "attributes without a length");
        assert_eq!(port(&message(21, 7)), None, "another kind");
    }

    #[test]
    fn a_port_that_leaves_its_bridge_has_not_gone() {
        let (times, start) = (Times::default(), Instant::now());
        note(&times, &message(NEW_LINK, 7), start);
        let mut left = message(DELETE_LINK, 7);
        left[16] = libc::AF_BRIDGE as u8;
        note(&times, &left, start);
        assert_eq!(times.lock().unwrap().get(&7), Some(&start));
    }
}
