//! Whose the processes of each cgroup are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hydra_common::address::Address;
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{self, CgroupKey, MAX_CGROUP_PLACES};

use crate::desired::Cgroup;
use crate::inventory::snapshot::{Snapshot, Stack};
use crate::placement::{Home, LanHome, Placement};
use crate::policy::rows::Compiled;

/// The rows of every cgroup of a protected stack, one for each address of the stack, those without a port first, and of the processes
/// on this host's own stack.
pub fn rows(
    compiled: &Compiled,
    placement: &Placement,
    snapshot: &Snapshot,
    declared: &BTreeSet<usize>,
) -> BTreeMap<CgroupKey, Cgroup> {
    let mut rows: BTreeMap<u64, Vec<Cgroup>> = BTreeMap::new();
    let mut shared = BTreeSet::new();
    for stack in &snapshot.stacks {
        let index =
            declared.iter().copied().find(|i| placement.stacks.get(*i).is_some_and(|s| s.key == stack.key));
        let homes = placement.addresses.iter().filter(|(_, home)| Some(home.stack) == index);
        let lan =
            |made| placement.lan.iter().filter(move |home| home.stack == stack.key && home.made == made);
        let lone = |home| lone(compiled, stack, home);
        let homes = homes.map(|(ip, home)| ported(compiled, placement, stack, *ip, home));
        let of_stack = fitted(lan(false).map(lone).chain(homes).collect(), lan(true).map(lone).collect());
        if index.is_none() && of_stack.is_empty() {
            continue;
        }
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
            interface: 0,
            pickup_until: 0,
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

/// The row of an address behind a port.
fn ported(compiled: &Compiled, placement: &Placement, stack: &Stack, ip: IpAddr, home: &Home) -> Cgroup {
    Cgroup {
        identity: compiled.identity(&home.owner, Some(ip)).unwrap_or(Identity::UNKNOWN),
        address: Address::from(ip),
        netns: stack.cookie.unwrap_or(0),
        container: placement.stacks.get(home.stack).map_or(Container::NONE, |s| s.container),
        flags: 0,
        interface: stack.attachments.iter().find(|a| a.port == home.port).map_or(0, |a| a.inside),
        pickup_until: 0,
    }
}

/// The row of an address without a port.
fn lone(compiled: &Compiled, stack: &Stack, home: &LanHome) -> Cgroup {
    let identity = home.owner.as_ref().and_then(|owner| compiled.identity(owner, Some(home.address)));
    Cgroup {
        identity: identity.unwrap_or(Identity::UNKNOWN),
        address: Address::from(home.address),
        netns: stack.cookie.unwrap_or(0),
        container: home.container,
        flags: tables::Cgroup::LAN,
        interface: 0,
        pickup_until: 0,
    }
}

/// As many as there are places. Where one has no port, the hook on packets must know those, and after them every interface that has one:
/// what is not listed is denied. Then come the addresses that may be on the former.
fn fitted(mut rows: Vec<Cgroup>, made: Vec<Cgroup>) -> Vec<Cgroup> {
    let most = MAX_CGROUP_PLACES as usize;
    if rows.len() + made.len() <= most {
        rows.extend(made);
        return rows;
    }
    let lan = rows.iter().any(|row| row.flags & tables::Cgroup::LAN != 0);
    let mut seen = BTreeSet::new();
    let mut again = |row: &Cgroup| lan && row.interface != 0 && !seen.insert(row.interface);
    let (later, mut first): (Vec<Cgroup>, Vec<Cgroup>) = rows.into_iter().partition(|row| again(row));
    first.extend(made.into_iter().chain(later));
    let many = |row: Cgroup| Cgroup { flags: row.flags | tables::Cgroup::MANY, ..row };
    first.into_iter().map(many).take(most).collect()
}
