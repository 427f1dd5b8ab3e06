//! Where the agent's words go: the journal with their fields where systemd listens, else stderr.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Begins to log; once per process, later calls change nothing.
pub fn start(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(directives(filter))
        .map_err(|e| format!("`log` is no tracing filter: {e}"))?;
    let journal = stderr_is_journal().then(|| tracing_journald::layer().ok()).flatten();
    let started = if let Some(journal) = journal {
        tracing_subscriber::registry().with(journal.with_filter(filter)).try_init()
    } else {
        let plain = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter);
        tracing_subscriber::registry().with(plain).try_init()
    };
    // A test process may have a subscriber already.
    drop(started);
    Ok(())
}

/// A bare level is hydra's own: what its libraries do is rarely what somebody looks for.
fn directives(filter: &str) -> String {
    match filter.trim().parse::<LevelFilter>() {
        Ok(level) => format!("{},hydra_agent={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

/// systemd tells the device and inode of the stream that it reads: only if stderr is still that stream, the journal has it.
fn stderr_is_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    stderr.is_ok_and(|meta| told == format!("{}:{}", meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_bare_level_is_hydras_own() {
        assert_eq!(super::directives("debug"), "warn,hydra_agent=debug");
        assert_eq!(super::directives("off"), "off,hydra_agent=off");
        assert_eq!(super::directives("info,aya=trace"), "info,aya=trace");
    }

    #[test]
    fn a_wrong_filter_is_an_error_with_its_text() {
        let error = super::start("info,hydra_agent=loud").unwrap_err();
        assert!(error.starts_with("`log` is no tracing filter: "), "{error}");
    }
}
