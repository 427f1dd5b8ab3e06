//! Sentences about a verdict: which line of the precedence decided, and what that means here.

use hydra_common::verdict::{Reason, Verdict};

use crate::policy::explain::Answer;

/// Why, for people, without a final period.
pub(super) fn why(answer: &Answer) -> String {
    let said = match answer.line {
        3 => format!("the rule `{}` denies it", answer.rule),
        4 => format!("the rule `{}` allows it", answer.rule),
        5 => format!("the rule `{}` lets it pass and records it as what it would have been", answer.rule),
        _ => default(answer),
    };
    let denied = Verdict::Denied.as_str();
    if answer.enforced_verdict == denied && answer.verdict != denied {
        format!("{said}; the policy's `mode: audit` lets it pass and records it")
    } else {
        said
    }
}

/// Lines 6 and 7.
fn default(answer: &Answer) -> String {
    let verdict = answer.enforced_verdict.as_str();
    let (allowed, denied) = (verdict == Verdict::Allowed.as_str(), verdict == Verdict::Denied.as_str());
    let switched = |what: &str, key: &str| match (allowed, denied) {
        (true, _) => format!("{what}, which is allowed"),
        (_, true) => format!("{what}, which `defaults: {key}: deny` denies"),
        (false, false) => format!("{what}, which `defaults: {key}: audit` lets pass and records"),
    };
    if answer.reason == Reason::IntraTier.as_str() {
        return switched("both ends are in one tier", "intra-tier");
    }
    if answer.reason == Reason::FromHost.as_str() {
        return switched("this host opens it", "from-host");
    }
    let none = format!("no rule allows `{}` to `{}`", answer.from_owner, answer.to_owner);
    if denied || allowed { none } else { format!("{none}, and `audit` lets it pass and records it") }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::policy::rows::Numbers;
    use crate::policy::{self, compile, explain};

    const POLICY: &str = "
version: 1
defaults: { from-host: audit }
tiers:
  apps: { networks: [apps] }
  databases: { networks: [databases] }
  legacy: { networks: [legacy], mode: audit }
rules:
  - { name: db-clients, from: apps, to: databases, ports: tcp/5432 }
  - { name: no-ssh, from: any, to: databases, ports: tcp/22, action: deny }
  - { name: watch, from: apps, to: databases, ports: tcp/6379, action: audit }
";

    #[test]
    fn every_line_has_its_sentence() {
        let mut said = String::new();
        for mode in ["enforce", "audit"] {
            let text = format!("mode: {mode}{POLICY}");
            let (model, _) = policy::parse(&text, "p.yaml").unwrap();
            let compiled =
                compile::compile(&model, &compile::World::default(), &mut Numbers::default()).unwrap();
            for (from, to, port) in [
                ("apps", "databases", "tcp/22"),
                ("apps", "databases", "tcp/5432"),
                ("apps", "databases", "tcp/6379"),
                ("apps", "apps", "tcp/1"),
                ("host", "apps", "tcp/1"),
                ("databases", "apps", "tcp/1"),
                ("legacy", "apps", "tcp/1"),
            ] {
                let question = explain::Question::read(&model, from, to, port).unwrap();
                for answer in explain::explain(&model, &compiled, &question, 0) {
                    writeln!(said, "{mode}: {} {}: {}", answer.line, answer.verdict, why(&answer)).unwrap();
                }
            }
        }
        insta::assert_snapshot!(said);
    }
}
