//! `limit` in the kernel's own programs, frame by frame: how many flows begin, which packets count, and what those that do not begin
//! are called.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever reads the log")]

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use hydra_agent::desired::Desired;
use hydra_agent::policy::rows::Numbers;
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::deployment::Deployment;
use hydra_tests::kernel::{NEXT, REDIRECT, Runner, SHOT, Shot};
use hydra_tests::packets::{Frame, Packet, Transport, flags};
use hydra_tests::sample::TIERS;
use hydra_tests::stage::{Stage, compiled_with};
use hydra_tests::topology::HOST;

fn policy(rules: &str) -> String {
    format!("version: 1\nname: limits\n{TIERS}rules:\n{rules}")
}

/// A world whose programs have the first of these policies; the others are at hand over the same world, the names with the same
/// numbers, as the agent keeps them.
fn stage(policies: &[&str], test: impl FnOnce(&Stage, &mut Runner, &[Desired]) + Send) {
    let mut stage = Stage::of(&policy(policies[0])).unwrap();
    let mut numbers = Numbers::default();
    let mut wanted = Vec::new();
    for (rules, revision) in policies.iter().zip(1..) {
        let text = policy(rules);
        let deployment = Deployment::of(&text).unwrap();
        let (_, rows) = compiled_with(&text, &deployment, &mut numbers).unwrap();
        stage.restage(deployment, Arc::new(rows), revision).unwrap();
        wanted.push(stage.desired.clone());
    }
    stage.desired = wanted[0].clone();
    let bpffs = stage.world.bpffs().join("hydra");
    stage
        .world
        .enter(HOST, || test(&stage, &mut Runner::open(&bpffs, &stage.desired).unwrap(), &wanted))
        .unwrap();
}

fn address(stage: &Stage, place: &str, v6: bool) -> IpAddr {
    stage.deployment.topology.addresses(place).into_iter().find(|a| a.is_ipv6() == v6).unwrap()
}

/// A packet as it leaves a container for its gateway.
fn sent(stage: &Stage, from: &str, packet: &Packet) -> Shot {
    let frame = Frame::ip(stage.mac(from, 0).unwrap(), stage.gateway(from, 0).unwrap(), packet).bytes();
    let ifindex = stage.port(from, 0).unwrap();
    Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame }
}

/// The first packet of a connection from a port of the source's.
fn syn(stage: &Stage, from: &str, to: &str, v6: bool, source_port: u16) -> Shot {
    sent(stage, from, &Packet::syn(address(stage, from, v6), address(stage, to, v6), source_port, 8004))
}

/// "verdict reason rule" of a frame.
fn says(wanted: &Desired, runner: &mut Runner, shot: &Shot) -> String {
    let seen = runner.run(shot).unwrap();
    let rule = wanted.compiled.rule(seen.rule()).unwrap_or("-");
    format!("{} {} {rule}", seen.verdict().as_str(), seen.reason.unwrap().as_str())
}

/// What an attempt of one source came to in some seconds.
#[derive(Clone, Copy, Debug)]
struct Flood {
    begun: u64,
    tried: u64,
    /// Before the first attempt.
    start: Instant,
    /// After the last.
    end: Instant,
    /// Whether the last attempts were denied: then nothing was left over.
    used_up: bool,
}

/// Opens connections as fast as it goes, until `enough` and none is left to open.
fn flood(runner: &Runner, shots: &[Shot], enough: impl Fn() -> bool) -> Flood {
    let start = Instant::now();
    let mut flood = Flood { begun: 0, tried: 0, start, end: start, used_up: false };
    let mut next = 0;
    while !(flood.used_up && enough()) {
        // A port whose flow began is not used again; of the others each is tried again and again.
        let action = runner.action(&shots[next % shots.len()]).unwrap();
        assert!([SHOT, REDIRECT, NEXT].contains(&action), "action {action}");
        flood.tried += 1;
        flood.used_up = action == SHOT;
        if action != SHOT {
            flood.begun += 1;
            next += 1;
            assert!(next < shots.len(), "there are not enough ports");
        }
    }
    flood.end = Instant::now();
    flood
}

/// How many flows begin is the burst and the rate, more or less one for the ends and two ticks of the coarse clock (10 ms at worst).
fn right(flood: Flood, burst: u64, each: Duration) {
    let took = flood.end - flood.start;
    let formula = burst + (took.as_nanos() / each.as_nanos()) as u64;
    let ticks = 1 + (Duration::from_millis(20).as_nanos() / each.as_nanos()) as u64;
    println!("{} of {} began in {took:?}: the formula says {formula}", flood.begun, flood.tried);
    assert!(
        flood.used_up && flood.tried > 2 * flood.begun,
        "hardly more was tried than may begin: {flood:?}"
    );
    assert!(flood.begun.abs_diff(formula) <= ticks, "{flood:?}: the formula says {formula}");
}

