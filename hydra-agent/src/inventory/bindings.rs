//! Published ports: what Docker says of them, and to which address of a container each leads. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bollard::models::{ContainerSummary, PortMap};
use hydra_common::track::protocol;
use serde::{Deserialize, Serialize};

use super::docker_view::{Container, DockerNetwork, World};
use super::snapshot::{Binding, at_least};

/// A port of the host that Docker has bound for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bound {
    /// The host's address; the unspecified one of its family for all of them.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// On the host.
    pub port: u16,
    /// In the container.
    pub target_port: u16,
}

/// As an inspection tells them. What is exposed and not bound is left out.
pub fn inspected(ports: &PortMap) -> BTreeSet<Bound> {
    let mut all = BTreeSet::new();
    for (target, bindings) in ports {
        let (port, kind) = target.split_once('/').unwrap_or((target, "tcp"));
        let (Ok(target_port), Some(protocol)) = (port.parse(), number(kind)) else { continue };
        for binding in bindings.iter().flatten() {
            let port = binding.host_port.as_deref().and_then(|p| p.parse().ok());
            let Some(port) = port.filter(|p| *p != 0) else { continue };
            for address in addresses(binding.host_ip.as_deref()) {
                all.insert(Bound { address, protocol, port, target_port });
            }
        }
    }
    all
}

/// As the list of containers tells them.
pub fn listed(summary: &ContainerSummary) -> BTreeSet<Bound> {
    let ports = summary.ports.iter().flatten().filter_map(|p| {
        let kind = p.typ.map_or_else(|| "tcp".to_owned(), |t| t.to_string());
        Some((p.ip.as_deref(), number(&kind)?, p.public_port?, p.private_port))
    });
    ports
        .flat_map(|(ip, protocol, port, target_port)| {
            addresses(ip).into_iter().map(move |address| Bound { address, protocol, port, target_port })
        })
        .collect()
}

fn number(kind: &str) -> Option<u8> {
    match kind {
        "tcp" | "" => Some(protocol::TCP),
        "udp" => Some(protocol::UDP),
        "sctp" => Some(protocol::SCTP),
        _ => None,
    }
}

