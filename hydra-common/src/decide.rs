//! The one verdict function. Pure: tables, a packet, a hook and the time in, an [`Outcome`] out; nothing is written.
//!
//! The precedence of the policy language is resolved by the compiler (`policy::compile`, where the numbered list stands above the
//! function that implements it); [`ruling`] looks its answer up. Lines 1 and 2, which need a packet, are decided here.

use crate::address::{Address, Mac};
use crate::flow::{Flow, Path, Side};
use crate::id::{Container, Identity, Tier};
use crate::names::{MARK_CHECKED, MARK_MASK};
use crate::packet::{Kind, Packet};
use crate::tables::{
    Decision, Endpoint, Head, IdentityRow, Link, LinkKind, MAX_CHAIN, PrefixRow, SEARCH_STEPS, Tables,
    traffic_index,
};
use crate::track::{self, protocol, tcp};
use crate::verdict::{Hook, Reason, Verdict};

/// Where and when a packet is judged.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The program.
    pub hook: Hook,
    /// The interface that it sits on.
    pub ifindex: u32,
    /// The interface that the packet entered the host by; 0 where the host made it.
    pub ingress: u32,
    /// The packet's mark.
    pub mark: u32,
    /// Nanoseconds of the monotonic clock.
    pub now: u64,
}

/// What the tables say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The answer, before the mode of the whole policy.
    pub verdict: Verdict,
    /// Why; for an audited packet what enforcing would have said.
    pub reason: Reason,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
    /// Seconds of the monotonic clock at which it ends; 0 = never.
    pub until: u32,
}

/// What to do to the flow table when the packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<F> {
    /// Nothing: the packet belongs to no flow.
    Nothing,
    /// Count it on a live entry.
    Count(F),
    /// Write the new decision into an entry of an older generation, then count.
    Renew(F),
    /// Write a new entry.
    Create,
}

/// How a packet that passes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Unmarked: a later hook judges.
    Leave,
    /// Through the stack, marked as judged.
    Judged,
    /// Through the stack, marked as checked: each receiver's hook judges.
    Checked,
    /// Straight into the destination's namespace.
    Peer(Hop),
}

/// The last hop of [`Way::Peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Host-side veth of the destination.
    pub port: u32,
    /// The destination's MTU in bytes.
    pub mtu: u16,
    /// Whether the packet crosses networks, and so loses one of its TTL.
    pub routed: bool,
    /// The destination's MAC.
    pub mac: Mac,
    /// Its bridge's MAC.
    pub gateway_mac: Mac,
}

/// The verdict on one packet, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome<F> {
    /// The verdict, the policy's mode applied.
    pub verdict: Verdict,
    /// Why; for an audited packet what enforcing would have said.
    pub reason: Reason,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
    /// See [`Ruling::until`].
    pub until: u32,
    /// The policy's revision.
    pub revision: u32,
    /// The tables' generation.
    pub generation: u32,
    /// Who sent (the opener, where an old flow is decided again by its reply).
    pub source: Identity,
    /// To whom.
    pub destination: Identity,
    /// The container that sent this packet.
    pub source_container: Container,
    /// The container that receives it.
    pub destination_container: Container,
    /// Who opened the flow, in the packet's key.
    pub opener: Side,
    /// The flow's path.
    pub path: Path,
    /// What to record.
    pub step: Step<F>,
    /// Where it goes.
    pub way: Way,
}

impl<F> Outcome<F> {
    /// Whose counters count it, sender and receiver.
    #[inline(always)]
    pub fn tiers<T: Tables>(&self, tables: &T) -> (Tier, Tier) {
        let bank = self.generation & 1;
        (tier(tables, bank, self.source), tier(tables, bank, self.destination))
    }

    /// The cell of the traffic counters.
    #[inline(always)]
    pub fn traffic<T: Tables>(&self, tables: &T) -> u32 {
        let (source, destination) = self.tiers(tables);
        traffic_index(source, destination, matches!(self.verdict, Verdict::Audited))
    }
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    identity: Identity,
    container: Container,
}

