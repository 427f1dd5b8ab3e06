//! Every message of the reader, the checks and the lints, as an operator sees it.

use super::*;

/// A small policy, with lines of the caller's in the place of `tiers` and after it.
fn shown(text: &str) -> String {
    match parse_at(text, "policy.yaml", NOW) {
        Ok((_, warnings)) if warnings.is_empty() => "accepted\n".to_owned(),
        Ok((_, warnings)) => format!("accepted\n{warnings}\n"),
        Err(problems) => format!("refused\n{problems}\n"),
    }
}

fn all(cases: &[(&str, &str)]) -> String {
    cases.iter().map(|(title, text)| format!("## {title}: {}\n", shown(text))).collect()
}

/// Two tiers and what a case adds.
fn with(rest: &str) -> String {
    format!("version: 1\ntiers:\n  web: {{ networks: [web-net] }}\n  db: {{ networks: [db-net] }}\n{rest}")
}

fn with_all(cases: &[(&str, &str)]) -> String {
    cases.iter().map(|(title, rest)| format!("## {title}: {}\n", shown(&with(rest)))).collect()
}

#[test]
fn texts_that_are_not_yaml() {
    insta::assert_snapshot!(all(&[
        ("empty", ""),
        ("only a comment", "# nothing\n"),
        ("a scalar", "hydra\n"),
        ("a list", "- version: 1\n"),
        ("open bracket", "version: 1\ntiers: { web: [\nrules: []\n"),
        ("tab", "version: 1\ntiers:\n\tweb: {}\n"),
        ("two documents", "version: 1\ntiers: {}\n---\nversion: 1\ntiers: {}\n"),
        ("rules behind the end", "version: 1\ntiers: {}\n...\n%BAD\nrules: []\n"),
        ("no YAML behind the end", "version: 1\ntiers: {}\n... # the end\n# and\n  @\n"),
        ("merge key", "version: 1\nx: &a { mode: audit }\ntiers:\n  web: { <<: *a, networks: [n] }\n"),
        ("unknown alias", "version: 1\ntiers: *nobody\n"),
        ("NUL", "version: 1\nname: \0\ntiers: {}\n"),
        ("unclosed quote", "version: 1\nname: \"hydra\ntiers: {}\n"),
        ("recursive alias", "version: 1\ntiers: &a { web: *a }\n"),
        ("bad indentation", "version: 1\ntiers:\n   web: { networks: [n] }\n  db: { networks: [m] }\n"),
        ("a tag", "version: 1\nname: !include other.yaml\ntiers: {}\n"),
    ]));
}

#[test]
fn keys_and_types() {
    insta::assert_snapshot!(all(&[
        ("nothing required", "name: x\n"),
        (
            "unknown keys",
            "version: 1\ntires: {}\ntiers:\n  web: { network: [a], networks: [b], colour: red }\nrule: []\n"
        ),
        (
            "doubled keys",
            "version: 1\nversion: 1\ntiers:\n  web: { networks: [a] }\n  web: { networks: [b] }\n"
        ),
        (
            "doubled keys that read as numbers",
            "version: 1\ntiers:\n  1: { networks: [a] }\n  1: { networks: [b] }\n"
        ),
        ("version", "version: 2\ntiers: {}\n"),
        ("version as text", "version: \"1.0\"\ntiers: {}\n"),
        (
            "modes",
            "version: 1\nmode: enforced\ntiers:\n  web: { networks: [a], mode: Audit, optional: yes }\n"
        ),
        (
            "defaults",
            "version: 1\ndefaults: { intra-tier: denied, cross-tier: allow, from-host: audit }\ntiers: {}\n"
        ),
        (
            "types",
            "version: 1\ntiers:\n  web: [networks]\n  db: { networks: { a: b } }\nrules: { a: b }\nexpect: none\n"
        ),
        ("a list in a list", "version: 1\ntiers:\n  web: { networks: [[a]] }\n"),
        (
            "units",
            "version: 1\ntiers:\n  web: { units: [nginx, nginx.service, nginx.service, a/b.service, .service] }\n  db: { units: [nginx.service, x.timer] }\n"
        ),
        ("no tier", "version: 1\ntiers:\n"),
        (
            "times",
            "version: 1\ntiers: { a: { networks: [n] } }\nrules:\n  - { name: r, from: any, to: a, expires: tomorrow }\n  - { name: s, from: any, to: a, expires: 2026-13-01T00:00:00Z }\n  - { name: t, from: any, to: a, expires: 2026-12-01 }\n"
        ),
    ]));
}

