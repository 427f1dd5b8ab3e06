//! Which rule wins: the one place where it is said, and the rows that carry the answer to the kernel.

use hydra_common::tables::{
    Cell, Decision, Interval, Limit, MAX_CHAIN, MAX_DECISIONS, MAX_INTERVALS, MAX_RULE_SETS, RuleSet,
};
use hydra_common::verdict::{Reason, Verdict};

use super::QuickMap;
use super::bits::Bits;
use super::compile::CompileError;
use super::file::Action;
use super::model::{Model, Rule};
use super::ports::LAST;
use super::rows::Owner;
use super::taken::Again;

/// What lines 6 and 7 say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Otherwise {
    pub verdict: Verdict,
    pub reason: Reason,
}

/// One answer: until it ends, and for as many flows as it has a limit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    verdict: Verdict,
    reason: Reason,
    /// Index of the rule.
    rule: Option<usize>,
    until: Option<i64>,
    /// Whether the rule's limit counts.
    limited: bool,
    /// Number of the answer after the end.
    next: u32,
    /// Number of the answer when the limit is used up.
    spent: u32,
}

/// What has happened to the rules before.
#[derive(Clone, Copy, Debug)]
struct Past {
    /// Rules that have ended by then are not there.
    alive_from: i64,
    /// The first rule whose limit is used up: from then on only rules that allow are asked.
    spent: Option<usize>,
    /// Answers before this one.
    steps: u32,
}

impl Past {
    const NOTHING: Self = Self { alive_from: i64::MIN, spent: None, steps: 0 };
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
/// a line of the file; the first decides, until it expires, and then the first of those that live longer. Where its limit is used up
/// the next that allows decides; where none is left, the flow is denied under the name of the first. `otherwise` is what
/// [`without_rules`] says. `write` keeps an answer and gives its number; back comes that of the first.
fn precedence<'r, I: Iterator<Item = (usize, &'r Rule)> + Clone>(
    mut matching: I,
    past: Past,
    otherwise: Otherwise,
    write: &mut impl FnMut(Step) -> u32,
) -> Result<u32, CompileError> {
    let alive = |rule: &Rule| rule.expires.is_none_or(|end| end > past.alive_from);
    let asks = |rule: &Rule| past.spent.is_none() || rule.action == Action::Allow;
    let Some((index, rule)) = matching.find(|(_, rule)| alive(rule) && asks(rule)) else {
        let Otherwise { verdict, reason } = match past.spent {
            Some(_) => Otherwise { verdict: Verdict::Denied, reason: Reason::Limit },
            None => otherwise,
        };
        let rule = past.spent;
        return Ok(write(Step { verdict, reason, rule, until: None, limited: false, next: 0, spent: 0 }));
    };
    let steps = past.steps + 1;
    if (rule.expires.is_some() || rule.limit.is_some()) && steps >= MAX_CHAIN {
        return Err(CompileError::TooMany {
            what: "rules that expire or have a limit one after the other on one port",
            have: steps as usize,
            most: MAX_CHAIN as usize - 1,
        });
    }
    let (verdict, reason) = match rule.action {
        Action::Deny => (Verdict::Denied, Reason::Rule),
        Action::Allow => (Verdict::Allowed, Reason::Rule),
        Action::Audit => (Verdict::Audited, otherwise.reason),
    };
    let next = match rule.expires {
        Some(alive_from) => {
            precedence(matching.clone(), Past { alive_from, steps, ..past }, otherwise, write)?
        }
        None => 0,
    };
    let spent = match rule.limit {
        Some(_) => {
            let spent = past.spent.or(Some(index));
            precedence(matching, Past { spent, steps, ..past }, otherwise, write)?
        }
        None => 0,
    };
    let limited = rule.limit.is_some();
    Ok(write(Step { verdict, reason, rule: Some(index), until: rule.expires, limited, next, spent }))
}

