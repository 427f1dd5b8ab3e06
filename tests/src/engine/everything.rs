//! Everything that containers and what is around them do over networks, an attempt each, on a real engine: what hydra must not break
//! where it allows all of it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::sys::socket::{SockaddrIn, SockaddrIn6};

use super::container::{Container, Network};
use super::{Engine, Options, Version};
use crate::group::{hears, joined, send};
use crate::probe::{Echo, Kind, Outcome, Probe, probe};
use crate::topology::{Bridge, HOST, Machine, Topology};
use crate::world::World;

/// A machine outside.
const USER: &str = "user";
/// What every container serves.
const SERVED: [Kind; 3] = [Kind::Tcp(80), Kind::Udp(53), Kind::Ping];
/// What the host serves itself, and what it publishes of the containers.
const OF_HOST: [Kind; 9] = [
    Kind::Tcp(7000),
    Kind::Udp(7000),
    Kind::Ping,
    Kind::Tcp(8080),
    Kind::Tcp(8081),
    Kind::Tcp(8082),
    Kind::Tcp(8083),
    Kind::Udp(8053),
    Kind::Udp(8054),
];
/// Where attempts at link-local addresses are answered.
const LOCAL_PORT: u16 = 8110;
/// How long an answer may take.
const SILENCE: Duration = Duration::from_millis(1200);
/// Attempts at a time.
const LANES: usize = 6;

/// Something that either works or does not.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// To an address of its own, a published port or the host.
    Probe(Probe),
    /// To an IPv6 link-local address, by an interface of the sender.
    Local {
        /// The sender.
        from: String,
        /// The address, with the number of the sender's interface.
        to: SocketAddrV6,
        /// The receiver.
        place: String,
        /// A datagram and its echo, else a connection.
        datagram: bool,
    },
    /// To a group, or to all of a network.
    Group {
        /// The sender.
        from: String,
        /// The address that it sends from.
        source: IpAddr,
        /// Its address on the network, which says by which interface.
        by: Ipv4Addr,
        /// The number of that interface.
        index: u32,
        /// The group.
        to: IpAddr,
        /// A receiver,
        place: String,
        /// its address on the network,
        at: Ipv4Addr,
        /// and the number of its interface.
        at_index: u32,
    },
    /// A container's name, asked of Docker's resolver.
    Name {
        /// Who asks.
        from: String,
        /// The name.
        name: String,
    },
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(Probe { from, to, kind, .. }) => write!(f, "{from} -> {to} {kind}"),
            Self::Local { from, to, place, datagram } => {
                let what = if *datagram { "udp" } else { "tcp" };
                write!(f, "{from} -> {to} ({place}) {what}")
            }
            Self::Group { from, source, to, place, .. } => write!(f, "{from} ({source}) -> {to} ({place})"),
            Self::Name { from, name } => write!(f, "{from} asks for {name}"),
        }
    }
}

/// One interface of a place on a network.
struct OnNetwork {
    place: String,
    index: u32,
    v4: Ipv4Addr,
    local: Ipv6Addr,
}

/// An engine with networks and containers of every kind, and the servers.
pub struct Everything {
    /// What is tried.
    pub attempts: Vec<Attempt>,
    listeners: Vec<(String, UdpSocket, TcpListener)>,
    /// The servers of probes.
    echo: Echo,
    /// The engine.
    pub engine: Engine,
}

impl Everything {
    /// Starts all of it: two networks, one without a way out, and one that policies need not name; containers on one or two of them,
    /// with published ports and without.
    pub fn start(version: Version, options: Options) -> Result<Self> {
        let around = Topology {
            uplink: vec!["198.51.100.1/24".parse()?, "2001:db8:51::1/64".parse()?],
            machines: vec![Machine {
                name: USER.to_owned(),
                addresses: vec!["198.51.100.2".parse()?, "2001:db8:51::2".parse()?],
            }],
            ..Topology::default()
        };
        let mut engine = Engine::start(version, options, &around)?;
        let mut bridges = Vec::new();
        for (number, name) in [(1, "hyapps"), (2, "hydata"), (3, "hyinner"), (4, "hyfree")] {
            let addresses: Vec<IpNet> =
                vec![format!("172.31.{number}.1/24").parse()?, format!("fd31:0:0:{number}::1/64").parse()?];
            let bridge = Some(name.to_owned());
            let internal = name == "hyinner";
            engine.add_network(&Network {
                name: name.to_owned(),
                gateways: addresses.clone(),
                bridge,
                internal,
            })?;
            bridges.push(Bridge { name: name.to_owned(), addresses });
        }
        let containers: [(&str, &[&str], &[&str]); 9] = [
            ("page", &["hyapps"], &["--publish=8080:80", "--publish=8053:53/udp"]),
            ("shop", &["hyapps"], &[]),
            ("store", &["hydata"], &["--publish=8081:80"]),
            ("both", &["hyapps", "hydata"], &["--publish=8082:80"]),
            ("vault", &["hyinner"], &[]),
            ("chest", &["hyinner"], &[]),
            ("mixed", &["hyinner", "hyapps"], &[]),
            ("free", &["hyfree"], &["--publish=8083:80", "--publish=8054:53/udp"]),
            ("stray", &["hyfree"], &[]),
        ];
        let made = containers
            .map(|(name, networks, options)| Container::new(name, networks, "nothing").options(options));
        engine.add_containers(&made)?;
        let mut listeners = vec![(HOST.to_owned(), Kind::Tcp(7000)), (HOST.to_owned(), Kind::Udp(7000))];
        for (name, ..) in containers {
            engine.adopt(name)?;
            listeners.extend(SERVED.map(|kind| (name.to_owned(), kind)));
        }
        engine.world_mut().topology_mut().bridges = bridges;
        let world = engine.world();
        let echo = Echo::start(world, &listeners)?;
        let places = containers.iter().map(|(name, ..)| (*name).to_owned()).chain([HOST.to_owned()]);
        let listeners = places.map(|place| {
            let (datagrams, connections) = world.enter(&place, || -> io::Result<_> {
                let datagrams = UdpSocket::bind(("::", LOCAL_PORT))?;
                datagrams.set_read_timeout(Some(SILENCE))?;
                Ok((datagrams, TcpListener::bind(("::", LOCAL_PORT))?))
            })??;
            Ok((place, datagrams, connections))
        });
        let listeners = listeners.collect::<Result<_>>()?;
        let mut attempts = probes(world.topology());
        for bridge in &world.topology().bridges {
            let members = members(world, bridge)?;
            attempts.extend(on_one_network(world, bridge, &members)?);
        }
        Ok(Self { attempts, listeners, echo, engine })
    }

