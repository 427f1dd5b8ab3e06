//! What somebody else's hand changed in the kernel: when it is said, how long, and when mending it is worth the next try.

use crate::published::NotEnforced;

/// Looks after which what could not be mended is tried again.
const AGAIN: u32 = 10;

/// See the module. What was found stays in the status until a look finds it right again, so that a repair of milliseconds is seen.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Of the last look, and what has been repaired since.
    found: Vec<NotEnforced>,
    /// What mending did not help.
    left: Vec<NotEnforced>,
    looks: u32,
    repairs: u64,
}

impl Damage {
    /// A look found this. Whether the status is another now, and whether it is to be mended.
    pub fn seen(&mut self, wrong: Vec<NotEnforced>) -> (bool, bool) {
        for entry in wrong.iter().filter(|w| !self.found.contains(w) && !self.left.contains(w)) {
            tracing::warn!(what = entry.what, why = entry.why, "the kernel does not hold what it should");
        }
        let before = self.not_enforced();
        self.looks = self.looks.wrapping_add(1);
        let mend = wrong.iter().any(|w| !self.left.contains(w))
            || (!wrong.is_empty() && self.looks.is_multiple_of(AGAIN));
        self.left.retain(|l| wrong.contains(l));
        self.found = wrong;
        (self.not_enforced() != before, mend)
    }

    /// This was wrong, and is right.
    pub fn repaired(&mut self, repaired: Vec<NotEnforced>) {
        for entry in repaired.into_iter().filter(|r| !self.left.contains(r)) {
            tracing::warn!(what = entry.what, why = entry.why, "somebody else's change is undone");
            self.repairs += 1;
            self.found.push(entry);
        }
    }

    /// What a look right after mending found.
    pub fn left(&mut self, wrong: Vec<NotEnforced>) {
        for entry in wrong.iter().filter(|w| !self.left.contains(w)) {
            tracing::error!(what = entry.what, why = entry.why, "this could not be put right");
        }
        self.left = wrong;
    }

    /// For the status.
    pub fn not_enforced(&self) -> Vec<NotEnforced> {
        let mut all: Vec<NotEnforced> = self.found.iter().chain(&self.left).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// How much was repaired since the agent started.
    pub fn repairs(&self) -> u64 {
        self.repairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(what: &str) -> Vec<NotEnforced> {
        vec![NotEnforced { what: what.to_owned(), why: "no program at port-in".to_owned() }]
    }

    #[test]
    fn a_repair_is_seen_until_the_next_look() {
        let mut damage = Damage::default();
        assert_eq!(damage.seen(Vec::new()), (false, false));
        assert_eq!(damage.seen(gone("a")), (true, true));
        damage.repaired(gone("a"));
        damage.left(Vec::new());
        assert_eq!((damage.not_enforced(), damage.repairs()), (gone("a"), 1));
        assert_eq!(damage.seen(Vec::new()), (true, false));
        assert_eq!(damage.not_enforced(), Vec::new());
    }

    #[test]
    fn what_mending_does_not_help_is_said_all_the_time_and_tried_now_and_then() {
        let mut damage = Damage::default();
        assert_eq!(damage.seen(gone("a")), (true, true));
        damage.left(gone("a"));
        let tries = (0..100).filter(|_| damage.seen(gone("a")).1).count();
        assert_eq!((tries, damage.not_enforced(), damage.repairs()), (10, gone("a"), 0));
        assert_eq!(damage.seen([gone("a"), gone("b")].concat()), (true, true), "something else");
        damage.repaired(gone("b"));
        damage.left(gone("a"));
        assert_eq!(damage.seen(Vec::new()), (true, false));
        assert_eq!((damage.not_enforced(), damage.repairs()), (Vec::new(), 1));
    }
}