/// What all of several answers let pass: at every moment the strictest of them counts, of equal ones the first; one with a limit is
/// stricter than one without, and of several limits the first one is taken from. Where that takes more steps than the tables hold, what comes
/// after is denied. `all` are the steps of all answers, `heads` their first ones; back comes the first step, which is not yet written.
fn strictest(
    all: &[Step],
    heads: &[u32],
    from: i64,
    steps: u32,
    write: &mut impl FnMut(Step) -> u32,
) -> Step {
    let step_of = |number: u32| all[number as usize];
    let rank = |step: Step| match step.verdict {
        Verdict::Denied => 0,
        Verdict::Audited => 1,
        Verdict::Allowed => 2 + u8::from(!step.limited),
    };
    let alive = |mut number: u32, from: i64| {
        while step_of(number).until.is_some_and(|end| end <= from) {
            number = step_of(number).next;
        }
        number
    };
    let at = |from: i64| -> Vec<u32> { heads.iter().map(|head| alive(*head, from)).collect() };
    let strict =
        |now: &[u32]| now.iter().map(|n| step_of(*n)).enumerate().min_by_key(|(_, step)| rank(*step));
    let end = |now: &[u32]| now.iter().filter_map(|n| step_of(*n).until).min();
    let denied = Step {
        verdict: Verdict::Denied,
        reason: Reason::NoRule,
        rule: None,
        until: None,
        limited: false,
        next: 0,
        spent: 0,
    };
    let now = at(from);
    let Some((place, step)) = strict(&now) else { return denied };
    let mut until = end(&now);
    // What says the same afterwards is one step.
    let says = |step: Step| (step.verdict, step.reason, step.rule, step.limited);
    while let Some(later) = until.filter(|_| !step.limited).map(at)
        && strict(&later).is_some_and(|(_, next)| says(next) == says(step))
    {
        until = end(&later);
    }
    let steps = steps + 1;
    if (until.is_some() || step.limited) && steps >= MAX_CHAIN {
        return denied;
    }
    let next = until.map_or(0, |end| {
        let next = strictest(all, &now, end, steps, write);
        write(next)
    });
    let spent = if step.limited {
        let mut others = now;
        others[place] = step.spent;
        let spent = strictest(all, &others, from, steps, write);
        write(spent)
    } else {
        0
    };
    Step { until, next, spent, ..step }
}

/// What lines 6 and 7 look at in one end.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Its place among the policy's tiers, if it is one's.
    tier: Option<usize>,
    /// `mode: audit` of that tier.
    audit: bool,
    /// This machine.
    host: bool,
}

impl End {
    /// Of an owner.
    pub fn of(model: &Model, owner: &Owner) -> Self {
        let tier = model.index.tiers.get(owner.tier()).copied();
        Self { tier, audit: tier.is_some_and(|n| model.tiers[n].audit), host: *owner == Owner::Host }
    }
}

/// Lines 6 and 7 for a pair.
pub(super) fn without_rules(model: &Model, from: End, to: End) -> Otherwise {
    let said = |action: Action, reason: Reason| {
        let verdict = match action {
            Action::Allow => Verdict::Allowed,
            Action::Deny => Verdict::Denied,
            Action::Audit => Verdict::Audited,
        };
        Otherwise { verdict, reason }
    };
    if from.tier.is_some() && from.tier == to.tier {
        return said(model.defaults.intra_tier, Reason::IntraTier);
    }
    if from.host {
        return said(model.defaults.from_host, Reason::FromHost);
    }
    let softened = from.audit || to.audit;
    said(if softened { Action::Audit } else { model.defaults.cross_tier }, Reason::NoRule)
}

/// What a cell is made of.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The rules that match the pair on some port, ascending.
    pub rules: Vec<usize>,
    /// What holds without them.
    pub otherwise: Otherwise,
}

