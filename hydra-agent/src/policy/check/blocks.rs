//! Checks that no address belongs to two: blocks of tiers, subnets of networks, addresses of services.

use std::collections::BTreeMap;

use super::Checker;
use crate::diagnostic::Place;
use crate::policy::file;
use crate::policy::model::Model;
use crate::policy::shape::{At, List, Named};
use ipnet::IpNet;

/// Somebody's word that a block is theirs.
#[derive(Clone, Debug)]
struct Claim<'a> {
    block: IpNet,
    place: Place,
    tier: Option<&'a str>,
    /// The Docker network, for a subnet of `networks:`.
    network: Option<&'a str>,
    /// The subnet of a network or bridge, which overlaps with nothing of another tier.
    subnet: bool,
}

impl Claim<'_> {
    fn whose(&self) -> String {
        match (self.network, self.tier) {
            (Some(network), _) => format!("network `{network}`"),
            (None, Some(tier)) => format!("tier `{tier}`"),
            (None, None) => "the policy".to_owned(),
        }
    }
}

impl Checker {
    pub(super) fn blocks(
        &mut self,
        networks: Option<&Named<file::Network>>,
        tiers: &Named<file::Tier>,
        model: &Model,
    ) {
        let mut claims = Vec::new();
        for (name, network) in networks.iter().flat_map(|n| &n.0) {
            let index = model.index.networks.get(&name.value);
            let tier = index.map(|i| model.tiers[*i].name.as_str());
            if tier.is_none() {
                let hint = "its containers are `unmanaged`".to_owned();
                self.warn(name.place, format!("network `{}` belongs to no tier", name.value), Some(hint));
            }
            let blocks = network.iter().flat_map(|n| [&n.subnet, &n.subnet6]).flatten();
            claims.extend(blocks.map(|b| Claim {
                block: b.value.0,
                place: b.place,
                tier,
                network: Some(&name.value),
                subnet: true,
            }));
        }
        for (name, tier) in tiers.0.iter().filter_map(|(n, t)| Some((n, t.as_ref()?))) {
            for (list, subnet) in [(&tier.subnets, true), (&tier.addresses, false)] {
                claims.extend(list.iter().flat_map(|l| &l.items).map(|b| Claim {
                    block: b.value.0,
                    place: b.place,
                    tier: Some(&name.value),
                    network: None,
                    subnet,
                }));
            }
        }
        self.overlaps(claims);
        self.service_addresses(tiers, model);
    }

    /// Blocks lie inside each other or apart, so in the order of their addresses every block that overlaps with one is among those
    /// that still hold it.
    fn overlaps(&mut self, mut claims: Vec<Claim<'_>>) {
        claims.sort_by_key(|c| (c.block.network(), c.block.prefix_len(), c.place));
        let mut around: Vec<Claim<'_>> = Vec::new();
        for claim in claims {
            while around.last().is_some_and(|outer| !outer.block.contains(&claim.block)) {
                around.pop();
            }
            let clash = around.iter().rev().find(|outer| {
                let other_network =
                    outer.network.is_some() && claim.network.is_some() && outer.network != claim.network;
                let other_tier = outer.tier != claim.tier;
                other_network || (other_tier && (outer.subnet || claim.subnet || outer.block == claim.block))
            });
            if let Some(outer) = clash {
                // The later of the two in the file is the one to change.
                let (first, second) =
                    if outer.place < claim.place { (outer, &claim) } else { (&claim, outer) };
                let how = if first.block == second.block { "is the same block as" } else { "overlaps with" };
                let message = format!(
                    "{} of {} {how} {} of {}",
                    second.block,
                    second.whose(),
                    first.block,
                    first.whose()
                );
                let hint = format!("the other one is in line {}", first.place.line);
                self.error(second.place, message, Some(hint));
            }
            around.push(claim);
        }
    }

    /// A service's addresses lie in its tier's blocks, as far as the file knows them, and belong to no other service.
    fn service_addresses(&mut self, tiers: &Named<file::Tier>, model: &Model) {
        let mut taken: BTreeMap<IpNet, String> = BTreeMap::new();
        for (name, shape) in tiers.0.iter().filter_map(|(n, t)| Some((n, t.as_ref()?))) {
            let Some(tier) = model.tier(&name.value) else { continue };
            let mut blocks = model.subnets(tier);
            blocks.extend(&tier.addresses);
            let unknown_networks = tier.networks.iter().any(|n| {
                model.networks.get(n).is_none_or(|n| n.subnets.is_empty()) && tier.subnets.is_empty()
            });
            let unknown = unknown_networks || (!tier.bridges.is_empty() && tier.subnets.is_empty());
            for (service, s) in shape.services.iter().flat_map(|s| &s.0) {
                let lists: Option<&List<At<file::Cidr>>> = s.as_ref().and_then(|s| s.addresses.as_ref());
                for address in lists.iter().flat_map(|l| &l.items) {
                    let block = address.value.0;
                    let whose = format!("{}/{}", name.value, service.value);
                    if !unknown && !blocks.iter().any(|b| b.contains(&block)) {
                        let message = format!(
                            "`{block}` of service `{whose}` is not in a block of tier `{}`",
                            name.value
                        );
                        let hint = "add it to the tier's `addresses` or `subnets`".to_owned();
                        self.error(address.place, message, Some(hint));
                    }
                    if let Some(other) = taken.insert(block, whose.clone()).filter(|o| *o != whose) {
                        let message = format!("`{block}` is in two services");
                        self.error(address.place, message, Some(format!("service `{other}` has it too")));
                    }
                }
            }
        }
    }
}
