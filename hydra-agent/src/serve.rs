//! The loop: observe, reconcile, execute, publish. Messages only say "look again"; what is seen decides.

mod agent;
mod apply;
mod cut;
mod damage;
mod enforced;
mod errors;
mod file;
mod kernel;
mod log;
mod purge;
mod rights;
mod routing;
mod start;
mod systemd;
mod times;
mod turn;

use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use self::agent::Agent;
pub use self::errors::RunError;
use self::kernel::Kernel;
pub use self::purge::purge;
use self::turn::{Loop, Signals};
use crate::api::{self, ControlSocket};
use crate::cgroup::Hierarchy;
use crate::datapath::{self, Datapath, Mechanism, Predrop, Room, Seat};
use crate::inventory::{self, Engine, Inventory};
use crate::placement;
use crate::published::{Handle, NotEnforced};
use crate::settings::{Attach, Docker, Flags, PolicyFile, Settings};
use crate::state::{Containers, State};

/// How long requests in flight may take when the agent ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// `hydra-agent run`: enforces until told to stop.
pub fn run(flags: Flags) -> Result<(), RunError> {
    let settings = Settings::load(flags)?;
    log::start(&settings.log).map_err(RunError::Log)?;
    rights::check()?;
    // As a task among the others: what it asks of the kernel it is told on the thread that it runs on, and nobody is woken for it.
    runtime()?.block_on(async { tokio::spawn(serve(settings)).await }).unwrap_or_else(|broken| {
        let error = broken.try_into_panic().map_or_else(std::io::Error::other, |panic| resume_unwind(panic));
        Err(RunError::Begin(error))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Begin)
}

/// Where the inventory looks.
fn watching(settings: &Settings, cgroups: Option<Hierarchy>) -> inventory::Settings {
    inventory::Settings {
        engine: match &settings.docker {
            Docker::Auto => Engine::Auto,
            Docker::None => Engine::None,
            Docker::Socket(path) => Engine::Socket(path.clone()),
        },
        netns_dir: settings.netns_dir.clone(),
        cgroups,
        keep: Some(settings.directories.state.join("docker.json")),
        ..inventory::Settings::default()
    }
}

async fn serve(settings: Settings) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(RunError::Begin)?;
    // Whoever comes second fails here, before it has touched anything.
    let mut socket = Some(ControlSocket::bind(&settings.directories.run)?);
    let done = enforce(settings, &mut signals, &mut socket).await;
    // A start that failed before anybody was served: nobody is to knock where nobody is.
    if let Some(socket) = socket {
        socket.remove();
    }
    done
}

