//! A second opinion on what a policy file means: written from the language's description alone, as naively as possible. It reads
//! the file itself, walks over all rules for every question, and shares nothing with the compiler or the verdict function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use hydra_common::verdict::{Reason, Verdict};
use ipnet::IpNet;
use serde_json::Value;

use crate::oracle_ports::{Ports, What};

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
    /// Reads a policy file that is valid.
    pub fn read(text: &str) -> Result<Self> {
        let file: Value = serde_saphyr::from_str(text).context("the oracle cannot read the policy")?;
        let mut networks = BTreeMap::new();
        for (name, network) in entries(&file["networks"]) {
            let texts = |keys: [&str; 2]| keys.map(|key| strings(&network[key])).concat();
            let bridge = &network["options"]["com.docker.network.bridge.name"];
            let network = Network {
                subnets: texts(["subnet", "subnet6"])
                    .iter()
                    .map(|text| block(text))
                    .collect::<Result<_>>()?,
                gateways: texts(["gateway", "gateway6"])
                    .iter()
                    .map(|text| Ok(text.parse()?))
                    .collect::<Result<_>>()?,
                bridge: bridge.as_str().map(str::to_owned),
            };
            networks.insert(name.to_owned(), network);
        }
        let mut tiers = BTreeMap::new();
        for (name, tier) in entries(&file["tiers"]) {
            let on: Vec<String> = strings(&tier["networks"]);
            let bridges = strings(&tier["bridges"]);
            let addresses = blocks(&tier["addresses"])?;
            let mut all = [addresses.clone(), blocks(&tier["subnets"])?].concat();
            all.extend(on.iter().filter_map(|n| networks.get(n)).flat_map(|n: &Network| n.subnets.clone()));
            let mut services = BTreeMap::new();
            for (service, value) in entries(&tier["services"]) {
                services.insert(
                    service.to_owned(),
                    Service {
                        containers: strings(&value["containers"]),
                        networks: strings(&value["networks"]),
                        addresses: blocks(&value["addresses"])?,
                        ports: strings(&value["ports"]),
                    },
                );
            }
            tiers.insert(
                name.to_owned(),
                Tier {
                    audit: tier["mode"] == "audit",
                    interior: !on.is_empty() || !bridges.is_empty(),
                    networks: on,
                    bridges,
                    blocks: all,
                    addresses,
                    services,
                },
            );
        }
        let default = |key: &str, otherwise| match file["defaults"][key].as_str() {
            None => Ok(otherwise),
            Some("allow") => Ok(Verdict::Allowed),
            Some("deny") => Ok(Verdict::Denied),
            Some("audit") => Ok(Verdict::Audited),
            Some(other) => bail!("defaults: {key}: {other}"),
        };
        let mut policy = Self {
            audit: file["mode"] == "audit",
            intra_tier: default("intra-tier", Verdict::Allowed)?,
            from_host: default("from-host", Verdict::Allowed)?,
            cross_tier: default("cross-tier", Verdict::Denied)?,
            tiers,
            networks,
            rules: Vec::new(),
        };
        for rule in file["rules"].as_array().into_iter().flatten() {
            let rule = policy.rule(rule)?;
            policy.rules.push(rule);
        }
        Ok(policy)
    }

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

    /// Lines 3 to 7 of the precedence, and the mode of the whole policy. `now` in Unix seconds.
    pub fn judge(&self, from: &End, to: &End, what: What, now: i64) -> Answer {
        let mut answer = self.enforcing(from, to, what, now);
        if self.audit && answer.verdict == Verdict::Denied {
            answer.verdict = Verdict::Audited;
        }
        answer
    }

    fn enforcing(&self, from: &End, to: &End, what: What, now: i64) -> Answer {
        let matching: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|r| r.expires.is_none_or(|end| now < end))
            .filter(|r| r.from.iter().any(|s| self.selects(s, from)))
            .filter(|r| r.to.iter().any(|s| self.selects(s, to)))
            .filter(|r| r.ports.contain(what))
            .collect();
        let first = |action: &str| matching.iter().find(|r| r.action == action).map(|r| r.name.clone());
        // 3 and 4.
        for (action, verdict) in [("deny", Verdict::Denied), ("allow", Verdict::Allowed)] {
            if let Some(rule) = first(action) {
                return Answer { verdict, reason: Reason::Rule, rule: Some(rule) };
            }
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

    fn rule(&self, rule: &Value) -> Result<Rule> {
        let name = rule["name"].as_str().context("a rule without a name")?.to_owned();
        let selectors = |key: &str| -> Result<Vec<Selector>> {
            match &rule[key] {
                Value::Array(list) => list.iter().map(|s| self.selector(s)).collect(),
                one => Ok(vec![self.selector(one)?]),
            }
        };
        let expires = match rule["expires"].as_str() {
            Some(text) => {
                let format = &time::format_description::well_known::Rfc3339;
                Some(time::OffsetDateTime::parse(text, format)?.unix_timestamp())
            }
            None => None,
        };
        Ok(Rule {
            from: selectors("from").with_context(|| name.clone())?,
            to: selectors("to").with_context(|| name.clone())?,
            ports: Ports::read(&strings(&rule["ports"]), self).with_context(|| name.clone())?,
            action: rule["action"].as_str().unwrap_or("allow").to_owned(),
            expires,
            name,
        })
    }

    fn selector(&self, value: &Value) -> Result<Selector> {
        if let Some(cidr) = value["cidr"].as_str() {
            return Ok(Selector::Block(block(cidr)?, blocks(&value["except"])?));
        }
        let text = value.as_str().context("a selector that is no text")?;
        Ok(match text {
            "any" => Selector::Any,
            "internal" => Selector::Internal,
            _ => Selector::Who(self.name(text)?),
        })
    }

    /// The meaning of a name: a reserved tier, a tier, or `tier/service`.
    pub fn name(&self, text: &str) -> Result<Who> {
        Ok(match text {
            "external" => Who::External,
            "host" => Who::Host,
            "unmanaged" => Who::Unmanaged,
            _ => match text.split_once('/') {
                Some((tier, service)) => {
                    ensure!(
                        self.tiers.get(tier).is_some_and(|t| t.services.contains_key(service)),
                        "no service {text}"
                    );
                    Who::Service(tier.to_owned(), service.to_owned())
                }
                None => {
                    ensure!(self.tiers.contains_key(text), "no tier {text}");
                    Who::Tier(text.to_owned())
                }
            },
        })
    }
}

/// The file's `expect` rows: from, to, port, and what must come out.
pub fn expectations(text: &str) -> Result<Vec<(Value, Value, String, String, Option<String>)>> {
    let file: Value = serde_saphyr::from_str(text)?;
    let rows = file["expect"].as_array().into_iter().flatten();
    rows.map(|row| {
        let word = |key: &str| row[key].as_str().map(str::to_owned);
        Ok((
            row["from"].clone(),
            row["to"].clone(),
            word("port").context("a row without a port")?,
            word("verdict").context("a row without a verdict")?,
            word("rule"),
        ))
    })
    .collect()
}

/// A text or a list of texts.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

fn blocks(value: &Value) -> Result<Vec<IpNet>> {
    strings(value).iter().map(|text| block(text)).collect()
}

/// A block; a bare address is its own.
pub(crate) fn block(text: &str) -> Result<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(IpNet::from(ip)),
        Err(_) => text.parse().with_context(|| format!("no address block: {text}")),
    }
}
