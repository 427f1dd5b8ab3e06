//! Multicast and broadcast obey tiers, member by member; loopback addresses have no business on a wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hydra_tests::attack::{Attack, Scene};
use hydra_tests::lab::Lab;
use hydra_tests::messages::listener_report;
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::sample;

use super::{nothing, play};

/// The MAC that a group address is sent to (RFC 1112, 6.4; RFC 2464, 7).
fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(Ipv4Addr::BROADCAST) => [0xff; 6],
        IpAddr::V4(ip) if ip.is_multicast() => {
            let o = ip.octets();
            [1, 0, 0x5e, o[1] & 0x7f, o[2], o[3]]
        }
        IpAddr::V4(_) => [0xff; 6],
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    }
}

/// (name, group, port): what service discovery and old habits send.
const GROUPS: [(&str, &str, u16); 13] = [
    ("mDNS", "224.0.0.251", 5353),
    ("LLMNR", "224.0.0.252", 5355),
    ("all systems", "224.0.0.1", 9000),
    ("SSDP", "239.255.255.250", 1900),
    ("WS-Discovery", "239.255.255.250", 3702),
    ("a group of the site", "239.1.2.3", 9000),
    ("the subnet's broadcast", "10.70.3.255", 9000),
    ("the limited broadcast", "255.255.255.255", 9000),
    ("NetBIOS", "10.70.3.255", 137),
    ("mDNS over IPv6", "ff02::fb", 5353),
    ("SSDP over IPv6", "ff02::c", 1900),
    ("all nodes", "ff02::1", 9000),
    ("a group of the site, IPv6", "ff05::1234", 9000),
];

fn discovery(lab: &Lab, denied: &[(&'static str, u64)], allowed: &[&str]) -> Vec<Attack> {
    let mut scene = Scene::new(lab, "cache");
    let own = scene.own();
    for (name, group, port) in GROUPS {
        let group: IpAddr = group.parse().unwrap();
        let transport = Transport::Udp(port, port, scene.mark());
        let packet = Packet::new(scene.address("cache", group.is_ipv6()), group, transport).ttl(1);
        scene.partly(
            name,
            &Frame::ip(own, group_mac(group), &packet),
            denied,
            &["api", "db", "host"],
            allowed,
        );
    }
    scene.attacks
}

/// Denied twice: at `api`'s port, which is another tier's, and at the bridge, for the host.
#[test]
fn service_discovery_stays_in_its_tier() {
    play(|lab| discovery(lab, &[("no-rule", 2)], &["db", "data-other"]));
}

#[test]
fn service_discovery_reaches_who_is_listed() {
    let policy = sample::policy() + "  - { name: discovery, from: data, to: app/api, ports: [udp] }\n";
    let allowed = ["api", "db", "data-other"];
    let wrong = hydra_tests::attack::play(&policy, |lab| discovery(lab, &[("no-rule", 1)], &allowed));
    nothing(&wrong.unwrap());
}

#[test]
fn a_group_under_another_mac_or_an_address_under_a_groups_mac_changes_nothing() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, api) = (scene.own(), scene.mac("api"));
        for (name, group, _) in GROUPS {
            let group: IpAddr = group.parse().unwrap();
            let packet = scene.udp(scene.address("cache", group.is_ipv6()), group);
            // No group of addresses, but one of this network that nobody has.
            let reason = if group.to_string() == "10.70.3.255" { "unknown-destination" } else { "no-rule" };
            scene.add(format!("{name} to one MAC"), &Frame::ip(own, api, &packet), reason, &["api"]);
        }
        for six in [false, true] {
            for mac in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
                let packet = scene.udp(scene.address("cache", six), scene.address("api", six));
                scene.partly(
                    format!("one address of IPv{} to the MAC {mac:x?}", if six { 6 } else { 4 }),
                    &Frame::ip(own, mac, &packet),
                    &[("no-rule", 2)],
                    &["api", "db", "host"],
                    &["db", "data-other"],
                );
            }
        }
        // Of another bridge's network: this host would pass it on, were it so configured.
        let packet = scene.udp(scene.address("cache", false), "10.70.1.255".parse().unwrap());
        let frame = Frame::ip(own, scene.gateway_mac(), &packet);
        scene.add("another network's broadcast", &frame, "unknown-destination", &["host"]);
        scene.attacks
    });
}

