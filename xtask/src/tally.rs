//! Counts what test programs report, and shows the table at the end.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use crate::say;

/// Tests by how they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and held.
    pub passed: u32,
    /// Ran and did not hold, or could not be run.
    pub failed: u32,
    /// Did not run, and said so.
    pub skipped: u32,
}

impl Tally {
    /// One check that held or did not.
    pub fn one(held: bool) -> Self {
        if held { Self { passed: 1, ..Self::default() } } else { Self { failed: 1, ..Self::default() } }
    }

    /// Reads the output of libtest programs: their `test result:` lines, and the tests that printed `skipped: WHY`.
    /// `None` when there is no result at all, because the program died before it could say one.
    pub fn parse(output: &str) -> Option<Self> {
        let results: Vec<Self> = output.lines().filter_map(result_line).collect();
        if results.is_empty() {
            return None;
        }
        let mut sum = Self::default();
        for result in results {
            sum += result;
        }
        let said = u32::try_from(skips(output).count()).unwrap_or(u32::MAX).min(sum.passed);
        sum.passed -= said;
        sum.skipped += said;
        Some(sum)
    }
}

/// The reasons of the tests that skipped themselves.
pub fn skips(output: &str) -> impl Iterator<Item = &str> {
    let word = "skipped: ";
    output.lines().map(str::trim_start).filter_map(move |line| {
        let (head, why) = line.split_at_checked(word.len())?;
        head.eq_ignore_ascii_case(word).then_some(why)
    })
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s`
fn result_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim_start().strip_prefix("test result: ")?.split_once(". ")?;
    let mut tally = Tally::default();
    for count in counts.split(';') {
        let mut words = count.split_whitespace();
        let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
        match (number.parse(), what) {
            (Ok(number), "passed") => tally.passed = number,
            (Ok(number), "failed") => tally.failed = number,
            (Ok(number), "ignored") => tally.skipped = number,
            _ => {}
        }
    }
    Some(tally)
}

/// How one layer went.
pub struct Row {
    /// Its name.
    pub layer: &'static str,
    /// What it counted.
    pub tally: Tally,
    /// How long it took.
    pub took: Duration,
    /// Why nothing of it ran.
    pub skipped: Option<String>,
}

/// Prints the layers and, as the last line and alone, the sum.
pub fn table(rows: &[Row]) -> Tally {
    let mut sum = Tally::default();
    say::line("");
    say::line("layer     passed  failed  skipped  time");
    for row in rows {
        let Tally { passed, failed, skipped } = row.tally;
        let note = row.skipped.as_ref().map(|why| format!("  skipped: {why}")).unwrap_or_default();
        say::line(&format!(
            "{:<8} {passed:>7} {failed:>7} {skipped:>8}  {}{note}",
            row.layer,
            say::time(row.took)
        ));
        sum += row.tally;
    }
    say::line("");
    say::line(&sum.to_string());
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_line_counts() {
        let output = "running 2 tests\ntest a ... ok\n\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(Tally::parse(output), Some(Tally { passed: 15, failed: 2, skipped: 1 }));
        assert_eq!(Tally::parse(output).unwrap().to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_skips_itself_is_not_passed() {
        let output = "---- x stdout ----\nSKIPPED: no `br_netfilter` here\n\ntest result: ok. 2 passed; 0 failed; 0 ignored\n";
        assert_eq!(Tally::parse(output), Some(Tally { passed: 1, failed: 0, skipped: 1 }));
        assert_eq!(skips(output).collect::<Vec<_>>(), ["no `br_netfilter` here"]);
    }

    #[test]
    fn a_program_that_died_has_no_result() {
        assert_eq!(Tally::parse("running 2 tests\ntest a ... "), None);
    }
}
