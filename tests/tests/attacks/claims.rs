//! Who a frame says that it is from: addresses, MACs, ARP and neighbour discovery, and tuples of others' flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hydra_tests::attack::{Scene, flows, totals};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::messages::{Arp, BROADCAST, neighbour_advertisement, neighbour_solicitation};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::probe::{Echo, Kind, Stream};
use hydra_tests::sample;
use hydra_tests::sniffer::{Sniffer, send_frames};

use super::play;

fn v4(ip: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(ip) = ip else { panic!("{ip}") };
    ip
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(ip) = ip else { panic!("{ip}") };
    ip
}

fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    hydra_common::address::Address::link_local_of(&hydra_common::address::Mac(mac)).octets().into()
}

/// `cache` shares its bridge with `db` and `data-other` of its own tier and with a port of `api`, of another; `shop` is on another bridge.
#[test]
fn an_address_or_a_mac_of_somebody_else_gets_nowhere() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db, gateway) = (scene.own(), scene.mac("db"), scene.gateway_mac());
        for six in [false, true] {
            let family = if six { "IPv6" } else { "IPv4" };
            let free: IpAddr = if six { "fd70:3::c8" } else { "10.70.3.200" }.parse().unwrap();
            let far: IpAddr = if six { "2001:db8:51::2" } else { "198.51.100.2" }.parse().unwrap();
            let nobody: IpAddr = if six { "::" } else { "0.0.0.0" }.parse().unwrap();
            let claimed = [
                ("of another tier", lab.address("shop", six).unwrap(), true),
                ("of its own tier", scene.address("data-other", six), true),
                ("of a container of two networks, the other one", lab.address("api", six).unwrap(), true),
                ("of an outside machine", far, true),
                ("that nobody has", free, true),
                // A router drops its own address, and none at all; on one link they arrive.
                ("of the gateway", scene.gateway(six), false),
                ("of this host elsewhere", lab.address("host", six).unwrap(), false),
                ("unspecified", nobody, false),
            ];
            let (to, far_to) = (scene.address("db", six), lab.address("web-other", six).unwrap());
            for (whose, source, routed) in claimed {
                let packet = scene.udp(source, to);
                let name = format!("{family} address {whose}");
                scene.add(&name, &Frame::ip(own, db, &packet), "spoofed-address", &["db"]);
                if routed {
                    let packet = scene.udp(source, far_to);
                    let frame = Frame::ip(own, gateway, &packet);
                    scene.add(format!("{name}, routed"), &frame, "spoofed-address", &["web-other"]);
                }
            }
            let true_source = scene.address("cache", six);
            let macs = [
                ("of a neighbour", scene.mac("data-other")),
                ("of the gateway", gateway),
                ("of another bridge's container", lab.world.mac("shop", "eth0").unwrap()),
                ("that nobody has", [2, 0, 0, 0xaa, 0xbb, 0xcc]),
            ];
            for (whose, mac) in macs {
                let packet = scene.udp(true_source, to);
                scene.add(
                    format!("{family} MAC {whose}"),
                    &Frame::ip(mac, db, &packet),
                    "spoofed-mac",
                    &["db"],
                );
            }
            let packet = scene.udp(scene.address("data-other", six), to);
            let frame = Frame::ip(scene.mac("data-other"), db, &packet);
            scene.add(format!("{family} MAC and address of a neighbour"), &frame, "spoofed-mac", &["db"]);
            let packet = scene.udp(true_source, to);
            let frame = Frame::ip([1, 0, 0x5e, 0, 0, 1], db, &packet);
            scene.add(format!("{family} group as MAC, which a bridge drops"), &frame, "spoofed-mac", &[]);
            // What is allowed to one must not reach another, under whose address it is not.
            let packet = scene.udp(true_source, to);
            let frame = Frame::ip(own, scene.mac("api"), &packet);
            scene.add(format!("{family} to a neighbour's MAC"), &frame, "wrong-mac", &["api"]);
            let packet = scene.udp(true_source, to);
            let frame = Frame::ip(own, [2, 0, 0, 0xaa, 0xbb, 0xcd], &packet);
            scene.add(format!("{family} to a MAC that nobody has"), &frame, "wrong-mac", &["api", "db"]);
        }
        scene.attacks
    });
}

