//! Who is who: a policy's places and a snapshot of the world in, an owner for every stack, port and address out. Pure.
//!
//! Two sources are believed: Docker's word for the addresses of its containers, and root's word for names, bridges and subnets.
//! What a namespace says of its own addresses is believed only inside the blocks of the network that its port is on: whoever
//! lives there could add any address to its interface.

mod claims;
mod lan;
mod published;
mod resolve;
mod stacks;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use hydra_common::address::Mac;
use hydra_common::id::Container;
use ipnet::IpNet;

pub use self::claims::{Claims, NetworkClaim, ServiceClaim, TierClaim};
pub use self::lan::LanHome;
pub use self::published::{PortKey, PublishedPort};
pub use self::resolve::leads_outside;
use self::resolve::{Bridges, PortHome, Trust};
use self::stacks::Claimed;
use crate::inventory::snapshot::{Attachment, DockerState, Link, LinkType, Snapshot, Stack};
use crate::policy::rows::Owner;
use crate::published::{NotEnforced, Remark};
use crate::state::Containers;

/// The label that places a container, where the settings allow it.
pub const LABEL: &str = "hydra.tier";

/// Who is who.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Bridges of tiers by interface index.
    pub bridges: BTreeMap<u32, Bridge>,
    /// Every stack that hydra has a number for.
    pub stacks: Vec<Placed>,
    /// Ports of these stacks and of the managed bridges, by interface index.
    pub ports: BTreeMap<u32, Port>,
    /// Addresses of stacks.
    pub addresses: BTreeMap<IpAddr, Home>,
    /// Addresses of stacks on interfaces that have no port here, those of closed stacks included.
    pub lan: Vec<LanHome>,
    /// The blocks of networks of such interfaces that somebody here is on, or that a tier has.
    pub lan_blocks: BTreeSet<IpNet>,
    /// What runs on this host's own stack and is somebody's: units, and containers of its network.
    pub processes: Vec<Processes>,
    /// Addresses of this host.
    pub host: BTreeSet<IpAddr>,
    /// Ports of this host that lead to containers.
    pub published: BTreeMap<PortKey, PublishedPort>,
    /// The blocks that each tier's networks and bridges have in the world.
    pub subnets: BTreeMap<String, BTreeSet<IpNet>>,
    /// Of these, the ones with ports whose addresses nobody can list.
    pub open: BTreeSet<IpNet>,
    /// The blocks of networks and bridges that the policy does not name.
    pub unmanaged: BTreeSet<IpNet>,
    /// What is declared and not enforced.
    pub not_enforced: Vec<NotEnforced>,
    /// Stacks whose ports are closed because of what they are.
    pub closed: Vec<Remark>,
    /// Addresses of these stacks, with their ports.
    pub closed_addresses: BTreeMap<IpAddr, u32>,
    /// What an operator should look at.
    pub warnings: Vec<Remark>,
    /// Tiers that are nowhere, with what was looked for; optional ones left out. A policy with one is not applied.
    pub nowhere: Vec<Nowhere>,
}

/// A bridge of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Whose.
    pub tier: String,
    /// Docker's or the policy's name for the network, or empty for a bridge by its own name.
    pub network: String,
    /// Its blocks.
    pub subnets: BTreeSet<IpNet>,
}

/// A stack with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// See [`Stack::key`].
    pub key: String,
    /// The name that operators see.
    pub name: String,
    /// Its number.
    pub container: Container,
    /// A path that opens its namespace.
    pub netns: Option<PathBuf>,
    /// What a service's name or a label makes of it, whatever network it is on.
    pub owner: Option<Owner>,
}

/// A port of a stack, or of a managed bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Index into [`Placement::stacks`]; none for a port that belongs to nobody known, or to a stack in [`Placement::closed`].
    pub stack: Option<usize>,
    /// Whose, where the address does not say more.
    pub owner: Owner,
    /// Nobody can list its addresses (a tap, a card).
    pub unbound: bool,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// Docker's network, the policy's name for it, or empty.
    pub network: String,
    /// The interface's name inside the stack.
    pub interface: String,
    /// Gateways of the network, per family.
    pub gateways: Vec<IpAddr>,
    /// The blocks of the network that it is on.
    pub subnets: BTreeSet<IpNet>,
}

/// Where an address lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Whose.
    pub owner: Owner,
    /// Index into [`Placement::stacks`].
    pub stack: usize,
    /// Interface index of the port.
    pub port: u32,
}

