//! Who sends, and to whom: the sender by its interface, never by its address; its address only if it is true (line 1).

use super::{At, Outcome, declared, published};
use crate::address::Address;
use crate::flow::{Far, Flow, Side};
use crate::id::{Container, Identity, Tier};
use crate::names::{MARK_CHECKED, MARK_MASK, carrier};
use crate::packet::{Kind, Packet};
use crate::tables::{Endpoint, Link, LinkKind, Owner, PrefixRow, Tables};
use crate::verdict::{Hook, Reason, Verdict};

/// The ICMPv6 type of RFC 2710 and RFC 3810.
const LISTENER_QUERY: u8 = 130;
/// `lo` of every namespace.
pub const LOOPBACK: u32 = 1;

/// What kind of interface a frame came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sender {
    /// A port that the policy protects.
    Port,
    /// This host itself.
    Host,
    /// A bridge or port of a network that the policy does not name.
    Unmanaged,
    /// Any other interface.
    Outside,
    /// Somebody who was judged where he sent: the mark says who, the address does not.
    Carried,
}

impl Sender {
    /// What an end without a container is in a flow.
    #[inline(always)]
    pub const fn far(self) -> Far {
        match self {
            Self::Host => Far::Host,
            // A port whose containers nobody lists is as good as the outside.
            Self::Port | Self::Outside => Far::Outside,
            Self::Unmanaged => Far::Unmanaged,
            Self::Carried => Far::Carried,
        }
    }
}

/// Who sent the frame, by interface; the link for a port.
#[inline(always)]
pub fn sender<'t, T: Tables>(
    tables: &'t T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
) -> Result<Option<&'t Link>, Reason> {
    if matches!(at.hook, Hook::PortOut | Hook::BridgeOut | Hook::CgroupIn)
        && let Some(identity) = carrier(at.mark)
    {
        published::carried(tables, packet, at, out, identity);
        return Ok(None);
    }
    let index = match at.hook {
        Hook::CgroupIn if at.ifindex == LOOPBACK => 0,
        Hook::PortIn | Hook::UplinkIn | Hook::CgroupIn => at.ifindex,
        Hook::PortOut | Hook::BridgeOut => at.ingress,
        // The port is forgotten here; the port's own program has checked the source, or there was none.
        Hook::BridgeIn if at.mark & MARK_MASK == MARK_CHECKED => {
            tables.endpoint(&packet.source).ok_or(Reason::UnknownSource)?.port
        }
        Hook::BridgeIn | Hook::Connect | Hook::CgroupOut => return Err(Reason::UnknownSource),
    };
    if index == 0 {
        out.sender = Sender::Host;
        return Ok(None);
    }
    // What is kept near is a classifier's: a process's packet can be interrupted by one.
    let link = if matches!(at.hook, Hook::CgroupIn) { tables.link(index) } else { tables.sender(index) };
    let link = link.ok_or(Reason::UnknownSource)?;
    match LinkKind::from_row(link.kind) {
        LinkKind::Port => {
            if link.container == Container::NONE && link.flags & Link::UNBOUND == 0 {
                return Err(Reason::UnknownSource);
            }
            out.sender = Sender::Port;
            return Ok(Some(link));
        }
        LinkKind::Unmanaged => out.sender = Sender::Unmanaged,
        LinkKind::Uplink => out.sender = Sender::Outside,
        LinkKind::Bridge | LinkKind::Unknown => return Err(Reason::UnknownSource),
    }
    Ok(None)
}

