//! The verdict on a packet of a process on this host's own network stack, where there is no port to sit on: the same rules, the same
//! flows, asked with the process's identity. Pure.
//!
//! What goes to a container is left to its port, which is told by the mark who calls. What comes from one, or from another process of
//! this host, has been judged as a call of `host`, since an address of this host is called; here it is judged as one of the process,
//! whatever was said of that ([`claimed`]).

use super::ends::{self, Sender};
use super::{At, Outcome, Parts, Step, Way, opens, published, ready, settled};
use crate::address::Address;
use crate::flow::{Flow, Side};
use crate::id::{Container, Identity};
use crate::names::{MARK_JUDGED, MARK_MASK};
use crate::packet::{Kind, Packet};
use crate::tables::{Cgroup, CgroupKey, Endpoint, MAX_OWN, PrefixRow, Tables};
use crate::track::protocol;
use crate::verdict::{Hook, Reason, Verdict};

/// Judges one packet of a process whose cgroup has this row, at [`Hook::CgroupIn`] or [`Hook::CgroupOut`]. Returns the live flow that
/// [`Step::Count`], [`Step::Renew`] and [`Step::End`] are about.
#[inline(always)]
pub fn own<'t, T: Parts>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    row: &Cgroup,
    out: &mut Outcome,
) -> Option<T::Flow<'t>> {
    *out = Outcome::CLOSED;
    if !ready(tables, at, out) {
        return None;
    }
    let said = enter(tables, packet, parsed, at, row, out);
    settled(out, said)
}

/// Whether what a process sends there is judged where it is received: by the port of a container, by each receiver of a group. Not
/// what lies about its source.
#[inline(always)]
pub fn left<T: Tables>(tables: &T, source: &Address, destination: &Address) -> bool {
    let judged = |a| tables.endpoint(a).is_some_and(|e: &Endpoint| e.flags & Endpoint::ATTACHED != 0);
    !anothers(tables, source) && (destination.is_group() || judged(destination))
}

/// Whether an address is a container's: no process of this host's own stack has it.
#[inline(always)]
pub(super) fn anothers<T: Tables>(tables: &T, address: &Address) -> bool {
    tables.endpoint(address).is_some_and(|e| e.container != Container::NONE)
}

/// The same of a container that has no port: it calls others without one by its address.
#[inline(always)]
pub(super) fn alone<T: Tables>(tables: &T, bank: u32, address: &Address) -> bool {
    tables.prefix(bank, address).is_some_and(|row| row.flags & PrefixRow::LAN != 0)
}

#[inline(always)]
fn enter<'t, T: Parts>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    row: &Cgroup,
    out: &mut Outcome,
) -> Result<Option<T::Flow<'t>>, Reason> {
    out.pickup |= at.before(row.pickup_until);
    let me = row.identity[(out.bank() & 1) as usize];
    let outward = matches!(at.hook, Hook::CgroupOut);
    if outward {
        // Of a process of this host the address says nothing.
        out.sender = Sender::Carried;
        out.source = me;
        out.marks = Flow::CARRIED;
    } else {
        out.destination = me;
    }
    parsed?;
    match packet.kind {
        Kind::Arp | Kind::Unknown => return Err(Reason::EtherType),
        // A socket is given whole datagrams, and cuts up none before this hook; only a raw one could.
        Kind::Piece => return Err(Reason::Fragment),
        Kind::IcmpError => {
            related(tables, packet, at, out)?;
            return Ok(None);
        }
        Kind::Ip | Kind::Neighbour | Kind::Router | Kind::Listener | Kind::DhcpClient | Kind::DhcpServer => {}
    }
    if outward && (anothers(tables, &packet.source) || alone(tables, out.bank(), &packet.source)) {
        return Err(Reason::SpoofedAddress);
    }
    if outward && left(tables, &packet.source, &packet.destination) {
        out.not_judged(Way::Leave);
        return Ok(None);
    }
    let group = packet.is_group();
    let live = if group { None } else { tables.flow(&packet.key) };
    let live = live.filter(|flow| !super::expired(tables, flow, packet.protocol, at.now));
    let side = packet.side();
    let marked = !outward && at.mark & MARK_MASK == MARK_JUDGED;
    let judged = marked && !group;
    if marked && matches!(packet.kind, Kind::DhcpClient | Kind::DhcpServer) {
        // Of the named list, with a true address.
        out.not_judged(Way::Leave);
        return Ok(None);
    }
    if judged {
        // What a port let pass without its sender's identity answers somebody here; what opens was for somebody else when it passed.
        let answers = |flow: &Flow| flow.opener != side as u8 && flow.source == me;
        if live.as_deref().map_or(!opens(packet), answers) {
            out.not_judged(Way::Leave);
            return Ok(None);
        }
        from_port(tables, packet, out)?;
    } else if !outward {
        ends::sender(tables, packet, at, out)?;
        if published::loopback(packet) && at.ifindex != ends::LOOPBACK {
            return Err(Reason::Loopback);
        }
    }
    let here = if outward { side } else { side.other() };
    if let Some(flow) = &live
        && mine(flow, here, me)
        && super::established(packet, at, out, flow)
    {
        return Ok(live);
    }
    // An answer to somebody else of this host is none to this process, nor is one to somebody else its own.
    let live = live.filter(|flow| flow.opener == side as u8 || mine(flow, here, me));
    let led = !outward && live.as_deref().is_some_and(|flow| !mine(flow, here, me));
    if outward {
        called(tables, packet, at, out)?;
    } else {
        out.marks |= Flow::TO_HOST;
        if !judged {
            tables.source(packet, out, None)?;
        }
    }
    tables.open(packet, at, out, live.as_deref());
    if led {
        // The entry is of a call of somebody else, `host` for one: for this process a flow begins.
        out.begins = packet.protocol != protocol::TCP || opens(packet);
    }
    tables.claimed(packet, at, out);
    Ok(live)
}

