//! Lines 3 to 7, for what no fresh entry of the flow table answers for; and what a new entry holds.

use super::ends::{self, Sender};
use super::way::path;
use super::{At, Outcome, Parts, Step, published};
use crate::flow::{Flow, Path, Side};
use crate::names::carrier;
use crate::packet::Packet;
use crate::track::{self, protocol, sctp, tcp};
use crate::verdict::{Hook, Reason, Verdict};

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
