//! What the agent knows, and one pass of its work: place, compile, make the kernel hold it, routes, publish.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hydra_common::id::Container;
use hydra_common::verdict::Hook;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::damage::Damage;
use super::enforced::{Policy, recompile};
use super::kernel::Kernel;
use super::routing::Routing;
use super::times::Times;
use crate::datapath::{Settled, SyncReport};
use crate::desired::Desired;
use crate::inventory::Appearances;
use crate::inventory::snapshot::{DockerState, Snapshot};
use crate::placement::{self, Claims, Placement};
use crate::policy::rows::{Compiled, Numbers};
use crate::policy::{rfc3339, unix_now};
use crate::published::{Applied, HookView, NotEnforced, Published, Reader, Remark, RevisionView};
use crate::reconcile;
use crate::settings::Settings;
use crate::state::{Containers, Drafted, State, StateError};

/// Who is who under a policy, with the numbers that it took.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub placement: Placement,
    pub containers: Containers,
}

/// See the module.
pub(super) struct Agent {
    pub settings: Settings,
    pub state: State,
    pub kernel: Kernel,
    pub reader: Arc<dyn Reader>,
    /// What should be in force.
    pub policy: Option<Policy>,
    /// What stays wrong until somebody does something: said in every status.
    pub lasting: Vec<NotEnforced>,
    pub times: Times,
    appearances: Appearances,
    pub routing: Routing,
    publish: watch::Sender<Arc<Published>>,
    desired: Option<Arc<Desired>>,
    snapshot: Arc<Snapshot>,
    /// Since when Docker has not answered, RFC 3339; none while it does or nobody asks it.
    silent: Option<String>,
    placement: Placement,
    hooks: Vec<HookView>,
    /// What the last pass has to say of this host.
    remarks: Vec<Remark>,
    generation: u32,
    flow_capacity: u32,
    pickup_until: u32,
    /// What the last pass could not do.
    failed: Vec<NotEnforced>,
    damage: Damage,
    warned: BTreeSet<Remark>,
    /// A refused text that may still be on its way to the disk: it takes itself away, and no other is written meanwhile.
    pub(super) refused: Option<Writing>,
}

/// Writes a policy's text beside its place; nothing, and nothing left, if nobody wants it any more when it is written.
pub(super) type Writing = JoinHandle<Option<Result<Drafted, StateError>>>;

impl Agent {
    pub fn new(
        settings: Settings,
        state: State,
        kernel: Kernel,
        reader: Arc<dyn Reader>,
        flow_capacity: u32,
        appearances: Appearances,
        publish: watch::Sender<Arc<Published>>,
    ) -> Self {
        Self {
            settings,
            state,
            kernel,
            reader,
            policy: None,
            lasting: Vec::new(),
            times: Times::default(),
            appearances,
            routing: Routing::default(),
            publish,
            desired: None,
            snapshot: Arc::default(),
            silent: None,
            placement: Placement::default(),
            hooks: Vec::new(),
            remarks: Vec::new(),
            generation: 0,
            flow_capacity,
            pickup_until: 0,
            failed: Vec::new(),
            damage: Damage::default(),
            warned: BTreeSet::new(),
            refused: None,
        }
    }

    /// One pass over a new look at the world. An error is published already; the kernel enforces what it did before.
    pub async fn pass(&mut self, snapshot: Snapshot) -> Result<(), String> {
        self.look(snapshot);
        let Some(mut policy) = self.policy.take() else {
            self.publish();
            return Ok(());
        };
        let placed = self.place(&policy.claims);
        self.failed.clear();
        match recompile(&policy, &placed.placement, self.state.numbers()) {
            Ok(None) => {}
            Ok(Some(((compiled, basis), world, numbers))) => {
                (policy.compiled, policy.basis) = (Arc::new(compiled), Arc::new(basis));
                policy.world = world;
                self.note_numbers(numbers);
            }
            // The tables of before still hold; addresses that they don't know stay closed.
            Err(error) => {
                self.failed.push(NotEnforced { what: "policy".to_owned(), why: error.to_string() });
            }
        }
        let done = self.enforce(&policy, placed).await;
        self.policy = Some(policy);
        if let Err(why) = &done {
            tracing::error!(error = %why, "the kernel could not be brought up to date; it enforces what it did before");
            self.failed.push(NotEnforced { what: "tables".to_owned(), why: why.clone() });
        }
        self.publish();
        done
    }

    /// Takes a new look at the world in.
    pub fn look(&mut self, snapshot: Snapshot) {
        self.silent = silent_since(self.silent.take(), &snapshot.docker, unix_now());
        self.snapshot = Arc::new(snapshot);
    }

