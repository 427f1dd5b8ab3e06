//! No inherited rights: an address goes from a container to one of another tier and back, while a peer that may only reach the first
//! keeps sending on the same flow. `HYDRA_CYCLES` says how often.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hydra_tests::agent::Agent;
use hydra_tests::deployment::Deployment;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Frame, Packet, Transport};
use hydra_tests::sniffer::{Sniffer, send_frames};
use hydra_tests::topology::{Container, HOST};
use hydra_tests::world::World;

const POLICY: &str = "\
version: 1
name: reuse
networks:
  watch: { subnet: 10.71.1.0/24, gateway: 10.71.1.1, subnet6: 'fd71:1::/64' }
  back:  { subnet: 10.71.2.0/24, gateway: 10.71.2.1, subnet6: 'fd71:2::/64' }
  store: { subnet: 10.71.3.0/24, gateway: 10.71.3.1, subnet6: 'fd71:3::/64' }
tiers:
  mon:  { networks: [watch], services: { peer: { containers: [peer] } } }
  app:  { networks: [back], services: { new: { containers: [new], networks: [store] } } }
  data: { networks: [store], services: { old: { containers: [old] } } }
rules:
  - { name: feeds, from: mon, to: data, ports: [udp/9000] }
";
/// What both containers have, as an engine gives it to whoever comes next.
const MAC: [u8; 6] = [2, 0x42, 10, 71, 3, 50];
const ADDRESSES: [&str; 2] = ["10.71.3.50", "fd71:3::50"];
const MARK: &[u8] = b"what the peer keeps sending";
/// How many more datagrams the peer sends before nothing counts as nothing.
const ENOUGH: u64 = 20;

/// The peer: a datagram of each family every millisecond, from the same ports all the time.
struct Peer {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    ports: Vec<SocketAddr>,
}

impl Peer {
    fn start(lab: &Lab) -> Self {
        let sockets: Vec<(UdpSocket, SocketAddr)> = lab
            .world
            .enter("peer", || {
                let open = |to: &str| {
                    let to: IpAddr = to.parse().unwrap();
                    let own: &str = if to.is_ipv6() { "::" } else { "0.0.0.0" };
                    (UdpSocket::bind((own, 0)).unwrap(), SocketAddr::new(to, 9000))
                };
                ADDRESSES.iter().map(|to| open(to)).collect()
            })
            .unwrap();
        let ports = sockets.iter().map(|(socket, _)| socket.local_addr().unwrap()).collect();
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for (socket, to) in &sockets {
                    // Nobody there, or nobody listening, is no reason to stop.
                    let _ = socket.send_to(MARK, to);
                }
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { sent, stop, thread: Some(thread), ports }
    }

    /// Waits until it has sent enough more.
    fn goes_on(&self) {
        let now = self.sent.load(Ordering::Relaxed);
        assert!(eventually(|| self.sent.load(Ordering::Relaxed) > now + ENOUGH));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn world() -> Lab {
    let mut deployment = Deployment::of(POLICY).unwrap();
    deployment.topology.containers.retain(|c| c.name != "old" && c.name != "new");
    let world = World::build(&deployment.topology).unwrap();
    Lab { world, deployment }
}

/// The container's namespace with ears, and only then its port.
fn begin(lab: &mut Lab, name: &str) -> Sniffer {
    lab.world.add_container(&Container { name: name.into(), ports: vec![] }).unwrap();
    let sniffer = Sniffer::start(&lab.world, name).unwrap();
    let port = World::port_name(name, 0);
    let mac = MAC.map(|b| format!("{b:02x}")).join(":");
    let bridge = lab.deployment.bridge("store").unwrap();
    let lines = [
        format!("link add {port} type veth peer name eth0 address {mac} netns {name}"),
        format!("link set {port} master {bridge} up"),
    ];
    lab.world.ip(HOST, &lines).unwrap();
    let lines = [
        "link set lo up".to_owned(),
        format!("address add {}/24 dev eth0", ADDRESSES[0]),
        format!("address add {}/64 dev eth0 nodad", ADDRESSES[1]),
        "link set eth0 up".to_owned(),
        "route add default via 10.71.3.1".to_owned(),
        "route add default via fd71:3::1".to_owned(),
    ];
    lab.world.ip(name, &lines).unwrap();
    sniffer
}

fn end(lab: &mut Lab, name: &str) {
    lab.world.ip(HOST, &[format!("link del {}", World::port_name(name, 0))]).unwrap();
    lab.world.remove_container(name).unwrap();
}

fn of_family(sniffer: &Sniffer, v6: bool) -> usize {
    let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0] };
    sniffer.with(MARK).iter().filter(|s| s.frame[12..14] == ethertype).count()
}

