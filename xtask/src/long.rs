//! The long forms: tests with so many cases as the project's targets name, for which a run of everything has no time, and libFuzzer's
//! targets for a while.

use anyhow::{Result, anyhow};

use crate::process::{self, Job};

/// What is the same for all of a run.
pub struct Long {
    /// What the random tests begin with: `HYDRA_SEED`, else another one each time.
    pub seed: String,
    /// How long each of libFuzzer's targets runs.
    pub minutes: u32,
}

impl Long {
    /// With this long for libFuzzer.
    pub fn new(minutes: u32) -> Self {
        let seed = std::env::var("HYDRA_SEED").unwrap_or_else(|_| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |since| since.as_secs()).to_string()
        });
        Self { seed, minutes }
    }
}

/// A test program, or one test of it, with more cases.
pub struct Form {
    /// The test program.
    pub program: &'static str,
    /// A part of the test's name; empty for all of the program.
    pub test: &'static str,
    /// The variable that says how many cases.
    variable: &'static str,
    /// How many, where the caller's environment does not say.
    number: u32,
}

/// All of them. Nothing else in the project says what a long run is.
const FORMS: &[Form] = &[
    Form { program: "differential", test: "compiled_tables", variable: "HYDRA_POLICIES", number: 100_000 },
    Form { program: "differential", test: "kernel_agree", variable: "HYDRA_POLICIES", number: 1_000 },
    Form { program: "explain", test: "", variable: "HYDRA_TUPLES", number: 100_000 },
    Form { program: "headers", test: "random_frames", variable: "HYDRA_FRAMES", number: 10_000_000 },
    Form { program: "attacks", test: "inherits_no_rights", variable: "HYDRA_CYCLES", number: 1_000 },
    Form { program: "published_live", test: "launder", variable: "HYDRA_TRANSACTIONS", number: 1_000_000 },
    Form { program: "flow_table", test: "spray", variable: "HYDRA_SPRAY", number: 1_000_000 },
    Form { program: "flow_table", test: "denied", variable: "HYDRA_SPRAY", number: 1_000_000 },
    Form { program: "flow_table", test: "lives", variable: "HYDRA_REUSED", number: 1_000_000 },
    Form { program: "flow_table", test: "batches", variable: "HYDRA_ENTRIES", number: 1_000_000 },
    Form { program: "flow_table", test: "filled_anew", variable: "HYDRA_MET", number: 50_000 },
    Form { program: "docker_first_packet", test: "", variable: "HYDRA_RACERS", number: 250 },
];

/// The program whose long form is libFuzzer, and its targets.
pub const FUZZ: &str = "fuzz";
/// The targets of libFuzzer: files of `fuzz/fuzz_targets`.
pub const TARGETS: [&str; 2] = ["policy", "frame"];

impl Form {
    /// The variable with its value; one of the caller's own wins.
    pub fn number(&self) -> (&'static str, String) {
        (self.variable, std::env::var(self.variable).unwrap_or_else(|_| self.number.to_string()))
    }
}

/// The long forms of a test program.
pub fn forms(program: &str) -> impl Iterator<Item = &'static Form> {
    FORMS.iter().filter(move |form| form.program == program)
}

/// An error where one of these programs has no long form.
pub fn check(programs: &[String]) -> Result<()> {
    let mut known: Vec<&str> = FORMS.iter().map(|form| form.program).chain([FUZZ]).collect();
    known.dedup();
    let unknown: Vec<&str> =
        programs.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(anyhow!("hint: with `--long` name one of {}, or a layer", known.join(", "))
        .context(format!("this has no long form: {}", unknown.join(", "))))
}

/// Why libFuzzer can't run here; nothing is installed for it.
pub fn no_fuzzer() -> Option<String> {
    if !process::exists("rustup") {
        return Some("there is no `rustup` here to find a nightly tool chain with".to_owned());
    }
    let runs = cargo_fuzz(&["--version"]).run(|_| {}).is_ok_and(|ran| ran.status.success());
    (!runs).then(|| {
        "libFuzzer's targets need `rustup toolchain install nightly` and `cargo install cargo-fuzz --locked`"
            .to_owned()
    })
}

