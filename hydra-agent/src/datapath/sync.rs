//! Makes the kernel hold what is desired: hooks, rows of containers, and the policy's banks, in an order in which no packet ever
//! meets a mixture and nothing stands open meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hydra_common::ABI;
use hydra_common::address::Address;
use hydra_common::id::Container;
use hydra_common::tables::{Cgroup, CgroupKey, Endpoint, Link, Publish, PublishKey};
use hydra_common::verdict::Hook;
use nix::fcntl::Flock;
use tracing::{info, warn};

use super::attach::{self, Attacher, Done, Mechanism};
use super::early::{self, Covered, Early, Ground};
use super::error::{DatapathError, table};
use super::load::{self, Programs};
use super::maps::{Bytes, Table};
use super::pins::{self, Pins};
use super::predrop::{self, Predrop, Predrops};
use super::purge;
use super::raw::{self, GracePeriod};
use super::room::Room;
use super::rows::{self, RowPlan};
use super::sockets::{self, Seat};
use super::store::Store;
use super::tables::{self, Bank, Clocks};
use super::verify::Looked;
use crate::desired::Desired;
use crate::published::{HookView, NotEnforced, Remark};

/// The kernel's part of hydra: maps, programs and hooks below one directory of pins. Blocking; dropping it changes nothing.
#[derive(Debug)]
pub struct Datapath {
    pub(super) pins: Pins,
    /// Held while this lives: two agents on the same pins would undo each other's work.
    _lock: Flock<File>,
    pub(super) looked: Looked,
    pub(super) attacher: Attacher,
    pub(super) programs: Programs,
    pub(super) store: Store,
    grace: GracePeriod,
    pub(super) held: Held,
    /// What is remembered may not be what is there: read it again before the next write.
    pub(super) doubt: bool,
    pub(super) looks: u32,
    /// Hooks that were in place after the last sync.
    pub(super) seated: BTreeMap<(u32, Hook), HookView>,
    /// Those of them that a look found otherwise. The others are not looked at by the next sync: each look waits for the lock of all
    /// network configuration, which whoever starts containers waits for as well.
    pub(super) doubtful: BTreeSet<(u32, Hook)>,
    /// Ports whose filters wait for links, and since when.
    pub(super) waiting: BTreeMap<u32, Instant>,
    /// What the last look found wrong beside the hooks.
    pub(super) damage: Vec<NotEnforced>,
    /// XDP programs of others, as last looked for.
    pub(super) xdp: Vec<NotEnforced>,
    pub(super) seat: Seat,
    pub(super) predrops: Predrops,
    pub(super) ground: Arc<Ground>,
}

/// What the kernel holds now.
#[derive(Debug, Default)]
pub struct Held {
    /// The flipped word; 0: no policy was ever applied.
    pub generation: u32,
    /// The revision of the policy in force.
    pub revision: u32,
    /// See [`hydra_common::tables::Head::pickup_until`].
    pub pickup_until: u32,
    /// By address.
    pub endpoints: BTreeMap<Address, Endpoint>,
    /// By interface index.
    pub links: BTreeMap<u32, Link>,
    /// By what a packet is sent to.
    pub published: BTreeMap<PublishKey, Publish>,
    /// By cgroup and place.
    pub cgroups: BTreeMap<CgroupKey, Cgroup>,
    /// What each bank holds, where it is known.
    pub(super) banks: [Option<Bank>; 2],
}

impl Held {
    /// Every container that a row names.
    fn containers(&self) -> BTreeSet<Container> {
        let endpoints = self.endpoints.values().map(|row| row.container);
        let others = self.links.values().map(|row| row.container);
        let others = others.chain(self.cgroups.values().map(|row| row.container));
        endpoints.chain(others).filter(|c| *c != Container::NONE).collect()
    }
}

/// What [`Datapath::sync`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// The tables' generation now.
    pub generation: u32,
    /// Whether it is a new one: every live flow is decided again at its next packet.
    pub flipped: bool,
    /// See [`hydra_common::tables::Head::pickup_until`].
    pub pickup_until: u32,
    /// Rows of endpoints, interfaces and published ports written or removed.
    pub rows: usize,
    /// Hooks that were attached.
    pub attached: Vec<(u32, Hook)>,
    /// When ports that were attached since the last time had both of their programs; the first word of a port counts.
    pub covered: Vec<Covered>,
    /// Hooks that were taken away.
    pub detached: Vec<(u32, Hook)>,
    /// Hooks that got another program, or were moved to the front of their chain.
    pub mended: Vec<(u32, Hook)>,
    /// What somebody else had changed since the last time, put right now; in the words of [`Datapath::verify`].
    pub repaired: Vec<NotEnforced>,
    /// Containers that no row names any more: nobody may use the entries of their flows ([`super::Collector::forget`]).
    pub gone: BTreeSet<Container>,
    /// What is really attached now.
    pub hooks: Vec<HookView>,
    /// What could not be done. The rest was.
    pub not_enforced: Vec<NotEnforced>,
    /// What could not be done and is enforced all the same.
    pub remarks: Vec<Remark>,
}

