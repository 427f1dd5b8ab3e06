//! Whose an address is, and in which blocks of the rules it lies: the prefix rows, and the classes that come of them.
//!
//! Every block that anybody names is a boundary. Blocks lie inside each other or apart, so one walk in the order of their addresses,
//! with the enclosing ones on a stack, knows everything about each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hydra_common::tables::PrefixRow;
use ipnet::IpNet;

use super::compile::{CompileError, World};
use super::model::{Model, Selector};
use super::precedence::within;
use super::rows::{Block, Owner};

/// A set of rule blocks, or of their groups, ascending.
pub(super) type Blocks = Vec<u16>;

/// What a prefix is before its class has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub owner: Owner,
    pub blocks: Blocks,
    /// [`PrefixRow`]'s.
    pub flags: u16,
}

/// The result of the walk.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions {
    /// The prefixes that differ from what encloses them.
    pub rows: BTreeMap<IpNet, Region>,
    /// The rules' blocks: those that the same rules name on the same sides are one group, so that a list of a thousand blocks is one
    /// class and not a thousand. In the order of their first use.
    pub groups: Vec<Vec<Block>>,
    /// For every tier and service that declares blocks: the groups of which one block holds all of them.
    pub names: BTreeMap<Owner, Blocks>,
    /// The groups of every boundary that is in any.
    sets: BTreeMap<IpNet, Blocks>,
}

impl Regions {
    /// The groups that hold everything that an owner declares; none for one that declares nothing.
    pub fn blocks_of_name(&self, owner: &Owner) -> &[u16] {
        self.names.get(owner).map_or(&[], Vec::as_slice)
    }

    /// The groups that hold an address.
    pub fn blocks_of(&self, ip: IpAddr) -> Blocks {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (0..=longest)
            .rev()
            .filter_map(|len| IpNet::new(ip, len).ok())
            .find_map(|net| self.sets.get(&net.trunc()))
            .cloned()
            .unwrap_or_default()
    }
}

/// What a boundary has to do with networks without ports here.
#[derive(Clone, Debug, Default)]
enum Lan {
    #[default]
    Nothing,
    /// The block of one.
    Block,
    /// The address of a container of this host, with whose it is.
    Address(Owner),
}

/// What is said about one boundary.
#[derive(Clone, Debug, Default)]
struct Said {
    /// By the kernel: an address of this host.
    host: bool,
    /// By the file: the host's address in a network.
    gateway: bool,
    service: Option<Owner>,
    tier: Option<Owner>,
    /// By the file: the tier whose `addresses` they are.
    named: Option<Owner>,
    /// By the kernel or Docker: a network that the policy does not name.
    unmanaged: bool,
    /// A network or bridge of this host, and whether it is open.
    subnet: Option<bool>,
    /// By Docker: a network without ports here, or a container's address in it.
    lan: Lan,
    /// Rule blocks that begin here, and those that end here.
    begins: Blocks,
    ends: Blocks,
}

/// What holds inside a boundary.
#[derive(Clone, Debug)]
struct Frame {
    net: IpNet,
    host: bool,
    service: Option<Owner>,
    tier: Option<Owner>,
    flags: u16,
    blocks: Blocks,
    shown: Region,
}

/// Walks over every boundary.
pub(super) fn regions(model: &Model, world: &World) -> Result<Regions, CompileError> {
    let used = rule_blocks(model);
    within("address blocks", used.len(), u32::from(u16::MAX))?;
    let (groups, group_of) = grouped(&used);
    let mut result = Regions { groups, ..Regions::default() };
    let blocks: Vec<&Block> = used.iter().map(|(block, _)| *block).collect();
    let mut said = said(model, world, &blocks);
    overlap(&said)?;
    let outside = Region { owner: Owner::External, blocks: Vec::new(), flags: 0 };
    let mut stack: Vec<Frame> = Vec::new();
    let order: BTreeSet<(IpAddr, u8)> = said.keys().map(|n| (n.network(), n.prefix_len())).collect();
    for net in order.into_iter().filter_map(|(ip, len)| IpNet::new(ip, len).ok()) {
        let Some(here) = said.remove(&net) else { continue };
        while stack.last().is_some_and(|outer| !outer.net.contains(&net)) {
            stack.pop();
        }
        let outer = stack.last();
        let shown = outer.map_or(&outside, |o| &o.shown);
        let frame = frame(net, here, outer, &group_of);
        if frame.shown.blocks != shown.blocks {
            result.sets.insert(net, frame.shown.blocks.clone());
        }
        // An unmanaged network declares nothing.
        let named = [&frame.tier, &frame.service].into_iter().flatten();
        for owner in named.filter(|owner| **owner != Owner::Unmanaged) {
            match result.names.get_mut(owner) {
                Some(held) => held.retain(|b| frame.blocks.contains(b)),
                None => _ = result.names.insert(owner.clone(), frame.blocks.clone()),
            }
        }
        if frame.shown != *shown {
            result.rows.insert(net, frame.shown.clone());
        }
        stack.push(frame);
    }
    for blocks in result.names.values_mut() {
        *blocks = groups_of(blocks, &group_of);
    }
    Ok(result)
}

