//! The pre-drop at uplinks: what the classifier there would deny ends before the kernel makes anything of it, counted as the classifier
//! would, and nothing else is touched. Whether a frame got past XDP says a sniffer on the host: sockets of all protocols are served
//! between XDP and the classifier.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever reads the log")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hydra_agent::datapath::Predrop;
use hydra_agent::desired::{Desired, Publish as Wanted};
use hydra_agent::published::Counters;
use hydra_common::tables::{Gauge, Publish};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::agent::{Agent, purge, write};
use hydra_tests::deployment::Deployment;
use hydra_tests::foreign::{Does, Foreign, detach};
use hydra_tests::kernel::{NEXT, Runner, SHOT, Shot, XDP_DROP, XDP_PASS};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Extension, Frame, Packet, Transport, flags, protocol};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, probe};
use hydra_tests::proxy::Proxy;
use hydra_tests::random::{self, Random};
use hydra_tests::sample::{TIERS, policy};
use hydra_tests::sniffer::{Sniffer, send_frames};
use hydra_tests::stage::{Stage, compiled};
use hydra_tests::topology::HOST;
use serde_json::Value;

const SILENCE: Duration = Duration::from_millis(700);
/// What is published: the databases, which the outside may not reach, and the shop, which it may.
const PORTS: [(u8, u16, (&str, u16)); 3] = [
    (protocol::TCP, 8081, ("db", 5432)),
    (protocol::UDP, 8081, ("db", 53)),
    (protocol::TCP, 8443, ("shop", 443)),
];

/// Writes the rows of [`PORTS`] into what is wanted; those of IPv6 are carried by a process.
fn publish(stage: &Stage, desired: &mut Desired) {
    desired.published.clear();
    for (protocol, port, to) in PORTS {
        for (binding, flags) in [("0.0.0.0", 0), ("::", Publish::PROXIED)] {
            let row = stage.published(binding.parse().unwrap(), protocol, port, to, flags).unwrap();
            let (key, Publish { identity: [identity, _], container, port, flags }) = row;
            desired.published.insert(key, Wanted { identity, container, port, flags });
        }
    }
}

struct Live {
    stage: Stage,
    runner: Runner,
    _echo: Echo,
    _proxies: Vec<Proxy>,
}

impl Live {
    /// The sample's world with published ports that processes carry; not yet anything of hydra.
    fn stage() -> (Stage, Echo, Vec<Proxy>) {
        let stage = Stage::live(&policy()).unwrap();
        let listeners = [("db", Kind::Tcp(5432)), ("shop", Kind::Tcp(443))];
        let echo =
            Echo::start(&stage.world, &listeners.map(|(place, kind)| (place.to_owned(), kind))).unwrap();
        let proxy = |(port, place): (u16, &str), own| {
            let to = stage.deployment.topology.addresses(place).into_iter().find(IpAddr::is_ipv4).unwrap();
            Proxy::start(&stage.world, port, SocketAddr::new(to, own)).unwrap()
        };
        let proxies = vec![proxy((8081, "db"), 5432), proxy((8443, "shop"), 443)];
        (stage, echo, proxies)
    }

    /// With the sample policy's tiers, under other rules if some are given, and the mode of the whole.
    fn start(want: Predrop, head: &str, rules: Option<&str>) -> Self {
        let (mut stage, echo, proxies) = Self::stage();
        assert_eq!(call(&stage, 8081), [true; 2], "without hydra it is answered");
        if !head.is_empty() || rules.is_some() {
            let rules = rules.unwrap_or("rules: []\n");
            let text = format!("version: 1\nname: sample\n{head}{TIERS}{rules}");
            let deployment = Deployment::of(&text).unwrap();
            let (_, rows) = compiled(&text, &deployment).unwrap();
            stage.restage(deployment, Arc::new(rows), 1).unwrap();
        }
        let mut desired = stage.desired.clone();
        publish(&stage, &mut desired);
        desired.hooks.insert((stage.link("hyup0").unwrap(), Hook::UplinkIn));
        stage.desired = desired;
        let bpffs = stage.world.bpffs().join("hydra");
        let runner =
            stage.world.enter(HOST, || Runner::open_predrop(&bpffs, &stage.desired, want)).unwrap().unwrap();
        Self { stage, runner, _echo: echo, _proxies: proxies }
    }