/// The object to load.
#[cfg(debug_assertions)]
fn object() -> Result<std::borrow::Cow<'static, [u8]>, DatapathError> {
    super::debug::object()
}

/// The object to load.
#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "a debug build may have none")]
fn object() -> Result<std::borrow::Cow<'static, [u8]>, DatapathError> {
    Ok(std::borrow::Cow::Borrowed(load::OBJECT))
}

impl Datapath {
    /// Opens the pins below `bpffs`: adopts what an earlier run left, loads what is missing. Changes no verdict.
    pub fn open(bpffs: &Path, mechanism: Mechanism) -> Result<Self, DatapathError> {
        Self::open_with(bpffs, mechanism, Room::default())
    }

    /// The same with a flow table of another size. One that is pinned keeps its own.
    pub fn open_with(bpffs: &Path, mechanism: Mechanism, room: Room) -> Result<Self, DatapathError> {
        let datapath = Self::open_object(bpffs, mechanism, room, &object()?)?;
        #[cfg(debug_assertions)]
        super::debug::follow(datapath.programs.get(Hook::PortIn).1);
        Ok(datapath)
    }

    /// The same with another build of the object, for tests.
    pub fn open_object(
        bpffs: &Path,
        mechanism: Mechanism,
        room: Room,
        object: &[u8],
    ) -> Result<Self, DatapathError> {
        let grace = load::check()?;
        let pins = Pins::open(bpffs)?;
        let lock = pins.lock()?;
        room.check(&pins)?;
        let programs = load::load(&pins, room, object)?;
        room.tell(&pins)?;
        let store = Store::open(&pins)?;
        let attacher = Attacher::new(&pins, mechanism);
        let mut datapath = Self {
            pins,
            _lock: lock,
            looked: Looked::default(),
            attacher,
            programs,
            store,
            grace,
            held: Held::default(),
            doubt: true,
            looks: 0,
            seated: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            waiting: BTreeMap::new(),
            damage: Vec::new(),
            xdp: Vec::new(),
            seat: Seat::Off,
            predrops: Predrops::default(),
            ground: Arc::default(),
        };
        datapath.refresh()?;
        info!(
            generation = datapath.held.generation,
            adopted = !datapath.programs.fresh,
            mechanism = datapath.attacher.mechanism(),
            endpoints = datapath.held.endpoints.len(),
            "the datapath is open"
        );
        Ok(datapath)
    }

    /// Where the hooks on processes belong from now on; nowhere, as long as nobody says.
    pub fn with_sockets(mut self, seat: Seat) -> Result<Self, DatapathError> {
        if matches!(seat, Seat::At(_)) {
            load::sockets(&self.pins, &object()?, &mut self.programs)?;
        }
        self.seat = seat;
        Ok(self)
    }

    /// Whether XDP drops from now on what the outside may not reach; not, as long as nobody says.
    pub fn with_predrop(mut self, want: Predrop) -> Result<Self, DatapathError> {
        self.predrops = Predrops::open(want, &self.pins, &object()?, &mut self.programs)?;
        Ok(self)
    }

    /// What puts programs on new ports while this is busy.
    pub fn early(&self) -> Result<Early, DatapathError> {
        Early::new(&self.attacher, &self.programs, &self.ground)
            .map_err(|e| DatapathError::Load(e.to_string()))
    }

    /// What the kernel holds, as last read or written.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// What is really attached.
    pub fn hooks(&self) -> Vec<HookView> {
        self.with_others(self.attacher.views().unwrap_or_default().into_values().collect())
    }

