//! A host with four ports, and tables of any size: what a packet meets in the kernel's tables is made from a policy by the agent's own
//! compiler, and only the ports that packets come from are there.

mod outside;

use std::cell::RefCell;
use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hydra_agent::datapath::Predrop;
use hydra_agent::desired::{Desired, Endpoint, Link};
use hydra_agent::policy;
use hydra_agent::policy::compile::{World as Known, compile};
use hydra_agent::policy::rows::{Numbers, Owner};
use hydra_common::ABI;
use hydra_common::address::{Address, Mac};
use hydra_common::flow::Flow;
use hydra_common::id::{Container as Number, Identity};
use hydra_common::names::{PREDROP_PROGRAM, PROGRAMS};
use hydra_common::tables::{Endpoint as Row, LinkKind};
use hydra_common::track::{State, protocol};
use hydra_common::verdict::{Hook, Reason};
use hydra_tests::kernel::{Runner, SHOT, Shot};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::topology::{Bridge, Container, HOST, Port, Topology};
use hydra_tests::world::World;

pub use self::outside::CLIENT;
use self::outside::Outside;
use crate::{bpf, docker};

/// A port of TCP and UDP that a rule allows from the first tier to the second.
pub const ALLOWED: u16 = 5432;
/// One that no rule allows.
pub const CLOSED: u16 = 9;
/// The source port of a single flow.
const CALLER: u16 = 40_000;
/// Bytes of the smallest frame, without the FCS.
pub const SMALLEST: usize = 60;
/// And of one of the usual MTU.
pub const LARGEST: usize = 1514;
/// Where IPv4 without options has UDP's checksum.
const CHECKSUM: usize = 40;
/// This host on the bridge of the sender, and somebody elsewhere.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 80, 0, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
/// Interfaces that are rows and nothing else.
const MADE_UP: u32 = 1_000_000;

/// How a packet goes on: the answer to where the receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the kernel's own path.
    Stack,
    /// Straight into the other namespace.
    Peer,
}

/// How large a policy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tiers, two of which have networks.
    pub tiers: usize,
    /// Rules.
    pub rules: usize,
    /// Containers beside those that talk.
    pub containers: u32,
}

impl Size {
    /// What others are compared with.
    pub const SMALL: Self = Self { tiers: 4, rules: 10, containers: 1 };
    /// One thing larger at a time, up to what the tables hold of tiers; the smallest once more, to see what loading it twice makes.
    pub const OTHERS: [Self; 7] = [
        Self::SMALL,
        Self { tiers: 64, ..Self::SMALL },
        Self { tiers: 252, ..Self::SMALL },
        Self { rules: 1_000, ..Self::SMALL },
        Self { rules: 10_000, ..Self::SMALL },
        Self { containers: 100, ..Self::SMALL },
        Self { containers: 1_000, ..Self::SMALL },
    ];

    /// Its text; `outside` may call what the receiver publishes.
    fn policy(self, outside: bool) -> String {
        let mut text = "version: 1\nname: bench\nnetworks:\n".to_owned();
        for n in 0..2 {
            let _ = writeln!(
                text,
                "  n{n}: {{ subnet: 10.8{n}.0.0/16, gateway: 10.8{n}.0.1, subnet6: 'fd8{n}::/64' }}"
            );
        }
        text += "tiers:\n  t0: { networks: [n0] }\n  t1: { networks: [n1] }\n";
        for n in 2..self.tiers {
            let _ = writeln!(text, "  t{n}: {{ addresses: [10.{}.{}.0/24] }}", 200 + n / 250, n % 250);
        }
        let _ = writeln!(
            text,
            "rules:\n  - {{ name: allowed, from: t0, to: t1, ports: [tcp/{ALLOWED}, udp/{ALLOWED}] }}"
        );
        if outside {
            let _ = writeln!(
                text,
                "  - {{ name: users, from: external, to: t1, ports: [tcp/{}] }}",
                docker::SERVED
            );
        }
        for n in 1..self.rules {
            let (from, to) = (n % self.tiers, (n / self.tiers + n + 1) % self.tiers);
            let port = 10_000 + n;
            let _ = writeln!(text, "  - {{ name: r{n}, from: t{from}, to: t{to}, ports: [tcp/{port}] }}");
        }
        text
    }
}

