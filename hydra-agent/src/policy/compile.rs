//! The model and the world to the rows of one bank. Pure and deterministic: the same input gives the same bytes.
//!
//! The size is O(rules + identities squared) and does not depend on the number of containers. Pairs that the same rules match share
//! their rows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hydra_common::id::{Identity, MAX_IDENTITIES, MAX_TIERS, Tier};
use hydra_common::tables::{Cell, IdentityRow, Limit, MAX_LIMITS, MAX_PREFIXES, PrefixRow};
use ipnet::IpNet;

use super::QuickMap;
use super::bits::Bits;
use super::model::{Model, Selector};
use super::precedence::{Asked, End, Otherwise, Rows, within, without_rules};
use super::regions::{Regions, regions};
use super::rows::{Block, Class, Compiled, Numbers, Owner};
use super::taken::{Again, Basis, Last, Made, Named};

/// What is known of the host. Empty for a policy that is only looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// The blocks of every tier's networks and bridges, and whether such a block is open ([`PrefixRow::OPEN`]).
    pub subnets: BTreeMap<String, Vec<(IpNet, bool)>>,
    /// Live endpoints: whose, and at which address.
    pub live: BTreeSet<(Owner, IpAddr)>,
    /// This host's own addresses.
    pub host: Vec<IpAddr>,
    /// Blocks of networks that the policy does not name.
    pub unmanaged: Vec<IpNet>,
    /// Networks whose containers have no ports on this host: their blocks, which are the outside, and in these the addresses of
    /// containers of this host, with whose they are.
    pub lan: BTreeMap<IpNet, Option<Owner>>,
}

/// Why a valid policy has no tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The kernel's tables are too small.
    #[error("the policy needs {have} {what}, the tables hold {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Needed.
        have: usize,
        /// Possible.
        most: usize,
    },
    /// Networks of the host contradict the policy.
    #[error("{inner} of tier `{inner_tier}` overlaps with {outer} of tier `{outer_tier}`")]
    Overlap {
        /// The block inside.
        inner: IpNet,
        /// Its tier.
        inner_tier: String,
        /// The block around.
        outer: IpNet,
        /// Its tier.
        outer_tier: String,
    },
}

/// Makes the rows. Names that are new get numbers.
pub fn compile(model: &Model, world: &World, numbers: &mut Numbers) -> Result<Compiled, CompileError> {
    compile_after(model, world, numbers, None).map(|(compiled, _)| compiled)
}

/// The same rows, quicker where the policy before differs in a few rules; with what the next policy's can be made from.
pub(crate) fn compile_after(
    model: &Model,
    world: &World,
    numbers: &mut Numbers,
    last: Option<Last<'_>>,
) -> Result<Made, CompileError> {
    let regions = regions(model, world)?;
    within("address prefixes", regions.rows.len(), MAX_PREFIXES / 2)?;
    let classes = classes(model, world, &regions);
    let (identities, tiers) = number(model, &classes, &regions.groups, numbers)?;
    let parts = Parts::of(&classes);
    let limits = limits(model, numbers)?;
    let again = last
        .and_then(|last| Again::new(last, model, (&classes, &identities), &parts.classes, &regions.groups));
    let named = match &again {
        Some(again) => again.named(),
        None => named(model, &parts.classes, &regions.groups),
    };
    let matrix = Matrix::new(named.clone());
    let mut rows = Rows::new(model, limits.clone());
    let mut cells = matrix.cells(model, &parts, &identities, &mut rows, again);
    if cells.is_err() {
        // What is refused is so in the same words, whatever was before.
        rows = Rows::new(model, limits);
        cells = matrix.cells(model, &parts, &identities, &mut rows, None);
    }
    let cells = cells?;
    let number_of: QuickMap<&Class, Identity> = classes.iter().zip(identities.iter().copied()).collect();
    let prefixes = regions
        .rows
        .iter()
        .map(|(net, region)| {
            let class = Class { owner: region.owner.clone(), blocks: region.blocks.clone() };
            let identity = number_of.get(&class).copied().unwrap_or(Identity::UNKNOWN);
            (*net, PrefixRow { identity, flags: region.flags })
        })
        .collect();
    let tier_numbers: BTreeMap<&str, Tier> = tiers.iter().map(|(n, name)| (name.as_str(), *n)).collect();
    let rows_of = |class: &Class| IdentityRow {
        tier: tier_numbers.get(class.owner.tier()).copied().unwrap_or(Tier::UNKNOWN),
        flags: identity_flags(model, &class.owner),
    };
    let shared = classes.iter().map(|c| &c.owner).filter(|o| matches!(o, Owner::Shared(_))).cloned();
    let names = model.owners().into_iter().chain(shared).filter_map(|owner| {
        let class = Class { blocks: regions.blocks_of_name(&owner).to_vec(), owner };
        let identity = *number_of.get(&class)?;
        Some((class.owner, identity))
    });
    let names = names.collect();
    let of_numbers =
        classes.iter().zip(&identities).map(|(class, n)| (*n, (class.clone(), rows_of(class)))).collect();
    let compiled = Compiled {
        audit: model.audit,
        identities: of_numbers,
        names,
        tiers,
        cells,
        rule_sets: rows.rule_sets,
        intervals: rows.intervals,
        decisions: rows.decisions,
        limits: rows.limits,
        prefixes,
        blocks: regions.groups,
        rules: model.rules.iter().map(|r| r.name.clone()).collect(),
    };
    Ok((compiled, Basis { classes, identities, named }))
}

