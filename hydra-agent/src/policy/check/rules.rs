//! Checks of `rules:` and `expect:`: names, selectors, ports, and rules that can match nothing.

use hydra_common::tables::MAX_RULES;
use ipnet::IpNet;

use super::Checker;
use crate::beside::both;
use crate::diagnostic::Place;
use crate::policy::QuickMap;
use crate::policy::doubt::Doubt;
use crate::policy::file;
use crate::policy::file::Action;
use crate::policy::model::{Expect, Model, Party, Rule, Selector, Terms};
use crate::policy::ports::{self, Ports, Term};
use crate::policy::rows::{Block, Owner};
use crate::policy::shape::{At, Entries, List};

/// Which families one end of a rule can have.
#[derive(Clone, Copy, Default)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    const BOTH: Self = Self { v4: true, v6: true };

    fn of(block: IpNet) -> Self {
        Self { v4: block.addr().is_ipv4(), v6: block.addr().is_ipv6() }
    }

    fn or(self, other: Self) -> Self {
        Self { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
    }

    fn and(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }

    fn none(self) -> bool {
        !self.v4 && !self.v6
    }
}

/// Rules from which on a second thread is worth its while.
const MANY: usize = 1_000;

/// Rules that were checked, and where their names stand.
type Checked<'f> = (Vec<Rule>, QuickMap<&'f str, Place>);

impl Checker {
    pub(super) fn rules(&mut self, rules: Option<&Entries<file::Rule>>, model: &mut Model, now: i64) {
        let rules = rules.map_or(&[][..], |r| &r.0);
        if let Some(over) = rules.get(MAX_RULES as usize) {
            let message = format!("the policy has {} rules, the tables hold {MAX_RULES}", rules.len());
            self.error(over.place, message, None);
        }
        let apart = if rules.len() < MANY || self.full() { None } else { self.in_two(rules, model, now) };
        model.rules = apart.unwrap_or_else(|| self.in_order(rules, model, now, Self::full).0);
    }

    /// Checks one half beside the other, if nothing is wrong with either: what is wrong is told in order. A half ends where something is.
    fn in_two(&mut self, rules: &[file::Rule], model: &Model, now: i64) -> Option<Vec<Rule>> {
        if !self.misread.is_empty() {
            return None;
        }
        let (first, second) = rules.split_at(rules.len() / 2);
        let half = |rules| {
            let mut checker = Self::default();
            let (checked, names) = checker.in_order(rules, model, now, |checker| !checker.right());
            (checker, checked, names)
        };
        let ((later, others, twice), (checker, mut all, names)) =
            both("hydra-reader", || half(second), || half(first));
        if !checker.right() || !later.right() || twice.keys().any(|name| names.contains_key(name)) {
            return None;
        }
        self.problems.extend(checker.problems.into_iter().chain(later.problems));
        all.extend(others);
        Some(all)
    }

    fn right(&self) -> bool {
        self.errors == 0 && self.doubts.is_empty()
    }

