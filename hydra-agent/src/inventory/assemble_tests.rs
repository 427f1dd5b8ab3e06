//! Worlds as lists, and the snapshots that they make.

use super::*;
use crate::inventory::bindings::Bound;
use crate::inventory::docker_view::World;
use crate::inventory::namespaces::Process;
use crate::inventory::snapshot::DockerState;

fn link(index: u32, name: &str, kind: LinkType) -> Interface {
    Interface {
        index,
        name: name.to_owned(),
        kind,
        mac: Mac([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        master: None,
        up: true,
        peer: None,
        peer_nsid: None,
        localnet: false,
    }
}

/// The host-side end of a veth on a bridge; the other end is `eth0`-like number 2 of its namespace unless told otherwise.
fn port(index: u32, bridge: Option<u32>, nsid: i32, peer: u32) -> Interface {
    Interface {
        master: bridge,
        peer: Some(peer),
        peer_nsid: Some(nsid),
        ..link(index, &format!("veth{index}"), LinkType::Veth)
    }
}

fn space(inode: u64, nsid: Option<i32>, names: &[&str], containers: &[&str]) -> Space {
    Space {
        id: Id { inode, cookie: Some(inode + 1000) },
        nsid,
        path: format!("/run/netns/{inode}").into(),
        names: names.iter().map(ToString::to_string).collect(),
        containers: containers.iter().map(ToString::to_string).collect(),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn docker_network(id: &str, bridge: &str, subnet: &str, gateway: Option<&str>) -> DockerNetwork {
    DockerNetwork {
        id: id.to_owned(),
        driver: "bridge".to_owned(),
        bridge: Some(bridge.to_owned()),
        subnets: vec![net(subnet)],
        gateways: gateway.map(ip).into_iter().collect(),
        internal: false,
    }
}

fn container(id: &str, name: &str, mode: &str, endpoints: &[(&str, &str, &str)]) -> Container {
    Container {
        id: id.to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        process: Process { pid: 7, start: 7 },
        started: String::new(),
        mode: mode.to_owned(),
        endpoints: endpoints
            .iter()
            .map(|(network, id, address)| {
                let endpoint = DockerEndpoint {
                    network: (*id).to_owned(),
                    addresses: if address.is_empty() { BTreeSet::new() } else { [ip(address)].into() },
                    mac: Some([2, 0x42, 0, 0, 0, 9]),
                    priority: 0,
                };
                ((*network).to_owned(), endpoint)
            })
            .collect(),
        bound: BTreeSet::new(),
    }
}

/// Network `front` on bridge 10, and nothing else.
fn view(containers: Vec<Container>) -> View {
    let networks = [("front".to_owned(), docker_network("f", "br-f", "10.1.0.0/24", Some("10.1.0.1")))];
    View {
        state: DockerState::Up { version: "1".to_owned() },
        world: World {
            version: "1".to_owned(),
            networks: networks.into(),
            containers: containers.into_iter().map(|c| (c.id.clone(), c)).collect(),
        },
        ..View::default()
    }
}

fn host(ports: Vec<Interface>, inside: Vec<(i32, Inside)>, spaces: Vec<Space>) -> Kernelside {
    let mut links = vec![link(10, "br-f", LinkType::Bridge), link(11, "br-other", LinkType::Bridge)];
    links.extend(ports);
    Kernelside {
        links,
        addresses: vec![(10, net("10.1.0.1/24")), (10, net("fe80::1/64")), (11, net("10.2.0.1/24"))],
        inside: inside.into_iter().collect(),
        spaces,
        cgroups: BTreeMap::new(),
    }
}

fn inside(links: Vec<Interface>, addresses: &[(u32, &str)]) -> Inside {
    Inside { links, addresses: addresses.iter().map(|(i, a)| (*i, net(a))).collect() }
}

#[test]
fn a_container_has_the_addresses_that_docker_says_whatever_it_set_itself() {
    let kernel = host(
        vec![port(20, Some(10), 3, 2)],
        vec![(3, inside(vec![link(2, "eth0", LinkType::Veth)], &[(2, "10.1.0.66/24")]))],
        vec![space(500, Some(3), &[], &["c1"])],
    );
    let docker = view(vec![container("c1", "web", "front", &[("front", "f", "10.1.0.5")])]);
    let (snapshot, doubts) = assemble(&kernel, &docker);
    let [stack] = snapshot.stacks.as_slice() else { panic!("{:#?}", snapshot.stacks) };
    assert_eq!(stack.key, "500.1500/c1");
    assert!(stack.docker);
    let attachment = &stack.attachments[0];
    assert_eq!(attachment.addresses, [ip("10.1.0.5")].into());
    assert_eq!(attachment.mac, Mac([2, 0x42, 0, 0, 0, 9]));
    assert_eq!(attachment.interface, "eth0");
    assert_eq!(attachment.network.as_deref(), Some("front"));
    assert_eq!(attachment.gateways, [ip("10.1.0.1")]);
    assert!(doubts.is_empty());
}

#[test]
fn a_port_that_docker_has_not_explained_has_no_address_and_is_doubted() {
    let kernel = host(
        vec![port(20, Some(10), 3, 2)],
        vec![(3, inside(vec![link(2, "eth0", LinkType::Veth)], &[(2, "10.1.0.66/24")]))],
        vec![space(500, Some(3), &[], &["c1"])],
    );
    for endpoints in [&[][..], &[("front", "f", "")][..]] {
        let (snapshot, doubts) = assemble(&kernel, &view(vec![container("c1", "web", "front", endpoints)]));
        assert_eq!(snapshot.stacks[0].attachments[0].addresses, BTreeSet::new());
        assert_eq!(doubts.containers, ["c1".to_owned()].into());
    }
}

#[test]
fn a_stranger_on_a_docker_network_has_no_address_and_one_on_another_bridge_has_its_own() {
    let kernel = host(
        vec![port(20, Some(10), 3, 2), port(21, Some(11), 3, 4)],
        vec![(
            3,
            inside(
                vec![link(2, "eth0", LinkType::Veth), link(4, "eth1", LinkType::Veth)],
                &[(2, "10.1.0.66/24"), (4, "10.2.0.66/24"), (4, "fe80::4/64"), (4, "169.254.1.1/16")],
            ),
        )],
        vec![space(500, Some(3), &[], &[])],
    );
    let (snapshot, doubts) = assemble(&kernel, &view(Vec::new()));
    let stack = &snapshot.stacks[0];
    assert_eq!((stack.name.as_str(), stack.docker), ("netns-500", false));
    assert_eq!(stack.attachments[0].addresses, BTreeSet::new());
    assert_eq!(stack.attachments[1].addresses, [ip("10.2.0.66")].into());
    assert_eq!(stack.attachments[1].gateways, [ip("10.2.0.1")]);
    assert!(doubts.strangers);
}

#[test]
fn guests_are_members_of_the_owner_s_stack() {
    let kernel = host(
        vec![port(20, Some(10), 3, 2)],
        vec![(3, inside(vec![link(2, "eth0", LinkType::Veth)], &[]))],
        vec![space(500, Some(3), &[], &["a", "b", "c"])],
    );
    let mut vpn = container("c", "vpn", "front", &[("front", "f", "10.1.0.5")]);
    vpn.bound.insert(Bound { address: ip("0.0.0.0"), protocol: 6, port: 8080, target_port: 80 });
    let docker = view(vec![
        container("a", "aria", "container:c", &[]),
        container("b", "beet", "container:c", &[]),
        vpn,
    ]);
    let (snapshot, _) = assemble(&kernel, &docker);
    let [stack] = snapshot.stacks.as_slice() else { panic!("{:#?}", snapshot.stacks) };
    assert_eq!(stack.name, "vpn");
    assert_eq!(stack.key, "500.1500/c");
    assert_eq!(stack.members, ["vpn", "aria", "beet"]);
    let [binding] = snapshot.bindings.as_slice() else { panic!("{:#?}", snapshot.bindings) };
    assert_eq!((binding.container.as_str(), binding.stack.as_deref()), ("vpn", Some("500.1500/c")));
    assert_eq!((binding.network.as_str(), binding.target), ("front", Some(ip("10.1.0.5"))));
    assert_eq!(stack.attachments[0].addresses, [ip("10.1.0.5")].into());
}

#[test]
fn a_bridge_is_found_by_its_gateway_where_its_name_is_hidden() {
    let kernel = host(Vec::new(), Vec::new(), Vec::new());
    let mut docker = view(Vec::new());
    let hidden = docker_network("o", "br-hidden", "10.2.0.0/24", Some("10.2.0.1"));
    docker.world.networks.insert("other".to_owned(), hidden);
    let nowhere = docker_network("n", "br-nowhere", "10.3.0.0/24", Some("10.3.0.1"));
    docker.world.networks.insert("nowhere".to_owned(), nowhere);
    let (snapshot, _) = assemble(&kernel, &docker);
    assert_eq!(snapshot.networks["front"].bridge, Some(10));
    assert_eq!(snapshot.networks["other"].bridge, Some(11));
    assert_eq!(snapshot.networks["nowhere"].bridge, None);
}

#[test]
fn a_network_without_a_named_gateway_has_its_bridge_s_address() {
    let kernel = host(Vec::new(), Vec::new(), Vec::new());
    let mut docker = view(Vec::new());
    docker.world.networks.insert("front".to_owned(), docker_network("f", "br-f", "10.1.0.0/24", None));
    let (snapshot, _) = assemble(&kernel, &docker);
    assert_eq!(snapshot.networks["front"].gateways, [ip("10.1.0.1")]);
}

#[test]
fn a_container_on_several_networks_has_each_port_in_its_own() {
    let mut docker = view(vec![container(
        "c1",
        "gateway",
        "front",
        &[("front", "f", "10.1.0.5"), ("back", "b", "10.2.0.5")],
    )]);
    docker.world.networks.insert("back".to_owned(), docker_network("b", "br-other", "10.2.0.0/24", None));
    let kernel = host(
        vec![port(20, Some(11), 3, 4), port(21, Some(10), 3, 2)],
        vec![(3, inside(vec![link(2, "eth0", LinkType::Veth), link(4, "eth1", LinkType::Veth)], &[]))],
        vec![space(500, Some(3), &[], &["c1"])],
    );
    let (snapshot, doubts) = assemble(&kernel, &docker);
    let seen: Vec<_> = snapshot.stacks[0]
        .attachments
        .iter()
        .map(|a| {
            (a.port, a.network.clone().unwrap(), a.interface.clone(), a.addresses.first().copied().unwrap())
        })
        .collect();
    assert_eq!(
        seen,
        [
            (20, "back".to_owned(), "eth1".to_owned(), ip("10.2.0.5")),
            (21, "front".to_owned(), "eth0".to_owned(), ip("10.1.0.5"))
        ]
    );
    assert!(doubts.is_empty());
}

#[test]
fn of_two_ports_on_one_bridge_the_one_with_docker_s_mac_has_the_addresses() {
    let docker_s = Interface { mac: Mac([2, 0x42, 0, 0, 0, 9]), ..link(4, "eth1", LinkType::Veth) };
    for (links, expected) in [
        (vec![link(2, "eth0", LinkType::Veth), docker_s], 21),
        // Neither has it: the older one.
        (vec![link(2, "eth0", LinkType::Veth), link(4, "eth1", LinkType::Veth)], 20),
    ] {
        let kernel = host(
            vec![port(20, Some(10), 3, 2), port(21, Some(10), 3, 4)],
            vec![(3, inside(links, &[]))],
            vec![space(500, Some(3), &[], &["c1"])],
        );
        let docker = view(vec![container("c1", "web", "front", &[("front", "f", "10.1.0.5")])]);
        let (snapshot, _) = assemble(&kernel, &docker);
        let with: Vec<u32> = snapshot.stacks[0]
            .attachments
            .iter()
            .filter(|a| !a.addresses.is_empty())
            .map(|a| a.port)
            .collect();
        assert_eq!(with, [expected]);
    }
}

#[test]
fn a_namespace_that_no_file_leads_to_is_still_a_stack() {
    let kernel = host(
        vec![port(21, Some(11), 8, 2), port(20, Some(11), 8, 3)],
        vec![(8, inside(vec![link(2, "eth0", LinkType::Veth)], &[(2, "10.2.0.7/24")]))],
        Vec::new(),
    );
    let (snapshot, doubts) = assemble(&kernel, &View::default());
    let [stack] = snapshot.stacks.as_slice() else { panic!("{:#?}", snapshot.stacks) };
    assert_eq!((stack.name.as_str(), stack.netns.as_ref()), ("nsid-8", None));
    assert_eq!(stack.attachments.len(), 2);
    assert!(doubts.is_empty());
}

#[test]
fn a_container_without_a_port_is_listed_and_a_nameless_namespace_without_one_is_not() {
    let kernel =
        host(Vec::new(), Vec::new(), vec![space(500, None, &[], &["c1"]), space(501, None, &["hy-x"], &[])]);
    let (snapshot, _) = assemble(&kernel, &view(vec![container("c1", "batch", "none", &[])]));
    let names: Vec<&str> = snapshot.stacks.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["batch"]);
}

#[test]
fn stacks_are_in_the_order_of_their_keys() {
    let spaces = vec![
        space(502, Some(2), &["b"], &[]),
        space(500, Some(3), &["c"], &[]),
        space(501, Some(1), &["a"], &[]),
    ];
    let (snapshot, _) = assemble(&host(Vec::new(), Vec::new(), spaces), &View::default());
    let keys: Vec<&str> = snapshot.stacks.iter().map(|s| s.key.as_str()).collect();
    assert_eq!(keys, ["500.1500", "501.1501", "502.1502"]);
}
