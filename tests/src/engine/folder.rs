//! What engines are started from: a folder with a Debian suite and its engine in it, and the images of the containers. Made
//! once from the machine's own package sources, kept outside of the repository, never found half-made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

/// Packages of the image of the real servers and clients.
const SERVICES: &str = "postgresql,postgresql-client,redis-server,redis-tools,nginx-light,curl,iproute2,iputils-ping,netcat-openbsd";
/// Packages of the folder of firewalls.
const FIREWALLS: &str = "ufw,firewalld,nftables,iptables,dbus,kmod";
/// Finishes the image of the servers.
const FINISH: &str = include_str!("services.sh");
/// Counts up when this file makes something else of the same packages.
const RECIPE: u32 = 1;

/// Where all of it is kept.
pub fn cache() -> PathBuf {
    std::env::var_os("HYDRA_CACHE").map_or_else(|| PathBuf::from("/var/cache/hydra-tests"), PathBuf::from)
}

/// A folder with these packages of a suite in it.
pub fn root(suite: &str, packages: &str) -> Result<PathBuf> {
    once(&format!("engine-{suite}"), packages, |part| debian(suite, packages, &[], part))
}

/// A folder with the firewalls that hosts usually have.
pub fn firewalls() -> Result<PathBuf> {
    once("firewalls", FIREWALLS, |part| debian("bookworm", FIREWALLS, &[], part))
}

/// A tar of the image with the servers and clients.
pub fn services() -> Result<PathBuf> {
    once("services", &[SERVICES, FINISH].concat(), |part| {
        let hook = part.with_extension("hook");
        fs::write(&hook, FINISH)?;
        let finish = format!("--customize-hook=sh {} \"$1\"", hook.display());
        let slim = ["doc", "man", "info", "locale", "lintian"]
            .map(|directory| format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
        let mut options = vec![finish, "--format=tar".to_owned()];
        options.extend(slim);
        debian("bookworm", SERVICES, &options, part)?;
        Ok(fs::remove_file(&hook)?)
    })
}

/// Makes something under this name in the cache unless it is there, and returns its path. The recipe's text is part of the
/// name: another recipe is another thing.
pub fn once(name: &str, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = cache();
    let path = directory.join(format!("{name}-{:08x}", hash(recipe)));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
    let lock = File::create(directory.join(format!("{name}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if path.exists() {
        return Ok(path);
    }
    let part = directory.join(format!("{name}.part"));
    clear(&part)?;
    announce(&path);
    make(&part).with_context(|| format!("cannot make `{}`", path.display()))?;
    fs::rename(&part, &path)?;
    Ok(path)
}

#[expect(clippy::print_stderr, reason = "it takes a minute, in which whoever waits should know for what")]
fn announce(path: &Path) {
    eprintln!("making `{}`, once", path.display());
}

fn hash(recipe: &str) -> u32 {
    let bytes = recipe.bytes().chain(RECIPE.to_le_bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Removes a file or a folder, if there is one.
fn clear(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn debian(suite: &str, packages: &str, options: &[String], into: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=essential", "--quiet"])
        .arg(format!("--include={packages}"))
        // A mirror may lag behind by more than the two weeks that its signature of an unstable suite is said to hold.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .args(options)
        .args(proxies().iter().map(|line| format!("--aptopt={line}")))
        .arg(suite)
        .arg(into)
        .args(mirror())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null());
    let output = command
        .output()
        .context("cannot run `mmdebstrap`\n\nhint: `cargo xtask test` installs what the tests need")?;
    ensure!(
        output.status.success(),
        "mmdebstrap of `{suite}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The Debian mirror that this machine's own package manager uses; none elsewhere, and mmdebstrap takes Debian's own.
fn mirror() -> Option<String> {
    let targets =
        stdout("apt-get", &["indextargets", "--format", "$(REPO_URI) $(ORIGIN)", "Created-By: Packages"]);
    let debian =
        fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|line| line == "ID=debian"));
    targets.ok()?.lines().filter_map(|line| line.split_once(' ')).find_map(|(uri, origin)| {
        // Before the first `apt-get update` nobody knows the origin; Debian's own sources come first, by custom.
        let is_debian = origin == "Debian" || (debian && origin.starts_with("$("));
        (is_debian && !uri.contains("security")).then(|| uri.to_owned())
    })
}

/// The machine's own way to its mirrors, where there is a particular one.
fn proxies() -> Vec<String> {
    let dump = stdout("apt-config", &["dump", "--format", "%f \"%v\"%n", "Acquire"]).unwrap_or_default();
    dump.lines()
        .filter(|line| line.contains("::Proxy ") && !line.ends_with("\"\""))
        .map(str::to_owned)
        .collect()
}

fn stdout(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
