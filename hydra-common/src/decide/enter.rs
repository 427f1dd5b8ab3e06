//! Lines 1 and 2 of the precedence, which need a packet; and what is told of a packet before it asks the policy: that a flow answers
//! for it, or that nothing ever allows it.

use super::ends::{self, Sender};
use super::way::listed;
use super::{At, Outcome, Parts, Ruling, Step, Way, declared, opens, published, ruling};
use crate::flow::{Flow, Path, Side};
use crate::id::Identity;
use crate::names::{MARK_CHECKED, MARK_MASK};
use crate::packet::{Kind, Packet};
use crate::tables::{Endpoint, Link, Moment, Publish, Tables};
use crate::track;
use crate::verdict::{Hook, Reason, Verdict};

/// Line 1, the named list, and line 2; what is left goes to [`first`]. An error makes the packet one of line 1. `known` is for
/// [`published::uplink`].
#[inline(always)]
pub(super) fn enter<'t, T: Parts>(
    tables: &'t T,
    packet: &mut Packet,
    parsed: Result<(), Reason>,
    at: &At,
    known: (Option<&Publish>, Option<Moment>),
    out: &mut Outcome,
) -> Result<Option<T::Flow<'t>>, Reason> {
    let link = ends::sender(tables, packet, at, out)?;
    if matches!(at.hook, Hook::UplinkIn) {
        return published::uplink(tables, packet, parsed, at, known, out);
    }
    if let Some(link) = link {
        out.source_container = link.container;
        out.source = link.identity[(out.bank() & 1) as usize];
        // At the bridge the link is found by the address, which may be that of another port of the container; the port that it came
        // by has checked the MAC.
        let bound = link.flags & Link::UNBOUND == 0 && !matches!(at.hook, Hook::BridgeIn);
        if bound && packet.source_mac != link.mac {
            return Err(Reason::SpoofedMac);
        }
    }
    parsed?;
    match packet.kind {
        Kind::Ip => {}
        Kind::Piece => {
            if !tables.resolve(packet, at, out)? {
                return Ok(None);
            }
        }
        Kind::IcmpError => {
            tables.related(packet, at, out, link)?;
            return Ok(None);
        }
        Kind::Arp
        | Kind::Neighbour
        | Kind::Router
        | Kind::Listener
        | Kind::DhcpClient
        | Kind::DhcpServer
        | Kind::Unknown => {
            if tables.named(packet, at, out, link)? {
                return Ok(None);
            }
        }
    }
    let group = packet.is_group();
    let live = if group { None } else { tables.flow(&packet.key) };
    let live = match live {
        Some(flow) if expired(tables, &flow, packet.protocol, at.now) => None,
        Some(flow) if established(packet, at, out, &flow) => {
            // No call on the way of the commonest packet.
            match listed(tables, packet, at, out, link) {
                Some(said) => said?,
                None => tables.way(packet, at, out, link)?,
            }
            return Ok(Some(flow));
        }
        live => live,
    };
    if live.is_none() && matches!(at.hook, Hook::PortIn) && tables.denied(packet, at, out, link) {
        return Ok(None);
    }
    let side = packet.side();
    let called = |flow: &Flow| flow.opener != side as u8 && ends::same(flow, side, out) && !opens(packet);
    out.answers = live.as_deref().is_some_and(called);
    if !tables.first(packet, at, out, link)? {
        return Ok(None);
    }
    tables.open(packet, at, out, live.as_deref());
    let left = tables.claimed(packet, at, out);
    match tables.way(packet, at, out, link) {
        // The policy's reason stands before the frame's.
        Err(_) if matches!(out.verdict, Verdict::Denied) => out.way = Way::Judged,
        went => went?,
    }
    if left {
        out.way = Way::Left;
    }
    Ok(live)
}

/// [`track::expired`], of which a flow that is heard of pays for a subtraction.
#[inline(always)]
pub(super) fn expired<T: Parts>(tables: &T, flow: &Flow, protocol: u8, now: u64) -> bool {
    track::silent(flow, now) && tables.ended(flow, protocol, now)
}

