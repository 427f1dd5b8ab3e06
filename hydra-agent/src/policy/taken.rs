//! What a compile takes over from the one before: cells that no changed rule has to do with. The rows are those that come without it.

use hydra_common::id::Identity;
use hydra_common::tables::{Cell, Decision};

use super::bits::Bits;
use super::compile::{group_numbers, select};
use super::model::{Model, Rule};
use super::rows::{Block, Class, Compiled};

/// Policies that differ in more rules are compiled as if nothing was before.
const MOST_RULES: usize = 64;

/// By class: the rules that name it as source, and those that name it as destination.
pub(super) type Named = (Vec<Bits>, Vec<Bits>);

/// How rows came about.
#[derive(Clone, Debug)]
pub(crate) struct Basis {
    pub(super) classes: Vec<Class>,
    /// By class.
    pub(super) identities: Vec<Identity>,
    pub(super) named: Named,
}

/// Rows, and how they came about.
pub(crate) type Made = (Compiled, Basis);

/// A policy that was compiled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last<'l> {
    pub model: &'l Model,
    pub compiled: &'l Compiled,
    pub basis: &'l Basis,
}

/// What is taken over, under new numbers.
pub(super) struct Again<'l> {
    last: Last<'l>,
    rules: usize,
    /// Where the rules that differ begin in both policies, and where they end in each.
    first: usize,
    end: usize,
    new_end: usize,
    /// Which classes these name, by index of the policy's rule.
    come: Vec<(Vec<usize>, Vec<usize>)>,
    /// By source: the destinations that one of them has to do with.
    touched: Vec<Bits>,
    /// By old number; 0: none yet.
    pub decisions: Vec<u32>,
    /// By old number.
    pub rule_sets: Vec<Option<u32>>,
}

impl<'l> Again<'l> {
    /// If cells depend on nothing but on rules that are the same: `named` are the classes that rules name, of all `classes`.
    pub fn new(
        last: Last<'l>,
        model: &Model,
        (classes, identities): (&[Class], &[Identity]),
        named: &[Class],
        groups: &[Vec<Block>],
    ) -> Option<Self> {
        let Last { model: old, compiled, basis } = last;
        let like = old.defaults == model.defaults
            && old.tiers == model.tiers
            && basis.classes == classes
            && basis.identities == identities
            && compiled.blocks == groups;
        if !like {
            return None;
        }
        let same = |(a, b): &(&Rule, &Rule)| a.terms == b.terms;
        let first = old.rules.iter().zip(&model.rules).take_while(same).count();
        let rest = old.rules[first..].iter().rev().zip(model.rules[first..].iter().rev());
        let behind = rest.take_while(same).count();
        let (end, new_end) = (old.rules.len() - behind, model.rules.len() - behind);
        let (gone, come) = (&old.rules[first..end], &model.rules[first..new_end]);
        // The limits of the others have the same numbers.
        let limited = gone.iter().chain(come).any(|rule| rule.limit.is_some());
        if limited || gone.len() + come.len() > MOST_RULES {
            return None;
        }
        let numbers = group_numbers(groups);
        let ends = |rule: &Rule| {
            let of = |selectors: &[_]| {
                selectors.iter().flat_map(|s| select(model, named, &numbers, s)).collect::<Vec<usize>>()
            };
            (of(&rule.from), of(&rule.to))
        };
        let come: Vec<_> = come.iter().map(ends).collect();
        let mut touched = vec![Bits::new(named.len()); named.len()];
        for (sources, destinations) in gone.iter().map(ends).chain(come.iter().cloned()) {
            for source in sources {
                for destination in &destinations {
                    touched[source].set(*destination);
                }
            }
        }
        Some(Self {
            last,
            rules: model.rules.len(),
            first,
            end,
            new_end,
            come,
            touched,
            decisions: vec![0; compiled.decisions.len()],
            rule_sets: vec![None; compiled.rule_sets.len()],
        })
    }

    /// See [`Named`].
    pub fn named(&self) -> Named {
        let (from, to) = &self.last.basis.named;
        let kept = |bits: &Bits| {
            let mut new = Bits::new(self.rules);
            bits.iter().filter_map(|rule| self.place(rule)).for_each(|rule| new.set(rule));
            new
        };
        let (mut from, mut to): Named = (from.iter().map(kept).collect(), to.iter().map(kept).collect());
        for (rule, (sources, destinations)) in (self.first..).zip(&self.come) {
            for (classes, named) in [(sources, &mut from), (destinations, &mut to)] {
                for class in classes {
                    named[*class].set(rule);
                }
            }
        }
        (from, to)
    }

    /// Where a rule stands now; none for one that differs.
    fn place(&self, rule: usize) -> Option<usize> {
        if rule < self.first {
            Some(rule)
        } else {
            (rule >= self.end).then(|| rule - self.end + self.new_end)
        }
    }

    /// The old cell of a pair whose parts no rule that differs has to do with.
    pub fn cell(
        &self,
        pair: (Identity, Identity),
        (sources, destinations): (&[usize], &[usize]),
    ) -> Option<Cell> {
        let touched = |source: &usize| destinations.iter().any(|d| self.touched[*source].has(*d));
        if sources.iter().any(touched) { None } else { self.last.compiled.cells.get(&pair).copied() }
    }

    /// What an old rule set is made of: where each piece begins, and its old decision.
    pub fn rule_set(&self, number: u32) -> impl ExactSizeIterator<Item = (u32, u32)> + use<'l> {
        let set = self.last.compiled.rule_sets[number as usize];
        let intervals = &self.last.compiled.intervals[set.start as usize..][..set.count as usize];
        intervals.iter().map(|interval| (interval.from, interval.decision))
    }

    /// An old decision with its rule's new number, but the old ones of those that follow it.
    pub fn decision(&self, number: u32) -> (Decision, Option<i64>) {
        let (row, until) = self.last.compiled.decisions[number as usize];
        let place = usize::from(row.rule).checked_sub(1).and_then(|rule| self.place(rule));
        (Decision { rule: place.map_or(0, |rule| rule as u16 + 1), ..row }, until)
    }
}
