//! One host that frames arrive at: who guards it, who counts what comes through, and the frames themselves.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context, Result, ensure};
use hydra_agent::datapath::Predrop;
use hydra_tests::kernel::{NEXT, SHOT};
use hydra_tests::topology::HOST;

use crate::assembler::register::{R0, R1, R2, R3, R6, R10};
use crate::assembler::{Code, Width};
use crate::bpf::{self, Load, SCHED_CLS, XDP_PROGRAM};
use crate::guard::Guard;
use crate::header;
use crate::scene::{ALLOWED, CLOSED, Live, NAMES, SMALLEST, Scene, Way};

/// `XDP_PASS`.
const PASS: i32 = 2;
/// Offsets of `data` and `data_end` in `struct xdp_md`, and of `protocol` in `struct __sk_buff`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const PROTOCOL: i16 = 16;
/// Offset of `len`.
const LENGTH: i16 = 0;
const LOOK_UP: i32 = 1;
const TAIL_CALL: i32 = 12;

/// The host.
pub struct Host {
    scene: Scene,
    frame: Vec<u8>,
    /// Makes the frames.
    source: OwnedFd,
    /// Counts what arrives at the receiver, and ends it there.
    arrived: OwnedFd,
    delivers: bool,
    _links: Vec<OwnedFd>,
    hydra: Option<Live>,
}

impl Host {
    /// Builds it. Where it is `open` the frames are of one flow that the guard allows, else of another flow each, which it denies; they
    /// have so many bytes.
    pub fn build(guard: Guard, open: bool, bytes: usize, beside: bool) -> Result<Self> {
        if let Guard::Uplink(want) = guard {
            return Self::uplink(want, guard, beside);
        }
        let scene = Scene::build(beside)?;
        let receiver = NAMES[1].0;
        // Teaches the bridge where the receiver is, and the host which MAC it has.
        scene.world.enter(receiver, || UdpSocket::bind("0.0.0.0:0")?.send_to(b"here", "10.81.0.1:9"))??;
        scene.world.ip(
            HOST,
            &[format!("neighbour replace 10.81.0.11 lladdr {} dev hybr1 nud permanent", mac(&scene)?)],
        )?;
        let mut links = Vec::new();
        let (sink, arrived) = sink(bytes)?;
        let at = scene.world.ifindex(receiver, "eth0")?;
        links.push(scene.world.enter(receiver, || bpf::attach(&sink, at, bpf::TCX_INGRESS))??);
        let frame = scene.datagram(Way::Peer, if open { ALLOWED } else { CLOSED }, bytes);
        let source = source(&frame, if open { 0 } else { u16::MAX }, None)?;
        links.push(queue(&scene)?);
        let hydra = guard.stand(&scene, open, &mut links)?;
        let delivers = open || matches!(guard, Guard::Nobody);
        Ok(Self { scene, frame, source, arrived, delivers, _links: links, hydra })
    }

    /// A host that frames come to from outside, each of another flow, for a port that may not be called. What the guard lets pass is
    /// counted behind it, where the frames come in; a driver's program is what the maker of frames goes on with.
    fn uplink(want: Predrop, guard: Guard, beside: bool) -> Result<Self> {
        let scene = Scene::build(beside)?;
        let frame = scene.call();
        let mut links = Vec::new();
        let hydra = guard.stand(&scene, false, &mut links)?.context("no hydra")?;
        let early = if want == Predrop::Native { Some(table(&hydra.program)?) } else { None };
        let source = source(&frame, u16::MAX, early.as_ref())?;
        links.extend(early);
        if want == Predrop::Off {
            links.push(queue(&scene)?);
        }
        let (sink, arrived) = sink(SMALLEST)?;
        let port = scene.sender;
        // A pre-drop is before every classifier.
        links.push(scene.world.enter(HOST, || match want {
            Predrop::Off => bpf::attach(&sink, port, bpf::TCX_INGRESS),
            Predrop::Auto | Predrop::Native | Predrop::Generic => bpf::attach_first(&sink, port),
        })??);
        Ok(Self { scene, frame, source, arrived, delivers: false, _links: links, hydra: Some(hydra) })
    }

