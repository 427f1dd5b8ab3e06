//! Who is behind each published port. What is not certain is nobody's, and thus closed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Placement;
use crate::inventory::snapshot::{Binding, Snapshot};
use crate::policy::ports::Packet;
use crate::policy::rows::Owner;
use crate::published::NotEnforced;

/// What a packet to a published port is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// An address of this host; the unspecified one of its family for all of them.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The host's port.
    pub port: u16,
}

/// A published port with who is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// The container's name.
    pub container: String,
    /// Index into [`Placement::stacks`].
    pub stack: Option<usize>,
    /// Whose the container is there; none where that is not certain.
    pub owner: Option<Owner>,
    /// The network that the way goes by, or empty.
    pub network: String,
    /// The container's address.
    pub target: Option<IpAddr>,
    /// The container's port.
    pub target_port: u16,
    /// A process of this host carries the bytes.
    pub proxied: bool,
}

/// Places every published port; the addresses are placed already.
pub(super) fn place(snapshot: &Snapshot, out: &mut Placement) {
    let mut twice = BTreeSet::new();
    let declared = out.declared_stacks();
    for binding in &snapshot.bindings {
        let Binding { address, protocol, port, container, stack: key, network, target, target_port, proxied } =
            binding;
        let stack = key.as_ref().and_then(|key| out.stacks.iter().position(|s| s.key == *key));
        let home = target.and_then(|t| out.addresses.get(&t)).filter(|home| Some(home.stack) == stack);
        let named = || stack.and_then(|index| out.stacks[index].owner.clone());
        // A network that is no bridge of this host (an overlay, say) tells no address here; of a stack that no tier has, none is needed.
        let nobody_s = || stack.filter(|index| !declared.contains(index)).map(|_| Owner::Unmanaged);
        let owner = home.map(|home| home.owner.clone()).or_else(named).or_else(nobody_s);
        let key = PortKey { address: *address, protocol: *protocol, port: *port };
        let found = PublishedPort {
            container: container.clone(),
            stack,
            owner,
            network: network.clone(),
            target: *target,
            target_port: *target_port,
            proxied: *proxied,
        };
        if out.published.get(&key).is_some_and(|first| *first != found) {
            twice.insert(key);
        } else {
            out.published.insert(key, found);
        }
    }
    // The engine binds a port once: of two answers one is old, and nobody says which.
    for key in &twice {
        let names: BTreeSet<&str> = snapshot
            .bindings
            .iter()
            .filter(|b| PortKey { address: b.address, protocol: b.protocol, port: b.port } == *key)
            .map(|b| b.container.as_str())
            .collect();
        let names: Vec<String> = names.into_iter().map(|n| format!("`{}`", n.escape_debug())).collect();
        if let Some(port) = out.published.get_mut(key) {
            (port.owner, port.stack) = (None, None);
        }
        let why = format!("Docker says that it is published for {}: it is closed", names.join(" and "));
        out.not_enforced.push(NotEnforced { what: key.to_string(), why });
    }
    let unknown = out.published.iter().filter(|(key, port)| port.owner.is_none() && !twice.contains(key));
    let unknown = unknown.map(|(key, port)| NotEnforced {
        what: key.to_string(),
        why: format!(
            "it is published for `{}`, whose address there is not known: it is closed",
            port.container.escape_debug()
        ),
    });
    let unknown: Vec<NotEnforced> = unknown.collect();
    out.not_enforced.extend(unknown);
}

impl std::fmt::Display for PortKey {
    /// `published 0.0.0.0 tcp/8080`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "published {} {}", self.address, Packet { protocol: self.protocol, number: self.port })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Scene, ip};
    use super::*;

    fn publish(s: &mut Scene, container: &str, address: &str, port: u16, target: Option<&str>) {
        s.snapshot.bindings.push(Binding {
            address: ip(address),
            protocol: 6,
            port,
            container: container.into(),
            stack: Some(format!("key-{container}")),
            network: "front".into(),
            target: target.map(ip),
            target_port: 80,
            proxied: false,
        });
    }

    fn owner(s: &Scene, address: &str, port: u16) -> Option<String> {
        let key = PortKey { address: ip(address), protocol: 6, port };
        s.place().published[&key].owner.as_ref().map(ToString::to_string)
    }

