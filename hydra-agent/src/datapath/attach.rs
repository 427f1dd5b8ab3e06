//! Programs on interfaces: TCX links, first in the chain, pinned by interface and hook; or clsact filters where the kernel has
//! no TCX (before 6.6), and on new ports for a while. What is pinned and alive is adopted, never detached and attached again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hydra_common::verdict::Hook;
use nix::net::if_::if_indextoname;

use super::clsact;
use super::load::Programs;
use super::pins::{self, Entry, Pins};
use super::raw;
use crate::published::{HookView, NotEnforced};

/// How programs get onto interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// TCX where the kernel has it.
    #[default]
    Auto,
    /// TCX or nothing.
    Tcx,
    /// clsact, also where the kernel has TCX.
    Clsact,
}

/// Where one program really is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The kernel's number of the program that runs there.
    pub program: u32,
    /// Of the link; 0 for clsact.
    pub link: u32,
    /// Numbers of the programs that run before it; 0 for a filter that is none.
    pub before: Vec<u32>,
}

impl Seat {
    /// For everybody.
    pub fn view(&self, ifindex: u32, hook: Hook) -> HookView {
        HookView {
            interface: interface(ifindex),
            ifindex,
            hook: hook.as_str().to_owned(),
            mechanism: if self.link == 0 { "clsact" } else { "tcx" }.to_owned(),
            program_id: self.program,
            link_id: self.link,
            position: self.before.len() as u32,
        }
    }
}

/// What [`Attacher::ensure`] had to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing.
    Kept,
    /// This one ran in its place; ours was put under the link.
    Replaced(u32),
    /// It was not there.
    Attached,
    /// These ran before it.
    MovedFirst(Vec<u32>),
}

impl Done {
    /// What was wrong before, as [`Attacher::complaint`] says it.
    pub fn cured(&self, hook: Hook) -> Option<String> {
        match self {
            Self::Kept => None,
            Self::Replaced(program) => Some(other(hook, *program)),
            Self::Attached => Some(missing(hook)),
            Self::MovedFirst(before) => Some(behind(hook, before)),
        }
    }
}

fn other(hook: Hook, program: u32) -> String {
    format!("{} runs program {program} instead of hydra's", hook.as_str())
}

fn missing(hook: Hook) -> String {
    format!("no program at {}", hook.as_str())
}

fn behind(hook: Hook, before: &[u32]) -> String {
    let name = |program: &u32| match program {
        0 => "a filter".to_owned(),
        program => format!("program {program}"),
    };
    let names: Vec<String> = before.iter().map(name).collect();
    format!("others run before hydra's at {}: {}", hook.as_str(), names.join(", "))
}

/// The hooks of one set of pins. Clones take turns.
#[derive(Clone, Debug)]
pub struct Attacher {
    pins: Pins,
    tcx: bool,
    turns: Arc<Turns>,
}

/// Whoever waits comes before whoever has just been: a pass over all hooks lets a new port in between.
#[derive(Debug, Default)]
struct Turns {
    next: Mutex<()>,
    now: Mutex<()>,
}

impl Turns {
    fn take(&self) -> MutexGuard<'_, ()> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// TCX's name of a hook's side.
fn attach_type(hook: Hook) -> u32 {
    match hook {
        Hook::PortIn | Hook::BridgeIn | Hook::UplinkIn => raw::TCX_INGRESS,
        Hook::PortOut | Hook::BridgeOut => raw::TCX_EGRESS,
        // No interface has it: the kernel refuses.
        Hook::Connect | Hook::CgroupIn | Hook::CgroupOut => raw::CGROUP_CONNECT4,
    }
}

/// An interface's name, or its number where it is gone.
pub fn interface(ifindex: u32) -> String {
    name(ifindex).unwrap_or_else(|| format!("#{ifindex}"))
}

/// Whether there is such an interface.
pub fn exists(ifindex: u32) -> bool {
    name(ifindex).is_some()
}

fn name(ifindex: u32) -> Option<String> {
    // An unknown index gives an empty name, not an error.
    if_indextoname(ifindex)
        .ok()
        .filter(|name| !name.is_empty())
        .map(|name| name.to_string_lossy().into_owned())
}

impl Attacher {
    /// Chooses the mechanism.
    pub fn new(pins: &Pins, mechanism: Mechanism) -> Self {
        // Every namespace has `lo` as 1; a kernel without TCX does not know the attach type.
        let tcx = match mechanism {
            Mechanism::Clsact => false,
            Mechanism::Tcx => true,
            Mechanism::Auto => !matches!(
                raw::tcx_chain(1, raw::TCX_INGRESS),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL)
            ),
        };
        Self { pins: pins.clone(), tcx, turns: Arc::default() }
    }

