//! Calls that address translation leads on: a limit counts each once, wherever it can be told for whom it is, and whoever gets another
//! right hears nothing more of what his last one let him ask for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hydra_agent::desired::Desired;
use hydra_common::id::Container;
use hydra_common::verdict::{Reason, Verdict};
use hydra_tests::kernel::Runner;
use hydra_tests::lab::eventually;
use hydra_tests::packets::protocol::{TCP, UDP};
use hydra_tests::probe::{Echo, Kind};
use hydra_tests::proxy::Proxy;
use hydra_tests::sample::TIERS;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

/// What the containers call.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 70, 2, 1));

fn stage(rules: &str) -> Stage {
    Stage::live(&format!("version: 1\nname: translated\n{TIERS}rules:\n{rules}")).unwrap()
}

fn address(stage: &Stage, place: &str) -> IpAddr {
    stage.deployment.topology.addresses(place).into_iter().find(IpAddr::is_ipv4).unwrap()
}

fn iptables(stage: &Stage, rule: &str) {
    let mut command = Command::new("iptables");
    command.arg("-w").args(["-t", "nat"]).args(rule.split(' '));
    let output = stage.world.output(HOST, command).unwrap();
    assert!(output.status.success(), "{rule}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Leads this port of the host on to the databases.
fn lead(stage: &Stage, protocol: &str, port: u16, own: u16) {
    let to = SocketAddr::new(address(stage, "db"), own);
    let local = format!("-A PREROUTING -p {protocol} --dport {port} -m addrtype --dst-type LOCAL");
    iptables(stage, &format!("{local} -j DNAT --to-destination {to}"));
}

/// Puts the address of the bridge that a call goes out by in the place of the caller's.
fn masquerade(stage: &Stage) {
    let bridge = stage.deployment.bridge("back").unwrap();
    iptables(stage, &format!("-A POSTROUTING -s 10.70.2.0/24 ! -o {bridge} -j MASQUERADE"));
}

fn enforce(stage: &Stage, published: &[(u8, u16, u16)]) -> Runner {
    let bpffs = stage.world.bpffs().join("hydra");
    let mut runner = stage.world.enter(HOST, || Runner::open(&bpffs, &stage.desired)).unwrap().unwrap();
    publish(stage, &mut runner, published);
    runner
}

fn publish(stage: &Stage, runner: &mut Runner, published: &[(u8, u16, u16)]) {
    for (protocol, port, own) in published {
        let all = Ipv4Addr::UNSPECIFIED.into();
        let (key, row) = stage.published(all, *protocol, *port, ("db", *own), 0).unwrap();
        runner.publish(&key, &row).unwrap();
    }
}

/// How many of so many connections come to be, each from another port.
fn connections(stage: &Stage, from: &str, to: SocketAddr, tries: u32) -> u32 {
    let talk = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(300))?;
        stream.set_read_timeout(Some(Duration::from_millis(600)))?;
        stream.write_all(b"question")?;
        stream.read_exact(&mut [0; 9])
    };
    stage.world.enter(from, || (0..tries).filter(|_| talk().is_ok()).count() as u32).unwrap()
}

const LIMITED: &str =
    "  - { name: few, from: app, to: data, limit: 5/h }\n  - { name: gate, from: app, to: host }\n";
const UNLIMITED: &str = "  - { name: few, from: app, to: data }\n  - { name: gate, from: app, to: host }\n";
const TRIES: u32 = 8;

/// Both callers through one port of the host; what each of them got.
fn both(stage: &Stage, port: u16) -> [u32; 2] {
    ["cron", "api"].map(|from| connections(stage, from, SocketAddr::new(GATEWAY, port), TRIES))
}

/// A world whose host leads two of its ports to the databases: 8081, which is published, and 9099, which is an operator's own.
fn led(masqueraded: bool, rules: &str, test: impl FnOnce(&Stage, &mut Runner)) {
    let stage = stage(rules);
    let _echo = Echo::start(&stage.world, &[("db".to_owned(), Kind::Tcp(5432))]).unwrap();
    lead(&stage, "tcp", 8081, 5432);
    lead(&stage, "tcp", 9099, 5432);
    if masqueraded {
        masquerade(&stage);
    }
    let mut runner = enforce(&stage, &[(TCP, 8081, 5432)]);
    test(&stage, &mut runner);
}

#[test]
fn a_limit_counts_what_is_led_on_once_and_by_whichever_way() {
    for masqueraded in [false, true] {
        led(masqueraded, UNLIMITED, |stage, _| {
            for port in [8081, 9099] {
                assert_eq!(both(stage, port), [TRIES; 2], "the control: masqueraded {masqueraded}, {port}");
            }
        });
        led(masqueraded, LIMITED, |stage, runner| {
            // Counted where it is sent, and not again where it arrives: the two share an address there.
            assert_eq!(both(stage, 8081), [5, 5], "published, masqueraded {masqueraded}");
            // Sent as calls of the host, and counted where they arrive, by the address that they have there.
            let own = both(stage, 9099);
            assert_eq!(own, if masqueraded { [5, 0] } else { [0, 0] }, "masqueraded {masqueraded}");
            runner.refill().unwrap();
            let own = both(stage, 9099);
            assert_eq!(own, if masqueraded { [5, 0] } else { [5, 5] }, "masqueraded {masqueraded}");
            let limited =
                runner.dropped().unwrap().into_iter().filter(|(key, _)| {
                    (key.reason, key.verdict) == (Reason::Limit as u8, Verdict::Denied as u8)
                });
            assert!(limited.map(|(_, n)| n).sum::<u64>() >= 6, "the reason is not the limit");
        });
    }
}

