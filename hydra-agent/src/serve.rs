//! The loop: observe, reconcile, execute, publish. Messages only say "look again"; what is seen decides.

mod agent;
mod apply;
mod cut;
mod errors;
mod kernel;
mod log;
mod routing;
mod start;
mod systemd;
mod times;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::agent::Agent;
use self::apply::Asked;
pub use self::errors::RunError;
use self::kernel::Kernel;
use crate::api::{self, ControlSocket};
use crate::datapath::{self, Datapath, Mechanism};
use crate::inventory::snapshot::Snapshot;
use crate::inventory::{self, Engine, Inventory};
use crate::placement;
use crate::published::{ApplyError, ApplyReport, Command, Handle, NotEnforced};
use crate::settings::{Attach, Docker, Flags, PolicyFile, Settings};
use crate::state::{Containers, State};

/// How often the kernel's tables and hooks are looked at.
const VERIFY: Duration = Duration::from_secs(2);
/// The first wait after the kernel refused something; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long requests in flight may take when the agent ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// Larger than any policy; a device or a log named by mistake is not read to its end.
const LARGEST_POLICY: u64 = 16 << 20;

/// `hydra-agent run`: enforces until told to stop.
pub fn run(flags: Flags) -> Result<(), RunError> {
    let settings = Settings::load(flags)?;
    log::start(&settings.log).map_err(RunError::Log)?;
    runtime()?.block_on(serve(settings))
}

/// `hydra-agent purge`: the end of enforcement. Gives what was taken away.
pub fn purge(flags: Flags) -> Result<Vec<String>, RunError> {
    let settings = Settings::load(flags)?;
    log::start(&settings.log).map_err(RunError::Log)?;
    if State::in_use(&settings.directories.state) {
        return Err(RunError::AgentRuns(settings.directories.state));
    }
    let bpffs = settings.directories.bpffs.clone();
    let purged = datapath::purge(&bpffs)?;
    let (mut removed, mut failed) = (purged.removed, purged.failed);
    let routes = runtime()?.block_on(async {
        let mut inventory = Inventory::new(watching(&settings))?;
        let snapshot = inventory.observe().await;
        Ok::<_, RunError>(routing::remove_all(&snapshot).await)
    })?;
    removed.extend(routes.0);
    failed.extend(routes.1);
    if failed.is_empty() { Ok(removed) } else { Err(RunError::Purge(failed)) }
}

fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Begin)
}

/// Where the inventory looks.
fn watching(settings: &Settings) -> inventory::Settings {
    inventory::Settings {
        engine: match &settings.docker {
            Docker::Auto => Engine::Auto,
            Docker::None => Engine::None,
            Docker::Socket(path) => Engine::Socket(path.clone()),
        },
        netns_dir: settings.netns_dir.clone(),
        keep: Some(settings.directories.state.join("docker.json")),
        ..inventory::Settings::default()
    }
}

