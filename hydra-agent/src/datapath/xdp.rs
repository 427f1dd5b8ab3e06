//! XDP programs of others on interfaces that carry hydra's: they see a frame before every classifier, and what they redirect no
//! classifier sees. hydra neither has nor removes any; it says that they are there.

use std::collections::BTreeMap;
use std::io;

use super::rtnetlink::{ACK, DUMP, Request, attributes, word};

// Numbers of `linux/rtnetlink.h` and `linux/if_link.h`.
const GET_LINK: u16 = 18;
const EXT_MASK: u16 = 29;
const XDP: u16 = 43;
const XDP_ATTACHED: u16 = 2;
const XDP_PROGRAM: u16 = 4;
/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 1 << 3;
/// Bytes of `ifinfomsg`.
const INFO: usize = 16;

/// The XDP programs of this namespace: the kernel's number of one by interface index (0 where several sit on it).
pub fn programs() -> io::Result<BTreeMap<u32, u32>> {
    let mut request = Request::new(GET_LINK, ACK | DUMP, &[0; INFO]);
    request.attribute(EXT_MASK, &SKIP_STATS.to_ne_bytes());
    Ok(request.send()?.iter().filter_map(|message| program(message)).collect())
}

fn program(message: &[u8]) -> Option<(u32, u32)> {
    let index = word(message, 4)?;
    let xdp = attributes(message.get(INFO..)?).into_iter().find(|(kind, _)| *kind == XDP)?.1;
    let (mut attached, mut program) = (false, 0);
    for (kind, value) in attributes(xdp) {
        match kind {
            XDP_ATTACHED => attached = value.first().is_some_and(|mode| *mode != 0),
            XDP_PROGRAM => program = word(value, 0)?,
            _ => {}
        }
    }
    attached.then_some((index, program))
}

#[cfg(test)]
mod tests {
    use super::super::rtnetlink::attribute;
    use super::*;

    fn message(xdp: &[(u16, &[u8])]) -> Vec<u8> {
        let mut nested = Vec::new();
        for (kind, value) in xdp {
            attribute(&mut nested, *kind, value);
        }
        let mut message = vec![0; INFO];
        message[4..8].copy_from_slice(&7u32.to_ne_bytes());
        attribute(&mut message, 3, b"hya\0");
        attribute(&mut message, XDP, &nested);
        message
    }

    #[test]
    fn an_interface_without_a_program_has_none() {
        assert_eq!(program(&message(&[(XDP_ATTACHED, &[0])])), None);
        let id = 42u32.to_ne_bytes();
        assert_eq!(program(&message(&[(XDP_ATTACHED, &[2]), (XDP_PROGRAM, &id)])), Some((7, 42)));
        assert_eq!(program(&message(&[(XDP_ATTACHED, &[4])])), Some((7, 0)), "several");
        let whole = message(&[(XDP_ATTACHED, &[1]), (XDP_PROGRAM, &id)]);
        for length in 0..whole.len() {
            let _ = program(&whole[..length]);
        }
    }
}
