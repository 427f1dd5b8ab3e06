//! The daemon: parse, run, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use hydra_agent::{serve, settings, usage};

fn main() -> ExitCode {
    let cli = match settings::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::answer(&error),
    };
    let done = match cli.action {
        settings::Action::Run(flags) => serve::run(flags),
        settings::Action::Purge(flags) => serve::purge(flags).map(|done| {
            for line in done {
                anstream::eprintln!("{line}");
            }
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprint!("{}", error.render(std::io::stderr().is_terminal()));
            ExitCode::from(error.exit_code())
        }
    }
}
