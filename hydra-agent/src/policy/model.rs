//! What a policy means. Made by `check` alone, so every name in it exists and every value is in range; nothing here can fail.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::file::{Action, Answer, Multihome, SharedStack};
use super::limit::Limit;
use super::ports::{Packet, Ports};
use super::rows::{Block, Owner};
use super::suggest::nearest;
use super::yaml::reads_as_address;
use crate::diagnostic::Place;

/// A policy, whole and consistent.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// What the policy is called.
    pub name: String,
    /// `mode: audit`: nothing is dropped.
    pub audit: bool,
    /// What becomes of a container on networks of two tiers or more that no service names.
    pub multihome: Multihome,
    /// What becomes of a network stack whose members are of different tiers or services.
    #[serde(rename = "shared-stack")]
    pub shared_stack: SharedStack,
    /// What holds where no rule speaks.
    pub defaults: Defaults,
    /// The `networks:` section, by name.
    pub networks: BTreeMap<String, Network>,
    /// In the order of the file.
    pub tiers: Vec<Tier>,
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// The policy's own tests.
    #[serde(skip)]
    pub expect: Vec<Expect>,
    #[serde(skip)]
    pub(super) index: Index,
}

/// `defaults:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Defaults {
    /// Inside one declared tier.
    pub intra_tier: Action,
    /// From this host to anything.
    pub from_host: Action,
    /// Everything else: deny or audit.
    pub cross_tier: Action,
}

/// An entry of `networks:`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Network {
    /// `subnet` and `subnet6`, as far as given.
    pub subnets: Vec<IpNet>,
    /// The host's own address in it.
    pub gateway: Option<IpAddr>,
    /// Where Docker takes addresses from.
    pub ip_range: Option<IpNet>,
    /// No way out of the host.
    pub internal: bool,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Docker's labels.
    pub labels: BTreeMap<String, String>,
    /// Docker's driver options.
    pub options: BTreeMap<String, String>,
    /// It exists already: never made or removed.
    pub external: bool,
}

impl Network {
    /// The option by which Docker names a network's bridge.
    pub const BRIDGE_OPTION: &'static str = "com.docker.network.bridge.name";

    /// The bridge's name, where the file gives it.
    pub fn bridge(&self) -> Option<&str> {
        self.options.get(Self::BRIDGE_OPTION).map(String::as_str)
    }
}

/// A tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Docker networks that it lives on.
    pub networks: Vec<String>,
    /// Bridges that it lives on, by interface name.
    pub bridges: Vec<String>,
    /// systemd units of this host.
    pub units: Vec<String>,
    /// `subnets:`, the blocks of its networks and bridges as the tier itself gives them.
    pub subnets: Vec<IpNet>,
    /// Blocks outside this host.
    pub addresses: Vec<IpNet>,
    /// `mode: audit`.
    pub audit: bool,
    /// It may resolve to nothing.
    pub optional: bool,
    /// Named parts.
    pub services: Vec<Service>,
}

impl Tier {
    /// Whether it lives on networks or bridges of this host: what `internal` means.
    pub fn is_internal(&self) -> bool {
        !self.networks.is_empty() || !self.bridges.is_empty()
    }

    /// Whether this host's kernel may judge for it: at ports of its networks and bridges, or at the processes of its units and of its
    /// services' containers.
    pub fn is_here(&self) -> bool {
        let processes = !self.units.is_empty() || self.services.iter().any(|s| !s.containers.is_empty());
        self.is_internal() || processes
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its own name, without the tier.
    pub name: String,
    /// Names of its containers.
    pub containers: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// `ports:`, for use in rules.
    #[serde(skip)]
    pub ports: Option<Ports>,
    /// `ports:` as written.
    #[serde(rename = "ports")]
    pub port_texts: Vec<String>,
    /// Further networks that it is attached to.
    pub networks: Vec<String>,
}

/// A rule. Policies that follow each other share what stays of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it says.
    pub terms: Arc<Terms>,
    /// Where its name stands.
    pub place: Place,
}

