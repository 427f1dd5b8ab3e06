//! The parts of the verdict function. In user space they are plain calls; in the kernel each is a global function, which the verifier
//! looks at once, for whatever its arguments may be, and not again at each call with all that led there (Linux 5.6, commit
//! 51c39bb1d5d1). So what goes in and out of one is scalars and pointers to whole structs.

use super::{At, Outcome, Ruling, part};
use crate::flow::Flow;
use crate::id::Identity;
use crate::packet::Packet;
use crate::tables::{Link, Tables};
use crate::verdict::Reason;

/// What each part is stands at the function that it is by default.
pub trait Parts: Tables + Sized {
    /// What a later piece belongs to.
    fn resolve(&self, packet: &mut Packet, at: &At, out: &mut Outcome) -> Result<bool, Reason> {
        part::resolve(self, packet, at, out)
    }

    /// An ICMP error.
    fn related(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<(), Reason> {
        part::related(self, packet, at, out, link)
    }

    /// Whether a flow that has not been heard of for a while has been silent for too long.
    fn ended(&self, flow: &Flow, protocol: u8, now: u64) -> bool {
        part::ended(flow, protocol, now)
    }

    /// Whether a denied call of an address of this host goes on.
    fn claimed(&self, packet: &Packet, at: &At, out: &mut Outcome) -> bool {
        part::claimed(self, packet, at, out)
    }

    /// Whether a tier that has processes on this host's own stack may be called.
    fn may_be_left(&self, bank: u32, source: Identity, selector: u32, now_s: u32) -> bool {
        part::may_be_left(self, bank, source, selector, now_s)
    }

    /// Whether the tables still allow the flow that an error is about.
    fn stands(&self, packet: &Packet, at: &At, out: &Outcome, flow: &Flow) -> bool {
        part::stands(self, packet, at, out, flow)
    }

    /// The named list.
    fn named(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<bool, Reason> {
        part::named(self, packet, at, out, link)
    }

    /// Who sends.
    fn source(&self, packet: &Packet, out: &mut Outcome, link: Option<&Link>) -> Result<(), Reason> {
        part::source(self, packet, out, link)
    }

    /// The commonest denial.
    fn denied(&self, packet: &Packet, at: &At, out: &mut Outcome, link: Option<&Link>) -> bool {
        part::denied(self, packet, at, out, link)
    }

    /// A packet that no entry answers for.
    fn first(
        &self,
        packet: &Packet,
        at: &At,
        out: &mut Outcome,
        link: Option<&Link>,
    ) -> Result<bool, Reason> {
        part::first(self, packet, at, out, link)
    }

    /// Lines 3 to 7.
    fn open(&self, packet: &Packet, at: &At, out: &mut Outcome, live: Option<&Flow>) {
        part::open(self, packet, at, out, live);
    }

    /// What the compiler wrote.
    fn ruling(
        &self,
        bank: u32,
        source: Identity,
        destination: Identity,
        selector: u32,
        now_s: u32,
    ) -> Ruling {
        part::ruling(self, bank, source, destination, selector, now_s)
    }

    /// The decision that a chain has come to.
    fn alive(&self, bank: u32, first: u32, now_s: u32) -> Ruling {
        part::alive(self, bank, first, now_s)
    }

    /// How an allowed packet goes on.
    fn way(&self, packet: &Packet, at: &At, out: &mut Outcome, link: Option<&Link>) -> Result<(), Reason> {
        part::way(self, packet, at, out, link)
    }
}
