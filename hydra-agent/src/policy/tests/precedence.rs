//! "Which rule wins", a test per line that the policy's tables decide. Lines 1 and 2 need a packet; `hydra_common::decide` has theirs.

use super::*;
use crate::policy::explain::{Answer, Question, explain};

pub(super) fn ask_at(text: &str, question: &str, now: i64) -> Answer {
    let (made, problems) = examine(text, "p", now);
    let Some((model, compiled)) = made else { panic!("{problems}") };
    let words: Vec<&str> = question.split(' ').collect();
    let question = Question::read(&model, words[0], words[1], words[2]).unwrap();
    let mut answers = explain(&model, &compiled, &question, now);
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.remove(0)
}

/// "verdict reason rule line".
fn ask(text: &str, question: &str) -> String {
    let a = ask_at(text, question, NOW);
    format!("{} {} {} {}", a.verdict, a.reason, if a.rule.is_empty() { "-" } else { &a.rule }, a.line)
}

pub(super) fn policy(rest: &str) -> String {
    format!(
        "version: 1
tiers:
  web: {{ networks: [web-net] }}
  db:
    networks: [db-net]
    services:
      pg: {{ containers: [postgres], ports: [tcp/5432] }}
  lan: {{ addresses: [10.0.0.0/8] }}
  lab: {{ addresses: [10.9.0.0/16], mode: audit }}
{rest}"
    )
}

#[test]
fn line_3_a_matching_deny_rule_denies_wherever_it_stands() {
    let text = policy(
        "rules:
  - { name: open, from: any, to: any }
  - { name: shut, from: web, to: db, ports: tcp/22, action: deny }
  - { name: shut-too, from: web, to: db, ports: tcp/20-30, action: deny }
",
    );
    assert_eq!(ask(&text, "web db tcp/22"), "denied rule shut 3");
    assert_eq!(ask(&text, "web db/pg tcp/23"), "denied rule shut-too 3");
    assert_eq!(ask(&text, "web db tcp/31"), "allowed rule open 4");
}

#[test]
fn line_3_stands_above_line_6() {
    let text = policy("rules:\n  - { name: no, from: any, to: any, ports: tcp/22, action: deny }\n");
    assert_eq!(ask(&text, "web web tcp/22"), "denied rule no 3");
    assert_eq!(ask(&text, "host db tcp/22"), "denied rule no 3");
    assert_eq!(ask(&text, "host db tcp/23"), "allowed from-host - 6");
}

#[test]
fn line_4_the_first_allow_rule_in_the_file_is_named() {
    let text = policy(
        "rules:
  - { name: watch, from: web, to: db, action: audit }
  - { name: one, from: web, to: db/pg, ports: pg }
  - { name: two, from: [web, lan], to: db }
",
    );
    assert_eq!(ask(&text, "web postgres tcp/5432"), "allowed rule one 4");
    assert_eq!(ask(&text, "web db/pg tcp/5433"), "allowed rule two 4");
    assert_eq!(ask(&text, "web db tcp/5432"), "allowed rule two 4");
    assert_eq!(ask(&text, "10.1.2.3 db udp/1"), "allowed rule two 4");
}

#[test]
fn line_5_an_audit_rule_says_what_it_would_have_been() {
    let text = policy(
        "rules:
  - { name: cross, from: web, to: db, action: audit }
  - { name: inside, from: db, to: db, action: audit }
  - { name: mine, from: host, to: web, action: audit }
",
    );
    assert_eq!(ask(&text, "web db tcp/1"), "audited no-rule cross 5");
    assert_eq!(ask(&text, "db db/pg tcp/1"), "audited intra-tier inside 5");
    assert_eq!(ask(&text, "host web tcp/1"), "audited from-host mine 5");
}

#[test]
fn line_6_inside_a_declared_tier_and_from_this_host() {
    assert_eq!(ask(&policy(""), "db/pg db tcp/1"), "allowed intra-tier - 6");
    assert_eq!(ask(&policy(""), "10.1.1.1 10.1.1.2 proto/47"), "allowed intra-tier - 6");
    assert_eq!(ask(&policy(""), "host external tcp/1"), "allowed from-host - 6");
    assert_eq!(ask(&policy(""), "host host tcp/1"), "allowed from-host - 6");
    // The reserved tiers are not declared ones.
    assert_eq!(ask(&policy(""), "unmanaged unmanaged tcp/1"), "denied no-rule - 7");
    assert_eq!(ask(&policy(""), "external external tcp/1"), "denied no-rule - 7");
}

