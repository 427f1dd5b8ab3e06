//! What the documents say of the repository is so: links lead somewhere, and every verb of xtask that they name exists.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every document in the folders that hold some.
fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "policies", "packaging"].map(|folder| root().join(folder));
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let mut found: Vec<PathBuf> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    found.sort();
    assert!(found.len() > 5, "{found:?}");
    found
}

/// The headings of a document, as links name them.
fn anchors(text: &str) -> Vec<String> {
    let mut code = false;
    let headings = text.lines().filter(|line| {
        code ^= line.starts_with("```");
        !code && line.starts_with('#')
    });
    let anchor = |line: &str| -> String {
        let letters = line.trim_start_matches('#').trim().to_lowercase();
        letters
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let there = match (target.exists(), anchor) {
                (exists, "") => exists,
                (_, anchor) => std::fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).contains(&anchor.to_owned())),
            };
            if !there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_verb_that_is_named_exists() {
    let help = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for rest in text.split("cargo xtask ").skip(1) {
            let verb: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
            let known = help.lines().any(|line| line.split_whitespace().next() == Some(&verb));
            assert!(verb.is_empty() || known, "{} names `cargo xtask {verb}`", document.display());
        }
    }
}

/// Every source in the folders that hold tests.
fn sources(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_bug_of_others_has_its_line_and_every_test_that_is_named_exists() {
    let text = std::fs::read_to_string(root().join("docs/attacks.md")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("| ")).collect();
    let numbers: Vec<&str> = lines.iter().filter_map(|l| l.split(" | ").next()?.strip_prefix("| ")).collect();
    for number in 1..=119 {
        let count = numbers.iter().filter(|n| **n == number.to_string()).count();
        assert_eq!(count, 1, "number {number}");
    }
    let mut code = String::new();
    for folder in ["tests/tests", "hydra-common/tests", "hydra-agent/tests", "hydra-agent/src"] {
        sources(&root().join(folder), &mut code);
    }
    let mut missing = Vec::new();
    for line in lines {
        for name in line.rsplit(" | ").next().unwrap().split('`').skip(1).step_by(2) {
            let name = name.rsplit("::").next().unwrap();
            let is_test = name.matches('_').count() >= 2 || line.contains(&format!("::{name}`"));
            if is_test && !code.contains(&format!("fn {name}(")) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
}
