//! The race at the start: containers that send from their first instruction on, to a service of their own network, to another
//! network and to its published port, while the agent is idle, busy, stopped or dead. Nothing of it may arrive.
//!
//! `HYDRA_RACERS` is how many containers race in each state: eight where it is not set, 250 for the thousand of a release.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that can't go on ends here, and says what it measured"
)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hydra_tests::agent::Agent;
use hydra_tests::engine::container::{Attachment, Container, Network};
use hydra_tests::engine::{Engine, IMAGE, Options, Version};
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{HOST, Topology};

const POLICY: &str = "
version: 1
name: race
tiers:
  apps:
    networks: [hyapps]
    services:
      vault: { containers: [near] }
  databases: { networks: [hydbs] }
rules:
  - { name: shut, from: apps, to: apps/vault, action: deny }
";
/// Applied in turn with the other.
const OTHER: &str = "  - { name: none, from: databases, to: apps, ports: [tcp/1] }\n";

/// What a container does: a packet to each of the three at once; then it is told their MACs, so that the rest leaves also where
/// nobody answers its questions.
const RACE: &str = r#"
send() {
    for to in same=172.30.0.2/9 far=172.31.0.2/9 port=172.30.0.1/9999; do
        printf 'hyrace %s %s.' "$HOSTNAME" "${to%=*}" > "/dev/udp/${to#*=}"
    done
}
send
ip neigh replace 172.30.0.2 lladdr "$NEAR" dev eth0
ip neigh replace 172.30.0.1 lladdr "$GATEWAY" dev eth0
for i in {1..100}; do send; done
for i in {1..30}; do send; sleep 0.03; done
"#;
const TARGETS: [&str; 3] = ["same", "far", "port"];

#[test]
fn nothing_of_a_start_arrives_on_20() {
    race(Version::V20).unwrap();
}

#[test]
fn nothing_of_a_start_arrives_on_28() {
    race(Version::V28).unwrap();
}

fn race(version: Version) -> Result<()> {
    let racers: usize = std::env::var("HYDRA_RACERS").map_or(Ok(8), |n| n.parse()).context("HYDRA_RACERS")?;
    let course = Course::build(version)?;
    let few = racers.min(8);
    let arrived = course.run("without", few)?;
    ensure!(arrived.len() == TARGETS.len() * few, "without hydra all of them arrive: {arrived:?}");

    let agent = course.engine.agent(POLICY)?;
    let closed = |state: &str| -> Result<()> {
        let arrived = course.run(state, racers)?;
        ensure!(arrived.is_empty(), "{state}: {arrived:?} arrived");
        Ok(())
    };
    closed("idle")?;
    course.say("idle", &agent)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let applying = scope.spawn(|| course.apply(&agent, &stop));
        let done = closed("busy");
        stop.store(true, Ordering::Relaxed);
        let applied = applying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        println!("figure: busy: {applied} policies were applied meanwhile");
        done
    })?;
    course.say("idle and busy", &agent)?;
    agent.freeze(true)?;
    closed("stopped")?;
    agent.freeze(false)?;
    agent.kill()?;
    closed("dead")
}

/// The engine with those who must not be reached.
struct Course {
    engine: Engine,
    /// Variables of the racers: MACs of the service `near` and of the gateway.
    macs: [String; 2],
}

impl Course {
    fn build(version: Version) -> Result<Self> {
        let mut engine = Engine::start(version, Options::default(), &Topology::default())?;
        let bridge = Some("hyapps0".to_owned());
        engine.add_network(&Network { bridge, ..Network::new("hyapps", &["172.30.0.1/16"]) })?;
        engine.add_network(&Network::new("hydbs", &["172.31.0.1/16"]))?;
        for (name, network, address, publish) in [
            ("near", "hyapps", "172.30.0.2", &[][..]),
            ("far", "hydbs", "172.31.0.2", &["--publish=9999:9/udp"][..]),
        ] {
            let networks =
                vec![Attachment { network: network.to_owned(), addresses: vec![address.parse()?] }];
            let container = Container { networks, ..Container::new(name, &[], "nothing") };
            engine.add_container(&container.options(publish))?;
            engine.adopt(name)?;
        }
        // Docker's own walls between networks would hide what hydra does.
        engine.tool("iptables", &["-t", "raw", "-F"])?;
        engine.tool("iptables", &["-I", "DOCKER-USER", "-j", "ACCEPT"])?;
        let mac = |place: &str, interface: &str| -> Result<String> {
            Ok(engine.world().mac(place, interface)?.map(|byte| format!("{byte:02x}")).join(":"))
        };
        let macs = [format!("NEAR={}", mac("near", "eth0")?), format!("GATEWAY={}", mac(HOST, "hyapps0")?)];
        Ok(Self { engine, macs })
    }

