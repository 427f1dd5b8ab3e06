//! Worlds made by hand, and who is who in them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::inventory::snapshot::{Link, LinkType, Network};

/// A world to build up line by line.
#[derive(Default)]
pub struct Scene {
    pub snapshot: Snapshot,
    pub claims: Claims,
}

fn set<T: Ord, const N: usize>(items: [&str; N], make: impl Fn(&str) -> T) -> BTreeSet<T> {
    items.into_iter().map(make).collect()
}

pub fn strings<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    set(items, str::to_owned)
}

pub fn nets<const N: usize>(items: [&str; N]) -> BTreeSet<IpNet> {
    set(items, |s| s.parse().unwrap())
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn mac(n: u32) -> Mac {
    let [_, _, a, b] = n.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

impl Scene {
    /// The four tiers of the Hydra stack on two Docker networks and two bridges would be more than these tests need: here are
    /// `apps` on the network `front` (bridge 10), `databases` on `back` (bridge 20), and the uplink 2.
    pub fn usual() -> Self {
        let mut s = Self::default();
        s.snapshot.docker = DockerState::Up { version: "28.5.2".into() };
        s.link(1, "lo", LinkType::Loopback, None, ["127.0.0.1/8"]);
        s.link(2, "eth0", LinkType::Other, None, ["198.51.100.5/24"]);
        s.bridge(10, "br-front", ["10.1.0.1/24", "fe80::1/64"]);
        s.bridge(20, "br-back", ["10.2.0.1/24", "fd02::1/64"]);
        s.network("front", 10, ["10.1.0.0/24"]);
        s.network("back", 20, ["10.2.0.0/24", "fd02::/64"]);
        s.tier("apps", TierClaim { networks: strings(["front"]), ..TierClaim::default() });
        s.tier("databases", TierClaim { networks: strings(["back"]), ..TierClaim::default() });
        s.service("databases", "postgres", ["pg"]);
        s
    }

    pub fn link<const N: usize>(
        &mut self,
        index: u32,
        name: &str,
        kind: LinkType,
        master: Option<u32>,
        addresses: [&str; N],
    ) {
        let link = Link {
            name: name.into(),
            kind,
            mac: mac(index),
            mtu: 1500,
            master,
            up: true,
            addresses: nets_with_host(addresses),
            peer_elsewhere: kind == LinkType::Veth,
        };
        self.snapshot.links.insert(index, link);
    }

    pub fn bridge<const N: usize>(&mut self, index: u32, name: &str, addresses: [&str; N]) {
        self.link(index, name, LinkType::Bridge, None, addresses);
    }

    pub fn network<const N: usize>(&mut self, name: &str, bridge: u32, subnets: [&str; N]) {
        let network = Network {
            id: name.into(),
            driver: "bridge".into(),
            bridge: Some(bridge),
            subnets: nets(subnets).into_iter().collect(),
            gateways: Vec::new(),
            internal: false,
            localnet: false,
        };
        self.snapshot.networks.insert(name.into(), network);
    }

    pub fn tier(&mut self, name: &str, claim: TierClaim) {
        self.claims.tiers.insert(name.into(), claim);
    }

    pub fn service<const N: usize>(&mut self, tier: &str, name: &str, containers: [&str; N]) {
        self.claims.tiers.get_mut(tier).unwrap().services.push(ServiceClaim {
            name: name.into(),
            containers: strings(containers),
            ..ServiceClaim::default()
        });
    }

    /// A container of Docker's: its ports as (interface index, bridge, network, addresses).
    pub fn container(&mut self, name: &str, ports: &[(u32, u32, &str, &[&str])]) -> &mut Stack {
        self.stack(name, true, ports)
    }

    /// A namespace behind veths.
    pub fn namespace(&mut self, name: &str, ports: &[(u32, u32, &str, &[&str])]) -> &mut Stack {
        self.stack(name, false, ports)
    }

    fn stack(&mut self, name: &str, docker: bool, ports: &[(u32, u32, &str, &[&str])]) -> &mut Stack {
        let mut attachments = Vec::new();
        for (n, (port, bridge, network, addresses)) in ports.iter().enumerate() {
            let master = Some(*bridge).filter(|b| *b != 0);
            self.link(*port, &format!("veth{port}"), LinkType::Veth, master, []);
            let gateways = self.snapshot.links.get(bridge).map(|l| {
                let global = l.addresses.iter().map(IpNet::addr);
                global.filter(|a| !a.to_string().starts_with("fe80")).collect()
            });
            attachments.push(Attachment {
                network: Some((*network).to_owned()).filter(|n| !n.is_empty()),
                port: *port,
                interface: format!("eth{n}"),
                inside: 200 + port,
                mac: mac(0x1000 + port),
                addresses: addresses.iter().map(|a| ip(a)).collect(),
                gateways: gateways.unwrap_or_default(),
            });
        }
        self.snapshot.stacks.push(Stack {
            key: format!("key-{name}"),
            name: name.into(),
            members: vec![name.into()],
            labels: BTreeMap::new(),
            netns: Some(format!("/proc/1/{name}").into()),
            cookie: None,
            cgroups: BTreeSet::new(),
            attachments,
            lans: Vec::new(),
            docker,
        });
        self.snapshot.stacks.last_mut().unwrap()
    }

    pub fn place(&self) -> Placement {
        self.place_with(&mut Containers::default(), false)
    }

    pub fn place_with(&self, containers: &mut Containers, labels: bool) -> Placement {
        place(&self.claims, &self.snapshot, labels, containers)
    }
}

fn nets_with_host<const N: usize>(items: [&str; N]) -> BTreeSet<IpNet> {
    set(items, |s| s.parse().unwrap())
}

pub fn owners(p: &Placement) -> Vec<(String, String)> {
    p.addresses.iter().map(|(a, h)| (a.to_string(), h.owner.to_string())).collect()
}

pub fn pairs<const N: usize>(items: [(&str, &str); N]) -> Vec<(String, String)> {
    items.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

pub fn remarks(list: &[Remark]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn said(p: &Placement) -> Vec<String> {
    p.not_enforced.iter().map(|n| format!("{}: {}", n.what, n.why)).collect()
}

#[test]
fn a_service_keeps_its_identity_on_every_network_and_others_have_their_networks_tier() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 20, "back", &["10.2.0.5", "fd02::5"]), (102, 10, "front", &["10.1.0.5"])]);
    s.container("both", &[(103, 20, "back", &["10.2.0.6"]), (104, 10, "front", &["10.1.0.6"])]);
    let p = s.place();
    assert_eq!(
        owners(&p),
        pairs([
            ("10.1.0.5", "databases/postgres"),
            ("10.1.0.6", "apps"),
            ("10.2.0.5", "databases/postgres"),
            ("10.2.0.6", "databases"),
            ("fd02::5", "databases/postgres"),
        ])
    );
    assert_eq!(p.stacks.len(), 2, "one number per stack, not per network");
    assert_eq!(said(&p), [""; 0]);
    assert_eq!(p.bridges.keys().copied().collect::<Vec<_>>(), [10, 20]);
    assert_eq!(p.host, ["10.1.0.1", "10.2.0.1", "198.51.100.5", "fd02::1", "fe80::1"].map(ip).into());
}

