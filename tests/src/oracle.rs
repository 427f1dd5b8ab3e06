//! A second opinion on what a policy file means: written from the language's description alone, as naively as possible. It reads
//! the file itself, walks over all rules for every question, and shares nothing with the compiler or the verdict function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use hydra_common::verdict::{Reason, Verdict};
use ipnet::IpNet;

mod ports;
mod read;

pub use self::ports::{Ports, What};
pub use self::read::{Expectation, expectations};

/// A policy as the oracle sees it.
#[derive(Clone, Debug)]
pub struct Policy {
    audit: bool,
    intra_tier: Verdict,
    from_host: Verdict,
    cross_tier: Verdict,
    /// By name.
    pub tiers: BTreeMap<String, Tier>,
    /// By name.
    pub networks: BTreeMap<String, Network>,
    rules: Vec<Rule>,
}

/// A network, as far as the file says what it is.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its blocks, both families.
    pub subnets: Vec<IpNet>,
    /// Its gateways, where the file gives them.
    pub gateways: Vec<IpAddr>,
    /// The bridge's name, where the file gives it.
    pub bridge: Option<String>,
}

/// A tier.
#[derive(Clone, Debug)]
pub struct Tier {
    audit: bool,
    /// Lives on networks or bridges of this host.
    pub interior: bool,
    /// Networks by name.
    pub networks: Vec<String>,
    /// Bridges by interface name.
    pub bridges: Vec<String>,
    /// All blocks that the file declares for it: of its networks, its `subnets` and its `addresses`.
    pub blocks: Vec<IpNet>,
    /// What the file says under `addresses`.
    pub addresses: Vec<IpNet>,
    /// By name.
    pub services: BTreeMap<String, Service>,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Container names.
    pub containers: Vec<String>,
    /// Further networks that it is attached to.
    pub networks: Vec<String>,
    /// Address blocks.
    pub addresses: Vec<IpNet>,
    /// What its name means among ports.
    pub ports: Vec<String>,
}

#[derive(Clone, Debug)]
struct Rule {
    name: String,
    from: Vec<Selector>,
    to: Vec<Selector>,
    ports: Ports,
    action: String,
    limited: bool,
    expires: Option<i64>,
}

#[derive(Clone, Debug)]
enum Selector {
    Any,
    Internal,
    Who(Who),
    Block(IpNet, Vec<IpNet>),
}

/// Whose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Nobody that the policy knows.
    External,
    /// The machine itself.
    Host,
    /// Containers on networks that the policy does not name.
    Unmanaged,
    /// A tier.
    Tier(String),
    /// A tier's service.
    Service(String, String),
}

impl Who {
    fn tier(&self) -> Option<&str> {
        match self {
            Self::Tier(tier) | Self::Service(tier, _) => Some(tier),
            Self::External | Self::Host | Self::Unmanaged => None,
        }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::External => f.write_str("external"),
            Self::Host => f.write_str("host"),
            Self::Unmanaged => f.write_str("unmanaged"),
            Self::Tier(tier) => f.write_str(tier),
            Self::Service(tier, service) => write!(f, "{tier}/{service}"),
        }
    }
}

/// One end of a question: whose, and at which address. Without an address the question is about the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Whose.
    pub who: Who,
    /// Where.
    pub address: Option<IpAddr>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Passes or not.
    pub verdict: Verdict,
    /// Why; for what is audited, why it would have been denied or allowed.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<String>,
}

impl Answer {
    /// Whether the packet arrives.
    pub fn passes(&self) -> bool {
        self.verdict != Verdict::Denied
    }
}

impl Policy {
    /// Whose an address is when no container has it.
    pub fn owner(&self, ip: IpAddr) -> Who {
        for (name, tier) in &self.tiers {
            for (service, value) in &tier.services {
                if value.addresses.iter().any(|b| b.contains(&ip)) {
                    return Who::Service(name.clone(), service.clone());
                }
            }
        }
        let mut best: Option<(u8, &String)> = None;
        for (name, tier) in &self.tiers {
            for block in tier.blocks.iter().filter(|b| b.contains(&ip)) {
                if best.is_none_or(|(length, _)| block.prefix_len() > length) {
                    best = Some((block.prefix_len(), name));
                }
            }
        }
        best.map_or(Who::External, |(_, name)| Who::Tier(name.clone()))
    }

    /// Whose a container is: the service that names it, else the tier of the network that it is on.
    pub fn container(&self, name: &str, network: Option<&str>) -> Who {
        for (tier, value) in &self.tiers {
            for (service, value) in &value.services {
                if value.containers.iter().any(|c| c == name) {
                    return Who::Service(tier.clone(), service.clone());
                }
            }
        }
        let tier = self.tiers.iter().find(|(_, t)| t.networks.iter().any(|n| Some(n.as_str()) == network));
        tier.map_or(Who::Unmanaged, |(name, _)| Who::Tier(name.clone()))
    }