#[test]
fn one_source_gets_the_burst_and_the_rate_and_no_more() {
    let rules = "  - { name: login, from: web, to: app/api, limit: 6000/min }\n";
    stage(&[rules], |stage, runner, wanted| {
        let wanted = &wanted[0];
        let until = Instant::now() + Duration::from_secs(6);
        let shots: Vec<Shot> = (1..20_000).map(|port| syn(stage, "shop", "api", false, port)).collect();
        let seen = flood(runner, &shots, || Instant::now() > until);
        // Every packet that did not begin a flow was counted for the rule.
        let counters = runner.counters().unwrap();
        let bucket = wanted.compiled.limits[0].bucket as usize;
        assert_eq!(counters.limited[bucket], seen.tried - seen.begun);
        assert_eq!(counters.reasons[&Reason::Limit].packets, seen.tried - seen.begun);
        right(seen, 6_000, Duration::from_millis(10));
        // The control: another source of the same rule, and another address of the same container, have all of theirs.
        let spare: Vec<Shot> = (40_000..60_000).map(|port| syn(stage, "shop", "api", false, port)).collect();
        let mut spare = spare.iter();
        // While one asks for the reason the next may be due: asked as often as it takes.
        let named = (0..100).any(|_| {
            let denied =
                spare.find(|shot| runner.action(shot).unwrap() == SHOT).expect("the limit is used up");
            says(wanted, runner, denied).split(' ').nth(1) == Some("limit")
        });
        assert!(named, "the reason is not the limit");
        for (from, v6) in [("web-other", false), ("shop", true)] {
            runner.forget().unwrap();
            let open = syn(stage, from, "api", v6, 30_000);
            assert_eq!(says(wanted, runner, &open), "allowed rule login", "{from}");
        }
    });
}

