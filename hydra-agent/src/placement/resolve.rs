//! Which bridge is whose: names of networks and bridges in a policy to interface indexes and blocks of the world.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::claims::{Claims, NetworkClaim, TierClaim};
use super::{Bridge, Nowhere, Placement, Processes};
use crate::inventory::snapshot::{Attachment, DockerState, Link, LinkType, Snapshot};
use crate::policy::rows::Owner;
use crate::published::{NotEnforced, Remark};

/// How far the addresses of a stack are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Docker gave them.
    Docker,
    /// The stack says so itself: only inside the blocks of its own network.
    Within,
}

/// Bridges of this host, with whose they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Bridges {
    /// Of tiers.
    pub managed: BTreeMap<u32, Bridge>,
    /// Of nobody: their blocks.
    others: BTreeMap<u32, BTreeSet<IpNet>>,
    /// Docker's network by bridge.
    networks: BTreeMap<u32, String>,
    /// The tier of networks that have no bridge of their own here.
    bridgeless: BTreeMap<String, String>,
}

/// What a port's place says.
#[derive(Clone, Debug, Default)]
pub(super) struct PortHome {
    /// The tier of its network.
    pub tier: Option<String>,
    /// Its network's name, or empty.
    pub network: String,
    /// Its network's blocks.
    pub subnets: BTreeSet<IpNet>,
}

impl Bridges {
    /// The bridge is the kernel's word, and counts more than the network's name.
    pub fn of_port(&self, snapshot: &Snapshot, attachment: &Attachment) -> PortHome {
        let master = snapshot.links.get(&attachment.port).and_then(|l| l.master);
        if let Some(bridge) = master.and_then(|m| self.managed.get(&m)) {
            return PortHome {
                tier: Some(bridge.tier.clone()),
                network: attachment.network.clone().unwrap_or_else(|| bridge.network.clone()),
                subnets: bridge.subnets.clone(),
            };
        }
        let network = attachment
            .network
            .clone()
            .or_else(|| master.and_then(|m| self.networks.get(&m).cloned()))
            .unwrap_or_default();
        let known = snapshot.networks.get(&network).map(|n| n.subnets.iter().copied().collect());
        let subnets = known.or_else(|| master.and_then(|m| self.others.get(&m).cloned())).unwrap_or_default();
        PortHome { tier: self.bridgeless.get(&network).cloned(), network, subnets }
    }

    /// The same of an interface without a port.
    pub fn of_lan(&self, snapshot: &Snapshot, network: &str) -> PortHome {
        let known = snapshot.networks.get(network).map(|n| n.subnets.iter().copied().collect());
        PortHome {
            tier: self.bridgeless.get(network).cloned(),
            network: network.to_owned(),
            subnets: known.unwrap_or_default(),
        }
    }

    /// The blocks of bridges that are no tier's.
    pub fn unmanaged(&self) -> BTreeSet<IpNet> {
        let managed: BTreeSet<&IpNet> = self.managed.values().flat_map(|b| &b.subnets).collect();
        self.others.values().flatten().filter(|s| !managed.contains(s)).copied().collect()
    }
}

/// Finds every tier's bridges; what is missing goes to the placement's lists.
pub(super) fn bridges(claims: &Claims, snapshot: &Snapshot, out: &mut Placement) -> Bridges {
    let mut found = Bridges::default();
    for (name, network) in &snapshot.networks {
        if let Some(bridge) = network.bridge {
            found.networks.insert(bridge, name.clone());
        }
    }
    for (name, tier) in &claims.tiers {
        resolve_tier(claims, snapshot, name, tier, &mut found, out);
    }
    for (index, link) in snapshot.links.iter().filter(|(_, l)| l.kind == LinkType::Bridge) {
        if !found.managed.contains_key(index) && !leads_outside(snapshot, *index) {
            let network = found.networks.get(index).and_then(|n| snapshot.networks.get(n));
            let mut blocks = blocks_of(link);
            blocks.extend(network.iter().flat_map(|n| n.subnets.iter().copied()));
            found.others.insert(*index, blocks);
        }
    }
    found
}

