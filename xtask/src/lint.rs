//! `cargo xtask lint`: the formatting and clippy.

use std::process::ExitCode;

use anyhow::Result;

use crate::process::Job;
use crate::say::{self, Progress};

/// The checks by name.
pub fn checks() -> [(&'static str, Job); 2] {
    [
        ("cargo fmt --check", Job::cargo().args(["fmt", "--all", "--check"])),
        (
            "cargo clippy",
            Job::cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
        ),
    ]
}

/// Runs them all and shows what they found.
pub fn run() -> Result<ExitCode> {
    let mut held = true;
    for (name, job) in checks() {
        let mut progress = Progress::start(name);
        let ran = job.run(|line| progress.at(line))?;
        progress.end(if ran.status.success() { "holds" } else { "FAILED" });
        if !ran.status.success() {
            say::quote(&ran.all);
            held = false;
        }
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
