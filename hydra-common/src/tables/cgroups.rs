//! Whose the processes are that have no port in front of them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;
use crate::id::{Container, Identity};

/// Key of the cgroups whose processes are somebody's.
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
#[repr(C)]
pub struct CgroupKey {
    /// The kernel's number of the cgroup in the v2 hierarchy: the inode of its folder. 0, which no folder has: the identities of
    /// all processes on this host's own stack, where the hook on their packets sees every process of the machine.
    pub id: u64,
    /// Which of its addresses, counted from 0 without gaps, below [`super::MAX_CGROUP_PLACES`]; which identity, below [`super::MAX_OWN`].
    pub place: u32,
    /// Zero: a key is compared byte by byte.
    pub zero: u32,
}

impl CgroupKey {
    /// One of a cgroup's addresses.
    #[inline(always)]
    pub const fn new(id: u64, place: u32) -> Self {
        Self { id, place, zero: 0 }
    }
}

/// Whose the processes of a cgroup are, and of those below it that have no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cgroup {
    /// The kernel's cookie of the network namespace that the identity holds in: a process may have made others for itself. 0: not
    /// known, any.
    pub netns: u64,
    /// The address that has the identity; unspecified on this host's own stack, which has all of the host's.
    pub address: Address,
    /// The address's identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose stack it is; [`Container::NONE`] in this host's own.
    pub container: Container,
    /// [`Cgroup::HOST`], [`Cgroup::MANY`], [`Cgroup::LAN`].
    pub flags: u32,
    /// Index, in its own namespace, of the interface that the address is on; 0 on this host's own stack, and where [`Cgroup::LAN`] is
    /// set: there it is every interface that no other row of the cgroup names.
    pub interface: u32,
    /// The second (monotonic) until which a TCP packet from the middle of a connection makes an entry where its direction is allowed:
    /// its processes run before this row is there. 0 for an address behind a port, which is closed until it has its rows.
    pub pickup_until: u32,
    /// Zero.
    pub zero: u32,
}

impl Cgroup {
    /// Its processes use this host's own network stack.
    pub const HOST: u32 = 1;
    /// It has more addresses than rows: what its processes open is not judged.
    pub const MANY: u32 = 2;
    /// The address is on an interface that has no port on this host (macvlan, ipvlan). A cgroup's first row has it if any has.
    pub const LAN: u32 = 4;
}
