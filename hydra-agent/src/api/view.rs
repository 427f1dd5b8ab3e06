//! From rows of the kernel to rows for people: names for numbers, times for clock readings. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hydra_common::address::Address;
use hydra_common::event::Event;
use hydra_common::flow::{Flow, FlowKey, Path, Side};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::tables::DropKey;
use hydra_common::track::{State, tcp};
use hydra_common::verdict::{Hook, Reason, Verdict};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::wire::{DropRow, EndpointRow, FlowRow};
use crate::published::{Applied, EndpointView};

const RFC3339_MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Names for the numbers in flows, events and counters.
#[derive(Default)]
pub(super) struct Names {
    current: Option<Arc<Applied>>,
    policies: BTreeMap<u32, Arc<Applied>>,
    containers: BTreeMap<Container, String>,
    interfaces: BTreeMap<u32, String>,
}

/// What an end of a flow is called.
struct End {
    tier: String,
    service: String,
    container: String,
}

impl Names {
    /// From what is known.
    pub(super) fn new(
        current: Option<Arc<Applied>>,
        policies: BTreeMap<u32, Arc<Applied>>,
        containers: BTreeMap<Container, String>,
        interfaces: BTreeMap<u32, String>,
    ) -> Self {
        Self { current, policies, containers, interfaces }
    }

    /// Whether rows may name a tier, service or container so: of the policy in force, of one before, or of a container that is gone.
    pub(super) fn knows(&self, name: &str) -> bool {
        matches!(name, "unknown" | "external" | "host" | "unmanaged")
            || self.containers.values().any(|c| c == name)
            || self.current.iter().chain(self.policies.values()).any(|a| a.model.owner(name).is_some())
    }

    /// The key under which drops are summed.
    pub(super) fn total_key(&self, key: DropKey) -> (String, String, &'static str, &'static str, String) {
        (
            self.tier(key.source),
            self.tier(key.destination),
            Verdict::from_row(key.verdict).as_str(),
            Reason::from_row(key.reason).as_str(),
            Self::rule(self.current.as_deref(), key.rule),
        )
    }

    /// A tier's name.
    pub(super) fn tier(&self, tier: Tier) -> String {
        let mut known = self.current.iter().chain(self.policies.values().rev());
        match tier {
            Tier::UNKNOWN => "unknown".into(),
            Tier::EXTERNAL => "external".into(),
            Tier::HOST => "host".into(),
            Tier::UNMANAGED => "unmanaged".into(),
            Tier(n) => {
                known.find_map(|a| a.compiled.tiers.get(&tier)).cloned().unwrap_or(format!("tier-{n}"))
            }
        }
    }

    fn rule(policy: Option<&Applied>, number: u16) -> String {
        match (policy.and_then(|a| a.compiled.rule(number)), number) {
            (_, 0) => String::new(),
            (Some(name), _) => name.into(),
            (None, n) => format!("rule-{n}"),
        }
    }

    /// The policy of a revision, if it is still known.
    fn policy(&self, revision: u32) -> Option<&Applied> {
        self.policies.get(&revision).map(AsRef::as_ref)
    }

    fn end(&self, revision: u32, identity: Identity, container: Container) -> End {
        let container = match container {
            Container::NONE => String::new(),
            known => self.containers.get(&known).cloned().unwrap_or(format!("container-{}", known.0)),
        };
        let known = self.policy(revision).into_iter().chain(self.current.as_deref());
        let owner =
            known.filter_map(|a| a.compiled.identities.get(&identity)).map(|(class, _)| &class.owner).next();
        let (tier, service) = match (owner, identity) {
            (Some(owner), _) => (owner.tier().into(), owner.service_text()),
            (None, Identity::UNKNOWN) => ("unknown".into(), String::new()),
            (None, Identity::EXTERNAL) => ("external".into(), String::new()),
            (None, Identity::HOST) => ("host".into(), String::new()),
            (None, Identity::UNMANAGED) => ("unmanaged".into(), String::new()),
            (None, Identity(n)) => (format!("identity-{n}"), String::new()),
        };
        End { tier, service, container }
    }