/// Whether `name` has its address in the agent's eyes, and programs.
fn known(lab: &Lab, agent: &Agent, name: &str) -> bool {
    let rows = agent.json(&lab.world, &["endpoints"]).unwrap();
    let rows = rows.as_array().unwrap();
    ADDRESSES.iter().all(|address| {
        rows.iter().any(|r| r["container"] == name && r["address"] == *address && r["attached"] == true)
    })
}

/// Whether a flow of one of the addresses is in the table: the second container has none, it may speak with nobody.
fn remembered(lab: &Lab, agent: &Agent) -> bool {
    let rows = agent.json(&lab.world, &["flows"]).unwrap();
    let own = |row: &serde_json::Value, end: &str| ADDRESSES.iter().any(|a| row[end] == *a);
    rows.as_array().unwrap().iter().any(|row| own(row, "source") || own(row, "destination"))
}

#[test]
fn without_hydra_whoever_has_the_address_gets_what_was_for_the_last() {
    let mut lab = world();
    let peer = Peer::start(&lab);
    for name in ["old", "new"] {
        let sniffer = begin(&mut lab, name);
        for v6 in [false, true] {
            assert!(eventually(|| of_family(&sniffer, v6) > 0), "{name}: IPv6 {v6}");
        }
        end(&mut lab, name);
    }
    drop(peer);
}

#[test]
fn an_address_in_another_tier_inherits_no_rights() {
    let cycles = std::env::var("HYDRA_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(40_u64);
    let mut lab = world();
    let agent = Agent::start(&lab.world, POLICY).unwrap();
    let peer = Peer::start(&lab);
    let ears = Sniffer::start(&lab.world, "peer").unwrap();
    let gateway = lab.world.mac(HOST, &lab.deployment.bridge("store").unwrap()).unwrap();
    let mut slowest = Duration::ZERO;
    for cycle in 0..cycles {
        let sniffer = begin(&mut lab, "old");
        for v6 in [false, true] {
            assert!(eventually(|| of_family(&sniffer, v6) > 0), "cycle {cycle}: the first gets nothing");
        }
        assert!(remembered(&lab, &agent), "the control");
        drop(sniffer);
        end(&mut lab, "old");

        let sniffer = begin(&mut lab, "new");
        // What it says in the last one's conversation, before and after the agent knows of it, is not heard either.
        let replies: Vec<Vec<u8>> = ADDRESSES
            .iter()
            .zip(&peer.ports)
            .map(|(own, port)| {
                let own: IpAddr = own.parse().unwrap();
                let to = lab.address("peer", own.is_ipv6()).unwrap();
                let transport = Transport::Udp(9000, port.port(), b"from the wrong one".to_vec());
                Frame::ip(MAC, gateway, &Packet::new(own, to, transport)).bytes()
            })
            .collect();
        send_frames(&lab.world, "new", "eth0", &replies).unwrap();
        assert!(
            eventually(|| known(&lab, &agent, "new")),
            "cycle {cycle}: the agent does not see the second"
        );
        let since = Instant::now();
        assert!(eventually(|| !remembered(&lab, &agent)), "cycle {cycle}: the first's flows are still there");
        slowest = slowest.max(since.elapsed());
        send_frames(&lab.world, "new", "eth0", &replies).unwrap();
        peer.goes_on();
        let got = sniffer.with(MARK);
        assert!(got.is_empty(), "cycle {cycle}: the second got {} of the first's", got.len());
        drop(sniffer);
        end(&mut lab, "new");
    }
    assert!(ears.with(b"from the wrong one").is_empty());
    assert!(lab.dropped(&agent, "no-rule").unwrap() >= cycles * ENOUGH);
    println!(
        "figure: {cycles} times to another tier, 0 accepted, while the peer sent {} datagrams of each family; \
         the first's entries were gone at most {slowest:?} after the second was known",
        peer.sent.load(Ordering::Relaxed)
    );
}
