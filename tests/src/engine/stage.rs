//! A policy's deployment on a real engine: a Docker network for every bridge, a container for every stack, at the same addresses
//! as in namespaces; the agent beside it; and the questions that tests ask.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hydra_common::verdict::Verdict;
use serde_json::Value;

use super::container::{Attachment, Container, Network};
use super::{Engine, Options, Version};
use crate::agent::{self, Agent};
use crate::deployment::Deployment;
use crate::matrix::Trial;
use crate::topology::{Bridge, Topology};

impl Engine {
    /// Starts an engine and puts the whole deployment on it. `serve` says what a container of this name serves.
    pub fn deploy(
        version: Version,
        options: Options,
        deployment: &Deployment,
        serve: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let planned = &deployment.topology;
        let around = Topology {
            uplink: planned.uplink.clone(),
            machines: planned.machines.clone(),
            ..Topology::default()
        };
        let mut engine = Self::start(version, options, &around)?;
        for bridge in &planned.bridges {
            engine.add_network(&Network {
                name: network(deployment, bridge),
                gateways: bridge.addresses.clone(),
                bridge: Some(bridge.name.clone()),
                internal: false,
            })?;
        }
        let containers = planned.containers.iter().map(|container| {
            let networks = container.ports.iter().map(|port| {
                let bridge = planned.bridges.iter().find(|bridge| bridge.name == port.bridge);
                let network = bridge.map(|bridge| network(deployment, bridge)).unwrap_or_default();
                Attachment { network, addresses: port.addresses.iter().map(ipnet::IpNet::addr).collect() }
            });
            let serve = serve(&container.name).split(' ').map(str::to_owned).collect();
            Container {
                name: container.name.clone(),
                networks: networks.collect(),
                serve,
                options: Vec::new(),
            }
        });
        engine.add_containers(&containers.collect::<Vec<_>>())?;
        for container in &planned.containers {
            engine.adopt(&container.name)?;
            let topology = engine.world().topology();
            let mut found = topology.addresses(&container.name);
            let mut wanted = planned.addresses(&container.name);
            found.sort_unstable();
            wanted.sort_unstable();
            ensure!(found == wanted, "Docker gave {} {found:?} instead of {wanted:?}", container.name);
        }
        engine.world_mut().topology_mut().bridges.clone_from(&planned.bridges);
        Ok(engine)
    }

    /// Starts the agent beside this engine, with this policy.
    pub fn agent(&self, policy: &str) -> Result<Agent> {
        self.agent_with(policy, &[])
    }

    /// The same with hooks on the processes of this engine's containers, and on no others of the machine.
    pub fn agent_on_processes(&self, policy: &str) -> Result<Agent> {
        self.agent_with(policy, &["--cgroup", &self.cgroup().to_string_lossy()])
    }

    fn agent_with(&self, policy: &str, more: &[&str]) -> Result<Agent> {
        agent::write(self.world(), "policy.yaml", policy)?;
        let (path, socket) = (self.world().scratch("policy.yaml"), self.socket());
        let (path, socket) = (path.to_string_lossy(), socket.to_string_lossy());
        let own = ["--policy", &path, "--docker", &socket];
        Agent::start_with(self.world(), &[&own[..], more].concat())
    }

    /// Asks Postgres at an address something that it answers with 42; `Err` is what `psql` said.
    pub fn psql(&self, from: &str, host: &str) -> Result<Result<(), String>> {
        let said = self.exec(
            from,
            &["env", "PGCONNECT_TIMEOUT=3", "psql", "-h", host, "-U", "postgres", "-Atc", "select 6 * 7"],
        )?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(if said.status.success() && text(&said.stdout) == "42" { Ok(()) } else { Err(text(&said.stderr)) })
    }
}

/// Whether an attempt ended as it must on a real engine, given whether it was answered before hydra came:
/// what is denied is silent, what is allowed between two containers is answered whatever Docker thinks of it, and anything
/// else is as it was: hydra opens neither what is only audited nor what Docker closes to the outside.
pub fn is_right(trial: &Trial, before: Option<bool>, deployment: &Deployment) -> bool {
    if !trial.expected() || is_forwarded(trial, deployment) || before == Some(true) {
        return trial.agrees();
    }
    trial.seen() == before
}

/// Whether hydra allows it, and both ends are containers of this host: then it is hydra that forwards it.
pub fn is_forwarded(trial: &Trial, deployment: &Deployment) -> bool {
    let container = |place: &str| deployment.topology.containers.iter().any(|c| c.name == place);
    trial.answer.as_ref().is_some_and(|answer| answer.verdict == Verdict::Allowed)
        && container(&trial.probe.from)
        && container(&trial.to)
}

/// The rows of an answer of `hydractl … -o json` for which these fields have these values.
pub fn rows<'a>(answer: &'a Value, fields: &[(&str, &str)]) -> Result<Vec<&'a Value>> {
    let rows = answer.as_array().context("hydractl printed no list")?;
    let same = |value: &Value, wanted: &str| match value.as_str() {
        Some(text) => text == wanted,
        None => value.to_string().as_str() == wanted,
    };
    Ok(rows.iter().filter(|row| fields.iter().all(|(name, wanted)| same(&row[*name], wanted))).collect())
}

/// What a connection's own end has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Sent, from the first SYN on, repetitions included.
    pub sent: u32,
    /// Received, from the SYN-ACK on.
    pub received: u32,
}

/// Asks the kernel (`TCP_INFO`) how many segments a connection has sent and received, once that stands still.
pub fn segments(stream: &TcpStream) -> Result<Segments> {
    let mut before = info(stream)?;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = info(stream)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

fn info(stream: &TcpStream) -> Result<Segments> {
    // `struct tcp_info` of linux/tcp.h: eight bytes, 24 words of 32 bits, four of 64, then these two; libc's ends before them.
    const SENT: usize = 8 + 24 * 4 + 4 * 8;
    let mut bytes = [0_u8; SENT + 8];
    let mut length = libc::socklen_t::try_from(bytes.len())?;
    // SAFETY: pointer and length are those of one array that outlives the call.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(failed == 0, "TCP_INFO failed: {}", std::io::Error::last_os_error());
    let word = |at: usize| -> Result<u32> { Ok(u32::from_ne_bytes(bytes[at..at + 4].try_into()?)) };
    Ok(Segments { sent: word(SENT)?, received: word(SENT + 4)? })
}

fn network(deployment: &Deployment, bridge: &Bridge) -> String {
    let mut names = deployment.policy.networks.keys();
    let found = names.find(|name| deployment.bridge(name).as_deref() == Some(&bridge.name));
    found.unwrap_or(&bridge.name).clone()
}