/// Whether the packet belongs to a flow that the current tables allow, sent by the end that it says. Fills the outcome from the entry.
#[inline(always)]
pub(super) fn established(packet: &Packet, at: &At, out: &mut Outcome, flow: &Flow) -> bool {
    let side = packet.side();
    let fresh = flow.generation == out.generation && (flow.until == 0 || at.before(flow.until));
    if !fresh || !ends::same(flow, side, out) {
        return false;
    }
    // Who answers a call that was led on may be somebody whom the caller has no right to: the entry says for whom it was judged.
    if matches!(out.sender, Sender::Carried) && flow.opener != side as u8 && flow.destination != out.source {
        return false;
    }
    // Whoever opens is judged by what holds now: the other end, the same one again between the same ports, a SYN sent again.
    if opens(packet) {
        return false;
    }
    out.verdict = Verdict::from_row(flow.verdict);
    // What enforcing would have said stays visible on an audited flow.
    out.reason = match out.verdict {
        Verdict::Allowed => Reason::Reply,
        Verdict::Audited | Verdict::Denied => Reason::from_row(flow.reason),
    };
    out.rule = flow.rule;
    out.until = flow.until;
    out.source = flow.source;
    out.destination = flow.destination;
    out.opener = Side::from_row(flow.opener);
    out.destination_container = flow.containers[side.other().index()];
    out.path = Path::from_row(flow.path);
    out.marks = flow.marks;
    out.taken = flow.taken;
    out.step = Step::Count;
    true
}

/// The commonest denial, where there is no entry: of what a port's container sends with its own address to a container's, by what does
/// not depend on time. [`first`], [`Parts::open`] and [`Parts::way`] come to nothing else there. `false`: it is for those.
#[inline(always)]
pub fn denied<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> bool {
    let (Hook::PortIn, Some(link)) = (at.hook, link) else { return false };
    if out.audit || packet.is_group() || published::loopback(packet) {
        return false;
    }
    let Some(owner) = tables.owner(at.ifindex, &packet.source) else { return false };
    let Some(e) = tables.receiver(&packet.destination) else { return false };
    if e.flags & Endpoint::HOST != 0 || ends::own(&owner, link, out).is_err() {
        return false;
    }
    ends::listed(e, out);
    let bank = out.bank();
    if out.destination == Identity::UNKNOWN
        || !(declared(tables, bank, out.source) || declared(tables, bank, out.destination))
    {
        return false;
    }
    match ruling::standing(tables, bank, out.source, out.destination, packet.selector()).1 {
        Some(said) if said.verdict == Verdict::Denied as u8 => {
            out.opener = packet.side();
            out.ruled(&Ruling::of(said));
            true
        }
        Some(_) | None => false,
    }
}

/// A packet that no fresh entry answers for: who sends to whom. `false`: it is not for the policy to judge, or not here.
#[inline(always)]
pub fn first<T: Parts>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Result<bool, Reason> {
    if !matches!(at.hook, Hook::PortOut | Hook::BridgeOut) && published::loopback(packet) {
        return Err(Reason::Loopback);
    }
    let group = packet.is_group();
    // The port that a frame for many came by has checked its address. With netfilter on bridges it may have been translated since:
    // Docker masquerades what leaves with the address of another network.
    let checked = matches!(at.hook, Hook::PortOut) && at.mark & MARK_MASK == MARK_CHECKED && link.is_some();
    match tables.source(packet, out, link) {
        Err(reason) if !(group && checked) => return Err(reason),
        Ok(()) | Err(_) => {}
    }
    if group && matches!(at.hook, Hook::PortIn) {
        out.not_judged(Way::Checked);
        return Ok(false);
    }
    if matches!(at.hook, Hook::BridgeOut) && left_to_port(tables, packet, group) {
        out.not_judged(Way::Leave);
        return Ok(false);
    }
    ends::destination(tables, packet, at, out)?;
    if !declared(tables, out.bank(), out.source) && !declared(tables, out.bank(), out.destination) {
        out.not_judged(Way::Leave);
        return Ok(false);
    }
    Ok(true)
}

/// At the bridge's egress: whether the receiver's own port has a program that judges.
#[inline(always)]
pub(super) fn left_to_port<T: Tables>(tables: &T, packet: &Packet, group: bool) -> bool {
    group || tables.endpoint(&packet.destination).is_some_and(|e| e.flags & Endpoint::ATTACHED != 0)
}
