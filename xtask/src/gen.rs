//! `cargo xtask gen`: the files that are generated and committed. Each has a test beside the code that makes it, which compares
//! the file, or writes it where it is told to.

use std::process::ExitCode;

use anyhow::Result;

use crate::process::Job;
use crate::say::{self, Progress};
use crate::tally::Tally;

/// `cargo xtask gen`
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; exit with 1 if a file is not what it would be
    #[arg(long)]
    check: bool,
}

/// The files, and the test of each.
const FILES: &[(&str, &str)] =
    &[("policies/schema.json", "policy::schema::tests::the_committed_schema_is_current")];

/// Makes the tests write.
const WRITE: &str = "HYDRA_REGENERATE";

/// Writes the files, or checks them.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut all = true;
    for (file, test) in FILES {
        let mut progress = Progress::start(file);
        // The whole workspace, because that is how the tests are built anyway.
        let mut job = Job::cargo().args(["test", "--workspace", "--lib", "--locked", "--", "--exact", test]);
        if !args.check {
            job = job.env(WRITE, "1");
        }
        let ran = job.run(|line| progress.at(line))?;
        // A test of another name is no test at all.
        let held = ran.status.success() && Tally::parse(&ran.all).is_some_and(|tally| tally.passed == 1);
        progress.end(match (held, args.check) {
            (true, true) => "current",
            (true, false) => "written",
            (false, true) => "NOT current: `cargo xtask gen` writes it anew",
            (false, false) => "FAILED",
        });
        if !held {
            say::quote(&ran.all);
            all = false;
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
