//! Random frames as an attacker sends them: true ones, true ones with one thing forged, and broken ones. From a seed.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use hydra_common::address::{Address, Mac};

use crate::messages::{
    Arp, BROADCAST, dhcp_discover, dhcpv6_solicit, listener_report, neighbour_advertisement,
    neighbour_solicitation, router_advertisement,
};
use crate::packets::{Extension, Frame, Packet, Transport, flags, protocol};
use crate::random::Random;
use crate::stage::Stage;

/// A test run of the kernel takes no less: an Ethernet header, and one of IPv4, or of IPv6 where the EtherType says so.
const SHORTEST: usize = 34;
const SHORTEST6: usize = 54;

/// One frame of a container's first interface.
pub fn hostile(random: &mut Random, stage: &Stage, sender: &str) -> Result<Vec<u8>> {
    let mut frame = whole(random, stage, sender)?;
    if random.one_in(40) {
        let other = if random.one_in(2) { "db" } else { "cron" };
        frame.source = stage.mac(other, 0)?;
    }
    let mut frame = broken(random, &frame);
    let shortest = if frame[12..14] == [0x86, 0xdd] { SHORTEST6 } else { SHORTEST };
    if frame.len() < shortest {
        frame.resize(shortest, 0);
    }
    Ok(frame)
}

/// An address to send from or to: mostly true ones, some of nobody, some special.
fn address(random: &mut Random, stage: &Stage, v6: bool) -> IpAddr {
    let special: [&str; 12] = [
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "169.254.169.254",
        "10.70.3.255",
        "10.70.2.200",
        "::",
        "ff02::1",
        "fe80::1",
        "fd70:2::c8",
        "2001:db8:cafe::5",
        "203.0.113.5",
    ];
    let of_family = |ip: &IpAddr| ip.is_ipv6() == v6;
    if random.one_in(4) {
        let fitting: Vec<IpAddr> = special.iter().filter_map(|s| s.parse().ok()).filter(of_family).collect();
        return *random.one(&fitting);
    }
    let topology = &stage.deployment.topology;
    let all: Vec<IpAddr> =
        topology.places().iter().flat_map(|place| topology.addresses(place)).filter(of_family).collect();
    *random.one(&all)
}

fn transport(random: &mut Random, v6: bool) -> Transport {
    if random.one_in(3) {
        // What the sample allows to some.
        return match random.below(3) {
            0 => Transport::Tcp(40_000, 8004, flags::SYN, vec![]),
            1 => Transport::Icmp(if v6 { 128 } else { 8 }, 0, [0, 7, 0, 1], vec![0x68; 9]),
            _ => Transport::Udp(40_000, 53, vec![0x68; 9]),
        };
    }
    let ports = [0, 22, 53, 67, 68, 80, 546, 547, 5432, 6379, 8000, 8004, 8009, 8010, 9003, 40_000];
    let (from, to) = (*random.one(&ports), *random.one(&ports));
    let data = vec![0x68; random.below(20)];
    match random.below(10) {
        0 | 1 => Transport::Tcp(from, to, flags::SYN, data),
        2 => Transport::Tcp(from, to, random.number() as u8, data),
        3 | 4 => Transport::Udp(from, to, data),
        5 => Transport::Sctp(from, to, 1),
        6 | 7 => {
            let kinds: [u8; 24] = [
                0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 17, 18, 128, 129, 130, 131, 133, 134, 137, 143,
                155,
            ];
            let kind = *random.one(&kinds);
            // What an error quotes must begin like a packet of its family to be more than malformed.
            let version = if v6 { 0x60 } else { 0x45 };
            Transport::Icmp(kind, 0, [0, 7, 0, 1], [vec![version], vec![0; random.below(60)]].concat())
        }
        _ => {
            let numbers =
                [0, 1, 2, 4, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 89, 132, 135, 139, 140, 253, 255];
            let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.number() as u8).collect();
            Transport::Raw(*random.one(&numbers), bytes)
        }
    }
}

fn extension(random: &mut Random) -> Extension {
    let options = |random: &mut Random| match random.below(4) {
        0 => vec![],
        1 => vec![5, 2, 0, 0],
        2 => vec![0; 6 + 8 * random.below(4)],
        _ => (0..6).map(|_| random.number() as u8).collect(),
    };
    match random.below(12) {
        0..=2 => Extension::HopByHop(options(random)),
        3..=5 => Extension::Destination(options(random)),
        6 => Extension::Routing(random.below(5) as u8, random.below(3) as u8),
        7 => Extension::Routing(2, 0),
        8 => Extension::Fragment(random.below(3) as u16, random.one_in(2), random.number() as u32),
        9 | 10 => Extension::Auth(random.below(6) as u8),
        _ => Extension::Raw(
            *random.one(&[protocol::DESTINATION, protocol::AUTH, protocol::ROUTING, 135, 59]),
            (0..8).map(|_| random.below(12) as u8).collect(),
        ),
    }
}

