//! A text that differs in a few rules from one that was read: what comes of it, by reading these alone. Of every other text nothing is
//! said, and it is read as a whole; what comes of it is the same.

use std::sync::Arc;

use hydra_common::tables::MAX_RULES;

use super::by_line::{Reader, says_nothing};
use super::check::rules::of_known;
use super::file;
use super::model::{Index, Model, Rule};
use super::shape::Read as _;
use super::yaml::{MAX_NODES, Node, Value};
use crate::diagnostic::{Diagnostic, Place};

/// Longer texts are read as a whole. Every value takes a byte at least, so shorter ones have not too many.
const LONGEST: usize = MAX_NODES;
/// Texts that differ in more lines are read as a whole.
const MOST_LINES: usize = 256;
/// What is compared at once.
const PIECE: usize = 4096;

/// A text that was read, in which nothing was wrong.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub text: Arc<str>,
    pub model: Arc<Model>,
    /// What reading it gave.
    pub warnings: Arc<[Diagnostic]>,
    /// When that was, in Unix seconds.
    pub now: i64,
}

/// Reads a text that differs from a known one in lines that are a rule each, in braces and of words alone ([`Reader`]), in which nothing is
/// wrong.
///
/// Where the lines that differ begin with one that is a rule of the known text, the parser has come to the list's next entry, whatever was before; at
/// another such line of the new text it has, too, since what it knows of either there is how far it is indented. Behind
/// an entry in braces nothing is open but the list: so what follows those lines is in both texts read alike.
pub(super) fn read(known: &Known, text: &str, now: i64) -> Option<(Model, Vec<Diagnostic>)> {
    let old = &*known.text;
    // What has an anchor counts as what its aliases may make of it. What has ended by a clock that was set back since has not.
    if old.len().max(text.len()) >= LONGEST || old.contains(['&', '*']) || now < known.now {
        return None;
    }
    let Change { begin, gone, come } = Change::between(old, text)?;
    let before = old[..begin].bytes().filter(|b| *b == b'\n').count() as u32;
    let indent = gone.bytes().take_while(|b| *b == b' ').count();
    let (gone, lines) = entries(gone, before, indent)?;
    let (come, new_lines) = entries(come, before, indent)?;
    let model = &*known.model;
    let place = |line: u32| model.rules.partition_point(|rule| rule.place.line <= line);
    let (first, end) = (place(before), place(before + lines));
    let left = model.rules.get(first..end)?;
    if gone.len() != left.len() || gone.iter().zip(left).any(|(node, rule)| name(node) != Some(rule.place)) {
        return None;
    }
    let mut problems = Vec::new();
    let come: Vec<file::Rule> =
        come.iter().filter_map(|node| file::Rule::read(node, &mut problems)).collect();
    if !problems.is_empty() {
        return None;
    }
    let come = of_known(&come, model, now)?;
    if !fits(model, (first, end), &come, now) {
        return None;
    }
    let moved = |place: Place| {
        let behind = place.line > before + lines;
        if behind { Place { line: place.line - lines + new_lines, ..place } } else { place }
    };
    let gone = |d: &&Diagnostic| d.place.is_some_and(|p| p.line > before && p.line <= before + lines);
    let warnings = known.warnings.iter().filter(|d| !gone(d));
    let warnings = warnings.map(|d| Diagnostic { place: d.place.map(moved), ..d.clone() }).collect();
    Some((with(model, (first, end), come, moved), warnings))
}

/// Whether rules can stand in the place of others: what is told of a policy beside its rules' own lines does not change.
fn fits(model: &Model, (first, end): (usize, usize), come: &[Rule], now: i64) -> bool {
    let kept = || model.rules[..first].iter().chain(&model.rules[end..]);
    let has = |rules: &[Rule], name: &str| rules.iter().any(|rule| rule.name == name);
    let left = &model.rules[first..end];
    // Names that were there are no other rule's.
    let new: Vec<&str> = come.iter().map(|r| r.name.as_str()).filter(|name| !has(left, name)).collect();
    let asked = model.expect.iter().filter_map(|row| row.rule.as_deref());
    model.rules.len() - left.len() + come.len() <= MAX_RULES as usize
        && !kept().any(|rule| rule.expires.is_some_and(|end| end <= now))
        && (new.is_empty() || !kept().any(|rule| new.contains(&rule.name.as_str())))
        && !asked.into_iter().any(|name| has(left, name) && !has(come, name))
}