    fn addresses(&self, v6: bool) -> (IpAddr, IpAddr) {
        let of = |place| {
            let all = self.stage.deployment.topology.addresses(place);
            all.into_iter().rfind(|a| a.is_ipv6() == v6).unwrap()
        };
        (of("outside"), of(HOST))
    }

    /// Sends packets from outside; how many of them got past XDP, by what is in each and nowhere else.
    fn send(&self, packets: &[Packet], mark: &[u8]) -> usize {
        let world = &self.stage.world;
        let (own, host) = (world.mac("outside", "eth0").unwrap(), world.mac(HOST, "hyup0").unwrap());
        let frames: Vec<_> = packets.iter().map(|p| Frame::ip(own, host, p).bytes()).collect();
        self.send_frames(&frames, mark)
    }

    fn send_frames(&self, frames: &[Vec<u8>], mark: &[u8]) -> usize {
        let world = &self.stage.world;
        let sniffer = Sniffer::start(world, HOST).unwrap();
        send_frames(world, "outside", "eth0", frames).unwrap();
        // What is seen last came last.
        let (from, to) = self.addresses(false);
        let last = Packet::udp(from, to, 9, 9).bytes();
        let (own, host) = (world.mac("outside", "eth0").unwrap(), world.mac(HOST, "hyup0").unwrap());
        send_frames(world, "outside", "eth0", &[Frame::ip(own, host, &Packet::udp(from, to, 9, 9)).bytes()])
            .unwrap();
        assert!(sniffer.wait_for(&last[20..24], Duration::from_secs(5)), "the sniffer is deaf");
        sniffer.with(mark).len()
    }

    fn counters(&self) -> Counters {
        self.stage.world.enter(HOST, || self.runner.counters()).unwrap().unwrap()
    }

    /// Denied packets and bytes by reason, as the kernel has counted them.
    fn counted(&self, reason: Reason) -> (u64, u64) {
        let counters = self.counters();
        counters.reasons.get(&reason).map_or((0, 0), |count| (count.packets, count.bytes))
    }

    /// What was said of packets, or would have been in quieter times.
    fn told(&self) -> u64 {
        let counters = self.counters();
        counters.gauge(Gauge::Events) + counters.gauge(Gauge::EventsLost)
    }
}

/// Who is answered of the two families.
fn call(stage: &Stage, port: u16) -> [bool; 2] {
    let to = ["198.51.100.1", "2001:db8:51::1"].map(|to| to.parse().unwrap());
    let one = |to| Probe { from: "outside".to_owned(), source: None, to, kind: Kind::Tcp(port) };
    let said = probe(&stage.world, &to.map(one), SILENCE).unwrap();
    [said[0] == Outcome::Answered, said[1] == Outcome::Answered]
}

/// Seven SYNs to a port of the host, from ports that nobody else uses, and what is in each.
fn syns(from: IpAddr, to: IpAddr, port: u16, first: u16) -> Vec<Packet> {
    (0..7).map(|n| Packet::syn(from, to, first + n, port)).collect()
}

