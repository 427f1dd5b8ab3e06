//! What isn't understood doesn't cross: EtherTypes, tags, LLC, bridge protocols, router messages, and the addresses of a link where
//! no address was planned.

use std::net::{IpAddr, Ipv6Addr};

use hydra_tests::attack::{Scene, play_in};
use hydra_tests::messages::{redirect, router_advertisement};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::sample;

use super::{nothing, play};

fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    hydra_common::address::Address::link_local_of(&hydra_common::address::Mac(mac)).octets().into()
}

/// (name, EtherType, what stands before the mark).
const TYPES: [(&str, u16, &[u8]); 26] = [
    ("nothing", 0x0000, &[]),
    ("LLC of a spanning tree", 0x0026, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]),
    ("SNAP around IPv4", 0x0024, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0, 0x45]),
    ("IPX, raw 802.3", 0x0022, &[0xff, 0xff]),
    ("a length that is no type", 0x05ff, &[]),
    ("the smallest type", 0x0600, &[]),
    ("X.25", 0x0805, &[]),
    ("TRILL", 0x22f3, &[]),
    ("AppleTalk", 0x809b, &[]),
    ("IPX", 0x8137, &[]),
    ("flow control", 0x8808, &[0, 1, 0xff, 0xff]),
    ("LACP", 0x8809, &[1, 1]),
    ("PPP", 0x880b, &[]),
    ("MPLS around IPv4", 0x8847, &[0, 1, 1, 64, 0x45, 0]),
    ("MPLS multicast", 0x8848, &[0, 1, 1, 64]),
    ("PPPoE discovery", 0x8863, &[0x11, 9, 0, 0, 0, 0]),
    ("PPPoE around IPv4", 0x8864, &[0x11, 0, 0, 1, 0, 4, 0, 0x21, 0x45, 0]),
    ("EAPOL", 0x888e, &[1, 1, 0, 0]),
    ("ATA over Ethernet", 0x88a2, &[]),
    ("LLDP", 0x88cc, &[2, 7, 4]),
    ("MACsec", 0x88e5, &[]),
    ("provider backbone (802.1ah)", 0x88e7, &[]),
    ("RDMA over Ethernet", 0x8915, &[]),
    ("loopback test", 0x9000, &[]),
    ("a tag before the standard's (0x9100)", 0x9100, &[0, 5, 8, 0, 0x45, 0]),
    ("the last type", 0xffff, &[]),
];

#[test]
fn other_ethertypes_do_not_cross() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let own = scene.own();
        for (name, ethertype, before) in TYPES {
            for (victim, destination) in [("api", scene.mac("api")), ("db", scene.mac("db"))] {
                let payload = [before, &scene.mark()].concat();
                let frame = Frame { destination, source: own, tags: vec![], ethertype, payload };
                scene.add(format!("{name} to {victim}"), &frame, "ethertype", &[victim]);
            }
            let payload = [before, &scene.mark()].concat();
            let frame = Frame { destination: [0xff; 6], source: own, tags: vec![], ethertype, payload };
            scene.add(format!("{name} to all"), &frame, "ethertype", &["api", "db", "host"]);
        }
        // The group addresses of bridges (IEEE 802.1D, 7.12.6): a bridge that takes no part floods the first, keeps the rest to itself.
        let groups: [(&str, u8, &[&str]); 4] = [
            ("a spanning tree's group", 0x00, &["api", "db"]),
            ("flow control's group, which a bridge keeps", 0x01, &[]),
            ("802.1X's group, which a bridge keeps", 0x03, &[]),
            ("LLDP's group, which a bridge keeps", 0x0e, &[]),
        ];
        for (name, last, reaches) in groups {
            let payload = [&[0x42, 0x42, 3][..], &scene.mark()].concat();
            let destination = [0x01, 0x80, 0xc2, 0, 0, last];
            let frame = Frame { destination, source: own, tags: vec![], ethertype: 0x0026, payload };
            scene.add(name, &frame, "ethertype", reaches);
        }
        scene.attacks
    });
}

