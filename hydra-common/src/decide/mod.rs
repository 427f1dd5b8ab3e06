//! The one verdict function. Pure: tables, a packet, a hook and the time in, an [`Outcome`] out; nothing is written to a table.
//!
//! The precedence of the policy language is resolved by the compiler (`policy::compile`, where the numbered list stands above the
//! function that implements it); [`ruling`] looks its answer up. Lines 1 and 2, which need a packet, are decided here.
//!
//! In the kernel every function that is not inlined is one of the object's own, and an [`Outcome`] lives in a map: what went through
//! memory is one state to the verifier, where registers would be many.

pub mod ends;
pub mod fragment;
pub mod lan;
mod limit;
mod outcome;
pub mod own;
mod parts;
mod published;
mod related;
mod ruling;
pub mod socket;

pub use limit::{counts, each, one, settle};
pub use outcome::{Hop, Outcome, Step, Way};
pub use parts::Parts;
pub use ruling::{Ruling, ruling};

/// What [`Parts`] are by default.
pub mod part {
    pub use super::ends::{named, source};
    pub use super::fragment::resolve;
    pub use super::own::{claimed, may_be_left};
    pub use super::related::{related, stands};
    pub use super::ruling::{alive, ruling};
    pub use super::{denied, first, open, way};
    pub use crate::track::ended;
}

use self::ends::Sender;
use self::published::Business;
use crate::flow::{Flow, Path, Side};
use crate::id::Identity;
use crate::names::{MARK_CHECKED, MARK_MASK, carrier};
use crate::packet::{Kind, Packet};
use crate::tables::{Endpoint, Head, IdentityRow, Link, Moment, Publish, Tables};
use crate::track::{self, protocol, sctp, tcp};
use crate::verdict::{Hook, Reason, Verdict};

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

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

impl At {
    /// The same in seconds.
    #[inline(always)]
    pub const fn seconds(&self) -> u32 {
        (self.now / SECOND) as u32
    }

    /// Whether it is before the begin of a second. Without a division, which takes as long as a look-up in an array.
    #[inline(always)]
    pub const fn before(&self, second: u32) -> bool {
        self.now < second as u64 * SECOND
    }
}

/// Judges one frame. `parsed` is what [`Packet::parse`] said of it; a later piece of a datagram gets its ports here. Returns the live
/// flow that [`Step::Count`], [`Step::Renew`] and [`Step::End`] are about.
#[inline(always)]
pub fn decide<'t, T: Parts>(
    tables: &'t T,
    packet: &mut Packet,
    parsed: Result<(), Reason>,
    at: &At,
    out: &mut Outcome,
) -> Option<T::Flow<'t>> {
    *out = Outcome::CLOSED;
    let (mut known, mut since) = ((None, None), Moment::default());
    if matches!(at.hook, Hook::UplinkIn) {
        since = tables.moment();
        let goes_on = published::goes_on(packet, parsed).then_some(since);
        known = match published::concerns(tables, packet, parsed, at, goes_on) {
            Business::Nobodys => {
                out.not_judged(Way::Leave);
                return None;
            }
            Business::Port(row) => (Some(row), goes_on),
            Business::Other => (None, goes_on),
        };
    }
    if !ready(tables, at, out) {
        return None;
    }
    // A row is written before the flip: what was read before it may be another than the policy's that has come meanwhile.
    if out.generation != since.generation {
        known = (None, None);
    }
    let said = enter(tables, packet, parsed, at, known, out);
    settled(out, said)
}

/// Which policy holds. `false`: none does, or none that is whole.
#[inline(always)]
fn ready<T: Tables>(tables: &T, at: &At, out: &mut Outcome) -> bool {
    out.generation = tables.generation();
    if out.generation == 0 {
        out.reason = Reason::NoPolicy;
        return false;
    }
    let Some(head) = tables.head(out.bank()) else { return false };
    if head.generation != out.generation {
        return false;
    }
    out.revision = head.revision;
    out.audit = head.flags & Head::AUDIT != 0;
    // What passes anyway is known when enforcing begins.
    out.pickup = out.audit || at.before(head.pickup_until);
    true
}

/// An error denies, and the mode of the whole policy comes last.
#[inline(always)]
fn settled<F>(out: &mut Outcome, said: Result<Option<F>, Reason>) -> Option<F> {
    let live = match said {
        Ok(live) => live,
        Err(reason) => {
            out.verdict = Verdict::Denied;
            out.reason = reason;
            out.rule = 0;
            out.step = Step::Nothing;
            out.way = Way::Judged;
            out.elsewhere = false;
            None
        }
    };
    apply_mode(out);
    live
}

