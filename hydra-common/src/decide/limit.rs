//! Flows that begin under a rule with a `limit`: which ones count, and what stands behind a limit that is used up. Taking from the
//! limit itself is the caller's: the tables are only read here.

use super::{Outcome, Parts, Ruling, Way, apply_mode};
use crate::flow::Path;
use crate::tables::MAX_CHAIN;
use crate::verdict::{Reason, Verdict};

/// Whether this packet begins a flow that a limit counts.
#[inline(always)]
pub fn counts(out: &Outcome) -> bool {
    matches!(out.verdict, Verdict::Allowed) && out.begins && out.limit != 0
}

/// Takes one flow from the limit that an outcome rests on, or, where that is used up, from that of the next rule that allows, until
/// one has room or none is left. `take` is asked with the limit's index.
///
/// `taken` says whether the flow has taken from a limit where it was sent: then that one counts it here too, and nothing is taken.
/// Where two limits have to hold and the second is used up, the first keeps what was taken.
#[inline(always)]
pub fn settle<T: Parts>(
    tables: &T,
    now_s: u32,
    out: &mut Outcome,
    taken: impl Fn(u32) -> bool,
    mut take: impl FnMut(u32) -> bool,
) {
    each(tables, now_s, out, |out| one(tables, now_s, out, &taken, &mut take));
}

/// [`settle`] for every limit that has to hold; `one` is [`one`], which the kernel's programs call as a function of its own.
#[inline(always)]
pub fn each<T: Parts>(tables: &T, now_s: u32, out: &mut Outcome, mut one: impl FnMut(&mut Outcome)) {
    // Twice: see [`super::published::strictest`].
    for _ in 0..2 {
        one(out);
        if out.also == 0 || !matches!(out.verdict, Verdict::Allowed) {
            return;
        }
        let said = tables.alive(out.bank(), out.also, now_s);
        out.ruled(&said);
        out.also = 0;
    }
}

/// [`settle`] for the one that the outcome rests on.
#[inline(always)]
pub fn one<T: Parts>(
    tables: &T,
    now_s: u32,
    out: &mut Outcome,
    taken: impl Fn(u32) -> bool,
    take: impl FnMut(u32) -> bool,
) {
    if !settled(tables, now_s, out, taken) {
        draw(tables, now_s, out, take);
    }
}

/// Looks for the rule that counted the flow where it was sent.
#[inline(always)]
fn settled<T: Parts>(tables: &T, now_s: u32, out: &mut Outcome, taken: impl Fn(u32) -> bool) -> bool {
    let Outcome { verdict, reason, rule, until, limit, spent, .. } = *out;
    let mut said = Ruling { verdict, reason, rule, until, limit, spent };
    for _ in 0..MAX_CHAIN {
        if said.limit == 0 {
            return false;
        }
        if taken(said.limit - 1) {
            out.ruled(&said);
            return true;
        }
        said = tables.alive(out.bank(), said.spent, now_s);
    }
    false
}

#[inline(always)]
fn draw<T: Parts>(tables: &T, now_s: u32, out: &mut Outcome, mut take: impl FnMut(u32) -> bool) {
    for _ in 0..MAX_CHAIN {
        if out.limit == 0 || take(out.limit - 1) {
            return;
        }
        spent(tables, now_s, out);
    }
    if out.limit != 0 {
        deny(out, Reason::BadTable);
    }
}

/// What an outcome is whose limit is used up.
#[inline(never)]
fn spent<T: Parts>(tables: &T, now_s: u32, out: &mut Outcome) {
    let said = tables.alive(out.bank(), out.spent, now_s);
    out.ruled(&said);
    if !matches!(said.verdict, Verdict::Allowed) {
        out.limit = 0;
        deny(out, said.reason);
    }
}

#[inline(always)]
fn deny(out: &mut Outcome, reason: Reason) {
    out.verdict = Verdict::Denied;
    out.reason = reason;
    // What is only audited goes as if hydra were not there.
    out.path = Path::Stack;
    out.way = Way::Judged;
    apply_mode(out);
}
