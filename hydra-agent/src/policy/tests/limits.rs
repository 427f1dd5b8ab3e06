//! `limit`: what is refused, what the rows say, and what happens to flows that find limits used up.

use std::collections::BTreeSet;

use hydra_common::decide::{Outcome, Step, ruling, settle};
use hydra_common::tables::Decision;
use hydra_common::verdict::{Reason, Verdict};

use super::precedence::{ask_at, policy};
use super::*;
use crate::policy::tables::{PolicyTables, seconds};

fn compiled(text: &str) -> Compiled {
    let (made, problems) = examine(text, "p", NOW);
    made.unwrap_or_else(|| panic!("{problems}")).1
}

/// What a new flow from `web` to `db` gets while the limits of these rules are used up: "verdict reason rule", and the rules whose
/// limits were asked.
fn begins(compiled: &Compiled, now: i64, used: &[&str]) -> (String, Vec<String>) {
    let tables = PolicyTables::new(compiled);
    let id = |name: &str| compiled.names[&crate::policy::rows::Owner::Tier(name.to_owned())];
    let (from, to) = (id("web"), id("db"));
    let selector = hydra_common::tables::selector(6, 5432);
    let mut out = Outcome::CLOSED;
    (out.generation, out.step, out.audit) = (PolicyTables::GENERATION, Step::Create, compiled.audit);
    out.ruled(&ruling(&tables, 1, from, to, selector, seconds(now)));
    let mut asked = Vec::new();
    settle(
        &tables,
        seconds(now),
        &mut out,
        |_| false,
        |index| {
            let row = compiled.decisions.iter().find(|(d, _)| d.limit == index + 1).unwrap().0;
            let rule = compiled.rule(row.rule).unwrap().to_owned();
            let room = !used.contains(&rule.as_str());
            asked.push(rule);
            room
        },
    );
    let rule = compiled.rule(out.rule).unwrap_or("-");
    (format!("{} {} {rule}", out.verdict.as_str(), out.reason.as_str()), asked)
}

#[test]
fn what_a_limit_cannot_be_is_refused_with_its_place() {
    let cases: String = [
        ("zero", "allow", "0/s"),
        ("no-unit", "allow", "60"),
        ("a-day", "allow", "60/day"),
        ("minutes", "allow", "60/m"),
        ("words", "allow", "many/s"),
        ("signed", "allow", "+5/s"),
        ("broken", "allow", "1.5/s"),
        ("nothing", "allow", "/s"),
        ("large", "allow", "1000001/s"),
        ("huge", "allow", "99999999999999999999/h"),
        ("spaces", "allow", "60 / min"),
        ("shut", "deny", "60/min"),
        ("watch", "audit", "60/min"),
        ("list", "allow", "[60/min]"),
    ]
    .iter()
    .map(|(name, action, limit)| {
        format!("  - {{ name: {name}, from: web, to: db, action: {action}, limit: {limit} }}\n")
    })
    .collect();
    let problems = parse_at(&policy(&format!("rules:\n{cases}")), "policy.yaml", NOW).unwrap_err();
    insta::assert_snapshot!(problems.to_string());
    let good = "rules:\n  - { name: a, from: web, to: db, limit: 1000000/s }\n  - { name: b, from: db, to: web, limit: 1/h, action: allow }\n";
    assert!(parse_at(&policy(good), "p", NOW).unwrap().1.is_empty());
}

#[test]
fn an_exhausted_limit_asks_the_next_rule_that_allows_and_then_denies_under_the_first_name() {
    let compiled = compiled(&policy(
        "rules:
  - { name: one, from: web, to: db, limit: 60/min }
  - { name: watch, from: web, to: db, action: audit }
  - { name: two, from: web, to: db, limit: 5/s, ports: tcp }
",
    ));
    let asked = |used: &[&str]| begins(&compiled, NOW, used);
    assert_eq!(asked(&[]), ("allowed rule one".into(), vec!["one".into()]));
    assert_eq!(asked(&["one"]), ("allowed rule two".into(), vec!["one".into(), "two".into()]));
    // Line 5 comes only where no rule allows; here one does.
    assert_eq!(asked(&["one", "two"]), ("denied limit one".into(), vec!["one".into(), "two".into()]));
    let interval = |n: usize| (compiled.limits[n].interval, compiled.limits[n].burst);
    assert_eq!((interval(0), interval(1)), ((1_000_000_000, 60), (200_000_000, 5)));
}