/// The one place where the mode of the whole policy is applied.
#[inline(always)]
fn apply_mode(out: &mut Outcome) {
    if matches!(out.verdict, Verdict::Denied) && out.audit {
        out.verdict = Verdict::Audited;
    }
}

/// Line 1, the named list, and line 2; what is left goes to [`first`]. An error makes the packet one of line 1. `known` is for
/// [`published::uplink`].
#[inline(always)]
fn enter<'t, T: Parts>(
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
fn expired<T: Parts>(tables: &T, flow: &Flow, protocol: u8, now: u64) -> bool {
    track::silent(flow, now) && tables.ended(flow, protocol, now)
}

/// Whether the packet belongs to a flow that the current tables allow, sent by the end that it says. Fills the outcome from the entry.
#[inline(always)]
fn established(packet: &Packet, at: &At, out: &mut Outcome, flow: &Flow) -> bool {
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
/// not depend on time. [`first`], [`open`] and [`way`] come to nothing else there. `false`: it is for those.
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

/// Lines 3 to 7, by the right of whoever opened: a reply that meets an entry of an older generation asks for the opener's.
///
/// A SYN of the opener begins a flow, unless it is the one that began the entry, sent again. Of a connection that is established it
/// changes nothing else: the other end says by its answer whether it takes it (RFC 9293, 3.10.7.4), and [`track`] follows that.
#[inline(always)]
pub fn open<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome, live: Option<&Flow>) {
    let side = packet.side();
    let mut selector = published::selector(packet, out);
    out.opener = side;
    if let Some(flow) = live {
        let opener = Side::from_row(flow.opener);
        let reply = opener as u8 != side as u8;
        let again = opens(packet) && (reply || !track::repeats(flow, packet));
        if !ends::same(flow, side, out) {
            out.begins = true;
            // Somebody else with the same addresses: judged by his own right, and not on that entry, which is his once it is old. But a
            // port that NAT has given to another conversation is that one's now.
            if flow.generation != out.generation || matches!(out.sender, Sender::Carried) {
                out.step = Step::Create;
            }
        } else if opens(packet) && anew(packet, out, flow, again) {
            out.begins = true;
            out.step = Step::Create;
        } else {
            out.begins = again;
            out.step = Step::Renew;
            out.taken = if again { 0 } else { flow.taken };
            out.path = Path::from_row(flow.path);
            if reply && opens(packet) {
                out.step = Step::Count;
            } else if reply {
                out.opener = opener;
                selector = crate::tables::selector(packet.protocol, packet.key.port(opener.other()));
                core::mem::swap(&mut out.source, &mut out.destination);
                published::answered(tables, packet, out, flow, &mut selector);
            }
        }
    } else if !packet.is_group() && !packet.icmp_reply {
        out.begins = true;
        out.step = Step::Create;
    } else {
        out.begins = packet.protocol != protocol::TCP || opens(packet);
    }
    judge(tables, out, selector, at);
    if packet.is_group() && matches!(at.hook, Hook::BridgeIn) {
        published::strictest(tables, packet, at, out);
    }
    if matches!((out.verdict, out.step), (Verdict::Denied, Step::Renew)) {
        refused(tables, packet, at, out);
    }
    if matches!(out.verdict, Verdict::Allowed) && !known(packet, at, out) {
        out.verdict = Verdict::Denied;
        out.reason = Reason::NoConnection;
        out.rule = 0;
        out.step = Step::Nothing;
    }
    if matches!(out.step, Step::Create) {
        ends::answerer(tables, out);
    }
    // The path is chosen once: a flow that moved to another would lose what is under way. What is only audited goes as if hydra
    // were not there.
    if matches!((out.verdict, out.step, at.hook), (Verdict::Allowed, Step::Create, Hook::PortIn)) {
        out.path = path(tables, packet);
    }
}

/// Whether a SYN on a live entry makes another in its place. `again`: it is not the one that the entry began with.
#[inline(always)]
fn anew(packet: &Packet, out: &Outcome, flow: &Flow, again: bool) -> bool {
    let side = packet.side();
    match track::State::of(flow, packet.protocol) {
        track::State::Closing => true,
        _ if flow.opener != side as u8 => false,
        track::State::New if again => true,
        track::State::New | track::State::Established => {
            flow.containers[side.other().index()] != out.destination_container
        }
    }
}

