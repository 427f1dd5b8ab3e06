//! Interfaces of containers that have no port on this host (macvlan, ipvlan): the hooks on packets of processes judge there, by cgroup.

use std::net::{IpAddr, Ipv4Addr};

use hydra_common::address::{Address, Mac};
use hydra_common::id::Container;
use ipnet::IpNet;

use super::resolve::{Bridges, PortHome, Trust};
use super::{Claims, NotEnforced, Owner, Placement, address_owner};
use crate::inventory::snapshot::{Lan, Snapshot, Stack};

/// Where an address without a port lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanHome {
    /// The unspecified one where Docker told none.
    pub address: IpAddr,
    /// Whose; none: nobody's, and closed.
    pub owner: Option<Owner>,
    /// [`Stack::key`].
    pub stack: String,
    /// The stack's number; [`Container::NONE`] for a closed one.
    pub container: Container,
    /// Docker's network.
    pub network: String,
    /// As Docker gave it.
    pub mac: Mac,
    /// One that the container may give itself: see [`made`].
    pub made: bool,
}

/// The interfaces of a stack, and what their networks say.
pub(super) fn homes<'s>(
    snapshot: &Snapshot,
    bridges: &Bridges,
    stack: &'s Stack,
) -> Vec<(&'s Lan, PortHome)> {
    stack.lans.iter().map(|lan| (lan, bridges.of_lan(snapshot, &lan.network))).collect()
}

/// A stack that is nobody's has none of its addresses.
pub(super) fn close(stack: &Stack, lans: &[(&Lan, PortHome)], out: &mut Placement) {
    for (lan, home) in lans {
        out.lan_blocks.extend(&home.subnets);
        for address in addresses(lan) {
            out.lan.push(row(stack, Container::NONE, lan, address, None));
        }
    }
    unseen(stack, !lans.is_empty(), out);
}

/// Places the interfaces of the stack that was placed last, where any network of it is somebody's.
pub(super) fn place(
    claims: &Claims,
    stack: &Stack,
    named: Option<&Owner>,
    lans: &[(&Lan, PortHome)],
    out: &mut Placement,
) {
    let ported = out.ports.values().filter(|p| p.stack == out.stacks.len().checked_sub(1));
    let declared = named.is_some()
        || lans.iter().any(|(_, home)| home.tier.is_some())
        || ported.clone().any(|p| p.owner.declared());
    if lans.is_empty() || !declared {
        return;
    }
    let container = out.stacks.last().map_or(Container::NONE, |s| s.container);
    let network = |home: &PortHome| {
        let by_network = || home.tier.clone().map_or(Owner::Unmanaged, Owner::Tier);
        named.cloned().unwrap_or_else(by_network)
    };
    for (lan, home) in lans {
        out.lan_blocks.extend(&home.subnets);
        for address in addresses(lan) {
            let owner = address_owner(claims, home, named, &network(home), Trust::Docker, address);
            let taken = taken(out, address);
            if let Some(why) = &taken {
                out.not_enforced
                    .push(NotEnforced { what: format!("{} {address}", stack.name), why: why.clone() });
            }
            let owner = owner.filter(|_| taken.is_none() && !address.is_unspecified());
            out.lan.push(row(stack, container, lan, address, owner));
        }
    }
    for (lan, home) in lans {
        for address in home.subnets.iter().filter_map(|block| made(lan, block)) {
            let owner = address_owner(claims, home, named, &network(home), Trust::Docker, address);
            if taken(out, address).is_none() {
                out.lan.push(LanHome { made: true, ..row(stack, container, lan, address, owner) });
            }
        }
    }
    unseen(stack, true, out);
}

/// The address that a container gives itself in a block once a router of the network has said that it may (RFC 4862, 5.5.3, of the
/// MAC as RFC 4291, appendix A): Linux prefers it to Docker's where it speaks first.
fn made(lan: &Lan, block: &IpNet) -> Option<IpAddr> {
    let IpNet::V6(block) = block else { return None };
    let own = lan.addresses.iter().any(|a| IpNet::V6(*block).contains(a));
    if block.prefix_len() != 64 || !own || lan.mac == Mac::ZERO {
        return None;
    }
    let mut octets = block.network().octets();
    octets[8..].copy_from_slice(&Address::link_local_of(&lan.mac).octets()[8..]);
    Some(IpAddr::from(octets))
}

/// Why an address can't be anybody else's as well.
fn taken(out: &Placement, address: IpAddr) -> Option<String> {
    if address.is_unspecified() {
        return Some("Docker tells no address of it: its packets there are denied".to_owned());
    }
    let host = out.host.contains(&address);
    let twice = out.addresses.contains_key(&address) || out.lan.iter().any(|l| l.address == address);
    (host || twice).then(|| {
        let who = if host { "this host" } else { "another container" };
        format!("{who} has the same address: its packets there are denied")
    })
}

/// Without a cgroup nothing is judged. Each container of the stack has one.
fn unseen(stack: &Stack, any: bool, out: &mut Placement) {
    if !any || stack.cgroups.len() >= stack.members.len() {
        return;
    }
    let who = if stack.cgroups.is_empty() { "its processes" } else { "some of its processes" };
    out.not_enforced.push(NotEnforced {
        what: stack.name.clone(),
        why: format!(
            "it is on a network without ports on this host, and no hook sees {who}: their packets there are not judged"
        ),
    });
}

fn addresses(lan: &Lan) -> impl Iterator<Item = IpAddr> {
    let none = lan.addresses.is_empty().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    lan.addresses.iter().copied().chain(none)
}

fn row(stack: &Stack, container: Container, lan: &Lan, address: IpAddr, owner: Option<Owner>) -> LanHome {
    LanHome {
        address,
        owner,
        stack: stack.key.clone(),
        container,
        network: lan.network.clone(),
        mac: lan.mac,
        made: false,
    }
}
