//! From the order to apply a policy to the first packet that it lets through.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hydra_agent::api::wire::{ABI_HEADER, ApplyRequest};
use hydra_agent::datapath::give_memory_back;
use hydra_tests::agent::{Agent, write};
use hydra_tests::binary::binary;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;
use nix::mount::{MsFlags, mount};

use super::policy::{DOOR, Large};
use super::{Form, since};
use crate::guard::RECEIVER;
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::scene::{NAMES, Scene};

/// Of the policy.
const TIERS: usize = 64;
const RULES: usize = 10_000;
/// Between two datagrams to one port.
const PACE: Duration = Duration::from_micros(100);
/// A look whether something arrives: some tens of datagrams long.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);

/// Who gives the order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `hydractl policy apply FILE`
    Command,
    /// A request on the agent's socket.
    Request,
}

/// What changes, and how many milliseconds it may take to the verdict.
const CHANGES: [(&str, bool, f64); 3] =
    [("all rules", true, 50.0), ("one rule, after all", false, 20.0), ("one rule, after one", false, 20.0)];

const DISK: &str = "the text written to the disk and synced, without hydra";
const START: &str = "the command's own start and end";

/// Adds how long it takes.
pub fn measure(form: &Form, folder: &Path, report: &mut Report, progress: &mut Progress) -> Result<()> {
    progress.at("a host with an agent");
    // A command is begun by a copy of who begins it: the more memory that has, the later.
    give_memory_back();
    let mut host = Host::build(folder)?;
    for round in 0..form.rounds {
        progress.at(&format!("applied: round {} of {}", round + 1, form.rounds));
        let mut ways = [(Way::Command, "by the command"), (Way::Request, "by request")];
        if round % 2 == 1 {
            ways.reverse();
        }
        report.add(DISK, "ms", vec![host.sync()?])?;
        report.add(START, "ms", vec![host.start()?])?;
        for (way, by) in ways {
            for (what, all, _) in CHANGES {
                let (verdict, answer) = host.apply(way, all).with_context(|| format!("{what} {by}"))?;
                report.add(&to_verdict(what, by), "ms", vec![verdict])?;
                report.add(&format!("{what} {by}, to the answer"), "ms", vec![answer])?;
            }
        }
    }
    for (what, _, most) in CHANGES {
        for by in ["by the command", "by request"] {
            report.aim(&to_verdict(what, by), Goal::Most(10, most))?;
        }
        report.compare(&to_verdict(what, "by the command"), DISK, None)?;
    }
    Ok(())
}

fn to_verdict(what: &str, by: &str) -> String {
    format!("{what} {by}, to the verdict")
}

/// A host with an agent and traffic.
struct Host {
    now: Large,
    doors: [Door; 2],
    sender: Sender,
    agent: Agent,
    scene: Scene,
    disk: Disk,
}

