//! The project's own commands, run as `cargo xtask VERB`: one file per verb, each says what it does before it does it.

mod bench;
mod ci;
mod demo;
mod ebpf;
mod r#gen;
mod layer;
mod lint;
mod long;
mod needs;
mod process;
mod programs;
mod say;
mod step;
mod supervise;
mod tally;
mod test;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the product: four tiers come up, what the policy allows connects, what it denies stays silent
    Demo(demo::Args),
    /// Run the tests, layer by layer; without a name all of them
    Test(test::Args),
    /// Measure what hydra costs, beside what it is compared with
    Bench(bench::Args),
    /// Check the formatting and run clippy, warnings being errors
    Lint,
    /// Build the kernel object that is embedded in the agent, or check the committed one
    Ebpf(ebpf::Args),
    /// Write the generated files anew, or check that they are current
    Gen(r#gen::Args),
    /// Do what the continuous integration does: every layer, no questions
    Ci,
    /// Run a command and end every process it leaves behind (used by the other verbs)
    #[command(hide = true)]
    Supervise(supervise::Args),
}

fn main() -> ExitCode {
    let answer = process::catch_signals().and_then(|()| match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Lint => lint::run(),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Gen(args) => r#gen::run(&args),
        Verb::Ci => ci::run(),
        Verb::Supervise(args) => Ok(supervise::run(&args)),
    });
    answer.unwrap_or_else(|error| {
        say::failure(&error);
        ExitCode::from(2)
    })
}

/// The folder of the workspace: of the one that cargo runs this for, else of the one that it was built from. A built program may
/// be used from another copy of the sources.
fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| workspace(std::env::var_os("CARGO_MANIFEST_DIR")))
}

fn workspace(run_for: Option<OsString>) -> PathBuf {
    let manifest = run_for.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo builds to, and where the logs of the steps are kept.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_the_one_that_cargo_runs_this_for() {
        assert_eq!(workspace(Some("/src/other/xtask".into())), Path::new("/src/other"));
        assert!(workspace(None).join("xtask/src/main.rs").is_file());
    }
}
