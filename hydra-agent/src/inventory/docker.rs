//! The engine's last word for whoever wants it, without waiting, and the signals that make the background ask again. An engine
//! that is absent, restarts or is another one than before is normal life.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::docker_ask::{Asker, told};
use super::docker_view::{View, World};
use super::{Engine, kept};

/// The engine's usual socket.
const USUAL: &str = "/var/run/docker.sock";
/// Events up to that many seconds before the first list are sent again, so that nothing falls between the list and the stream.
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
        let keep = keep.map(Path::to_owned);
        let asker = Asker::new(socket, optional, every, keep, Arc::clone(&signals), publish);
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
pub(super) struct Signals {
    pub(super) wake: Notify,
    pending: Mutex<Pending>,
}

/// What a look is to do beyond what the lists say.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// An event came.
    pub(super) event: bool,
    /// The kernel disagrees.
    pub(super) doubted: bool,
    /// Inspect these containers again.
    pub(super) again: BTreeSet<String>,
}

impl Signals {
    pub(super) fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far, once.
    pub(super) fn take(&self) -> Pending {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn doubt(&self, containers: impl IntoIterator<Item = String>) {
        let mut pending = self.lock();
        pending.again.extend(containers);
        pending.doubted = true;
        drop(pending);
        self.wake.notify_one();
    }

    /// Takes an event up, and gives the container that it is about.
    fn note(&self, event: EventMessage) -> Option<String> {
        let action = event.action.as_deref().unwrap_or_default();
        if NOISE.iter().any(|noise| action.starts_with(noise)) {
            return None;
        }
        // A container's event has its id; a network's connect and disconnect name the container in an attribute.
        let container = event.actor.and_then(|actor| match event.typ {
            Some(EventMessageTypeEnum::CONTAINER) => actor.id,
            _ => actor.attributes?.remove("container"),
        });
        let mut pending = self.lock();
        pending.event = true;
        pending.again.extend(container.clone());
        drop(pending);
        self.wake.notify_one();
        container
    }
}

/// Reads events until the stream ends, and says why it did. An event that can't be read ends it too: the next session begins
/// with a whole list, and that is what an unknown event asks for.
pub(super) async fn read_events(
    docker: &Docker,
    signals: &Signals,
    containers: mpsc::UnboundedSender<String>,
) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let filters = HashMap::from([("type", vec!["container", "network"])]);
    let options = EventsOptionsBuilder::default()
        .since(&now.saturating_sub(OVERLAP).to_string())
        .filters(&filters)
        .build();
    let mut events = std::pin::pin!(docker.events(Some(options)));
    while let Some(event) = events.next().await {
        match event {
            // Nobody takes it any more when the session is over.
            Ok(event) => drop(signals.note(event).map(|container| containers.send(container))),
            Err(error) => return format!("the stream of events ended: {}", told(&error)),
        }
    }
    "the stream of events ended".to_owned()
}
