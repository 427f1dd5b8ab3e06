//! `L2`: live frames. They arrive at a container's port as if its driver had just received them (`BPF_F_TEST_XDP_LIVE_FRAMES`), so that
//! no sender takes part in what is measured, and are counted where the receiver gets them. What the kernel does for a frame is all in the
//! time: the buffer, the hooks, the way.
//!
//! Each guard has a host of its own, with the same two networks.

mod host;

use anyhow::Result;
use hydra_agent::datapath::Predrop;

use self::host::Host;
use crate::docker::Form::{Isolation, Raw};
use crate::environment::stay;
use crate::guard::Guard;
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::scene::{LARGEST, SMALLEST, Size};
use crate::stats::interleave;

/// What a row of frames of 1,500 bytes says.
pub const SHARE: &str = "share of a core for 0.81 million frames of 1,500 bytes a second";

/// Samples of each case, in either form.
const ROUNDS: usize = 30;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// In one sample.
    frames: u32,
    long: bool,
}

impl Form {
    /// A minute or two.
    pub const SHORT: Self = Self { frames: 50_000, long: false };
    /// Some minutes.
    pub const LONG: Self = Self { frames: 200_000, long: true };
}

const THOUSAND: Size = Size { containers: 1_000, ..Size::SMALL };

/// Frames of 1,500 bytes that a card of 10 Gbit/s carries in a second, in millions: with the Ethernet header, the FCS, the preamble and the
/// gap between frames 1,538 bytes each.
const LINE: f64 = 10_000.0 / 8.0 / 1538.0;

/// Who is flooded with frames of 64 bytes, and whether what comes is allowed there.
const CASES: [(&str, Guard, bool); 17] = [
    ("denied: a program that drops everything", Guard::Program, false),
    ("denied: one nft rule at the port, without hydra", Guard::Netdev, false),
    ("denied: Docker's FORWARD, 10 containers, without hydra", Guard::Docker(Isolation, 10), false),
    ("denied: Docker's raw PREROUTING, 1 container, without hydra", Guard::Docker(Raw, 1), false),
    ("denied: Docker's raw PREROUTING, 10 containers, without hydra", Guard::Docker(Raw, 10), false),
    ("denied: Docker's raw PREROUTING, 100 containers, without hydra", Guard::Docker(Raw, 100), false),
    ("denied: hydra", Guard::Hydra(Size::SMALL), false),
    ("denied: hydra, 1,000 containers", Guard::Hydra(THOUSAND), false),
    ("forwarded: the kernel, no rules, without hydra", Guard::Nobody, true),
    ("forwarded: Docker's rules, 1 container, without hydra", Guard::Docker(Raw, 1), true),
    ("forwarded: Docker's rules, 10 containers, without hydra", Guard::Docker(Raw, 10), true),
    ("forwarded: Docker's rules, 100 containers, without hydra", Guard::Docker(Raw, 100), true),
    ("forwarded: hydra", Guard::Hydra(Size::SMALL), true),
    ("forwarded: hydra, 1,000 containers", Guard::Hydra(THOUSAND), true),
    ("denied from outside: hydra's classifier", Guard::Uplink(Predrop::Off), false),
    ("denied from outside: hydra's pre-drop, native", Guard::Uplink(Predrop::Native), false),
    ("denied from outside: hydra's pre-drop, generic", Guard::Uplink(Predrop::Generic), false),
];

/// The same with frames of 1,500 bytes.
const LARGE: [(&str, Guard, bool); 4] = [
    ("the kernel, no rules, without hydra", Guard::Nobody, true),
    ("Docker's rules, 10 containers, without hydra", Guard::Docker(Raw, 10), true),
    ("forwarded by hydra", Guard::Hydra(Size::SMALL), true),
    ("denied by hydra", Guard::Hydra(Size::SMALL), false),
];

/// Measures.
pub fn run(form: &Form, progress: &mut Progress) -> Result<Report> {
    let _stay = stay()?;
    let mut report = Report::new("L2", form.long)?;
    let mut hosts = Vec::new();
    for (index, (what, guard, open)) in CASES.into_iter().enumerate() {
        progress.at(what);
        hosts.push(Host::build(guard, open, SMALLEST, index > 0)?);
    }
    for (what, guard, open) in LARGE {
        progress.at(what);
        hosts.push(Host::build(guard, open, LARGEST, true)?);
    }
    // The control: what is denied elsewhere arrives where nobody denies it.
    for bytes in [SMALLEST, LARGEST] {
        Host::build(Guard::Nobody, false, bytes, true)?.flood(form.frames)?;
    }
    let samples = interleave(
        &mut hosts,
        ROUNDS,
        |host| host.flood(form.frames),
        |done| {
            progress.at(&format!("round {done} of {ROUNDS}"));
        },
    )?;
    let mut samples = samples.into_iter();
    for ((what, ..), samples) in CASES.iter().zip(&mut samples) {
        report.add(what, "Mpps", samples)?;
    }
    for ((what, ..), samples) in LARGE.iter().zip(samples) {
        let share = samples.iter().map(|mpps| 100.0 * LINE / mpps).collect();
        report.add(&format!("{SHARE}: {what}"), "%", share)?;
    }
    let [
        program,
        nft,
        forward,
        _,
        raw10,
        raw100,
        denied,
        many,
        kernel,
        one,
        ten,
        hundred,
        forwarded,
        flat,
        classifier,
        native,
        generic,
    ] = CASES.map(|c| c.0);
    report.compare(native, classifier, None)?;
    report.compare(generic, classifier, None)?;
    report.compare(native, nft, None)?;
    report.compare(native, forward, None)?;
    report.compare(denied, forward, Some(Goal::Least(4, 4.0)))?;
    report.compare(denied, raw10, None)?;
    report.compare(denied, raw100, Some(Goal::Least(4, 8.0)))?;
    report.compare(denied, nft, Some(Goal::Least(4, 0.95)))?;
    report.compare(denied, program, None)?;
    report.compare(many, denied, None)?;
    report.compare(forwarded, kernel, None)?;
    report.compare(forwarded, one, None)?;
    report.compare(forwarded, ten, Some(Goal::Least(5, 3.0)))?;
    report.compare(forwarded, hundred, None)?;
    report.compare(flat, forwarded, Some(Goal::Least(5, 0.87)))?;
    Ok(report)
}
