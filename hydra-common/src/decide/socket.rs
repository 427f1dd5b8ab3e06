//! The verdict on a process that opens a flow, before there is a packet: the same answer as the packet's, sooner, and with the
//! process known. Pure.
//!
//! Only what is certain is refused here. Whatever needs a packet (which address it will leave by, whether a receiver of a group
//! wants it, a network's container that is just starting) is left to the hooks that see one: they judge everything anyway.

use super::published::find;
use super::{Parts, declared};
use crate::address::Address;
use crate::flow::FlowKey;
use crate::id::{Container, Identity, Tier};
use crate::tables::{Cgroup, CgroupKey, Endpoint, Head, MAX_CGROUP_PLACES, PrefixRow, Tables, selector};
use crate::track::protocol;
use crate::verdict::{Reason, Verdict};

/// `IPPROTO_MPTCP`: on the wire it is TCP (RFC 8684).
const MPTCP: u32 = 262;
/// Types of the only messages that a ping socket sends.
const ECHO: u16 = 8;
const ECHO6: u16 = 128;

/// What a process asks for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The nearest cgroup of the process that has a row.
    pub cgroup: u64,
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// The address, as the process gave it.
    pub destination: Address,
    /// The port, host order.
    pub port: u16,
    /// The socket's own port, host order; 0 where it has none yet.
    pub source_port: u16,
    /// Nanoseconds of the monotonic clock.
    pub now: u64,
    /// The socket's protocol: [`MPTCP`] does not fit the header's eight bits.
    pub protocol: u32,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
    /// The protocol that it would have had on the wire.
    pub protocol: u8,
    /// The policy's revision.
    pub revision: u32,
    /// Who asks.
    pub source: Identity,
    /// For whom.
    pub destination: Identity,
    /// The stack that asks.
    pub source_container: Container,
    /// The container that is asked for.
    pub destination_container: Container,
    /// Tiers of the two.
    pub tiers: (Tier, Tier),
}

impl Refusal {
    /// Nothing is known yet.
    pub const EMPTY: Self = Self {
        reason: Reason::BadTable,
        rule: 0,
        protocol: 0,
        revision: 0,
        source: Identity::UNKNOWN,
        destination: Identity::UNKNOWN,
        source_container: Container::NONE,
        destination_container: Container::NONE,
        tiers: (Tier::UNKNOWN, Tier::UNKNOWN),
    };
}

/// Who is called.
struct Called {
    identity: Identity,
    container: Container,
    selector: u32,
    /// This host itself, and no port of it that leads to a container.
    own: bool,
}

/// Whether a call can only be denied. `None`: it may go on, and its packets are judged.
#[inline(always)]
pub fn refusal<T: Parts>(tables: &T, call: &Call) -> Option<Refusal> {
    let generation = tables.generation();
    let bank = generation & 1;
    let head = tables.head(bank)?;
    // Without a policy, or where nothing is dropped, the packets' hooks have the word, and the record.
    if generation == 0 || head.generation != generation || head.flags & Head::AUDIT != 0 {
        return None;
    }
    let row = tables.cgroup(&CgroupKey::new(call.cgroup, 0))?;
    if row.flags & Cgroup::MANY != 0 || (row.netns != 0 && row.netns != call.netns) {
        return None;
    }
    let (protocol, port) = on_the_wire(call)?;
    // Its packets' own hook refuses a datagram at once as well, and knows what it answers.
    let datagram = protocol == protocol::UDP && call.source_port != 0;
    if datagram && row.flags & Cgroup::HOST != 0 {
        return None;
    }
    if datagram && answers(tables, call) {
        return None;
    }
    let called = called(tables, bank, row, call, selector(protocol, port))?;
    let mut refusal = None;
    for place in 0..MAX_CGROUP_PLACES {
        // Which of its addresses it will leave by, its routes say later: all of them must be refused.
        let Some(row) = tables.cgroup(&CgroupKey::new(call.cgroup, place)) else { break };
        let source = row.identity[bank as usize];
        if !declared(tables, bank, source) && !declared(tables, bank, called.identity) {
            return None;
        }
        let now_s = (call.now / 1_000_000_000) as u32;
        if called.own && tables.may_be_left(bank, source, called.selector, now_s) {
            return None;
        }
        let said = tables.ruling(bank, source, called.identity, called.selector, now_s);
        if !matches!(said.verdict, Verdict::Denied) {
            return None;
        }
        if refusal.is_none() {
            let tier = |i| tables.identity(bank, i).map_or(Tier::UNKNOWN, |row| row.tier);
            refusal = Some(Refusal {
                reason: said.reason,
                rule: said.rule,
                protocol,
                revision: head.revision,
                source,
                destination: called.identity,
                source_container: row.container,
                destination_container: called.container,
                tiers: (tier(source), tier(called.identity)),
            });
        }
    }
    refusal
}

