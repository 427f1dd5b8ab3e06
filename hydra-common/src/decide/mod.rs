//! The one verdict function. Pure: tables, a packet, a hook and the time in, an [`Outcome`] out; nothing is written to a table.
//!
//! The precedence of the policy language is resolved by the compiler (`policy::compile`, where the numbered list stands above the
//! function that implements it); [`ruling`] looks its answer up. Lines 1 and 2, which need a packet, are in `enter`.
//!
//! In the kernel every function that is not inlined is one of the object's own, and an [`Outcome`] lives in a map: what went through
//! memory is one state to the verifier, where registers would be many.

pub mod ends;
mod enter;
pub mod fragment;
pub mod lan;
mod limit;
mod open;
mod outcome;
pub mod own;
mod parts;
mod published;
mod related;
mod ruling;
pub mod socket;
mod way;

pub use limit::{counts, each, one, settle};
pub use open::{entry, opens};
pub use outcome::{Hop, Outcome, Step, Way};
pub use parts::Parts;
pub use ruling::{Ruling, ruling};

/// What [`Parts`] are by default.
pub mod part {
    pub use super::ends::{named, source};
    pub use super::enter::{denied, first};
    pub use super::fragment::resolve;
    pub use super::open::open;
    pub use super::own::{claimed, may_be_left};
    pub use super::related::{related, stands};
    pub use super::ruling::{alive, ruling};
    pub use super::way::way;
    pub use crate::track::ended;
}

use self::enter::{enter, established, expired};
use self::published::Business;
use crate::id::Identity;
use crate::packet::Packet;
use crate::tables::{Head, IdentityRow, Moment, Tables};
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

#[inline(always)]
fn declared<T: Tables>(tables: &T, bank: u32, identity: Identity) -> bool {
    tables.identity(bank, identity).is_some_and(|row| row.flags & IdentityRow::DECLARED != 0)
}
