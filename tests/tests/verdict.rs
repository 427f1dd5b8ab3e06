//! Tables of single frames through the kernel's own programs: what each is called, and the verdict, reason and rule that it must get.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on ends here"
)]

mod bench;

use std::net::IpAddr;

use bench::{Bench, Want, allowed, audited, denied};
use hydra_common::verdict::{Hook, Reason};
use hydra_tests::messages::{
    Arp, BROADCAST, dhcp_discover, dhcpv6_solicit, listener_report, neighbour_advertisement,
    neighbour_solicitation, redirect, router_advertisement, tunnel,
};
use hydra_tests::packets::{Extension, Frame, Packet, Transport, flags, protocol};

fn v4(ip: IpAddr) -> std::net::Ipv4Addr {
    let IpAddr::V4(ip) = ip else { panic!("{ip} is no IPv4 address") };
    ip
}

fn v6(ip: IpAddr) -> std::net::Ipv6Addr {
    let IpAddr::V6(ip) = ip else { panic!("{ip} is no IPv6 address") };
    ip
}

#[test]
fn rules_decide_by_both_ends_and_by_port_in_both_families() {
    Bench::run(|b| {
        let rule = |name| allowed(Reason::Rule, Some(name));
        let no_rule = denied(Reason::NoRule, None);
        for family in [false, true] {
            let tcp = |from: &str, to: &str, port| {
                b.packet(from, to, family, |s, d| Packet::syn(s, d, 40_000, port))
            };
            let udp = |from: &str, to: &str, port| {
                b.packet(from, to, family, |s, d| Packet::udp(s, d, 40_000, port))
            };
            let ping = |from: &str, to: &str| b.packet(from, to, family, |s, d| Packet::ping(s, d, 7));
            let cases: Vec<(&str, bench::Sent, Want)> = vec![
                ("a rule with a service's ports", tcp("shop", "api", 8004), rule("shop-api")),
                ("its last port", tcp("shop", "api", 8009), rule("shop-api")),
                ("beyond its last port", tcp("shop", "api", 8010), no_rule.clone()),
                ("before its first port", tcp("shop", "api", 7999), no_rule.clone()),
                ("the same port of another protocol", udp("shop", "api", 8004), no_rule.clone()),
                ("another service of the tier", tcp("shop", "cron", 8004), no_rule.clone()),
                ("another endpoint of the source's tier", tcp("web-other", "api", 8004), no_rule.clone()),
                ("a rule without ports", tcp("api", "db", 5432), rule("app-data")),
                ("a rule without ports, UDP", udp("api", "db", 53), rule("app-data")),
                (
                    "a deny rule before an allow rule",
                    tcp("api", "db", 22),
                    denied(Reason::Rule, Some("no-ssh")),
                ),
                (
                    "a deny rule for a service",
                    udp("cron", "cache", 53),
                    denied(Reason::Rule, Some("no-cache")),
                ),
                ("the other direction of a rule", tcp("db", "api", 5432), no_rule.clone()),
                ("a ping between tiers", ping("db", "shop"), rule("pings")),
                ("inside a tier", tcp("db", "cache", 6379), allowed(Reason::IntraTier, None)),
                ("a deny rule inside a tier", tcp("db", "cache", 22), denied(Reason::Rule, Some("no-ssh"))),
                ("an audit rule", udp("shop", "db", 53), audited(Reason::NoRule, Some("watched"))),
                ("a rule that has expired", tcp("shop", "db", 7777), no_rule.clone()),
                ("port 0 is no port", tcp("shop", "api", 0), no_rule.clone()),
                ("port 0 of a rule without ports", tcp("api", "db", 0), rule("app-data")),
            ];
            for (name, sent, want) in cases {
                b.expect(&format!("{name}, IPv{}", if family { 6 } else { 4 }), &sent, &want);
            }
            let sctp =
                b.packet("shop", "cron", family, |s, d| Packet::new(s, d, Transport::Sctp(1, 9003, 1)));
            b.expect("SCTP by port", &sctp, &rule("calls"));
            let sctp =
                b.packet("shop", "cron", family, |s, d| Packet::new(s, d, Transport::Sctp(1, 9004, 1)));
            b.expect("SCTP to another port", &sctp, &no_rule);
            b.expect("a protocol by number", &b.packet("shop", "cron", family, tunnel), &rule("calls"));
            let esp = |s, d| Packet::new(s, d, Transport::Raw(protocol::ESP, vec![0; 16]));
            b.expect("another protocol", &b.packet("shop", "cron", family, esp), &no_rule);
        }
    });
}

