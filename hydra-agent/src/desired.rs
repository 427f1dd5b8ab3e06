//! What the kernel should hold: made by `reconcile`, carried out by `datapath`, compared with what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{CgroupKey, LinkKind, PublishKey};
use hydra_common::verdict::Hook;

use crate::policy::rows::Compiled;

/// The whole wanted state of the kernel's tables and hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The policy's revision.
    pub revision: u32,
    /// The policy's rows.
    pub compiled: Arc<Compiled>,
    /// Addresses of containers and of this host.
    pub endpoints: BTreeMap<Address, Endpoint>,
    /// Every interface of this host, by index.
    pub links: BTreeMap<u32, Link>,
    /// Ports of this host that lead to containers.
    pub published: BTreeMap<PublishKey, Publish>,
    /// Whose the processes of cgroups are.
    pub cgroups: BTreeMap<CgroupKey, Cgroup>,
    /// Which programs sit where: interface index and hook.
    pub hooks: BTreeSet<(u32, Hook)>,
    /// How long TCP connections from before protection are taken up from their middle, in seconds; 0: never.
    pub pickup: u32,
}

/// A [`hydra_common::tables::Endpoint`] before it has a bank; same words, same units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at the row that it becomes")]
pub struct Endpoint {
    pub identity: Identity,
    pub container: Container,
    pub port: u32,
    pub bridge: u32,
    pub flags: u16,
    pub mtu: u16,
    pub mac: Mac,
    pub gateway_mac: Mac,
}

/// A [`hydra_common::tables::Link`] before it has a bank; same words, same units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at the row that it becomes")]
pub struct Link {
    pub identity: Identity,
    pub container: Container,
    pub bridge: u32,
    pub kind: LinkKind,
    pub flags: u8,
    pub mac: Mac,
    pub gateway_mac: Mac,
}

/// A [`hydra_common::tables::Publish`] before it has a bank; same words, same units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at the row that it becomes")]
pub struct Publish {
    pub identity: Identity,
    pub container: Container,
    pub port: u16,
    pub flags: u16,
}

/// A [`hydra_common::tables::Cgroup`] before it has a bank; same words, same units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented at the row that it becomes")]
pub struct Cgroup {
    pub identity: Identity,
    pub netns: u64,
    pub address: Address,
    pub container: Container,
    pub flags: u32,
    pub interface: u32,
    pub pickup_until: u32,
}
