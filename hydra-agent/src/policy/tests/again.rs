//! What is read and compiled from the policy before is what comes of it alone.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::policy::compile::{compile, compile_after};
use crate::policy::rows::Owner;

/// A policy that was taken, as an agent keeps it.
struct Kept {
    known: Known,
    numbers: Numbers,
    made: Vec<Made>,
}

/// What a policy is compiled for: no host, and one with a few addresses, which others have joined, or left, since.
fn worlds(joined: bool) -> [World; 2] {
    let tier = |name: &str| Owner::Tier(name.into());
    let mut live = vec![
        (tier("web"), "10.1.0.5"),
        (Owner::External, "192.0.2.9"),
        (Owner::Shared(vec![tier("db"), tier("web")]), "10.1.0.6"),
    ];
    if joined {
        live[1] = (tier("db"), "192.0.2.200");
        live.push((Owner::Shared(vec![tier("db"), Owner::External]), "192.0.2.7"));
    }
    let live = live.into_iter().map(|(owner, ip)| (owner, ip.parse().unwrap())).collect();
    [World::default(), World { live, ..World::default() }]
}

/// Takes a text after another one, and holds it to what comes of it alone. With it: whether it was read from the one before.
fn take(text: &str, before: Option<&Kept>) -> (Option<Kept>, bool) {
    take_in(&worlds(false), text, before)
}

/// The same for other hosts than it was before.
fn take_in(worlds: &[World; 2], text: &str, before: Option<&Kept>) -> (Option<Kept>, bool) {
    let known = before.map(|kept| &kept.known);
    let alone = read(text, "p", NOW, None);
    let again = read(text, "p", NOW, known);
    assert_eq!(format!("{alone:?}"), format!("{again:?}"), "{text}");
    let quick = known.is_some_and(|known| super::super::again::read(known, text, NOW).is_some());
    let (Some(model), problems) = again else { return (None, quick) };
    let mut numbers = before.map(|kept| kept.numbers.clone()).unwrap_or_default();
    let mut all = Vec::new();
    for (world, at) in worlds.iter().zip(0..) {
        let last = before.map(|kept| {
            let (compiled, basis) = &kept.made[at];
            Last { model: &kept.known.model, compiled, basis }
        });
        let mut own = numbers.clone();
        let alone = compile(&model, world, &mut own);
        match (alone, compile_after(&model, world, &mut numbers, last)) {
            (Ok(alone), Ok(made)) => {
                assert_eq!((&made.0, &numbers), (&alone, &own), "{text}");
                all.push(made);
            }
            (alone, made) => {
                assert_eq!(made.err(), alone.err(), "{text}");
                return (None, quick);
            }
        }
    }
    let warnings = problems.iter().cloned().collect();
    let known = Known { text: text.into(), model: Arc::new(model), warnings, now: NOW };
    (Some(Kept { known, numbers, made: all }), quick)
}

const HEAD: &str = "version: 1
networks:
  lone: { subnet: 10.9.0.0/16 }
tiers:
  web: { bridges: [br-web], subnets: [10.1.0.0/16] }
  db: { bridges: [br-db], services: { pg: { containers: [pg], ports: [tcp/5432] } } }
  out: { addresses: [192.0.2.0/24] }
";

fn text(rules: &[&str], tail: &str) -> String {
    format!("{HEAD}rules:\n{}\n{tail}", rules.join("\n"))
}

const A: &str = "  - { name: a, from: web, to: db/pg, ports: [tcp/5432] }";
const B: &str = "  - { name: b, from: out, to: web, ports: tcp/80 }";
const C: &str = "  - { name: c, from: any, to: db, ports: [udp/53, tcp/53], action: deny }";
const D: &str = "  - { name: d, from: db, to: web, ports: tcp/1-9 }";
const EXPECT: &str = "expect:
  - { from: out, to: web, port: tcp/80, verdict: allowed, rule: b }
";