#[test]
fn the_outside_the_host_and_strangers_are_judged_where_the_container_receives() {
    Bench::run(|b| {
        for family in [false, true] {
            let outside: IpAddr = if family { "2001:db8:77::7" } else { "198.51.100.77" }.parse().unwrap();
            let partner: IpAddr = if family { "2001:db8:cafe::7" } else { "203.0.113.7" }.parse().unwrap();
            let to = |place: &str| b.address(place, family);
            let syn = |from, place: &str, port| Packet::syn(from, to(place), 40_000, port);
            let uplink = b.link("hyup0");
            let users = allowed(Reason::Rule, Some("users"));
            b.expect("a user", &b.received("shop", uplink, &syn(outside, "shop", 443)), &users);
            let other = b.received("shop", uplink, &syn(outside, "shop", 8080));
            b.expect("a user on another port", &other, &denied(Reason::NoRule, None));
            let db = b.received("db", uplink, &syn(outside, "db", 443));
            b.expect("a user at the database", &db, &denied(Reason::NoRule, None));
            let call = b.received("shop", uplink, &syn(partner, "shop", 9443));
            b.expect("a partner", &call, &allowed(Reason::Rule, Some("partners")));
            let user = b.received("shop", uplink, &syn(partner, "shop", 443));
            b.expect("a partner is no user", &user, &denied(Reason::NoRule, None));
            let host = b.address("host", family);
            let from_host = b.received("db", 0, &syn(host, "db", 5432));
            b.expect("the host", &from_host, &allowed(Reason::FromHost, None));
            let ssh = b.received("db", 0, &syn(host, "db", 22));
            b.expect("the host against a deny rule", &ssh, &denied(Reason::Rule, Some("no-ssh")));
            let stranger = b.address("stranger", family);
            let port = b.link(&hydra_tests::world::World::port_name("stranger", 0));
            let strange = b.received("shop", port, &syn(stranger, "shop", 443));
            b.expect("a stranger is not external", &strange, &denied(Reason::NoRule, None));
            let forged = b.received("shop", uplink, &syn(to("api"), "shop", 443));
            b.expect("a container's address from outside", &forged, &denied(Reason::SpoofedAddress, None));
            let bridge = b.received("shop", b.link("hybr1"), &syn(to("api"), "shop", 443));
            b.expect("routed from a bridge without a mark", &bridge, &denied(Reason::UnknownSource, None));
            let nobody = b.received("shop", 4_000_000, &syn(to("api"), "shop", 443));
            b.expect("from an interface that nobody knows", &nobody, &denied(Reason::UnknownSource, None));
        }
        let smtp = |to: &str| {
            let packet = Packet::syn(b.address("shop", false), to.parse().unwrap(), 40_000, 25);
            b.sent("shop", &packet)
        };
        b.expect("a block", &smtp("203.0.113.9"), &allowed(Reason::Rule, Some("one-block")));
        b.expect("its exception", &smtp("203.0.113.200"), &denied(Reason::NoRule, None));
        b.expect("another address", &smtp("198.51.100.9"), &denied(Reason::NoRule, None));
        let unknown = Packet::syn(b.address("api", false), "10.70.3.200".parse().unwrap(), 1, 5432);
        b.expect(
            "nobody's address in a tier",
            &b.sent("api", &unknown),
            &denied(Reason::UnknownDestination, None),
        );
    });
}

