//! What the demo and the tests need from the machine, in one list, and how it is installed.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::layer::Layer;
use crate::process::{self, Job};
use crate::say;
use crate::step;

/// Who needs a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// `cargo xtask demo`
    Demo,
    /// `cargo xtask demo --docker`
    DockerDemo,
    /// A layer of the tests.
    Layer(Layer),
}

/// How a thing is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// A command.
    Command(&'static str),
    /// A file.
    File(&'static str),
    /// A command of the Rust tool chain, which rustup installs.
    Component(&'static str),
}

struct Need {
    sign: Sign,
    /// The Debian package, or the component of rustup.
    package: &'static str,
    why: &'static str,
    by: &'static [For],
}

const NETNS: For = For::Layer(Layer::Netns);
const DOCKER: For = For::Layer(Layer::Docker);
const LINT: For = For::Layer(Layer::Lint);
const OBJECT: For = For::Layer(Layer::Object);

/// The list. Nothing else in the project says what is needed.
const NEEDS: &[Need] = &[
    Need { sign: Sign::Component("rustfmt"), package: "rustfmt", why: "checks the formatting", by: &[LINT] },
    Need { sign: Sign::Component("cargo-clippy"), package: "clippy", why: "checks the code", by: &[LINT] },
    Need {
        sign: Sign::File("/usr/bin/rustc"),
        package: "rustc-web",
        why: "compiles the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::File("/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
        package: "rust-web-src",
        why: "has the library that the kernel object is built with",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::File("/usr/lib/llvm-22/bin/llvm-config"),
        package: "llvm-22-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::File("/usr/lib/llvm-22/lib/libPolly.a"),
        package: "libpolly-22-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::File("/usr/include/zstd.h"),
        package: "libzstd-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::File("/usr/include/zlib.h"),
        package: "zlib1g-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Command("ip"),
        package: "iproute2",
        why: "makes namespaces, bridges and veths",
        by: &[For::Demo, For::DockerDemo, NETNS, DOCKER],
    },
    Need {
        sign: Sign::Command("mmdebstrap"),
        package: "mmdebstrap",
        why: "makes the folders that the engines and the servers in the containers run from",
        by: &[For::DockerDemo, DOCKER],
    },
    Need {
        sign: Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        package: "debian-archive-keyring",
        why: "proves that what is in these folders is Debian's",
        by: &[For::DockerDemo, DOCKER],
    },
];

/// Installs what is missing for these; asks first on a terminal.
pub fn install(who: &[For], yes: bool) -> Result<()> {
    let missing: Vec<&Need> =
        NEEDS.iter().filter(|need| need.by.iter().any(|by| who.contains(by)) && !there(need.sign)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say::line("This machine lacks:");
    for need in &missing {
        say::line(&format!("  {:<18} {}", need.package, need.why));
    }
    let components: Vec<&str> = packages(&missing, true);
    let debian: Vec<&str> = packages(&missing, false);
    agree(&debian, &components, yes)?;
    if !components.is_empty() {
        add_components(&components)?;
    }
    if !debian.is_empty() {
        apt_get(&debian)?;
    }
    match missing.iter().find(|need| !there(need.sign)) {
        Some(need) => bail!("`{}` is installed, but what it is for is still not found", need.package),
        None => Ok(()),
    }
}

fn packages(missing: &[&Need], component: bool) -> Vec<&'static str> {
    missing
        .iter()
        .filter(|need| matches!(need.sign, Sign::Component(_)) == component)
        .map(|need| need.package)
        .collect()
}

fn there(sign: Sign) -> bool {
    match sign {
        Sign::Command(command) => process::exists(command),
        Sign::File(file) => Path::new(file).exists(),
        // rustup puts a stand-in for each command into the path, installed or not: only a call tells.
        Sign::Component(command) => std::process::Command::new(command)
            .arg("--version")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
    }
}

fn agree(debian: &[&str], components: &[&str], yes: bool) -> Result<()> {
    let mut ways = Vec::new();
    if !debian.is_empty() {
        ways.push(format!("apt-get install {}", debian.join(" ")));
    }
    if !components.is_empty() {
        ways.push(format!("rustup component add {}", components.join(" ")));
    }
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(anyhow::anyhow!(
            "hint: say `--yes` to have it installed, or run `{}`",
            ways.join("` and `")
        ))
        .context("there is no terminal to ask whether to install this");
    }
    if say::ask(&format!("Install them ({})?", ways.join("; "))).context("cannot read the answer")? {
        return Ok(());
    }
    bail!("not installed, so nothing was run");
}

fn add_components(components: &[&str]) -> Result<()> {
    if !process::exists("rustup") {
        bail!("there is no `rustup` here to add {}", components.join(", "));
    }
    must("add to the Rust tool chain", &Job::new("rustup").args(["component", "add"]).args(components))
}

fn apt_get(packages: &[&str]) -> Result<()> {
    let Some(apt_get) = process::find("apt-get") else {
        bail!(
            "there is no `apt-get` here; install these with your own package manager: {}",
            packages.join(", ")
        );
    };
    process::allow_sudo()?;
    let job = || {
        // A machine that was just started may be at its own updates.
        let patient = ["-o", "DPkg::Lock::Timeout=300"];
        Job::new(&apt_get).env("DEBIAN_FRONTEND", "noninteractive").args(patient).for_root()
    };
    must("fetch the lists of packages", &job().args(["update", "-q"]))?;
    must(
        &format!("install {}", packages.join(", ")),
        &job().args(["install", "-q", "-y", "--no-install-recommends"]).args(packages),
    )
}

fn must(what: &str, job: &Job) -> Result<()> {
    if step::run(what, job, "done")?.status.success() {
        return Ok(());
    }
    bail!("`{}` failed", job.shown());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_there_and_nonsense_is_not() {
        assert!(there(Sign::Command("sh")));
        assert!(!there(Sign::Command("no-such-command-anywhere")));
        assert!(!there(Sign::Component("no-such-command-anywhere")));
    }

    #[test]
    fn nothing_is_listed_twice() {
        for (index, need) in NEEDS.iter().enumerate() {
            assert!(
                NEEDS[..index].iter().all(|other| other.sign != need.sign),
                "{:?} stands twice",
                need.sign
            );
        }
    }
}