fn groups_of(blocks: &[u16], group_of: &[u16]) -> Blocks {
    let groups: BTreeSet<u16> = blocks.iter().map(|b| group_of[usize::from(*b)]).collect();
    groups.into_iter().collect()
}

fn frame(net: IpNet, here: Said, outer: Option<&Frame>, group_of: &[u16]) -> Frame {
    let mut blocks: BTreeSet<u16> = outer.iter().flat_map(|o| &o.blocks).copied().collect();
    blocks.extend(here.begins);
    blocks.retain(|b| !here.ends.contains(b));
    let blocks: Blocks = blocks.into_iter().collect();
    let host = here.host || outer.is_some_and(|o| o.host);
    let service = here.service.or_else(|| outer.and_then(|o| o.service.clone()));
    // A living network counts more than a file's word about one that may be gone.
    let tier = if here.unmanaged && here.tier.is_none() {
        Some(Owner::Unmanaged)
    } else {
        here.tier.or_else(|| outer.and_then(|o| o.tier.clone()))
    };
    let tier = match here.lan {
        Lan::Nothing => tier,
        // The network says nothing of the machines on it, what is around it only by their `addresses`.
        Lan::Block => tier.filter(|_| here.named.is_some() || outer.is_some_and(|o| o.flags == 0)),
        Lan::Address(_) => None,
    };
    let flags = match (&here.lan, here.subnet) {
        (Lan::Address(_), _) => PrefixRow::LAN,
        (Lan::Block, _) => 0,
        (Lan::Nothing, Some(true)) => PrefixRow::INTERIOR | PrefixRow::OPEN,
        (Lan::Nothing, Some(false)) => PrefixRow::INTERIOR,
        (Lan::Nothing, None) => outer.map_or(0, |o| o.flags),
    };
    let owner = if host {
        Owner::Host
    } else if let Lan::Address(owner) = here.lan {
        owner
    } else if let Some(service) = &service {
        service.clone()
    } else if here.gateway {
        Owner::Host
    } else {
        tier.clone().unwrap_or(Owner::External)
    };
    let shown = Region { owner, blocks: groups_of(&blocks, group_of), flags };
    Frame { net, host, service, tier, flags, blocks, shown }
}

/// A rule, and which of its ends.
type Use = (usize, bool);

/// The blocks that rules name, in the order of their first use, and who uses them.
fn rule_blocks(model: &Model) -> Vec<(&Block, Vec<Use>)> {
    let mut places: BTreeMap<&Block, usize> = BTreeMap::new();
    let mut used: Vec<(&Block, Vec<Use>)> = Vec::new();
    for (index, rule) in model.rules.iter().enumerate() {
        for (selectors, is_source) in [(&rule.from, true), (&rule.to, false)] {
            for selector in selectors {
                let Selector::Block(block) = selector else { continue };
                let place = *places.entry(block).or_insert(used.len());
                if place == used.len() {
                    used.push((block, Vec::new()));
                }
                used[place].1.push((index, is_source));
            }
        }
    }
    used
}

