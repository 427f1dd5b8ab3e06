//! `L1`: what the programs take for a packet, in the kernel's own test run (`BPF_PROG_TEST_RUN`), beside programs that do next to
//! nothing. Nothing but the programs is in it: no network, no skb that has to be made.
//!
//! A packet that must be another each time, and one that the program changes, comes through a program of a dozen instructions that
//! writes its header and goes on (`shake`); what that takes is measured in the same round and subtracted.

mod programs;

use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use hydra_tests::kernel::{NEXT, REDIRECT, SHOT};
use hydra_tests::topology::HOST;

use self::programs::Table;
use crate::bpf;
use crate::environment::stay;
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::scene::{ALLOWED, CLOSED, Live, Scene, Size, Way};
use crate::stats::interleave;

/// Runs in one call, of about a millisecond.
const REPEAT: u32 = 10_000;
/// Turns of all cases that make one round: of each the quickest counts, since what disturbs only ever adds.
const TURNS: usize = 6;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// How often the object is loaded: where the kernel puts code and tables makes a difference of up to a fifth.
    pub loads: usize,
    /// Rounds with each, two of which are A B B A.
    pub rounds: usize,
    /// Where flows are many, the bits of a source port that differ: low ones, all of them used.
    pub bits: u16,
    /// Policies of other sizes, too.
    pub sizes: bool,
}

impl Form {
    /// Some seconds.
    pub const SHORT: Self = Self { loads: 2, rounds: 10, bits: 0x0fff, sizes: false };
    /// Some minutes. As many flows as a source's share of the first table is: twice as many would push out each other.
    pub const LONG: Self = Self { loads: 8, rounds: 8, bits: 0x7fff, sizes: true };
}

impl Form {
    fn of_many(&self) -> String {
        format!("one of {} flows", u32::from(self.bits) + 1)
    }
}

/// One thing to measure.
struct Case {
    what: String,
    /// It comes through a program that writes its header.
    shaken: bool,
    program: OwnedFd,
    frame: Vec<u8>,
    ifindex: u32,
    /// What it must return, so that what is measured is what it says.
    returns: i32,
}

/// Nanoseconds of one run.
fn measure(case: &mut Case) -> Result<f64> {
    let begun = Instant::now();
    let returned = bpf::test_run(&case.program, &case.frame, case.ifindex, REPEAT)
        .with_context(|| format!("cannot run `{}`", case.what))?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(returned == case.returns, "`{}` returned {returned}, not {}", case.what, case.returns);
    Ok(seconds * 1e9 / f64::from(REPEAT))
}

const EMPTY: &str = "a program that does nothing";
const SHAKE: &str = "a program that writes the header";
const FLAT: f64 = 1.15;

/// Measures.
pub fn run(form: &Form, progress: &mut Progress) -> Result<Report> {
    let _stay = stay()?;
    let mut report = Report::new("L1", form.sizes)?;
    let scene = Scene::build(false)?;
    scene.world.enter(HOST, || -> Result<()> {
        for load in 1..=form.loads {
            progress.at(&format!("load {load} of {}", form.loads));
            let small = scene.open("small", Size::SMALL)?;
            paths(&scene, &small, form, &mut report, progress)?;
        }
        ratios(&mut report, form)?;
        for size in Size::OTHERS.into_iter().filter(|_| form.sizes) {
            for load in 1..=form.loads {
                progress.at(&format!("{size}: load {load} of {}", form.loads));
                let lives = (scene.open("small", Size::SMALL)?, scene.open("other", size)?);
                flat(&scene, (&lives.0, &lives.1), size, form, &mut report, progress)?;
            }
            for case in ["established", "denied"] {
                let goal = (size != Size::SMALL).then_some(Goal::Most(3, FLAT));
                report.compare(&format!("{case}, {size}"), &beside(case, size), goal)?;
            }
        }
        Ok(())
    })??;
    Ok(report)
}