/// Membership: an IGMP report or query is a packet like any other to its receivers' rules; only MLD from true addresses is listed.
#[test]
fn group_membership_is_told_to_nobody_of_another_tier() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let own = scene.own();
        let source = scene.address("cache", false);
        let group: Ipv4Addr = "239.1.2.3".parse().unwrap();
        let all: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
        let messages: [(&str, u8, Ipv4Addr); 5] = [
            ("IGMPv1 report", 0x12, group),
            ("IGMPv2 report", 0x16, group),
            ("IGMPv2 leave", 0x17, Ipv4Addr::new(224, 0, 0, 2)),
            ("IGMPv3 report", 0x22, Ipv4Addr::new(224, 0, 0, 22)),
            // Last: who asks is the querier from then on, and a bridge listens to him.
            ("IGMP query", 0x11, all),
        ];
        for (name, kind, to) in messages {
            let mut bytes = vec![kind, 0, 0, 0];
            if kind == 0x22 {
                // One record: the group changes to "from anybody" (RFC 3376, 4.2).
                bytes.extend([0, 0, 0, 1, 4, 0, 0, 0]);
            }
            bytes.extend(group.octets());
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement();
            bytes[2..4].copy_from_slice(&sum.to_ne_bytes());
            let packet = Packet::new(source, to, Transport::Raw(2, bytes)).ttl(1).options(&[148, 4, 0, 0]);
            let frame = Frame::ip(own, group_mac(to.into()), &packet);
            scene.partly(name, &frame, &[("no-rule", 2)], &["api", "db"], &["db", "data-other"]);
        }
        scene.attacks
    });
}

#[test]
fn loopback_addresses_are_not_believed_on_a_wire() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db, api, gateway) = (scene.own(), scene.mac("db"), scene.mac("api"), scene.gateway_mac());
        for (six, loops) in [(false, ["127.0.0.1", "127.9.9.9"]), (true, ["::1", "::1"])] {
            for address in loops {
                let address: IpAddr = address.parse().unwrap();
                let cases = [
                    ("from", address, scene.address("db", six), db, "db"),
                    ("to", scene.address("cache", six), address, db, "db"),
                    ("to", scene.address("cache", six), address, api, "api"),
                    ("to", scene.address("cache", six), address, gateway, "host"),
                    ("from and to", address, address, gateway, "host"),
                ];
                for (way, source, destination, mac, victim) in cases {
                    let packet = scene.udp(source, destination);
                    let reason = "loopback";
                    scene.add(
                        format!("{way} {address} to {victim}"),
                        &Frame::ip(own, mac, &packet),
                        reason,
                        &[victim],
                    );
                }
            }
        }
        let mapped: Ipv6Addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let packet = scene.udp(scene.address("cache", true), mapped.into());
        scene.add("to a mapped loopback", &Frame::ip(own, db, &packet), "malformed", &["db"]);
        let packet = scene.udp(mapped.into(), scene.address("db", true));
        scene.add("from a mapped loopback", &Frame::ip(own, db, &packet), "malformed", &["db"]);
        let packet = Packet::new(
            scene.address("cache", true),
            scene.address("db", false),
            Transport::Udp(1, 2, scene.mark()),
        );
        scene.add("to a mapped address of the same tier", &Frame::ip(own, db, &packet), "malformed", &["db"]);
        scene.attacks
    });
}