#[test]
fn what_the_outside_may_not_reach_ends_before_the_kernel_makes_anything_of_it() {
    for want in [Predrop::Off, Predrop::Native, Predrop::Generic, Predrop::Auto] {
        let live = Live::start(want, "", None);
        let early = want != Predrop::Off;
        for v6 in [false, true] {
            let (from, to) = live.addresses(v6);
            let (before, told) = (live.counted(Reason::NoRule), live.told());
            let port = 8081_u16.to_be_bytes();
            let packets = syns(from, to, 8081, 43_000);
            let past = live.send(&packets, &port);
            // The control: without a pre-drop they are the classifier's.
            assert_eq!(past, if early { 0 } else { 7 }, "{want:?} v6={v6}: past XDP");
            let bytes: usize = packets.iter().map(|p| p.bytes().len() + 14).sum();
            let counted = (before.0 + 7, before.1 + bytes as u64);
            assert!(eventually(|| live.counted(Reason::NoRule) == counted), "{want:?} v6={v6}");
            assert_eq!(live.told() - told, 7, "{want:?} v6={v6}: each is told once");
            let datagram = Packet::udp(from, to, 43_900, 8081);
            assert_eq!(live.send(&[datagram], &port), usize::from(!early), "{want:?} v6={v6}: UDP");
        }
        let denied = live.counted(Reason::NoRule);
        assert_eq!(call(&live.stage, 8443), [true; 2], "{want:?}: who may come is answered");
        assert_eq!(live.counted(Reason::NoRule), denied, "{want:?}");
        assert_eq!(call(&live.stage, 8081), [false; 2], "{want:?}");
        assert!(live.counted(Reason::NoRule) > denied, "{want:?}");
    }
}

#[test]
fn behind_a_program_that_leaves_no_ethernet_header_the_classifier_judges_the_same() {
    let attach = |stage: &Stage, does| {
        let theirs = Foreign::load("xdp", does).unwrap();
        theirs.xdp(&stage.world, "hyup0").unwrap();
        theirs
    };
    {
        let (stage, _echo, _proxies) = Live::stage();
        let theirs = attach(&stage, Does::XdpFrags);
        assert_eq!(call(&stage, 8081), [true; 2], "without hydra it is answered");
        assert!(theirs.runs().unwrap() > 0);
    }
    for does in [Does::Xdp, Does::XdpFrags] {
        let live = Live::start(Predrop::Off, "", None);
        let theirs = attach(&live.stage, does);
        for v6 in [false, true] {
            let (from, to) = live.addresses(v6);
            let before = live.counted(Reason::NoRule);
            let packets = syns(from, to, 8081, 43_000);
            assert_eq!(live.send(&packets, &8081_u16.to_be_bytes()), 7, "{does:?} v6={v6}: none is answered");
            let bytes: usize = packets.iter().map(|p| p.bytes().len() + 14).sum();
            let counted = (before.0 + 7, before.1 + bytes as u64);
            assert!(
                eventually(|| live.counted(Reason::NoRule) == counted),
                "{does:?} v6={v6}: {before:?} {:?}",
                live.counted(Reason::NoRule)
            );
            // What would be read otherwise, where a header is expected: the address's bytes are the EtherType.
            let odd = if v6 { "2001:db8:86dd::1" } else { "8.0.69.0" };
            let before = live.counted(Reason::NoRule).0;
            let odd = Packet::syn(odd.parse().unwrap(), to, 43_050, 8081);
            assert_eq!(live.send(&[odd], &43_050_u16.to_be_bytes()), 1, "{does:?} v6={v6}: an odd address");
            assert!(eventually(|| live.counted(Reason::NoRule).0 == before + 1), "{does:?} v6={v6}");
        }
        let denied = live.counted(Reason::NoRule);
        assert_eq!(call(&live.stage, 8443), [true; 2], "{does:?}: who may come is answered");
        assert_eq!(live.counted(Reason::NoRule), denied, "{does:?}");
        assert_eq!(call(&live.stage, 8081), [false; 2], "{does:?}");
        assert!(theirs.runs().unwrap() > 16, "{does:?}");
    }
}

