//! A container cannot lie about who it is: forged frames are denied with their reasons and reach nobody, and nothing that somebody
//! else claims changes where packets go. Each lie is told without hydra first, to show that it would work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hydra_tests::agent::Agent;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::messages::{Arp, BROADCAST, neighbour_advertisement, router_advertisement};
use hydra_tests::packets::{Frame, Packet, Transport};
use hydra_tests::probe::{Echo, Kind, Outcome};
use hydra_tests::sample;
use hydra_tests::sniffer::{Sniffer, send_frames};

struct Lie {
    name: &'static str,
    reason: &'static str,
    /// Who must not see it.
    victim: &'static str,
    frame: Vec<u8>,
    /// What the victim would see of it.
    mark: Vec<u8>,
}

fn v4(lab: &Lab, place: &str) -> Ipv4Addr {
    let IpAddr::V4(ip) = lab.address(place, false).unwrap() else { panic!("{place}") };
    ip
}

fn v6(lab: &Lab, place: &str) -> Ipv6Addr {
    let IpAddr::V6(ip) = lab.address(place, true).unwrap() else { panic!("{place}") };
    ip
}

/// All told by `cache`, which shares a bridge with `db`, `api`'s second port and `data-other`.
fn lies(lab: &Lab) -> Vec<Lie> {
    let (own, db) = (lab.world.mac("cache", "eth0").unwrap(), lab.world.mac("db", "eth0").unwrap());
    let other = lab.world.mac("data-other", "eth0").unwrap();
    let udp = |from: IpAddr, to: IpAddr, mark: &str| {
        Packet::new(from, to, Transport::Udp(4000, 5000, mark.as_bytes().to_vec()))
    };
    let lie = |name, reason, mark: &str, frame: Frame| Lie {
        name,
        reason,
        victim: "db",
        frame: frame.bytes(),
        mark: mark.as_bytes().to_vec(),
    };
    let mut lies = Vec::new();
    for six in [false, true] {
        let address = |place: &str| lab.address(place, six).unwrap();
        let marked = |mark: &str| format!("{mark}{six}");
        let mark = marked("stolen-address");
        let packet = udp(address("data-other"), address("db"), &mark);
        lies.push(lie("another's address", "spoofed-address", &mark, Frame::ip(own, db, &packet)));
        let mark = marked("stolen-mac");
        let packet = udp(address("cache"), address("db"), &mark);
        lies.push(lie("another's MAC", "spoofed-mac", &mark, Frame::ip(other, db, &packet)));
        let mark = marked("both");
        let packet = udp(address("data-other"), address("db"), &mark);
        lies.push(lie("another's address and MAC", "spoofed-mac", &mark, Frame::ip(other, db, &packet)));
        let far: IpAddr = if six { "2001:db8:51::2" } else { "198.51.100.2" }.parse().unwrap();
        let mark = marked("outside-address");
        lies.push(lie(
            "an outside address",
            "spoofed-address",
            &mark,
            Frame::ip(own, db, &udp(far, address("db"), &mark)),
        ));
    }
    let gateway: Ipv4Addr = "10.70.3.1".parse().unwrap();
    let arp = |message: Arp| message.frame(own, BROADCAST);
    let poison = [
        ("ARP for the gateway's address", Arp::reply((own, gateway), (db, v4(lab, "db")))),
        ("ARP for another's address", Arp::reply((own, v4(lab, "data-other")), (db, v4(lab, "db")))),
    ];
    for (name, message) in poison {
        let frame = arp(message);
        let mark = frame.payload[8..18].to_vec();
        lies.push(Lie { name, reason: "spoofed-arp", victim: "db", frame: frame.bytes(), mark });
    }
    let gateway: Ipv6Addr = "fd70:3::1".parse().unwrap();
    for (name, target) in
        [("ND for the gateway's address", gateway), ("ND for another's address", v6(lab, "data-other"))]
    {
        let packet = neighbour_advertisement(v6(lab, "cache"), v6(lab, "db"), target, own);
        let mut mark = target.octets().to_vec();
        mark.extend([2, 1]);
        mark.extend(own);
        let frame = Frame::ip(own, db, &packet).bytes();
        lies.push(Lie { name, reason: "spoofed-neighbour", victim: "db", frame, mark });
    }
    let link_local = hydra_common::address::Address::link_local_of(&hydra_common::address::Mac(own));
    let packet = router_advertisement(link_local.octets().into());
    let mark = packet.bytes()[40..].to_vec();
    let frame = Frame::ip(own, [0x33, 0x33, 0, 0, 0, 1], &packet).bytes();
    lies.push(Lie { name: "a router advertisement", reason: "router-message", victim: "db", frame, mark });
    let mark = b"another ethertype".to_vec();
    let frame =
        Frame { destination: db, source: own, tags: vec![], ethertype: 0x88b5, payload: mark.clone() };
    lies.push(Lie {
        name: "another EtherType",
        reason: "ethertype",
        victim: "db",
        frame: frame.bytes(),
        mark,
    });
    let packet = udp(lab.address("cache", false).unwrap(), lab.address("db", false).unwrap(), "tagged");
    let frame = Frame::ip(own, db, &packet).tag(0x8100, 7);
    lies.push(Lie {
        name: "a VLAN tag",
        reason: "vlan",
        victim: "db",
        frame: frame.bytes(),
        mark: b"tagged".to_vec(),
    });
    lies
}

