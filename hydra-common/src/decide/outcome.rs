//! What [`super::decide`] says: the verdict, and what follows from it.

use super::ends::{Sender, tier};
use super::ruling::Ruling;
use crate::address::Mac;
use crate::flow::{Far, Path, Side};
use crate::id::{Container, Identity, Tier};
use crate::tables::{Tables, traffic_index};
use crate::verdict::{Reason, Verdict};

/// What to do to the flow table when the packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Nothing: the packet belongs to no flow.
    Nothing,
    /// Count it on the live entry.
    Count,
    /// Write the new decision into the entry, which is of an older generation, then count.
    Renew,
    /// Write a new entry.
    Create,
    /// Take the live entry away: nobody may use it any more. Comes with a denial.
    End,
}

/// How a packet that passes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Unmarked: a later hook judges.
    Leave,
    /// Through the stack, marked as judged.
    Judged,
    /// Through the stack, marked as checked: each receiver's hook judges.
    Checked,
    /// Through the stack, marked with the sender's identity: whoever this host sends it on to is judged where he receives it.
    Carried,
    /// The same, where only the process that receives it can be judged for: [`crate::names::MARK_LEFT`].
    Left,
    /// Straight into the destination's namespace, by [`Outcome::hop`].
    Peer,
}

/// The last hop of [`Way::Peer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Host-side veth of the destination.
    pub port: u32,
    /// The destination's MTU in bytes.
    pub mtu: u16,
    /// 1 if the packet crosses networks, and so loses one of its TTL.
    pub routed: u8,
    /// The destination's MAC.
    pub mac: Mac,
    /// The source MAC that it arrives with.
    pub gateway_mac: Mac,
}

/// The verdict on one packet, and what follows from it. Aligned, so that the kernel's target begins it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
#[allow(clippy::struct_excessive_bools, reason = "answers that have nothing to do with each other")]
pub struct Outcome {
    /// The verdict, the policy's mode applied.
    pub verdict: Verdict,
    /// Why; for an audited packet what enforcing would have said.
    pub reason: Reason,
    /// What to record.
    pub step: Step,
    /// Where it goes.
    pub way: Way,
    /// Who opened the flow, in the packet's key.
    pub opener: Side,
    /// The flow's path.
    pub path: Path,
    /// The rule that decided, counted from 1; 0 = none.
    pub rule: u16,
    /// See [`super::Ruling::until`].
    pub until: u32,
    /// See [`super::Ruling::limit`].
    pub limit: u32,
    /// See [`super::Ruling::spent`].
    pub spent: u32,
    /// A flow begins with this packet, or there is no entry that says that it has: a limit counts it.
    pub begins: bool,
    /// See [`crate::flow::Flow::taken`].
    pub taken: u16,
    /// The policy's revision.
    pub revision: u32,
    /// The tables' generation.
    pub generation: u32,
    /// Who opened the conversation.
    pub source: Identity,
    /// Who was called.
    pub destination: Identity,
    /// The container that sent this packet.
    pub source_container: Container,
    /// The container that receives it.
    pub destination_container: Container,
    /// Where [`Way::Peer`] leads.
    pub hop: Hop,
    /// Another hook has counted the packet, or will: a pass is not counted by tiers and reasons.
    pub elsewhere: bool,
    /// Of a new or live entry, as in [`crate::flow::Flow::marks`].
    pub marks: u8,
    /// [`crate::tables::Head::AUDIT`].
    pub audit: bool,
    /// The decision that has to hold as well, for its limit; 0 = none.
    pub(super) also: u32,
    /// The container's own port of a published one; only read with [`crate::flow::Flow::PUBLISHED`].
    pub(super) port: u16,
    /// What may answer from the called end of a new entry.
    pub(super) beyond: Far,
    pub(super) sender: Sender,
    /// A live flow has called the packet's source.
    pub(super) answers: bool,
    /// A packet from the middle of a connection makes an entry.
    pub(super) pickup: bool,
}

impl Outcome {
    /// Nothing is known yet: denied.
    pub const CLOSED: Self = Self {
        verdict: Verdict::Denied,
        reason: Reason::BadTable,
        step: Step::Nothing,
        way: Way::Judged,
        opener: Side::A,
        path: Path::Stack,
        rule: 0,
        until: 0,
        limit: 0,
        spent: 0,
        begins: false,
        taken: 0,
        revision: 0,
        generation: 0,
        source: Identity::UNKNOWN,
        destination: Identity::UNKNOWN,
        source_container: Container::NONE,
        destination_container: Container::NONE,
        hop: Hop { port: 0, mtu: 0, routed: 0, mac: Mac::ZERO, gateway_mac: Mac::ZERO },
        elsewhere: false,
        marks: 0,
        also: 0,
        port: 0,
        beyond: Far::Unset,
        sender: Sender::Outside,
        answers: false,
        pickup: false,
        audit: false,
    };

    /// Which of the two banks decided.
    #[inline(always)]
    pub const fn bank(&self) -> u32 {
        self.generation & 1
    }

    /// Whose counters count it: the opener's tier and the called one's.
    #[inline(always)]
    pub fn tiers<T: Tables>(&self, tables: &T) -> (Tier, Tier) {
        (tier(tables, self.bank(), self.source), tier(tables, self.bank(), self.destination))
    }

    /// The cell of the traffic counters.
    #[inline(always)]
    pub fn traffic<T: Tables>(&self, tables: &T) -> u32 {
        let (source, destination) = self.tiers(tables);
        traffic_index(source, destination, matches!(self.verdict, Verdict::Audited))
    }

    /// Who sent this packet, of the two that the flow is between. `side` is the packet's.
    #[inline(always)]
    pub const fn speaker(&self, side: Side) -> Identity {
        if self.opener as u8 == side as u8 { self.source } else { self.destination }
    }

    /// What sends this packet, for the entry that it counts on; unset where its container says so.
    #[inline(always)]
    pub fn near(&self) -> Far {
        if self.source_container.0 == 0 { self.sender.far() } else { Far::Unset }
    }

    /// Whether an uplink's hook leaves no trace of the packet, once limits have been asked.
    #[inline(always)]
    pub const fn unseen(&self) -> bool {
        let allowed = matches!(self.verdict, Verdict::Allowed) && self.elsewhere;
        allowed && matches!(self.way, Way::Leave) && matches!(self.step, Step::Nothing)
    }

    /// Lines 3 to 7 have decided.
    #[inline(always)]
    pub const fn ruled(&mut self, said: &Ruling) {
        let Ruling { verdict, reason, rule, until, limit, spent } = *said;
        self.verdict = verdict;
        self.reason = reason;
        self.rule = rule;
        self.until = until;
        self.limit = limit;
        self.spent = spent;
    }

    #[inline(always)]
    pub(super) fn not_judged(&mut self, way: Way) {
        self.verdict = Verdict::Allowed;
        self.reason = Reason::NotJudged;
        self.elsewhere = matches!(way, Way::Leave);
        self.way = way;
    }
}
