//! Looks whether the kernel still does what it was told: hooks, pins, the flipped word, and the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use hydra_common::names;
use hydra_common::verdict::Hook;

use super::attach;
use super::known::Known;
use super::pins;
use super::sockets;
use super::sync::{Datapath, clocks};
use super::tables::CLOCK_SLACK;
use super::xdp;
use crate::desired::Desired;
use crate::published::NotEnforced;

/// Rows of the policy that are compared at every look at the tables; those of larger policies at every 16th.
const FEW: usize = 50_000;

/// What the last look at each half found, but for [`Datapath::damage`].
#[derive(Debug, Default)]
pub(super) struct Looked {
    hooks: Vec<NotEnforced>,
    clock: Option<NotEnforced>,
    known: Known,
}

impl Datapath {
    /// What is not as the last [`Datapath::sync`] of `desired` left it. What can be mended is by the next one.
    pub fn verify(&mut self, desired: &Desired) -> Vec<NotEnforced> {
        self.looks = self.looks.wrapping_add(1);
        self.look_at_hooks(desired);
        self.look_at_tables(desired);
        self.found()
    }

    /// The same by halves, which take turns: the hooks, and what is in tables and pins. Of the other half it says what was found last.
    pub fn look(&mut self, desired: &Desired) -> Vec<NotEnforced> {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(2) {
            self.look_at_hooks(desired);
        } else {
            self.look_at_tables(desired);
        }
        self.found()
    }

    fn found(&self) -> Vec<NotEnforced> {
        let Looked { hooks, clock, known: _ } = &self.looked;
        let mut wrong: Vec<_> =
            hooks.iter().chain(clock).chain(&self.xdp).chain(&self.damage).cloned().collect();
        wrong.sort();
        wrong
    }

    fn look_at_hooks(&mut self, desired: &Desired) {
        let mut wrong = self.hooks_wrong(desired);
        wrong.extend(sockets::complaints(&self.pins, &self.seat, &self.programs, desired));
        wrong.extend(self.predrops.complaints(&self.pins, &self.programs));
        self.looked.hooks = wrong;
    }

    fn look_at_tables(&mut self, desired: &Desired) {
        self.xdp = if self.looked.known.any_xdp() { xdp_before(desired) } else { Vec::new() };
        let tables = self.tables_differ();
        if !tables.is_empty() {
            self.doubt = true;
        }
        self.looked.clock = self.ends_moved(desired).then(|| NotEnforced {
            what: "tables".to_owned(),
            why: "the wall clock was set: rules expire at other moments of the kernel's clock".to_owned(),
        });
        let named = |what: &'static str| move |why| NotEnforced { what: what.to_owned(), why };
        self.damage = tables.into_iter().map(named("tables")).collect();
        self.damage.extend(self.pins_gone().into_iter().map(named("pins")));
    }

    /// Whether the ends of rules, which the kernel has in its own clock, are no longer those of the wall clock.
    fn ends_moved(&self, desired: &Desired) -> bool {
        let now = clocks();
        let bank = (self.held.generation & 1) as usize;
        let ends = desired.compiled.decisions.iter().map(|(_, end)| end.map_or(0, |at| now.second(at)));
        let held = self.held.banks[bank].iter().flat_map(|policy| &policy.decisions);
        self.held.revision == desired.revision
            && held.zip(ends).any(|(row, end)| row.until.abs_diff(end) > CLOCK_SLACK)
    }

    fn hooks_wrong(&mut self, desired: &Desired) -> Vec<NotEnforced> {
        let pinned = self.attacher.pinned().unwrap_or_default();
        let right = |ifindex, hook| {
            let view = self.seated.get(&(ifindex, hook)).filter(|_| pinned.contains(&(ifindex, hook)));
            view.is_some_and(|view| self.attacher.is_first(&self.programs, ifindex, hook, view.link_id))
        };
        let unclear = desired.hooks.iter().filter(|(ifindex, hook)| !right(*ifindex, *hook));
        let complaint = |(ifindex, hook): &(u32, Hook)| {
            Some(((*ifindex, *hook), self.attacher.complaint(&self.programs, *ifindex, *hook)?))
        };
        let (at, wrong): (Vec<_>, _) = unclear.filter_map(complaint).unzip();
        self.doubtful.extend(at);
        wrong
    }