/// Who sent a frame, as far as the interface tells.
#[derive(Clone, Copy)]
enum Sender<'t> {
    Port(&'t Link),
    Host,
    Unmanaged,
    Outside,
}

/// Judges one frame. `parsed` is what [`Packet::parse`] said of it.
#[inline(always)]
pub fn decide<'t, T: Tables>(
    tables: &'t T,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
) -> Outcome<T::Flow<'t>> {
    let generation = tables.generation();
    let mut outcome = Outcome {
        verdict: Verdict::Denied,
        reason: Reason::BadTable,
        rule: 0,
        until: 0,
        revision: 0,
        generation,
        source: Identity::UNKNOWN,
        destination: Identity::UNKNOWN,
        source_container: Container::NONE,
        destination_container: Container::NONE,
        opener: packet.side(),
        path: Path::Stack,
        step: Step::Nothing,
        way: Way::Judged,
    };
    if generation == 0 {
        outcome.reason = Reason::NoPolicy;
        return outcome;
    }
    let bank = generation & 1;
    let Some(head) = tables.head(bank) else { return outcome };
    if head.generation != generation {
        return outcome;
    }
    outcome.revision = head.revision;
    if let Err(reason) = judge(tables, bank, packet, parsed, at, &mut outcome) {
        outcome.verdict = Verdict::Denied;
        outcome.reason = reason;
        outcome.rule = 0;
        outcome.step = Step::Nothing;
    }
    // The one place where the mode of the whole policy is applied.
    if matches!(outcome.verdict, Verdict::Denied) && head.flags & Head::AUDIT != 0 {
        outcome.verdict = Verdict::Audited;
        outcome.path = Path::Stack;
        if !matches!(outcome.way, Way::Checked) {
            outcome.way = Way::Judged;
        }
    }
    outcome
}