#[test]
fn containers_on_networks_that_nobody_names_are_unmanaged() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["172.17.0.1/16"]);
    s.network("bridge", 30, ["172.17.0.0/16"]);
    s.container("web", &[(103, 30, "bridge", &["172.17.0.2"])]);
    let p = s.place();
    assert_eq!(owners(&p), pairs([("172.17.0.2", "unmanaged")]));
    assert_eq!(p.unmanaged, nets(["172.17.0.0/16"]));
    assert!(p.declared_stacks().is_empty());
}

#[test]
fn a_stranger_on_a_docker_network_is_nobody() {
    let mut s = Scene::usual();
    s.namespace("pg", &[(103, 20, "back", &["10.2.0.9"])]);
    let p = s.place();
    assert!(p.addresses.is_empty() && p.stacks.is_empty());
    assert_eq!(p.ports[&103].stack, None);
    assert!(!p.ports[&103].unbound, "closed until it is known");
}

#[test]
fn without_docker_networks_are_found_by_their_looks_in_order() {
    for (claim, expected) in [
        (
            NetworkClaim {
                bridge: Some("hyb".into()),
                subnets: nets(["10.1.0.0/24"]),
                ..NetworkClaim::default()
            },
            11,
        ),
        (
            NetworkClaim {
                gateways: [ip("10.2.0.1")].into(),
                subnets: nets(["10.1.0.0/24"]),
                ..NetworkClaim::default()
            },
            11,
        ),
        (NetworkClaim { subnets: nets(["10.1.0.0/24"]), ..NetworkClaim::default() }, 10),
    ] {
        let mut s = Scene::default();
        s.bridge(10, "hya", ["10.1.0.1/24"]);
        s.bridge(11, "hyb", ["10.2.0.1/24"]);
        s.claims.networks.insert("front".into(), claim.clone());
        s.tier("apps", TierClaim { networks: strings(["front"]), ..TierClaim::default() });
        let p = s.place();
        assert_eq!(p.bridges.keys().copied().collect::<Vec<_>>(), [expected], "{claim:?}");
        assert_eq!(p.bridges[&expected].network, "front");
    }
}

