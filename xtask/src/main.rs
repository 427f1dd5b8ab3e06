//! The project's own commands, run as `cargo xtask VERB`: one file per verb, each says what it does before it does it.

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

use std::path::{Path, PathBuf};
use std::process::ExitCode;

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

/// The folder of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo builds to, and where the logs of the steps are kept.
fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}
