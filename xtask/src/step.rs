//! One command as a step of a verb: its progress on the screen, and what it wrote if it fails.

use anyhow::{Result, bail};

use crate::process::{self, Job, Ran};
use crate::say::{self, Progress};

/// Runs it; `good` is the word for a success. A failure is shown here and told by the status.
pub fn run(what: &str, job: &Job, good: &str) -> Result<Ran> {
    let mut progress = Progress::start(what);
    let ran = job.run(|line| {
        if !is_message(line) {
            progress.at(line);
        }
    })?;
    if process::stopped() {
        progress.end("stopped");
        bail!("stopped while `{}` ran", job.shown());
    }
    progress.end(if ran.status.success() { good } else { "FAILED" });
    if !ran.status.success() {
        say::quote(&ran.all.lines().filter(|line| !is_message(line)).collect::<Vec<_>>().join("\n"));
    }
    Ok(ran)
}

/// Whether a line is for programs rather than people: a message of cargo's in JSON.
fn is_message(line: &str) -> bool {
    line.starts_with("{\"reason\":")
}