    /// Tries all of these, and says which work.
    pub fn run(&self, which: &[&Attempt]) -> Result<Vec<bool>> {
        self.echo.clear();
        let mut works = vec![false; which.len()];
        let probes: Vec<(usize, Probe)> = which
            .iter()
            .enumerate()
            .filter_map(|(i, a)| if let Attempt::Probe(probe) = a { Some((i, probe.clone())) } else { None })
            .collect();
        let only: Vec<Probe> = probes.iter().map(|(_, probe)| probe.clone()).collect();
        for ((index, _), outcome) in probes.iter().zip(probe(self.engine.world(), &only, SILENCE)?) {
            works[*index] = outcome == Outcome::Answered;
        }
        let others: Vec<usize> = which
            .iter()
            .enumerate()
            .filter(|(_, a)| !matches!(a, Attempt::Probe(_)))
            .map(|(i, _)| i)
            .collect();
        // Of one receiver's attempts one at a time: it has one socket for them.
        let mut lanes: Vec<Vec<usize>> = vec![Vec::new(); LANES];
        for index in others {
            let lane = self.listeners.iter().position(|(place, ..)| *place == which[index].receiver());
            lanes[lane.unwrap_or(0) % LANES].push(index);
        }
        let done = thread::scope(|scope| {
            let run = |lane: &Vec<usize>| -> Result<Vec<(usize, bool)>> {
                lane.iter().map(|&index| Ok((index, self.one(which[index])?))).collect()
            };
            let started: Vec<_> = lanes.iter().map(|lane| scope.spawn(move || run(lane))).collect();
            let ended = started
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            ended.collect::<Result<Vec<_>>>()
        })?;
        for (index, worked) in done.into_iter().flatten() {
            works[index] = worked;
        }
        Ok(works)
    }

    fn one(&self, attempt: &Attempt) -> Result<bool> {
        let world = self.engine.world();
        match attempt {
            Attempt::Probe(_) => Ok(false),
            Attempt::Name { from, name } => {
                Ok(self.engine.exec(from, &["getent", "ahosts", name])?.status.success())
            }
            Attempt::Local { from, to, datagram: false, .. } => {
                let to = SocketAddr::V6(*to);
                world.enter(from, || TcpStream::connect_timeout(&to, SILENCE).is_ok())
            }
            Attempt::Local { from, to, place, datagram: true } => {
                let listener = self.listeners.iter().find(|(p, ..)| p == place);
                let (_, server, _) = listener.with_context(|| format!("nobody listens in {place}"))?;
                world.enter(from, || echoed(server, *to).unwrap_or(false))
            }
            Attempt::Group { from, source, by, index, to, place, at, at_index } => {
                let receiver = world.enter(place, || joined(*to, *at, *at_index))??;
                let port = receiver.local_addr()?.port();
                // Everybody of the network hears it, and whose port is the same by chance would take it for what he waits for.
                let words = format!("{attempt:?}");
                world.enter(from, || {
                    send(*source, *by, *index, SocketAddr::new(*to, port), words.as_bytes())
                })??;
                Ok(hears(&receiver, words.as_bytes(), SILENCE))
            }
        }
    }
}

impl Attempt {
    fn receiver(&self) -> &str {
        match self {
            Self::Probe(probe) => &probe.from,
            Self::Local { place, .. } | Self::Group { place, .. } => place,
            Self::Name { from, .. } => from,
        }
    }
}

