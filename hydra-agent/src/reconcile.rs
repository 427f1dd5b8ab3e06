//! What the kernel should hold, from who is who and a compiled policy. Pure: nothing here touches the kernel.

mod cgroups;
mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{self, LinkKind};
use hydra_common::verdict::{Hook, Verdict};
use ipnet::IpNet;

use crate::desired::{Desired, Endpoint, Link};
use crate::inventory::routes::{Route, StackRoute};
use crate::inventory::snapshot::{self as inventory, LinkType, Snapshot};
use crate::placement::{Placement, Port, leads_outside};
use crate::policy::rows::{Compiled, Owner};
use crate::published::EndpointView;
use crate::settings::Uplinks;

pub use self::published::{left_out, views as port_views};

/// Addresses whose class the matrix does not have: the policy has to be compiled again with them.
pub fn missing(compiled: &Compiled, placement: &Placement) -> Vec<(Owner, IpAddr)> {
    homes(placement).filter(|(owner, ip)| compiled.identity(owner, Some(*ip)).is_none()).collect()
}

/// Every address with its owner, this host's included.
pub fn homes(placement: &Placement) -> impl Iterator<Item = (Owner, IpAddr)> {
    let stacks = placement.addresses.iter().map(|(ip, home)| (home.owner.clone(), *ip));
    let lan = placement.lan.iter().filter_map(|home| Some((home.owner.clone()?, home.address)));
    stacks.chain(lan).chain(placement.host.iter().map(|ip| (Owner::Host, *ip)))
}

/// The kernel's whole wanted state. Endpoints whose ports should carry programs are `ATTACHED` in it; what really is attached when
/// the rows are written is for the datapath to see.
pub fn desired(
    revision: u32,
    compiled: &Arc<Compiled>,
    placement: &Placement,
    snapshot: &Snapshot,
    uplinks: &Uplinks,
) -> Desired {
    let declared = placement.declared_stacks();
    let mut hooks = hooks(placement, snapshot, &declared);
    let endpoints = endpoints(compiled, placement, snapshot, &declared, &hooks);
    let links = links(compiled, placement, snapshot, &declared);
    let published = published::rows(compiled, placement, &declared);
    hooks.extend(published::hooks(&links, snapshot, uplinks));
    let cgroups = cgroups::rows(compiled, placement, snapshot, &declared);
    Desired {
        revision,
        compiled: compiled.clone(),
        endpoints,
        links,
        published,
        cgroups,
        hooks,
        ..Desired::default()
    }
}

fn hooks(placement: &Placement, snapshot: &Snapshot, declared: &BTreeSet<usize>) -> BTreeSet<(u32, Hook)> {
    let mut hooks = BTreeSet::new();
    for index in placement.bridges.keys() {
        hooks.extend([(*index, Hook::BridgeIn), (*index, Hook::BridgeOut)]);
    }
    for (index, port) in &placement.ports {
        let Some(link) = snapshot.links.get(index) else { continue };
        let managed = link.master.is_some_and(|m| placement.bridges.contains_key(&m));
        // A closed port is closed wherever it is.
        if managed || port.stack.is_none_or(|s| declared.contains(&s)) {
            hooks.extend([(*index, Hook::PortIn), (*index, Hook::PortOut)]);
        }
    }
    hooks
}

fn endpoints(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
    hooks: &BTreeSet<(u32, Hook)>,
) -> BTreeMap<Address, Endpoint> {
    let mut rows = BTreeMap::new();
    for (ip, home) in &placement.addresses {
        let (Some(port), Some(link)) = (placement.ports.get(&home.port), snapshot.links.get(&home.port))
        else {
            continue;
        };
        // Nobody checks the ports of a stack that no tier has: the tables must not tell its packets by container.
        let container = if declared.contains(&home.stack) {
            placement.stacks.get(home.stack).map_or(Container::NONE, |s| s.container)
        } else {
            Container::NONE
        };
        let identity = compiled.identity(&home.owner, Some(*ip)).unwrap_or(Identity::UNKNOWN);
        let row = endpoint(snapshot, hooks, home.port, port, link);
        rows.insert(Address::from(*ip), Endpoint { identity, container, ..row });
    }
    // So that the bridge's hook leaves what this host sends there to the closed port.
    for (ip, index) in &placement.closed_addresses {
        let (Some(port), Some(link)) = (placement.ports.get(index), snapshot.links.get(index)) else {
            continue;
        };
        rows.entry(Address::from(*ip)).or_insert_with(|| endpoint(snapshot, hooks, *index, port, link));
    }
    rows.extend(link_local(compiled, placement, snapshot, declared, hooks));
    for ip in &placement.host {
        let identity = compiled.identity(&Owner::Host, Some(*ip)).unwrap_or(Identity::HOST);
        let row = Endpoint { identity, flags: tables::Endpoint::HOST, ..Endpoint::default() };
        rows.insert(Address::from(*ip), row);
    }
    rows
}

