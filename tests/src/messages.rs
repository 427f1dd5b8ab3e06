//! The messages that keep a network going, and that a liar would forge: ARP, neighbour discovery, router messages, DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packets::{Frame, Packet, Transport, protocol};

/// Everybody on the link.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who says so.
    pub sender: ([u8; 6], Ipv4Addr),
    /// Who is asked, or answered.
    pub target: ([u8; 6], Ipv4Addr),
}

impl Arp {
    /// Who has this address?
    pub fn request(sender: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Self {
        Self { operation: 1, sender, target: ([0; 6], target) }
    }

    /// I have.
    pub fn reply(sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Self {
        Self { operation: 2, sender, target }
    }

    /// In a frame from this MAC (which need not be the sender field's) to that one.
    pub fn frame(&self, source: [u8; 6], destination: [u8; 6]) -> Frame {
        let mut payload = vec![0, 1, 8, 0, 6, 4];
        payload.extend(self.operation.to_be_bytes());
        for (mac, ip) in [self.sender, self.target] {
            payload.extend(mac);
            payload.extend(ip.octets());
        }
        Frame { destination, source, tags: Vec::new(), ethertype: 0x0806, payload }
    }
}

/// Who has this address? With the sender's link-layer address as option.
pub fn neighbour_solicitation(from: Ipv6Addr, mac: [u8; 6], target: Ipv6Addr) -> Packet {
    let o = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, o[13], o[14], o[15]]);
    let mut data = o.to_vec();
    if !from.is_unspecified() {
        data.extend([1, 1]);
        data.extend(mac);
    }
    Packet::new(from, group, Transport::Icmp(135, 0, [0; 4], data)).ttl(255)
}

/// I have this address (which need not be true): solicited and overriding.
pub fn neighbour_advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Packet {
    let mut data = target.octets().to_vec();
    data.extend([2, 1]);
    data.extend(mac);
    Packet::new(from, to, Transport::Icmp(136, 0, [0x60, 0, 0, 0], data)).ttl(255)
}

/// I am your router.
pub fn router_advertisement(from: Ipv6Addr) -> Packet {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    Packet::new(from, all, Transport::Icmp(134, 0, [64, 0, 0x07, 0x08], vec![0; 8])).ttl(255)
}

/// Another router is better for that destination.
pub fn redirect(from: IpAddr, to: IpAddr, better: IpAddr, about: &Packet) -> Packet {
    if let (IpAddr::V4(_), IpAddr::V4(better)) = (from, better) {
        let mut quoted = about.bytes();
        quoted.truncate(28);
        return Packet::new(from, to, Transport::Icmp(5, 1, better.octets(), quoted));
    }
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let data = [octets(better), octets(about.destination)].concat();
    Packet::new(from, to, Transport::Icmp(137, 0, [0; 4], data)).ttl(255)
}

/// A DHCP client that looks for a server.
pub fn dhcp_discover(mac: [u8; 6]) -> Packet {
    let mut data = vec![1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78];
    data.resize(28, 0);
    data.extend(mac);
    data.resize(236, 0);
    data.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    Packet::new(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Transport::Udp(68, 67, data))
}

/// A DHCPv6 client that looks for a server.
pub fn dhcpv6_solicit(from: Ipv6Addr) -> Packet {
    let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    Packet::new(from, servers, Transport::Udp(546, 547, vec![1, 0x12, 0x34, 0x56]))
}

/// A report of multicast groups (MLDv2), behind the router alert option as RFC 3810 has it.
pub fn listener_report(from: Ipv6Addr, group: Ipv6Addr) -> Packet {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    let mut data = vec![4, 0, 0, 0];
    data.extend(group.octets());
    Packet::new(from, all, Transport::Icmp(143, 0, [0, 0, 0, 1], data))
        .ttl(1)
        .extension(crate::packets::Extension::HopByHop(vec![5, 2, 0, 0]))
}

/// A packet of a protocol that has no ports.
pub fn tunnel(source: IpAddr, destination: IpAddr) -> Packet {
    Packet::new(source, destination, Transport::Raw(protocol::GRE, vec![0, 0, 8, 0, 0x45, 0, 0, 20]))
}
