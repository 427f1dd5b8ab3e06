//! Random changes of bytes, for where libFuzzer is not at hand.

use crate::random::Random;

/// Changes some bytes: flips, numbers at edges, pieces taken out, doubled or moved, pieces of another input, words.
pub fn mutate(random: &mut Random, bytes: &[u8], other: &[u8], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let length = 1 + random.below(16);
        let end = (at + length).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = *random.one(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b':']),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                let times = 1 + random.below(3);
                (0..times).for_each(|_| drop(bytes.splice(at..at, piece.iter().copied())));
            }
            4 => {
                let piece: Vec<u8> = bytes.drain(at..end).collect();
                let to = random.below(bytes.len() + 1);
                drop(bytes.splice(to..to, piece));
            }
            5 => {
                let from = random.below(other.len() + 1);
                let piece = &other[from..(from + 8 * length).min(other.len())];
                let over = if random.one_in(2) { at } else { end };
                drop(bytes.splice(at..over, piece.iter().copied()));
            }
            6 if !words.is_empty() => drop(bytes.splice(at..at, random.one(words).iter().copied())),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}
