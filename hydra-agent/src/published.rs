//! What the agent shows: one value, replaced whole, that the API, the metrics and the loop read without locks, and the handle by
//! which requests reach the loop.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hydra_common::event::Event;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{Count, DropKey, Gauge};
use hydra_common::verdict::Reason;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::diagnostic::Diagnostics;
use crate::inventory::snapshot::Snapshot;
use crate::placement::PortKey;
use crate::policy::model::Model;
use crate::policy::rows::{Compiled, Owner};

/// The agent's state at one moment.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The policy that the kernel enforces; none before the first apply.
    pub applied: Option<Arc<Applied>>,
    /// The world as last seen.
    pub snapshot: Arc<Snapshot>,
    /// Every address of a container that hydra knows, with what it stands for.
    pub endpoints: Arc<Vec<EndpointView>>,
    /// Every published port, with who is behind it.
    pub ports: Arc<Vec<PortView>>,
    /// What sits on which interface.
    pub hooks: Vec<HookView>,
    /// What is not enforced, and why. Empty when all is well.
    pub not_enforced: Vec<NotEnforced>,
    /// Stacks whose ports are closed because of what they are.
    pub closed: Vec<Remark>,
    /// What an operator should look at.
    pub warnings: Vec<Remark>,
    /// Applied policies, oldest first.
    pub history: Vec<RevisionView>,
    /// Flow table size in entries.
    pub flow_capacity: u32,
    /// Seconds of the monotonic clock until which TCP connections are taken up from their middle.
    pub pickup_until: u32,
    /// Seconds from a port's appearance to its programs, newest last, at most 1,024.
    pub attach_seconds: Vec<f64>,
    /// Changes of somebody else to the kernel's side that were undone since the agent started.
    pub repairs: u64,
}

/// The policy in force.
#[derive(Debug)]
pub struct Applied {
    /// Its number.
    pub revision: u32,
    /// The kernel's generation that carries it.
    pub generation: u32,
    /// Its text as it was given.
    pub text: Arc<str>,
    /// Its meaning.
    pub model: Arc<Model>,
    /// Its rows.
    pub compiled: Arc<Compiled>,
}

/// One address of one endpoint. The row of `hydractl endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// The container's name, or the namespace's.
    pub container: String,
    /// Its number in flows and events.
    pub number: Container,
    /// Whose.
    #[serde(skip)]
    pub owner: Owner,
    /// Tier name, or `unmanaged`.
    pub tier: String,
    /// Service name within the tier, or empty.
    pub service: String,
    /// Docker network, or empty.
    pub network: String,
    /// Bridge name.
    pub bridge: String,
    /// Host-side veth.
    pub port: String,
    /// MAC as text.
    pub mac: String,
    /// IP address as text.
    pub address: String,
    /// The number that the kernel works with.
    pub identity: Identity,
    /// Whether its port carries hydra's programs.
    pub attached: bool,
}

/// One published port and who is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// What a packet to it is sent to.
    pub key: PortKey,
    /// The container's name.
    pub container: String,
    /// Its number in flows and events; [`Container::NONE`] where it is not known.
    pub number: Container,
    /// Whose the container is there; none where that is not certain, and the port closed.
    pub owner: Option<Owner>,
    /// The Docker network that the way goes by, or empty.
    pub network: String,
    /// The container's address there.
    pub target: Option<IpAddr>,
    /// The container's port.
    pub target_port: u16,
    /// The number that the kernel works with.
    pub identity: Identity,
    /// docker-proxy takes the connection and opens another one.
    pub proxied: bool,
}

/// One program on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HookView {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// [`hydra_common::verdict::Hook`] as text.
    pub hook: String,
    /// `tcx` or `clsact`; of a pre-drop `xdp-native` or `xdp-generic`.
    pub mechanism: String,
    /// The kernel's program id.
    pub program_id: u32,
    /// The kernel's link id; 0 for clsact.
    pub link_id: u32,
    /// Place in the chain, counted from 0: anything but 0 means that another program runs first.
    pub position: u32,
}

/// Something that hydra should enforce and does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NotEnforced {
    /// The interface, container, network or tier.
    pub what: String,
    /// Why, as a sentence without a final period.
    pub why: String,
}

/// Something about a container or interface that an operator should know: that its ports are closed because of what it is, or what
/// follows from where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Remark {
    /// The container, namespace or interface.
    pub what: String,
    /// What there is to know, as a sentence without a final period.
    pub why: String,
    /// What changes it.
    pub hint: String,
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: {}", self.what, self.why)
    }
}

