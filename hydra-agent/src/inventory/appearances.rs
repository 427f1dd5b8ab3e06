//! When interfaces appeared: read off the kernel's messages by a task of its own, since whoever looks may be busy with the look before.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::task::JoinHandle;

use super::netlink::NetlinkError;

// Numbers of `linux/rtnetlink.h`.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
/// Bytes that are read of a message: `nlmsghdr` and `ifinfomsg`; the rest is cut off.
const CUT: usize = 32;
/// Interfaces that are remembered. Only the newest are ever asked for.
const KEPT: usize = 4096;

type Times = Arc<Mutex<BTreeMap<u32, Instant>>>;

/// See the module.
#[derive(Debug)]
pub struct Appearances {
    times: Times,
    task: JoinHandle<()>,
}

impl Appearances {
    /// Begins to listen in the calling thread's namespace. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |what: &'static str| move |source: io::Error| NetlinkError::Socket { what, source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed("opened"))?;
        let mask = 1 << (MulticastGroup::Link as u32 - 1);
        socket.socket_mut().bind(&SocketAddr::new(0, mask)).map_err(failed("bound"))?;
        let times = Times::default();
        Ok(Self { task: tokio::spawn(listen(socket, times.clone())), times })
    }

    /// When the kernel first told of this interface; none for one that was there before.
    pub fn of(&self, index: u32) -> Option<Instant> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).get(&index).copied()
    }
}

impl Drop for Appearances {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(socket: TokioSocket, times: Times) {
    let mut buffer = Vec::with_capacity(CUT);
    loop {
        buffer.clear();
        match poll_fn(|cx| socket.poll_recv(cx, &mut buffer)).await {
            Ok(()) => note(&times, &buffer, Instant::now()),
            // Messages were lost: what they told of has no time.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => {
                tracing::warn!(%error, "how long ports wait for their programs is not measured any more");
                return;
            }
        }
    }
}

/// A message's kind and interface. A port changes many times; its first message counts.
fn note(times: &Times, message: &[u8], now: Instant) {
    let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let index = message.get(20..24).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let (Some(kind), Some(index)) = (kind, index) else { return };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(kind: u16, index: u32) -> Vec<u8> {
        let mut message = vec![0; CUT];
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
}
