//! Published ports through the kernel's own programs, frame by frame: whoever calls one, from wherever, by whichever address, is
//! judged as calling the container; and whatever becomes of his packets, the receiver's hook still knows him.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

mod bench;

use std::net::IpAddr;

use bench::{Bench, Sent, allowed, audited, denied};
use hydra_common::flow::Flow;
use hydra_common::names::{MARK_JUDGED, carried};
use hydra_common::tables::Publish;
use hydra_common::verdict::{Hook, Reason};
use hydra_tests::kernel::{NEXT, SHOT, Shot};
use hydra_tests::packets::{Frame, Packet, Transport, flags, protocol};
use hydra_tests::world::World;

fn publish(b: &Bench<'_>) {
    b.publish(protocol::TCP, 8081, ("db", 5432), 0);
    b.publish(protocol::TCP, 8022, ("db", 22), 0);
    b.publish(protocol::UDP, 8053, ("db", 53), 0);
    b.publish(protocol::TCP, 8443, ("shop", 443), 0);
    b.publish(protocol::TCP, 8444, ("shop", 443), Publish::PROXIED);
    b.publish(protocol::TCP, 8080, ("shop", 8080), Publish::PROXIED);
}

fn tcp_packet(source: IpAddr, destination: IpAddr, from: u16, to: u16, flags: u8) -> Packet {
    Packet::new(source, destination, Transport::Tcp(from, to, flags, Vec::new()))
}

/// What comes in by an interface of the host.
fn outer(b: &Bench<'_>, interface: &str, packet: &Packet) -> Sent {
    let ifindex = b.link(interface);
    let frame = Frame::ip([2, 0, 0, 0, 0, 99], [2, 0, 0, 0, 0, 98], packet).bytes();
    Shot { hook: Hook::UplinkIn, ifindex, ingress: ifindex, mark: 0, frame }
}

#[test]
fn a_container_that_calls_a_published_port_calls_the_container() {
    Bench::run(|b| {
        publish(b);
        let no_rule = denied(Reason::NoRule, None);
        for v6 in [false, true] {
            let direct = b.packet("cron", "db", v6, |s, d| Packet::syn(s, d, 40_000, 5432));
            b.expect("the container's own address", &direct, &allowed(Reason::Rule, Some("app-data")));
            // Each gateway, every other address of this host.
            for to in b.addresses("host", v6) {
                let tcp =
                    |from: &str, port| b.sent(from, &Packet::syn(b.address(from, v6), to, 40_000, port));
                let udp =
                    |from: &str, port| b.sent(from, &Packet::udp(b.address(from, v6), to, 40_000, port));
                for (name, sent, want) in [
                    ("another tier that no rule allows", tcp("shop", 8081), no_rule.clone()),
                    ("another tier by a rule", tcp("cron", 8081), allowed(Reason::Rule, Some("app-data"))),
                    (
                        "against a deny rule for its own port",
                        tcp("cron", 8022),
                        denied(Reason::Rule, Some("no-ssh")),
                    ),
                    ("an audit rule", udp("shop", 8053), audited(Reason::NoRule, Some("watched"))),
                    ("the same network", tcp("cache", 8081), allowed(Reason::IntraTier, None)),
                    ("itself", tcp("db", 8081), allowed(Reason::IntraTier, None)),
                    ("the wrong direction", tcp("db", 8443), no_rule.clone()),
                    ("the host itself", tcp("cron", 9999), no_rule.clone()),
                    ("another protocol is the host's", udp("cron", 8081), no_rule.clone()),
                ] {
                    b.expect(&format!("{name}, {to}"), &sent, &want);
                }
                let seen = b.seen(&[], &tcp("cron", 8081));
                assert_eq!((seen.action, seen.mark), (NEXT, carried(b.identity("cron"))), "{to}");
                let (_, flow) = seen.flow.unwrap();
                assert_eq!(flow.marks, Flow::PUBLISHED | Flow::TO_HOST);
                let reply = tcp_packet(to, b.address("cron", v6), 8081, 40_000, flags::SYN | flags::ACK);
                let proxy = b.received("cron", 0, &reply);
                b.expect_after(
                    "a proxy's answer",
                    &[tcp("cron", 8081)],
                    &proxy,
                    &allowed(Reason::Reply, None),
                );
                let denied = b.seen(&[], &tcp("shop", 8081));
                assert_eq!((denied.action, denied.flow), (SHOT, None), "{to}");
            }
        }
    });
}

