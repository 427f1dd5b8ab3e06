//! `cargo xtask demo` builds and runs this as root; with `--docker` it shows the same on a real engine.
#![expect(clippy::print_stderr, reason = "a program's last words")]

use std::io::{Error, ErrorKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    let shown = match std::env::args().nth(1).as_deref() {
        None => hydra_tests::demo::run(&mut out),
        Some("--docker") => hydra_tests::engine::demo::run(&mut out),
        Some(other) => Err(anyhow::anyhow!("the demonstration does not know `{other}`")),
    };
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Whoever read this has seen enough, and has no use for a message.
        Err(error) if error.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
