//! What Docker's own layers would do with a flow, from the inventory and what is known of the engine's versions. Sentences, no
//! verdicts: hydra does not rest on them.

use std::collections::BTreeSet;

use crate::inventory::snapshot::{DockerState, Snapshot, at_least};
use crate::published::PortView;

/// One end, as far as Docker has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DockerEnd {
    /// Containers on these networks; empty where none is known.
    Networks(BTreeSet<String>),
    /// This machine.
    Host,
    /// Anywhere else.
    Outside,
}

/// The sentence, without a final period.
pub(super) fn sentence(
    snapshot: &Snapshot,
    (source, from): (&str, &DockerEnd),
    (destination, to): (&str, &DockerEnd),
    passes: bool,
) -> String {
    let version = match &snapshot.docker {
        DockerState::Off => return "there is no Docker here".into(),
        DockerState::Down { .. } => {
            return "Docker does not answer now, so what it would do is not known".into();
        }
        DockerState::Up { version } => version,
    };
    match (from, to) {
        (DockerEnd::Networks(from), DockerEnd::Networks(to)) => {
            between(snapshot, version, (source, from), (destination, to), passes)
        }
        (DockerEnd::Host, DockerEnd::Networks(_)) => "Docker passes packets of this host".into(),
        (DockerEnd::Networks(_), DockerEnd::Host) => {
            "Docker passes packets to this host, from internal networks too".into()
        }
        (DockerEnd::Outside, DockerEnd::Networks(_)) => {
            "Docker lets packets from outside in by published ports".into()
        }
        (DockerEnd::Networks(from), DockerEnd::Outside) if only_internal(snapshot, from) => {
            format!("`{source}` is on internal networks alone: Docker gives it no way out")
        }
        (DockerEnd::Networks(_), DockerEnd::Outside) => {
            "Docker passes it and puts the host's address in the place of the container's".into()
        }
        (DockerEnd::Host | DockerEnd::Outside, DockerEnd::Host | DockerEnd::Outside) => {
            "Docker has nothing to do with it".into()
        }
    }
}

/// What Docker's own rules would do with a published port: who gets through, and as whom. Measured on 20.10.24, 26.1.5 and 28.5.2.
pub(in crate::api) fn binding(snapshot: &Snapshot, port: &PortView) -> String {
    let version = match &snapshot.docker {
        DockerState::Off => return "there is no Docker here".into(),
        DockerState::Down { .. } => {
            return "Docker does not answer now, so what it would do is not known".into();
        }
        DockerState::Up { version } => version,
    };
    let old = !at_least(version, 28, 0);
    let address = port.key.address;
    if address.is_loopback() {
        let neighbour = if old && address.is_ipv4() {
            ", and neighbours on the LAN that set a route to the container"
        } else {
            ""
        };
        return format!("Docker lets only this host in{neighbour}");
    }
    let everybody = if address.is_unspecified() {
        "Docker lets everybody in".to_owned()
    } else {
        format!("Docker lets everybody in who reaches {address}")
    };
    let direct = snapshot.networks.get(&port.network).is_some_and(|n| n.localnet);
    let containers = if direct {
        "containers of other networks excepted (it runs no docker-proxy)"
    } else {
        "containers of internal networks excepted"
    };
    let hidden = match (port.proxied, direct) {
        (true, false) => "; docker-proxy carries it, so the container sees this host call",
        (true, true) => "; but without docker-proxy nothing leads on from there",
        (false, _) => "",
    };
    format!("{everybody}, {containers}{hidden}")
}

