//! `cargo xtask ebpf`: builds the kernel object that the agent embeds, or checks that the committed one is what the source builds.
//!
//! The object is in the repository beside its source, so that nobody needs an eBPF tool chain to build hydra. Two tool chains can
//! build it: Debian's compiler with its own library source, or rustup's nightly with `rust-src`. Beside the object stands which one
//! did; with the same one the bytes are equal, wherever the repository lies.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::process::{self, Job};
use crate::{say, step};

/// The linker's version that goes with LLVM 22, and the feature that says so.
const LINKER: (&str, &str) = ("0.13.0", "llvm-22");
const LLVM: &str = "/usr/lib/llvm-22";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const TARGET: &str = "bpfel-unknown-none";

/// The arguments of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Build into a folder of its own and compare with the committed object
    #[arg(long)]
    check: bool,
    /// Let the object log what it decides (for debugging; never committed)
    #[arg(long, conflicts_with = "check")]
    log: bool,
}

/// A compiler that has the library's source, and how to call it.
struct ToolChain {
    /// `rustc` by path, or a toolchain of rustup.
    rustc: PathBuf,
    cargo: Vec<String>,
    linker: PathBuf,
    /// What both say of themselves: recorded beside the object.
    name: String,
}

/// Builds, then writes or compares.
pub fn run(args: &Args) -> Result<ExitCode> {
    let chain = tool_chain()?;
    let object = build(&chain, args)?;
    let (place, beside) = (folder().join("hydra.bpf.o"), folder().join("hydra.bpf.toolchain"));
    if args.log {
        let place = crate::target().join("hydra-log.bpf.o");
        std::fs::write(&place, object).with_context(|| format!("cannot write `{}`", place.display()))?;
        say::line(&format!("An object that logs is in {}", place.display()));
        return Ok(ExitCode::SUCCESS);
    }
    if !args.check {
        std::fs::write(&place, &object).with_context(|| format!("cannot write `{}`", place.display()))?;
        std::fs::write(&beside, &chain.name)
            .with_context(|| format!("cannot write `{}`", beside.display()))?;
        say::line(&format!("Wrote {} bytes to {}", object.len(), place.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let committed = std::fs::read(&place).with_context(|| format!("cannot read `{}`", place.display()))?;
    let recorded =
        std::fs::read_to_string(&beside).with_context(|| format!("cannot read `{}`", beside.display()))?;
    if committed == object {
        say::line("The committed object is what its source builds, byte by byte");
        return Ok(ExitCode::SUCCESS);
    }
    if recorded == chain.name {
        let fresh = crate::target().join("hydra-fresh.bpf.o");
        std::fs::write(&fresh, &object).with_context(|| format!("cannot write `{}`", fresh.display()))?;
        return Err(anyhow::anyhow!(
            "hint: run `cargo xtask ebpf` and commit what it writes; the fresh object is `{}`",
            fresh.display()
        ))
        .context("the committed object is not what its source builds");
    }
    say::line(
        "The object was built, but by another tool chain than the committed one, so the bytes tell nothing:",
    );
    say::line(&format!("  committed  {}", recorded.trim()));
    say::line(&format!("  here       {}", chain.name.trim()));
    Ok(ExitCode::SUCCESS)
}

fn folder() -> PathBuf {
    crate::root().join("hydra-ebpf")
}

fn build(chain: &ToolChain, args: &Args) -> Result<Vec<u8>> {
    let target = crate::target().join("ebpf");
    // First, so that the folders that the crates lie in are there to be named below.
    let fetch = Job::cargo().args(["fetch", "--locked"]).dir(&folder());
    if !step::run("fetch the crates of the kernel object", &fetch, "done")?.status.success() {
        bail!("`{}` failed", fetch.shown());
    }
    // Nothing of this machine's paths may be in the object; debug information is what BTF is made from.
    let mut flags = format!(
        "-C linker={} -C debuginfo=2 -C link-arg=--btf --remap-path-prefix={}=hydra",
        chain.linker.display(),
        folder().display(),
    );
    for registry in std::fs::read_dir(cargo_home().join("registry/src")).into_iter().flatten().flatten() {
        let _ = write!(flags, " --remap-path-prefix={}=crates", registry.path().display());
    }
    let mut job =
        Job::new(chain.cargo.first().map_or("cargo", String::as_str)).args(chain.cargo.iter().skip(1));
    job = job
        .args([
            "build",
            "--package",
            "hydra-ebpf",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .args(if args.log { &["--features", "log"][..] } else { &[] })
        .dir(&folder())
        .env("RUSTC", &chain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", &target);
    if !step::run("build the kernel object", &job, "done")?.status.success() {
        bail!("the kernel object does not build");
    }
    let built = target.join(TARGET).join("release/hydra");
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read `{}`", built.display()))?;
    without_debug(&bytes)
}

/// The object without DWARF: BTF has what the kernel shows, and a quarter of the size.
fn without_debug(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut object =
        object::build::elf::Builder::read(bytes).context("cannot read the object that was built")?;
    for section in &mut object.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug") || name.starts_with(".rel.debug");
    }
    // LLVM keeps the names of sections with those of symbols; the writer wants them apart.
    let names = object.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = object::build::elf::SectionData::SectionString;
    let mut out = Vec::new();
    object.write(&mut out).context("cannot write the object without its debug information")?;
    Ok(out)
}

/// Whether there is a tool chain that is not Debian's, so that nothing has to be installed.
pub fn has_other_tool_chain() -> bool {
    process::exists("bpf-linker") && nightly().is_some()
}

fn tool_chain() -> Result<ToolChain> {
    let (rustc, cargo) = if Path::new(DEBIAN_SOURCE).exists() && Path::new(DEBIAN_RUSTC).exists() {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        (PathBuf::from(DEBIAN_RUSTC), vec![cargo])
    } else if let Some(rustc) = nightly() {
        (rustc, ["rustup", "run", "nightly", "cargo"].map(str::to_owned).to_vec())
    } else {
        return Err(anyhow::anyhow!(
            "hint: on Debian run `apt-get install rustc-web rust-web-src llvm-22-dev libzstd-dev zlib1g-dev libpolly-22-dev`, \
             elsewhere `rustup toolchain install nightly --component rust-src`"
        ))
        .context("no compiler here has the source of its library, which the kernel's target needs");
    };
    let linker = linker()?;
    let name = format!("{}\n{}\n", says(&rustc, "--version")?, says(&linker, "--version")?);
    Ok(ToolChain { rustc, cargo, linker, name })
}

/// rustup's nightly, if it has the library's source.
fn nightly() -> Option<PathBuf> {
    let run = |args: &[&str]| {
        let out = Command::new("rustup").args(["run", "nightly", "rustc"]).args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let sysroot = PathBuf::from(run(&["--print", "sysroot"])?);
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists().then(|| sysroot.join("bin/rustc"))
}

/// bpf-linker from the path, or from the project's cache, built there once.
fn linker() -> Result<PathBuf> {
    if let Some(found) = process::find("bpf-linker") {
        return Ok(found);
    }
    let cache =
        std::env::var_os("HYDRA_CACHE").map_or_else(|| cargo_home().join("hydra-cache"), PathBuf::from);
    let root = cache.join(format!("bpf-linker-{}", LINKER.0));
    let linker = root.join("bin/bpf-linker");
    if !linker.exists() {
        let path = std::env::join_paths(
            std::iter::once(Path::new(LLVM).join("bin"))
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let job = Job::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER.0,
                "--locked",
                "--no-default-features",
                "--features",
                LINKER.1,
            ])
            .args(["--root".as_ref(), root.as_os_str()])
            .env("LLVM_PREFIX", LLVM)
            .env("PATH", path);
        if !step::run("build the linker of the kernel's target (a minute or two, once)", &job, "done")?
            .status
            .success()
        {
            bail!("`{}` failed", job.shown());
        }
    }
    Ok(linker)
}

fn cargo_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

fn says(program: &Path, arg: &str) -> Result<String> {
    let out = Command::new(program)
        .arg(arg)
        .output()
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