/// Fills the outcome, or says what makes the packet one of precedence line 1.
#[inline(always)]
fn judge<'t, T: Tables>(
    tables: &'t T,
    bank: u32,
    packet: &Packet,
    parsed: Result<(), Reason>,
    at: &At,
    out: &mut Outcome<T::Flow<'t>>,
) -> Result<(), Reason> {
    let sender = sender(tables, packet, at)?;
    if let Sender::Port(link) = sender {
        out.source_container = link.container;
        out.source = link.identity[(bank & 1) as usize];
        if link.flags & Link::UNBOUND == 0 && packet.source_mac != link.mac {
            return Err(Reason::SpoofedMac);
        }
    }
    parsed?;
    if let Some(reason) = named(tables, packet, at, sender)? {
        out.verdict = Verdict::Allowed;
        out.reason = reason;
        out.way = if matches!(at.hook, Hook::BridgeOut) { Way::Leave } else { Way::Judged };
        return Ok(());
    }
    if matches!(packet.kind, Kind::IcmpError) {
        return related(tables, bank, packet, at, sender, out);
    }
    let side = packet.side();
    let group = packet.is_group();
    let live = if group { None } else { tables.flow(&packet.key) };
    let live = live.filter(|f| !track::expired(f, packet.protocol, at.now));
    let opens =
        packet.protocol == protocol::TCP && packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;

    // Line 2, and the opener's own later packets: one look-up.
    if let Some(flow) = live {
        let now_s = (at.now / 1_000_000_000) as u32;
        let fresh = flow.generation == out.generation && (flow.until == 0 || now_s < flow.until);
        let true_sender = flow.containers[side.index()] == container_of(sender);
        let again =
            opens && (flow.opener != side as u8 || flow.flags[side.index()] & (tcp::FIN | tcp::RST) != 0);
        if fresh && true_sender && !again {
            return established(tables, packet, at, sender, flow, out);
        }
    }

    let source = source_end(tables, bank, packet, sender)?;
    out.source = source.identity;
    out.source_container = source.container;
    if group && matches!(at.hook, Hook::PortIn) {
        out.verdict = Verdict::Allowed;
        out.reason = Reason::NotJudged;
        out.way = Way::Checked;
        return Ok(());
    }
    if matches!(at.hook, Hook::BridgeOut) && leave_to_port(tables, packet, group) {
        out.verdict = Verdict::Allowed;
        out.reason = Reason::NotJudged;
        out.way = Way::Leave;
        return Ok(());
    }
    let destination = destination_end(tables, bank, packet, at, sender, group);
    let destination = match destination {
        Ok(d) => d,
        Err((reason, identity)) => {
            out.destination = identity;
            return Err(reason);
        }
    };
    out.destination = destination.identity;
    out.destination_container = destination.container;
    if !declared(tables, bank, source.identity) && !declared(tables, bank, destination.identity) {
        out.verdict = Verdict::Allowed;
        out.reason = Reason::NotJudged;
        out.way = Way::Leave;
        return Ok(());
    }

    // Who opened decides: a reply that meets an entry of an older generation asks for the opener's right.
    let now_s = (at.now / 1_000_000_000) as u32;
    let mut forward = true;
    let mut selector = packet.selector();
    if let Some(flow) = live {
        let opener = Side::from_row(flow.opener);
        let true_sender = flow.containers[side.index()] == source.container;
        if true_sender && opener as u8 != side as u8 && !opens {
            forward = false;
            out.opener = opener;
            selector = crate::tables::selector(packet.protocol, packet.key.port(opener.other()));
        }
        out.step = if !true_sender {
            Step::Nothing
        } else if opens && track::State::of(&flow, packet.protocol) == track::State::Closing {
            Step::Create
        } else if opens && opener as u8 != side as u8 {
            Step::Count(flow)
        } else {
            out.path = Path::from_row(flow.path);
            Step::Renew(flow)
        };
    } else if !group && !packet.icmp_reply {
        out.step = Step::Create;
    }
    let ruling = if forward {
        ruling(tables, bank, source.identity, destination.identity, selector, now_s)
    } else {
        ruling(tables, bank, destination.identity, source.identity, selector, now_s)
    };
    if !forward {
        // The entry and its counters are the opener's.
        (out.source, out.destination) = (destination.identity, source.identity);
    }
    out.verdict = ruling.verdict;
    out.reason = ruling.reason;
    out.rule = ruling.rule;
    out.until = ruling.until;
    if matches!(ruling.verdict, Verdict::Denied) {
        out.step = Step::Nothing;
        return Ok(());
    }
    if let Step::Create = out.step {
        out.path = match ruling.verdict {
            Verdict::Allowed if matches!(at.hook, Hook::PortIn) => path(tables, packet),
            Verdict::Allowed | Verdict::Audited | Verdict::Denied => Path::Stack,
        };
    }
    if matches!(ruling.verdict, Verdict::Audited) {
        out.path = Path::Stack;
    }
    out.way = way(tables, packet, at, sender, out.path)?;
    Ok(())
}

/// A packet of a flow that the current tables allow.
#[inline(always)]
fn established<'t, T: Tables>(
    tables: &'t T,
    packet: &Packet,
    at: &At,
    sender: Sender<'_>,
    flow: T::Flow<'t>,
    out: &mut Outcome<T::Flow<'t>>,
) -> Result<(), Reason> {
    let side = packet.side();
    out.verdict = Verdict::from_row(flow.verdict);
    out.rule = flow.rule;
    out.until = flow.until;
    out.source = flow.source;
    out.destination = flow.destination;
    out.opener = Side::from_row(flow.opener);
    out.source_container = flow.containers[side.index()];
    out.destination_container = flow.containers[side.other().index()];
    out.path = Path::from_row(flow.path);
    // What enforcing would have said stays visible on an audited flow.
    out.reason = match out.verdict {
        Verdict::Allowed => Reason::Reply,
        Verdict::Audited | Verdict::Denied => Reason::from_row(flow.reason),
    };
    out.step = Step::Count(flow);
    out.way = way(tables, packet, at, sender, out.path)?;
    Ok(())
}