#[test]
fn the_receivers_port_knows_who_called_whatever_his_address_is_by_then() {
    Bench::run(|b| {
        for v6 in [false, true] {
            let gateway = b.addresses("host", v6)[2];
            let bridge = b.link("hybr0");
            let led = |who: Option<&str>, ingress| {
                let packet = Packet::syn(gateway, b.address("db", v6), 50_000, 5432);
                let mark = who.map_or(0, |who| carried(b.identity(who)));
                Shot { mark, ..b.received("db", ingress, &packet) }
            };
            b.expect("a caller without a right", &led(Some("shop"), bridge), &denied(Reason::NoRule, None));
            b.expect_on("a caller with a right", &led(Some("cron"), bridge), MARK_JUDGED, Some("app-data"));
            b.expect("a mark that was lost", &led(None, bridge), &denied(Reason::UnknownSource, None));
            b.expect("a proxy", &led(None, 0), &allowed(Reason::FromHost, None));
            let reply = tcp_packet(b.address("db", v6), gateway, 5432, 50_000, flags::SYN | flags::ACK);
            let reply = b.sent("db", &reply);
            b.expect_after("the answer", &[led(Some("cron"), bridge)], &reply, &allowed(Reason::Reply, None));
            let seen = b.seen(&[led(Some("cron"), bridge)], &reply);
            assert_eq!(seen.mark, carried(b.identity("db")));
            b.expect("an answer to nobody", &reply, &denied(Reason::NoRule, None));
            // On the way from the port to the routing.
            let packet = Packet::syn(b.address("cron", v6), gateway, 50_000, 8081);
            let inward = b.frame("cron", Frame::ip(b.mac("cron"), b.gateway("cron"), &packet).bytes());
            let inward = Shot {
                hook: Hook::BridgeIn,
                ifindex: b.link("hybr1"),
                mark: carried(b.identity("cron")),
                ..inward
            };
            b.expect_unjudged("at the bridge", &inward);
        }
        // Bits that are not ours stay, those of the identity go with it.
        let packet = Packet::syn(b.addresses("host", false)[2], b.address("db", false), 50_001, 5432);
        let shot = b.received("db", b.link("hybr0"), &packet);
        let shot = Shot { mark: carried(b.identity("cron")) | 0x1234, ..shot };
        b.expect_on("the rest of the mark", &shot, MARK_JUDGED | 0x1234, Some("app-data"));
    });
}

#[test]
fn the_outside_and_strangers_are_judged_before_anybody_hides_them() {
    Bench::run(|b| {
        publish(b);
        let no_rule = denied(Reason::NoRule, None);
        for v6 in [false, true] {
            let user: IpAddr = if v6 { "2001:db8:77::7" } else { "198.51.100.77" }.parse().unwrap();
            let stranger = b.address("stranger", v6);
            for to in b.addresses("host", v6) {
                let call = |port| outer(b, "hyup0", &Packet::syn(user, to, 40_000, port));
                b.expect("a user at the database", &call(8081), &no_rule);
                b.expect_on("a user at the shop", &call(8443), 0, None);
                b.expect("a user at the shop's other port", &call(8080), &no_rule);
                b.expect_on("a user at the host", &call(22), 0, None);
                let external = hydra_common::id::Identity::EXTERNAL;
                let seen = b.seen(&[], &call(8444));
                assert_eq!(
                    (seen.action, seen.mark, seen.reason),
                    (NEXT, carried(external), Some(Reason::Rule))
                );
                assert_eq!(seen.flow.unwrap().1.marks, Flow::PUBLISHED | Flow::TO_HOST);
                let next = tcp_packet(user, to, 40_000, 8444, flags::ACK);
                let next = outer(b, "hyup0", &next);
                b.expect_after("its next packet", &[call(8444)], &next, &allowed(Reason::Reply, None));
                let forged = outer(b, "hyup0", &Packet::syn(b.address("cron", v6), to, 40_000, 8081));
                b.expect(
                    "a container's address from outside",
                    &forged,
                    &denied(Reason::SpoofedAddress, None),
                );
                let answer = outer(b, "hyup0", &tcp_packet(user, to, 443, 8081, flags::ACK));
                b.expect_on("an answer to a translated port", &answer, 0, None);

                let call = |port| outer(b, "hyother", &Packet::syn(stranger, to, 40_000, port));
                b.expect("a stranger at the database", &call(8081), &no_rule);
                b.expect("a stranger is no user", &call(8443), &no_rule);
                b.expect_on("a stranger at the host", &call(22), 0, None);
                let forged = outer(b, "hyother", &Packet::syn(b.address("cron", v6), to, 40_000, 8081));
                b.expect(
                    "a container's address from a stranger",
                    &forged,
                    &denied(Reason::SpoofedAddress, None),
                );
            }
            let unmanaged = carried(hydra_common::id::Identity::UNMANAGED);
            let led = outer(b, "hyother", &Packet::syn(stranger, b.address("db", v6), 40_000, 5432));
            b.expect_on("a stranger whose call the bridge has translated", &led, unmanaged, None);
            let led = outer(b, "hyother", &Packet::syn(stranger, b.address("cron", v6), 40_000, 8081));
            b.expect_on("the same to a port that is the database's at the host", &led, unmanaged, None);
            let arrives = Packet::syn(b.addresses("host", v6)[2], b.address("db", v6), 40_000, 5432);
            let arrives = Shot { mark: unmanaged, ..b.received("db", b.link("hyother"), &arrives) };
            b.expect("the same where it arrives", &arrives, &no_rule);
            let through = outer(b, "hyup0", &Packet::syn(user, b.address("db", v6), 40_000, 5432));
            b.expect_on("what the port judges", &through, 0, None);
        }
    });
}