/// What is large in it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tiers, rules, containers } = *self;
        let numbers = [(tiers, Self::SMALL.tiers, "tiers"), (rules, Self::SMALL.rules, "rules")];
        for (number, small, what) in numbers {
            if number != small {
                return write!(f, "{number} {what}");
            }
        }
        if containers == Self::SMALL.containers {
            return f.write_str("the same again");
        }
        write!(f, "{containers} containers")
    }
}

/// The host.
pub struct Scene {
    /// Its namespaces.
    pub world: World,
    /// The interface that packets come from.
    pub sender: u32,
    places: Vec<Place>,
    bridges: Vec<(u32, [u8; 6])>,
    outside: Option<Outside>,
}

/// One port of it.
struct Place {
    bridge: usize,
    port: u32,
    mac: [u8; 6],
    addresses: [IpAddr; 2],
}

/// Containers and the bridges that they are on: the sender, who is reached past the stack, who is not, and another one that is.
pub const NAMES: [(&str, usize); 4] = [("caller", 0), ("near", 1), ("plain", 1), ("next", 1)];

impl Scene {
    /// Builds it, when it is this process's turn to measure; another one beside that.
    pub fn build(beside: bool) -> Result<Self> {
        Self::build_with(beside, None)
    }

    /// The same with [`CLIENT`] behind an interface to the outside, to whom this port of the host is the receiver's.
    pub fn build_published(beside: bool, port: u16) -> Result<Self> {
        Self::build_with(beside, Some(port))
    }

    fn build_with(beside: bool, published: Option<u16>) -> Result<Self> {
        let mut topology = Topology::default();
        if published.is_some() {
            outside::add(&mut topology)?;
        }
        for n in 0..2 {
            let addresses = vec![format!("10.8{n}.0.1/16").parse()?, format!("fd8{n}::1/64").parse()?];
            topology.bridges.push(Bridge { name: format!("hybr{n}"), addresses });
        }
        for (index, (name, bridge)) in NAMES.iter().enumerate() {
            let host = index + 10;
            let addresses = vec![
                format!("10.8{bridge}.0.{host}/16").parse()?,
                format!("fd8{bridge}::{host}/64").parse()?,
            ];
            let ports = vec![Port { bridge: format!("hybr{bridge}"), addresses }];
            topology.containers.push(Container { name: (*name).to_owned(), ports });
        }
        let world = if beside { World::beside(&topology)? } else { World::build(&topology)? };
        let mut places = Vec::new();
        for (container, (name, bridge)) in topology.containers.iter().zip(NAMES) {
            let port = world.ifindex(HOST, &World::port_name(name, 0))?;
            let addresses = [0, 1].map(|family| container.ports[0].addresses[family].addr());
            places.push(Place { bridge, port, mac: world.mac(name, "eth0")?, addresses });
        }
        let mut bridges = Vec::new();
        for bridge in &topology.bridges {
            bridges.push((world.ifindex(HOST, &bridge.name)?, world.mac(HOST, &bridge.name)?));
        }
        let outside = published.map(|port| Outside::of(&world, port)).transpose()?;
        Ok(Self { sender: places[0].port, world, places, bridges, outside })
    }

    /// A segment of an established connection to whoever is reached that way.
    pub fn segment(&self, v6: bool, way: Way, port: u16) -> Vec<u8> {
        self.frames(v6, way, CALLER, port)[2].frame.clone()
    }

    /// A datagram to whoever is reached that way, without a checksum (RFC 768): any source port is right.
    pub fn datagram(&self, way: Way, port: u16, bytes: usize) -> Vec<u8> {
        let (caller, called) = (&self.places[0], &self.places[if way == Way::Peer { 1 } else { 2 }]);
        self.udp(caller.addresses[0], called.addresses[0], port, bytes)
    }

    /// A datagram of the outside to the port of this host that [`Self::open_uplink`] publishes.
    pub fn call(&self) -> Vec<u8> {
        self.udp(FAR, GATEWAY, CLOSED, SMALLEST)
    }

    fn udp(&self, from: IpAddr, to: IpAddr, port: u16, bytes: usize) -> Vec<u8> {
        let caller = &self.places[0];
        // No padding, which the kernel would take away.
        let data = vec![0; bytes - CHECKSUM - 2];
        let transport = Transport::Udp(CALLER, port, data);
        let packet = Packet::new(from, to, transport);
        let mut frame = Frame::ip(caller.mac, self.bridges[caller.bridge].1, &packet).bytes();
        frame[CHECKSUM..CHECKSUM + 2].fill(0);
        frame
    }