#[test]
fn rules_that_come_go_and_change_are_read_alone() {
    let (kept, _) = take(&text(&[A, B, C], EXPECT), None);
    let kept = kept.unwrap();
    assert_eq!(kept.known.warnings.len(), 1, "of the network that belongs to no tier");
    for rules in [
        &[D, B, C][..],
        &[A, &B.replace("80", "81"), C],
        &[A, B, &C.replace("deny", "audit")],
        &[A, B],
        &[B, C],
        &[B],
        &[A, B, C, D],
        &[A, B, D, C],
        &[A, "  # of it", "", D, B, C],
        &[C, B, A],
        &[A, B, &D.replace("name: d", "name: c")],
        &[A, B, "  - { name: c, from: any, to: db, ports: pg }"],
    ] {
        let (next, quick) = take(&text(rules, EXPECT), Some(&kept));
        assert!(quick, "{rules:?}");
        // And from there.
        let (_, quick) = take(&text(&[A, B, C], EXPECT), next.as_ref());
        assert!(quick, "back from {rules:?}");
    }
    // What is behind the list moves with it.
    let tail = format!("{EXPECT}defaults: {{ intra-tier: deny }}\n");
    let (kept, _) = take(&text(&[A, B], &tail), None);
    assert!(take(&text(&[A, B, D], &tail), kept.as_ref()).1);
}

#[test]
fn every_other_text_is_read_as_a_whole() {
    let (kept, _) = take(&text(&[A, B, C], EXPECT), None);
    let kept = kept.unwrap();
    let block = "  - name: block\n    from: web\n    to: >-\n      db";
    for rules in [
        // Wrong, or worth a word.
        &[A, B, A][..],
        &[A, B, C, &D.replace("name: d", "name: a")],
        &[A, B, &C.replace("db", "dc")],
        &[A, B, &C.replace("udp/53", "udp/0")],
        &[A, B, &C.replace("action: deny", "limit: 60/s, action: deny")],
        &[A, B, &C.replace("action: deny", "expires: 2001-01-01T00:00:00Z")],
        &[A, B, &C.replace("name: c", "name: any")],
        // A row asks for the one that is gone.
        &[A, &B.replace("name: b", "name: d"), C],
        &[A, C],
        // Not of words alone, or not one line.
        &[A, B, &C.replace("any", "'any'")],
        &[A, B, C, block],
        &[A, B, "  - &x { name: c, from: any, to: db }"],
        &[A, B, "  - { name: c, from: any,", "      to: db }"],
        &["  # first", A, B, C],
        &[],
    ] {
        assert!(!take(&text(rules, EXPECT), Some(&kept)).1, "{rules:?}");
    }
    for other in [
        text(&[A, B, C], "").replace("intra", "x"),
        text(&[A, B, C], &EXPECT.replace("allowed", "denied")),
        text(&[D, B, C], EXPECT).replace("name: d", "name: a").replace("10.1.0.0", "10.2.0.0"),
        text(&[D, B, C], EXPECT).trim_end().to_owned() + "\r",
        text(&[D, B, C], EXPECT).replace('\n', "\r\n"),
        format!("{}---\n", text(&[D, B, C], EXPECT)),
    ] {
        assert!(!take(&other, Some(&kept)).1, "{other}");
    }
    // Behind one in several lines, where another one is.
    let (kept, _) = take(&text(&[A, block, B], EXPECT), None);
    assert!(kept.is_some());
    assert!(take(&text(&[D, block, B], EXPECT), kept.as_ref()).1);
    assert!(take(&text(&[A, block, D, B], EXPECT), kept.as_ref()).1);
    assert!(!take(&text(&[A, block, "      # of it", B], EXPECT), kept.as_ref()).1);
    let (kept, _) = take(&text(&[A, B, block], EXPECT), None);
    assert!(!take(&text(&[A, B, block, D], EXPECT), kept.as_ref()).1);
    // What is in an anchor counts as if it were used; a rule of a text with an alias; and what expires while it stays.
    let anchored = |rule| text(&[rule, B], EXPECT).replace("rules:", "rules: &all");
    let (kept, _) = take(&anchored(A), None);
    assert!(kept.is_some() && !take(&anchored(D), kept.as_ref()).1);
    let (kept, _) = take(
        &text(&[A, "  - { name: x, from: &x web, to: out }", "  - { name: y, from: db, to: *x }", B], EXPECT),
        None,
    );
    assert!(
        !take(
            &text(
                &[D, "  - { name: x, from: &x web, to: out }", "  - { name: y, from: db, to: *x }", B],
                EXPECT
            ),
            kept.as_ref()
        )
        .1
    );
    let ends = "  - { name: e, from: web, to: out, expires: 2030-01-01T00:00:00Z }";
    let (kept, _) = take(&text(&[A, ends, B], EXPECT), None);
    let known = kept.unwrap().known;
    let changed = text(&[D, ends, B], EXPECT);
    for (now, quick) in [(NOW, true), (NOW - 1, false), (1_893_455_999, true), (1_893_456_000, false)] {
        assert_eq!(super::super::again::read(&known, &changed, now).is_some(), quick);
        assert_eq!(
            format!("{:?}", read(&changed, "p", now, Some(&known))),
            format!("{:?}", read(&changed, "p", now, None))
        );
    }
}

