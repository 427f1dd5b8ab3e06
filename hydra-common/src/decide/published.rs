//! Ports of this host that lead to containers: whoever calls one calls the container, and is judged where it can still be seen who
//! that is, before the address is translated or a process of this host carries the bytes on.
//!
//! What an allowed caller sends goes on with his identity in the mark ([`crate::names::MARK_CARRIED`]): wherever this host sends it,
//! the receiver's hook judges him, and not the address that he has by then.

use super::ends::{self, Sender};
use super::{At, Outcome, Parts, Step, Way, declared, opens, ruling};
use crate::address::Address;
use crate::flow::{Flow, Side};
use crate::id::{Container, Identity, Tier};
use crate::names::{MARK_CARRIED, MARK_MASK};
use crate::packet::{Kind, Packet, Piece};
use crate::tables::{Endpoint, LinkKind, Moment, Publish, PublishKey, Tables};
use crate::track::protocol;
use crate::verdict::{Hook, Reason, Verdict};

/// The container behind a port of this host: of a binding to this very address, else of one to all of its family. `all` asks for
/// the latter alone.
#[inline(never)]
pub fn find<'t, T: Tables>(
    tables: &'t T,
    address: &Address,
    port: u16,
    protocol: u8,
    all: bool,
) -> Option<&'t Publish> {
    if !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return None;
    }
    let mut key = PublishKey { address: *address, port: port.to_be_bytes(), protocol, zero: [0; 5] };
    if !all && let Some(row) = tables.published(&key) {
        return Some(row);
    }
    key.address = if address.is_v4() { Address::UNSPECIFIED4 } else { Address::UNSPECIFIED6 };
    tables.published(&key)
}

/// A packet for an address of this host: who is called by it. Not so for an answer, to a port that the address translation chose.
#[inline(always)]
pub fn called<T: Tables>(tables: &T, packet: &Packet, out: &mut Outcome) -> Result<(), Reason> {
    if out.answers {
        return Ok(());
    }
    match find(tables, &packet.destination, packet.destination_port, packet.protocol, false) {
        Some(row) => known(row, out),
        None => Ok(()),
    }
}

/// Who is called, if the agent knows who that is.
#[inline(always)]
fn known(row: &Publish, out: &mut Outcome) -> Result<(), Reason> {
    calls(row, out);
    if out.destination == Identity::UNKNOWN { Err(Reason::UnknownDestination) } else { Ok(()) }
}

#[inline(always)]
fn calls(row: &Publish, out: &mut Outcome) {
    out.destination = row.identity[(out.bank() & 1) as usize];
    out.destination_container = row.container;
    out.port = row.port;
    out.marks |= Flow::PUBLISHED;
}

/// By what rule sets are searched: the container's own port, where a published one was called.
#[inline(always)]
pub fn selector(packet: &Packet, out: &Outcome) -> u32 {
    if out.marks & Flow::PUBLISHED != 0 {
        crate::tables::selector(packet.protocol, out.port)
    } else {
        packet.selector()
    }
}

/// A reply that asks for the opener's right, both ends in their places already: who they are where the addresses do not say it.
#[inline(always)]
pub fn answered<T: Tables>(tables: &T, packet: &Packet, out: &mut Outcome, flow: &Flow, selector: &mut u32) {
    out.marks = flow.marks;
    let opener = Side::from_row(flow.opener);
    if flow.marks & Flow::CARRIED != 0 && flow.containers[opener.index()] == Container::NONE {
        out.source = flow.source;
    }
    if flow.marks & Flow::PUBLISHED == 0 {
        return;
    }
    // Of a reply the sender's address and port are those that were called.
    let Some(row) = find(tables, &packet.source, packet.source_port, packet.protocol, false) else {
        out.marks &= !Flow::PUBLISHED;
        return;
    };
    calls(row, out);
    // The reply's sender is a process of this host, the flow's end is the container.
    out.destination_container = flow.containers[opener.index()];
    out.source_container = row.container;
    *selector = crate::tables::selector(packet.protocol, row.port);
}