#[test]
fn names() {
    insta::assert_snapshot!(all(&[
        (
            "tiers",
            "version: 1\ntiers:\n  any: { networks: [a] }\n  host: { networks: [b] }\n  Web: { networks: [c] }\n  -x: { networks: [d] }\n  10.0.0.1: { networks: [e] }\n  a/b: { networks: [f] }\n  wéb: { networks: [g] }\n"
        ),
        (
            "long",
            &format!(
                "version: 1\ntiers:\n  {}: {{ networks: [a] }}\n  {}: {{ networks: [b] }}\n",
                "a".repeat(63),
                "b".repeat(64)
            )
        ),
        (
            "services",
            "version: 1\ntiers:\n  web:\n    networks: [a]\n    services:\n      internal: { containers: [x] }\n      My_App: { containers: [y] }\n      fine-1._: { containers: [z] }\n"
        ),
        (
            "rules",
            "version: 1\ntiers: { a: { networks: [n] } }\nrules:\n  - { name: external, from: any, to: a }\n  - { name: \"two words\", from: any, to: a, ports: [tcp/1] }\n  - { from: any, to: a, ports: [tcp/2] }\n  - { name: x, from: any, to: a, ports: [tcp/3] }\n  - { name: x, from: any, to: a, ports: [tcp/4] }\n"
        ),
        (
            "docker",
            "version: 1\ntiers:\n  a: { networks: [\"a b\", \"\"], services: { s: { containers: [/web, \"-x\"] } } }\n  b: { bridges: [a/b, averylongbridgename, \"..\"] }\n"
        ),
        ("policy", "version: 1\nname: \"\"\ntiers: {}\n"),
    ]));
}

#[test]
fn what_a_tier_lives_on() {
    insta::assert_snapshot!(all(&[
        (
            "shared network and bridge",
            "version: 1\ntiers:\n  a: { networks: [n, n], bridges: [br0] }\n  b: { networks: [n], bridges: [br0] }\n"
        ),
        (
            "bridge by option",
            "version: 1\nnetworks:\n  n: { options: { com.docker.network.bridge.name: br7 } }\ntiers:\n  a: { networks: [n] }\n  b: { bridges: [br7] }\n"
        ),
        ("nothing", "version: 1\ntiers:\n  a: {}\n  b: { optional: true }\n"),
        ("subnets alone", "version: 1\ntiers:\n  a: { subnets: [10.0.0.0/24] }\n"),
        (
            "unused network",
            "version: 1\nnetworks:\n  n: { subnet: 10.0.0.0/24 }\n  m: { external: true }\ntiers:\n  a: { networks: [m] }\n"
        ),
        (
            "network entries",
            "version: 1\nnetworks:\n  a: { subnet: 10.0.0.0/24, gateway: 10.0.1.1, ip-range: 10.0.2.0/25, mtu: 20 }\n  b: { subnet: 10.1.0.0/24, gateway: 10.1.0.255 }\n  c: { gateway: 10.2.0.1 }\n  d: { subnet6: 10.3.0.0/24 }\n  e: { subnet: fd00::/64, subnet6: fd01::/64, gateway: \"::ffff:10.0.0.1\" }\ntiers:\n  t: { networks: [a, b, c, d, e] }\n"
        ),
        (
            "services",
            "version: 1\ntiers:\n  a:\n    networks: [n]\n    services:\n      s: { containers: [c, c], ports: [] }\n      t: { containers: [c], ports: [s, tcp/0] }\n      u: {}\n      v: { containers: [d], networks: [m, nn] }\n"
        ),
        (
            "service addresses",
            "version: 1\ntiers:\n  a:\n    addresses: [10.0.0.0/24, 10.0.0.0/24]\n    services:\n      s: { addresses: [10.0.0.5, 10.0.1.5] }\n      t: { addresses: [10.0.0.5] }\n"
        ),
        (
            "service addresses that can't be known",
            "version: 1\ntiers:\n  a:\n    networks: [n]\n    services:\n      s: { addresses: [10.0.0.5] }\n"
        ),
    ]));
}

