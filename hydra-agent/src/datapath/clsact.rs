//! Classifiers the old way, for kernels without TCX: a `clsact` qdisc and a filter of ours in it, over netlink by interface index.
//!
//! Only the filter with our handle, priority and name is ever touched. The qdisc stays: others may have put theirs into it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use hydra_common::names::PROGRAMS;
use hydra_common::verdict::Hook;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::attach::{Done, Seat};
use super::raw;

// Numbers of `linux/netlink.h`, `linux/rtnetlink.h`, `linux/pkt_sched.h` and `linux/pkt_cls.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// The first of all priorities.
const PRIORITY: u32 = 1;
/// Tells our filter from others of the same priority.
const HANDLE: u32 = 0x6879_0001;

fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::PortIn | Hook::BridgeIn | Hook::UplinkIn => INGRESS,
        Hook::PortOut | Hook::BridgeOut => EGRESS,
    }
}

/// A filter of an interface, as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    priority: u32,
    handle: u32,
    name: String,
    program: u32,
}

impl Filter {
    fn ours(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && PROGRAMS.contains(&self.name.as_str())
    }
}

/// Where our filter is. TCX programs run before every filter.
pub fn seat(ifindex: u32, hook: Hook) -> io::Result<Option<Seat>> {
    let filters = list(ifindex, hook)?;
    let Some(position) = filters.iter().position(Filter::ours) else { return Ok(None) };
    let tcx = if parent(hook) == INGRESS { raw::TCX_INGRESS } else { raw::TCX_EGRESS };
    let before = raw::tcx_chain(ifindex, tcx).map_or(0, |chain| chain.len());
    Ok(Some(Seat { program: filters[position].program, link: 0, position: (before + position) as u32 }))
}

/// Puts our filter there, or another program into it. Its place among filters of the same priority is the kernel's: the newest
/// comes first.
pub fn ensure(program: BorrowedFd<'_>, id: u32, ifindex: u32, hook: Hook) -> io::Result<Done> {
    let filters = list(ifindex, hook)?;
    let done = match filters.iter().position(Filter::ours) {
        Some(0) if filters[0].program == id => return Ok(Done::Kept),
        Some(0) => Done::Replaced,
        Some(_) => {
            remove(ifindex, hook)?;
            Done::MovedFirst
        }
        None => Done::Attached,
    };
    let mut flags = ACK;
    if done != Done::Replaced {
        add_qdisc(ifindex)?;
        flags |= CREATE | EXCLUSIVE;
    }
    let mut request = Request::new(NEW_FILTER, flags, ifindex, HANDLE, parent(hook));
    request.attribute(KIND, b"bpf\0");
    let mut options = Vec::new();
    attribute(&mut options, BPF_FD, &program.as_raw_fd().to_ne_bytes());
    attribute(&mut options, BPF_NAME, &[PROGRAMS[hook as usize].as_bytes(), b"\0"].concat());
    attribute(&mut options, BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    request.attribute(OPTIONS, &options);
    request.send()?;
    Ok(done)
}

/// Takes our filter away, if it is there.
pub fn remove(ifindex: u32, hook: Hook) -> io::Result<()> {
    if !list(ifindex, hook)?.iter().any(Filter::ours) {
        return Ok(());
    }
    Request::new(DELETE_FILTER, ACK, ifindex, HANDLE, parent(hook)).send().map(drop)
}

fn add_qdisc(ifindex: u32) -> io::Result<()> {
    let mut request = Request::new(NEW_QDISC, ACK | CREATE | EXCLUSIVE, ifindex, CLSACT_HANDLE, CLSACT);
    request.bytes[TC_INFO].fill(0);
    request.attribute(KIND, b"clsact\0");
    match request.send() {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result.map(drop),
    }
}

/// All filters of one side, in the order in which they run.
fn list(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut request = Request::new(GET_FILTER, DUMP, ifindex, 0, parent(hook));
    request.bytes[TC_INFO].fill(0);
    let answers = match request.send() {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Vec::new(),
        result => result?,
    };
    // A filter's head comes without a handle, then its members.
    Ok(answers.iter().filter_map(|m| filter(m)).filter(|f| f.handle != 0).collect())
}

const HEADER: usize = 16;
const TC: usize = 20;
const TC_INFO: std::ops::Range<usize> = HEADER + 16..HEADER + 20;

fn filter(message: &[u8]) -> Option<Filter> {
    let mut filter = Filter {
        priority: word(message, 16)? >> 16,
        handle: word(message, 8)?,
        name: String::new(),
        program: 0,
    };
    for (kind, value) in attributes(message.get(TC..)?) {
        if kind == OPTIONS {
            for (kind, value) in attributes(value) {
                match kind {
                    BPF_NAME => {
                        let name = String::from_utf8_lossy(value);
                        name.trim_end_matches('\0').clone_into(&mut filter.name);
                    }
                    BPF_ID => filter.program = word(value, 0)?,
                    _ => {}
                }
            }
        }
    }
    Some(filter)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
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

fn attribute(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    into.extend(((value.len() + 4) as u16).to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

/// A netlink message about a qdisc or filter: `nlmsghdr`, `tcmsg`, attributes.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8 + 4]);
        for word in [ifindex, handle, parent, PRIORITY << 16 | u32::from(ETH_P_ALL.to_be())] {
            bytes.extend(word.to_ne_bytes());
        }
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        attribute(&mut self.bytes, kind, value);
    }

    /// Sends it and gives the answers' bodies.
    fn send(mut self) -> io::Result<Vec<Vec<u8>>> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let socket: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        sendto(socket.as_raw_fd(), &self.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
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
                    ERROR => {
                        return match word(body, 0).map_or(libc::EBADMSG, |n| n.cast_signed().wrapping_neg()) {
                            0 => Ok(answers),
                            errno => Err(io::Error::from_raw_os_error(errno)),
                        };
                    }
                    DONE => return Ok(answers),
                    _ => answers.push(body.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &[u8], handle: u32, priority: u32) -> Vec<u8> {
        let mut request = Request::new(NEW_FILTER, 0, 7, handle, INGRESS);
        request.bytes[TC_INFO].copy_from_slice(&(priority << 16).to_ne_bytes());
        let mut options = Vec::new();
        attribute(&mut options, BPF_NAME, name);
        attribute(&mut options, BPF_ID, &42u32.to_ne_bytes());
        request.attribute(KIND, b"bpf\0");
        request.attribute(OPTIONS, &options);
        request.bytes.split_off(HEADER)
    }

    #[test]
    fn only_our_own_filter_is_ours() {
        let ours = filter(&message(b"hydra_port_in\0", HANDLE, PRIORITY)).unwrap();
        assert_eq!((ours.ours(), ours.program), (true, 42));
        assert!(!filter(&message(b"cilium\0", HANDLE, PRIORITY)).unwrap().ours());
        assert!(!filter(&message(b"hydra_port_in\0", 1, PRIORITY)).unwrap().ours());
        assert!(!filter(&message(b"hydra_port_in\0", HANDLE, 2)).unwrap().ours());
    }

    #[test]
    fn a_cut_message_is_not_a_filter() {
        let whole = message(b"hydra_port_in\0", HANDLE, PRIORITY);
        for length in 0..whole.len() {
            let _ = filter(&whole[..length]);
        }
        assert!(filter(&whole[..12]).is_none());
    }
}
