//! `cargo xtask lint`: the formatting and clippy.

use std::process::ExitCode;

use anyhow::Result;

use crate::process::Job;
use crate::step;

/// The checks by name.
pub fn checks() -> [(&'static str, Job); 3] {
    [
        ("cargo fmt --check", Job::cargo().args(["fmt", "--all", "--check"])),
        // A workspace of its own. Clippy would need the tool chain of the object's target.
        (
            "cargo fmt --check of hydra-ebpf",
            Job::cargo().args(["fmt", "--manifest-path", "hydra-ebpf/Cargo.toml", "--all", "--check"]),
        ),
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
        held &= step::run(name, &job, "holds")?.status.success();
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