/// An ICMP error passes with the flow that it is about, to the end that the quoted packet came from.
#[inline(always)]
fn related<'t, T: Tables>(
    tables: &'t T,
    bank: u32,
    packet: &Packet,
    at: &At,
    sender: Sender<'_>,
    out: &mut Outcome<T::Flow<'t>>,
) -> Result<(), Reason> {
    let source = source_end(tables, bank, packet, sender)?;
    out.source = source.identity;
    out.source_container = source.container;
    if packet.is_group() {
        return Err(Reason::UnmatchedError);
    }
    if matches!(at.hook, Hook::BridgeOut) && leave_to_port(tables, packet, false) {
        out.verdict = Verdict::Allowed;
        out.reason = Reason::NotJudged;
        out.way = Way::Leave;
        return Ok(());
    }
    let found: Option<T::Flow<'t>> = tables.flow(&packet.key);
    let Some(flow) = found else { return Err(Reason::UnmatchedError) };
    let flow: &Flow = &flow;
    if flow.generation != out.generation || track::expired(flow, packet.key.protocol, at.now) {
        return Err(Reason::UnmatchedError);
    }
    out.destination = if flow.opener == packet.side() as u8 { flow.source } else { flow.destination };
    out.destination_container = flow.containers[packet.side().index()];
    out.verdict = Verdict::Allowed;
    out.reason = Reason::Related;
    out.path = Path::from_row(flow.path);
    if !matches!(out.path, Path::Stack) && !matches!(path(tables, packet), Path::Peer) {
        out.path = Path::Stack;
    }
    out.way = way(tables, packet, at, sender, out.path)?;
    Ok(())
}

/// What passes before line 1, with true addresses: the whole list. `Ok(None)` is for judging.
#[inline(always)]
fn named<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    sender: Sender<'_>,
) -> Result<Option<Reason>, Reason> {
    match packet.kind {
        Kind::Arp => claim(tables, packet, at, sender).then_some(Some(Reason::Arp)).ok_or(Reason::SpoofedArp),
        Kind::Neighbour => claim(tables, packet, at, sender)
            .then_some(Some(Reason::Neighbour))
            .ok_or(Reason::SpoofedNeighbour),
        Kind::Router => match sender {
            Sender::Host => Ok(Some(Reason::Neighbour)),
            Sender::Port(_) | Sender::Unmanaged | Sender::Outside => Err(Reason::RouterMessage),
        },
        Kind::Listener => Ok(Some(Reason::Mld)),
        Kind::DhcpClient => Ok(Some(Reason::Dhcp)),
        // A container is nobody's DHCP server: its answers are judged like any packet.
        Kind::DhcpServer => match sender {
            Sender::Host | Sender::Outside => Ok(Some(Reason::Dhcp)),
            Sender::Port(_) | Sender::Unmanaged => Ok(None),
        },
        Kind::Ip | Kind::IcmpError | Kind::Unknown => Ok(None),
    }
}

/// Whether the address that an ARP or ND message claims is its sender's.
#[inline(always)]
fn claim<T: Tables>(tables: &T, packet: &Packet, at: &At, sender: Sender<'_>) -> bool {
    let address = &packet.claim;
    // A probe (RFC 5227) and duplicate address detection (RFC 4862) claim nothing.
    if address.is_unspecified() {
        return true;
    }
    match sender {
        Sender::Host => true,
        Sender::Port(link) => match tables.endpoint(address) {
            Some(e) => e.container == link.container && e.container != Container::NONE,
            None => {
                *address == Address::link_local_of(&packet.source_mac)
                    || (link.flags & Link::UNBOUND != 0 && !is_interior_closed(tables, address))
            }
        },
        Sender::Unmanaged | Sender::Outside => match tables.endpoint(address) {
            Some(e) => e.flags & Endpoint::HOST == 0 && e.port == at.ingress,
            None => true,
        },
    }
}

