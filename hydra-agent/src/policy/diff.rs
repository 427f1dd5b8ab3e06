//! What changes from one policy to another: lines for people, and the cells of the matrix whose verdict differs.

use std::collections::{BTreeMap, BTreeSet};

use hydra_common::decide::ruling;
use hydra_common::tables::Cell;
use serde::Serialize;
use serde_json::Value;

use super::compile::{CompileError, World, compile};
use super::model::Model;
use super::ports;
use super::rows::{Compiled, Numbers, Owner};
use super::tables::{PolicyTables, seconds};

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
    let (before, after) = (json(old), json(new));
    for key in ["name", "audit", "multihome", "shared-stack", "defaults"] {
        changed(&format!("policy: {key}"), &before[key], &after[key], &mut lines);
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
    named("rule", &of_list(&before["rules"], ""), &of_list(&after["rules"], ""), &mut lines);
    let order = |m: &Model, other: &Model| -> Vec<String> {
        let kept = m.rules.iter().filter(|r| other.rules.iter().any(|o| o.name == r.name));
        kept.map(|r| r.name.clone()).collect()
    };
    if order(old, new) != order(new, old) {
        lines.push("~ rules are in another order".to_owned());
    }
    Ok(Diff { lines, cells: cells(old, new, now)? })
}

fn json(model: &Model) -> Value {
    serde_json::to_value(model).unwrap_or_default()
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
                    changed(&format!("{what} `{name}`: {key}"), &a[key], &b[key], lines);
                }
            }
        }
    }
}

fn changed(what: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if old != new {
        lines.push(format!("~ {what}: {} -> {}", shown(old), shown(new)));
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
    let (a, b) = (offline(old)?, offline(new)?);
    let (before, after) = (PolicyTables::new(&a), PolicyTables::new(&b));
    let common: Vec<Owner> = new.owners().into_iter().filter(|o| a.names.contains_key(o)).collect();
    let mut changes = Vec::new();
    for from in &common {
        for to in &common {
            let says = |compiled: &Compiled, tables: &PolicyTables<'_>, selector: u32| {
                let id = |o: &Owner| compiled.identity(o, None).unwrap_or_default();
                let r = ruling(tables, 1, id(from), id(to), selector, seconds(now));
                let why = compiled.rule(r.rule).unwrap_or(r.reason.as_str()).to_owned();
                (r.verdict, why)
            };
            let mut ranges: Vec<(u32, u32, CellChange)> = Vec::new();
            let edges: BTreeSet<u32> = edges(&a, from, to).into_iter().chain(edges(&b, from, to)).collect();
            let ends = edges.iter().skip(1).map(|e| e - 1).chain([ports::LAST]);
            for (first, last) in edges.iter().copied().zip(ends) {
                let (was, is) = (says(&a, &before, first), says(&b, &after, first));
                if was.0 == is.0 {
                    continue;
                }
                let text = |(verdict, why): (hydra_common::verdict::Verdict, String)| {
                    format!("{} ({why})", verdict.as_str())
                };
                let change = CellChange {
                    from: from.to_string(),
                    to: to.to_string(),
                    ports: String::new(),
                    before: text(was),
                    after: text(is),
                };
                ranges.push((first, last, change));
            }
            changes.extend(merged(ranges));
        }
    }
    Ok(changes)
}

fn offline(model: &Model) -> Result<Compiled, CompileError> {
    compile(model, &World::default(), &mut Numbers::default())
}

/// Where the answer of a cell may change.
fn edges(compiled: &Compiled, from: &Owner, to: &Owner) -> Vec<u32> {
    let pair = (compiled.names.get(from), compiled.names.get(to));
    let (Some(from), Some(to)) = pair else { return vec![0] };
    let (index, is_set) = compiled.cells.get(&(*from, *to)).copied().map_or((0, false), Cell::index);
    if !is_set {
        return vec![0];
    }
    let set = compiled.rule_sets.get(index as usize).copied().unwrap_or_default();
    let intervals = compiled.intervals.iter().skip(set.start as usize).take(set.count as usize);
    intervals.map(|i| i.from).collect()
}

/// Ranges of one pair with the same change are one row.
fn merged(ranges: Vec<(u32, u32, CellChange)>) -> Vec<CellChange> {
    let mut rows: Vec<(Vec<(u32, u32)>, CellChange)> = Vec::new();
    for (first, last, change) in ranges {
        match rows.iter_mut().find(|(_, row)| *row == change) {
            Some((list, _)) => list.push((first, last)),
            None => rows.push((vec![(first, last)], change)),
        }
    }
    rows.into_iter()
        .map(|(list, change)| CellChange { ports: ports::Ports::of(list).to_string(), ..change })
        .collect()
}