#[test]
fn long_texts_are_compared_to_the_byte() {
    let rules: Vec<String> = (0..400)
        .map(|n| format!("  - {{ name: rule-{n}, from: web, to: out, ports: tcp/{} }}", n + 1))
        .collect();
    let of = |rules: &[String]| {
        text(&rules.iter().map(String::as_str).collect::<Vec<_>>(), EXPECT)
            .replace("rule: b", "rule: rule-79")
    };
    let (kept, _) = take(&of(&rules).replace("out, to: web", "web, to: out"), None);
    let kept = kept.unwrap();
    for n in (0..400).step_by(7) {
        let mut other = rules.clone();
        other[n] = other[n].replace("tcp", "udp");
        let (_, quick) = take(&of(&other).replace("out, to: web", "web, to: out"), Some(&kept));
        assert!(quick, "{n}");
        other.remove(n);
        assert!(take(&of(&other).replace("out, to: web", "web, to: out"), Some(&kept)).1);
    }
    let many: Vec<String> = rules.iter().map(|rule| rule.replace("tcp", "udp")).collect();
    assert!(!take(&of(&many).replace("out, to: web", "web, to: out"), Some(&kept)).1, "too many differ");
}

/// A rule in one line: most of them right.
fn rule() -> impl Strategy<Value = String> {
    let end = || {
        prop::sample::select(vec![
            "web",
            "web",
            "db",
            "db",
            "db/pg",
            "out",
            "[web, out]",
            "any",
            "internal",
            "external",
            "host",
            "nobody",
            "{ cidr: 192.0.2.0/25 }",
            "{ cidr: 10.0.0.0/8, except: [10.1.0.0/16] }",
        ])
    };
    let more = prop::sample::select(vec![
        "",
        "",
        "",
        "",
        ", ports: tcp/80",
        ", ports: [tcp/80-90, udp/53]",
        ", ports: pg",
        ", ports: tcp/0",
        ", ports: tcp/85, action: deny",
        ", action: audit",
        ", limit: 60/s",
        ", expires: 2030-01-01T00:00:00Z",
        ", ports: tcp/1-100, expires: 2031-01-01T00:00:00Z, limit: 5/h",
        ", expires: 2001-01-01T00:00:00Z",
    ]);
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]);
    (name, end(), end(), more)
        .prop_map(|(name, from, to, more)| format!("  - {{ name: {name}, from: {from}, to: {to}{more} }}"))
}

/// Rules in which nothing is wrong.
fn begin() -> impl Strategy<Value = Vec<String>> {
    let more = [
        "  - { name: e, from: any, to: { cidr: 192.0.2.0/25 }, ports: tcp/80, limit: 60/s }",
        "  - { name: f, from: [web, out], to: internal, expires: 2030-01-01T00:00:00Z }",
        "  - { name: g, from: external, to: web, ports: [tcp/80-90, pg] }",
        "  - { name: h, from: { cidr: 10.0.0.0/8, except: [10.1.0.0/16] }, to: db, action: audit }",
    ];
    let all: Vec<String> = [A, B, C, D].into_iter().chain(more).map(str::to_owned).collect();
    prop::sample::subsequence(all, 1..=8)
}

