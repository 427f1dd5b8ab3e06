//! What this host sends to a group comes back to it: a copy by the kernel, without an Ethernet header, at the ingress of the interface that
//! it goes out by. Its processes hear each other as without hydra, and no container makes such a copy.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use hydra_tests::agent::Agent;
use hydra_tests::foreign::{Does, Foreign, Side};
use hydra_tests::group::{hears, joined, send};
use hydra_tests::lab::{Lab, SILENCE};
use hydra_tests::sample;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;

/// The sample's first network: this host on it, and a container.
const HOST4: Ipv4Addr = Ipv4Addr::new(10, 70, 1, 1);
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

struct Scene {
    lab: Lab,
    bridge: String,
    index: u32,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::of(&sample::policy()).unwrap();
        let bridges = &lab.deployment.topology.bridges;
        let on = bridges.iter().find(|b| b.addresses.iter().any(|a| a.addr() == IpAddr::V4(HOST4)));
        let bridge = on.unwrap().name.clone();
        let index = lab.world.ifindex(HOST, &bridge).unwrap();
        Self { lab, bridge, index }
    }

    fn host6(&self) -> Ipv6Addr {
        let bridge = self.lab.deployment.topology.bridges.iter().find(|b| b.name == self.bridge).unwrap();
        let v6 = bridge.addresses.iter().find_map(|a| match a.addr() {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        v6.unwrap()
    }

    fn ear(&self, group: IpAddr) -> UdpSocket {
        self.lab.world.enter(HOST, || joined(group, HOST4, self.index)).unwrap().unwrap()
    }

    /// Which groups a process of this host sends to and another one does not hear.
    fn unheard(&self, words: &str) -> Vec<IpAddr> {
        let groups: [(IpAddr, IpAddr); 5] = [
            (HOST4.into(), GROUP.into()),
            (HOST4.into(), "239.1.2.3".parse().unwrap()),
            (HOST4.into(), "10.70.1.255".parse().unwrap()),
            (HOST4.into(), Ipv4Addr::BROADCAST.into()),
            (self.host6().into(), "ff02::fb".parse().unwrap()),
        ];
        let heard = |(source, group): (IpAddr, IpAddr)| {
            let ear = self.ear(group);
            let to = SocketAddr::new(group, ear.local_addr().unwrap().port());
            let say = || send(source, HOST4, self.index, to, words.as_bytes());
            self.lab.world.enter(HOST, say).unwrap().unwrap();
            hears(&ear, words.as_bytes(), SILENCE)
        };
        groups.into_iter().filter(|both| !heard(*both)).map(|(_, group)| group).collect()
    }

    fn dropped(&self, agent: &Agent) -> serde_json::Value {
        agent.json(&self.lab.world, &["drops", "--totals"]).unwrap()
    }
}

#[test]
fn a_process_of_this_host_hears_what_another_one_sends_to_a_group() {
    let scene = Scene::new();
    assert!(scene.unheard("without hydra").is_empty());
    let agent = Agent::start(&scene.lab.world, &sample::policy()).unwrap();
    let (copies, others) = (
        Foreign::load("copies", Does::CountCopies).unwrap(),
        Sniffer::start(&scene.lab.world, "shop").unwrap(),
    );
    let _link = copies.tcx(&scene.lab.world, &scene.bridge, Side::Ingress, false).unwrap();
    let unheard = scene.unheard("with hydra");
    assert!(unheard.is_empty(), "{unheard:?}: {:#}", scene.dropped(&agent));
    assert_eq!(copies.runs().unwrap(), 15, "three of each, and each a copy that hydra has let go on");
    assert_eq!(others.with(b"with hydra").len(), 15, "containers hear it once");
}

#[test]
fn a_container_makes_no_copy_that_passes_as_this_host_s_own() {
    let scene = Scene::new();
    let world = &scene.lab.world;
    let (eth0, mac) = (world.ifindex("shop", "eth0").unwrap(), world.mac("shop", "eth0").unwrap());
    let shop: Ipv4Addr = match scene.lab.address("shop", false).unwrap() {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    };
    let mut header = [0x01, 0x00, 0x5e, 0, 0, 0xfb, 0, 0, 0, 0, 0, 0, 0x08, 0x00];
    header[6..12].copy_from_slice(&mac);
    let send_as = |words: &str, peer: bool| {
        // A member of the group itself, the container gets copies at its own interface, and sends those away.
        let ear = world.enter("shop", || joined(GROUP.into(), shop, eth0)).unwrap().unwrap();
        let theirs = Foreign::load("forger", Does::SendCopies { by: eth0, header, peer }).unwrap();
        let _link = theirs.tcx_in(world, "shop", "eth0", Side::Ingress, true).unwrap();
        let arrive = Sniffer::start(world, HOST).unwrap();
        let host = scene.ear(GROUP.into());
        let to = SocketAddr::new(GROUP.into(), host.local_addr().unwrap().port());
        world.enter("shop", || send(shop.into(), shop, eth0, to, words.as_bytes())).unwrap().unwrap();
        let heard = hears(&host, words.as_bytes(), SILENCE);
        assert_eq!(theirs.runs().unwrap(), 3, "copies to send away");
        let port = world.ifindex(HOST, &World::port_name("shop", 0)).unwrap();
        let came = arrive.with(words.as_bytes()).into_iter().filter(|seen| seen.ifindex == port).count();
        assert_eq!(came, 6, "{words}: what it sends, and what it sends away");
        drop(ear);
        heard
    };
    for peer in [false, true] {
        assert!(send_as(&format!("without hydra, {peer}"), peer));
    }
    let agent = Agent::start(world, &sample::policy()).unwrap();
    let copies = Foreign::load("copies", Does::CountCopies).unwrap();
    let _first = copies.tcx(world, &scene.bridge, Side::Ingress, false).unwrap();
    for peer in [false, true] {
        assert!(!send_as(&format!("with hydra, {peer}"), peer));
    }
    assert_eq!(copies.runs().unwrap(), 0);
    let drops = agent.json(world, &["drops"]).unwrap();
    let rows: Vec<_> =
        drops.as_array().unwrap().iter().filter(|d| d["destination"] == GROUP.to_string()).collect();
    assert!(rows.iter().any(|d| d["hook"] == "bridge-in"), "{drops:#}");
    for row in rows {
        assert_eq!((&row["hook"], &row["reason"]), (&"bridge-in".into(), &"no-rule".into()), "{row:#}");
    }
    assert!(scene.unheard("and this host").is_empty());
    assert_eq!(copies.runs().unwrap(), 15, "it is those that are counted");
}