#[test]
fn tags_do_not_cross() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, api, db) = (scene.own(), scene.mac("api"), scene.mac("db"));
        let stacks: [(&str, &[(u16, u16)]); 9] = [
            ("802.1Q", &[(0x8100, 7)]),
            ("802.1Q of VLAN 0, a priority", &[(0x8100, 0x6000)]),
            ("802.1Q of VLAN 1", &[(0x8100, 1)]),
            ("802.1Q of VLAN 4095", &[(0x8100, 4095)]),
            ("802.1ad", &[(0x88a8, 7)]),
            ("QinQ", &[(0x8100, 7), (0x8100, 8)]),
            ("802.1ad around 802.1Q", &[(0x88a8, 7), (0x8100, 8)]),
            ("three tags", &[(0x88a8, 7), (0x8100, 8), (0x8100, 9)]),
            ("five tags", &[(0x8100, 1), (0x8100, 2), (0x8100, 3), (0x8100, 4), (0x8100, 5)]),
        ];
        for (name, tags) in stacks {
            for six in [false, true] {
                // What would pass without its tag: a container of the same tier.
                for (victim, destination) in [("api", api), ("db", db)] {
                    let packet = scene.udp(scene.address("cache", six), scene.address(victim, six));
                    let mut frame = Frame::ip(own, destination, &packet);
                    frame.tags = tags.to_vec();
                    let name = format!("{name} around IPv{} to {victim}", if six { 6 } else { 4 });
                    scene.add(name, &frame, "vlan", &[victim]);
                }
            }
        }
        let mut frame =
            Frame::ip(own, db, &scene.udp(scene.address("cache", false), scene.address("db", false)));
        frame.tags = vec![(0x8100, 7)];
        frame.ethertype = 0x88b5;
        scene.add("a tag around another EtherType", &frame, "vlan", &["db"]);
        scene.attacks
    });
}

#[test]
fn an_ip_version_that_is_not_the_ethertypes_does_not_cross() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db) = (scene.own(), scene.mac("db"));
        for six in [false, true] {
            let packet = scene.udp(scene.address("cache", six), scene.address("db", six));
            let mut frame = Frame::ip(own, db, &packet);
            frame.ethertype = if six { 0x0800 } else { 0x86dd };
            let name = if six { "IPv6 as IPv4" } else { "IPv4 as IPv6" };
            scene.add(name, &frame, "malformed", &["db"]);
            for version in [0, 1, 5, 7, 15] {
                let packet = scene.udp(scene.address("cache", six), scene.address("db", six));
                let mut frame = Frame::ip(own, db, &packet);
                frame.payload[0] = frame.payload[0] & 15 | version << 4;
                scene.add(
                    format!("version {version} as IPv{}", if six { 6 } else { 4 }),
                    &frame,
                    "malformed",
                    &["db"],
                );
            }
        }
        scene.attacks
    });
}

/// CVE-2020-13401 and its like: a container that says it is the router.
#[test]
fn a_container_is_nobodys_router() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db, gateway) = (scene.own(), scene.mac("db"), scene.gateway_mac());
        let all = [0x33, 0x33, 0, 0, 0, 1];
        let local = link_local(own);
        let reason = "router-message";
        for (name, from) in [
            ("its own link-local address", local),
            ("the gateway's link-local address", link_local(gateway)),
            ("its global address", v6(scene.address("cache", true))),
        ] {
            let advertisement = router_advertisement(from);
            scene.add(
                format!("an advertisement to all from {name}"),
                &Frame::ip(own, all, &advertisement),
                reason,
                &["db", "api", "host"],
            );
            let to_one = Packet { destination: scene.address("db", true), ..advertisement.clone() };
            scene.add(
                format!("an advertisement to one from {name}"),
                &Frame::ip(own, db, &to_one),
                reason,
                &["db"],
            );
            let to_host = Packet { destination: scene.gateway(true), ..advertisement };
            let frame = Frame::ip(own, gateway, &to_host);
            scene.add(format!("an advertisement to the host from {name}"), &frame, reason, &["host"]);
        }
        let hops = router_advertisement(local).ttl(64);
        scene.add("an advertisement that was routed", &Frame::ip(own, all, &hops), reason, &["db", "api"]);
        for six in [false, true] {
            let (cache, victim) = (scene.address("cache", six), scene.address("db", six));
            let about = Packet::udp(victim, scene.address("api", six), 1, 2);
            for (whose, source) in [("its own", cache), ("the gateway's", scene.gateway(six))] {
                let turn = redirect(source, victim, cache, &about);
                let name = format!("a redirect of IPv{} from {whose} address", if six { 6 } else { 4 });
                scene.add(&name, &Frame::ip(own, db, &turn), "router-message", &["db"]);
                let turn = redirect(source, scene.gateway(six), cache, &about);
                let frame = Frame::ip(own, gateway, &turn);
                scene.add(format!("{name} to the host"), &frame, "router-message", &["host"]);
            }
            // Router discovery of IPv4 (RFC 1256).
            if !six {
                let data = [&[0, 0, 0, 0][..], &scene.mark()].concat();
                let packet = Packet::new(cache, victim, Transport::Icmp(9, 0, [1, 2, 7, 8], data));
                scene.add(
                    "an advertisement of IPv4",
                    &Frame::ip(own, db, &packet),
                    "router-message",
                    &["db"],
                );
            }
        }
        scene.attacks
    });
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(ip) = ip else { panic!("{ip}") };
    ip
}