    /// Who is who under the policy in force, as the kernel holds it.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Who is who under these claims.
    pub fn place(&self, claims: &Claims) -> Placed {
        let mut containers = self.state.containers().clone();
        let labels = self.settings.labels;
        let placement = placement::place(claims, &self.snapshot, labels, &mut containers);
        containers.retain(|key| self.snapshot.stacks.iter().any(|s| s.key == key));
        Placed { placement, containers }
    }

    /// Makes the kernel hold a policy over a placement. On an error nothing has changed.
    pub async fn enforce(&mut self, policy: &Policy, placed: Placed) -> Result<(), String> {
        let Placed { placement, containers } = placed;
        self.note_disk(|state| state.set_containers(containers));
        let desired = reconcile::desired(
            policy.revision,
            &policy.compiled,
            &placement,
            &self.snapshot,
            &self.settings.uplinks,
        );
        let desired = Arc::new(Desired { pickup: self.settings.pickup.0, ..desired });
        let report = self.kernel.sync(desired.clone()).await?;
        self.placement = placement;
        self.desired = Some(desired);
        self.take(report);
        let wanted = if self.settings.routes {
            reconcile::routes(&policy.compiled, &self.placement, unix_now())
        } else {
            BTreeMap::new()
        };
        let snapshot = self.snapshot.clone();
        self.routing.keep(&snapshot, wanted).await;
        Ok(())
    }

    fn take(&mut self, report: SyncReport) {
        let SyncReport {
            generation,
            flipped,
            pickup_until,
            rows,
            attached,
            covered,
            detached,
            mended,
            repaired,
            gone: _,
            hooks,
            not_enforced,
            remarks,
        } = report;
        self.damage.repaired(repaired);
        for (index, at) in covered {
            // Of a port that was there before the agent nobody knows.
            if let Some(since) = self.appearances.of(index) {
                self.times.attached(index, since, at);
            }
        }
        if flipped || !attached.is_empty() || !detached.is_empty() || !mended.is_empty() {
            let (attached, detached, mended) = (attached.len(), detached.len(), mended.len());
            tracing::info!(generation, flipped, rows, attached, detached, mended, "the kernel is up to date");
        }
        (self.generation, self.hooks, self.pickup_until) = (generation, hooks, pickup_until);
        self.failed.extend(not_enforced);
        self.remarks = remarks;
    }

    /// Looks whether the kernel still holds what it should, and publishes what it does not. `true`: a pass has to mend it.
    pub async fn verify(&mut self) -> bool {
        let Some(desired) = self.desired.clone() else { return false };
        let wrong = self.kernel.look(desired).await;
        let (changed, mend) = self.damage.seen(wrong);
        if changed {
            self.publish();
        }
        mend
    }

    /// Lets filters become links, and publishes which have.
    pub async fn settle(&mut self) {
        if self.hooks.iter().all(|hook| hook.link_id != 0) {
            return;
        }
        if let Some(Settled { hooks, repaired }) = self.kernel.settle().await {
            self.hooks = hooks;
            self.damage.repaired(repaired);
            self.publish();
        }
    }

    /// What is still wrong after mending stays in the status.
    pub async fn verify_mended(&mut self) {
        let Some(desired) = self.desired.clone() else { return };
        self.damage.left(self.kernel.verify(desired).await);
        self.publish();
    }

    /// Replaces what everybody sees.
    pub fn publish(&mut self) {
        let none = Arc::new(Compiled::default());
        let compiled = self.policy.as_ref().map_or(&none, |p| &p.compiled);
        let views = reconcile::views(compiled, &self.placement, &self.snapshot, &both(&self.hooks));
        let published = Published {
            applied: self.applied(),
            snapshot: self.snapshot.clone(),
            endpoints: Arc::new(views),
            ports: Arc::new(reconcile::port_views(compiled, &self.placement)),
            hooks: self.hooks.clone(),
            not_enforced: self.not_enforced(),
            closed: self.placement.closed.clone(),
            warnings: self.warnings(),
            history: self.state.history().to_vec(),
            flow_capacity: self.flow_capacity,
            pickup_until: self.pickup_until,
            attach_seconds: self.times.seconds(),
            repairs: self.damage.repairs(),
        };
        self.warn_once();
        self.publish.send_replace(Arc::new(published));
    }

    /// The policy in force with its rows; the same value as before where nothing changed.
    fn applied(&self) -> Option<Arc<Applied>> {
        // Before the first sync nothing is known to be in force.
        self.desired.as_ref()?;
        let policy = self.policy.as_ref()?;
        let before = self.publish.borrow().applied.clone();
        let same = |a: &Applied| {
            a.revision == policy.revision
                && a.generation == self.generation
                && (Arc::ptr_eq(&a.compiled, &policy.compiled) || a.compiled == policy.compiled)
        };
        if let Some(before) = before.filter(|a| same(a)) {
            return Some(before);
        }
        Some(Arc::new(Applied {
            revision: policy.revision,
            generation: self.generation,
            text: policy.text.clone(),
            model: policy.model.clone(),
            compiled: policy.compiled.clone(),
        }))
    }