/// Every place to every address of every other, and to all that the host has and publishes.
fn probes(topology: &Topology) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for from in topology.places() {
        let families: Vec<bool> = topology.addresses(from).iter().map(IpAddr::is_ipv6).collect();
        for place in topology.places().into_iter().filter(|place| *place != USER) {
            let kinds: &[Kind] = if place == HOST { &OF_HOST } else { &SERVED };
            let addresses = topology.addresses(place).into_iter().filter(|a| families.contains(&a.is_ipv6()));
            for to in addresses.filter(|_| place != from || from == HOST) {
                let probe = |kind: &Kind| Probe { from: from.to_owned(), source: None, to, kind: *kind };
                attempts.extend(kinds.iter().map(|kind| Attempt::Probe(probe(kind))));
            }
        }
    }
    attempts
}

/// Who is on a network, the host last.
fn members(world: &World, bridge: &Bridge) -> Result<Vec<OnNetwork>> {
    let topology = world.topology();
    let containers = topology.containers.iter().filter_map(|c| {
        let port = c.ports.iter().find(|p| p.bridge == bridge.name)?;
        Some((c.name.clone(), port.addresses.clone()))
    });
    containers
        .chain([(HOST.to_owned(), bridge.addresses.clone())])
        .map(|(place, addresses)| {
            let v4 = addresses.iter().find_map(|a| match a.addr() {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            });
            let v4 = v4.with_context(|| format!("{place} has no IPv4 on {}", bridge.name))?;
            let (index, local) = world.enter(&place, || interface(v4))??;
            Ok(OnNetwork { place, index, v4, local })
        })
        .collect()
}

/// The number of the interface that has an address, and its link-local one.
fn interface(has: Ipv4Addr) -> Result<(u32, Ipv6Addr)> {
    let all: Vec<_> = nix::ifaddrs::getifaddrs()?.collect();
    let with =
        all.iter().find(|i| i.address.and_then(|a| a.as_sockaddr_in().map(SockaddrIn::ip)) == Some(has));
    let name = &with.with_context(|| format!("no interface has {has}"))?.interface_name;
    let of_it = all.iter().filter(|i| i.interface_name == *name);
    let mut addresses =
        of_it.filter_map(|i| i.address.and_then(|a| a.as_sockaddr_in6().map(SockaddrIn6::ip)));
    let local = addresses.find(Ipv6Addr::is_unicast_link_local);
    Ok((
        nix::net::if_::if_nametoindex(name.as_str())?,
        local.with_context(|| format!("no link-local address on {name}"))?,
    ))
}

/// What members of one network do with each other beside calling each other's addresses.
fn on_one_network(world: &World, bridge: &Bridge, members: &[OnNetwork]) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let block = bridge.addresses.iter().find(|a| a.addr().is_ipv4()).context("no IPv4")?;
    let groups: [IpAddr; 4] =
        ["224.0.0.251".parse()?, "239.1.2.3".parse()?, block.broadcast(), Ipv4Addr::BROADCAST.into()];
    let groups6: [IpAddr; 2] = ["ff02::fb".parse()?, "ff05::1:3".parse()?];
    for from in members {
        let own = world.topology().addresses(&from.place);
        // This host hears itself, too: the kernel gives it a copy of what it sends to a group.
        for to in members.iter().filter(|to| to.place != from.place || to.place == HOST) {
            let address = SocketAddrV6::new(to.local, LOCAL_PORT, 0, from.index);
            attempts.extend([false, true].map(|datagram| Attempt::Local {
                from: from.place.clone(),
                to: address,
                place: to.place.clone(),
                datagram,
            }));
            let group = |source: IpAddr, group: IpAddr| Attempt::Group {
                from: from.place.clone(),
                source,
                by: from.v4,
                index: from.index,
                to: group,
                place: to.place.clone(),
                at: to.v4,
                at_index: to.index,
            };
            // From every address of a container, those of its other networks included.
            let sources = || own.iter().copied().filter(|a| from.place != HOST || *a == IpAddr::V4(from.v4));
            for source in sources().filter(IpAddr::is_ipv4) {
                attempts.extend(groups.map(|to| group(source, to)));
            }
            for source in sources().filter(IpAddr::is_ipv6).chain([from.local.into()]) {
                attempts.extend(groups6.map(|to| group(source, to)));
            }
            if from.place != HOST && to.place != HOST {
                attempts.push(Attempt::Name { from: from.place.clone(), name: to.place.clone() });
            }
        }
    }
    Ok(attempts)
}

/// Sends a datagram from where it is called, has the server echo it, and says whether the echo came.
fn echoed(server: &UdpSocket, to: SocketAddrV6) -> io::Result<bool> {
    let client = UdpSocket::bind("[::]:0")?;
    client.set_read_timeout(Some(SILENCE))?;
    let mut buffer = [0; 64];
    // What an attempt before left.
    server.set_nonblocking(true)?;
    while server.recv_from(&mut buffer).is_ok() {}
    server.set_nonblocking(false)?;
    client.send_to(b"local", to)?;
    let (_, from) = server.recv_from(&mut buffer)?;
    server.send_to(b"local", from)?;
    Ok(client.recv_from(&mut buffer).is_ok())
}
