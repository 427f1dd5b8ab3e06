//! What the demo, the benchmark and the tests need from the machine, in one list, and how it is installed.

use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ebpf;
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
    /// `cargo xtask bench`
    Bench,
    /// Its levels with live frames.
    LiveBench,
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
    /// The Debian package itself, where what it gives can come from elsewhere in a version that does not fit.
    Package,
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
    Need { sign: Sign::Package, package: "rustc-web", why: "compiles the kernel object", by: &[OBJECT] },
    Need {
        sign: Sign::Package,
        package: "rust-web-src",
        why: "has the library that the kernel object is built with",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Package,
        package: "llvm-22-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Package,
        package: "libpolly-22-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Package,
        package: "libzstd-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Package,
        package: "zlib1g-dev",
        why: "builds the linker of the kernel object",
        by: &[OBJECT],
    },
    Need {
        sign: Sign::Command("ip"),
        package: "iproute2",
        why: "makes namespaces, bridges and veths",
        by: &[For::Demo, For::DockerDemo, For::Bench, For::LiveBench, NETNS, DOCKER],
    },
    Need {
        sign: Sign::Command("iptables"),
        package: "iptables",
        why: "translates addresses as Docker does",
        by: &[For::LiveBench, NETNS],
    },
    Need {
        sign: Sign::Command("nft"),
        package: "nftables",
        why: "drops as fast as netfilter can",
        by: &[For::LiveBench],
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

/// Somebody whose needs this machine cannot meet, and why.
pub type Unmet = (For, String);

/// Installs what is missing for these; asks first on a terminal. What the machine's package sources do not have is answered: an
/// error is only what stops everybody.
pub fn install(who: &[For], yes: bool) -> Result<Vec<Unmet>> {
    let missing: Vec<&Need> =
        NEEDS.iter().filter(|need| need.by.iter().any(|by| who.contains(by)) && !need.met()).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    say::line("This machine lacks:");
    for need in &missing {
        say::line(&format!("  {:<22} {}", need.package, need.why));
    }
    agree(&missing, yes)?;
    let components: Vec<&str> =
        missing.iter().filter(|need| need.is_component()).map(|need| need.package).collect();
    if !components.is_empty() {
        add_components(&components)?;
    }
    let unmet =
        if missing.iter().all(|need| need.is_component()) { Vec::new() } else { packages(who, &missing)? };
    let given_up = |need: &Need| unmet.iter().any(|(by, _)| need.by.contains(by));
    match missing.iter().find(|need| !given_up(need) && !need.met()) {
        Some(need) => bail!("`{}` is installed, but what it is for is still not found", need.package),
        None => Ok(unmet),
    }
}

impl Need {
    fn is_component(&self) -> bool {
        matches!(self.sign, Sign::Component(_))
    }

    fn met(&self) -> bool {
        let says =
            |command: &str, args: &[&str]| Command::new(command).args(args).stderr(Stdio::null()).output();
        match self.sign {
            Sign::Command(command) => process::exists(command),
            Sign::File(file) => Path::new(file).exists(),
            Sign::Package if self.by == [OBJECT] && ebpf::has_other_tool_chain() => true,
            Sign::Package => {
                says("dpkg-query", &["--show", "--showformat=${db:Status-Status}", self.package])
                    .is_ok_and(|out| out.stdout == b"installed")
            }
            // rustup puts a stand-in for each command into the path, installed or not: only a call tells.
            Sign::Component(command) => says(command, &["--version"]).is_ok_and(|out| out.status.success()),
        }
    }
}

fn agree(missing: &[&Need], yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    let list = |component: bool, command: &str| {
        let of = missing.iter().filter(|need| need.is_component() == component);
        let names: Vec<&str> = of.map(|need| need.package).collect();
        (!names.is_empty()).then(|| format!("`{command} {}`", names.join(" ")))
    };
    let ways: Vec<String> =
        [list(false, "apt-get install"), list(true, "rustup component add")].into_iter().flatten().collect();
    let ways = ways.join(" and ");
    if !std::io::stdin().is_terminal() {
        return Err(anyhow::anyhow!("hint: say `--yes` to have it installed, or run {ways}"))
            .context("there is no terminal to ask whether to install this");
    }
    if say::ask(&format!("Install it ({ways})?")).context("cannot read the answer")? {
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

/// Installs the packages of everybody for whom there are all of them.
fn packages(who: &[For], missing: &[&Need]) -> Result<Vec<Unmet>> {
    let of = |by: For| -> Vec<&str> {
        let needs = missing.iter().filter(|need| !need.is_component() && need.by.contains(&by));
        needs.map(|need| need.package).collect()
    };
    let Some(apt_get) = process::find("apt-get") else {
        let why = |by| format!("there is no `apt-get` here to install {}", of(by).join(", "));
        return Ok(who.iter().filter(|by| !of(**by).is_empty()).map(|&by| (by, why(by))).collect());
    };
    process::allow_sudo()?;
    let job = |args: &[&str]| {
        // A machine that was just started may be at its own updates.
        let patient = ["-o", "DPkg::Lock::Timeout=300"];
        Job::new(&apt_get).env("DEBIAN_FRONTEND", "noninteractive").args(patient).args(args).for_root()
    };
    // Nothing that someone has installed is taken away for this.
    let install = ["install", "-q", "-y", "--no-install-recommends", "--no-remove"];
    must("fetch the lists of packages", &job(&["update", "-q"]))?;
    let mut wanted: Vec<&str> = Vec::new();
    let mut unmet = Vec::new();
    for &by in who {
        let packages = of(by);
        if packages.is_empty() {
            continue;
        }
        if job(&install).args(["--dry-run"]).args(&packages).run(|_| {})?.status.success() {
            wanted.extend(packages.iter().filter(|package| !wanted.contains(package)).collect::<Vec<_>>());
        } else {
            unmet.push((by, format!("this machine's package sources cannot give {}", packages.join(", "))));
        }
    }
    if !wanted.is_empty() {
        must(&format!("install {}", wanted.join(", ")), &job(&install).args(&wanted))?;
    }
    Ok(unmet)
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
        let met = |sign| Need { sign, package: "no-such-package-anywhere", why: "", by: &[] }.met();
        assert!(met(Sign::Command("sh")));
        assert!(met(Sign::File("/proc/self")));
        assert!(!met(Sign::Command("no-such-command-anywhere")));
        assert!(!met(Sign::Component("no-such-command-anywhere")));
        assert!(!met(Sign::Package));
    }

    #[test]
    fn nothing_is_listed_twice() {
        for (index, need) in NEEDS.iter().enumerate() {
            assert!(
                NEEDS[..index].iter().all(|other| other.package != need.package),
                "{} stands twice",
                need.package
            );
        }
    }
}