#[test]
fn what_is_not_plainly_denied_is_left_to_the_classifier() {
    for want in [Predrop::Native, Predrop::Generic] {
        let live = Live::start(want, "", None);
        let (from, to) = live.addresses(false);
        let (from6, to6) = live.addresses(true);
        let tcp = |from, to, port, bits| Packet::new(from, to, Transport::Tcp(43_100, port, bits, vec![]));
        let syn = Packet::syn(from, to, 43_100, 8081);
        let (port, whole) =
            (43_100_u16.to_be_bytes(), [43_100_u16.to_be_bytes(), 8081_u16.to_be_bytes()].concat());
        let mut cases = vec![
            ("the control", syn.clone(), 0, Some(Reason::NoRule)),
            ("an option", syn.clone().options(&[1, 1, 1, 1]), 1, Some(Reason::NoRule)),
            ("a source route", syn.clone().options(&[131, 3, 4, 0]), 1, Some(Reason::SourceRoute)),
            ("a first piece", syn.clone().fragment(0, true), 1, Some(Reason::Fragment)),
            ("an answer", tcp(from, to, 8081, flags::ACK), 1, None),
            ("who may come", tcp(from, to, 8443, flags::SYN), 1, None),
            ("the host itself", tcp(from, to, 22, flags::SYN), 1, None),
            ("an answer where a process carries", tcp(from6, to6, 8443, flags::ACK), 1, None),
            ("the control again", Packet::syn(from6, to6, 43_100, 8081), 0, Some(Reason::NoRule)),
        ];
        let extended = Packet::syn(from6, to6, 43_100, 8081).extension(Extension::HopByHop(vec![]));
        cases.push(("an extension header", extended, 1, Some(Reason::NoRule)));
        for (what, packet, past, reason) in cases {
            let before = live.counted(reason.unwrap_or(Reason::NoRule)).0;
            // Who is answered may say something to that.
            let seen = live.send(&[packet], &port);
            assert!(seen == past || (past == 1 && seen > 1), "{want:?}: {what}: {seen} past XDP");
            let counted = || live.counted(reason.unwrap_or(Reason::NoRule)).0 - before;
            let wanted = u64::from(reason.is_some());
            assert!(eventually(|| counted() == wanted), "{want:?}: {what}: counted {}", counted());
        }
        // A tag, in the frame or taken off: the classifier of the interface judges what is behind it, and so it is here.
        let (own, host) = {
            let world = &live.stage.world;
            (world.mac("outside", "eth0").unwrap(), world.mac(HOST, "hyup0").unwrap())
        };
        let before = live.counted(Reason::NoRule).0;
        let tagged = Frame::ip(own, host, &syn).tag(0x8100, 5).bytes();
        let _ = live.send_frames(&[tagged], &whole);
        assert!(eventually(|| live.counted(Reason::NoRule).0 == before + 1), "{want:?}: a tag");
        let pong = Packet::ping(from, to, 43_101);
        assert_eq!(live.send(&[pong], &43_101_u16.to_be_bytes()), 1, "{want:?}: a ping");
    }
}

#[test]
fn what_would_only_be_recorded_and_what_a_limit_decides_passes() {
    for want in [Predrop::Native, Predrop::Generic] {
        let live = Live::start(want, "mode: audit\n", None);
        for v6 in [false, true] {
            let (from, to) = live.addresses(v6);
            let before = live.counted(Reason::NoRule).0;
            // Those of IPv4 are counted where the translated call arrives: here nothing translates.
            let counted = if v6 { 7 } else { 0 };
            let right = |n| if v6 { n >= counted } else { n == counted };
            let packets = syns(from, to, 8081, 43_200);
            // And what the callers say to the answers.
            assert!(live.send(&packets, &8081_u16.to_be_bytes()) >= 7, "{want:?} v6={v6}: past XDP");
            let more = || live.counted(Reason::NoRule).0 - before;
            assert!(eventually(|| right(more())), "{want:?} v6={v6}: {}", more());
        }
        assert_eq!(call(&live.stage, 8081), [true; 2], "{want:?}: nothing is dropped");
        drop(live);
        let rule = "rules:\n  - { name: few, from: external, to: data, ports: [tcp/5432], limit: 2/h }\n";
        let live = Live::start(want, "", Some(rule));
        let (from, to) = live.addresses(true);
        let before = live.counted(Reason::Limit).0;
        assert!(live.send(&syns(from, to, 8081, 43_300), &8081_u16.to_be_bytes()) >= 7, "{want:?}");
        assert!(eventually(|| live.counted(Reason::Limit).0 == before + 5), "{want:?}");
        // A port that no limit has stays closed early.
        let (from, to) = live.addresses(false);
        assert_eq!(live.send(&[Packet::udp(from, to, 43_400, 8081)], &43_400_u16.to_be_bytes()), 0);
    }
}