fn identity_flags(model: &Model, owner: &Owner) -> u16 {
    let Some(tier) = model.tier(owner.tier()) else { return 0 };
    // A tier that has machines elsewhere too can't be told from a forger by its name alone.
    let interior = tier.is_internal() && tier.addresses.is_empty();
    IdentityRow::DECLARED | if interior { IdentityRow::INTERIOR } else { 0 }
}

/// Every class that the matrix must have: of each owner's name, of each prefix, of each address that somebody has now.
fn classes(model: &Model, world: &World, regions: &Regions) -> Vec<Class> {
    let mut classes: Vec<Class> = Vec::new();
    let mut seen: BTreeSet<Class> = BTreeSet::new();
    let mut add = |owner: &Owner, blocks: &[u16]| {
        let class = Class { owner: owner.clone(), blocks: blocks.to_vec() };
        if seen.insert(class.clone()) {
            classes.push(class);
        }
    };
    for owner in &model.owners() {
        add(owner, regions.blocks_of_name(owner));
    }
    for region in regions.rows.values() {
        add(&region.owner, &region.blocks);
    }
    for ip in &world.host {
        add(&Owner::Host, &regions.blocks_of(*ip));
    }
    for (owner, ip) in &world.live {
        if matches!(owner, Owner::Shared(_)) {
            // Its ports have it without an address, and no file names it.
            add(owner, &[]);
        }
        add(owner, &regions.blocks_of(*ip));
    }
    classes
}

/// The classes that rules can name, and which of them a class has the rights of: itself, or one for each part of a shared owner.
struct Parts {
    /// No shared owners.
    classes: Vec<Class>,
    /// By class: indexes into `classes`.
    of: Vec<Vec<usize>>,
}

impl Parts {
    fn of(all: &[Class]) -> Self {
        let mut classes: Vec<Class> = Vec::with_capacity(all.len());
        let mut places: QuickMap<Class, usize> = QuickMap::default();
        let mut place = |class: Class| {
            *places.entry(class).or_insert_with_key(|class| {
                classes.push(class.clone());
                classes.len() - 1
            })
        };
        let of = all.iter().map(|class| {
            let part = |owner: &Owner| Class { owner: owner.clone(), blocks: class.blocks.clone() };
            class.owner.parts().iter().map(|owner| place(part(owner))).collect()
        });
        let of = of.collect();
        Self { classes, of }
    }
}

/// The key of a class in [`Numbers`]: the same whatever the order of the rules.
fn text(class: &Class, groups: &[Vec<Block>]) -> String {
    let blocks = class.blocks.iter().filter_map(|b| groups.get(usize::from(*b))).flatten();
    let mut names: Vec<String> = blocks.map(ToString::to_string).collect();
    names.sort_unstable();
    let list = names.join(";");
    match list.len() {
        0 => class.owner.to_string(),
        1..=LONGEST_KEY => format!("{}@{list}", class.owner),
        _ => format!("{}@{} blocks {:016x}", class.owner, names.len(), fingerprint(&list)),
    }
}

/// Longer lists of blocks are kept by their number and fingerprint.
const LONGEST_KEY: usize = 200;

/// FNV-1a, 64 bits: the same in every version of the program, which the standard library's hashes don't promise.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// The limits of the rules that have one. A bucket keeps its number as long as the rule has its name, so that an apply does not
/// fill it again.
fn limits(model: &Model, numbers: &mut Numbers) -> Result<Vec<Limit>, CompileError> {
    let limited = || model.rules.iter().filter_map(|r| Some((r.name.as_str(), r.limit?)));
    let names: Vec<&str> = limited().map(|(name, _)| name).collect();
    give(&mut numbers.limits, &names, 0, MAX_LIMITS, "limits")?;
    let number = |name| u32::from(numbers.limits.get(name).copied().unwrap_or_default());
    Ok(limited().map(|(name, limit)| limit.row(number(name))).collect())
}

type Numbered = (Vec<Identity>, BTreeMap<Tier, String>);