impl Host {
    fn build(folder: &Path) -> Result<Self> {
        let scene = Scene::build(false)?;
        let disk = Disk::make(folder)?;
        let state = scene.world.scratch("state");
        scene.world.enter(HOST, || -> Result<()> {
            fs::create_dir_all(&state)?;
            Ok(mount(Some(&disk.0), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        })??;
        let now = Large { tiers: TIERS, rules: RULES, variant: 0, door: 0 };
        let begun = Instant::now();
        let doors = [Door::open(&scene.world, DOOR, begun)?, Door::open(&scene.world, DOOR + 1, begun)?];
        let agent = Agent::start(&scene.world, &now.text())?;
        let sender = Sender::start(&scene.world)?;
        doors[0].wait()?;
        Ok(Self { now, doors, sender, agent, scene, disk })
    }

    /// Applies the policy that differs in all rules, or in the door's: milliseconds to the verdict, and to the answer.
    fn apply(&mut self, way: Way, all: bool) -> Result<(f64, f64)> {
        let (old, new) = (usize::from(self.now.door), usize::from(1 - self.now.door));
        let variant = if all { 1 - self.now.variant } else { self.now.variant };
        let next = Large { variant, door: 1 - self.now.door, ..self.now };
        let text = next.text();
        ensure!(self.sender.runs(), "the datagrams have ended");
        ensure!(
            !self.doors[new].lets(&self.doors[old])?,
            "something arrives where the policy does not allow it yet"
        );
        let (begun, answer) = match way {
            Way::Command => {
                write(&self.scene.world, "applied.yaml", &text)?;
                let file = self.scene.world.scratch("applied.yaml");
                let begun = Instant::now();
                let output =
                    self.agent.ctl(&self.scene.world, &["policy", "apply", &file.to_string_lossy()])?;
                let answer = since(begun);
                ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                (begun, answer)
            }
            Way::Request => {
                let socket = self.scene.world.scratch("run/agent.sock");
                let body = serde_json::to_vec(&ApplyRequest {
                    text,
                    source: "large.yaml".to_owned(),
                    dry_run: false,
                })?;
                let mut stream = self.scene.world.enter(HOST, || UnixStream::connect(socket))??;
                let begun = Instant::now();
                request(&mut stream, &body)?;
                (begun, since(begun))
            }
        };
        let first = self.doors[new].wait()?;
        ensure!(
            !self.doors[old].lets(&self.doors[new])?,
            "something arrives where the policy does not allow it any more"
        );
        self.now = next;
        Ok((first.duration_since(begun).as_secs_f64() * 1e3, answer))
    }

    /// Milliseconds to write what an apply must keep, and sync it.
    fn sync(&self) -> Result<f64> {
        let (file, text) = (self.disk.0.join("reference"), self.now.text());
        let begun = Instant::now();
        let mut open = File::create(&file)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        Ok(since(begun))
    }

    fn start(&self) -> Result<f64> {
        let mut command = Command::new(binary("hydractl")?);
        command.arg("--version");
        let begun = Instant::now();
        ensure!(self.scene.world.output(HOST, command)?.status.success(), "`hydractl --version` failed");
        Ok(since(begun))
    }
}

/// Sends a request and reads its answer to the end.
pub fn request(stream: &mut UnixStream, body: &[u8]) -> Result<()> {
    let head = format!(
        "POST /v1/policy/apply HTTP/1.1\r\nhost: agent\r\n{ABI_HEADER}: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        hydra_common::ABI,
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "the agent answers: {answer}");
    Ok(())
}

/// A folder on a disk, gone with this.
struct Disk(PathBuf);

impl Disk {
    fn make(folder: &Path) -> Result<Self> {
        let folder = folder.join("state");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        Ok(Self(folder.canonicalize()?))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port of UDP in the called container, and what arrives there.
struct Door {
    begun: Instant,
    /// When the first one since it was cleared arrived, in nanoseconds from `begun`; 0: none.
    first: Arc<AtomicU64>,
}

impl Door {
    fn open(world: &World, port: u16, begun: Instant) -> Result<Self> {
        let socket = world.enter(NAMES[1].0, || UdpSocket::bind(("0.0.0.0", port)))??;
        let first = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&first);
        // It ends with the process.
        thread::spawn(move || {
            while socket.recv(&mut [0; 8]).is_ok() {
                let now = begun.elapsed().as_nanos() as u64;
                let _ = seen.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        });
        Ok(Self { begun, first })
    }

    /// Whether something arrives now, while more than one arrives at the `other`. What the next wait finds arrived after this.
    fn lets(&self, other: &Self) -> Result<bool> {
        // What is in the queue still is of before.
        thread::sleep(LOOK);
        self.first.store(0, Ordering::Relaxed);
        for _ in 0..3 {
            other.again()?;
        }
        Ok(self.first.load(Ordering::Relaxed) != 0)
    }

    /// Waits until another one has arrived, however busy the machine is.
    fn again(&self) -> Result<()> {
        self.first.store(0, Ordering::Relaxed);
        self.wait().map(drop)
    }

    /// When the first arrived.
    fn wait(&self) -> Result<Instant> {
        let waiting = Instant::now();
        loop {
            match self.first.load(Ordering::Relaxed) {
                0 => ensure!(waiting.elapsed() < PATIENCE, "nothing arrives where the policy allows it"),
                nanoseconds => return Ok(self.begun + Duration::from_nanos(nanoseconds)),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Who sends to both doors, in turns, until this is dropped.
struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    fn start(world: &World) -> Result<Self> {
        let socket = world.enter(NAMES[0].0, || UdpSocket::bind(("0.0.0.0", 0)))??;
        let doors = [SocketAddr::new(RECEIVER.parse()?, DOOR), SocketAddr::new(RECEIVER.parse()?, DOOR + 1)];
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // A full queue is not the end.
                for door in doors {
                    let _ = socket.send_to(b"here", door);
                }
                thread::sleep(PACE);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