#[test]
fn a_namespace_is_believed_only_inside_its_bridges_blocks() {
    let mut s = Scene::default();
    s.bridge(10, "hya", ["10.1.0.1/24"]);
    s.bridge(20, "hyb", ["10.2.0.1/24"]);
    s.tier("apps", TierClaim { bridges: strings(["hya"]), ..TierClaim::default() });
    s.tier("databases", TierClaim { bridges: strings(["hyb"]), ..TierClaim::default() });
    s.claims.tiers.get_mut("databases").unwrap().services.push(ServiceClaim {
        name: "postgres".into(),
        addresses: nets(["10.2.0.5/32"]),
        ..ServiceClaim::default()
    });
    s.namespace("liar", &[(101, 10, "", &["10.1.0.7", "10.2.0.5", "9.9.9.9"])]);
    s.namespace("pg", &[(102, 20, "", &["10.2.0.5"])]);
    let p = s.place();
    assert_eq!(owners(&p), pairs([("10.1.0.7", "apps"), ("10.2.0.5", "databases/postgres")]));
    assert_eq!(p.addresses[&ip("10.2.0.5")].port, 102);
    assert_eq!(
        said(&p),
        ["10.2.0.5", "9.9.9.9"].map(|a| format!(
            "liar {a}: the address lies in no block of the network that `veth101` is on: its packets are denied"
        ))
    );
}

#[test]
fn what_is_behind_a_bare_veth_is_the_outside_unless_a_service_names_it() {
    let mut s = Scene::default();
    s.tier("inference", TierClaim { addresses: nets(["192.0.2.0/24"]), ..TierClaim::default() });
    s.service("inference", "gpu", ["box"]);
    s.namespace("lan", &[(101, 0, "", &["192.0.2.9"])]);
    s.namespace("box", &[(102, 0, "", &["192.0.2.8", "10.9.9.9"])]);
    let p = s.place();
    assert_eq!(owners(&p), pairs([("192.0.2.8", "inference/gpu")]));
    assert_eq!(p.stacks.len(), 1);
    assert!(!p.ports.contains_key(&101));
}

#[test]
fn of_two_with_one_address_the_first_keeps_it_and_the_host_before_all() {
    let mut s = Scene::usual();
    s.container("old", &[(101, 20, "back", &["10.2.0.5"])]);
    let mut containers = Containers::default();
    s.place_with(&mut containers, false);
    s.container("a-new", &[(102, 20, "back", &["10.2.0.5", "10.2.0.1"])]);
    let p = s.place_with(&mut containers, false);
    assert_eq!(p.addresses[&ip("10.2.0.5")].port, 101);
    assert!(!p.addresses.contains_key(&ip("10.2.0.1")));
    assert_eq!(
        said(&p),
        [
            "a-new 10.2.0.1: this host has the same address: it is the host's",
            "a-new 10.2.0.5: `old` has the same address: packets of it on `veth102` are denied",
        ]
    );
}