    /// Whether programs belong on links.
    pub fn tcx(&self) -> bool {
        self.tcx
    }

    /// `tcx` or `clsact`.
    pub fn mechanism(&self) -> &'static str {
        if self.tcx { "tcx" } else { "clsact" }
    }

    /// Everything that is pinned, alive or not.
    pub fn pinned(&self) -> io::Result<BTreeSet<(u32, Hook)>> {
        let names = pins::names(&self.pins.links)?;
        Ok(names
            .iter()
            .filter_map(|name| pins::entry(name))
            .filter_map(|entry| match entry {
                Entry::Link(ifindex, hook) | Entry::Filter(ifindex, hook) => Some((ifindex, hook)),
                Entry::Socket | Entry::Predrop(_) => None,
            })
            .collect())
    }

    /// Where the program of a hook is now; none where it is not, or where its interface went away.
    pub fn seat(&self, ifindex: u32, hook: Hook) -> io::Result<Option<Seat>> {
        if !self.tcx {
            return clsact::seat(ifindex, hook);
        }
        if let Some(link) = open(&self.pins.link(ifindex, hook))?
            && let Some(seat) = tcx_seat(&link, ifindex, hook)?
        {
            return Ok(Some(seat));
        }
        self.waiting(ifindex, hook)
    }

    /// The filter that covers a new port until it gets a link.
    fn waiting(&self, ifindex: u32, hook: Hook) -> io::Result<Option<Seat>> {
        if self.pins.filter(ifindex, hook).exists() { clsact::seat(ifindex, hook) } else { Ok(None) }
    }

    /// Puts a hook's program first, whatever is there. A filter that [`Self::cover`] put there stays where nothing runs before it.
    /// Gives the seat as well where nothing had to be done.
    pub fn ensure(&self, programs: &Programs, ifindex: u32, hook: Hook) -> io::Result<(Done, Option<Seat>)> {
        self.put(programs, ifindex, hook, true)
    }

    /// The same, with a link in the place of such a filter.
    pub fn settle(&self, programs: &Programs, ifindex: u32, hook: Hook) -> io::Result<Done> {
        self.put(programs, ifindex, hook, false).map(|(done, _)| done)
    }

    fn put(
        &self,
        programs: &Programs,
        ifindex: u32,
        hook: Hook,
        patient: bool,
    ) -> io::Result<(Done, Option<Seat>)> {
        let (program, id) = programs.get(hook);
        let _turn = self.turns.take();
        if !self.tcx {
            let done = clsact::ensure(program.as_fd(), id, ifindex, hook)?;
            if done != Done::Kept || !self.pins.filter(ifindex, hook).exists() {
                self.mark_filter(program, ifindex, hook)?;
            }
            self.remove_link(ifindex, hook)?;
            return Ok((done, None));
        }
        let path = self.pins.link(ifindex, hook);
        let (mut done, mut found) = (None, None);
        if let Some(link) = open(&path)? {
            match tcx_seat(&link, ifindex, hook)? {
                Some(seat) => {
                    if seat.program != id {
                        raw::link_update(link.as_fd(), program.as_fd())?;
                        done = Some(Done::Replaced(seat.program));
                    }
                    if !seat.before.is_empty() {
                        move_first(&link, program, &path, ifindex, hook)?;
                        done = Some(Done::MovedFirst(seat.before.clone()));
                    }
                    found = done.is_none().then_some(seat);
                    done = done.or(Some(Done::Kept));
                }
                // A pin outlives its interface; a new interface may have got the old one's number.
                None => fs::remove_file(&path)?,
            }
        }
        let done = if let Some(done) = done {
            done
        } else {
            let attach = || pin_or_detach(&attach_first(program, ifindex, hook)?, &path);
            match self.waiting(ifindex, hook)? {
                None => attach().map(|()| Done::Attached)?,
                // Links run before all filters.
                Some(seat) if !seat.before.is_empty() => attach().map(|()| Done::MovedFirst(seat.before))?,
                Some(seat) if seat.program != id => {
                    clsact::ensure(program.as_fd(), id, ifindex, hook)?;
                    self.mark_filter(program, ifindex, hook)?;
                    return Ok((Done::Replaced(seat.program), None));
                }
                Some(seat) if patient => return Ok((Done::Kept, Some(seat))),
                Some(_) => replace_filter(program, &path, ifindex, hook).map(|()| Done::Kept)?,
            }
        };
        if matches!(done, Done::Attached) || self.pins.filter(ifindex, hook).exists() {
            // Also one that has lost its mark.
            self.remove_filter(ifindex, hook)?;
        }
        Ok((done, found))
    }

    /// Puts these programs (with the kernel's numbers of them) on hooks of an interface that have none, as filters: those do not wait
    /// for the grace period that each link waits for. `false`: they had theirs.
    pub fn cover(&self, programs: &[(Hook, OwnedFd, u32)], ifindex: u32) -> io::Result<bool> {
        let _turn = self.turns.take();
        let pinned =
            |hook| self.pins.link(ifindex, hook).exists() || self.pins.filter(ifindex, hook).exists();
        let fresh = !programs.iter().any(|(hook, ..)| pinned(*hook));
        if fresh {
            // Before the filters, so that whoever comes after a crash finds those.
            for (hook, program, _) in programs {
                self.mark_filter(program, ifindex, *hook)?;
            }
            let all: Vec<_> = programs.iter().map(|(hook, program, _)| (*hook, program.as_fd())).collect();
            if clsact::cover(&all, ifindex).is_ok() {
                return Ok(true);
            }
        }
        // Something is there, or was: a pin outlives its interface.
        let one = |(hook, program, id): &(Hook, OwnedFd, u32)| self.cover_one(program, *id, ifindex, *hook);
        // Each of them is tried.
        let all: Vec<io::Result<bool>> = programs.iter().map(one).collect();
        all.into_iter().try_fold(fresh, |any, new| Ok(any | new?))
    }

    fn cover_one(&self, program: &OwnedFd, id: u32, ifindex: u32, hook: Hook) -> io::Result<bool> {
        if self.seat(ifindex, hook)?.is_some_and(|seat| seat.link != 0 || seat.program == id) {
            return Ok(false);
        }
        self.mark_filter(program, ifindex, hook)?;
        match clsact::ensure(program.as_fd(), id, ifindex, hook) {
            Ok(_) => Ok(true),
            Err(e) => fs::remove_file(self.pins.filter(ifindex, hook)).and(Err(e)),
        }
    }

    /// Takes a hook's program away. What is gone already is fine.
    pub fn detach(&self, ifindex: u32, hook: Hook) -> io::Result<()> {
        let _turn = self.turns.take();
        self.remove_link(ifindex, hook)?;
        // Also one that has lost its mark.
        self.remove_filter(ifindex, hook)
    }

    /// What is really attached.
    pub fn views(&self) -> io::Result<BTreeMap<(u32, Hook), HookView>> {
        let mut views = BTreeMap::new();
        for (ifindex, hook) in self.pinned()? {
            views.extend(self.view(ifindex, hook)?.map(|view| ((ifindex, hook), view)));
        }
        Ok(views)
    }

    /// What is really attached at one hook.
    pub fn view(&self, ifindex: u32, hook: Hook) -> io::Result<Option<HookView>> {
        Ok(self.seat(ifindex, hook)?.map(|seat| seat.view(ifindex, hook)))
    }

    /// Whether this link of ours, which must still be pinned, is the first there. One system call: for looks that find nothing.
    pub fn is_first(&self, programs: &Programs, ifindex: u32, hook: Hook, link: u32) -> bool {
        let chain = if self.tcx { raw::tcx_chain(ifindex, attach_type(hook)) } else { return false };
        chain.is_ok_and(|chain| chain.first() == Some(&(programs.get(hook).1, link)))
    }

    /// What is wrong with one hook, if anything. An interface that is gone has nothing to complain about.
    pub fn complaint(&self, programs: &Programs, ifindex: u32, hook: Hook) -> Option<NotEnforced> {
        let why = match self.seat(ifindex, hook) {
            Ok(Some(seat)) if seat.program != programs.get(hook).1 => other(hook, seat.program),
            Ok(Some(seat)) if seat.before.is_empty() => return None,
            Ok(Some(seat)) => behind(hook, &seat.before),
            Ok(None) if !exists(ifindex) => return None,
            Ok(None) => missing(hook),
            Err(e) => format!("{} could not be looked at: {e}", hook.as_str()),
        };
        Some(NotEnforced { what: interface(ifindex), why })
    }

    fn remove_link(&self, ifindex: u32, hook: Hook) -> io::Result<()> {
        let path = self.pins.link(ifindex, hook);
        let Some(link) = open(&path)? else { return Ok(()) };
        detach_now(&link)?;
        fs::remove_file(path)
    }

    fn mark_filter(&self, program: &OwnedFd, ifindex: u32, hook: Hook) -> io::Result<()> {
        let path = self.pins.filter(ifindex, hook);
        match raw::pin(program.as_fd(), &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                raw::pin(program.as_fd(), &path)
            }
            result => result,
        }
    }

    fn remove_filter(&self, ifindex: u32, hook: Hook) -> io::Result<()> {
        clsact::remove(ifindex, hook)?;
        pins::remove(&self.pins.filter(ifindex, hook))
    }
}