/// Frames as the outside might send them: mostly plain ones, to ports of the host that are published.
fn frame(random: &mut Random, stage: &Stage) -> Vec<u8> {
    let v6 = random.one_in(2);
    let topology = &stage.deployment.topology;
    let of = |place: &str| -> Vec<IpAddr> {
        topology.addresses(place).into_iter().filter(|a| a.is_ipv6() == v6).collect()
    };
    let far: [&str; 3] = if v6 {
        ["2001:db8:51::2", "2001:db8:cafe::5", "::1"]
    } else {
        ["198.51.100.2", "203.0.113.5", "127.0.0.1"]
    };
    let far = &far[..if random.one_in(6) { 3 } else { 2 }];
    let from = match random.below(8) {
        0 => *random.one(&of("cron")),
        1 => *random.one(&of(HOST)),
        _ => random.one(far).parse().unwrap(),
    };
    let to = if random.one_in(6) { *random.one(&of("db")) } else { *random.one(&of(HOST)) };
    let port = *random.one(&[8081, 8081, 8443, 22]);
    let own = 40_000 + random.below(40) as u16;
    let bits = *random.one(&[
        flags::SYN,
        flags::SYN,
        flags::SYN | flags::ACK,
        flags::ACK,
        flags::RST,
        flags::FIN | flags::ACK,
        flags::SYN | flags::FIN,
        0,
    ]);
    let mut packet = match random.below(8) {
        0 => {
            let what = random::what(random, v6);
            random::packet(random, from, to, what)
        }
        1 | 2 => Packet::udp(from, to, own, port),
        _ => Packet::new(from, to, Transport::Tcp(own, port, bits, vec![1; random.below(3)])),
    };
    if random.one_in(10) {
        packet =
            if v6 { packet.extension(Extension::Destination(vec![0; 6])) } else { packet.fragment(0, true) };
    }
    let mut frame = Frame::ip([2, 0, 0, 0, 0, 99], [2, 0, 0, 0, 0, 98], &packet);
    if random.one_in(16) {
        frame = frame.tag(0x8100, 5);
    }
    let mut bytes = frame.bytes();
    match random.below(24) {
        // Cut short behind its IP header, before which a test run takes none, and padded.
        0 => {
            let least = if v6 { 58 } else { 38 };
            bytes.truncate(least + random.below(bytes.len() - least));
        }
        1 => bytes.resize(bytes.len() + random.below(30), 0),
        _ => {}
    }
    bytes
}