fn between(
    snapshot: &Snapshot,
    version: &str,
    (source, from): (&str, &BTreeSet<String>),
    (destination, to): (&str, &BTreeSet<String>),
    passes: bool,
) -> String {
    for (name, networks) in [(source, from), (destination, to)] {
        if networks.is_empty() {
            return format!("no Docker network of `{name}` is known");
        }
    }
    if let Some(network) = from.intersection(to).next() {
        return format!("both are on `{network}`: Docker passes it");
    }
    // Measured on 20.10.24, 26.1.5 and 28.5.2.
    let place = if at_least(version, 28, 0) { "raw PREROUTING" } else { "DOCKER-ISOLATION" };
    if !passes {
        return format!(
            "they share no network: Docker {version} drops it too, in {place}, unless it goes by a published port"
        );
    }
    let mut text = format!(
        "they share no network: Docker {version} would drop it, in {place}; hydra forwards it from the port, before that"
    );
    for (name, networks) in [(source, from), (destination, to)] {
        if at_least(version, 26, 1) && only_internal(snapshot, networks) {
            text.push_str("; `");
            text.push_str(name);
            text.push_str("` is on internal networks alone and has no route, so the agent gives it one");
        }
    }
    text
}

fn only_internal(snapshot: &Snapshot, networks: &BTreeSet<String>) -> bool {
    !networks.is_empty() && networks.iter().all(|n| snapshot.networks.get(n).is_some_and(|n| n.internal))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use hydra_common::id::{Container, Identity};

    use super::*;
    use crate::inventory::snapshot::Network;
    use crate::placement::PortKey;

    fn snapshot(docker: DockerState) -> Snapshot {
        let network = |internal| Network {
            id: "id".into(),
            driver: "bridge".into(),
            bridge: None,
            subnets: Vec::new(),
            gateways: Vec::new(),
            internal,
            localnet: false,
        };
        let networks = [("apps", network(false)), ("ai", network(false)), ("db", network(true))]
            .map(|(n, v)| (n.into(), v));
        Snapshot { docker, networks: networks.into(), ..Snapshot::default() }
    }

    fn on(networks: &[&str]) -> DockerEnd {
        DockerEnd::Networks(networks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_pair_has_its_sentence() {
        let mut said = String::new();
        for version in ["20.10.24", "26.1.5", "28.5.2"] {
            let world = snapshot(DockerState::Up { version: version.into() });
            for (from, to, passes) in [
                (on(&["apps", "ai"]), on(&["ai"]), true),
                (on(&["apps"]), on(&["ai"]), true),
                (on(&["apps"]), on(&["ai"]), false),
                (on(&["apps"]), on(&["db"]), true),
            ] {
                writeln!(said, "{}", sentence(&world, ("web", &from), ("postgres", &to), passes)).unwrap();
            }
        }
        let world = snapshot(DockerState::Up { version: "28.5.2".into() });
        for (from, to) in [
            (DockerEnd::Host, on(&["db"])),
            (on(&["db"]), DockerEnd::Host),
            (DockerEnd::Outside, on(&["db"])),
            (on(&["db"]), DockerEnd::Outside),
            (on(&["apps"]), DockerEnd::Outside),
            (DockerEnd::Outside, DockerEnd::Host),
            (on(&[]), on(&["apps"])),
        ] {
            writeln!(said, "{}", sentence(&world, ("web", &from), ("postgres", &to), true)).unwrap();
        }
        for docker in [DockerState::Off, DockerState::Down { error: "refused".into() }] {
            writeln!(said, "{}", sentence(&snapshot(docker), ("a", &on(&["ai"])), ("b", &on(&["ai"])), true))
                .unwrap();
        }
        insta::assert_snapshot!(said);
    }

    #[test]
    fn every_binding_has_its_sentence() {
        let mut said = String::new();
        for (version, localnet) in [("20.10.24", false), ("28.5.2", false), ("28.5.2", true)] {
            let mut world = snapshot(DockerState::Up { version: version.into() });
            world.networks.get_mut("apps").unwrap().localnet = localnet;
            for (address, proxied) in
                [("0.0.0.0", false), ("::", true), ("198.51.100.1", false), ("127.0.0.1", false)]
            {
                let port = PortView {
                    key: PortKey { address: address.parse().unwrap(), protocol: 6, port: 8080 },
                    container: "web".into(),
                    number: Container(1),
                    owner: None,
                    network: "apps".into(),
                    target: None,
                    target_port: 80,
                    identity: Identity::UNKNOWN,
                    proxied,
                };
                writeln!(said, "{version} {address}: {}", binding(&world, &port)).unwrap();
            }
        }
        insta::assert_snapshot!(said);
    }
}