#[test]
fn two_cpus_at_once_get_no_more_than_one() {
    let cpus = thread::available_parallelism().unwrap().get();
    if cpus < 2 {
        println!("skipped: needs two CPUs");
        return;
    }
    // A large burst, so that both take for as long as it lasts, and then hardly any more: what one of them loses is seen.
    let rules = "  - { name: login, from: web, to: app/api, limit: 30000/h }\n";
    stage(&[rules], |stage, runner, _| {
        let runner = &*runner;
        let (stop, begin) = (AtomicBool::new(false), Barrier::new(2));
        let floods: Vec<Flood> = thread::scope(|scope| {
            let threads: Vec<_> = (0..2u16)
                .map(|cpu| {
                    let (stop, begin) = (&stop, &begin);
                    scope.spawn(move || {
                        pin(usize::from(cpu));
                        let ports = 1 + cpu * 32_000..32_000 + cpu * 32_000;
                        let shots: Vec<Shot> =
                            ports.map(|port| syn(stage, "shop", "api", false, port)).collect();
                        begin.wait();
                        flood(runner, &shots, || stop.load(Ordering::Relaxed))
                    })
                })
                .collect();
            thread::sleep(Duration::from_secs(4));
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(floods.iter().all(|f| f.begun > 100), "only one CPU had any: {floods:?}");
        let both = Flood {
            begun: floods.iter().map(|f| f.begun).sum(),
            tried: floods.iter().map(|f| f.tried).sum(),
            start: floods.iter().map(|f| f.start).min().unwrap(),
            end: floods.iter().map(|f| f.end).max().unwrap(),
            used_up: floods.iter().any(|f| f.used_up),
        };
        right(both, 30_000, Duration::from_millis(120));
    });
}

fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

#[test]
fn only_what_begins_a_flow_counts_and_an_apply_fills_nothing() {
    let login = "  - { name: login, from: web, to: app/api, limit: 3/h }\n";
    stage(&[login], |stage, runner, wanted| {
        let wanted = &wanted[0];
        for v6 in [false, true] {
            let (s, d) = (address(stage, "shop", v6), address(stage, "api", v6));
            let first = syn(stage, "shop", "api", v6, 1_000);
            let answer = Packet::new(d, s, Transport::Tcp(8004, 1_000, flags::SYN | flags::ACK, vec![]));
            let answer = sent(stage, "api", &answer);
            let more = Packet::new(s, d, Transport::Tcp(1_000, 8004, flags::ACK, b"x".to_vec()));
            let more = sent(stage, "shop", &more);
            assert_eq!(says(wanted, runner, &first), "allowed rule login");
            for _ in 0..20 {
                assert_eq!(says(wanted, runner, &first), "allowed rule login", "sent again");
            }
            for _ in 0..20 {
                assert_eq!(says(wanted, runner, &answer), "allowed reply login");
                assert_eq!(says(wanted, runner, &more), "allowed reply login");
            }
            // Two more, and that is all: one from the same port, behind what came of the first. The one that is denied leaves nothing.
            assert_eq!(says(wanted, runner, &first), "allowed rule login", "another one");
            assert_eq!(runner.action(&syn(stage, "shop", "api", v6, 1_001)).unwrap(), REDIRECT);
            for _ in 0..3 {
                assert_eq!(runner.action(&syn(stage, "shop", "api", v6, 1_003)).unwrap(), SHOT);
            }
            runner.forget().unwrap();
            let fourth = syn(stage, "shop", "api", v6, 1_003);
            let seen = runner.run(&fourth).unwrap();
            assert_eq!(
                (seen.reason, seen.drop, seen.flow),
                (Some(Reason::Limit), Some((Verdict::Denied, 1)), None)
            );
        }
    });
    let other = format!("  - {{ name: first, from: data, to: web, limit: 5/s }}\n{login}");
    stage(&[login, &other, &login.replace("login", "enter")], |stage, runner, wanted| {
        let open = |port| syn(stage, "shop", "api", false, port);
        for port in 1..=3 {
            assert_eq!(runner.action(&open(port)).unwrap(), REDIRECT);
        }
        // Another policy: the old flows are judged again and take nothing, and there is nothing left for new ones.
        runner.sync(&wanted[1]).unwrap();
        for port in 1..=3 {
            assert_eq!(runner.action(&open(port)).unwrap(), REDIRECT, "a live flow under a new policy");
        }
        assert_eq!(runner.action(&open(4)).unwrap(), SHOT);
        runner.forget().unwrap();
        assert_eq!(says(&wanted[1], runner, &open(4)), "denied limit login");
        // Another name is another rule.
        runner.sync(&wanted[2]).unwrap();
        assert_eq!(says(&wanted[2], runner, &open(4)), "allowed rule enter");
    });
}

#[test]
fn the_next_rule_that_allows_decides_and_a_deny_rule_before_all() {
    let rules = "  - { name: few,    from: web, to: app/api, limit: 1/h }
  - { name: tcp,    from: web, to: app/api, ports: tcp, limit: 2/h }
  - { name: watch,  from: web, to: app/api, action: audit }
  - { name: closed, from: web, to: app/api, ports: tcp/22, action: deny }
  - { name: open,   from: web, to: app/api, ports: tcp/9000 }
";
    stage(&[rules], |stage, runner, wanted| {
        let wanted = &wanted[0];
        let mut port = 1;
        let mut says = |to: u16| {
            port += 1;
            runner.forget().unwrap();
            let packet = Packet::syn(address(stage, "shop", false), address(stage, "api", false), port, to);
            says(wanted, runner, &sent(stage, "shop", &packet))
        };
        assert_eq!(says(22), "denied rule closed");
        assert_eq!(says(8004), "allowed rule few");
        assert_eq!(says(8004), "allowed rule tcp");
        assert_eq!(says(8004), "allowed rule tcp");
        // Line 5 is for what no rule allows.
        assert_eq!(says(8004), "denied limit few");
        assert_eq!(says(22), "denied rule closed");
        assert_eq!(says(9000), "allowed rule open");
        assert_eq!(says(8004), "denied limit few");
    });
}

#[test]
fn under_audit_nothing_is_dropped_for_a_limit_and_it_is_recorded() {
    let rules = "  - { name: login, from: web, to: app/api, limit: 1/h }\n";
    let text = policy(rules).replacen("name: limits", "name: limits\nmode: audit", 1);
    let stage = Stage::of(&text).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    stage
        .world
        .enter(HOST, || {
            let mut runner = Runner::open(&bpffs, &stage.desired).unwrap();
            assert_eq!(
                says(&stage.desired, &mut runner, &syn(&stage, "shop", "api", false, 1)),
                "allowed rule login"
            );
            runner.forget().unwrap();
            let seen = runner.run(&syn(&stage, "shop", "api", false, 2)).unwrap();
            assert_eq!((seen.action, seen.reason), (NEXT, Some(Reason::Limit)), "through the stack");
            assert_eq!(seen.drop, Some((Verdict::Audited, 1)));
            assert_eq!(runner.counters().unwrap().limited.iter().sum::<u64>(), 0, "nothing was denied");
        })
        .unwrap();
}
