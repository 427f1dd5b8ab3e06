//! What `supervise` promises: nothing that it started outlives it, whatever way it ends.
#![expect(clippy::unwrap_used, reason = "a helper of tests")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a shell script under supervision and reads the pid that it prints first.
fn supervised(script: &str) -> (Child, u32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["supervise", "--patience", "0", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

fn gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap_or_default();
    // An ended process whose parent is not us may wait a moment to be collected.
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

fn wait_until_gone(pid: u32) {
    let until = Instant::now() + Duration::from_mins(1);
    while !gone(pid) {
        assert!(Instant::now() < until, "process {pid} is still there");
        std::thread::yield_now();
    }
}

/// A process that detached itself: another session, no parent, no pipe of ours.
const DETACHED: &str = "setsid sh -c 'echo $$; exec sleep 3600 >/dev/null 2>&1' &";

#[test]
fn the_exit_code_is_the_commands_own() {
    let status = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["supervise", "--env", "CODE=7", "--", "sh", "-c", "exit $CODE"])
        .stdin(Stdio::piped())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_detached_process_ends_with_the_command() {
    let (mut child, pid) = supervised(&format!("({DETACHED}); sleep 0.2"));
    let held = child.stdin.take(); // waiting would close it
    assert!(child.wait().unwrap().success());
    drop(held);
    assert!(gone(pid));
}

#[test]
fn what_tidies_up_gets_its_time() {
    let ran = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["supervise", "--", "sh", "-c", "sleep 0.5 &"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            let held = child.stdin.take();
            let output = child.wait_with_output();
            drop(held);
            output
        })
        .unwrap();
    assert!(ran.status.success());
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "", "nothing had to be ended");
}

#[test]
fn a_closed_pipe_ends_the_tree() {
    let (mut child, pid) = supervised(&format!("({DETACHED}); exec sleep 3600"));
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(gone(pid));
}

#[test]
fn the_command_may_tidy_up() {
    let folder = std::env::temp_dir().join(format!("hydra-supervise-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let script =
        format!("trap 'rmdir {}; exit 3' TERM; echo $$; while :; do sleep 0.1; done", folder.display());
    let (mut child, _) = supervised(&script);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(!folder.exists());
}

#[test]
fn the_tree_ends_when_its_owner_is_killed() {
    // The owner is a shell that holds the only writing end of the pipe which the supervisor reads.
    let script = "exec 8> >(exec \"$0\" supervise -- sh -c 'echo $$; exec sleep 3600' 8>&-); read -r forever";
    let mut child = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_xtask")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim().parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(pid);
}
