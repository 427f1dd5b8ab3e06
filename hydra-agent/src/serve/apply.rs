//! Applying a policy: whole or not at all. Nothing is touched before everything that can refuse it has spoken; what the kernel or
//! the disk refuses leaves the one before in force.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::agent::{Agent, Placed, Policy, world};
use super::cut::{Before, Live, cut};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::inventory::snapshot::Snapshot;
use crate::placement::{Claims, Placement};
use crate::policy::compile::{CompileError, World, compile};
use crate::policy::model::Model;
use crate::policy::rows::{Compiled, Numbers};
use crate::policy::{self, diff};
use crate::published::{ApplyError, ApplyReport, RevisionView};

/// What an apply is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub text: String,
    pub source: String,
    pub by: String,
    pub dry_run: bool,
    /// The revision whose text it is, where one is put in force again.
    pub restores: Option<u32>,
}

/// A policy that nothing refuses any more, and what it would do.
struct Ready {
    policy: Policy,
    numbers: Numbers,
    placed: Placed,
    report: ApplyReport,
}

impl Agent {
    /// Applies a text over a fresh look at the world, or only says what it would do.
    pub async fn apply(&mut self, asked: Asked, snapshot: Snapshot) -> Result<ApplyReport, ApplyError> {
        self.look(snapshot);
        let Ready { policy, numbers, placed, report } =
            self.prepare(&asked).await.map_err(ApplyError::Refused)?;
        if asked.dry_run {
            return Ok(report);
        }
        let (revision, previous) = (policy.revision, self.state.current());
        self.state.set_numbers(numbers).map_err(|e| ApplyError::Disk(e.to_string()))?;
        self.state.begin(revision, &policy.text).map_err(|e| ApplyError::Disk(e.to_string()))?;
        self.clear_failed();
        if let Err(why) = self.enforce(&policy, placed).await {
            tracing::error!(revision, error = %why, "the kernel did not take the policy; the previous one stays in force");
            if let Err(e) = self.state.abandon(revision, previous) {
                tracing::error!(error = %e, "the refused policy is still the current one on disk");
            }
            self.publish();
            return Err(ApplyError::Kernel(why));
        }
        let view = RevisionView {
            revision,
            policy: policy.model.name.clone(),
            applied: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            by: asked.by,
            restores: asked.restores,
            bytes: policy.text.len() as u64,
        };
        tracing::info!(
            revision,
            policy = view.policy,
            by = view.by,
            cut = report.cut.len(),
            "a policy is applied"
        );
        self.policy = Some(policy);
        self.lasting.clear();
        self.note_history(view);
        self.publish();
        Ok(report)
    }

    /// Everything that can refuse a policy, all of it at once where it can be said at once.
    async fn prepare(&self, asked: &Asked) -> Result<Ready, Diagnostics> {
        let (model, warnings) = policy::parse(&asked.text, &asked.source)?;
        let claims = Claims::of(&model);
        let placed = self.place(&claims);
        let problems = nowhere(&placed.placement, &model, asked);
        if !problems.is_empty() {
            return Err(problems);
        }
        let world = world(&placed.placement);
        let mut numbers = self.state.numbers().clone();
        let compiled = compiled(&model, &world, &mut numbers, asked)?;
        let changes = diff::diff(self.policy.as_ref().map(|p| &p.model), &model, policy::unix_now());
        let changes = changes.map_err(|e| refused(&e, asked))?.to_lines();
        let report = ApplyReport {
            revision: self.state.next_revision(),
            restores: asked.restores,
            policy: model.name.clone(),
            changes,
            cut: self.would_cut(&compiled, &placed.placement).await,
            warnings: rendered(&warnings, asked)
                .into_iter()
                .chain(
                    placed.placement.closed.iter().chain(&placed.placement.warnings).map(ToString::to_string),
                )
                .collect(),
        };
        let policy = Policy {
            revision: report.revision,
            text: asked.text.clone(),
            model,
            claims,
            compiled: compiled.into(),
            world,
        };
        Ok(Ready { policy, numbers, placed, report })
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
        let compiled = match compile(&model, &world, &mut numbers) {
            Ok(compiled) => compiled,
            // Networks of the host may contradict it by now: without them it stood.
            Err(error) => {
                tracing::error!(revision, %error, "the policy does not fit this host any more");
                compile(&model, &World::default(), &mut numbers).map_err(|e| e.to_string())?
            }
        };
        self.note_numbers(numbers);
        self.policy = Some(Policy { revision, text, model, claims, compiled: compiled.into(), world });
        Ok(())
    }

    async fn would_cut(&self, compiled: &Compiled, placement: &Placement) -> Vec<String> {
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || (reader.flows(), reader.clocks())).await;
        match read {
            Ok((Ok(flows), (monotonic, unix))) => {
                let unix = i64::try_from(unix / 1_000_000_000).unwrap_or(i64::MAX);
                let before = self.policy.as_ref().map(|p| Before {
                    revision: p.revision,
                    compiled: &p.compiled,
                    placement: self.placement(),
                });
                cut(Live { flows: &flows, monotonic, unix }, before, compiled, placement)
            }
            Ok((Err(error), _)) => {
                tracing::warn!(%error, "live flows could not be read");
                Vec::new()
            }
            Err(_) => Vec::new(),
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
    compiled(&model, &world(&placement), &mut Numbers::default(), asked).map(drop)
}

fn compiled(
    model: &Model,
    world: &World,
    numbers: &mut Numbers,
    asked: &Asked,
) -> Result<Compiled, Diagnostics> {
    compile(model, world, numbers).map_err(|error| refused(&error, asked))
}

fn refused(error: &CompileError, asked: &Asked) -> Diagnostics {
    let mut problems = Diagnostics::new(&asked.source, &asked.text);
    problems.push(Diagnostic::error(error.to_string()));
    problems
}

/// Tiers that are nowhere.
fn nowhere(placement: &Placement, model: &Model, asked: &Asked) -> Diagnostics {
    let mut problems = Diagnostics::new(&asked.source, &asked.text);
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
        let mut one = Diagnostics::new(&asked.source, &asked.text);
        one.push(d.clone());
        one.render(false).trim_end().to_owned()
    };
    warnings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Nowhere;

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