#[inline(always)]
fn is_interior_closed<T: Tables>(tables: &T, address: &Address) -> bool {
    let row = tables.prefix(tables.generation() & 1, address);
    row.is_some_and(|r| r.flags & PrefixRow::INTERIOR != 0 && r.flags & PrefixRow::OPEN == 0)
}

/// Who sent the frame: by interface, never by address.
#[inline(always)]
fn sender<'t, T: Tables>(tables: &'t T, packet: &Packet, at: &At) -> Result<Sender<'t>, Reason> {
    let index = match at.hook {
        Hook::PortIn => at.ifindex,
        Hook::PortOut | Hook::BridgeOut => {
            if at.ingress == 0 {
                return Ok(Sender::Host);
            }
            at.ingress
        }
        // The port is forgotten here; the port's own program has checked the source, or there was none.
        Hook::BridgeIn => {
            if at.mark & MARK_MASK != MARK_CHECKED {
                return Err(Reason::UnknownSource);
            }
            tables.endpoint(&packet.source).ok_or(Reason::UnknownSource)?.port
        }
    };
    let link = tables.link(index).ok_or(Reason::UnknownSource)?;
    match LinkKind::from_row(link.kind) {
        LinkKind::Port if link.container == Container::NONE && link.flags & Link::UNBOUND == 0 => {
            Err(Reason::UnknownSource)
        }
        LinkKind::Port => Ok(Sender::Port(link)),
        LinkKind::Unmanaged => Ok(Sender::Unmanaged),
        LinkKind::Uplink => Ok(Sender::Outside),
        LinkKind::Bridge | LinkKind::Unknown => Err(Reason::UnknownSource),
    }
}

#[inline(always)]
fn container_of(sender: Sender<'_>) -> Container {
    match sender {
        Sender::Port(link) => link.container,
        Sender::Host | Sender::Unmanaged | Sender::Outside => Container::NONE,
    }
}

/// The sender's identity, if its address is true (line 1).
#[inline(always)]
fn source_end<T: Tables>(tables: &T, bank: u32, packet: &Packet, sender: Sender<'_>) -> Result<End, Reason> {
    let slot = (bank & 1) as usize;
    let address = &packet.source;
    let known = tables.endpoint(address);
    match sender {
        Sender::Port(link) => {
            if let Some(e) = known {
                if e.container != link.container || e.container == Container::NONE {
                    return Err(Reason::SpoofedAddress);
                }
                return Ok(End { identity: e.identity[slot], container: e.container });
            }
            if *address == Address::link_local_of(&link.mac) {
                return Ok(End { identity: link.identity[slot], container: link.container });
            }
            let row = tables.prefix(bank, address).ok_or(Reason::SpoofedAddress)?;
            let open = row.flags & PrefixRow::OPEN != 0 && link.flags & Link::UNBOUND != 0;
            if !open || tier(tables, bank, row.identity) != tier(tables, bank, link.identity[slot]) {
                return Err(Reason::SpoofedAddress);
            }
            Ok(End { identity: row.identity, container: link.container })
        }
        Sender::Host => {
            let identity = match known {
                Some(e) if e.flags & Endpoint::HOST != 0 => e.identity[slot],
                Some(_) | None => Identity::HOST,
            };
            Ok(End { identity, container: Container::NONE })
        }
        Sender::Unmanaged => {
            if let Some(e) = known {
                if e.flags & Endpoint::HOST != 0 || declared(tables, bank, e.identity[slot]) {
                    return Err(Reason::SpoofedAddress);
                }
                return Ok(End { identity: e.identity[slot], container: Container::NONE });
            }
            match tables.prefix(bank, address) {
                Some(row) if declared(tables, bank, row.identity) => Err(Reason::SpoofedAddress),
                Some(row) if row.flags & PrefixRow::INTERIOR != 0 => {
                    Ok(End { identity: row.identity, container: Container::NONE })
                }
                Some(_) | None => Ok(End { identity: Identity::UNMANAGED, container: Container::NONE }),
            }
        }
        Sender::Outside => {
            if known.is_some() {
                return Err(Reason::SpoofedAddress);
            }
            match tables.prefix(bank, address) {
                Some(row) if row.flags & PrefixRow::INTERIOR != 0 => Err(Reason::SpoofedAddress),
                Some(row) => Ok(End { identity: row.identity, container: Container::NONE }),
                None => Ok(End { identity: Identity::EXTERNAL, container: Container::NONE }),
            }
        }
    }
}

