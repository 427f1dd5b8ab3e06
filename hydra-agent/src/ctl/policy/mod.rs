//! `hydractl policy …`: one file per command, and what they share: reading policies.

mod apply;
mod diff;
mod history;
mod rollback;
mod show;
mod test;
mod validate;

use std::fmt::Write as _;
use std::io::Read;

use clap::Subcommand;

use super::failure::Failure;
use super::{Client, Outcome, Output};
use crate::policy::model::Model;
use crate::policy::rows::Compiled;
use crate::policy::{examine, expect, parse_bytes, unix_now};
use crate::render::{self, escape};

/// The largest policy that is read, as the agent has it.
const LARGEST: u64 = 4 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check policy files and run their own tests; needs neither root nor agent
    Validate(validate::Asked),
    /// Print every `expect` row of policy files with its outcome; needs neither root nor agent
    Test(test::Asked),
    /// Print the policy that the agent enforces, or an earlier one
    Show(show::Asked),
    /// Print what differs between a policy file and the agent's policy, or between two files
    Diff(diff::Asked),
    /// Show what a policy changes and which live flows it cuts, and put it in force, whole or not at all
    Apply(apply::Asked),
    /// Put an earlier policy in force again
    Rollback(rollback::Asked),
    /// List the applied policies, the oldest first
    History(Output),
}

pub(super) fn run(client: &Client, command: Command) -> Outcome {
    match command {
        Command::Validate(asked) => validate::run(client, &asked),
        Command::Test(asked) => test::run(&asked),
        Command::Show(asked) => show::run(client, &asked),
        Command::Diff(asked) => diff::run(client, &asked),
        Command::Apply(asked) => apply::run(client, &asked),
        Command::Rollback(asked) => rollback::run(client, &asked),
        Command::History(output) => history::run(client, output.output),
    }
}

/// A policy as it was read, and what messages call it.
pub(super) struct Source {
    pub(super) name: String,
    bytes: Vec<u8>,
}

impl Source {
    /// The text; bytes that are none are a refused policy.
    fn text(&self) -> Result<&str, Failure> {
        std::str::from_utf8(&self.bytes).map_err(|_| match parse_bytes(&self.bytes, &self.name) {
            Err(problems) => Failure::refused(&problems),
            Ok(_) => Failure::File { path: self.name.clone(), why: "it is not UTF-8".into() },
        })
    }
}

/// The policy that a file holds, to answer something from.
pub(super) fn model(source: &Source) -> Result<(Model, Compiled), Failure> {
    let text = source.text().map_err(Failure::unusable)?;
    match examine(text, &source.name, unix_now()) {
        (Some(made), said) if !said.has_errors() => Ok(made),
        (_, said) => Err(Failure::refused(&said).unusable()),
    }
}

/// The same, to ask it something: of a policy that is refused for its own `expect` rows alone one asks why they fail.
pub(super) fn model_to_ask(source: &Source) -> Result<(Model, Compiled), Failure> {
    let text = source.text().map_err(Failure::unusable)?;
    let (made, said) = examine(text, &source.name, unix_now());
    let Some((model, compiled)) = made else { return Err(Failure::refused(&said).unusable()) };
    let rows = expect::run(&model, &compiled, unix_now());
    let failed = rows.iter().filter(|row| !row.passed).count();
    if failed > 0 {
        let (name, all) = (&source.name, rows.len());
        render::warning(&format!(
            "`{name}` would be refused: its `expect` rows that fail are {failed} of {all}"
        ));
    } else if said.has_errors() {
        return Err(Failure::refused(&said).unusable());
    }
    Ok((model, compiled))
}

/// Reads a file, or stdin for `-`.
pub(super) fn read(file: &str) -> Result<Source, Failure> {
    let name = if file == "-" { "<stdin>".to_owned() } else { file.to_owned() };
    let failed = |why: String| Failure::File { path: name.clone(), why };
    let io =
        |e: std::io::Error| failed(e.to_string().split(" (os error").next().unwrap_or_default().to_owned());
    let mut bytes = Vec::new();
    // One byte more than is allowed tells "too large" from "just fits".
    let (read, limit) = (&mut bytes, LARGEST + 1);
    if file == "-" {
        std::io::stdin().lock().take(limit).read_to_end(read).map_err(io)?;
    } else {
        std::fs::File::open(file).map_err(io)?.take(limit).read_to_end(read).map_err(io)?;
    }
    if bytes.len() as u64 > LARGEST {
        return Err(failed(format!("it is larger than {LARGEST} bytes")));
    }
    Ok(Source { name, bytes })
}

/// Reads several; stdin at most once.
pub(super) fn read_all(files: &[String]) -> Result<Vec<Source>, Failure> {
    if files.iter().filter(|f| *f == "-").count() > 1 {
        let what = "the standard input can be read only once".to_owned();
        return Err(Failure::Question { what, hint: "name `-` once".into() });
    }
    files.iter().map(|f| read(f)).collect()
}

/// The most lines of changes that a person is shown at once.
const SHOWN: usize = 100;

/// Changes, a line each; of very many the first.
fn changes(lines: &[String]) -> String {
    let mut text: String = lines.iter().take(SHOWN).map(|line| escape(line) + "\n").collect();
    if let Some(more) = lines.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "… and {more} more (`-o json`)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::changes;

    #[test]
    fn of_very_many_changes_the_first_are_shown() {
        let lines: Vec<String> = (1..=130).map(|n| format!("+ tier `t{n}`")).collect();
        let text = changes(&lines);
        assert_eq!(text.lines().count(), 101);
        assert!(text.ends_with("+ tier `t100`\n… and 30 more (`-o json`)\n"), "{text}");
        assert_eq!(changes(&lines[..100]).lines().count(), 100);
    }
}