/// Rule sets, intervals and decisions, each content once.
pub(super) struct Rows<'m> {
    model: &'m Model,
    /// By rule: its place among `limits`, counted from 1; 0 = none.
    limit_of: Vec<u32>,
    pub limits: Vec<Limit>,
    pub rule_sets: Vec<RuleSet>,
    pub intervals: Vec<Interval>,
    pub decisions: Vec<(Decision, Option<i64>)>,
    decision_numbers: QuickMap<DecisionKey, u32>,
    set_numbers: QuickMap<Vec<(u32, u32)>, u32>,
    /// What decides in the same way wherever it does: by what holds without rules and by the first rule, counted from 1 (0 = none), if
    /// that stays there for all flows; 0 = not known yet.
    lasting: Vec<(Otherwise, Vec<u32>)>,
}

/// A decision's content, and its end in Unix seconds.
type DecisionKey = (Decision, Option<i64>);

impl<'m> Rows<'m> {
    /// `limits` are those of the rules that have one, in the order of the file.
    pub fn new(model: &'m Model, limits: Vec<Limit>) -> Self {
        // Decision 0 is "denied, bad-table": an unwritten cell denies.
        let closed = Decision {
            verdict: Verdict::Denied as u8,
            reason: Reason::BadTable as u8,
            ..Decision::default()
        };
        let mut last = 0;
        let limit_of = |rule: &Rule| {
            last += u32::from(rule.limit.is_some());
            if rule.limit.is_some() { last } else { 0 }
        };
        Self {
            model,
            limit_of: model.rules.iter().map(limit_of).collect(),
            limits,
            rule_sets: Vec::new(),
            intervals: Vec::new(),
            decisions: vec![(closed, None)],
            decision_numbers: QuickMap::default(),
            set_numbers: QuickMap::default(),
            lasting: Vec::new(),
        }
    }

