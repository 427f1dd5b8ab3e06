//! Opens flows as it is told, see `hydra_tests::caller`.
#![expect(clippy::print_stderr, reason = "a program's last words")]

use std::process::ExitCode;

fn main() -> ExitCode {
    match hydra_tests::caller::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
