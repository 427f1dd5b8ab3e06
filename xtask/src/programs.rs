//! Builds the tests once, as the user, and finds the programs that came out.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::Job;
use crate::step;

/// A test program.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// The folder of its package in the workspace: `hydra-common`, `tests`.
    pub package: String,
    /// The target: `hydra_common`, `matrix`.
    pub target: String,
    /// Whether it is a file of the package's `tests/` folder.
    pub integration: bool,
    /// The program itself.
    pub file: PathBuf,
    /// The package's folder, which tests expect to run in.
    pub dir: PathBuf,
}

/// Everything a build gave.
#[derive(Debug, Default)]
pub struct Built {
    /// The test programs.
    pub tests: Vec<Program>,
    /// The binaries by name.
    pub binaries: Vec<(String, PathBuf)>,
}

/// Builds all test programs and the binaries that they start.
pub fn build_tests() -> Result<Built> {
    let mut built = cargo("build the programs", &["build", "--workspace", "--bins"])?;
    built.tests = cargo("build the tests", &["test", "--workspace", "--no-run"])?.tests;
    Ok(built)
}

/// Builds what the arguments say and returns the programs.
pub fn cargo(what: &str, args: &[&str]) -> Result<Built> {
    let job = Job::cargo().args(args).args(["--locked", "--message-format=json-render-diagnostics"]);
    let ran = step::run(what, &job, "done")?;
    if !ran.status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    read(&ran.out)
}

/// Reads cargo's messages, one JSON object a line.
fn read(messages: &str) -> Result<Built> {
    let mut built = Built::default();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cannot read a message of cargo")?;
        let Some(file) = message["executable"].as_str().map(PathBuf::from) else { continue };
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let manifest = PathBuf::from(message["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest.parent().context("a manifest without a folder")?.to_owned();
        let package = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if message["profile"]["test"] == Value::Bool(true) {
            built.tests.push(Program { package, target, integration: kind == "test", file, dir });
        } else {
            built.binaries.push((target, file));
        }
    }
    built
        .tests
        .sort_by(|a, b| (&a.package, a.integration, &a.target).cmp(&(&b.package, b.integration, &b.target)));
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_cargo_give_programs() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"kind":["test"],"name":"matrix"},"profile":{"test":true},"executable":"/t/matrix-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/hydra-agent/Cargo.toml","target":{"kind":["bin"],"name":"hydractl"},"profile":{"test":false},"executable":"/t/hydractl"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/w/x/Cargo.toml","target":{"kind":["lib"],"name":"x"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#
        );
        let built = read(messages).unwrap();
        assert_eq!(built.binaries, [("hydractl".to_owned(), PathBuf::from("/t/hydractl"))]);
        assert_eq!(
            built.tests,
            [Program {
                package: "tests".to_owned(),
                target: "matrix".to_owned(),
                integration: true,
                file: "/t/matrix-1".into(),
                dir: "/w/tests".into(),
            }]
        );
    }
}
