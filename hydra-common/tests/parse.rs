//! The parser on frames by hand: what it understands, and the reason it gives for what it doesn't.

mod common;

use common::{ethernet, frame, ip, mac, network, parse, tcp, udp};
use hydra_common::packet::Kind;
use hydra_common::verdict::Reason;

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(11, 10, "10.1.0.11", "10.2.0.21", protocol, payload)
}

fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(11, 10, "fd00:1::11", "fd00:2::21", protocol, payload)
}

/// IPv4 options, padded to words.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut f = v4(6, &tcp(1, 2, 2));
    let at = 14 + 20;
    for (i, b) in options.iter().enumerate() {
        f.insert(at + i, *b);
    }
    f[14] = 0x40 | (5 + options.len() as u8 / 4);
    let total = (f.len() - 14) as u16;
    f[16..18].copy_from_slice(&total.to_be_bytes());
    f
}

#[test]
fn tcp_over_both_families_has_its_ports_flags_and_offsets() {
    for (f, network, transport) in
        [(v4(6, &tcp(4000, 5432, 0x12)), 14, 34), (v6(6, &tcp(4000, 5432, 0x12)), 14, 54)]
    {
        let (p, parsed) = parse(&f);
        assert_eq!(parsed, Ok(()));
        assert_eq!((p.kind, p.protocol, p.source_port, p.destination_port), (Kind::Ip, 6, 4000, 5432));
        assert_eq!(
            (p.tcp_flags, p.network, p.transport, p.payload),
            (0x12, network, transport, transport + 20)
        );
        assert_eq!((p.source_mac, p.destination_mac, p.ttl), (mac(11), mac(10), 64));
    }
}

#[test]
fn both_directions_find_one_key_and_know_their_side() {
    let (there, _) = parse(&v4(17, &udp(1000, 53)));
    let (back, _) = parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 17, &udp(53, 1000)));
    assert_eq!(there.key, back.key);
    assert_ne!(there.side(), back.side());
    assert_eq!(there.key.address(there.side()), ip("10.1.0.11"));
    assert_eq!(there.key.port(there.side()), 1000);
}

#[test]
fn pings_from_both_ends_are_two_flows_and_a_reply_is_its_requests() {
    let echo = |kind: u8| [kind, 0, 0, 0, 0x12, 0x34, 0, 1];
    let (request, _) = parse(&v4(1, &echo(8)));
    let (reply, _) = parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &echo(0)));
    let (other, _) = parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &echo(8)));
    assert_eq!(request.key, reply.key);
    assert!(reply.icmp_reply && !request.icmp_reply);
    assert_ne!(request.key, other.key);
}

#[test]
fn a_frame_that_is_cut_anywhere_is_malformed_and_never_passes() {
    for f in
        [v4(6, &tcp(1, 2, 2)), v6(6, &tcp(1, 2, 2)), v4(17, &udp(1, 2)), v4(1, &[8, 0, 0, 0, 0, 1, 0, 1])]
    {
        for length in 0..f.len() {
            assert_eq!(parse(&f[..length]).1, Err(Reason::Malformed), "cut at {length}");
        }
    }
}

#[test]
fn every_first_byte_of_ipv4_but_that_of_a_true_header_is_refused() {
    for first in 0..=255u8 {
        let mut f = v4(6, &tcp(1, 2, 2));
        f[14] = first;
        let expected = if first == 0x45 { Ok(()) } else { Err(Reason::Malformed) };
        // A header that claims options reads TCP's bytes as such: refused too, or understood as no more than options.
        let parsed = parse(&f).1;
        if first & 0xf0 != 0x40 || first & 15 <= 5 {
            assert_eq!(parsed, expected, "{first:#x}");
        } else {
            assert!(parsed.is_err(), "{first:#x}");
        }
    }
}

#[test]
fn harmless_options_pass_and_source_routes_do_not() {
    assert_eq!(parse(&with_options(&[1, 1, 1, 0])).1, Ok(()));
    assert_eq!(parse(&with_options(&[68, 4, 5, 0])).1, Ok(()));
    assert_eq!(parse(&with_options(&[131, 3, 4, 0])).1, Err(Reason::SourceRoute));
    assert_eq!(parse(&with_options(&[1, 137, 3, 4])).1, Err(Reason::SourceRoute));
    assert_eq!(parse(&with_options(&[7, 1, 0, 0])).1, Err(Reason::Malformed));
    assert_eq!(parse(&with_options(&[7, 9, 0, 0])).1, Err(Reason::Malformed));
    assert_eq!(parse(&with_options(&[1; 16])).1, Err(Reason::HeaderChain));
}

#[test]
fn fragments_are_refused_with_their_addresses_known() {
    for bits in [[0x20, 0], [0, 1], [0x3f, 0xff]] {
        let mut f = v4(17, &udp(1, 2));
        f[20..22].copy_from_slice(&bits);
        let (p, parsed) = parse(&f);
        assert_eq!(parsed, Err(Reason::Fragment));
        assert_eq!(p.destination, ip("10.2.0.21"));
    }
    assert_eq!(
        parse(&v6(44, &[&[17, 0, 0, 0, 0, 0, 0, 1][..], &udp(1, 2)].concat())).1,
        Err(Reason::Fragment)
    );
}

