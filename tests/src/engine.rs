//! A real Docker engine that the tests install and start themselves, on a host of their own (a [`World`]): its own root folder,
//! data, control group and network namespace. The machine's own Docker, interfaces, firewall and groups are never touched.

mod cage;
pub mod container;
pub mod demo;
pub mod everything;
pub mod firewalls;
pub mod folder;
pub mod hydra;
pub mod stage;
pub mod user;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::topology::{HOST, Topology};
use crate::world::World;
use cage::Cage;

const BOOT: &str = include_str!("engine/boot.sh");

/// How long an engine may take to come up or to go down on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// The image with the real servers and clients; `serve` in it starts one.
pub const IMAGE: &str = "hydra-services";

/// The engines that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 20.10, from Debian bookworm: isolates networks in `DOCKER-ISOLATION`.
    V20,
    /// 28, from Debian sid: drops direct traffic between networks in raw PREROUTING.
    V28,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::V20, Self::V28];

    /// The Debian suite that it comes from.
    pub fn suite(self) -> &'static str {
        match self {
            Self::V20 => "bookworm",
            Self::V28 => "sid",
        }
    }

    fn packages(self) -> &'static str {
        match self {
            Self::V20 => "docker.io,iptables,mount",
            Self::V28 => "docker.io,docker-cli,iptables,mount",
        }
    }
}

/// What a test may want to have otherwise.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Containers outlive the daemon (`live-restore`), which is not the stock setting.
    pub live_restore: bool,
    /// Without docker-proxy (`userland-proxy: false`), which is not the stock setting.
    pub no_proxy: bool,
    /// `net.bridge.bridge-nf-call-iptables` and its twin for IPv6, where this kernel has them.
    pub bridge_netfilter: bool,
}

/// A running engine on a host of its own.
pub struct Engine {
    version: Version,
    options: Options,
    running: Running,
    // Last: the next test's turn begins when the rest is gone.
    world: World,
}

/// The engine's processes. Ended in this order: the daemon, what keeps the mount namespace, then everything that is left.
struct Running {
    daemon: Mutex<Option<Child>>,
    holder: Child,
    cage: Cage,
}

impl Engine {
    /// Starts it, with the image loaded, on a host that has this around it.
    pub fn start(version: Version, options: Options, around: &Topology) -> Result<Self> {
        let world = World::build(around)?;
        let folder = folder::root(version.suite(), version.packages())?;
        let running = folder::cache().join("run");
        Cage::sweep(&running)?;
        let tar = folder::services()?;
        let recipe = format!("{}{}", folder.display(), tar.display());
        let mut world = Some(world);
        // The data directory with the images in it is made once, by an engine of the same version.
        let template = folder::once(&format!("data-{}", version.suite()), &recipe, |part| {
            let at = running.join(cage::name());
            let (lent, options) = (world.take().context("the world is lent")?, Options::default());
            let engine = Self::boot(lent, version, options, &folder, &at, |_| Ok(()))?;
            engine.import(&tar)?;
            engine.stop_daemon()?;
            fs::rename(at.join("data"), part)?;
            drop(engine.running);
            world = Some(engine.world);
            Ok(())
        })?;
        let at = running.join(cage::name());
        let world = world.context("the world was not given back")?;
        Self::boot(world, version, options, &folder, &at, |data| clone(&template, data, false))
    }

