//! `hydractl policy apply` against the agent: what is refused changes nothing, what is good takes effect whole.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use hydra_tests::agent::{ctl, write};
use hydra_tests::lab::Lab;
use hydra_tests::probe::{Echo, Kind, Outcome};
use hydra_tests::sample;

#[test]
fn three_mistakes_are_told_at_once_with_their_places_and_nothing_changes() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("db".into(), Kind::Tcp(5432))]).unwrap();
    let bad = sample::policy()
        + "  - { name: one, from: nobody, to: data }\n"
        + "  - { name: two, from: web, to: data, ports: [tcp/99999] }\n"
        + "  - { name: users, from: web, to: data }\n";
    let line = bad.lines().count() - 2;
    write(&lab.world, "bad.yaml", &bad).unwrap();
    let path = lab.world.scratch("bad.yaml");
    let output = agent.ctl(&lab.world, &["policy", "apply", &path.to_string_lossy()]).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is refused: 3 problems"), "{said}");
    for number in line..line + 3 {
        assert!(said.contains(&format!("bad.yaml:{number}:")), "no mistake on line {number}:\n{said}");
    }
    for word in ["nobody", "99999", "users", "^"] {
        assert!(said.contains(word), "{word}:\n{said}");
    }
    let status = agent.json(&lab.world, &["status"]).unwrap();
    assert_eq!(status["revision"], 1, "{status}");
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), false).unwrap(), Outcome::Answered);
    assert_eq!(lab.try_one("shop", "db", Kind::Tcp(5432), false).unwrap(), Outcome::TimedOut);
}

#[test]
fn a_good_policy_takes_effect_and_can_be_taken_back() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432))]).unwrap();
    let open = sample::policy() + "  - { name: shop-data, from: web/shop, to: data/db, ports: db }\n";
    agent.apply(&lab.world, &open).unwrap();
    assert_eq!(lab.try_one("shop", "db", Kind::Tcp(5432), true).unwrap(), Outcome::Answered);
    assert_eq!(lab.flows(&agent, "shop", "db").unwrap()[0]["rule"], "shop-data");
    let output = agent.ctl(&lab.world, &["policy", "rollback"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.try_one("shop", "db", Kind::Tcp(5432), true).unwrap(), Outcome::TimedOut);
    let history = agent.json(&lab.world, &["policy", "history"]).unwrap();
    let numbers: Vec<_> = history.as_array().unwrap().iter().filter_map(|r| r["revision"].as_u64()).collect();
    assert!(numbers.contains(&1) && numbers.contains(&3), "{history}");
}

#[test]
fn explain_says_what_the_wire_does() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("db".into(), Kind::Tcp(5432))]).unwrap();
    for (from, to, port, rule) in [
        ("shop", "api", 8004, Some("shop-api")),
        ("shop", "db", 5432, None),
        ("cache", "db", 22, Some("no-ssh")),
    ] {
        let output = agent.ctl(&lab.world, &["explain", from, to, &format!("tcp/{port}")]).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let passes = lab.try_one(from, to, Kind::Tcp(port), false).unwrap() != Outcome::TimedOut;
        assert_eq!(output.status.code(), Some(i32::from(!passes)), "{from} {to} {port}: {said}");
        assert!(rule.is_none_or(|rule| said.contains(rule)), "{said}");
    }
}

#[test]
fn no_agent_is_an_error_with_a_hint_and_exit_code_2() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let output = ctl(&lab.world, &lab.world.scratch("nowhere.sock"), &["status"]).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error:") && said.contains("nowhere.sock") && said.contains("hint:"), "{said}");
    assert!(output.stdout.is_empty());
}
