//! The world that a policy file describes: a bridge for every network, a namespace for every named container, on all networks
//! that the file puts it on; and beside them what the file does not name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::oracle::{End, Policy, Who};
use crate::topology::{Bridge, Container, HOST, Machine, Port, Topology};

/// A machine that belongs to nobody.
pub const OUTSIDE: &str = "outside";
/// A container on a network that the policy does not name.
pub const STRANGER: &str = "stranger";

/// A policy with the world that it describes.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The policy, as the oracle reads it.
    pub policy: Policy,
    /// The world.
    pub topology: Topology,
    /// Whose each place is.
    pub owners: BTreeMap<String, Who>,
}

impl Deployment {
    /// Reads a policy file's text. Networks that it gives no block for, and what is only on them, are left out.
    pub fn of(text: &str) -> Result<Self> {
        Self::with_blocks(text, &[])
    }

    /// The same with blocks for networks that the file gives none for, as Docker would tell them.
    pub fn with_blocks(text: &str, blocks: &[(&str, IpNet)]) -> Result<Self> {
        let mut policy = Policy::read(text)?;
        for (name, block) in blocks {
            let network = policy.networks.get_mut(*name);
            network.with_context(|| format!("the policy has no network {name}"))?.subnets.push(*block);
            let tiers = policy.tiers.values_mut().filter(|tier| tier.networks.iter().any(|n| n == name));
            tiers.for_each(|tier| tier.blocks.push(*block));
        }
        policy.networks.retain(|_, network| !network.subnets.is_empty());
        for tier in policy.tiers.values_mut() {
            tier.networks.retain(|name| policy.networks.contains_key(name));
        }
        let mut this = Self { policy, topology: Topology::default(), owners: BTreeMap::new() };
        this.bridges()?;
        this.containers()?;
        this.surroundings()?;
        Ok(this)
    }

    /// The two ends of an attempt: whose, and at which addresses the packet says so.
    pub fn ends(&self, from: &str, to: &str, address: IpAddr) -> (End, End) {
        let who = |place: &str| self.owners.get(place).cloned().unwrap_or(Who::External);
        let source = self.source(from, address);
        (End { who: who(from), address: source }, End { who: who(to), address: Some(address) })
    }

    /// Whether hydra judges it: one end has a port on a bridge of the policy.
    pub fn judged(&self, from: &str, to: &str) -> bool {
        let protected =
            |place: &str| place != STRANGER && self.topology.containers.iter().any(|c| c.name == place);
        protected(from) || protected(to)
    }

    /// The name of a network's bridge.
    pub fn bridge(&self, network: &str) -> Option<String> {
        let position = self.policy.networks.keys().position(|n| n == network)?;
        let declared = self.policy.networks.get(network)?.bridge.clone();
        Some(declared.unwrap_or_else(|| format!("hybr{position}")))
    }

    fn bridges(&mut self) -> Result<()> {
        for (index, (name, network)) in self.policy.networks.iter().enumerate() {
            let mut addresses = Vec::new();
            for subnet in &network.subnets {
                let declared = network.gateways.iter().find(|g| subnet.contains(*g));
                let gateway =
                    declared.copied().or_else(|| nth(subnet, 1)).context("a subnet without hosts")?;
                addresses.push(IpNet::new(gateway, subnet.prefix_len())?);
            }
            if !addresses.iter().any(|a| a.addr().is_ipv6()) {
                // Both families are shown whether or not the file plans the second.
                addresses.push(format!("fd48:7964:{index:x}::1/64").parse()?);
            }
            let bridge = self.bridge(name).context("a network without a bridge")?;
            self.topology.bridges.push(Bridge { name: bridge, addresses });
        }
        Ok(())
    }

