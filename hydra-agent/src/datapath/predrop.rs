//! XDP programs on interfaces to the outside: a link each, pinned beside the others. They drop what the classifier of the same
//! interface would, and pass it everything else: where one cannot be nothing is less enforced, so that is something to look at and no
//! more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use hydra_common::names::PREDROP_PROGRAM;
use hydra_common::tables::LinkKind;
use hydra_common::verdict::Hook;
use tracing::{info, warn};

use super::attach::{self, Done, detach_now, open, pin_or_detach};
use super::error::DatapathError;
use super::load::{self, Programs};
use super::pins::{self, Entry, Pins};
use super::raw;
use super::xdp::{self, Interface, Mode};
use crate::desired::Desired;
use crate::published::{HookView, NotEnforced, Remark};

/// The word of these hooks that operators see.
pub const HOOK: &str = "predrop";

/// How what the outside may not reach is dropped before its classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Predrop {
    /// It is not.
    #[default]
    Off,
    /// By the driver where it can, else in the kernel's generic way.
    Auto,
    /// By the driver or not at all.
    Native,
    /// In the kernel's generic way.
    Generic,
}

impl Predrop {
    /// The modes to try, in their order.
    fn modes(self) -> &'static [Mode] {
        match self {
            Self::Off => &[],
            Self::Auto => &[Mode::Native, Mode::Generic],
            Self::Native => &[Mode::Native],
            Self::Generic => &[Mode::Generic],
        }
    }
}

/// Why an interface has none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Left {
    /// A program of somebody else is there; 0 where there are several.
    Taken(u32),
    /// What the kernel said.
    Refused(String),
    /// Its frames come in on others first, of which this one has none.
    Below(u32),
    /// The one on this interface below sees its frames with their tags, and leaves them to the classifier.
    Tagged(u32),
}

/// The programs of one set of pins.
#[derive(Debug, Default)]
pub struct Predrops {
    want: Predrop,
    /// Why the program is not there to be attached.
    missing: Option<String>,
    /// Where one is.
    seated: BTreeSet<u32>,
    /// Where none could be.
    left: BTreeMap<u32, Left>,
}

impl Predrops {
    /// Gets the program ready; where none is wanted takes away the pin of one.
    pub fn open(
        want: Predrop,
        pins: &Pins,
        object: &[u8],
        programs: &mut Programs,
    ) -> Result<Self, DatapathError> {
        let mut missing = None;
        if want == Predrop::Off {
            let path = programs.directory.join(PREDROP_PROGRAM);
            pins::remove(&path).map_err(|e| DatapathError::pin("remove", &path, e))?;
        } else {
            missing = load::predrop(pins, object, programs)?;
        }
        Ok(Self { want, missing, ..Self::default() })
    }

    /// Puts links where they belong and takes the others away; what was mended is the answer. Comes after the tables.
    pub fn ensure(&mut self, pins: &Pins, programs: &Programs, desired: &Desired) -> Vec<NotEnforced> {
        let mut mended = Vec::new();
        let there = pinned(pins).unwrap_or_default();
        if self.want == Predrop::Off && there.is_empty() {
            return mended;
        }
        let interfaces = match xdp::interfaces() {
            Ok(interfaces) => interfaces,
            // Whatever is there stays.
            Err(error) => {
                warn!(%error, "interfaces could not be listed: pre-drops stay where they are");
                return mended;
            }
        };
        let wanted = if programs.predrop.is_some() { wanted(desired, &interfaces) } else { BTreeSet::new() };
        let late =
            if programs.predrop.is_some() { late(desired, &interfaces, &wanted) } else { BTreeMap::new() };
        let before = std::mem::take(&mut self.seated);
        let old = std::mem::take(&mut self.left);
        for (index, interface) in interfaces.iter().filter(|(index, _)| wanted.contains(index)) {
            let Some(program) = &programs.predrop else { continue };
            match ensure_one(pins, program, self.want, *index, interface) {
                Ok(done) => {
                    self.seated.insert(*index);
                    if done != Done::Kept {
                        info!(interface = attach::interface(*index), ?done, "a pre-drop is in its place");
                    }
                    if done == Done::Attached && before.contains(index) {
                        mended.push(complaint(*index));
                    }
                }
                Err(left) => {
                    if old.get(index) != Some(&left) {
                        warn!(interface = attach::interface(*index), ?left, "no pre-drop there");
                    }
                    self.left.insert(*index, left);
                }
            }
        }
        for (index, left) in late {
            if old.get(&index) != Some(&left) {
                warn!(interface = attach::interface(index), ?left, "no pre-drop of what comes in there");
            }
            self.left.insert(index, left);
        }
        for index in there.difference(&wanted) {
            if let Err(error) = remove(&pins.predrop(*index)) {
                warn!(interface = attach::interface(*index), %error, "a pre-drop could not be taken away");
            }
        }
        mended
    }

