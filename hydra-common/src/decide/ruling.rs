//! What the tables say of a pair of identities: lines 3 to 7 of the precedence, as the compiler resolved them.

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
}

/// Lines 3 to 7 of the precedence for a pair of identities: what the compiler wrote. `selector` as in
/// [`crate::tables::selector`], `now_s` in seconds of the monotonic clock.
#[inline(never)]
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