/// What the tables say of the outcome's ends.
#[inline(always)]
fn judge<T: Parts>(tables: &T, out: &mut Outcome, selector: u32, at: &At) {
    let said = tables.ruling(out.bank(), out.source, out.destination, selector, at.seconds());
    out.ruled(&said);
}

/// A flow that the tables no longer allow its opener. Without connections its other end may open one by its own right; of TCP the
/// entry stays while packets from the middle of a connection may make one, or the other end would take it over.
#[inline(never)]
fn refused<T: Parts>(tables: &T, packet: &Packet, at: &At, out: &mut Outcome) {
    let side = packet.side();
    let tcp = packet.protocol == protocol::TCP;
    let stays = out.audit || (tcp && out.pickup);
    if !stays {
        out.step = Step::End;
    }
    // Of a published port's flow the ends are not who the addresses say.
    let led = out.marks & (Flow::PUBLISHED | Flow::CARRIED) != 0;
    if tcp || packet.icmp_reply || led || out.opener as u8 == side as u8 {
        return;
    }
    let (source, destination) = (out.destination, out.source);
    let own = tables.ruling(out.bank(), source, destination, packet.selector(), at.seconds());
    if matches!(own.verdict, Verdict::Denied) {
        return;
    }
    (out.source, out.destination) = (source, destination);
    out.opener = side;
    out.marks = 0;
    out.path = Path::Stack;
    out.step = Step::Create;
    out.begins = true;
    out.taken = 0;
    out.ruled(&own);
}

/// Whether a packet opens, or belongs to a connection that did: of TCP only a SYN opens (line 2). What is for a group or stays on its
/// link has no entries.
#[inline(always)]
fn known(packet: &Packet, at: &At, out: &Outcome) -> bool {
    packet.protocol != protocol::TCP
        || opens(packet)
        || matches!(out.step, Step::Count | Step::Renew)
        || out.pickup
        || packet.is_group()
        || (carrier(at.mark).is_some() && !matches!(at.hook, Hook::CgroupIn | Hook::CgroupOut))
}

/// A packet that opens a connection of TCP or an association of SCTP.
#[must_use]
#[inline(always)]
pub fn opens(packet: &Packet) -> bool {
    match packet.protocol {
        protocol::TCP => packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN,
        // A later piece has no chunk, and reads as data.
        protocol::SCTP => packet.chunk == sctp::INIT,
        _ => false,
    }
}

/// At the bridge's egress: whether the receiver's own port has a program that judges.
#[inline(always)]
fn left_to_port<T: Tables>(tables: &T, packet: &Packet, group: bool) -> bool {
    group || tables.endpoint(&packet.destination).is_some_and(|e| e.flags & Endpoint::ATTACHED != 0)
}

/// Whether both ends can be reached through their ports.
#[inline(always)]
fn path<T: Tables>(tables: &T, packet: &Packet) -> Path {
    const BOTH: u16 = Endpoint::ATTACHED | Endpoint::PEER;
    let reachable = |a| tables.endpoint(a).is_some_and(|e: &Endpoint| e.flags & BOTH == BOTH);
    if reachable(&packet.source) && reachable(&packet.destination) { Path::Peer } else { Path::Stack }
}

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
fn listed<T: Tables>(
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

#[inline(always)]
fn declared<T: Tables>(tables: &T, bank: u32, identity: Identity) -> bool {
    tables.identity(bank, identity).is_some_and(|row| row.flags & IdentityRow::DECLARED != 0)
}

/// Fills what a new entry of the flow table holds for an [`Outcome`]; `traffic` is [`Outcome::traffic`], counters begin at 0.
#[inline(always)]
pub fn entry(packet: &Packet, out: &Outcome, traffic: u32, now: u64, flow: &mut Flow) {
    let side = packet.side();
    *flow = Flow {
        generation: out.generation,
        revision: out.revision,
        until: out.until,
        rule: out.rule,
        verdict: out.verdict as u8,
        reason: out.reason as u8,
        opener: out.opener as u8,
        path: out.path as u8,
        source: out.source,
        destination: out.destination,
        traffic,
        marks: out.marks,
        taken: out.taken,
        created: now,
        seen: now,
        ..Flow::default()
    };
    flow.containers[side.index()] = out.source_container;
    flow.containers[side.other().index()] = out.destination_container;
    let stand = track::begin(packet);
    flow.flags[side.index()] = stand.flags;
    flow.next[side.index()] = stand.next;
    flow.acked[side.index()] = stand.acked;
    flow.syn = stand.syn;
    flow.ends[side.index()] = out.near() as u8;
    flow.ends[side.other().index()] = out.beyond as u8;
}
