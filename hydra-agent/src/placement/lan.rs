//! Interfaces of containers that have no port on this host (macvlan, ipvlan): the hooks on packets of processes judge there, by cgroup.

use std::net::{IpAddr, Ipv4Addr};

use hydra_common::address::Mac;
use hydra_common::id::Container;

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
    for (lan, home) in lans {
        out.lan_blocks.extend(&home.subnets);
        let by_network = || home.tier.clone().map_or(Owner::Unmanaged, Owner::Tier);
        let network = named.cloned().unwrap_or_else(by_network);
        for address in addresses(lan) {
            let owner = address_owner(claims, home, named, &network, Trust::Docker, address);
            let taken = taken(out, address);
            if let Some(why) = &taken {
                out.not_enforced
                    .push(NotEnforced { what: format!("{} {address}", stack.name), why: why.clone() });
            }
            let owner = owner.filter(|_| taken.is_none() && !address.is_unspecified());
            out.lan.push(row(stack, container, lan, address, owner));
        }
    }
    unseen(stack, true, out);
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

/// Without a cgroup nothing is judged.
fn unseen(stack: &Stack, any: bool, out: &mut Placement) {
    if any && stack.cgroups.is_empty() {
        out.not_enforced.push(NotEnforced {
            what: stack.name.clone(),
            why: "it is on a network without ports on this host, and no hook sees its processes: its packets there are \
                  not judged"
                .to_owned(),
        });
    }
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
    }
}