#[test]
fn what_claims_to_be_what_it_is_not_is_denied() {
    Bench::run(|b| {
        let (shop, api) = (b.mac("shop"), b.mac("api"));
        for family in [false, true] {
            let (s, d) = (b.address("shop", family), b.address("api", family));
            let syn = Packet::syn(s, d, 40_000, 8000);
            let frame = Frame::ip(api, b.gateway("shop"), &syn);
            b.expect("another's MAC", &b.frame("shop", frame.bytes()), &denied(Reason::SpoofedMac, None));
            let stolen = Packet::syn(b.address("cron", family), d, 40_000, 8000);
            b.expect("another's address", &b.sent("shop", &stolen), &denied(Reason::SpoofedAddress, None));
            let free: IpAddr = if family { "fd70:1::77" } else { "10.70.1.77" }.parse().unwrap();
            let free = b.sent("shop", &Packet::syn(free, d, 40_000, 8000));
            b.expect(
                "an address of its network that nobody has",
                &free,
                &denied(Reason::SpoofedAddress, None),
            );
            let far: IpAddr = if family { "2001:db8:9::9" } else { "198.51.100.9" }.parse().unwrap();
            let far = b.sent("shop", &Packet::syn(far, d, 40_000, 8000));
            b.expect("an outside address", &far, &denied(Reason::SpoofedAddress, None));
            let host = b.sent("shop", &Packet::syn(b.address("host", family), d, 40_000, 8000));
            b.expect("the host's address", &host, &denied(Reason::SpoofedAddress, None));
        }
        // A container of two networks may use either address on either port.
        let second = b.addresses("api", false)[1];
        let sent = b.sent("api", &Packet::syn(second, b.address("db", false), 40_000, 5432));
        b.expect("its other network's address", &sent, &allowed(Reason::Rule, Some("app-data")));

        let (own, gateway) = (v4(b.address("shop", false)), "10.70.1.1".parse().unwrap());
        let arp = |arp: Arp, source| b.frame("shop", arp.frame(source, BROADCAST).bytes());
        b.expect("ARP", &arp(Arp::request((shop, own), gateway), shop), &allowed(Reason::Arp, None));
        let probe = Arp::request((shop, "0.0.0.0".parse().unwrap()), own);
        b.expect("an ARP probe", &arp(probe, shop), &allowed(Reason::Arp, None));
        let forged = [
            ("ARP for the gateway's address", Arp::request((shop, gateway), own)),
            (
                "ARP for another's address",
                Arp::reply((shop, v4(b.address("web-other", false))), (api, gateway)),
            ),
            ("ARP with another's MAC inside", Arp::request((api, own), gateway)),
            ("ARP for a free address", Arp::request((shop, "10.70.1.77".parse().unwrap()), gateway)),
        ];
        for (name, message) in forged {
            b.expect(name, &arp(message, shop), &denied(Reason::SpoofedArp, None));
        }

        let own = v6(b.address("shop", true));
        let link_local = bench::link_local(shop);
        let gateway = "fd70:1::1".parse().unwrap();
        let all = "ff02::1".parse().unwrap();
        let good = [
            neighbour_solicitation(own, shop, gateway),
            neighbour_solicitation(link_local, shop, gateway),
            neighbour_solicitation("::".parse().unwrap(), shop, own),
            neighbour_advertisement(own, all, own, shop),
            neighbour_advertisement(link_local, all, link_local, shop),
        ];
        for (number, packet) in good.iter().enumerate() {
            b.expect(
                &format!("true ND {number}"),
                &b.sent("shop", packet),
                &allowed(Reason::Neighbour, None),
            );
        }
        let forged = [
            ("ND for the gateway's address", neighbour_advertisement(own, all, gateway, shop)),
            (
                "ND for another's address",
                neighbour_advertisement(own, all, v6(b.address("web-other", true)), shop),
            ),
            ("ND with another's MAC inside", neighbour_advertisement(own, all, own, api)),
            (
                "ND from another's address",
                neighbour_solicitation(v6(b.address("web-other", true)), shop, gateway),
            ),
            ("ND that came through a router", neighbour_advertisement(own, all, own, shop).ttl(254)),
        ];
        for (name, packet) in forged {
            b.expect(name, &b.sent("shop", &packet), &denied(Reason::SpoofedNeighbour, None));
        }
        let about = Packet::syn(b.address("api", true), own.into(), 1, 2);
        b.expect(
            "a router advertisement",
            &b.sent("shop", &router_advertisement(link_local)),
            &denied(Reason::RouterMessage, None),
        );
        let turn = redirect(own.into(), about.source, own.into(), &about);
        b.expect("an IPv6 redirect", &b.sent("shop", &turn), &denied(Reason::RouterMessage, None));
        let about = Packet::udp(b.address("api", false), b.address("shop", false), 1, 2);
        let turn = redirect(b.address("shop", false), about.source, b.address("shop", false), &about);
        b.expect("an IPv4 redirect", &b.sent("shop", &turn), &denied(Reason::RouterMessage, None));

        b.expect("DHCP", &b.sent("shop", &dhcp_discover(shop)), &allowed(Reason::Dhcp, None));
        b.expect("DHCPv6", &b.sent("shop", &dhcpv6_solicit(link_local)), &allowed(Reason::Dhcp, None));
        let group = "ff02::1:ff00:a".parse().unwrap();
        b.expect(
            "a listener report",
            &b.sent("shop", &listener_report(link_local, group)),
            &allowed(Reason::Mld, None),
        );
    });
}

