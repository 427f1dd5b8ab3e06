//! Attacks: frames that a container which may send anything (CAP_NET_RAW) puts on its own wire. Each is sent first where hydra is not,
//! to show that it works; then where it is. What arrived is what sniffers in all places saw, not what a server says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use ipnet::IpNet;

use crate::agent::Agent;
use crate::deployment::Deployment;
use crate::lab::{Lab, eventually};
use crate::packets::{Frame, Packet, Transport};
use crate::sniffer::{BEHIND, Sniffer, send_frames};
use crate::topology::HOST;
use crate::world::World;

/// How long the control run waits for a frame that must arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a frame that the kernel itself drops is given to arrive all the same.
const SILENCE: Duration = Duration::from_millis(60);

/// One frame, and what must come of it.
#[derive(Clone, Debug)]
pub struct Attack {
    /// What it is.
    pub name: String,
    /// The place that sends it.
    pub sender: String,
    /// The interface there.
    pub interface: &'static str,
    /// From the Ethernet header on. It carries [`Attack::mark`] somewhere.
    pub frame: Vec<u8>,
    /// What a receiver recognises it by.
    pub mark: Vec<u8>,
    /// Who receives it without hydra, at least; nobody where the kernel itself drops it, and then the name says why.
    pub reaches: Vec<String>,
    /// The reason's word, and how often it is counted: once at the sender's port, else once for each receiver that it is denied for.
    pub denied: Vec<(&'static str, u64)>,
    /// Who may receive it with hydra.
    pub allowed: Vec<String>,
}

/// The attacks of one scene, and short words for what they are made of.
pub struct Scene<'a> {
    /// Where they happen.
    pub lab: &'a Lab,
    sender: String,
    interface: &'static str,
    /// In the order in which they are made.
    pub attacks: Vec<Attack>,
}

impl<'a> Scene<'a> {
    /// With this container as the attacker.
    pub fn new(lab: &'a Lab, sender: &str) -> Self {
        Self { lab, sender: sender.to_owned(), interface: "eth0", attacks: Vec::new() }
    }

    /// From here on another container attacks.
    pub fn attacker(&mut self, sender: &str) {
        sender.clone_into(&mut self.sender);
    }

    /// The bytes that the next frame is recognised by. Of an even length, and so long that they are nowhere by chance.
    pub fn mark(&self) -> Vec<u8> {
        format!("hydra attack {:05}", self.attacks.len()).into_bytes()
    }

    /// Adds a frame that must reach nobody. Where it carries no mark it gets one behind its end, as padding.
    pub fn add(&mut self, name: impl Into<String>, frame: &Frame, reason: &'static str, reaches: &[&str]) {
        self.partly(name, frame, &[(reason, 1)], reaches, &[]);
    }

