//! The pure picture that everything decides on. Ordered, so that equal worlds are equal values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use hydra_common::address::Mac;
use ipnet::IpNet;
use serde::Serialize;

/// The world at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// How Docker is doing.
    pub docker: DockerState,
    /// Docker's networks by name (of two with one name only one is here, see [`Snapshot::problems`]). Kept from the last answer while Docker does not answer.
    pub networks: BTreeMap<String, Network>,
    /// Every network stack that is not the host's own: containers, and named or nameless namespaces behind a veth. By key.
    pub stacks: Vec<Stack>,
    /// The interfaces of the agent's own namespace by index.
    pub links: BTreeMap<u32, Link>,
    /// Names of running containers that use the host's own stack, in order. They are in no [`Stack`].
    pub host_network: Vec<String>,
    /// Published ports of containers with a stack of their own, in order.
    pub bindings: Vec<Binding>,
    /// Cgroups of these, by the same names; one without is missing.
    pub host_cgroups: BTreeMap<String, u64>,
    /// Cgroups of systemd's units, by name.
    pub units: BTreeMap<String, u64>,
    /// The kernel's cookie of the agent's own namespace, where it could be had.
    pub cookie: Option<u64>,
    /// What could not be read, as sentences without a final period; the parts concerned are as they were read last.
    pub problems: Vec<String>,
}

/// How the engine answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum DockerState {
    /// `--docker none`.
    #[default]
    Off,
    /// It answers.
    Up {
        /// Engine version, as it says.
        version: String,
    },
    /// It does not; what is enforced is what was known last.
    Down {
        /// What the attempt said.
        error: String,
    },
}

/// Whether an engine's version, `28.5.2`, is at least `28.0`. What does not read as a version counts as new.
pub fn at_least(version: &str, major: u32, minor: u32) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(have)), Some(Ok(have_minor))) => (have, have_minor) >= (major, minor),
        _ => true,
    }
}

/// A Docker network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Docker's id.
    pub id: String,
    /// `bridge`, `macvlan`, `host` …
    pub driver: String,
    /// The bridge's interface index, for a bridge network whose device is there.
    pub bridge: Option<u32>,
    /// Its blocks, both families.
    pub subnets: Vec<IpNet>,
    /// Gateway addresses, both families.
    pub gateways: Vec<IpAddr>,
    /// No way out.
    pub internal: bool,
    /// Packets to this host's loopback addresses are routed on its bridge (`route_localnet`): what Docker sets where it runs no
    /// docker-proxy.
    pub localnet: bool,
}

impl Network {
    /// Its containers have interfaces without a port on this host.
    pub fn is_lan(&self) -> bool {
        matches!(self.driver.as_str(), "macvlan" | "ipvlan")
    }
}

/// One network stack: a container, the containers that share its stack, or a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// Tells this stack from every other, earlier ones of the same name included: the namespace's inode and cookie, and the
    /// container's id. The same after a restart of the agent.
    pub key: String,
    /// The name that operators see: the owning container's, the namespace's under `/run/netns`, else `netns-INODE`.
    pub name: String,
    /// Every container name in it, the owner's first; the namespace's name for a namespace.
    pub members: Vec<String>,
    /// Docker labels by member.
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
    /// A path that opens the namespace, while it lives.
    pub netns: Option<PathBuf>,
    /// The kernel's cookie of the namespace, where it could be had.
    pub cookie: Option<u64>,
    /// Cgroups of its containers.
    pub cgroups: BTreeSet<u64>,
    /// Its interfaces that have their other end on this host.
    pub attachments: Vec<Attachment>,
    /// Its interfaces that Docker has made on an interface of this host (macvlan, ipvlan): they have no other end here.
    pub lans: Vec<Lan>,
    /// A Docker container's stack; otherwise found over netlink alone.
    pub docker: bool,
}

/// One interface of a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The Docker network whose bridge the port is on, if it is one's.
    pub network: Option<String>,
    /// Index of the host-side veth.
    pub port: u32,
    /// Its name inside the stack (`eth0`).
    pub interface: String,
    /// Its index inside the stack; 0 where it is not known.
    pub inside: u32,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// Docker's word for a container of Docker, the kernel's otherwise. Link-local ones left out. Empty while Docker has not
    /// spoken yet: a port on a Docker network has only the addresses that Docker gave it, whatever its owner set.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of the port's bridge in the blocks of this attachment, whether or not the stack routes by them.
    pub gateways: Vec<IpAddr>,
}

/// One interface of a stack without a port on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lan {
    /// The Docker network.
    pub network: String,
    /// As Docker gave it; zero where it told none.
    pub mac: Mac,
    /// Docker's word. Empty where it told none.
    pub addresses: BTreeSet<IpAddr>,
}

/// A port of this host that Docker leads to a container. Ordered by what a packet is sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Binding {
    /// The host's address; the unspecified one of its family for all of them.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// On the host.
    pub port: u16,
    /// The container's name.
    pub container: String,
    /// The key of its stack; none where that could not be found.
    pub stack: Option<String>,
    /// The network that the way goes by, or empty.
    pub network: String,
    /// The container's address that it leads to; of the other family where docker-proxy has to carry it, none where Docker told none.
    pub target: Option<IpAddr>,
    /// The port in the container.
    pub target_port: u16,
    /// Netfilter does not lead there: docker-proxy takes the connection and opens another one.
    pub proxied: bool,
}

/// An interface of the agent's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Interface name.
    pub name: String,
    /// What kind.
    pub kind: LinkType,
    /// Its own MAC.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// Its addresses with their prefix, both families, link-local ones included.
    pub addresses: BTreeSet<IpNet>,
    /// For a veth: the other end is in another namespace.
    pub peer_elsewhere: bool,
}

/// The kinds that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkType {
    /// A bridge device.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// `lo`.
    Loopback,
    /// Cards, bonds, tunnels, taps.
    Other,
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("28.5.2", 28, 0));
        assert!(at_least("26.1.5+dfsg1", 26, 1));
        assert!(!at_least("26.0.2", 26, 1));
        assert!(!at_least("20.10.24", 26, 1));
        assert!(at_least("dev", 28, 0));
    }
}
