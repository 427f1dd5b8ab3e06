//! Flows that begin under a rule with a `limit`: which ones count, and what stands behind a limit that is used up. Taking from the
//! limit itself is the caller's: the tables are only read here.

use super::{At, Outcome, Parts, Step, Way, apply_mode};
use crate::flow::Path;
use crate::names::carrier;
use crate::tables::{LinkKind, MAX_CHAIN, Tables};
use crate::verdict::{Reason, Verdict};

/// Whether this packet begins a flow that a limit counts. What came with its sender's identity has been counted where it was sent,
/// if that was a port of a tier; this host's own processes and containers of other networks are counted where they arrive.
#[inline(always)]
pub fn counts<T: Tables>(tables: &T, at: &At, out: &Outcome) -> bool {
    let begins = matches!((out.verdict, out.step), (Verdict::Allowed, Step::Create)) && out.limit != 0;
    begins && !(carrier(at.mark).is_some() && sent_here(tables, at.ingress))
}

/// Whether a port of a tier, by itself or through its bridge, is where the packet came into the host.
#[inline(always)]
pub(super) fn sent_here<T: Tables>(tables: &T, ingress: u32) -> bool {
    let kind = tables.link(ingress).map_or(LinkKind::Unknown, |link| LinkKind::from_row(link.kind));
    matches!(kind, LinkKind::Port | LinkKind::Bridge)
}

/// Takes one flow from the limit that an outcome rests on, or, where that is used up, from that of the next rule that allows, until
/// one has room or none is left. `take` is asked with the limit's index.
#[inline(always)]
pub fn settle<T: Parts>(tables: &T, now_s: u32, out: &mut Outcome, mut take: impl FnMut(u32) -> bool) {
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
