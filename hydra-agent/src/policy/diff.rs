//! What changes from one policy to another: lines for people, and the cells of the matrix whose verdict differs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use hydra_common::decide::{Ruling, ruling};
use hydra_common::id::Identity;
use hydra_common::tables::Cell;
use serde::Serialize;
use serde_json::Value;

use super::compile::{CompileError, World, compile};
use super::model::{Index, Model, Rule, Terms};
use super::ports;
use super::rfc3339;
use super::rows::{Compiled, Numbers, Owner};
use super::tables::{PolicyTables, seconds};
use crate::beside::both;

/// The difference between two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// What changed in the text's meaning: `+` came, `-` went, `~` changed.
    pub lines: Vec<String>,
    /// What changed in the matrix.
    pub cells: Vec<CellChange>,
}

/// A piece of the matrix whose verdict differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CellChange {
    /// Whose flows.
    pub from: String,
    /// To whom.
    pub to: String,
    /// On which ports, as a policy writes them.
    pub ports: String,
    /// The verdict before, with its rule or reason.
    pub before: String,
    /// The verdict after, with its rule or reason.
    pub after: String,
}

impl std::fmt::Display for CellChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} {}: {} -> {}", self.from, self.to, self.ports, self.before, self.after)
    }
}

impl Diff {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.cells.is_empty()
    }

    /// All of it, a line each.
    pub fn to_lines(&self) -> Vec<String> {
        self.lines.iter().cloned().chain(self.cells.iter().map(ToString::to_string)).collect()
    }
}

/// Compares. Without an old policy everything is new. The matrix is compared by names, as the policies' texts know them, at a moment
/// in Unix seconds.
pub fn diff(old: Option<&Model>, new: &Model, now: i64) -> Result<Diff, CompileError> {
    let mut lines = Vec::new();
    let Some(old) = old else {
        lines.push(format!("+ policy `{}`", new.name));
        lines.extend(new.tiers.iter().map(|t| format!("+ tier `{}`", t.name)));
        lines.extend(new.rules.iter().map(|r| format!("+ rule `{}`", r.name)));
        return Ok(Diff { lines, cells: Vec::new() });
    };
    let (before, after) = (json(&without_rules(old)), json(&without_rules(new)));
    for key in ["name", "audit", "multihome", "shared-stack", "defaults"] {
        changed("policy", key, &before[key], &after[key], &mut lines);
    }
    named("network", &of_map(&before["networks"]), &of_map(&after["networks"]), &mut lines);
    named("tier", &of_list(&before["tiers"], ""), &of_list(&after["tiers"], ""), &mut lines);
    let services = |v: &Value| -> BTreeMap<String, Value> {
        let tiers = v["tiers"].as_array().into_iter().flatten();
        tiers
            .flat_map(|t| of_list(&t["services"], &format!("{}/", t["name"].as_str().unwrap_or_default())))
            .collect()
    };
    named("service", &services(&before), &services(&after), &mut lines);
    let (gone, came) = changed_rules(old, new);
    named("rule", &of_list(&json(&gone), ""), &of_list(&json(&came), ""), &mut lines);
    let names = |m| -> HashSet<&str> { names_of(m).collect() };
    let (of_old, of_new) = (names(old), names(new));
    let kept =
        |m, other: &HashSet<&str>| -> Vec<&str> { names_of(m).filter(|n| other.contains(n)).collect() };
    if kept(old, &of_new) != kept(new, &of_old) {
        lines.push("~ rules are in another order".to_owned());
    }
    Ok(Diff { lines, cells: cells(old, new, now)? })
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// What is compared but for the rules, of which there can be very many.
fn without_rules(model: &Model) -> Model {
    let Model {
        name,
        audit,
        multihome,
        shared_stack,
        defaults,
        networks,
        tiers,
        rules: _,
        expect: _,
        index: _,
    } = model;
    Model {
        name: name.clone(),
        audit: *audit,
        multihome: *multihome,
        shared_stack: *shared_stack,
        defaults: *defaults,
        networks: networks.clone(),
        tiers: tiers.clone(),
        rules: Vec::new(),
        expect: Vec::new(),
        index: Index::default(),
    }
}

fn names_of(model: &Model) -> impl Iterator<Item = &str> {
    model.rules.iter().map(|rule| rule.name.as_str())
}

/// The rules of each policy that the other one has not, or has otherwise.
fn changed_rules<'m>(old: &'m Model, new: &'m Model) -> (Vec<&'m Rule>, Vec<&'m Rule>) {
    let by_name =
        |m: &'m Model| -> HashMap<&str, &Rule> { m.rules.iter().map(|r| (r.name.as_str(), r)).collect() };
    let (of_old, of_new) = (by_name(old), by_name(new));
    let without = |m: &'m Model, other: &HashMap<&str, &Rule>| -> Vec<&'m Rule> {
        m.rules.iter().filter(|r| other.get(r.name.as_str()).is_none_or(|o| said(o) != said(r))).collect()
    };
    (without(old, &of_new), without(new, &of_old))
}

