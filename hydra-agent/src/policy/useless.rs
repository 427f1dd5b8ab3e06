//! Rules that never decide, because others always come first: warnings.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::decide::ruling;
use hydra_common::id::Identity;
use hydra_common::verdict::Reason;

use super::compile::{World, compile, group_numbers, select};
use super::file::Action;
use super::limit::Limit;
use super::model::{Model, Rule, Selector};
use super::ports::Ports;
use super::regions::regions;
use super::rows::{Class, Compiled, Numbers, Owner};
use super::tables::{PolicyTables, seconds};
use crate::diagnostic::Diagnostic;

/// Addresses tried for what the file does not say.
const TRIED: usize = 256;

/// Warns of every rule that decides nowhere.
pub fn rules(model: &Model, compiled: &Compiled, now: i64) -> Vec<Diagnostic> {
    let (world, whole) = imagined(model);
    let made =
        if world == World::default() { None } else { compile(model, &world, &mut Numbers::default()).ok() };
    let compiled = made.as_ref().unwrap_or(compiled);
    let deciding: BTreeSet<u16> = compiled.decisions.iter().map(|(d, _)| d.rule).collect();
    let has_block = |r: &Rule| r.from.iter().chain(&r.to).any(|s| matches!(s, Selector::Block(_)));
    let silent: Vec<(usize, &Rule)> = model
        .rules
        .iter()
        .enumerate()
        .filter(|(index, rule)| {
            !deciding.contains(&(*index as u16 + 1))
                && rule.expires.is_none_or(|end| end > now)
                && (whole || !has_block(rule))
        })
        .collect();
    let mut warnings = never_denying(model, compiled, &deciding, now);
    if silent.is_empty() {
        return warnings;
    }
    let mut first: BTreeMap<Content<'_>, usize> = BTreeMap::new();
    for (index, rule) in model.rules.iter().enumerate() {
        first.entry(content(rule)).or_insert(index);
    }
    let view = View::new(model, compiled, now);
    let twin = |index: usize, rule| first.get(&content(rule)).copied().filter(|f| *f < index);
    warnings.extend(silent.into_iter().map(|(index, rule)| view.warning(rule, twin(index, rule))));
    warnings
}

/// Rules whose limit denies nothing, because another allows whatever they do.
fn never_denying(model: &Model, compiled: &Compiled, deciding: &BTreeSet<u16>, now: i64) -> Vec<Diagnostic> {
    // Whether behind this decision a flow can be denied for a limit. What a decision leads to was written before it.
    let mut denies: Vec<bool> = Vec::with_capacity(compiled.decisions.len());
    let mut limiting = BTreeSet::new();
    for (row, _) in &compiled.decisions {
        let leads = |to: u32| denies.get(to as usize).copied().unwrap_or(false);
        let spent = row.limit != 0 && leads(row.spent);
        if spent {
            limiting.insert(row.rule);
        }
        denies.push(row.reason == Reason::Limit as u8 || spent || leads(row.next));
    }
    let rules = model.rules.iter().zip(1u16..);
    let idle = rules.filter(|(rule, number)| {
        rule.limit.is_some()
            && rule.expires.is_none_or(|end| end > now)
            && deciding.contains(number)
            && !limiting.contains(number)
    });
    idle.map(|(rule, _)| {
        Diagnostic::warning(format!(
            "the limit of rule `{}` denies nothing: other rules allow the same without one",
            rule.name
        ))
        .at(rule.place)
        .hint("take the limit away, or narrow the other rules")
    })
    .collect()
}

/// What a rule says, whatever its name and the order of its lists.
type Content<'r> =
    (BTreeSet<&'r Selector>, BTreeSet<&'r Selector>, &'r Ports, Action, Option<Limit>, Option<i64>);

fn content(rule: &Rule) -> Content<'_> {
    (rule.from.iter().collect(), rule.to.iter().collect(), &rule.ports, rule.action, rule.limit, rule.expires)
}

/// A world in which everybody whose addresses the file does not give has one in every block of the rules, so that a rule about
/// addresses is not called useless for want of them. `false`: not all of it.
fn imagined(model: &Model) -> (World, bool) {
    let mut world = World::default();
    let Ok(regions) = regions(model, &world) else { return (world, false) };
    let mut owners = vec![Owner::Unmanaged];
    for owner in model.owners() {
        let Some(tier) = model.tier(owner.tier()) else { continue };
        let given =
            tier.networks.iter().all(|n| model.networks.get(n).is_some_and(|n| !n.subnets.is_empty()));
        if tier.is_internal() && tier.subnets.is_empty() && !(given && tier.bridges.is_empty()) {
            owners.push(owner);
        }
    }
    let free = regions.rows.iter().filter(|(_, r)| r.owner == Owner::External && !r.blocks.is_empty());
    let all: Vec<_> =
        free.flat_map(|(net, _)| owners.iter().map(|o| (o.clone(), net.network()))).take(TRIED + 1).collect();
    let whole = all.len() <= TRIED;
    world.live.extend(all.into_iter().take(TRIED));
    (world, whole)
}

/// The compiled policy, opened once for all warnings.
struct View<'m> {
    model: &'m Model,
    compiled: &'m Compiled,
    tables: PolicyTables<'m>,
    identities: Vec<Identity>,
    classes: Vec<Class>,
    now: i64,
}

impl<'m> View<'m> {
    fn new(model: &'m Model, compiled: &'m Compiled, now: i64) -> Self {
        let (identities, classes) =
            compiled.identities.iter().map(|(n, (class, _))| (*n, class.clone())).unzip();
        Self { model, compiled, tables: PolicyTables::new(compiled), identities, classes, now }
    }

    fn warning(&self, rule: &Rule, twin: Option<usize>) -> Diagnostic {
        if let Some(first) = twin {
            let message = format!("rule `{}` says the same as `{}`", rule.name, self.model.rules[first].name);
            return Diagnostic::warning(message).at(rule.place).hint("take one of them away");
        }
        let names: Vec<String> = self.before(rule).iter().map(|n| format!("`{n}`")).collect();
        let who = if names.is_empty() { "others".to_owned() } else { names.join(", ") };
        let verb = if names.len() == 1 { "comes" } else { "come" };
        Diagnostic::warning(format!("rule `{}` never decides: {who} always {verb} first", rule.name))
            .at(rule.place)
            .hint("take it away, or narrow what comes before it")
    }

    /// The rules that decide where this one matches, a few of them.
    fn before(&self, rule: &Rule) -> BTreeSet<String> {
        let numbers = group_numbers(&self.compiled.blocks);
        let of = |selectors: &[Selector]| -> BTreeSet<usize> {
            selectors.iter().flat_map(|s| select(self.model, &self.classes, &numbers, s)).collect()
        };
        let (from, to) = (of(&rule.from), of(&rule.to));
        let pairs = from.iter().flat_map(|f| to.iter().map(move |t| (*f, *t))).take(64);
        let mut names = BTreeSet::new();
        for (from, to) in pairs {
            let (from, to) = (self.identities[from], self.identities[to]);
            for (selector, _) in rule.ports.ranges().iter().take(8) {
                let ruling = ruling(&self.tables, 1, from, to, *selector, seconds(self.now));
                names.extend(self.compiled.rule(ruling.rule).map(str::to_owned));
            }
        }
        names.into_iter().take(3).collect()
    }
}
