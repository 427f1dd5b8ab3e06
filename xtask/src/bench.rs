//! `cargo xtask bench`: builds the benchmark and the agent, and runs the benchmark as root.
//!
//! What is measured, and how, is in `hydra-bench`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::needs::{self, For};
use crate::process::{self, Job};
use crate::programs;
use crate::say;

/// The program of `hydra-bench`.
const PROGRAM: &str = "hydra-bench";

/// `cargo xtask bench`
#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(after_help = "Levels:
  L0  what does not depend on time: instructions that the verifier looks at, code, memory of maps,
      whether counters are exact with two CPUs at once; compared with docs/benchmarks/object.json
  L1  the programs in the kernel's own test run (BPF_PROG_TEST_RUN), in turns with programs that
      do next to nothing
  L2  live frames: a denied flood, and 64-byte packets forwarded, in turns with netfilter as Docker
      writes it, with one rule of nftables at the port, and with the kernel alone
  L3  applications: TCP in bulk, questions and answers, connect and close, between two networks,
      inside one, and from outside to a published port, in turns with Docker's rules alone
  L4  the agent as it is released (this level builds it so): a policy's text to the rows of the
      tables, and from `hydractl policy apply` to the first packet that it lets through; from a
      veth that becomes a port to its programs, with the agent idle and applying policies; a
      million flows read for export; the agent at rest among fifty containers

Examples:
  cargo xtask bench                   L0 and the short form of L1: half a minute
  cargo xtask bench L0 --update       write the committed figures, after a change that is worth it
  cargo xtask bench L1 L2 L3 L4 --long
                                      the figures of a release: half an hour
  cargo xtask bench --publish         write docs/benchmarks.md from what was measured last

What was measured is kept in `target/bench/`, one file of JSON a level, with every sample and where
it was. A machine that does other things meanwhile gives wide intervals; one run at a time measures,
and waits for tests in namespaces to end. Everything is made in
namespaces that end with the run, however it ends.

Exit code 0: done; 1: a program or map has grown by more than a tenth; 2: the run could not be done.")]
pub struct Args {
    /// What to measure; without a name L0 and L1, with `--publish` nothing
    #[arg(ignore_case = true)]
    levels: Vec<Level>,
    /// The long forms: more rounds, and policies of all sizes
    #[arg(long)]
    long: bool,
    /// Write docs/benchmarks.md, with data and pictures, from what was measured last
    #[arg(long)]
    publish: bool,
    /// With L0: write the figures that later runs are compared with
    #[arg(long, conflicts_with = "check")]
    update: bool,
    /// With L0: only compare with the committed figures, in a second or two
    #[arg(long)]
    check: bool,
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Level {
    /// The object
    L0,
    /// Test runs
    L1,
    /// Live frames
    L2,
    /// Applications
    L3,
    /// The agent
    L4,
}

/// Runs it; the exit code is the benchmark's own.
pub fn run(args: &Args) -> Result<ExitCode> {
    let levels = match args.levels[..] {
        [] if args.check || args.update => vec![Level::L0],
        [] if args.publish => Vec::new(),
        [] => vec![Level::L0, Level::L1],
        _ => args.levels.clone(),
    };
    if (args.check || args.update) && !levels.contains(&Level::L0) {
        bail!("only L0 has committed figures");
    }
    let live = levels.iter().any(|level| matches!(level, Level::L2 | Level::L3));
    let who = if live { For::LiveBench } else { For::Bench };
    if let Some((_, why)) = needs::install(&[who], args.yes)?.pop() {
        bail!(why);
    }
    process::allow_sudo()?;
    let mut build = vec!["build", "--package", "hydra-agent", "--package", "hydra-bench", "--bins"];
    if levels.contains(&Level::L4) {
        // What the agent itself takes counts there.
        build.push("--release");
    }
    let built = programs::cargo("build the agent and the benchmark", &build)?;
    let program = built.binaries.iter().find(|(name, _)| name == PROGRAM).map(|(_, file)| file);
    let mut job = Job::new(program.context("the build gave no benchmark")?).for_root();
    job = job.args(levels.iter().filter_map(Level::to_possible_value).map(|l| l.get_name().to_owned()));
    for (flag, set) in [
        ("--long", args.long),
        ("--publish", args.publish),
        ("--update", args.update),
        ("--check", args.check),
    ] {
        if set {
            job = job.args([flag]);
        }
    }
    job = job.args(["--out".as_ref(), crate::target().join("bench").as_os_str()]);
    // Where the sources are: this may be another copy than the one that was built.
    job = job.env("CARGO_MANIFEST_DIR", crate::root().join("bench"));
    for (name, file) in &built.binaries {
        job = job.env(&format!("CARGO_BIN_EXE_{name}"), file);
    }
    say::line("");
    let status = job.show()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