#[test]
fn what_is_not_understood_is_denied() {
    Bench::run(|b| {
        let (s, d) = (b.address("shop", false), b.address("api", false));
        let syn = Packet::syn(s, d, 40_000, 8000);
        let fine = allowed(Reason::Rule, Some("shop-api"));
        let (mac, gateway) = (b.mac("shop"), b.gateway("shop"));
        let framed = |packet: &Packet| Frame::ip(mac, gateway, packet);
        b.expect("harmless options", &b.sent("shop", &syn.clone().options(&[1, 7, 3, 4])), &fine);
        b.expect(
            "a loose source route",
            &b.sent("shop", &syn.clone().options(&[131, 7, 4, 10, 0, 0, 1])),
            &denied(Reason::SourceRoute, None),
        );
        b.expect(
            "a strict source route",
            &b.sent("shop", &syn.clone().options(&[1, 137, 7, 4, 10, 0, 0, 1])),
            &denied(Reason::SourceRoute, None),
        );
        b.expect(
            "an option of length 0",
            &b.sent("shop", &syn.clone().options(&[7, 0, 0, 0])),
            &denied(Reason::Malformed, None),
        );
        b.expect(
            "a first piece that is no multiple of 8 bytes",
            &b.sent("shop", &syn.clone().fragment(0, true)),
            &denied(Reason::Fragment, None),
        );
        b.expect(
            "a later piece without a first one",
            &b.sent("shop", &syn.clone().fragment(100, false)),
            &denied(Reason::Fragment, None),
        );
        b.expect(
            "a VLAN tag",
            &b.frame("shop", framed(&syn).tag(0x8100, 5).bytes()),
            &denied(Reason::Vlan, None),
        );
        b.expect(
            "QinQ",
            &b.frame("shop", framed(&syn).tag(0x88a8, 5).tag(0x8100, 6).bytes()),
            &denied(Reason::Vlan, None),
        );
        let mut other = framed(&syn);
        other.ethertype = 0x88cc;
        b.expect("another EtherType", &b.frame("shop", other.bytes()), &denied(Reason::EtherType, None));
        let whole = framed(&syn).bytes();
        // The kernel itself refuses to test with less than an IP header.
        for length in [34, 40, 53] {
            b.expect(
                &format!("cut to {length} bytes"),
                &b.frame("shop", whole[..length].to_vec()),
                &denied(Reason::Malformed, None),
            );
        }
        let change = |at: usize, to: u8| {
            let mut bytes = whole.clone();
            bytes[at] = to;
            b.frame("shop", bytes)
        };
        b.expect("version 5", &change(14, 0x55), &denied(Reason::Malformed, None));
        b.expect("a header of 16 bytes", &change(14, 0x44), &denied(Reason::Malformed, None));
        b.expect("longer than it is", &change(16, 0xff), &denied(Reason::Malformed, None));
        b.expect("a TCP header of 16 bytes", &change(46, 0x40), &denied(Reason::Malformed, None));

        let (s, d) = (b.address("shop", true), b.address("api", true));
        let syn = Packet::syn(s, d, 40_000, 8000);
        let with = |extensions: &[Extension]| {
            let packet = extensions.iter().cloned().fold(syn.clone(), Packet::extension);
            b.sent("shop", &packet)
        };
        b.expect("hop-by-hop options", &with(&[Extension::HopByHop(vec![])]), &fine);
        b.expect(
            "destination options, twice",
            &with(&[Extension::Destination(vec![]), Extension::Destination(vec![])]),
            &fine,
        );
        b.expect("an authentication header", &with(&[Extension::Auth(3)]), &fine);
        b.expect(
            "hop-by-hop options that are not first",
            &with(&[Extension::Destination(vec![]), Extension::HopByHop(vec![])]),
            &denied(Reason::HeaderChain, None),
        );
        b.expect(
            "a routing header of type 0",
            &with(&[Extension::Routing(0, 1)]),
            &denied(Reason::SourceRoute, None),
        );
        b.expect(
            "an IPv6 fragment",
            &with(&[Extension::Fragment(0, true, 9)]),
            &denied(Reason::Fragment, None),
        );
        b.expect("an atomic IPv6 fragment", &with(&[Extension::Fragment(0, false, 9)]), &fine);
        let long = vec![Extension::Destination(vec![]); 40];
        b.expect("a chain without end", &with(&long), &denied(Reason::HeaderChain, None));
        let beyond = Packet::new(
            s,
            d,
            Transport::Raw(protocol::DESTINATION, vec![protocol::TCP, 200, 0, 0, 0, 0, 0, 0]),
        );
        b.expect(
            "an extension header longer than the packet",
            &b.sent("shop", &beyond),
            &denied(Reason::Malformed, None),
        );
        let mapped = Packet { destination: b.address("api", false), ..syn.clone() };
        b.expect("an IPv4-mapped address", &b.sent("shop", &mapped), &denied(Reason::Malformed, None));
    });
}

