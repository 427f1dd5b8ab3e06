//! Compiled rows: numbers, prefixes, sharing, determinism, size and speed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hydra_common::decide::ruling;
use hydra_common::id::{Identity, MAX_IDENTITIES};
use hydra_common::tables::PrefixRow;
use hydra_common::verdict::Verdict;
use proptest::prelude::*;

use super::*;
use crate::policy::compile::{CompileError, compile};
use crate::policy::rows::Owner;
use crate::policy::tables::{PolicyTables, seconds};

fn model(text: &str) -> Model {
    match parse_at(text, "p", NOW) {
        Ok((model, _)) => model,
        Err(problems) => panic!("{problems}"),
    }
}

fn tier(name: &str) -> Owner {
    Owner::Tier(name.to_owned())
}

const TEXT: &str = "version: 1
networks:
  a-net: { subnet: 172.30.1.0/24, gateway: 172.30.1.1 }
  b-net: { external: true }
tiers:
  a: { networks: [a-net], services: { x: { containers: [x], addresses: [172.30.1.9] } } }
  b: { networks: [b-net] }
  lan: { addresses: [192.168.0.0/16] }
rules:
  - { name: r, from: { cidr: 192.168.1.0/24 }, to: a }
  - { name: s, from: b, to: a, ports: [tcp/80, tcp/443] }
";

#[test]
fn prefixes_say_whose_an_address_is() {
    let compiled = compile(&model(TEXT), &World::default(), &mut Numbers::default()).unwrap();
    let mut out = String::new();
    for (net, row) in &compiled.prefixes {
        let (class, _) = &compiled.identities[&row.identity];
        out += &format!("{net} {} {:?} flags {}\n", class.owner, class.blocks, row.flags);
    }
    assert_eq!(
        out,
        "172.30.1.0/24 a [] flags 1
172.30.1.1/32 host [] flags 1
172.30.1.9/32 a/x [] flags 1
192.168.0.0/16 lan [] flags 0
192.168.1.0/24 lan [0] flags 0
"
    );
}

#[test]
fn what_the_host_knows_is_added() {
    let model = model(TEXT);
    let ip = |t: &str| t.parse::<IpAddr>().unwrap();
    let world = World {
        subnets: BTreeMap::from([("b".to_owned(), vec![("172.31.0.0/16".parse().unwrap(), true)])]),
        live: [(Owner::Unmanaged, ip("192.168.1.77"))].into(),
        host: vec![ip("192.168.1.244"), ip("172.31.0.1")],
        unmanaged: vec!["172.17.0.0/16".parse().unwrap()],
        ..World::default()
    };
    let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
    let at = |t: &str| compiled.prefixes[&t.parse().unwrap()];
    let class = |i: Identity| compiled.identities[&i].0.clone();
    assert_eq!(at("172.31.0.0/16").flags, PrefixRow::INTERIOR | PrefixRow::OPEN);
    assert_eq!(class(at("172.31.0.0/16").identity).owner, tier("b"));
    assert_eq!(class(at("172.31.0.1/32").identity).owner, Owner::Host);
    assert_eq!(class(at("172.17.0.0/16").identity).owner, Owner::Unmanaged);
    let host = compiled.identity(&Owner::Host, Some(ip("192.168.1.244"))).unwrap();
    assert_eq!(class(host).blocks, [0]);
    assert!(compiled.identity(&Owner::Unmanaged, Some(ip("192.168.1.77"))).is_some());
    assert_eq!(compiled.identity(&Owner::Host, None), Some(Identity::HOST));
    // Nobody of this tier has been seen in that block.
    assert_eq!(compiled.identity(&tier("b"), Some(ip("192.168.1.5"))), None);
    assert_eq!(compiled.identity_of_address(ip("8.8.8.8")), Identity::EXTERNAL);
}

#[test]
fn a_network_without_ports_is_the_outside_but_for_the_containers_of_this_host() {
    let model = model(
        "version: 1\ntiers:\n  b: { networks: [lan] }\nnetworks:\n  lan: { subnet: 198.51.100.0/24, gateway: 198.51.100.1 }\n",
    );
    let net = |t: &str| t.parse::<ipnet::IpNet>().unwrap();
    let world = World {
        lan: [(net("198.51.100.0/24"), None), (net("198.51.100.20/32"), Some(tier("b")))].into(),
        host: vec!["198.51.100.9".parse().unwrap()],
        ..World::default()
    };
    let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
    let owner = |t: &str| {
        let identity = compiled.identity_of_address(t.parse().unwrap());
        compiled.identities[&identity].0.owner.clone()
    };
    assert_eq!(owner("198.51.100.20"), tier("b"));
    assert_eq!(owner("198.51.100.9"), Owner::Host);
    for outside in ["198.51.100.1", "198.51.100.7"] {
        assert_eq!(owner(outside), Owner::External, "{outside}");
    }
    assert_eq!(compiled.prefixes[&net("198.51.100.20/32")].flags, PrefixRow::LAN);
    assert!(compiled.prefixes.values().all(|row| row.flags & PrefixRow::INTERIOR == 0));
}

