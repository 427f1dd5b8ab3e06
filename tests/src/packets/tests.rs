//! What is built, read by another parser.

use super::*;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ends(v6: bool) -> (IpAddr, IpAddr) {
    if v6 {
        ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
    } else {
        ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
    }
}

#[test]
fn etherparse_reads_what_is_built() {
    for v6 in [false, true] {
        let (s, d) = ends(v6);
        let packet = Packet::syn(s, d, 1000, 5432).numbers(7, 9);
        let frame = Frame::ip(A, B, &packet).tag(0x88a8, 7).tag(0x8100, 8).bytes();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        assert_eq!(sliced.link_exts.len(), 2);
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP: {sliced:?}") };
        assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.syn()), (1000, 5432, true));
        assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (7, 9));
        let sum = match sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            }
            Some(NetSlice::Ipv6(ip)) => {
                tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            }
            other => panic!("no IP: {other:?}"),
        };
        assert_eq!(tcp.checksum(), sum.unwrap());
    }
}

#[test]
fn extension_headers_come_in_the_order_said() {
    let (s, d) = ends(true);
    let packet = Packet::udp(s, d, 1, 53)
        .extension(Extension::HopByHop(vec![5, 2, 0, 0]))
        .extension(Extension::Routing(2, 1))
        .extension(Extension::Auth(3))
        .extension(Extension::Destination(Vec::new()));
    let bytes = packet.bytes();
    let sliced = SlicedPacket::from_ip(&bytes).unwrap();
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP: {sliced:?}") };
    assert_eq!(udp.destination_port(), 53);
}

#[test]
fn options_and_fragments_are_where_they_belong() {
    let (s, d) = ends(false);
    let packet = Packet::udp(s, d, 1, 53).options(&[7, 3, 4]).fragment(3, true).bytes();
    let sliced = SlicedPacket::from_ip(&packet).unwrap();
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
    let header = ip.header().to_header();
    assert_eq!(header.options[..], [7, 3, 4, 0]);
    assert_eq!(header.fragment_offset.value(), 3);
    assert!(header.more_fragments);
    assert_eq!(header.header_checksum, header.calc_header_checksum());
}

#[test]
fn an_error_quotes_the_packet_that_it_is_about() {
    let (s, d) = ends(false);
    let about = Packet::udp(s, d, 1000, 53);
    let error = Packet::error(d, 3, 3, &about).bytes();
    assert_eq!(error[28..56], about.bytes()[..28]);
}