/// What a policy's text says of a rule under its name.
fn said(rule: &Rule) -> impl PartialEq + '_ {
    let Terms { name: _, from, to, ports: _, port_texts, action, limit, expires } = &**rule;
    (from, to, port_texts, *action, *limit, *expires)
}

fn of_map(value: &Value) -> BTreeMap<String, Value> {
    value.as_object().map(|m| m.iter().map(|(k, v)| (k.clone(), v.clone())).collect()).unwrap_or_default()
}

/// Objects by their `name`; what is compared on its own is left out.
fn of_list(value: &Value, prefix: &str) -> BTreeMap<String, Value> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| {
            let mut item = item.clone();
            let name = format!("{prefix}{}", item["name"].as_str().unwrap_or_default());
            if let Some(map) = item.as_object_mut() {
                map.remove("name");
                map.remove("services");
            }
            (name, item)
        })
        .collect()
}

fn named(what: &str, old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>, lines: &mut Vec<String>) {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        match (old.get(name), new.get(name)) {
            (None, _) => lines.push(format!("+ {what} `{name}`")),
            (_, None) => lines.push(format!("- {what} `{name}`")),
            (Some(a), Some(b)) => {
                let keys: BTreeSet<&String> =
                    [a, b].iter().filter_map(|v| v.as_object()).flat_map(|m| m.keys()).collect();
                for key in keys {
                    changed(&format!("{what} `{name}`"), key, &a[key], &b[key], lines);
                }
            }
        }
    }
}

fn changed(whose: &str, key: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if old != new {
        let (old, new) = (written(whose, key, old), written(whose, key, new));
        let key = if key == "audit" { "mode" } else { key };
        lines.push(format!("~ {whose}: {key}: {old} -> {new}"));
    }
}

