//! The policies of the repository, and bad texts of every kind.

#![expect(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "texts of policies, put together line by line"
)]

mod precedence;
mod refusals;
mod rows;

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
