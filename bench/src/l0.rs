//! `L0`: what does not depend on the machine's mood. The verifier's work per program and function, code, memory, and whether the
//! counters are exact. Compared with the figures that are committed, so that growth is seen in the change that brings it.

mod exact;
mod object;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hydra_tests::binary::root;
use serde::{Deserialize, Serialize};

pub use exact::{Exact, exact};

use crate::environment::Environment;
use crate::kept;
use crate::progress::Progress;

/// What is kept of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Where it was.
    pub environment: Environment,
    /// The object's figures.
    pub figures: Figures,
    /// Whether the counters are exact.
    pub exact: Vec<Exact>,
}

impl Found {
    /// Measures all of it.
    pub fn now(progress: &mut Progress) -> Result<Self> {
        progress.at("load the object with the verifier's whole log");
        let figures = figures(true)?;
        progress.at("count packets from two CPUs");
        Ok(Self { environment: Environment::here()?, figures, exact: exact(FRAMES)? })
    }
}

impl Found {
    /// Writes it into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        kept::write(&folder.join(FILE), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// Reads it from a folder; none where there is no such file.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        serde_json::from_str(&text).map(Some).with_context(|| format!("cannot read `{}`", file.display()))
    }
}

const FILE: &str = "L0.json";
/// Frames from each CPU, of each direction and family.
const FRAMES: u64 = 20_000;
/// How much a program may grow before it has to be said.
const GROWTH: f64 = 1.1;

/// The figures of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// The kernel whose verifier and compiler they are of: `6.18 x86_64`.
    pub kernel: String,
    /// How many CPUs there are, which some maps have a row for each.
    pub cpus: usize,
    /// By program.
    pub programs: BTreeMap<String, Program>,
    /// By map.
    pub maps: BTreeMap<String, Map>,
}

/// A program's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Instructions that the verifier looked at, those of its functions included.
    pub verified: u32,
    /// Bytes after the kernel's rewriting.
    pub xlated: u32,
    /// Bytes of machine code.
    pub jited: u32,
    /// Of the verified instructions those of the program itself and of each function that is verified once for all calls.
    pub functions: BTreeMap<String, u32>,
}

/// A map's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Rows.
    pub entries: u32,
    /// Bytes of kernel memory, as `fdinfo` says of the empty map.
    pub bytes: u64,
}

/// Measures the embedded object, its programs' functions too if that is asked.
pub fn figures(functions: bool) -> Result<Figures> {
    object::figures(hydra_agent::datapath::OBJECT, functions)
}

/// Where the committed figures are.
pub fn place() -> PathBuf {
    let root = root();
    root.canonicalize().unwrap_or(root).join("docs/benchmarks/object.json")
}

/// The committed figures.
pub fn committed() -> Result<Figures> {
    let place = place();
    let text =
        std::fs::read_to_string(&place).with_context(|| format!("cannot read `{}`", place.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot read `{}`", place.display()))
}

/// Writes them.
pub fn update(figures: &Figures) -> Result<()> {
    kept::write(&place(), &(serde_json::to_string_pretty(figures)? + "\n"))
}

/// What grew by more than a tenth, or is not in the committed figures, a line each. Figures of another kernel tell nothing: its
/// verifier takes other ways. Machine code is another one with each processor's mitigations; maps are compared on as many CPUs alone.
pub fn grown(now: &Figures, committed: &Figures) -> Vec<String> {
    let mut all = Vec::new();
    for (name, program) in &now.programs {
        let Some(old) = committed.programs.get(name) else {
            all.push(format!("{name} is new"));
            continue;
        };
        for (what, now, old) in [
            ("verified instructions", program.verified, old.verified),
            ("bytes of xlated code", program.xlated, old.xlated),
        ] {
            if f64::from(now) > f64::from(old) * GROWTH {
                all.push(format!("{name} has {now} {what}, {old} were committed"));
            }
        }
    }
    for (name, map) in now.maps.iter().filter(|_| now.cpus == committed.cpus) {
        match committed.maps.get(name) {
            None => all.push(format!("{name} is new")),
            Some(old) if map.bytes as f64 > old.bytes as f64 * GROWTH => {
                all.push(format!("{name} takes {} bytes, {} were committed", map.bytes, old.bytes));
            }
            Some(_) => {}
        }
    }
    all
}

/// The figures as a table for people, with the difference to the committed ones.
pub fn table(now: &Figures, committed: Option<&Figures>) -> String {
    let mut text =
        format!("{:<20} {:>9} {:>9} {:>9}  changed\n", "program", "verified", "xlated B", "jited B");
    for (name, p) in &now.programs {
        let old = committed.and_then(|c| c.programs.get(name));
        let change = match old {
            Some(old) if (old.verified, old.xlated, old.jited) == (p.verified, p.xlated, p.jited) => {
                "no".to_owned()
            }
            Some(old) => {
                let percent = (f64::from(p.verified) / f64::from(old.verified) - 1.0) * 100.0;
                format!("verified {percent:+.1} %")
            }
            None => "new".to_owned(),
        };
        let _ = writeln!(text, "{name:<20} {:>9} {:>9} {:>9}  {change}", p.verified, p.xlated, p.jited);
    }
    let _ = writeln!(text, "\n{:<20} {:>9} {:>12} {:>9}", "map", "rows", "bytes", "per row");
    for (name, map) in &now.maps {
        let each = map.bytes / u64::from(map.entries.max(1));
        let _ = writeln!(text, "{name:<20} {:>9} {:>12} {each:>9}", map.entries, map.bytes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(verified: u32, bytes: u64) -> Figures {
        let program = Program { verified, xlated: 8, jited: 8, functions: BTreeMap::new() };
        Figures {
            programs: [("p".to_owned(), program)].into(),
            maps: [("m".to_owned(), Map { entries: 1, bytes })].into(),
            ..Figures::default()
        }
    }

    #[test]
    fn a_tenth_is_growth_that_need_not_be_said() {
        assert!(grown(&one(110, 110), &one(100, 100)).is_empty());
        assert_eq!(
            grown(&one(111, 111), &one(100, 100)),
            ["p has 111 verified instructions, 100 were committed", "m takes 111 bytes, 100 were committed"]
        );
        assert_eq!(grown(&one(1, 1), &Figures::default()), ["p is new", "m is new"]);
    }
}