/// A value as a policy file writes it.
fn written(whose: &str, key: &str, value: &Value) -> String {
    match (key, value) {
        ("audit", Value::Bool(audit)) => if *audit { "audit" } else { "enforce" }.to_owned(),
        ("expires", Value::Number(n)) => n.as_i64().map_or_else(|| n.to_string(), rfc3339),
        ("ports", Value::Array(list)) if list.is_empty() && whose.starts_with("rule") => {
            "everything".to_owned()
        }
        _ => shown(value),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", shown(v))).collect::<Vec<_>>().join(", ")
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn cells(old: &Model, new: &Model, now: i64) -> Result<Vec<CellChange>, CompileError> {
    let (a, b) = both("hydra-diff", || offline(old), || offline(new));
    let (a, b) = (a?, b?);
    let (before, after) = (PolicyTables::new(&a), PolicyTables::new(&b));
    let common: Vec<Owner> = new.owners().into_iter().filter(|o| a.names.contains_key(o)).collect();
    let numbers = |compiled: &Compiled| -> Vec<Identity> {
        common.iter().map(|o| compiled.identity(o, None).unwrap_or_default()).collect()
    };
    let (of_a, of_b) = (numbers(&a), numbers(&b));
    let mut pairs = BTreeMap::new();
    for (i, (from_a, from_b)) in of_a.iter().zip(&of_b).enumerate() {
        for (j, (to_a, to_b)) in of_a.iter().zip(&of_b).enumerate() {
            let mut ranges: Vec<(u32, u32, Turn)> = Vec::new();
            let edges = edges(&a, *from_a, *to_a).into_iter().chain(edges(&b, *from_b, *to_b));
            let edges: BTreeSet<u32> = edges.collect();
            let ends = edges.iter().skip(1).map(|e| e - 1).chain([ports::LAST]);
            for (first, last) in edges.iter().copied().zip(ends) {
                let was = ruling(&before, 1, *from_a, *to_a, first, seconds(now));
                let is = ruling(&after, 1, *from_b, *to_b, first, seconds(now));
                if was.verdict == is.verdict {
                    continue;
                }
                let text = |compiled: &Compiled, ruling: Ruling| {
                    let why = compiled.rule(ruling.rule).unwrap_or(ruling.reason.as_str());
                    format!("{} ({why})", ruling.verdict.as_str())
                };
                let turn = Turn { ports: String::new(), before: text(&a, was), after: text(&b, is) };
                ranges.push((first, last, turn));
            }
            if !ranges.is_empty() {
                pairs.insert((i, j), merged(ranges));
            }
        }
    }
    Ok(folded(&common, &pairs))
}

/// What changes between two owners.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turn {
    ports: String,
    before: String,
    after: String,
}

/// Rows of single pairs; a tier stands for itself with all of its services where these agree.
fn folded(owners: &[Owner], pairs: &BTreeMap<(usize, usize), Vec<Turn>>) -> Vec<CellChange> {
    let tiers: Vec<Vec<usize>> = owners
        .chunk_by(|a, b| a.tier() == b.tier())
        .scan(0, |first, tier| Some((std::mem::replace(first, *first + tier.len())..*first).collect()))
        .collect();
    // First the called ends of every opener, then the openers of what came of it.
    let mut by_called: BTreeMap<End, BTreeMap<usize, Vec<Turn>>> = BTreeMap::new();
    for from in 0..owners.len() {
        let of = |to: usize| pairs.get(&(from, to));
        for (to, turns) in tiers.iter().flat_map(|tier| together(tier, of)) {
            by_called.entry(to).or_default().insert(from, turns.clone());
        }
    }
    let mut rows = BTreeMap::new();
    for (to, openers) in &by_called {
        for (from, turns) in tiers.iter().flat_map(|tier| together(tier, |from| openers.get(&from))) {
            rows.insert((from, *to), turns);
        }
    }
    let text = |end: End| {
        let owner = &owners[end.owner];
        let rest = if matches!(owner, Owner::Tier(_)) && !end.whole { " without a service" } else { "" };
        format!("{owner}{rest}")
    };
    let row = |((from, to), turns): ((End, End), &Vec<Turn>)| -> Vec<CellChange> {
        let change = |t: &Turn| {
            let Turn { ports, before, after } = t.clone();
            CellChange { from: text(from), to: text(to), ports, before, after }
        };
        turns.iter().map(change).collect()
    };
    rows.into_iter().flat_map(row).collect()
}

/// One end of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    owner: usize,
    /// It is a tier, and stands for its services too.
    whole: bool,
}

/// A tier's owners as one, where all of them change alike, else those that change.
fn together<'t>(tier: &[usize], of: impl Fn(usize) -> Option<&'t Vec<Turn>>) -> Vec<(End, &'t Vec<Turn>)> {
    let first = tier.first().copied().unwrap_or_default();
    match of(first) {
        Some(turns) if tier.iter().all(|i| of(*i) == Some(turns)) => {
            vec![(End { owner: first, whole: true }, turns)]
        }
        _ => tier.iter().filter_map(|i| Some((End { owner: *i, whole: false }, of(*i)?))).collect(),
    }
}

fn offline(model: &Model) -> Result<Compiled, CompileError> {
    compile(model, &World::default(), &mut Numbers::default())
}

/// Where the answer of a cell may change.
fn edges(compiled: &Compiled, from: Identity, to: Identity) -> Vec<u32> {
    let (index, is_set) = compiled.cells.get(&(from, to)).copied().map_or((0, false), Cell::index);
    if !is_set {
        return vec![0];
    }
    let set = compiled.rule_sets.get(index as usize).copied().unwrap_or_default();
    let intervals = compiled.intervals.iter().skip(set.start as usize).take(set.count as usize);
    intervals.map(|i| i.from).collect()
}

