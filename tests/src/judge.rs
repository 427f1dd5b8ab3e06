//! What must come of a frame that a container sends, by the second opinions alone: `reading` says what it is, `oracle` what the policy
//! says of it, and the deployment whose addresses are whose. No flow is under way.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use hydra_common::verdict::{Reason, Verdict};
use ipnet::IpNet;

use crate::oracle::{Answer, End, What, Who};
use crate::packets::flags;
use crate::reading::{Said, read};
use crate::stage::Stage;
use crate::topology::HOST;

/// The bridge that no policy names.
const STRANGERS: &str = "hyother";

/// What may come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Must {
    /// Denied for one of these reasons.
    Denied(BTreeSet<Reason>),
    /// Passes before line 1, or for its receivers to judge.
    Pass(Reason),
    /// As the policy says.
    Judged(Answer),
}

impl Must {
    /// Whether this is it.
    pub fn is(&self, verdict: Verdict, reason: Option<Reason>, rule: Option<&str>) -> bool {
        match self {
            Self::Denied(reasons) => {
                verdict == Verdict::Denied && reason.is_some_and(|r| reasons.contains(&r))
            }
            Self::Pass(wanted) => verdict == Verdict::Allowed && reason == Some(*wanted),
            Self::Judged(answer) => {
                let said = (verdict, reason, rule);
                said == (answer.verdict, Some(answer.reason), answer.rule.as_deref())
            }
        }
    }

    /// The reasons that it may have.
    pub fn reasons(&self) -> BTreeSet<Reason> {
        match self {
            Self::Denied(reasons) => reasons.clone(),
            Self::Pass(reason) => [*reason].into(),
            Self::Judged(answer) => [answer.reason].into(),
        }
    }
}

/// What must come of a frame from a container's first port.
pub fn judge(stage: &Stage, container: &str, frame: &[u8], now: i64) -> Result<Must> {
    let own = stage.mac(container, 0)?;
    let gateway = stage.gateway(container, 0)?;
    let topology = &stage.deployment.topology;
    let reading = read(frame);
    let mut faults = reading.faults;
    if reading.from != own {
        faults.insert(Reason::SpoofedMac);
    }
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mine = |ip: IpAddr| topology.addresses(container).contains(&ip) || ip == IpAddr::V6(eui64(own));
    let Some(said) = reading.said else { return Ok(Must::Denied(faults)) };
    let claims = |ip: IpAddr| ip.is_unspecified() || mine(ip);
    let (from, to, what, bits) = match said {
        Said::Arp(sender) => {
            return Ok(named(faults, claims(sender.into()), Reason::Arp, Reason::SpoofedArp));
        }
        Said::Neighbour { from, claim, to } => {
            let home = topology.containers.iter().find(|c| c.name == container).context("no container")?;
            let bridge = &home.ports.first().context("a container without a port")?.bridge;
            let neighbours =
                topology.containers.iter().flat_map(|c| &c.ports).filter(|p| p.bridge == *bridge);
            let near: Vec<IpAddr> = neighbours.flat_map(|p| &p.addresses).map(IpNet::addr).collect();
            // The host's addresses all lead to the host, which answers for none but those of this link.
            let on_link = reading.to.first().is_some_and(|b| b & 1 == 1)
                || to.is_multicast()
                || link_local(to.into())
                || near.contains(&to.into())
                || topology.addresses(HOST).contains(&to.into());
            let truly = claims(claim.into()) && claims(from.into()) && on_link;
            return Ok(named(faults, truly, Reason::Neighbour, Reason::SpoofedNeighbour));
        }
        Said::Listener(from) => {
            return Ok(named(faults, claims(from.into()), Reason::Mld, Reason::SpoofedNeighbour));
        }
        Said::Dhcp(from) => {
            return Ok(named(faults, claims(from), Reason::Dhcp, Reason::SpoofedAddress));
        }
        Said::Packet { from, to, what, flags, .. } => (from, to, what, flags),
    };
    if !mine(from) {
        faults.insert(Reason::SpoofedAddress);
    }
    if from.is_loopback() || to.is_loopback() {
        faults.insert(Reason::Loopback);
    }
    if !faults.is_empty() {
        return Ok(Must::Denied(faults));
    }
    let group = match to {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
    };
    if group || reading.to.first().is_some_and(|b| b & 1 == 1) {
        return Ok(Must::Pass(Reason::NotJudged));
    }
    // Whose the destination is.
    let receiver = topology.containers.iter().find(|c| topology.addresses(&c.name).contains(&to));
    let who = match receiver {
        Some(receiver) => stage.deployment.owners.get(&receiver.name).cloned().unwrap_or(Who::Unmanaged),
        None if topology.addresses(HOST).contains(&to) => Who::Host,
        None => match topology.bridges.iter().find(|b| b.addresses.iter().any(|net| net.contains(&to))) {
            Some(bridge) if bridge.name == STRANGERS => Who::Unmanaged,
            Some(_) => return Ok(Must::Denied([Reason::UnknownDestination].into())),
            None => stage.deployment.policy.owner(to),
        },
    };
    let source = stage.deployment.owners.get(container).cloned().unwrap_or(Who::Unmanaged);
    let (source, destination) = (End { who: source, address: Some(from) }, End { who, address: Some(to) });
    let answer = stage.deployment.policy.judge(&source, &destination, what, now);
    let opens = bits & (flags::SYN | flags::ACK | flags::RST) == flags::SYN;
    if matches!(what, What::Tcp(_)) && answer.verdict == Verdict::Allowed && !opens {
        return Ok(Must::Denied([Reason::NoConnection].into()));
    }
    if answer.passes() && reading.to != gateway {
        let bridge = |name: &str| {
            let container = topology.containers.iter().find(|c| c.name == name);
            container.and_then(|c| c.ports.first()).map(|p| p.bridge.clone())
        };
        let direct = receiver.is_some_and(|receiver| {
            let home = bridge(container);
            let port = receiver
                .ports
                .iter()
                .position(|p| Some(&p.bridge) == home.as_ref() && p.addresses.iter().any(|a| a.addr() == to));
            port.and_then(|index| stage.mac(&receiver.name, index).ok()).is_some_and(|mac| reading.to == mac)
        });
        if !direct {
            return Ok(Must::Denied([Reason::WrongMac].into()));
        }
    }
    Ok(Must::Judged(answer))
}

fn named(mut faults: BTreeSet<Reason>, truly: bool, reason: Reason, forged: Reason) -> Must {
    if !truly {
        faults.insert(forged);
    }
    if faults.is_empty() { Must::Pass(reason) } else { Must::Denied(faults) }
}

/// The address that Linux makes of a MAC (RFC 4291, appendix A).
fn eui64(mac: [u8; 6]) -> Ipv6Addr {
    let group = |a: u8, b: u8| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        group(mac[0] ^ 2, mac[1]),
        group(mac[2], 0xff),
        group(0xfe, mac[3]),
        group(mac[4], mac[5]),
    )
}
