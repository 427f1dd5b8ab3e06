//! Classifiers the old way, for kernels without TCX: a `clsact` qdisc and a filter of ours in it, over netlink by interface index.
//!
//! Only filters with our handles and names are ever touched. The qdisc stays: others may have put theirs into it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use hydra_common::names::PROGRAMS;
use hydra_common::verdict::Hook;

use super::attach::{Done, Seat};
use super::raw;
use super::rtnetlink::{ACK, CREATE, DUMP, EXCLUSIVE, Request, attribute, attributes, send_all, word};

// Numbers of `linux/rtnetlink.h`, `linux/pkt_sched.h` and `linux/pkt_cls.h`.
const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
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
/// Bytes of `tcmsg`.
const TC: usize = 20;

/// The first of all priorities, and those that are tried where somebody's filter of another kind has it.
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=8;
/// Tell our filter from others of the same priority. Two, so that the one that takes a place is there before the other goes.
const HANDLES: [u32; 2] = [0x6879_0001, 0x6879_0002];

fn parent(hook: Hook) -> u32 {
    match hook {
        Hook::PortIn | Hook::BridgeIn | Hook::UplinkIn => INGRESS,
        Hook::PortOut | Hook::BridgeOut => EGRESS,
        // No interface has it.
        Hook::Connect | Hook::CgroupIn | Hook::CgroupOut => 0,
    }
}

/// A filter of an interface, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    priority: u32,
    handle: u32,
    name: String,
    program: u32,
}

impl Filter {
    fn ours(&self) -> bool {
        PRIORITIES.contains(&self.priority)
            && HANDLES.contains(&self.handle)
            && PROGRAMS.contains(&self.name.as_str())
    }
}

/// Where our filter is. TCX programs run before every filter.
pub fn seat(ifindex: u32, hook: Hook) -> io::Result<Option<Seat>> {
    let filters = list(ifindex, hook)?;
    let Some(position) = filters.iter().position(Filter::ours) else { return Ok(None) };
    let tcx = if parent(hook) == INGRESS { raw::TCX_INGRESS } else { raw::TCX_EGRESS };
    let chain = raw::tcx_chain(ifindex, tcx).unwrap_or_default().into_iter().map(|(program, _)| program);
    let before = chain.chain(filters[..position].iter().map(|f| f.program)).collect();
    Ok(Some(Seat { program: filters[position].program, link: 0, before }))
}

/// Puts our filter there, or another program into it. Its place among filters of the same priority is the kernel's: the newest
/// comes first. The old one goes when the new one is there.
pub fn ensure(program: BorrowedFd<'_>, id: u32, ifindex: u32, hook: Hook) -> io::Result<Done> {
    let filters = list(ifindex, hook)?;
    let mut ours = filters.iter().filter(|f| f.ours());
    let Some(first) = ours.next() else {
        add_qdisc(ifindex)?;
        return add(program, ifindex, hook).map(|()| Done::Attached);
    };
    // A second one is there since a move that was cut off.
    ours.try_for_each(|spare| delete(ifindex, hook, spare))?;
    let before: Vec<u32> = filters.iter().take_while(|f| !f.ours()).map(|f| f.program).collect();
    if !before.is_empty() {
        let handle = HANDLES[usize::from(first.handle == HANDLES[0])];
        match filter_request(program, ifindex, hook, *PRIORITIES.start(), handle, CREATE | EXCLUSIVE).send() {
            Ok(_) => return delete(ifindex, hook, first).map(|()| Done::MovedFirst(before)),
            // The first priority is that of somebody's filter of another kind: ours stays where it is, and that is reported.
            Err(e) if taken(&e) => {}
            Err(e) => return Err(e),
        }
    }
    if first.program == id {
        return Ok(Done::Kept);
    }
    let done = filter_request(program, ifindex, hook, first.priority, first.handle, 0).send();
    done.map(|_| Done::Replaced(first.program))
}

/// Adds filters of ours to an interface that has none, at once. Fails where anything is in their way; some may be there then.
pub fn cover(programs: &[(Hook, BorrowedFd<'_>)], ifindex: u32) -> io::Result<()> {
    let filter = |(hook, program): &(Hook, BorrowedFd<'_>)| {
        filter_request(*program, ifindex, *hook, *PRIORITIES.start(), HANDLES[0], CREATE | EXCLUSIVE)
    };
    let requests = [qdisc_request(ifindex)].into_iter().chain(programs.iter().map(filter)).collect();
    let mut outcomes = send_all(requests)?.into_iter();
    outcomes.next().map_or(Ok(()), there)?;
    outcomes.collect()
}

/// Adds our filter at the first priority that takes it.
fn add(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<()> {
    let mut last = Ok(());
    for priority in PRIORITIES {
        last =
            filter_request(program, ifindex, hook, priority, HANDLES[0], CREATE | EXCLUSIVE).send().map(drop);
        match &last {
            Err(e) if taken(e) => {}
            _ => return last,
        }
    }
    last
}

/// Whether a priority belongs to filters of another kind or protocol.
fn taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EEXIST | libc::ENOENT))
}

