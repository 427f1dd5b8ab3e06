//! Who FROM and TO are, in the world as the agent sees it: names of the policy, living containers, addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hydra_common::id::Identity;
use hydra_common::tables::PrefixRow;

use super::docker::DockerEnd;
use crate::api::extract::Refusal;
use crate::api::read::no_policy;
use crate::inventory::snapshot::Stack;
use crate::policy::model::{Model, Party};
use crate::policy::nearest;
use crate::policy::rows::{Compiled, Owner};
use crate::published::{Applied, EndpointView, Published, Remark};

/// One end of a question.
pub(in crate::api) struct End<'s> {
    /// Whose.
    pub owner: Owner,
    /// The addresses that it may have, each with its number; a name has none.
    pub addresses: Vec<(IpAddr, Identity)>,
    /// The number of the name, where it is one.
    pub identity: Identity,
    /// What is here of it.
    pub endpoints: Vec<&'s EndpointView>,
    /// It is an address in a network of a tier that no endpoint has.
    pub unknown: bool,
    /// Why its ports are closed, where they are.
    pub closed: Option<&'s Remark>,
}

/// The name by which rows know whom a word means: a tier, service or container, here or only in the policy.
pub(in crate::api) fn named(state: &Published, text: &str) -> Result<String, Refusal> {
    let stack = state.snapshot.stacks.iter().find(|s| s.members.iter().any(|m| m == text));
    if let Some(stack) = stack {
        return Ok(stack.name.clone());
    }
    if here(state).any(|name| name == text) {
        return Ok(text.to_owned());
    }
    let Some(applied) = state.applied.as_deref() else {
        return Err(no_policy());
    };
    match party(state, &applied.model, text)? {
        // A container that the policy names and that is not here has no rows, and may have some soon.
        Party::Name(_) if applied.model.owner_of_container(text).is_some() => Ok(text.to_owned()),
        Party::Name(owner) => Ok(owner.to_string()),
        Party::Address(ip) => Ok(ip.to_string()),
    }
}

/// Whom the policy's text means by a word. A name that neither it nor the host knows is refused, with the name that was probably
/// meant.
fn party(state: &Published, model: &Model, text: &str) -> Result<Party, Refusal> {
    model.party(text).map_err(|(message, hint)| {
        let hint = hint.unwrap_or_else(|| match nearest(text, here(state)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "`hydractl endpoints` lists containers, `hydractl policy show` tiers and services".into(),
        });
        Refusal::bad(message, hint)
    })
}

/// Containers of this host.
fn here(state: &Published) -> impl Iterator<Item = &str> {
    let living = state.endpoints.iter().map(|e| e.container.as_str());
    let stacks = state.snapshot.stacks.iter();
    let members = stacks.flat_map(|s| std::iter::once(&s.name).chain(&s.members)).map(String::as_str);
    let others = state.closed.iter().map(|c| &c.what).chain(&state.snapshot.host_network);
    living.chain(members).chain(others.map(String::as_str))
}

impl<'s> End<'s> {
    /// Finds out.
    pub(in crate::api) fn find(state: &'s Published, applied: &Applied, text: &str) -> Result<Self, Refusal> {
        let Applied { model, compiled, .. } = applied;
        if let Some(owner) = model.owner(text) {
            return Ok(Self::name(state, compiled, owner));
        }
        // Containers that share a stack are what the stack is.
        let stack =
            state.snapshot.stacks.iter().find(|s| s.name == text || s.members.iter().any(|m| m == text));
        let name = stack.map_or(text, |s| s.name.as_str());
        let of_container = |e: &&EndpointView| e.container == name;
        let found: Vec<&EndpointView> = state.endpoints.iter().filter(of_container).collect();
        if let Some(end) = Self::living(state, &found).or_else(|| Self::closed(state, name)) {
            return Ok(end);
        }
        match party(state, model, text)? {
            Party::Name(owner) => Ok(Self::name(state, compiled, owner)),
            Party::Address(ip) => Ok(Self::address(state, compiled, ip)),
        }
    }

    /// A tier, service or reserved tier: an endpoint of that owner, whichever.
    fn name(state: &'s Published, compiled: &Compiled, owner: Owner) -> Self {
        let identity = compiled.identity(&owner, None).unwrap_or(Identity::UNKNOWN);
        let endpoints = state.endpoints.iter().filter(|e| e.owner == owner).collect();
        Self { owner, addresses: Vec::new(), identity, endpoints, unknown: false, closed: None }
    }

