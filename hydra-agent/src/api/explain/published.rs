//! Questions about a published port: who is behind it answers, as in the kernel, not this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hydra_common::id::Identity;
use hydra_common::track::protocol;
use hydra_common::verdict::{Reason, Verdict};

use super::docker::binding;
use super::ends::End;
use super::{not_enforced, of_file};
use crate::api::wire::{ExplainRequest, Explanation};
use crate::placement::PortKey;
use crate::policy::explain::{Question, explain_identities};
use crate::policy::model::Party;
use crate::policy::ports::Packet;
use crate::policy::rows::Owner;
use crate::policy::unix_now;
use crate::published::{Applied, PortView, Published};

/// The published port that is asked about, if it is one: TO is this host or an address of it. A loopback address is this host's own
/// only to itself.
pub(super) fn port<'s>(
    state: &'s Published,
    asked: &str,
    from: &End<'_>,
    to: &End<'_>,
    question: &Question,
) -> Option<&'s PortView> {
    if to.owner != Owner::Host {
        return None;
    }
    let [packet] = question.packets.as_slice() else { return None };
    if ![protocol::TCP, protocol::UDP, protocol::SCTP].contains(&packet.protocol) {
        return None;
    }
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses = match asked.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() && from.owner != Owner::Host => return None,
        Ok(ip) => vec![ip, everywhere[usize::from(ip.is_ipv6())]],
        Err(_) => everywhere.to_vec(),
    };
    addresses.into_iter().find_map(|address| {
        let key = PortKey { address, protocol: packet.protocol, port: packet.number };
        state.ports.iter().find(|view| view.key == key)
    })
}

/// The answer of the container behind it.
pub(super) fn answer(
    state: &Published,
    applied: &Applied,
    asked: &ExplainRequest,
    from: &End<'_>,
    source: Identity,
    port: &PortView,
) -> Explanation {
    let Applied { model, compiled, revision, .. } = applied;
    let packet = Packet { protocol: port.key.protocol, number: port.target_port };
    let owner = port.owner.clone().unwrap_or(Owner::External);
    let question = Question {
        from: Party::Name(from.owner.clone()),
        to: Party::Name(owner.clone()),
        packets: vec![packet],
    };
    let told = explain_identities(model, compiled, &question, (source, port.identity), unix_now());
    let mut explanation = of_file(asked, &told);
    let called = Packet { protocol: port.key.protocol, number: port.key.port };
    if port.owner.is_none() {
        // Line 1, as everything that claims what nobody knows.
        let verdict = if compiled.audit { Verdict::Audited } else { Verdict::Denied };
        explanation.why = "but where that is, is not certain, so it is closed".into();
        explanation.reason = Reason::UnknownDestination.as_str().into();
        explanation.verdict = verdict.as_str().into();
        explanation.no_rule();
        explanation.line = 1;
    }
    explanation.why = format!(
        "`{called}` of this host is published for `{}` (its {packet}): {}",
        port.container, explanation.why
    );
    explanation.published = format!("{} {packet}", port.container);
    explanation.source = from.owner.to_string();
    explanation.destination = port.owner.as_ref().map_or_else(|| "unknown".into(), ToString::to_string);
    explanation.source_identity = Some(source.0);
    explanation.destination_identity = Some(port.identity.0);
    explanation.revision = *revision;
    explanation.docker = binding(&state.snapshot, port);
    let endpoints = state.endpoints.iter().filter(|e| e.number == port.number).collect();
    let closed = state.closed.iter().find(|c| c.what == port.container);
    let to = End { owner, addresses: Vec::new(), identity: port.identity, endpoints, unknown: false, closed };
    let not_enforced = not_enforced(state, model, from, &to);
    explanation.enforced = Some(not_enforced.is_none());
    explanation.not_enforced = not_enforced.unwrap_or_default();
    explanation
}