#[test]
fn an_address_stays_with_whom_had_it_whatever_an_older_stack_gives_itself() {
    let mut s = Scene::usual();
    s.namespace("a-thief", &[(101, 20, "", &["10.2.0.5"])]);
    s.namespace("owner", &[(102, 20, "", &["10.2.0.6"])]);
    let mut containers = Containers::default();
    assert_eq!(s.place_with(&mut containers, false).addresses[&ip("10.2.0.6")].port, 102);
    s.snapshot.stacks[0].attachments[0].addresses.insert(ip("10.2.0.6"));
    for _ in 0..2 {
        let p = s.place_with(&mut containers, false);
        assert_eq!(p.addresses[&ip("10.2.0.6")].port, 102);
        let denied = "a-thief 10.2.0.6: `owner` has the same address: packets of it on `veth101` are denied";
        assert_eq!(said(&p), [denied]);
    }
    // Whoever gives it up has it no more.
    s.snapshot.stacks[1].attachments[0].addresses.clear();
    assert_eq!(s.place_with(&mut containers, false).addresses[&ip("10.2.0.6")].port, 101);
}

#[test]
fn a_declared_stack_takes_its_address_from_an_unmanaged_one() {
    let mut s = Scene::usual();
    s.bridge(30, "docker0", ["10.2.0.129/25"]);
    s.namespace("a", &[(101, 30, "", &["10.2.0.200"])]);
    s.container("z", &[(102, 20, "back", &["10.2.0.200"])]);
    assert_eq!(s.place().addresses[&ip("10.2.0.200")].port, 102);
}

#[test]
fn numbers_are_stable_and_never_given_again() {
    let mut s = Scene::usual();
    s.container("a", &[(101, 20, "back", &["10.2.0.5"])]);
    let mut containers = Containers::default();
    let first = s.place_with(&mut containers, false).stacks[0].container;
    assert_eq!(s.place_with(&mut containers, false).stacks[0].container, first);
    s.snapshot.stacks.clear();
    s.place_with(&mut containers, false);
    containers.retain(|_| false);
    s.container("a", &[(101, 20, "back", &["10.2.0.5"])]).key = "another".into();
    assert!(s.place_with(&mut containers, false).stacks[0].container > first);
}

#[test]
fn ports_that_nobody_can_list_open_their_networks_blocks() {
    let mut s = Scene::usual();
    s.link(50, "tap0", LinkType::Other, Some(20), []);
    s.link(51, "veth-fresh", LinkType::Veth, Some(20), []);
    let p = s.place();
    assert!(p.ports[&50].unbound);
    assert!(!p.ports[&51].unbound);
    assert_eq!(p.open, nets(["10.2.0.0/24", "fd02::/64"]));
}

#[test]
fn a_veth_that_docker_has_not_moved_yet_is_closed_and_opens_no_network() {
    let mut s = Scene::usual();
    s.link(51, "veth-fresh", LinkType::Veth, Some(20), []);
    s.link(52, "veth-peer", LinkType::Veth, None, []);
    for index in [51, 52] {
        s.snapshot.links.get_mut(&index).unwrap().peer_elsewhere = false;
    }
    let p = s.place();
    assert!(!p.ports[&51].unbound);
    assert_eq!(p.open, nets([]));
}

#[test]
fn the_hosts_addresses_are_those_of_all_its_interfaces_but_not_the_link_local_ones_of_ports() {
    let mut s = Scene::usual();
    s.link(1, "lo", LinkType::Loopback, None, ["127.0.0.1/8", "::1/128", "192.0.2.80/32"]);
    s.link(51, "veth-fresh", LinkType::Veth, Some(20), ["fe80::51/64"]);
    let p = s.place();
    let host: Vec<String> = p.host.iter().map(ToString::to_string).collect();
    assert_eq!(host, ["10.1.0.1", "10.2.0.1", "192.0.2.80", "198.51.100.5", "fd02::1", "fe80::1"]);
}

#[test]
fn a_tier_that_is_nowhere_is_said_unless_it_is_optional_or_docker_is_down() {
    let mut s = Scene::usual();
    s.tier("gone", TierClaim { networks: strings(["nope"]), ..TierClaim::default() });
    s.tier("maybe", TierClaim { bridges: strings(["nobr"]), optional: true, ..TierClaim::default() });
    let p = s.place();
    assert_eq!(p.nowhere, [Nowhere { tier: "gone".into(), looked_for: "network nope".into() }]);
    assert_eq!(said(&p), ["network nope: Docker has no such network (tier `gone`)"]);

    s.snapshot.docker = DockerState::Down { error: "no socket".into() };
    let p = s.place();
    assert_eq!(p.nowhere, []);
    assert_eq!(said(&p), ["network nope: Docker does not answer (tier `gone`)"]);
}

