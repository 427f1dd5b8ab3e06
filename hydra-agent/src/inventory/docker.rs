//! The engine, asked in the background: whoever wants to know takes the last answer and never waits for it. An engine that is
//! absent, restarts or is another one than before is normal life; what it said last is kept, on disk too, until it speaks again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error as ApiError;
use bollard::models::{ContainerSummary, EventMessage};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::docker_view::{self as view, Container, DockerEndpoint, View, World};
use super::namespaces::Process;
use super::snapshot::DockerState;
use super::{Engine, kept};

/// The engine's usual socket.
const USUAL: &str = "/var/run/docker.sock";
/// Seconds that one request may take.
const PATIENCE: u64 = 10;
/// One container's inspection waits for that container's lock, which a hanging driver can hold: the others must not wait for it.
const INSPECTION: Duration = Duration::from_secs(3);
/// Inspections at the same time.
const ABREAST: usize = 8;
/// Pauses between attempts to reach the engine: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Docker sends several events for one start; one look answers all.
const BURST: Duration = Duration::from_millis(10);
/// Pauses before looks that no event asks for, but the kernel's lists do: the first, and the longest.
const DOUBT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Events up to that long before the first list are sent again, so that nothing falls between the list and the stream.
const OVERLAP: u64 = 5;
/// Beginnings of container events that change nothing here. Everything else, known or not, asks for a look.
const NOISE: [&str; 11] = [
    "exec_create",
    "exec_start",
    "exec_die",
    "exec_detach",
    "health_status",
    "attach",
    "detach",
    "resize",
    "top",
    "copy",
    "archive-path",
];

/// The engine's last word, and the task that gets it.
#[derive(Debug)]
pub struct Client {
    view: watch::Receiver<Arc<View>>,
    signals: Arc<Signals>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Starts asking; `None` if there is to be no engine. With `keep`, what was known before a restart is known at once.
    pub fn start(engine: &Engine, every: Duration, keep: Option<&Path>) -> Option<Self> {
        let (socket, optional) = match engine {
            Engine::None => return None,
            Engine::Auto => (PathBuf::from(USUAL), true),
            Engine::Socket(path) => (path.clone(), false),
        };
        let (mut problems, mut world) = (Vec::new(), World::default());
        if let Some(file) = keep {
            match kept::load(file) {
                Ok(found) => world = found,
                Err(problem) => problems.push(problem),
            }
        }
        let (publish, view) = watch::channel(Arc::new(View { world, problems, ..View::default() }));
        let signals = Arc::new(Signals::default());
        let asker = Asker {
            socket,
            optional,
            every,
            keep: keep.map(Path::to_owned),
            signals: Arc::clone(&signals),
            publish,
            listed: BTreeMap::new(),
        };
        Some(Self { view, signals, task: tokio::spawn(asker.run()) })
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Returns when something else is known than at the last call of [`Self::seen`]. Never, if the task is gone.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// From here on only newer views are changes.
    pub fn seen(&mut self) {
        self.view.mark_unchanged();
    }

    /// Waits until the engine has answered or failed once, but not longer than that.
    pub async fn asked(&mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.view.wait_for(|view| view.asked)).await;
    }

    /// The kernel shows something that Docker has not explained: ask again soon, about those containers whatever the list says.
    pub fn doubt(&self, containers: impl IntoIterator<Item = String>) {
        self.signals.doubt(containers);
    }
}

/// What asks for a look.
#[derive(Debug, Default)]
struct Signals {
    wake: Notify,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// An event came.
    event: bool,
    /// The kernel disagrees.
    doubted: bool,
    /// Inspect these again.
    again: BTreeSet<String>,
}

impl Signals {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubt(&self, containers: impl IntoIterator<Item = String>) {
        let mut pending = self.lock();
        pending.again.extend(containers);
        pending.doubted = true;
        drop(pending);
        self.wake.notify_one();
    }

    fn note(&self, event: &EventMessage) {
        let action = event.action.as_deref().unwrap_or_default();
        if NOISE.iter().any(|noise| action.starts_with(noise)) {
            return;
        }
        let mut pending = self.lock();
        pending.event = true;
        if let Some(actor) = &event.actor {
            // A container's event has its id; a network's connect and disconnect name the container in an attribute.
            pending.again.extend(actor.id.clone());
            pending.again.extend(actor.attributes.as_ref().and_then(|a| a.get("container")).cloned());
        }
        drop(pending);
        self.wake.notify_one();
    }
}

