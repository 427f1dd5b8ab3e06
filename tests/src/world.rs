//! A host of its own: a network namespace with bridges, containers as named namespaces behind veths, machines behind an
//! uplink; and a mount namespace with its own `/run/netns`, its own bpffs and a scratch directory.
//!
//! Nothing has to be torn down: namespaces, mounts, pins and interfaces live as long as the file descriptors and processes of
//! this process, which the kernel ends with it on a panic, on Ctrl-C and on SIGKILL alike.

mod adopted;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::topology::{Bridge, Container, HOST, Machine, Topology};

/// Where a world keeps its files: a tmpfs of the world's own mount namespace. Outside of worlds it is an empty directory that
/// holds the lock.
pub const SCRATCH: &str = "/run/hydra-tests";
/// Where namespaces have their names; a tmpfs of the world's own.
pub const NAMES: &str = "/run/netns";

type Job = Box<dyn FnOnce() + Send>;

/// A living host.
pub struct World {
    topology: Topology,
    spaces: BTreeMap<String, Arc<File>>,
    mounts: Arc<File>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    keeper: Option<thread::JoinHandle<()>>,
    // Last: the next world may begin when everything above is gone.
    turn: Option<Flock<File>>,
}

impl World {
    /// Builds it, and waits before until no other world of this machine is up: two cores measure nothing well twice.
    pub fn build(topology: &Topology) -> Result<Self> {
        require_root()?;
        let turn = turn()?;
        let mut world = Self::beside(topology)?;
        world.turn = Some(turn);
        Ok(world)
    }

    /// Builds it without waiting for a turn: for a second world beside one that the caller holds.
    pub fn beside(topology: &Topology) -> Result<Self> {
        require_root()?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        // Processes are started from this thread alone: they are to die with their parent *thread*, and it lives as long as
        // the world does.
        let keeper = thread::Builder::new().name("hy-world".into()).spawn(move || {
            let spaces = new_host();
            let failed = spaces.is_err();
            let _ = ready.send(spaces);
            if failed {
                return;
            }
            for job in queue {
                job();
            }
        })?;
        let (host, mounts) = made.recv().context("the world's thread ended before the world was made")??;
        let mut world = Self {
            topology: Topology::default(),
            spaces: BTreeMap::from([(HOST.to_owned(), Arc::new(host))]),
            mounts: Arc::new(mounts),
            jobs: Mutex::new(Some(jobs)),
            keeper: Some(keeper),
            turn: None,
        };
        world.populate(topology)?;
        Ok(world)
    }

