//! Rows of containers, interfaces and published ports: what is to be written and removed so that the tables hold others than they do,
//! and whether live flows may rest on what changes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::address::Address;
use hydra_common::id::{Container, Identity};
use hydra_common::tables::{Cgroup, CgroupKey, Endpoint, Link, LinkKind, MAX_OWN, Publish, PublishKey};

use super::tables::pickup_until;
use crate::desired;

/// A row of a container or interface: what it says of the kernel's packets beside its place.
pub trait Row: Copy + PartialEq {
    /// The row before it has banks.
    type Wanted;

    /// With these identities in its two slots.
    fn make(wanted: &Self::Wanted, slots: [Identity; 2]) -> Self;
    /// Its two slots.
    fn slots(&self) -> [Identity; 2];
    /// The same with other slots.
    fn with_slots(self, slots: [Identity; 2]) -> Self;
    /// What `wanted` says its identity is.
    fn identity(wanted: &Self::Wanted) -> Identity;
    /// Whose it is.
    fn container(&self) -> Container;
    /// What verdicts rest on beside identity and container.
    fn kind(&self) -> (u8, u16);
}

/// What every row has under the same name.
macro_rules! container_row {
    ($wanted:ty) => {
        type Wanted = $wanted;

        fn slots(&self) -> [Identity; 2] {
            self.identity
        }

        fn with_slots(self, identity: [Identity; 2]) -> Self {
            Self { identity, ..self }
        }

        fn identity(wanted: &Self::Wanted) -> Identity {
            wanted.identity
        }

        fn container(&self) -> Container {
            self.container
        }
    };
}

impl Row for Endpoint {
    container_row!(desired::Endpoint);

    fn make(wanted: &Self::Wanted, identity: [Identity; 2]) -> Self {
        let desired::Endpoint { identity: _, container, port, bridge, flags, mtu, mac, gateway_mac } =
            *wanted;
        Self { identity, container, port, bridge, flags, mtu, mac, gateway_mac }
    }

    fn kind(&self) -> (u8, u16) {
        (0, self.flags & Self::HOST)
    }
}

impl Row for Link {
    container_row!(desired::Link);

    fn make(wanted: &Self::Wanted, identity: [Identity; 2]) -> Self {
        let desired::Link { identity: _, container, bridge, kind, flags, mac, gateway_mac } = *wanted;
        Self { identity, container, bridge, kind: kind as u8, flags, mac, gateway_mac, zero: [0; 2] }
    }

    fn kind(&self) -> (u8, u16) {
        (self.kind, u16::from(self.flags))
    }
}

impl Row for Publish {
    container_row!(desired::Publish);

    fn make(wanted: &Self::Wanted, identity: [Identity; 2]) -> Self {
        let desired::Publish { identity: _, container, port, flags } = *wanted;
        Self { identity, container, port, flags }
    }

    fn kind(&self) -> (u8, u16) {
        (self.flags as u8, self.port)
    }
}

impl Row for Cgroup {
    container_row!(desired::Cgroup);

    fn make(wanted: &Self::Wanted, identity: [Identity; 2]) -> Self {
        let desired::Cgroup { identity: _, netns, address, container, flags, interface, pickup_until } =
            *wanted;
        Self { netns, address, identity, container, flags, interface, pickup_until, zero: 0 }
    }

    fn kind(&self) -> (u8, u16) {
        (0, self.flags as u16)
    }
}

/// The identities of the processes on this host's own stack, in a settled order.
pub fn on_own_stack(cgroups: &BTreeMap<CgroupKey, desired::Cgroup>) -> BTreeSet<Identity> {
    own_stack(cgroups).map(|row| row.identity).filter(|identity| *identity != Identity::UNKNOWN).collect()
}

fn own_stack(cgroups: &BTreeMap<CgroupKey, desired::Cgroup>) -> impl Iterator<Item = &desired::Cgroup> {
    cgroups.values().filter(|row| row.flags & Cgroup::HOST != 0)
}

