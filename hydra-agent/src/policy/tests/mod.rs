//! The policies of the repository, and bad texts of every kind.

#![expect(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "texts of policies, put together line by line"
)]

mod again;
mod limits;
mod precedence;
mod refusals;
mod rows;
mod shared;

use super::*;

/// A moment before every `expires` of these tests.
const NOW: i64 = 1_800_000_000;

fn repository(name: &str) -> String {
    let path = format!("{}/../policies/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_policies_of_the_repository_are_clean() {
    for name in ["hydra.yaml", "media-server.yaml", "bpo.yaml", "alfred.yaml"] {
        let text = repository(name);
        let (model, problems) = match parse(&text, name) {
            Ok(made) => made,
            Err(problems) => panic!("{problems}"),
        };
        assert!(problems.is_empty(), "{problems}");
        assert!(model.expect.len() >= 15, "{name} has {} expect rows", model.expect.len());
    }
}

#[test]
fn every_example_of_the_reference_is_a_policy() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/policy.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|piece| piece.split("```").next()).collect();
    assert!(examples.len() >= 9, "{} examples", examples.len());
    for example in examples {
        if let Err(problems) = parse_at(example, "docs/policy.md", NOW) {
            panic!("{problems}");
        }
    }
}

#[test]
fn a_diff_names_what_changed_and_the_cells() {
    let old = "version: 1
name: one
tiers:
  web: { networks: [web-net] }
  db: { networks: [db-net], services: { pg: { containers: [pg] } } }
  gone: { networks: [gone-net] }
rules:
  - { name: a, from: web, to: db, ports: tcp/5432 }
  - { name: b, from: web, to: db, ports: tcp/22, action: deny }
  - { name: c, from: gone, to: db }
";
    let new = "version: 1
name: two
defaults: { from-host: deny }
tiers:
  web: { networks: [web-net, more-net] }
  db: { networks: [db-net], services: { pg: { containers: [pg, pg-2] } } }
  new: { networks: [new-net] }
rules:
  - { name: b, from: web, to: db, ports: tcp/22, action: deny }
  - { name: a, from: web, to: db, ports: [tcp/5432, tcp/1-100, udp] }
";
    let model = |text| parse_at(text, "p", NOW).unwrap().0;
    let diff = diff::diff(Some(&model(old)), &model(new), NOW).unwrap();
    insta::assert_snapshot!(diff.to_lines().join("\n"));
    assert!(diff::diff(Some(&model(old)), &model(old), NOW).unwrap().is_empty());
    assert_eq!(diff::diff(None, &model(new), NOW).unwrap().lines[0], "+ policy `two`");
}
