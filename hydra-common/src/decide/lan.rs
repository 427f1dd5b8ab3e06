//! The verdict on a packet of a process whose interface has no port on this host (macvlan, ipvlan): the same rules, the same flows.
//! Pure.
//!
//! What is on the other side of such an interface is the outside, whoever it says it is: an address counts as it does at any interface
//! to the outside, and a mark is nobody's word. Whose the process is its cgroup says, and its own address has to be one of that
//! cgroup's rows.

use super::ends::{self, Sender};
use super::own::{alone, anothers, mine};
use super::{At, Outcome, Parts, Step, Way, declared, published, ready, settled};
use crate::address::Address;
use crate::flow::{Far, Flow};
use crate::id::{Container, Identity};
use crate::packet::{Kind, Packet};
use crate::tables::{Cgroup, CgroupKey, Endpoint, MAX_CGROUP_PLACES, Tables};
use crate::verdict::{Hook, Reason, Verdict};

/// Whether packets of that cgroup's processes on that interface of their namespace are judged here: on every one that neither a port of
/// this host judges, nor is the namespace's loopback interface. An interface that nobody lists is judged.
#[inline(always)]
pub fn concerns<T: Tables>(tables: &T, cgroup: u64, ifindex: u32) -> bool {
    if ifindex == ends::LOOPBACK {
        return false;
    }
    for place in 0..MAX_CGROUP_PLACES {
        let Some(row) = tables.cgroup(&CgroupKey::new(cgroup, place)) else { break };
        if row.flags & Cgroup::LAN == 0 && row.interface == ifindex {
            return false;
        }
    }
    true
}

/// Judges one packet at [`Hook::CgroupIn`] or [`Hook::CgroupOut`] that [`concerns`] us; `at` has none of the mark's bits that are
/// hydra's, and the packet's destination MAC is a group's where it came in a frame for many. Returns the live flow that
/// [`Step::Count`], [`Step::Renew`] and [`Step::End`] are about.
#[inline(always)]
pub fn lan<'t, T: Parts>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    cgroup: u64,
    out: &mut Outcome,
) -> Option<T::Flow<'t>> {
    *out = Outcome::CLOSED;
    if !ready(tables, at, out) {
        return None;
    }
    let said = enter(tables, packet, parsed, at, cgroup, out);
    settled(out, said)
}

#[inline(always)]
fn enter<'t, T: Parts>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    cgroup: u64,
    out: &mut Outcome,
) -> Result<Option<T::Flow<'t>>, Reason> {
    let outward = matches!(at.hook, Hook::CgroupOut);
    let here = if outward { &packet.source } else { &packet.destination };
    let own = address(tables, cgroup, here);
    let row = match own {
        Some(row) => row,
        // What comes for a group, or from nowhere yet, is the first address's.
        None => tables.cgroup(&CgroupKey::new(cgroup, 0)).ok_or(Reason::BadTable)?,
    };
    out.pickup |= at.before(row.pickup_until);
    let me = row.identity[(out.bank() & 1) as usize];
    if outward {
        out.source = me;
    } else {
        out.destination = me;
    }
    if me == Identity::UNKNOWN {
        return Err(if outward { Reason::UnknownSource } else { Reason::UnknownDestination });
    }
    parsed?;
    let anywhere = here.is_unspecified() || (!here.is_v4() && here.is_link_local());
    match packet.kind {
        Kind::Arp | Kind::Unknown => return Err(Reason::EtherType),
        Kind::Piece => return Err(Reason::Fragment),
        Kind::Router if outward => return Err(Reason::RouterMessage),
        Kind::Neighbour | Kind::Router | Kind::Listener => {
            return named(tables, packet, cgroup, outward, anywhere || own.is_some(), out).map(|()| None);
        }
        Kind::IcmpError if own.is_none() => return Err(Reason::SpoofedAddress),
        Kind::IcmpError => {
            related(tables, packet, at, me, out)?;
            return Ok(None);
        }
        Kind::DhcpClient if outward && anywhere && packet.is_group() => {
            out.verdict = Verdict::Allowed;
            out.reason = Reason::Dhcp;
            return Ok(None);
        }
        Kind::Ip | Kind::DhcpClient | Kind::DhcpServer => {}
    }
    let group = packet.is_group();
    if own.is_none() && !(group && (anywhere || !outward)) {
        return Err(if outward { Reason::SpoofedAddress } else { Reason::UnknownDestination });
    }
    // Nobody sends to one address by a frame for all (RFC 1122, 3.3.6): it would be judged as what is for a group.
    if own.is_some() && packet.destination_mac.is_group() {
        return Err(Reason::UnknownDestination);
    }
    if published::loopback(packet) {
        return Err(Reason::Loopback);
    }
    let live = if group { None } else { tables.flow(&packet.key) };
    let live = live.filter(|flow| !super::expired(tables, flow, packet.protocol, at.now));
    let side = packet.side();
    let end = if outward { side } else { side.other() };
    let live = live.filter(|flow| flow.opener == side as u8 || mine(flow, end, me));
    out.answers = live.as_deref().is_some_and(|flow| flow.opener != side as u8);
    let counted = if outward {
        called(tables, packet, at, out)?
    } else {
        caller(tables, packet, live.as_deref(), me, out)?
    };
    if let Some(flow) = &live
        && mine(flow, end, me)
        && super::established(packet, at, out, flow)
    {
        out.elsewhere = counted;
        return Ok(live);
    }
    if !declared(tables, out.bank(), out.source) && !declared(tables, out.bank(), out.destination) {
        out.not_judged(Way::Leave);
        out.step = Step::Nothing;
        return Ok(None);
    }
    tables.open(packet, at, out, live.as_deref());
    // Whoever is called may answer by any way that the network has.
    out.beyond = Far::Unset;
    out.elsewhere = counted;
    Ok(live)
}

