//! Networks and containers of an engine: made, asked about, entered.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
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
    /// Its gateways with their prefix, of one family or of both. Docker chooses where there is none.
    pub gateways: Vec<IpNet>,
    /// The name of its bridge. Docker chooses where there is none.
    pub bridge: Option<String>,
    /// Without a way out.
    pub internal: bool,
}

/// A container's place on a network.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// Its addresses there. Docker chooses where there is none.
    pub addresses: Vec<IpAddr>,
}

/// A container to make.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its networks.
    pub networks: Vec<Attachment>,
    /// What `serve` of the image starts: `postgres`, `redis`, `web PORT...` or `nothing`.
    pub serve: Vec<String>,
    /// Further arguments of `docker create`, like `--publish 8080:80`.
    pub options: Vec<String>,
}

impl Network {
    /// A network with these gateways, like `172.30.0.1/24`.
    pub fn new(name: &str, gateways: &[&str]) -> Self {
        let gateways = gateways.iter().filter_map(|gateway| gateway.parse().ok()).collect();
        Self { name: name.to_owned(), gateways, ..Self::default() }
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
        let attach = |&network: &&str| Attachment { network: network.to_owned(), addresses: Vec::new() };
        Self {
            name: name.to_owned(),
            networks: networks.iter().map(attach).collect(),
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

impl Attachment {
    fn options(&self) -> impl Iterator<Item = String> {
        self.addresses.iter().map(|address| match address {
            IpAddr::V4(_) => format!("--ip={address}"),
            IpAddr::V6(_) => format!("--ip6={address}"),
        })
    }
}

impl Engine {
    /// Makes a network.
    pub fn add_network(&self, network: &Network) -> Result<()> {
        let mut arguments = vec!["network".to_owned(), "create".to_owned()];
        for gateway in &network.gateways {
            arguments
                .extend([format!("--subnet={}", gateway.trunc()), format!("--gateway={}", gateway.addr())]);
        }
        if network.gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
            arguments.push("--ipv6".to_owned());
        }
        if network.internal {
            arguments.push("--internal".to_owned());
        }
        if let Some(bridge) = &network.bridge {
            arguments.push(format!("--opt=com.docker.network.bridge.name={bridge}"));
        }
        arguments.push(network.name.clone());
        self.docker(&arguments).map(drop)
    }

    /// Makes a container, attaches it to all its networks, and starts it.
    pub fn add_container(&self, container: &Container) -> Result<()> {
        let name = &container.name;
        let mut arguments = vec!["create".to_owned(), format!("--name={name}")];
        // Without a network of its own it has no name of its own either, where it shares another's stack.
        if let Some(first) = container.networks.first() {
            arguments.push(format!("--hostname={name}"));
            arguments.push(format!("--network={}", first.network));
            arguments.extend(first.options());
        }
        arguments.extend_from_slice(&container.options);
        arguments.extend([IMAGE.to_owned(), "serve".to_owned()]);
        arguments.extend_from_slice(&container.serve);
        self.docker(&arguments)?;
        for attachment in container.networks.iter().skip(1) {
            let mut arguments = vec!["network".to_owned(), "connect".to_owned()];
            arguments.extend(attachment.options());
            arguments.extend([attachment.network.clone(), name.clone()]);
            self.docker(&arguments)?;
        }
        self.docker(&["start", name]).map(drop)
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

    /// The folder of a running container's processes in the cgroup hierarchy.
    pub fn cgroup_of(&self, container: &str) -> Result<PathBuf> {
        let inspected = self.inspect(container)?;
        let id = inspected["Id"].as_str().context("a container has an id")?;
        let mut folders = vec![self.cgroup().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().contains(id) {
                    return Ok(entry.path());
                }
                folders.extend(entry.file_type()?.is_dir().then(|| entry.path()));
            }
        }
        bail!("{container} has no cgroup")
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
        self.world_mut().adopt(container, u32::try_from(pid)?)?;
        let topology = self.world_mut().topology_mut();
        topology.containers.retain(|known| known.name != container);
        topology
            .containers
            .push(topology::Container { name: container.to_owned(), ports: ports(&inspected) });
        Ok(())
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
