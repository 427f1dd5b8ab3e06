//! Applying a policy: whole or not at all. Nothing that counts is touched before everything that can refuse it has spoken; what the kernel
//! or the disk refuses leaves the one before in force.

use std::fmt::Display;
use std::sync::Arc;

use hydra_common::flow::{Flow, FlowKey};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::agent::{Agent, Placed, Writing};
use super::cut::{Before, Live, cut};
use super::enforced::{Policy, Tested, world};
use crate::beside::both;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::inventory::snapshot::Snapshot;
use crate::placement::{Claims, Placement};
use crate::policy::compile::{CompileError, World, compile_after};
use crate::policy::model::Model;
use crate::policy::rows::{Compiled, Numbers};
use crate::policy::taken::{Last, Made};
use crate::policy::{self, diff};
use crate::published::{ApplyError, ApplyReport, Reader, RevisionView};
use crate::state::{Drafted, StateError};

/// What an apply is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub text: Arc<str>,
    pub source: String,
    pub by: String,
    pub dry_run: bool,
    /// The revision whose text it is, where one is put in force again.
    pub restores: Option<u32>,
}

/// A policy that nothing refuses any more.
struct Ready {
    policy: Policy,
    numbers: Numbers,
    placed: Placed,
    /// Its rows for no host.
    made: Arc<Made>,
    warnings: Diagnostics,
}

/// What was in force before a policy, for what there is to say of the change.
struct Earlier {
    policy: Option<Policy>,
    placement: Placement,
    live: Option<Flows>,
}

/// Live flows, with both clocks in nanoseconds.
type Flows = (Vec<(FlowKey, Flow)>, (u64, i128));