    /// What it was built from, with what was added since.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A directory for this world's files, gone with it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        Path::new(SCRATCH).join(name)
    }

    /// The world's own bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.scratch("bpf")
    }

    /// Runs a function in a place of the world, on a thread of its own. Sockets that it opens stay in that place.
    pub fn enter<R: Send>(&self, place: &str, run: impl FnOnce() -> R + Send) -> Result<R> {
        let space = self.space(place)?;
        let mounts = &self.mounts;
        thread::scope(|scope| {
            scope
                .spawn(move || -> Result<R> {
                    join(&space, mounts)?;
                    Ok(run())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a program in a place of the world. It is killed when the world goes, however that comes about.
    pub fn spawn(&self, place: &str, mut command: Command) -> Result<Child> {
        let (space, host) = (self.space(place)?, self.space(HOST)?);
        let what = format!("{command:?}");
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        self.on_keeper(move || -> Result<Child> {
            setns(space.as_fd(), CloneFlags::CLONE_NEWNET)?;
            let child = command.spawn();
            setns(host.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(child?)
        })?
        .with_context(|| format!("cannot start {what}"))
    }

    /// Runs a program in a place of the world to its end and returns what it printed.
    pub fn output(&self, place: &str, mut command: Command) -> Result<std::process::Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.spawn(place, command)?.wait_with_output()?)
    }

    /// Runs lines of `ip` in a place of the world.
    pub fn ip(&self, place: &str, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(place, command)?;
        let mut input = child.stdin.take().context("ip has no standard input")?;
        input.write_all((lines.join("\n") + "\n").as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip failed in {place}: {}\n{}",
            String::from_utf8_lossy(&output.stderr).trim(),
            lines.join("\n")
        );
        Ok(())
    }

    /// Writes a sysctl in a place of the world.
    pub fn sysctl(&self, place: &str, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(place, || fs::write(&path, value))?.with_context(|| format!("cannot write {path}"))
    }

    /// The host-side name of a container's interface (`eth0` is 0).
    pub fn port_name(container: &str, index: usize) -> String {
        // Interface names hold 15 bytes; a hash keeps long container names apart.
        let hash =
            container.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        format!("hy{hash:08x}{index}")
    }

    /// Adds a bridge.
    pub fn add_bridge(&mut self, bridge: &Bridge) -> Result<()> {
        self.ip(HOST, &bridge_lines(bridge))?;
        self.topology.bridges.push(bridge.clone());
        Ok(())
    }

    /// Adds a container with all its ports.
    pub fn add_container(&mut self, container: &Container) -> Result<()> {
        self.add_space(&container.name, true)?;
        self.ip(HOST, &port_lines(container))?;
        self.ip(&container.name, &self.stack_lines(container))?;
        self.topology.containers.push(container.clone());
        Ok(())
    }

    /// Takes a container away, as its end would: the name, the namespace, its ports.
    pub fn remove_container(&mut self, name: &str) -> Result<()> {
        let position = self.topology.containers.iter().position(|c| c.name == name);
        let container =
            self.topology.containers.remove(position.with_context(|| format!("no container {name}"))?);
        let lines: Vec<_> =
            (0..container.ports.len()).map(|i| format!("link del {}", Self::port_name(name, i))).collect();
        self.ip(HOST, &lines)?;
        let path = Path::new(NAMES).join(name);
        self.enter(HOST, || -> Result<()> {
            nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)?;
            Ok(fs::remove_file(&path)?)
        })??;
        self.spaces.remove(name);
        Ok(())
    }

    /// An interface's index as a place sees it.
    pub fn ifindex(&self, place: &str, interface: &str) -> Result<u32> {
        self.enter(place, || nix::net::if_::if_nametoindex(interface))?
            .with_context(|| format!("no interface {interface} in {place}"))
    }

    /// An interface's MAC as a place sees it.
    pub fn mac(&self, place: &str, interface: &str) -> Result<[u8; 6]> {
        let name = interface.to_owned();
        self.enter(place, move || -> Result<[u8; 6]> {
            nix::ifaddrs::getifaddrs()?
                .filter(|i| i.interface_name == name)
                .find_map(|i| i.address?.as_link_addr()?.addr())
                .with_context(|| format!("no MAC on {name}"))
        })?
    }

    fn populate(&mut self, topology: &Topology) -> Result<()> {
        for (name, value) in [("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")] {
            self.sysctl(HOST, name, value)?;
        }
        let mut lines = vec!["link set lo up".to_owned()];
        for bridge in &topology.bridges {
            lines.extend(bridge_lines(bridge));
        }
        for container in &topology.containers {
            self.add_space(&container.name, true)?;
            lines.extend(port_lines(container));
        }
        self.ip(HOST, &lines)?;
        self.topology.bridges.clone_from(&topology.bridges);
        for container in &topology.containers {
            self.ip(&container.name, &self.stack_lines(container))?;
        }
        self.topology = topology.clone();
        self.add_outside(&topology.uplink, &topology.machines)
    }

    fn add_outside(&mut self, uplink: &[IpNet], machines: &[Machine]) -> Result<()> {
        if uplink.is_empty() {
            return Ok(());
        }
        // A switch of its own, as outside: nothing of it is a bridge of the host.
        self.add_space(LAN, false)?;
        let mut lines = vec![format!("link add hyup0 type veth peer name wan0 netns {}", self.path_of(LAN)?)];
        lines.extend(uplink.iter().map(|a| address_line("hyup0", a)));
        lines.push("link set hyup0 up".into());
        for address in machines.iter().flat_map(|m| &m.addresses) {
            if !uplink.iter().any(|u| u.contains(address)) {
                lines.push(format!("route add {} dev hyup0", IpNet::from(*address)));
            }
        }
        self.ip(HOST, &lines)?;
        let mut switch: Vec<String> =
            ["link add lan0 type bridge", "link set lan0 up", "link set wan0 master lan0 up"]
                .map(str::to_owned)
                .to_vec();
        for (index, machine) in machines.iter().enumerate() {
            self.add_space(&machine.name, false)?;
            switch.push(format!(
                "link add m{index} type veth peer name eth0 netns {}",
                self.path_of(&machine.name)?
            ));
            switch.push(format!("link set m{index} master lan0 up"));
        }
        self.ip(LAN, &switch)?;
        for machine in machines {
            let mut lines = vec!["link set lo up".to_owned()];
            lines.extend(machine.addresses.iter().map(|a| address_line("eth0", &IpNet::from(*a))));
            lines.push("link set eth0 up".into());
            for gateway in uplink.iter().map(IpNet::addr) {
                if machine.addresses.iter().any(|a| a.is_ipv6() == gateway.is_ipv6()) {
                    lines.push(format!("route add {} dev eth0", IpNet::from(gateway)));
                    lines.push(format!("route add default via {gateway} dev eth0"));
                }
            }
            self.ip(&machine.name, &lines)?;
        }
        Ok(())
    }

    fn add_space(&mut self, name: &str, named: bool) -> Result<()> {
        ensure!(!self.spaces.contains_key(name), "the world has a place `{name}` already");
        let path = Path::new(NAMES).join(name);
        let space = self.enter(HOST, || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            stack_defaults()?;
            if named {
                File::create(&path)?;
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            }
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        self.spaces.insert(
            name.to_owned(),
            Arc::new(space.with_context(|| format!("cannot make namespace {name}"))?),
        );
        Ok(())
    }

    fn stack_lines(&self, container: &Container) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        for (index, port) in container.ports.iter().enumerate() {
            lines.extend(port.addresses.iter().map(|a| address_line(&format!("eth{index}"), a)));
            lines.push(format!("link set eth{index} up"));
        }
        lines.extend(self.topology.gateways(container).iter().map(|g| format!("route add default via {g}")));
        lines
    }

    fn path_of(&self, place: &str) -> Result<String> {
        use std::os::fd::AsRawFd;
        Ok(format!("/proc/{}/fd/{}", std::process::id(), self.space(place)?.as_raw_fd()))
    }

    fn space(&self, place: &str) -> Result<Arc<File>> {
        self.spaces.get(place).cloned().with_context(|| format!("the world has no place `{place}`"))
    }

    fn on_keeper<R: Send + 'static>(&self, run: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = reply.send(run());
        });
        let jobs = self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        jobs.as_ref().and_then(|j| j.send(job).ok()).context("the world's thread has ended")?;
        answer.recv().context("the world's thread ended in the middle of a job")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ok(mut jobs) = self.jobs.lock() {
            jobs.take();
        }
        // Its end kills what it started.
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// The switch that the uplink and the machines are on.
const LAN: &str = "lan";

/// Refuses clearly where the tests can't work.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("this test makes network namespaces, which needs root\n\nhint: `cargo xtask test` (it uses sudo)")
}