    /// How a connection begins: asked, answered, acknowledged.
    fn frames(&self, v6: bool, way: Way, from: u16, to: u16) -> [Shot; 3] {
        let (caller, called) = (&self.places[0], &self.places[if way == Way::Peer { 1 } else { 2 }]);
        let shot = |sender: &Place, receiver: &Place, ports: (u16, u16), flags: u8, numbers: (u32, u32)| {
            let [source, destination] = [sender, receiver].map(|place| place.addresses[usize::from(v6)]);
            let transport = Transport::Tcp(ports.0, ports.1, flags, Vec::new());
            let packet = Packet::new(source, destination, transport).numbers(numbers.0, numbers.1);
            let mut frame = Frame::ip(sender.mac, self.bridges[sender.bridge].1, &packet).bytes();
            frame.resize(frame.len().max(SMALLEST), 0);
            Shot { hook: Hook::PortIn, ifindex: sender.port, ingress: 0, mark: 0, frame }
        };
        [
            shot(caller, called, (from, to), flags::SYN, (1, 0)),
            shot(called, caller, (to, from), flags::SYN | flags::ACK, (1, 2)),
            shot(caller, called, (from, to), flags::ACK, (2, 2)),
        ]
    }

    /// Loads the object with tables of a policy.
    pub fn open(&self, name: &str, size: Size) -> Result<Live> {
        let pins = self.world.bpffs().join(name);
        let runner = Runner::open(&pins, &self.desired(size)?)?;
        Live::of(pins, runner, PROGRAMS[Hook::PortIn as usize])
    }

    /// The same where the sender's port is an interface to the outside, and a port of the first bridge's address is published.
    pub fn open_uplink(&self, want: Predrop) -> Result<Live> {
        let pins = self.world.bpffs().join("hydra");
        let mut desired = self.desired(Size::SMALL)?;
        self.publish(&mut desired, GATEWAY, (protocol::UDP, CLOSED, CLOSED))?;
        desired.endpoints.retain(|_, row| row.port != self.sender);
        let link = desired.links.get_mut(&self.sender).context("no sender")?;
        (link.kind, link.identity, link.container) = (LinkKind::Uplink, Identity::EXTERNAL, Number::NONE);
        desired.hooks.retain(|(index, _)| *index != self.sender);
        desired.hooks.insert((self.sender, Hook::UplinkIn));
        let runner = Runner::open_predrop(&pins, &desired, want)?;
        let native = want == Predrop::Native;
        Live::of(pins, runner, if native { PREDROP_PROGRAM } else { PROGRAMS[Hook::UplinkIn as usize] })
    }

