//! Ports of the host that lead to the databases' container, who calls them, and what becomes of the call.

use hydra_common::decide::{At, Outcome};
use hydra_common::id::{Container, Identity};
use hydra_common::names::carried;
use hydra_common::tables::*;
use hydra_common::track::protocol;
use hydra_common::verdict::{Hook, Reason, Verdict};

use super::{APP, DB, Plain, at, frame, ip, tcp, world};

pub const SYN: u8 = 2;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;

/// The databases' container behind port 8081 of every address of this host; its own port is 5432. Whoever may call this host may
/// call all of it: what is denied below is denied for the container's sake.
pub fn published() -> Plain {
    let mut t = world();
    for own in ["198.51.100.1", "2001:db8::1"] {
        let row = Endpoint { identity: [Identity::HOST; 2], flags: Endpoint::HOST, ..Endpoint::default() };
        t.endpoints.insert(ip(own), row);
    }
    for who in [APP, DB, Identity::EXTERNAL, Identity::UNMANAGED] {
        t.cells.insert((who.0, Identity::HOST.0), Cell::decision(4));
    }
    publish(&mut t, "0.0.0.0", 8081, DB, 3, 0);
    publish(&mut t, "::", 8081, DB, 3, Publish::PROXIED);
    // Only to the container's own port.
    t.sets.push(RuleSet { start: 0, count: 3 });
    t.intervals = vec![
        Interval { from: 0, decision: 1 },
        Interval { from: selector(6, 5432), decision: 4 },
        Interval { from: selector(6, 5433), decision: 1 },
    ];
    t
}

pub fn publish(t: &mut Plain, address: &str, port: u16, identity: Identity, container: u32, flags: u16) {
    for protocol in [protocol::TCP, protocol::UDP] {
        let key = PublishKey { address: ip(address), port: port.to_be_bytes(), protocol, zero: [0; 5] };
        let row = Publish { identity: [identity; 2], container: Container(container), port: 5432, flags };
        t.published.insert(key, row);
    }
}

pub fn allow(t: &mut Plain, who: Identity) {
    t.cells.insert((who.0, DB.0), Cell::rule_set(0));
}

pub fn deny(t: &mut Plain, who: Identity) {
    t.cells.insert((who.0, DB.0), Cell::decision(1));
}

pub fn flip(t: &mut Plain) {
    t.generation += 2;
    t.heads[1].generation = t.generation;
}

pub fn says(o: &Outcome) -> (Verdict, Reason, u16) {
    (o.verdict, o.reason, o.rule)
}

pub const NO_RULE: (Verdict, Reason, u16) = (Verdict::Denied, Reason::NoRule, 0);
pub const RULE: (Verdict, Reason, u16) = (Verdict::Allowed, Reason::Rule, 1);

/// As an application calls it.
pub fn call(to: &str, port: u16, flags: u8) -> Vec<u8> {
    let from = if to.contains('.') { "10.1.0.11" } else { "fd00:1::11" };
    frame(11, 10, from, to, 6, &tcp(4000, port, flags))
}

/// What the translation makes of it, as the databases' port sees it.
pub fn led(from: &str, port: u16, flags: u8) -> Vec<u8> {
    frame(20, 21, from, "10.2.0.21", 6, &tcp(port, 5432, flags))
}

pub fn marked(identity: Identity) -> At {
    At { mark: carried(identity), ..at(Hook::PortOut, 21, 10) }
}

pub fn answer(to: &str, port: u16, flags: u8) -> Vec<u8> {
    frame(21, 20, "10.2.0.21", to, 6, &tcp(5432, port, flags))
}