fn number(
    model: &Model,
    classes: &[Class],
    groups: &[Vec<Block>],
    numbers: &mut Numbers,
) -> Result<Numbered, CompileError> {
    let reserved = |owner: &Owner| match owner {
        Owner::External => Some(Identity::EXTERNAL),
        Owner::Host => Some(Identity::HOST),
        Owner::Unmanaged => Some(Identity::UNMANAGED),
        Owner::Tier(_) | Owner::Service { .. } | Owner::Shared(_) => None,
    };
    let names: Vec<(Option<Identity>, String)> = classes
        .iter()
        .map(|c| (reserved(&c.owner).filter(|_| c.blocks.is_empty()), text(c, groups)))
        .collect();
    let wanted: Vec<&str> = names.iter().filter(|(n, _)| n.is_none()).map(|(_, t)| t.as_str()).collect();
    let first = Identity::FIRST_DECLARED.0;
    give(&mut numbers.identities, &wanted, first, MAX_IDENTITIES, "identities")?;
    let identities = names
        .iter()
        .map(|(fixed, text)| {
            fixed.unwrap_or_else(|| Identity(numbers.identities.get(text).copied().unwrap_or_default()))
        })
        .collect();
    let wanted: Vec<&str> = model.tiers.iter().map(|t| t.name.as_str()).collect();
    give(&mut numbers.tiers, &wanted, Tier::FIRST_DECLARED.0, MAX_TIERS, "tiers")?;
    let mut tiers: BTreeMap<Tier, String> =
        [(Tier::EXTERNAL, Owner::External), (Tier::HOST, Owner::Host), (Tier::UNMANAGED, Owner::Unmanaged)]
            .into_iter()
            .map(|(n, owner)| (n, owner.to_string()))
            .collect();
    tiers.extend(
        wanted.iter().filter_map(|name| Some((Tier(*numbers.tiers.get(*name)?), (*name).to_owned()))),
    );
    Ok((identities, tiers))
}

/// Gives every wanted name a number of its own: the one that it had, else the next that nobody ever had, else one of a name that is
/// not wanted any more.
fn give(
    given: &mut BTreeMap<String, u16>,
    wanted: &[&str],
    first: u16,
    end: u32,
    what: &'static str,
) -> Result<(), CompileError> {
    let end = u16::try_from(end).unwrap_or(u16::MAX);
    within(what, wanted.len(), u32::from(end - first))?;
    // A file that somebody wrote in can hold anything: numbers out of range or doubled are given anew.
    let mut taken = BTreeSet::new();
    given.retain(|_, n| (first..end).contains(n) && taken.insert(*n));
    let mut next = taken.last().map_or(first, |n| n + 1);
    let keep: BTreeSet<&str> = wanted.iter().copied().collect();
    for name in wanted {
        if given.contains_key(*name) {
            continue;
        }
        let number = if next < end {
            next += 1;
            next - 1
        } else if let Some(free) = (first..end).find(|n| !taken.contains(n)) {
            free
        } else {
            let old =
                given.iter().find(|(old, _)| !keep.contains(old.as_str())).map(|(k, n)| (k.clone(), *n));
            let Some((old, number)) = old else { continue };
            given.remove(&old);
            number
        };
        taken.insert(number);
        given.insert((*name).to_owned(), number);
    }
    Ok(())
}

/// Which rules name which class as source and as destination, each distinct answer once.
struct Matrix {
    /// By class: index into `sources` and into `destinations`.
    groups: Vec<(usize, usize)>,
    /// Rules.
    sources: Vec<Bits>,
    /// Rules.
    destinations: Vec<Bits>,
}

/// By class: the rules that name it as source, and those that name it as destination.
fn named(model: &Model, classes: &[Class], groups: &[Vec<Block>]) -> Named {
    let numbers = group_numbers(groups);
    let mut selected: QuickMap<&Selector, Vec<usize>> = QuickMap::default();
    let mut from: Vec<Bits> = vec![Bits::new(model.rules.len()); classes.len()];
    let mut to = from.clone();
    for (index, rule) in model.rules.iter().enumerate() {
        for (selectors, named) in [(&rule.from, &mut from), (&rule.to, &mut to)] {
            for selector in selectors {
                let found =
                    selected.entry(selector).or_insert_with(|| select(model, classes, &numbers, selector));
                for class in found.iter().copied() {
                    named[class].set(index);
                }
            }
        }
    }
    (from, to)
}

impl Matrix {
    fn new((from, to): Named) -> Self {
        let (sources, source_of) = distinct(from);
        let (destinations, destination_of) = distinct(to);
        Self { groups: source_of.into_iter().zip(destination_of).collect(), sources, destinations }
    }