async fn serve(settings: Settings) -> Result<(), RunError> {
    let mut signals = Signals::new().map_err(RunError::Begin)?;
    // Whoever comes second fails here, before it has touched anything.
    let socket = ControlSocket::bind(&settings.directories.run)?;
    let (mut state, broken) = State::open(&settings.directories.state)?;
    let mut lasting = Vec::new();
    for file in &broken {
        tracing::error!(path = %file.path.display(), why = file.why, "a file of the state directory is broken");
        lasting.push(NotEnforced { what: format!("state {}", file.path.display()), why: file.why.clone() });
    }
    let start = begin_with(&settings.policy, &state)?;
    let mut inventory = Inventory::new(watching(&settings))?;
    let snapshot = inventory.observe().await;
    let file = start.apply.map(|text| asked_by_file(&settings.policy.path, text));
    if let (None, Some(asked)) = (&start.adopt, &file) {
        let place =
            |claims: &_| placement::place(claims, &snapshot, settings.labels, &mut Containers::default());
        apply::check_first(asked, place).map_err(RunError::Policy)?;
    }

    let (bpffs, mechanism) = (settings.directories.bpffs.clone(), mechanism(settings.attach));
    let opened = spawn_blocking(move || open(&bpffs, mechanism)).await;
    let Opened { datapath, reader, collector, events } =
        opened.map_err(|e| RunError::Begin(std::io::Error::other(e)))??;
    if state.fresh() && datapath.held().generation != 0 {
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
    let mut agent = Agent::new(settings, state, kernel, reader, flow_capacity, publish);
    agent.lasting = lasting;
    agent.distrust_containers(held.into_iter());
    agent.look(snapshot.clone(), None);
    if let Some(why) = start.problem {
        tracing::error!(error = why, "the policy file is not taken over");
        agent.lasting.push(NotEnforced { what: "policy file".to_owned(), why });
    }
    if let Some((revision, text)) = start.adopt
        && let Err(why) = agent.adopt(revision, text, &format!("revision {revision}"))
    {
        tracing::error!(error = why, "the policy in force is not understood");
        agent.lasting.push(NotEnforced { what: "policy".to_owned(), why });
    }
    let api = tokio::spawn(api::serve(
        socket,
        api::Options { listen, limits: api::Limits::default() },
        handle,
        stop.clone(),
    ));
    let mut looped = Loop { agent, inventory, queue, wait: FIRST_WAIT, retry: None, ready: false };
    looped.first(snapshot, file).await?;
    looped.turn(&mut signals).await;

    systemd::stopping();
    tracing::info!("stopping; what is enforced stays enforced");
    stop.cancel();
    looped.agent.flush();
    if tokio::time::timeout(FAREWELL, api).await.is_err() {
        tracing::warn!("requests in flight were cut off");
    }
    Ok(())
}

struct Opened {
    datapath: Datapath,
    reader: datapath::KernelReader,
    collector: datapath::Collector,
    events: datapath::Events,
}

fn open(bpffs: &Path, mechanism: Mechanism) -> Result<Opened, datapath::DatapathError> {
    let datapath = Datapath::open(bpffs, mechanism)?;
    let (reader, collector, events) = (datapath.reader()?, datapath.collector()?, datapath.events()?);
    Ok(Opened { datapath, reader, collector, events })
}

fn held_containers(datapath: &Datapath) -> Vec<hydra_common::id::Container> {
    let held = datapath.held();
    let endpoints = held.endpoints.values().map(|e| e.container);
    endpoints.chain(held.links.values().map(|l| l.container)).collect()
}

fn mechanism(attach: Attach) -> Mechanism {
    match attach {
        Attach::Auto => Mechanism::Auto,
        Attach::Tcx => Mechanism::Tcx,
        Attach::Clsact => Mechanism::Clsact,
    }
}

/// What the policy file and the state directory make of the start.
fn begin_with(file: &PolicyFile, state: &State) -> Result<start::Start, RunError> {
    let current = state.current().and_then(|revision| Some((revision, state.text(revision)?)));
    let text = match read_policy(&file.path) {
        Ok(text) => Some(Ok(text)),
        Err(e) if e.kind() == ErrorKind::NotFound && !file.named => None,
        Err(e) => Some(Err(unreadable(&file.path, &e))),
    };
    let start = start::decide(start::Found { file: text, taken_over: state.policy_file_text(), current });
    match &start {
        start::Start { adopt: None, apply: None, problem: Some(why) } => Err(RunError::NoPolicy(why.clone())),
        start::Start { .. } => Ok(start),
    }
}

fn read_policy(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    if file.take(LARGEST_POLICY + 1).read_to_end(&mut bytes)? as u64 > LARGEST_POLICY {
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, "it is larger than any policy"));
    }
    String::from_utf8(bytes).map_err(|_| std::io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("the policy file `{}` cannot be read: {error}", path.display())
}

fn asked_by_file(path: &Path, text: String) -> Asked {
    Asked { text, source: path.display().to_string(), by: "--policy".to_owned(), dry_run: false }
}

/// SIGTERM and SIGINT end the process, SIGHUP takes the policy file over.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// `true`: stop. `false`: read again.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.hang_up.recv() => false,
        }
    }
}

struct Loop {
    agent: Agent,
    inventory: Inventory,
    queue: mpsc::Receiver<Command>,
    wait: Duration,
    retry: Option<Instant>,
    ready: bool,
}

impl Loop {
    /// The policy in force, then the policy file if it has to be taken over. Only without any policy in force is a refusal the end.
    async fn first(&mut self, snapshot: Snapshot, file: Option<Asked>) -> Result<(), RunError> {
        let alone = self.agent.policy.is_none();
        let held = alone || self.pass(snapshot, None).await;
        let taken = match file {
            None => {
                self.agent.publish();
                true
            }
            Some(asked) => match self.apply_file(asked).await {
                Ok(_) => true,
                Err(ApplyError::Refused(problems)) if alone => return Err(RunError::Policy(problems)),
                Err(error) if alone => return Err(RunError::NoPolicy(error.to_string())),
                Err(_) => false,
            },
        };
        if held || taken {
            self.settled();
        }
        Ok(())
    }

