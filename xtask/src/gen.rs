//! `cargo xtask gen`: the files that are generated and committed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::process::Job;
use crate::say::{self, Progress};

/// `cargo xtask gen`
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; exit with 1 if a file is not what it would be
    #[arg(long)]
    check: bool,
}

/// A file and the program of the workspace that prints what belongs into it.
struct Generated {
    file: &'static str,
    cargo: &'static [&'static str],
}

const FILES: &[Generated] = &[Generated {
    file: "policies/schema.json",
    cargo: &["run", "--quiet", "--locked", "--package", "hydra-agent", "--example", "policy-schema"],
}];

/// Writes the files, or checks them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut current = true;
    for Generated { file, cargo } in FILES {
        let path: PathBuf = crate::root().join(file);
        let mut progress = Progress::start(file);
        let ran = Job::cargo().args(*cargo).run(|line| progress.at(line))?;
        if !ran.status.success() {
            progress.end("FAILED");
            say::quote(&ran.all);
            bail!("cannot generate `{file}`");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        if there == ran.out {
            progress.end("current");
        } else if args.check {
            progress.end("NOT current: `cargo xtask gen` writes it anew");
            current = false;
        } else {
            std::fs::write(&path, &ran.out).with_context(|| format!("cannot write `{}`", path.display()))?;
            progress.end("written");
        }
    }
    Ok(if current { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