#[test]
fn xdp_denies_what_the_classifier_denies_and_nothing_else() {
    let mut stage = Stage::of(&policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let mut random = Random::from_environment();
    // What the kernel says that a test run comes in by.
    let lo = 1;
    let wanted = |stage: &Stage| {
        let mut desired = stage.desired.clone();
        let uplink = desired.links[&stage.link("hyup0").unwrap()];
        desired.links.insert(lo, uplink);
        publish(stage, &mut desired);
        desired
    };
    let first = wanted(&stage);
    let mut runner =
        stage.world.enter(HOST, || Runner::open_predrop(&bpffs, &first, Predrop::Auto)).unwrap().unwrap();
    let (mut frames, mut early, mut late) = (0_u64, 0_u64, 0_u64);
    for number in 0..12 {
        let begin = random.clone();
        let (text, deployment, rows) = loop {
            let text = random::policy(&mut random);
            let deployment = Deployment::of(&text).unwrap();
            if let Ok((_, rows)) = compiled(&text, &deployment) {
                break (text, deployment, rows);
            }
        };
        stage.restage(deployment, Arc::new(rows), number + 2).unwrap();
        let desired = wanted(&stage);
        stage
            .world
            .enter(HOST, || {
                runner.sync(&desired).unwrap();
                for _ in 0..300 {
                    let frame = frame(&mut random, &stage);
                    let said =
                        |what: &str| format!("{what}, policy {number} ({begin:?}): {frame:02x?}\n{text}");
                    let flows = runner.flows().unwrap().len();
                    let xdp = runner.run_predrop(&frame).unwrap();
                    assert_eq!(runner.flows().unwrap().len(), flows, "{}", said("XDP changed a flow"));
                    assert_eq!(xdp.frame, frame, "{}", said("XDP changed the frame"));
                    let shot = Shot {
                        hook: Hook::UplinkIn,
                        ifindex: lo,
                        ingress: lo,
                        mark: 0,
                        frame: frame.clone(),
                    };
                    let tc = runner.run(&shot).unwrap();
                    frames += 1;
                    if xdp.action == XDP_DROP {
                        early += 1;
                        assert_eq!(tc.action, SHOT, "{}", said("XDP alone drops"));
                        assert_eq!(
                            (xdp.reason, xdp.drop),
                            (tc.reason, tc.drop),
                            "{}",
                            said("counted otherwise")
                        );
                        assert!(matches!(xdp.drop, Some((Verdict::Denied, _))), "{}", said("not counted"));
                    } else {
                        assert_eq!(xdp.action, XDP_PASS);
                        assert_eq!(
                            (xdp.reason, xdp.drop),
                            (None, None),
                            "{}",
                            said("XDP counts what it passes")
                        );
                        late += u64::from(tc.action == SHOT);
                        let plain = hydra_common::packet::Packet::default().plain(&&frame[..]);
                        let ended = runner.flows().unwrap().len() < flows;
                        let left = !plain || ended || tc.reason == Some(Reason::Limit);
                        assert!(left || tc.action == NEXT, "{}", said("XDP leaves what it could deny"));
                        assert!(tc.action == SHOT || tc.action == NEXT, "{}", said("neither"));
                    }
                }
            })
            .unwrap();
    }
    println!(
        "figure: {frames} frames, {early} denied by XDP and by the classifier alike, {late} left to the classifier"
    );
    assert!(early > frames / 10 && late > 0 && late < early, "{frames} {early} {late}");
}

/// The rows of the status with this hook.
fn hooks(lab: &Lab, agent: &Agent, hook: &str) -> Vec<Value> {
    let status = agent.json(&lab.world, &["status"]).unwrap();
    status["hooks"].as_array().unwrap().iter().filter(|h| h["hook"] == hook).cloned().collect()
}

fn begin(lab: &Lab, want: &str) -> Agent {
    begin_at(lab, want, "auto")
}

fn begin_at(lab: &Lab, want: &str, uplinks: &str) -> Agent {
    write(&lab.world, "policy.yaml", &policy()).unwrap();
    let policy = lab.world.scratch("policy.yaml").to_string_lossy().into_owned();
    let arguments = ["--predrop", want, "--uplinks", uplinks, "--policy", &policy];
    Agent::start_with(&lab.world, &arguments).unwrap()
}

fn places(rows: &[Value]) -> Vec<(String, String)> {
    let text = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(row, "interface"), text(row, "mechanism"))).collect()
}

fn at(mechanism: &str) -> Vec<(String, String)> {
    vec![("hyup0".to_owned(), mechanism.to_owned())]
}

fn xdp(lab: &Lab) -> String {
    let mut command = std::process::Command::new("ip");
    command.args(["-details", "link", "show", "dev", "hyup0"]);
    let shown = String::from_utf8(lab.world.output(HOST, command).unwrap().stdout).unwrap();
    shown.lines().filter(|line| line.contains("xdp")).collect()
}