/// A bridge that no tier and no network of Docker's has, with a card or a tap on it, is the way to the outside.
pub fn leads_outside(snapshot: &Snapshot, bridge: u32) -> bool {
    let docker = snapshot.networks.values().any(|n| n.bridge == Some(bridge));
    !docker && snapshot.links.values().any(|l| l.master == Some(bridge) && l.kind == LinkType::Other)
}

fn resolve_tier(
    claims: &Claims,
    snapshot: &Snapshot,
    name: &str,
    tier: &TierClaim,
    found: &mut Bridges,
    out: &mut Placement,
) {
    let mut missing: Vec<(String, String)> = Vec::new();
    let mut anywhere = !tier.addresses.is_empty();
    let mut subnets: BTreeSet<IpNet> = BTreeSet::new();
    for network in &tier.networks {
        match find_network(claims, snapshot, network) {
            Found::Bridge(index, mut blocks) => {
                anywhere = true;
                if blocks.is_empty() {
                    blocks.clone_from(&tier.subnets);
                }
                subnets.extend(blocks.iter().copied());
                manage(snapshot, found, out, index, name, network, blocks);
            }
            Found::Lan(blocks) => {
                anywhere = true;
                out.lan_blocks.extend(blocks);
                found.bridgeless.insert(network.clone(), name.to_owned());
            }
            Found::Elsewhere(driver) => {
                anywhere = true;
                let subnet = snapshot.networks.get(network).map(|n| n.subnets.as_slice()).unwrap_or_default();
                subnets.extend(subnet.iter().copied());
                found.bridgeless.insert(network.clone(), name.to_owned());
                missing.push((
                    format!("network {network}"),
                    format!(
                        "its driver is `{}`: hydra enforces networks of the drivers `bridge`, `macvlan` and `ipvlan`",
                        driver.escape_debug()
                    ),
                ));
            }
            Found::Nowhere(why) => missing.push((format!("network {network}"), why)),
        }
    }
    for bridge in &tier.bridges {
        let link = snapshot.links.iter().find(|(_, l)| l.name == *bridge);
        match link {
            Some((index, link)) if link.kind == LinkType::Bridge => {
                anywhere = true;
                let mut blocks = blocks_of(link);
                blocks.extend(tier.subnets.iter().copied());
                if blocks.is_empty() {
                    out.warnings.push(Remark {
                        what: bridge.clone(),
                        why: format!(
                            "the bridge of `{name}` has no address and the tier no `subnets`: nothing on it has an address that counts"
                        ),
                        hint: format!("give the tier `{name}` its `subnets`"),
                    });
                }
                subnets.extend(blocks.iter().copied());
                manage(snapshot, found, out, *index, name, "", blocks);
            }
            Some(_) => missing.push((format!("bridge {bridge}"), "the interface is no bridge".into())),
            None => missing.push((format!("bridge {bridge}"), "there is no such interface".into())),
        }
    }
    for unit in &tier.units {
        match snapshot.units.get(unit) {
            Some(cgroup) => {
                anywhere = true;
                let owner = Owner::Tier(name.to_owned());
                out.processes.push(Processes { name: unit.clone(), owner, cgroup: *cgroup });
            }
            None if snapshot.units.is_empty() => missing.push((
                format!("unit {unit}"),
                "no unit of this host has a cgroup below that of the hooks".into(),
            )),
            None => missing.push((format!("unit {unit}"), "it does not run".into())),
        }
    }
    // Of a tier that only has containers of this host's network, or without a port on it.
    let alone = |c: &String| snapshot.stacks.iter().any(|s| !s.lans.is_empty() && s.members.contains(c));
    let here = |c: &String| snapshot.host_network.contains(c) || alone(c);
    anywhere |= tier.services.iter().any(|s| s.containers.iter().any(here));
    out.subnets.insert(name.to_owned(), subnets);
    // While Docker is not there its networks can't be missed.
    let may_come = matches!(snapshot.docker, DockerState::Down { .. }) && !tier.networks.is_empty();
    if !anywhere && !tier.optional && !may_come {
        let looked_for: Vec<&str> = missing.iter().map(|(what, _)| what.as_str()).collect();
        out.nowhere.push(Nowhere { tier: name.to_owned(), looked_for: looked_for.join(", ") });
    }
    if anywhere || !tier.optional {
        let entries = missing
            .into_iter()
            .map(|(what, why)| NotEnforced { what, why: format!("{why} (tier `{name}`)") });
        out.not_enforced.extend(entries);
    }
}

