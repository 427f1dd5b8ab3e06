//! Everything that the verbs print: words and tables on stdout, errors on stderr, a moving line on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a long step says where no terminal is that it is still at work.
const STILL: Duration = Duration::from_mins(1);

/// Prints one line.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints what a step wrote, indented.
pub fn quote(text: &str) {
    print(&text.lines().flat_map(|row| ["    ", row, "\n"]).collect::<String>());
}

/// Where nobody reads any more, as after `| head`, the run is stopped as by Ctrl-C, so that what it started is tidied up.
fn print(text: &str) {
    if !reaches(&mut std::io::stdout().lock(), text) {
        crate::process::stop();
    }
}

fn reaches(out: &mut impl Write, text: &str) -> bool {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Prints an error with its causes; a cause that begins with `hint:` stands apart.
pub fn failure(error: &anyhow::Error) {
    let mut words = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        match cause.strip_prefix("hint: ") {
            Some(hint) => hints.push(hint.to_owned()),
            None => words.push(cause),
        }
    }
    let hints: String = hints.iter().flat_map(|hint| ["\nhint: ", hint, "\n"]).collect();
    // Nobody is told where stderr is closed: there is nobody to tell.
    let _ = write!(std::io::stderr(), "error: {}\n{hints}", words.join(": "));
}

/// Asks a question that is answered with yes by a bare return.
pub fn ask(question: &str) -> std::io::Result<bool> {
    print(&format!("{question} [Y/n] "));
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer)? == 0 {
        return Ok(false);
    }
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 5 s`.
pub fn time(took: Duration) -> String {
    let seconds = took.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", took.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// The life of one step on the screen: a spinner on a terminal, a line now and then elsewhere.
pub struct Progress {
    what: String,
    begun: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts to show a step.
    pub fn start(what: &str) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {elapsed} {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            line(&format!("  {what} ..."));
        }
        Self { what: what.to_owned(), begun: now, said: now, bar }
    }

    /// Shows what the step is at.
    pub fn at(&mut self, now: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(now.trim().to_owned()),
            None if self.said.elapsed() >= STILL => {
                line(&format!(
                    "  {} still runs after {}: {}",
                    self.what,
                    time(self.begun.elapsed()),
                    now.trim()
                ));
                self.said = Instant::now();
            }
            None => {}
        }
    }

    /// Ends the step with a word on how it went, and returns how long it took.
    pub fn end(self, word: &str) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.begun.elapsed();
        line(&format!("  {}: {word} ({})", self.what, time(took)));
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_away_is_noticed() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        assert!(reaches(&mut writer, "a line\n"));
        drop(reader);
        assert!(!reaches(&mut writer, "another\n"));
    }

    #[test]
    fn durations_read_like_words() {
        assert_eq!(time(Duration::from_millis(440)), "0.4 s");
        assert_eq!(time(Duration::from_secs(12)), "12 s");
        assert_eq!(time(Duration::from_secs(185)), "3 min 5 s");
    }
}
