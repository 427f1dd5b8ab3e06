//! Networks and containers of an engine: made, asked about, entered.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::{Engine, IMAGE};
use crate::topology::{self, Port};

/// How long a server in a container may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network to make.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its subnets, of one family or of both. Docker chooses one where there is none.
    pub subnets: Vec<IpNet>,
    /// Without a way out.
    pub internal: bool,
}

/// A container to make.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its networks.
    pub networks: Vec<String>,
    /// What `serve` of the image starts: `postgres`, `redis`, `web PORT...` or `nothing`.
    pub serve: Vec<String>,
    /// Further arguments of `docker create`, like `--publish 8080:80`.
    pub options: Vec<String>,
}

impl Network {
    /// A network with this subnet, if that is one.
    pub fn new(name: &str, subnets: &[&str]) -> Self {
        let subnets = subnets.iter().filter_map(|subnet| subnet.parse().ok()).collect();
        Self { name: name.to_owned(), subnets, internal: false }
    }

    /// The same without a way out.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self
    }
}

impl Container {
    /// A container on these networks that serves this, words apart.
    pub fn new(name: &str, networks: &[&str], serve: &str) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Self {
            name: name.to_owned(),
            networks: owned(networks),
            serve: serve.split(' ').map(str::to_owned).collect(),
            options: Vec::new(),
        }
    }

    /// With further arguments of `docker create`.
    #[must_use]
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }
}

impl Engine {
    /// Makes a network.
    pub fn add_network(&self, network: &Network) -> Result<()> {
        let mut arguments = vec!["network", "create"];
        let subnets: Vec<_> = network.subnets.iter().map(ToString::to_string).collect();
        for subnet in &subnets {
            arguments.extend(["--subnet", subnet]);
        }
        if network.subnets.iter().any(|subnet| subnet.addr().is_ipv6()) {
            arguments.push("--ipv6");
        }
        if network.internal {
            arguments.push("--internal");
        }
        arguments.push(&network.name);
        self.docker(&arguments).map(drop)
    }

    /// Makes a container, attaches it to all its networks, and starts it.
    pub fn add_container(&self, container: &Container) -> Result<()> {
        let mut arguments = vec!["create", "--name", &container.name, "--hostname", &container.name];
        if let Some(first) = container.networks.first() {
            arguments.extend(["--network", first]);
        }
        arguments.extend(container.options.iter().map(String::as_str));
        arguments.extend([IMAGE, "serve"]);
        arguments.extend(container.serve.iter().map(String::as_str));
        self.docker(&arguments)?;
        for network in container.networks.iter().skip(1) {
            self.docker(&["network", "connect", network, &container.name])?;
        }
        self.docker(&["start", &container.name]).map(drop)
    }

    /// Makes many at once, as `docker compose` does.
    pub fn add_containers(&self, containers: &[Container]) -> Result<()> {
        // More at a time than two is slower: the engine waits for locks of its own.
        let (even, odd): (Vec<_>, Vec<_>) =
            containers.iter().enumerate().partition(|(index, _)| index % 2 == 0);
        let all = |half: &[(usize, &Container)]| half.iter().try_for_each(|(_, one)| self.add_container(one));
        thread::scope(|scope| {
            let other = scope.spawn(|| all(&odd));
            let own = all(&even);
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(own)
        })
    }

    /// Takes a container away.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        self.docker(&["rm", "--force", "--volumes", name]).map(drop)
    }

    /// Runs a program in a container to its end.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Output> {
        self.output(&[&["exec", container], command].concat())
    }

    /// Runs it until it ends with 0, and returns what it printed: for servers that have just been started.
    pub fn exec_until(&self, container: &str, command: &[&str]) -> Result<String> {
        let start = Instant::now();
        loop {
            let output = self.exec(container, command)?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
            }
            if start.elapsed() > PATIENCE {
                let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
                write!(said, "{}", self.docker(&["logs", container])?)?;
                bail!("`{}` in {container} does not succeed: {}", command.join(" "), said.trim());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `docker inspect` says of a container.
    pub fn inspect(&self, name: &str) -> Result<Value> {
        let text = self.docker(&["container", "inspect", name])?;
        let mut list: Vec<Value> = serde_json::from_str(&text).context("docker inspect printed no list")?;
        list.pop().with_context(|| format!("docker knows no container {name}"))
    }

    /// A container's addresses on a network, IPv4 first.
    pub fn addresses(&self, container: &str, network: &str) -> Result<Vec<IpAddr>> {
        let inspected = self.inspect(container)?;
        let found: Vec<IpAddr> = ports(&inspected)
            .into_iter()
            .filter(|port| port.bridge == network)
            .flat_map(|port| port.addresses.into_iter().map(|address| address.addr()))
            .collect();
        if found.is_empty() {
            bail!("{container} has no address on {network}");
        }
        Ok(found)
    }

    /// A container's IPv4 address on a network.
    pub fn address(&self, container: &str, network: &str) -> Result<IpAddr> {
        let addresses = self.addresses(container, network)?;
        addresses.into_iter().find(IpAddr::is_ipv4).with_context(|| format!("no IPv4 on {network}"))
    }

    /// Makes a place of the world of a running container, for probes from inside of it. Its ports carry the names of their
    /// networks.
    pub fn adopt(&mut self, container: &str) -> Result<()> {
        let inspected = self.inspect(container)?;
        let pid = inspected["State"]["Pid"].as_u64().filter(|pid| *pid != 0);
        let pid = pid.with_context(|| format!("{container} is not running"))?;
        let place = topology::Container { name: container.to_owned(), ports: ports(&inspected) };
        self.world_mut().adopt(place, u32::try_from(pid)?)
    }
}

fn ports(inspected: &Value) -> Vec<Port> {
    let networks = inspected["NetworkSettings"]["Networks"].as_object();
    let address = |settings: &Value, ip: &str, length: &str| -> Option<IpNet> {
        let length = u8::try_from(settings[length].as_u64()?).ok()?;
        IpNet::new(settings[ip].as_str()?.parse().ok()?, length).ok()
    };
    networks
        .into_iter()
        .flatten()
        .map(|(name, settings)| {
            let v4 = address(settings, "IPAddress", "IPPrefixLen");
            let v6 = address(settings, "GlobalIPv6Address", "GlobalIPv6PrefixLen");
            Port { bridge: name.clone(), addresses: v4.into_iter().chain(v6).collect() }
        })
        .collect()
}