/// The rows of cgroups, with those identities under no cgroup's number: calls of this host are left to the hook of whoever receives
/// them only where all processes have that hook (`whole`). None where there is no room for all.
pub fn with_own_stack(
    cgroups: &BTreeMap<CgroupKey, desired::Cgroup>,
    whole: bool,
) -> BTreeMap<CgroupKey, desired::Cgroup> {
    let mut rows = cgroups.clone();
    let identities = on_own_stack(cgroups);
    if whole && identities.len() <= MAX_OWN as usize {
        let netns = own_stack(cgroups).map(|row| row.netns).next().unwrap_or(0);
        let row =
            |identity| desired::Cgroup { identity, netns, flags: Cgroup::HOST, ..desired::Cgroup::default() };
        rows.extend((0..).zip(identities).map(|(place, identity)| (CgroupKey::new(0, place), row(identity))));
    }
    rows
}

/// The same with the time in which connections from before are taken up: `lasts` seconds from `now` for a cgroup that is seen there for
/// the first time, where its processes run before it has rows.
pub fn with_pickup(
    mut cgroups: BTreeMap<CgroupKey, desired::Cgroup>,
    held: &BTreeMap<CgroupKey, Cgroup>,
    lasts: u32,
    now: u32,
) -> BTreeMap<CgroupKey, desired::Cgroup> {
    let unguarded = |flags: u32| flags & (Cgroup::HOST | Cgroup::LAN) != 0;
    for (key, row) in cgroups.iter_mut().filter(|(key, row)| key.id != 0 && unguarded(row.flags)) {
        let before = held.get(&CgroupKey::new(key.id, 0)).filter(|row| unguarded(row.flags));
        let before = before.map(|row| row.pickup_until);
        row.pickup_until = pickup_until(before.unwrap_or(0), before.is_none(), lasts, now);
    }
    cgroups
}

/// What is to be done to a table of containers' rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPlan<K, R> {
    /// Written before the flip, where there is one.
    pub write: Vec<(K, R)>,
    /// Removed after the flip.
    pub remove: Vec<K>,
}

impl<K, R> RowPlan<K, R> {
    /// How many rows it touches.
    pub fn rows(&self) -> usize {
        self.write.len() + self.remove.len()
    }
}

/// Whether live flows may rest on a row that goes away or says something else now.
pub fn reopened<K: Ord, R: Row>(held: &BTreeMap<K, R>, wanted: &BTreeMap<K, R::Wanted>, bank: usize) -> bool {
    held.iter().any(|(key, row)| match wanted.get(key) {
        None => true,
        Some(new) => {
            let identity = R::identity(new);
            let new = R::make(new, [identity; 2]);
            // Nothing rests on a row that denies everything: a port whose container was not known yet.
            let closed = row.container() == Container::NONE && row.slots()[bank] == Identity::UNKNOWN;
            (row.slots()[bank] != identity || row.container() != new.container() || row.kind() != new.kind())
                && !(closed && row.kind() == new.kind())
        }
    })
}

/// Whether ports are protected now that were there before without protection: connections may live behind them that nobody saw
/// open.
pub fn newly_protected(held: &BTreeMap<u32, Link>, wanted: &BTreeMap<u32, desired::Link>) -> bool {
    wanted.iter().any(|(index, link)| {
        link.kind == LinkKind::Port && held.get(index).is_some_and(|row| row.kind != LinkKind::Port as u8)
    })
}

/// Whether a port is published that was this host's own before: a flow to it may have been judged so, and where docker-proxy takes
/// its packets over they reach the container. With [`reopened`], which says it of every row that goes or says something else, each change of
/// these rows makes a generation: what programs keep of packets that pass unseen rests on that ([`hydra_common::tables::Moment`]).
pub fn exposed(
    held: &BTreeMap<PublishKey, Publish>,
    wanted: &BTreeMap<PublishKey, desired::Publish>,
) -> bool {
    wanted.keys().any(|key| !held.contains_key(key))
}

