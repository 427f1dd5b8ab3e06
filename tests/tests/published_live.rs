//! Published ports on the wire: address translation as Docker writes it, inside the bridge and behind it, and a process that carries
//! the bytes. Whoever calls, by whichever address of the host: without hydra everybody gets through, with it the caller's own rule
//! holds, and every answer returns. `HYDRA_TRANSACTIONS` says how many conversations the three ways have together.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever reads the log")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hydra_common::flow::Flow;
use hydra_common::tables::Publish;
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::deployment::Deployment;
use hydra_tests::kernel::Runner;
use hydra_tests::lab::eventually;
use hydra_tests::load::{Heard, converse};
use hydra_tests::packets::{Frame, Packet, Transport, flags, protocol};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, Stream, probe};
use hydra_tests::proxy::Proxy;
use hydra_tests::sample::{TIERS, policy};
use hydra_tests::sniffer::{Sniffer, send_frames};
use hydra_tests::stage::{Stage, compiled};
use hydra_tests::topology::HOST;

const SILENCE: Duration = Duration::from_millis(1200);
/// How long a conversation may take that nothing is to disturb.
const PATIENCE: Duration = Duration::from_secs(5);
/// Conversations with the three ways together.
const TRANSACTIONS: u64 = 11_700;

/// How the bytes get from the host's port to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A process of the host carries them.
    Proxy,
    /// Translated in the host's PREROUTING, and masqueraded.
    Translated,
    /// Translated inside the bridge already (`bridge-nf-call-iptables`).
    InBridge,
}

/// Who calls the databases' port 5432 as port 8081 of the host, and the rule that lets him.
const CALLERS: [(&str, Option<&str>); 6] = [
    ("shop", None),
    ("stranger", None),
    ("outside", None),
    ("cron", Some("app-data")),
    ("api", Some("app-data")),
    ("cache", Some("")),
];

struct Live {
    stage: Stage,
    mode: Mode,
    echo: Echo,
    proxies: Vec<Proxy>,
}

impl Live {
    fn start(mode: Mode) -> Self {
        let mut stage = Stage::live(&policy()).unwrap();
        for uplink in ["hyup0", "hyother"] {
            let index = stage.link(uplink).unwrap();
            stage.desired.hooks.insert((index, Hook::UplinkIn));
        }
        let listeners = [("db", Kind::Tcp(5432)), ("db", Kind::Udp(53)), ("shop", Kind::Tcp(443))];
        let echo =
            Echo::start(&stage.world, &listeners.map(|(place, kind)| (place.to_owned(), kind))).unwrap();
        let mut live = Self { stage, mode, echo, proxies: Vec::new() };
        for (port, to, own) in [(8081, "db", 5432), (8443, "shop", 443)] {
            live.lead(port, to, own);
        }
        // A process that carries connections has one address to do it with.
        live.stage.world.sysctl(HOST, "net.ipv4.tcp_tw_reuse", "1").unwrap();
        live
    }

    fn address(&self, place: &str, v6: bool) -> IpAddr {
        let all = self.stage.deployment.topology.addresses(place);
        all.into_iter().find(|a| a.is_ipv6() == v6).unwrap()
    }

    fn lead(&mut self, port: u16, to: &str, own: u16) {
        let world = &self.stage.world;
        if self.mode == Mode::Proxy {
            let target = SocketAddr::new(self.address(to, false), own);
            self.proxies.push(Proxy::start(world, port, target).unwrap());
            return;
        }
        if self.mode == Mode::InBridge {
            for name in ["iptables", "ip6tables"] {
                world.sysctl(HOST, &format!("net.bridge.bridge-nf-call-{name}"), "1").unwrap();
            }
        }
        for v6 in [false, true] {
            let address = self.address(to, v6);
            let target = SocketAddr::new(address, own).to_string();
            let port = port.to_string();
            let local = ["-m", "addrtype", "--dst-type", "LOCAL"];
            for (protocol, target) in [("tcp", &target), ("udp", &SocketAddr::new(address, 53).to_string())] {
                let rule = ["-t", "nat", "-A", "PREROUTING", "-p", protocol, "--dport", &port];
                let lead = [&rule[..], &local, &["-j", "DNAT", "--to-destination", target]].concat();
                self.tables(v6, &lead);
            }
        }
        if port != 8081 {
            return;
        }
        // A connection that has ended gives its port back at once: the translation has one address to do it with.
        world.sysctl(HOST, "net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1").unwrap();
        for bridge in &self.stage.deployment.topology.bridges {
            for block in &bridge.addresses {
                let (v6, block) = (block.addr().is_ipv6(), block.trunc().to_string());
                let from = ["-t", "nat", "-A", "POSTROUTING", "-s", &block];
                self.tables(v6, &[&from[..], &["!", "-o", &bridge.name, "-j", "MASQUERADE"]].concat());
                if self.mode == Mode::Translated {
                    // Neighbours would answer each other directly, past the translation.
                    let again = ["-d", &block, "-m", "conntrack", "--ctstate", "DNAT", "-j", "MASQUERADE"];
                    self.tables(v6, &[&from[..], &again].concat());
                }
            }
        }
    }