#[test]
fn replies_pass_and_nothing_else_does() {
    Bench::run(|b| {
        for family in [false, true] {
            let (s, d) = (b.address("shop", family), b.address("api", family));
            let reply = Packet::new(d, s, Transport::Tcp(8000, 40_000, flags::SYN | flags::ACK, vec![]));
            b.expect("a reply to nothing", &b.sent("api", &reply), &denied(Reason::NoRule, None));
            let open = [b.sent("shop", &Packet::syn(s, d, 40_000, 8000))];
            b.expect_after(
                "a reply",
                &open,
                &b.sent("api", &reply),
                &allowed(Reason::Reply, Some("shop-api")),
            );
            let more = Packet::new(s, d, Transport::Tcp(40_000, 8000, flags::ACK, b"x".to_vec()));
            b.expect_after(
                "more of it",
                &open,
                &b.sent("shop", &more),
                &allowed(Reason::Reply, Some("shop-api")),
            );
            let other = Packet::new(d, s, Transport::Tcp(8000, 40_001, flags::SYN | flags::ACK, vec![]));
            b.expect_after("to another port", &open, &b.sent("api", &other), &denied(Reason::NoRule, None));
            let thief = b.sent("cron", &Packet::new(d, s, Transport::Tcp(8000, 40_000, flags::ACK, vec![])));
            b.expect_after(
                "a reply from another container",
                &open,
                &thief,
                &denied(Reason::SpoofedAddress, None),
            );
            let back = Packet::new(d, s, Transport::Tcp(8000, 40_000, flags::SYN, vec![]));
            b.expect_after(
                "a new connection the other way",
                &open,
                &b.sent("api", &back),
                &denied(Reason::NoRule, None),
            );

            let (s, d) = (b.address("db", family), b.address("shop", family));
            let ping = [b.sent("db", &Packet::ping(s, d, 7))];
            b.expect_after(
                "a pong",
                &ping,
                &b.sent("shop", &Packet::pong(d, s, 7)),
                &allowed(Reason::Reply, Some("pings")),
            );
            b.expect_after(
                "another's pong",
                &ping,
                &b.sent("shop", &Packet::pong(d, s, 8)),
                &denied(Reason::NoRule, None),
            );

            let (s, d) = (b.address("api", family), b.address("db", family));
            let asked = Packet::udp(s, d, 40_000, 53);
            let (kind, code) = if family { (1, 4) } else { (3, 3) };
            let error = b.sent("db", &Packet::error(d, kind, code, &asked));
            b.expect("an error about nothing", &error, &denied(Reason::UnmatchedError, None));
            let open = [b.sent("api", &asked)];
            b.expect_after("an error about a flow", &open, &error, &allowed(Reason::Related, None));
            let about = Packet::udp(s, d, 40_001, 53);
            let error = b.sent("db", &Packet::error(d, kind, code, &about));
            b.expect_after(
                "an error about another flow",
                &open,
                &error,
                &denied(Reason::UnmatchedError, None),
            );
        }
    });
}

