//! From lists to the snapshot: pure, so that every odd world can be tested without making it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use hydra_common::address::Mac;
use ipnet::IpNet;

use super::bindings::bindings;
use super::docker_view::{Container, DockerEndpoint, DockerNetwork, View};
use super::namespaces::Id;
use super::netlink::{Interface, OnLink};
use super::snapshot::{Attachment, Lan, Link, LinkType, Network, Snapshot, Stack};

/// The kernel's side.
#[derive(Clone, Debug, Default)]
pub struct Kernelside {
    /// Links of the agent's namespace.
    pub links: Vec<Interface>,
    /// Addresses in it.
    pub addresses: Vec<OnLink>,
    /// What is inside the namespaces behind its veths, by number.
    pub inside: BTreeMap<i32, Inside>,
    /// Namespaces with a file that leads to them: those behind a veth, and those of containers.
    pub spaces: Vec<Space>,
    /// Cgroups of containers, by Docker's id.
    pub cgroups: BTreeMap<String, u64>,
}

/// The inside of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// Its links.
    pub links: Vec<Interface>,
    /// Their addresses.
    pub addresses: Vec<OnLink>,
}

/// One namespace, other than the agent's.
#[derive(Clone, Debug)]
pub struct Space {
    /// Which.
    pub id: Id,
    /// The agent's namespace's number for it, if a veth leads there.
    pub nsid: Option<i32>,
    /// A path that opens it.
    pub path: PathBuf,
    /// Its names in the netns directory, in order.
    pub names: Vec<String>,
    /// Docker's ids of the containers in it, in order.
    pub containers: Vec<String>,
}

/// What the kernel shows and Docker has not explained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// A stack that is no container's has a port on a Docker network.
    pub strangers: bool,
    /// Containers with a port on a network that Docker has not told an address for.
    pub containers: BTreeSet<String>,
}

impl Doubts {
    /// Nothing is open.
    pub fn is_empty(&self) -> bool {
        !self.strangers && self.containers.is_empty()
    }
}

/// Puts the two sides together. `problems` of the result are the view's.
pub fn assemble(kernel: &Kernelside, view: &View) -> (Snapshot, Doubts) {
    let links = links(kernel);
    let networks: BTreeMap<String, Network> =
        view.world.networks.iter().map(|(name, n)| (name.clone(), network(n, kernel, &links))).collect();
    let mut scene = Scene {
        kernel,
        view,
        links: &links,
        networks: &networks,
        doubts: Doubts::default(),
        keys: BTreeMap::new(),
    };
    let mut stacks: Vec<Stack> = kernel.spaces.iter().filter_map(|space| scene.stack(space)).collect();
    stacks.extend(scene.unreachable());
    stacks.sort_by(|a, b| a.key.cmp(&b.key));
    let doubts = scene.doubts;
    let keys = scene.keys;
    let snapshot = Snapshot {
        docker: view.state.clone(),
        networks,
        stacks,
        links,
        host_network: Vec::new(),
        bindings: bindings(&view.world, &keys),
        host_cgroups: BTreeMap::new(),
        units: BTreeMap::new(),
        cookie: None,
        problems: view.problems.clone(),
    };
    (snapshot, doubts)
}

fn links(kernel: &Kernelside) -> BTreeMap<u32, Link> {
    let mut links: BTreeMap<u32, Link> = kernel
        .links
        .iter()
        .map(|l| {
            let link = Link {
                name: l.name.clone(),
                kind: l.kind,
                mac: l.mac,
                mtu: l.mtu,
                master: l.master,
                up: l.up,
                addresses: BTreeSet::new(),
                peer_elsewhere: l.kind == LinkType::Veth && l.peer_nsid.is_some(),
            };
            (l.index, link)
        })
        .collect();
    for (index, address) in &kernel.addresses {
        if let Some(link) = links.get_mut(index) {
            link.addresses.insert(*address);
        }
    }
    links
}

fn network(docker: &DockerNetwork, kernel: &Kernelside, links: &BTreeMap<u32, Link>) -> Network {
    let bridge = docker.bridge.as_ref().and_then(|name| bridge_of(docker, name, links));
    let mut gateways = docker.gateways.clone();
    // The default bridge reports no gateway: its own addresses are.
    for address in bridge.and_then(|index| links.get(&index)).into_iter().flat_map(|l| &l.addresses) {
        let ip = address.addr();
        let unnamed = !docker.gateways.iter().any(|g| g.is_ipv4() == ip.is_ipv4());
        if unnamed && docker.subnets.iter().any(|s| s.contains(&ip)) {
            gateways.push(ip);
        }
    }
    gateways.sort_unstable();
    gateways.dedup();
    Network {
        id: docker.id.clone(),
        driver: docker.driver.clone(),
        bridge,
        subnets: docker.subnets.clone(),
        gateways,
        internal: docker.internal,
        localnet: kernel.links.iter().any(|l| Some(l.index) == bridge && l.localnet),
    }
}