/// Whether the sender is the end of the flow that its addresses say. This host may be any end that is no container: it routes,
/// translates and proxies.
#[inline(always)]
pub fn same(flow: &Flow, side: Side, out: &Outcome) -> bool {
    let there = flow.containers[side.index()];
    let opener = flow.opener == side as u8;
    if there != out.source_container {
        // A process of this host answers for the container of a published port.
        let proxy =
            matches!(out.sender, Sender::Host | Sender::Carried) && out.source_container == Container::NONE;
        return proxy && !opener && flow.marks & Flow::PUBLISHED != 0;
    }
    if there != Container::NONE {
        return true;
    }
    let far = flow.ends[side.index()];
    match out.sender {
        Sender::Host => true,
        Sender::Carried => !opener || flow.source == out.source,
        Sender::Port | Sender::Outside | Sender::Unmanaged => {
            far == Far::Unset as u8 || far == out.sender.far() as u8
        }
    }
}

/// What passes before line 1, with true addresses: the whole list. `false` is for judging.
#[inline(always)]
pub fn named<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Result<bool, Reason> {
    let (reason, forged) = match packet.kind {
        Kind::Arp => (Reason::Arp, Reason::SpoofedArp),
        Kind::Neighbour => (Reason::Neighbour, Reason::SpoofedNeighbour),
        Kind::Router if matches!(out.sender, Sender::Host) => (Reason::Neighbour, Reason::RouterMessage),
        Kind::Router => return Err(Reason::RouterMessage),
        // Only this host asks; what else does is judged like any packet.
        Kind::Listener if packet.icmp_type == LISTENER_QUERY && !matches!(out.sender, Sender::Host) => {
            return Ok(false);
        }
        Kind::Listener => (Reason::Mld, Reason::SpoofedNeighbour),
        Kind::DhcpClient => (Reason::Dhcp, Reason::SpoofedAddress),
        // A container is nobody's DHCP server, and nobody's answer comes through a router: judged like any packet.
        Kind::DhcpServer if matches!(out.sender, Sender::Host) => (Reason::Dhcp, Reason::SpoofedAddress),
        Kind::DhcpServer | Kind::Ip | Kind::Piece | Kind::IcmpError | Kind::Unknown => return Ok(false),
    };
    let claims = !matches!(packet.kind, Kind::Router | Kind::DhcpServer);
    // An answer of neighbour discovery claims its target, and is sent from an address as well.
    if claims
        && ![&packet.claim, &packet.source]
            .into_iter()
            .all(|a| claims_truly(tables, packet, a, at, out, link))
    {
        return Err(forged);
    }
    if matches!(packet.kind, Kind::Neighbour) && !on_link(tables, packet, out, link) {
        return Err(forged);
    }
    out.verdict = Verdict::Allowed;
    out.reason = reason;
    if matches!(at.hook, Hook::BridgeOut) {
        out.way = super::Way::Leave;
        out.elsewhere = true;
    }
    Ok(true)
}

/// Whether a neighbour discovery message stays on its link: this host would route one that is sent to it for another network.
#[inline(always)]
fn on_link<T: Tables>(tables: &T, packet: &Packet, out: &Outcome, link: Option<&Link>) -> bool {
    let Some(link) = link else { return true };
    if packet.is_group() {
        return true;
    }
    if let Some(e) = tables.endpoint(&packet.destination) {
        return e.flags & Endpoint::HOST != 0 || e.bridge == link.bridge;
    }
    unlisted(tables, packet, out, link)
}

/// Whether the destination is in a network of the link's tier with ports whose addresses nobody lists.
#[inline(always)]
fn unlisted<T: Tables>(tables: &T, packet: &Packet, out: &Outcome, link: &Link) -> bool {
    let slot = (out.bank() & 1) as usize;
    tables.prefix(out.bank(), &packet.destination).is_some_and(|row| {
        row.flags & PrefixRow::OPEN != 0
            && tier(tables, out.bank(), row.identity) == tier(tables, out.bank(), link.identity[slot])
    })
}

/// Whether a frame for an address that no endpoint has may go to a MAC that is not the gateway's: from or to a port whose MACs nobody
/// can list, and to no MAC of which it is known whose it is. The tables have MACs as link-local addresses.
#[inline(never)]
pub fn beyond<T: Tables>(tables: &T, packet: &Packet, out: &Outcome, link: &Link) -> bool {
    let open = link.flags & Link::UNBOUND != 0 || unlisted(tables, packet, out, link);
    open && tables.endpoint(&Address::link_local_of(&packet.destination_mac)).is_none()
}

