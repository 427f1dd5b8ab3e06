//! The operator's tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    hydra_agent::ctl::main(std::env::args_os())
}
