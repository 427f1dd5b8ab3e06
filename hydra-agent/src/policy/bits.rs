//! Sets of small numbers, most of them nearly empty.

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits {
    words: Vec<u64>,
    /// Which words have anything.
    some: Vec<u64>,
}

impl Bits {
    /// For numbers below `size`.
    pub fn new(size: usize) -> Self {
        let mut bits = Self::default();
        bits.reset(size);
        bits
    }

    /// Nothing in it any more, and room for numbers below `size`.
    pub fn reset(&mut self, size: usize) {
        let words = size.div_ceil(64);
        for (list, length) in [(&mut self.words, words), (&mut self.some, words.div_ceil(64))] {
            list.clear();
            list.resize(length, 0);
        }
    }

    /// Adds a number.
    pub fn set(&mut self, n: usize) {
        self.words[n / 64] |= 1 << (n % 64);
        self.some[n / 64 / 64] |= 1 << (n / 64 % 64);
    }

    /// Takes a number out.
    pub fn clear(&mut self, n: usize) {
        self.words[n / 64] &= !(1 << (n % 64));
        if self.words[n / 64] == 0 {
            self.some[n / 64 / 64] &= !(1 << (n / 64 % 64));
        }
    }

    /// Whether a number is in it.
    pub fn has(&self, n: usize) -> bool {
        self.words[n / 64] & 1 << (n % 64) != 0
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + Clone + '_ {
        let words = ones(self.some.iter().copied());
        words.flat_map(|word| Ones(self.words[word]).map(move |bit| word * 64 + bit))
    }

    /// The numbers that are in both, ascending.
    pub fn common<'b>(&'b self, other: &'b Self) -> impl Iterator<Item = usize> + 'b {
        let words = ones(self.some.iter().zip(&other.some).map(|(a, b)| a & b));
        words.flat_map(|word| Ones(self.words[word] & other.words[word]).map(move |bit| word * 64 + bit))
    }
}

/// The places of ones in words that follow each other.
fn ones(words: impl Iterator<Item = u64> + Clone) -> impl Iterator<Item = usize> + Clone {
    words.enumerate().flat_map(|(index, word)| Ones(word).map(move |bit| index * 64 + bit))
}

/// The places of ones in a word.
#[derive(Clone)]
struct Ones(u64);

impl Iterator for Ones {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    #[test]
    fn sets_hold_what_was_put_in_and_not_taken_out() {
        let mut bits = Bits::new(70_000);
        let numbers = [0, 1, 63, 64, 4_095, 4_096, 69_999];
        for n in numbers {
            bits.set(n);
        }
        assert_eq!(bits.iter().collect::<Vec<_>>(), numbers);
        let mut other = Bits::new(70_000);
        for n in [1, 2, 64, 69_999] {
            other.set(n);
        }
        assert_eq!(bits.common(&other).collect::<Vec<_>>(), [1, 64, 69_999]);
        bits.clear(63);
        bits.clear(0);
        bits.clear(1);
        assert_eq!(bits.iter().next(), Some(64));
        for n in numbers {
            bits.clear(n);
        }
        assert_eq!(bits, Bits::new(70_000), "what is empty is equal");
        bits.reset(10);
        assert_eq!(bits, Bits::new(10));
    }
}