    /// Makes the kernel hold `desired`. After an error the tables enforce what they did before. A hook that could not be attached
    /// is no error: it is in the report.
    pub fn sync(&mut self, desired: &Desired) -> Result<SyncReport, DatapathError> {
        let mut report = SyncReport::default();
        if let Err(e) = load::pin_again(&self.pins, &self.programs) {
            report.not_enforced.push(NotEnforced { what: "pins".to_owned(), why: e.to_string() });
        }
        let bridges = early::bridges(desired);
        let taken = self.ground.take(&self.attacher, &bridges);
        let (pinned, covered) = taken.map_err(|e| DatapathError::pin("list", &self.pins.links, e))?;
        report.covered = covered;
        // These may be newer than what this pass has seen, and have the number of one that is gone.
        let new: BTreeSet<u32> = report.covered.iter().map(|(port, _)| *port).collect();
        if self.held.generation == 0 {
            // Nothing is enforced yet. Programs without a policy deny everything: they come after it.
            self.write_tables(desired, (&BTreeSet::new(), false), &mut report)?;
        }
        let attached = self.attach(desired, (&pinned, &new), &mut report);
        let (sockets, wrong) = sockets::ensure(&self.pins, &self.seat, &self.programs, desired);
        for (hook, done) in &sockets {
            if *done != Done::Kept {
                info!(hook, ?done, "a hook on processes is in its place");
            }
        }
        report.not_enforced.extend(wrong);
        let whole = sockets::sees_all(&self.seat, &sockets);
        self.write_tables(desired, (&attached, whole), &mut report)?;
        let over = pinned.difference(&desired.hooks).filter(|(ifindex, _)| !new.contains(ifindex));
        for (ifindex, hook) in over {
            self.ground.forget(*ifindex);
            match self.attacher.detach(*ifindex, *hook) {
                Ok(()) => report.detached.push((*ifindex, *hook)),
                Err(e) => report.not_enforced.push(NotEnforced {
                    what: attach::interface(*ifindex),
                    why: format!("{} could not be taken away: {e}", hook.as_str()),
                }),
            }
        }
        report.not_enforced.extend(sockets::leave(&self.pins, &self.seat, &self.programs, desired));
        report.repaired.extend(self.predrops.ensure(&self.pins, &self.programs, desired));
        report.remarks = self.predrops.remarks();
        if report.not_enforced.is_empty() {
            self.forget_old_programs();
        }
        self.ground.give(bridges);
        report.repaired.append(&mut self.damage);
        report.generation = self.held.generation;
        report.pickup_until = self.held.pickup_until;
        report.hooks = self.views();
        Ok(report)
    }

    /// What is attached, as it was last seen.
    pub(super) fn views(&self) -> Vec<HookView> {
        self.with_others(self.seated.values().cloned().collect())
    }

    fn with_others(&self, mut views: Vec<HookView>) -> Vec<HookView> {
        views.extend(sockets::views(&self.pins, &self.seat));
        views.extend(predrop::views(&self.pins));
        views
    }

    /// Attaches every desired hook that is not known to be; gives the ports that have both of theirs.
    fn attach(
        &mut self,
        desired: &Desired,
        (pinned, new): (&BTreeSet<(u32, Hook)>, &BTreeSet<u32>),
        report: &mut SyncReport,
    ) -> BTreeSet<u32> {
        let (mut live, mut seated) = (BTreeSet::new(), BTreeMap::new());
        for (ifindex, hook) in &desired.hooks {
            let at = (*ifindex, *hook);
            if let Some(view) = self.seated.get(&at)
                && pinned.contains(&at)
                && !self.doubtful.contains(&at)
                && !new.contains(ifindex)
            {
                seated.insert(at, HookView { interface: attach::interface(*ifindex), ..view.clone() });
                live.insert(at);
                continue;
            }
            let (done, seat) = match self.attacher.ensure(&self.programs, *ifindex, *hook) {
                Ok(done) => done,
                Err(e) => {
                    report.not_enforced.push(NotEnforced {
                        what: attach::interface(*ifindex),
                        why: format!("{} could not be attached: {e}", hook.as_str()),
                    });
                    continue;
                }
            };
            if let Some(why) = done.cured(*hook).filter(|_| self.seated.contains_key(&at)) {
                report.repaired.push(NotEnforced { what: attach::interface(*ifindex), why });
            }
            match done {
                Done::Kept => {}
                Done::Attached => {
                    report.attached.push((*ifindex, *hook));
                    // The hooks are in order: a port's second one.
                    if *hook == Hook::PortOut {
                        report.covered.push((*ifindex, Instant::now()));
                    }
                }
                Done::Replaced(_) | Done::MovedFirst(_) => report.mended.push((*ifindex, *hook)),
            }
            live.insert(at);
            let view = match seat {
                Some(seat) => Some(seat.view(*ifindex, *hook)),
                None => self.attacher.view(*ifindex, *hook).ok().flatten(),
            };
            seated.extend(view.map(|view| (at, view)));
        }
        self.seated = seated;
        self.doubtful.clear();
        self.wait_for_links();
        let both = |ifindex: u32| {
            live.contains(&(ifindex, Hook::PortIn)) && live.contains(&(ifindex, Hook::PortOut))
        };
        desired.hooks.iter().map(|(ifindex, _)| *ifindex).filter(|ifindex| both(*ifindex)).collect()
    }