/// IPv4 options: some that exist, some nonsense, in random order.
fn options(random: &mut Random) -> Vec<u8> {
    let some: [&[u8]; 9] = [
        &[1],
        &[0],
        &[7, 7, 4, 0, 0, 0, 0],
        &[148, 4, 0, 0],
        &[68, 8, 5, 0, 0, 0, 0, 0],
        &[131, 7, 4, 10, 0, 0, 1],
        &[137, 3, 4],
        &[7, 1],
        &[130, 40],
    ];
    let mut options: Vec<u8> = Vec::new();
    for _ in 0..random.below(13) {
        // The harmless ones mostly: the rest ends the walk.
        let next = if random.one_in(6) { *random.one(&some) } else { some[[0, 2, 3, 4][random.below(4)]] };
        if options.len() + next.len() <= 40 {
            options.extend(next);
        }
    }
    options
}

/// A frame, well made.
fn whole(random: &mut Random, stage: &Stage, sender: &str) -> Result<Frame> {
    let own = stage.mac(sender, 0)?;
    let v6 = random.one_in(2);
    let mine = stage.deployment.topology.addresses(sender).into_iter().find(|a| a.is_ipv6() == v6);
    let mine = mine.context("a sender without such an address")?;
    let containers = &stage.deployment.topology.containers;
    let to_mac = match random.below(8) {
        0 => {
            let container = random.one(containers);
            stage.mac(&container.name, random.below(container.ports.len()))?
        }
        1 => *random.one(&[BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]]),
        _ => stage.gateway(sender, 0)?,
    };
    let source = if random.one_in(8) { address(random, stage, v6) } else { mine };
    if random.one_in(12) {
        if let (IpAddr::V4(source), IpAddr::V4(target)) = (source, address(random, stage, false)) {
            let arp = Arp { operation: random.below(4) as u16, ..Arp::request((own, source), target) };
            return Ok(arp.frame(own, to_mac));
        }
        if let (IpAddr::V6(source), IpAddr::V6(target), IpAddr::V6(to)) =
            (source, address(random, stage, true), address(random, stage, true))
        {
            let packet = match random.below(3) {
                0 => neighbour_advertisement(source, to, target, own),
                1 => neighbour_advertisement(source, to, source, own),
                _ => neighbour_solicitation(source, own, target),
            };
            return Ok(Frame::ip(own, to_mac, &packet));
        }
    }
    if random.one_in(25) {
        let source = match source {
            IpAddr::V6(source) => source,
            IpAddr::V4(_) => Address::link_local_of(&Mac(own)).octets().into(),
        };
        let mut packet = match random.below(4) {
            0 => dhcp_discover(own),
            1 => dhcpv6_solicit(source),
            2 => listener_report(source, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
            _ => router_advertisement(source),
        };
        if random.one_in(3) {
            packet.source = address(random, stage, packet.source.is_ipv6());
        }
        if random.one_in(4) {
            packet.destination = address(random, stage, packet.source.is_ipv6());
        }
        return Ok(Frame::ip(own, to_mac, &packet));
    }
    let destination = address(random, stage, v6);
    let mut packet = Packet::new(source, destination, transport(random, v6));
    packet.ttl = *random.one(&[64, 64, 64, 1, 0, 255]);
    if v6 {
        if random.one_in(2) {
            for _ in 0..random.below(9) {
                packet = packet.extension(extension(random));
            }
        }
    } else {
        if random.one_in(2) {
            packet = packet.options(&options(random));
        }
        if random.one_in(12) {
            packet.id = random.number() as u16;
            packet = packet.fragment(random.below(3) as u16 * 100, random.one_in(2));
        }
    }
    Ok(Frame::ip(own, to_mac, &packet))
}

/// And what an attacker makes of it.
fn broken(random: &mut Random, frame: &Frame) -> Vec<u8> {
    let mut frame = frame.clone();
    if random.one_in(20) {
        for _ in 0..=random.below(3) {
            frame = frame.tag(*random.one(&[0x8100, 0x88a8, 0x9100]), random.below(4096) as u16);
        }
    }
    let mut bytes = frame.bytes();
    if random.one_in(2) {
        return bytes;
    }
    for _ in 0..=random.below(4) {
        let value = random.number() as u8;
        let small = *random.one(&[0, 1, 2, 4, 5, 6, 15, 17, 43, 44, 51, 58, 60, 0x40, 0x60, 0xff]);
        let mut set = |at: usize, value: u8| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        };
        match random.below(10) {
            // Version and header length.
            0 => set(14, 0x40 | (value & 15)),
            1 => set(14, value),
            // Lengths, of IPv4 and of IPv6.
            2 => set(17, value),
            3 => set(19, value),
            4 => set(*random.one(&[16, 18, 38, 39, 58, 59]), small),
            // The type, the protocol, and where other headers begin.
            5 => set(*random.one(&[12, 13]), *random.one(&[0x08, 0x00, 0x86, 0xdd, 0x06, 0x81, 0x88])),
            6 => set(*random.one(&[20, 21, 23, 34, 35, 46, 47, 54, 55, 62, 63]), small),
            7 => set(14 + random.below(80), value),
            8 => {
                let length = SHORTEST + random.below(bytes.len().max(SHORTEST + 1) - SHORTEST);
                bytes.truncate(length);
            }
            _ => bytes.extend((0..random.below(30)).map(|_| small)),
        }
    }
    bytes
}