/// Processes on this host's own stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// The unit's or the container's name.
    pub name: String,
    /// Whose.
    pub owner: Owner,
    /// The kernel's number of their cgroup.
    pub cgroup: u64,
}

/// A tier that is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nowhere {
    /// Its name.
    pub tier: String,
    /// What was looked for, in words.
    pub looked_for: String,
}

impl Owner {
    /// A tier or service of the policy.
    pub fn declared(&self) -> bool {
        match self {
            Self::Tier(_) | Self::Service { .. } | Self::Shared(_) => true,
            Self::External | Self::Host | Self::Unmanaged => false,
        }
    }
}

impl Placement {
    /// The stacks of which any port or address is a tier's or a service's, by index.
    pub fn declared_stacks(&self) -> BTreeSet<usize> {
        let ports = self.ports.values().filter(|p| p.owner.declared()).filter_map(|p| p.stack);
        let addresses = self.addresses.values().filter(|h| h.owner.declared()).map(|h| h.stack);
        let lan = self.lan.iter().filter(|h| h.owner.as_ref().is_some_and(Owner::declared));
        let lan = lan.filter_map(|h| self.stacks.iter().position(|s| s.key == h.stack));
        ports.chain(addresses).chain(lan).collect()
    }
}

/// Places everything. `containers` gives new stacks their numbers.
pub fn place(claims: &Claims, snapshot: &Snapshot, labels: bool, containers: &mut Containers) -> Placement {
    let mut out = Placement { host: host_addresses(snapshot), ..Placement::default() };
    let bridges = resolve::bridges(claims, snapshot, &mut out);
    let mut stacks: Vec<&Stack> = snapshot.stacks.iter().collect();
    // Who was here first keeps an address that two claim; new stacks get their numbers in a settled order.
    stacks.sort_by_key(|s| (containers.get(&s.key).map_or(u32::MAX, |c| c.0), &s.key));
    for stack in stacks {
        place_stack(claims, snapshot, &bridges, labels, containers, stack, &mut out);
    }
    containers
        .hold(out.addresses.iter().map(|(ip, home)| (*ip, out.stacks[home.stack].key.clone())).collect());
    lone_ports(snapshot, &bridges, &mut out);
    published::place(snapshot, &mut out);
    elsewhere(claims, snapshot, &mut out);
    in_host_stack(claims, snapshot, &mut out);
    let unread = snapshot.problems.iter();
    out.not_enforced.extend(unread.map(|p| NotEnforced { what: "inventory".to_owned(), why: p.clone() }));
    out.open = open_blocks(snapshot, &bridges, &out);
    out.unmanaged = bridges.unmanaged();
    out.bridges = bridges.managed;
    out.not_enforced.sort();
    out.not_enforced.dedup();
    out.closed.sort();
    out.warnings.sort();
    out
}