#[test]
fn it_comes_and_goes_with_the_setting_and_a_restart_adopts_it() {
    let lab = Lab::of(&policy()).unwrap();
    let agent = begin(&lab, "off");
    assert_eq!((hooks(&lab, &agent, "predrop").len(), xdp(&lab).as_str()), (0, ""));
    agent.stop().unwrap();
    let agent = begin(&lab, "auto");
    let first = hooks(&lab, &agent, "predrop");
    assert_eq!(places(&first), at("xdp-native"), "a veth's driver takes it; no bridge has one");
    let status = agent.json(&lab.world, &["status"]).unwrap();
    assert_eq!(
        (&status["healthy"], &status["warnings"]),
        (&true.into(), &serde_json::json!([])),
        "{status:#}"
    );
    agent.kill().unwrap();
    assert!(xdp(&lab).contains(&format!("id {}", first[0]["program_id"])), "it stays: {}", xdp(&lab));
    let agent = begin(&lab, "auto");
    assert_eq!(hooks(&lab, &agent, "predrop"), first, "program and link are the same");
    agent.stop().unwrap();
    // What an agent with other tables has left is gone on with: an interface takes one link.
    let hydra = lab.world.bpffs().join("hydra");
    let own = hydra.join(format!("v{}", hydra_common::ABI));
    lab.world.enter(HOST, || std::fs::rename(&own, hydra.join("v1"))).unwrap().unwrap();
    let agent = begin(&lab, "auto");
    let next = hooks(&lab, &agent, "predrop");
    assert_eq!((&next[0]["link_id"], places(&next)), (&first[0]["link_id"], at("xdp-native")));
    assert_ne!(next[0]["program_id"], first[0]["program_id"], "it reads these tables");
    let old = || lab.world.enter(HOST, || hydra.join("v1").exists()).unwrap();
    assert!(eventually(|| !old()), "{:#?}", agent.log());
    agent.stop().unwrap();
    let agent = begin(&lab, "generic");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), at("xdp-generic"));
    agent.stop().unwrap();
    let agent = begin(&lab, "off");
    assert_eq!((hooks(&lab, &agent, "predrop").len(), xdp(&lab).as_str()), (0, ""));
    agent.stop().unwrap();
    let agent = begin(&lab, "native");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), at("xdp-native"));
    // What lies above another interface gets none: its frames have been seen below.
    lab.world
        .ip(HOST, &["link add link hyup0 name hyv5 type macvlan".to_owned(), "link set hyv5 up".to_owned()])
        .unwrap();
    let above = || hooks(&lab, &agent, "uplink-in").iter().any(|row| row["interface"] == "hyv5");
    assert!(eventually(above), "the classifier is there");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), at("xdp-native"));
    agent.stop().unwrap();
    let output = purge(&lab.world).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(xdp(&lab), "");
    let there = lab.world.enter(HOST, || lab.world.bpffs().join("hydra").exists()).unwrap();
    assert!(!there, "something of hydra is pinned");
}

#[test]
fn where_frames_of_an_uplink_come_in_unseen_below_it_is_said() {
    let lab = Lab::of(&policy()).unwrap();
    let lines = ["link add link hyup0 name hyv5 type macvlan", "link set hyv5 up"];
    lab.world.ip(HOST, &lines.map(str::to_owned)).unwrap();
    let rows = |agent: &Agent| {
        let status = agent.json(&lab.world, &["status"]).unwrap();
        assert_eq!(status["healthy"], true, "the classifiers enforce the same: {status:#}");
        let rows = status["warnings"].as_array().unwrap().clone();
        rows.iter()
            .map(|r| [&r["what"], &r["why"]].map(|t| t.as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let agent = begin_at(&lab, "auto", "hyv5");
    let why = "no pre-drop: its frames come in by hyup0 first, and none is there".to_owned();
    assert_eq!(rows(&agent), [["hyv5".to_owned(), why]]);
    let classifiers = hooks(&lab, &agent, "uplink-in");
    assert!(classifiers.iter().any(|row| row["interface"] == "hyv5"), "{classifiers:#?}");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), vec![]);
    agent.stop().unwrap();
    // The control: with the interface below.
    let agent = begin_at(&lab, "auto", "hyup0,hyv5");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), at("xdp-native"));
    assert_eq!(rows(&agent), Vec::<[String; 2]>::new());
    agent.stop().unwrap();
    let agent = begin_at(&lab, "off", "hyv5");
    assert_eq!(rows(&agent), Vec::<[String; 2]>::new(), "nobody has asked for one");
}

