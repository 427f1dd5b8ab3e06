//! Who sprays flows takes nothing from others.

use std::time::Duration;

use hydra_common::address::Address;
use hydra_common::share::Word;
use hydra_common::tables::Gauge;
use hydra_common::verdict::Reason;
use hydra_tests::agent::{Agent, write};
use hydra_tests::kernel::Runner;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::packets::{Frame, Packet, flags};
use hydra_tests::probe::{Echo, Kind, Stream};
use hydra_tests::sample;
use hydra_tests::sniffer::send_frames;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;

use crate::support::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// What a container does to fill the table.
#[derive(Clone, Copy, Debug)]
enum Spray {
    OnePacket,
    TwoPackets,
    Answered,
    HalfOpen,
}

impl Spray {
    fn one(self, calls: &Calls, runner: &Runner, n: u32) -> bool {
        let (from, to) = tuple(n);
        match self {
            Self::OnePacket => calls.there.udp(runner, (from, to)),
            Self::TwoPackets => calls.there.udp(runner, (from, to)) && calls.there.udp(runner, (from, to)),
            Self::Answered => calls.there.udp(runner, (from, to)) && calls.back.udp(runner, (to, from)),
            Self::HalfOpen => {
                calls.there.tcp(runner, (from, to), flags::SYN)
                    && calls.back.tcp(runner, (to, from), flags::SYN | flags::ACK)
            }
        }
    }
}

const SPRAYS: [Spray; 4] = [Spray::OnePacket, Spray::TwoPackets, Spray::Answered, Spray::HalfOpen];

/// What became of everybody's flows under a spray.
#[derive(Debug, Default)]
struct Seen {
    /// Established connections that were cut while they were busy.
    cut: usize,
    lost: usize,
    new: usize,
    new_lost: usize,
    spilled: u64,
}

/// Established connections of `shop`, nine of ten idle; `cron` sprays; `shop` goes on opening others.
fn spray(stage: &Stage, runner: &mut Runner, kind: Spray, established: u16, flows: u32) -> Seen {
    let (victim, sprayer) = (Calls::new(stage, "shop", "db"), Calls::new(stage, "cron", "cache"));
    for port in 0..established {
        assert!(victim.open(runner, 1_000 + port));
    }
    let (mut passed, mut cut, mut new) = (0, 0, Vec::new());
    // Until it has sent more than both tables hold nothing is under pressure.
    let full = flows / 2;
    for n in 0..flows {
        passed += u32::from(kind.one(&sprayer, runner, n));
        if n % 64 == 0 && n < full {
            // One of ten is busy.
            let busy = 1_000 + (n / 64 * 10) as u16 % established;
            cut += usize::from(!victim.lives(runner, busy));
        }
        if n >= full && (n - full).is_multiple_of((flows - full) / 200) {
            let port = 30_000 + new.len() as u16;
            new.push((port, victim.open(runner, port)));
        }
    }
    assert_eq!(passed, flows, "{kind:?}: who sprays is let pass as ever");
    let lost = (0..established).filter(|port| !victim.lives(runner, 1_000 + port)).count();
    let new_lost = new.iter().filter(|(port, opened)| !opened || !victim.lives(runner, *port)).count();
    Seen { cut, lost, new: new.len(), new_lost, spilled: runner.word(Word::Spilled).unwrap() }
}

#[test]
fn who_sprays_takes_nothing_from_others() {
    // The long form is a million flows on a table of the default size, with a thousand established ones.
    let flows = number(std::env::var("HYDRA_SPRAY"), 40_000);
    let (size, established) = if flows > 500_000 { (131_072, 1_000) } else { (8_192, 500) };
    for kind in SPRAYS {
        stage(room(size, 25), |stage, runner| {
            let seen = spray(stage, runner, kind, established, flows);
            println!("{kind:?}: {flows} flows sprayed on {established} established: {seen:?}");
            assert_eq!((seen.cut, seen.lost), (0, 0), "{kind:?}");
            assert!(seen.new >= 200 && seen.new_lost * 100 <= seen.new, "{kind:?}: {seen:?}");
            assert!(seen.spilled > 0, "{kind:?}: there was no pressure");
            // A quarter of what the others left: the rest is free for them.
            let held = runner.held(&Address::from(address(stage, "cron")));
            let left = u64::from(size) - u64::from(established) - seen.new as u64;
            assert!(held >= left / 4 - 100 && held <= (u64::from(size)).div_ceil(4), "{kind:?}: {held}");
            // The kernel's counts are those of the entries.
            let counters = runner.counters().unwrap();
            let entries = runner.flows().unwrap().len() as u64;
            assert_eq!(counters.flows, entries, "{kind:?}");
            assert_eq!(counters.gauge(Gauge::FlowsRefused), 0);
        });
    }
}

