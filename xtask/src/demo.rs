//! `cargo xtask demo`: builds the agent and the demonstration, and runs the demonstration as root.
//!
//! The demonstration itself, with its namespaces and its matrix, is a program of `hydra-tests`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::needs::{self, For};
use crate::process::{self, Job};
use crate::programs;
use crate::say;

/// The program of `hydra-tests`.
const PROGRAM: &str = "demo";

/// `cargo xtask demo`
#[derive(clap::Args)]
pub struct Args {
    /// Show it on a real Docker engine with real containers
    #[arg(long)]
    docker: bool,
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
}

/// Runs it; the exit code is the demonstration's own.
pub fn run(args: &Args) -> Result<ExitCode> {
    let by = if args.docker { For::DockerDemo } else { For::Demo };
    if let Some((_, why)) = needs::install(&[by], args.yes)?.pop() {
        bail!(why);
    }
    process::allow_sudo()?;
    let built = programs::cargo(
        "build the agent and the demonstration",
        &["build", "--package", "hydra-agent", "--package", "hydra-tests", "--bins"],
    )?;
    let program = built.binaries.iter().find(|(name, _)| name == PROGRAM).map(|(_, file)| file);
    let mut job = Job::new(program.context("the build gave no demonstration")?).for_root();
    if args.docker {
        job = job.args(["--docker"]);
    }
    for (name, file) in &built.binaries {
        job = job.env(&format!("CARGO_BIN_EXE_{name}"), file);
    }
    say::line("");
    let status = job.show()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