/// The ways of a packet, in the smallest policy.
fn paths(
    scene: &Scene,
    live: &Live,
    form: &Form,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<()> {
    let mut cases = Cases::new(scene.sender)?;
    let hydra = cases.table.put(&live.program)?;
    let ask = |v6| scene.segment(v6, Way::Stack, ALLOWED);
    cases.plain(EMPTY, programs::empty()?, &ask(false), NEXT);
    let empty = cases.table.put(&programs::empty()?)?;
    cases.shaken(SHAKE, &ask(false), 0, empty, NEXT)?;
    for (family, v6) in [("IPv4", false), ("IPv6", true)] {
        let frame = ask(v6);
        live.converse(scene, v6, Way::Stack, 0)?;
        live.converse(scene, v6, Way::Peer, 0)?;
        cases.plain(&format!("one look-up, {family}"), programs::look_up(&[&frame])?, &frame, NEXT);
        cases.plain(&format!("established, {family}"), live.again()?, &frame, NEXT);
        cases.shaken(&format!("established, {family}, shaken"), &frame, 0, hydra, NEXT)?;
        let peer = scene.segment(v6, Way::Peer, ALLOWED);
        cases.shaken(&format!("established and forwarded, {family}"), &peer, 0, hydra, REDIRECT)?;
        let denied = scene.segment(v6, Way::Stack, CLOSED);
        cases.shaken(&format!("denied, new tuple, {family}"), &denied, u16::MAX, hydra, SHOT)?;
    }
    let of_many = form.of_many();
    progress.at(&of_many);
    let many = live.converse(scene, false, Way::Stack, form.bits)?;
    let look_up = programs::look_up(&many.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let look_up = cases.table.put(&look_up)?;
    cases.shaken(&format!("one look-up, {of_many}"), &ask(false), form.bits, look_up, NEXT)?;
    cases.shaken(&format!("established, {of_many}"), &ask(false), form.bits, hydra, NEXT)?;

    let before = live.flows()?;
    let samples = cases.measure(form.rounds, "the ways of a packet", progress)?;
    let after = live.flows()?;
    ensure!(before == after, "there were {before} flows and are {after}: denied packets made some");
    for (case, samples) in cases.all.iter().zip(samples) {
        report.add(&case.what, "ns", samples)?;
    }
    Ok(())
}

/// What these come to.
fn ratios(report: &mut Report, form: &Form) -> Result<()> {
    for family in ["IPv4", "IPv6"] {
        let established = format!("established, {family}");
        report.compare(&established, &format!("one look-up, {family}"), Some(Goal::Most(1, 1.5)))?;
        report.compare(&established, EMPTY, None)?;
        report.compare(&format!("established, {family}, shaken"), &established, None)?;
        report.compare(&format!("established and forwarded, {family}"), &established, None)?;
        report.compare(&format!("denied, new tuple, {family}"), &established, Some(Goal::Most(2, 1.3)))?;
    }
    let of_many = form.of_many();
    report.compare(&format!("established, {of_many}"), &format!("one look-up, {of_many}"), None)
}

/// The same packets in a larger policy, beside the smallest.
fn flat(
    scene: &Scene,
    (small, other): (&Live, &Live),
    size: Size,
    form: &Form,
    report: &mut Report,
    progress: &mut Progress,
) -> Result<()> {
    let mut cases = Cases::new(scene.sender)?;
    let frame = scene.segment(false, Way::Stack, ALLOWED);
    let denied = scene.segment(false, Way::Stack, CLOSED);
    let empty = cases.table.put(&programs::empty()?)?;
    cases.plain(EMPTY, programs::empty()?, &frame, NEXT);
    cases.shaken(SHAKE, &frame, 0, empty, NEXT)?;
    for live in [small, other] {
        live.converse(scene, false, Way::Stack, 0)?;
        let slot = cases.table.put(&live.program)?;
        cases.plain("established", live.again()?, &frame, NEXT);
        cases.shaken("denied", &denied, u16::MAX, slot, SHOT)?;
    }
    let samples = cases.measure(form.rounds, &size.to_string(), progress)?;
    let [_, _, small, small_denied, other, other_denied] = &samples[..] else {
        bail!("{} cases were measured, not six", samples.len());
    };
    report.add(&beside("established", size), "ns", small.clone())?;
    report.add(&beside("denied", size), "ns", small_denied.clone())?;
    report.add(&format!("established, {size}"), "ns", other.clone())?;
    report.add(&format!("denied, {size}"), "ns", other_denied.clone())
}

/// The name of what the smallest policy took in the rounds of another.
fn beside(case: &str, size: Size) -> String {
    format!("{case}, smallest policy, beside {size}")
}

/// What is measured in turns.
struct Cases {
    all: Vec<Case>,
    table: Table,
    ifindex: u32,
}

impl Cases {
    fn new(ifindex: u32) -> Result<Self> {
        Ok(Self { all: Vec::new(), table: Table::new()?, ifindex })
    }

    /// A program as it is, always with the same packet.
    fn plain(&mut self, what: &str, program: OwnedFd, frame: &[u8], returns: i32) {
        let (what, frame) = (what.to_owned(), frame.to_vec());
        self.all.push(Case { what, shaken: false, program, frame, ifindex: self.ifindex, returns });
    }

    /// The program of a slot, behind one that writes the header with so many more source ports, at random.
    fn shaken(&mut self, what: &str, frame: &[u8], ports: u16, slot: u32, returns: i32) -> Result<()> {
        let program = self.table.shake(frame, ports, slot)?;
        let (what, frame) = (what.to_owned(), frame.to_vec());
        self.all.push(Case { what, shaken: true, program, frame, ifindex: self.ifindex, returns });
        Ok(())
    }

    /// Samples of each; of what is shaken without what the shaking takes, and with what any run takes.
    fn measure(&mut self, rounds: usize, what: &str, progress: &mut Progress) -> Result<Vec<Vec<f64>>> {
        let turns = interleave(&mut self.all, rounds * TURNS, measure, |done| {
            progress.at(&format!("{what}: round {} of {rounds}", done / TURNS));
        })?;
        let quickest = |turns: &[f64]| turns.iter().copied().fold(f64::INFINITY, f64::min);
        let mut samples: Vec<Vec<f64>> =
            turns.iter().map(|turns| turns.chunks(TURNS).map(quickest).collect()).collect();
        let [empty, shake] = [EMPTY, SHAKE].map(|name| self.all.iter().position(|c| c.what == name));
        let (empty, shake) = (empty.context("nothing empty")?, shake.context("nothing shaken")?);
        let more: Vec<f64> = samples[shake].iter().zip(&samples[empty]).map(|(s, e)| s - e).collect();
        for (case, samples) in self.all.iter().zip(&mut samples) {
            if case.shaken && case.what != SHAKE {
                samples.iter_mut().zip(&more).for_each(|(sample, more)| *sample -= more);
            }
        }
        Ok(samples)
    }
}