#[test]
fn blocks() {
    insta::assert_snapshot!(all(&[
        (
            "forms",
            "version: 1\ntiers:\n  a: { addresses: [10.0.0.1/24, \"::ffff:10.0.0.0/104\", \"::ffff:10.0.0.1\", 10.0.0, 10.0.0.0/33, \"fd00::1/64\", 192.168.001.1] }\n"
        ),
        ("equal", "version: 1\ntiers:\n  a: { addresses: [10.0.0.0/8] }\n  b: { addresses: [10.0.0.0/8] }\n"),
        (
            "inside each other is fine for machines",
            "version: 1\ntiers:\n  a: { addresses: [10.0.0.0/8] }\n  b: { addresses: [10.1.0.0/16] }\n"
        ),
        (
            "subnet against addresses",
            "version: 1\nnetworks:\n  n: { subnet: 10.0.0.0/24 }\ntiers:\n  a: { networks: [n] }\n  b: { addresses: [10.0.0.7] }\n  c: { addresses: [10.0.0.0/8] }\n"
        ),
        (
            "subnet against subnet",
            "version: 1\nnetworks:\n  n: { subnet: 10.0.0.0/24, subnet6: \"fd00::/48\" }\n  m: { subnet: 10.0.0.128/25, subnet6: \"fd00:0:0:1::/64\" }\n  o: { subnet: 10.0.0.0/16 }\ntiers:\n  a: { networks: [n] }\n  b: { networks: [m] }\n"
        ),
        (
            "networks of one tier overlap too",
            "version: 1\nnetworks:\n  n: { subnet: 10.0.0.0/24 }\n  m: { subnet: 10.0.0.0/25 }\ntiers:\n  a: { networks: [n, m] }\n"
        ),
        (
            "a tier may repeat its network's subnet",
            "version: 1\nnetworks:\n  n: { subnet: 10.0.0.0/24 }\ntiers:\n  a: { networks: [n], subnets: [10.0.0.0/24], addresses: [10.0.0.0/16] }\n"
        ),
    ]));
}

#[test]
fn rules_of_every_fault() {
    insta::assert_snapshot!(with_all(&[
        (
            "unknown names",
            "rules:\n  - { name: a, from: wep, to: [db, dbb, db/postgres, nobody, nobody/x] }\n  - { name: b, from: interal, to: 10.0.0.0/8 }\n"
        ),
        (
            "empty lists",
            "rules:\n  - { name: a, from: [], to: db }\n  - { name: b, from: web, to: db, ports: [] }\n"
        ),
        (
            "ports",
            "rules:\n  - { name: a, from: web, to: db, ports: [tcp/0, 70000, tcp/90-80, postgress, icmp/echo] }\n"
        ),
        (
            "selectors",
            "rules:\n  - { name: a, from: { cidr: 10.0.0.1/8 }, to: { except: [10.0.0.0/8] } }\n  - { name: b, from: { cidr: 10.0.0.0/8, exept: [] }, to: [[web]] }\n  - { name: c, from: { cidr: 10.0.0.0/8, except: [11.0.0.0/8, 10.0.0.0/9, 10.128.0.0/9] }, to: db }\n"
        ),
        (
            "families",
            "rules:\n  - { name: a, from: { cidr: 10.0.0.0/8 }, to: { cidr: \"fd00::/8\" } }\n  - { name: b, from: { cidr: 10.0.0.0/8 }, to: db, ports: icmpv6 }\n  - { name: c, from: { cidr: \"fd00::/8\" }, to: db, ports: [icmp/8] }\n  - { name: d, from: { cidr: 10.0.0.0/8 }, to: db, ports: ping }\n"
        ),
        (
            "useless",
            "rules:\n  - { name: a, from: web, to: db }\n  - { name: b, from: [web], to: db }\n  - { name: c, from: web, to: db, ports: tcp/80 }\n  - { name: d, from: any, to: db, ports: udp, action: deny }\n  - { name: e, from: web, to: db, ports: [udp/53] }\n  - { name: f, from: web, to: db, action: audit }\n"
        ),
        (
            "expired",
            "rules:\n  - { name: a, from: web, to: db, expires: 2020-01-01T00:00:00Z }\n  - { name: b, from: web, to: db, ports: tcp/80 }\n"
        ),
        (
            "expires later",
            "rules:\n  - { name: a, from: web, to: db, expires: 2099-01-01T00:00:00Z }\n  - { name: b, from: web, to: db, ports: tcp/80 }\n"
        ),
    ]));
    insta::assert_snapshot!(
        "no_internal_tier",
        all(&[(
            "internal of nothing",
            "version: 1\ntiers:\n  a: { addresses: [10.0.0.0/8] }\nrules:\n  - { name: r, from: internal, to: a }\n"
        )])
    );
}

