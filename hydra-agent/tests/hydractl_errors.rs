//! Every way in which `hydractl` cannot reach an agent, as a person sees it, and the exit code.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

fn hydractl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydractl"));
    command.env_remove("HYDRA_SOCKET").env("NO_COLOR", "1").env("COLUMNS", "100");
    command
}

/// What it printed, with the directory's name taken out.
fn seen(output: &Output, dir: &Path) -> String {
    let text = format!(
        "exit {}\n{}{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    text.replace(dir.to_str().unwrap(), "DIR")
}

/// A server that gives every connection the same bytes.
fn answering(path: &Path, answer: &'static [u8]) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
}

#[test]
fn every_way_of_not_reaching_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    drop(UnixListener::bind(at("dead")).unwrap());
    answering(&at("garbage"), b"220 mail.example ESMTP\r\n");
    answering(&at("web"), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    answering(
        &at("newer"),
        b"HTTP/1.1 200 OK\r\nhydra-abi: 99\r\nhydra-version: 7.1.0\r\ncontent-length: 2\r\n\r\n{}",
    );
    answering(&at("hangs-up"), b"");
    let ours = |rest: &str| format!("HTTP/1.1 200 OK\r\nhydra-abi: {}\r\n{rest}", hydra_common::ABI);
    answering(&at("halfway"), ours("content-length: 200\r\n\r\n{").into_bytes().leak());
    answering(&at("other-answer"), ours("content-length: 2\r\n\r\n{}").into_bytes().leak());
    let mut all = String::new();
    for name in ["absent", "file", "dead", "garbage", "web", "newer", "hangs-up", "halfway", "other-answer"] {
        let output = hydractl().arg("--socket").arg(at(name)).arg("status").output().unwrap();
        write!(all, "# {name}\n{}\n", seen(&output, dir.path())).unwrap();
    }
    let long = "x".repeat(200);
    let output = hydractl().args(["--socket", &format!("/tmp/{long}"), "status"]).output().unwrap();
    write!(all, "# too long\n{}\n", seen(&output, dir.path()).replace(&long, "x…")).unwrap();
    insta::assert_snapshot!(all);
}

#[test]
fn without_the_right_to_use_the_socket() {
    let root = nix::unistd::geteuid().is_root();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = dir.path().join("agent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(if root { 0o600 } else { 0 })).unwrap();
    let program = dir.path().join("hydractl");
    // By another process: a child that another test's thread makes meanwhile would have the copy open for writing, and it would not run.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_hydractl")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = Command::new(program);
    command.env("NO_COLOR", "1").env("HYDRA_SOCKET", &socket).arg("status");
    if root {
        command.uid(65_534).gid(65_534);
    }
    let output = command.output().unwrap();
    insta::assert_snapshot!(seen(&output, dir.path()));
}

#[test]
fn mistakes_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for args in [
        vec![],
        vec!["stat"],
        vec!["status", "--socket", "x"],
        vec!["status", "-o", "xml"],
        vec!["flows", "--limit", "many"],
        vec!["policy"],
        vec!["policy", "validate"],
        vec!["policy", "rollback", "0"],
        vec!["explain", "apps", "databases"],
        vec!["drops", "--follow", "--totals"],
        vec!["drops", "--json"],
        vec!["flows", "--fro", "apps"],
        vec!["completions", "sh"],
        vec!["policy", "validate", "/nonexistent/p.yaml"],
        vec!["policy", "validate", "-", "-"],
        vec!["policy", "apply", "/"],
    ] {
        let output = hydractl().args(&args).output().unwrap();
        write!(all, "# hydractl {}\n{}\n", args.join(" "), seen(&output, dir.path())).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn mistakes_on_the_agents_command_line() {
    let mut all = String::new();
    for args in [
        vec!["start"],
        vec!["run", "--polcy", "p.yaml"],
        vec!["run", "--listen", "0.0.0.0:9473"],
        vec!["run", "--attach", "xdp"],
        vec!["run", "--labels"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra-agent"));
        let output = command.args(&args).env("NO_COLOR", "1").env("COLUMNS", "100").output().unwrap();
        write!(all, "# hydra-agent {}\n{}\n", args.join(" "), seen(&output, Path::new("/nonexistent")))
            .unwrap();
    }
    insta::assert_snapshot!(all);
}

/// As an unset one: a variable of a unit or a script that was left empty.
#[test]
fn an_empty_variable_names_no_socket() {
    let output = hydractl().env("HYDRA_SOCKET", "").args(["--help"]).output().unwrap();
    assert!(output.status.success());
    let output = hydractl().env("HYDRA_SOCKET", "").arg("status").output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("``"), "{output:?}");
}

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    for args in [
        "",
        "policy",
        "policy validate",
        "policy test",
        "policy show",
        "policy diff",
        "policy apply",
        "policy rollback",
        "policy history",
        "explain",
        "status",
        "endpoints",
        "flows",
        "drops",
        "completions",
    ] {
        let output =
            hydractl().args(args.split(' ').filter(|a| !a.is_empty())).arg("--help").output().unwrap();
        assert!(output.status.success());
        write!(all, "# hydractl {args}\n{}\n", String::from_utf8(output.stdout).unwrap()).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = hydractl().args(["completions", shell]).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("endpoints"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let script = format!(
        "{} completions bash | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_hydractl")
    );
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