#[test]
fn one_that_was_taken_away_is_said_and_mended() {
    let lab = Lab::of(&policy()).unwrap();
    let agent = begin(&lab, "auto");
    let first = hooks(&lab, &agent, "predrop");
    let index = lab.world.ifindex(HOST, "hyup0").unwrap();
    let links = lab.world.bpffs().join(format!("hydra/v{}/links", hydra_common::ABI));
    let pin = links.join(format!("{index}-predrop"));
    let repairs = || {
        let log = agent.log();
        log.iter().filter(|line| line.contains("no program at predrop")).count()
    };
    detach(&lab.world, &pin).unwrap();
    assert!(eventually(|| repairs() > 0 && xdp(&lab).contains("xdp")), "{:#?}", agent.log());
    let again = || places(&hooks(&lab, &agent, "predrop")) == at("xdp-native");
    assert!(eventually(again), "{:?}", hooks(&lab, &agent, "predrop"));
    assert_ne!(hooks(&lab, &agent, "predrop")[0]["link_id"], first[0]["link_id"]);
    let said = repairs();
    lab.world.enter(HOST, || std::fs::remove_file(&pin)).unwrap().unwrap();
    assert!(eventually(|| repairs() > said), "{:#?}", agent.log());
    assert!(eventually(again), "{:?}", hooks(&lab, &agent, "predrop"));
    let healthy = || agent.json(&lab.world, &["status"]).unwrap()["healthy"] == true;
    assert!(eventually(healthy));
}

#[test]
fn somebody_elses_program_stays_and_is_said_as_long_as_it_is_there() {
    let lab = Lab::of(&policy()).unwrap();
    let theirs = Foreign::load("xdp", Does::Xdp).unwrap();
    theirs.xdp(&lab.world, "hyup0").unwrap();
    let agent = begin(&lab, "auto");
    let warnings = || agent.json(&lab.world, &["status"]).unwrap()["warnings"].clone();
    let rows = warnings();
    assert_eq!(rows[0]["what"], "hyup0", "{rows:#}");
    assert_eq!(rows[0]["why"], format!("no pre-drop: XDP program {} is there", theirs.id()));
    assert_eq!(
        agent.json(&lab.world, &["status"]).unwrap()["healthy"],
        true,
        "the classifier enforces the same"
    );
    assert_eq!(hooks(&lab, &agent, "predrop").len(), 0);
    assert!(xdp(&lab).contains(&format!("id {} ", theirs.id())), "{}", xdp(&lab));
    lab.world.ip(HOST, &["link set dev hyup0 xdpgeneric off".to_owned()]).unwrap();
    let ours = || places(&hooks(&lab, &agent, "predrop")) == at("xdp-native");
    assert!(eventually(ours), "{:#?}", agent.log());
    assert!(eventually(|| warnings() == serde_json::json!([])), "{:#}", warnings());
}

#[test]
fn where_the_driver_takes_none_auto_takes_the_generic_way() {
    let lab = Lab::of(&policy()).unwrap();
    // That driver has no XDP.
    let lines = ["link add hyup7 type vxlan id 7 remote 198.51.100.9 dstport 4789", "link set hyup7 up"];
    lab.world.ip(HOST, &lines.map(str::to_owned)).unwrap();
    let agent = begin(&lab, "auto");
    let mut rows = places(&hooks(&lab, &agent, "predrop"));
    rows.sort();
    assert_eq!(
        rows,
        [("hyup0", "xdp-native"), ("hyup7", "xdp-generic")].map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    agent.stop().unwrap();
    let agent = begin(&lab, "native");
    assert_eq!(places(&hooks(&lab, &agent, "predrop")), at("xdp-native"));
    let status = agent.json(&lab.world, &["status"]).unwrap();
    assert_eq!(
        (&status["healthy"], &status["warnings"][0]["what"]),
        (&true.into(), &"hyup7".into()),
        "{status:#}"
    );
    let why = status["warnings"][0]["why"].as_str().unwrap();
    assert!(why.starts_with("no pre-drop: the kernel refuses it: "), "{why}");
}