#[test]
fn tcp_opens_with_a_syn_and_goes_on_with_what_it_opened() {
    Bench::run(|b| {
        for family in [false, true] {
            let (s, d) = (b.address("shop", family), b.address("api", family));
            let tcp = |flags, data: &[u8]| {
                let packet = Packet::new(s, d, Transport::Tcp(40_000, 8000, flags, data.to_vec()));
                b.sent("shop", &packet)
            };
            let unknown = denied(Reason::NoConnection, None);
            for first in [flags::ACK, flags::FIN | flags::ACK, flags::RST, flags::SYN | flags::ACK] {
                b.expect(&format!("flags {first:#x} first"), &tcp(first, b"x"), &unknown);
            }
            for bogus in [0, flags::FIN, flags::FIN | flags::PSH | 32, flags::SYN | flags::FIN, 0x3f] {
                b.expect(&format!("flags {bogus:#x}"), &tcp(bogus, b""), &denied(Reason::Malformed, None));
            }
            let open = [tcp(flags::SYN, b"")];
            let reply = allowed(Reason::Reply, Some("shop-api"));
            b.expect_after("an ACK after a SYN", &open, &tcp(flags::ACK, b""), &reply);
            b.expect_after("a RST after a SYN", &open, &tcp(flags::RST, b""), &reply);
            let again = allowed(Reason::Rule, Some("shop-api"));
            b.expect_after("a SYN again", &open, &tcp(flags::SYN, b""), &again);
            let denied_port = Packet::new(s, d, Transport::Tcp(40_000, 22, flags::ACK, vec![]));
            let sent = b.sent("shop", &denied_port);
            b.expect("the policy's reason comes first", &sent, &denied(Reason::NoRule, None));
        }
    });
}

#[test]
fn pieces_of_a_datagram_follow_the_first() {
    Bench::run(|b| {
        for family in [false, true] {
            let (s, d) = (b.address("shop", family), b.address("db", family));
            let piece = |transport, offset, more| {
                let packet = Packet::new(s, d, transport);
                if family {
                    packet.extension(Extension::Fragment(offset, more, 9))
                } else {
                    packet.fragment(offset, more)
                }
            };
            let first = |port| {
                let bytes = Packet::new(s, d, Transport::Udp(40_000, port, vec![0; 1000])).bytes();
                let header = if family { 40 } else { 20 };
                b.sent(
                    "shop",
                    &piece(Transport::Raw(protocol::UDP, bytes[header..header + 32].to_vec()), 0, true),
                )
            };
            let later =
                |offset| b.sent("shop", &piece(Transport::Raw(protocol::UDP, vec![7; 16]), offset, false));
            let watched = audited(Reason::NoRule, Some("watched"));
            b.expect("a first piece", &first(53), &watched);
            b.expect_after("what follows it", &[first(53)], &later(4), &watched);
            b.expect_after("far behind it", &[first(53)], &later(500), &watched);
            b.expect_after("over it", &[first(53)], &later(3), &denied(Reason::Fragment, None));
            b.expect_after("beyond the end", &[first(53)], &later(8191), &denied(Reason::Fragment, None));
        }
        // Nothing is left of the datagrams above: another identification has no first piece.
        let (s, d) = (b.address("shop", false), b.address("db", false));
        let tiny = Packet::new(s, d, Transport::Raw(protocol::TCP, vec![0; 8])).fragment(0, true);
        b.expect("a first piece without its header", &b.sent("shop", &tiny), &denied(Reason::Fragment, None));
    });
}

#[test]
fn a_judged_frame_is_not_judged_again_and_a_container_cannot_say_that_it_was() {
    Bench::run(|b| {
        let (s, d) = (b.address("shop", false), b.address("db", false));
        let syn = Packet::syn(s, d, 40_000, 5432);
        let mut sent = b.sent("shop", &syn);
        sent.mark = hydra_common::names::MARK_JUDGED;
        b.expect("a mark at the port in", &sent, &denied(Reason::NoRule, None));
        let mut received = b.received("db", b.link("hybr1"), &syn);
        assert_eq!(received.hook, Hook::PortOut);
        received.mark = hydra_common::names::MARK_JUDGED;
        b.expect_unjudged("a mark at the port out", &received);
    });
}
