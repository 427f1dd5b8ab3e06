//! What the oracle makes of `ports:`, and the packets that it is asked about.

use anyhow::{Context, Result, bail};

use super::Policy;
use crate::packets::protocol;

/// What a packet is to the policy: protocol, and port or type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// TCP to this port.
    Tcp(u16),
    /// UDP to this port.
    Udp(u16),
    /// SCTP to this port.
    Sctp(u16),
    /// ICMP of this type.
    Icmp(u8),
    /// ICMPv6 of this type.
    Icmpv6(u8),
    /// Anything else by number.
    Other(u8),
}

impl What {
    /// IP protocol number.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp(_) => protocol::TCP,
            Self::Udp(_) => protocol::UDP,
            Self::Sctp(_) => protocol::SCTP,
            Self::Icmp(_) => protocol::ICMP,
            Self::Icmpv6(_) => protocol::ICMPV6,
            Self::Other(number) => number,
        }
    }

    /// Port or type; 0 where there is none.
    pub fn port(self) -> u16 {
        match self {
            Self::Tcp(port) | Self::Udp(port) | Self::Sctp(port) => port,
            Self::Icmp(kind) | Self::Icmpv6(kind) => kind.into(),
            Self::Other(_) => 0,
        }
    }

    /// As questions say it: `tcp/5432`, `icmp/8`, `proto/47`.
    pub fn question(self) -> String {
        match self {
            Self::Tcp(port) => format!("tcp/{port}"),
            Self::Udp(port) => format!("udp/{port}"),
            Self::Sctp(port) => format!("sctp/{port}"),
            Self::Icmp(kind) => format!("icmp/{kind}"),
            Self::Icmpv6(kind) => format!("icmpv6/{kind}"),
            Self::Other(number) => format!("proto/{number}"),
        }
    }

    /// The questions that a port in an `expect` row asks: one, or both families' echo requests for `ping`.
    pub fn asked(text: &str) -> Result<Vec<Self>> {
        if text == "ping" {
            return Ok(vec![Self::Icmp(8), Self::Icmpv6(128)]);
        }
        let Some((name, number)) = text.split_once('/') else { bail!("no single question: {text}") };
        Ok(vec![match name {
            "tcp" => Self::Tcp(number.parse()?),
            "udp" => Self::Udp(number.parse()?),
            "sctp" => Self::Sctp(number.parse()?),
            "icmp" => Self::Icmp(kind(false, number)?),
            "icmpv6" => Self::Icmpv6(kind(true, number)?),
            "proto" => Self::Other(number.parse()?),
            _ => bail!("no question: {text}"),
        }])
    }
}

/// A rule's ports.
#[derive(Clone, Debug)]
pub struct Ports(Vec<Spec>);

#[derive(Clone, Debug)]
struct Spec {
    protocol: u8,
    /// `None`: the whole protocol.
    ports: Option<(u16, u16)>,
}

impl Ports {
    /// Reads them. None at all means everything.
    pub(crate) fn read(texts: &[String], policy: &Policy) -> Result<Self> {
        let mut specs = Vec::new();
        for text in texts {
            match spec(text)? {
                Some(mut found) => specs.append(&mut found),
                None => specs.extend(service(text, policy)?),
            }
        }
        Ok(Self(specs))
    }

    /// One packet of each part.
    pub fn examples(&self) -> Vec<What> {
        self.0
            .iter()
            .filter_map(|spec| {
                let port = spec.ports.map(|(first, _)| first);
                Some(match spec.protocol {
                    protocol::TCP => What::Tcp(port?),
                    protocol::UDP => What::Udp(port?),
                    protocol::SCTP => What::Sctp(port?),
                    protocol::ICMP => What::Icmp(port.unwrap_or(8) as u8),
                    protocol::ICMPV6 => What::Icmpv6(port.unwrap_or(128) as u8),
                    number => What::Other(number),
                })
            })
            .collect()
    }

    /// Whether a packet is among them.
    pub fn contain(&self, what: What) -> bool {
        let icmp = matches!(what, What::Icmp(_) | What::Icmpv6(_));
        self.0.is_empty()
            || self.0.iter().any(|spec| {
                spec.protocol == what.protocol()
                    && spec.ports.is_none_or(|(first, last)| {
                        // A packet to port 0 matches only a whole protocol; type 0 is a type like any other.
                        (icmp || what.port() != 0) && (first..=last).contains(&what.port())
                    })
            })
    }
}

/// `None` for what must be a service's name.
fn spec(text: &str) -> Result<Option<Vec<Spec>>> {
    let one = |protocol, ports| Ok(Some(vec![Spec { protocol, ports }]));
    if text == "ping" {
        return Ok(Some(vec![
            Spec { protocol: protocol::ICMP, ports: Some((8, 8)) },
            Spec { protocol: protocol::ICMPV6, ports: Some((128, 128)) },
        ]));
    }
    let (name, rest) = text.split_once('/').map_or((text, None), |(n, r)| (n, Some(r)));
    let number = match name {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        "icmp" => protocol::ICMP,
        "icmpv6" => protocol::ICMPV6,
        "proto" => return one(rest.context("proto without a number")?.parse()?, None),
        _ => return Ok(None),
    };
    let Some(rest) = rest else { return one(number, None) };
    if number == protocol::ICMP || number == protocol::ICMPV6 {
        let kind = u16::from(kind(number == protocol::ICMPV6, rest)?);
        return one(number, Some((kind, kind)));
    }
    let (first, last) = rest.split_once('-').unwrap_or((rest, rest));
    one(number, Some((first.parse()?, last.parse()?)))
}

/// A service's ports by its name: `tier/service`, or bare.
fn service(text: &str, policy: &Policy) -> Result<Vec<Spec>> {
    let mut found = Vec::new();
    for (tier, value) in &policy.tiers {
        for (name, service) in &value.services {
            if text == name || text == format!("{tier}/{name}") {
                found.push(service);
            }
        }
    }
    let [service] = found[..] else { bail!("{} services are called {text}", found.len()) };
    let mut specs = Vec::new();
    for port in &service.ports {
        specs.append(&mut spec(port)?.with_context(|| format!("a service's port: {port}"))?);
    }
    Ok(specs)
}

/// An ICMP type by number or by its usual name.
fn kind(v6: bool, text: &str) -> Result<u8> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    Ok(match (v6, text) {
        (false, "echo-reply") => 0,
        (false, "destination-unreachable") | (true, "time-exceeded") => 3,
        (false, "echo-request") => 8,
        (false, "time-exceeded") => 11,
        (false, "parameter-problem") => 12,
        (true, "destination-unreachable") => 1,
        (true, "packet-too-big") => 2,
        (true, "parameter-problem") => 4,
        (true, "echo-request") => 128,
        (true, "echo-reply") => 129,
        _ => bail!("no ICMP type: {text}"),
    })
}