    #[test]
    fn the_target_address_says_whose_a_published_port_is() {
        let mut s = Scene::usual();
        s.bridge(30, "docker0", ["172.17.0.1/16"]);
        s.network("bridge", 30, ["172.17.0.0/16"]);
        s.container("web", &[(101, 10, "front", &["10.1.0.5"]), (102, 20, "back", &["10.2.0.6"])]);
        s.container("pg", &[(103, 20, "back", &["10.2.0.5"])]);
        s.container("lone", &[(104, 30, "bridge", &["172.17.0.2"])]);
        publish(&mut s, "web", "0.0.0.0", 8080, Some("10.1.0.5"));
        publish(&mut s, "web", "0.0.0.0", 8081, Some("10.2.0.6"));
        publish(&mut s, "pg", "::", 5432, Some("10.2.0.5"));
        publish(&mut s, "lone", "198.51.100.5", 9000, Some("172.17.0.2"));
        assert_eq!(owner(&s, "0.0.0.0", 8080).as_deref(), Some("apps"));
        assert_eq!(owner(&s, "0.0.0.0", 8081).as_deref(), Some("databases"));
        assert_eq!(owner(&s, "::", 5432).as_deref(), Some("databases/postgres"));
        assert_eq!(owner(&s, "198.51.100.5", 9000).as_deref(), Some("unmanaged"));
        assert_eq!(s.place().not_enforced, []);
    }

    #[test]
    fn a_container_that_no_tier_has_is_unmanaged_whatever_its_network_tells() {
        let mut s = Scene::usual();
        s.bridge(30, "docker_gwbridge", ["172.18.0.1/16"]);
        s.network("docker_gwbridge", 30, ["172.18.0.0/16"]);
        s.container("far", &[(101, 30, "docker_gwbridge", &[])]);
        s.container("mixed", &[(102, 30, "docker_gwbridge", &[]), (103, 10, "front", &["10.1.0.5"])]);
        publish(&mut s, "far", "0.0.0.0", 8080, Some("10.9.0.5"));
        publish(&mut s, "mixed", "0.0.0.0", 8081, Some("10.9.0.6"));
        assert_eq!(owner(&s, "0.0.0.0", 8080).as_deref(), Some("unmanaged"));
        assert_eq!(owner(&s, "0.0.0.0", 8081), None, "whose right would it be?");
    }

    #[test]
    fn what_leads_to_nobody_known_is_closed_and_said() {
        let mut s = Scene::usual();
        s.container("web", &[(101, 10, "front", &["10.1.0.5"])]);
        s.container("other", &[(102, 10, "front", &["10.1.0.6"])]);
        // No address, an address that is another's, a stack that is not there.
        publish(&mut s, "web", "0.0.0.0", 1, None);
        publish(&mut s, "web", "0.0.0.0", 2, Some("10.1.0.6"));
        publish(&mut s, "gone", "0.0.0.0", 3, Some("10.1.0.7"));
        for port in 1..=3 {
            assert_eq!(owner(&s, "0.0.0.0", port), None);
        }
        let said: Vec<String> =
            s.place().not_enforced.iter().map(|n| format!("{}: {}", n.what, n.why)).collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_service_s_container_is_the_service_before_its_address_is_known() {
        let mut s = Scene::usual();
        s.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
        publish(&mut s, "pg", "0.0.0.0", 5432, None);
        assert_eq!(owner(&s, "0.0.0.0", 5432).as_deref(), Some("databases/postgres"));
    }

    #[test]
    fn a_port_that_two_containers_have_is_closed_and_said() {
        let mut s = Scene::usual();
        s.container("web", &[(101, 10, "front", &["10.1.0.5"])]);
        s.container("other", &[(102, 10, "front", &["10.1.0.6"])]);
        publish(&mut s, "web", "0.0.0.0", 8080, Some("10.1.0.5"));
        publish(&mut s, "other", "0.0.0.0", 8080, Some("10.1.0.6"));
        assert_eq!(owner(&s, "0.0.0.0", 8080), None);
        let placed = s.place();
        let said: Vec<String> =
            placed.not_enforced.iter().map(|n| format!("{}: {}", n.what, n.why)).collect();
        assert_eq!(
            said,
            [
                "published 0.0.0.0 tcp/8080: Docker says that it is published for `other` and `web`: it is closed"
            ]
        );
    }
}