    /// Adds a frame that some may receive.
    pub fn partly(
        &mut self,
        name: impl Into<String>,
        frame: &Frame,
        denied: &[(&'static str, u64)],
        reaches: &[&str],
        allowed: &[&str],
    ) {
        let mark = self.mark();
        let mut frame = frame.bytes();
        if !frame.windows(mark.len()).any(|w| w == mark) {
            // A driver pads to 60 bytes, and what is behind the end of a packet is nothing to its reader.
            frame.extend(&mark);
        }
        let owned = |places: &[&str]| places.iter().map(|&p| p.to_owned()).collect();
        self.attacks.push(Attack {
            name: name.into(),
            sender: self.sender.clone(),
            interface: self.interface,
            frame,
            mark,
            reaches: owned(reaches),
            denied: denied.to_vec(),
            allowed: owned(allowed),
        });
    }

    /// The attacker's own MAC.
    pub fn own(&self) -> [u8; 6] {
        self.mac(&self.sender)
    }

    /// A container's MAC on the attacker's bridge, else on its first network.
    pub fn mac(&self, place: &str) -> [u8; 6] {
        let index = self.near(place).unwrap_or(0);
        self.lab.world.mac(place, &format!("eth{index}")).unwrap_or_default()
    }

    /// The MAC of the attacker's gateway.
    pub fn gateway_mac(&self) -> [u8; 6] {
        self.bridge().and_then(|bridge| self.lab.world.mac(HOST, &bridge).ok()).unwrap_or_default()
    }

    /// A container's address on the attacker's bridge, else its first.
    pub fn address(&self, place: &str, v6: bool) -> IpAddr {
        let topology = &self.lab.deployment.topology;
        let near = self.near(place).and_then(|index| {
            let container = topology.containers.iter().find(|c| c.name == place)?;
            container.ports.get(index)?.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv6() == v6)
        });
        let unspecified = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        near.or_else(|| self.lab.address(place, v6).ok()).unwrap_or(unspecified)
    }

    /// The address of the attacker's gateway.
    pub fn gateway(&self, v6: bool) -> IpAddr {
        let topology = &self.lab.deployment.topology;
        let bridge = self.bridge().and_then(|name| topology.bridges.iter().find(|b| b.name == name));
        let unspecified = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        bridge
            .and_then(|b| b.addresses.iter().map(IpNet::addr).find(|a| a.is_ipv6() == v6))
            .unwrap_or(unspecified)
    }

    /// A datagram that carries the next mark.
    pub fn udp(&self, source: IpAddr, destination: IpAddr) -> Packet {
        Packet::new(source, destination, Transport::Udp(4000, 5000, self.mark()))
    }

    fn bridge(&self) -> Option<String> {
        let topology = &self.lab.deployment.topology;
        topology.containers.iter().find(|c| c.name == self.sender)?.ports.first().map(|p| p.bridge.clone())
    }

    fn near(&self, place: &str) -> Option<usize> {
        let bridge = self.bridge()?;
        let container = self.lab.deployment.topology.containers.iter().find(|c| c.name == place)?;
        container.ports.iter().position(|p| p.bridge == bridge)
    }
}

/// Builds the world of a policy twice: once to show without hydra where the scene's attacks arrive, once with the agent. `scene` is asked
/// for each, since every world has MACs of its own. Answers what went otherwise than it must.
pub fn play(policy: &str, scene: impl Fn(&Lab) -> Vec<Attack>) -> Result<Vec<String>> {
    play_in(policy, |_| {}, scene)
}

/// The same in a world that is changed first: `shape` is given what would be built.
pub fn play_in(
    policy: &str,
    shape: impl Fn(&mut Deployment),
    scene: impl Fn(&Lab) -> Vec<Attack>,
) -> Result<Vec<String>> {
    let control = quiet(policy, &shape, None)?;
    let mut wrong = without_hydra(&control, &scene(&control))?;
    let lab = quiet(policy, &shape, Some(&control))?;
    let agent = Agent::start(&lab.world, policy)?;
    wrong.extend(with_hydra(&lab, &agent, &scene(&lab))?);
    Ok(wrong)
}

/// The world of a policy, changed by `shape`, where nothing but hydra stands in the way; in the turn of another where that is there.
pub fn quiet(policy: &str, shape: impl Fn(&mut Deployment), beside: Option<&Lab>) -> Result<Lab> {
    let mut deployment = Deployment::of(policy)?;
    shape(&mut deployment);
    let world = match beside {
        None => World::build(&deployment.topology)?,
        Some(_) => World::beside(&deployment.topology)?,
    };
    // Where the bridge's netfilter is loaded it drops some of this itself, and cuts off what is behind a packet's end.
    for family in ["iptables", "ip6tables", "arptables"] {
        let switch = format!("net.bridge.bridge-nf-call-{family}");
        if Path::new("/proc/sys").join(switch.replace('.', "/")).exists() {
            world.sysctl(HOST, &switch, "0")?;
        }
    }
    Ok(Lab { world, deployment })
}

/// The control run: every attack works where hydra is not.
pub fn without_hydra(lab: &Lab, attacks: &[Attack]) -> Result<Vec<String>> {
    let ears = Ears::of(lab)?;
    let mut wrong = Vec::new();
    for attack in attacks {
        send(lab, attack)?;
        let start = Instant::now();
        let dropped = attack.reaches.is_empty();
        let patience = if dropped { SILENCE } else { PATIENCE };
        let mut seen = ears.heard(&attack.mark);
        while start.elapsed() < patience && (dropped || !attack.arrived(&seen)) {
            thread::sleep(Duration::from_millis(2));
            seen = ears.heard(&attack.mark);
        }
        if dropped && !seen.is_empty() {
            wrong.push(format!("without hydra: {}: nobody should get it, but {seen:?} did", attack.name));
        } else if !attack.arrived(&seen) {
            let Attack { name, reaches, .. } = attack;
            wrong.push(format!("without hydra: {name}: {reaches:?} should get it, {seen:?} did"));
        }
    }
    Ok(wrong)
}

/// With the agent: nobody but who may receives anything, each is counted for its reason and for no other, and the flow table is as
/// before.
pub fn with_hydra(lab: &Lab, agent: &Agent, attacks: &[Attack]) -> Result<Vec<String>> {
    let ears = Ears::of(lab)?;
    let mut wrong = Vec::new();
    let flows = flows(lab, agent)?;
    let mut before = totals(lab, agent)?;
    for attack in attacks {
        send(lab, attack)?;
        let mut wanted = before.clone();
        for (reason, count) in &attack.denied {
            *wanted.entry((*reason).to_owned()).or_default() += count;
        }
        let mut now = before.clone();
        let done = eventually(|| {
            now = totals(lab, agent).unwrap_or_default();
            attack.denied.iter().all(|(reason, _)| now.get(*reason) >= wanted.get(*reason))
        });
        for place in &attack.allowed {
            if !eventually(|| ears.heard(&attack.mark).contains(place)) {
                wrong.push(format!("with hydra: {}: {place} may receive it and does not", attack.name));
            }
        }
        if !done || now != wanted {
            let changed: Vec<String> = now
                .iter()
                .filter(|(reason, count)| before.get(*reason) != Some(count))
                .map(|(reason, count)| format!("{reason} +{}", count - before.get(reason).unwrap_or(&0)))
                .collect();
            wrong.push(format!(
                "with hydra: {}: expected {:?}, counted {changed:?}",
                attack.name, attack.denied
            ));
        }
        before = now;
    }
    let after = self::flows(lab, agent)?;
    // What was sent before this would be there before it.
    honest(lab, &ears)?;
    for attack in attacks {
        let allowed: BTreeSet<String> = attack.allowed.iter().cloned().collect();
        let seen: BTreeSet<String> = ears.heard(&attack.mark);
        if !seen.is_subset(&allowed) {
            wrong.push(format!("with hydra: {}: reached {seen:?}, may reach {allowed:?}", attack.name));
        }
    }
    let fresh: Vec<&String> = after.difference(&flows).collect();
    if !fresh.is_empty() {
        wrong.push(format!("with hydra: the flow table has new entries: {fresh:?}"));
    }
    Ok(wrong)
}

impl Attack {
    fn arrived(&self, seen: &BTreeSet<String>) -> bool {
        self.reaches.iter().all(|place| seen.contains(place))
    }
}

fn send(lab: &Lab, attack: &Attack) -> Result<()> {
    let frames = std::slice::from_ref(&attack.frame);
    send_frames(&lab.world, &attack.sender, attack.interface, frames).with_context(|| attack.name.clone())
}

/// Sniffers in all places.
struct Ears {
    by_place: BTreeMap<String, Sniffer>,
    /// What the host's stack gets, behind the bridges' programs.
    host: Sniffer,
    /// The host's interfaces that are no container's port: what is seen on a port was seen before its program.
    own: BTreeSet<u32>,
}

impl Ears {
    fn of(lab: &Lab) -> Result<Self> {
        let topology = &lab.deployment.topology;
        let by_place = topology
            .places()
            .into_iter()
            .map(|place| Ok((place.to_owned(), Sniffer::start(&lab.world, place)?)))
            .collect::<Result<_>>()?;
        let bridges = topology.bridges.iter().map(|b| b.name.as_str());
        let uplink = (!topology.uplink.is_empty()).then_some("hyup0");
        let own = bridges.chain(uplink).map(|name| lab.world.ifindex(HOST, name)).collect::<Result<_>>()?;
        Ok(Self { by_place, host: Sniffer::behind_programs(&lab.world, HOST)?, own })
    }