#[test]
fn expectations() {
    insta::assert_snapshot!(with_all(&[
        (
            "not held",
            "rules:\n  - { name: r, from: web, to: db, ports: tcp/5432 }\n  - { name: s, from: web, to: db, ports: tcp/22, action: deny }\nexpect:\n  - { from: web, to: db, port: tcp/5432, verdict: denied }\n  - { from: db, to: web, port: tcp/80, verdict: allowed }\n  - { from: web, to: db, port: tcp/5432, verdict: allowed, rule: s }\n  - { from: web, to: web, port: tcp/80, verdict: audited }\n"
        ),
        (
            "badly asked",
            "expect:\n  - { from: wep, to: db, port: tcp/80, verdict: denied }\n  - { from: web, to: any, port: tcp/80, verdict: denied }\n  - { from: web, to: 10.0.0.0/8, port: tcp/80, verdict: denied }\n  - { from: web, to: db, port: tcp, verdict: denied }\n  - { from: web, to: db, port: [tcp/80], verdict: denied }\n  - { from: web, to: db, port: tcp/80, verdict: deny }\n  - { from: web, to: db, port: tcp/80, verdict: denied, rule: nobody }\n  - { from: 10.0.0.1, to: \"fd00::1\", port: tcp/80, verdict: denied }\n  - { from: 10.0.0.1, to: db, port: icmpv6/128, verdict: denied }\n  - { from: web, to: db, verdict: denied }\n"
        ),
    ]));
}

#[test]
fn more_rules_and_tiers_than_the_tables_hold() {
    let mut text = "version: 1\ntiers:\n".to_owned();
    for i in 0..300 {
        text += &format!("  t{i}: {{ networks: [n{i}] }}\n");
    }
    let problems = parse_at(&text, "p", NOW).unwrap_err();
    assert!(problems.to_string().contains("300 tiers, the tables hold 252"), "{problems}");
    let mut text = "version: 1\ntiers:\n".to_owned();
    for i in 0..100 {
        text += &format!("  t{i}:\n    networks: [n{i}]\n    services:\n");
        for j in 0..11 {
            text += &format!("      s{j}: {{ containers: [c{i}-{j}] }}\n");
        }
    }
    let problems = parse_at(&text, "p", NOW).unwrap_err();
    assert!(problems.to_string().contains("1200 tiers and services, the tables hold 1020"), "{problems}");
    let one = "version: 1\ntiers: { a: { networks: [n] } }\nrules: [{ name: r, from: any, to: a }]\n";
    let mut file = file::File::read(&yaml::read(one).unwrap(), &mut Vec::new()).unwrap();
    let rules = file.rules.as_mut().unwrap();
    let rule = rules.0.remove(0);
    rules.0.extend((0..65_536).map(|i| {
        let name = rule.name.clone().map(|n| shape::At { value: format!("r{i}"), ..n });
        file::Rule { name, ..rule.clone() }
    }));
    let (_, problems, _) = check::check(&file, Vec::new(), NOW);
    let messages: Vec<&str> = problems.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(messages, ["the policy has 65536 rules, the tables hold 65535"]);
}

