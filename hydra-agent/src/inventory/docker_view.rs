//! Docker's words in our shape: pure conversions, so that what an engine leaves out or says differently is dealt with in one place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use bollard::models::{ContainerInspectResponse, ContainerSummary, EndpointSettings, Network as ApiNetwork};
use hydra_common::address::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::bindings::{self, Bound};
use super::namespaces::Process;
use super::snapshot::DockerState;

/// Docker's option for a bridge's interface name.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// What Docker said last, whole. Equal answers are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The engine has answered or failed at least once.
    pub asked: bool,
    /// How the engine answers.
    pub state: DockerState,
    /// What it lists, kept while it does not answer.
    pub world: World,
    /// What could not be read, as sentences.
    pub problems: Vec<String>,
}

/// Networks and running containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// The engine's version, as it said last; empty before that.
    #[serde(default)]
    pub version: String,
    /// By name.
    pub networks: BTreeMap<String, DockerNetwork>,
    /// By id.
    pub containers: BTreeMap<String, Container>,
}

/// A network as Docker describes it; the kernel's side of it is found later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerNetwork {
    /// Docker's id.
    pub id: String,
    /// Its driver.
    pub driver: String,
    /// The interface that it should have, for the bridge driver.
    pub bridge: Option<String>,
    /// Its blocks.
    pub subnets: Vec<IpNet>,
    /// Gateways that Docker names; it does not name all.
    pub gateways: Vec<IpAddr>,
    /// No way out.
    pub internal: bool,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Docker's id.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its first process.
    pub process: Process,
    /// When, as Docker writes it.
    pub started: String,
    /// `bridge`, `host`, `container:ID`, a network's name …
    pub mode: String,
    /// By network name.
    pub endpoints: BTreeMap<String, DockerEndpoint>,
    /// Ports of the host that are bound for it.
    #[serde(default)]
    pub bound: BTreeSet<Bound>,
}

impl Container {
    /// It lives in another container's stack.
    pub fn is_guest(&self) -> bool {
        self.mode.starts_with("container:")
    }
}

/// A container on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerEndpoint {
    /// The network's id.
    pub network: String,
    /// Both families.
    pub addresses: BTreeSet<IpAddr>,
    /// As Docker gave it.
    pub mac: Option<[u8; 6]>,
    /// The higher, the sooner it has the container's default route and published ports.
    #[serde(default)]
    pub priority: i64,
}

impl DockerEndpoint {
    /// The MAC in our type.
    pub fn mac(&self) -> Option<Mac> {
        self.mac.map(Mac)
    }
}

/// Docker's networks by name. Names can be ambiguous (networks have ids); of two the one with the lower id has the name, and the
/// second value says so.
pub fn networks(list: Vec<ApiNetwork>) -> (BTreeMap<String, DockerNetwork>, Vec<String>) {
    let mut sorted: Vec<(String, String, ApiNetwork)> =
        list.into_iter().filter_map(|mut n| Some((n.name.take()?, n.id.take()?, n))).collect();
    sorted.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let (mut networks, mut problems) = (BTreeMap::<String, DockerNetwork>::new(), Vec::new());
    for (name, id, network) in sorted {
        if let Some(first) = networks.get(&name) {
            problems.push(format!(
                "two Docker networks are named `{name}`: `{}` is used, `{}` is not",
                short(&first.id),
                short(&id)
            ));
        } else {
            networks.insert(name, self::network(id, network));
        }
    }
    (networks, problems)
}

fn network(id: String, network: ApiNetwork) -> DockerNetwork {
    let driver = network.driver.unwrap_or_default();
    let bridge = (driver == "bridge").then(|| {
        let named = network.options.as_ref().and_then(|o| o.get(BRIDGE_NAME)).filter(|n| !n.is_empty());
        named.cloned().unwrap_or_else(|| format!("br-{}", short(&id)))
    });
    let blocks = network.ipam.and_then(|i| i.config).unwrap_or_default();
    let mut subnets: Vec<IpNet> =
        blocks.iter().filter_map(|b| b.subnet.as_deref()?.parse::<IpNet>().ok().map(|n| n.trunc())).collect();
    let mut gateways: Vec<IpAddr> = blocks.iter().filter_map(|b| address(b.gateway.as_deref())).collect();
    subnets.sort_unstable();
    subnets.dedup();
    gateways.sort_unstable();
    gateways.dedup();
    DockerNetwork { id, driver, bridge, subnets, gateways, internal: network.internal.unwrap_or_default() }
}

/// What tells from the list alone that a container is on other networks, or has other addresses, than when it was inspected.
pub fn endpoints_listed(summary: &ContainerSummary) -> BTreeMap<String, DockerEndpoint> {
    endpoints(summary.network_settings.as_ref().and_then(|s| s.networks.as_ref()))
}

/// A container from its inspection; `None` if it has no process (not running, or on its way).
pub fn container(
    answer: ContainerInspectResponse,
    process_of: impl FnOnce(u32) -> Option<Process>,
) -> Option<Container> {
    let state = answer.state?;
    let pid = u32::try_from(state.pid?).ok().filter(|pid| *pid != 0)?;
    let process = process_of(pid)?;
    let settings = answer.network_settings.unwrap_or_default();
    Some(Container {
        id: answer.id?,
        name: answer.name?.trim_start_matches('/').to_owned(),
        labels: answer.config.and_then(|c| c.labels).unwrap_or_default().into_iter().collect(),
        process,
        started: state.started_at.unwrap_or_default(),
        mode: answer.host_config.and_then(|h| h.network_mode).unwrap_or_default(),
        endpoints: endpoints(settings.networks.as_ref()),
        bound: settings.ports.as_ref().map(bindings::inspected).unwrap_or_default(),
    })
}