/// Runs a target for so many minutes, from its seeds and from what earlier runs kept in `fuzz/corpus`.
pub fn fuzz(target: &str, minutes: u32) -> Job {
    let folder = |of: &str| format!("fuzz/{of}/{target}");
    let time = format!("-max_total_time={}", 60 * minutes);
    let (corpus, seeds) = (folder("corpus"), folder("seeds"));
    let limits = ["-max_len=8192", "-rss_limit_mb=1024", "-timeout=20", "-print_final_stats=1"];
    cargo_fuzz(&["run", target, &corpus, &seeds, "--", &time]).args(limits)
}

/// What libFuzzer has to say at its end: inputs that it tried, and what the code was seen to do.
pub fn figure(target: &str, output: &str) -> String {
    let stat = |name: &str| {
        let of = |line: &str| {
            Some(line.strip_prefix("stat::")?.strip_prefix(name)?.trim_start_matches(':').trim().to_owned())
        };
        output.lines().find_map(of).unwrap_or_else(|| "?".to_owned())
    };
    let done = output.lines().rev().find(|line| line.contains("\tDONE ")).unwrap_or_default();
    let word = |name: &str| done.split_whitespace().skip_while(|word| *word != name).nth(1).unwrap_or("?");
    format!(
        "{target}: {} inputs, {} of them kept as new, {} edges reached, {} MiB at most",
        stat("number_of_executed_units"),
        stat("new_units_added"),
        word("cov:"),
        stat("peak_rss_mb")
    )
}

fn cargo_fuzz(args: &[&str]) -> Job {
    Job::new("rustup").args(["run", "nightly", "cargo", "fuzz"]).args(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_its_test_and_every_number_its_form() {
        let folder = crate::root().join("tests/tests");
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let files: Vec<_> = match std::fs::read_dir(&path) {
                Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
                Err(_) => vec![path.clone()],
            };
            let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
            let program = path.file_stem().unwrap().to_str().unwrap();
            for form in forms(program) {
                assert!(
                    text.contains(&format!("var(\"{}\")", form.variable)),
                    "{program}: {}",
                    form.variable
                );
                let mut names = text.lines().filter_map(|line| line.strip_prefix("fn ")?.split_once("() {"));
                assert!(names.any(|(name, _)| name.contains(form.test)), "{program}: {}", form.test);
            }
            numbers.extend(
                text.split("var(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())),
            );
        }
        // libFuzzer has its own way to count.
        numbers.retain(|name| name.starts_with("HYDRA_") && name != "HYDRA_MUTATIONS");
        assert!(numbers.len() >= 6, "{numbers:?}");
        for name in numbers {
            assert!(FORMS.iter().any(|form| form.variable == name), "{name} has no long form");
        }
    }

    #[test]
    fn the_targets_are_those_of_the_folder() {
        let folder = crate::root().join("fuzz/fuzz_targets");
        let entries = std::fs::read_dir(folder).unwrap();
        let names: std::collections::BTreeSet<_> = entries
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, TARGETS.map(str::to_owned).into());
    }

    #[test]
    fn what_has_no_long_form_is_refused_with_what_has() {
        assert!(check(&["headers".to_owned(), "fuzz".to_owned()]).is_ok());
        let error = check(&["headers".to_owned(), "counters".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "this has no long form: counters");
        assert!(error.root_cause().to_string().contains("headers, attacks"));
    }

    #[test]
    fn the_end_of_libfuzzer_is_read() {
        let output = "#2\tINITED cov: 10 ft: 12\n#99\tDONE   cov: 1234 ft: 5678 corp: 40/9Kb lim: 8192 exec/s: 9 rss: 80Mb\n\
            Done 99 runs in 11 second(s)\nstat::number_of_executed_units: 99\nstat::average_exec_per_sec:     9\n\
            stat::new_units_added:          7\nstat::slowest_unit_time_sec:    0\nstat::peak_rss_mb:              81\n";
        assert_eq!(
            figure("frame", output),
            "frame: 99 inputs, 7 of them kept as new, 1234 edges reached, 81 MiB at most"
        );
    }
}
