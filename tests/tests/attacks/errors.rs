//! ICMP errors are no tunnel and no weapon: what quotes no live flow of its receiver, from somebody who may say so, gets nowhere.

use std::net::IpAddr;
use std::time::Duration;

use hydra_tests::agent::Agent;
use hydra_tests::attack::{Attack, Scene, with_hydra, without_hydra};
use hydra_tests::lab::Lab;
use hydra_tests::packets::{Frame, Packet, Transport, flags, protocol};
use hydra_tests::probe::{Echo, Kind, Stream};
use hydra_tests::sample;

use super::{nothing, play};

/// (name, type, code) of what can end or slow a conversation, by family.
fn kinds(six: bool) -> &'static [(&'static str, u8, u8)] {
    if six {
        &[("unreachable", 1, 4), ("too big", 2, 0), ("time exceeded", 3, 0), ("parameter problem", 4, 1)]
    } else {
        &[
            ("unreachable", 3, 3),
            ("too big", 3, 4),
            ("source quench", 4, 0),
            ("time exceeded", 11, 0),
            ("parameter problem", 12, 0),
        ]
    }
}

/// An error about a quoted packet, with the scene's next mark behind the quotation.
fn error(scene: &Scene<'_>, from: IpAddr, to: IpAddr, (kind, code): (u8, u8), quoted: &[u8]) -> Packet {
    let data = [quoted, &scene.mark()].concat();
    Packet::new(from, to, Transport::Icmp(kind, code, [0, 0, 5, 0], data))
}

/// The quotation of a packet: its header and eight bytes, as routers send it.
fn quoted(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes.truncate(if packet.source.is_ipv6() { 48 } else { 28 });
    bytes
}

fn about_nothing(lab: &Lab) -> Vec<Attack> {
    let mut scene = Scene::new(lab, "cache");
    let (own, db_mac, api_mac, gateway) =
        (scene.own(), scene.mac("db"), scene.mac("api"), scene.gateway_mac());
    for six in [false, true] {
        let family = if six { "IPv6" } else { "IPv4" };
        let (cache, db, api) =
            (scene.address("cache", six), scene.address("db", six), scene.address("api", six));
        let web = lab.address("web-other", six).unwrap();
        let far: IpAddr = if six { "2001:db8:51::2" } else { "198.51.100.2" }.parse().unwrap();
        for &(name, kind, code) in kinds(six) {
            // As if the victim had sent something here, or elsewhere.
            for (whose, other) in
                [("to the attacker", cache), ("to the outside", far), ("to another tier", web)]
            {
                for (victim, mac) in [(db, db_mac), (api, api_mac)] {
                    let packet = error(
                        &scene,
                        cache,
                        victim,
                        (kind, code),
                        &quoted(&Packet::udp(victim, other, 40_000, 53)),
                    );
                    let who = if victim == db { "db" } else { "api" };
                    let name = format!("{family} {name} about a call of {who} {whose}");
                    scene.add(name, &Frame::ip(own, mac, &packet), "unmatched-icmp-error", &[who]);
                }
            }
            let packet =
                error(&scene, cache, web, (kind, code), &quoted(&Packet::syn(web, cache, 40_000, 80)));
            scene.add(
                format!("{family} {name}, routed"),
                &Frame::ip(own, gateway, &packet),
                "unmatched-icmp-error",
                &["web-other"],
            );
            // Of two others: the receiver is not the one that the quoted packet came from.
            let packet = error(&scene, cache, db, (kind, code), &quoted(&Packet::udp(api, web, 40_000, 53)));
            let frame = Frame::ip(own, db_mac, &packet);
            scene.add(
                format!("{family} {name} about somebody else's"),
                &frame,
                "unmatched-icmp-error",
                &["db"],
            );
            let packet = error(&scene, far, db, (kind, code), &quoted(&Packet::udp(db, far, 40_000, 53)));
            let frame = Frame::ip(own, db_mac, &packet);
            scene.add(
                format!("{family} {name} from a router that it is not"),
                &frame,
                "spoofed-address",
                &["db"],
            );
        }
        let (kind, code) = if six { (1, 4) } else { (3, 3) };
        let number = if six { protocol::ICMPV6 } else { protocol::ICMP };
        let inside = quoted(&Packet::udp(db, cache, 40_000, 53));
        let nested = Packet::new(db, cache, Transport::Icmp(kind, code, [0; 4], inside.clone()));
        let packet = error(&scene, cache, db, (kind, code), &nested.bytes());
        scene.add(
            format!("{family} about an error"),
            &Frame::ip(own, db_mac, &packet),
            "unmatched-icmp-error",
            &["db"],
        );
        let ping = Packet::ping(db, cache, 7);
        let packet = error(&scene, cache, db, (kind, code), &quoted(&ping));
        scene.add(
            format!("{family} about a ping"),
            &Frame::ip(own, db_mac, &packet),
            "unmatched-icmp-error",
            &["db"],
        );
        let raw = Packet::new(db, cache, Transport::Raw(protocol::GRE, vec![0; 8]));
        let packet = error(&scene, cache, db, (kind, code), &quoted(&raw));
        scene.add(
            format!("{family} about GRE"),
            &Frame::ip(own, db_mac, &packet),
            "unmatched-icmp-error",
            &["db"],
        );
        // What is quoted is cut short or is no packet: the mark is padding here, behind the packet's end.
        for (what, bytes) in [
            ("nothing", vec![]),
            ("half a header", inside[..12].to_vec()),
            ("a header alone", inside[..if six { 40 } else { 20 }].to_vec()),
            ("a header and two bytes", inside[..if six { 42 } else { 22 }].to_vec()),
            ("zeros", vec![0; 48]),
            (
                "the other family",
                quoted(&Packet::udp(
                    lab.address("db", !six).unwrap(),
                    lab.address("cache", !six).unwrap(),
                    1,
                    2,
                )),
            ),
        ] {
            let packet = Packet::new(cache, db, Transport::Icmp(kind, code, [0; 4], bytes));
            scene.add(
                format!("{family} about {what}"),
                &Frame::ip(own, db_mac, &packet),
                "malformed",
                &["db"],
            );
        }
        // The other family's ICMP.
        let other = if six { protocol::ICMP } else { protocol::ICMPV6 };
        let bytes = [&[kind, code, 0, 0, 0, 0, 0, 0][..], &inside].concat();
        let packet = Packet::new(cache, db, Transport::Raw(other, bytes.clone()));
        scene.add(
            format!("{family} in the other family's protocol"),
            &Frame::ip(own, db_mac, &packet),
            "malformed",
            &["db"],
        );
        let packet = Packet::new(cache, db, Transport::Raw(number, bytes[..6].to_vec()));
        scene.add(format!("{family} of six bytes"), &Frame::ip(own, db_mac, &packet), "malformed", &["db"]);
        // To all: errors are for one.
        let group: IpAddr = if six { "ff02::1" } else { "224.0.0.1" }.parse().unwrap();
        let mac = if six { [0x33, 0x33, 0, 0, 0, 1] } else { [1, 0, 0x5e, 0, 0, 1] };
        let packet =
            error(&scene, cache, group, (kind, code), &quoted(&Packet::udp(group, cache, 40_000, 53)));
        let frame = Frame::ip(own, mac, &packet);
        scene.add(format!("{family} to all"), &frame, "unmatched-icmp-error", &["db", "api", "host"]);
        // An answer that nobody asked for is no error, and no way through either: it opens nothing and obeys the rules.
        let packet = Packet::new(
            cache,
            api,
            Transport::Icmp(if six { 129 } else { 0 }, 0, [0, 7, 0, 1], scene.mark()),
        );
        scene.add(
            format!("{family} pong to nothing"),
            &Frame::ip(own, api_mac, &packet),
            "no-rule",
            &["api"],
        );
    }
    scene.attacks
}