/// Whether an address that one of the named messages claims is its sender's.
#[inline(always)]
fn claims_truly<T: Tables>(
    tables: &T,
    packet: &Packet,
    address: &Address,
    at: &At,
    out: &Outcome,
    link: Option<&Link>,
) -> bool {
    // A probe (RFC 5227) and duplicate address detection (RFC 4862) claim nothing.
    if address.is_unspecified() || matches!(out.sender, Sender::Host) {
        return true;
    }
    let owner = tables.endpoint(address);
    match (link, owner) {
        (Some(link), Some(e)) => e.container == link.container && e.container != Container::NONE,
        (Some(link), None) => {
            *address == Address::link_local_of(&packet.source_mac)
                || (link.flags & Link::UNBOUND != 0 && !closed(tables, out.bank(), address))
        }
        (None, Some(e)) => e.flags & Endpoint::HOST == 0 && e.port == at.ingress,
        (None, None) => true,
    }
}

/// Whether an address lies in a network whose addresses are all known.
#[inline(always)]
fn closed<T: Tables>(tables: &T, bank: u32, address: &Address) -> bool {
    let row = tables.prefix(bank, address);
    row.is_some_and(|r| r.flags & (PrefixRow::INTERIOR | PrefixRow::OPEN) == PrefixRow::INTERIOR)
}

/// The sender's identity, if its address is true (line 1). What this host has sent on to somebody else (a published port) comes back
/// with the address of this host that was called: true where [`Outcome::answers`].
#[inline(always)]
pub fn source<T: Tables>(
    tables: &T,
    packet: &Packet,
    out: &mut Outcome,
    link: Option<&Link>,
) -> Result<(), Reason> {
    if matches!(out.sender, Sender::Carried) {
        return Ok(());
    }
    let slot = (out.bank() & 1) as usize;
    let address = &packet.source;
    let known = tables.endpoint(address);
    if let Some(link) = link {
        if let Some(e) = known {
            return own(&e.owner(), link, out);
        }
        if *address == Address::link_local_of(&link.mac) {
            return Ok(());
        }
        let row = tables.prefix(out.bank(), address).ok_or(Reason::SpoofedAddress)?;
        let open = row.flags & PrefixRow::OPEN != 0 && link.flags & Link::UNBOUND != 0;
        if !open || tier(tables, out.bank(), row.identity) != tier(tables, out.bank(), link.identity[slot]) {
            return Err(Reason::SpoofedAddress);
        }
        out.source = row.identity;
        return Ok(());
    }
    if matches!(out.sender, Sender::Host) {
        out.source = match known {
            Some(e) if e.flags & Endpoint::HOST != 0 => e.identity[slot],
            Some(_) | None => Identity::HOST,
        };
        return Ok(());
    }
    let unmanaged = matches!(out.sender, Sender::Unmanaged);
    if let Some(e) = known {
        let host = e.flags & Endpoint::HOST != 0;
        let own = unmanaged && !host && !declared(tables, out.bank(), e.identity[slot]);
        if !(own || host && out.answers) {
            return Err(Reason::SpoofedAddress);
        }
        out.source = e.identity[slot];
        return Ok(());
    }
    out.source = if unmanaged { Identity::UNMANAGED } else { Identity::EXTERNAL };
    let Some(row) = tables.prefix(out.bank(), address) else { return Ok(()) };
    // An address that was this host's when the policy was compiled, and is another machine's by now.
    if tier(tables, out.bank(), row.identity) == Tier::HOST {
        return Err(Reason::SpoofedAddress);
    }
    let interior = row.flags & PrefixRow::INTERIOR != 0;
    if unmanaged == interior {
        // An unmanaged network's own block, or a machine elsewhere that the policy names.
        if unmanaged && declared(tables, out.bank(), row.identity) {
            return Err(Reason::SpoofedAddress);
        }
        out.source = row.identity;
        return Ok(());
    }
    // A block of this host's networks from outside, or another machine's from an unmanaged network.
    if interior || declared(tables, out.bank(), row.identity) { Err(Reason::SpoofedAddress) } else { Ok(()) }
}