fn endpoints(networks: Option<&HashMap<String, EndpointSettings>>) -> BTreeMap<String, DockerEndpoint> {
    networks.into_iter().flatten().map(|(name, settings)| (name.clone(), endpoint(settings))).collect()
}

fn endpoint(settings: &EndpointSettings) -> DockerEndpoint {
    DockerEndpoint {
        network: settings.network_id.clone().unwrap_or_default(),
        addresses: [settings.ip_address.as_deref(), settings.global_ipv6_address.as_deref()]
            .into_iter()
            .filter_map(address)
            .collect(),
        mac: settings.mac_address.as_deref().and_then(mac),
        priority: settings.gw_priority.unwrap_or_default(),
    }
}

/// An address, with or without a prefix length behind it (engines write gateways both ways), or the empty text for none.
fn address(text: Option<&str>) -> Option<IpAddr> {
    let text = text?;
    let ip: IpAddr = text.split_once('/').map_or(text, |(ip, _)| ip).parse().ok()?;
    (!ip.is_unspecified()).then_some(ip)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0_u8; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (parts.next().is_none() && bytes != [0; 6]).then_some(bytes)
}

/// The first twelve characters of an id, as Docker shows it and names bridges by it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn network_of(json: serde_json::Value) -> DockerNetwork {
        let (networks, problems) = networks(vec![serde_json::from_value(json).unwrap()]);
        assert_eq!(problems, Vec::<String>::new());
        networks.into_values().next().unwrap()
    }

    #[test]
    fn bridge_is_named_by_its_option_or_else_by_its_id() {
        let by_id = network_of(serde_json::json!({"Name": "n", "Id": ID, "Driver": "bridge", "Options": {}}));
        assert_eq!(by_id.bridge.as_deref(), Some("br-0123456789ab"));
        let by_option = network_of(serde_json::json!({
            "Name": "n", "Id": ID, "Driver": "bridge", "Options": {BRIDGE_NAME: "hy0"}
        }));
        assert_eq!(by_option.bridge.as_deref(), Some("hy0"));
        let other = network_of(serde_json::json!({"Name": "n", "Id": ID, "Driver": "macvlan"}));
        assert_eq!(other.bridge, None);
    }

    #[test]
    fn gateways_and_subnets_of_both_families_are_read_however_they_are_written() {
        let network = network_of(serde_json::json!({
            "Name": "n", "Id": ID, "Driver": "bridge", "Internal": true,
            "IPAM": {"Config": [
                {"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1"},
                {"Subnet": "172.30.0.0/24", "Gateway": "172.30.0.1/24"},
                {"Subnet": "172.31.0.0/24", "Gateway": ""},
                {"Subnet": "nonsense"}
            ]}
        }));
        assert!(network.internal);
        let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
        assert_eq!(subnets, ["172.30.0.0/24", "172.31.0.0/24", "fd00:1::/64"]);
        let gateways: Vec<String> = network.gateways.iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["172.30.0.1", "fd00:1::1"]);
    }

    #[test]
    fn of_two_networks_of_one_name_the_first_id_wins_and_it_is_said() {
        let list = [("bb", "n"), ("aa", "n"), ("cc", "m")]
            .map(|(id, name)| serde_json::from_value(serde_json::json!({"Name": name, "Id": id})).unwrap());
        let (networks, problems) = networks(list.into());
        assert_eq!(networks["n"].id, "aa");
        assert_eq!(networks["m"].id, "cc");
        assert_eq!(problems, ["two Docker networks are named `n`: `aa` is used, `bb` is not"]);
    }

    #[test]
    fn a_container_is_read_with_all_its_endpoints() {
        let answer = serde_json::from_value(serde_json::json!({
            "Id": ID, "Name": "/hy-web",
            "State": {"Pid": 42, "StartedAt": "2026-01-01T00:00:00Z"},
            "HostConfig": {"NetworkMode": "front"},
            "Config": {"Labels": {"a": "b"}},
            "NetworkSettings": {"Networks": {
                "front": {"NetworkID": "f", "IPAddress": "172.30.0.2", "GlobalIPv6Address": "fd00::2",
                          "MacAddress": "02:42:ac:1e:00:02"},
                "back": {"NetworkID": "b", "IPAddress": "", "GlobalIPv6Address": "", "MacAddress": "",
                         "GwPriority": 3}
            }, "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}}
        }));
        let container = container(answer.unwrap(), |pid| Some(Process { pid, start: 7 })).unwrap();
        assert_eq!(container.name, "hy-web");
        assert_eq!(container.process, Process { pid: 42, start: 7 });
        assert!(!container.is_guest());
        let front = &container.endpoints["front"];
        assert_eq!(front.mac(), Some(Mac([2, 0x42, 0xac, 0x1e, 0, 2])));
        assert_eq!(front.addresses.len(), 2);
        assert_eq!(
            container.endpoints["back"],
            DockerEndpoint { network: "b".into(), priority: 3, ..Default::default() }
        );
        let wanted = Bound { address: "0.0.0.0".parse().unwrap(), protocol: 6, port: 8080, target_port: 80 };
        assert_eq!(container.bound, [wanted].into());
    }

    #[test]
    fn a_container_without_a_process_is_none() {
        for state in [serde_json::json!({"Pid": 0}), serde_json::json!({}), serde_json::json!({"Pid": -1})] {
            let answer = serde_json::from_value(serde_json::json!({"Id": ID, "Name": "/x", "State": state}));
            assert_eq!(container(answer.unwrap(), |pid| Some(Process { pid, start: 0 })), None);
        }
    }

    #[test]
    fn texts_that_are_no_mac_are_none() {
        for text in ["", "00:00:00:00:00:00", "02:42:ac", "02:42:ac:1e:00:02:03", "02:42:ac:1e:00:zz"] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
