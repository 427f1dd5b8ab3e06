//! Runs one command and outlives everything it starts.
//!
//! It adopts orphans (child subreaper), so a daemon that detached itself is found as well. When its stdin closes, which
//! also happens when whoever started it is killed, or when it is told to stop, it ends the whole tree. That needs no right
//! to signal processes of root from outside: closing a pipe is enough.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process;

/// How long the command may take to tidy up after the request to stop, before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// How often the state of things is looked at.
const LOOK: Duration = Duration::from_millis(30);

/// `supervise`: what to run, and how.
#[derive(clap::Args)]
pub struct Args {
    /// Environment for the command: NAME=VALUE
    #[arg(long = "env")]
    envs: Vec<String>,
    /// Folder to run it in
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many seconds what the command left behind may take to end by itself
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command; the exit code is its own, 128 and the signal where one ended it.
pub fn run(args: &Args) -> ExitCode {
    match supervise(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            note(&format!("error: cannot run `{}`: {error:#}", args.command[0].to_string_lossy()));
            ExitCode::from(127)
        }
    }
}

fn supervise(args: &Args) -> anyhow::Result<u8> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut command = Command::new(&args.command[0]);
    // A group of its own, so that Ctrl-C reaches it once and through us.
    command.args(&args.command[1..]).stdin(Stdio::null()).process_group(0);
    for pair in &args.envs {
        if let Some((name, value)) = pair.split_once('=') {
            command.env(name, value);
        }
    }
    if let Some(dir) = &args.dir {
        command.current_dir(dir);
    }
    let mut child = command.spawn()?;
    let status = match wait_or_stop(&mut child)? {
        Some(status) => status,
        None => stop(&mut child)?,
    };
    end_descendants(Duration::from_secs(args.patience));
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, signal) => 128 + u8::try_from(signal.unwrap_or(0)).unwrap_or(0),
    })
}

/// Waits for the end of the command; `None` when it is to be stopped instead.
fn wait_or_stop(child: &mut Child) -> anyhow::Result<Option<ExitStatus>> {
    std::thread::spawn(|| {
        // Nobody writes to this pipe: its end means that whoever wanted this is no longer there.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        process::stop();
    });
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if process::stopped() {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
        reap(child.id());
    }
}

/// Asks the command to stop, and makes it when it does not.
fn stop(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let group = Pid::from_raw(child.id().cast_signed());
    let _ = kill(group, Signal::SIGTERM);
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
    let _ = killpg(group, Signal::SIGKILL);
    Ok(child.wait()?)
}

/// Ends what the command left behind. What tidies up after it gets the time to do so; then politely, then not.
fn end_descendants(patience: Duration) {
    if all_gone(patience, None) {
        return;
    }
    let names: Vec<String> = descendants().iter().map(|&pid| format!("{} ({pid})", name(pid))).collect();
    note(&format!("note: processes left behind, ended now: {}", names.join(", ")));
    let _ = all_gone(GRACE / 2, Some(Signal::SIGTERM)) || all_gone(GRACE, Some(Signal::SIGKILL));
}

/// Waits until there are no descendants any more, and sends each that there is a signal, once: some take the second as haste.
fn all_gone(patience: Duration, signal: Option<Signal>) -> bool {
    let until = Instant::now() + patience;
    let mut told = HashSet::new();
    loop {
        let left = descendants();
        if left.is_empty() || Instant::now() > until {
            return left.is_empty();
        }
        for pid in left {
            if told.insert(pid) {
                let _ = kill(pid, signal);
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Collects ended orphans, but not the command itself: its status is asked for by its own handle.
fn reap(main: u32) {
    for pid in children(Pid::this()) {
        if pid.as_raw().cast_unsigned() != main {
            // Nothing is to be known about how an orphan ended.
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Every living process below this one.
fn descendants() -> Vec<Pid> {
    reap(0);
    let mut found = children(Pid::this());
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn children(parent: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

fn name(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

/// A word in between goes to stderr, like the command's own; the pipe may be closed already.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