fn manage(
    snapshot: &Snapshot,
    found: &mut Bridges,
    out: &mut Placement,
    index: u32,
    tier: &str,
    network: &str,
    subnets: BTreeSet<IpNet>,
) {
    if let Some(other) = found.managed.get(&index).filter(|b| b.tier != tier) {
        let bridge = snapshot.links.get(&index).map_or_else(|| index.to_string(), |l| l.name.clone());
        out.not_enforced.push(NotEnforced {
            what: format!("bridge {bridge}"),
            why: format!("both `{}` and `{tier}` live on it: it counts as the first", other.tier),
        });
        return;
    }
    let entry = found.managed.entry(index).or_insert_with(|| Bridge {
        tier: tier.to_owned(),
        network: network.to_owned(),
        subnets: BTreeSet::new(),
    });
    entry.subnets.extend(subnets);
}

enum Found {
    /// The bridge and its blocks.
    Bridge(u32, BTreeSet<IpNet>),
    /// Its containers have interfaces without ports here; its blocks.
    Lan(Vec<IpNet>),
    /// There, and not on a bridge of this host: its driver.
    Elsewhere(String),
    /// Why not.
    Nowhere(String),
}

fn find_network(claims: &Claims, snapshot: &Snapshot, name: &str) -> Found {
    if let Some(network) = snapshot.networks.get(name) {
        if network.is_lan() {
            return Found::Lan(network.subnets.clone());
        }
        if network.driver != "bridge" {
            return Found::Elsewhere(network.driver.clone());
        }
        return match network.bridge {
            Some(index) => Found::Bridge(index, network.subnets.iter().copied().collect()),
            None => Found::Nowhere("its bridge is not there".into()),
        };
    }
    // Where Docker answers, its word is the last: a bridge that looks like the network is another one.
    match (&snapshot.docker, claims.networks.get(name)) {
        (DockerState::Up { .. }, _) => Found::Nowhere("Docker has no such network".into()),
        (DockerState::Off, None) => Found::Nowhere(
            "there is no Docker to ask, and the policy's `networks` do not say what it looks like".into(),
        ),
        (DockerState::Down { .. }, None) => Found::Nowhere("Docker does not answer".into()),
        (DockerState::Off | DockerState::Down { .. }, Some(claim)) => match by_looks(claim, snapshot) {
            Some((index, link)) => {
                let mut blocks = claim.subnets.clone();
                blocks.extend(blocks_of(link));
                Found::Bridge(index, blocks)
            }
            None => Found::Nowhere("no bridge has its name, its gateway or an address in its subnet".into()),
        },
    }
}

/// The bridge that has a declared network's interface name, else its gateway, else an address in its subnet.
fn by_looks<'s>(claim: &NetworkClaim, snapshot: &'s Snapshot) -> Option<(u32, &'s Link)> {
    let bridges = || snapshot.links.iter().filter(|(_, l)| l.kind == LinkType::Bridge);
    let named = bridges().find(|(_, l)| claim.bridge.as_deref() == Some(l.name.as_str()));
    let routed = || bridges().find(|(_, l)| l.addresses.iter().any(|a| claim.gateways.contains(&a.addr())));
    let inside = || {
        let within = |a: &IpNet| claim.subnets.iter().any(|s| s.contains(&a.addr()));
        bridges().find(|(_, l)| l.addresses.iter().any(within))
    };
    named.or_else(routed).or_else(inside).map(|(index, link)| (*index, link))
}

/// The blocks that an interface's addresses say.
fn blocks_of(link: &Link) -> BTreeSet<IpNet> {
    let global = |a: &&IpNet| match a.addr() {
        std::net::IpAddr::V4(v4) => !v4.is_link_local(),
        std::net::IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    link.addresses.iter().filter(global).map(IpNet::trunc).collect()
}
