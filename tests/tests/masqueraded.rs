//! What the kernel's address translation has forgotten and hydra has not, on the wire: an answer to a masqueraded call, sent late,
//! goes where the port of this host leads by then, and is judged there by who sends it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use hydra_common::flow::Flow;
use hydra_common::verdict::Reason;
use hydra_tests::kernel::Runner;
use hydra_tests::lab::eventually;
use hydra_tests::packets::protocol;
use hydra_tests::sample::policy;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

const PATIENCE: Duration = Duration::from_secs(5);
/// The caller's own port, which leads to the shop as well.
const FROM: u16 = 4000;
/// The databases' port 53.
const TO: u16 = 8053;

/// Ports of the host, and the containers that they lead to.
const PUBLISHED: [(u16, (&str, u16)); 2] = [(TO, ("db", 53)), (FROM, ("shop", 9000))];

struct Scene {
    stage: Stage,
    v6: bool,
}

impl Scene {
    fn start(v6: bool) -> Self {
        let scene = Self { stage: Stage::live(&policy()).unwrap(), v6 };
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            let name = format!("net.netfilter.nf_conntrack_{timeout}");
            scene.stage.world.sysctl(HOST, &name, "1").unwrap();
        }
        for (port, to) in PUBLISHED {
            let target = SocketAddr::new(scene.address(to.0), to.1).to_string();
            scene.rule(&format!(
                "PREROUTING -p udp --dport {port} -m addrtype --dst-type LOCAL -j DNAT --to-destination {target}"
            ));
        }
        scene.rule("POSTROUTING -o hybr+ -m conntrack --ctstate DNAT -j MASQUERADE");
        scene
    }

    fn address(&self, place: &str) -> IpAddr {
        let all = self.stage.deployment.topology.addresses(place);
        all.into_iter().find(|a| a.is_ipv6() == self.v6).unwrap()
    }

    fn rule(&self, rule: &str) {
        let mut command = Command::new(if self.v6 { "ip6tables" } else { "iptables" });
        command.args(["-w", "-t", "nat", "-A"]).args(rule.split(' '));
        let output = self.stage.world.output(HOST, command).unwrap();
        assert!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn enforce(&self) -> Runner {
        let bpffs = self.stage.world.bpffs().join("hydra");
        let open = || Runner::open(&bpffs, &self.stage.desired);
        let mut runner = self.stage.world.enter(HOST, open).unwrap().unwrap();
        let all = if self.v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
        for (port, to) in PUBLISHED {
            let (key, row) = self.stage.published(all, protocol::UDP, port, to, 0).unwrap();
            runner.publish(&key, &row).unwrap();
        }
        runner
    }

    fn socket(&self, place: &str, port: u16) -> UdpSocket {
        let address = self.address(place);
        let open = || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((address, port))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        self.stage.world.enter(place, open).unwrap().unwrap()
    }

    /// The kernel knows of no conversation with one of the ports any more.
    fn forgotten(&self) -> bool {
        eventually(|| {
            let read = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack");
            let known = self.stage.world.enter(HOST, read).unwrap().unwrap();
            [FROM, TO].iter().all(|port| !known.contains(&format!("port={port} ")))
        })
    }

    /// A call, its answer, and another answer when the kernel has forgotten both. Whether the shop has got that one, when `passed`
    /// says of its sniffer that what was sent behind it is through.
    fn late(&self, passed: impl Fn(&Sniffer) -> bool) -> bool {
        let (caller, called) = (self.socket("cron", FROM), self.socket("db", 53));
        let gateway = self.stage.deployment.topology.addresses(HOST);
        let gateway = gateway.into_iter().find(|a| a.is_ipv6() == self.v6).unwrap();
        let mut bytes = [0; 64];
        caller.send_to(b"question", (gateway, TO)).unwrap();
        let (_, peer) = called.recv_from(&mut bytes).unwrap();
        assert_eq!(peer.port(), FROM, "the port of this host that the caller was given");
        called.send_to(b"answer", peer).unwrap();
        let (length, from) = caller.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], from), (&b"answer"[..], SocketAddr::new(gateway, TO)));
        assert!(self.forgotten());
        let shop = Sniffer::start(&self.stage.world, "shop").unwrap();
        called.send_to(b"too late for him", peer).unwrap();
        called.send_to(b"and that is that", peer).unwrap();
        assert!(eventually(|| passed(&shop)));
        !shop.with(b"too late for him").is_empty()
    }
}

#[test]
fn an_answer_that_translation_has_forgotten_launders_nobody() {
    for v6 in [false, true] {
        let scene = Scene::start(v6);
        let arrived = |shop: &Sniffer| !shop.with(b"and that is that").is_empty();
        assert!(scene.late(arrived), "the control: it is led to the shop");
        assert!(scene.forgotten());
        let runner = scene.enforce();
        let tier = |place: &str| {
            let identity = scene.stage.desired.links[&scene.stage.port(place, 0).unwrap()].identity;
            scene.stage.desired.compiled.identities[&identity].1.tier
        };
        let ends = (tier("db"), tier("shop"));
        // Where the shop would have received them.
        let denied = |_: &Sniffer| {
            let rows = runner.dropped().unwrap();
            let of = rows
                .iter()
                .filter(|(k, _)| (k.source, k.destination) == ends && k.reason == Reason::NoRule as u8);
            of.map(|(_, n)| n).sum::<u64>() == 2
        };
        assert!(!scene.late(denied), "IPv6 {v6}: the databases have written to the shop");
        // The caller's half has seen the answer.
        let flows = runner.flows().unwrap();
        let half = flows.iter().find(|(_, f)| f.marks & Flow::PUBLISHED != 0).unwrap();
        assert_eq!(half.1.packets, [1, 1]);
    }
}