/// A port's row, but for whose it is.
fn endpoint(
    snapshot: &Snapshot,
    hooks: &BTreeSet<(u32, Hook)>,
    index: u32,
    port: &Port,
    link: &inventory::Link,
) -> Endpoint {
    let mut flags = 0;
    if hooks.contains(&(index, Hook::PortIn)) {
        flags |= tables::Endpoint::ATTACHED;
    }
    if link.kind == LinkType::Veth && link.peer_elsewhere {
        flags |= tables::Endpoint::PEER;
    }
    Endpoint {
        port: index,
        bridge: link.master.unwrap_or(0),
        flags,
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        mac: port.mac,
        gateway_mac: gateway_mac(snapshot, index),
        ..Endpoint::default()
    }
}

/// The link-local addresses that judged ports have by their MACs: a bridge's hook knows by it who sends to this host, and a port's
/// whose MAC it is that a frame is for. One that two ports have is nobody's.
fn link_local(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
    hooks: &BTreeSet<(u32, Hook)>,
) -> BTreeMap<Address, Endpoint> {
    let mut rows: BTreeMap<Address, Option<Endpoint>> = BTreeMap::new();
    for (index, port) in &placement.ports {
        let Some(link) = snapshot.links.get(index) else { continue };
        let mut row = endpoint(snapshot, hooks, *index, port, link);
        match port.stack {
            Some(stack) if declared.contains(&stack) => {
                row.identity = name(compiled, &port.owner);
                row.container = placement.stacks.get(stack).map_or(Container::NONE, |s| s.container);
            }
            // A closed port keeps its address from others; of the MACs behind some nothing is known.
            None if port.mac != Mac::ZERO => {}
            Some(_) | None => continue,
        }
        rows.entry(Address::link_local_of(&port.mac)).and_modify(|twice| *twice = None).or_insert(Some(row));
    }
    rows.into_iter().filter_map(|(address, row)| Some((address, row?))).collect()
}

fn links(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
) -> BTreeMap<u32, Link> {
    let mut rows = BTreeMap::new();
    for (index, link) in &snapshot.links {
        if link.kind == LinkType::Loopback {
            continue;
        }
        let row = if let Some(bridge) = placement.bridges.get(index) {
            Link {
                identity: name(compiled, &Owner::Tier(bridge.tier.clone())),
                container: Container::NONE,
                bridge: *index,
                kind: LinkKind::Bridge,
                flags: 0,
                mac: link.mac,
                gateway_mac: link.mac,
            }
        } else if let Some(row) = port(compiled, placement, snapshot, declared, *index) {
            row
        } else {
            let (kind, identity) = if unmanaged(placement, snapshot, *index) {
                (LinkKind::Unmanaged, Identity::UNMANAGED)
            } else {
                (LinkKind::Uplink, Identity::EXTERNAL)
            };
            let bridge = if link.kind == LinkType::Bridge { *index } else { link.master.unwrap_or(0) };
            Link {
                identity,
                container: Container::NONE,
                bridge,
                kind,
                flags: 0,
                mac: link.mac,
                gateway_mac: gateway_mac(snapshot, *index),
            }
        };
        rows.insert(*index, row);
    }
    rows
}

/// The row of a port that is judged; none for every other interface.
fn port(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
    index: u32,
) -> Option<Link> {
    let port = placement.ports.get(&index)?;
    let master = snapshot.links.get(&index)?.master;
    let managed = master.is_some_and(|m| placement.bridges.contains_key(&m));
    let stack = port.stack.filter(|s| declared.contains(s));
    if !managed && stack.is_none() && port.stack.is_some() {
        return None;
    }
    let closed = stack.is_none() && !port.unbound;
    Some(Link {
        identity: if closed { Identity::UNKNOWN } else { name(compiled, &port.owner) },
        container: stack.and_then(|s| placement.stacks.get(s)).map_or(Container::NONE, |s| s.container),
        bridge: master.unwrap_or(0),
        kind: LinkKind::Port,
        flags: if port.unbound { tables::Link::UNBOUND } else { 0 },
        mac: port.mac,
        gateway_mac: gateway_mac(snapshot, index),
    })
}

