//! How long a container's port is one of its bridge without its programs: ports come one at a time and many at once, while the agent
//! has nothing else to do and while it applies policies.
//!
//! In turns with each, as many ports of a bridge that the policy does not name, to whose first message as a port somebody else answers
//! with a request that changes nothing: the lock of all network configuration alone can take longer than any program.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use hydra_agent::api::wire::ApplyRequest;
use hydra_tests::agent::Agent;
use hydra_tests::topology::{Bridge, Container, HOST, Port, Topology};
use hydra_tests::world::World;
use nix::net::if_::if_indextoname;

use super::Form;
use super::apply::request;
use super::policy::Large;
use super::watch::Watch;
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::stats::Statistic;

/// Of the policy, and of those that are applied.
const POLICY: Large = Large { tiers: 64, rules: 10_000, variant: 0, door: 0 };
/// Bridges: two that the policy names, and one that it does not.
const BRIDGES: [&str; 3] = ["hybr0", "hybr1", "hyplain"];
const NAMED: usize = 0;
const PLAIN: usize = 2;
/// Containers that are there all the time.
const STANDING: usize = 10;
/// Ports at once; and how many are made at the same time.
const BURST: usize = 20;
const HANDS: usize = 4;
/// What is measured: to the later of a port's two programs, and to the answer to a request that changes nothing.
const PORT: &str = "port to programs";
const REQUEST: &str = "port that hydra leaves alone to empty request";
/// How they come.
const HOW: [&str; 2] = ["one at a time", "20 at once"];
/// Milliseconds that a port may wait.
const MOST: f64 = 20.0;
/// After that time a port that has no filters may have links.
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);
/// What an agent does after a port came, or went, takes some milliseconds.
const CALM: Duration = Duration::from_millis(40);

/// Adds how long they wait.
pub fn measure(form: &Form, report: &mut Report, progress: &mut Progress) -> Result<()> {
    let mut street = Street::build()?;
    let (single, bursts) = if form.long { (300, 15) } else { (100, 5) };
    for busy in [false, true] {
        let state = if busy { "agent applying" } else { "agent idle" };
        let (stop, socket) = (AtomicBool::new(false), street.socket());
        let samples = thread::scope(|scope| -> Result<_> {
            let applying = busy.then(|| scope.spawn(|| apply(&socket, &stop)));
            let samples = street.series(state, single, bursts, progress);
            stop.store(true, Ordering::Relaxed);
            if let Some(applying) = applying {
                let applied = applying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                ensure!(applied > 1, "{applied} policies were applied meanwhile");
            }
            samples
        })?;
        for (how, of) in HOW.iter().zip(samples) {
            for (what, samples) in [PORT, REQUEST].iter().zip(of) {
                add(report, &format!("{what}, {how}, {state}"), samples)?;
            }
        }
    }
    Ok(())
}

/// The distribution, the end that counts, and of hydra's what share is in time.
fn add(report: &mut Report, what: &str, samples: Vec<f64>) -> Result<()> {
    let tail = format!("p99 of {what}");
    report.add_as(&tail, "ms", samples.clone(), Statistic::P99)?;
    if what.starts_with(PORT) {
        report.aim(&tail, Goal::Most(11, MOST))?;
        let share = samples.iter().map(|sample| if *sample <= MOST { 100.0 } else { 0.0 }).collect();
        report.add_as(&format!("share within {MOST} ms of {what}"), "%", share, Statistic::Mean)?;
    }
    report.add(what, "ms", samples)
}

/// A host whose containers come and go.
struct Street {
    watch: Watch,
    bridges: [u32; 3],
    /// Containers until now.
    come: usize,
    agent: Agent,
    world: World,
}