/// A line of the list, or several of which an entry is made.
fn line() -> impl Strategy<Value = String> {
    let other = prop::sample::select(vec![
        "",
        "  # ü",
        "      # deep",
        "  - name: m\n    from: web\n    to: db",
        "  - { name: n, from: 'web', to: db }",
        "  - name: o\n    to: out\n    from: >-\n      web",
        "  - { name: p,\n      from: web, to: out }",
        "  - *x",
        "  - { name: &x q, from: web, to: out }",
    ]);
    prop_oneof![12 => rule(), 3 => other.prop_map(str::to_owned)]
}

/// What is done to the text that was taken last: lines of the list, by place; or something outside of it.
#[derive(Clone, Debug)]
enum Edit {
    Put(usize, String),
    Insert(usize, String),
    Remove(usize),
    Outside(&'static str, &'static str),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => (0..12usize, line()).prop_map(|(at, line)| Edit::Put(at, line)),
        3 => (0..12usize, line()).prop_map(|(at, line)| Edit::Insert(at, line)),
        3 => (0..12usize).prop_map(Edit::Remove),
        1 => prop::sample::select(vec![
            ("10.1.0.0", "10.2.0.0"), ("10.2.0.0", "10.1.0.0"), ("tcp/5432", "tcp/80"), ("  out: {", "  away: {"), ("  away: {", "  out: {"),
            ("version: 1\n", "version: 1\nmode: audit\n"), ("mode: audit\n", ""), ("pg: {", "pq: {"), ("rule: a", "rule: b"),
            ("verdict: denied", "verdict: allowed"), ("  db: { bridges", "  db: { mode: audit, bridges"), ("\n", "\r\n"), ("\r\n", "\n"),
            ("192.0.2.0/24", "2001:db8::/32"), ("[br-web]", "[br-new]"), ("bridges: [br-web], subnets", "addresses"),
        ]).prop_map(|(from, to)| Edit::Outside(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_before_the_same_comes_of_a_text(
        begin in begin(), edits in prop::collection::vec((prop::collection::vec(edit(), 1..3), any::<bool>()), 1..10),
        tail in prop::sample::select(vec!["", "expect:\n  - { from: out, to: db, port: tcp/7, verdict: denied }\n",
            "# and\nexpect:\n  - { from: web, to: db, port: tcp/80, verdict: allowed, rule: a }\ndefaults: { intra-tier: deny }\n"]),
    ) {
        let (mut lines, mut outside) = (begin, Vec::<(&str, &str)>::new());
        let put = |lines: &[String], outside: &[(&str, &str)]| {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            outside.iter().fold(text(&lines, tail), |text, (from, to)| text.replacen(from, to, if *from == "\n" { 999 } else { 1 }))
        };
        let (mut kept, _) = take(&put(&lines, &outside), None);
        for (edits, joined) in edits {
            let before = (lines.clone(), outside.clone());
            for edit in edits {
                let place = |at: usize| at % lines.len().max(1);
                match edit {
                    Edit::Put(at, line) if !lines.is_empty() => { let at = place(at); lines[at] = line; }
                    Edit::Put(_, line) => lines.push(line),
                    Edit::Insert(at, line) => { let at = place(at); lines.insert(at, line); }
                    Edit::Remove(at) if lines.len() > 1 => { let at = place(at); lines.remove(at); }
                    Edit::Remove(_) => {}
                    Edit::Outside(from, to) => outside.push((from, to)),
                }
            }
            match take_in(&worlds(joined), &put(&lines, &outside), kept.as_ref()).0 {
                Some(next) => kept = Some(next),
                // A refused text changes nothing; half of them are mended by going back.
                None if lines.len() % 2 == 0 => (lines, outside) = before,
                None => {}
            }
        }
    }
}