    fn containers(&mut self) -> Result<()> {
        let mut containers: Vec<(String, Vec<String>, Who)> = Vec::new();
        for (tier, value) in &self.policy.tiers {
            for (service, value_of) in &value.services {
                for container in &value_of.containers {
                    let mut networks = value.networks.clone();
                    networks.truncate(1);
                    networks
                        .extend(value_of.networks.iter().filter(|n| !value.networks.contains(n)).cloned());
                    containers.push((
                        container.clone(),
                        networks,
                        Who::Service(tier.clone(), service.clone()),
                    ));
                }
            }
            if let Some(network) = value.networks.first() {
                // A container that no service names: the tier itself.
                containers.push((format!("{tier}-other"), vec![network.clone()], Who::Tier(tier.clone())));
            }
        }
        let mut taken: BTreeMap<String, u32> = BTreeMap::new();
        for (name, networks, who) in containers {
            let mut ports = Vec::new();
            for network in networks.iter().filter(|n| self.policy.networks.contains_key(*n)) {
                let bridge = self.bridge(network).context("a network without a bridge")?;
                let number = taken.entry(bridge.clone()).or_insert(9);
                *number += 1;
                ports.push(self.port(&bridge, *number)?);
            }
            if !ports.is_empty() {
                self.owners.insert(name.clone(), who);
                self.topology.containers.push(Container { name, ports });
            }
        }
        Ok(())
    }

    /// What the policy does not name, the machines that it does, and the host.
    fn surroundings(&mut self) -> Result<()> {
        let bridge = Bridge {
            name: "hyother".into(),
            addresses: vec!["10.99.0.1/24".parse()?, "fd99::1/64".parse()?],
        };
        self.topology.bridges.push(bridge);
        let port = self.port("hyother", 10)?;
        self.topology.containers.push(Container { name: STRANGER.into(), ports: vec![port] });
        self.owners.insert(STRANGER.into(), Who::Unmanaged);
        self.owners.insert(HOST.into(), Who::Host);
        self.topology.uplink = vec!["198.51.100.1/24".parse()?, "2001:db8:51::1/64".parse()?];
        let outside = vec!["198.51.100.2".parse()?, "2001:db8:51::2".parse()?];
        self.topology.machines.push(Machine { name: OUTSIDE.into(), addresses: outside });
        self.owners.insert(OUTSIDE.into(), Who::External);
        let declared: Vec<(String, IpNet)> = self
            .policy
            .tiers
            .iter()
            .flat_map(|(name, tier)| tier.addresses.iter().map(|a| (name.clone(), *a)))
            .collect();
        for (index, (tier, block)) in declared.into_iter().enumerate() {
            let whole = block.prefix_len() == block.max_prefix_len();
            let address = if whole { Some(block.addr()) } else { nth(&block, 5) };
            let address = address.context("a block without addresses")?;
            let name = format!("{tier}-{}", index + 1);
            self.owners.insert(name.clone(), self.policy.owner(address));
            self.topology.machines.push(Machine { name, addresses: vec![address] });
        }
        Ok(())
    }

    fn port(&self, bridge: &str, number: u32) -> Result<Port> {
        let found = self.topology.bridges.iter().find(|b| b.name == bridge);
        let found = found.with_context(|| format!("no bridge {bridge}"))?;
        let addresses = found.addresses.iter().map(|gateway| {
            let address = nth(&gateway.trunc(), number).context("a subnet that is too small")?;
            Ok(IpNet::new(address, gateway.prefix_len())?)
        });
        Ok(Port { bridge: bridge.to_owned(), addresses: addresses.collect::<Result<_>>()? })
    }

    /// The address that a place's own routing takes to reach another.
    fn source(&self, from: &str, to: IpAddr) -> Option<IpAddr> {
        if let Some(container) = self.topology.containers.iter().find(|c| c.name == from) {
            let all = || container.ports.iter().flat_map(|p| &p.addresses);
            let near = all().find(|a| a.contains(&to));
            return near.or_else(|| all().find(|a| a.addr().is_ipv6() == to.is_ipv6())).map(IpNet::addr);
        }
        let machine = self.topology.machines.iter().find(|m| m.name == from);
        if let Some(machine) = machine {
            return machine.addresses.iter().copied().find(|a| a.is_ipv6() == to.is_ipv6());
        }
        let near = self.topology.bridges.iter().flat_map(|b| &b.addresses).find(|a| a.contains(&to));
        let far = self.topology.uplink.iter().find(|a| a.addr().is_ipv6() == to.is_ipv6());
        near.or(far).map(IpNet::addr)
    }
}

/// The address with this number in a block.
fn nth(block: &IpNet, number: u32) -> Option<IpAddr> {
    let address = match block.network() {
        IpAddr::V4(ip) => IpAddr::V4(u32::from(ip).checked_add(number)?.into()),
        IpAddr::V6(ip) => IpAddr::V6(u128::from(ip).checked_add(number.into())?.into()),
    };
    block.contains(&address).then_some(address)
}
