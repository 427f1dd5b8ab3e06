//! What is read of the commonest frames at fixed places is what the parser reads of them.

mod common;

use common::{frame, parse, segment, udp};
use hydra_common::packet::Packet;

const ACK: u8 = 0x10;

fn v4(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(11, 10, "10.1.0.11", to, protocol, payload)
}

fn v6(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(11, 10, "fd00:1::11", to, protocol, payload)
}

/// Connections and datagrams of both families.
fn good() -> [Vec<u8>; 4] {
    let tcp = segment(4000, 5432, ACK, 100, 500, 7);
    let (four, six) = ("10.2.0.21", "fd00:2::21");
    [v4(four, 6, &tcp), v4(four, 17, &udp(4000, 5432)), v6(six, 6, &tcp), v6(six, 17, &udp(4000, 5432))]
}

/// Whether a frame is read so; if it is, the parser says the same.
fn plain(frame: &[u8]) -> bool {
    let mut packet = Packet::default();
    let plain = packet.plain(&frame);
    if plain {
        assert_eq!((packet, Ok(())), parse(frame), "{frame:x?}");
    }
    plain
}

#[test]
fn the_commonest_frames_are_plain() {
    for f in good() {
        assert!(plain(&f));
    }
}

#[test]
fn every_value_of_every_byte_and_every_length_is_read_alike_or_not_at_all() {
    let mut read = 0;
    for f in good() {
        for length in 0..f.len() {
            assert!(!plain(&f[..length]), "{length} bytes of {}", f.len());
        }
        for place in 0..f.len() {
            for value in 0..=255 {
                let mut f = f.clone();
                f[place] = value;
                read += usize::from(plain(&f));
            }
        }
    }
    assert!(read > 20_000, "only {read} of them are plain");
}

#[test]
fn what_may_be_dhcp_is_looked_at_closer() {
    for source in [66, 67, 68, 69, 546, 547] {
        for destination in [66, 67, 68, 69, 546, 547] {
            let near = |port| matches!(port, 67 | 68 | 546 | 547);
            for to in ["255.255.255.255", "10.2.0.21", "224.0.0.1"] {
                let f = v4(to, 17, &udp(source, destination));
                assert_eq!(plain(&f), !(near(source) && near(destination)));
            }
            for to in ["ff02::1:2", "fd00:2::21"] {
                let f = v6(to, 17, &udp(source, destination));
                assert_eq!(plain(&f), !(near(source) && near(destination)));
            }
        }
    }
}

/// The fields that the walk leaves alone do not keep what a frame before had there.
#[test]
fn a_frame_is_read_over_another() {
    let frames = good();
    for one in &frames {
        for other in &frames {
            let mut packet = Packet::default();
            assert!(packet.plain(&&one[..]) && packet.plain(&&other[..]));
            assert_eq!((packet, Ok(())), parse(other));
        }
    }
}