/// What goes to a group or to a link-local address of IPv6 reaches every process of this host that listens on all addresses: it
/// takes the right to the host, and to the container of a port that is published on all. Where both have a limit both have to hold.
#[inline(never)]
pub fn strictest<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) {
    let Some(row) = find(tables, &packet.destination, packet.destination_port, packet.protocol, true) else {
        return;
    };
    let identity = row.identity[(out.bank() & 1) as usize];
    let selector = crate::tables::selector(packet.protocol, row.port);
    let head = ruling::first(tables, out.bank(), out.source, identity, selector);
    let said = tables.alive(out.bank(), head, at.seconds());
    let stricter = match (said.verdict, out.verdict) {
        (Verdict::Denied, _) => true,
        (Verdict::Audited, own) => matches!(own, Verdict::Allowed),
        (Verdict::Allowed, own) => matches!(own, Verdict::Allowed) && said.limit != 0,
    };
    if stricter && matches!(said.verdict, Verdict::Allowed) && out.limit != 0 {
        out.also = head;
        return;
    }
    if stricter {
        out.ruled(&said);
        out.destination = identity;
        out.destination_container = row.container;
    }
}

/// A sender that the mark names. His address is his container's, or one of this host's where it was translated.
#[inline(always)]
pub fn carried<T: Tables>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome, identity: Identity) {
    out.sender = Sender::Carried;
    out.marks = Flow::CARRIED;
    out.source = identity;
    if let Some(e) = tables.endpoint(&packet.source) {
        out.source_container = e.container;
    }
    // What a process of this host sends has its own address, which is this host's.
    if at.ingress != 0 && out.source_container == Container::NONE {
        out.marks |= Flow::MASQUERADED;
    }
    // What a process of this host sends to a port is counted there, and uplink-in counts nothing of what it lets through.
    let here = if matches!(at.hook, Hook::CgroupIn) {
        at.mark & MARK_MASK == MARK_CARRIED
    } else {
        sent_here(tables, at.ingress)
    };
    out.elsewhere = here && ends::tier(tables, out.bank(), identity) != Tier::UNMANAGED;
}

/// Whether a port of a tier, by itself or through its bridge, is where the packet came into the host.
#[inline(always)]
fn sent_here<T: Tables>(tables: &T, ingress: u32) -> bool {
    let kind = tables.link(ingress).map_or(LinkKind::Unknown, |link| LinkKind::from_row(link.kind));
    matches!(kind, LinkKind::Port | LinkKind::Bridge)
}

/// How a packet that needs nothing else goes on: what its opener sends to this host may be sent on. So may the answer to a call that
/// was masqueraded: the port of this host that it goes to is the caller's only as long as the kernel remembers.
#[inline(always)]
pub fn way(packet: &Packet, at: &At, out: &Outcome) -> Way {
    let led = if out.opener as u8 == packet.side() as u8 {
        out.marks & Flow::TO_HOST != 0
    } else {
        out.marks & Flow::MASQUERADED != 0
    };
    if led && matches!(at.hook, Hook::PortIn | Hook::BridgeIn) { Way::Carried } else { Way::Judged }
}

/// 127.0.0.0/8 or `::1` at either end. Docker lets the former be routed where it publishes ports without `docker-proxy`
/// (`route_localnet`).
#[inline(always)]
pub fn loopback(packet: &Packet) -> bool {
    packet.source.is_loopback() || packet.destination.is_loopback()
}

/// Whether a frame at an interface to the outside is one of TCP that opens nothing and hides nothing. What becomes of it is a matter of
/// rows alone, unless its port is [`Publish::PROXIED`]: of whom it says that it is from, and of whom it calls. So where one has passed
/// the next one does, as long as nothing was written ([`Tables::passed`]).
#[inline(always)]
pub fn goes_on(packet: &Packet, parsed: Result<(), Reason>) -> bool {
    let whole = parsed.is_ok() && matches!(packet.kind, Kind::Ip) && !packet.is_group();
    whole && packet.protocol == protocol::TCP && !opens(packet)
}

/// What a frame at an interface to the outside is to us.
pub enum Business<'t> {
    /// Nothing: it passes unseen.
    Nobodys,
    /// A call of a published port, with its row.
    Port(&'t Publish),
    /// Anything else that [`uplink`] judges.
    Other,
}

