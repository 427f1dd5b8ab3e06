//! A policy with its world as table rows, made by hand from the deployment: what inventory, placement and reconciliation make in the
//! agent is left out, so that the kernel object and the compiler are tested alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use hydra_agent::desired::{Desired, Endpoint, Link};
use hydra_agent::policy;
use hydra_agent::policy::compile::{World as Known, compile};
use hydra_agent::policy::model::Model;
use hydra_agent::policy::rows::{Compiled, Numbers, Owner};
use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{Endpoint as Row, LinkKind, Publish, PublishKey};
use hydra_common::verdict::Hook;
use ipnet::IpNet;

use crate::deployment::{Deployment, STRANGER};
use crate::oracle::Who;
use crate::topology::HOST;
use crate::world::World;

/// A deployment that is built, and what the kernel should hold for it.
pub struct Stage {
    /// The world.
    pub world: World,
    /// What it was built from.
    pub deployment: Deployment,
    /// The whole wanted state.
    pub desired: Desired,
    links: BTreeMap<String, u32>,
    macs: BTreeMap<(String, usize), [u8; 6]>,
    gateways: BTreeMap<String, [u8; 6]>,
}

impl Stage {
    /// Of a policy file's text, for single frames: nothing but what a test sends is to be counted, no neighbour discovery, no
    /// multicast reports, so all interfaces are down. It waits for no turn: nothing in it takes time from anybody's measurement but
    /// what any program takes.
    pub fn of(text: &str) -> Result<Self> {
        let deployment = Deployment::of(text)?;
        let world = World::beside(&deployment.topology)?;
        let stage = Self::in_world(world, deployment, text)?;
        let ours = stage.links.keys().filter(|name| name.starts_with("hy"));
        let quiet: Vec<String> = ours.map(|name| format!("link set {name} down")).collect();
        stage.world.ip(HOST, &quiet)?;
        Ok(stage)
    }

    /// Of a policy file's text, with traffic of its own.
    pub fn live(text: &str) -> Result<Self> {
        let deployment = Deployment::of(text)?;
        let world = World::build(&deployment.topology)?;
        Self::in_world(world, deployment, text)
    }

    /// In a world that is there already.
    fn in_world(world: World, deployment: Deployment, text: &str) -> Result<Self> {
        let links = world.enter(HOST, || -> Result<BTreeMap<String, u32>> {
            let all = nix::net::if_::if_nameindex()?;
            Ok(all.iter().map(|i| (i.name().to_string_lossy().into_owned(), i.index())).collect())
        })??;
        let mut macs = BTreeMap::new();
        for container in &deployment.topology.containers {
            for index in 0..container.ports.len() {
                let mac = world.mac(&container.name, &format!("eth{index}"))?;
                macs.insert((container.name.clone(), index), mac);
            }
        }
        let mut gateways = BTreeMap::new();
        for bridge in &deployment.topology.bridges {
            gateways.insert(bridge.name.clone(), world.mac(HOST, &bridge.name)?);
        }
        let (_, compiled) = compiled(text, &deployment)?;
        let mut stage = Self { world, deployment, desired: Desired::default(), links, macs, gateways };
        stage.desired = stage.wanted(Arc::new(compiled))?;
        Ok(stage)
    }

    /// Another policy over the same world.
    pub fn restage(&mut self, deployment: Deployment, compiled: Arc<Compiled>, revision: u32) -> Result<()> {
        self.deployment = deployment;
        self.desired = Desired { revision, ..self.wanted(compiled)? };
        Ok(())
    }

    /// The row of a port of this host that leads to a container's first address of the family, or, where it has none, by a process
    /// of this host; the binding is to one address of this host, or to all.
    pub fn published(
        &self,
        binding: IpAddr,
        protocol: u8,
        port: u16,
        to: (&str, u16),
        flags: u16,
    ) -> Result<(PublishKey, Publish)> {
        let key = PublishKey {
            address: binding.into(),
            port: port.to_be_bytes(),
            protocol,
            ..PublishKey::default()
        };
        let (container, port) = to;
        let at = self.port(container, 0)?;
        let row = self.desired.endpoints.values().find(|e| e.port == at);
        let row = row.with_context(|| format!("{container} has no address"))?;
        Ok((key, Publish { identity: [row.identity; 2], container: row.container, port, flags }))
    }

    /// The index of a container's port in the host.
    pub fn port(&self, container: &str, index: usize) -> Result<u32> {
        self.link(&World::port_name(container, index))
    }

    /// The index of a host interface.
    pub fn link(&self, name: &str) -> Result<u32> {
        self.links.get(name).copied().with_context(|| format!("no interface {name}"))
    }

    /// The MAC inside a container.
    pub fn mac(&self, container: &str, index: usize) -> Result<[u8; 6]> {
        self.macs
            .get(&(container.to_owned(), index))
            .copied()
            .with_context(|| format!("no MAC of {container}"))
    }

    /// The MAC of the bridge that a container's port is on.
    pub fn gateway(&self, container: &str, index: usize) -> Result<[u8; 6]> {
        let found = self.deployment.topology.containers.iter().find(|c| c.name == container);
        let port =
            found.and_then(|c| c.ports.get(index)).with_context(|| format!("no port of {container}"))?;
        self.gateways.get(&port.bridge).copied().with_context(|| format!("no bridge {}", port.bridge))
    }

