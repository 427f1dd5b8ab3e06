//! Finds the programs under test: those that `cargo xtask` built and names in the environment, else a build of their own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// The path of `hydra-agent` or `hydractl`.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        return Ok(path.into());
    }
    let directory = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    let directory = directory.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(directory.join(name))
}

/// Builds both, as `cargo test` does not build the programs of another package, and returns where they are.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["build", "--quiet", "--package", "hydra-agent", "--bins"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("cannot run cargo to build the agent\n\nhint: `cargo xtask test` builds it beforehand")?;
    ensure!(
        output.status.success(),
        "the agent could not be built: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // This program is `target/debug/deps/NAME-HASH` as a test and `target/debug/NAME` otherwise.
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program has no directory")?;
    let directory = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(directory.context("this program has no target directory")?.to_owned())
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let tests = manifest.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    tests.join("..")
}