/// One applied policy. The row of `hydractl policy history`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct RevisionView {
    /// Its number.
    pub revision: u32,
    /// The policy's name.
    pub policy: String,
    /// When, RFC 3339 in UTC.
    pub applied: String,
    /// By whom: `uid=0 pid=123`, `--policy`, `rollback`.
    pub by: String,
    /// The revision whose text it is, where a rollback put that in force again.
    #[serde(default)]
    pub restores: Option<u32>,
    /// SHA-256 is not needed: the text's length in bytes tells two apart well enough beside its number.
    pub bytes: u64,
}

/// What requests can ask of the loop. Every reply comes when it is done, not when it is queued.
#[derive(Debug)]
pub enum Command {
    /// Apply a policy's text.
    Apply {
        /// The text.
        text: String,
        /// What diagnostics call it.
        source: String,
        /// Who asks, for the history and the log.
        by: String,
        /// Only say what would change.
        dry_run: bool,
        /// The answer.
        reply: oneshot::Sender<Result<ApplyReport, ApplyError>>,
    },
    /// The text of a revision.
    Show {
        /// Which.
        revision: u32,
        /// The text, if it is kept.
        reply: oneshot::Sender<Option<String>>,
    },
    /// Apply an earlier revision's text again, as a new revision. `None`: the one before the current; where that took one back, the
    /// one before that.
    Rollback {
        /// Which.
        revision: Option<u32>,
        /// Who asks.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<ApplyReport, ApplyError>>,
    },
}

/// What an apply did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct ApplyReport {
    /// The new revision; with `dry_run` the one that it would be.
    pub revision: u32,
    /// The earlier revision whose text it is, of a rollback.
    #[serde(default)]
    pub restores: Option<u32>,
    /// The policy's name.
    pub policy: String,
    /// Lines of the policy's diff to the one before, as `policy diff` prints them.
    pub changes: Vec<String>,
    /// Live flows that the new policy no longer allows, as `SOURCE -> DESTINATION PORT`.
    pub cut: Vec<String>,
    /// Warnings, rendered.
    pub warnings: Vec<String>,
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The policy is refused.
    #[error("the policy is refused")]
    Refused(Diagnostics),
    /// There is no such revision.
    #[error("there is no revision {0}")]
    NoRevision(u32),
    /// Nothing was applied before.
    #[error("there is no earlier revision")]
    NoEarlier,
    /// The kernel did not take it; the old one is whole.
    #[error("the kernel did not take the policy, the previous one stays in force: {0}")]
    Kernel(String),
    /// The state directory did not take it; the old one is whole.
    #[error("the policy could not be kept on disk, the previous one stays in force: {0}")]
    Disk(String),
}

/// Counters summed over the CPUs.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By (source tier, destination tier, audited); zero rows left out.
    pub traffic: BTreeMap<(u16, u16, bool), Count>,
    /// Denied and would-be denied.
    pub drops: BTreeMap<DropKey, Count>,
    /// By reason.
    pub reasons: BTreeMap<Reason, Count>,
    /// Packets denied because a limit was used up, by the limit's number ([`hydra_common::tables::Limit::bucket`]).
    pub limited: Vec<u64>,
    /// By gauge, in the order of [`Gauge`].
    pub gauges: [u64; hydra_common::tables::GAUGES as usize],
    /// Entries of the flow table now, in both of its parts.
    pub flows: u64,
    /// Flows that ever found no room in its first part, and could be evicted from its second.
    pub spilled: u64,
}

impl Counters {
    /// One gauge.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize]
    }
}

/// Reads the kernel's tables; cheap enough to call on request, blocking (call it from `spawn_blocking`).
pub trait Reader: Send + Sync {
    /// Shows every live flow, in no order. Nothing is kept of it: a table of a million takes the room of a few thousand entries.
    fn each_flow(&self, see: &mut dyn FnMut(&FlowKey, &Flow)) -> std::io::Result<()>;
    /// Every live flow.
    fn flows(&self) -> std::io::Result<Vec<(FlowKey, Flow)>> {
        let mut flows = Vec::new();
        self.each_flow(&mut |key, flow| flows.push((*key, *flow)))?;
        Ok(flows)
    }
    /// All counters.
    fn counters(&self) -> std::io::Result<Counters>;
    /// The monotonic clock now, nanoseconds, and the Unix time now, nanoseconds: to date what the kernel dated.
    fn clocks(&self) -> (u64, i128);
}

/// What the API needs of the agent.
#[derive(Clone)]
pub struct Handle {
    /// The state, newest value.
    pub state: watch::Receiver<Arc<Published>>,
    /// Requests.
    pub commands: mpsc::Sender<Command>,
    /// The kernel's tables.
    pub reader: Arc<dyn Reader>,
    /// Drops, would-be drops and first packets, as they come. A slow receiver loses the oldest.
    pub events: broadcast::Sender<Event>,
}
