//! `hydractl completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Answer, Cli, Outcome};
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Which shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

pub(super) fn run(asked: &Asked) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(asked.shell, &mut Cli::command(), "hydractl", &mut script);
    render::data(&String::from_utf8_lossy(&script))?;
    Ok(Answer::Yes)
}