/// A binding without an address, or with one that does not read as one, is on all of both families: rather a row too many.
fn addresses(text: Option<&str>) -> Vec<IpAddr> {
    let text = text.unwrap_or_default().trim_matches(['[', ']']);
    match text.parse::<IpAddr>() {
        Ok(ip) => vec![ip.to_canonical()],
        Err(_) => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// Every published port of the containers that have a stack of their own, in order. `stacks`: the key of each container's, by id.
pub fn bindings(world: &World, stacks: &BTreeMap<String, String>) -> Vec<Binding> {
    let mut all: Vec<Binding> = world
        .containers
        .values()
        .filter(|c| c.mode != "host")
        .flat_map(|container| {
            container.bound.iter().map(|bound| {
                let ipv4 = bound.address.is_ipv4();
                let (network, target) = target(container, &world.networks, ipv4);
                // Before 27 Docker had no rules for IPv6, unless an experiment was switched on.
                let proxied = target.is_some_and(|t| t.is_ipv4() != ipv4)
                    || (!ipv4 && !at_least(&world.version, 27, 0));
                Binding {
                    address: bound.address,
                    protocol: bound.protocol,
                    port: bound.port,
                    container: container.name.clone(),
                    stack: stacks.get(&container.id).cloned(),
                    network,
                    target,
                    target_port: bound.target_port,
                    proxied,
                }
            })
        })
        .collect();
    all.sort();
    all
}

/// Where a port of this family leads: the network and the container's address. As libnetwork chooses the endpoint that has the
/// default route, before and since 28 (`Endpoint.Less` in `libnetwork/sandbox.go`): the highest priority, not internal, gateways
/// of both families before those of one, then the first name. Without an address of the family there docker-proxy leads to the
/// other one.
fn target(
    container: &Container,
    networks: &BTreeMap<String, DockerNetwork>,
    ipv4: bool,
) -> (String, Option<IpAddr>) {
    let mut candidates: Vec<_> = container
        .endpoints
        .iter()
        .filter(|(_, endpoint)| !endpoint.addresses.is_empty())
        .map(|(name, endpoint)| {
            let internal = networks.get(name).is_some_and(|n| n.internal);
            let families: BTreeSet<bool> = endpoint.addresses.iter().map(IpAddr::is_ipv4).collect();
            (
                (std::cmp::Reverse(endpoint.priority), internal, std::cmp::Reverse(families.len()), name),
                endpoint,
            )
        })
        .collect();
    candidates.sort_unstable_by_key(|(rank, _)| *rank);
    let of = |family: bool| {
        candidates.iter().find_map(|((.., name), endpoint)| {
            let address = endpoint.addresses.iter().find(|a| a.is_ipv4() == family)?;
            Some(((*name).clone(), Some(*address)))
        })
    };
    of(ipv4).or_else(|| of(!ipv4)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::docker_view::DockerEndpoint;
    use super::super::namespaces::Process;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn bound(address: &str, protocol: u8, port: u16, target_port: u16) -> Bound {
        Bound { address: ip(address), protocol, port, target_port }
    }

    #[test]
    fn an_inspection_s_ports_are_read_with_what_only_exposes_left_out() {
        // As 20.10.24 and 28.5.2 answer.
        let ports: PortMap = serde_json::from_value(serde_json::json!({
            "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
            "53/udp": [{"HostIp": "198.51.100.1", "HostPort": "53"}],
            "9003/sctp": [{"HostIp": "127.0.0.1", "HostPort": "9003"}],
            "443/tcp": null,
            "25/tcp": [{"HostIp": "", "HostPort": "2525"}],
            "26/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}]
        }))
        .unwrap();
        assert_eq!(
            inspected(&ports),
            [
                bound("0.0.0.0", 6, 8080, 80),
                bound("::", 6, 8080, 80),
                bound("198.51.100.1", 17, 53, 53),
                bound("127.0.0.1", 132, 9003, 9003),
                bound("0.0.0.0", 6, 2525, 25),
                bound("::", 6, 2525, 25),
            ]
            .into()
        );
    }

    #[test]
    fn the_list_tells_the_same() {
        let summary: ContainerSummary = serde_json::from_value(serde_json::json!({
            "Ports": [
                {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"IP": "198.51.100.1", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
                {"PrivatePort": 443, "Type": "tcp"}
            ]
        }))
        .unwrap();
        assert_eq!(
            listed(&summary),
            [bound("0.0.0.0", 6, 8080, 80), bound("::", 6, 8080, 80), bound("198.51.100.1", 17, 53, 53)]
                .into()
        );
    }

    fn network(internal: bool) -> DockerNetwork {
        DockerNetwork {
            id: "n".into(),
            driver: "bridge".into(),
            bridge: None,
            subnets: Vec::new(),
            gateways: Vec::new(),
            internal,
        }
    }

    fn container(mode: &str, endpoints: &[(&str, i64, &[&str])]) -> Container {
        Container {
            id: "c".into(),
            name: "web".into(),
            labels: BTreeMap::new(),
            process: Process { pid: 7, start: 7 },
            started: String::new(),
            mode: mode.into(),
            endpoints: endpoints
                .iter()
                .map(|(name, priority, addresses)| {
                    let addresses = addresses.iter().map(|a| ip(a)).collect();
                    let endpoint = DockerEndpoint { addresses, priority: *priority, ..Default::default() };
                    ((*name).to_owned(), endpoint)
                })
                .collect(),
            bound: [bound("0.0.0.0", 6, 8080, 80), bound("::", 6, 8080, 80)].into(),
        }
    }

    #[test]
    fn a_port_leads_to_the_endpoint_that_has_the_default_route() {
        let networks = [("a-internal", true), ("back", false), ("front", false)]
            .map(|(name, internal)| (name.to_owned(), network(internal)));
        let networks: BTreeMap<String, DockerNetwork> = networks.into();
        for (what, endpoints, v4, v6) in [
            (
                "the first name that is not internal",
                vec![
                    ("a-internal", 0, vec!["10.0.0.2"]),
                    ("front", 0, vec!["10.2.0.2"]),
                    ("back", 0, vec!["10.1.0.2"]),
                ],
                "10.1.0.2",
                // Nothing has IPv6: docker-proxy leads there.
                "10.1.0.2",
            ),
            (
                "both families before one",
                vec![("back", 0, vec!["10.1.0.2"]), ("front", 0, vec!["10.2.0.2", "fd02::2"])],
                "10.2.0.2",
                "fd02::2",
            ),
            (
                "a priority before everything",
                vec![("back", 0, vec!["10.1.0.2", "fd01::2"]), ("front", 5, vec!["10.2.0.2"])],
                "10.2.0.2",
                "fd01::2",
            ),
            (
                "an internal one where there is no other",
                vec![("a-internal", 0, vec!["10.0.0.2"])],
                "10.0.0.2",
                "10.0.0.2",
            ),
        ] {
            let endpoints: Vec<(&str, i64, &[&str])> =
                endpoints.iter().map(|(n, p, a)| (*n, *p, a.as_slice())).collect();
            let container = container("back", &endpoints);
            assert_eq!(target(&container, &networks, true).1, Some(ip(v4)), "{what}");
            assert_eq!(target(&container, &networks, false).1, Some(ip(v6)), "{what}");
        }
        assert_eq!(target(&container("none", &[]), &networks, true), (String::new(), None));
    }

    #[test]
    fn what_uses_the_host_s_stack_publishes_nothing() {
        let world = |mode: &str| World {
            containers: [("c".to_owned(), container(mode, &[("front", 0, &["10.2.0.2"])]))].into(),
            ..World::default()
        };
        assert_eq!(bindings(&world("host"), &BTreeMap::new()), []);
        let stacks = BTreeMap::from([("c".to_owned(), "5.6/c".to_owned())]);
        let all = bindings(&world("front"), &stacks);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].stack.as_deref(), all[0].network.as_str()), (Some("5.6/c"), "front"));
        // The container has no IPv6.
        assert_eq!(all.iter().map(|b| b.proxied).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn engines_before_27_lead_ipv6_through_docker_proxy() {
        let world = |version: &str| World {
            version: version.to_owned(),
            containers: [("c".to_owned(), container("front", &[("front", 0, &["10.2.0.2", "fd02::2"])]))]
                .into(),
            ..World::default()
        };
        let proxied = |version| -> Vec<bool> {
            bindings(&world(version), &BTreeMap::new()).iter().map(|b| b.proxied).collect()
        };
        assert_eq!(proxied("20.10.24"), [false, true]);
        assert_eq!(proxied("28.5.2"), [false, false]);
    }
}
