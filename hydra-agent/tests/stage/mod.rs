//! A stage for one test: a network namespace that plays the host, in a mount namespace of its own, on a thread that ends with
//! the test. Everything goes with the thread, whatever happens.

#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it is skipped"
)]
#![allow(clippy::unused_self, reason = "what acts on the stage needs one")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// What a test gets.
pub struct Stage {
    directory: PathBuf,
    children: Vec<Child>,
}

/// Runs a test on a stage, or says loudly why it can not.
pub fn on_stage(test: impl FnOnce(&mut Stage) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to make network namespaces");
        return;
    }
    let directory = tempfile::Builder::new().prefix("hy").tempdir().unwrap();
    let path = directory.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        fs::create_dir(path.join("netns")).unwrap();
        let mut stage = Stage { directory: path, children: Vec::new() };
        stage.ip("link set lo up");
        test(&mut stage);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Stage {
    /// A directory of the test's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where names of namespaces are.
    pub fn netns_dir(&self) -> PathBuf {
        self.directory.join("netns")
    }

    /// Runs `ip` here; blanks separate arguments.
    pub fn ip(&self, arguments: &str) {
        run(Command::new("ip").args(arguments.split_whitespace()));
    }

    /// Runs `ip` in a named namespace.
    pub fn ip_in(&self, name: &str, arguments: &str) {
        let file = self.netns_dir().join(name);
        run(Command::new("nsenter")
            .arg(format!("--net={}", file.display()))
            .arg("ip")
            .args(arguments.split_whitespace()));
    }

    /// Makes a namespace and gives it a name.
    pub fn namespace(&self, name: &str) {
        let file = self.netns_dir().join(name);
        File::create(&file).unwrap();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let none: Option<&str> = None;
            mount(Some("/proc/thread-self/ns/net"), &file, none, MsFlags::MS_BIND, none).unwrap();
        });
        thread.join().unwrap();
        self.ip_in(name, "link set lo up");
    }

    /// Takes the name away, and with it the namespace.
    pub fn forget(&self, name: &str) {
        let file = self.netns_dir().join(name);
        nix::mount::umount2(&file, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(file).unwrap();
    }

    /// A bridge with addresses.
    pub fn bridge(&self, name: &str, addresses: &[&str]) {
        self.ip(&format!("link add {name} type bridge"));
        self.ip(&format!("link set {name} up"));
        for address in addresses {
            self.ip(&format!("address add {address} dev {name} nodad"));
        }
    }

    /// Connects a named namespace to a bridge: `port` here, `interface` there.
    pub fn connect(&self, name: &str, bridge: &str, port: &str, interface: &str, addresses: &[&str]) {
        let file = self.netns_dir().join(name);
        self.ip(&format!("link add {port} type veth peer name {interface} netns {}", file.display()));
        self.ip(&format!("link set {port} master {bridge} up"));
        self.ip_in(name, &format!("link set {interface} up"));
        for address in addresses {
            self.ip_in(name, &format!("address add {address} dev {interface} nodad"));
        }
    }

    /// A process in a new namespace that has no name; its number.
    pub fn process(&mut self) -> u32 {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        // Wait until it has its namespace: it is a process of ours at first.
        while fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() == own {
            std::thread::yield_now();
        }
        pid
    }

    /// Runs a future on this thread, where the sockets that it opens are the stage's.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