#[test]
fn link_local_addresses_broadcasts_and_loopback_lead_around_nothing() {
    Bench::run(|b| {
        publish(b);
        let bridge = b.link("hybr1");
        // The host's own link-local address: a process that listens on all addresses hears it.
        let from = bench::link_local(b.mac("cron"));
        let call = |port| {
            let packet = Packet::syn(from.into(), "fe80::1".parse().unwrap(), 40_000, port);
            Frame::ip(b.mac("cron"), b.gateway("cron"), &packet).bytes()
        };
        for port in [8022, 8081, 8443, 9999] {
            let at_port = b.seen(&[], &b.frame("cron", call(port)));
            assert_eq!(at_port.mark, hydra_common::names::MARK_CHECKED);
            let own = b.address("cron", true);
            let packet = Packet::syn(own, "fe80::1".parse().unwrap(), 40_000, port);
            let frame = Frame::ip(b.mac("cron"), b.gateway("cron"), &packet).bytes();
            let shot =
                Shot { hook: Hook::BridgeIn, ifindex: bridge, ingress: bridge, mark: at_port.mark, frame };
            let rule = if port == 8022 {
                denied(Reason::Rule, Some("no-ssh"))
            } else {
                denied(Reason::NoRule, None)
            };
            b.expect(&format!("link-local, tcp/{port}"), &shot, &rule);
        }
        let near = Packet::syn("fe80::77".parse().unwrap(), "fe80::1".parse().unwrap(), 40_000, 8081);
        b.expect("link-local from outside", &outer(b, "hyup0", &near), &denied(Reason::NoRule, None));
        let near = Packet::syn("fe80::77".parse().unwrap(), "fe80::1".parse().unwrap(), 40_000, 22);
        b.expect_on("the host's own, link-local", &outer(b, "hyup0", &near), 0, None);
        let all =
            Packet::udp("198.51.100.77".parse().unwrap(), "198.51.100.255".parse().unwrap(), 40_000, 8053);
        let mut broadcast = outer(b, "hyup0", &all);
        broadcast.frame[..6].copy_from_slice(&[0xff; 6]);
        b.expect("a broadcast from outside", &broadcast, &denied(Reason::NoRule, None));

        for (v6, home) in [(false, "127.0.0.1"), (true, "::1")] {
            let home: IpAddr = home.parse().unwrap();
            let own = b.address("cron", v6);
            let looped = denied(Reason::Loopback, None);
            b.expect("to loopback", &b.sent("cron", &Packet::syn(own, home, 40_000, 8081)), &looped);
            b.expect(
                "from loopback",
                &b.sent("cron", &Packet::syn(home, b.address("db", v6), 1, 5432)),
                &looped,
            );
            let packet = Packet::syn("198.51.100.77".parse().unwrap(), home, 40_000, 8081);
            if !v6 {
                b.expect("to loopback from outside", &outer(b, "hyup0", &packet), &looped);
            }
        }
    });
}

#[test]
fn who_is_no_container_cannot_answer_for_another() {
    Bench::run(|b| {
        for v6 in [false, true] {
            let far: IpAddr = if v6 { "2001:db8:cafe::9" } else { "203.0.113.9" }.parse().unwrap();
            let stranger = b.link(&World::port_name("stranger", 0));
            let ask =
                b.received("shop", b.link("hyup0"), &Packet::syn(far, b.address("shop", v6), 40_000, 9443));
            let again = |ingress| {
                let packet = tcp_packet(far, b.address("shop", v6), 40_000, 9443, flags::ACK);
                b.received("shop", ingress, &packet)
            };
            let partner = allowed(Reason::Reply, None);
            b.expect_after(
                "a partner's next packet",
                std::slice::from_ref(&ask),
                &again(b.link("hyup0")),
                &partner,
            );
            let seen = b.seen(&[ask], &again(stranger));
            assert_eq!(
                (seen.action, seen.reason),
                (SHOT, Some(Reason::SpoofedAddress)),
                "a stranger's, {far}"
            );
        }
    });
}