impl Agent {
    /// Applies a text over a fresh look at the world, or only says what it would do. What there is to say of it, but for what refuses
    /// it, is found out when it is in force.
    pub async fn apply(
        &mut self,
        asked: Asked,
        look: impl Future<Output = Snapshot>,
    ) -> Result<ApplyReport, ApplyError> {
        let (text, source, now) = (asked.text.clone(), asked.source.clone(), policy::unix_now());
        let revision = self.state.next_revision();
        // On disk before it is known whether it counts.
        let draft = if asked.dry_run {
            None
        } else {
            // It would take away what is written now.
            if let Some(writing) = self.refused.take() {
                drop(writing.await);
            }
            Some(Writer::start(self.state.draft(revision), asked.text.clone()))
        };
        // Neither the text nor the flows know of the world that is looked at meanwhile.
        let known = self.policy.as_ref().and_then(Policy::known);
        let read = spawn_blocking(move || policy::read(&text, &source, now, known.as_ref()));
        let reader = self.reader.clone();
        // What the policy cuts is what was live before it.
        let live = spawn_blocking(move || live(&*reader));
        self.look(look.await);
        let (model, warnings) = match read.await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => return Err(ApplyError::Kernel(error.to_string())),
            },
        };
        let ready = match model {
            Some(model) => self.prepare(&asked, revision, model, warnings, now),
            None => Err(warnings),
        };
        let Ready { policy, numbers, placed, made, warnings } = match ready {
            Ok(ready) => ready,
            // The answer does not depend on the disk. A dry run leaves one before it to the next that writes.
            Err(problems) => {
                if let Some(draft) = draft {
                    self.refused = Some(draft.unwanted());
                }
                return Err(ApplyError::Refused(problems));
            }
        };
        let live = live.await.ok().flatten();
        let previous = self.state.current();
        let Some(draft) = draft else {
            let earlier = Earlier { policy: self.policy.clone(), placement: self.placement().clone(), live };
            return Ok(report(&asked, &earlier, (&policy, &placed.placement), &made.0, warnings));
        };
        let full = |error: &dyn Display| ApplyError::Disk(error.to_string());
        let drafted = draft.written().await.map_err(ApplyError::Disk)?;
        self.state.set_numbers(numbers).map_err(|e| full(&e))?;
        self.state.begin(drafted).map_err(|e| full(&e))?;
        self.clear_failed();
        let placement = self.placement().clone();
        if let Err(why) = self.enforce(&policy, placed).await {
            tracing::error!(revision, error = %why, "the kernel did not take the policy; the previous one stays in force");
            if let Err(e) = self.state.abandon(revision, previous) {
                tracing::error!(error = %e, "the refused policy is still the current one on disk");
            }
            self.publish();
            return Err(ApplyError::Kernel(why));
        }
        // In force: whoever asks is told so, before what there is to say of it is found out.
        let view = RevisionView {
            revision,
            policy: policy.model.name.clone(),
            applied: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            by: asked.by.clone(),
            restores: asked.restores,
            bytes: policy.text.len() as u64,
        };
        let earlier = Earlier { policy: self.policy.replace(policy.clone()), placement, live };
        self.lasting.clear();
        self.note_history(view);
        self.publish();
        let report = report(&asked, &earlier, (&policy, self.placement()), &made.0, warnings);
        let (policy, by, cut) = (&report.policy, &asked.by, report.cut.len());
        tracing::info!(revision, policy, by, cut, "a policy is applied");
        Ok(report)
    }

    /// Everything that can refuse a policy that could be read, all of it at once where it can be said at once.
    fn prepare(
        &self,
        asked: &Asked,
        revision: u32,
        model: Model,
        mut warnings: Diagnostics,
        now: i64,
    ) -> Result<Ready, Diagnostics> {
        let claims = Claims::of(&model);
        let mut numbers = self.state.numbers().clone();
        // Rows for no host, which the policy is tested by, and rows for this one: neither needs the other.
        let before = self.policy.as_ref();
        let last = before.map(|p| Last { model: &p.model, compiled: &p.compiled, basis: &p.basis });
        let tested = before.and_then(|p| Some((p, p.tested.as_ref()?)));
        let offline = tested.map(|(p, t)| Last { model: &p.model, compiled: &t.made.0, basis: &t.made.1 });
        let test = || policy::tested(&model, &asked.source, now, offline);
        let (tested, (placed, world, compiled)) = both("hydra-tested", test, || {
            let placed = self.place(&claims);
            let world = world(&placed.placement);
            let compiled = compiled(&model, &world, &mut numbers, asked, last);
            (placed, world, compiled)
        });
        let made = match tested {
            Ok((made, failures)) if failures.is_empty() => Arc::new(made),
            refused => {
                match refused {
                    Ok(((offline, _), failures)) => {
                        warnings.extend(policy::remarks(&model, &offline, now).into_iter().chain(failures));
                    }
                    Err(problem) => warnings.push(problem),
                }
                warnings.sort();
                return Err(warnings);
            }
        };
        let problems = nowhere(&placed.placement, &model, asked);
        if !problems.is_empty() {
            return Err(problems);
        }
        let (compiled, basis) = compiled?;
        let tested = Tested { warnings: warnings.iter().cloned().collect(), now, made: made.clone() };
        let policy = Policy {
            revision,
            text: asked.text.clone(),
            model: model.into(),
            claims,
            compiled: compiled.into(),
            basis: basis.into(),
            tested: Some(tested),
            world,
        };
        Ok(Ready { policy, numbers, placed, made, warnings })
    }

    /// Takes up the revision that the state directory calls current. Its text was accepted once: what a newer agent or a later day
    /// would refuse (an `expect` row on a rule that has expired) is only said.
    pub fn adopt(&mut self, revision: u32, text: String, source: &str) -> Result<(), String> {
        let (made, problems) = policy::examine(&text, source, policy::unix_now());
        let Some((model, _)) = made else {
            return Err(format!(
                "revision {revision} can't be read any more, what the kernel holds stays in force: {}",
                problems.iter().next().map(|d| d.message.clone()).unwrap_or_default()
            ));
        };
        for problem in problems.iter().filter(|_| problems.has_errors()) {
            tracing::warn!(revision, problem = problem.message, "the policy in force would be refused today");
        }
        let claims = Claims::of(&model);
        let world = world(&self.place(&claims).placement);
        let mut numbers = self.state.numbers().clone();
        let (compiled, basis) = match compile_after(&model, &world, &mut numbers, None) {
            Ok(compiled) => compiled,
            // Networks of the host may contradict it by now: without them it stood.
            Err(error) => {
                tracing::error!(revision, %error, "the policy does not fit this host any more");
                let nowhere = World::default();
                compile_after(&model, &nowhere, &mut numbers, None).map_err(|e| e.to_string())?
            }
        };
        self.note_numbers(numbers);
        self.policy = Some(Policy {
            revision,
            text: text.into(),
            model: model.into(),
            claims,
            compiled: compiled.into(),
            basis: basis.into(),
            tested: None,
            world,
        });
        Ok(())
    }
}

