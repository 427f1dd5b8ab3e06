//! The loop itself: what wakes it, and what it does then. Messages only say "look again"; what is seen decides.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;

use super::agent::Agent;
use super::apply::Asked;
use super::{RunError, file, systemd};
use crate::datapath;
use crate::diagnostic::{Diagnostics, Severity};
use crate::inventory::Inventory;
use crate::inventory::snapshot::Snapshot;
use crate::published::{ApplyError, ApplyReport, Command, NotEnforced, RevisionView};

/// How often the kernel's tables or its hooks are looked at, in turns: what somebody else changes is to be put right within two seconds,
/// of which the mending is to have a third.
const VERIFY: Duration = Duration::from_millis(600);
/// Every fourth look takes silent flows out of the table and keeps numbers on disk.
const UPKEEP: u32 = 4;
/// The first wait after the kernel refused something; doubled up to [`LONGEST_WAIT`]. New containers wait with it, closed.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// After an apply: memory that the next one would take again is not given back before it. One that changes nothing is not followed by
/// another so surely, and whoever asks for many of them puts nothing off.
const SPENT: Duration = Duration::from_secs(10);

/// SIGTERM and SIGINT end the process, SIGHUP takes the policy file over.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Self> {
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

pub(super) struct Loop {
    pub agent: Agent,
    inventory: Inventory,
    queue: mpsc::Receiver<Command>,
    wait: Duration,
    retry: Option<Instant>,
    ready: bool,
    ticks: u32,
    /// When the service manager was told last that this one is alive.
    alive: Option<Instant>,
    /// From when on the memory is to be given back that a text took.
    spent: Option<Instant>,
}

impl Loop {
    pub fn new(agent: Agent, inventory: Inventory, queue: mpsc::Receiver<Command>) -> Self {
        Self {
            agent,
            inventory,
            queue,
            wait: FIRST_WAIT,
            retry: None,
            ready: false,
            ticks: 0,
            alive: None,
            spent: None,
        }
    }

    /// The policy in force, then the policy file if it has to be taken over. Only without any policy in force is a refusal the end.
    pub async fn first(&mut self, snapshot: Snapshot, file: Option<Asked>) -> Result<(), RunError> {
        let alone = self.agent.policy.is_none();
        let held = alone || self.pass(snapshot).await;
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
    pub async fn turn(&mut self, signals: &mut Signals) {
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
                // Before everything that can come without end: the sign of life must not wait for silence.
                _ = tick.tick() => self.tick().await,
                Some(command) = self.queue.recv() => self.command(command).await,
                () = tokio::time::sleep_until(retry.into()), if self.retry.is_some() => self.look().await,
                () = self.inventory.changed(), if self.retry.is_none() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let snapshot = self.inventory.observe().await;
        if self.pass(snapshot).await {
            self.settled();
        }
    }

    /// `false`: the kernel did not take it, and is asked again after a while.
    async fn pass(&mut self, snapshot: Snapshot) -> bool {
        let done = self.agent.pass(snapshot).await.is_ok();
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
            self.look().await;
            self.agent.verify_mended().await;
        } else if self.retry.is_none() {
            self.agent.settle().await;
        }
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(UPKEEP) {
            self.agent.kernel.collect();
            self.agent.flush();
            if self.spent.take_if(|due| *due <= Instant::now()).is_some() {
                give_memory_back().await;
            }
        }
        // Not each time: it is asked for much more seldom.
        let often = systemd::watchdog().map_or(LONGEST_WAIT, |limit| limit / 10);
        if self.alive.is_none_or(|last| last.elapsed() >= often) {
            self.alive = Some(Instant::now());
            systemd::alive();
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Apply { text, source, by, dry_run, reply } => {
                let done = self.apply(Asked { text: text.into(), source, by, dry_run, restores: None }).await;
                // Whoever asked may be gone; what was done is done.
                drop(reply.send(done));
            }
            Command::Rollback { revision, by, reply } => {
                let done = match self.earlier(revision) {
                    Ok((revision, text)) => {
                        let source = format!("revision {revision}");
                        self.apply(Asked {
                            text: text.into(),
                            source,
                            by: format!("{by} rollback to {revision}"),
                            dry_run: false,
                            restores: Some(revision),
                        })
                        .await
                    }
                    Err(error) => Err(error),
                };
                drop(reply.send(done));
            }
            Command::Show { revision, reply } => drop(reply.send(self.kept(revision))),
        }
    }

