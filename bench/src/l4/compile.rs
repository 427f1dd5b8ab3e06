//! From a policy's text to rows.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use hydra_agent::policy::compile::{World, compile};
use hydra_agent::policy::model::Model;
use hydra_agent::policy::rows::Numbers;
use hydra_agent::policy::{self, yaml};
use serde::de::IgnoredAny;

use super::policy::Large;
use super::{Form, since};
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::stats::interleave;

/// Tiers, rules, milliseconds that they may take, and by what the rounds are divided.
const SIZES: [(usize, usize, f64, usize); 2] = [(64, 10_000, 50.0, 1), (252, 50_000, 500.0, 2)];

/// What is done with the text.
#[derive(Clone, Copy)]
enum Step {
    /// Read into nothing by the library.
    Library,
    Read,
    Check,
    Compile,
    All,
}

const STEPS: [(Step, &str); 5] = [
    (Step::Library, "the YAML library alone, without hydra"),
    (Step::Read, "text read"),
    (Step::Check, "text read, checked and tested"),
    (Step::Compile, "policy to rows"),
    (Step::All, "text to rows"),
];

/// Adds what each step took.
pub fn measure(form: &Form, report: &mut Report, progress: &mut Progress) -> Result<()> {
    for (tiers, rules, most, less) in SIZES {
        let rounds = form.rounds / less;
        let size = format!("{tiers} tiers, {rules} rules");
        let text = Large { tiers, rules, variant: 0, door: 0 }.text();
        let model = checked(&text)?;
        ensure!((model.tiers.len(), model.rules.len()) == (tiers, rules), "another policy than {size}");
        let name = |what: &str| format!("{what}: {size}");
        let samples = interleave(
            &mut STEPS.map(|(step, _)| step),
            rounds,
            |step| take(*step, &text, &model),
            |done| progress.at(&format!("{size}: round {done} of {rounds}")),
        )?;
        for ((_, what), samples) in STEPS.iter().zip(samples) {
            report.add(&name(what), "ms", samples)?;
        }
        let [library, _, _, compiled, all] = STEPS.map(|(_, what)| name(what));
        report.aim(&compiled, Goal::Most(9, most))?;
        report.compare(&compiled, &library, None)?;
        report.compare(&all, &library, None)?;
    }
    Ok(())
}

/// Milliseconds of one step.
fn take(step: Step, text: &str, model: &Model) -> Result<f64> {
    let begun = Instant::now();
    match step {
        Step::Library => drop(black_box(serde_saphyr::from_str_with_options::<IgnoredAny>(text, options())?)),
        Step::Read => drop(black_box(yaml::read(text).map_err(|problem| anyhow::anyhow!(problem.message))?)),
        Step::Check => drop(black_box(checked(text)?)),
        Step::Compile => rows(model)?,
        Step::All => rows(&checked(text)?)?,
    }
    Ok(since(begun))
}

fn rows(model: &Model) -> Result<()> {
    drop(black_box(compile(model, &World::default(), &mut Numbers::default())?));
    Ok(())
}

fn checked(text: &str) -> Result<Model> {
    match policy::parse(text, "large.yaml") {
        Ok((model, _)) => Ok(model),
        Err(problems) => anyhow::bail!("the policy is refused:\n{}", problems.render(false)),
    }
}

/// Without the library's usual budget, which is for smaller texts.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { budget: None }
}