    /// The cell for a pair. Shared owners ask for several: what all of them let pass.
    pub fn cell(&mut self, mut asked: Vec<Asked>) -> Result<Cell, CompileError> {
        // In the order of the precedence.
        for one in &mut asked {
            one.rules.sort_by_key(|r| (line(self.model.rules[*r].action), *r));
        }
        // Where the set of matching rules changes: (selector, begins, which of `asked`, place in its order).
        let mut edges: Vec<(u32, bool, usize, usize)> = Vec::new();
        for (one, order) in asked.iter().enumerate() {
            for (place, rule) in order.rules.iter().enumerate() {
                for (from, to) in self.model.rules[*rule].ports.ranges() {
                    edges.push((*from, true, one, place));
                    if *to < LAST {
                        edges.push((*to + 1, false, one, place));
                    }
                }
            }
        }
        edges.sort_unstable();
        let mut active: Vec<Bits> = asked.iter().map(|one| Bits::new(one.rules.len())).collect();
        let mut found: Vec<(u32, u32)> = Vec::with_capacity(edges.len() + 1);
        let mut next = 0;
        let mut from = 0;
        loop {
            while let Some((_, begins, one, place)) = edges.get(next).filter(|(at, ..)| *at <= from) {
                if *begins {
                    active[*one].set(*place);
                } else {
                    active[*one].clear(*place);
                }
                next += 1;
            }
            let decision = self.decision(&asked, &active)?;
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

    /// Of the rules that are active among each of `asked`, by their places in its order.
    fn decision(&mut self, asked: &[Asked], active: &[Bits]) -> Result<u32, CompileError> {
        let [one] = asked else { return self.made(asked, active) };
        let head = active[0].iter().next().map(|place| one.rules[place]);
        let stays = |rule: usize| {
            let rule = &self.model.rules[rule];
            rule.expires.is_none() && rule.limit.is_none()
        };
        if !head.is_none_or(stays) {
            return self.made(asked, active);
        }
        let known = self.lasting.iter().position(|(otherwise, _)| *otherwise == one.otherwise);
        let known = known.unwrap_or_else(|| {
            self.lasting.push((one.otherwise, vec![0; self.model.rules.len() + 1]));
            self.lasting.len() - 1
        });
        let place = head.map_or(0, |rule| rule + 1);
        if self.lasting[known].1[place] == 0 {
            self.lasting[known].1[place] = self.made(asked, active)?;
        }
        Ok(self.lasting[known].1[place])
    }

    /// The same, made by the precedence.
    fn made(&mut self, asked: &[Asked], active: &[Bits]) -> Result<u32, CompileError> {
        let rules = &self.model.rules;
        let Self { decisions, decision_numbers, limit_of, .. } = self;
        let mut write = |step: Step| {
            let Step { verdict, reason, rule, until, limited, next, spent } = step;
            let limit = rule.filter(|_| limited).map_or(0, |index| limit_of[index]);
            let rule = rule.map_or(0, |index| index as u16 + 1);
            let (verdict, reason) = (verdict as u8, reason as u8);
            let row = (Decision { until: 0, next, limit, spent, rule, verdict, reason }, until);
            numbered(decisions, decision_numbers, row)
        };
        let matching = |n: usize| {
            let order = &asked[n].rules;
            active[n].iter().map(move |place| (order[place], &rules[order[place]]))
        };
        let first = if let [one] = asked {
            precedence(matching(0), Past::NOTHING, one.otherwise, &mut write)?
        } else {
            let mut all: Vec<Step> = Vec::new();
            let mut keep = |step: Step| {
                all.push(step);
                all.len() as u32 - 1
            };
            let heads = asked
                .iter()
                .enumerate()
                .map(|(n, one)| precedence(matching(n), Past::NOTHING, one.otherwise, &mut keep))
                .collect::<Result<Vec<u32>, _>>()?;
            let first = strictest(&all, &heads, i64::MIN, 0, &mut write);
            write(first)
        };
        within("decisions", self.decisions.len(), MAX_DECISIONS)?;
        Ok(first)
    }

    /// A cell of another compile. What is new gets its number in the same order as where it is made.
    pub fn take(&mut self, again: &mut Again<'_>, cell: Cell) -> Result<Cell, CompileError> {
        let (number, of_set) = cell.index();
        if !of_set {
            return self.take_decision(again, number).map(Cell::decision);
        }
        if let Some(taken) = again.rule_sets[number as usize] {
            return Ok(Cell::rule_set(taken));
        }
        let pieces = again.rule_set(number);
        let mut found = Vec::with_capacity(pieces.len());
        for (from, decision) in pieces {
            found.push((from, self.take_decision(again, decision)?));
        }
        let taken = self.rule_set(found)?;
        again.rule_sets[number as usize] = Some(taken);
        Ok(Cell::rule_set(taken))
    }

    /// Those that follow it come before it.
    fn take_decision(&mut self, again: &mut Again<'_>, number: u32) -> Result<u32, CompileError> {
        let known = again.decisions[number as usize];
        if known != 0 {
            return Ok(known);
        }
        let (mut row, until) = again.decision(number);
        if until.is_some() {
            row.next = self.take_decision(again, row.next)?;
        }
        if row.limit != 0 {
            row.spent = self.take_decision(again, row.spent)?;
        }
        let taken = numbered(&mut self.decisions, &mut self.decision_numbers, (row, until));
        again.decisions[number as usize] = taken;
        within("decisions", self.decisions.len(), MAX_DECISIONS)?;
        Ok(taken)
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

/// The number of a row.
fn numbered(rows: &mut Vec<DecisionKey>, numbers: &mut QuickMap<DecisionKey, u32>, row: DecisionKey) -> u32 {
    *numbers.entry(row).or_insert_with(|| {
        rows.push(row);
        rows.len() as u32 - 1
    })
}

/// Whether the tables hold that many.
pub(super) fn within(what: &'static str, have: usize, most: u32) -> Result<(), CompileError> {
    let most = most as usize;
    if have > most { Err(CompileError::TooMany { what, have, most }) } else { Ok(()) }
}
