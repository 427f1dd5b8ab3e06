//! What a policy says about places: which tier lives where, which service is whose. The part of a policy that placing needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::policy::file::{Multihome, SharedStack};
use crate::policy::model::{Model, Network, Service, Tier};
use crate::policy::rows::Owner;

/// Places of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// By tier name.
    pub tiers: BTreeMap<String, TierClaim>,
    /// The `networks:` section.
    pub networks: BTreeMap<String, NetworkClaim>,
    /// What becomes of a container on networks of two tiers or more that no service names.
    pub multihome: Multihome,
    /// What becomes of a stack whose members are of different tiers or services.
    pub shared_stack: SharedStack,
}

/// Where a tier lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierClaim {
    /// Docker networks.
    pub networks: BTreeSet<String>,
    /// Bridges by interface name.
    pub bridges: BTreeSet<String>,
    /// Names of systemd units.
    pub units: BTreeSet<String>,
    /// Blocks of these, where nobody else can be asked.
    pub subnets: BTreeSet<IpNet>,
    /// Blocks elsewhere.
    pub addresses: BTreeSet<IpNet>,
    /// It may be nowhere.
    pub optional: bool,
    /// Its services.
    pub services: Vec<ServiceClaim>,
}

/// Who a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceClaim {
    /// Its own name.
    pub name: String,
    /// Container names.
    pub containers: BTreeSet<String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
    /// Networks that it is attached to beside its tier's.
    pub networks: BTreeSet<String>,
}

impl ServiceClaim {
    /// As an owner.
    pub fn owner(&self, tier: &str) -> Owner {
        Owner::Service { tier: tier.to_owned(), service: self.name.clone() }
    }
}

/// A network as the policy declares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkClaim {
    /// Its blocks, both families.
    pub subnets: BTreeSet<IpNet>,
    /// Its gateways, both families.
    pub gateways: BTreeSet<IpAddr>,
    /// The interface name that Docker is told to use.
    pub bridge: Option<String>,
}

impl Claims {
    /// The places of a policy.
    pub fn of(model: &Model) -> Self {
        Self {
            tiers: model.tiers.iter().map(|t| (t.name.clone(), tier(t))).collect(),
            networks: model.networks.iter().map(|(name, n)| (name.clone(), network(n))).collect(),
            multihome: model.multihome,
            shared_stack: model.shared_stack,
        }
    }

    /// Every service with its tier.
    pub fn services(&self) -> impl Iterator<Item = (&str, &ServiceClaim)> {
        self.tiers.iter().flat_map(|(tier, t)| t.services.iter().map(move |s| (tier.as_str(), s)))
    }

    /// The owner that `tier` or `tier/service` names.
    pub fn owner(&self, text: &str) -> Option<Owner> {
        let Some((tier, service)) = text.split_once('/') else {
            return self.tiers.contains_key(text).then(|| Owner::Tier(text.to_owned()));
        };
        self.services().find(|(t, s)| *t == tier && s.name == service).map(|(t, s)| s.owner(t))
    }

    /// The service that names an address; the longest block wins.
    pub fn service_of(&self, address: IpAddr) -> Option<Owner> {
        let blocks = self.services().flat_map(|(t, s)| s.addresses.iter().map(move |b| (b, s.owner(t))));
        blocks
            .filter(|(b, _)| b.contains(&address))
            .max_by_key(|(b, _)| b.prefix_len())
            .map(|(_, owner)| owner)
    }

    /// The tier whose `addresses` hold an address; the longest block wins.
    pub fn tier_of(&self, address: IpAddr) -> Option<String> {
        let blocks = self.tiers.iter().flat_map(|(name, t)| t.addresses.iter().map(move |b| (b, name)));
        let holding = blocks.filter(|(b, _)| b.contains(&address));
        holding.max_by_key(|(b, _)| b.prefix_len()).map(|(_, name)| name.clone())
    }

    /// Whether the policy itself gives an owner this address.
    pub fn holds(&self, owner: &Owner, address: IpAddr) -> bool {
        if let Owner::Shared(owners) = owner {
            return owners.iter().any(|o| self.holds(o, address));
        }
        let Some(tier) = self.tiers.get(owner.tier()) else { return false };
        if let Some(service) = self.service_of(address) {
            return service == *owner;
        }
        tier.subnets.iter().chain(&tier.addresses).any(|b| b.contains(&address))
    }
}

fn tier(tier: &Tier) -> TierClaim {
    let Tier {
        name: _,
        description: _,
        networks,
        bridges,
        units,
        subnets,
        addresses,
        audit: _,
        optional,
        services,
    } = tier;
    TierClaim {
        networks: networks.iter().cloned().collect(),
        bridges: bridges.iter().cloned().collect(),
        units: units.iter().cloned().collect(),
        subnets: subnets.iter().copied().collect(),
        addresses: addresses.iter().copied().collect(),
        optional: *optional,
        services: services.iter().map(service).collect(),
    }
}

fn service(service: &Service) -> ServiceClaim {
    let Service { name, containers, addresses, ports: _, port_texts: _, networks } = service;
    ServiceClaim {
        name: name.clone(),
        containers: containers.iter().cloned().collect(),
        addresses: addresses.iter().copied().collect(),
        networks: networks.iter().cloned().collect(),
    }
}

fn network(network: &Network) -> NetworkClaim {
    let Network { subnets, gateway, ip_range: _, internal: _, mtu: _, labels: _, options: _, external: _ } =
        network;
    NetworkClaim {
        subnets: subnets.iter().copied().collect(),
        gateways: gateway.iter().copied().collect(),
        bridge: network.bridge().map(str::to_owned),
    }
}