#[test]
fn a_limit_counts_what_a_process_carries_where_it_is_sent() {
    let stage = stage(LIMITED);
    let _echo = Echo::start(&stage.world, &[("db".to_owned(), Kind::Tcp(5432))]).unwrap();
    let _proxy = Proxy::start(&stage.world, 8081, SocketAddr::new(address(&stage, "db"), 5432)).unwrap();
    assert_eq!(both(&stage, 8081), [TRIES; 2], "the control");
    let mut runner = enforce(&stage, &[(TCP, 8081, 5432)]);
    assert_eq!(both(&stage, 8081), [5, 5]);
    runner.refill().unwrap();
    assert_eq!(both(&stage, 8081), [5, 5]);
}

/// A container of the databases' that answers one datagram with many, and says which of the test's parts they belong to.
struct Talker {
    part: Arc<AtomicUsize>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Talker {
    fn start(stage: &Stage, port: u16) -> Self {
        let (part, sent) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let socket = stage.world.enter("db", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        let socket = socket.unwrap();
        let (now, count, end) = (Arc::clone(&part), Arc::clone(&sent), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let mut caller = None;
            while !end.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    caller = Some(from);
                }
                let Some(to) = caller else { continue };
                // An address that nobody has any more is no reason to stop.
                let _ = socket.send_to(&mark(now.load(Ordering::SeqCst)), to);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { part, sent, stop, thread: Some(thread) }
    }

    /// From here on it says this, and has said it so often.
    fn says(&self, part: usize) {
        self.part.store(part, Ordering::SeqCst);
        let begun = self.sent.load(Ordering::SeqCst);
        assert!(eventually(|| self.sent.load(Ordering::SeqCst) > begun + 200), "it is silent");
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn mark(part: usize) -> Vec<u8> {
    format!("of part <{part}>").into_bytes()
}

/// The same world with a container in the place of `cron` that is of another tier.
fn relabelled(stage: &Stage, as_one_of: &str, container: Option<u32>) -> Desired {
    let mut desired = stage.desired.clone();
    let port = stage.port("cron", 0).unwrap();
    let identity = desired.links[&stage.port(as_one_of, 0).unwrap()].identity;
    let number = container.map_or(desired.links[&port].container, Container);
    let link = desired.links.get_mut(&port).unwrap();
    (link.identity, link.container) = (identity, number);
    for endpoint in desired.endpoints.values_mut().filter(|e| e.port == port) {
        (endpoint.identity, endpoint.container) = (identity, number);
    }
    desired
}

#[test]
fn who_changes_tier_hears_nothing_more_of_a_call_that_was_translated() {
    for (published, container) in [(true, None), (true, Some(77)), (false, None)] {
        let stage =
            stage("  - { name: feed, from: app, to: data }\n  - { name: gate, from: any, to: host }\n");
        lead(&stage, "udp", 8083, 5454);
        masquerade(&stage);
        let talker = Talker::start(&stage, 5454);
        let rows: &[(u8, u16, u16)] = if published { &[(UDP, 8083, 5454)] } else { &[] };
        let mut runner = enforce(&stage, rows);
        let ears = Sniffer::start(&stage.world, "cron").unwrap();
        let caller =
            stage.world.enter("cron", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
        caller.connect(SocketAddr::new(GATEWAY, 8083)).unwrap();
        let mut apply = |desired: &Desired| {
            stage.world.enter(HOST, || runner.sync(desired)).unwrap().unwrap();
            publish(&stage, &mut runner, rows);
        };
        let ask = || caller.send(b"?");
        ask().unwrap();
        assert!(ears.wait_for(&mark(0), Duration::from_secs(10)), "nothing returns at all");
        // The control: a change that changes nothing for him, in which he says nothing himself.
        apply(&stage.desired);
        talker.says(1);
        assert!(ears.wait_for(&mark(1), Duration::from_secs(10)), "a change of nothing ended the call");
        apply(&relabelled(&stage, "shop", container));
        talker.says(2);
        // Nor when he asks for more.
        for _ in 0..20 {
            let _ = ask();
        }
        talker.says(3);
        for part in [2, 3] {
            assert_eq!(ears.with(&mark(part)).len(), 0, "published {published}, {container:?}: part {part}");
        }
        // He has the right again.
        apply(&stage.desired);
        ask().unwrap();
        talker.says(4);
        assert!(ears.wait_for(&mark(4), Duration::from_secs(10)), "the sniffer is deaf");
    }
}