/// The rows to write and to remove. `bank` is the one that packets read now; with `flip` the other one will be next.
pub fn plan<K: Ord + Copy, R: Row>(
    held: &BTreeMap<K, R>,
    wanted: &BTreeMap<K, R::Wanted>,
    bank: usize,
    flip: bool,
) -> RowPlan<K, R> {
    let mut plan = RowPlan { write: Vec::new(), remove: Vec::new() };
    for (key, new) in wanted {
        let identity = R::identity(new);
        let old = held.get(key);
        let row = if flip {
            let mut slots = [identity; 2];
            // Until the flip packets must meet what the old policy said. Of a row that is new, or another container's now, it
            // said nothing: closed for the few milliseconds.
            let owner = R::make(new, slots).container();
            slots[bank] =
                old.filter(|o| o.container() == owner).map_or(Identity::UNKNOWN, |o| o.slots()[bank]);
            R::make(new, slots)
        } else {
            let mut slots = [identity; 2];
            // What the other bank says is nobody's concern before it is written.
            if let Some(old) = old.filter(|o| o.slots()[bank] == identity) {
                slots = old.slots();
            }
            R::make(new, slots)
        };
        if old != Some(&row) {
            plan.write.push((*key, row));
        }
    }
    for (key, old) in held {
        if wanted.contains_key(key) {
            continue;
        }
        plan.remove.push(*key);
        if flip && old.slots()[1 - bank] != Identity::UNKNOWN {
            plan.write.push((*key, closed_in(old, 1 - bank)));
        }
    }
    plan
}

/// The same row with nobody's identity in one slot.
fn closed_in<R: Row>(row: &R, bank: usize) -> R {
    let mut slots = row.slots();
    slots[bank] = Identity::UNKNOWN;
    row.with_slots(slots)
}

