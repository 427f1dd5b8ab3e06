//! The real agent and the real tool, as processes in a world, with directories of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::binary::binary;
use crate::topology::HOST;
use crate::world::{NAMES, World};

/// Where metrics are served, in every world's own namespace.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9473);
/// How long a start may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent. Killed when dropped; what it pinned stays in the world's bpffs.
pub struct Agent {
    child: Child,
    directory: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Starts it with this policy text and waits until it says that it is ready.
    pub fn start(world: &World, policy: &str) -> Result<Self> {
        write(world, "policy.yaml", policy)?;
        Self::start_with(world, &["--policy", &world.scratch("policy.yaml").to_string_lossy()])
    }

    /// Starts it with more arguments than the directories.
    pub fn start_with(world: &World, arguments: &[&str]) -> Result<Self> {
        let mut agent = Self::launch(world, arguments)?;
        match agent.wait_ready(world) {
            Ok(()) => Ok(agent),
            Err(error) => Err(error.context(format!("the agent's log:\n{}", agent.log().join("\n")))),
        }
    }

    /// The directories' arguments, which `run` and `purge` share.
    pub fn directories(world: &World) -> Vec<String> {
        let scratch = |name: &str| world.scratch(name).to_string_lossy().into_owned();
        [
            ("--state-dir", scratch("state")),
            ("--run-dir", scratch("run")),
            ("--bpffs", scratch("bpf/hydra")),
            ("--netns-dir", NAMES.to_owned()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// What it has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as an operator would, and waits. What it enforces stays.
    pub fn stop(mut self) -> Result<()> {
        kill(self.process()?, Signal::SIGTERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the agent does not end on SIGTERM");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it without a word, and waits.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn launch(world: &World, arguments: &[&str]) -> Result<Self> {
        let notify = world.scratch("notify.sock");
        let mut command = Command::new(binary("hydra-agent")?);
        command
            .arg("run")
            .args(Self::directories(world))
            .args(arguments)
            // Unless the arguments name an engine: the machine's own knows nothing of this world.
            .env("HYDRA_DOCKER", "none")
            // Nor do the machine's own processes.
            .env("HYDRA_CGROUP", "none")
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let socket = world.enter(HOST, || {
            let _ = std::fs::remove_file(&notify);
            UnixDatagram::bind(&notify)
        })??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut child = world.spawn(HOST, command)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let stderr = child.stderr.take().context("the agent has no standard error")?;
        thread::Builder::new().name("hy-log".into()).spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })?;
        let mut agent = Self { child, directory: world.scratch("run"), log };
        let start = Instant::now();
        let mut message = [0; 4096];
        loop {
            if let Ok(length) = socket.recv(&mut message)
                && message[..length].split(|b| *b == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(agent);
            }
            if let Some(status) = agent.child.try_wait()? {
                // Its last words may still be in the pipe.
                thread::sleep(Duration::from_millis(50));
                bail!("the agent ended before it was ready, {status}\n{}", agent.log().join("\n"));
            }
            if start.elapsed() > PATIENCE {
                bail!("the agent was not ready after {PATIENCE:?}\n{}", agent.log().join("\n"));
            }
        }
    }

    /// Ready means that the tool gets an answer, too.
    fn wait_ready(&mut self, world: &World) -> Result<()> {
        let start = Instant::now();
        loop {
            let output = self.ctl(world, &["status", "-o", "json"])?;
            if output.status.code() != Some(2) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "hydractl gets no answer: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs `hydractl` against it.
    pub fn ctl(&self, world: &World, arguments: &[&str]) -> Result<Output> {
        ctl(world, &self.directory.join("agent.sock"), arguments)
    }

    /// Runs `hydractl … -o json` and reads what it prints.
    pub fn json(&self, world: &World, arguments: &[&str]) -> Result<Value> {
        let output = self.ctl(world, &[arguments, &["-o", "json"]].concat())?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "hydractl {} printed no JSON: {}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    /// Applies a policy text with `hydractl policy apply`; `Err` is what it said.
    pub fn apply(&self, world: &World, policy: &str) -> Result<()> {
        write(world, "applied.yaml", policy)?;
        let path = world.scratch("applied.yaml");
        let output = self.ctl(world, &["policy", "apply", &path.to_string_lossy()])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Its metrics, as Prometheus would read them.
    pub fn metrics(&self, world: &World) -> Result<String> {
        let read = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&METRICS, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        Ok(world.enter(HOST, read)??)
    }

    /// One of them that has no labels.
    pub fn metric(&self, world: &World, name: &str) -> Result<f64> {
        let text = self.metrics(world)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .with_context(|| format!("no metric `{name}` in {text}"))?
            .parse()
            .context("a metric is a number")
    }

    /// Stops the process where it stands (SIGSTOP), or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        Ok(kill(self.process()?, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT })?)
    }

    /// Stops everything in it but the threads of these names.
    pub fn hold_all_but(&self, names: &[&str]) -> Result<Held> {
        let mut held = Held { threads: Vec::new() };
        // Threads come and go as long as one runs that is to be held.
        loop {
            let before = held.threads.len();
            for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let path = entry?.path();
                let Ok(name) = std::fs::read_to_string(path.join("comm")) else { continue };
                let number = path.file_name().and_then(|name| name.to_str()).context("a thread's number")?;
                let thread = Pid::from_raw(number.parse()?);
                if names.contains(&name.trim()) || held.threads.contains(&thread) {
                    continue;
                }
                match ptrace::seize(thread, ptrace::Options::empty()) {
                    Ok(()) => held.threads.push(thread),
                    Err(Errno::ESRCH) => continue,
                    Err(error) => return Err(error.into()),
                }
                match ptrace::interrupt(thread) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error.into()),
                }
                // It stops, or has ended.
                waitpid(thread, Some(WaitPidFlag::__WALL))?;
            }
            if held.threads.len() == before {
                return Ok(held);
            }
        }
    }

    fn process(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Threads that stand still until this is dropped, which the thread that made it must do.
pub struct Held {
    threads: Vec<Pid>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for thread in &self.threads {
            let _ = ptrace::detach(*thread, None);
        }
    }
}

/// Runs `hydractl --socket SOCKET ARGUMENTS` in the world.
pub fn ctl(world: &World, socket: &std::path::Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("hydractl")?);
    command.arg("--socket").arg(socket).args(arguments);
    world.output(HOST, command)
}

/// Takes all enforcement away, with `hydra-agent purge`.
pub fn purge(world: &World) -> Result<Output> {
    purge_with(world, &[])
}

/// The same with further arguments, which stand above those before.
pub fn purge_with(world: &World, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary("hydra-agent")?);
    command.arg("purge").args(Agent::directories(world)).args(arguments);
    world.output(HOST, command)
}

/// Writes a file into the world's scratch directory.
pub fn write(world: &World, name: &str, text: &str) -> Result<()> {
    let path = world.scratch(name);
    world
        .enter(HOST, || std::fs::write(&path, text))?
        .with_context(|| format!("cannot write {}", path.display()))
}