/// Addresses on `lo` are the host's as well (a virtual one of a load balancer, say). The link-local ones of bridges' ports are not
/// kept: nobody calls them, and one comes with every container.
fn host_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    let of = |link: &Link| -> Vec<IpAddr> {
        let counts = |a: &IpAddr| !a.is_loopback() && (link.master.is_none() || !link_local(*a));
        link.addresses.iter().map(IpNet::addr).filter(counts).collect()
    };
    snapshot.links.values().flat_map(of).collect()
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn place_stack(
    claims: &Claims,
    snapshot: &Snapshot,
    bridges: &Bridges,
    labels: bool,
    containers: &mut Containers,
    stack: &Stack,
    out: &mut Placement,
) {
    let (owner, mut closed) = match stacks::claimed(claims, labels, stack, &mut out.warnings) {
        Claimed::Nobody => (None, None),
        Claimed::By(owner) => (Some(owner), None),
        Claimed::Closed(why) => (None, Some(why)),
    };
    // Something behind a veth that is on no bridge and that nobody names is what a cable leads to: the outside. What is on a
    // network of Docker's and no container of Docker's stays unknown: a container that starts right now, or a stranger.
    let nobody = |a: &Attachment| {
        let bridged = snapshot.links.get(&a.port).is_some_and(|l| l.master.is_some());
        !stack.docker && (a.network.is_some() || (owner.is_none() && !bridged))
    };
    let attachments: Vec<(&Attachment, PortHome)> =
        stack.attachments.iter().filter(|a| !nobody(a)).map(|a| (a, bridges.of_port(snapshot, a))).collect();
    let lans = lan::homes(snapshot, bridges, stack);
    let named = closed.is_some() || owner.is_some() || lans.iter().any(|(_, home)| home.tier.is_some());
    if attachments.is_empty() && (lans.is_empty() || !named) {
        return;
    }
    if closed.is_none() && owner.is_none() {
        let homes = attachments.iter().map(|(_, home)| home).chain(lans.iter().map(|(_, home)| home));
        match stacks::multihomed(claims, stack, homes) {
            Some((remark, true)) => closed = Some(remark),
            Some((remark, false)) => out.warnings.push(remark),
            None => {}
        }
    }
    if let Some(remark) = closed {
        out.closed.push(remark);
        for (attachment, home) in attachments {
            let owner = home.tier.clone().map_or(Owner::Unmanaged, Owner::Tier);
            out.ports.insert(attachment.port, port(attachment, &home, None, owner));
            // Only where an address of it would count: anybody's claim closes what it names.
            let within = |a: &&IpAddr| home.subnets.iter().any(|s| s.contains(*a));
            let addresses = attachment.addresses.iter().filter(within);
            out.closed_addresses.extend(addresses.map(|a| (*a, attachment.port)));
        }
        lan::close(stack, &lans, out);
        return;
    }
    let index = out.stacks.len();
    out.stacks.push(Placed {
        key: stack.key.clone(),
        name: stack.name.clone(),
        container: containers.number(&stack.key),
        netns: stack.netns.clone(),
        owner: owner.clone(),
    });
    for (attachment, home) in attachments {
        let port_owner =
            owner.clone().or_else(|| home.tier.clone().map(Owner::Tier)).unwrap_or(Owner::Unmanaged);
        out.ports.insert(attachment.port, port(attachment, &home, Some(index), port_owner.clone()));
        for address in &attachment.addresses {
            let trust = if stack.docker { Trust::Docker } else { Trust::Within };
            let Some(owner) = address_owner(claims, &home, owner.as_ref(), &port_owner, trust, *address)
            else {
                // Of a stack that no tier has, nothing is claimed that could be missed.
                if port_owner.declared() {
                    out.not_enforced.push(NotEnforced {
                        what: format!("{} {address}", stack.name),
                        why: format!(
                            "the address lies in no block of the network that {} is on: its packets are denied",
                            port_name(snapshot, attachment.port)
                        ),
                    });
                }
                continue;
            };
            let home = Home { owner, stack: index, port: attachment.port };
            settle(snapshot, containers, out, *address, home);
        }
    }
    lan::place(claims, stack, owner.as_ref(), &lans, out);
}

fn port(attachment: &Attachment, home: &PortHome, stack: Option<usize>, owner: Owner) -> Port {
    Port {
        stack,
        owner,
        unbound: false,
        mac: attachment.mac,
        network: home.network.clone(),
        interface: attachment.interface.clone(),
        gateways: attachment.gateways.clone(),
        subnets: home.subnets.clone(),
    }
}

/// Whose an address of a stack is; `None` for one that is not believed.
fn address_owner(
    claims: &Claims,
    home: &PortHome,
    named: Option<&Owner>,
    port_owner: &Owner,
    trust: Trust,
    address: IpAddr,
) -> Option<Owner> {
    if trust == Trust::Within && !home.subnets.iter().any(|s| s.contains(&address)) {
        // Without a bridge the policy's own blocks for the one that it names are the measure.
        let declared = home.tier.is_none() && named.is_some_and(|o| claims.holds(o, address));
        return declared.then(|| port_owner.clone());
    }
    if let Some(owner) = named {
        return Some(owner.clone());
    }
    let by_service = claims.service_of(address);
    match (&home.tier, trust) {
        // Inside its own tier an address may be a service's.
        (Some(tier), _) => {
            Some(by_service.filter(|o| o.tier() == tier).unwrap_or_else(|| port_owner.clone()))
        }
        (None, Trust::Docker) => {
            Some(by_service.or_else(|| claims.tier_of(address).map(Owner::Tier)).unwrap_or(Owner::Unmanaged))
        }
        (None, Trust::Within) => Some(Owner::Unmanaged),
    }
}