/// From the state directory to a signal. Takes the socket when it serves.
async fn enforce(
    settings: Settings,
    signals: &mut Signals,
    socket: &mut Option<ControlSocket>,
) -> Result<(), RunError> {
    let (mut state, broken) = State::open(&settings.directories.state)?;
    let mut lasting = Vec::new();
    for file in &broken {
        tracing::error!(path = %file.path.display(), why = file.why, "a file of the state directory is broken");
        lasting.push(NotEnforced { what: format!("state {}", file.path.display()), why: file.why.clone() });
    }
    let start = begin_with(&settings.policy, &state)?;
    let (ports, appeared) = std::sync::mpsc::channel();
    let appearances = inventory::Appearances::open(ports).map_err(inventory::InventoryError::from)?;
    let hierarchy = Hierarchy::find(&settings.cgroup);
    let cgroups = hierarchy.as_ref().ok().cloned().flatten();
    let mut inventory = Inventory::new(watching(&settings, cgroups))?;
    let snapshot = inventory.observe().await;
    // There is always a loopback interface: without any link nothing was seen, and nothing can be said of the policy.
    if snapshot.links.is_empty() {
        return Err(RunError::Blind(snapshot.problems));
    }
    let file = start.apply.map(|text| file::asked(&settings.policy.path, text));
    if let (None, Some(asked)) = (&start.adopt, &file) {
        let place =
            |claims: &_| placement::place(claims, &snapshot, settings.labels, &mut Containers::default());
        apply::check_first(asked, place).map_err(RunError::Policy)?;
    }

    let (bpffs, mechanism) = (settings.directories.bpffs.clone(), mechanism(settings.attach));
    let room = Room { flows: settings.flows.0, share: settings.flow_share.0 };
    let seat = match hierarchy {
        Ok(Some(hierarchy)) => Seat::At(hierarchy.place),
        Ok(None) => Seat::Off,
        Err(why) => Seat::Missing(why),
    };
    let predrop = settings.predrop;
    let opened = spawn_blocking(move || open(&bpffs, mechanism, room, seat, predrop)).await;
    let Opened { datapath, reader, collector, events, early } =
        opened.map_err(|e| RunError::Begin(std::io::Error::other(e)))??;
    let cover = move || appeared.into_iter().for_each(|(port, master)| early.port(port, master));
    std::thread::Builder::new().name("hydra-ports".to_owned()).spawn(cover).map_err(RunError::Begin)?;
    let generation = datapath.held().generation;
    if state.fresh() && generation != 0 {
        state.distrust_containers();
    }
    let held = held_containers(&datapath);
    let flow_capacity = reader.flow_capacity();
    let kernel = Kernel::new(datapath, collector);

    let (publish, published) = watch::channel(Arc::default());
    let (commands, queue) = mpsc::channel(16);
    let (listeners, _) = broadcast::channel(4096);
    let reader: Arc<dyn crate::published::Reader> = Arc::new(reader);
    let handle = Handle { state: published, commands, reader: reader.clone(), events: listeners.clone() };
    let stop = CancellationToken::new();
    tokio::spawn(async move {
        if let Err(error) = events.run(listeners).await {
            tracing::error!(%error, "events of the kernel are not read any more; counters go on");
        }
    });
    let listen = settings.listen;
    let mut agent = Agent::new(settings, state, kernel, reader, flow_capacity, appearances, publish);
    agent.lasting = lasting;
    agent.distrust_containers(held.into_iter());
    agent.look(snapshot.clone());
    if let Some(why) = start.problem {
        tracing::error!(error = why, "the policy file is not taken over");
        agent.lasting.push(NotEnforced { what: "policy file".to_owned(), why });
    }
    if start.adopt.is_none() && file.is_none() && generation != 0 {
        let why = "the kernel enforces one whose text is lost with the state directory".to_owned();
        agent.lasting.push(NotEnforced { what: "policy".to_owned(), why });
    }
    if let Some((revision, text)) = start.adopt
        && let Err(why) = agent.adopt(revision, text, &format!("revision {revision}"))
    {
        tracing::error!(error = why, "the policy in force is not understood");
        agent.lasting.push(NotEnforced { what: "policy".to_owned(), why });
    }
    let options = api::Options { listen, limits: api::Limits::default() };
    let api = socket.take().map(|socket| tokio::spawn(api::serve(socket, options, handle, stop.clone())));
    let mut looped = Loop::new(agent, inventory, queue);
    let begun = looped.first(snapshot, file).await;
    if begun.is_ok() {
        turn::give_memory_back().await;
        looped.turn(signals).await;
        systemd::stopping();
        tracing::info!("stopping; what is enforced stays enforced");
    }
    stop.cancel();
    looped.agent.flush();
    if let Some(api) = api
        && tokio::time::timeout(FAREWELL, api).await.is_err()
    {
        tracing::warn!("requests in flight were cut off");
    }
    begun
}

struct Opened {
    datapath: Datapath,
    reader: datapath::KernelReader,
    collector: datapath::Collector,
    events: datapath::Events,
    early: datapath::Early,
}

fn open(
    bpffs: &Path,
    mechanism: Mechanism,
    room: Room,
    seat: Seat,
    predrop: Predrop,
) -> Result<Opened, datapath::DatapathError> {
    let datapath = Datapath::open_with(bpffs, mechanism, room)?.with_sockets(seat)?.with_predrop(predrop)?;
    let (reader, collector, events) = (datapath.reader()?, datapath.collector()?, datapath.events()?);
    let early = datapath.early()?;
    Ok(Opened { datapath, reader, collector, events, early })
}

fn held_containers(datapath: &Datapath) -> Vec<hydra_common::id::Container> {
    let held = datapath.held();
    let endpoints = held.endpoints.values().map(|e| e.container);
    let published = held.published.values().map(|p| p.container);
    endpoints.chain(held.links.values().map(|l| l.container)).chain(published).collect()
}

fn mechanism(attach: Attach) -> Mechanism {
    match attach {
        Attach::Auto => Mechanism::Auto,
        Attach::Tcx => Mechanism::Tcx,
        Attach::Clsact => Mechanism::Clsact,
    }
}

/// What the policy file and the state directory make of the start.
fn begin_with(policy: &PolicyFile, state: &State) -> Result<start::Start, RunError> {
    let current = state.current().and_then(|revision| Some((revision, state.text(revision)?)));
    let text = match file::read(&policy.path) {
        Ok(text) => Some(Ok(text)),
        Err(e) if e.kind() == ErrorKind::NotFound && !policy.named => None,
        Err(e) => Some(Err(file::unreadable(&policy.path, &e))),
    };
    let start = start::decide(start::Found { file: text, taken_over: state.policy_file_text(), current });
    match &start {
        start::Start { adopt: None, apply: None, problem: Some(why) } => {
            Err(RunError::Unreadable { path: policy.path.clone(), why: why.clone() })
        }
        start::Start { .. } => Ok(start),
    }
}
