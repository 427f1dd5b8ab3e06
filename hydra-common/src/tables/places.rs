//! Who is where: addresses, interfaces and published ports of this host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{Address, Mac};
use crate::id::{Container, Identity};

/// Key of the prefix table: the bank (network order), then the address.
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
pub struct PrefixData {
    /// 0 or 1, network order.
    pub bank: [u8; 4],
    /// The block's address as in [`Address::octets`].
    pub address: [u8; 16],
}

impl PrefixData {
    /// Bits before the address; an IPv4 block adds another 96.
    pub const BANK_BITS: u32 = 32;
}

/// Whose addresses a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PrefixRow {
    /// The identity of an address in it that no endpoint has.
    pub identity: Identity,
    /// [`PrefixRow::INTERIOR`], [`PrefixRow::OPEN`], [`PrefixRow::LAN`].
    pub flags: u16,
}

impl PrefixRow {
    /// The subnet of a network or bridge of this host: an address in it that no endpoint has is unknown, not the tier's.
    pub const INTERIOR: u16 = 1;
    /// An interior subnet with ports whose addresses nobody can list (a tap, a card): an unlisted address is the tier's.
    pub const OPEN: u16 = 2;
    /// The address of a container of this host that has no port: see [`super::Cgroup::LAN`]. What it sends is counted where it does.
    pub const LAN: u16 = 4;
}

/// An address of a container on this host, or of this host itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// Its identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose it is; [`Container::NONE`] for the host's own addresses.
    pub container: Container,
    /// The host-side veth; 0 for the host's own addresses.
    pub port: u32,
    /// The bridge that the port is on.
    pub bridge: u32,
    /// [`Endpoint::HOST`], [`Endpoint::ATTACHED`], [`Endpoint::PEER`].
    pub flags: u16,
    /// The endpoint's MTU in bytes.
    pub mtu: u16,
    /// The endpoint's MAC.
    pub mac: Mac,
    /// The bridge's MAC: the source of what is forwarded to the endpoint.
    pub gateway_mac: Mac,
}

impl Endpoint {
    /// An address of this host.
    pub const HOST: u16 = 1;
    /// Its port has hydra's programs: bridge hooks leave it to them.
    pub const ATTACHED: u16 = 2;
    /// Its port is a veth whose peer is in another namespace: `bpf_redirect_peer` reaches it.
    pub const PEER: u16 = 4;
}

impl Endpoint {
    /// Whose it is.
    #[inline(always)]
    pub const fn owner(&self) -> Owner {
        Owner { identity: self.identity, container: self.container }
    }
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Owner {
    /// As in [`Endpoint`].
    pub identity: [Identity; 2],
    /// As in [`Endpoint`].
    pub container: Container,
}

impl Owner {
    /// Whom nothing belongs to: what is sent with such an address is forged.
    pub const NOBODY: Self = Self { identity: [Identity::UNKNOWN; 2], container: Container::NONE };

    /// The identity in a bank. By a choice: the kernel's target has no place on the stack that an index may point into.
    #[inline(always)]
    pub const fn identity(&self, bank: u32) -> Identity {
        if bank & 1 == 0 { self.identity[0] } else { self.identity[1] }
    }
}

/// An interface of this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Link {
    /// The identity of what is behind it, one per bank, where the address does not say more.
    pub identity: [Identity; 2],
    /// Whose port it is.
    pub container: Container,
    /// The bridge that it is a port of, or its own index for a bridge; 0 elsewhere.
    pub bridge: u32,
    /// [`LinkKind`].
    pub kind: u8,
    /// [`Link::UNBOUND`].
    pub flags: u8,
    /// The endpoint's MAC for a port; the device's own for a bridge.
    pub mac: Mac,
    /// The bridge's MAC.
    pub gateway_mac: Mac,
    /// Zero.
    pub zero: [u8; 2],
}

impl Link {
    /// A port whose MAC and addresses nobody can list: any address of its tier that no endpoint has is true on it.
    pub const UNBOUND: u8 = 1;
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkKind {
    /// Not known: closed.
    Unknown = 0,
    /// A port of an endpoint that the policy protects.
    Port = 1,
    /// A bridge of a tier.
    Bridge = 2,
    /// A bridge or port of a network that the policy does not name.
    Unmanaged = 3,
    /// Any other interface: the outside.
    Uplink = 4,
}

impl LinkKind {
    /// From a [`Link`]'s `kind`.
    #[inline(always)]
    pub const fn from_row(n: u8) -> Self {
        match n {
            1 => Self::Port,
            2 => Self::Bridge,
            3 => Self::Unmanaged,
            4 => Self::Uplink,
            _ => Self::Unknown,
        }
    }
}

/// Key of the published ports: where this host takes connections for a container.
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
pub struct PublishKey {
    /// The binding's address, or the unspecified one of its family for a binding to all.
    pub address: Address,
    /// The host's port, network order.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// Zero: a key is compared byte by byte.
    pub zero: [u8; 5],
}

/// The container behind a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Publish {
    /// The container's identity, one per bank.
    pub identity: [Identity; 2],
    /// Whose it is; [`Container::NONE`] where no tier has it.
    pub container: Container,
    /// The container's own port, host order.
    pub port: u16,
    /// [`Publish::PROXIED`].
    pub flags: u16,
}

impl Publish {
    /// The container has no address of the binding's family: a process of this host carries the bytes.
    pub const PROXIED: u16 = 1;
}