/// The row of an address of the cgroup that is on such an interface.
#[inline(always)]
fn address<'t, T: Tables>(tables: &'t T, cgroup: u64, address: &Address) -> Option<&'t Cgroup> {
    for place in 0..MAX_CGROUP_PLACES {
        let row = tables.cgroup(&CgroupKey::new(cgroup, place))?;
        if row.flags & Cgroup::LAN != 0 && row.address == *address {
            return Some(row);
        }
    }
    None
}

/// What passes without a rule: what the kernel itself says of neighbours and groups, with true addresses. What comes in the kernel has
/// heeded before, whatever a socket is let see of it.
#[inline(always)]
fn named<T: Tables>(
    tables: &T,
    packet: &Packet,
    cgroup: u64,
    outward: bool,
    known: bool,
    out: &mut Outcome,
) -> Result<(), Reason> {
    let claim = &packet.claim;
    let claims = claim.is_unspecified() || claim.is_link_local() || address(tables, cgroup, claim).is_some();
    if outward && !(known && claims) {
        return Err(Reason::SpoofedNeighbour);
    }
    out.verdict = Verdict::Allowed;
    out.reason = if matches!(packet.kind, Kind::Listener) { Reason::Mld } else { Reason::Neighbour };
    Ok(())
}

/// An ICMP error passes with a live flow of this container that it quotes, from its other end or a router on the way, which nobody of
/// this host is.
#[inline(never)]
fn related<T: Parts>(
    tables: &T,
    packet: &Packet,
    at: &At,
    me: Identity,
    out: &mut Outcome,
) -> Result<(), Reason> {
    // Of an error the packet's side is that of its receiver.
    let (receiver, sender) = (packet.side(), packet.side().other());
    let outward = matches!(at.hook, Hook::CgroupOut);
    let Some(flow) = tables.flow(&packet.key) else { return Err(Reason::UnmatchedError) };
    let mine = mine(&flow, if outward { sender } else { receiver }, me);
    let live =
        !super::expired(tables, &flow, packet.key.protocol, at.now) && tables.stands(packet, at, out, &flow);
    let end = packet.source == packet.key.address(sender);
    let somebody = anothers(tables, &packet.source) || alone(tables, out.bank(), &packet.source);
    if !(mine && live && (end || !(outward || somebody))) {
        return Err(Reason::UnmatchedError);
    }
    out.verdict = Verdict::Allowed;
    out.reason = Reason::Related;
    Ok(())
}

/// Who is called. Whoever hears a group is not known: it takes a right to the outside. `true`: the receiver's port counts the packet.
#[inline(always)]
fn called<T: Tables>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) -> Result<bool, Reason> {
    out.sender = Sender::Outside;
    if packet.is_group() {
        out.destination = Identity::EXTERNAL;
        return Ok(false);
    }
    let known = tables.endpoint(&packet.destination);
    if out.answers && known.is_some_and(|e| e.flags & Endpoint::HOST != 0) {
        // As it called: see [`caller`].
        out.destination = Identity::EXTERNAL;
        return Ok(false);
    }
    ends::destination(tables, packet, at, out)?;
    Ok(known.is_some_and(|e| e.flags & Endpoint::ATTACHED != 0))
}

/// Who sends, as far as an address from outside says it. `true`: somebody of this host, who is counted where he sends.
#[inline(always)]
fn caller<T: Parts>(
    tables: &T,
    packet: &Packet,
    live: Option<&Flow>,
    me: Identity,
    out: &mut Outcome,
) -> Result<bool, Reason> {
    out.sender = Sender::Outside;
    let side = packet.side();
    let known = |flow: &Flow| mine(flow, side.other(), me);
    if let Some(e) = tables.endpoint(&packet.source) {
        if e.flags & Endpoint::HOST != 0 {
            // This host, somebody whom it masquerades, or a machine that says so: nobody can tell, but by what was called there.
            out.source = Identity::EXTERNAL;
            if out.answers {
                out.source = e.identity[(out.bank() & 1) as usize];
                out.sender = Sender::Host;
            }
            return Ok(false);
        }
        // A container's port lets pass what it has an entry for: nobody else is believed to be it.
        if !live.is_some_and(|flow| known(flow) && flow.containers[side.index()] == e.container) {
            return Err(Reason::SpoofedAddress);
        }
        out.source = e.identity[(out.bank() & 1) as usize];
        out.source_container = e.container;
        return Ok(e.container != Container::NONE);
    }
    tables.source(packet, out, None)?;
    let here = alone(tables, out.bank(), &packet.source);
    // Nor another one without a port but by the entry that was made where it sent. With one that was made here an answer would reach it.
    if here && !packet.is_group() && !live.is_some_and(known) {
        return Err(Reason::SpoofedAddress);
    }
    Ok(here)
}
