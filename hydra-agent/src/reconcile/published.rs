//! Published ports: their rows, where their clients are met, and what `hydractl ports` shows of them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{self, LinkKind, PublishKey};
use hydra_common::verdict::Hook;

use crate::desired::{Link, Publish};
use crate::inventory::snapshot::{LinkType, Snapshot};
use crate::placement::{Placement, PortKey, PublishedPort, leads_outside};
use crate::policy::ports::Packet;
use crate::policy::rows::{Compiled, Owner};
use crate::published::{NotEnforced, PortView};
use crate::settings::Uplinks;

/// The rows. A port of which nobody knows where it leads has nobody's identity, which denies.
pub(super) fn rows(
    compiled: &Compiled,
    placement: &Placement,
    declared: &BTreeSet<usize>,
) -> BTreeMap<PublishKey, Publish> {
    let row = |(key, port): (&PortKey, &PublishedPort)| {
        let row = Publish {
            identity: identity(compiled, port),
            container: container(placement, port, |stack| declared.contains(&stack)),
            port: port.target_port,
            flags: if port.proxied { tables::Publish::PROXIED } else { 0 },
        };
        let key = PublishKey {
            address: Address::from(key.address),
            port: key.port.to_be_bytes(),
            protocol: key.protocol,
            ..PublishKey::default()
        };
        (key, row)
    };
    placement.published.iter().map(row).collect()
}

fn identity(compiled: &Compiled, port: &PublishedPort) -> Identity {
    let known = port.owner.as_ref().and_then(|owner| compiled.identity(owner, port.target));
    known.unwrap_or(Identity::UNKNOWN)
}

fn container(placement: &Placement, port: &PublishedPort, counts: impl Fn(usize) -> bool) -> Container {
    let stack = port.stack.filter(|s| counts(*s)).and_then(|s| placement.stacks.get(s));
    stack.map_or(Container::NONE, |s| s.container)
}

/// Where clients of published ports come in: interfaces to the outside, as far as the settings say, and bridges of networks that
/// the policy does not name. Of a bridge that leads outside it is the ports: with `bridge-nf-call-iptables` the bridge's own
/// ingress comes after Docker's address translation, and a packet must not be met twice.
pub(super) fn hooks(
    links: &BTreeMap<u32, Link>,
    snapshot: &Snapshot,
    uplinks: &Uplinks,
) -> BTreeSet<(u32, Hook)> {
    let mut hooks = BTreeSet::new();
    for (index, row) in links {
        let place = place(row.kind, *index, snapshot);
        if place == Place::Unmanaged || (place == Place::Uplink && covers(uplinks, snapshot, *index)) {
            hooks.insert((*index, Hook::UplinkIn));
        }
    }
    hooks
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The outside comes in here.
    Uplink,
    /// The outside comes in here without Ethernet headers (a tunnel), which the program could not read.
    Bare,
    /// Containers that the policy does not name come in here.
    Unmanaged,
    /// Nobody does, or whoever does is met elsewhere.
    Elsewhere,
}

fn place(kind: LinkKind, index: u32, snapshot: &Snapshot) -> Place {
    let Some(link) = snapshot.links.get(&index) else { return Place::Elsewhere };
    // About to be moved to another namespace, most often, and the program would go with it.
    if link.kind == LinkType::Veth && !link.peer_elsewhere {
        return Place::Elsewhere;
    }
    let on_way_out = link.master.is_some_and(|m| leads_outside(snapshot, m));
    match kind {
        LinkKind::Uplink if link.kind == LinkType::Bridge => Place::Elsewhere,
        LinkKind::Uplink if link.mac == Mac::ZERO => Place::Bare,
        LinkKind::Uplink => Place::Uplink,
        LinkKind::Unmanaged if on_way_out => Place::Uplink,
        LinkKind::Unmanaged if link.master.is_none() => Place::Unmanaged,
        LinkKind::Unmanaged | LinkKind::Unknown | LinkKind::Port | LinkKind::Bridge => Place::Elsewhere,
    }
}

/// A bridge that is named means its ports.
fn covers(uplinks: &Uplinks, snapshot: &Snapshot, index: u32) -> bool {
    let name = |index: u32| snapshot.links.get(&index).map(|l| l.name.as_str());
    match uplinks {
        Uplinks::Auto => true,
        Uplinks::None => false,
        Uplinks::Named(names) => {
            let master = snapshot.links.get(&index).and_then(|l| l.master);
            [Some(index), master].into_iter().flatten().filter_map(name).any(|name| names.contains(name))
        }
    }
}

/// What is left open: where an uplink has no program, whoever comes by docker-proxy is not judged. Anybody else's packets are
/// judged at the container's port.
pub fn left_out(
    links: &BTreeMap<u32, Link>,
    placement: &Placement,
    snapshot: &Snapshot,
    uplinks: &Uplinks,
) -> Vec<NotEnforced> {
    let proxied = placement.published.iter().find(|(key, port)| {
        port.proxied && !key.address.is_loopback() && port.owner.as_ref().is_some_and(Owner::declared)
    });
    let Some((key, port)) = proxied else { return Vec::new() };
    let packet = Packet { protocol: key.protocol, number: key.port };
    let why = |index: u32, kind: LinkKind| match place(kind, index, snapshot) {
        Place::Uplink if !covers(uplinks, snapshot, index) => Some("the setting `uplinks` leaves it out"),
        Place::Bare => Some("it carries no Ethernet frames"),
        Place::Uplink | Place::Unmanaged | Place::Elsewhere => None,
    };
    let out = links.iter().filter_map(|(index, row)| {
        Some((snapshot.links.get(index).filter(|l| l.up)?, why(*index, row.kind)?))
    });
    out.map(|(link, why)| NotEnforced {
        what: link.name.clone(),
        why: format!(
            "{why}: who reaches `{}` by docker-proxy there ({} {packet}) is not judged",
            port.container.escape_debug(),
            key.address
        ),
    })
    .collect()
}

/// The rows of `hydractl ports`, before anybody asks who can reach them.
pub fn views(compiled: &Compiled, placement: &Placement) -> Vec<PortView> {
    let view = |(key, port): (&PortKey, &PublishedPort)| PortView {
        key: *key,
        container: port.container.clone(),
        number: container(placement, port, |_| true),
        owner: port.owner.clone(),
        network: port.network.clone(),
        target: port.target,
        target_port: port.target_port,
        identity: identity(compiled, port),
        proxied: port.proxied,
    };
    placement.published.iter().map(view).collect()
}
