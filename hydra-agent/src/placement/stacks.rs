//! Stacks that more than one owner has a claim on: shared by containers of several services, or on networks of several tiers.

use std::collections::BTreeSet;

use super::resolve::PortHome;
use super::{Claims, LABEL};
use crate::inventory::snapshot::Stack;
use crate::policy::file::{Multihome, SharedStack};
use crate::policy::rows::Owner;
use crate::published::Remark;

/// What names and labels make of a stack.
pub(super) enum Claimed {
    /// Nothing: each port is its network's.
    Nobody,
    /// The same on every network.
    By(Owner),
    /// Its ports are closed.
    Closed(Remark),
}

/// Whose a stack is by the names in the policy, and where they may by its members' labels; a name counts more than a label.
pub(super) fn claimed(claims: &Claims, labels: bool, stack: &Stack, warnings: &mut Vec<Remark>) -> Claimed {
    let mut found: Vec<(Owner, &str)> = Vec::new();
    for member in &stack.members {
        let mut named = claims
            .services()
            .filter(|(_, s)| s.containers.contains(member))
            .map(|(t, s)| s.owner(t))
            .peekable();
        if named.peek().is_some() {
            found.extend(named.map(|owner| (owner, member.as_str())));
            continue;
        }
        let Some(label) = stack.labels.get(member).and_then(|l| l.get(LABEL)).filter(|_| labels) else {
            continue;
        };
        match claims.owner(label) {
            Some(owner) => found.push((owner, member)),
            // What it was meant to be is not known: it could be less than what its network gives.
            None => {
                return Claimed::Closed(Remark {
                    what: stack.name.clone(),
                    why: format!(
                        "the label `{LABEL}` of `{member}` names no tier or service of the policy, and its ports are closed: {}",
                        shown(label)
                    ),
                    hint:
                        "make it again with a tier or `tier/service` of the policy as label, or without one"
                            .to_owned(),
                });
            }
        }
    }
    let owners: BTreeSet<Owner> = found.iter().map(|(owner, _)| owner.clone()).collect();
    if owners.len() > 1 {
        let who: Vec<String> =
            found.iter().map(|(owner, member)| format!("`{member}` of `{owner}`")).collect();
        let who = who.join(" and ");
        match claims.shared_stack {
            SharedStack::Refuse => {
                return Claimed::Closed(Remark {
                    what: stack.name.clone(),
                    why: format!("{who} share one network stack: `shared-stack: refuse` closes its ports"),
                    hint:
                        "put them in one service, give each its own stack, or write `shared-stack: restrict`"
                            .to_owned(),
                });
            }
            SharedStack::Restrict => warnings.push(Remark {
                what: stack.name.clone(),
                why: format!("{who} share one network stack: it may do only what each of them may do"),
                hint: "put them in one service, or give each its own stack".to_owned(),
            }),
        }
    }
    Owner::of_all(owners).map_or(Claimed::Nobody, Claimed::By)
}

/// What is to be said of a stack that nobody claims and whose ports are on networks of several tiers, and whether its ports are
/// closed for it.
pub(super) fn multihomed<'h>(
    claims: &Claims,
    stack: &Stack,
    homes: impl Iterator<Item = &'h PortHome>,
) -> Option<(Remark, bool)> {
    let unmanaged = Owner::Unmanaged.to_string();
    let tiers: BTreeSet<String> =
        homes.map(|h| h.tier.clone().unwrap_or_else(|| unmanaged.clone())).collect();
    if tiers.len() < 2 {
        return None;
    }
    let names: Vec<String> = tiers.iter().map(|t| format!("`{t}`")).collect();
    let on = format!("on networks of {}", names.join(" and "));
    let hint = format!("name `{}` in a service, or take it off all but one", stack.name);
    let (why, closed) = match claims.multihome {
        Multihome::Allow => return None,
        Multihome::Warn => (format!("{on}: whoever controls it can carry traffic between them"), false),
        Multihome::Deny => (format!("{on}: `multihome: deny` closes its ports"), true),
    };
    Some((Remark { what: stack.name.clone(), why, hint }, closed))
}

/// The beginning of a text from outside, escaped.
fn shown(text: &str) -> String {
    const MOST: usize = 80;
    let cut = if text.chars().count() > MOST { "…" } else { "" };
    let start: String = text.chars().take(MOST).collect();
    format!("{}{cut}", start.escape_debug())
}

#[cfg(test)]
mod tests;