impl Street {
    fn build() -> Result<Self> {
        let mut topology = Topology::default();
        for (n, name) in BRIDGES.iter().enumerate() {
            let addresses = vec![format!("10.8{n}.0.1/16").parse()?];
            topology.bridges.push(Bridge { name: (*name).to_owned(), addresses });
        }
        for n in 0..STANDING {
            let (bridge, name) = (n % 2, format!("standing{n}"));
            let addresses = vec![format!("10.8{bridge}.0.{}/16", 10 + n).parse()?];
            let ports = vec![Port { bridge: BRIDGES[bridge].to_owned(), addresses }];
            topology.containers.push(Container { name, ports });
        }
        let world = World::build(&topology)?;
        let mut bridges = [0; 3];
        for (index, name) in bridges.iter_mut().zip(BRIDGES) {
            *index = world.ifindex(HOST, name)?;
        }
        let watch = world.enter(HOST, || Watch::open(bridges[PLAIN]))??;
        let agent = Agent::start(&world, &POLICY.text())?;
        Ok(Self { watch, bridges, come: 0, agent, world })
    }
    /// Where the agent listens, from here: its root is its own.
    fn socket(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.agent.pid()));
        self.world.scratch("run/agent.sock").iter().skip(1).fold(root, |path, part| path.join(part))
    }

    /// Ports one at a time, and many at once: of each the samples of a bridge that the policy names and of one that it does not.
    fn series(
        &mut self,
        state: &str,
        single: usize,
        bursts: usize,
        progress: &mut Progress,
    ) -> Result<[[Vec<f64>; 2]; 2]> {
        let mut all: [[Vec<f64>; 2]; 2] = Default::default();
        // Spread evenly, so that both meet what the machine does meanwhile.
        let each = single / bursts;
        for round in 0..single + bursts {
            progress.at(&format!("ports, {state}: round {} of {}", round + 1, single + bursts));
            let (how, count) = if round % (each + 1) == each { (1, BURST) } else { (0, 1) };
            let mut turns = [(0, NAMED), (1, PLAIN)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (what, bridge) in turns {
                let waited = self.come(count, bridge).with_context(|| state.to_owned())?;
                all[how][what].extend(waited.iter().map(|time| time.as_secs_f64() * 1e3));
            }
        }
        Ok(all)
    }

    /// So many containers come to a bridge, and go: how long each port waited.
    fn come(&mut self, count: usize, bridge: usize) -> Result<Vec<Duration>> {
        let containers: Vec<Container> = (self.come..self.come + count)
            .map(|n| Container { name: format!("street{n}"), ports: Vec::new() })
            .collect();
        for container in &containers {
            self.world.add_container(container)?;
        }
        thread::sleep(CALM);
        self.watch.clear();
        let world = &self.world;
        let connect = |first: usize| -> Result<()> {
            for (n, Container { name, .. }) in containers.iter().enumerate().skip(first).step_by(HANDS) {
                let (port, place) = (World::port_name(name, 0), (self.come + n) % 10_000);
                let made = format!("link add {port} type veth peer name eth0 netns {name}");
                world.ip(HOST, &[made, format!("link set {port} master {} up", BRIDGES[bridge])])?;
                let address =
                    format!("address add 10.8{bridge}.{}.{}/16 dev eth0", 1 + place / 250, 1 + place % 250);
                let route = format!("route add default via 10.8{bridge}.0.1");
                world.ip(name, &[address, "link set eth0 up".to_owned(), route])?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let hands: Vec<_> =
                (0..HANDS.min(count)).map(|first| scope.spawn(move || connect(first))).collect();
            hands
                .into_iter()
                .try_for_each(|hand| hand.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let waited = self.wait(self.bridges[bridge], count)?;
        thread::sleep(CALM);
        let gone: Vec<String> =
            containers.iter().map(|c| format!("link del {}", World::port_name(&c.name, 0))).collect();
        self.world.ip(HOST, &gone)?;
        for container in &containers {
            self.world.remove_container(&container.name)?;
        }
        self.come += count;
        Ok(waited)
    }

    fn wait(&self, bridge: u32, count: usize) -> Result<Vec<Duration>> {
        let begun = Instant::now();
        loop {
            if let Some(waited) = self.watch.covered(bridge, count, LOOK)? {
                return Ok(waited);
            }
            let missing = self.watch.missing(bridge);
            ensure!(begun.elapsed() < PATIENCE, "not all of {count} ports have programs: {missing:?}");
            // A pass that comes first puts links there, of which the kernel tells nobody.
            for (index, sides) in missing {
                if self.world.enter(HOST, || linked(index, sides))?? {
                    self.watch.found(index);
                }
            }
        }
    }
}

/// Whether hydra has links on these sides of an interface: where packets come in, and where they go out.
fn linked(index: u32, sides: [bool; 2]) -> Result<bool> {
    let name = if_indextoname(index)?.to_string_lossy().into_owned();
    let mut all = true;
    for (side, attach) in [TcAttachType::Ingress, TcAttachType::Egress].into_iter().enumerate() {
        let (_, chain) = SchedClassifier::query_tcx(name.as_str(), attach)?;
        let ours = chain.iter().any(|p| p.name_as_str().is_some_and(|name| name.starts_with("hydra_port")));
        all &= ours || !sides[side];
    }
    Ok(all)
}

/// Applies one policy after the other, all rules of which are others, until told to stop; how many.
fn apply(socket: &Path, stop: &AtomicBool) -> Result<usize> {
    let mut applied = 0;
    while !stop.load(Ordering::Relaxed) {
        let text = Large { variant: 1 - POLICY.variant - applied as u16 % 2, ..POLICY }.text();
        let asked = ApplyRequest { text, source: "large.yaml".to_owned(), dry_run: false };
        let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        request(&mut stream, &serde_json::to_vec(&asked)?)?;
        applied += 1;
    }
    Ok(applied)
}
