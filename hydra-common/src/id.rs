//! The numbers that the kernel works with instead of names.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identities that the tables can hold, the reserved ones included.
pub const MAX_IDENTITIES: u32 = 1024;
/// Tiers that the counters can hold, the reserved ones included.
pub const MAX_TIERS: u32 = 256;

/// One row and one column of the matrix: a tier, a service or a reserved tier, and, where a rule names address blocks, the
/// part of it that lies in the same blocks.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Identity(pub u16);

impl Identity {
    /// Nothing is known: rows of this identity are all zero, which denies.
    pub const UNKNOWN: Self = Self(0);
    /// Addresses that belong to nobody we know, in no block that a rule names.
    pub const EXTERNAL: Self = Self(1);
    /// This machine itself.
    pub const HOST: Self = Self(2);
    /// Containers on networks that the policy does not name.
    pub const UNMANAGED: Self = Self(3);
    /// The first number that a policy's own tiers and services get.
    pub const FIRST_DECLARED: Self = Self(4);
}

/// A tier's number: counters are kept by tier, so that their number is bounded by the policy's size.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Tier(pub u16);

impl Tier {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
    /// See [`Identity::EXTERNAL`].
    pub const EXTERNAL: Self = Self(1);
    /// See [`Identity::HOST`].
    pub const HOST: Self = Self(2);
    /// See [`Identity::UNMANAGED`].
    pub const UNMANAGED: Self = Self(3);
    /// The first number that a policy's own tiers get.
    pub const FIRST_DECLARED: Self = Self(4);
}

/// The number of one network stack (a container, the containers that share it, a named namespace). Given by the agent,
/// never used again while the tables live; 0 is nobody.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Container(pub u32);

impl Container {
    /// Not a container on this host.
    pub const NONE: Self = Self(0);
}