/// The receiver's identity; on an error also whose network it is, for the counters.
#[inline(always)]
fn destination_end<T: Tables>(
    tables: &T,
    bank: u32,
    packet: &Packet,
    at: &At,
    sender: Sender<'_>,
    group: bool,
) -> Result<End, (Reason, Identity)> {
    let slot = (bank & 1) as usize;
    let host = matches!(sender, Sender::Host);
    if matches!(at.hook, Hook::PortOut) {
        let Some(link) = tables.link(at.ifindex) else { return Err((Reason::BadTable, Identity::UNKNOWN)) };
        let identity = link.identity[slot];
        if link.container == Container::NONE && link.flags & Link::UNBOUND == 0 && !host {
            return Err((Reason::UnknownDestination, identity));
        }
        if !group
            && let Some(e) = tables.endpoint(&packet.destination)
            && e.container == link.container
        {
            return Ok(End { identity: e.identity[slot], container: e.container });
        }
        return Ok(End { identity, container: link.container });
    }
    if group {
        return Ok(End { identity: Identity::HOST, container: Container::NONE });
    }
    if let Some(e) = tables.endpoint(&packet.destination) {
        return Ok(End { identity: e.identity[slot], container: e.container });
    }
    match tables.prefix(bank, &packet.destination) {
        Some(row) if row.flags & PrefixRow::INTERIOR != 0 && row.flags & PrefixRow::OPEN == 0 && !host => {
            Err((Reason::UnknownDestination, row.identity))
        }
        Some(row) => Ok(End { identity: row.identity, container: Container::NONE }),
        None => Ok(End { identity: Identity::EXTERNAL, container: Container::NONE }),
    }
}

/// At the bridge's egress: whether the receiver's own port has a program that judges.
#[inline(always)]
fn leave_to_port<T: Tables>(tables: &T, packet: &Packet, group: bool) -> bool {
    group || tables.endpoint(&packet.destination).is_some_and(|e| e.flags & Endpoint::ATTACHED != 0)
}

/// Whether both ends can be reached through their ports.
#[inline(always)]
fn path<T: Tables>(tables: &T, packet: &Packet) -> Path {
    const BOTH: u16 = Endpoint::ATTACHED | Endpoint::PEER;
    let reachable = |a: &Address| tables.endpoint(a).is_some_and(|e| e.flags & BOTH == BOTH);
    if reachable(&packet.source) && reachable(&packet.destination) { Path::Peer } else { Path::Stack }
}