/// `wanted` without the promise that a port has its programs, where it has them not.
pub fn without_unattached(
    wanted: &BTreeMap<Address, desired::Endpoint>,
    attached: &BTreeSet<u32>,
) -> BTreeMap<Address, desired::Endpoint> {
    wanted
        .iter()
        .map(|(address, row)| {
            let mut row = *row;
            if !attached.contains(&row.port) {
                row.flags &= !Endpoint::ATTACHED;
            }
            (*address, row)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: usize = 1;
    const NEW: usize = 0;

    fn wanted(identity: u16, container: u32) -> desired::Endpoint {
        desired::Endpoint {
            identity: Identity(identity),
            container: Container(container),
            ..Default::default()
        }
    }

    fn held(identity: u16, container: u32) -> Endpoint {
        Endpoint::make(&wanted(identity, container), [Identity(identity); 2])
    }

    fn one(row: desired::Endpoint) -> BTreeMap<u32, desired::Endpoint> {
        BTreeMap::from([(1, row)])
    }

    #[test]
    fn a_plain_addition_is_one_row_in_both_banks_and_no_flip() {
        let (before, after) = (BTreeMap::<u32, Endpoint>::new(), one(wanted(4, 7)));
        assert!(!reopened(&before, &after, OLD));
        let plan = plan(&before, &after, OLD, false);
        assert_eq!(plan, RowPlan { write: vec![(1, held(4, 7))], remove: vec![] });
    }

    #[test]
    fn who_is_on_the_own_stack_is_listed_where_all_processes_are_seen_and_there_is_room() {
        let own = |identity| desired::Cgroup {
            identity: Identity(identity),
            flags: Cgroup::HOST,
            ..desired::Cgroup::default()
        };
        let stack = desired::Cgroup { identity: Identity(9), ..desired::Cgroup::default() };
        let of = |rows: &[(u64, desired::Cgroup)]| -> BTreeMap<CgroupKey, desired::Cgroup> {
            rows.iter().map(|(id, row)| (CgroupKey::new(*id, 0), *row)).collect()
        };
        let two = of(&[(40, own(7)), (41, own(6)), (42, own(7)), (43, stack)]);
        assert_eq!(with_own_stack(&two, false), two, "some processes have no hook");
        let listed: Vec<_> = with_own_stack(&two, true).into_iter().take(2).collect();
        assert_eq!(listed, [(CgroupKey::new(0, 0), own(6)), (CgroupKey::new(0, 1), own(7))]);
        let many: Vec<_> = (0..=u64::from(MAX_OWN)).map(|n| (40 + n, own(4 + n as u16))).collect();
        assert_eq!(with_own_stack(&of(&many), true), of(&many), "not one of them");
    }

    #[test]
    fn a_cgroup_keeps_the_time_that_it_got_when_it_was_seen_first() {
        let wanted = |flags| desired::Cgroup { flags, ..desired::Cgroup::default() };
        let key = |id, place| CgroupKey::new(id, place);
        let rows = BTreeMap::from([
            (key(0, 0), wanted(Cgroup::HOST)),
            (key(40, 0), wanted(Cgroup::LAN)),
            (key(40, 1), wanted(0)),
            (key(41, 0), wanted(Cgroup::HOST)),
            (key(41, 1), wanted(Cgroup::HOST)),
        ]);
        let until = |rows: &BTreeMap<CgroupKey, desired::Cgroup>| -> Vec<u32> {
            rows.values().map(|row| row.pickup_until).collect()
        };
        let host = Cgroup { pickup_until: 70, flags: Cgroup::HOST, ..Cgroup::default() };
        // 40 was behind a port alone.
        let held = BTreeMap::from([(key(40, 0), Cgroup::default()), (key(41, 0), host)]);
        let first = with_pickup(rows.clone(), &held, 60, 50);
        assert_eq!(until(&first), [0, 110, 0, 70, 70]);
        let held: BTreeMap<_, _> =
            first.iter().map(|(key, row)| (*key, Cgroup::make(row, [Identity::HOST; 2]))).collect();
        assert_eq!(with_pickup(rows.clone(), &held, 60, 80), first, "nothing to write");
        assert_eq!(until(&with_pickup(rows, &held, 0, 60)), [0; 5], "switched off");
    }

    #[test]
    fn nothing_is_written_where_nothing_differs() {
        let before = BTreeMap::from([(1, held(4, 7))]);
        let after = one(wanted(4, 7));
        assert!(!reopened(&before, &after, OLD));
        for flip in [false, true] {
            assert_eq!(plan(&before, &after, OLD, flip), RowPlan { write: vec![], remove: vec![] });
        }
    }

    #[test]
    fn what_goes_away_is_closed_in_the_new_bank_first_and_removed_after() {
        let before = BTreeMap::from([(1, held(4, 7))]);
        let after = BTreeMap::new();
        assert!(reopened(&before, &after, OLD));
        let plan = plan(&before, &after, OLD, true);
        assert_eq!(plan.remove, [1]);
        assert_eq!(plan.write[0].1.identity[NEW], Identity::UNKNOWN);
        assert_eq!(
            plan.write[0].1.identity[OLD],
            Identity(4),
            "packets of the old generation meet the old policy"
        );
    }

    #[test]
    fn another_identity_is_the_new_banks_only() {
        let before = BTreeMap::from([(1, held(4, 7))]);
        let after = one(wanted(5, 7));
        assert!(reopened(&before, &after, OLD));
        let row = plan(&before, &after, OLD, true).write[0].1;
        assert_eq!((row.identity[OLD], row.identity[NEW]), (Identity(4), Identity(5)));
    }

    #[test]
    fn another_container_has_no_rights_under_the_old_policy() {
        let before = BTreeMap::from([(1, held(4, 7))]);
        let after = one(wanted(4, 8));
        assert!(reopened(&before, &after, OLD));
        let row = plan(&before, &after, OLD, true).write[0].1;
        assert_eq!((row.identity[OLD], row.identity[NEW]), (Identity::UNKNOWN, Identity(4)));
        assert_eq!(row.container, Container(8));
    }

    #[test]
    fn a_port_that_becomes_known_takes_no_flip() {
        let closed = desired::Link {
            identity: Identity::UNKNOWN,
            container: Container::NONE,
            bridge: 3,
            kind: LinkKind::Port,
            flags: 0,
            mac: hydra_common::address::Mac::ZERO,
            gateway_mac: hydra_common::address::Mac::ZERO,
        };
        let before = BTreeMap::from([(9u32, Link::make(&closed, [Identity::UNKNOWN; 2]))]);
        let known = desired::Link { identity: Identity(4), container: Container(7), ..closed };
        assert!(!reopened(&before, &BTreeMap::from([(9, known)]), OLD));
        let other_kind = desired::Link { kind: LinkKind::Uplink, ..closed };
        assert!(reopened(&before, &BTreeMap::from([(9, other_kind)]), OLD));
    }

    #[test]
    fn an_attached_port_takes_no_flip() {
        let before = BTreeMap::from([(1, held(4, 7))]);
        let after = one(desired::Endpoint { flags: Endpoint::ATTACHED | Endpoint::PEER, ..wanted(4, 7) });
        assert!(!reopened(&before, &after, OLD));
        assert_eq!(plan(&before, &after, OLD, false).write.len(), 1);
    }

    #[test]
    fn a_published_port_takes_a_flip_when_it_comes_when_it_goes_and_when_it_leads_elsewhere() {
        let key = PublishKey { port: 8080u16.to_be_bytes(), protocol: 6, ..PublishKey::default() };
        let row = desired::Publish { identity: Identity(4), container: Container(7), port: 80, flags: 0 };
        let (none, after) = (BTreeMap::new(), BTreeMap::from([(key, row)]));
        assert!(exposed(&none, &after));
        let before = BTreeMap::from([(key, Publish::make(&row, [Identity(4); 2]))]);
        assert!(!exposed(&before, &after) && !reopened(&before, &after, OLD));
        assert!(reopened(&before, &BTreeMap::new(), OLD));
        for other in [
            desired::Publish { identity: Identity(5), ..row },
            desired::Publish { container: Container(8), ..row },
            desired::Publish { port: 81, ..row },
            desired::Publish { flags: Publish::PROXIED, ..row },
        ] {
            assert!(reopened(&before, &BTreeMap::from([(key, other)]), OLD), "{other:?}");
        }
        // Before the flip nobody meets a right that the old tables did not give.
        let plan = plan(&none, &after, OLD, true);
        assert_eq!(
            (plan.write[0].1.identity[OLD], plan.write[0].1.identity[NEW]),
            (Identity::UNKNOWN, Identity(4))
        );
    }

    #[test]
    fn ports_become_protected_that_were_there_before() {
        let link = |kind| desired::Link {
            identity: Identity(4),
            container: Container(7),
            bridge: 1,
            kind,
            flags: 0,
            mac: hydra_common::address::Mac::ZERO,
            gateway_mac: hydra_common::address::Mac::ZERO,
        };
        let held = |kind| BTreeMap::from([(9u32, Link::make(&link(kind), [Identity(4); 2]))]);
        let wanted = BTreeMap::from([(9, link(LinkKind::Port))]);
        assert!(newly_protected(&held(LinkKind::Unmanaged), &wanted));
        assert!(!newly_protected(&held(LinkKind::Port), &wanted));
        assert!(!newly_protected(&BTreeMap::new(), &wanted), "it was not there before");
        assert!(!newly_protected(&held(LinkKind::Port), &BTreeMap::from([(9, link(LinkKind::Unmanaged))])));
    }
}
