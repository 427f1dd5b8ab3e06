//! A machine outside, and what it takes that it can call a port of this host.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use hydra_agent::desired::{Desired, Endpoint, Link, Publish};
use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container as Number, Identity};
use hydra_common::tables::{Endpoint as Row, LinkKind, PublishKey};
use hydra_common::track::protocol;
use hydra_common::verdict::Hook;
use hydra_tests::topology::{HOST, Machine, Topology};
use hydra_tests::world::World;

use super::{FAR, Scene};
use crate::docker;

/// The machine.
pub const CLIENT: &str = "client";
/// This host on the interface to it, with the prefix, and that interface as worlds call it.
const OUTSIDE: &str = "192.0.2.1/24";
const UPLINK: &str = "hyup0";

/// An interface to the outside, and the port of this host that its machine calls.
pub struct Outside {
    uplink: u32,
    mac: [u8; 6],
    address: IpAddr,
    published: u16,
}

/// Adds them to a host.
pub fn add(topology: &mut Topology) -> Result<()> {
    topology.uplink.push(OUTSIDE.parse()?);
    topology.machines.push(Machine { name: CLIENT.to_owned(), addresses: vec![FAR] });
    Ok(())
}

impl Outside {
    /// Of a host that has them.
    pub fn of(world: &World, published: u16) -> Result<Self> {
        let (uplink, mac) = (world.ifindex(HOST, UPLINK)?, world.mac(HOST, UPLINK)?);
        let address = world.topology().uplink.first().context("a host without an outside")?.addr();
        Ok(Self { uplink, mac, address, published })
    }
}

impl Scene {
    /// What [`CLIENT`] calls.
    pub fn published(&self) -> Result<SocketAddr> {
        let outside = self.outside.as_ref().context("a host without an outside")?;
        Ok(SocketAddr::new(outside.address, outside.published))
    }

    /// Makes a port of this address of the host, whose protocol and number come first, lead to one of the receiver.
    pub(super) fn publish(&self, desired: &mut Desired, host: IpAddr, to: (u8, u16, u16)) -> Result<()> {
        let (protocol, from, port) = to;
        let called = self.places[1].addresses[0];
        let row = desired.endpoints.get(&called.into()).copied().context("no receiver")?;
        let own = Endpoint { identity: Identity::HOST, flags: Row::HOST, ..Endpoint::default() };
        desired.endpoints.insert(host.into(), own);
        let (address, number) = (Address::UNSPECIFIED4, from.to_be_bytes());
        let key = PublishKey { address, port: number, protocol, ..PublishKey::default() };
        let row = Publish { identity: row.identity, container: row.container, port, flags: 0 };
        desired.published.insert(key, row);
        Ok(())
    }

    /// What the agent writes where there is an outside: its interface, the host's port, and the programs that what goes by the stack meets.
    pub(super) fn open_outside(&self, desired: &mut Desired, outside: &Outside) -> Result<()> {
        self.publish(desired, outside.address, (protocol::TCP, outside.published, docker::SERVED))?;
        let link = Link {
            identity: Identity::EXTERNAL,
            container: Number::NONE,
            bridge: 0,
            kind: LinkKind::Uplink,
            flags: 0,
            mac: Mac(outside.mac),
            gateway_mac: Mac(outside.mac),
        };
        desired.links.insert(outside.uplink, link);
        desired.hooks.insert((outside.uplink, Hook::UplinkIn));
        for (bridge, _) in &self.bridges {
            desired.hooks.extend([(*bridge, Hook::BridgeIn), (*bridge, Hook::BridgeOut)]);
        }
        Ok(())
    }
}