/// Groups of blocks that are used alike, and the group of every block.
fn grouped(used: &[(&Block, Vec<Use>)]) -> (Vec<Vec<Block>>, Vec<u16>) {
    let mut places: BTreeMap<&[Use], u16> = BTreeMap::new();
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut group_of = Vec::with_capacity(used.len());
    for (block, uses) in used {
        let group = *places.entry(uses.as_slice()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() as u16 - 1
        });
        groups[usize::from(group)].push((*block).clone());
        group_of.push(group);
    }
    (groups, group_of)
}

fn said(model: &Model, world: &World, blocks: &[&Block]) -> BTreeMap<IpNet, Said> {
    let mut said: BTreeMap<IpNet, Said> = BTreeMap::new();
    let mut at = |net: IpNet, f: &mut dyn FnMut(&mut Said)| f(said.entry(net.trunc()).or_default());
    for net in &world.unmanaged {
        at(*net, &mut |s| (s.unmanaged, s.subnet) = (true, Some(true)));
    }
    for (name, network) in &model.networks {
        let managed = model.owner_of_network(name).is_some();
        for net in network.subnets.iter().filter(|_| !managed) {
            at(*net, &mut |s| (s.unmanaged, s.subnet) = (true, Some(true)));
        }
        // Of a network without ports here it is a machine outside.
        let outside = |ip: &IpAddr| world.lan.keys().any(|block| block.contains(ip));
        if let Some(ip) = network.gateway.as_ref().filter(|ip| !outside(ip)) {
            at(IpNet::from(*ip), &mut |s| s.gateway = true);
        }
    }
    for tier in &model.tiers {
        let owner = Owner::Tier(tier.name.clone());
        for net in model.subnets(tier) {
            // Docker may have given the block to somebody else since.
            at(net, &mut |s| {
                if !s.unmanaged {
                    (s.tier, s.subnet) = (Some(owner.clone()), Some(false));
                }
            });
        }
        for net in &tier.addresses {
            at(*net, &mut |s| (s.tier, s.named) = (Some(owner.clone()), Some(owner.clone())));
        }
        for (net, open) in world.subnets.get(&tier.name).into_iter().flatten() {
            at(*net, &mut |s| (s.tier, s.subnet) = (Some(owner.clone()), Some(*open)));
        }
        for service in &tier.services {
            let owner = Owner::Service { tier: tier.name.clone(), service: service.name.clone() };
            for net in &service.addresses {
                at(*net, &mut |s| s.service = Some(owner.clone()));
            }
        }
    }
    // A tier's bridge may lead to the same network: who is behind its ports is known by these.
    let bridge = |net: &IpNet| world.subnets.values().flatten().any(|(subnet, _)| subnet == net);
    for (net, owner) in world.lan.iter().filter(|(net, owner)| owner.is_some() || !bridge(net)) {
        at(*net, &mut |s| {
            (s.tier, s.unmanaged, s.subnet) = (s.named.clone(), false, None);
            s.lan = owner.clone().map_or(Lan::Block, Lan::Address);
        });
    }
    for ip in &world.host {
        at(IpNet::from(*ip), &mut |s| s.host = true);
    }
    for (i, block) in blocks.iter().enumerate() {
        at(block.cidr, &mut |s| s.begins.push(i as u16));
        for except in &block.except {
            at(*except, &mut |s| s.ends.push(i as u16));
        }
    }
    said
}

/// What `check` refuses in the file can still come about with what Docker and the kernel say.
fn overlap(said: &BTreeMap<IpNet, Said>) -> Result<(), CompileError> {
    let mut order: Vec<(&IpNet, &Owner, bool)> =
        said.iter().filter_map(|(net, s)| Some((net, s.tier.as_ref()?, s.subnet.is_some()))).collect();
    order.sort_by_key(|(net, ..)| (net.network(), net.prefix_len()));
    let mut around: Vec<(&IpNet, &Owner, bool)> = Vec::new();
    for (net, owner, subnet) in order {
        while around.last().is_some_and(|(outer, ..)| !outer.contains(net)) {
            around.pop();
        }
        let clash = around.iter().rev().find(|(_, other, outer)| *other != owner && (*outer || subnet));
        if let Some((outer, other, _)) = clash {
            return Err(CompileError::Overlap {
                inner: *net,
                inner_tier: owner.to_string(),
                outer: **outer,
                outer_tier: other.to_string(),
            });
        }
        around.push((net, owner, subnet));
    }
    Ok(())
}