#[test]
fn texts_made_to_harm_end_early() {
    let mut bomb = "version: 1\nx0: &x0 [a, a, a, a, a, a, a, a, a, a]\n".to_owned();
    for i in 1..10 {
        let refs = vec![format!("*x{}", i - 1); 10].join(", ");
        bomb += &format!("x{i}: &x{i} [{refs}]\n");
    }
    bomb += "tiers: {}\n";
    let long = "x".repeat(yaml::MAX_TEXT + 1);
    let cases = [
        ("aliases", bomb, "aliases"),
        ("flow depth", format!("version: 1\ntiers: {}{}\n", "[".repeat(50_000), "]".repeat(50_000)), "deep"),
        ("block depth", (0..1_500).map(|i| format!("{}a:\n", " ".repeat(i))).collect(), "deep"),
        ("length", long, "too long"),
        ("chain of anchors", (0..20_000).map(|i| format!("k{i}: &a{i} v\n")).collect(), "repeat"),
    ];
    for (name, text, word) in cases {
        let before = std::time::Instant::now();
        let problems = parse_at(&text, "p", NOW).unwrap_err();
        assert!(
            problems.iter().next().unwrap().message.contains(word),
            "{name}: {}",
            problems.iter().next().unwrap().message
        );
        println!("{name}: {:?}", before.elapsed());
    }
}

