//! Reads a policy file into what the oracle judges by. Of a file that is valid: what would be refused is not looked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use hydra_common::verdict::Verdict;
use ipnet::IpNet;
use serde_json::Value;

use super::{Network, Policy, Ports, Rule, Selector, Service, Tier};

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

    fn rule(&self, rule: &Value) -> Result<Rule> {
        let name = rule["name"].as_str().context("a rule without a name")?.to_owned();
        let selectors = |key: &str| -> Result<Vec<Selector>> {
            match &rule[key] {
                Value::Array(list) => list.iter().map(|s| self.selector(s)).collect(),
                one @ (Value::String(_) | Value::Object(_)) => Ok(vec![self.selector(one)?]),
                Value::Null | Value::Bool(_) | Value::Number(_) => bail!("a rule without {key}"),
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
            limited: !rule["limit"].is_null(),
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
}

/// A row of `expect`.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Who asks: a name or an address.
    pub from: String,
    /// Who is asked.
    pub to: String,
    /// As in the file.
    pub port: String,
    /// `allowed`, `denied` or `audited`.
    pub verdict: String,
    /// The rule that must decide.
    pub rule: Option<String>,
}

/// The file's `expect` rows.
pub fn expectations(text: &str) -> Result<Vec<Expectation>> {
    let file: Value = serde_saphyr::from_str(text)?;
    let rows = file["expect"].as_array().into_iter().flatten();
    rows.map(|row| {
        let word = |key: &str| row[key].as_str().map(str::to_owned);
        Ok(Expectation {
            from: word("from").context("a row without from")?,
            to: word("to").context("a row without to")?,
            port: word("port").context("a row without a port")?,
            verdict: word("verdict").context("a row without a verdict")?,
            rule: word("rule"),
        })
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