    fn desired(&self, size: Size) -> Result<Desired> {
        let text = size.policy(self.outside.is_some());
        let (model, _) = policy::parse(&text, "policy.yaml").map_err(|problems| {
            anyhow::anyhow!("the agent refuses the policy:\n{}", problems.render(false))
        })?;
        let tier = |n: usize| Owner::Tier(format!("t{n}"));
        let mut known = Known::default();
        for n in 0..2 {
            let blocks = [format!("10.8{n}.0.0/16").parse()?, format!("fd8{n}::/64").parse()?];
            known.subnets.insert(format!("t{n}"), blocks.map(|block| (block, false)).to_vec());
        }
        // Row after row: port, bridge, whose, MAC, addresses, and whether it is reached past the stack.
        let mut rows = Vec::new();
        for (place, (name, _)) in self.places.iter().zip(NAMES) {
            rows.push((place.port, place.bridge, Mac(place.mac), place.addresses.to_vec(), name != "plain"));
        }
        for n in 0..size.containers {
            let address: IpAddr = format!("10.81.{}.{}", 1 + n / 250, 1 + n % 250).parse()?;
            let [a, b, c, d] = n.to_be_bytes();
            rows.push((MADE_UP + n, 1, Mac([2, 0x62, a, b, c, d]), vec![address], true));
        }
        known.live = rows.iter().flat_map(|row| row.3.iter().map(|ip| (tier(row.1), *ip))).collect();
        let compiled = compile(&model, &known, &mut Numbers::default())?;
        let mut desired = Desired { revision: 1, ..Desired::default() };
        for (n, (port, bridge, mac, addresses, past)) in rows.into_iter().enumerate() {
            let container = Number(u32::try_from(n)? + 1);
            let (index, gateway) = self.bridges[bridge];
            let gateway_mac = Mac(gateway);
            let identity = |ip| compiled.identity(&tier(bridge), ip).context("a tier without an identity");
            let kind = LinkKind::Port;
            let link = Link {
                identity: identity(None)?,
                container,
                bridge: index,
                kind,
                flags: 0,
                mac,
                gateway_mac,
            };
            desired.links.insert(port, link);
            if port < MADE_UP {
                // Past the stack goes only what comes and goes through the programs.
                desired.hooks.extend([(port, Hook::PortIn), (port, Hook::PortOut)]);
            }
            for address in addresses {
                let flags = Row::ATTACHED | if past { Row::PEER } else { 0 };
                let identity = identity(Some(address))?;
                let row =
                    Endpoint { identity, container, port, bridge: index, flags, mtu: 1500, mac, gateway_mac };
                desired.endpoints.insert(Address::from(address), row);
            }
        }
        for (bridge, (index, mac)) in self.bridges.iter().enumerate() {
            let identity = compiled.identity(&tier(bridge), None).context("a tier without an identity")?;
            let (container, mac) = (Number::NONE, Mac(*mac));
            let kind = LinkKind::Bridge;
            let link = Link { identity, container, bridge: *index, kind, flags: 0, mac, gateway_mac: mac };
            desired.links.insert(*index, link);
        }
        desired.compiled = Arc::new(compiled);
        if let Some(outside) = &self.outside {
            self.open_outside(&mut desired, outside)?;
        }
        Ok(desired)
    }
}

/// The object with its tables in the kernel; gone with this.
pub struct Live {
    /// What sits on a container's port.
    pub program: OwnedFd,
    pin: PathBuf,
    pins: PathBuf,
    runner: RefCell<Runner>,
}

impl Live {
    /// With this one of its programs.
    fn of(pins: PathBuf, runner: Runner, program: &str) -> Result<Self> {
        let programs = pins.join(format!("v{ABI}/programs"));
        let directory = std::fs::read_dir(&programs)?.next().context("no program is pinned")??.path();
        let pin = directory.join(program);
        let program = bpf::open_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        Ok(Self { program, pin, pins, runner: RefCell::new(runner) })
    }

    /// The program once more.
    pub fn again(&self) -> Result<OwnedFd> {
        Ok(bpf::open_pin(&self.pin)?)
    }

    /// Packets that were denied.
    pub fn denied(&self) -> Result<u64> {
        Ok(self.runner.borrow().dropped()?.iter().map(|(_, packets)| packets).sum())
    }

    /// Entries of the flow table.
    pub fn flows(&self) -> Result<usize> {
        Ok(self.runner.borrow().flows()?.len())
    }

    /// Makes a connection from every source port that differs from the usual one in these bits alone. Answers a later segment of each, as
    /// the caller sends it, after a look that each is one that belongs to a flow.
    pub fn converse(&self, scene: &Scene, v6: bool, way: Way, bits: u16) -> Result<Vec<Vec<u8>>> {
        let mut runner = self.runner.borrow_mut();
        let ports = CALLER & !bits..=CALLER | bits;
        let mut later = Vec::new();
        for port in ports {
            let shots = scene.frames(v6, way, port, ALLOWED);
            for shot in &shots {
                runner.action(shot)?;
            }
            if later.is_empty() {
                let seen = runner.run(&shots[2])?;
                ensure!(seen.reason == Some(Reason::Reply), "no established flow: {seen:?}");
                let open = |flow: &Flow| State::of(flow, protocol::TCP) == State::Established;
                ensure!(
                    runner.flows()?.iter().all(|(_, flow)| open(flow)),
                    "a connection is not established"
                );
            }
            let [.., last] = shots;
            later.push(last);
        }
        let mut gone = 0;
        for shot in &later {
            gone += u32::from(runner.action(shot)? == SHOT);
        }
        ensure!(
            gone == 0,
            "{gone} of {} flows were pushed out by others: the table is too small",
            later.len()
        );
        Ok(later.into_iter().map(|shot| shot.frame).collect())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Of a filesystem that ends with the world; the memory is needed before.
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}