/// By name, else by a gateway's address: engines that only speak like Docker hide the bridge's name.
fn bridge_of(docker: &DockerNetwork, name: &str, links: &BTreeMap<u32, Link>) -> Option<u32> {
    let bridges = || links.iter().filter(|(_, link)| link.kind == LinkType::Bridge);
    let by_name = bridges().find(|(_, link)| link.name == name);
    by_name
        .or_else(|| {
            bridges().find(|(_, link)| {
                link.addresses.iter().any(|a| docker.gateways.contains(&a.addr()) && !is_link_local(a.addr()))
            })
        })
        .map(|(index, _)| *index)
}

struct Scene<'a> {
    kernel: &'a Kernelside,
    view: &'a View,
    links: &'a BTreeMap<u32, Link>,
    networks: &'a BTreeMap<String, Network>,
    doubts: Doubts,
    /// Keys of the stacks that containers are in, by container id.
    keys: BTreeMap<String, String>,
}

impl<'a> Scene<'a> {
    fn stack(&mut self, space: &Space) -> Option<Stack> {
        let members: Vec<&Container> =
            space.containers.iter().filter_map(|id| self.view.world.containers.get(id)).collect();
        match owner(&members) {
            Some(owner) => Some(self.container(space, owner, &members)),
            // A namespace of no container that nothing leads to is none of our business.
            None => space.nsid.map(|nsid| self.namespace(Some(space), nsid)),
        }
    }

    /// Namespaces behind a veth that no file could be found for.
    fn unreachable(&mut self) -> Vec<Stack> {
        let reached: BTreeSet<i32> = self.kernel.spaces.iter().filter_map(|s| s.nsid).collect();
        let behind: BTreeSet<i32> = self
            .kernel
            .links
            .iter()
            .filter(|l| l.kind == LinkType::Veth)
            .filter_map(|l| l.peer_nsid)
            .filter(|nsid| !reached.contains(nsid))
            .collect();
        behind.into_iter().map(|nsid| self.namespace(None, nsid)).collect()
    }

    fn container(&mut self, space: &Space, owner: &Container, members: &[&Container]) -> Stack {
        let mut names: Vec<String> =
            members.iter().map(|c| c.name.clone()).filter(|n| *n != owner.name).collect();
        names.sort_unstable();
        names.insert(0, owner.name.clone());
        let ports = space.nsid.map(|nsid| self.ports(nsid)).unwrap_or_default();
        let mut attachments = Vec::new();
        for &port in &ports {
            let inner = self.inner(space.nsid, port);
            let network = self.network_of(port);
            let endpoint = network.and_then(|(name, network)| {
                endpoint_of(owner, name, &network.id).filter(|e| self.is_port_of(e, port, &ports, space.nsid))
            });
            let addresses = match (network, endpoint) {
                (Some(_), Some(endpoint)) => endpoint.addresses.clone(),
                (Some(_), None) => BTreeSet::new(),
                // A port that Docker knows nothing of, on a bridge that is not Docker's.
                (None, _) => inner.addresses.clone(),
            };
            if network.is_some() && addresses.is_empty() {
                self.doubts.containers.insert(owner.id.clone());
            }
            attachments.push(Attachment {
                network: network.map(|(name, _)| name.clone()),
                port: port.index,
                interface: inner.name,
                inside: port.peer.unwrap_or_default(),
                mac: endpoint.and_then(DockerEndpoint::mac).unwrap_or(inner.mac),
                gateways: self.gateways(port, &addresses),
                addresses,
            });
        }
        let key = format!("{}/{}", space.id, owner.id);
        self.keys.extend(members.iter().map(|member| (member.id.clone(), key.clone())));
        Stack {
            key,
            name: owner.name.clone(),
            members: names,
            labels: members.iter().map(|c| (c.name.clone(), c.labels.clone())).collect(),
            netns: Some(space.path.clone()),
            cookie: space.id.cookie,
            cgroups: members.iter().filter_map(|c| self.kernel.cgroups.get(&c.id)).copied().collect(),
            attachments,
            lans: self.lans(owner),
            docker: true,
        }
    }