    fn boot(
        world: World,
        version: Version,
        options: Options,
        folder: &Path,
        at: &Path,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let name = at.file_name().context("an engine's directory has a name")?;
        let cage = Cage::new(&name.to_string_lossy(), at)?;
        let data = at.join("data");
        fs::create_dir(&data)?;
        fill(&data)?;
        // As on a stock host, where it is the engine that switches forwarding on, and closes what it does not want forwarded.
        world.sysctl(HOST, "net.ipv4.ip_forward", "0")?;
        world.sysctl(HOST, "net.ipv6.conf.all.forwarding", "0")?;
        let nf = if options.bridge_netfilter { "1" } else { "0" };
        for name in ["iptables", "ip6tables"] {
            let name = format!("net.bridge.bridge-nf-call-{name}");
            if Path::new("/proc/sys").join(name.replace('.', "/")).exists() {
                world.sysctl(HOST, &name, nf)?;
            }
        }
        let (scratch, run) = (world.scratch("engine"), world.scratch("docker"));
        world.enter(HOST, || fs::create_dir_all(&scratch).and_then(|()| fs::create_dir_all(&run)))??;
        let mut command = cage.command(true, "unshare");
        command
            .args(["--mount", "--cgroup", "--propagation", "private", "sh", "-c", BOOT, "hydra-engine"])
            .args([folder, &scratch, &run, &data, cage.group()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut holder = world.spawn(HOST, command)?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take().context("no standard output")?).read_line(&mut said)?;
        if said.trim() != "ready" {
            let _ = holder.kill();
            let output = holder.wait_with_output()?;
            bail!(
                "cannot make a root of `{}`: {}",
                folder.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let running = Running { daemon: Mutex::new(None), holder, cage };
        let engine = Self { version, options, running, world };
        engine.start_daemon()?;
        Ok(engine)
    }

    /// Which engine it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The host that it runs on.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The same, to add to it.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// The cgroup that everything of it runs below.
    pub fn cgroup(&self) -> &Path {
        self.running.cage.group()
    }

    /// The engine's socket, for programs that run in the world.
    pub fn socket(&self) -> PathBuf {
        self.world.scratch("docker").join("docker.sock")
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Runs `docker ARGUMENTS` to its end.
    pub fn output<A: AsRef<str>>(&self, arguments: &[A]) -> Result<Output> {
        let mut command = self.inside(Command::new("nsenter"), &["--mount"]);
        command.arg("docker").args(arguments.iter().map(AsRef::as_ref));
        self.world.output(HOST, command)
    }

    /// Runs `docker ARGUMENTS` and returns what it printed; an error where it failed.
    pub fn docker<A: AsRef<str>>(&self, arguments: &[A]) -> Result<String> {
        let output = self.output(arguments)?;
        ensure!(
            output.status.success(),
            "`docker {}` failed: {}",
            arguments.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a program of the engine's own folder on its host, as whoever administers it would; an error where it failed.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.inside(Command::new("nsenter"), &["--mount"]);
        command.arg(program).args(arguments);
        let output = self.world.output(HOST, command)?;
        ensure!(
            output.status.success(),
            "`{program} {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.inside(self.running.cage.command(false, "nsenter"), &["--mount", "--cgroup"]);
        command.arg("dockerd").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if self.options.live_restore {
            command.arg("--live-restore");
        }
        if self.options.no_proxy {
            command.arg("--userland-proxy=false");
        }
        let mut daemon = self.world.spawn(HOST, command)?;
        let start = Instant::now();
        while !self.answers() {
            let ended = daemon.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                end(daemon);
                bail!("the engine does not come up ({ended:?}): {}", tail(&self.log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        *self.running.daemon() = Some(daemon);
        Ok(())
    }

    /// Ends the daemon as an operator would. Its containers end with it, unless `live_restore` is set.
    pub fn stop_daemon(&self) -> Result<()> {
        let mut daemon = self.running.daemon().take().context("the daemon is not running")?;
        kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
        let start = Instant::now();
        while daemon.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the engine does not end on SIGTERM: {}", tail(&self.log()));
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends the daemon without a word. Its containers run on.
    pub fn kill_daemon(&self) -> Result<()> {
        end(self.running.daemon().take().context("the daemon is not running")?);
        Ok(())
    }

    fn import(&self, tar: &Path) -> Result<()> {
        let mut command = self.inside(Command::new("nsenter"), &["--mount"]);
        command
            .args(["docker", "import", "-", IMAGE])
            .stdin(fs::File::open(tar)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = self.world.spawn(HOST, command)?.wait_with_output()?;
        ensure!(
            output.status.success(),
            "cannot import `{}`: {}",
            tar.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Completes an `nsenter` with these namespaces of the holder.
    fn inside(&self, mut command: Command, namespaces: &[&str]) -> Command {
        command.args(["--target", &self.running.holder.id().to_string()]).args(namespaces).arg("--");
        command
    }

    fn answers(&self) -> bool {
        let socket = self.socket();
        let ask = || -> std::io::Result<bool> {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.contains(" 200 "))
        };
        self.world.enter(HOST, ask).is_ok_and(|answer| answer.unwrap_or(false))
    }

    fn log_path(&self) -> PathBuf {
        self.running.cage.disk().join("dockerd.log")
    }
}

impl Running {
    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The cage ends everything else; these two are our children, and nobody else's to wait for.
        if let Some(daemon) = self.daemon().take() {
            end(daemon);
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Copies a data directory. Files of image layers, which nobody writes to, are linked instead.
fn clone(from: &Path, to: &Path, layer: bool) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        let status = entry.metadata()?;
        if kind.is_dir() {
            fs::create_dir(&target)?;
            clone(&source, &target, layer || entry.file_name() == "diff")?;
            chown(&target, Some(status.uid()), Some(status.gid()))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(status.mode()))?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(status.uid()), Some(status.gid()))?;
        } else if layer {
            fs::hard_link(&source, &target).with_context(|| format!("cannot link `{}`", source.display()))?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            chown(&target, Some(status.uid()), Some(status.gid()))?;
        }
    }
    Ok(())
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
