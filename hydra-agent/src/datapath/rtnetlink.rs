//! Requests to the kernel's `rtnetlink` that block: what classifiers and XDP programs are asked about and made with.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

// Numbers of `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
/// Flag of a request: it is answered.
pub const ACK: u16 = 4;
/// The answer is a list.
pub const DUMP: u16 = 0x300;
/// Only if it is not there.
pub const EXCLUSIVE: u16 = 0x200;
/// Make it.
pub const CREATE: u16 = 0x400;

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// The word of four bytes there.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The one of two bytes.
pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Numbers and values of the attributes in these bytes, as far as they are whole.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let (Some(length), Some(kind)) = (half(bytes, 0), half(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else { break };
        // The two highest bits are flags.
        all.push((kind & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// Appends an attribute.
pub fn attribute(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    into.extend(((value.len() + 4) as u16).to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

/// A message: `nlmsghdr`, a head of the kind's own, attributes.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// One of this kind with these flags and this head.
    pub fn new(kind: u16, flags: u16, head: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(head);
        Self { bytes }
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        attribute(&mut self.bytes, kind, value);
    }

    /// What follows `nlmsghdr`.
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// All of it, with its length and this number, which the answer repeats.
    fn message(mut self, number: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        self.bytes
    }

    /// Sends it and gives the answers' bodies.
    pub fn send(self) -> io::Result<Vec<Vec<u8>>> {
        let socket = sent(&self.message(0))?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; 65_536];
        loop {
            let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..got];
            while let (Some(length), Some(kind)) = (word(rest, 0), half(rest, 4)) {
                let length = length as usize;
                let Some(body) = rest.get(HEADER..length) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match kind {
                    ERROR => return outcome(body).map(|()| answers),
                    DONE => return Ok(answers),
                    _ => answers.push(body.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Sends requests, each of which asks for an acknowledgement, in one system call, and gives what became of each. The kernel takes the
/// lock of network configuration for each of them, but nobody else's turn comes in between as it does when user space has to be woken.
pub fn send_all(requests: Vec<Request>) -> io::Result<Vec<io::Result<()>>> {
    let mut outcomes: Vec<Option<io::Result<()>>> = requests.iter().map(|_| None).collect();
    let messages: Vec<Vec<u8>> =
        (0..).zip(requests).map(|(number, request)| request.message(number)).collect();
    let socket = sent(&messages.concat())?;
    let mut buffer = vec![0u8; 4096];
    while outcomes.iter().any(Option::is_none) {
        let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..got];
        while let (Some(length), Some(kind), Some(number)) = (word(rest, 0), half(rest, 4), word(rest, 8)) {
            let body = rest.get(HEADER..length as usize).ok_or(io::ErrorKind::InvalidData)?;
            if let (ERROR, Some(place)) = (kind, outcomes.get_mut(number as usize)) {
                *place = Some(outcome(body));
            }
            rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// A socket over which these bytes went to the kernel.
fn sent(bytes: &[u8]) -> io::Result<OwnedFd> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(socket)
}

/// What an acknowledgement says.
fn outcome(body: &[u8]) -> io::Result<()> {
    match word(body, 0).map_or(libc::EBADMSG, |n| n.cast_signed().wrapping_neg()) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