/// DHCP and listener reports pass before any rule, but as what they are: a client's question, from nobody or a true address.
#[test]
fn a_rogue_server_and_a_forged_client_get_nowhere() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, api, gateway) = (scene.own(), scene.mac("api"), scene.gateway_mac());
        let everybody = [0xff; 6];
        let datagram = |scene: &Scene<'_>, from: IpAddr, to: &str, ports: (u16, u16)| {
            let to: IpAddr = to.parse().unwrap();
            Packet::new(from, to, Transport::Udp(ports.0, ports.1, scene.mark()))
        };
        let (cache, cache6) = (scene.address("cache", false), scene.address("cache", true));
        let v4_of = |place: &str| scene.address(place, false);
        let claimed = [
            ("the gateway", scene.gateway(false)),
            ("a neighbour", v4_of("db")),
            ("another tier's", v4_of("api")),
        ];
        for (whose, from) in claimed {
            let packet = datagram(&scene, from, "255.255.255.255", (68, 67));
            let frame = Frame::ip(own, everybody, &packet);
            scene.add(
                format!("a DHCP question from {whose}"),
                &frame,
                "spoofed-address",
                &["api", "db", "host"],
            );
            let packet = datagram(&scene, from, "255.255.255.255", (67, 68));
            let frame = Frame::ip(own, everybody, &packet);
            scene.add(
                format!("a DHCP offer from {whose}"),
                &frame,
                "spoofed-address",
                &["api", "db", "host"],
            );
        }
        // From itself it is a datagram like any other: to its own tier, and to nobody else.
        let offers = [
            ("a DHCP offer to all", datagram(&scene, cache, "255.255.255.255", (67, 68)), everybody),
            (
                "a DHCPv6 reply to all",
                datagram(&scene, cache6, "ff02::1", (547, 546)),
                [0x33, 0x33, 0, 0, 0, 1],
            ),
        ];
        for (name, mut packet, mac) in offers {
            // The mark is that of the moment.
            if let Transport::Udp(_, _, data) = &mut packet.transport {
                *data = scene.mark();
            }
            let frame = Frame::ip(own, mac, &packet);
            scene.partly(name, &frame, &[("no-rule", 2)], &["api", "db", "host"], &["db", "data-other"]);
        }
        let to = scene.address("api", false).to_string();
        let packet = datagram(&scene, cache, &to, (67, 68));
        scene.add("a DHCP offer to one", &Frame::ip(own, api, &packet), "no-rule", &["api"]);
        let packet = datagram(&scene, cache, &to, (68, 67));
        scene.add("a DHCP question to one", &Frame::ip(own, api, &packet), "no-rule", &["api"]);
        let local = |mac: [u8; 6]| -> Ipv6Addr {
            hydra_common::address::Address::link_local_of(&hydra_common::address::Mac(mac)).octets().into()
        };
        for (whose, from) in [("the gateway's", local(gateway)), ("another's", local(api))] {
            let packet = datagram(&scene, from.into(), "ff02::1:2", (546, 547));
            let frame = Frame::ip(own, [0x33, 0x33, 0, 1, 0, 2], &packet);
            scene.add(
                format!("a DHCPv6 question from {whose}"),
                &frame,
                "spoofed-address",
                &["api", "db", "host"],
            );
            let report = listener_report(from, "ff02::fb".parse().unwrap());
            let frame = Frame::ip(own, [0x33, 0x33, 0, 0, 0, 0x16], &report);
            scene.add(
                format!("a listener report from {whose}"),
                &frame,
                "spoofed-neighbour",
                &["api", "db", "host"],
            );
        }
        // The host's own link-local address is no way around the rule against calling it.
        for port in [22, 9473, 2375] {
            let transport = Transport::Tcp(40_000, port, flags::SYN, scene.mark());
            let packet = Packet::new(cache6, local(gateway), transport);
            scene.add(
                format!("tcp/{port} of the host by link-local"),
                &Frame::ip(own, gateway, &packet),
                "no-rule",
                &["host"],
            );
        }
        scene.attacks
    });
}
