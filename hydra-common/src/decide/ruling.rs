//! What the tables say of a pair of identities: lines 3 to 7 of the precedence, as the compiler resolved them.

use super::Parts;
use crate::id::Identity;
use crate::tables::{Decision, MAX_CHAIN, SEARCH_STEPS, Tables};
use crate::verdict::{Reason, Verdict};

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
    /// The limit that new flows take from: its index, counted from 1; 0 = none.
    pub limit: u32,
    /// The decision for a new flow that finds the limit used up. Only meant when `limit` is not 0.
    pub spent: u32,
}

impl Ruling {
    /// What a decision says.
    #[inline(always)]
    pub const fn of(decision: &Decision) -> Self {
        Self {
            verdict: Verdict::from_row(decision.verdict),
            reason: Reason::from_row(decision.reason),
            rule: decision.rule,
            until: decision.until,
            limit: decision.limit,
            spent: decision.spent,
        }
    }

    /// What cannot be followed to an end.
    pub const CLOSED: Self =
        Self { verdict: Verdict::Denied, reason: Reason::BadTable, rule: 0, until: 0, limit: 0, spent: 0 };
}

/// Lines 3 to 7 of the precedence for a pair of identities: what the compiler wrote, no limit used up. `selector` as in
/// [`crate::tables::selector`], `now_s` in seconds of the monotonic clock.
#[inline(always)]
pub fn ruling<T: Parts>(
    tables: &T,
    bank: u32,
    source: Identity,
    destination: Identity,
    selector: u32,
    now_s: u32,
) -> Ruling {
    let (index, decision) = standing(tables, bank, source, destination, selector);
    match decision {
        Some(decision) => Ruling::of(decision),
        None => tables.alive(bank, index, now_s),
    }
}

/// The first decision for a pair, and what it says where that does not end.
#[inline(always)]
pub(super) fn standing<T: Tables>(
    tables: &T,
    bank: u32,
    source: Identity,
    destination: Identity,
    selector: u32,
) -> (u32, Option<&Decision>) {
    let index = first(tables, bank, source, destination, selector);
    match tables.decision(bank, index) {
        Some(decision) if decision.until == 0 => (index, Some(decision)),
        Some(_) | None => (index, None),
    }
}

/// Decision 0 is "denied, bad-table", in a bank that was not written too.
const CLOSED: u32 = 0;

/// The index of the first decision for a pair.
#[inline(always)]
pub(super) fn first<T: Tables>(
    tables: &T,
    bank: u32,
    source: Identity,
    destination: Identity,
    selector: u32,
) -> u32 {
    let Some(cell) = tables.cell(bank, source, destination) else { return CLOSED };
    let (index, is_set) = cell.index();
    if is_set { search(tables, bank, index, selector) } else { index }
}

/// The index of the first decision that a rule set has. Inlined: to a denial a call is a tenth of what it takes.
#[inline(always)]
fn search<T: Tables>(tables: &T, bank: u32, index: u32, selector: u32) -> u32 {
    let Some(set) = tables.rule_set(bank, index) else { return CLOSED };
    // The last interval that begins at or before the selector; the first begins at 0.
    let (mut low, mut count) = (set.start, set.count);
    for _ in 0..SEARCH_STEPS {
        if count <= 1 {
            break;
        }
        let half = count / 2;
        let Some(middle) = tables.interval(bank, low.wrapping_add(half)) else { return CLOSED };
        if middle.from <= selector {
            low = low.wrapping_add(half);
            count -= half;
        } else {
            count = half;
        }
    }
    let Some(found) = tables.interval(bank, low) else { return CLOSED };
    if count != 1 || found.from > selector { CLOSED } else { found.decision }
}

/// The decision that a chain has come to at a moment; closed where it cannot be followed to an end.
#[inline(always)]
pub fn alive<T: Tables>(tables: &T, bank: u32, first: u32, now_s: u32) -> Ruling {
    let mut index = first;
    for _ in 0..MAX_CHAIN {
        let Some(decision) = tables.decision(bank, index) else { break };
        if decision.until == 0 || now_s < decision.until {
            return Ruling::of(decision);
        }
        index = decision.next;
    }
    Ruling::CLOSED
}