#[test]
fn a_bridge_of_two_tiers_and_a_network_of_another_driver_are_said() {
    let mut s = Scene::usual();
    s.tier("other", TierClaim { bridges: strings(["br-back"]), ..TierClaim::default() });
    s.snapshot.networks.get_mut("front").unwrap().driver = "overlay".into();
    assert_eq!(
        said(&s.place()),
        [
            "bridge br-back: both `databases` and `other` live on it: it counts as the first",
            "network front: its driver is `overlay`: hydra enforces networks of the drivers `bridge`, `macvlan` and `ipvlan` (tier `apps`)",
        ]
    );
}

/// The tier `lans` on the macvlan network `lan`, and `proxy` on it and on `front`, which no name places.
fn on_lan() -> Scene {
    let mut s = Scene::usual();
    s.network("lan", 0, ["198.51.100.0/24"]);
    let network = s.snapshot.networks.get_mut("lan").unwrap();
    (network.driver, network.bridge) = ("macvlan".into(), None);
    s.tier("lans", TierClaim { networks: strings(["lan"]), ..TierClaim::default() });
    let stack = s.container("proxy", &[(101, 10, "front", &["10.1.0.5"])]);
    stack.cgroups = [70].into();
    stack.lans = vec![lan(&["198.51.100.20"])];
    s
}

pub fn lan(addresses: &[&str]) -> crate::inventory::snapshot::Lan {
    let addresses = addresses.iter().map(|a| ip(a)).collect();
    crate::inventory::snapshot::Lan { network: "lan".into(), mac: mac(7), addresses }
}

fn lans(p: &Placement) -> Vec<(String, Option<String>)> {
    p.lan.iter().map(|l| (l.address.to_string(), l.owner.as_ref().map(ToString::to_string))).collect()
}

#[test]
fn what_has_no_port_is_its_networks_or_its_names() {
    let mut s = on_lan();
    let p = s.place();
    assert_eq!((said(&p), &p.nowhere), (vec![], &vec![]));
    assert_eq!(lans(&p), [("198.51.100.20".to_owned(), Some("lans".to_owned()))]);
    assert_eq!(owners(&p), pairs([("10.1.0.5", "apps")]), "its port's address stays its port's");
    assert_eq!(p.lan_blocks, nets(["198.51.100.0/24"]));
    assert!(!p.subnets["lans"].contains(&"198.51.100.0/24".parse().unwrap()), "the block is no tier's");
    assert_eq!(p.declared_stacks(), [0].into());
    s.service("databases", "proxies", ["proxy"]);
    assert_eq!(lans(&s.place()), [("198.51.100.20".to_owned(), Some("databases/proxies".to_owned()))]);
    // A network that nobody names, and a container that nobody does.
    let mut s = on_lan();
    s.claims.tiers.remove("lans");
    s.snapshot.stacks[0].attachments.clear();
    let p = s.place();
    assert_eq!((lans(&p), p.stacks.len()), (vec![], 0));
}

#[test]
fn what_has_no_port_and_no_known_place_is_closed() {
    let mut s = on_lan();
    s.snapshot.stacks[0].lans[0].addresses.clear();
    let p = s.place();
    assert_eq!(lans(&p), [("0.0.0.0".to_owned(), None)]);
    assert_eq!(said(&p), ["proxy 0.0.0.0: Docker tells no address of it: its packets there are denied"]);
    s.snapshot.stacks[0].lans[0].addresses = [ip("198.51.100.5")].into();
    let p = s.place();
    assert_eq!(lans(&p), [("198.51.100.5".to_owned(), None)]);
    assert_eq!(
        said(&p),
        ["proxy 198.51.100.5: this host has the same address: its packets there are denied"]
    );
    let mut s = on_lan();
    s.claims.multihome = crate::policy::file::Multihome::Deny;
    let p = s.place();
    assert_eq!((lans(&p), p.closed.len()), (vec![("198.51.100.20".to_owned(), None)], 1));
    s.snapshot.stacks[0].members.push("helper".into());
    let unseen = |who: &str| {
        [format!(
            "proxy: it is on a network without ports on this host, and no hook sees {who}: their packets there are not judged"
        )]
    };
    assert_eq!(said(&s.place()), unseen("some of its processes"));
    s.snapshot.stacks[0].cgroups.clear();
    assert_eq!(said(&s.place()), unseen("its processes"));
}