/// The controls: without shares others' new flows are lost, and in a table that evicts, which is all there was before, established ones.
#[test]
fn without_shares_a_spray_takes_from_others() {
    for kind in [Spray::TwoPackets, Spray::HalfOpen] {
        stage(room(8_192, 100), |stage, runner| {
            let seen = spray(stage, runner, kind, 500, 40_000);
            println!("{kind:?} without shares: {seen:?}");
            assert_eq!(seen.lost, 0, "{kind:?}: what is in the first table is never evicted");
            assert!(seen.new_lost * 2 > seen.new, "{kind:?}: {seen:?}");
        });
        stage(room(8_192, 100), |stage, runner| {
            // The first table is full: these are in the one that evicts.
            let filler = Calls::new(stage, "api", "cache");
            for n in 0..8_192 {
                assert!(kind.one(&filler, runner, n));
            }
            let seen = spray(stage, runner, kind, 500, 40_000);
            println!("{kind:?} in a table that evicts: {seen:?}");
            assert!(seen.lost > 400, "{kind:?}: {seen:?}");
        });
    }
}

#[test]
fn what_is_denied_makes_no_entry() {
    let flows = number(std::env::var("HYDRA_SPRAY"), 40_000);
    stage(room(8_192, 25), |stage, runner| {
        // The rule is for `db` alone.
        let denied = Calls::new(stage, "shop", "cache");
        for n in 0..flows {
            assert!(!denied.there.udp(runner, tuple(n)));
        }
        assert_eq!((runner.word(Word::Used).unwrap(), runner.word(Word::Spilled).unwrap()), (0, 0));
        assert_eq!(runner.flows().unwrap().len(), 0);
        let counters = runner.counters().unwrap();
        assert_eq!(counters.reasons[&Reason::NoRule].packets, u64::from(flows));
        // The control: what is allowed makes one.
        assert!(Calls::new(stage, "shop", "db").there.udp(runner, (1, 2)));
        assert_eq!(runner.flows().unwrap().len(), 1);
    });
}

#[test]
fn idle_connections_outlive_a_spray_through_real_ports() {
    let lab = Lab::of(&sample::policy()).unwrap();
    write(&lab.world, "policy.yaml", &sample::policy()).unwrap();
    let policy = lab.world.scratch("policy.yaml").to_string_lossy().into_owned();
    let start = |flows| Agent::start_with(&lab.world, &["--policy", &policy, "--flows", flows]).unwrap();
    let agent = start("1024");
    let _echo = Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004))]).unwrap();
    let to = (lab.address("api", false).unwrap(), 8004).into();
    let mut streams: Vec<Stream> = (0..20).map(|_| Stream::open(&lab.world, "shop", to).unwrap()).collect();
    for stream in &mut streams {
        stream.turn(PATIENCE).unwrap();
    }
    // Nobody listens there; each goes out twice.
    let (cron, db) = (lab.address("cron", false).unwrap(), lab.address("db", false).unwrap());
    let macs = (lab.world.mac("cron", "eth0").unwrap(), lab.deployment.bridge("back").unwrap());
    let gateway = lab.world.mac(HOST, &macs.1).unwrap();
    let frames: Vec<Vec<u8>> = (0..10_000)
        .flat_map(|n| [tuple(n); 2])
        .map(|(from, to)| Frame::ip(macs.0, gateway, &Packet::udp(cron, db, from, to)).bytes())
        .collect();
    send_frames(&lab.world, "cron", "eth0", &frames).unwrap();
    let metric = |agent: &Agent, name: &str| agent.metric(&lab.world, name).unwrap() as i64;
    assert!(eventually(|| metric(&agent, "hydra_flows_spilled_total") > 5_000));
    assert_eq!(metric(&agent, "hydra_flow_table_capacity"), 1_024);
    assert!(metric(&agent, "hydra_flows") <= 1_024 + 256);
    let calls = lab.flows(&agent, "shop", "api").unwrap();
    assert_eq!(calls.len(), 20, "all of them are listed");
    // Another container finds room meanwhile, and what was idle goes on.
    streams.push(Stream::open(&lab.world, "shop", to).unwrap());
    for stream in &mut streams {
        stream.turn(PATIENCE).unwrap();
        assert_eq!(stream.sent_again().unwrap(), 0, "no packet was lost");
    }
    // With another setting the table stays as it is, and the log says so.
    agent.stop().unwrap();
    let agent = start("4096");
    assert_eq!(metric(&agent, "hydra_flow_table_capacity"), 1_024);
    assert!(
        agent.log().iter().any(|line| line.contains("another size than the setting")),
        "{:?}",
        agent.log()
    );
    for stream in &mut streams {
        stream.turn(PATIENCE).unwrap();
    }
}