/// Waits for this machine's one turn, and says so where it has to.
fn turn() -> Result<Flock<File>> {
    fs::create_dir_all(SCRATCH).with_context(|| format!("cannot make {SCRATCH}"))?;
    take_turn(&Path::new(SCRATCH).join("lock"), &mut std::io::stderr())
}

/// The lock holds the number of the process that has it. `said` is not `eprintln!`: what a test prints is shown when it is over.
fn take_turn(path: &Path, said: &mut impl Write) -> Result<Flock<File>> {
    let cannot = || format!("cannot lock {}", path.display());
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    let mut turn = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(turn) => turn,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let _ = writeln!(said, "waiting for another run{holder}");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).with_context(cannot)?
        }
        Err((_, errno)) => return Err(errno).with_context(cannot),
    };
    turn.set_len(0)?;
    turn.rewind()?;
    write!(turn, "{}", std::process::id())?;
    Ok(turn)
}

/// On the keeper's thread: namespaces of its own, and files that hold them.
fn new_host() -> Result<(File, File)> {
    for directory in [SCRATCH, NAMES] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("cannot make namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")?;
    for directory in [SCRATCH, NAMES] {
        mount(Some("hydra-tests"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .with_context(|| format!("cannot mount a tmpfs on {directory}"))?;
    }
    let bpffs = Path::new(SCRATCH).join("bpf");
    fs::create_dir(&bpffs)?;
    mount(Some("hydra-tests"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .context("cannot mount a bpffs: has this kernel BPF?")?;
    stack_defaults()?;
    Ok((File::open("/proc/thread-self/ns/net")?, File::open("/proc/thread-self/ns/mnt")?))
}

fn join(space: &File, mounts: &File) -> Result<()> {
    unshare(CloneFlags::CLONE_FS)?;
    setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace")?;
    setns(space.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")
}

/// What every stack of a world has, before it has interfaces: addresses that work at once, ping sockets for everybody, and no
/// opinion on which way packets come.
fn stack_defaults() -> Result<()> {
    for (name, value) in [
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_ra", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn bridge_lines(bridge: &Bridge) -> Vec<String> {
    let name = &bridge.name;
    let mut lines = vec![format!("link add {name} type bridge forward_delay 0")];
    lines.extend(bridge.addresses.iter().map(|a| address_line(name, a)));
    lines.push(format!("link set {name} up"));
    lines
}

fn port_lines(container: &Container) -> Vec<String> {
    let mut lines = Vec::new();
    for (index, port) in container.ports.iter().enumerate() {
        let name = World::port_name(&container.name, index);
        lines.push(format!("link add {name} type veth peer name eth{index} netns {}", container.name));
        lines.push(format!("link set {name} master {} up", port.bridge));
    }
    lines
}

fn address_line(interface: &str, address: &IpNet) -> String {
    let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
    format!("address add {address} dev {interface}{nodad}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_wait_for_the_turn_is_told_for_whom() {
        let path = std::env::temp_dir().join(format!("hydra-turn-{}", std::process::id()));
        let mut said = Vec::new();
        let first = take_turn(&path, &mut said).unwrap();
        assert_eq!(said, b"");
        let (tell, told) = mpsc::channel();
        let other = path.clone();
        let waiting = thread::spawn(move || take_turn(&other, &mut Telling(tell)).map(drop));
        assert_eq!(told.recv().unwrap(), format!("waiting for another run (pid {})\n", std::process::id()));
        drop(first);
        waiting.join().unwrap().unwrap();
        fs::remove_file(path).unwrap();
    }

    /// Sends what is written, whole lines at a time.
    struct Telling(mpsc::Sender<String>);

    impl Write for Telling {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.write_all(bytes).map(|()| bytes.len())
        }
        fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(())
        }
        fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
            self.write_all(text.to_string().as_bytes())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