/// A pin's descriptor, if there is one.
pub fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    match raw::open_pin(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A link's place in the chain; none where the interface is gone, is another one or lies in another namespace.
fn tcx_seat(link: &OwnedFd, ifindex: u32, hook: Hook) -> io::Result<Option<Seat>> {
    let info = raw::link_info(link.as_fd())?;
    if info.kind != raw::LINK_TCX || info.ifindex != ifindex || info.attach_type != attach_type(hook) {
        return Ok(None);
    }
    let chain = match raw::tcx_chain(ifindex, attach_type(hook)) {
        Ok(chain) => chain,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let position = chain.iter().position(|(_, id)| *id == info.id);
    let before = |position: usize| chain.iter().take(position).map(|(program, _)| *program).collect();
    Ok(position.map(|position| Seat { program: info.program, link: info.id, before: before(position) }))
}

/// Attaches first in the chain. A link whose pin was removed by hand lives on until a kernel thread has put it away, and the kernel
/// refuses the same program twice: a few milliseconds of patience.
fn attach_first(program: &OwnedFd, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    let attach = || raw::tcx_attach_first(program.as_fd(), ifindex, attach_type(hook));
    patiently(attach, |e| e.raw_os_error() == Some(libc::EEXIST))
}

/// Tries for a tenth of a second, as long as what fails is `passing`.
pub fn patiently<T>(
    attempt: impl Fn() -> io::Result<T>,
    passing: impl Fn(&io::Error) -> bool,
) -> io::Result<T> {
    for _ in 0..20 {
        match attempt() {
            Err(e) if passing(&e) => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
    attempt()
}

/// Detaches; a link whose interface is gone has nothing to detach.
pub fn detach_now(link: &OwnedFd) -> io::Result<()> {
    match raw::link_detach(link.as_fd()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::EINVAL)) => Ok(()),
        result => result,
    }
}

/// Pins a new link; where that fails it must not stay behind unpinned.
pub fn pin_or_detach(link: &OwnedFd, path: &Path) -> io::Result<()> {
    raw::pin(link.as_fd(), path).inspect_err(|_| {
        let _ = raw::link_detach(link.as_fd());
    })
}

/// Puts a link in the place of the filter that judges here. The link does nothing while it waits for its grace period: what both
/// judged would be counted twice, which is left to be so between two system calls.
fn replace_filter(program: &OwnedFd, path: &Path, ifindex: u32, hook: Hook) -> io::Result<()> {
    let filters = clsact::ours(ifindex, hook)?;
    let link = attach_first(&raw::idle()?, ifindex, hook)?;
    pin_or_detach(&link, path)?;
    // Where this fails the filter goes on, and the next look sees a link with a program that is not ours.
    raw::link_update(link.as_fd(), program.as_fd())?;
    clsact::remove_all(ifindex, hook, &filters)
}

/// Moves our program to the front, in a chain that it is in already. Another program runs it from there meanwhile, so that at no
/// moment a packet meets somebody else's first and ours not at all; one that is in between may be judged, and counted, twice.
fn move_first(old: &OwnedFd, program: &OwnedFd, path: &Path, ifindex: u32, hook: Hook) -> io::Result<()> {
    let stand_in = raw::StandIn::of(program.as_fd())?;
    let new = raw::tcx_attach_first(stand_in.as_fd(), ifindex, attach_type(hook))?;
    fs::remove_file(path)?;
    if let Err(e) = pin_or_detach(&new, path) {
        raw::pin(old.as_fd(), path)?;
        return Err(e);
    }
    raw::link_detach(old.as_fd())?;
    // Where this fails the new link drops what it gets, and the next look sees it with a program that is not ours.
    raw::link_update(new.as_fd(), program.as_fd())
}