/// What the list said of a container when it was inspected.
type Listed = (Option<Vec<String>>, BTreeMap<String, DockerEndpoint>);

struct Asker {
    socket: PathBuf,
    optional: bool,
    every: Duration,
    keep: Option<PathBuf>,
    signals: Arc<Signals>,
    publish: watch::Sender<Arc<View>>,
    listed: BTreeMap<String, Listed>,
}

impl Asker {
    async fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let absent = self.optional && !self.socket.exists();
            if absent && self.publish.borrow().world == World::default() {
                // Nothing has ever been there: this host has no Docker, or not yet.
                self.update(|view| (view.state, view.asked) = (DockerState::Off, true));
                tokio::time::sleep(RETRY.1.min(Duration::from_secs(1))).await;
                continue;
            }
            let (answered, error) = self.session().await;
            let down = DockerState::Down { error: error.clone() };
            if self.publish.borrow().state != down {
                tracing::warn!(socket = %self.socket.display(), %error, "docker does not answer");
            }
            self.update(|view| (view.state, view.asked) = (down, true));
            pause = if answered { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            tokio::time::sleep(pause).await;
        }
    }

    /// From one connection to its end: whether there was an answer at all, and why it ended.
    async fn session(&mut self) -> (bool, String) {
        let Some(socket) = self.socket.to_str() else {
            return (false, format!("the path `{}` is not UTF-8", self.socket.display()));
        };
        let docker = match Docker::connect_with_unix(socket, PATIENCE, API_DEFAULT_VERSION) {
            Ok(docker) => docker,
            Err(error) => return (false, told(&error)),
        };
        let version = match docker.version().await {
            Ok(version) => version.version.unwrap_or_default(),
            Err(error) => return (false, told(&error)),
        };
        tracing::info!(socket, version, "docker answers");
        // Whatever was known may have changed meanwhile.
        self.listed.clear();
        let signals = Arc::clone(&self.signals);
        let mut answered = false;
        let why = tokio::select! {
            why = read_events(&docker, &signals) => why,
            why = self.looks(&docker, &version, &mut answered) => why,
        };
        (answered, why)
    }

    /// Looks until one fails, and says why.
    async fn looks(&mut self, docker: &Docker, version: &str, answered: &mut bool) -> String {
        let mut doubt = DOUBT.0;
        loop {
            let pending = std::mem::take(&mut *self.signals.lock());
            doubt = if pending.event || !pending.doubted { DOUBT.0 } else { (doubt * 2).min(DOUBT.1) };
            let before = Arc::clone(&self.publish.borrow());
            if let Err(error) = self.look(docker, version, &pending.again).await {
                return told(&error);
            }
            *answered = true;
            // Docker lists a new address some time after its event. Ask again until it explains what the kernel shows, or until
            // that has taken too long to be on its way.
            if pending.doubted && doubt < DOUBT.1 && Arc::ptr_eq(&before, &self.publish.borrow()) {
                self.signals.doubt(pending.again);
            }
            self.wait(doubt).await;
        }
    }

    /// Until the next look is due.
    async fn wait(&self, doubt: Duration) {
        let mut due = Instant::now() + self.every;
        loop {
            tokio::select! {
                () = self.signals.wake.notified() => {
                    let (event, doubted) = {
                        let pending = self.signals.lock();
                        (pending.event, pending.doubted)
                    };
                    if event {
                        return tokio::time::sleep(BURST).await;
                    }
                    if doubted {
                        due = due.min(Instant::now() + doubt);
                    }
                }
                () = tokio::time::sleep_until(due) => return,
            }
        }
    }

    async fn look(
        &mut self,
        docker: &Docker,
        version: &str,
        again: &BTreeSet<String>,
    ) -> Result<(), ApiError> {
        let running = ListContainersOptionsBuilder::default().all(false).build();
        let (networks, containers) = tokio::try_join!(
            docker.list_networks(None::<ListNetworksOptions>),
            docker.list_containers(Some(running)),
        )?;
        let (networks, mut problems) = view::networks(networks);
        let containers: BTreeMap<String, ContainerSummary> =
            containers.into_iter().filter_map(|c| Some((c.id.clone()?, c))).collect();
        self.listed.retain(|id, _| containers.contains_key(id));
        let known = self.publish.borrow().world.containers.clone();
        let stale: Vec<(String, Listed)> = containers
            .iter()
            .map(|(id, summary)| (id.clone(), (summary.names.clone(), view::endpoints_listed(summary))))
            .filter(|(id, listed)| {
                again.contains(id)
                    || self.listed.get(id) != Some(listed)
                    || known.get(id).is_none_or(|c| Process::of(c.process.pid).ok() != Some(c.process))
            })
            .collect();
        self.update(|view| {
            view.state = DockerState::Up { version: version.to_owned() };
            view.world.networks = networks;
            view.world.containers.retain(|id, _| containers.contains_key(id));
        });
        let inspections = stale.into_iter().map(async |(id, listed)| {
            let answer = inspect(docker, &id).await;
            (id, listed, answer)
        });
        let mut answers = stream::iter(inspections).buffer_unordered(ABREAST).ready_chunks(ABREAST);
        while let Some(chunk) = answers.next().await {
            let mut found: Vec<(String, Option<Container>)> = Vec::new();
            for (id, listed, answer) in chunk {
                match answer {
                    Ok(container) => {
                        self.listed.insert(id.clone(), listed);
                        found.push((id, container));
                    }
                    Err(error) => {
                        self.listed.remove(&id);
                        self.signals.doubt([]);
                        problems.push(format!(
                            "container `{}` could not be inspected, what was known of it is kept: {error}",
                            view::short(&id)
                        ));
                    }
                }
            }
            self.update(|view| {
                for (id, container) in found {
                    match container {
                        Some(container) => view.world.containers.insert(id, container),
                        None => view.world.containers.remove(&id),
                    };
                }
            });
        }
        problems.sort_unstable();
        self.update(|view| (view.problems, view.asked) = (problems, true));
        self.remember().await;
        Ok(())
    }

    /// Keeps the world on disk, so that an agent that starts while Docker is down knows whose port is whose.
    async fn remember(&self) {
        let Some(file) = self.keep.clone() else { return };
        let world = self.publish.borrow().world.clone();
        let stored = tokio::task::spawn_blocking(move || kept::store(&file, &world)).await;
        if let Ok(Err(problem)) = stored {
            self.update(|view| view.problems.push(problem));
        }
    }

    /// Changes the view, and wakes who waits only if it is another one then.
    fn update(&self, change: impl FnOnce(&mut View)) {
        self.publish.send_if_modified(|shared| {
            let mut view = View::clone(shared);
            change(&mut view);
            let changed = view != **shared;
            if changed {
                *shared = Arc::new(view);
            }
            changed
        });
    }
}