#[test]
fn an_error_about_nothing_reaches_nobody() {
    play(about_nothing);
}

/// By a meddler on the same bridge, with the true tuple of a live connection of two others.
fn about_a_live_flow(lab: &Lab, stream: &Stream, six: bool) -> Vec<Attack> {
    let (local, db) = (stream.local().unwrap(), lab.address("db", six).unwrap());
    let mut scene = Scene::new(lab, "cache");
    let (own, api_mac, db_mac) = (scene.own(), scene.mac("api"), scene.mac("db"));
    let cache = scene.address("cache", six);
    for &(name, kind, code) in kinds(six) {
        let call = Packet::new(local.ip(), db, Transport::Tcp(local.port(), 5432, flags::ACK, vec![]));
        let answer = Packet::new(db, local.ip(), Transport::Tcp(5432, local.port(), flags::ACK, vec![]));
        for (who, mac, victim, about) in [("api", api_mac, local.ip(), call), ("db", db_mac, db, answer)] {
            let packet = error(&scene, cache, victim, (kind, code), &quoted(&about));
            let frame = Frame::ip(own, mac, &packet);
            scene.add(format!("{name} to {who}"), &frame, "unmatched-icmp-error", &[who]);
            let peer = if victim == db { local.ip() } else { db };
            let packet = error(&scene, peer, victim, (kind, code), &quoted(&about));
            let frame = Frame::ip(own, mac, &packet);
            scene.add(format!("{name} to {who} in the other's name"), &frame, "spoofed-address", &[who]);
        }
    }
    scene.attacks
}

/// He can neither end it nor make its packets small.
#[test]
fn an_error_about_a_live_flow_of_two_others_reaches_nobody() {
    let control = hydra_tests::attack::quiet(&sample::policy(), |_| {}, None).unwrap();
    let lab = hydra_tests::attack::quiet(&sample::policy(), |_| {}, Some(&control)).unwrap();
    let agent = Agent::start(&lab.world, &sample::policy()).unwrap();
    for (lab, agent) in [(&control, None), (&lab, Some(&agent))] {
        let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432))]).unwrap();
        for six in [false, true] {
            let db = lab.address("db", six).unwrap();
            let mut stream = Stream::open(&lab.world, "api", (db, 5432).into()).unwrap();
            let attacks = about_a_live_flow(lab, &stream, six);
            match agent {
                None => nothing(&without_hydra(lab, &attacks).unwrap()),
                Some(agent) => {
                    nothing(&with_hydra(lab, agent, &attacks).unwrap());
                    stream.exchange(100_000, Duration::from_secs(10)).unwrap();
                }
            }
        }
    }
}