    fn pins_gone(&self) -> Option<String> {
        let there =
            |directory| -> io::Result<BTreeSet<String>> { Ok(pins::names(directory)?.into_iter().collect()) };
        let gone = || -> io::Result<Vec<&str>> {
            let (maps, programs) = (there(&self.pins.maps)?, there(&self.programs.directory)?);
            let maps = names::MAPS.into_iter().filter(|name| !maps.contains(*name));
            Ok(maps
                .chain(self.programs.named().map(|(name, _)| name).filter(|name| !programs.contains(*name)))
                .collect())
        };
        match gone() {
            Ok(gone) if gone.is_empty() => None,
            Ok(gone) => Some(format!("a restart of the agent would begin without {}", gone.join(", "))),
            Err(e) => Some(format!("they could not be looked at: {e}")),
        }
    }

    fn tables_differ(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        match self.store.generation() {
            Ok(found) if found == self.held.generation => {}
            Ok(found) => wrong.push(format!("the generation is {found} instead of {}", self.held.generation)),
            Err(e) => wrong.push(e.to_string()),
        }
        wrong.extend(altered("endpoints", self.store.endpoints.sorted(), &self.held.endpoints));
        wrong.extend(altered("interfaces", self.store.links.sorted(), &self.held.links));
        // What programs keep near of these is read anew now and then, whoever has written there.
        if self.looks % 32 == 1 {
            wrong.extend(self.store.rows_changed().err().map(|e| e.to_string()));
        }
        wrong.extend(altered("published ports", self.store.published.sorted(), &self.held.published));
        wrong.extend(altered("cgroups", self.store.cgroups.sorted(), &self.held.cgroups));
        let bank = self.held.generation & 1;
        if let Some(policy) = &self.held.banks[bank as usize] {
            let rows = policy.cells.values().map(Vec::len).sum::<usize>() + policy.intervals.len();
            if rows <= FEW || self.looks % 32 == 1 {
                wrong.extend(self.store.check(bank, policy).err().map(|e| e.to_string()));
            }
        }
        wrong
    }
}

/// What to say of rows that are not those that were written.
fn altered<K: Ord, R: PartialEq>(
    what: &str,
    found: io::Result<BTreeMap<K, R>>,
    written: &BTreeMap<K, R>,
) -> Option<String> {
    match found {
        Ok(rows) if rows == *written => None,
        Ok(_) => Some(format!("the rows of {what} were changed by somebody else")),
        Err(e) => Some(format!("the rows of {what} could not be read: {e}")),
    }
}

/// XDP programs on ports and bridges. That on an uplink is the administrator's own gate before everything.
fn xdp_before(desired: &Desired) -> Vec<NotEnforced> {
    let interfaces = match xdp::interfaces() {
        Ok(interfaces) => interfaces,
        Err(e) => {
            let why = format!("XDP programs could not be looked for: {e}");
            return vec![NotEnforced { what: "interfaces".to_owned(), why }];
        }
    };
    let judges = |ifindex: u32| {
        [Hook::PortIn, Hook::BridgeIn].into_iter().any(|hook| desired.hooks.contains(&(ifindex, hook)))
    };
    interfaces
        .into_iter()
        .filter_map(|(ifindex, interface)| Some((ifindex, interface.program?.0)))
        .filter(|(ifindex, _)| judges(*ifindex))
        .map(|(ifindex, program)| NotEnforced {
            what: attach::interface(ifindex),
            why: format!("XDP program {program} runs before hydra's: what it redirects is not judged"),
        })
        .collect()
}
