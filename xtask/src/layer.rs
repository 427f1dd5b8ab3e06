//! The layers of the tests, what belongs to each, and how each is run.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lint;
use crate::long::{self, Form, Long};
use crate::process::{self, Job, Ran};
use crate::programs::{Built, Program};
use crate::say::{self, Progress};
use crate::tally::{Row, Tally, skips};

/// A layer, in the order in which they run: what is quick to fail comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Layer {
    /// Tests that need neither root nor a kernel of their own
    Unit,
    /// Formatting and clippy
    Lint,
    /// Generated files are current
    Gen,
    /// The committed eBPF object is what its source gives
    Object,
    /// The kernel object and the agent in network namespaces
    Netns,
    /// The agent beside real Docker engines
    Docker,
}

/// Test files that need no root. Every other one runs as root in the `netns` layer, so that none is forgotten.
const AS_USER: &[&str] =
    &["cli", "fuzz", "hostile", "hydractl_agent", "hydractl_errors", "packaging", "policies"];

impl Layer {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [Self::Unit, Self::Lint, Self::Gen, Self::Object, Self::Netns, Self::Docker];

    /// The name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Lint => "lint",
            Self::Gen => "gen",
            Self::Object => "object",
            Self::Netns => "netns",
            Self::Docker => "docker",
        }
    }

    /// Whether it runs test programs, which must be built first.
    pub fn has_programs(self) -> bool {
        matches!(self, Self::Unit | Self::Netns | Self::Docker)
    }

    /// The layer that a test program belongs to.
    pub fn of(program: &Program) -> Self {
        if !program.integration || ["hydra-common", "xtask"].contains(&program.package.as_str()) {
            Self::Unit
        } else if program.target.starts_with("docker") {
            Self::Docker
        } else if AS_USER.contains(&program.target.as_str()) {
            Self::Unit
        } else {
            Self::Netns
        }
    }
}

/// What to run of a layer.
pub struct Run<'a> {
    /// What was built.
    pub built: &'a Built,
    /// Only these test programs; all where empty.
    pub only: &'a [String],
    /// What to give to the test programs: a part of a test's name, or an option of libtest.
    pub filters: &'a [String],
    /// Where the output of each step is kept.
    pub logs: &'a Path,
    /// The long forms, and nothing else.
    pub long: Option<Long>,
}