/// Ranges of one pair with the same change are one row.
fn merged(ranges: Vec<(u32, u32, Turn)>) -> Vec<Turn> {
    let mut rows: Vec<(Vec<(u32, u32)>, Turn)> = Vec::new();
    for (first, last, turn) in ranges {
        match rows.iter_mut().find(|(_, row)| *row == turn) {
            Some((list, _)) => list.push((first, last)),
            None => rows.push((vec![(first, last)], turn)),
        }
    }
    rows.into_iter().map(|(list, turn)| Turn { ports: ports::Ports::of(list).to_string(), ..turn }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    const BEFORE: &str = "
version: 1
tiers:
  apps: { networks: [a], services: { web: { containers: [web] }, api: { containers: [api] } } }
  databases: { networks: [d], services: { postgres: { containers: [pg] } } }
  legacy: { networks: [l], mode: audit }
rules:
  - { name: sql, from: apps, to: databases, ports: tcp/5432 }
  - { name: debug, from: apps/web, to: legacy, expires: 2036-12-01T00:00:00Z }
";

    fn said(before: &str, after: &str) -> String {
        let model = |text: &str| parse(text, "p.yaml").unwrap().0;
        diff(Some(&model(before)), &model(after), 1_800_000_000).unwrap().to_lines().join("\n")
    }

    #[test]
    fn values_are_written_as_in_a_file() {
        let after = BEFORE
            .replace("version: 1", "version: 1\nmode: audit")
            .replace(", mode: audit }", " }")
            .replace(", expires: 2036-12-01T00:00:00Z", ", ports: tcp/80")
            .replace(", ports: tcp/5432", ", limit: 60/min, expires: 2036-11-01T00:00:00Z");
        insta::assert_snapshot!(said(BEFORE, &after), @r"
        ~ policy: mode: enforce -> audit
        ~ tier `legacy`: mode: audit -> enforce
        ~ rule `debug`: expires: 2036-12-01T00:00:00Z -> none
        ~ rule `debug`: ports: everything -> tcp/80
        ~ rule `sql`: expires: none -> 2036-11-01T00:00:00Z
        ~ rule `sql`: limit: none -> 60/min
        ~ rule `sql`: ports: tcp/5432 -> everything
        external -> legacy everything: audited (no-rule) -> denied (no-rule)
        unmanaged -> legacy everything: audited (no-rule) -> denied (no-rule)
        apps without a service -> legacy everything: audited (no-rule) -> denied (no-rule)
        apps -> databases proto/0-5, tcp/0-5431, tcp/5433-65535, proto/7-255: denied (no-rule) -> allowed (sql)
        apps/web -> legacy proto/0-5, tcp/0-79, tcp/81-65535, proto/7-255: allowed (debug) -> denied (no-rule)
        apps/api -> legacy everything: audited (no-rule) -> denied (no-rule)
        databases -> legacy everything: audited (no-rule) -> denied (no-rule)
        legacy -> external everything: audited (no-rule) -> denied (no-rule)
        legacy -> host everything: audited (no-rule) -> denied (no-rule)
        legacy -> unmanaged everything: audited (no-rule) -> denied (no-rule)
        legacy -> apps everything: audited (no-rule) -> denied (no-rule)
        legacy -> databases everything: audited (no-rule) -> denied (no-rule)
        ");
    }

    #[test]
    fn a_tier_stands_for_its_services_where_all_of_them_change_alike() {
        let whole = BEFORE.replace("tcp/5432", "tcp/5433");
        insta::assert_snapshot!(said(BEFORE, &whole), @r"
        ~ rule `sql`: ports: tcp/5432 -> tcp/5433
        apps -> databases tcp/5432: allowed (sql) -> denied (no-rule)
        apps -> databases tcp/5433: denied (no-rule) -> allowed (sql)
        ");
        let one = BEFORE.replace("to: databases,", "to: databases/postgres,");
        insta::assert_snapshot!(said(BEFORE, &one), @r"
        ~ rule `sql`: to: databases -> databases/postgres
        apps -> databases without a service tcp/5432: allowed (sql) -> denied (no-rule)
        ");
        let opener = BEFORE.replace("from: apps,", "from: apps/api,");
        insta::assert_snapshot!(said(BEFORE, &opener), @r"
        ~ rule `sql`: from: apps -> apps/api
        apps without a service -> databases tcp/5432: allowed (sql) -> denied (no-rule)
        apps/web -> databases tcp/5432: allowed (sql) -> denied (no-rule)
        ");
    }
}