/// A text on its way to the disk. Gone with this, too: where that is lost, what was written takes itself away.
struct Writer {
    wanted: oneshot::Sender<()>,
    writing: Writing,
}

impl Writer {
    fn start(
        draft: impl FnOnce(&str) -> Result<Drafted, StateError> + Send + 'static,
        text: Arc<str>,
    ) -> Self {
        let (wanted, decided) = oneshot::channel();
        let writing = spawn_blocking(move || {
            let written = draft(&text);
            decided.blocking_recv().is_ok().then_some(written)
        });
        Self { wanted, writing }
    }

    /// Waits for the disk.
    async fn written(self) -> Result<Drafted, String> {
        let asked = self.wanted.send(());
        match self.writing.await {
            Ok(Some(written)) if asked.is_ok() => written.map_err(|e| e.to_string()),
            Ok(_) => Err("the policy was not written".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Waits for nothing.
    fn unwanted(self) -> Writing {
        drop(self.wanted);
        self.writing
    }
}

/// What a policy does, beside what was in force before.
fn report(
    asked: &Asked,
    earlier: &Earlier,
    (policy, placement): (&Policy, &Placement),
    offline: &Compiled,
    mut warnings: Diagnostics,
) -> ApplyReport {
    let now = policy::unix_now();
    warnings.extend(policy::remarks(&policy.model, offline, now));
    warnings.sort();
    let before = earlier.policy.as_ref();
    let mut said = rendered(&warnings, asked);
    let changes = match diff::diff(before.map(|p| &*p.model), &policy.model, now) {
        Ok(changes) => changes.to_lines(),
        // The one before, which an older agent took: this one's tables do not hold it.
        Err(error) => vec![format!("what changes cannot be said: {error}")],
    };
    said.extend(placement.closed.iter().chain(&placement.warnings).map(ToString::to_string));
    if earlier.live.is_none() {
        said.push("live flows could not be read: what is cut cannot be said".to_owned());
    }
    let cut = earlier.live.as_ref().map_or_else(Vec::new, |(flows, (monotonic, unix))| {
        let unix = i64::try_from(unix / 1_000_000_000).unwrap_or(i64::MAX);
        let before = before.map(|p| Before {
            revision: p.revision,
            compiled: &p.compiled,
            placement: &earlier.placement,
        });
        cut(Live { flows, monotonic: *monotonic, unix }, before, &policy.compiled, placement)
    });
    ApplyReport {
        revision: policy.revision,
        restores: asked.restores,
        policy: policy.model.name.clone(),
        changes,
        cut,
        warnings: said,
    }
}

/// The live flows; none where they cannot be read.
fn live(reader: &dyn Reader) -> Option<Flows> {
    match reader.flows() {
        Ok(flows) => Some((flows, reader.clocks())),
        Err(error) => {
            tracing::warn!(%error, "live flows could not be read");
            None
        }
    }
}

/// Refuses a first policy before anything is touched: the same questions as [`Agent::apply`] asks, without an agent.
pub(super) fn check_first(
    asked: &Asked,
    placement: impl Fn(&Claims) -> Placement,
) -> Result<(), Diagnostics> {
    let (model, _) = policy::parse(&asked.text, &asked.source)?;
    let placement = placement(&Claims::of(&model));
    let problems = nowhere(&placement, &model, asked);
    if !problems.is_empty() {
        return Err(problems);
    }
    compiled(&model, &world(&placement), &mut Numbers::default(), asked, None).map(drop)
}

fn compiled(
    model: &Model,
    world: &World,
    numbers: &mut Numbers,
    asked: &Asked,
    last: Option<Last<'_>>,
) -> Result<Made, Diagnostics> {
    compile_after(model, world, numbers, last).map_err(|error| refused(&error, asked))
}

fn refused(error: &CompileError, asked: &Asked) -> Diagnostics {
    let mut problems = Diagnostics::new(&asked.source, &*asked.text);
    problems.push(Diagnostic::error(error.to_string()));
    problems
}

/// Tiers that are nowhere.
fn nowhere(placement: &Placement, model: &Model, asked: &Asked) -> Diagnostics {
    if placement.nowhere.is_empty() {
        return Diagnostics::default();
    }
    let mut problems = Diagnostics::new(&asked.source, &*asked.text);
    for tier in &placement.nowhere {
        let message = format!("tier `{}` is nowhere on this host: {}", tier.tier, tier.looked_for);
        let mut problem = Diagnostic::error(message).hint("make it exist, or give the tier `optional: true`");
        problem.place = model.place_of(&tier.tier);
        problems.push(problem);
    }
    problems.sort();
    problems
}

/// Each with its line and caret.
fn rendered(warnings: &Diagnostics, asked: &Asked) -> Vec<String> {
    let one = |d: &Diagnostic| {
        let mut one = Diagnostics::new(&asked.source, &*asked.text);
        one.push(d.clone());
        one.render(false).trim_end().to_owned()
    };
    warnings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;
    use crate::placement::Nowhere;
    use crate::state::State;

    #[tokio::test]
    async fn a_refused_text_waits_for_no_disk_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, _) = State::open(dir.path()).unwrap();
        let beside = dir.path().join("policies/1.yaml.new");
        let start = |state: &State| Writer::start(state.draft(1), "one".into());
        // A pipe that nobody reads stands for a disk that hangs.
        nix::unistd::mkfifo(&beside, Mode::S_IRWXU).unwrap();
        let mut writing = start(&state).unwanted();
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), &mut writing).await;
        assert!(waited.is_err() && beside.exists(), "it hangs");
        let reader = std::fs::File::open(&beside).unwrap();
        assert!(writing.await.unwrap().is_none());
        assert!(!beside.exists());
        drop(reader);
        assert!(start(&state).unwanted().await.unwrap().is_none());
        assert!(!beside.exists());
        // One that is not refused is there.
        let drafted = start(&state).written().await.unwrap();
        assert!(beside.exists());
        state.begin(drafted).unwrap();
        assert_eq!((state.text(1).as_deref(), beside.exists()), (Some("one"), false));
    }

    #[test]
    fn a_tier_that_is_nowhere_is_shown_where_the_file_names_it() {
        let text =
            "version: 1\ntiers:\n  apps: { networks: [front] }\n  gone: { networks: [nothing] }\nrules: []\n";
        let (model, _) = policy::parse(text, "p.yaml").unwrap();
        let nothing = Nowhere { tier: "gone".into(), looked_for: "Docker has no such network".into() };
        let placement = Placement { nowhere: vec![nothing], ..Placement::default() };
        let asked = Asked {
            text: text.into(),
            source: "p.yaml".into(),
            by: String::new(),
            dry_run: true,
            restores: None,
        };
        insta::assert_snapshot!(nowhere(&placement, &model, &asked).render(false), @r"
        error: tier `gone` is nowhere on this host: Docker has no such network
         --> p.yaml:4:3
          |
        4 |   gone: { networks: [nothing] }
          |   ^^^^
        hint: make it exist, or give the tier `optional: true`
        ");
    }
}
