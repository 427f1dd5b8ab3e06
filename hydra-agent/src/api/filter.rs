//! Which rows are asked for: FROM, TO, port, verdict and reason of a request, understood or refused.

use std::net::IpAddr;

use hydra_common::verdict::Reason;
use ipnet::IpNet;

use super::explain::named;
use super::extract::Refusal;
use super::view::{self, Names};
use super::wire::{DropRow, Filter, FlowRow};
use crate::policy::nearest;
use crate::published::Published;

/// A [`Filter`] that was understood.
pub(super) struct Match {
    from: Option<Who>,
    to: Option<Who>,
    protocol: Option<String>,
    port: Option<u16>,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    /// At most so many rows.
    pub(super) limit: usize,
}

/// FROM or TO.
pub(super) enum Who {
    /// A tier, service or container.
    Name(String),
    /// An address or address block.
    Block(IpNet),
}

impl Match {
    /// Of `drops` or of flows, in the world as the agent sees it.
    pub(super) fn new(
        filter: Filter,
        drops: bool,
        state: &Published,
        names: &Names,
    ) -> Result<Self, Refusal> {
        let (protocol, port) = match filter.port.as_deref() {
            None => (None, None),
            Some(text) => service(text)?,
        };
        let of = if drops { "drops" } else { "flows" };
        let one_of = |what: &str, text: Option<String>, words: Vec<&'static str>| match text {
            None => Ok(None),
            Some(text) => words.iter().find(|w| **w == text).copied().map(Some).ok_or_else(|| {
                let hint = match nearest(&text, words.iter().copied()) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => format!("one of `{}`", words.join("`, `")),
                };
                Refusal::bad(format!("no {what} of {of}: `{text}`"), hint)
            }),
        };
        let who = |text: Option<String>| text.map(|text| Who::find(state, names, text)).transpose();
        let verdicts = if drops { vec!["denied", "audited"] } else { vec!["allowed", "audited"] };
        if !drops && filter.reason.is_some() {
            return Err(Refusal::bad("flows cannot be chosen by `reason`", "`hydractl drops --reason …`"));
        }
        let reasons = Reason::ALL.iter().map(|r| r.as_str()).collect();
        Ok(Self {
            from: who(filter.from)?,
            to: who(filter.to)?,
            protocol,
            port,
            verdict: one_of("verdict", filter.verdict, verdicts)?,
            reason: one_of("reason", filter.reason, reasons)?,
            limit: filter.limit.unwrap_or(usize::MAX),
        })
    }

    /// Whether a flow is meant.
    pub(super) fn flow(&self, row: &FlowRow) -> bool {
        self.ends(
            [&row.source_tier, &row.source_service, &row.source_container, &row.source],
            [&row.destination_tier, &row.destination_service, &row.destination_container, &row.destination],
        ) && self.rest(&row.protocol, row.destination_port, &row.verdict)
    }

    /// Whether a drop is meant.
    pub(super) fn drop(&self, row: &DropRow) -> bool {
        self.ends(
            [&row.source_tier, &row.source_service, &row.source_container, &row.source],
            [&row.destination_tier, &row.destination_service, &row.destination_container, &row.destination],
        ) && self.rest(&row.protocol, row.destination_port, &row.verdict)
            && self.reason.is_none_or(|r| r == row.reason)
    }

    fn ends(&self, source: [&str; 4], destination: [&str; 4]) -> bool {
        self.from.as_ref().is_none_or(|w| w.is(source)) && self.to.as_ref().is_none_or(|w| w.is(destination))
    }

    fn rest(&self, protocol: &str, port: u16, verdict: &str) -> bool {
        self.protocol.as_deref().is_none_or(|p| p == protocol)
            && self.port.is_none_or(|p| p == port)
            && self.verdict.is_none_or(|v| v == verdict)
    }
}

impl Who {
    /// Whom a word means; a name that nobody has is refused, not answered with nothing.
    pub(super) fn find(state: &Published, names: &Names, text: String) -> Result<Self, Refusal> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Block(ip.into()));
        }
        if let Ok(block) = text.parse::<IpNet>() {
            return Ok(Self::Block(block));
        }
        // Rows may name who is gone, by the policy or by the engine.
        if names.knows(&text) {
            return Ok(Self::Name(text));
        }
        named(state, &text).map(Self::Name)
    }

    /// `[tier, service, container, address]`.
    pub(super) fn is(&self, [tier, service, container, address]: [&str; 4]) -> bool {
        match self {
            Self::Block(block) => address.parse::<IpAddr>().is_ok_and(|ip| block.contains(&ip)),
            Self::Name(name) => {
                name == tier
                    || (!container.is_empty() && name == container)
                    || name.split_once('/').is_some_and(|(t, s)| t == tier && s == service && !s.is_empty())
            }
        }
    }
}

/// `tcp/5432`, `tcp`, `proto/47` or `5432`.
pub(super) fn service(text: &str) -> Result<(Option<String>, Option<u16>), Refusal> {
    const WORDS: [&str; 6] = ["tcp", "udp", "sctp", "icmp", "icmpv6", "arp"];
    let read = || {
        if let Ok(port) = text.parse() {
            return Some((None, Some(port)));
        }
        match text.split_once('/') {
            None if WORDS.contains(&text) => Some((Some(text.into()), None)),
            Some(("proto", number)) => Some((Some(view::protocol(number.parse().ok()?)), None)),
            Some((protocol, port)) if WORDS.contains(&protocol) => {
                Some((Some(protocol.into()), Some(port.parse().ok()?)))
            }
            None | Some(_) => None,
        }
    };
    read().ok_or_else(|| {
        Refusal::bad(
            format!("no protocol and port: `{text}`"),
            "`--port tcp/5432`, `--port tcp` or `--port 5432`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_protocol_a_number_or_both() {
        let service = |text| service(text).ok();
        assert_eq!(service("tcp/5432"), Some((Some("tcp".into()), Some(5432))));
        assert_eq!(service("udp"), Some((Some("udp".into()), None)));
        assert_eq!(service("5432"), Some((None, Some(5432))));
        assert_eq!(service("proto/6"), Some((Some("tcp".into()), None)));
        for bad in ["", "tcp/", "tcp/65536", "tcp/x", "http", "quic/1", "proto/256", "-1"] {
            assert_eq!(service(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_end_is_found_by_tier_service_container_address_and_block() {
        let end = ["databases", "postgres", "hydra-postgres", "172.30.3.10"];
        let who =
            |text: &str| match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
                Ok(block) => Who::Block(block),
                Err(_) => Who::Name(text.into()),
            };
        for name in ["databases", "databases/postgres", "hydra-postgres", "172.30.3.10", "172.30.3.0/24"] {
            assert!(who(name).is(end), "{name}");
        }
        for name in ["postgres", "apps", "databases/redis", "databases/", "172.30.3.11", "10.0.0.0/8", ""] {
            assert!(!who(name).is(end), "{name}");
        }
        assert!(!who("databases/").is(["databases", "", "", ""]), "no service is not a service");
    }
}
