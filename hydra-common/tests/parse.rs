//! The parser on frames by hand: what it understands, and the reason it gives for what it doesn't.

mod common;

use common::{ethernet, frame, ip, mac, network, parse, tcp, udp};
use hydra_common::packet::{Kind, Piece};
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
fn a_frame_without_its_ethernet_header_is_read_like_the_whole() {
    let mut tagged = v6(17, &udp(1, 2));
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    for f in [v4(6, &tcp(1, 2, 2)), v6(6, &tcp(1, 2, 2)), v4(17, &[0; 3]), tagged, with_options(&[1; 4])] {
        let (mut whole, parsed) = parse(&f);
        let mut packet = hydra_common::packet::Packet::default();
        let ethertype = u16::from_be_bytes([f[12], f[13]]);
        assert_eq!(packet.parse_behind(&&f[14..], ethertype), parsed, "{f:x?}");
        (whole.source_mac, whole.destination_mac) = Default::default();
        for at in [&mut whole.network, &mut whole.transport, &mut whole.payload] {
            *at = at.saturating_sub(14);
        }
        whole.end = whole.end.saturating_sub(14);
        assert_eq!(packet, whole, "{f:x?}");
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

/// With IPv4's field of flags and offset.
fn piece(payload: &[u8], field: u16) -> Vec<u8> {
    let mut f = v4(17, payload);
    f[20..22].copy_from_slice(&field.to_be_bytes());
    f
}

#[test]
fn of_a_datagram_in_pieces_the_first_has_the_ports() {
    let long = [&udp(1000, 53)[..], &[0; 24]].concat();
    let (p, parsed) = parse(&piece(&long, 0x2000));
    assert_eq!((parsed, p.kind, p.piece), (Ok(()), Kind::Ip, Piece::First));
    assert_eq!((p.piece_id, p.piece_at, p.piece_end, p.destination_port), (1, 0, 32, 53));
    let (p, parsed) = parse(&piece(&[0; 16], 4));
    assert_eq!((parsed, p.kind, p.piece), (Ok(()), Kind::Piece, Piece::Later));
    assert_eq!((p.piece_at, p.piece_end, p.destination_port), (32, 48, 0));

    let v6 = |field: u16, payload: &[u8]| {
        let f = field.to_be_bytes();
        v6(44, &[&[17, 0, f[0], f[1], 0, 0, 0x12, 0x34][..], payload].concat())
    };
    let (p, parsed) = parse(&v6(1, &long));
    assert_eq!((parsed, p.kind, p.piece), (Ok(()), Kind::Ip, Piece::First));
    assert_eq!((p.piece_id, p.piece_at, p.piece_end, p.destination_port), (0x1234, 0, 32, 53));
    let (p, parsed) = parse(&v6(32, &[0; 16]));
    assert_eq!((parsed, p.kind, p.piece, p.piece_at), (Ok(()), Kind::Piece, Piece::Later, 32));
    // One that is all of it (RFC 6946).
    let (p, parsed) = parse(&v6(0, &udp(1000, 53)));
    assert_eq!((parsed, p.piece, p.destination_port), (Ok(()), Piece::Whole, 53));
}

#[test]
fn pieces_that_leave_a_doubt_are_refused() {
    let long = [&udp(1000, 53)[..], &[0; 24]].concat();
    for (name, frame) in [
        ("a first one without the whole header", piece(&udp(1, 2)[..7], 0x2000)),
        ("a first one that is no multiple of 8 bytes", piece(&long[..31], 0x2000)),
        ("a later one that is no multiple of 8 bytes", piece(&[0; 15], 0x2001)),
        ("an empty one", piece(&[], 4)),
        ("one that ends behind 65,535", piece(&[0; 16], 0x1fff)),
        (
            "two headers",
            v6(44, &[&[44, 0, 0, 0, 0, 0, 0, 1][..], &[17, 0, 0, 1, 0, 0, 0, 1], &long].concat()),
        ),
        ("a chain that goes on in the next", v6(44, &[60, 0, 0, 1, 0, 0, 0, 1, 17, 4, 0, 0, 0, 0, 0, 0])),
        ("neighbour discovery", {
            let advert = [&[136, 0, 0, 0, 0, 0, 0, 0][..], &ip("fd00:1::11").octets()].concat();
            let mut f = v6(44, &[&[58, 0, 0, 1, 0, 0, 0, 1][..], &advert].concat());
            f[14 + 7] = 255;
            f
        }),
    ] {
        let (p, parsed) = parse(&frame);
        assert_eq!(parsed, Err(Reason::Fragment), "{name}");
        assert!(p.destination == ip("10.2.0.21") || p.destination == ip("fd00:2::21"), "{name}");
    }
}

#[test]
fn flags_that_nobody_sends_are_refused() {
    for flags in [0, 1, 3, 5, 6, 7, 8, 0x20, 0x29, 0x3f, 0x13, 0x15, 0x16, 0x32, 0x24] {
        assert_eq!(parse(&v4(6, &tcp(1, 2, flags))).1, Err(Reason::Malformed), "{flags:#x}");
    }
    for flags in [0x02, 0x12, 0x10, 0x11, 0x04, 0x14, 0x18, 0x19, 0x30, 0x31, 0xc2, 0x52, 0x1c] {
        assert_eq!(parse(&v4(6, &tcp(1, 2, flags))).1, Ok(()), "{flags:#x}");
    }
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
    // Of pieces the first one says whose it was.
    let mut first = error.clone();
    first[8 + 6] = 0x20;
    assert_eq!(parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &first)).0.key, original.key);
    first[8 + 7] = 1;
    assert_eq!(parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &first)).1, Err(Reason::UnmatchedError));
    for (headers, expected) in [
        (&[17, 0, 0, 1, 0, 0, 0, 9][..], Ok(())),
        (&[17, 0, 0, 8, 0, 0, 0, 9], Err(Reason::UnmatchedError)),
        (&[60, 0, 0, 1, 0, 0, 0, 9, 17, 0, 1, 4, 0, 0, 0, 0], Ok(())),
        (&[60, 0, 0, 1, 0, 0, 0, 9, 17, 9, 1, 4, 0, 0, 0, 0], Err(Reason::Malformed)),
    ] {
        let quoted = network("fd00:1::11", "fd00:2::21", 44, &[headers, &udp(1000, 53)].concat());
        let error = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &quoted].concat();
        let (p, parsed) = parse(&frame(21, 20, "fd00:2::21", "fd00:1::11", 58, &error));
        assert_eq!(parsed, expected, "{headers:?}");
        if parsed.is_ok() {
            assert_eq!(p.key, parse(&v6(17, &udp(1000, 53))).0.key);
        }
    }
    assert_eq!(p.side(), original.side());
    // It goes to somebody who did not send what it quotes.
    assert_eq!(parse(&frame(21, 20, "10.2.0.21", "10.1.0.12", 1, &error)).1, Err(Reason::UnmatchedError));
    assert_eq!(
        parse(&frame(21, 20, "10.2.0.21", "10.1.0.11", 1, &error[..30])).1,
        Err(Reason::Malformed),
        "quoted header cut short"
    );
}
