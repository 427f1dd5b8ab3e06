//! Whether the flow table counts every packet and byte: two CPUs give the programs as many frames as they can of the same flow, each
//! way, and what stands in the entry is compared with what was given.

use std::fmt;
use std::thread;

use anyhow::{Context, Result};
use hydra_common::flow::Flow;
use hydra_common::verdict::Hook;
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::packets::{Frame, Packet};
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;
use serde::{Deserialize, Serialize};

/// The rule of the sample that this is allowed by.
const PORT: u16 = 5432;

/// What was given, and what was counted, opener's side first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exact {
    /// IPv6 or IPv4.
    pub v6: bool,
    /// Packets that the programs were given.
    pub packets: [u64; 2],
    /// Bytes.
    pub bytes: [u64; 2],
    /// What the entry says of both.
    pub counted: ([u64; 2], [u64; 2]),
}

impl Exact {
    /// Whether nothing is missing and nothing too much.
    pub fn holds(&self) -> bool {
        self.counted == (self.packets, self.bytes)
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let [packets, answers] = self.packets;
        write!(f, "{family} from two CPUs: {packets} packets and {answers} answers, ")?;
        if self.holds() {
            return write!(f, "all counted, to the byte");
        }
        let (given, counted) = ((self.packets, self.bytes), self.counted);
        write!(f, "packets and bytes each way {given:?}, counted {counted:?}")
    }
}

/// Counts with so many frames from each CPU, of each direction and family.
pub fn exact(frames: u64) -> Result<Vec<Exact>> {
    let stage = Stage::of(&sample::policy())?;
    stage.world.enter(HOST, || -> Result<Vec<Exact>> {
        let mut runner = Runner::open(&stage.world.bpffs().join("exact"), &stage.desired)?;
        [false, true].into_iter().map(|v6| family(&stage, &mut runner, v6, frames)).collect()
    })?
}

fn family(stage: &Stage, runner: &mut Runner, v6: bool, frames: u64) -> Result<Exact> {
    runner.forget()?;
    let address = |place: &str| {
        let all = stage.deployment.topology.addresses(place);
        all.into_iter().find(|ip| ip.is_ipv6() == v6).with_context(|| format!("{place} has no address"))
    };
    let (cron, db) = (address("cron")?, address("db")?);
    let shot = |from: &str, packet: &Packet| -> Result<Shot> {
        let frame = Frame::ip(stage.mac(from, 0)?, stage.gateway(from, 0)?, packet).bytes();
        Ok(Shot { hook: Hook::PortIn, ifindex: stage.port(from, 0)?, ingress: 0, mark: 0, frame })
    };
    let asks = shot("cron", &Packet::udp(cron, db, 40_000, PORT))?;
    let answers = shot("db", &Packet::udp(db, cron, PORT, 40_000))?;
    // The first makes the entry. Each CPU gives the two directions in turn.
    runner.action(&asks)?;
    let shared: &Runner = runner;
    thread::scope(|scope| -> Result<()> {
        let give = || -> Result<()> {
            (0..frames).try_for_each(|_| shared.action(&asks).and_then(|_| shared.action(&answers)).map(drop))
        };
        let both = [scope.spawn(give), scope.spawn(give)];
        both.into_iter().try_for_each(|given| given.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;
    let flows = runner.flows()?;
    let [(_, flow)] = flows[..] else { anyhow::bail!("one conversation made {} entries", flows.len()) };
    let turn = |sides: [u64; 2]| if flow.opener & 1 == 0 { sides } else { [sides[1], sides[0]] };
    let Flow { packets, bytes, .. } = flow;
    let given = [2 * frames + 1, 2 * frames];
    let length = [asks.frame.len() as u64, answers.frame.len() as u64];
    Ok(Exact {
        v6,
        packets: given,
        bytes: [given[0] * length[0], given[1] * length[1]],
        counted: (turn(packets), turn(bytes)),
    })
}
