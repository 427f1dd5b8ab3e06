//! Other people's firewalls on a host with Docker: what they flush and load takes Docker's walls down, and changes no verdict of
//! hydra between containers.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hydra_tests::agent::{Agent, purge};
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::firewalls::Firewalls;
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::Topology;

const POLICY: &str = "
version: 1
name: firewalls
tiers:
  front: { networks: [hyfront] }
  back: { networks: [hyback] }
  store: { networks: [hystore] }
rules:
  - { name: calls, from: front, to: back, ports: [tcp/80] }
";
/// What a firewall of somebody's own loads at its start: everything new, nothing forwarded.
const RULES: &str = "\
flush ruleset
table inet own {
    chain input { type filter hook input priority 0; policy accept; }
    chain forward { type filter hook forward priority 0; policy drop; }
    chain early { type filter hook prerouting priority -300; policy accept; meta mark set 0x1; }
}
";
const PATIENCE: Duration = Duration::from_secs(30);

/// The engine with a container on each of three networks.
struct Host {
    engine: Engine,
    /// Addresses of the two that are called.
    back: String,
    store: String,
}

impl Host {
    fn start(version: Version) -> Result<Self> {
        let engine = Engine::start(version, Options::default(), &Topology::default())?;
        for (name, gateway) in
            [("hyfront", "172.31.1.1/24"), ("hyback", "172.31.2.1/24"), ("hystore", "172.31.3.1/24")]
        {
            engine.add_network(&Network::new(name, &[gateway]))?;
        }
        engine.add_container(&Container::new("front", &["hyfront"], "nothing"))?;
        for (name, network) in [("back", "hyback"), ("store", "hystore")] {
            engine.add_container(&Container::new(name, &[network], "web 80"))?;
            engine.exec_until(name, &["curl", "-sS", "http://127.0.0.1/"])?;
        }
        let address = |name, network| Ok::<_, anyhow::Error>(engine.address(name, network)?.to_string());
        let (back, store) = (address("back", "hyback")?, address("store", "hystore")?);
        Ok(Self { engine, back, store })
    }

    fn reaches(&self, address: &str) -> Result<bool> {
        let url = format!("http://{address}/");
        Ok(self.engine.exec("front", &["curl", "-sS", "--max-time", "2", &url])?.status.success())
    }

    fn holds(&self, agent: &Agent, after: &str) -> Result<()> {
        ensure!(self.reaches(&self.back)?, "after {after}: what is allowed does not pass");
        ensure!(!self.reaches(&self.store)?, "after {after}: what is denied passes");
        ensure!(
            agent.metric(self.engine.world(), "hydra_enforcement_ok")? > 0.5,
            "after {after}: not enforced"
        );
        Ok(())
    }
}

#[test]
fn firewalls_change_no_verdict_on_20() {
    firewalls(Version::V20).unwrap();
}

#[test]
fn firewalls_change_no_verdict_on_28() {
    firewalls(Version::V28).unwrap();
}

fn firewalls(version: Version) -> Result<()> {
    let host = Host::start(version)?;
    let world = host.engine.world();
    let others = Firewalls::of(world)?;
    ensure!(!host.reaches(&host.store)?, "Docker keeps its networks apart");
    let agent = host.engine.agent(POLICY)?;
    host.holds(&agent, "nothing")?;

    let flushes: [&[&[&str]]; 2] = [
        &[
            &["iptables", "-P", "FORWARD", "ACCEPT"],
            &["iptables", "-F"],
            &["iptables", "-t", "nat", "-F"],
            &["iptables", "-t", "raw", "-F"],
        ],
        &[&["nft", "flush", "ruleset"]],
    ];
    for flush in flushes {
        flush.iter().try_for_each(|command| others.run(command).map(drop))?;
        host.holds(&agent, &flush.concat().join(" "))?;
    }
    let rules = world.scratch("firewalls").join("root/own.nft");
    world.enter(hydra_tests::topology::HOST, || std::fs::write(&rules, RULES))??;
    others.run(&["nft", "-f", "/own.nft"])?;
    host.holds(&agent, "a ruleset that forwards nothing")?;
    others.run(&["nft", "flush", "ruleset"])?;

    for command in [["ufw", "--force", "enable"].as_slice(), &["ufw", "reload"]] {
        others.run(command)?;
        ensure!(others.run(&["iptables", "-S", "FORWARD"])?.contains("ufw-before-forward"), "ufw is at work");
        host.holds(&agent, &command.join(" "))?;
    }
    others.run(&["ufw", "--force", "disable"])?;
    host.holds(&agent, "the end of ufw")?;
    others.run(&["nft", "flush", "ruleset"])?;

    let mut daemon = firewalld(&others)?;
    ensure!(
        others.run(&["nft", "list", "ruleset"])?.contains("table inet firewalld"),
        "firewalld is at work"
    );
    host.holds(&agent, "the start of firewalld")?;
    for command in [["firewall-cmd", "--reload"], ["firewall-cmd", "--complete-reload"]] {
        others.run(&command)?;
        host.holds(&agent, &command.join(" "))?;
    }
    daemon.kill()?;
    daemon.wait()?;
    others.run(&["nft", "flush", "ruleset"])?;
    host.holds(&agent, "the end of firewalld")?;
    ensure!(agent.metric(world, "hydra_repairs_total")? < 0.5, "{}", agent.log().join("\n"));

    // The control: of Docker's own walls nothing is left.
    agent.stop()?;
    ensure!(!host.reaches(&host.store)?, "without the agent hydra enforces");
    let purged = purge(world)?;
    ensure!(purged.status.success(), "{}", String::from_utf8_lossy(&purged.stderr));
    ensure!(host.reaches(&host.store)?, "without hydra it passes");
    Ok(())
}

/// The daemon with its bus, once it answers.
fn firewalld(others: &Firewalls<'_>) -> Result<std::process::Child> {
    others.run(&["dbus-uuidgen", "--ensure"])?;
    others.run(&["dbus-daemon", "--system", "--fork"])?;
    let daemon = others.start(&["firewalld", "--nofork", "--nopid"])?;
    let start = Instant::now();
    loop {
        let state = others.output(&["firewall-cmd", "--state"])?;
        if state.status.success() {
            return Ok(daemon);
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "firewalld does not answer: {}",
            String::from_utf8_lossy(&state.stderr)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
