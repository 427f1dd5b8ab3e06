//! ICMP errors: they belong to the flow that they quote, or to nothing.

use super::ends::Sender;
use super::enter::left_to_port;
use super::way::path;
use super::{At, Outcome, Parts, Way, published};
use crate::flow::{Flow, Path, Side};
use crate::id::{Container, Identity};
use crate::packet::Packet;
use crate::tables::Link;
use crate::verdict::{Hook, Reason, Verdict};

/// An ICMP error passes with the flow that it is about, to the end that the quoted packet came from: from the flow's other end, or
/// from a router on the way, which no container is.
#[inline(always)]
pub fn related<T: Parts>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Result<(), Reason> {
    let side = packet.side();
    let live = tables.flow(&packet.key);
    let end = packet.source == packet.key.address(side.other());
    out.answers = end && live.is_some();
    tables.source(packet, out, link)?;
    if packet.is_group() {
        return Err(Reason::UnmatchedError);
    }
    if matches!(at.hook, Hook::BridgeOut) && left_to_port(tables, packet, false) {
        out.not_judged(Way::Leave);
        return Ok(());
    }
    let Some(flow) = live else { return Err(Reason::UnmatchedError) };
    if super::expired(tables, &flow, packet.key.protocol, at.now) || !tables.stands(packet, at, out, &flow) {
        return Err(Reason::UnmatchedError);
    }
    let meddles = match out.sender {
        Sender::Port => flow.containers[side.other().index()] != out.source_container,
        Sender::Unmanaged => !end,
        Sender::Host | Sender::Outside | Sender::Carried => false,
    };
    if meddles {
        return Err(Reason::UnmatchedError);
    }
    out.destination = if flow.opener == side as u8 { flow.source } else { flow.destination };
    out.destination_container = flow.containers[side.index()];
    out.verdict = Verdict::Allowed;
    out.reason = Reason::Related;
    // A router on the way is no end of the flow: its errors take the stack.
    out.path = if flow.path == Path::Peer as u8 { path(tables, packet) } else { Path::Stack };
    tables.way(packet, at, out, link)
}

/// Whether the tables still allow the flow that an error is about. Until its next packet an entry may be of an older generation.
#[inline(always)]
pub fn stands<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &Outcome, flow: &Flow) -> bool {
    if flow.generation == out.generation {
        return flow.until == 0 || at.before(flow.until);
    }
    let opener = Side::from_row(flow.opener);
    let (key, called) = (&packet.key, opener.other());
    let same = |side: Side, identity| {
        let address = &key.address(side);
        match tables.endpoint(address) {
            Some(e) => {
                e.identity[(out.bank() & 1) as usize] == identity
                    && e.container == flow.containers[side.index()]
            }
            None => match tables.prefix(out.bank(), address) {
                Some(row) => row.identity == identity,
                None => matches!(identity, Identity::EXTERNAL | Identity::UNMANAGED),
            },
        }
    };
    // Of a flow that this host leads on the addresses do not say who its ends are.
    let masqueraded = flow.marks & Flow::CARRIED != 0 && flow.containers[opener.index()] == Container::NONE;
    if !masqueraded && !same(opener, flow.source) {
        return false;
    }
    let (mut destination, mut port) = (flow.destination, key.port(called));
    if flow.marks & Flow::PUBLISHED != 0 {
        let Some(row) = published::find(tables, &key.address(called), port, key.protocol, false) else {
            return false;
        };
        if row.container != flow.containers[called.index()] {
            return false;
        }
        (destination, port) = (row.identity[(out.bank() & 1) as usize], row.port);
    } else if !same(called, destination) {
        return false;
    }
    let selector = crate::tables::selector(key.protocol, port);
    let said = tables.ruling(out.bank(), flow.source, destination, selector, at.seconds());
    matches!(said.verdict, Verdict::Allowed)
}