#[test]
fn machines_on_a_network_without_ports_are_whose_addresses_name_them() {
    let net = |t: &str| t.parse::<ipnet::IpNet>().unwrap();
    for block in ["198.51.100.0/24", "198.51.0.0/16", "198.51.100.0/25"] {
        let text = format!(
            "version: 1\ntiers:\n  b: {{ networks: [lan] }}\n  home: {{ addresses: [{block}] }}\n  c: {{ networks: [c] }}\n"
        );
        let world = World {
            lan: [(net("198.51.100.0/24"), None), (net("198.51.100.20/32"), Some(tier("b")))].into(),
            subnets: BTreeMap::from([("c".to_owned(), vec![(net("10.0.0.0/8"), false)])]),
            ..World::default()
        };
        let compiled = compile(&model(&text), &world, &mut Numbers::default()).unwrap();
        let owner = |t: &str| {
            let identity = compiled.identity_of_address(t.parse().unwrap());
            compiled.identities[&identity].0.owner.clone()
        };
        assert_eq!(owner("198.51.100.7"), tier("home"), "{block}");
        assert_eq!(owner("198.51.100.20"), tier("b"), "{block}");
        let inside = World { lan: [(net("10.1.0.0/16"), None)].into(), ..world };
        let compiled = compile(&model(&text), &inside, &mut Numbers::default()).unwrap();
        let identity = compiled.identity_of_address("10.1.0.7".parse().unwrap());
        assert_eq!(compiled.identities[&identity].0.owner, Owner::External, "a bridge's block does not");
    }
}

#[test]
fn a_tiers_bridge_keeps_the_block_of_a_network_without_ports() {
    let net = |t: &str| t.parse::<ipnet::IpNet>().unwrap();
    let text = "version: 1\ntiers:\n  b: { networks: [lan] }\n  vms: { bridges: [br0] }\n";
    let world = World {
        lan: [(net("198.51.100.0/24"), None), (net("198.51.100.20/32"), Some(tier("b")))].into(),
        subnets: BTreeMap::from([("vms".to_owned(), vec![(net("198.51.100.0/24"), true)])]),
        ..World::default()
    };
    let compiled = compile(&model(text), &world, &mut Numbers::default()).unwrap();
    let rows = ["198.51.100.0/24", "198.51.100.20/32"].map(|block| {
        let row = compiled.prefixes[&net(block)];
        (compiled.identities[&row.identity].0.owner.clone(), row.flags)
    });
    let open = PrefixRow::INTERIOR | PrefixRow::OPEN;
    assert_eq!(rows, [(tier("vms"), open), (tier("b"), PrefixRow::LAN)]);
}

#[test]
fn networks_of_the_host_that_contradict_the_policy_are_refused() {
    let subnets = BTreeMap::from([("b".to_owned(), vec![("192.168.5.0/24".parse().unwrap(), false)])]);
    let world = World { subnets, ..World::default() };
    let error = compile(&model(TEXT), &world, &mut Numbers::default()).unwrap_err();
    assert_eq!(error.to_string(), "192.168.5.0/24 of tier `b` overlaps with 192.168.0.0/16 of tier `lan`");
    // A network that Docker gave to somebody else since is theirs.
    let world = World { unmanaged: vec!["172.30.1.0/24".parse().unwrap()], ..World::default() };
    let compiled = compile(&model(TEXT), &world, &mut Numbers::default()).unwrap();
    let row = compiled.prefixes[&"172.30.1.0/24".parse().unwrap()];
    assert_eq!(compiled.identities[&row.identity].0.owner, Owner::Unmanaged);
}