/// A bridge that no tier has, its ports, and ports of stacks that no tier has; not the way to the outside.
fn unmanaged(placement: &Placement, snapshot: &Snapshot, index: u32) -> bool {
    let Some(link) = snapshot.links.get(&index) else { return false };
    if link.kind == LinkType::Bridge {
        return !leads_outside(snapshot, index);
    }
    if placement.ports.get(&index).is_some_and(|p| p.stack.is_some()) {
        return true;
    }
    link.master.is_some_and(|m| {
        let bridge = snapshot.links.get(&m).is_some_and(|l| l.kind == LinkType::Bridge);
        bridge && !(leads_outside(snapshot, m) && link.kind == LinkType::Other)
    })
}

/// The number of an owner's name.
fn name(compiled: &Compiled, owner: &Owner) -> Identity {
    compiled.identity(owner, None).unwrap_or(Identity::UNKNOWN)
}

/// What a stack behind this port takes for its gateway: the bridge, or without one the port itself.
fn gateway_mac(snapshot: &Snapshot, port: u32) -> Mac {
    let Some(link) = snapshot.links.get(&port) else { return Mac::ZERO };
    link.master.and_then(|m| snapshot.links.get(&m)).map_or(link.mac, |bridge| bridge.mac)
}

/// The routes that stacks (by key) must have, one way or another, so that what the matrix allows can connect; in either direction,
/// since replies need one too. Which of them are already there, [`route_changes`] says.
/// `now` in Unix seconds: an expired rule needs no route.
pub fn routes(compiled: &Compiled, placement: &Placement, now: i64) -> BTreeMap<String, BTreeSet<Route>> {
    let declared = placement.declared_stacks();
    let mut peers: BTreeSet<(IpNet, Identity)> = BTreeSet::new();
    let mut own: BTreeMap<usize, BTreeSet<(bool, Identity)>> = BTreeMap::new();
    for (ip, home) in placement.addresses.iter().filter(|(_, h)| declared.contains(&h.stack)) {
        let Some(identity) = compiled.identity(&home.owner, Some(*ip)) else { continue };
        own.entry(home.stack).or_default().insert((ip.is_ipv6(), identity));
        let subnets = placement.ports.get(&home.port).map(|p| &p.subnets);
        let subnet = subnets.into_iter().flatten().filter(|s| s.contains(ip)).max_by_key(|s| s.prefix_len());
        peers.insert((subnet.copied().unwrap_or_else(|| IpNet::from(*ip)), identity));
    }
    let mut connected: BTreeMap<(Identity, Identity), bool> = BTreeMap::new();
    let mut pair = |a: Identity, b: Identity| {
        *connected.entry((a, b)).or_insert_with(|| passes(compiled, a, b, now) || passes(compiled, b, a, now))
    };
    let mut out = BTreeMap::new();
    for (index, identities) in own {
        let Some(stack) = placement.stacks.get(index) else { continue };
        let on = |family: bool| {
            let ports = placement.ports.values().filter(move |p| p.stack == Some(index));
            ports.flat_map(move |p| p.subnets.iter().filter(move |s| matches!(s, IpNet::V6(_)) == family))
        };
        let mut routes = BTreeSet::new();
        for (subnet, peer) in &peers {
            let family = matches!(subnet, IpNet::V6(_));
            if on(family).any(|s| s.contains(subnet)) {
                continue;
            }
            let allowed = identities.iter().any(|(f, identity)| *f == family && pair(*identity, *peer));
            if let Some((via, interface)) = gateway(placement, index, family).filter(|_| allowed) {
                routes.insert(Route { destination: *subnet, gateway: via, interface });
            }
        }
        out.insert(stack.key.clone(), routes);
    }
    out
}

