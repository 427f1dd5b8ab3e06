//! What is measured now, on stderr: a line that is written over on a terminal, elsewhere one now and then.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often something is said where there is no terminal.
const STILL: Duration = Duration::from_secs(10);

/// One run's.
#[derive(Debug)]
pub struct Progress {
    what: String,
    terminal: bool,
    said: Option<Instant>,
}

impl Progress {
    /// Of a level.
    pub fn of(what: &str) -> Self {
        Self { what: what.to_owned(), terminal: std::io::stderr().is_terminal(), said: None }
    }

    /// Says what it is at. Nobody is told where stderr is closed.
    pub fn at(&mut self, now: &str) {
        let mut err = std::io::stderr().lock();
        if self.terminal {
            let _ = write!(err, "\r\x1b[K{}: {now}", self.what);
            let _ = err.flush();
        } else if self.said.is_none_or(|said| said.elapsed() >= STILL) {
            let _ = writeln!(err, "{}: {now}", self.what);
            self.said = Some(Instant::now());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