#[test]
fn a_rule_without_a_limit_allows_what_one_with_a_limit_does_not() {
    let text = policy(
        "rules:
  - { name: some, from: web, to: db, limit: 60/min }
  - { name: all, from: web, to: db }
  - { name: more, from: web, to: db, limit: 5/s }
",
    );
    let compiled = compiled(&text);
    assert_eq!(begins(&compiled, NOW, &["some", "more"]), ("allowed rule all".into(), vec!["some".into()]));
    insta::assert_snapshot!(parse_at(&text, "policy.yaml", NOW).unwrap().1.to_string());
}

#[test]
fn a_deny_rule_stands_before_every_limit() {
    let compiled = compiled(&policy(
        "rules:
  - { name: some, from: web, to: db, limit: 60/min }
  - { name: shut, from: web, to: db, ports: tcp/5432, action: deny, expires: 2030-01-01T00:00:00Z }
",
    ));
    let y30 = 1_893_456_000;
    assert_eq!(begins(&compiled, y30 - 1, &[]), ("denied rule shut".into(), vec![]));
    assert_eq!(begins(&compiled, y30, &[]), ("allowed rule some".into(), vec!["some".into()]));
    assert_eq!(begins(&compiled, y30, &["some"]), ("denied limit some".into(), vec!["some".into()]));
}

#[test]
fn limits_and_ends_are_told_apart() {
    let compiled = compiled(&policy(
        "rules:
  - { name: brief, from: web, to: db, limit: 60/min, expires: 2030-01-01T00:00:00Z }
  - { name: longer, from: web, to: db, limit: 5/s, expires: 2031-01-01T00:00:00Z }
  - { name: watch, from: web, to: db, action: audit, expires: 2032-01-01T00:00:00Z }
",
    ));
    let (y30, y31, y32) = (1_893_456_000, 1_924_992_000, 1_956_528_000);
    let says = |now, used: &[&str]| begins(&compiled, now, used).0;
    assert_eq!(says(y30 - 1, &[]), "allowed rule brief");
    assert_eq!(says(y30 - 1, &["brief"]), "allowed rule longer");
    assert_eq!(says(y30 - 1, &["brief", "longer"]), "denied limit brief");
    // Its end takes a rule away with its limit: from then on it is not the one that is named, either.
    assert_eq!(says(y30, &["brief"]), "allowed rule longer");
    assert_eq!(says(y30, &["brief", "longer"]), "denied limit longer");
    assert_eq!(says(y31, &["brief", "longer"]), "audited no-rule watch");
    assert_eq!(says(y32, &[]), "denied no-rule -");
}

#[test]
fn questions_assume_that_no_limit_is_used_up_and_say_so() {
    let text = policy(
        "rules:
  - { name: some, from: web, to: db, limit: 60/min }
expect:
  - { from: web, to: db, port: tcp/1, verdict: allowed, rule: some }
",
    );
    let answer = ask_at(&text, "web db tcp/1", NOW);
    assert_eq!((answer.verdict.as_str(), answer.rule.as_str(), answer.line), ("allowed", "some", 4));
    assert_eq!(answer.limit.map(|l| l.to_string()).as_deref(), Some("60/min"));
}

#[test]
fn under_audit_a_used_up_limit_is_recorded_and_denies_nothing() {
    let text = policy("rules:\n  - { name: some, from: web, to: db, limit: 60/min }\n").replacen(
        "tiers:",
        "mode: audit\ntiers:",
        1,
    );
    assert_eq!(begins(&compiled(&text), NOW, &["some"]).0, "audited limit some");
}

