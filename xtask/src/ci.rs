//! `cargo xtask ci`: what the continuous integration runs, which is every layer of the tests without questions.

use std::process::ExitCode;

use anyhow::Result;

use crate::test;

/// Runs everything.
pub fn run() -> Result<ExitCode> {
    test::run(&test::Args::everything())
}
