//! Owners of stacks that several tiers and services share: what each of them may do, and nothing else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hydra_common::decide::{Ruling, ruling};
use hydra_common::tables::selector;
use hydra_common::verdict::Verdict;

use super::*;
use crate::policy::compile::compile;
use crate::policy::rows::Owner;
use crate::policy::tables::{PolicyTables, seconds};

/// Rules of every action, by tier, service and block, some with an end.
const TEXT: &str = "version: 1
defaults: { intra-tier: audit }
tiers:
  web: { networks: [web-net], subnets: [10.1.0.0/16], services: { page: { containers: [page] } } }
  db: { networks: [db-net], subnets: [10.2.0.0/16], services: { pg: { containers: [pg], ports: tcp/5432 } } }
  lab: { networks: [lab-net], subnets: [10.3.0.0/16], mode: audit }
rules:
  - { name: shut, from: any, to: db, ports: [tcp/20-30, udp/99], action: deny }
  - { name: block, from: { cidr: 10.1.1.0/24 }, to: db, ports: [tcp/1-1000, ping] }
  - { name: queries, from: [web, lab], to: db, ports: tcp/5432 }
  - { name: debug, from: web, to: db, ports: tcp/1-65535, expires: 2100-01-01T00:00:00Z }
  - { name: later, from: lab, to: db, ports: [tcp/1-6000], expires: 2110-01-01T00:00:00Z }
  - { name: freeze, from: web/page, to: any, ports: udp, action: deny, expires: 2105-01-01T00:00:00Z }
  - { name: watch, from: lab, to: web, ports: [udp, tcp/443], action: audit }
  - { name: back, from: db/pg, to: [web, external], ports: [tcp/443, udp/53] }
  - { name: users, from: external, to: [web, lab], ports: tcp/80-90 }
";

fn owner(text: &str) -> Owner {
    match text.split_once('/') {
        Some((tier, service)) => Owner::Service { tier: tier.into(), service: service.into() },
        None => Owner::Tier(text.into()),
    }
}

fn shared<const N: usize>(owners: [&str; N]) -> Owner {
    Owner::of_all(owners.into_iter().map(owner).collect()).unwrap()
}

fn rank(ruling: Ruling) -> u8 {
    match ruling.verdict {
        Verdict::Denied => 0,
        Verdict::Audited => 1,
        Verdict::Allowed => 2,
    }
}

#[test]
fn a_shared_owner_may_do_what_each_of_its_parts_may_do() {
    let (model, _) = parse_at(TEXT, "p", NOW).unwrap();
    let all = [
        shared(["web/page", "db/pg"]),
        shared(["web", "lab"]),
        shared(["web", "db/pg", "lab"]),
        owner("web"),
        owner("web/page"),
        owner("db"),
        owner("db/pg"),
        owner("lab"),
        Owner::External,
        Owner::Host,
        Owner::Unmanaged,
    ];
    let addresses: [IpAddr; 2] = ["10.1.1.5", "10.3.0.5"].map(|ip| ip.parse().unwrap());
    let live: BTreeSet<(Owner, IpAddr)> =
        all.iter().flat_map(|o| addresses.map(|ip| (o.clone(), ip))).collect();
    let world = World { live, ..World::default() };
    let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
    let tables = PolicyTables::new(&compiled);
    let ends: Vec<(&Owner, IpAddr)> =
        all.iter().flat_map(|o| addresses.iter().map(move |ip| (o, *ip))).collect();
    let ports = [0, 1, 19, 20, 30, 31, 53, 79, 80, 90, 91, 99, 443, 1000, 1001, 5432, 6000, 6001, 65_535];
    let selectors: Vec<u32> =
        ports.iter().flat_map(|p| [selector(6, *p), selector(17, *p)]).chain([selector(1, 8), 0]).collect();
    // Before, between and after the ends of rules.
    let moments = [NOW, 4_102_444_799, 4_102_444_800, 4_260_211_200, 4_294_967_294];
    let mut strict = 0;
    for ((from, source), (to, destination)) in ends.iter().flat_map(|f| ends.iter().map(move |t| (*f, *t))) {
        let id = |owner: &Owner, ip| compiled.identity(owner, Some(ip)).unwrap();
        for (selector, now) in selectors.iter().flat_map(|s| moments.map(|now| (*s, seconds(now)))) {
            let ask = |from: &Owner, to: &Owner| {
                ruling(&tables, 1, id(from, source), id(to, destination), selector, now)
            };
            let parts: Vec<Ruling> =
                from.parts().iter().flat_map(|f| to.parts().iter().map(move |t| ask(f, t))).collect();
            let wanted = parts.iter().copied().min_by_key(|r| rank(*r)).unwrap();
            let got = ask(from, to);
            assert_eq!(
                (got.verdict, got.reason, got.rule),
                (wanted.verdict, wanted.reason, wanted.rule),
                "{from} at {source} to {to} at {destination}, selector {selector:#x} at {now}"
            );
            strict += usize::from(parts.iter().any(|r| rank(*r) != rank(wanted)));
        }
    }
    assert!(strict > 1000, "the parts agree everywhere but {strict} times: nothing was shown");
}