#[test]
fn numbers_stay_and_are_used_again_only_when_all_are_taken() {
    let mut numbers = Numbers::default();
    let first = compile(&model(TEXT), &World::default(), &mut numbers).unwrap();
    let kept = numbers.clone();
    let small = "version: 1\ntiers:\n  b: { networks: [b-net] }\n  c: { networks: [c-net] }\n";
    let second = compile(&model(small), &World::default(), &mut numbers).unwrap();
    assert_eq!(first.names[&tier("b")], second.names[&tier("b")]);
    assert!(kept.identities.values().all(|n| *n != second.names[&tier("c")].0));
    let third = compile(&model(TEXT), &World::default(), &mut numbers).unwrap();
    assert_eq!(first.names, third.names);
    assert_eq!(first.prefixes, third.prefixes);
    // Full: a name that is not wanted gives way.
    for n in 0..MAX_IDENTITIES as u16 {
        numbers.identities.entry(format!("gone{n}")).or_insert(n);
    }
    let taken = "version: 1\ntiers:\n  b: { networks: [b-net] }\n  new: { networks: [c-net] }\n";
    let fourth = compile(&model(taken), &World::default(), &mut numbers).unwrap();
    assert_eq!(fourth.names[&tier("b")], first.names[&tier("b")]);
    let mut seen: Vec<u16> = numbers.identities.values().copied().collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), numbers.identities.len());
    assert!(seen.iter().all(|n| (4..1024).contains(n)), "{seen:?}");
}

#[test]
fn pairs_that_the_same_rules_match_share_their_rows() {
    let mut text = "version: 1\ntiers:\n".to_owned();
    for i in 0..40 {
        text += &format!("  t{i}: {{ networks: [n{i}] }}\n");
    }
    text += "rules:\n  - { name: r, from: any, to: internal, ports: [tcp/80, tcp/443] }\n";
    let compiled = compile(&model(&text), &World::default(), &mut Numbers::default()).unwrap();
    assert_eq!(compiled.cells.len(), 43 * 43);
    // The defaults behind the rule differ: inside a tier, from the host, everything else.
    assert_eq!(compiled.rule_sets.len(), 3);
    assert_eq!(compiled.decisions.len(), 5);
}

/// A random policy's text: a few tiers, some with known blocks, and rules over everything that the language has.
fn policies() -> impl Strategy<Value = (String, Vec<String>)> {
    let selector = prop_oneof![
        Just("any".to_owned()),
        Just("internal".to_owned()),
        Just("external".to_owned()),
        Just("host".to_owned()),
        Just("unmanaged".to_owned()),
        Just("a".to_owned()),
        Just("a/x".to_owned()),
        Just("b".to_owned()),
        Just("lan".to_owned()),
        Just("lab".to_owned()),
        Just("{ cidr: 10.0.0.0/8, except: [10.1.0.0/16] }".to_owned()),
        Just("{ cidr: 172.30.0.0/16 }".to_owned()),
        Just("{ cidr: 10.1.2.0/24 }".to_owned()),
    ];
    let list = prop::collection::vec(selector, 1..3).prop_map(|l| format!("[{}]", l.join(", ")));
    let port = prop_oneof![
        Just("tcp"),
        Just("tcp/80"),
        Just("tcp/1-100"),
        Just("udp/53"),
        Just("ping"),
        Just("icmp"),
        Just("proto/47"),
        Just("x")
    ];
    let ports = prop::option::of(prop::collection::vec(port, 1..3));
    let action = prop_oneof![Just("allow"), Just("deny"), Just("audit")];
    let expires = prop::option::weighted(0.3, 2_000_000_000i64..2_000_000_100);
    let rule = (list.clone(), list, ports, action, expires).prop_map(|(from, to, ports, action, expires)| {
        let ports = ports.map_or(String::new(), |p| format!(", ports: [{}]", p.join(", ")));
        let time = |s| time::OffsetDateTime::from_unix_timestamp(s).unwrap();
        let format = &time::format_description::well_known::Rfc3339;
        let expires =
            expires.map_or(String::new(), |s| format!(", expires: {}", time(s).format(format).unwrap()));
        format!("from: {from}, to: {to}, action: {action}{ports}{expires}")
    });
    prop::collection::vec(rule, 0..7).prop_map(|rules| {
        let head = "version: 1
networks: { a-net: { subnet: 172.30.1.0/24 } }
tiers:
  a: { networks: [a-net], services: { x: { containers: [x], ports: [tcp/5432, udp/1] } } }
  b: { networks: [b-net] }
  lan: { addresses: [10.0.0.0/8] }
  lab: { addresses: [10.1.0.0/16], mode: audit }
";
        (head.to_owned(), rules)
    })
}

