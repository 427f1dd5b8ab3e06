//! How an allowed packet goes on, and which path a new flow takes.

use super::{At, Outcome, Way, ends, published};
use crate::flow::Path;
use crate::packet::Packet;
use crate::tables::{Endpoint, Link, Tables};
use crate::verdict::{Hook, Reason};

/// How an allowed packet goes on. At the port a frame must be for the gateway or for its destination: otherwise it would reach
/// whoever has the MAC, under the right of whoever has the address.
#[inline(always)]
pub fn way<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Result<(), Reason> {
    match listed(tables, packet, at, out, link) {
        Some(said) => said,
        None if link.is_some_and(|link| ends::beyond(tables, packet, out, link)) => Ok(()),
        None => Err(Reason::WrongMac),
    }
}

/// [`way`], but for a frame to another MAC than the gateway's for an address that no endpoint has: nothing.
#[inline(always)]
pub(super) fn listed<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Option<Result<(), Reason>> {
    out.way = published::way(packet, at, out);
    let (Hook::PortIn, Some(link)) = (at.hook, link) else { return Some(Ok(())) };
    let to_gateway = packet.destination_mac == link.gateway_mac;
    if matches!(out.path, Path::Stack) && to_gateway {
        return Some(Ok(()));
    }
    let e = tables.receiver(&packet.destination)?;
    // Between the writing of an address's new row and the flip, flows of the old generation still name its last container.
    if e.container != out.destination_container {
        return Some(Err(Reason::UnknownDestination));
    }
    let direct = e.bridge == link.bridge && packet.destination_mac == e.mac;
    if !to_gateway && !direct {
        return Some(Err(Reason::WrongMac));
    }
    if matches!(out.path, Path::Stack) || e.flags & Endpoint::PEER == 0 {
        return Some(Ok(()));
    }
    out.hop.port = e.port;
    out.hop.mtu = e.mtu;
    out.hop.routed = u8::from(!direct);
    out.hop.mac = e.mac.copied();
    out.hop.gateway_mac = if direct { packet.source_mac.copied() } else { e.gateway_mac.copied() };
    out.way = Way::Peer;
    Some(Ok(()))
}

/// Whether both ends can be reached through their ports.
#[inline(always)]
pub(super) fn path<T: Tables>(tables: &T, packet: &Packet) -> Path {
    const BOTH: u16 = Endpoint::ATTACHED | Endpoint::PEER;
    let reachable = |a| tables.endpoint(a).is_some_and(|e: &Endpoint| e.flags & BOTH == BOTH);
    if reachable(&packet.source) && reachable(&packet.destination) { Path::Peer } else { Path::Stack }
}