    /// Ports and types that rules name for this destination: what is worth asking.
    pub fn named_ports(&self, to: &End) -> Vec<What> {
        let rules = self.rules.iter().filter(|r| r.to.iter().any(|s| self.selects(s, to)));
        let mut found: Vec<What> = rules.flat_map(|r| r.ports.examples()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Names of the rules that have a limit.
    pub fn limited(&self) -> Vec<&str> {
        self.rules.iter().filter(|r| r.limited).map(|r| r.name.as_str()).collect()
    }

    /// Lines 3 to 7 of the precedence, and the mode of the whole policy, no limit used up. `now` in Unix seconds.
    pub fn judge(&self, from: &End, to: &End, what: What, now: i64) -> Answer {
        self.judge_new(from, to, what, now, &[])
    }

    /// The same for a new flow, while the limits of some rules are used up.
    pub fn judge_new(&self, from: &End, to: &End, what: What, now: i64, used_up: &[&str]) -> Answer {
        let mut answer = self.enforcing(from, to, what, now, used_up);
        if self.audit && answer.verdict == Verdict::Denied {
            answer.verdict = Verdict::Audited;
        }
        answer
    }

    fn enforcing(&self, from: &End, to: &End, what: What, now: i64, used_up: &[&str]) -> Answer {
        let matching: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|r| r.expires.is_none_or(|end| now < end))
            .filter(|r| r.from.iter().any(|s| self.selects(s, from)))
            .filter(|r| r.to.iter().any(|s| self.selects(s, to)))
            .filter(|r| r.ports.contain(what))
            .collect();
        let first = |action: &str| matching.iter().find(|r| r.action == action).map(|r| r.name.clone());
        // 3.
        if let Some(rule) = first("deny") {
            return Answer { verdict: Verdict::Denied, reason: Reason::Rule, rule: Some(rule) };
        }
        // 4.
        let allowing: Vec<&&Rule> = matching.iter().filter(|r| r.action == "allow").collect();
        if let Some(rule) = allowing.iter().find(|r| !used_up.contains(&r.name.as_str())) {
            return Answer { verdict: Verdict::Allowed, reason: Reason::Rule, rule: Some(rule.name.clone()) };
        }
        if let Some(rule) = allowing.first() {
            return Answer { verdict: Verdict::Denied, reason: Reason::Limit, rule: Some(rule.name.clone()) };
        }
        let otherwise = self.without_rules(from, to);
        // 5.
        if let Some(rule) = first("audit") {
            return Answer { verdict: Verdict::Audited, reason: otherwise.reason, rule: Some(rule) };
        }
        otherwise
    }

    /// Lines 6 and 7.
    fn without_rules(&self, from: &End, to: &End) -> Answer {
        let (source, destination) = (from.who.tier(), to.who.tier());
        if source.is_some() && source == destination {
            return Answer { verdict: self.intra_tier, reason: Reason::IntraTier, rule: None };
        }
        if from.who == Who::Host {
            return Answer { verdict: self.from_host, reason: Reason::FromHost, rule: None };
        }
        let tiers = [source, destination].into_iter().flatten();
        let softened = tiers.filter_map(|t| self.tiers.get(t)).any(|t| t.audit);
        let verdict = if softened { Verdict::Audited } else { self.cross_tier };
        Answer { verdict, reason: Reason::NoRule, rule: None }
    }

    fn selects(&self, selector: &Selector, end: &End) -> bool {
        match selector {
            Selector::Any => true,
            Selector::Internal => {
                end.who.tier().is_some_and(|t| self.tiers.get(t).is_some_and(|t| t.interior))
            }
            Selector::Who(Who::Tier(tier)) => end.who.tier() == Some(tier),
            Selector::Who(who) => end.who == *who,
            Selector::Block(block, except) => match end.address {
                Some(ip) => block.contains(&ip) && !except.iter().any(|e| e.contains(&ip)),
                None => self.name_inside(&end.who, block, except),
            },
        }
    }

    /// A name matches a block only if every block declared for that name lies inside it.
    fn name_inside(&self, who: &Who, block: &IpNet, except: &[IpNet]) -> bool {
        let declared = match who {
            Who::Tier(tier) => self.tiers.get(tier).map(|t| &t.blocks),
            Who::Service(tier, service) => {
                self.tiers.get(tier).and_then(|t| t.services.get(service)).map(|s| &s.addresses)
            }
            Who::External | Who::Host | Who::Unmanaged => None,
        };
        let overlaps = |b: &IpNet, e: &IpNet| b.contains(e) || e.contains(b);
        declared.is_some_and(|blocks| {
            !blocks.is_empty()
                && blocks.iter().all(|b| block.contains(b) && !except.iter().any(|e| overlaps(b, e)))
        })
    }

    /// The meaning of a name: a reserved tier, a tier, or `tier/service`.
    pub fn name(&self, text: &str) -> Result<Who> {
        let reserved = [Who::External, Who::Host, Who::Unmanaged].into_iter().find(|w| w.to_string() == text);
        if let Some(who) = reserved {
            return Ok(who);
        }
        if let Some((tier, service)) = text.split_once('/') {
            let known = self.tiers.get(tier).is_some_and(|t| t.services.contains_key(service));
            ensure!(known, "no service {text}");
            return Ok(Who::Service(tier.to_owned(), service.to_owned()));
        }
        ensure!(self.tiers.contains_key(text), "no tier {text}");
        Ok(Who::Tier(text.to_owned()))
    }
}
