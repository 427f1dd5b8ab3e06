//! What a world looks like, as plain data: bridges, containers (named namespaces) on them, and machines behind the uplink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// A whole host with what is around it.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Bridges of the host.
    pub bridges: Vec<Bridge>,
    /// Network stacks behind ports of these bridges.
    pub containers: Vec<Container>,
    /// The host's addresses on its uplink.
    pub uplink: Vec<IpNet>,
    /// Machines on the other side of the uplink.
    pub machines: Vec<Machine>,
}

/// A bridge of the host.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Interface name; begins with `hy`.
    pub name: String,
    /// The host's addresses on it, with their prefix: the gateways of its containers.
    pub addresses: Vec<IpNet>,
}

/// A named namespace with ports on bridges.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name under `/run/netns`.
    pub name: String,
    /// Its interfaces, `eth0` first. Default routes go by the first.
    pub ports: Vec<Port>,
}

/// One interface of a container.
#[derive(Clone, Debug)]
pub struct Port {
    /// The bridge that its other end is on.
    pub bridge: String,
    /// Its addresses with their prefix.
    pub addresses: Vec<IpNet>,
}

/// A machine outside, reached through the uplink.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What tests call it.
    pub name: String,
    /// Its addresses. Any address will do: the host gets a route to each.
    pub addresses: Vec<IpAddr>,
}

impl Topology {
    /// The addresses of a place: a container, a machine, or `host`.
    pub fn addresses(&self, place: &str) -> Vec<IpAddr> {
        if place == HOST {
            return self
                .bridges
                .iter()
                .flat_map(|b| &b.addresses)
                .chain(&self.uplink)
                .map(IpNet::addr)
                .collect();
        }
        let containers = self.containers.iter().filter(|c| c.name == place);
        let machines = self.machines.iter().filter(|m| m.name == place);
        containers
            .flat_map(|c| c.ports.iter().flat_map(|p| p.addresses.iter().map(IpNet::addr)))
            .chain(machines.flat_map(|m| m.addresses.iter().copied()))
            .collect()
    }

    /// The gateways that a container may route by: the first of each family among its ports' bridges.
    pub fn gateways(&self, container: &Container) -> Vec<IpAddr> {
        let mut found: BTreeMap<bool, IpAddr> = BTreeMap::new();
        for port in &container.ports {
            let bridge = self.bridges.iter().find(|b| b.name == port.bridge);
            for gateway in bridge.iter().flat_map(|b| &b.addresses).map(IpNet::addr) {
                found.entry(gateway.is_ipv6()).or_insert(gateway);
            }
        }
        found.into_values().collect()
    }

    /// Every place, the host first.
    pub fn places(&self) -> Vec<&str> {
        let mut places = vec![HOST];
        places.extend(self.containers.iter().map(|c| c.name.as_str()));
        places.extend(self.machines.iter().map(|m| m.name.as_str()));
        places
    }
}

/// The name of the host's own namespace among the places of a world.
pub const HOST: &str = "host";