#[test]
fn a_shared_owner_has_a_number_that_stays_and_a_name_for_its_ports() {
    let (model, _) = parse_at(TEXT, "p", NOW).unwrap();
    let both = shared(["web/page", "db/pg"]);
    assert_eq!(both.to_string(), "db/pg+web/page");
    let mut numbers = Numbers::default();
    let without = compile(&model, &World::default(), &mut numbers).unwrap();
    assert_eq!(without.identity(&both, None), None);
    let ip: IpAddr = "10.2.0.7".parse().unwrap();
    let world = World { live: [(both.clone(), ip)].into(), ..World::default() };
    let with = compile(&model, &world, &mut numbers).unwrap();
    let number = with.identity(&both, Some(ip)).unwrap();
    assert_eq!(with.identity(&both, None), Some(number), "no block of the rules holds it");
    assert_eq!(numbers.identities.get("db/pg+web/page"), Some(&number.0));
    for owner in without.names.keys() {
        assert_eq!(without.identity(owner, None), with.identity(owner, None), "{owner}");
    }
    assert_eq!(compile(&model, &world, &mut numbers).unwrap(), with);
}

#[test]
fn more_ends_of_rules_than_a_chain_holds_close_what_is_shared() {
    let mut text = "version: 1\ntiers:\n  a: { networks: [a-net] }\n  b: { networks: [b-net] }\n  c: { networks: [c-net] }\nrules:\n".to_owned();
    // One part goes from rule to rule, the other from its second on is stricter: nine steps, where the tables hold eight.
    for n in 0..7 {
        let (year, action) = (2030 + 5 * n, if n == 0 { "allow" } else { "audit" });
        text += &format!("  - {{ name: a{n}, from: a, to: c, expires: {year}-01-01T00:00:00Z }}\n");
        let year = year + 2;
        text += &format!(
            "  - {{ name: b{n}, from: b, to: c, action: {action}, expires: {year}-01-01T00:00:00Z }}\n"
        );
    }
    text += "  - { name: a7, from: a, to: c }\n  - { name: b7, from: b, to: c, action: audit }\n";
    let (model, _) = parse_at(&text, "p", NOW).unwrap();
    let both = shared(["a", "b"]);
    let ip: IpAddr = "10.2.0.7".parse().unwrap();
    let world = World { live: [(both.clone(), ip)].into(), ..World::default() };
    let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
    let tables = PolicyTables::new(&compiled);
    let id = |o: &Owner| compiled.identity(o, None).unwrap();
    let at = |year: i64| {
        let now = seconds((year - 1970) * 31_557_600 + 86_400);
        let said = ruling(&tables, 1, id(&both), id(&owner("c")), selector(6, 80), now);
        format!("{} {}", said.verdict.as_str(), compiled.rule(said.rule).unwrap_or_default())
    };
    assert_eq!(at(2029), "allowed a0");
    assert_eq!(at(2031), "allowed a1");
    assert_eq!(at(2033), "audited b1");
    assert_eq!(at(2056), "audited b5");
    assert_eq!(at(2058), "denied ");
}