fn text_of(head: &str, rules: &[String], order: &[usize]) -> String {
    let lines: String = order.iter().map(|i| format!("  - {{ name: r{i}, {} }}\n", rules[*i])).collect();
    if rules.is_empty() { head.to_owned() } else { format!("{head}rules:\n{lines}") }
}

const ENDS: [&str; 16] = [
    "a",
    "a/x",
    "b",
    "lan",
    "lab",
    "external",
    "host",
    "unmanaged",
    "10.0.0.1",
    "10.1.0.1",
    "10.1.2.3",
    "172.30.1.7",
    "172.30.9.9",
    "8.8.8.8",
    "10.1.3.0",
    "10.255.255.255",
];
const PORTS: [&str; 10] =
    ["tcp/0", "tcp/80", "tcp/100", "tcp/101", "tcp/5432", "udp/53", "udp/54", "icmp/8", "icmp/3", "proto/47"];

/// Verdict and rule for every question, by name.
fn verdicts(text: &str, now: i64) -> Option<Vec<(Verdict, String)>> {
    let (model, _) = parse_at(text, "p", NOW).ok()?;
    let compiled = compile(&model, &World::default(), &mut Numbers::default()).unwrap();
    let tables = PolicyTables::new(&compiled);
    let mut all = Vec::new();
    for from in ENDS {
        for to in ENDS {
            for port in PORTS {
                let id = |t: &str| explain::identity_of(&compiled, &model.party(t).unwrap());
                let packet = ports::question(port, |_| None).unwrap()[0];
                let r = ruling(&tables, 1, id(from), id(to), packet.selector(), seconds(now));
                all.push((r.verdict, compiled.rule(r.rule).unwrap_or_default().to_owned()));
            }
        }
    }
    Some(all)
}

