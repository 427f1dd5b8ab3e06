//! Programs on a cgroup: links of one folder, pinned by what they hook. Adopted like those of interfaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hydra_common::tables::{Cgroup, MAX_OWN};

use super::attach::{Done, detach_now, open, pin_or_detach};
use super::load::Programs;
use super::pins::Pins;
use super::raw;
use super::rows;
use crate::cgroup;
use crate::desired::Desired;
use crate::published::{HookView, NotEnforced};

/// What a process does that a program hooks, in the order of [`hydra_common::names::SOCKET_PROGRAMS`]: the word that operators see and
/// the kernel's number.
const CALLS: [(&str, u32); 4] = [
    ("connect4", raw::CGROUP_CONNECT4),
    ("connect6", raw::CGROUP_CONNECT6),
    ("sendmsg4", raw::CGROUP_SENDMSG4),
    ("sendmsg6", raw::CGROUP_SENDMSG6),
];
/// Its packets, in the order of [`hydra_common::names::PACKET_PROGRAMS`].
const PACKETS: [(&str, u32); 2] = [("cgroup-in", raw::CGROUP_INGRESS), ("cgroup-out", raw::CGROUP_EGRESS)];

/// Where they should sit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seat {
    /// Nowhere: switched off.
    #[default]
    Off,
    /// On that folder.
    At(PathBuf),
    /// Nowhere, since there is no such place; why, as a sentence.
    Missing(String),
}

/// One hook that should be there.
struct Wanted<'p> {
    name: &'static str,
    kind: u32,
    folder: &'p Path,
    program: &'p (OwnedFd, u32),
}

/// The words of all hooks.
pub fn names() -> impl Iterator<Item = &'static str> {
    CALLS.into_iter().chain(PACKETS).map(|(name, _)| name)
}