/// `None` if it has gone, or has no process.
async fn inspect(docker: &Docker, id: &str) -> Result<Option<Container>, String> {
    let answer = docker.inspect_container(id, None::<InspectContainerOptions>);
    match tokio::time::timeout(INSPECTION, answer).await {
        Ok(Ok(answer)) => Ok(view::container(answer, |pid| Process::of(pid).ok())),
        Ok(Err(ApiError::DockerResponseServerError { status_code: 404, .. })) => Ok(None),
        Ok(Err(error)) => Err(told(&error)),
        Err(_) => Err(format!("no answer in {} seconds", INSPECTION.as_secs())),
    }
}

/// Reads events until the stream ends, and says why it did. An event that can't be read ends it too: the next session begins
/// with a whole list, and that is what an unknown event asks for.
async fn read_events(docker: &Docker, signals: &Signals) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let filters = std::collections::HashMap::from([("type", vec!["container", "network"])]);
    let options = EventsOptionsBuilder::default()
        .since(&now.saturating_sub(OVERLAP).to_string())
        .filters(&filters)
        .build();
    let mut events = std::pin::pin!(docker.events(Some(options)));
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => signals.note(&event),
            Err(error) => return format!("the stream of events ended: {}", told(&error)),
        }
    }
    "the stream of events ended".to_owned()
}

/// An error with its causes: the outermost alone says "error trying to connect".
fn told(error: &ApiError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
