//! What compiling a policy gives: the rows of one bank, and the names behind their numbers.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::id::{Identity, Tier};
use hydra_common::tables::{Cell, Decision, IdentityRow, Interval, Limit, PrefixRow, RuleSet};
use ipnet::IpNet;

/// Who an identity belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Addresses that belong to nobody we know.
    External,
    /// This machine.
    Host,
    /// Containers on networks that the policy does not name.
    Unmanaged,
    /// A tier: endpoints of it that no service names.
    Tier(String),
    /// A service of a tier.
    Service {
        /// The tier's name.
        tier: String,
        /// The service's own name, without the tier.
        service: String,
    },
    /// A network stack that containers of these tiers and services share: what each of them may do. Two or more, ascending, none of
    /// them shared.
    Shared(Vec<Owner>),
}

impl Owner {
    /// The owner of a stack that members of all of these share; none for nobody.
    pub fn of_all(owners: BTreeSet<Self>) -> Option<Self> {
        let mut owners: Vec<Self> = owners.into_iter().collect();
        if owners.len() < 2 { owners.pop() } else { Some(Self::Shared(owners)) }
    }

    /// The tiers and services whose rights it has.
    pub fn parts(&self) -> &[Self] {
        match self {
            Self::Shared(owners) => owners,
            Self::External | Self::Host | Self::Unmanaged | Self::Tier(_) | Self::Service { .. } => {
                std::slice::from_ref(self)
            }
        }
    }

    /// The name of the tier that it is counted with, for reserved tiers the reserved word.
    pub fn tier(&self) -> &str {
        match self {
            Self::Shared(owners) => owners.first().map_or("", Self::tier),
            Self::External => "external",
            Self::Host => "host",
            Self::Unmanaged => "unmanaged",
            Self::Tier(t) | Self::Service { tier: t, .. } => t,
        }
    }

    /// What lists show as the service: its own name, empty for a tier, all of a shared one.
    pub fn service_text(&self) -> String {
        match self {
            Self::Shared(_) => self.to_string(),
            Self::External | Self::Host | Self::Unmanaged | Self::Tier(_) | Self::Service { .. } => {
                self.service().unwrap_or_default().to_owned()
            }
        }
    }

    /// The service's own name, if it is one.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::External | Self::Host | Self::Unmanaged | Self::Tier(_) | Self::Shared(_) => None,
        }
    }
}

impl std::fmt::Display for Owner {
    /// As in the policy: `databases`, `databases/postgres`, `external`; a shared one as `apps/web+databases/postgres`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Self::Shared(owners) = self {
            for (i, owner) in owners.iter().enumerate() {
                f.write_str(if i == 0 { "" } else { "+" })?;
                owner.fmt(f)?;
            }
            return Ok(());
        }
        match self.service() {
            Some(s) => write!(f, "{}/{s}", self.tier()),
            None => f.write_str(self.tier()),
        }
    }
}

impl serde::Serialize for Owner {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an identity number stands for: an owner, and the address blocks of the policy's rules that its addresses lie in
/// (indexes into [`Compiled::blocks`], ascending; empty for nearly all).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Whose.
    pub owner: Owner,
    /// In which blocks.
    pub blocks: Vec<u16>,
}

/// An address block selector of the policy's rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The block.
    pub cidr: IpNet,
    /// Less these.
    pub except: Vec<IpNet>,
}

impl Block {
    /// Whether an address matches.
    pub fn contains(&self, ip: std::net::IpAddr) -> bool {
        self.cidr.contains(&ip) && !self.except.iter().any(|e| e.contains(&ip))
    }
}

impl std::fmt::Display for Block {
    /// `10.0.0.0/8`, or `10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.cidr.fmt(f)?;
        for (i, except) in self.except.iter().enumerate() {
            f.write_str(if i == 0 { " except " } else { ", " })?;
            except.fmt(f)?;
        }
        Ok(())
    }
}

/// Names to numbers, kept across policies and restarts (in the state directory) so that counters and live flows keep their
/// meaning. Numbers are given in order and used again only when all are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Numbers {
    /// By the text of a [`Class`]: the owner, then `@` and the block's texts where it has any.
    pub identities: BTreeMap<String, u16>,
    /// By tier name.
    pub tiers: BTreeMap<String, u16>,
    /// Of the buckets of rules with a `limit`, by the rule's name.
    #[serde(default)]
    pub limits: BTreeMap<String, u16>,
}

/// One bank, whole, but for what changes with every container (see `datapath`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// `mode: audit`.
    pub audit: bool,
    /// Every identity in use, by number, reserved ones included.
    pub identities: BTreeMap<Identity, (Class, IdentityRow)>,
    /// The identity of what is known of an owner without an address: its name asked for, or a port of it.
    pub names: BTreeMap<Owner, Identity>,
    /// Tier names by number, reserved ones included.
    pub tiers: BTreeMap<Tier, String>,
    /// The whole matrix of the identities in use.
    pub cells: BTreeMap<(Identity, Identity), Cell>,
    /// By index.
    pub rule_sets: Vec<RuleSet>,
    /// By index, see [`RuleSet`].
    pub intervals: Vec<Interval>,
    /// By index; 0 is "denied, bad-table". `until` is in Unix seconds here: the datapath turns it into the kernel's clock.
    pub decisions: Vec<(Decision, Option<i64>)>,
    /// By index: of every rule that has one, in the order of the file.
    pub limits: Vec<Limit>,
    /// Blocks of tiers and services, subnets of networks and bridges, and the blocks of rules, disjoint by longest match.
    pub prefixes: BTreeMap<IpNet, PrefixRow>,
    /// The address blocks that rules name, in the order of their first use; those that the same rules name are together.
    pub blocks: Vec<Vec<Block>>,
    /// Rule names; a row's `rule` is the index plus 1.
    pub rules: Vec<String>,
}

impl Compiled {
    /// The number of an owner's address, or of its name, if the matrix has it.
    pub fn identity(&self, owner: &Owner, ip: Option<std::net::IpAddr>) -> Option<Identity> {
        let Some(ip) = ip else { return self.names.get(owner).copied() };
        let holds = |group: &Vec<Block>| group.iter().any(|block| block.contains(ip));
        let blocks: Vec<u16> =
            self.blocks.iter().zip(0..).filter(|(group, _)| holds(group)).map(|(_, i)| i).collect();
        self.identities
            .iter()
            .find(|(_, (class, _))| class.owner == *owner && class.blocks == blocks)
            .map(|(number, _)| *number)
    }

    /// The number of an address that no endpoint has: of the longest prefix that holds it, else `external`.
    pub fn identity_of_address(&self, ip: std::net::IpAddr) -> Identity {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .filter_map(|len| IpNet::new(ip, len).ok())
            .find_map(|net| self.prefixes.get(&net.trunc()))
            .map_or(Identity::EXTERNAL, |row| row.identity)
    }

    /// A rule's name by the number in a row, flow or event.
    pub fn rule(&self, number: u16) -> Option<&str> {
        self.rules.get(usize::from(number).checked_sub(1)?).map(String::as_str)
    }
}