/// Gives an address its home; of two the declared one keeps it, else the one that had it, else the one that was here first.
fn settle(snapshot: &Snapshot, containers: &Containers, out: &mut Placement, address: IpAddr, home: Home) {
    let name = |out: &Placement, h: &Home| out.stacks[h.stack].name.clone();
    if out.host.contains(&address) {
        let what = format!("{} {address}", name(out, &home));
        let why = "this host has the same address: it is the host's".to_owned();
        out.not_enforced.push(NotEnforced { what, why });
        return;
    }
    let Some(first) = out.addresses.get(&address).cloned() else {
        out.addresses.insert(address, home);
        return;
    };
    if first.stack == home.stack {
        return;
    }
    // A stack can give itself any address of its network: that must not take it from whoever has it.
    let had = |home: &Home| containers.holder(address) == Some(out.stacks[home.stack].key.as_str());
    let rank = |home: &Home| (home.owner.declared(), had(home));
    let (keeps, loses) = if rank(&home) > rank(&first) { (home, first) } else { (first, home) };
    let what = format!("{} {address}", name(out, &loses));
    let why = format!(
        "`{}` has the same address: packets of it on {} are denied",
        name(out, &keeps),
        port_name(snapshot, loses.port)
    );
    out.not_enforced.push(NotEnforced { what, why });
    out.addresses.insert(address, keeps);
}

/// Ports of managed bridges that are nobody's: closed if they lead to a stack that is not known yet, open to the tier's own
/// blocks if nobody can ever list what is behind them. A veth with both ends here is one that is about to be moved into a stack.
fn lone_ports(snapshot: &Snapshot, bridges: &Bridges, out: &mut Placement) {
    for (index, link) in &snapshot.links {
        let Some(bridge) = link.master.and_then(|m| bridges.managed.get(&m)) else { continue };
        if out.ports.contains_key(index) {
            continue;
        }
        let unbound = link.kind != LinkType::Veth;
        out.ports.insert(
            *index,
            Port {
                stack: None,
                owner: Owner::Tier(bridge.tier.clone()),
                unbound,
                mac: Mac::ZERO,
                network: bridge.network.clone(),
                interface: String::new(),
                gateways: Vec::new(),
                subnets: bridge.subnets.clone(),
            },
        );
    }
}

fn open_blocks(snapshot: &Snapshot, bridges: &Bridges, out: &Placement) -> BTreeSet<IpNet> {
    let unbound = out.ports.iter().filter(|(_, p)| p.unbound).map(|(index, _)| index);
    let masters = unbound.filter_map(|index| snapshot.links.get(index)?.master);
    masters.filter_map(|m| bridges.managed.get(&m)).flat_map(|b| b.subnets.iter().copied()).collect()
}

/// Containers that a service names and that sit on none of its tier's networks.
fn elsewhere(claims: &Claims, snapshot: &Snapshot, out: &mut Placement) {
    if matches!(snapshot.docker, DockerState::Down { .. }) {
        return;
    }
    for (tier, service) in claims.services() {
        let Some(claim) = claims.tiers.get(tier) else { continue };
        if claim.networks.is_empty() && claim.bridges.is_empty() {
            continue;
        }
        for stack in &snapshot.stacks {
            let Some(member) = stack.members.iter().find(|m| service.containers.contains(*m)) else {
                continue;
            };
            let mut ports = stack.attachments.iter().filter_map(|a| out.ports.get(&a.port));
            let there = ports.any(|p| {
                claim.networks.contains(&p.network)
                    || service.networks.contains(&p.network)
                    || p.subnets.iter().any(|s| out.subnets.get(tier).is_some_and(|t| t.contains(s)))
            });
            let there = there
                || stack.lans.iter().any(|lan| {
                    claim.networks.contains(&lan.network) || service.networks.contains(&lan.network)
                });
            if !there && !stack.attachments.is_empty() {
                out.warnings.push(Remark {
                    what: member.clone(),
                    why: format!(
                        "a container of `{tier}/{}`, it is on none of the tier's networks",
                        service.name
                    ),
                    hint: format!("connect it to a network of `{tier}`"),
                });
            }
        }
    }
}

/// Containers that a service names and that have no stack of their own: the kernel knows them by their cgroup.
fn in_host_stack(claims: &Claims, snapshot: &Snapshot, out: &mut Placement) {
    for (tier, service) in claims.services() {
        for name in snapshot.host_network.iter().filter(|n| service.containers.contains(*n)) {
            let owner = service.owner(tier);
            let Some(cgroup) = snapshot.host_cgroups.get(name) else {
                out.not_enforced.push(NotEnforced {
                    what: name.clone(),
                    why: format!(
                        "it uses this host's own network stack, and its cgroup is not below that of the hooks: it is `host`, not `{owner}`"
                    ),
                });
                continue;
            };
            out.processes.push(Processes { name: name.clone(), owner, cgroup: *cgroup });
        }
    }
}

fn port_name(snapshot: &Snapshot, index: u32) -> String {
    snapshot.links.get(&index).map_or_else(|| format!("interface {index}"), |l| format!("`{}`", l.name))
}