/// The policy with other rules in the place of some, and everything where it has moved to.
fn with(
    model: &Model,
    (first, end): (usize, usize),
    come: Vec<Rule>,
    moved: impl Fn(Place) -> Place,
) -> Model {
    let Model { name, audit, multihome, shared_stack, defaults, networks, tiers, rules, expect, index } =
        model;
    let Index { tiers: numbers, places, containers, networks: of_networks, bridges, units } = index;
    let mut all = Vec::with_capacity(rules.len() - (end - first) + come.len());
    all.extend_from_slice(&rules[..first]);
    all.extend(come);
    all.extend(rules[end..].iter().map(|rule| Rule { place: moved(rule.place), ..rule.clone() }));
    let mut expect = expect.clone();
    for row in &mut expect {
        (row.place, row.rule_place) = (moved(row.place), row.rule_place.map(&moved));
    }
    Model {
        name: name.clone(),
        audit: *audit,
        multihome: *multihome,
        shared_stack: *shared_stack,
        defaults: *defaults,
        networks: networks.clone(),
        tiers: tiers.clone(),
        rules: all,
        expect,
        index: Index {
            tiers: numbers.clone(),
            places: places.iter().map(|(name, place)| (name.clone(), moved(*place))).collect(),
            containers: containers.clone(),
            networks: of_networks.clone(),
            bridges: bridges.clone(),
            units: units.clone(),
        },
    }
}

/// The entries of whole lines that are nothing else, and how many lines these are; `before` lines are before them.
fn entries(text: &str, before: u32, indent: usize) -> Option<(Vec<Node<'_>>, u32)> {
    let mut reader = Reader { indent, nodes: 0 };
    let (mut list, mut lines) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        lines += 1;
        match reader.entry(line, before + lines as u32) {
            Some(node) if line.ends_with('\n') => list.push(node),
            None if line.ends_with('\n') && says_nothing(line) => {}
            Some(_) | None => return None,
        }
        if lines > MOST_LINES {
            return None;
        }
    }
    Some((list, lines as u32))
}

/// Where an entry's name stands.
fn name(entry: &Node<'_>) -> Option<Place> {
    let Value::Map(pairs) = &entry.value else { return None };
    let named = |key: &Node<'_>| matches!(&key.value, Value::Text(text) if text == "name");
    pairs.iter().find(|(key, _)| named(key)).map(|(_, name)| name.place)
}

/// The lines in which two texts differ.
struct Change<'t> {
    /// Where they begin in both.
    begin: usize,
    gone: &'t str,
    come: &'t str,
}

impl<'t> Change<'t> {
    /// From a line that looks like an entry in both; none if too much of the texts differs.
    fn between(old: &'t str, new: &'t str) -> Option<Self> {
        let (a, b) = (old.as_bytes(), new.as_bytes());
        let start = |at: usize| a[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut begin = start(same(a, b));
        let behind = same_end(&a[begin..], &b[begin..]);
        let (mut old_end, mut new_end) = (a.len() - behind, b.len() - behind);
        // Whole lines.
        let cut = |text: &[u8], at: usize| at > begin && text[at - 1] != b'\n';
        let line = a[old_end..].iter().position(|byte| *byte == b'\n').map_or(behind, |at| at + 1);
        let inside = cut(a, old_end) || cut(b, new_end);
        let is_entry = |text: &[u8]| {
            let spaces = text.iter().take_while(|byte| **byte == b' ').count();
            text[spaces..].starts_with(b"- {")
        };
        let begins = |begin: usize, more: usize| {
            is_entry(&a[begin..old_end + more]) && is_entry(&b[begin..new_end + more])
        };
        // Of what only came or went the line behind it is one of both, or one before it.
        if inside || (!begins(begin, 0) && begins(begin, line)) {
            (old_end, new_end) = (old_end + line, new_end + line);
        }
        for _ in 0..MOST_LINES {
            if is_entry(&a[begin..old_end]) && is_entry(&b[begin..new_end]) {
                return Some(Self { begin, gone: &old[begin..old_end], come: &new[begin..new_end] });
            }
            begin = start(begin.checked_sub(1)?);
        }
        None
    }
}

/// How many bytes two texts begin with alike.
fn same(a: &[u8], b: &[u8]) -> usize {
    let pieces = a.chunks(PIECE).zip(b.chunks(PIECE)).take_while(|(a, b)| a == b).count();
    let at = (pieces * PIECE).min(a.len()).min(b.len());
    at + a[at..].iter().zip(&b[at..]).take_while(|(a, b)| a == b).count()
}

/// How many bytes they end with alike.
fn same_end(a: &[u8], b: &[u8]) -> usize {
    let pieces = a.rchunks(PIECE).zip(b.rchunks(PIECE)).take_while(|(a, b)| a == b).count();
    let at = (pieces * PIECE).min(a.len()).min(b.len());
    let (a, b) = (&a[..a.len() - at], &b[..b.len() - at]);
    at + a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}