/// What to add to a stack and what to take away, from what it must reach and the routes that it has. Where anybody else's route
/// leads, ours is not needed; ours that nothing needs any more go.
pub fn route_changes(wanted: &BTreeSet<Route>, there: &[StackRoute]) -> (Vec<Route>, Vec<Route>) {
    let leads = |to: &IpNet| there.iter().any(|r| !r.ours && r.destination.contains(to));
    let needed: BTreeSet<&Route> = wanted.iter().filter(|w| !leads(&w.destination)).collect();
    let ours: BTreeSet<Route> = there
        .iter()
        .filter(|r| r.ours)
        .filter_map(|r| {
            let (destination, gateway) = (r.destination, r.gateway?);
            Some(Route { destination, gateway, interface: r.interface.clone() })
        })
        .collect();
    let add = needed.iter().filter(|w| !ours.contains(**w)).map(|w| (*w).clone()).collect();
    let remove = ours.iter().filter(|o| !needed.contains(o)).cloned().collect();
    (add, remove)
}

/// The gateway by which a stack's routes go: of its first network by name, as Docker chooses.
fn gateway(placement: &Placement, stack: usize, family: bool) -> Option<(IpAddr, String)> {
    let mut ports: Vec<_> = placement.ports.values().filter(|p| p.stack == Some(stack)).collect();
    ports.sort_by(|a, b| (&a.network, &a.interface).cmp(&(&b.network, &b.interface)));
    ports.into_iter().find_map(|p| {
        let via = p.gateways.iter().find(|g| g.is_ipv6() == family)?;
        Some((*via, p.interface.clone()))
    })
}

/// Whether anything at all passes from one identity to another, now or when a rule that denies has ended.
fn passes(compiled: &Compiled, from: Identity, to: Identity, now: i64) -> bool {
    let Some(cell) = compiled.cells.get(&(from, to)) else { return false };
    let (index, is_set) = cell.index();
    if !is_set {
        return decision_passes(compiled, index, now);
    }
    let Some(set) = compiled.rule_sets.get(index as usize) else { return false };
    let (start, end) = (set.start as usize, set.start.saturating_add(set.count) as usize);
    let intervals = compiled.intervals.get(start..end).unwrap_or_default();
    intervals.iter().any(|i| decision_passes(compiled, i.decision, now))
}

/// A decision that has not expired, or any that follows it when it does.
fn decision_passes(compiled: &Compiled, first: u32, now: i64) -> bool {
    let mut index = first;
    for _ in 0..tables::MAX_CHAIN {
        let Some((decision, until)) = compiled.decisions.get(index as usize) else { return false };
        let expired = until.is_some_and(|end| end <= now);
        if !expired && Verdict::from_row(decision.verdict) != Verdict::Denied {
            return true;
        }
        if until.is_none() {
            return false;
        }
        index = decision.next;
    }
    false
}

/// The rows of `hydractl endpoints`.
pub fn views(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    attached: &BTreeSet<u32>,
) -> Vec<EndpointView> {
    let interface = |index: u32| snapshot.links.get(&index).map(|l| l.name.clone()).unwrap_or_default();
    let mut views: Vec<EndpointView> = placement
        .addresses
        .iter()
        .filter_map(|(ip, home)| {
            let stack = placement.stacks.get(home.stack)?;
            let port = placement.ports.get(&home.port)?;
            let master = snapshot.links.get(&home.port).and_then(|l| l.master);
            Some(EndpointView {
                container: stack.name.clone(),
                number: stack.container,
                owner: home.owner.clone(),
                tier: home.owner.tier().to_owned(),
                service: home.owner.service_text(),
                network: port.network.clone(),
                bridge: master.map(interface).unwrap_or_default(),
                port: interface(home.port),
                mac: port.mac.to_string(),
                address: ip.to_string(),
                identity: compiled.identity(&home.owner, Some(*ip)).unwrap_or(Identity::UNKNOWN),
                attached: attached.contains(&home.port),
            })
        })
        .collect();
    views.extend(placement.lan.iter().filter_map(|home| {
        let stack = placement.stacks.iter().find(|s| s.key == home.stack)?;
        let owner = home.owner.clone()?;
        Some(EndpointView {
            container: stack.name.clone(),
            number: stack.container,
            tier: owner.tier().to_owned(),
            service: owner.service_text(),
            network: home.network.clone(),
            bridge: String::new(),
            port: String::new(),
            mac: home.mac.to_string(),
            address: home.address.to_string(),
            identity: compiled.identity(&owner, Some(home.address)).unwrap_or(Identity::UNKNOWN),
            attached: attached.contains(&0),
            owner,
        })
    }));
    views.sort_by(|a, b| {
        (&a.tier, &a.container, &a.network, &a.address).cmp(&(&b.tier, &b.container, &b.network, &b.address))
    });
    views
}

#[cfg(test)]
mod tests;