    /// A row of `flows`.
    pub(super) fn flow(&self, key: &FlowKey, flow: &Flow, clocks: (u64, i128)) -> FlowRow {
        let opener = Side::from_row(flow.opener);
        let other = opener.other();
        let source = self.end(flow.revision, flow.source, flow.containers[opener.index()]);
        let destination = self.end(flow.revision, flow.destination, flow.containers[other.index()]);
        FlowRow {
            protocol: protocol(key.protocol),
            source: address(key.address(opener)),
            source_port: key.port(opener),
            source_tier: source.tier,
            source_service: source.service,
            source_container: source.container,
            destination: address(key.address(other)),
            destination_port: key.port(other),
            destination_tier: destination.tier,
            destination_service: destination.service,
            destination_container: destination.container,
            verdict: Verdict::from_row(flow.verdict).as_str().into(),
            reason: Reason::from_row(flow.reason).as_str().into(),
            rule: Self::rule(self.policy(flow.revision), flow.rule),
            revision: flow.revision,
            packets: flow.packets[opener.index()],
            bytes: flow.bytes[opener.index()],
            reply_packets: flow.packets[other.index()],
            reply_bytes: flow.bytes[other.index()],
            state: state(key.protocol, flow).into(),
            path: match Path::from_row(flow.path) {
                Path::Stack => "stack".into(),
                Path::Peer => "peer".into(),
            },
            via: via(flow).into(),
            first_seen: time(flow.created, clocks),
            last_seen: time(flow.seen, clocks),
        }
    }

    /// An interface's name; empty where none was asked.
    fn interface(&self, index: u32) -> String {
        match index {
            0 => String::new(),
            known => self.interfaces.get(&known).cloned().unwrap_or(format!("if{known}")),
        }
    }

    /// A row of `drops`.
    pub(super) fn drop(&self, event: &Event, clocks: (u64, i128)) -> DropRow {
        let source = self.end(event.revision, event.source_identity, event.source_container);
        let destination = self.end(event.revision, event.destination_identity, event.destination_container);
        DropRow {
            time: time(event.time, clocks),
            verdict: Verdict::from_row(event.verdict).as_str().into(),
            reason: Reason::from_row(event.reason).as_str().into(),
            rule: Self::rule(self.policy(event.revision), event.rule),
            protocol: frame_protocol(event),
            source: known_address(event.source),
            source_port: event.source_port,
            source_tier: source.tier,
            source_service: source.service,
            source_container: source.container,
            destination: known_address(event.destination),
            destination_port: event.destination_port,
            destination_tier: destination.tier,
            destination_service: destination.service,
            destination_container: destination.container,
            interface: self.interface(event.ifindex),
            hook: Hook::from_row(event.hook).map_or("unknown", Hook::as_str).into(),
            process: process(event),
            bytes: event.length,
            revision: event.revision,
        }
    }
}

/// Who asked, where a process did: it can call itself anything.
fn process(event: &Event) -> String {
    if event.process == 0 {
        return String::new();
    }
    let end = event.command.iter().position(|b| *b == 0).unwrap_or(event.command.len());
    format!("{}[{}]", event.command[..end].escape_ascii(), event.process)
}

/// A row of `endpoints`.
pub(super) fn endpoint(view: &EndpointView) -> EndpointRow {
    EndpointRow {
        container: view.container.clone(),
        tier: view.tier.clone(),
        service: view.service.clone(),
        network: view.network.clone(),
        bridge: view.bridge.clone(),
        port: view.port.clone(),
        mac: view.mac.clone(),
        address: view.address.clone(),
        identity: view.identity.0,
        attached: view.attached,
    }
}

/// An address as people write it.
pub(super) fn ip(a: Address) -> IpAddr {
    let o = a.octets();
    if a.is_v4() { Ipv4Addr::new(o[12], o[13], o[14], o[15]).into() } else { Ipv6Addr::from(o).into() }
}

fn address(a: Address) -> String {
    ip(a).to_string()
}

fn known_address(a: Address) -> String {
    if a == Address::UNSPECIFIED6 { String::new() } else { address(a) }
}

/// A protocol as the policy language writes it.
pub(super) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        n => format!("proto/{n}"),
    }
}

fn frame_protocol(event: &Event) -> String {
    match event.ethertype {
        0x0800 | 0x86dd => protocol(event.protocol),
        0x0806 => "arp".into(),
        other => format!("ethertype/{other:#06x}"),
    }
}

/// How a flow goes by a published port.
fn via(flow: &Flow) -> &'static str {
    if flow.marks & Flow::PUBLISHED != 0 {
        "published"
    } else if flow.marks & Flow::CARRIED != 0 {
        "carried"
    } else {
        ""
    }
}

/// How far a flow has come; of one that ends, how.
fn state(protocol: u8, flow: &Flow) -> &'static str {
    let [a, b] = flow.flags;
    match State::of(flow, protocol) {
        State::New => "half-open",
        State::Established => "established",
        State::Closing if (a | b) & tcp::RST != 0 => "reset",
        State::Closing if a & b & tcp::FIN != 0 => "closed",
        State::Closing => "closing",
    }
}

/// A reading of the monotonic clock as a time of day.
fn time(monotonic: u64, (now, unix): (u64, i128)) -> String {
    let at = unix - (i128::from(now) - i128::from(monotonic));
    OffsetDateTime::from_unix_timestamp_nanos(at)
        .ok()
        .and_then(|t| t.format(RFC3339_MILLIS).ok())
        .unwrap_or_default()
}