#[test]
fn extension_headers_are_walked_and_bounded() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |kinds: &[u8], last: u8, tail: &[u8]| {
        let mut payload = Vec::new();
        for next in kinds.iter().skip(1).chain([&last]) {
            payload.extend(options(*next));
        }
        payload.extend(tail);
        v6(kinds[0], &payload)
    };
    let (p, parsed) = parse(&chain(&[0, 60, 60], 6, &tcp(1, 443, 2)));
    assert_eq!((parsed, p.protocol, p.destination_port, p.transport), (Ok(()), 6, 443, 54 + 24));
    assert_eq!(parse(&chain(&[60, 0], 6, &tcp(1, 443, 2))).1, Err(Reason::HeaderChain));
    assert_eq!(parse(&chain(&[60; 7], 6, &tcp(1, 443, 2))).1, Err(Reason::HeaderChain));
    assert_eq!(parse(&chain(&[60; 6], 6, &tcp(1, 443, 2))).1, Ok(()));
    // Authentication header: words, less two.
    let (p, parsed) = parse(&v6(51, &[&[6, 4][..], &[0; 22], &tcp(1, 443, 2)].concat()));
    assert_eq!((parsed, p.protocol, p.destination_port), (Ok(()), 6, 443));
    // Routing headers: type 0, and one with segments left.
    assert_eq!(
        parse(&v6(43, &[&[6, 0, 0, 0, 0, 0, 0, 0][..], &tcp(1, 2, 2)].concat())).1,
        Err(Reason::SourceRoute)
    );
    assert_eq!(
        parse(&v6(43, &[&[6, 0, 4, 1, 0, 0, 0, 0][..], &tcp(1, 2, 2)].concat())).1,
        Err(Reason::SourceRoute)
    );
}

#[test]
fn tags_are_walked_for_the_event_and_refused() {
    let mut f = v4(6, &tcp(1, 2, 2));
    f.splice(12..12, [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
    let (p, parsed) = parse(&f);
    assert_eq!((parsed, p.ethertype, p.destination_port), (Err(Reason::Vlan), 0x0800, 2));
    let mut f = v4(6, &tcp(1, 2, 2));
    f.splice(12..12, [0x81, 0, 0, 1, 0x81, 0, 0, 5, 0x81, 0, 0, 6]);
    assert_eq!(parse(&f).1, Err(Reason::Vlan));
}

#[test]
fn other_ethertypes_and_llc_are_refused() {
    for ethertype in [0x0000, 0x0026, 0x05dc, 0x8847, 0x88cc, 0x8906, 0x86de, 0xffff] {
        let f = ethernet(mac(11), mac(10), ethertype, &[0; 46]);
        assert_eq!(parse(&f).1, Err(Reason::EtherType), "{ethertype:#x}");
    }
}

#[test]
fn ipv4_mapped_addresses_in_ipv6_are_refused() {
    let f = ethernet(mac(11), mac(10), 0x86dd, &network("fd00:1::11", "::ffff:10.2.0.21", 6, &tcp(1, 2, 2)));
    assert_eq!(parse(&f).1, Err(Reason::Malformed));
}

#[test]
fn each_familys_icmp_is_refused_in_the_other() {
    assert_eq!(parse(&v6(1, &[8, 0, 0, 0, 0, 0, 0, 0])).1, Err(Reason::Malformed));
    assert_eq!(parse(&v4(58, &[128, 0, 0, 0, 0, 0, 0, 0])).1, Err(Reason::Malformed));
}

#[test]
fn arp_must_name_its_frames_own_mac() {
    let arp = |sender: u8| {
        let mut a = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, sender, 10, 1, 0, 11];
        a.extend([0, 0, 0, 0, 0, 0, 10, 1, 0, 1]);
        ethernet(mac(11), mac(255), 0x0806, &a)
    };
    let (p, parsed) = parse(&arp(11));
    assert_eq!((parsed, p.kind, p.claim), (Ok(()), Kind::Arp, ip("10.1.0.11")));
    assert_eq!(parse(&arp(12)).1, Err(Reason::SpoofedArp));
}

#[test]
fn neighbour_messages_must_name_their_frames_own_mac_and_come_from_the_link() {
    let advert = |mac_end: u8, hops: u8| {
        let target = ip("fd00:1::11").octets();
        let icmp = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target, &[2, 1, 2, 0, 0, 0, 0, mac_end]].concat();
        let mut f = frame(11, 10, "fd00:1::11", "fd00:1::1", 58, &icmp);
        f[14 + 7] = hops;
        f
    };
    let (p, parsed) = parse(&advert(11, 255));
    assert_eq!((parsed, p.kind, p.claim), (Ok(()), Kind::Neighbour, ip("fd00:1::11")));
    assert_eq!(parse(&advert(12, 255)).1, Err(Reason::SpoofedNeighbour));
    assert_eq!(parse(&advert(11, 64)).1, Err(Reason::SpoofedNeighbour));
}

#[test]
fn an_icmp_error_has_the_key_of_what_it_quotes() {
    let quoted = network("10.1.0.11", "10.2.0.21", 6, &tcp(4000, 5432, 2));
    let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
    let (p, parsed) = parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &error));
    let (original, _) = parse(&v4(6, &tcp(4000, 5432, 2)));
    assert_eq!((parsed, p.kind, p.key), (Ok(()), Kind::IcmpError, original.key));
    assert_eq!(p.side(), original.side());
    // It goes to somebody who did not send what it quotes.
    assert_eq!(parse(&frame(21, 20, "10.2.0.21", "10.1.0.12", 1, &error)).1, Err(Reason::UnmatchedError));
    assert_eq!(
        parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &error[..30])).1,
        Err(Reason::Malformed),
        "quoted header cut short"
    );
}