    fn in_order<'f>(
        &mut self,
        rules: &'f [file::Rule],
        model: &Model,
        now: i64,
        enough: fn(&Self) -> bool,
    ) -> Checked<'f> {
        let mut names: QuickMap<&str, Place> = QuickMap::default();
        names.reserve(rules.len());
        let mut checked = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            if enough(self) {
                break;
            }
            let end = rules.get(index + 1).map(|next| next.place);
            let misread = self.misread.iter().any(|p| *p >= rule.place && end.is_none_or(|end| *p < end));
            let file::Rule { place, name, from, to, ports, action, limit, expires } = rule;
            if let Some(name) = name {
                self.name("rule", name);
                match names.get(name.value.as_str()) {
                    Some(first) => {
                        let hint = format!("the first one is in line {}", first.line);
                        self.error(name.place, format!("two rules are named `{}`", name.value), Some(hint));
                    }
                    None => _ = names.insert(&name.value, name.place),
                }
            }
            let errors = self.problems.len();
            let mut from = self.selectors("from", from.as_ref(), model);
            let bad_from = self.problems.len() > errors || from.is_empty();
            let errors = self.problems.len();
            let mut to = self.selectors("to", to.as_ref(), model);
            let bad_to = self.problems.len() > errors || to.is_empty();
            let errors = self.problems.len();
            let (ports, port_texts) = self.ports(ports.as_ref(), model);
            let bad_ports = self.problems.len() > errors || misread;
            if !bad_from && !bad_to && !bad_ports {
                let errors = self.problems.len();
                self.families(*place, model, &from, &to, &ports);
                if self.problems.len() > errors {
                    self.doubts.push(Doubt { from: None, to: None, ports: None, action: None });
                }
            } else {
                // What can't be read may mean anything; the rule itself then matches nothing.
                let action = action.as_ref().map_or(Action::Allow, |a| a.value);
                self.doubts.push(Doubt {
                    from: (!bad_from).then(|| std::mem::take(&mut from)),
                    to: (!bad_to).then(|| std::mem::take(&mut to)),
                    ports: (!bad_ports).then(|| ports.clone()),
                    action: (!misread).then_some(action),
                });
                from.clear();
            }
            let name = name.clone().unwrap_or(At { value: String::new(), place: *place });
            if let Some(expires) = expires
                && expires.value.0 <= now
            {
                let hint = "take it away, or give it a later `expires`".to_owned();
                self.warn(expires.place, format!("rule `{}` has expired", name.value), Some(hint));
            }
            let action = action.as_ref().map_or(Action::Allow, |a| a.value);
            if let Some(limit) = limit.as_ref().filter(|_| action != Action::Allow) {
                let message =
                    format!("rule `{}` has a `limit`, but its action is `{}`", name.value, action.as_str());
                let hint =
                    "only what a rule allows can be limited: take `limit` away, or write `action: allow`";
                self.error(limit.place, message, Some(hint.to_owned()));
            }
            let terms = Terms {
                name: name.value,
                from,
                to,
                ports,
                port_texts,
                action,
                limit: limit.as_ref().map(|l| l.value.0),
                expires: expires.as_ref().map(|e| e.value.0),
            };
            checked.push(Rule { terms: terms.into(), place: name.place });
        }
        (checked, names)
    }

    fn selectors(&mut self, key: &str, list: Option<&List<file::Selector>>, model: &Model) -> Vec<Selector> {
        let Some(list) = list else { return Vec::new() };
        if list.empty {
            let message = format!("`{key}` is empty: the rule can match nothing");
            self.error(list.place, message, Some("write `any` for everything".to_owned()));
        }
        let mut selectors = Vec::with_capacity(list.items.len());
        selectors.extend(list.items.iter().filter_map(|selector| self.selector(selector, model)));
        selectors
    }

    fn selector(&mut self, selector: &file::Selector, model: &Model) -> Option<Selector> {
        match selector {
            file::Selector::Name(name) => self.named(name, model),
            file::Selector::Block { place, cidr, except } => {
                let cidr = cidr.as_ref()?.value.0;
                let mut exceptions = Vec::new();
                for except in except.iter().flat_map(|e| &e.items) {
                    let block = except.value.0;
                    if cidr.contains(&block) {
                        exceptions.push(block);
                    } else {
                        let message =
                            format!("`{block}` does not lie in `{cidr}`: the exception takes nothing away");
                        self.error(except.place, message, None);
                    }
                }
                if IpNet::aggregate(&exceptions).contains(&cidr) {
                    let message = format!("nothing of `{cidr}` is left: the rule can match nothing");
                    self.error(*place, message, None);
                }
                exceptions.sort_unstable();
                exceptions.dedup();
                Some(Selector::Block(Block { cidr, except: exceptions }))
            }
        }
    }

    fn named(&mut self, name: &At<String>, model: &Model) -> Option<Selector> {
        let text = name.value.as_str();
        match text {
            "any" => return Some(Selector::Any),
            "internal" => {
                if !model.tiers.iter().any(crate::policy::model::Tier::is_internal) {
                    let message = "no tier has networks or bridges: `internal` can match nothing";
                    self.error(name.place, message, None);
                }
                return Some(Selector::Internal);
            }
            _ => {}
        }
        if let Some(owner) = model.owner(text) {
            return Some(Selector::Owner(owner));
        }
        if crate::policy::yaml::reads_as_address(text) {
            let message = format!("`{text}` is a block of addresses, not a name");
            self.error(name.place, message, Some(format!("write `{{ cidr: {text} }}`")));
            return None;
        }
        match text.split_once('/') {
            Some((tier, service)) if model.tier(tier).is_some() => {
                let services = model.tier(tier).map_or(&[][..], |t| &t.services);
                let known = services.iter().map(|s| s.name.as_str());
                let hint = crate::policy::suggest::nearest(service, known)
                    .map(|n| format!("did you mean `{tier}/{n}`?"));
                self.error(name.place, format!("unknown service `{text}`"), hint);
            }
            Some((tier, _)) => {
                self.unknown(name.place, "tier", tier, model.tiers.iter().map(|t| t.name.as_str()));
            }
            None => {
                let services = model.services_named(text);
                if let Some((tier, service)) = services.first() {
                    let hint = format!("write `{tier}/{service}`");
                    self.error(name.place, format!("unknown tier `{text}`"), Some(hint));
                } else {
                    let tiers = model.tiers.iter().map(|t| t.name.as_str());
                    self.unknown(name.place, "tier", text, tiers.chain(super::RESERVED));
                }
            }
        }
        None
    }

    fn ports(&mut self, list: Option<&List<At<file::Port>>>, model: &Model) -> (Ports, Vec<String>) {
        let Some(list) = list else { return (Ports::all(), Vec::new()) };
        if list.empty {
            let hint = "leave it out for everything".to_owned();
            self.error(list.place, "`ports` is empty: the rule can match nothing", Some(hint));
        }
        let mut ranges = Vec::new();
        for port in &list.items {
            match ports::parse(&port.value.0) {
                Ok(Term::Ranges(r)) if ranges.is_empty() => ranges = r,
                Ok(Term::Ranges(r)) => ranges.extend(r),
                Ok(Term::Service(name)) => {
                    ranges.extend(self.service_ports_named(port.place, &name, model));
                }
                Err(refusal) => self.error(port.place, refusal.message, refusal.hint),
            }
        }
        (Ports::of(ranges), list.items.iter().map(|p| p.value.0.clone()).collect())
    }

    fn service_ports_named(&mut self, place: Place, name: &str, model: &Model) -> Vec<(u32, u32)> {
        let found = model.services_named(name);
        match found.as_slice() {
            [(tier, service)] => {
                if let Some(ports) = model.service(tier, service).and_then(|s| s.ports.as_ref()) {
                    return ports.ranges().to_vec();
                }
                let hint = "give it `ports`, or write the port here".to_owned();
                self.error(place, format!("service `{tier}/{service}` has no ports"), Some(hint));
            }
            [] => {
                let services: Vec<String> = model
                    .tiers
                    .iter()
                    .flat_map(|t| t.services.iter().map(move |s| (t, s)))
                    .flat_map(|(t, s)| [s.name.clone(), format!("{}/{}", t.name, s.name)])
                    .collect();
                let known = services.iter().map(String::as_str).chain(ports::WORDS);
                let hint = crate::policy::suggest::nearest(name, known).map_or_else(
                    || "write `tcp/5432`, or the name of a service that has ports".to_owned(),
                    |n| format!("did you mean `{n}`?"),
                );
                self.error(place, format!("`{name}` is no port and no service"), Some(hint));
            }
            several => {
                let names: Vec<String> = several.iter().map(|(t, s)| format!("`{t}/{s}`")).collect();
                let message = format!("`{name}` is the name of {} services", several.len());
                self.error(place, message, Some(format!("write {}", names.join(" or "))));
            }
        }
        Vec::new()
    }

    /// A rule whose two ends and protocol never share a family matches nothing.
    fn families(&mut self, place: Place, model: &Model, from: &[Selector], to: &[Selector], ports: &Ports) {
        let side = |selectors: &[Selector]| {
            selectors.iter().map(|s| families_of(model, s)).fold(Families::default(), Families::or)
        };
        let (from, to) = (side(from), side(to));
        if from.none() || to.none() {
            return;
        }
        let message = match (from.and(to), ports.family()) {
            (both, _) if both.none() => {
                "`from` and `to` have no family in common: the rule can match nothing"
            }
            (both, Some(true)) if !both.v4 => {
                "`icmp` is of IPv4, the addresses are IPv6: the rule can match nothing"
            }
            (both, Some(false)) if !both.v6 => {
                "`icmpv6` is of IPv6, the addresses are IPv4: the rule can match nothing"
            }
            _ => return,
        };
        self.error(place, message, None);
    }

    pub(super) fn expect(&mut self, rows: Option<&Entries<file::Expect>>, model: &mut Model) {
        for row in rows.map_or(&[][..], |r| &r.0) {
            let file::Expect { place: _, from, to, port, verdict, rule } = row;
            let from = from.as_ref().and_then(|t| self.party(t, model));
            let to = to.as_ref().and_then(|t| self.party(t, model));
            let known = |name: &str| model.rules.iter().any(|r| r.name == name);
            if let Some(rule) = rule.as_ref().filter(|r| !known(&r.value)) {
                self.unknown(rule.place, "rule", &rule.value, model.rules.iter().map(|r| r.name.as_str()));
            }
            let rule = rule.as_ref().filter(|r| known(&r.value));
            let packets = port.as_ref().and_then(|p| {
                ports::question(&p.value.0, |name| model.ports_of(name))
                    .map_err(|refusal| self.error(p.place, refusal.message, refusal.hint))
                    .ok()
            });
            let (Some(from), Some(to), Some(packets), Some(port), Some(verdict)) =
                (from, to, packets, port, verdict)
            else {
                continue;
            };
            match super::super::explain::packets_between(&from, &to, &packets) {
                Ok(packets) => model.expect.push(Expect {
                    from,
                    to,
                    packets,
                    port: port.value.0.clone(),
                    verdict: verdict.value,
                    rule: rule.map(|r| r.value.clone()),
                    place: verdict.place,
                    rule_place: rule.map(|r| r.place),
                }),
                Err(message) => self.error(port.place, message, None),
            }
        }
    }

    fn party(&mut self, text: &At<String>, model: &Model) -> Option<Party> {
        model.party(&text.value).map_err(|(message, hint)| self.error(text.place, message, hint)).ok()
    }
}