    fn write_tables(
        &mut self,
        desired: &Desired,
        (attached, whole): (&BTreeSet<u32>, bool),
        report: &mut SyncReport,
    ) -> Result<(), DatapathError> {
        if self.doubt {
            self.refresh()?;
        }
        // Set until everything below is done.
        self.doubt = true;
        let before = self.held.containers();
        let clocks = clocks();
        let mut new = Bank::new(desired.revision, &desired.compiled, clocks);
        let opens = self.held.generation == 0
            || (desired.revision != self.held.revision
                && rows::newly_protected(&self.held.links, &desired.links));
        let second = u32::try_from(clocks.monotonic / 1_000_000_000).unwrap_or(u32::MAX);
        let pickup_until = tables::pickup_until(self.held.pickup_until, opens, desired.pickup, second);
        new.head.pickup_until = pickup_until;
        tables::check_room(&new, desired)?;
        let endpoints = rows::without_unattached(&desired.endpoints, attached);
        let cgroups = rows::with_own_stack(&desired.cgroups, whole);
        let cgroups = rows::with_pickup(cgroups, &self.held.cgroups, desired.pickup, second);
        let bank = (self.held.generation & 1) as usize;
        let flip = !self.holds(bank, &new)?
            || rows::reopened(&self.held.endpoints, &endpoints, bank)
            || rows::reopened(&self.held.links, &desired.links, bank)
            || rows::reopened(&self.held.published, &desired.published, bank)
            || rows::exposed(&self.held.published, &desired.published)
            || rows::reopened(&self.held.cgroups, &cgroups, bank)
            || self.held.banks[bank]
                .as_ref()
                .is_none_or(|current| tables::claimed(&self.held.endpoints, &endpoints, current));
        let next = tables::next_generation(self.held.generation);
        if flip {
            new.head.generation = next;
            let other = 1 - bank;
            let old = self.held.banks[other].take();
            self.store.write(other as u32, &new, old.as_ref())?;
            self.held.banks[other] = Some(new);
        }
        let endpoints = rows::plan(&self.held.endpoints, &endpoints, bank, flip);
        let links = rows::plan(&self.held.links, &desired.links, bank, flip);
        let published = rows::plan(&self.held.published, &desired.published, bank, flip);
        let cgroups = rows::plan(&self.held.cgroups, &cgroups, bank, flip);
        report.rows += endpoints.rows() + links.rows() + published.rows() + cgroups.rows();
        let written = self.write_rows((&endpoints, &links, &published, &cgroups));
        if !(endpoints.write.is_empty() && links.write.is_empty()) {
            // Before the flip, and also where not all could be written: some of it may be kept near by now.
            self.store.rows_changed()?;
        }
        written?;
        if flip {
            self.store.flip(next)?;
            (self.held.generation, self.held.revision) = (next, desired.revision);
            self.held.pickup_until = pickup_until;
            report.flipped = true;
        }
        // The new rows are in force. What follows only tidies up: a failure there is no failure to apply.
        match self.tidy(bank, flip, (&endpoints, &links, &published, &cgroups)) {
            Ok(()) => self.doubt = false,
            Err(e) => report.not_enforced.push(NotEnforced {
                what: "tables".to_owned(),
                why: format!("old rows are still there: {e}"),
            }),
        }
        report.gone.extend(before.difference(&self.held.containers()));
        Ok(())
    }

    fn write_rows(&mut self, (endpoints, links, published, cgroups): Plans<'_>) -> Result<(), DatapathError> {
        // First: a port that is the host's no more must not lead to a container that has its rights already.
        write_rows(&self.store.published, "published ports", published, &mut self.held.published)?;
        write_rows(&self.store.endpoints, "endpoints", endpoints, &mut self.held.endpoints)?;
        // Where this fails the endpoints' rows are good in the old bank too; those of changed containers stay closed until the
        // next try.
        write_rows(&self.store.links, "interfaces", links, &mut self.held.links)?;
        write_rows(&self.store.cgroups, "cgroups", cgroups, &mut self.held.cgroups)
    }