    /// Lets so many containers race; what of it arrived, as `RACER TARGET`.
    fn run(&self, state: &str, racers: usize) -> Result<BTreeSet<String>> {
        let names: Vec<String> = (0..racers).map(|index| format!("{state}-{index}")).collect();
        halves(&names, |name| {
            let [near, gateway] = &self.macs;
            let arguments = [
                "create",
                "--name",
                name,
                "--hostname",
                name,
                "--network=hyapps",
                "--cap-add=NET_ADMIN",
                "--env",
                near,
                "--env",
                gateway,
                IMAGE,
                "bash",
                "-c",
                RACE,
            ];
            self.engine.docker(&arguments).map(drop)
        })?;
        let world = self.engine.world();
        let sniffers = ["near", "far"].map(|place| Sniffer::start(world, place));
        let sent = Sniffer::start(world, HOST)?;
        let begun = Instant::now();
        halves(&names, |name| self.engine.docker(&["start", name]).map(drop))?;
        let took = begun.elapsed();
        let wait: Vec<&str> = ["wait"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let ended = self.engine.docker(&wait)?;
        ensure!(ended.lines().all(|code| code == "0"), "{state}: {ended}");
        let all: BTreeSet<String> =
            names.iter().flat_map(|name| TARGETS.map(|target| format!("{name} {target}"))).collect();
        let sent = marks(&sent);
        ensure!(sent == all, "{state}: not sent: {:?}", all.difference(&sent));
        let mut arrived = BTreeSet::new();
        for sniffer in sniffers {
            arrived.extend(marks(&sniffer?));
        }
        let remove: Vec<&str> =
            ["rm", "--force"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.engine.docker(&remove)?;
        println!(
            "figure: {state}: {racers} containers in {took:?}, {} of {} arrived",
            arrived.len(),
            all.len()
        );
        Ok(arrived)
    }

    /// Applies one policy after the other until told to stop.
    fn apply(&self, agent: &Agent, stop: &AtomicBool) -> Result<u32> {
        let mut applied = 0;
        while !stop.load(Ordering::Relaxed) {
            let text = if applied % 2 == 0 { format!("{POLICY}{OTHER}") } else { POLICY.to_owned() };
            agent.apply(self.engine.world(), &text)?;
            applied += 1;
        }
        Ok(applied)
    }

    /// Prints how long ports waited for their programs.
    fn say(&self, when: &str, agent: &Agent) -> Result<()> {
        let metrics = agent.metrics(self.engine.world())?;
        let lines = metrics.lines().filter_map(|line| line.strip_prefix("hydra_attach_seconds_"));
        println!(
            "figure: {when}: seconds until ports had their programs: {}",
            lines.collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }
}

/// Does something with all of them, two at a time.
fn halves(names: &[String], what: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let (first, second) = names.split_at(names.len() / 2);
    let all = |half: &[String]| half.iter().try_for_each(|name| what(name));
    thread::scope(|scope| {
        let other = scope.spawn(|| all(second));
        let own = all(first);
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(own)
    })
}

/// The different marks among the frames that were seen.
fn marks(sniffer: &Sniffer) -> BTreeSet<String> {
    const MARK: &[u8] = b"hyrace ";
    let mut marks = BTreeSet::new();
    for seen in sniffer.frames(|_| true) {
        let Some(at) = seen.frame.windows(MARK.len()).position(|w| w == MARK) else { continue };
        let text = &seen.frame[at + MARK.len()..];
        let end = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
        marks.insert(String::from_utf8_lossy(&text[..end]).into_owned());
    }
    marks
}