    /// The places that received these bytes.
    fn heard(&self, mark: &[u8]) -> BTreeSet<String> {
        let heard = |place: &str, sniffer: &Sniffer| match place {
            HOST => {
                // No program of the bridge need see other protocols: the port's has dropped them.
                let other = |frame: &[u8]| !BEHIND.contains(&i32::from(ethertype(frame)));
                let early = sniffer.with(mark);
                let early = early.iter().any(|s| self.own.contains(&s.ifindex) && other(&s.frame));
                early || self.host.with(mark).iter().any(|s| self.own.contains(&s.ifindex))
            }
            _ => !sniffer.with(mark).is_empty(),
        };
        let places = self.by_place.iter().filter(|(place, sniffer)| heard(place, sniffer));
        places.map(|(place, _)| place.clone()).collect()
    }
}

fn ethertype(frame: &[u8]) -> u16 {
    frame.get(12..14).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// An honest datagram of a container to its neighbour in the same tier, on every bridge that has two of one tier.
fn honest(lab: &Lab, ears: &Ears) -> Result<()> {
    let deployment = &lab.deployment;
    let containers = &deployment.topology.containers;
    let tier = |name: &str| {
        let owner = deployment.owners.get(name).map(ToString::to_string).unwrap_or_default();
        owner.split('/').next().unwrap_or_default().to_owned()
    };
    let mut any = false;
    for from in containers {
        let to = containers.iter().find(|to| {
            let bridge = |c: &crate::topology::Container| c.ports.first().map(|p| p.bridge.clone());
            to.name != from.name && tier(&to.name) == tier(&from.name) && bridge(to) == bridge(from)
        });
        let Some(to) = to else { continue };
        let mark = format!("an honest datagram of {}", from.name).into_bytes();
        let v6 = lab.address(&to.name, false).is_err();
        let (source, destination) = (lab.address(&from.name, v6)?, lab.address(&to.name, v6)?);
        let packet = Packet::new(source, destination, Transport::Udp(4001, 5001, mark.clone()));
        let (own, its) = (lab.world.mac(&from.name, "eth0")?, lab.world.mac(&to.name, "eth0")?);
        send_frames(&lab.world, &from.name, "eth0", &[Frame::ip(own, its, &packet).bytes()])?;
        let arrived = eventually(|| ears.heard(&mark).contains(&to.name));
        ensure!(arrived, "an honest frame of {} does not reach {}", from.name, to.name);
        any = true;
    }
    if any { Ok(()) } else { bail!("no two containers of one tier are neighbours") }
}

/// Packets that were denied so far, by reason.
pub fn totals(lab: &Lab, agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let rows = agent.json(&lab.world, &["drops", "--totals"])?;
    let mut totals = BTreeMap::new();
    for row in rows.as_array().context("no array of totals")? {
        let reason = row["reason"].as_str().context("a total without reason")?;
        *totals.entry(reason.to_owned()).or_default() += row["packets"].as_u64().unwrap_or(0);
    }
    Ok(totals)
}

/// The flow table as a set of keys.
pub fn flows(lab: &Lab, agent: &Agent) -> Result<BTreeSet<String>> {
    let rows = agent.json(&lab.world, &["flows"])?;
    let key = |row: &serde_json::Value| {
        ["protocol", "source", "source_port", "destination", "destination_port"]
            .map(|column| row[column].to_string())
            .join(" ")
    };
    Ok(rows.as_array().context("no array of flows")?.iter().map(key).collect())
}