    /// A container that is here.
    fn living(state: &'s Published, found: &[&'s EndpointView]) -> Option<Self> {
        let first = *found.first()?;
        let addresses = found.iter().filter_map(|e| Some((e.address.parse().ok()?, e.identity))).collect();
        // Its other addresses say on which networks it is.
        let endpoints = state.endpoints.iter().filter(|e| e.number == first.number).collect();
        Some(Self {
            owner: first.owner.clone(),
            addresses,
            identity: first.identity,
            endpoints,
            unknown: false,
            closed: None,
        })
    }

    /// A container whose ports are closed: to the kernel it is nobody.
    fn closed(state: &'s Published, name: &str) -> Option<Self> {
        let closed = state.closed.iter().find(|c| c.what == name)?;
        Some(Self {
            owner: Owner::Unmanaged,
            addresses: Vec::new(),
            identity: Identity::UNKNOWN,
            endpoints: Vec::new(),
            unknown: false,
            closed: Some(closed),
        })
    }

    fn address(state: &'s Published, compiled: &Compiled, ip: IpAddr) -> Self {
        let text = ip.to_string();
        let found: Vec<&EndpointView> = state.endpoints.iter().filter(|e| e.address == text).collect();
        if let Some(end) = Self::living(state, &found) {
            return end;
        }
        let has = |s: &&Stack| s.attachments.iter().any(|a| a.addresses.contains(&ip));
        let stack = state.snapshot.stacks.iter().find(has);
        if let Some(end) = stack.and_then(|s| Self::closed(state, &s.name)) {
            return end;
        }
        let ours = state.snapshot.links.values().any(|l| l.addresses.iter().any(|a| a.addr() == ip));
        let (identity, unknown) = if ours || ip.is_loopback() {
            (compiled.identity(&Owner::Host, Some(ip)).unwrap_or(Identity::HOST), false)
        } else {
            let flags = compiled
                .prefixes
                .iter()
                .filter(|(net, _)| net.contains(&ip))
                .max_by_key(|(net, _)| net.prefix_len())
                .map_or(0, |(_, row)| row.flags);
            let closed = flags & (PrefixRow::INTERIOR | PrefixRow::OPEN) == PrefixRow::INTERIOR;
            (compiled.identity_of_address(ip), closed)
        };
        let owner =
            compiled.identities.get(&identity).map_or(Owner::External, |(class, _)| class.owner.clone());
        Self {
            owner,
            addresses: vec![(ip, identity)],
            identity,
            endpoints: Vec::new(),
            unknown,
            closed: None,
        }
    }

    /// What Docker has to do with it.
    pub(super) fn docker(&self, model: &Model) -> DockerEnd {
        match &self.owner {
            Owner::Host => return DockerEnd::Host,
            Owner::External => return DockerEnd::Outside,
            Owner::Unmanaged | Owner::Tier(_) | Owner::Service { .. } | Owner::Shared(_) => {}
        }
        let here: BTreeSet<String> =
            self.endpoints.iter().map(|e| e.network.clone()).filter(|n| !n.is_empty()).collect();
        if !here.is_empty() {
            return DockerEnd::Networks(here);
        }
        match model.tier(self.owner.tier()) {
            Some(tier) if !tier.is_here() => DockerEnd::Outside,
            // What it has is on the host's own stack.
            Some(tier) if !tier.is_internal() => DockerEnd::Host,
            Some(tier) => DockerEnd::Networks(tier.networks.iter().cloned().collect()),
            None => DockerEnd::Networks(BTreeSet::new()),
        }
    }

    /// Whether the kernel of this host has, or would have, a port or a process of it to judge at.
    pub(super) fn is_here(&self, model: &Model) -> bool {
        let declared = model.tier(self.owner.tier()).is_some_and(crate::policy::model::Tier::is_here);
        self.closed.is_some()
            || declared && (!self.endpoints.is_empty() || self.addresses.is_empty() || self.unknown)
    }

    /// Names under which something about it may be told as not enforced.
    pub(super) fn names(&self, model: &Model) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = [self.owner.to_string(), self.owner.tier().to_owned()].into();
        for e in &self.endpoints {
            names.extend([&e.container, &e.port, &e.network, &e.bridge].map(Clone::clone));
        }
        if let Some(tier) = model.tier(self.owner.tier()) {
            names.extend(tier.networks.iter().chain(&tier.bridges).cloned());
            names.extend(tier.units.iter().map(|unit| format!("unit {unit}")));
        }
        names.remove("");
        names
    }
}
