//! The daemon: parse, run, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use hydra_agent::{serve, settings};

fn main() -> ExitCode {
    let done = match settings::Cli::parse().action {
        settings::Action::Run(flags) => serve::run(flags),
        settings::Action::Purge(flags) => serve::purge(flags).map(|removed| {
            for line in removed {
                anstream::eprintln!("removed {line}");
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
