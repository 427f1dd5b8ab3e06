//! Which rule wins: the one place where it is said, and the rows that carry the answer to the kernel.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::tables::{
    Cell, Decision, Interval, MAX_CHAIN, MAX_DECISIONS, MAX_INTERVALS, MAX_RULE_SETS, RuleSet,
};
use hydra_common::verdict::{Reason, Verdict};

use super::compile::CompileError;
use super::file::Action;
use super::model::{Model, Rule};
use super::ports::LAST;
use super::rows::Owner;

/// What lines 6 and 7 say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Otherwise {
    pub verdict: Verdict,
    pub reason: Reason,
}

/// One answer, until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    verdict: Verdict,
    reason: Reason,
    /// Index of the rule.
    rule: Option<usize>,
    until: Option<i64>,
}

/// The line of the precedence on which a rule of this action decides.
pub(super) fn line(action: Action) -> u8 {
    match action {
        Action::Deny => 3,
        Action::Allow => 4,
        Action::Audit => 5,
    }
}

/// **Which rule wins.**
///
/// 1. An address or interface that claims to be what it isn't, or a packet that can't be understood, is denied.
/// 2. Reply packets of an allowed flow pass.
/// 3. A matching `deny` rule denies.
/// 4. A matching `allow` rule allows. If every matching one has its `limit` used up, the flow is denied, reason `limit`.
/// 5. A matching `audit` rule passes and is recorded as what it would have been.
/// 6. Inside one declared tier: allowed. From `host` to anything: allowed. (Both can be switched in `defaults:`.)
/// 7. Everything else is denied; under `mode: audit` of either tier it passes and is recorded as a would-be drop.
///
/// Under `mode: audit` of the whole policy nothing is dropped, lines 1 and 3 included. Lines 1 and 2 and that mode need the packet:
/// `hydra_common::decide` has them. Here are lines 3 to 7: `matching` are the rules that match, in the order of their lines and within
/// a line of the file; the first decides, until it expires, and then the first of those that live longer. `otherwise` is what
/// [`without_rules`] says.
fn precedence<'r>(
    matching: impl Iterator<Item = (usize, &'r Rule)>,
    otherwise: Otherwise,
) -> Result<Vec<Step>, CompileError> {
    let mut steps: Vec<Step> = Vec::new();
    let mut alive_from = i64::MIN;
    for (index, rule) in matching {
        if rule.expires.is_some_and(|end| end <= alive_from) {
            continue;
        }
        let (verdict, reason) = match rule.action {
            Action::Deny => (Verdict::Denied, Reason::Rule),
            Action::Allow => (Verdict::Allowed, Reason::Rule),
            Action::Audit => (Verdict::Audited, otherwise.reason),
        };
        steps.push(Step { verdict, reason, rule: Some(index), until: rule.expires });
        match rule.expires {
            None => return Ok(steps),
            Some(end) => alive_from = end,
        }
        if steps.len() >= MAX_CHAIN as usize {
            return Err(CompileError::TooMany {
                what: "rules that expire one after the other on one port",
                have: steps.len() + 1,
                most: MAX_CHAIN as usize - 1,
            });
        }
    }
    steps.push(Step { verdict: otherwise.verdict, reason: otherwise.reason, rule: None, until: None });
    Ok(steps)
}

/// What all of several answers let pass: at every moment the strictest of them counts, of equal ones the first. Where that takes more
/// steps than the tables hold, what comes after is denied.
fn strictest(answers: &[Vec<Step>]) -> Vec<Step> {
    let rank = |step: &&Step| match step.verdict {
        Verdict::Denied => 0,
        Verdict::Audited => 1,
        Verdict::Allowed => 2,
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut from = i64::MIN;
    loop {
        let alive =
            |answer: &'_ Vec<Step>| answer.iter().find(|s| s.until.is_none_or(|end| end > from)).copied();
        let now: Vec<Step> = answers.iter().filter_map(alive).collect();
        let Some(step) = now.iter().min_by_key(rank) else { return steps };
        let until = now.iter().filter_map(|s| s.until).min();
        let last_one = steps.len() + 1 >= MAX_CHAIN as usize;
        match steps.last_mut() {
            Some(last) if Step { until: None, ..*last } == Step { until: None, ..*step } => {
                last.until = until;
            }
            Some(_) if last_one && until.is_some() => {
                let (verdict, reason) = (Verdict::Denied, Reason::NoRule);
                steps.push(Step { verdict, reason, rule: None, until: None });
                return steps;
            }
            Some(_) | None => steps.push(Step { until, ..*step }),
        }
        match until {
            Some(end) => from = end,
            None => return steps,
        }
    }
}

/// Lines 6 and 7 for a pair.
pub(super) fn without_rules(model: &Model, from: &Owner, to: &Owner) -> Otherwise {
    let said = |action: Action, reason: Reason| {
        let verdict = match action {
            Action::Allow => Verdict::Allowed,
            Action::Deny => Verdict::Denied,
            Action::Audit => Verdict::Audited,
        };
        Otherwise { verdict, reason }
    };
    let (source, destination) = (model.tier(from.tier()), model.tier(to.tier()));
    if source.is_some() && from.tier() == to.tier() {
        return said(model.defaults.intra_tier, Reason::IntraTier);
    }
    if *from == Owner::Host {
        return said(model.defaults.from_host, Reason::FromHost);
    }
    let softened = [source, destination].into_iter().flatten().any(|t| t.audit);
    said(if softened { Action::Audit } else { model.defaults.cross_tier }, Reason::NoRule)
}

/// What a cell is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'r> {
    /// The rules that match the pair on some port, ascending.
    pub rules: &'r [u32],
    /// What holds without them.
    pub otherwise: Otherwise,
}