    fn not_enforced(&self) -> Vec<NotEnforced> {
        let mut all = self.lasting.clone();
        if self.policy.is_none() && !all.iter().any(|n| n.what == "policy") {
            all.push(NotEnforced { what: "policy".to_owned(), why: "no policy has been applied".to_owned() });
        }
        all.extend(self.failed.iter().cloned());
        all.extend(self.damage.not_enforced());
        all.extend(self.placement.not_enforced.iter().cloned());
        if let Some(desired) = &self.desired {
            let uplinks = &self.settings.uplinks;
            all.extend(reconcile::left_out(&desired.links, &self.placement, &self.snapshot, uplinks));
        }
        all.extend(self.routing.not_enforced());
        all.sort();
        all.dedup();
        all
    }

    /// What an operator should look at.
    fn warnings(&self) -> Vec<Remark> {
        let silent = self.silent.iter().map(|since| silent(since));
        let placed = self.placement.warnings.iter().cloned();
        silent.chain(placed).chain(self.remarks.iter().cloned()).collect()
    }

    /// What there is to look at, each at its first appearance.
    fn warn_once(&mut self) {
        let warnings: BTreeSet<Remark> =
            self.placement.closed.iter().cloned().chain(self.warnings()).collect();
        for Remark { what, why, hint } in warnings.difference(&self.warned) {
            tracing::warn!(what, why, hint, "something about this host to look at");
        }
        self.warned = warnings;
    }

    /// Keeps something on disk; a full disk must not keep a container unprotected.
    fn note_disk(&mut self, write: impl FnOnce(&mut State) -> Result<(), StateError>) {
        if let Err(error) = write(&mut self.state) {
            tracing::error!(%error, "state could not be kept");
            self.failed.push(NotEnforced { what: "state".to_owned(), why: error.to_string() });
        }
    }

    /// Forgets what the pass before could not do.
    pub fn clear_failed(&mut self) {
        self.failed.clear();
    }

    /// Keeps the numbers of identities.
    pub fn note_numbers(&mut self, numbers: Numbers) {
        self.note_disk(|state| state.set_numbers(numbers));
    }

    /// Enters an applied policy into the history.
    pub fn note_history(&mut self, view: RevisionView) {
        self.note_disk(|state| state.commit(view));
    }

    /// Lets the stacks' numbers reach the disk when there is time.
    pub fn flush(&mut self) {
        if let Err(error) = self.state.flush_containers() {
            tracing::warn!(%error, "the numbers of containers could not be kept");
        }
    }

    /// The highest container number that the kernel's rows hold must not be given again.
    pub fn distrust_containers(&mut self, held: impl Iterator<Item = Container>) {
        let highest = held.max().unwrap_or(Container::NONE);
        if highest > self.state.containers().highest() {
            self.state.distrust_containers();
        }
    }
}

/// Since when Docker has not answered, by the last look and by this one.
fn silent_since(before: Option<String>, docker: &DockerState, now: i64) -> Option<String> {
    match docker {
        DockerState::Down { .. } => before.or_else(|| Some(rfc3339(now))),
        DockerState::Up { .. } | DockerState::Off => None,
    }
}

/// Docker does not answer: what is enforced goes on.
fn silent(since: &str) -> Remark {
    Remark {
        what: "docker".to_owned(),
        why: format!("has not answered since {since}; what it said last stays enforced"),
        hint: "`systemctl status docker`".to_owned(),
    }
}

/// Ports that carry both of their programs; 0 where the hooks on packets of processes are there.
fn both(hooks: &[HookView]) -> BTreeSet<u32> {
    let with = |hook: Hook| -> BTreeSet<u32> {
        hooks.iter().filter(|h| h.hook == hook.as_str()).map(|h| h.ifindex).collect()
    };
    let ports = with(Hook::PortIn).intersection(&with(Hook::PortOut)).copied().collect::<BTreeSet<u32>>();
    let packets = with(Hook::CgroupIn).intersection(&with(Hook::CgroupOut)).copied().collect();
    &ports | &packets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_docker_is_silent_is_remembered_until_it_answers() {
        let down = DockerState::Down { error: "connection refused".into() };
        let first = silent_since(None, &down, 1_795_253_400);
        assert_eq!(first.as_deref(), Some("2026-11-21T09:30:00Z"));
        assert_eq!(silent_since(first.clone(), &down, 1_795_253_460), first);
        assert_eq!(silent_since(first.clone(), &DockerState::Up { version: "28".into() }, 0), None);
        assert_eq!(silent_since(first, &DockerState::Off, 0), None);
        let said = silent("2026-11-21T09:30:00Z").to_string();
        assert_eq!(
            said,
            "`docker`: has not answered since 2026-11-21T09:30:00Z; what it said last stays enforced"
        );
    }
}