#[test]
fn arp_poisons_nobody() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db_mac, api_mac) = (scene.own(), scene.mac("db"), scene.mac("api"));
        let (cache, db, api) = (
            v4(scene.address("cache", false)),
            v4(scene.address("db", false)),
            v4(scene.address("api", false)),
        );
        let (gateway, gateway_mac) = (v4(scene.gateway(false)), scene.gateway_mac());
        let zero: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        let claims: Vec<(&str, Ipv4Addr)> = vec![
            ("the gateway's", gateway),
            ("a neighbour's", db),
            ("another tier's, on this bridge", api),
            ("another tier's, elsewhere", v4(lab.address("shop", false).unwrap())),
            ("an outside machine's", "198.51.100.2".parse().unwrap()),
            ("a free", "10.70.3.200".parse().unwrap()),
            ("a loopback", "127.0.0.1".parse().unwrap()),
            ("a broadcast", "10.70.3.255".parse().unwrap()),
        ];
        for (whose, claim) in claims {
            let (victim, mac, ip) = if claim == db { ("api", api_mac, api) } else { ("db", db_mac, db) };
            let mut told = |what: &str, message: Arp, to: [u8; 6], reaches: &[&str]| {
                scene.add(format!("{what} {whose} address"), &message.frame(own, to), "spoofed-arp", reaches);
            };
            told("an answer with", Arp::reply((own, claim), (mac, ip)), mac, &[victim]);
            told(
                "an answer to the host with",
                Arp::reply((own, claim), (gateway_mac, gateway)),
                gateway_mac,
                &["host"],
            );
            told("a question from", Arp::request((own, claim), ip), BROADCAST, &[victim, "host"]);
            told("a question to one from", Arp::request((own, claim), ip), mac, &[victim]);
            told(
                "an announcement (request) of",
                Arp::request((own, claim), claim),
                BROADCAST,
                &["db", "api", "host"],
            );
            told(
                "an announcement (reply) of",
                Arp::reply((own, claim), (own, claim)),
                BROADCAST,
                &["db", "api", "host"],
            );
        }
        let frame = Arp::reply((scene.mac("data-other"), cache), (db_mac, db)).frame(own, db_mac);
        scene.add("another's MAC inside", &frame, "spoofed-arp", &["db"]);
        let frame =
            Arp::reply((scene.mac("data-other"), v4(scene.address("data-other", false))), (db_mac, db));
        let frame = frame.frame(scene.mac("data-other"), db_mac);
        scene.add("another's MAC and address, inside and outside", &frame, "spoofed-mac", &["db"]);
        let frame = Arp::reply((BROADCAST, gateway), (db_mac, db)).frame(own, db_mac);
        scene.add("everybody's MAC for the gateway", &frame, "spoofed-arp", &["db"]);
        for operation in [0, 3, 4, 8, 9, 10, 0xffff] {
            let frame = Arp { operation, ..Arp::request((own, cache), db) }.frame(own, db_mac);
            scene.add(format!("operation {operation}"), &frame, "malformed", &["db"]);
        }
        let bad: [(&str, usize, u8); 4] = [
            ("hardware type", 1, 6),
            ("protocol type", 2, 0x86),
            ("hardware length", 4, 8),
            ("protocol length", 5, 16),
        ];
        for (what, at, value) in bad {
            let mut frame = Arp::request((own, cache), db).frame(own, db_mac);
            frame.payload[at] = value;
            scene.add(format!("another {what}"), &frame, "malformed", &["db"]);
        }
        let mut frame = Arp::request((own, zero), db).frame(own, db_mac);
        frame.payload.truncate(20);
        // The mark behind it makes the message whole again, with nonsense for its end: the sender field is that of a probe.
        frame.payload[14..18].copy_from_slice(&gateway.octets());
        scene.add("cut short", &frame, "spoofed-arp", &["db"]);
        let mut frame = Arp::request((own, cache), db).frame(own, db_mac);
        frame.ethertype = 0x8035;
        scene.add("RARP", &frame, "ethertype", &["db"]);
        scene.attacks
    });
}

/// A neighbour discovery message with the next mark in an option of its own (RFC 3971, nonce), so that it is carried over a router.
fn marked(scene: &Scene<'_>, mut packet: Packet) -> Packet {
    let Transport::Icmp(_, _, _, data) = &mut packet.transport else { panic!("no ICMP") };
    let mark = scene.mark();
    let units = (mark.len() + 2).div_ceil(8);
    data.extend([14, units as u8]);
    data.extend(&mark);
    data.resize(data.len() + units * 8 - 2 - mark.len(), 0);
    packet
}