/// A frame that arrives in any case, sent after the others: when it is there they would be, too.
fn last(lab: &Lab) -> (Vec<u8>, Vec<u8>) {
    let (own, db) = (lab.world.mac("cache", "eth0").unwrap(), lab.world.mac("db", "eth0").unwrap());
    let (from, to) = (lab.address("cache", false).unwrap(), lab.address("db", false).unwrap());
    let packet = Packet::new(from, to, Transport::Udp(4001, 5001, b"the honest last one".to_vec()));
    (Frame::ip(own, db, &packet).bytes(), b"the honest last one".to_vec())
}

#[test]
fn without_hydra_every_lie_arrives() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let sniffer = Sniffer::start(&lab.world, "db").unwrap();
    for lie in lies(&lab) {
        send_frames(&lab.world, "cache", "eth0", std::slice::from_ref(&lie.frame)).unwrap();
        assert!(sniffer.wait_for(&lie.mark, Duration::from_secs(5)), "{}", lie.name);
    }
}

#[test]
fn with_hydra_every_lie_is_denied_for_its_reason_and_reaches_nobody() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let sniffer = Sniffer::start(&lab.world, "db").unwrap();
    for lie in lies(&lab) {
        let before = lab.dropped(&agent, lie.reason).unwrap();
        send_frames(&lab.world, "cache", "eth0", std::slice::from_ref(&lie.frame)).unwrap();
        let counted = eventually(|| lab.dropped(&agent, lie.reason).unwrap() > before);
        assert!(counted, "{}: not denied as {}", lie.name, lie.reason);
        assert_eq!(lab.dropped(&agent, lie.reason).unwrap(), before + 1, "{}", lie.name);
    }
    let (frame, mark) = last(&lab);
    send_frames(&lab.world, "cache", "eth0", &[frame]).unwrap();
    assert!(sniffer.wait_for(&mark, Duration::from_secs(5)), "an honest frame does not arrive");
    for lie in lies(&lab) {
        assert_eq!(lie.victim, "db");
        assert!(sniffer.with(&lie.mark).is_empty(), "{} arrived", lie.name);
    }
    let endpoints = agent.json(&lab.world, &["endpoints"]).unwrap();
    assert!(
        endpoints.as_array().unwrap().iter().all(|e| e["attached"] == true || e["tier"] == "unmanaged"),
        "{endpoints}"
    );
}

#[test]
fn an_address_that_a_container_gives_itself_is_not_believed() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004))]).unwrap();
    let stolen = lab.address("shop", false).unwrap();
    // What shop may do, web-other may not, whatever address it takes.
    lab.world.ip("web-other", &[format!("address add {stolen}/24 dev eth0")]).unwrap();
    let probes = [hydra_tests::probe::Probe {
        from: "web-other".into(),
        source: Some(stolen),
        to: lab.address("api", false).unwrap(),
        kind: Kind::Tcp(8004),
    }];
    let outcome = hydra_tests::probe::probe(&lab.world, &probes, hydra_tests::lab::SILENCE).unwrap();
    assert_eq!(outcome, [Outcome::TimedOut]);
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), false).unwrap(), Outcome::Answered);
    assert!(
        lab.dropped(&agent, "spoofed-address").unwrap() + lab.dropped(&agent, "spoofed-arp").unwrap() > 0
    );
    drop::<Agent>(agent);
}