#[test]
fn what_has_no_port_may_have_the_address_of_its_mac_as_well() {
    let mut s = on_lan();
    let network = s.snapshot.networks.get_mut("lan").unwrap();
    network.subnets.extend(nets(["2001:db8:7::/64", "2001:db8:8::/56"]));
    assert_eq!(lans(&s.place()).len(), 1, "not without an address there");
    let lan = &mut s.snapshot.stacks[0].lans[0];
    lan.addresses.extend([ip("2001:db8:7::20"), ip("2001:db8:8::20")]);
    let made = "2001:db8:7::ff:fe00:7";
    let p = s.place();
    let found: Vec<_> = p.lan.iter().filter(|l| l.made).map(|l| (l.address, l.owner.is_some())).collect();
    assert_eq!(found, [(ip(made), true)], "nor where the half of an address is not its MAC's");
}

#[test]
fn a_named_container_somewhere_else_is_a_warning() {
    let mut s = Scene::usual();
    s.container("pg", &[(101, 10, "front", &["10.1.0.5"])]);
    let p = s.place();
    assert_eq!(owners(&p), pairs([("10.1.0.5", "databases/postgres")]));
    assert_eq!(
        remarks(&p.warnings),
        ["`pg`: a container of `databases/postgres`, it is on none of the tier's networks"]
    );
}

#[test]
fn a_named_container_in_the_hosts_stack_is_known_by_its_cgroup() {
    let mut s = Scene::usual();
    s.snapshot.host_network = vec!["other".into(), "pg".into()];
    assert_eq!(
        said(&s.place()),
        [
            "pg: it uses this host's own network stack, and its cgroup is not below that of the hooks: it is `host`, not `databases/postgres`"
        ]
    );
    s.snapshot.host_cgroups = BTreeMap::from([("other".into(), 8), ("pg".into(), 7)]);
    let p = s.place();
    let processes: Vec<_> =
        p.processes.iter().map(|p| (p.name.as_str(), p.owner.to_string(), p.cgroup)).collect();
    assert_eq!(processes, [("pg", "databases/postgres".to_owned(), 7)]);
    assert_eq!(said(&p), Vec::<String>::new());
}

#[test]
fn units_are_known_by_their_cgroups_and_missed_where_they_do_not_run() {
    let mut s = Scene::usual();
    let units = |names: &[&str]| TierClaim {
        units: names.iter().map(|n| (*n).to_owned()).collect(),
        ..TierClaim::default()
    };
    s.tier("proxies", units(&["caddy.service", "nginx.service"]));
    s.tier("later", TierClaim { optional: true, ..units(&["later.service"]) });
    s.snapshot.units = BTreeMap::from([("nginx.service".into(), 9), ("cron.service".into(), 8)]);
    let p = s.place();
    assert_eq!(p.processes.len(), 1);
    assert_eq!((p.processes[0].name.as_str(), p.processes[0].cgroup), ("nginx.service", 9));
    assert_eq!(p.nowhere, []);
    assert!(
        said(&p).contains(&"unit caddy.service: it does not run (tier `proxies`)".to_owned()),
        "{:?}",
        said(&p)
    );
    s.snapshot.units.remove("nginx.service");
    let p = s.place();
    assert_eq!(p.nowhere.iter().map(|n| n.tier.as_str()).collect::<Vec<_>>(), ["proxies"]);
    assert_eq!(p.nowhere[0].looked_for, "unit caddy.service, unit nginx.service");
}

#[test]
fn docker_gives_a_container_of_another_network_to_the_tier_whose_block_holds_it() {
    let mut s = Scene::usual();
    s.bridge(30, "br-lab", ["10.7.0.1/16"]);
    s.network("lab", 30, ["10.7.0.0/16"]);
    s.tier("inference", TierClaim { addresses: nets(["10.7.1.0/24"]), ..TierClaim::default() });
    s.container("gpu", &[(101, 30, "lab", &["10.7.1.2"])]);
    s.container("cpu", &[(102, 30, "lab", &["10.7.2.2"])]);
    s.namespace("liar", &[(103, 30, "", &["10.7.1.3"])]);
    assert_eq!(
        owners(&s.place()),
        pairs([("10.7.1.2", "inference"), ("10.7.1.3", "unmanaged"), ("10.7.2.2", "unmanaged")])
    );
}
