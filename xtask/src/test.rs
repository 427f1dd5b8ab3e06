//! `cargo xtask test`: runs the layers and counts.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use crate::layer::{Layer, Run};
use crate::long::{self, Long};
use crate::needs::{self, For};
use crate::process;
use crate::programs::{self, Built};
use crate::say;
use crate::tally::{Row, Tally, table};

/// `cargo xtask test`
#[derive(clap::Args)]
#[command(after_help = "Layers, in order:
  unit    tests that need neither root nor a kernel of their own
  lint    formatting and clippy
  gen     generated files are current
  object  the committed eBPF object is what its source gives
  netns   the kernel object and the agent in network namespaces (root)
  docker  the agent beside real Docker engines (root; installs the engines in folders of their own)

Examples:
  cargo xtask test                    everything
  cargo xtask test unit netns         two layers
  cargo xtask test matrix             one test program
  cargo xtask test matrix -- ipv6     the tests of it that have `ipv6` in their name
  cargo xtask test --long             the long forms: hours
  cargo xtask test --long headers     one of them

A long form is a test with as many cases as the project's targets name; `HYDRA_FRAMES`, `HYDRA_CYCLES` and their like set
other numbers, `HYDRA_SEED` the cases, which else are others each time. The long form of `fuzz` is libFuzzer on the
targets in `fuzz/`, where cargo-fuzz and a nightly tool chain are installed. What was measured is printed with its number.

The object layer needs a compiler with the source of its library; where there is none to be had it is skipped, which
fails the run only if `CI` is set. Any other layer that cannot run at all fails it.

The output of every step is kept in `target/xtask/`. The last line is the sum. Exit code 0: all passed; 1: a test
failed, or a whole layer could not run; 2: the run itself could not be done.")]
pub struct Args {
    /// Layers or test programs; everything where none is named
    names: Vec<String>,
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
    /// A layer to leave out
    #[arg(long, value_name = "LAYER")]
    skip: Vec<Layer>,
    /// Run the long forms of the tests that have one, and no other test
    #[arg(long)]
    long: bool,
    /// With `--long`: how many minutes libFuzzer has for each of its targets
    #[arg(long, value_name = "N", default_value_t = 10, requires = "long")]
    minutes: u32,
    /// For the test programs: a part of a test's name, or options of libtest
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

impl Args {
    /// Everything, without questions.
    pub fn everything() -> Self {
        Self { names: Vec::new(), yes: true, skip: Vec::new(), long: false, minutes: 0, filters: Vec::new() }
    }
}

/// Runs the layers, prints the table, and answers with the exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (mut layers, only) = sort_names(&args.names);
    if args.long {
        long::check(&only)?;
        layers.retain(|layer| layer.has_programs());
        if layers.is_empty() && only.is_empty() {
            bail!("only unit, netns and docker have long forms");
        }
    }
    let built = if !only.is_empty() || layers.iter().any(|layer| layer.has_programs()) {
        // Only the names of test programs need the build before anything else is known.
        if only.is_empty() { None } else { Some(programs::build_tests()?) }
    } else {
        Some(Built::default())
    };
    if let Some(built) = &built {
        layers.extend(layers_of(built, &only)?);
    }
    layers.sort_unstable();
    layers.dedup();
    layers.retain(|layer| !args.skip.contains(layer));

    let who: Vec<For> = layers.iter().map(|&layer| For::Layer(layer)).collect();
    let mut unmet = needs::install(&who, args.yes)?;
    if layers.contains(&Layer::Netns) || layers.contains(&Layer::Docker) {
        // Asked now rather than in the middle; a refusal is told where it matters.
        let _ = process::allow_sudo();
    }
    let logs = crate::target().join("xtask");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make `{}`", logs.display()))?;

    let mut rows = Vec::new();
    let built = match built {
        Some(built) => Ok(built),
        None if layers.iter().any(|layer| layer.has_programs()) => programs::build_tests(),
        None => Ok(Built::default()),
    };
    let mut layers = layers.into_iter();
    let stop = match built {
        Ok(built) => {
            let long = args.long.then(|| Long::new(args.minutes));
            if let Some(long) = &long {
                say::line(&format!("the random tests begin with HYDRA_SEED={}", long.seed));
            }
            let run = Run { built: &built, only: &only, filters: &args.filters, logs: &logs, long };
            layers.by_ref().find_map(|layer| {
                if let Some(at) = unmet.iter().position(|(by, _)| *by == For::Layer(layer)) {
                    rows.push(Run::not_run(layer, unmet.swap_remove(at).1));
                    return None;
                }
                let (row, ended) = run.layer(layer);
                rows.push(row);
                ended.err()
            })
        }
        Err(error) => {
            rows.push(Row { layer: "build", tally: Tally::one(false), took: Duration::ZERO, skipped: None });
            Some(error)
        }
    };
    if let Some(error) = stop {
        say::failure(&error);
    }
    for layer in layers {
        let why = Some("the run ended before".to_owned());
        rows.push(Row { layer: layer.name(), tally: Tally::default(), took: Duration::ZERO, skipped: why });
    }
    // The object's own tool chain is not everywhere; where the project is checked it must be.
    let strict = std::env::var_os("CI").is_some();
    let excused = |row: &Row| !strict && row.layer == Layer::Object.name();
    let whole = rows.iter().all(|row| row.skipped.is_none() || excused(row));
    if !whole {
        say::line(
            "\nA whole layer was skipped, which counts as a failure; leave it out on purpose with `--skip`.",
        );
    }
    let sum = table(&rows);
    Ok(if whole && sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells layers from names of test programs; no name at all means every layer.
fn sort_names(names: &[String]) -> (Vec<Layer>, Vec<String>) {
    if names.is_empty() {
        return (Layer::ALL.to_vec(), Vec::new());
    }
    let mut layers = Vec::new();
    let mut programs = Vec::new();
    for name in names {
        match Layer::from_str(name, false) {
            Ok(layer) => layers.push(layer),
            Err(_) => programs.push(name.clone()),
        }
    }
    (layers, programs)
}

/// The layers of these test programs.
fn layers_of(built: &Built, only: &[String]) -> Result<Vec<Layer>> {
    only.iter()
        .map(|name| {
            built.tests.iter().find(|program| &program.target == name).map(Layer::of).ok_or_else(|| {
                let mut known: Vec<&str> =
                    built.tests.iter().map(|program| program.target.as_str()).collect();
                known.sort_unstable();
                known.dedup();
                anyhow!(
                    "hint: layers are unit, lint, gen, object, netns, docker; test programs: {}",
                    known.join(", ")
                )
                .context(format!("there is no layer and no test program with this name: {name}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_means_everything() {
        assert_eq!(sort_names(&[]), (Layer::ALL.to_vec(), Vec::new()));
    }

    #[test]
    fn layers_and_programs_are_told_apart() {
        let names = ["docker", "matrix", "unit"].map(str::to_owned);
        assert_eq!(sort_names(&names), (vec![Layer::Docker, Layer::Unit], vec!["matrix".to_owned()]));
    }

    #[test]
    fn an_unknown_program_is_an_error_that_lists_the_known() {
        let error = layers_of(&Built::default(), &["nothing".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "there is no layer and no test program with this name: nothing");
    }
}