#[test]
fn neighbour_discovery_poisons_nobody() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let (own, db_mac, gateway_mac) = (scene.own(), scene.mac("db"), scene.gateway_mac());
        let (cache, db, api) =
            (v6(scene.address("cache", true)), v6(scene.address("db", true)), v6(scene.address("api", true)));
        let (gateway, all) = (v6(scene.gateway(true)), "ff02::1".parse::<Ipv6Addr>().unwrap());
        let everybody = [0x33, 0x33, 0, 0, 0, 1];
        let none = Ipv6Addr::UNSPECIFIED;
        let claims: Vec<(&str, Ipv6Addr)> = vec![
            ("the gateway's", gateway),
            ("the gateway's link-local", link_local(gateway_mac)),
            ("a neighbour's", db),
            ("a neighbour's link-local", link_local(db_mac)),
            ("another tier's, on this bridge", api),
            ("another tier's, elsewhere", v6(lab.address("shop", true).unwrap())),
            ("an outside machine's", "2001:db8:51::2".parse().unwrap()),
            ("a free", "fd70:3::c8".parse().unwrap()),
            ("a loopback", Ipv6Addr::LOCALHOST),
            ("a group's", all),
        ];
        let forged = "spoofed-neighbour";
        for (whose, claim) in claims {
            let (victim, mac, ip) = if claim == db || claim == link_local(db_mac) {
                ("api", scene.mac("api"), api)
            } else {
                ("db", db_mac, db)
            };
            let mut told = |what: &str, packet: Packet, to: [u8; 6], reaches: &[&str]| {
                let packet = marked(&scene, packet);
                scene.add(format!("{what} {whose} address"), &Frame::ip(own, to, &packet), forged, reaches);
            };
            told("an answer with", neighbour_advertisement(cache, ip, claim, own), mac, &[victim]);
            told(
                "an unasked, overriding answer to all with",
                neighbour_advertisement(cache, all, claim, own),
                everybody,
                &["db", "api", "host"],
            );
            told("an answer from and with", neighbour_advertisement(claim, ip, claim, own), mac, &[victim]);
            told(
                "an answer to the host with",
                neighbour_advertisement(cache, gateway, claim, own),
                gateway_mac,
                &["host"],
            );
            // As an answer to the probe of who has just begun to use it (RFC 4862, 5.4): he gives it up.
            told(
                "an answer to a probe of",
                neighbour_advertisement(link_local(own), all, claim, own),
                everybody,
                &["db", "api", "host"],
            );
            let question = Packet { destination: ip.into(), ..neighbour_solicitation(claim, own, ip) };
            told("a question from", question, mac, &[victim]);
        }
        let others = scene.mac("data-other");
        let packet = marked(&scene, neighbour_advertisement(cache, db, cache, others));
        scene.add("another's MAC inside an answer", &Frame::ip(own, db_mac, &packet), forged, &["db"]);
        let question = Packet { destination: db.into(), ..neighbour_solicitation(cache, others, db) };
        let packet = marked(&scene, question);
        scene.add("another's MAC inside a question", &Frame::ip(own, db_mac, &packet), forged, &["db"]);
        let packet = marked(
            &scene,
            neighbour_advertisement(
                v6(scene.address("data-other", true)),
                db,
                v6(scene.address("data-other", true)),
                others,
            ),
        );
        scene.add(
            "another's MAC and address, inside and outside",
            &Frame::ip(others, db_mac, &packet),
            "spoofed-mac",
            &["db"],
        );
        let packet = marked(&scene, neighbour_advertisement(cache, db, cache, own).ttl(254));
        scene.add("a hop limit of 254", &Frame::ip(own, db_mac, &packet), forged, &["db"]);
        // This host would route what is not for it.
        let shop = v6(lab.address("shop", true).unwrap());
        let packet = marked(&scene, neighbour_advertisement(cache, shop, cache, own));
        scene.add("an answer to another network", &Frame::ip(own, gateway_mac, &packet), forged, &["shop"]);
        for (whose, from) in [
            ("the gateway's", gateway),
            ("a neighbour's", db),
            ("an outside", "2001:db8:51::2".parse().unwrap()),
        ] {
            let packet = marked(&scene, neighbour_advertisement(from, db, cache, own));
            let frame = Frame::ip(own, db_mac, &packet);
            scene.add(format!("the truth from {whose} address"), &frame, forged, &["db"]);
        }
        let mut packet = neighbour_solicitation(none, own, db);
        packet.destination = db.into();
        let Transport::Icmp(_, _, _, data) = &mut packet.transport else { panic!("no ICMP") };
        data.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        scene.add("an option of length 0", &Frame::ip(own, db_mac, &packet), "malformed", &["db"]);
        let Transport::Icmp(_, _, _, data) = &mut packet.transport else { panic!("no ICMP") };
        data.truncate(8);
        scene.add("cut short", &Frame::ip(own, db_mac, &packet), "malformed", &["db"]);
        scene.attacks
    });
}