#[test]
fn bytes_that_are_no_text() {
    let mut out = String::new();
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain("version: 1".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for bytes in [&b"version: 1\nname: \xff\xfe\n"[..], &utf16, &b"\xef\xbb\xbfversion: 1\ntiers: {}\n"[..]] {
        out += &match parse_bytes(bytes, "policy.yaml") {
            Ok((_, warnings)) => format!("accepted {warnings}\n"),
            Err(problems) => format!("refused {problems}\n"),
        };
    }
    insta::assert_snapshot!(out);
}

#[test]
fn three_mistakes_are_three_diagnostics() {
    let text = with(
        "rules:\n  - { name: a, from: wep, to: db }\n  - { name: b, from: web, to: db, ports: tcp/99999 }\n  - { name: c, from: web, to: db, color: red }\n",
    );
    let problems = parse_at(&text, "policy.yaml", NOW).unwrap_err();
    assert_eq!(problems.iter().filter(|d| d.place.is_some()).count(), 3, "{problems}");
}

#[test]
fn rows_that_fail_whatever_a_bad_rule_meant_are_told_beside_it() {
    let rows = "expect:
  - { from: web, to: db, port: tcp/80, verdict: allowed }
  - { from: db, to: web, port: tcp/80, verdict: allowed }
  - { from: web, to: web, port: tcp/80, verdict: denied }
  - { from: nobody, to: web, port: tcp/80, verdict: denied }
";
    let lines = |rules: &str| -> Vec<u32> {
        let problems = parse_at(&with(&format!("rules:\n  - {rules}\n{rows}")), "p", NOW).unwrap_err();
        problems.iter().filter_map(|d| d.place).map(|p| p.line).collect()
    };
    // The ends are known and are not the second row's; no allow rule denies the third.
    assert_eq!(lines("{ name: a, from: web, to: db, ports: tcp/99999 }"), [6, 9, 10, 11]);
    // Its port is known and is not the rows'.
    assert_eq!(lines("{ name: a, from: wep, to: [db, web], ports: tcp/81 }"), [6, 8, 9, 10, 11]);
    // An unknown key may have been anything but the ends.
    assert_eq!(lines("{ name: a, from: web, to: db, colour: red }"), [6, 9, 10, 11]);
    assert_eq!(lines("{ name: a, from: wep, to: web, action: deny }"), [6, 8, 9, 11]);
    // A tier with an error makes every row doubtful.
    let text =
        with(rows).replace("[db-net]", "[db net]").replace("    - { from: nobody", "    - { from: web");
    let found = parse_at(&text, "p", NOW).unwrap_err();
    assert_eq!(found.iter().filter_map(|d| d.place).map(|p| p.line).collect::<Vec<_>>(), [4, 9]);
}

#[test]
fn a_thousand_errors_are_told_and_any_number_of_warnings() {
    let told = |text: &str| parse_at(text, "p", NOW).map(|(_, warnings)| warnings.len()).map_err(|p| p.len());
    let last = |text: &str| parse_at(text, "p", NOW).unwrap_err().iter().last().unwrap().message.clone();
    let keys = |n| {
        format!(
            "version: 1\ntiers: {{ a: {{ networks: [n] }} }}\n{}",
            (0..n).map(|i| format!("k{i}: 1\n")).collect::<String>()
        )
    };
    assert_eq!(told(&keys(999)), Err(999));
    assert_eq!(told(&keys(5_000)), Err(1_001));
    assert_eq!(last(&keys(5_000)), "there are more problems than the 1000 that are told");
    let rules = |n, end: &str| -> String {
        let rules: String = (0..n)
            .map(|i| format!("  - {{ name: r{i}, from: web, to: db, ports: tcp/{}{end} }}\n", i + 1))
            .collect();
        with(&format!("rules:\n{rules}"))
    };
    assert_eq!(told(&rules(5_000, ", limit: 5/s, action: deny")), Err(1_001));
    assert_eq!(told(&rules(1_200, ", expires: 2020-01-01T00:00:00Z")), Ok(1_200));
}

/// A long list is checked in two halves, beside each other.
#[test]
fn of_a_long_list_as_much_is_told_and_in_the_same_order() {
    let many = 2_400;
    let rules = |odd: &[(usize, &str)]| -> String {
        let rule = |i: usize| match odd.iter().find(|(at, _)| *at == i) {
            Some((_, rule)) => format!("  - {{ {rule} }}\n"),
            None => format!("  - {{ name: r{i}, from: web, to: db, ports: tcp/{} }}\n", i + 1),
        };
        with(&format!("rules:\n{}", (0..many).map(rule).collect::<String>()))
    };
    let told = |odd: &[(usize, &str)]| -> Vec<(String, u32)> {
        let (_, problems) = examine(&rules(odd), "p", NOW);
        let first = rules(&[]).lines().position(|l| l.contains("name: r0,")).unwrap() as u32 + 1;
        problems.iter().map(|d| (d.message.clone(), d.place.unwrap().line - first)).collect()
    };
    let said = |list: &[(&str, u32)]| list.iter().map(|(m, l)| ((*m).to_owned(), *l)).collect::<Vec<_>>();
    assert_eq!(told(&[]), []);
    let (early, late) = (10, many - 10);
    let twice = "name: r10, from: web, to: db, ports: udp/1";
    assert_eq!(told(&[(late, twice)]), said(&[("two rules are named `r10`", late as u32)]));
    let (nobody, no_port) = ("name: x, from: nobody, to: db", "name: y, from: web, to: db, ports: tcp/0");
    assert_eq!(
        told(&[(early, no_port), (late, nobody)]),
        said(&[
            ("port `0` of `tcp/0` is out of range: 1 to 65535", 10),
            ("unknown tier `nobody`", late as u32)
        ])
    );
    let over = |name| format!("name: {name}, from: db, to: web, expires: 2020-01-01T00:00:00Z");
    assert_eq!(
        told(&[(early, &over("x")), (late, &over("y"))]),
        said(&[("rule `x` has expired", 10), ("rule `y` has expired", late as u32)])
    );
    let (model, _) = parse_at(&rules(&[]), "p", NOW).unwrap();
    assert!(model.rules.iter().enumerate().all(|(i, rule)| rule.name == format!("r{i}")));
    assert_eq!(model.rules.len(), many);
}

#[test]
fn a_lone_carriage_return_is_refused_where_it_stands_and_pairs_are_line_ends() {
    let text = "version: 1\r\ntiers: { a: { networks: [n] } }\r\n";
    assert!(parse_at(text, "p", NOW).is_ok());
    let problems = parse_at(&text.replace("a:", "a\r:"), "p", NOW).unwrap_err();
    let told: Vec<_> = problems
        .iter()
        .map(|d| (d.message.as_str(), d.place.unwrap().line, d.place.unwrap().column))
        .collect();
    assert_eq!(told, [("the text holds a carriage return without a line feed", 2, 11)]);
}