    /// What is not as [`Self::ensure`] left it and the next one can mend, programs of others that have gone included.
    pub fn complaints(&self, pins: &Pins, programs: &Programs) -> Vec<NotEnforced> {
        let Some((_, id)) = programs.predrop.as_ref().filter(|_| self.want != Predrop::Off) else {
            return Vec::new();
        };
        let gone = |index: &&u32| {
            let info = open(&pins.predrop(**index))
                .and_then(|link| link.map(|link| raw::link_info(link.as_fd())).transpose());
            let right = matches!(&info, Ok(Some(info)) if (info.program, info.ifindex) == (*id, **index));
            !right && attach::exists(**index)
        };
        let mut wrong: Vec<_> = self.seated.iter().filter(gone).map(|index| complaint(*index)).collect();
        let taken = |(index, left): (&u32, &Left)| matches!(left, Left::Taken(_)).then_some(*index);
        let taken: Vec<u32> = self.left.iter().filter_map(taken).collect();
        if !taken.is_empty() {
            let interfaces = xdp::interfaces().unwrap_or_default();
            let free = |index: &u32| interfaces.get(index).is_some_and(|i| i.program.is_none());
            wrong.extend(taken.into_iter().filter(free).map(complaint));
        }
        wrong
    }

    /// Where there should be one and is none: nothing is less enforced for it.
    pub fn remarks(&self) -> Vec<Remark> {
        let remark = |what: String, why: String, hint: &str| Remark { what, why, hint: hint.to_owned() };
        let missing = self.missing.iter().map(|why| {
            let why = format!("no pre-drop: this kernel does not take hydra's program for it: {why}");
            remark(HOOK.to_owned(), why, "the classifiers there deny the same; `predrop: off` asks for none")
        });
        let left = self.left.iter().map(|(index, left)| {
            let (why, hint) = match left {
                Left::Taken(0) => ("XDP programs of others are there".to_owned(), TAKEN),
                Left::Taken(program) => (format!("XDP program {program} is there"), TAKEN),
                Left::Refused(why) => (format!("the kernel refuses it: {why}"), REFUSED),
                Left::Below(below) => (
                    format!("its frames come in by {} first, and none is there", attach::interface(*below)),
                    BELOW,
                ),
                Left::Tagged(below) => {
                    (format!("that of {} sees its frames with their tags", attach::interface(*below)), TAGGED)
                }
            };
            remark(attach::interface(*index), format!("no pre-drop: {why}"), hint)
        });
        missing.chain(left).collect()
    }
}

/// What is really attached.
pub fn views(pins: &Pins) -> Vec<HookView> {
    let there = pinned(pins).unwrap_or_default();
    if there.is_empty() {
        return Vec::new();
    }
    let interfaces = xdp::interfaces().unwrap_or_default();
    let view = |index: u32| {
        let link = open(&pins.predrop(index)).ok()??;
        let info = raw::link_info(link.as_fd()).ok()?;
        let (program, mode) = interfaces.get(&index)?.program?;
        (info.ifindex == index && info.program == program).then(|| HookView {
            interface: attach::interface(index),
            ifindex: index,
            hook: HOOK.to_owned(),
            mechanism: mode.as_str().to_owned(),
            program_id: program,
            link_id: info.id,
            position: 0,
        })
    };
    there.into_iter().filter_map(view).collect()
}

const TAKEN: &str =
    "the classifier there denies the same; take the other program away, or leave it and set `predrop: off`";