    /// Lets so many frames arrive, looks where they went, and answers million frames a second.
    pub fn flood(&self, frames: u32) -> Result<f64> {
        let before = bpf::read(&self.arrived, 0)?;
        let denied = || self.hydra.as_ref().map_or(Ok(0), Live::denied);
        let denied_before = denied()?;
        let (source, frame, port) = (&self.source, &self.frame, self.scene.sender);
        let nanoseconds = self.scene.world.enter(HOST, || bpf::send(source, frame, port, frames))??;
        let sent = u64::from(frames);
        let arrived = bpf::read(&self.arrived, 0)? - before;
        let wanted = if self.delivers { sent } else { 0 };
        ensure!(arrived == wanted, "{arrived} of {sent} frames arrived, not {wanted}");
        let (denied, wanted) = (denied()? - denied_before, if self.delivers { 0 } else { sent });
        let hydra = self.hydra.is_some();
        ensure!(!hydra || denied == wanted, "hydra has denied {denied} of {sent} frames, not {wanted}");
        ensure!(nanoseconds > 0, "the kernel has no time of {sent} frames");
        // Rounded down: by a half on the average.
        Ok(1e3 / (f64::from(nanoseconds) + 0.5))
    }
}

fn mac(scene: &Scene) -> Result<String> {
    let mac = scene.world.mac(NAMES[1].0, "eth0")?;
    Ok(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

/// Without a program of XDP the interface has no queue that frames can be of.
fn queue(scene: &Scene) -> Result<OwnedFd> {
    let pass = Code::default().end(XDP_PROGRAM, PASS)?;
    let port = scene.sender;
    let attached = scene.world.enter(HOST, || bpf::attach(&pass, port, bpf::XDP))?;
    attached.context("cannot attach a program of XDP")
}

/// Makes frames: another source port each with these bits at random. What becomes of each says the first program of a table, if one is
/// given, which has to stay for as long: the kernel empties a table that nobody holds.
fn source(frame: &[u8], random: u16, next: Option<&OwnedFd>) -> Result<OwnedFd> {
    const ABORTED: i32 = 0;
    let mut code = Code::default();
    code.copy(R6, R1);
    header::write(&mut code, frame, random, DATA, DATA_END)?;
    let attach = bpf::XDP;
    if let Some(next) = next {
        code.copy(R1, R6).map(R2, next).set(R3, 0).helper(TAIL_CALL).give(ABORTED);
    } else {
        code.give(PASS);
    }
    let how = Load { kind: XDP_PROGRAM, attach, ..Load::default() };
    code.end_with(how, ABORTED).context("cannot load the program that makes frames")
}

/// A table of this one program.
fn table(program: &OwnedFd) -> Result<OwnedFd> {
    let table = bpf::programs(1).context("cannot make a table of programs")?;
    bpf::update(&table, &0u32.to_ne_bytes(), &program.as_raw_fd().to_ne_bytes())
        .context("cannot go on with the pre-drop")?;
    Ok(table)
}

/// Counts and ends IPv4 packets of the frames' length; what else hosts say to each other goes on.
fn sink(bytes: usize) -> Result<(OwnedFd, OwnedFd)> {
    let map = bpf::numbers(1).context("cannot make a counter")?;
    let mut code = Code::default();
    code.load(Width::W, R0, R1, LENGTH).end_unless(R0, bytes as i32);
    code.load(Width::W, R0, R1, PROTOCOL).end_unless(R0, i32::from(0x0800_u16.to_be()));
    code.put(Width::W, R10, -4, 0).map(R1, &map).copy(R2, R10).add(R2, -4).helper(LOOK_UP).end_if_zero(R0);
    code.set(R1, 1).add_atomic(R0, 0, R1).give(SHOT);
    Ok((code.end(SCHED_CLS, NEXT).context("cannot load the program that counts")?, map))
}
