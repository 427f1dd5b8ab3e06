//! The sample policy on the kernel's programs, with short words for frames and for what must come of them.
#![allow(dead_code, reason = "each test program uses its part")]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;

use hydra_common::id::Identity;
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::kernel::{NEXT, Runner, Seen, Shot};
use hydra_tests::packets::{Frame, Packet};
use hydra_tests::sample::policy;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

pub type Sent = Shot;

/// What must come of a frame.
#[derive(Clone, Debug)]
pub struct Want {
    verdict: Verdict,
    reason: Reason,
    rule: Option<&'static str>,
}

pub fn allowed(reason: Reason, rule: Option<&'static str>) -> Want {
    Want { verdict: Verdict::Allowed, reason, rule }
}

pub fn denied(reason: Reason, rule: Option<&'static str>) -> Want {
    Want { verdict: Verdict::Denied, reason, rule }
}

pub fn audited(reason: Reason, rule: Option<&'static str>) -> Want {
    Want { verdict: Verdict::Audited, reason, rule }
}

/// The address that Linux makes of a MAC.
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let address = hydra_common::address::Address::link_local_of(&hydra_common::address::Mac(mac));
    Ipv6Addr::from(address.octets())
}

pub struct Bench<'a> {
    stage: &'a Stage,
    runner: Mutex<Runner>,
    wrong: Mutex<Vec<String>>,
}

impl Bench<'_> {
    /// Builds the world, loads the programs, and runs a table; everything that is wrong is told at the end.
    pub fn run(table: impl FnOnce(&Bench<'_>) + Send) {
        let stage = Stage::of(&policy()).unwrap();
        let bpffs = stage.world.bpffs().join("hydra");
        let wrong = stage
            .world
            .enter(HOST, || {
                let runner = Mutex::new(Runner::open(&bpffs, &stage.desired).unwrap());
                let bench = Bench { stage: &stage, runner, wrong: Mutex::new(Vec::new()) };
                table(&bench);
                bench.wrong.into_inner().unwrap()
            })
            .unwrap();
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    pub fn link(&self, name: &str) -> u32 {
        self.stage.link(name).unwrap()
    }

    pub fn mac(&self, container: &str) -> [u8; 6] {
        self.stage.mac(container, 0).unwrap()
    }

    pub fn gateway(&self, container: &str) -> [u8; 6] {
        self.stage.gateway(container, 0).unwrap()
    }

    /// Leads a port of all addresses of this host, in both families, to a container.
    pub fn publish(&self, protocol: u8, port: u16, to: (&str, u16), flags: u16) {
        for binding in ["0.0.0.0", "::"] {
            let row = self.stage.published(binding.parse().unwrap(), protocol, port, to, flags).unwrap();
            self.runner.lock().unwrap().publish(&row.0, &row.1).unwrap();
        }
    }

    /// The identity of a container at its first interface.
    pub fn identity(&self, container: &str) -> Identity {
        self.stage.desired.links[&self.stage.port(container, 0).unwrap()].identity
    }

    /// A place's addresses of one family.
    pub fn addresses(&self, place: &str, v6: bool) -> Vec<IpAddr> {
        let all = self.stage.deployment.topology.addresses(place);
        all.into_iter().filter(|a| a.is_ipv6() == v6).collect()
    }

    pub fn address(&self, place: &str, v6: bool) -> IpAddr {
        self.addresses(place, v6)[0]
    }

    /// A frame as it leaves a container's first interface.
    pub fn frame(&self, container: &str, frame: Vec<u8>) -> Sent {
        let ifindex = self.stage.port(container, 0).unwrap();
        Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame }
    }

    /// A packet as a container sends it to its gateway, or to its neighbour.
    pub fn sent(&self, container: &str, packet: &Packet) -> Sent {
        let topology = &self.stage.deployment.topology;
        let bridge = |name: &str| {
            topology.containers.iter().find(|c| c.name == name).map(|c| c.ports[0].bridge.clone())
        };
        let near = topology.containers.iter().find(|c| {
            topology.addresses(&c.name).contains(&packet.destination) && bridge(&c.name) == bridge(container)
        });
        let to = near.map_or_else(|| self.gateway(container), |c| self.mac(&c.name));
        self.frame(container, Frame::ip(self.mac(container), to, packet).bytes())
    }

    /// A packet between two containers.
    pub fn packet(&self, from: &str, to: &str, v6: bool, make: impl Fn(IpAddr, IpAddr) -> Packet) -> Sent {
        self.sent(from, &make(self.address(from, v6), self.address(to, v6)))
    }

    /// A packet as a container's port gives it to the container, having come into the host by this interface.
    pub fn received(&self, container: &str, ingress: u32, packet: &Packet) -> Sent {
        let frame = Frame::ip(self.gateway(container), self.mac(container), packet).bytes();
        let ifindex = self.stage.port(container, 0).unwrap();
        Shot { hook: Hook::PortOut, ifindex, ingress, mark: 0, frame }
    }

    pub fn expect(&self, name: &str, shot: &Sent, want: &Want) {
        self.expect_after(name, &[], shot, want);
    }

    /// The same after other frames.
    pub fn expect_after(&self, name: &str, before: &[Sent], shot: &Sent, want: &Want) {
        let mut runner = self.runner.lock().unwrap();
        runner.forget().unwrap();
        for shot in before {
            runner.run(shot).unwrap();
        }
        let seen = runner.run(shot).unwrap();
        let rules = &self.stage.desired.compiled;
        // A rule is only known of what is recorded: drops, and entries of the flow table.
        let rule = if want.rule.is_none() && want.verdict == Verdict::Allowed {
            None
        } else {
            rules.rule(seen.rule())
        };
        let right = seen.verdict() == want.verdict && seen.reason == Some(want.reason) && rule == want.rule;
        if !right {
            let told = format!("{:?} {:?} {rule:?}, action {}", seen.verdict(), seen.reason, seen.action);
            self.wrong.lock().unwrap().push(format!("{name}: expected {want:?}, seen {told}"));
        }
    }

    /// What becomes of a frame after others.
    pub fn seen(&self, before: &[Sent], shot: &Sent) -> Seen {
        let mut runner = self.runner.lock().unwrap();
        runner.forget().unwrap();
        for shot in before {
            runner.run(shot).unwrap();
        }
        runner.run(shot).unwrap()
    }

    /// A frame goes on with this mark, counted by another hook; the rule of the entry that it has made, if it has.
    pub fn expect_on(&self, name: &str, shot: &Sent, mark: u32, rule: Option<&'static str>) {
        let seen = self.seen(&[], shot);
        let made = seen.flow.and_then(|(_, flow)| self.stage.desired.compiled.rule(flow.rule));
        if seen.action != NEXT || seen.reason.is_some() || seen.mark != mark || made != rule {
            self.wrong
                .lock()
                .unwrap()
                .push(format!("{name}: expected mark {mark:#x} and {rule:?}, seen {seen:?}"));
        }
    }

    /// A frame that an earlier hook has judged passes uncounted.
    pub fn expect_unjudged(&self, name: &str, shot: &Sent) {
        let mut runner = self.runner.lock().unwrap();
        runner.forget().unwrap();
        let seen = runner.run(shot).unwrap();
        if seen.action != NEXT || seen.reason.is_some() {
            self.wrong.lock().unwrap().push(format!("{name}: {seen:?}"));
        }
    }
}