/// Who sends from a port with an address that an endpoint has: only the port's container has its own.
#[inline(always)]
pub fn own(owner: &Owner, link: &Link, out: &mut Outcome) -> Result<(), Reason> {
    if owner.container != link.container || owner.container == Container::NONE {
        return Err(Reason::SpoofedAddress);
    }
    out.source = owner.identity(out.bank());
    Ok(())
}

/// Who is called by an address that an endpoint has.
#[inline(always)]
pub fn listed(e: &Endpoint, out: &mut Outcome) {
    out.destination = e.identity[(out.bank() & 1) as usize];
    out.destination_container = e.container;
}

/// The receiver's identity; on an error whose network it is, for the counters.
#[inline(never)]
pub fn destination<T: Tables>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) -> Result<(), Reason> {
    let slot = (out.bank() & 1) as usize;
    let host = matches!(out.sender, Sender::Host);
    let group = packet.is_group();
    if group && !matches!(at.hook, Hook::PortOut) {
        out.destination = Identity::HOST;
        out.marks |= Flow::TO_HOST;
        return Ok(());
    }
    let known = if group { None } else { tables.endpoint(&packet.destination) };
    if matches!(at.hook, Hook::PortOut) {
        let link = tables.link(at.ifindex).ok_or(Reason::BadTable)?;
        out.destination = link.identity[slot];
        out.destination_container = link.container;
        if link.container == Container::NONE && link.flags & Link::UNBOUND == 0 {
            return Err(Reason::UnknownDestination);
        }
        if let Some(e) = known {
            // For another's address: the receiver's right would make an entry that the other's packets count on.
            if e.container != link.container {
                return Err(Reason::UnknownDestination);
            }
            out.destination = e.identity[slot];
        }
        return Ok(());
    }
    if let Some(e) = known {
        listed(e, out);
        if e.flags & Endpoint::HOST != 0 {
            out.marks |= Flow::TO_HOST;
            published::called(tables, packet, out)?;
        }
        // An address behind a closed port.
        return if out.destination == Identity::UNKNOWN { Err(Reason::UnknownDestination) } else { Ok(()) };
    }
    let Some(row) = tables.prefix(out.bank(), &packet.destination) else {
        out.destination = Identity::EXTERNAL;
        return Ok(());
    };
    out.destination = row.identity;
    let hidden = row.flags & (PrefixRow::INTERIOR | PrefixRow::OPEN) == PrefixRow::INTERIOR;
    if hidden && !host { Err(Reason::UnknownDestination) } else { Ok(()) }
}

/// Who may answer a new flow where the called is no container: what is behind its address. An address of this host may be anybody's
/// to whom it sends on, and a machine that the policy names may be anywhere: there the first answer says.
#[inline(always)]
pub fn answerer<T: Tables>(tables: &T, out: &mut Outcome) {
    if out.destination_container != Container::NONE || out.marks & Flow::TO_HOST != 0 {
        return;
    }
    out.beyond = match tier(tables, out.bank(), out.destination) {
        Tier::UNMANAGED => Far::Unmanaged,
        Tier::EXTERNAL => Far::Outside,
        _ => Far::Unset,
    };
}

/// The tier that an identity counts on.
#[inline(always)]
pub fn tier<T: Tables>(tables: &T, bank: u32, identity: Identity) -> Tier {
    tables.identity(bank, identity).map_or(Tier::UNKNOWN, |row| row.tier)
}