/// How an allowed packet goes on. At the port a frame must be for the gateway or for its destination: otherwise it would reach
/// whoever has the MAC, under the right of whoever has the address.
#[inline(always)]
fn way<T: Tables>(
    tables: &T,
    packet: &Packet,
    at: &At,
    sender: Sender<'_>,
    path: Path,
) -> Result<Way, Reason> {
    let (Hook::PortIn, Sender::Port(link)) = (at.hook, sender) else { return Ok(Way::Judged) };
    let to_gateway = packet.destination_mac == link.gateway_mac || link.flags & Link::UNBOUND != 0;
    if matches!(path, Path::Stack) && to_gateway {
        return Ok(Way::Judged);
    }
    let Some(e) = tables.endpoint(&packet.destination) else { return Err(Reason::WrongMac) };
    let direct = e.bridge == link.bridge && packet.destination_mac == e.mac;
    if !to_gateway && !direct {
        return Err(Reason::WrongMac);
    }
    if matches!(path, Path::Stack) || e.flags & Endpoint::PEER == 0 {
        return Ok(Way::Judged);
    }
    Ok(Way::Peer(Hop {
        port: e.port,
        mtu: e.mtu,
        routed: !direct,
        mac: e.mac,
        gateway_mac: if direct { packet.source_mac } else { e.gateway_mac },
    }))
}

#[inline(always)]
fn tier<T: Tables>(tables: &T, bank: u32, identity: Identity) -> Tier {
    tables.identity(bank, identity).map_or(Tier::UNKNOWN, |row| row.tier)
}

#[inline(always)]
fn declared<T: Tables>(tables: &T, bank: u32, identity: Identity) -> bool {
    tables.identity(bank, identity).is_some_and(|row| row.flags & IdentityRow::DECLARED != 0)
}

/// Lines 3 to 7 of the precedence for a pair of identities: what the compiler wrote. `selector` as in
/// [`crate::tables::selector`], `now_s` in seconds of the monotonic clock.
#[inline(always)]
pub fn ruling<T: Tables>(
    tables: &T,
    bank: u32,
    source: Identity,
    destination: Identity,
    selector: u32,
    now_s: u32,
) -> Ruling {
    let closed = Ruling { verdict: Verdict::Denied, reason: Reason::BadTable, rule: 0, until: 0 };
    let Some(cell) = tables.cell(bank, source, destination) else { return closed };
    let (mut index, is_set) = cell.index();
    if is_set {
        let Some(set) = tables.rule_set(bank, index) else { return closed };
        // The last interval that begins at or before the selector; the first begins at 0.
        let (mut low, mut count) = (set.start, set.count);
        for _ in 0..SEARCH_STEPS {
            if count <= 1 {
                break;
            }
            let half = count / 2;
            let Some(middle) = tables.interval(bank, low.wrapping_add(half)) else { return closed };
            if middle.from <= selector {
                low = low.wrapping_add(half);
                count -= half;
            } else {
                count = half;
            }
        }
        let Some(found) = tables.interval(bank, low) else { return closed };
        if count != 1 || found.from > selector {
            return closed;
        }
        index = found.decision;
    }
    for _ in 0..MAX_CHAIN {
        let Some(decision) = tables.decision(bank, index) else { return closed };
        if decision.until == 0 || now_s < decision.until {
            return said(decision);
        }
        index = decision.next;
    }
    closed
}

#[inline(always)]
fn said(decision: &Decision) -> Ruling {
    Ruling {
        verdict: Verdict::from_row(decision.verdict),
        reason: Reason::from_row(decision.reason),
        rule: decision.rule,
        until: decision.until,
    }
}

/// What a new entry of the flow table holds for an [`Outcome`]; `traffic` is [`Outcome::traffic`].
#[inline(always)]
pub fn entry<F>(packet: &Packet, outcome: &Outcome<F>, traffic: u32, now: u64) -> Flow {
    let side = packet.side();
    let mut flow = Flow {
        generation: outcome.generation,
        revision: outcome.revision,
        until: outcome.until,
        rule: outcome.rule,
        verdict: outcome.verdict as u8,
        reason: outcome.reason as u8,
        opener: outcome.opener as u8,
        path: outcome.path as u8,
        source: outcome.source,
        destination: outcome.destination,
        traffic,
        created: now,
        seen: now,
        ..Flow::default()
    };
    flow.containers[side.index()] = outcome.source_container;
    flow.containers[side.other().index()] = outcome.destination_container;
    flow.flags[side.index()] = track::mark(packet.protocol, packet.tcp_flags);
    flow
}