#[test]
fn line_6_can_be_switched() {
    let text = policy("defaults: { intra-tier: deny, from-host: audit }\n");
    assert_eq!(ask(&text, "db/pg db tcp/1"), "denied intra-tier - 6");
    assert_eq!(ask(&text, "host db tcp/1"), "audited from-host - 6");
    // A tier's mode softens line 7 only.
    assert_eq!(ask(&text, "lab lab tcp/1"), "denied intra-tier - 6");
}

#[test]
fn line_7_everything_else_is_denied() {
    assert_eq!(ask(&policy(""), "web db tcp/5432"), "denied no-rule - 7");
    assert_eq!(ask(&policy(""), "db host tcp/1"), "denied no-rule - 7");
    assert_eq!(ask(&policy("defaults: { cross-tier: audit }\n"), "web db tcp/1"), "audited no-rule - 7");
}

#[test]
fn line_7_is_softened_by_the_mode_of_either_tier() {
    assert_eq!(ask(&policy(""), "lab db tcp/1"), "audited no-rule - 7");
    assert_eq!(ask(&policy(""), "external lab tcp/1"), "audited no-rule - 7");
    let text = policy("rules:\n  - { name: no, from: lab, to: db, action: deny }\n");
    assert_eq!(ask(&text, "lab db tcp/1"), "denied rule no 3");
}

#[test]
fn under_mode_audit_of_the_policy_nothing_is_dropped() {
    let text = policy(
        "mode: audit\nrules:\n  - { name: no, from: web, to: db, ports: tcp/22, action: deny }\nexpect:\n  - { from: web, to: db, port: tcp/22, verdict: denied, rule: no }\n  - { from: web, to: db, port: tcp/23, verdict: audited }\n",
    );
    assert_eq!(ask(&text, "web db tcp/22"), "audited rule no 3");
    assert_eq!(ask(&text, "web db tcp/23"), "audited no-rule - 7");
    let answer = ask_at(&text, "web db tcp/22", NOW);
    assert_eq!(answer.enforced_verdict, "denied");
    assert_eq!(answer.notes, ["the policy's `mode: audit` lets it pass: enforced, it would be denied"]);
}

#[test]
fn an_expired_rule_is_as_if_it_were_not_there() {
    let text = policy(
        "rules:
  - { name: shut, from: web, to: db, action: deny, expires: 2030-01-01T00:00:00Z }
  - { name: open, from: web, to: db, expires: 2031-01-01T00:00:00Z }
  - { name: brief, from: web, to: db, expires: 2030-06-01T00:00:00Z }
  - { name: watch, from: web, to: db, action: audit, expires: 2032-01-01T00:00:00Z }
",
    );
    let at = |now: i64| {
        let a = ask_at(&text, "web db tcp/1", now);
        format!("{} {} {:?}", a.verdict, a.rule, a.until)
    };
    let (y30, y31, y32) = (1_893_456_000, 1_924_992_000, 1_956_528_000);
    assert_eq!(at(y30 - 1), format!("denied shut Some({y30})"));
    assert_eq!(at(y30), format!("allowed open Some({y31})"));
    assert_eq!(at(y31 - 1), format!("allowed open Some({y31})"));
    assert_eq!(at(y31), format!("audited watch Some({y32})"));
    assert_eq!(at(y32), "denied  None");
}

#[test]
fn rules_that_expire_one_after_the_other_have_a_limit() {
    let rules: String = (0..9)
        .map(|i| format!("  - {{ name: r{i}, from: web, to: db, expires: 20{}-01-01T00:00:00Z }}\n", 40 + i))
        .collect();
    let problems = parse_at(&policy(&format!("rules:\n{rules}")), "p", NOW).unwrap_err();
    assert!(
        problems.to_string().contains("rules that expire or have a limit one after the other"),
        "{problems}"
    );
}

#[test]
fn a_packet_to_port_0_matches_a_whole_protocol_only() {
    let text = policy(
        "rules:\n  - { name: r, from: web, to: db, ports: tcp/1-65535 }\n  - { name: u, from: web, to: db, ports: udp }\n",
    );
    assert_eq!(ask(&text, "web db tcp/0"), "denied no-rule - 7");
    assert_eq!(ask(&text, "web db tcp/1"), "allowed rule r 4");
    assert_eq!(ask(&text, "web db udp/0"), "allowed rule u 4");
}