impl Deref for Rule {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

impl Serialize for Rule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.terms.serialize(serializer)
    }
}

/// What a rule says, wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// Its name.
    pub name: String,
    /// Who opens the flow: any of these.
    pub from: Vec<Selector>,
    /// Who is called: any of these.
    pub to: Vec<Selector>,
    /// On which ports.
    #[serde(skip)]
    pub ports: Ports,
    /// `ports:` as written; empty for everything.
    #[serde(rename = "ports")]
    pub port_texts: Vec<String>,
    /// What it does.
    pub action: Action,
    /// How many flows of one source address may begin; of `allow` rules alone.
    pub limit: Option<Limit>,
    /// Unix seconds from which on it is as if it were not there.
    pub expires: Option<i64>,
}

/// One end of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Everything.
    Any,
    /// Every declared tier that has networks or bridges.
    Internal,
    /// A tier with its services, a service, or a reserved tier.
    Owner(Owner),
    /// Whoever has an address in it.
    Block(Block),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Internal => f.write_str("internal"),
            Self::Owner(owner) => owner.fmt(f),
            Self::Block(block) => block.fmt(f),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One end of a question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A tier's endpoint without service, a service, or a reserved tier.
    Name(Owner),
    /// An address.
    Address(IpAddr),
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(owner) => owner.fmt(f),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// An `expect` row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Who opens the flow.
    pub from: Party,
    /// Who is called.
    pub to: Party,
    /// What is sent: one, or for `ping` one of each family.
    pub packets: Vec<Packet>,
    /// The port as written.
    pub port: String,
    /// What the answer must be.
    pub verdict: Answer,
    /// The rule that must decide.
    pub rule: Option<String>,
    /// Where the row's verdict stands.
    pub place: Place,
    /// Where the row's rule stands.
    pub rule_place: Option<Place>,
}

/// What is looked up by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub tiers: BTreeMap<String, usize>,
    /// Where the tiers' names stand.
    pub places: BTreeMap<String, Place>,
    pub containers: BTreeMap<String, Owner>,
    pub networks: BTreeMap<String, usize>,
    pub bridges: BTreeMap<String, usize>,
    pub units: BTreeMap<String, usize>,
}

impl Model {
    /// A tier by name.
    pub fn tier(&self, name: &str) -> Option<&Tier> {
        self.index.tiers.get(name).map(|i| &self.tiers[*i])
    }

    /// Where a tier's name stands in the file.
    pub fn place_of(&self, tier: &str) -> Option<Place> {
        self.index.places.get(tier).copied()
    }

    /// A service by tier and name.
    pub fn service(&self, tier: &str, service: &str) -> Option<&Service> {
        self.tier(tier)?.services.iter().find(|s| s.name == service)
    }

    /// Every owner that the policy knows: the reserved tiers, then each tier followed by its services.
    pub fn owners(&self) -> Vec<Owner> {
        let mut owners = vec![Owner::External, Owner::Host, Owner::Unmanaged];
        for tier in &self.tiers {
            owners.push(Owner::Tier(tier.name.clone()));
            owners.extend(
                tier.services
                    .iter()
                    .map(|s| Owner::Service { tier: tier.name.clone(), service: s.name.clone() }),
            );
        }
        owners
    }

    /// The service that a container's name belongs to.
    pub fn owner_of_container(&self, name: &str) -> Option<Owner> {
        self.index.containers.get(name).cloned()
    }

    /// The tier that lives on a Docker network.
    pub fn owner_of_network(&self, name: &str) -> Option<Owner> {
        self.index.networks.get(name).map(|i| Owner::Tier(self.tiers[*i].name.clone()))
    }

