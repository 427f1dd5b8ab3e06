//! What a package installs is accepted by those who read it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

/// Past the test runner's capture: a skipped test must be seen.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn found(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

#[test]
fn systemd_accepts_the_unit() {
    if !found("systemd-analyze") {
        skipped("systemd-analyze is not installed: the unit was not verified");
        return;
    }
    // The daemon is not where the package puts it: everything else stays as it is.
    let unit = std::fs::read_to_string(packaging("hydra-agent.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/hydra-agent run\n"));
    let unit = unit.replace("/usr/bin/hydra-agent", env!("CARGO_BIN_EXE_hydra-agent"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hydra-agent.service");
    std::fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|l| l.contains("hydra")).collect();
    assert!(output.status.success() && ours.is_empty(), "systemd-analyze verify: {said}");
}

#[test]
fn the_unit_starts_before_docker_says_when_it_is_ready_and_has_no_right_too_many() {
    let unit = std::fs::read_to_string(packaging("hydra-agent.service")).unwrap();
    let value =
        |key: &str| unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    assert_eq!(value("Before"), "docker.service");
    assert_eq!(value("Type"), "notify");
    assert_ne!(value("WatchdogSec"), "");
    assert_eq!(value("StartLimitIntervalSec"), "0", "never give up");
    let named: Vec<&str> = value("CapabilityBoundingSet").split(' ').collect();
    let why = unit.lines().filter_map(|l| l.strip_prefix("# CAP_")).filter_map(|l| l.split(' ').next());
    let explained: Vec<String> = why.map(|name| format!("CAP_{name}")).collect();
    assert_eq!(named, explained, "each with its reason, in the same order");
}

#[test]
fn the_group_of_the_socket_is_made() {
    let users = std::fs::read_to_string(packaging("hydra.sysusers")).unwrap();
    assert!(users.lines().any(|l| l == "g hydra - -"));
}