    fn cells(
        &self,
        model: &Model,
        parts: &Parts,
        identities: &[Identity],
        rows: &mut Rows<'_>,
        mut again: Option<Again<'_>>,
    ) -> Result<BTreeMap<(Identity, Identity), Cell>, CompileError> {
        let ends: Vec<End> = parts.classes.iter().map(|class| End::of(model, &class.owner)).collect();
        let mut others = Others::default();
        // By source, then destination and what holds without rules.
        let mut single: Vec<Vec<Option<Cell>>> = vec![Vec::new(); self.sources.len()];
        let mut several: QuickMap<Vec<Pair>, Cell> = QuickMap::default();
        let mut cells = Vec::with_capacity(parts.of.len() * parts.of.len());
        let mut pairs = Vec::new();
        for (from, sources) in identities.iter().zip(&parts.of) {
            for (to, destinations) in identities.iter().zip(&parts.of) {
                pairs.clear();
                for (source, destination) in
                    sources.iter().flat_map(|s| destinations.iter().map(move |d| (*s, *d)))
                {
                    let pair = Pair {
                        source: self.groups[source].0,
                        destination: self.groups[destination].1,
                        otherwise: others.number(without_rules(model, ends[source], ends[destination])),
                    };
                    if !pairs.contains(&pair) {
                        pairs.push(pair);
                    }
                }
                let mut cell = |pairs: &[Pair], others: &Others| {
                    if let Some(again) = &mut again
                        && let Some(cell) = again.cell((*from, *to), (sources, destinations))
                    {
                        return rows.take(again, cell);
                    }
                    self.cell(pairs, others, rows)
                };
                let cell = if let [pair] = pairs[..] {
                    let row = &mut single[pair.source];
                    let place = pair.otherwise * self.destinations.len() + pair.destination;
                    if row.len() <= place {
                        row.resize((pair.otherwise + 1) * self.destinations.len(), None);
                    }
                    match row[place] {
                        Some(cell) => cell,
                        None => *row[place].insert(cell(&pairs, &others)?),
                    }
                } else if let Some(cell) = several.get(&pairs) {
                    *cell
                } else {
                    let cell = cell(&pairs, &others)?;
                    several.insert(pairs.clone(), cell);
                    cell
                };
                cells.push(((*from, *to), cell));
            }
        }
        Ok(cells.into_iter().collect())
    }

    fn cell(&self, pairs: &[Pair], others: &Others, rows: &mut Rows<'_>) -> Result<Cell, CompileError> {
        let asked = pairs.iter().map(|pair| Asked {
            rules: self.sources[pair.source].common(&self.destinations[pair.destination]).collect(),
            otherwise: others.0[pair.otherwise],
        });
        rows.cell(asked.collect())
    }
}

/// All that a cell depends on, for one part of each end.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    /// Index into [`Matrix::sources`].
    source: usize,
    /// Index into [`Matrix::destinations`].
    destination: usize,
    /// Index into [`Others`].
    otherwise: usize,
}

/// What holds without rules, each answer once: a policy has a few.
#[derive(Default)]
struct Others(Vec<Otherwise>);

impl Others {
    fn number(&mut self, otherwise: Otherwise) -> usize {
        self.0.iter().position(|known| *known == otherwise).unwrap_or_else(|| {
            self.0.push(otherwise);
            self.0.len() - 1
        })
    }
}

/// Each distinct value once, and for every value the index of its like.
fn distinct<T: Clone + Eq + std::hash::Hash>(values: Vec<T>) -> (Vec<T>, Vec<usize>) {
    let mut index: QuickMap<T, usize> = QuickMap::default();
    let mut list = Vec::new();
    let places = values
        .into_iter()
        .map(|value| {
            *index.entry(value).or_insert_with_key(|value| {
                list.push(value.clone());
                list.len() - 1
            })
        })
        .collect();
    (list, places)
}

/// The group of every block.
pub(super) fn group_numbers(groups: &[Vec<Block>]) -> QuickMap<&Block, u16> {
    groups.iter().zip(0..).flat_map(|(group, n)| group.iter().map(move |block| (block, n))).collect()
}

/// The classes that a selector names.
pub(super) fn select(
    model: &Model,
    classes: &[Class],
    blocks: &QuickMap<&Block, u16>,
    selector: &Selector,
) -> Vec<usize> {
    let named = |class: &Class| match selector {
        Selector::Any => true,
        Selector::Internal => model.tier(class.owner.tier()).is_some_and(super::model::Tier::is_internal),
        Selector::Owner(Owner::Tier(tier)) => class.owner.tier() == tier,
        Selector::Owner(owner) => class.owner == *owner,
        Selector::Block(block) => blocks.get(block).is_some_and(|b| class.blocks.contains(b)),
    };
    classes.iter().enumerate().filter(|(_, class)| named(class)).map(|(i, _)| i).collect()
}
