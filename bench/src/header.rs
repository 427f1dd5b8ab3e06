//! Writes a frame's header from within a program, so that each packet can be another one, and what a program or the kernel has changed
//! is as it was.

use anyhow::{Context, Result};

use crate::assembler::register::{R0, R1, R3, R4, R7};
use crate::assembler::{Code, Width};

/// `bpf_get_prandom_u32`.
const RANDOM: i32 = 7;

/// Where a frame has what these programs need.
pub struct Layout {
    /// Source, then destination.
    pub addresses: i16,
    /// Bytes of each address.
    pub length: i16,
    /// Four bytes that hold the TTL, or the hop limit.
    pub ttl: i16,
    /// Source, then destination.
    pub ports: i16,
}

impl Layout {
    /// Of a frame without options.
    pub fn of(frame: &[u8]) -> Self {
        if frame[12..14] == [0x86, 0xdd] {
            Self { addresses: 22, length: 16, ttl: 18, ports: 54 }
        } else {
            Self { addresses: 26, length: 4, ttl: 22, ports: 34 }
        }
    }
}

/// Writes MACs, TTL, addresses and ports, the source port anew each time with these bits at random. The context is in r1, which has the packet's
/// begin and end at these offsets; r7 is the packet then, and r0 to r5 are spent.
pub fn write(code: &mut Code, frame: &[u8], random: u16, begin: i16, end: i16) -> Result<()> {
    const AND: u8 = 0x54;
    const OR: u8 = 0x44;
    let layout = Layout::of(frame);
    let word = |at: i16| -> Result<i32> {
        Ok(i32::from_ne_bytes(frame[at as usize..].first_chunk::<4>().copied().context("a short frame")?))
    };
    let ports = &frame[layout.ports as usize..layout.ports as usize + 4];
    let port = u16::from_be_bytes([ports[0], ports[1]]) & !random;
    let [high, low] = port.to_be_bytes();
    let fixed = i32::from_ne_bytes([high, low, ports[2], ports[3]]);
    let [high, low] = random.to_be_bytes();
    let mask = i32::from_ne_bytes([high, low, 0, 0]);
    code.load(Width::W, R7, R1, begin).load(Width::W, R3, R1, end);
    code.copy(R4, R7).add(R4, i32::from(layout.ports) + 4).end_if_above(R4, R3);
    let addresses = (0..layout.length / 2).map(|part| layout.addresses + part * 4);
    for at in [0, 4, 8, layout.ttl].into_iter().chain(addresses) {
        code.put(Width::W, R7, at, word(at)?);
    }
    code.helper(RANDOM).op(AND, R0, 0, 0, mask).op(OR, R0, 0, 0, fixed).store(Width::W, R7, layout.ports, R0);
    Ok(())
}