const REFUSED: &str =
    "the classifier there denies the same; `predrop: auto` or `generic` takes the kernel's generic way";

const BELOW: &str =
    "the classifier denies the same; add the interface below to `uplinks`, or set `predrop: off`";
const TAGGED: &str =
    "the classifier denies the same; where the card can take tags off, `ethtool -K` with `rxvlan on` lets it";

/// Takes a link away; one that is gone is fine.
pub fn remove(pin: &Path) -> io::Result<()> {
    let Some(link) = open(pin)? else { return Ok(()) };
    if raw::link_info(link.as_fd())?.kind != raw::LINK_XDP {
        return Err(io::Error::other("not a link of hydra"));
    }
    detach_now(&link)?;
    fs::remove_file(pin)
}

fn complaint(index: u32) -> NotEnforced {
    NotEnforced { what: attach::interface(index), why: format!("no program at {HOOK}") }
}

fn pinned(pins: &Pins) -> io::Result<BTreeSet<u32>> {
    let names = pins::names(&pins.links)?;
    let predrop = |name: &String| match pins::entry(name) {
        Some(Entry::Predrop(index)) => Some(index),
        Some(Entry::Link(..) | Entry::Filter(..) | Entry::Socket) | None => None,
    };
    Ok(names.iter().filter_map(predrop).collect())
}

/// Interfaces to the outside that carry the classifier, where frames come in: not those above others (VLANs, bonds), whose frames the
/// ones below have seen.
fn wanted(desired: &Desired, interfaces: &BTreeMap<u32, Interface>) -> BTreeSet<u32> {
    let first = |index: &u32| {
        interfaces.get(index).is_some_and(|i| i.ethernet && below(*index, i, interfaces).is_empty())
    };
    uplinks(desired).filter(first).collect()
}

fn uplinks(desired: &Desired) -> impl Iterator<Item = u32> {
    let uplink = |index: &u32| desired.links.get(index).is_some_and(|link| link.kind == LinkKind::Uplink);
    let hooks = desired.hooks.iter().filter(|(_, hook)| *hook == Hook::UplinkIn);
    hooks.map(|(index, _)| *index).filter(uplink)
}

/// The interfaces that an interface's frames come in on first.
fn below(index: u32, interface: &Interface, interfaces: &BTreeMap<u32, Interface>) -> Vec<u32> {
    let ports = interfaces.iter().filter(|(_, i)| i.master == Some(index)).map(|(port, _)| *port);
    interface.below.into_iter().chain(ports).collect()
}

/// Interfaces above others of which not all see in time what comes in.
fn late(
    desired: &Desired,
    interfaces: &BTreeMap<u32, Interface>,
    wanted: &BTreeSet<u32>,
) -> BTreeMap<u32, Left> {
    let tags_off = |index| xdp::takes_tags_off(&attach::interface(index));
    let above = uplinks(desired).filter(|index| !wanted.contains(index));
    above.filter_map(|index| Some((index, unseen(index, interfaces, wanted, tags_off)?))).collect()
}

/// Why the pre-drops below an interface miss frames of it. Devices are stacked eight deep at most (`MAX_NEST_DEV`).
fn unseen(
    index: u32,
    interfaces: &BTreeMap<u32, Interface>,
    wanted: &BTreeSet<u32>,
    tags_off: impl Fn(u32) -> bool,
) -> Option<Left> {
    let mut tagged = false;
    let mut level = vec![index];
    for _ in 0..8 {
        let mut next = Vec::new();
        for index in level {
            let interface = interfaces.get(&index);
            let lower = interface.map(|i| below(index, i, interfaces)).unwrap_or_default();
            tagged |= interface.is_some_and(|i| i.tagged);
            if !lower.is_empty() {
                next.extend(lower);
            } else if !wanted.contains(&index) {
                return Some(Left::Below(index));
            } else if tagged && !tags_off(index) {
                return Some(Left::Tagged(index));
            }
        }
        level = next;
    }
    None
}