    fn tables(&self, v6: bool, rule: &[&str]) {
        let mut command = Command::new(if v6 { "ip6tables" } else { "iptables" });
        command.args(["-w"]).args(rule);
        let output = self.stage.world.output(HOST, command).unwrap();
        assert!(output.status.success(), "{rule:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn enforce(&self) -> Runner {
        let bpffs = self.stage.world.bpffs().join("hydra");
        let mut runner =
            self.stage.world.enter(HOST, || Runner::open(&bpffs, &self.stage.desired)).unwrap().unwrap();
        self.publish(&mut runner);
        runner
    }

    fn publish(&self, runner: &mut Runner) {
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        for (protocol, port, to) in
            [(tcp, 8081, ("db", 5432)), (tcp, 8443, ("shop", 443)), (udp, 8081, ("db", 53))]
        {
            for binding in ["0.0.0.0", "::"] {
                let proxied = self.mode == Mode::Proxy && binding == "::";
                let flags = if proxied { Publish::PROXIED } else { 0 };
                let row = self.stage.published(binding.parse().unwrap(), protocol, port, to, flags).unwrap();
                runner.publish(&row.0, &row.1).unwrap();
            }
        }
    }

    /// Another policy of the same tiers.
    fn apply(&self, runner: &mut Runner, rules: &str, revision: u32) {
        let text = format!("version: 1\nname: sample\n{TIERS}rules:\n{rules}");
        let (_, rows) = compiled(&text, &Deployment::of(&text).unwrap()).unwrap();
        let mut desired = self.stage.desired.clone();
        desired.compiled = Arc::new(rows);
        desired.revision = revision;
        self.stage.world.enter(HOST, || runner.sync(&desired)).unwrap().unwrap();
        self.publish(runner);
    }

    /// Everybody by every address of the host; who got through.
    fn call(&self, callers: &[&str], port: u16) -> Vec<(String, IpAddr, Outcome)> {
        let host = self.stage.deployment.topology.addresses(HOST);
        let mut probes = Vec::new();
        for from in callers {
            let own = self.stage.deployment.topology.addresses(from);
            for to in host.iter().filter(|to| own.iter().any(|own| own.is_ipv6() == to.is_ipv6())) {
                let kind = Kind::Tcp(port);
                probes.push(Probe { from: (*from).to_owned(), source: None, to: *to, kind });
            }
        }
        let outcomes = probe(&self.stage.world, &probes, SILENCE).unwrap();
        probes.into_iter().zip(outcomes).map(|(p, o)| (p.from, p.to, o)).collect()
    }

    /// So many whole conversations, of everybody who may call, by every address of the host: TCP, and UDP where it is led.
    fn transact(&self, count: u64) -> Heard {
        let to = ["10.70.1.1", "10.70.3.1", "198.51.100.1", "2001:db8:51::1"];
        let mut legs = vec![("outside", to[2], Kind::Tcp(8443))];
        for (who, _) in CALLERS.iter().filter(|(_, rule)| rule.is_some()) {
            legs.extend(to.map(|to| (*who, to, Kind::Tcp(8081))));
            if self.mode != Mode::Proxy {
                legs.extend(to.map(|to| (*who, to, Kind::Udp(8081))));
            }
        }
        let mut all = Heard::default();
        for (n, (from, to, kind)) in (0..).zip(&legs) {
            let each = count * (n + 1) / legs.len() as u64 - count * n / legs.len() as u64;
            let heard =
                converse(&self.stage.world, from, to.parse().unwrap(), *kind, each, PATIENCE).unwrap();
            if heard.lost > 0 {
                println!("{:?}: {from} to {to} {kind}: {heard:?}", self.mode);
            }
            all += heard;
            // A million of them need not be remembered.
            self.echo.clear();
        }
        all
    }
}

/// Frames of TCP to this port.
fn called(sniffer: &Sniffer, port: u16) -> usize {
    let is = |frame: &[u8], at: usize, to: usize| {
        frame.get(at) == Some(&protocol::TCP) && frame.get(to..to + 2) == Some(&port.to_be_bytes()[..])
    };
    let frames = sniffer.frames(|frame| match frame.get(12..14) {
        Some([0x08, 0x00]) => is(frame, 23, 36),
        Some([0x86, 0xdd]) => is(frame, 20, 56),
        _ => false,
    });
    frames.len()
}

/// How often, by tiers, reason and rule.
type Denials = BTreeMap<(u16, u16, Reason, u16), u64>;

/// What has been denied so far; what enforcing would have denied left out.
fn denied(runner: &Runner) -> Denials {
    let rows = runner.dropped().unwrap();
    rows.iter()
        .filter(|(key, _)| key.verdict == Verdict::Denied as u8)
        .map(|(key, n)| ((key.source.0, key.destination.0, Reason::from_row(key.reason), key.rule), *n))
        .collect()
}

fn every_cell(mode: Mode) {
    let live = Live::start(mode);
    let callers: Vec<&str> = CALLERS.iter().map(|(who, _)| *who).collect();
    let through = |calls: &[(String, IpAddr, Outcome)], wanted: &dyn Fn(&str) -> bool| {
        let wrong = calls.iter().filter(|(who, _, o)| (*o == Outcome::Answered) != wanted(who));
        let wrong: Vec<String> = wrong.map(|row| format!("{row:?}")).collect();
        assert!(
            wrong.is_empty(),
            "{mode:?}, {} of {} wrong:\n{}",
            wrong.len(),
            calls.len(),
            wrong.join("\n")
        );
    };
    // The control: nothing else is in the way.
    through(&live.call(&callers, 8081), &|_| true);
    through(&live.call(&["outside", "db", "stranger"], 8443), &|_| true);

    let mut runner = live.enforce();
    // Bridges have their programs before ports have theirs.
    let before = denied(&runner);
    let (may, may_not): (Vec<_>, Vec<_>) = CALLERS.iter().partition(|(_, rule)| rule.is_some());
    let names = |of: &[&(&'static str, _)]| of.iter().map(|(who, _)| *who).collect::<Vec<&str>>();
    let at = |place| Sniffer::start(&live.stage.world, place).unwrap();
    let (db, shop) = (at("db"), at("shop"));
    through(&live.call(&names(&may_not), 8081), &|_| false);
    through(&live.call(&["db", "stranger"], 8443), &|_| false);
    assert_eq!(
        (called(&db, 5432), called(&shop, 443)),
        (0, 0),
        "{mode:?}: somebody got as far as the container"
    );
    through(&live.call(&names(&may), 8081), &|_| true);
    through(&live.call(&["outside"], 8443), &|_| true);
    let heard = eventually(|| called(&db, 5432) >= 30 && called(&shop, 443) >= 2);
    let (at_db, at_shop) = (called(&db, 5432), called(&shop, 443));
    assert!(heard, "{mode:?}: the sniffers are deaf: {at_db}, {at_shop}");
    drop((db, shop));
    let tier = |place: &str| {
        let identity = live.stage.desired.links[&live.stage.port(place, 0).unwrap()].identity;
        live.stage.desired.compiled.identities[&identity].1.tier.0
    };
    let (web, data) = (tier("shop"), tier("db"));
    let told = denied(&runner);
    let new: BTreeSet<_> = told.iter().filter(|(k, n)| before.get(k) != Some(n)).map(|(k, _)| *k).collect();
    let wanted =
        [(web, data), (1, data), (3, data), (data, web), (3, web)].map(|(s, d)| (s, d, Reason::NoRule, 0));
    assert_eq!(new, BTreeSet::from(wanted), "{mode:?}");

    // The entries say who it is, whatever the addresses are.
    let flows = runner.flows().unwrap();
    let rules = &live.stage.desired.compiled;
    let led: Vec<&Flow> = flows.iter().map(|(_, f)| f).filter(|f| f.marks & Flow::CARRIED != 0).collect();
    assert_eq!(led.is_empty(), mode == Mode::Proxy, "{mode:?}");
    let cron = live.stage.desired.links[&live.stage.port("cron", 0).unwrap()].identity;
    let own = |marks: u8| flows.iter().filter(move |(_, f)| f.marks & marks != 0 && f.source == cron);
    assert!(own(Flow::PUBLISHED).count() >= 8, "{mode:?}: {flows:#?}");
    assert!(own(Flow::PUBLISHED | Flow::CARRIED).all(|(_, f)| rules.rule(f.rule) == Some("app-data")));

    // A neighbour whose address the bridge alone has led on is there by name.
    let neighbour = live.stage.desired.links[&live.stage.port("cache", 0).unwrap()].container;
    assert_eq!(led.iter().any(|f| f.containers.contains(&neighbour)), mode == Mode::InBridge, "{mode:?}");

    // Every answer returns.
    let count = std::env::var("HYDRA_TRANSACTIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(TRANSACTIONS);
    let begun = Instant::now();
    let heard = live.transact(count / 3);
    println!(
        "figure: {mode:?}: {} conversations in {:?}, {} lost, {} with a segment sent again",
        heard.count,
        begun.elapsed(),
        heard.lost,
        heard.mended
    );
    assert_eq!(heard.lost, 0, "{mode:?}");
    assert_eq!(denied(&runner), told, "{mode:?}: something of an allowed conversation was denied");
    policies(&live, &mut runner);
}

/// A tighter policy ends what it no longer allows, in both halves; a looser one ends nothing.
fn policies(live: &Live, runner: &mut Runner) {
    let open = |from: &str| Stream::open(&live.stage.world, from, "10.70.3.1:8081".parse().unwrap()).unwrap();
    let (mut cron, mut cache) = (open("cron"), open("cache"));
    let mut apply = |rules: &str, revision| live.apply(runner, rules, revision);
    for stream in [&mut cron, &mut cache] {
        stream.turn(SILENCE).unwrap();
    }
    apply("  - { name: app-data, from: app, to: data }\n  - { name: more, from: web, to: data }\n", 2);
    for stream in [&mut cron, &mut cache] {
        stream.turn(SILENCE).unwrap();
    }
    apply("  - { name: more, from: web, to: data }\n", 3);
    assert!(cron.turn(SILENCE).is_err(), "{:?}: a tighter policy did not end the call", live.mode);
    cache.turn(SILENCE).unwrap();
    // The control: what hydra takes from a caller is lost here and counted there.
    let (before, to) = (denied(runner), "10.70.3.1".parse().unwrap());
    let heard = converse(&live.stage.world, "cron", to, Kind::Tcp(8081), 8, SILENCE).unwrap();
    assert_eq!((heard.count, heard.lost), (8, 8), "{:?}: {heard:?}", live.mode);
    let more = |(key, n): (&_, &u64)| n - before.get(key).copied().unwrap_or(0);
    assert!(denied(runner).iter().map(more).sum::<u64>() >= 8, "{:?}: {before:?}", live.mode);
    assert!(live.call(&["shop"], 8081).iter().all(|(_, _, o)| *o == Outcome::Answered));
}

#[test]
fn a_process_that_carries_the_bytes_launders_nobody() {
    every_cell(Mode::Proxy);
}

#[test]
fn a_call_in_pieces_too_small_to_be_read_reaches_no_process() {
    let live = Live::start(Mode::Proxy);
    let answered = |from: u16, cuts: &[usize]| {
        let (source, to) = (live.address("outside", false), IpAddr::from([198, 51, 100, 1]));
        let world = &live.stage.world;
        let sniffer = Sniffer::start(world, "outside").unwrap();
        let syn = Packet::new(source, to, Transport::Tcp(from, 8081, flags::SYN, Vec::new()));
        let (own, host) = (world.mac("outside", "eth0").unwrap(), world.mac(HOST, "hyup0").unwrap());
        let pieces = if cuts.is_empty() { vec![syn] } else { syn.pieces(from, cuts) };
        let frames: Vec<_> = pieces.iter().map(|p| Frame::ip(own, host, p).bytes()).collect();
        send_frames(world, "outside", "eth0", &frames).unwrap();
        let ports = [8081_u16.to_be_bytes(), from.to_be_bytes()].concat();
        sniffer.wait_for(&ports, Duration::from_millis(700))
    };
    assert!(answered(41_000, &[8]) && answered(41_001, &[]), "without hydra it is answered");
    let mut runner = live.enforce();
    assert!(!answered(41_002, &[8]) && !answered(41_003, &[16]) && !answered(41_004, &[]));
    let told = |runner: &Runner, reason| {
        denied(runner).iter().filter(|(k, _)| k.2 == reason).map(|(_, n)| n).sum::<u64>()
    };
    assert_eq!((told(&runner, Reason::Fragment), told(&runner, Reason::NoRule)), (2, 1));
    // Who may call may call in pieces, if their first one can be read.
    live.apply(&mut runner, "  - { name: users, from: external, to: data }\n", 2);
    assert!(answered(41_005, &[]) && !answered(41_006, &[8]));
    assert_eq!(told(&runner, Reason::Fragment), 3);
}

#[test]
fn translation_launders_nobody() {
    every_cell(Mode::Translated);
}

#[test]
fn translation_inside_the_bridge_launders_nobody() {
    every_cell(Mode::InBridge);
}