    fn wanted(&self, compiled: Arc<Compiled>) -> Result<Desired> {
        let topology = &self.deployment.topology;
        let mut desired = Desired { revision: 1, ..Desired::default() };
        let identity = |owner: &Owner, ip: Option<IpAddr>| -> Result<Identity> {
            compiled.identity(owner, ip).with_context(|| format!("no identity for {owner} at {ip:?}"))
        };
        for (number, container) in topology.containers.iter().enumerate() {
            let who = owner(self.deployment.owners.get(&container.name).unwrap_or(&Who::Unmanaged));
            let managed = container.name != STRANGER;
            // As in the agent: nobody checks the ports of what no tier has.
            let number = if managed { Container(u32::try_from(number)? + 1) } else { Container::NONE };
            for (index, port) in container.ports.iter().enumerate() {
                let ifindex = self.port(&container.name, index)?;
                let bridge = self.link(&port.bridge)?;
                let mac = Mac(self.mac(&container.name, index)?);
                let gateway_mac = Mac(self.gateway(&container.name, index)?);
                let kind = if managed { LinkKind::Port } else { LinkKind::Unmanaged };
                let link = Link {
                    identity: identity(&who, None)?,
                    container: number,
                    bridge,
                    kind,
                    flags: 0,
                    mac,
                    gateway_mac,
                };
                desired.links.insert(ifindex, link);
                if managed {
                    desired.hooks.extend([(ifindex, Hook::PortIn), (ifindex, Hook::PortOut)]);
                }
                for address in port.addresses.iter().map(IpNet::addr) {
                    let row = Endpoint {
                        identity: identity(&who, Some(address))?,
                        container: number,
                        port: ifindex,
                        bridge,
                        flags: if managed { Row::ATTACHED | Row::PEER } else { 0 },
                        mtu: 1500,
                        mac,
                        gateway_mac,
                    };
                    desired.endpoints.insert(Address::from(address), row);
                }
            }
        }
        for bridge in &topology.bridges {
            let ifindex = self.link(&bridge.name)?;
            let kind = if bridge.name == "hyother" { LinkKind::Unmanaged } else { LinkKind::Bridge };
            let mac = Mac(self.gateways.get(&bridge.name).copied().unwrap_or_default());
            let link = Link {
                identity: Identity::UNKNOWN,
                container: Container::NONE,
                bridge: ifindex,
                kind,
                flags: 0,
                mac,
                gateway_mac: mac,
            };
            desired.links.insert(ifindex, link);
            if kind == LinkKind::Bridge {
                desired.hooks.extend([(ifindex, Hook::BridgeIn), (ifindex, Hook::BridgeOut)]);
            }
        }
        let uplink = Link {
            identity: Identity::UNKNOWN,
            container: Container::NONE,
            bridge: 0,
            kind: LinkKind::Uplink,
            flags: 0,
            mac: Mac::ZERO,
            gateway_mac: Mac::ZERO,
        };
        desired.links.insert(self.link("hyup0")?, uplink);
        for address in topology.addresses(HOST) {
            let identity = identity(&Owner::Host, Some(address))?;
            let row = Endpoint { identity, flags: Row::HOST, ..Endpoint::default() };
            desired.endpoints.insert(Address::from(address), row);
        }
        desired.compiled = compiled;
        Ok(desired)
    }
}

/// A policy's text to its model and rows, for this deployment's addresses.
pub fn compiled(text: &str, deployment: &Deployment) -> Result<(Model, Compiled)> {
    compiled_with(text, deployment, &mut Numbers::default())
}

/// The same with the numbers that names have already.
pub fn compiled_with(
    text: &str,
    deployment: &Deployment,
    numbers: &mut Numbers,
) -> Result<(Model, Compiled)> {
    let (model, _) = match policy::parse(text, "policy.yaml") {
        Ok(parsed) => parsed,
        Err(problems) => anyhow::bail!("the agent refuses the policy:\n{}\n{text}", problems.render(false)),
    };
    let topology = &deployment.topology;
    let mut known = Known { host: topology.addresses(HOST), ..Known::default() };
    for bridge in &topology.bridges {
        let blocks = bridge.addresses.iter().map(IpNet::trunc);
        let network =
            deployment.policy.networks.keys().find(|n| deployment.bridge(n).as_ref() == Some(&bridge.name));
        let tier =
            deployment.policy.tiers.iter().find(|(_, t)| network.is_some_and(|n| t.networks.contains(n)));
        match tier {
            Some((tier, _)) => {
                known.subnets.entry(tier.clone()).or_default().extend(blocks.map(|b| (b, false)));
            }
            None => known.unmanaged.extend(blocks),
        }
    }
    let mut live = BTreeSet::new();
    for container in &topology.containers {
        let who = owner(deployment.owners.get(&container.name).unwrap_or(&Who::Unmanaged));
        for address in container.ports.iter().flat_map(|p| &p.addresses) {
            live.insert((who.clone(), address.addr()));
        }
    }
    known.live = live;
    let compiled = compile(&model, &known, numbers)?;
    Ok((model, compiled))
}

/// The agent's word for an owner.
pub fn owner(who: &Who) -> Owner {
    match who {
        Who::External => Owner::External,
        Who::Host => Owner::Host,
        Who::Unmanaged => Owner::Unmanaged,
        Who::Tier(tier) => Owner::Tier(tier.clone()),
        Who::Service(tier, service) => Owner::Service { tier: tier.clone(), service: service.clone() },
    }
}