#[test]
fn ping_is_both_families() {
    let text = policy(
        "rules:\n  - { name: p, from: web, to: db, ports: ping }\n  - { name: i, from: lan, to: db, ports: icmp }\n",
    );
    assert_eq!(ask(&text, "web db icmp/echo-request"), "allowed rule p 4");
    assert_eq!(ask(&text, "web db icmpv6/echo-request"), "allowed rule p 4");
    assert_eq!(ask(&text, "web db ping"), "allowed rule p 4");
    assert_eq!(ask(&text, "web db icmp/echo-reply"), "denied no-rule - 7");
    assert_eq!(ask(&text, "10.0.0.1 db ping"), "allowed rule i 4");
}

#[test]
fn internal_is_every_tier_with_networks_or_bridges() {
    let text = policy("rules:\n  - { name: i, from: internal, to: db }\n");
    assert_eq!(ask(&text, "web db tcp/1"), "allowed rule i 4");
    assert_eq!(ask(&text, "db db tcp/1"), "allowed rule i 4");
    assert_eq!(ask(&text, "lan db tcp/1"), "denied no-rule - 7");
    assert_eq!(ask(&text, "unmanaged db tcp/1"), "denied no-rule - 7");
}

#[test]
fn a_block_matches_by_address_whoever_owns_it() {
    let text = "version: 1
networks:
  n: { subnet: 172.20.0.0/24, gateway: 172.20.0.1 }
tiers:
  a: { networks: [n] }
  lan: { addresses: [10.0.0.0/8], services: { nas: { addresses: [10.0.0.5] } } }
  lab: { addresses: [10.9.0.0/16] }
rules:
  - { name: ten, from: { cidr: 10.0.0.0/8, except: [10.9.0.0/16] }, to: a, ports: tcp/1 }
  - { name: net, from: { cidr: 172.20.0.0/24 }, to: { cidr: 203.0.113.0/24 }, ports: tcp/2 }
  - { name: nine, from: { cidr: 10.9.7.0/24 }, to: a, ports: tcp/3 }
  - { name: all, from: { cidr: 0.0.0.0/0 }, to: a, ports: tcp/4 }
";
    assert_eq!(ask(text, "10.1.1.1 a tcp/1"), "allowed rule ten 4");
    assert_eq!(ask(text, "10.0.0.5 a tcp/1"), "allowed rule ten 4");
    assert_eq!(ask(text, "10.9.0.1 a tcp/1"), "denied no-rule - 7");
    // A name: everything that it declares, less what another tier has of it.
    assert_eq!(ask(text, "lan a tcp/1"), "allowed rule ten 4");
    assert_eq!(ask(text, "lan/nas a tcp/1"), "allowed rule ten 4");
    assert_eq!(ask(text, "lab a tcp/1"), "denied no-rule - 7");
    assert_eq!(ask(text, "lab a tcp/3"), "denied no-rule - 7");
    assert_eq!(ask(text, "10.9.7.7 a tcp/3"), "allowed rule nine 4");
    assert_eq!(ask(text, "a 203.0.113.9 tcp/2"), "allowed rule net 4");
    assert_eq!(ask(text, "172.20.0.9 203.0.113.9 tcp/2"), "allowed rule net 4");
    // The gateway that the file gives is this host.
    assert_eq!(ask(text, "172.20.0.1 203.0.113.9 tcp/3"), "allowed from-host - 6");
    assert_eq!(ask(text, "8.8.8.8 a tcp/4"), "allowed rule all 4");
    // `external` declares nothing, so no block holds all of it.
    assert_eq!(ask(text, "external a tcp/4"), "denied no-rule - 7");
    assert_eq!(ask(text, "2001:db8::1 a tcp/4"), "denied no-rule - 7");
}

#[test]
fn what_is_not_enforced_here_is_said() {
    let note = |q: &str| ask_at(&policy(""), q, NOW).notes.join("; ");
    assert_eq!(note("external host tcp/22"), "not enforced here: `external` to `host` is never judged");
    assert_eq!(
        note("lan external tcp/22"),
        "not enforced here: neither `lan` nor `external` is on this host"
    );
    assert_eq!(note("web external tcp/22"), "");
    // Processes of this host that have no port.
    let text = "version: 1\ntiers:\n  proxy: { units: [proxy.service] }\n  edge: { services: { edge: { containers: [edge] } } }\n";
    for question in ["external proxy tcp/80", "edge external tcp/80", "edge/edge host tcp/80"] {
        assert_eq!(ask_at(text, question, NOW).notes.join("; "), "", "{question}");
    }
}