/// CVE-2024-32473: where a network has no block of IPv6, its containers still have link-local addresses, and find each other with them.
#[test]
fn link_local_addresses_obey_tiers_where_a_network_has_no_ipv6() {
    let policy = sample::policy()
        .lines()
        .map(|line| match line.split_once(", subnet6") {
            Some((start, _)) => format!("{start} }}\n"),
            None => format!("{line}\n"),
        })
        .collect::<String>();
    let four = |deployment: &mut hydra_tests::deployment::Deployment| {
        let topology = &mut deployment.topology;
        topology.bridges.iter_mut().for_each(|b| b.addresses.retain(|a| a.addr().is_ipv4()));
        let ports = topology.containers.iter_mut().flat_map(|c| &mut c.ports);
        ports.for_each(|p| p.addresses.retain(|a| a.addr().is_ipv4()));
    };
    let wrong = play_in(&policy, four, |lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, api, db, gateway) = (scene.own(), scene.mac("api"), scene.mac("db"), scene.gateway_mac());
        let source: IpAddr = link_local(own).into();
        let tcp = |to: [u8; 6], mark: Vec<u8>| {
            Packet::new(source, link_local(to), Transport::Tcp(40_000, 5432, flags::SYN, mark))
        };
        let packet = tcp(api, scene.mark());
        scene.add("TCP to another tier's container", &Frame::ip(own, api, &packet), "no-rule", &["api"]);
        let packet = scene.udp(source, link_local(api).into());
        scene.add("UDP to another tier's container", &Frame::ip(own, api, &packet), "no-rule", &["api"]);
        // The gateway's own link-local address is the host.
        let packet = tcp(gateway, scene.mark());
        scene.add("TCP to the host", &Frame::ip(own, gateway, &packet), "no-rule", &["host"]);
        let packet = scene.udp(source, "ff02::1".parse().unwrap());
        scene.partly(
            "UDP to everybody",
            &Frame::ip(own, [0x33, 0x33, 0, 0, 0, 1], &packet),
            &[("no-rule", 2)],
            &["api", "db", "host"],
            &["db", "data-other"],
        );
        let packet = scene.udp(link_local(db).into(), link_local(api).into());
        scene.add(
            "a neighbour's link-local address",
            &Frame::ip(own, api, &packet),
            "spoofed-address",
            &["api"],
        );
        let packet = scene.udp("fe80::1".parse().unwrap(), link_local(api).into());
        scene.add("a made-up link-local address", &Frame::ip(own, api, &packet), "spoofed-address", &["api"]);
        let packet = scene.udp("fd00:1::1".parse().unwrap(), link_local(api).into());
        scene.add("a made-up global address", &Frame::ip(own, api, &packet), "spoofed-address", &["api"]);
        // Within the tier they are as good as any: the answer returns, and brings the mark along.
        let ping = Transport::Icmp(128, 0, [0, 1, 0, 1], scene.mark());
        let packet = Packet::new(source, link_local(db), ping);
        scene.partly("a ping in its own tier", &Frame::ip(own, db, &packet), &[], &["db"], &["db", "cache"]);
        scene.attacks
    });
    nothing(&wrong.unwrap());
}