    /// Removes what nothing points to any more, once no program runs that began before the flip.
    fn tidy(
        &mut self,
        old: usize,
        flipped: bool,
        (endpoints, links, published, cgroups): Plans<'_>,
    ) -> Result<(), DatapathError> {
        if flipped {
            self.grace.wait().map_err(DatapathError::Grace)?;
        }
        if !(endpoints.remove.is_empty() && links.remove.is_empty()) {
            let removed =
                remove_rows(&self.store.endpoints, "endpoints", endpoints, &mut self.held.endpoints)
                    .and_then(|()| remove_rows(&self.store.links, "interfaces", links, &mut self.held.links));
            self.store.rows_changed()?;
            removed?;
        }
        remove_rows(&self.store.published, "published ports", published, &mut self.held.published)?;
        remove_rows(&self.store.cgroups, "cgroups", cgroups, &mut self.held.cgroups)?;
        if flipped {
            self.store.write_prefixes(old as u32, &BTreeMap::new())?;
            if let Some(old) = &mut self.held.banks[old] {
                old.prefixes.clear();
            }
        }
        Ok(())
    }

    /// Whether the bank that packets read holds this policy already.
    fn holds(&mut self, bank: usize, policy: &Bank) -> Result<bool, DatapathError> {
        if self.held.generation == 0 {
            return Ok(false);
        }
        if self.held.banks[bank].is_none() {
            let found = self.store.read(bank as u32, policy)?;
            if found.head.generation != self.held.generation {
                return Ok(false);
            }
            self.held.banks[bank] = Some(found);
        }
        Ok(self.held.banks[bank].as_ref().is_some_and(|held| held.same(policy)))
    }

    /// Reads what the kernel holds.
    fn refresh(&mut self) -> Result<(), DatapathError> {
        // Somebody else may have changed rows, or an earlier run may have ended between a row and this word.
        self.store.rows_changed()?;
        let generation = self.store.generation()?;
        let head = self.store.head(generation & 1)?;
        self.held = Held {
            generation,
            revision: head.revision,
            pickup_until: head.pickup_until,
            endpoints: self.store.endpoints.sorted().map_err(table("read", "endpoints"))?,
            links: self.store.links.sorted().map_err(table("read", "interfaces"))?,
            published: self.store.published.sorted().map_err(table("read", "published ports"))?,
            cgroups: self.store.cgroups.sorted().map_err(table("read", "cgroups"))?,
            banks: [None, None],
        };
        self.doubt = false;
        Ok(())
    }

    /// Programs of earlier objects and other versions, once every hook runs this one's.
    fn forget_old_programs(&self) {
        let own = self.programs.directory.file_name().and_then(|n| n.to_str());
        for name in pins::names(&self.pins.programs).unwrap_or_default() {
            if Some(name.as_str()) != own
                && let Err(e) = load::remove_programs(&self.pins.programs.join(&name))
            {
                warn!(error = %e, "old programs stay pinned");
            }
        }
        let gone = purge::purge_others(&self.pins.bpffs, &format!("v{ABI}"), self.attacher.tcx());
        if !gone.removed.is_empty() {
            info!(removed = gone.removed.len(), "what another version with other tables left is taken away");
        }
        for why in gone.failed {
            warn!(error = why, "what another version left stays");
        }
    }
}

/// What is to be done to endpoints, interfaces and published ports.
type Plans<'p> = (
    &'p RowPlan<Address, Endpoint>,
    &'p RowPlan<u32, Link>,
    &'p RowPlan<PublishKey, Publish>,
    &'p RowPlan<CgroupKey, Cgroup>,
);

/// Both clocks now.
pub fn clocks() -> Clocks {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { monotonic: raw::monotonic(), unix: unix.as_nanos().cast_signed() }
}

/// Writes rows; where one can't be written those before it are put back.
fn write_rows<K: Bytes + Ord, R: Bytes + PartialEq>(
    map: &Table<K, R>,
    name: &'static str,
    plan: &RowPlan<K, R>,
    held: &mut BTreeMap<K, R>,
) -> Result<(), DatapathError> {
    for (done, (key, row)) in plan.write.iter().enumerate() {
        if let Err(error) = map.put(key, row) {
            for (key, _) in &plan.write[..done] {
                let _ = match held.get(key) {
                    Some(old) => map.put(key, old),
                    None => map.remove(key).map(drop),
                };
            }
            return Err(table("write", name)(error));
        }
    }
    for (key, row) in &plan.write {
        if map.get(key).map_err(table("read", name))?.as_ref() != Some(row) {
            return Err(DatapathError::ReadBack { table: name });
        }
        held.insert(*key, *row);
    }
    Ok(())
}

fn remove_rows<K: Bytes + Ord, R: Bytes>(
    map: &Table<K, R>,
    name: &'static str,
    plan: &RowPlan<K, R>,
    held: &mut BTreeMap<K, R>,
) -> Result<(), DatapathError> {
    for key in &plan.remove {
        map.remove(key).map_err(table("write", name))?;
        held.remove(key);
    }
    Ok(())
}