    /// The tier that lives on a bridge, by interface name: listed by it, or the bridge of one of its networks as the file names it.
    pub fn owner_of_bridge(&self, name: &str) -> Option<Owner> {
        self.index.bridges.get(name).map(|i| Owner::Tier(self.tiers[*i].name.clone()))
    }

    /// The blocks of a tier's networks and bridges that the file gives: its `subnets`, and those of its networks.
    pub fn subnets(&self, tier: &Tier) -> Vec<IpNet> {
        let of_networks = tier.networks.iter().filter_map(|n| self.networks.get(n)).flat_map(|n| &n.subnets);
        let mut all: Vec<IpNet> = tier.subnets.iter().chain(of_networks).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The ports that a service's name stands for in a rule or question: with its tier, or bare where that is unique.
    pub fn ports_of(&self, name: &str) -> Option<Ports> {
        match self.services_named(name).as_slice() {
            [(tier, service)] => self.service(tier, service)?.ports.clone(),
            _ => None,
        }
    }

    /// The services that a name means: none, one, or several for a bare name that is not unique.
    pub(super) fn services_named<'a>(&'a self, name: &'a str) -> Vec<(&'a str, &'a str)> {
        match name.split_once('/') {
            Some((tier, service)) => {
                self.service(tier, service).map(|_| (tier, service)).into_iter().collect()
            }
            None => self
                .tiers
                .iter()
                .filter(|t| t.services.iter().any(|s| s.name == name))
                .map(|t| (t.name.as_str(), name))
                .collect(),
        }
    }

    /// Who a question's FROM or TO is: an address, a reserved tier, a tier, `tier/service`, a container that a service names, or a
    /// service by its bare name where that is unique. `Err` is a message and a hint.
    pub fn party(&self, text: &str) -> Result<Party, (String, Option<String>)> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
                let hint = "write the IPv4 address".to_owned();
                return Err((format!("`{text}` is an IPv4-mapped IPv6 address"), Some(hint)));
            }
            return Ok(Party::Address(ip));
        }
        if let Some(owner) = self.owner(text) {
            return Ok(Party::Name(owner));
        }
        if matches!(text, "any" | "internal") {
            let hint = "ask about one tier, service or address".to_owned();
            return Err((format!("`{text}` is more than one"), Some(hint)));
        }
        if reads_as_address(text) {
            let hint = "ask about one address of it".to_owned();
            return Err((format!("`{text}` is a block, not an address"), Some(hint)));
        }
        if let Some(owner) = self.owner_of_container(text) {
            return Ok(Party::Name(owner));
        }
        match self.services_named(text).as_slice() {
            [(tier, service)] => {
                let owner = Owner::Service { tier: (*tier).to_owned(), service: (*service).to_owned() };
                Ok(Party::Name(owner))
            }
            [] => {
                let owners: Vec<String> = self.owners().iter().map(ToString::to_string).collect();
                let known =
                    owners.iter().map(String::as_str).chain(self.index.containers.keys().map(String::as_str));
                let hint = nearest(text, known).map(|n| format!("did you mean `{n}`?"));
                Err((format!("unknown tier, service or container `{text}`"), hint))
            }
            several => {
                let names: Vec<String> = several.iter().map(|(t, s)| format!("`{t}/{s}`")).collect();
                Err((
                    format!("`{text}` is more than one service"),
                    Some(format!("write {}", names.join(" or "))),
                ))
            }
        }
    }

    /// The owner of a name as rules write it.
    pub fn owner(&self, text: &str) -> Option<Owner> {
        match text {
            "external" => return Some(Owner::External),
            "host" => return Some(Owner::Host),
            "unmanaged" => return Some(Owner::Unmanaged),
            _ => {}
        }
        match text.split_once('/') {
            Some((tier, service)) => self
                .service(tier, service)
                .map(|_| Owner::Service { tier: tier.to_owned(), service: service.to_owned() }),
            None => self.tier(text).map(|t| Owner::Tier(t.name.clone())),
        }
    }
}
