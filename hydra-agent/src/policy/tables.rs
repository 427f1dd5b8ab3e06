//! A compiled policy as the verdict function reads it, without a kernel: for `expect`, `explain` and tests. Times are Unix seconds
//! here, as they are in `Compiled`.

use std::collections::BTreeMap;

use hydra_common::address::Address;
use hydra_common::decide::Parts;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::Identity;
use hydra_common::tables::{
    Cell, Cgroup, CgroupKey, Decision, Endpoint, Fragment, FragmentKey, Head, IdentityRow, Interval, Link,
    PrefixRow, Publish, PublishKey, RuleSet, Tables,
};
use ipnet::IpNet;

use super::rows::Compiled;

/// The tables of one policy, the same in both banks.
#[derive(Debug)]
pub struct PolicyTables<'c> {
    compiled: &'c Compiled,
    head: Head,
    decisions: Vec<Decision>,
    /// Addresses of endpoints; empty unless a test fills it.
    pub endpoints: BTreeMap<Address, Endpoint>,
    /// Interfaces; empty unless a test fills it.
    pub links: BTreeMap<u32, Link>,
    /// Live flows; empty unless a test fills it.
    pub flows: BTreeMap<FlowKey, Flow>,
}

impl<'c> PolicyTables<'c> {
    /// The only generation that these tables have.
    pub const GENERATION: u32 = 1;

    /// Over a policy's rows.
    pub fn new(compiled: &'c Compiled) -> Self {
        let decisions = compiled
            .decisions
            .iter()
            .map(|(row, end)| Decision { until: end.map_or(0, seconds), ..*row })
            .collect();
        let flags = if compiled.audit { Head::AUDIT } else { 0 };
        let head = Head { generation: Self::GENERATION, revision: 1, flags, pickup_until: u32::MAX };
        Self {
            compiled,
            head,
            decisions,
            endpoints: BTreeMap::new(),
            links: BTreeMap::new(),
            flows: BTreeMap::new(),
        }
    }

    /// The same outside of the window in which any packet makes an entry ([`Head::pickup_until`]).
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.head.pickup_until = 0;
        self
    }
}

/// A moment as the rows of these tables have it: never 0, which means "never".
pub fn seconds(unix: i64) -> u32 {
    u32::try_from(unix.max(1)).unwrap_or(u32::MAX)
}

/// A flow entry.
#[derive(Clone, Copy, Debug)]
pub struct LiveFlow<'a>(&'a Flow);

impl core::ops::Deref for LiveFlow<'_> {
    type Target = Flow;
    fn deref(&self) -> &Flow {
        self.0
    }
}

impl Parts for PolicyTables<'_> {}

impl Tables for PolicyTables<'_> {
    type Flow<'a>
        = LiveFlow<'a>
    where
        Self: 'a;

    fn generation(&self) -> u32 {
        Self::GENERATION
    }
    fn head(&self, _: u32) -> Option<&Head> {
        Some(&self.head)
    }
    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }
    fn endpoint(&self, address: &Address) -> Option<&Endpoint> {
        self.endpoints.get(address)
    }
    fn published(&self, _: &PublishKey) -> Option<&Publish> {
        None
    }
    fn cgroup(&self, _: &CgroupKey) -> Option<&Cgroup> {
        None
    }
    fn prefix(&self, _: u32, address: &Address) -> Option<&PrefixRow> {
        let octets = address.octets();
        let ip = std::net::Ipv6Addr::from(octets).to_canonical();
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .filter_map(|len| IpNet::new(ip, len).ok())
            .find_map(|net| self.compiled.prefixes.get(&net.trunc()))
    }
    fn identity(&self, _: u32, identity: Identity) -> Option<&IdentityRow> {
        self.compiled.identities.get(&identity).map(|(_, row)| row)
    }
    fn cell(&self, _: u32, source: Identity, destination: Identity) -> Option<Cell> {
        self.compiled.cells.get(&(source, destination)).copied()
    }
    fn rule_set(&self, _: u32, index: u32) -> Option<&RuleSet> {
        self.compiled.rule_sets.get(index as usize)
    }
    fn interval(&self, _: u32, index: u32) -> Option<&Interval> {
        self.compiled.intervals.get(index as usize)
    }
    fn decision(&self, _: u32, index: u32) -> Option<&Decision> {
        self.decisions.get(index as usize)
    }
    fn flow(&self, key: &FlowKey) -> Option<LiveFlow<'_>> {
        self.flows.get(key).map(LiveFlow)
    }
    fn fragment(&self, _: &FragmentKey) -> Option<&Fragment> {
        None
    }
}