fn ensure_one(
    pins: &Pins,
    (program, id): &(OwnedFd, u32),
    want: Predrop,
    index: u32,
    interface: &Interface,
) -> Result<Done, Left> {
    let refused = |e: io::Error| Left::Refused(e.to_string());
    let path = pins.predrop(index);
    take_over(pins, index).map_err(refused)?;
    if let Some(link) = open(&path).map_err(refused)? {
        let info = raw::link_info(link.as_fd()).map_err(refused)?;
        let fits = |(there, mode): (u32, Mode)| there == info.program && want.modes().contains(&mode);
        if info.kind == raw::LINK_XDP && info.ifindex == index && interface.program.is_some_and(fits) {
            if info.program == *id {
                return Ok(Done::Kept);
            }
            raw::link_update(link.as_fd(), program.as_fd()).map_err(refused)?;
            return Ok(Done::Replaced(info.program));
        }
        // Of an interface that is gone, or of another mode.
        remove(&path).map_err(refused)?;
    }
    let mut said = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    for mode in want.modes() {
        match attach(program, *id, index, *mode) {
            Ok(link) => {
                pin_or_detach(&link, &path).map_err(refused)?;
                return Ok(Done::Attached);
            }
            Err(e) => said = e,
        }
        if matches!(said.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
            // Some drivers say so where no program is there.
            return Err(program_at(index).map_or_else(|| refused(said), Left::Taken));
        }
    }
    Err(refused(said))
}

/// A link whose pin was removed by hand lives on until a kernel thread has put it away: a few milliseconds of patience.
fn attach(program: &OwnedFd, id: u32, index: u32, mode: Mode) -> io::Result<OwnedFd> {
    attach::patiently(
        || raw::xdp_attach(program.as_fd(), index, mode.flag()),
        |e| e.raw_os_error() == Some(libc::EBUSY) && program_at(index) == Some(id),
    )
}

fn program_at(index: u32) -> Option<u32> {
    xdp::interfaces().ok()?.get(&index)?.program.map(|(program, _)| program)
}

/// The link that an agent with other tables has left: an interface takes one alone, so that this is the one to go on with. Its
/// program, which reads those tables, is replaced like any.
fn take_over(pins: &Pins, index: u32) -> io::Result<()> {
    let own = pins.predrop(index);
    if own.exists() {
        return Ok(());
    }
    for layout in pins::layouts(&pins.bpffs)? {
        let other = Pins::below(&pins.bpffs, &layout).predrop(index);
        let Some(link) = open(&other)? else { continue };
        raw::pin(link.as_fd(), &own)?;
        return fs::remove_file(other);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: Interface =
        Interface { program: None, master: None, below: None, tagged: false, ethernet: true };

    #[test]
    fn frames_that_no_pre_drop_below_sees_or_only_with_their_tags_are_known() {
        let vlan = |below| Interface { below: Some(below), tagged: true, ..ETHERNET };
        let port = Interface { master: Some(3), ..ETHERNET };
        let macvlan = Interface { below: Some(1), ..ETHERNET };
        // A bond (3) of two cards with a VLAN; a VLAN on one of these, a macvlan on that, and one on what is in another namespace.
        let all =
            [(1, port), (2, port), (3, ETHERNET), (4, vlan(3)), (5, vlan(1)), (6, macvlan), (7, vlan(99))];
        let all = BTreeMap::from(all);
        let said = |index: u32, wanted: &[u32], tags_off: bool| {
            unseen(index, &all, &wanted.iter().copied().collect(), |_| tags_off)
        };
        for (index, tagged) in [(3, false), (4, true), (6, false)] {
            assert_eq!(said(index, &[1, 2], true), None);
            assert_eq!(said(index, &[], true), Some(Left::Below(1)), "{index}");
            assert_eq!(said(index, &[1, 2], false), tagged.then_some(Left::Tagged(1)), "{index}");
        }
        assert_eq!(said(3, &[1], true), Some(Left::Below(2)), "one of two cards");
        assert_eq!(said(5, &[1], false), Some(Left::Tagged(1)));
        assert_eq!(said(7, &[1, 2], true), Some(Left::Below(99)));
    }

    #[test]
    fn what_lies_in_a_circle_is_nobodys() {
        let on = |below| Interface { below: Some(below), ..ETHERNET };
        let all = BTreeMap::from([(1, on(2)), (2, on(1))]);
        assert_eq!(unseen(1, &all, &BTreeSet::new(), |_| true), None);
    }
}