    fn namespace(&mut self, space: Option<&Space>, nsid: i32) -> Stack {
        let ports = self.ports(nsid);
        let mut attachments = Vec::new();
        for port in &ports {
            let inner = self.inner(Some(nsid), port);
            let network = self.network_of(port);
            self.doubts.strangers |= network.is_some();
            // On Docker's networks Docker has the only say about who has which address; this may be a container that starts.
            let addresses = if network.is_some() { BTreeSet::new() } else { inner.addresses };
            attachments.push(Attachment {
                network: network.map(|(name, _)| name.clone()),
                port: port.index,
                interface: inner.name,
                inside: port.peer.unwrap_or_default(),
                mac: inner.mac,
                gateways: self.gateways(port, &addresses),
                addresses,
            });
        }
        let name = match space {
            Some(space) => match space.names.first() {
                Some(name) => name.clone(),
                None => format!("netns-{}", space.id.inode),
            },
            None => format!("nsid-{nsid}"),
        };
        let key = match space {
            Some(space) => space.id.to_string(),
            // Numbers of namespaces are given again, indexes of interfaces are not.
            None => format!("nsid-{nsid}.{}", ports.first().map_or(0, |port| port.index)),
        };
        Stack {
            key,
            members: space
                .filter(|s| !s.names.is_empty())
                .map_or_else(|| vec![name.clone()], |s| s.names.clone()),
            name,
            labels: BTreeMap::new(),
            netns: space.map(|s| s.path.clone()),
            cookie: space.and_then(|s| s.id.cookie),
            cgroups: BTreeSet::new(),
            attachments,
            lans: Vec::new(),
            docker: false,
        }
    }

    /// A container's places on networks that have no ports here.
    fn lans(&self, owner: &Container) -> Vec<Lan> {
        let of = |(name, network): (&'a String, &Network)| {
            let endpoint = endpoint_of(owner, name, &network.id)?;
            let (mac, addresses) = (endpoint.mac().unwrap_or_default(), endpoint.addresses.clone());
            Some(Lan { network: name.clone(), mac, addresses })
        };
        self.networks.iter().filter(|(_, network)| network.is_lan()).filter_map(of).collect()
    }

    /// Host-side ends of the veths that lead there, by index.
    fn ports(&self, nsid: i32) -> Vec<&'a Interface> {
        self.kernel.links.iter().filter(|l| l.kind == LinkType::Veth && l.peer_nsid == Some(nsid)).collect()
    }

    fn network_of(&self, port: &Interface) -> Option<(&'a String, &'a Network)> {
        let bridge = port.master?;
        self.networks.iter().find(|(_, network)| network.bridge == Some(bridge))
    }

    /// The other end of a port, as the kernel knows it.
    fn inner(&self, nsid: Option<i32>, port: &Interface) -> Inner {
        let inside = nsid.and_then(|nsid| self.kernel.inside.get(&nsid));
        let peer = port.peer.unwrap_or_default();
        let link = inside.and_then(|i| i.links.iter().find(|l| l.index == peer));
        let addresses = inside.map(|i| i.addresses.as_slice()).unwrap_or_default();
        Inner {
            name: link.map_or_else(|| format!("if{peer}"), |l| l.name.clone()),
            mac: link.map(|l| l.mac).unwrap_or_default(),
            addresses: addresses
                .iter()
                .filter(|(index, net)| *index == peer && !is_link_local(net.addr()))
                .map(|(_, net)| net.addr())
                .collect(),
        }
    }

    /// Of several ports of one stack on one bridge, Docker's is the one with its MAC, and else the oldest. All of them lead to
    /// the same stack, so its own word about the MAC does no harm here.
    fn is_port_of(
        &self,
        endpoint: &DockerEndpoint,
        port: &Interface,
        ports: &[&Interface],
        nsid: Option<i32>,
    ) -> bool {
        let rivals = || ports.iter().filter(|p| p.master == port.master);
        let by_mac = rivals().find(|p| Some(self.inner(nsid, p).mac) == endpoint.mac());
        by_mac.or_else(|| rivals().next()).is_some_and(|p| p.index == port.index)
    }

    fn gateways(&self, port: &Interface, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let bridge = port.master.and_then(|index| self.links.get(&index));
        let mut gateways: Vec<IpAddr> = bridge
            .into_iter()
            .flat_map(|link| &link.addresses)
            .filter(|net: &&IpNet| addresses.iter().any(|a| net.contains(a)))
            .map(IpNet::addr)
            .collect();
        gateways.sort_unstable();
        gateways.dedup();
        gateways
    }
}

struct Inner {
    name: String,
    mac: Mac,
    addresses: BTreeSet<IpAddr>,
}

/// The container that the stack was made for; if only guests are left, the first by name.
fn owner<'a>(members: &[&'a Container]) -> Option<&'a Container> {
    members.iter().copied().min_by_key(|c| (c.is_guest(), &c.name, &c.id))
}

fn endpoint_of<'a>(owner: &'a Container, name: &str, id: &str) -> Option<&'a DockerEndpoint> {
    owner
        .endpoints
        .iter()
        .find(|(n, e)| e.network == id || (e.network.is_empty() && *n == name))
        .map(|(_, e)| e)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