    /// Until a signal says stop.
    async fn turn(&mut self, signals: &mut Signals) {
        let period = systemd::watchdog().map_or(VERIFY, |limit| VERIFY.min(limit / 3));
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry = self.retry.unwrap_or_else(|| Instant::now() + LONGEST_WAIT);
            tokio::select! {
                biased;
                stop = signals.next() => {
                    if stop {
                        return;
                    }
                    self.reload().await;
                }
                Some(command) = self.queue.recv() => self.command(command).await,
                () = tokio::time::sleep_until(retry.into()), if self.retry.is_some() => self.look(None).await,
                // Before the burst that it waits out, the port was there.
                () = self.inventory.changed(), if self.retry.is_none() => {
                    self.look(Instant::now().checked_sub(inventory::BURST)).await;
                }
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    async fn look(&mut self, since: Option<Instant>) {
        let snapshot = self.inventory.observe().await;
        if self.pass(snapshot, since).await {
            self.settled();
        }
    }

    /// `false`: the kernel did not take it, and is asked again after a while.
    async fn pass(&mut self, snapshot: Snapshot, since: Option<Instant>) -> bool {
        let done = self.agent.pass(snapshot, since).await.is_ok();
        if !done {
            self.retry = Some(Instant::now() + self.wait);
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
        done
    }

    /// The kernel holds what it should.
    fn settled(&mut self) {
        (self.retry, self.wait) = (None, FIRST_WAIT);
        let status = match &self.agent.policy {
            Some(p) => format!("enforcing {} revision {}", p.model.name, p.revision),
            None => "no policy has been applied".to_owned(),
        };
        if self.ready {
            systemd::status(&status);
        } else {
            self.ready = true;
            tracing::info!(status, "ready");
            systemd::ready(&status);
        }
    }

    /// The regular look at the kernel's side. The sign of life comes after it: a loop that hangs in the kernel is not alive.
    async fn tick(&mut self) {
        if self.retry.is_none() && self.agent.verify().await {
            self.look(None).await;
            self.agent.verify_mended().await;
        }
        self.agent.kernel.collect().await;
        self.agent.flush();
        systemd::alive();
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Apply { text, source, by, dry_run, reply } => {
                let done = self.apply(Asked { text, source, by, dry_run }).await;
                // Whoever asked may be gone; what was done is done.
                drop(reply.send(done));
            }
            Command::Rollback { revision, by, reply } => {
                let done = match self.earlier(revision) {
                    Ok((revision, text)) => {
                        let source = format!("revision {revision}");
                        self.apply(Asked {
                            text,
                            source,
                            by: format!("{by} rollback to {revision}"),
                            dry_run: false,
                        })
                        .await
                    }
                    Err(error) => Err(error),
                };
                drop(reply.send(done));
            }
        }
    }

    async fn apply(&mut self, asked: Asked) -> Result<ApplyReport, ApplyError> {
        let dry_run = asked.dry_run;
        let snapshot = self.inventory.observe().await;
        let done = self.agent.apply(asked, snapshot).await;
        if matches!(done, Err(ApplyError::Kernel(_))) {
            // The tables may be half written in the bank that nothing reads: the next pass puts them in order.
            self.retry = Some(Instant::now() + self.wait);
        } else if done.is_ok() && !dry_run && self.ready {
            // Not before: at the start whoever waits for readiness waits for the whole of it.
            self.settled();
        }
        done
    }

    /// The revision to go back to, with its text.
    fn earlier(&self, revision: Option<u32>) -> Result<(u32, String), ApplyError> {
        let state = &self.agent.state;
        let current = state.current().unwrap_or(0);
        let before = || state.history().iter().rev().map(|r| r.revision).find(|r| *r < current);
        let revision = revision.or_else(before).ok_or(ApplyError::NoRevision(current.saturating_sub(1)))?;
        let listed = state.history().iter().any(|r| r.revision == revision);
        let text = state.text(revision).filter(|_| listed).ok_or(ApplyError::NoRevision(revision))?;
        Ok((revision, text))
    }

    /// SIGHUP.
    async fn reload(&mut self) {
        let path = self.agent.settings.policy.path.clone();
        let text = match read_policy(&path) {
            Ok(text) => text,
            Err(e) => {
                tracing::error!(error = unreadable(&path, &e), "the policy file is not taken over");
                return;
            }
        };
        if self.agent.policy.as_ref().is_some_and(|p| p.text == text) {
            tracing::info!(path = %path.display(), "the policy file is in force already");
            return;
        }
        drop(self.apply_file(asked_by_file(&path, text)).await);
    }

    /// Takes the policy file over; a refusal is said in the log and in the status, the policy before stays.
    async fn apply_file(&mut self, asked: Asked) -> Result<ApplyReport, ApplyError> {
        let text = asked.text.clone();
        let done = self.apply(asked).await;
        let lasting = &mut self.agent.lasting;
        lasting.retain(|n| n.what != "policy file");
        match &done {
            Ok(_) => {
                if let Err(error) = self.agent.state.set_policy_file_text(&text) {
                    tracing::warn!(%error, "the policy file will be taken over again at the next start");
                }
            }
            Err(error) => {
                let why = match error {
                    ApplyError::Refused(problems) => {
                        format!(
                            "{error}: {}",
                            problems.iter().map(|d| d.message.as_str()).collect::<Vec<_>>().join("; ")
                        )
                    }
                    ApplyError::NoRevision(_) | ApplyError::Kernel(_) | ApplyError::Disk(_) => {
                        error.to_string()
                    }
                };
                tracing::error!(
                    error = why,
                    "the policy file is not taken over; the policy before stays in force"
                );
                lasting.push(NotEnforced { what: "policy file".to_owned(), why });
            }
        }
        self.agent.publish();
        done
    }
}