/// Makes the folder have the programs that are needed. What could not be done is in the list.
pub fn ensure(
    pins: &Pins,
    seat: &Seat,
    programs: &Programs,
    desired: &Desired,
) -> (Vec<(&'static str, Done)>, Vec<NotEnforced>) {
    let (mut done, mut wrong) = (Vec::new(), missing(seat, programs, desired));
    let wanted = wanted(seat, programs, desired);
    for hook in &wanted {
        match ensure_one(&pins.socket(hook.name), hook) {
            Ok(how) => done.push((hook.name, how)),
            Err(e) => {
                let folder = hook.folder.display();
                wrong.push(complain(hook.name, &format!("it could not be attached to `{folder}`: {e}")));
            }
        }
    }
    (done, wrong)
}

/// Takes away the programs that are not needed.
pub fn leave(pins: &Pins, seat: &Seat, programs: &Programs, desired: &Desired) -> Vec<NotEnforced> {
    let mut wrong = Vec::new();
    let wanted = wanted(seat, programs, desired);
    for name in names().filter(|name| !wanted.iter().any(|hook| hook.name == *name)) {
        if let Err(e) = remove(&pins.socket(name)) {
            wrong.push(complain(name, &format!("it could not be taken away: {e}")));
        }
    }
    wrong
}

/// Whether every process of this machine that receives a packet meets the hook for it: of those in `done`, on the root.
pub fn sees_all(seat: &Seat, done: &[(&'static str, Done)]) -> bool {
    let Seat::At(folder) = seat else { return false };
    let root = cgroup::number(folder).is_ok_and(|number| number == cgroup::ROOT);
    root && PACKETS.iter().all(|(name, _)| done.iter().any(|(there, _)| there == name))
}

/// What is not as [`ensure`] left it.
pub fn complaints(pins: &Pins, seat: &Seat, programs: &Programs, desired: &Desired) -> Vec<NotEnforced> {
    let mut wrong = missing(seat, programs, desired);
    for hook in wanted(seat, programs, desired) {
        match attached(&pins.socket(hook.name), hook.folder, hook.kind) {
            Ok(Some((_, info))) if info.program == hook.program.1 => {}
            Ok(Some((_, info))) => {
                wrong.push(complain(hook.name, &format!("program {} runs instead of hydra's", info.program)));
            }
            Ok(None) => {
                wrong.push(complain(hook.name, &format!("no program at `{}`", hook.folder.display())));
            }
            Err(e) => wrong.push(complain(hook.name, &format!("it could not be looked at: {e}"))),
        }
    }
    wrong
}

/// What is really attached.
pub fn views(pins: &Pins, seat: &Seat) -> Vec<HookView> {
    let Seat::At(folder) = seat else { return Vec::new() };
    let there = |(name, kind): (&str, u32)| {
        let (_, info) = attached(&pins.socket(name), folder, kind).ok()??;
        Some(HookView {
            interface: folder.display().to_string(),
            ifindex: 0,
            hook: name.to_owned(),
            mechanism: "cgroup".to_owned(),
            program_id: info.program,
            link_id: info.id,
            position: 0,
        })
    };
    CALLS.into_iter().chain(PACKETS).filter_map(there).collect()
}

/// Takes a link away; one that is gone is fine.
pub fn remove(pin: &Path) -> io::Result<()> {
    let Some(link) = open(pin)? else { return Ok(()) };
    detach_now(&link)?;
    fs::remove_file(pin)
}

/// Packets are looked at only where somebody lives on this host's own stack, or has an interface without a port: every packet of the
/// host passes there.
fn wanted<'p>(seat: &'p Seat, programs: &'p Programs, desired: &Desired) -> Vec<Wanted<'p>> {
    let Seat::At(folder) = seat else { return Vec::new() };
    let calls = CALLS.into_iter().zip(&programs.sockets);
    let packets = PACKETS.into_iter().zip(&programs.packets).filter(|_| packets_count(desired));
    calls.chain(packets).map(|((name, kind), program)| Wanted { name, kind, folder, program }).collect()
}

fn packets_count(desired: &Desired) -> bool {
    desired.cgroups.values().any(|row| row.flags & (Cgroup::HOST | Cgroup::LAN) != 0)
}

/// What cannot be: of a container that is not refused at once the packets are refused; of a process on this host's own stack nothing is.
fn missing(seat: &Seat, programs: &Programs, desired: &Desired) -> Vec<NotEnforced> {
    let mut wrong = Vec::new();
    let mut say = |why: &str| wrong.push(NotEnforced { what: "cgroup".to_owned(), why: why.to_owned() });
    match seat {
        Seat::Off => {}
        Seat::Missing(why) => say(&format!("processes are not refused at once: {why}")),
        Seat::At(_) => {
            if programs.sockets.is_empty() {
                say("processes are not refused at once: this kernel does not take hydra's programs for it");
            }
            if rows::on_own_stack(&desired.cgroups).len() > MAX_OWN as usize {
                say(&format!(
                    "there are more than {MAX_OWN} tiers and services on this host's own stack: who calls one of them by an address of this host needs a right to `host`, too"
                ));
            }
            if programs.packets.is_empty() && packets_count(desired) {
                say(
                    "packets of units and containers on this host's own stack, and on networks without ports on it, are not judged: this kernel does not take hydra's programs for it",
                );
            }
        }
    }
    wrong
}

fn complain(name: &str, why: &str) -> NotEnforced {
    NotEnforced { what: format!("cgroup {name}"), why: why.to_owned() }
}

fn ensure_one(pin: &Path, hook: &Wanted<'_>) -> io::Result<Done> {
    let (program, id) = hook.program;
    if let Some((link, info)) = attached(pin, hook.folder, hook.kind)? {
        if info.program == *id {
            return Ok(Done::Kept);
        }
        raw::link_update(link.as_fd(), program.as_fd())?;
        return Ok(Done::Replaced(info.program));
    }
    // Of another folder, or of one that is gone.
    remove(pin)?;
    let folder = File::open(hook.folder)?;
    let link = raw::cgroup_attach(program.as_fd(), folder.as_fd(), hook.kind)?;
    pin_or_detach(&link, pin)?;
    Ok(Done::Attached)
}

/// The pinned link, if it is the folder's.
fn attached(pin: &Path, folder: &Path, kind: u32) -> io::Result<Option<(OwnedFd, raw::CgroupLinkInfo)>> {
    let Some(link) = open(pin)? else { return Ok(None) };
    let info = raw::cgroup_link_info(link.as_fd())?;
    let ours = info.kind == raw::LINK_CGROUP && info.attach_type == kind;
    Ok((ours && info.cgroup == cgroup::number(folder)?).then_some((link, info)))
}
