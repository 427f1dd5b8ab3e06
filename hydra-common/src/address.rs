//! IP addresses and MAC addresses as the tables keep them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IP address of either family: 16 bytes in network order, IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2). A packet that
/// carries an IPv4-mapped address in an IPv6 header is refused by the parser, so the two never meet. Aligned, so that the kernel's
/// target copies and compares it in words.
#[derive(Clone, Copy, Debug, Default, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Address([u8; 16]);

impl Address {
    /// `::`, the unspecified address of IPv6 (RFC 4291, 2.5.2).
    pub const UNSPECIFIED6: Self = Self([0; 16]);
    /// `0.0.0.0`, the unspecified address of IPv4.
    pub const UNSPECIFIED4: Self = Self::v4([0; 4]);

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    /// From an IPv6 address in network order.
    #[inline(always)]
    pub const fn v6(a: [u8; 16]) -> Self {
        Self(a)
    }

    /// From an IPv4 address as a number.
    #[inline(always)]
    pub(crate) fn v4_word(a: u32) -> Self {
        Self::words([0, (0xffff << 32 | u64::from(a)).to_be()])
    }

    /// From its halves, the bytes of each in their order.
    #[inline(always)]
    pub(crate) fn words(words: [u64; 2]) -> Self {
        zerocopy::transmute!(words)
    }

    /// The 16 bytes, IPv4 mapped.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.high() == 0 && self.low() >> 32 == 0xffff
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        self.high() == 0 && (self.low() == 0 || self.low() == 0xffff << 32)
    }

    /// IPv4 224.0.0.0/4 (RFC 1112) and 255.255.255.255 (RFC 919), IPv6 ff00::/8 (RFC 4291, 2.7).
    #[inline(always)]
    pub fn is_group(&self) -> bool {
        if self.is_v4() {
            self.low() as u32 >> 28 == 0xe || self.low() as u32 == u32::MAX
        } else {
            self.0[0] == 0xff
        }
    }

    /// IPv4 169.254.0.0/16 (RFC 3927), IPv6 fe80::/10 (RFC 4291, 2.5.6).
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.0[12] == 169 && self.0[13] == 254
        } else {
            self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
        }
    }

    /// IPv4 127.0.0.0/8 (RFC 1122, 3.2.1.3), IPv6 ::1.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() { self.0[12] == 127 } else { self.high() == 0 && self.low() == 1 }
    }

    /// The IPv6 link-local address that Linux makes from a MAC (modified EUI-64, RFC 4291, appendix A).
    #[inline(always)]
    pub fn link_local_of(mac: &Mac) -> Self {
        let m = mac.0;
        Self([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]])
    }

    /// The first eight bytes as a number.
    #[inline(always)]
    pub fn high(&self) -> u64 {
        self.word::<0>()
    }

    /// The last eight bytes as a number.
    #[inline(always)]
    pub fn low(&self) -> u64 {
        self.word::<1>()
    }

    /// As a whole, or the compiler forgets how it is aligned, and reads byte by byte.
    #[inline(always)]
    fn word<const N: usize>(&self) -> u64 {
        u64::from_be(self.halves()[N])
    }

    /// Its halves, the bytes of each in their order.
    #[inline(always)]
    pub(crate) fn halves(&self) -> [u64; 2] {
        zerocopy::transmute!(*self)
    }
}

// By words: the derived comparison is one of bytes on the kernel's target.
impl PartialEq for Address {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.high() == other.high() && self.low() == other.low()
    }
}

impl Eq for Address {}

impl core::hash::Hash for Address {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(2))]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Not known.
    pub const ZERO: Self = Self([0; 6]);
    /// Everybody's on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The group bit: multicast and broadcast (IEEE 802.3, 3.2.3).
    #[inline(always)]
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl Mac {
    /// From its thirds, the bytes of each in their order.
    #[inline(always)]
    pub(crate) fn words(words: [u16; 3]) -> Self {
        let mut mac = [0; 6];
        mac[..2].copy_from_slice(&words[0].to_ne_bytes());
        mac[2..4].copy_from_slice(&words[1].to_ne_bytes());
        mac[4..].copy_from_slice(&words[2].to_ne_bytes());
        Self(mac)
    }

    /// The same, copied in words: the compiler, left to itself, calls a loop of bytes on the kernel's target.
    #[inline(always)]
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "by value it is copied before")]
    pub(crate) fn copied(&self) -> Self {
        Self::words(zerocopy::transmute!(*self))
    }

    #[inline(always)]
    fn word<const AT: usize>(self) -> u16 {
        let mut word = [0; 2];
        word.copy_from_slice(&self.0[AT..AT + 2]);
        u16::from_ne_bytes(word)
    }
}

impl PartialEq for Mac {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.word::<0>() == other.word::<0>()
            && self.word::<2>() == other.word::<2>()
            && self.word::<4>() == other.word::<4>()
    }
}

impl Eq for Mac {}

impl core::hash::Hash for Mac {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