/// Rules that come into a policy without a word: neither an error nor a warning.
pub(in crate::policy) fn of_known(rules: &[file::Rule], model: &Model, now: i64) -> Option<Vec<Rule>> {
    let mut checker = Checker::default();
    let (checked, _) = checker.in_order(rules, model, now, Checker::full);
    (checker.problems.is_empty() && checker.doubts.is_empty()).then_some(checked)
}

/// What a selector can be. A tier of which only outside blocks are known has their families; everybody else may have both.
fn families_of(model: &Model, selector: &Selector) -> Families {
    let Selector::Owner(owner) = selector else {
        return match selector {
            Selector::Block(block) => Families::of(block.cidr),
            Selector::Any | Selector::Internal | Selector::Owner(_) => Families::BOTH,
        };
    };
    let (tier, service) = match owner {
        Owner::Tier(tier) => (tier, None),
        Owner::Service { tier, service } => (tier, Some(service)),
        Owner::External | Owner::Host | Owner::Unmanaged | Owner::Shared(_) => return Families::BOTH,
    };
    let Some(tier) = model.tier(tier) else { return Families::BOTH };
    if tier.is_internal() || tier.addresses.is_empty() {
        return Families::BOTH;
    }
    let service = service.and_then(|s| model.service(&tier.name, s));
    let blocks = match service {
        Some(s) if s.addresses.is_empty() => return Families::BOTH,
        Some(s) => &s.addresses,
        None => &tier.addresses,
    };
    blocks.iter().map(|b| Families::of(*b)).fold(Families::default(), Families::or)
}