/// What a frame at an interface to the outside, or at a bridge that the policy does not name, is to us: all that is nobody's business
/// here passes unseen, whatever state the tables are in. `since`: a frame that [`goes_on`], which is none of ours where its like has
/// passed.
#[inline(always)]
pub fn concerns<'t, T: Tables>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    since: Option<Moment>,
) -> Business<'t> {
    if since.is_some_and(|since| tables.passed(packet, at, &since)) {
        return Business::Nobodys;
    }
    let judged = matches!(packet.kind, Kind::Ip | Kind::DhcpClient | Kind::DhcpServer);
    let hidden = match parsed {
        // A frame of priority alone, of VLAN 0, is this host's.
        Ok(()) | Err(Reason::Vlan) if judged => false,
        // This host might understand what we do not: it puts pieces together, and cuts off what is odd of them. Nothing is made of
        // later pieces alone.
        Err(Reason::HeaderChain | Reason::SourceRoute) => true,
        Err(Reason::Fragment) if !matches!(packet.piece, Piece::Later) => {
            !matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
        }
        Ok(()) | Err(_) => return Business::Nobodys,
    };
    if loopback(packet) {
        return Business::Other;
    }
    let group = packet.is_group();
    if !group {
        let Some(e) = tables.receiver(&packet.destination) else { return Business::Nobodys };
        if e.flags & Endpoint::HOST == 0 {
            // With `bridge-nf-call-iptables` the address was translated inside the bridge: the source will be before it arrives.
            let unmanaged = |kind| matches!(LinkKind::from_row(kind), LinkKind::Unmanaged);
            let translated = e.container != Container::NONE
                && tables.link(at.ifindex).is_some_and(|link| unmanaged(link.kind));
            return if translated { Business::Other } else { Business::Nobodys };
        }
    }
    if hidden {
        return Business::Other;
    }
    if let Some(row) = behind(tables, packet, group) {
        return Business::Port(row);
    }
    if let Some(since) = since {
        tables.passes(packet, at, &since);
    }
    Business::Nobodys
}

#[inline(always)]
fn behind<'t, T: Tables>(tables: &'t T, packet: &Packet, all: bool) -> Option<&'t Publish> {
    find(tables, &packet.destination, packet.destination_port, packet.protocol, all)
}

/// Judges what [`concerns`] us. Denied here, where `docker-proxy` would hide who calls; what passes is judged again by the port
/// that it is led to, but for [`Publish::PROXIED`] ports, whose flows are kept here. `called` and `since` are those of [`concerns`].
#[inline(always)]
pub fn uplink<'t, T: Parts>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    (called, since): (Option<&Publish>, Option<Moment>),
    out: &mut Outcome,
) -> Result<Option<T::Flow<'t>>, Reason> {
    if loopback(packet) {
        return Err(Reason::Loopback);
    }
    if let Err(reason @ (Reason::HeaderChain | Reason::SourceRoute | Reason::Fragment)) = parsed {
        return Err(reason);
    }
    out.opener = packet.side();
    let unmanaged = matches!(out.sender, Sender::Unmanaged);
    let group = packet.is_group();
    // What a bridge has translated is for the container itself: this host's port of that number may be another's.
    let here =
        || group || tables.receiver(&packet.destination).is_some_and(|e| e.flags & Endpoint::HOST != 0);
    let Some(row) = called.or_else(|| here().then(|| behind(tables, packet, group)).flatten()) else {
        // A container already: its port judges by the mark, or without one, as it does anybody.
        let known = tables.source(packet, out, None).is_ok();
        out.not_judged(if known { Way::Carried } else { Way::Leave });
        out.elsewhere = true;
        return Ok(None);
    };
    let proxied = row.flags & Publish::PROXIED != 0;
    let live = if proxied && !group { tables.flow(&packet.key) } else { None };
    let live = live.filter(|flow| !super::expired(tables, flow, packet.protocol, at.now));
    if let Some(flow) = live
        && super::established(packet, at, out, &flow)
    {
        out.way = Way::Carried;
        return Ok(live);
    }
    tables.source(packet, out, None)?;
    known(row, out)?;
    out.marks |= Flow::TO_HOST;
    let on = if unmanaged { Way::Carried } else { Way::Leave };
    // What does not open can be an answer to a port that the address translation chose; who is called by it is judged at his port.
    let answer = !proxied && matches!(packet.protocol, protocol::TCP | protocol::SCTP) && !opens(packet);
    if answer || !declared(tables, out.bank(), out.destination) {
        if let (true, false, Some(since)) = (answer, unmanaged, since) {
            tables.passes(packet, at, &since);
        }
        out.not_judged(on);
        out.elsewhere = true;
        return Ok(None);
    }
    tables.open(packet, at, out, live.as_deref());
    if matches!(out.reason, Reason::NoConnection) {
        // From who may call it: an answer of that kind, or for a process that knows of no connection either.
        out.not_judged(on);
        out.elsewhere = true;
    } else if proxied {
        out.way = Way::Carried;
    } else {
        out.step = Step::Nothing;
        out.way = on;
        out.elsewhere = true;
        // A limit counts where the flow's entry is; what is for all of a link has none.
        out.begins &= group;
    }
    Ok(live)
}