/// Whether a datagram may be an answer: a server sends it by the socket that it was asked on, and asks nobody by that.
#[inline(never)]
fn answers<T: Parts>(tables: &T, call: &Call) -> bool {
    for place in 0..MAX_CGROUP_PLACES {
        let Some(row) = tables.cgroup(&CgroupKey::new(call.cgroup, place)) else { return false };
        let mut key = FlowKey {
            a: row.address,
            b: call.destination,
            port_a: call.source_port.to_be_bytes(),
            port_b: call.port.to_be_bytes(),
            protocol: protocol::UDP,
            ..FlowKey::default()
        };
        key.canonical();
        if tables.flow(&key).is_some_and(|flow| !super::expired(tables, &flow, protocol::UDP, call.now)) {
            return true;
        }
    }
    false
}

/// The protocol, and the port or type by which rules are searched, that a packet of the call would have.
#[inline(always)]
fn on_the_wire(call: &Call) -> Option<(u8, u16)> {
    let protocol = if call.protocol == MPTCP { u32::from(protocol::TCP) } else { call.protocol };
    let protocol = u8::try_from(protocol).ok()?;
    let port = match protocol {
        // Nothing can be sent to port 0 (`udp_sendmsg`): whoever connects there asks for a route (`getaddrinfo` does).
        protocol::UDP if call.port == 0 => return None,
        protocol::TCP | protocol::UDP | protocol::SCTP => call.port,
        protocol::ICMP => ECHO,
        protocol::ICMPV6 => ECHO6,
        _ => 0,
    };
    Some((protocol, port))
}

/// Who has the address, as it looks from the process's stack. `None`: it is not for this hook to say.
#[inline(always)]
fn called<T: Tables>(tables: &T, bank: u32, row: &Cgroup, call: &Call, selector: u32) -> Option<Called> {
    let address = &call.destination;
    if address.is_group() || (!address.is_v4() && address.is_link_local()) {
        return None;
    }
    let slot = bank as usize;
    let own_stack = row.flags & Cgroup::HOST != 0;
    // Linux connects an unspecified address to the own stack, as it does all of 127.0.0.0/8.
    let loopback = address.is_loopback() || address.is_unspecified();
    if loopback && !own_stack {
        return None;
    }
    let known = if loopback { None } else { tables.endpoint(address) };
    let host = loopback || known.is_some_and(|e| e.flags & Endpoint::HOST != 0);
    if host {
        if let Some(called) = published(tables, slot, call, selector) {
            return Some(called);
        }
        let identity = known.map_or(Identity::HOST, |e| e.identity[slot]);
        return Some(Called { identity, container: Container::NONE, selector, own: true });
    }
    if let Some(e) = known {
        if e.container == row.container && e.container != Container::NONE {
            return None;
        }
        return Some(Called { identity: e.identity[slot], container: e.container, selector, own: false });
    }
    let identity = match tables.prefix(bank, address) {
        None => Identity::EXTERNAL,
        // A container that is just starting, or a network's broadcast address.
        Some(p) if p.flags & (PrefixRow::INTERIOR | PrefixRow::OPEN) == PrefixRow::INTERIOR => return None,
        Some(p) => p.identity,
    };
    Some(Called { identity, container: Container::NONE, selector, own: false })
}

/// The container behind a port of this host.
#[inline(always)]
fn published<T: Tables>(tables: &T, slot: usize, call: &Call, wanted: u32) -> Option<Called> {
    let protocol = (wanted >> 16) as u8;
    let row = find(tables, &call.destination, call.port, protocol, false)?;
    Some(Called {
        identity: row.identity[slot],
        container: row.container,
        selector: selector(protocol, row.port),
        own: false,
    })
}