/// The request to write a filter of ours.
fn filter_request(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: Hook,
    priority: u32,
    handle: u32,
    flags: u16,
) -> Request {
    let mut request = request(NEW_FILTER, ACK | flags, ifindex, handle, parent(hook), priority);
    request.attribute(KIND, b"bpf\0");
    let mut options = Vec::new();
    attribute(&mut options, BPF_FD, &program.as_raw_fd().to_ne_bytes());
    attribute(&mut options, BPF_NAME, &[PROGRAMS[hook as usize].as_bytes(), b"\0"].concat());
    attribute(&mut options, BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
    request.attribute(OPTIONS, &options);
    request
}

fn delete(ifindex: u32, hook: Hook, filter: &Filter) -> io::Result<()> {
    request(DELETE_FILTER, ACK, ifindex, filter.handle, parent(hook), filter.priority).send().map(drop)
}

/// Takes our filter away, if it is there.
pub fn remove(ifindex: u32, hook: Hook) -> io::Result<()> {
    remove_all(ifindex, hook, &ours(ifindex, hook)?)
}

/// Our filters on one side.
pub fn ours(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut filters = list(ifindex, hook)?;
    filters.retain(Filter::ours);
    Ok(filters)
}

/// Takes these away.
pub fn remove_all(ifindex: u32, hook: Hook, filters: &[Filter]) -> io::Result<()> {
    filters.iter().try_for_each(|filter| delete(ifindex, hook, filter))
}

fn add_qdisc(ifindex: u32) -> io::Result<()> {
    there(qdisc_request(ifindex).send().map(drop))
}

fn qdisc_request(ifindex: u32) -> Request {
    let head = head(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let mut request = Request::new(NEW_QDISC, ACK | CREATE | EXCLUSIVE, &head);
    request.attribute(KIND, b"clsact\0");
    request
}

/// A qdisc that is there already will do.
fn there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(e) })
}

/// All filters of one side, in the order in which they run.
fn list(ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let answers = match Request::new(GET_FILTER, DUMP, &head(ifindex, 0, parent(hook), 0)).send() {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => Vec::new(),
        result => result?,
    };
    // A filter's head comes without a handle, then its members.
    Ok(answers.iter().filter_map(|m| filter(m)).filter(|f| f.handle != 0).collect())
}

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

/// A message about a filter.
fn request(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32, priority: u32) -> Request {
    let info = priority << 16 | u32::from(ETH_P_ALL.to_be());
    Request::new(kind, flags, &head(ifindex, handle, parent, info))
}

/// `tcmsg`.
fn head(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TC] {
    let mut head = [0; TC];
    for (place, word) in head[4..].chunks_exact_mut(4).zip([ifindex, handle, parent, info]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u32 = HANDLES[0];

    fn message(name: &[u8], handle: u32, priority: u32) -> Vec<u8> {
        let mut request = Request::new(NEW_FILTER, 0, &head(7, handle, INGRESS, priority << 16));
        let mut options = Vec::new();
        attribute(&mut options, BPF_NAME, name);
        attribute(&mut options, BPF_ID, &42u32.to_ne_bytes());
        request.attribute(KIND, b"bpf\0");
        request.attribute(OPTIONS, &options);
        request.body().to_vec()
    }

    #[test]
    fn only_our_own_filter_is_ours() {
        let ours = filter(&message(b"hydra_port_in\0", OURS, 1)).unwrap();
        assert_eq!((ours.ours(), ours.program), (true, 42));
        assert!(filter(&message(b"hydra_port_in\0", HANDLES[1], 1)).unwrap().ours());
        assert!(!filter(&message(b"cilium\0", OURS, 1)).unwrap().ours());
        assert!(!filter(&message(b"hydra_port_in\0", 1, 1)).unwrap().ours());
        assert!(!filter(&message(b"hydra_port_in\0", OURS, 9)).unwrap().ours());
    }

    #[test]
    fn a_cut_message_is_not_a_filter() {
        let whole = message(b"hydra_port_in\0", OURS, 1);
        for length in 0..whole.len() {
            let _ = filter(&whole[..length]);
        }
        assert!(filter(&whole[..12]).is_none());
    }
}
