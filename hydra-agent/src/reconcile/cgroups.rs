//! Whose the processes of each cgroup are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hydra_common::address::Address;
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{self, CgroupKey, MAX_CGROUP_PLACES};

use crate::desired::Cgroup;
use crate::inventory::snapshot::Snapshot;
use crate::placement::{Home, Placement};
use crate::policy::rows::Compiled;

/// The rows of every cgroup of a protected stack, one for each address of the stack, and of the processes on this
/// host's own stack.
pub fn rows(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
) -> BTreeMap<CgroupKey, Cgroup> {
    let mut rows: BTreeMap<u64, Vec<Cgroup>> = BTreeMap::new();
    let mut shared = BTreeSet::new();
    for index in declared {
        let Some(placed) = placement.stacks.get(*index) else { continue };
        let Some(stack) = snapshot.stacks.iter().find(|s| s.key == placed.key) else { continue };
        let homes = placement.addresses.iter().filter(|(_, home)| home.stack == *index);
        let homes: Vec<_> = homes.collect();
        let many = homes.len() > MAX_CGROUP_PLACES as usize;
        let row = |(ip, home): (&IpAddr, &Home)| Cgroup {
            identity: compiled.identity(&home.owner, Some(*ip)).unwrap_or(Identity::UNKNOWN),
            address: Address::from(*ip),
            netns: stack.cookie.unwrap_or(0),
            container: placed.container,
            flags: if many { tables::Cgroup::MANY } else { 0 },
        };
        let of_stack: Vec<Cgroup> = homes.into_iter().map(row).take(MAX_CGROUP_PLACES as usize).collect();
        for id in &stack.cgroups {
            if rows.insert(*id, of_stack.clone()).is_some() {
                shared.insert(*id);
            }
        }
    }
    for processes in &placement.processes {
        let row = Cgroup {
            identity: compiled.identity(&processes.owner, None).unwrap_or(Identity::UNKNOWN),
            netns: snapshot.cookie.unwrap_or(0),
            address: Address::default(),
            container: Container::NONE,
            flags: tables::Cgroup::HOST,
        };
        if rows.insert(processes.cgroup, vec![row]).is_some() {
            shared.insert(processes.cgroup);
        }
    }
    // Of processes that two stacks have nobody can say whose they are: their packets are judged, as always.
    rows.retain(|id, _| !shared.contains(id));
    let keyed = rows
        .into_iter()
        .flat_map(|(id, rows)| (0..).zip(rows).map(move |(place, row)| (CgroupKey::new(id, place), row)));
    keyed.collect()
}
