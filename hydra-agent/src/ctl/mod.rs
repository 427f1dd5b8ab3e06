//! `hydractl`: what can be typed, and what it exits with. One file per command; each asks the agent over its socket or works on
//! files alone, prints data to stdout and words to stderr, and says whether the answer is yes.

mod client;
mod completions;
mod drops;
mod endpoints;
mod explain;
mod failure;
mod flows;
mod policy;
mod ports;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use self::client::Client;
use self::failure::Failure;
use crate::render::Format;
use crate::usage;

/// The socket of an agent with default directories.
pub const DEFAULT_SOCKET: &str = "/run/hydra/agent.sock";

/// The command line of `hydractl`.
#[derive(Debug, Parser)]
#[command(
    name = "hydractl",
    version,
    about = "Asks and directs the hydra agent of this host",
    after_help = "Exit status: 0 fine; 1 the answer is no (denied, invalid, differs, not healthy); 2 the command could not do its work.",
    max_term_width = 110
)]
pub struct Cli {
    /// The agent's socket
    #[arg(long, value_name = "PATH", env = "HYDRA_SOCKET", default_value = DEFAULT_SOCKET, hide_env_values = true, value_parser = OsStringValueParser::new().map(socket))]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// A variable that is set to nothing is not set.
fn socket(path: OsString) -> PathBuf {
    if path.is_empty() { DEFAULT_SOCKET.into() } else { path.into() }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check, test, show, compare, apply and take back policies
    #[command(subcommand)]
    Policy(policy::Command),
    /// Say what happens to packets from FROM to TO, and why; exits with 1 where they are denied
    Explain(explain::Asked),
    /// Say what the agent enforces and what it does not; exits with 1 where it is not healthy
    Status(Output),
    /// List the containers' addresses and what they stand for
    Endpoints(Output),
    /// List published ports, who is behind each, and who can reach it
    Ports(ports::Asked),
    /// List live flows, the newest first
    Flows(flows::Asked),
    /// List packets that were denied, or would have been
    Drops(drops::Asked),
    /// Print a shell's completions: source them, or put them where the shell looks
    Completions(completions::Asked),
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// How data is printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Format,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
}

impl Answer {
    fn yes_if(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

type Outcome = Result<Answer, Failure>;

/// Runs a command line to its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help goes to stdout with 0, mistakes to stderr with 2: clap's own ways are the product's.
            return usage::answer(&e);
        }
    };
    match run(cli) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Outcome {
    let client = Client::new(cli.socket);
    match cli.command {
        Command::Policy(command) => policy::run(&client, command),
        Command::Explain(asked) => explain::run(&client, asked),
        Command::Status(output) => status::run(&client, output.output),
        Command::Endpoints(output) => endpoints::run(&client, output.output),
        Command::Ports(asked) => ports::run(&client, asked),
        Command::Flows(asked) => flows::run(&client, asked),
        Command::Drops(asked) => drops::run(&client, asked),
        Command::Completions(asked) => completions::run(&asked),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn a_socket_of_no_name_is_the_usual_one() {
        assert_eq!(super::socket("".into()), std::path::Path::new(super::DEFAULT_SOCKET));
        assert_eq!(super::socket("/x".into()), std::path::Path::new("/x"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
