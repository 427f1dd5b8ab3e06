//! A world with the kernel's own programs, and what its containers send.

use std::net::IpAddr;
use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData};
use hydra_agent::datapath::Room;
use hydra_agent::policy::rows::Numbers;
use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::share::{Meetings, Place, Word};
use hydra_common::tables::Endpoint;
use hydra_common::verdict::Hook;
use hydra_common::{ABI, names};
use hydra_tests::deployment::Deployment;
use hydra_tests::kernel::{Runner, SHOT, Shot};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::sample::TIERS;
use hydra_tests::stage::{Stage, compiled_with};
use hydra_tests::topology::HOST;

pub const POLICY: &str = "rules:
  - { name: store, from: app, to: data }
  - { name: read,  from: web/shop, to: data/db }
";

/// What a variable says, else the short form's number.
pub fn number(variable: Result<String, std::env::VarError>, short: u32) -> u32 {
    variable.ok().and_then(|n| n.parse().ok()).unwrap_or(short)
}

/// The programs with a flow table of this size, in a world of their own.
pub fn stage(room: Room, test: impl FnOnce(&Stage, &mut Runner) + Send) {
    let text = format!("version: 1\nname: flows\n{TIERS}{POLICY}");
    let mut stage = Stage::of(&text).unwrap();
    let deployment = Deployment::of(&text).unwrap();
    let (_, rows) = compiled_with(&text, &deployment, &mut Numbers::default()).unwrap();
    stage.restage(deployment, Arc::new(rows), 1).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let run = || test(&stage, &mut Runner::open_with(&bpffs, &stage.desired, room).unwrap());
    stage.world.enter(HOST, run).unwrap();
}

pub fn address(stage: &Stage, place: &str) -> IpAddr {
    stage.deployment.topology.addresses(place).into_iter().find(IpAddr::is_ipv4).unwrap()
}

/// One container's packets to another, made once: only ports change.
pub struct Pair {
    shot: Shot,
    ends: (IpAddr, IpAddr),
    macs: ([u8; 6], [u8; 6]),
}

impl Pair {
    pub fn new(stage: &Stage, from: &str, to: &str) -> Self {
        let ifindex = stage.port(from, 0).unwrap();
        Self {
            shot: Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame: Vec::new() },
            ends: (address(stage, from), address(stage, to)),
            macs: (stage.mac(from, 0).unwrap(), stage.gateway(from, 0).unwrap()),
        }
    }

    pub fn passes(&self, runner: &Runner, transport: Transport) -> bool {
        let packet = Packet::new(self.ends.0, self.ends.1, transport);
        let frame = Frame::ip(self.macs.0, self.macs.1, &packet).bytes();
        runner.action(&Shot { frame, ..self.shot.clone() }).unwrap() != SHOT
    }

    pub fn tcp(&self, runner: &Runner, (from, to): (u16, u16), flags: u8) -> bool {
        self.passes(runner, Transport::Tcp(from, to, flags, Vec::new()))
    }

    pub fn udp(&self, runner: &Runner, (from, to): (u16, u16)) -> bool {
        self.passes(runner, Transport::Udp(from, to, b"hydra".to_vec()))
    }

    pub fn key(&self, (from, to): (u16, u16), protocol: u8) -> FlowKey {
        FlowKey::of(self.ends.0.into(), from, self.ends.1.into(), to, protocol).0
    }
}

/// Both directions of connections between two containers.
pub struct Calls {
    pub there: Pair,
    pub back: Pair,
}

impl Calls {
    pub fn new(stage: &Stage, from: &str, to: &str) -> Self {
        Self { there: Pair::new(stage, from, to), back: Pair::new(stage, to, from) }
    }

    /// A whole opening of a TCP connection.
    pub fn open(&self, runner: &Runner, port: u16) -> bool {
        self.there.tcp(runner, (port, 5432), flags::SYN)
            && self.back.tcp(runner, (5432, port), flags::SYN | flags::ACK)
            && self.there.tcp(runner, (port, 5432), flags::ACK)
    }

    /// Whether what the called end sends still passes.
    pub fn lives(&self, runner: &Runner, port: u16) -> bool {
        self.back.tcp(runner, (5432, port), flags::ACK)
    }
}

/// The ports of a spray's n-th flow.
pub fn tuple(n: u32) -> (u16, u16) {
    ((1 + n % 60_000) as u16, (10_000 + n / 60_000) as u16)
}

pub fn room(flows: u32, share: u8) -> Room {
    Room { flows, share }
}

/// The first table, as whoever is no part of hydra would write it.
pub fn first(stage: &Stage) -> HashMap<MapData, FlowKey, Flow> {
    pinned(stage, names::FLOWS).try_into().unwrap()
}

/// The rows of endpoints, likewise.
pub fn endpoints(stage: &Stage) -> HashMap<MapData, Address, Endpoint> {
    pinned(stage, names::ENDPOINTS).try_into().unwrap()
}

/// The second, likewise.
pub fn second(stage: &Stage) -> HashMap<MapData, FlowKey, Flow> {
    pinned(stage, names::SPILL).try_into().unwrap()
}

/// The words that kernel and agent share, likewise.
pub fn words(stage: &Stage) -> Array<MapData, u64> {
    pinned(stage, names::TABLE).try_into().unwrap()
}

/// The bits that say where there may be entries, likewise, and what says which of them are read.
pub struct Bits {
    rows: Array<MapData, u64>,
    pub meetings: Meetings,
}

impl Bits {
    pub fn of(stage: &Stage) -> Self {
        let word = words(stage).get(&(Word::Meetings as u32), 0).unwrap();
        let rows = pinned(stage, names::MEETINGS).try_into().unwrap();
        Self { rows, meetings: Meetings::from_word(word) }
    }

    /// Whether a key may have an entry.
    pub fn met(&self, key: &FlowKey) -> bool {
        let place = Place::of(key);
        self.rows.get(&self.meetings.read(place), 0).unwrap() & place.bit != 0
    }

    /// Says that it has none.
    pub fn forget(&mut self, key: &FlowKey) {
        let row = self.meetings.read(Place::of(key));
        self.rows.set(row, 0, 0).unwrap();
    }

    /// Says that it may have one.
    pub fn note(&mut self, key: &FlowKey) {
        let place = Place::of(key);
        let row = self.meetings.read(place);
        let bits = self.rows.get(&row, 0).unwrap() | place.bit;
        self.rows.set(row, bits, 0).unwrap();
    }

    /// Bits of the bank that is read.
    pub fn count(&self) -> u32 {
        let each = self.meetings.each();
        let first = self.meetings.bank().unwrap() * each;
        (first..first + each).map(|row| self.rows.get(&row, 0).unwrap().count_ones()).sum()
    }
}

fn pinned(stage: &Stage, name: &str) -> Map {
    let pin = stage.world.bpffs().join(format!("hydra/v{ABI}/maps/{name}"));
    Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()
}