/// Rule sets, intervals and decisions, each content once.
pub(super) struct Rows<'m> {
    model: &'m Model,
    pub rule_sets: Vec<RuleSet>,
    pub intervals: Vec<Interval>,
    pub decisions: Vec<(Decision, Option<i64>)>,
    decision_numbers: BTreeMap<DecisionKey, u32>,
    set_numbers: BTreeMap<Vec<(u32, u32)>, u32>,
}

/// A decision's content: verdict, reason, rule, end, next.
type DecisionKey = (u8, u8, u16, Option<i64>, u32);

impl<'m> Rows<'m> {
    pub fn new(model: &'m Model) -> Self {
        // Decision 0 is "denied, bad-table": an unwritten cell denies.
        let closed = Decision {
            verdict: Verdict::Denied as u8,
            reason: Reason::BadTable as u8,
            ..Decision::default()
        };
        Self {
            model,
            rule_sets: Vec::new(),
            intervals: Vec::new(),
            decisions: vec![(closed, None)],
            decision_numbers: BTreeMap::new(),
            set_numbers: BTreeMap::new(),
        }
    }

    /// The cell for a pair. Shared owners ask for several: what all of them let pass.
    pub fn cell(&mut self, asked: &[Asked<'_>]) -> Result<Cell, CompileError> {
        // In the order of the precedence.
        let orders: Vec<Vec<usize>> = asked
            .iter()
            .map(|one| {
                let mut order: Vec<usize> = one.rules.iter().map(|r| *r as usize).collect();
                order.sort_by_key(|r| (line(self.model.rules[*r].action), *r));
                order
            })
            .collect();
        // Where the set of matching rules changes: (selector, begins, which of `asked`, place in its order).
        let mut edges: Vec<(u32, bool, usize, usize)> = Vec::new();
        for (one, order) in orders.iter().enumerate() {
            for (place, rule) in order.iter().enumerate() {
                for (from, to) in self.model.rules[*rule].ports.ranges() {
                    edges.push((*from, true, one, place));
                    if *to < LAST {
                        edges.push((*to + 1, false, one, place));
                    }
                }
            }
        }
        edges.sort_unstable();
        let mut active: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); asked.len()];
        let mut found: Vec<(u32, u32)> = Vec::new();
        let mut next = 0;
        let mut from = 0;
        loop {
            while let Some((_, begins, one, place)) = edges.get(next).filter(|(at, ..)| *at <= from) {
                if *begins {
                    active[*one].insert(*place)
                } else {
                    active[*one].remove(place)
                };
                next += 1;
            }
            let rules = &self.model.rules;
            let answer = |((one, order), active): ((&Asked<'_>, &Vec<usize>), &BTreeSet<usize>)| {
                let matching = active.iter().map(|place| (order[*place], &rules[order[*place]]));
                precedence(matching, one.otherwise)
            };
            let answers =
                asked.iter().zip(&orders).zip(&active).map(answer).collect::<Result<Vec<_>, _>>()?;
            let decision = match answers.as_slice() {
                [answer] => self.decision(answer)?,
                several => self.decision(&strictest(several))?,
            };
            if found.last().is_none_or(|(_, last)| *last != decision) {
                found.push((from, decision));
            }
            match edges.get(next) {
                Some((at, ..)) => from = *at,
                None => break,
            }
        }
        match found.as_slice() {
            [(_, decision)] => Ok(Cell::decision(*decision)),
            _ => self.rule_set(found).map(Cell::rule_set),
        }
    }

    fn decision(&mut self, steps: &[Step]) -> Result<u32, CompileError> {
        let mut next = 0;
        for step in steps.iter().rev() {
            let rule = step.rule.map_or(0, |index| index as u16 + 1);
            let key = (step.verdict as u8, step.reason as u8, rule, step.until, next);
            let known = self.decision_numbers.get(&key).copied();
            next = known.unwrap_or_else(|| {
                let number = self.decisions.len() as u32;
                let row = Decision { next, rule, verdict: key.0, reason: key.1, ..Decision::default() };
                self.decisions.push((row, step.until));
                self.decision_numbers.insert(key, number);
                number
            });
        }
        within("decisions", self.decisions.len(), MAX_DECISIONS)?;
        Ok(next)
    }

    fn rule_set(&mut self, found: Vec<(u32, u32)>) -> Result<u32, CompileError> {
        if let Some(number) = self.set_numbers.get(&found) {
            return Ok(*number);
        }
        let number = self.rule_sets.len() as u32;
        self.rule_sets.push(RuleSet { start: self.intervals.len() as u32, count: found.len() as u32 });
        self.intervals
            .extend(found.iter().map(|(from, decision)| Interval { from: *from, decision: *decision }));
        self.set_numbers.insert(found, number);
        within("rule sets", self.rule_sets.len(), MAX_RULE_SETS)?;
        within("intervals", self.intervals.len(), MAX_INTERVALS)?;
        Ok(number)
    }
}

/// Whether the tables hold that many.
pub(super) fn within(what: &'static str, have: usize, most: u32) -> Result<(), CompileError> {
    let most = most as usize;
    if have > most { Err(CompileError::TooMany { what, have, most }) } else { Ok(()) }
}