impl Run<'_> {
    /// The row of a layer that was not run at all.
    pub fn not_run(layer: Layer, why: String) -> Row {
        say::line("");
        say::line(&format!("{}:\n  skipped: {why}", layer.name()));
        Row { layer: layer.name(), tally: Tally::default(), took: Duration::ZERO, skipped: Some(why) }
    }

    /// Runs one layer; what it counted until then is told also where it could not be run to its end.
    pub fn layer(&self, layer: Layer) -> (Row, Result<()>) {
        let begun = Instant::now();
        say::line("");
        say::line(&format!("{}:", layer.name()));
        let mut tally = Tally::default();
        let ran = match layer {
            Layer::Unit | Layer::Netns | Layer::Docker => self.programs(layer, &mut tally),
            Layer::Lint => self.checks(layer, &lint::checks(), &mut tally),
            Layer::Gen => self.verb(layer, &["gen", "--check"], &mut tally),
            Layer::Object => self.verb(layer, &["ebpf", "--check"], &mut tally),
        };
        let (skipped, ended) = match ran {
            Ok(skipped) => (skipped, Ok(())),
            Err(error) => {
                tally += Tally::one(false);
                (None, Err(error))
            }
        };
        if let Some(why) = &skipped {
            say::line(&format!("  skipped: {why}"));
        }
        (Row { layer: layer.name(), tally, took: begun.elapsed(), skipped }, ended)
    }

    /// Runs the test programs of a layer. Answers why there was nothing to run.
    fn programs(&self, layer: Layer, tally: &mut Tally) -> Result<Option<String>> {
        let root = layer != Layer::Unit;
        if root && let Err(error) = process::allow_sudo() {
            return Ok(Some(format!("{error:#}")));
        }
        let mut any = false;
        for program in self.built.tests.iter().filter(|program| Layer::of(program) == layer) {
            if !self.only.is_empty() && !self.only.contains(&program.target) {
                continue;
            }
            let Some(long) = &self.long else {
                any = true;
                *tally += self.program(layer, program, root, None)?;
                continue;
            };
            if program.target == long::FUZZ {
                any = true;
                self.fuzz(layer, long.minutes, tally)?;
            }
            for form in long::forms(&program.target) {
                any = true;
                *tally += self.program(layer, program, root, Some((long, form)))?;
            }
        }
        if layer == Layer::Unit && self.only.is_empty() && self.filters.is_empty() && self.long.is_none() {
            let job = Job::cargo().args(["test", "--workspace", "--doc", "--locked"]);
            *tally += self.libtest(layer, "examples in the documentation", &job)?;
        }
        Ok((!any).then(|| "there is no test program of this layer".to_owned()))
    }

    fn program(
        &self,
        layer: Layer,
        program: &Program,
        root: bool,
        long: Option<(&Long, &Form)>,
    ) -> Result<Tally> {
        let mut job = Job::new(&program.file)
            .args(["--show-output"])
            .args(self.filters)
            .dir(&program.dir)
            .env("CARGO_MANIFEST_DIR", &program.dir)
            .env("RUST_BACKTRACE", "1")
            .env("RUST_LIB_BACKTRACE", "0")
            // Snapshots are compared, never written, and not by asking cargo, which root may not have.
            .env("INSTA_WORKSPACE_ROOT", crate::root())
            .env("INSTA_UPDATE", "no");
        for (name, file) in &self.built.binaries {
            job = job.env(&format!("CARGO_BIN_EXE_{name}"), file);
        }
        if root {
            // Kernel tables and engines are not shared between tests that run at the same time.
            job = job.args(["--test-threads=1"]).for_root();
        }
        let mut name = if program.package == "tests" || !program.integration {
            program.target.clone()
        } else {
            format!("{} of {}", program.target, program.package)
        };
        if let Some((long, form)) = long {
            let (variable, number) = form.number();
            if !form.test.is_empty() {
                name = format!("{name} {}", form.test);
                job = job.args([form.test]);
            }
            name = format!("{name} with {variable}={number}");
            job = job.env(variable, number).env("HYDRA_SEED", &long.seed);
        }
        self.libtest(layer, &name, &job)
    }

    /// Runs something whose output has libtest's result lines.
    fn libtest(&self, layer: Layer, name: &str, job: &Job) -> Result<Tally> {
        let (ran, progress) = self.step(layer, name, job)?;
        let mut tally = Tally::parse(&ran.all).unwrap_or_default();
        if !ran.status.success() && tally.failed == 0 {
            tally.failed = 1;
        }
        progress.end(&tally.to_string());
        for why in skips(&ran.all) {
            say::line(&format!("    skipped: {why}"));
        }
        for figure in ran.all.lines().filter_map(|line| line.trim_start().strip_prefix("figure: ")) {
            say::quote(figure);
        }
        for note in ran.all.lines().filter(|line| line.starts_with("note: processes left behind")) {
            say::quote(note);
        }
        if tally.failed > 0 {
            say::quote(&ran.all);
            say::line(&format!("    ended with {}: {}", ran.status, job.shown()));
        }
        Ok(tally)
    }

    /// Runs libFuzzer's targets for so many minutes each; where it can't run, each of them is skipped.
    fn fuzz(&self, layer: Layer, minutes: u32, tally: &mut Tally) -> Result<()> {
        let why = long::no_fuzzer();
        for target in long::TARGETS {
            if let Some(why) = &why {
                say::line(&format!("  libFuzzer's {target}: skipped: {why}"));
                tally.skipped += 1;
                continue;
            }
            std::fs::create_dir_all(crate::root().join("fuzz/corpus").join(target))?;
            let name = format!("libFuzzer's {target} for {minutes} min");
            let (ran, progress) = self.step(layer, &name, &long::fuzz(target, minutes))?;
            let held = ran.status.success();
            progress.end(if held { "holds" } else { "FAILED" });
            if held {
                say::quote(&long::figure(target, &ran.all));
            } else {
                say::quote(&ran.all);
                say::line(&format!("    what it found is in `fuzz/artifacts/{target}`"));
            }
            *tally += Tally::one(held);
        }
        Ok(())
    }

    /// Runs named commands, each of which counts as one test.
    fn checks(&self, layer: Layer, checks: &[(&str, Job)], tally: &mut Tally) -> Result<Option<String>> {
        for (name, job) in checks {
            let (ran, progress) = self.step(layer, name, job)?;
            let held = ran.status.success();
            progress.end(if held { "holds" } else { "FAILED" });
            if !held {
                say::quote(&ran.all);
            }
            *tally += Tally::one(held);
        }
        Ok(None)
    }

    /// Runs another verb of this program as one test.
    fn verb(&self, layer: Layer, args: &[&str], tally: &mut Tally) -> Result<Option<String>> {
        let name = format!("cargo xtask {}", args.join(" "));
        self.checks(layer, &[(&name, Job::new(process::myself()).args(args))], tally)
    }

    /// Runs a command with its progress on the screen and its output in a log; the second answer ends the progress.
    fn step(&self, layer: Layer, name: &str, job: &Job) -> Result<(Ran, Progress)> {
        let mut progress = Progress::start(name);
        let ran = job.run(|line| progress.at(line))?;
        let log = self.logs.join(format!("{}-{}.log", layer.name(), name.replace([' ', '/'], "-")));
        std::fs::write(&log, format!("$ {}\n{}", job.shown(), ran.all))
            .with_context(|| format!("cannot write `{}`", log.display()))?;
        if process::stopped() {
            progress.end("stopped");
            say::quote(&ran.all);
            bail!("stopped while `{}` ran", job.shown());
        }
        Ok((ran, progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(package: &str, target: &str, integration: bool) -> Program {
        Program {
            package: package.to_owned(),
            target: target.to_owned(),
            integration,
            file: "/t/x".into(),
            dir: "/w".into(),
        }
    }

    #[test]
    fn every_program_has_its_layer() {
        assert_eq!(Layer::of(&program("hydra-common", "hydra_common", false)), Layer::Unit);
        assert_eq!(Layer::of(&program("hydra-common", "parse", true)), Layer::Unit);
        assert_eq!(Layer::of(&program("tests", "hydra_tests", false)), Layer::Unit);
        assert_eq!(Layer::of(&program("tests", "policies", true)), Layer::Unit);
        assert_eq!(Layer::of(&program("tests", "docker_stack", true)), Layer::Docker);
        assert_eq!(Layer::of(&program("tests", "something_new", true)), Layer::Netns);
        assert_eq!(Layer::of(&program("hydra-agent", "datapath", true)), Layer::Netns);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for layer in Layer::ALL {
            assert_eq!(<Layer as clap::ValueEnum>::from_str(layer.name(), false), Ok(layer));
        }
    }
}