    async fn apply(&mut self, asked: Asked) -> Result<ApplyReport, ApplyError> {
        let dry_run = asked.dry_run;
        datapath::keep_memory();
        let done = self.agent.apply(asked, self.inventory.observe()).await;
        let kept = if done.is_ok() && !dry_run { SPENT } else { Duration::ZERO };
        self.spent = Some(Instant::now() + kept);
        if matches!(done, Err(ApplyError::Kernel(_))) {
            // The tables may be half written in the bank that nothing reads: the next pass puts them in order.
            self.retry = Some(Instant::now() + self.wait);
        } else if done.is_ok() && !dry_run && self.ready {
            // Not before: at the start whoever waits for readiness waits for the whole of it.
            self.settled();
        } else if dry_run || done.is_err() {
            // This look may have been the only word of a change in the world: a pass has to see it.
            self.retry.get_or_insert(Instant::now());
        }
        done
    }

    /// The revision to go back to, with its text.
    fn earlier(&self, revision: Option<u32>) -> Result<(u32, String), ApplyError> {
        let state = &self.agent.state;
        let before = || before(state.history(), state.current().unwrap_or(0));
        let revision = revision.or_else(before).ok_or(ApplyError::NoEarlier)?;
        self.kept(revision).map(|text| (revision, text)).ok_or(ApplyError::NoRevision(revision))
    }

    /// The text of a revision of the history.
    fn kept(&self, revision: u32) -> Option<String> {
        let state = &self.agent.state;
        let listed = state.history().iter().any(|r| r.revision == revision);
        state.text(revision).filter(|_| listed)
    }

    /// SIGHUP.
    async fn reload(&mut self) {
        let path = self.agent.settings.policy.path.clone();
        let text = match file::read(&path) {
            Ok(text) => text,
            Err(e) => {
                tracing::error!(error = file::unreadable(&path, &e), "the policy file is not taken over");
                return;
            }
        };
        if self.agent.policy.as_ref().is_some_and(|p| *p.text == text) {
            tracing::info!(path = %path.display(), "the policy file is in force already");
            return;
        }
        drop(self.apply_file(file::asked(&path, text)).await);
    }

    /// Takes the policy file over; a refusal is said in the log and in the status, the policy before stays.
    async fn apply_file(&mut self, asked: Asked) -> Result<ApplyReport, ApplyError> {
        let (text, path) = (asked.text.clone(), asked.source.clone());
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
                    ApplyError::Refused(problems) => refused(problems, &path),
                    ApplyError::NoRevision(_)
                    | ApplyError::NoEarlier
                    | ApplyError::Kernel(_)
                    | ApplyError::Disk(_) => error.to_string(),
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

/// Waits for it, a few milliseconds: an apply meanwhile would have the limits set that it keeps its memory by.
pub(super) async fn give_memory_back() {
    if let Err(error) = spawn_blocking(datapath::give_memory_back).await {
        tracing::warn!(%error, "memory is not given back");
    }
}

/// Why a file is not taken over: its first error, how many there are more, and who tells them.
fn refused(problems: &Diagnostics, path: &str) -> String {
    let mut errors = problems.iter().filter(|d| d.severity == Severity::Error);
    let first = errors.next().map_or("it is refused", |d| d.message.as_str());
    let more = match errors.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("the policy is refused: {first}{more}; `hydractl policy validate {path}` shows where")
}

/// The revision before the current one. Where that took an earlier one back, the one before that: going back again goes on backwards,
/// not to and fro.
fn before(history: &[RevisionView], current: u32) -> Option<u32> {
    let now = history.iter().find(|r| r.revision == current);
    let at = now.and_then(|r| r.restores).unwrap_or(current);
    history.iter().rev().map(|r| r.revision).find(|r| *r < at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Diagnostic;

    #[test]
    fn of_many_mistakes_in_the_policy_file_the_first_is_told_and_who_tells_the_rest() {
        let mut problems = Diagnostics::new("p.yaml", "");
        problems.push(Diagnostic::warning("a warning is none of them"));
        problems.push(Diagnostic::error("unknown tier `appz`"));
        let shown = "the policy is refused: unknown tier `appz`";
        let hint = "`hydractl policy validate p.yaml` shows where";
        assert_eq!(refused(&problems, "p.yaml"), format!("{shown}; {hint}"));
        problems.extend((0..13).map(|n| Diagnostic::error(format!("mistake {n}"))));
        assert_eq!(refused(&problems, "p.yaml"), format!("{shown}, and 13 more; {hint}"));
    }

    #[test]
    fn going_back_again_goes_on_backwards() {
        let mut history = Vec::new();
        let mut done = |revision, restores| {
            history.push(RevisionView { revision, restores, ..RevisionView::default() });
            before(&history, revision)
        };
        assert_eq!(done(1, None), None);
        assert_eq!(done(2, None), Some(1));
        assert_eq!(done(3, None), Some(2));
        assert_eq!(done(4, Some(2)), Some(1));
        assert_eq!(done(5, Some(1)), None);
        assert_eq!(done(6, None), Some(5), "a new policy is a new beginning");
        assert_eq!(done(7, Some(5)), Some(4));
    }
}