/// A call of an address of this host by somebody who may not call `host`: whether a tier that has processes on this host's own stack may
/// be called so. Then it goes on, and the hook of whoever receives it judges: for the tier, or for `host`. Only a socket's packets
/// meet that hook.
#[inline(always)]
pub fn claimed<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) -> bool {
    let hook = matches!(at.hook, Hook::PortIn | Hook::CgroupOut);
    let denied = matches!(out.verdict, Verdict::Denied) && !matches!(out.reason, Reason::NoConnection);
    let host = out.marks & (Flow::TO_HOST | Flow::PUBLISHED) == Flow::TO_HOST;
    let opens = out.opener as u8 == packet.side() as u8 && !packet.is_group();
    if !(hook && denied && host && opens) {
        return false;
    }
    if !tables.may_be_left(out.bank(), out.source, packet.selector(), at.seconds()) {
        return false;
    }
    out.not_judged(Way::Left);
    out.elsewhere = true;
    out.step = Step::Nothing;
    out.rule = 0;
    true
}

/// Whether a tier that has processes on this host's own stack may be called.
#[inline(always)]
pub fn may_be_left<T: Parts>(tables: &T, bank: u32, source: Identity, selector: u32, now_s: u32) -> bool {
    if !matches!((selector >> 16) as u8, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return false;
    }
    for place in 0..MAX_OWN {
        let Some(row) = tables.cgroup(&CgroupKey::new(0, place)) else { return false };
        let identity = row.identity[(bank & 1) as usize];
        if !matches!(tables.ruling(bank, source, identity, selector, now_s).verdict, Verdict::Denied) {
            return true;
        }
    }
    false
}

/// Whether the flow's end on the process's side is the process.
#[inline(always)]
pub(super) fn mine(flow: &Flow, here: Side, me: Identity) -> bool {
    if flow.opener == here as u8 { flow.source == me } else { flow.destination == me }
}

/// A container by its address, which its port has checked.
#[inline(always)]
fn from_port<T: Tables>(tables: &T, packet: &Packet, out: &mut Outcome) -> Result<(), Reason> {
    let e = tables.endpoint(&packet.source).ok_or(Reason::UnknownSource)?;
    out.sender = Sender::Port;
    out.source = e.identity[(out.bank() & 1) as usize];
    out.source_container = e.container;
    Ok(())
}

/// Who is called. A published port is its container's.
#[inline(always)]
fn called<T: Tables>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) -> Result<(), Reason> {
    if packet.destination.is_loopback() {
        out.destination = Identity::HOST;
        out.marks |= Flow::TO_HOST;
        return published::called(tables, packet, out);
    }
    ends::destination(tables, packet, at, out)
}

/// An ICMP error passes with the live flow that it quotes.
#[inline(never)]
fn related<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) -> Result<(), Reason> {
    let live = tables.flow(&packet.key);
    if live.is_none_or(|flow| super::expired(tables, &flow, packet.key.protocol, at.now)) {
        return Err(Reason::UnmatchedError);
    }
    out.verdict = Verdict::Allowed;
    out.reason = Reason::Related;
    Ok(())
}