#[test]
fn a_bucket_keeps_its_number_as_long_as_the_rule_has_its_name() {
    let model = |rules: &str| parse_at(&policy(&format!("rules:\n{rules}")), "p", NOW).unwrap().0;
    let rule =
        |name: &str, limit: &str| format!("  - {{ name: {name}, from: web, to: db, limit: {limit} }}\n");
    let mut numbers = Numbers::default();
    let mut buckets = |rules: &[String]| -> Vec<u32> {
        let compiled = compile::compile(&model(&rules.concat()), &World::default(), &mut numbers).unwrap();
        compiled.limits.iter().map(|l| l.bucket).collect()
    };
    let (a, b) = (rule("a", "60/min"), rule("b", "5/s"));
    let first = buckets(&[a.clone(), b.clone()]);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(buckets(&[rule("new", "1/s"), b.clone(), rule("a", "6/h")])[1..], [first[1], first[0]]);
    assert_eq!(buckets(&[b]), [first[1]]);
    assert_eq!(buckets(&[a]), [first[0]], "a name that was gone has its number still");
}

#[test]
fn more_limits_than_the_tables_hold_are_refused_with_the_number() {
    let rules: String = (0..4_097)
        .map(|n| format!("  - {{ name: r{n}, from: web, to: db, ports: tcp/{}, limit: 1/s }}\n", n + 1))
        .collect();
    let problems = parse_at(&policy(&format!("rules:\n{rules}")), "p", NOW).unwrap_err();
    assert!(
        problems.to_string().contains("the policy needs 4097 limits, the tables hold 4096"),
        "{problems}"
    );
}

#[test]
fn limits_one_after_the_other_have_an_end() {
    let rules = |count| -> String {
        (0..count).map(|n| format!("  - {{ name: r{n}, from: web, to: db, limit: {}/s }}\n", n + 1)).collect()
    };
    let text = policy(&format!("rules:\n{}", rules(7)));
    let all: Vec<String> = (0..7).map(|n| format!("r{n}")).collect();
    let used: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(begins(&compiled(&text), NOW, &used[..6]), ("allowed rule r6".into(), all.clone()));
    assert_eq!(begins(&compiled(&text), NOW, &used), ("denied limit r0".into(), all.clone()));
    let problems = parse_at(&policy(&format!("rules:\n{}", rules(8))), "p", NOW).unwrap_err();
    let said = "the policy needs 8 rules that expire or have a limit one after the other on one port, the tables hold 7";
    assert!(problems.to_string().contains(said), "{problems}");
}

#[test]
fn rows_that_lead_in_a_circle_deny() {
    let mut compiled = compiled(&policy("rules:\n  - { name: some, from: web, to: db, limit: 60/min }\n"));
    let at = compiled.decisions.iter().position(|(d, _)| d.limit != 0).unwrap();
    compiled.decisions[at].0 = Decision { spent: at as u32, ..compiled.decisions[at].0 };
    assert_eq!(begins(&compiled, NOW, &["some"]).0, "denied bad-table some");
    assert_eq!(Verdict::from_row(compiled.decisions[0].0.verdict), Verdict::Denied);
    assert_eq!(Reason::from_row(compiled.decisions[0].0.reason), Reason::BadTable);
}

#[test]
fn a_changed_limit_is_in_the_diff() {
    let model = |limit: &str| {
        parse_at(&policy(&format!("rules:\n  - {{ name: some, from: web, to: db{limit} }}\n")), "p", NOW)
            .unwrap()
            .0
    };
    let lines = |a: &str, b: &str| diff::diff(Some(&model(a)), &model(b), NOW).unwrap().to_lines();
    assert_eq!(lines("", ", limit: 60/min"), ["~ rule `some`: limit: none -> 60/min"]);
    assert_eq!(lines(", limit: 060/min", ", limit: 5/s"), ["~ rule `some`: limit: 60/min -> 5/s"]);
    assert_eq!(lines(", limit: 60/min", ", limit: 60/min"), [""; 0]);
}