/// The same by the words of the language: every rule in turn, no table.
fn by_hand(text: &str, now: i64) -> Vec<(Verdict, String)> {
    let (model, _) = parse_at(text, "p", NOW).unwrap();
    let owner = |end: &str| -> Owner {
        match end.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => match ip.octets() {
                [10, 1, ..] => tier("lab"),
                [10, ..] => tier("lan"),
                [172, 30, 1, _] => tier("a"),
                _ => Owner::External,
            },
            _ => model.owner(end).unwrap(),
        }
    };
    let matches = |selector: &model::Selector, end: &str| match selector {
        model::Selector::Any => true,
        model::Selector::Internal => ["a", "b"].contains(&owner(end).tier()),
        model::Selector::Owner(Owner::Tier(t)) => owner(end).tier() == t,
        model::Selector::Owner(o) => owner(end) == *o,
        model::Selector::Block(block) => match end {
            "a" => block.cidr == "172.30.0.0/16".parse().unwrap(),
            // The lab is not the lan's.
            "lan" => block.cidr == "10.0.0.0/8".parse().unwrap(),
            end => end.parse().is_ok_and(|ip| block.contains(ip)),
        },
    };
    let mut all = Vec::new();
    for from in ENDS {
        for to in ENDS {
            for port in PORTS {
                let packet = ports::question(port, |_| None).unwrap()[0];
                let hit = |action: file::Action| {
                    model.rules.iter().find(|r| {
                        r.action == action
                            && r.expires.is_none_or(|e| now < e)
                            && r.ports.contains(packet.selector())
                            && r.from.iter().any(|s| matches(s, from))
                            && r.to.iter().any(|s| matches(s, to))
                    })
                };
                let (a, b) = (owner(from), owner(to));
                let lab = a.tier() == "lab" || b.tier() == "lab";
                let answer = if let Some(r) = hit(file::Action::Deny) {
                    (Verdict::Denied, r.name.clone())
                } else if let Some(r) = hit(file::Action::Allow) {
                    (Verdict::Allowed, r.name.clone())
                } else if let Some(r) = hit(file::Action::Audit) {
                    (Verdict::Audited, r.name.clone())
                } else if a == Owner::Host || (a.tier() == b.tier() && model.tier(a.tier()).is_some()) {
                    (Verdict::Allowed, String::new())
                } else if lab {
                    (Verdict::Audited, String::new())
                } else {
                    (Verdict::Denied, String::new())
                };
                all.push(answer);
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn tables_say_what_the_language_says((head, rules) in policies(), now in 1_999_999_990i64..2_000_000_110) {
        let order: Vec<usize> = (0..rules.len()).collect();
        let text = text_of(&head, &rules, &order);
        if let Some(found) = verdicts(&text, now) {
            let wanted = by_hand(&text, now);
            let questions = ENDS.iter().flat_map(|f| ENDS.iter().flat_map(move |t| PORTS.iter().map(move |p| (f, t, p))));
            for ((found, wanted), question) in found.iter().zip(&wanted).zip(questions) {
                prop_assert_eq!(found, wanted, "{:?} in\n{}", question, text);
            }
        }
    }

    #[test]
    fn the_same_input_gives_the_same_rows((head, rules) in policies()) {
        let order: Vec<usize> = (0..rules.len()).collect();
        let text = text_of(&head, &rules, &order);
        if let Ok((model, _)) = parse_at(&text, "p", NOW) {
            let once = || compile(&model, &World::default(), &mut Numbers::default()).unwrap();
            prop_assert_eq!(once(), once());
        }
    }

    #[test]
    fn the_order_of_rules_changes_no_verdict((head, rules) in policies(), seed in any::<u64>()) {
        let order: Vec<usize> = (0..rules.len()).collect();
        let mut other = order.clone();
        other.sort_by_key(|i| seed.rotate_left(*i as u32 * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let verdict = |order: &[usize]| verdicts(&text_of(&head, &rules, order), NOW)
            .map(|all| all.into_iter().map(|(v, _)| v).collect::<Vec<_>>());
        prop_assert_eq!(verdict(&order), verdict(&other));
    }

    #[test]
    fn no_text_breaks_the_reader(text in "[ -~\n]{0,200}") {
        let _ = parse_at(&text, "p", NOW);
    }

    #[test]
    fn no_change_of_a_good_text_breaks_the_reader(at in 0usize..6000, with in "[ -~\n\t]{0,3}", take in 0usize..8) {
        let text = repository("hydra.yaml");
        let at = text.char_indices().map(|(i, _)| i).nth(at % text.chars().count()).unwrap();
        let end = text.char_indices().map(|(i, _)| i).find(|i| *i >= at + take).unwrap_or(text.len());
        let _ = parse_at(&format!("{}{with}{}", &text[..at], &text[end..]), "p", NOW);
    }
}

#[test]
fn big_policies_compile() {
    let mut text = "version: 1\ntiers:\n".to_owned();
    for i in 0..64 {
        text += &format!("  t{i}: {{ networks: [n{i}] }}\n");
    }
    text += "rules:\n";
    for i in 0..2_000 {
        let (a, b, c) = (i % 64, (i * 7 + i / 64) % 64, (i * 13 + 5) % 64);
        text += &format!(
            "  - {{ name: r{i}, from: [t{a}, t{c}], to: t{b}, ports: [tcp/{}, udp/{}-{}] }}\n",
            i % 60_000 + 1,
            i + 1,
            i + 50
        );
    }
    let compiled = compile(&model(&text), &World::default(), &mut Numbers::default()).unwrap();
    assert_eq!(compiled.cells.len(), 67 * 67);
}

#[test]
fn a_long_list_of_blocks_is_one_class() {
    let blocks: String =
        (0..5_000).map(|i| format!("{{ cidr: 10.{}.{}.0/24 }}, ", i / 256, i % 256)).collect();
    let text = format!(
        "version: 1\ntiers: {{ a: {{ networks: [n] }} }}\nrules:\n  - {{ name: r, from: [{blocks}], to: a }}\n"
    );
    let mut numbers = Numbers::default();
    let compiled = compile(&model(&text), &World::default(), &mut numbers).unwrap();
    assert_eq!(compiled.identities.len(), 5, "external, host, unmanaged, a, and external in those blocks");
    assert_eq!(compiled.prefixes.len(), 5_000);
    let long = numbers.identities.keys().find(|k| k.contains('@')).unwrap();
    assert!(long.starts_with("external@5000 blocks "), "{long}");
}

#[test]
fn more_than_the_tables_hold_is_an_error_with_the_number() {
    let blocks: String =
        (0..33_000).map(|i| format!("{{ cidr: 10.{}.{}.0/24 }}, ", i / 256, i % 256)).collect();
    let text = format!(
        "version: 1\ntiers: {{ a: {{ networks: [n] }} }}\nrules:\n  - {{ name: r, from: [{blocks}], to: a }}\n"
    );
    let problems = parse_at(&text, "p", NOW).unwrap_err();
    let expected = CompileError::TooMany { what: "address prefixes", have: 33_000, most: 32_768 };
    assert!(problems.to_string().contains(&expected.to_string()), "{problems}");
}
