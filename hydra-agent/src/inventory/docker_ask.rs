//! Asks the engine, in the background, for as long as the agent lives: lists when an event or the kernel gives a reason, and
//! inspects what the lists do not tell. What it said last is kept, on disk too, until it speaks again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder, ListNetworksOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::bindings::{self, Bound};
use super::docker::{Signals, read_events};
use super::docker_view::{self as view, Container, DockerEndpoint, View, World};
use super::kept;
use super::namespaces::Process;
use super::snapshot::DockerState;

/// Seconds that one request may take.
const PATIENCE: u64 = 10;
/// One container's inspection waits for that container's lock, which a hanging driver can hold: the others must not wait for it.
const INSPECTION: Duration = Duration::from_secs(3);
/// Inspections at the same time.
const ABREAST: usize = 16;
/// Pauses between attempts to reach the engine: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How often it is tried whether an engine that has never been there is there now.
const ABSENT: Duration = Duration::from_secs(1);
/// Docker sends several events for one start; one look answers all.
const BURST: Duration = Duration::from_millis(10);
/// Pauses before looks that no event asks for, but the kernel's lists do: the first, and the longest.
const DOUBT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What the list said of a container when it was inspected: names, networks, published ports.
type Listed = (Option<Vec<String>>, BTreeMap<String, DockerEndpoint>, BTreeSet<Bound>);

/// The one who asks.
pub(super) struct Asker {
    socket: PathBuf,
    optional: bool,
    every: Duration,
    keep: Option<PathBuf>,
    signals: Arc<Signals>,
    publish: watch::Sender<Arc<View>>,
    listed: BTreeMap<String, Listed>,
}

impl Asker {
    /// With `optional`, a socket that is not there is no fault as long as nothing is known of an engine.
    pub(super) fn new(
        socket: PathBuf,
        optional: bool,
        every: Duration,
        keep: Option<PathBuf>,
        signals: Arc<Signals>,
        publish: watch::Sender<Arc<View>>,
    ) -> Self {
        Self { socket, optional, every, keep, signals, publish, listed: BTreeMap::new() }
    }

    /// Never ends.
    pub(super) async fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let absent = self.optional && !self.socket.exists();
            if absent && self.publish.borrow().world == World::default() {
                // Nothing has ever been there: this host has no Docker, or not yet.
                self.update(|view| (view.state, view.asked) = (DockerState::Off, true));
                tokio::time::sleep(ABSENT).await;
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
        let (signals, publish) = (Arc::clone(&self.signals), self.publish.clone());
        let (containers, named) = mpsc::unbounded_channel();
        let mut answered = false;
        let why = tokio::select! {
            why = read_events(&docker, &signals, containers) => why,
            why = at_once(&docker, &publish, named) => why,
            why = self.looks(&docker, &version, &mut answered) => why,
        };
        (answered, why)
    }

    /// Looks until one fails, and says why.
    async fn looks(&mut self, docker: &Docker, version: &str, answered: &mut bool) -> String {
        let mut doubt = DOUBT.0;
        loop {
            let pending = self.signals.take();
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
            .map(|(id, summary)| {
                let endpoints = view::endpoints_listed(summary);
                (id.clone(), (summary.names.clone(), endpoints, bindings::listed(summary)))
            })
            .filter(|(id, listed)| {
                again.contains(id)
                    || self.listed.get(id) != Some(listed)
                    || known.get(id).is_none_or(|c| Process::of(c.process.pid).ok() != Some(c.process))
            })
            .collect();
        self.update(|view| {
            view.state = DockerState::Up { version: version.to_owned() };
            version.clone_into(&mut view.world.version);
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
                    put(&mut view.world, id, container);
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

    fn update(&self, change: impl FnOnce(&mut View)) {
        update(&self.publish, change);
    }
}

/// Changes the view, and wakes who waits only if it is another one then.
fn update(publish: &watch::Sender<Arc<View>>, change: impl FnOnce(&mut View)) {
    publish.send_if_modified(|shared| {
        let mut view = View::clone(shared);
        change(&mut view);
        let changed = view != **shared;
        if changed {
            *shared = Arc::new(view);
        }
        changed
    });
}

/// Inspects a container as soon as an event names it. A look with whole lists follows, but a container that starts should not
/// wait for those; its inspection waits for its lock, so that the answer to an early event comes when the start is done.
async fn at_once(
    docker: &Docker,
    publish: &watch::Sender<Arc<View>>,
    named: mpsc::UnboundedReceiver<String>,
) -> String {
    let named = stream::unfold(named, async |mut named| named.recv().await.map(|id| (id, named)));
    named
        .for_each_concurrent(ABREAST, async |id| {
            // What goes wrong here goes wrong in the look, too, which says so.
            if let Ok(found) = inspect(docker, &id).await {
                update(publish, |view| put(&mut view.world, id, found));
            }
        })
        .await;
    // The reader of events holds the other end for as long as the session lasts.
    std::future::pending().await
}

fn put(world: &mut World, id: String, found: Option<Container>) {
    match found {
        Some(container) => world.containers.insert(id, container),
        None => world.containers.remove(&id),
    };
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

/// An error with its causes: the outermost alone says "error trying to connect".
pub(super) fn told(error: &ApiError) -> String {
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
