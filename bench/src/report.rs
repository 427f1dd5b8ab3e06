//! What a level found, as data: JSON keeps every sample, people get a table.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::kept;
use crate::stats::{Estimate, Statistic};

/// A level's figures with where they are from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `L1`.
    pub level: String,
    /// The long form, or the short one.
    pub long: bool,
    /// Where.
    pub environment: Environment,
    /// What was measured.
    pub measured: Vec<Measured>,
    /// What it comes to.
    pub ratios: Vec<Ratio>,
}

/// One thing that was measured, once a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// What.
    pub what: String,
    /// `ns`, `Mpps`, `Gbit/s` …
    pub unit: String,
    /// What is said of the samples.
    #[serde(default, skip_serializing_if = "Statistic::is_median")]
    pub statistic: Statistic,
    /// That, with its interval.
    pub estimate: Estimate,
    /// One value a round, in order.
    pub samples: Vec<f64>,
    /// The target that it is for.
    #[serde(default)]
    pub goal: Option<Goal>,
}

impl Measured {
    /// What is said of it, with its unit: `3.14 ms`.
    pub fn figure(&self) -> String {
        format!("{} {}", number(self.estimate.median), self.unit)
    }

    /// The largest of all.
    pub fn most(&self) -> f64 {
        self.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// One thing by another that was measured in the same rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// What.
    pub of: String,
    /// By what.
    pub to: String,
    /// The median of the rounds' ratios.
    pub estimate: Estimate,
    /// The target that it is for.
    pub goal: Option<Goal>,
}

/// A row of the table of targets, and what a figure must come to for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Goal {
    /// At most.
    Most(u8, f64),
    /// At least.
    Least(u8, f64),
}

impl Goal {
    /// The number of its row.
    pub fn row(self) -> u8 {
        let (Self::Most(row, _) | Self::Least(row, _)) = self;
        row
    }

    /// Whether a figure's median meets it.
    pub fn met(self, estimate: &Estimate) -> bool {
        match self {
            Self::Most(_, most) => estimate.median <= most,
            Self::Least(_, least) => estimate.median >= least,
        }
    }

    /// `at most 1.5`
    pub fn said(self) -> String {
        match self {
            Self::Most(_, most) => format!("at most {most}"),
            Self::Least(_, least) => format!("at least {least}"),
        }
    }
}

impl Report {
    /// None found yet.
    pub fn new(level: &str, long: bool) -> Result<Self> {
        let environment = Environment::here()?;
        Ok(Self { level: level.to_owned(), long, environment, measured: Vec::new(), ratios: Vec::new() })
    }

    /// Adds what was measured, to what was measured of it before.
    pub fn add(&mut self, what: &str, unit: &str, mut samples: Vec<f64>) -> Result<()> {
        if let Some(before) = self.measured.iter_mut().find(|m| m.what == what) {
            before.samples.append(&mut samples);
            before.estimate = Estimate::of_as(&before.samples, before.statistic)?;
            return Ok(());
        }
        self.add_as(what, unit, samples, Statistic::Median)
    }

    /// Adds what was measured and of which something else than the median is said.
    pub fn add_as(&mut self, what: &str, unit: &str, samples: Vec<f64>, statistic: Statistic) -> Result<()> {
        let estimate = Estimate::of_as(&samples, statistic)?;
        self.measured.push(Measured {
            what: what.to_owned(),
            unit: unit.to_owned(),
            statistic,
            estimate,
            samples,
            goal: None,
        });
        Ok(())
    }

    /// Says which target a thing is for that was measured, where that is no ratio.
    pub fn aim(&mut self, what: &str, goal: Goal) -> Result<()> {
        let found = self.measured.iter_mut().find(|m| m.what == what);
        found.with_context(|| format!("`{what}` was not measured"))?.goal = Some(goal);
        Ok(())
    }

    /// Adds one measured thing by another.
    pub fn compare(&mut self, of: &str, to: &str, goal: Option<Goal>) -> Result<()> {
        let estimate = Estimate::of_ratio(&self.samples(of)?, &self.samples(to)?)?;
        self.ratios.push(Ratio { of: of.to_owned(), to: to.to_owned(), estimate, goal });
        Ok(())
    }

    /// The samples of a thing that was measured.
    pub fn samples(&self, what: &str) -> Result<Vec<f64>> {
        let found = self.measured.iter().find(|m| m.what == what);
        Ok(found.with_context(|| format!("`{what}` was not measured"))?.samples.clone())
    }

    /// The file of a level in a folder.
    pub fn file(folder: &Path, level: &str) -> PathBuf {
        folder.join(format!("{level}.json"))
    }

    /// Writes it into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        kept::write(&Self::file(folder, &self.level), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// Reads a level's from a folder; none where there is no such file.
    pub fn read(folder: &Path, level: &str) -> Result<Option<Self>> {
        let file = Self::file(folder, level);
        match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("cannot read `{}`", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", file.display())),
        }
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let name = |r: &Ratio| format!("{} / {}", r.of, r.to);
        let width = self.measured.iter().map(|m| m.what.len()).max().unwrap_or_default();
        let mut text = format!(
            "{:<width$} {:>15} {:>21} {:>10} {:>4}  target\n",
            "measured", "median", "95 % interval", "largest", "N"
        );
        for m in &self.measured {
            let Estimate { low, high, n, .. } = m.estimate;
            let interval = format!("{} to {}", number(low), number(high));
            let _ = writeln!(
                text,
                "{:<width$} {:>15} {interval:>21} {:>10} {n:>4}  {}",
                m.what,
                m.figure(),
                number(m.most()),
                target(m.goal, &m.estimate)
            );
        }
        let width = self.ratios.iter().map(|r| name(r).len()).max().unwrap_or_default();
        let _ = writeln!(text, "\n{:<width$} {:>10} {:>21}  target", "ratio", "median", "95 % interval");
        for r in &self.ratios {
            let Estimate { median, low, high, .. } = r.estimate;
            let (of, interval) = (name(r), format!("{low:.2} to {high:.2}"));
            let _ =
                writeln!(text, "{of:<width$} {median:>10.2} {interval:>21}  {}", target(r.goal, &r.estimate));
        }
        text
    }
}

/// `P1 at most 1.5: met`
pub fn target(goal: Option<Goal>, estimate: &Estimate) -> String {
    goal.map_or_else(String::new, |goal| {
        let met = if goal.met(estimate) { "met" } else { "MISSED" };
        format!("P{} {}: {met}", goal.row(), goal.said())
    })
}

/// Three digits that tell something.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