/// A frame that the victim seems to have sent would make an entry whose reply direction is the attacker's: aws-network-policy-agent#584.
#[test]
fn a_forged_first_packet_opens_no_way_back() {
    play(|lab| {
        let mut scene = Scene::new(lab, "cache");
        let own = scene.own();
        for six in [false, true] {
            let (api, cache) = (scene.address("api", six), scene.address("cache", six));
            for tcp in [true, false] {
                let packet = |source: IpAddr, from, destination: IpAddr, to, bits, scene: &Scene<'_>| {
                    let transport = if tcp {
                        Transport::Tcp(from, to, bits, scene.mark())
                    } else {
                        Transport::Udp(from, to, scene.mark())
                    };
                    Packet::new(source, destination, transport)
                };
                // `api` may open to `cache`, `cache` may not open to `api`.
                let forged = packet(api, 40_000, cache, 6379, flags::SYN, &scene);
                let name =
                    format!("{} {}", if six { "IPv6" } else { "IPv4" }, if tcp { "TCP" } else { "UDP" });
                let frame = Frame::ip(own, scene.gateway_mac(), &forged);
                scene.add(format!("{name}: the victim's call, forged"), &frame, "spoofed-address", &["host"]);
                let back = packet(cache, 6379, api, 40_000, flags::SYN | flags::ACK, &scene);
                let frame = Frame::ip(own, scene.mac("api"), &back);
                scene.add(format!("{name}: the answer to it"), &frame, "no-rule", &["api"]);
            }
        }
        scene.attacks
    });
}

/// Frames that look like the replies of a flow that two others have: from a third container, and into the flow's own table entry.
#[test]
fn a_flow_of_two_others_is_no_door() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432))]).unwrap();
    let sniffer = Sniffer::start(&lab.world, "api").unwrap();
    for six in [false, true] {
        let db = lab.address("db", six).unwrap();
        let mut stream = Stream::open(&lab.world, "api", (db, 5432).into()).unwrap();
        stream.turn(Duration::from_secs(5)).unwrap();
        let local = stream.local().unwrap();
        let before = flows(&lab, &agent).unwrap();
        let scene = Scene::new(&lab, "cache");
        let (own, api_mac, db_mac) = (scene.own(), scene.mac("api"), scene.mac("db"));
        let reply = |source: IpAddr, mark: &[u8], bits| {
            Packet::new(source, local.ip(), Transport::Tcp(5432, local.port(), bits, mark.to_vec()))
        };
        let cases = [
            ("with its own MAC", own, db, "spoofed-address", flags::PSH | flags::ACK),
            ("with the replier's MAC", db_mac, db, "spoofed-mac", flags::PSH | flags::ACK),
            ("a reset with its own MAC", own, db, "spoofed-address", flags::RST),
            ("a reset with the replier's MAC", db_mac, db, "spoofed-mac", flags::RST),
        ];
        for (name, mac, source, reason, bits) in cases {
            let mark = format!("into a flow: {name} {six}").into_bytes();
            let counted = totals(&lab, &agent).unwrap().get(reason).copied().unwrap_or(0);
            let frame = Frame::ip(mac, api_mac, &reply(source, &mark, bits)).bytes();
            send_frames(&lab.world, "cache", "eth0", &[frame]).unwrap();
            let now = || totals(&lab, &agent).unwrap().get(reason).copied().unwrap_or(0);
            assert!(eventually(|| now() == counted + 1), "{name}: {reason} not counted");
            assert!(sniffer.with(&mark).is_empty(), "{name}");
        }
        stream.turn(Duration::from_secs(5)).unwrap();
        assert_eq!(flows(&lab, &agent).unwrap(), before);
    }
}
