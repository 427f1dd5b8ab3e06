//! Others on the same host: what they do to hydra is noticed, said and undone; what is theirs stays as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that can't go on ends here, and says how long things took"
)]

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use hydra_common::ABI;
use hydra_common::address::Address;
use hydra_common::names;
use hydra_common::tables::Endpoint;
use hydra_tests::agent::{Agent, purge};
use hydra_tests::foreign::{Does, Foreign, Side, chain, detach, tc};
use hydra_tests::lab::{Lab, SILENCE, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, probe};
use hydra_tests::sample;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{Bridge, HOST};
use hydra_tests::world::World;
use serde_json::Value;

const JUDGED: u32 = names::MARK_JUDGED;
const FLOOD: &[u8] = b"hydra-flood";

/// Packets that the policy denies, from the shop to the database and to the outside, as long as this lives.
struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<u64>>,
}

impl Flood {
    fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let to: Vec<IpAddr> = vec![
            lab.address("db", false).unwrap(),
            lab.address("db", true).unwrap(),
            lab.address("outside", false).unwrap(),
        ];
        let threads = to
            .into_iter()
            .map(|to| {
                let any: IpAddr = if to.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap();
                let socket = lab.world.enter("shop", || UdpSocket::bind((any, 0))).unwrap().unwrap();
                let end = Arc::clone(&stop);
                thread::spawn(move || {
                    let mut sent = 0;
                    while !end.load(Ordering::Relaxed) {
                        sent += u64::from(socket.send_to(FLOOD, (to, 9999)).is_ok());
                        thread::sleep(Duration::from_micros(200));
                    }
                    sent
                })
            })
            .collect();
        Self { stop, threads }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).sum()
    }
}

fn sniffers(lab: &Lab) -> [Sniffer; 2] {
    ["db", "outside"].map(|place| Sniffer::start(&lab.world, place).unwrap())
}

fn delivered(sniffers: &[Sniffer]) -> usize {
    sniffers.iter().map(|s| s.with(FLOOD).len()).sum()
}

fn verdicts_hold(lab: &Lab) {
    let wanted = [
        ("shop", "api", 8004, Outcome::Answered),
        ("outside", "shop", 443, Outcome::Answered),
        ("shop", "db", 5432, Outcome::TimedOut),
        ("outside", "db", 5432, Outcome::TimedOut),
    ];
    let of = |v6: bool| {
        wanted.map(|(from, to, port, _)| {
            let to = lab.address(to, v6).unwrap();
            Probe { from: from.to_owned(), source: None, to, kind: Kind::Tcp(port) }
        })
    };
    let probes = [of(false), of(true)].concat();
    let seen = probe(&lab.world, &probes, SILENCE).unwrap();
    for (index, (probe, seen)) in probes.iter().zip(seen).enumerate() {
        assert_eq!(seen, wanted[index % wanted.len()].3, "{probe:?}");
    }
}

fn listen(lab: &Lab) -> Echo {
    let listeners = [("api", 8004), ("db", 5432), ("shop", 443)];
    Echo::start(&lab.world, &listeners.map(|(place, port)| (place.to_owned(), Kind::Tcp(port)))).unwrap()
}

fn status(lab: &Lab, agent: &Agent) -> Value {
    agent.json(&lab.world, &["status"]).unwrap()
}

/// Waits until something is in the status and the metric is 0, then until all is well again. How long the second took.
fn noticed_and_mended(lab: &Lab, agent: &Agent, what: &str, why: &str) -> (Duration, Duration) {
    let start = Instant::now();
    let repairs = agent.metric(&lab.world, "hydra_repairs_total").unwrap();
    let ok = || agent.metric(&lab.world, "hydra_enforcement_ok").unwrap();
    let mut last = Value::Null;
    let said = || {
        last = status(lab, agent);
        let rows = last["not_enforced"].as_array().unwrap();
        rows.iter().any(|r| r["what"] == what && r["why"].as_str().unwrap().contains(why))
            && last["healthy"] == false
    };
    assert!(eventually(said), "{what}: {why} is not said\n{}", agent.log().join("\n"));
    assert!(ok() < 0.5, "{what}: {why}: the metric says that all is well");
    let noticed = start.elapsed();
    assert!(eventually(|| ok() > 0.5), "not mended: {:#}\n{}", status(lab, agent), agent.log().join("\n"));
    assert!(agent.metric(&lab.world, "hydra_repairs_total").unwrap() > repairs);
    let log = agent.log().join("\n");
    assert!(log.contains("somebody else's change is undone") && log.contains(why), "{log}");
    (noticed, start.elapsed())
}

#[test]
fn whoever_places_a_program_in_front_is_passed_again_and_keeps_it() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let port = World::port_name("shop", 0);
    let sides = [(Side::Ingress, "port-in"), (Side::Egress, "port-out")];
    for (side, hook) in sides {
        for does in [Does::Pass, Does::Mark(JUDGED), Does::Accept, Does::Drop, Does::MarkAndAccept(JUDGED)] {
            let ours = chain(&lab.world, &port, side).unwrap();
            let theirs = Foreign::load("in-front", does).unwrap();
            let _link = theirs.tcx(&lab.world, &port, side, true).unwrap();
            let why = format!("others run before hydra's at {hook}: program {}", theirs.id());
            let (noticed, mended) = noticed_and_mended(&lab, &agent, &port, &why);
            println!("{does:?} before {hook}: said after {noticed:?}, all well after {mended:?}");
            assert_eq!(
                chain(&lab.world, &port, side).unwrap(),
                [ours[0], theirs.id()],
                "{does:?}: both are there"
            );
            // Accept and Pass are the same behind us; a program that drops has its say, too.
            let before = theirs.runs().unwrap();
            if does == Does::Drop {
                assert_eq!(lab.try_one("outside", "shop", Kind::Tcp(443), false).unwrap(), Outcome::TimedOut);
            } else {
                verdicts_hold(&lab);
            }
            assert!(theirs.runs().unwrap() > before, "{does:?}: it is called for what passes");
        }
        assert!(eventually(|| chain(&lab.world, &port, side).unwrap().len() == 1), "theirs went with them");
    }
    verdicts_hold(&lab);
}

#[test]
fn hydra_goes_to_the_front_without_a_moment_in_which_it_is_away() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let (watching, flood) = (sniffers(&lab), Flood::start(&lab));
    assert!(eventually(|| watching.iter().all(|s| s.with(FLOOD).len() > 10)), "without hydra they arrive");
    drop(watching);
    let agent = Agent::start(&lab.world, &sample::policy()).unwrap();
    let watching = sniffers(&lab);
    let port = World::port_name("shop", 0);
    // Its mark says that all was judged: only hydra's own program, which does not believe it, stands between.
    let theirs = Foreign::load("liar", Does::Mark(JUDGED)).unwrap();
    for _ in 0..20 {
        let link = theirs.tcx(&lab.world, &port, Side::Ingress, true).unwrap();
        let first = || chain(&lab.world, &port, Side::Ingress).unwrap()[0] != theirs.id();
        assert!(eventually(first), "{}", agent.log().join("\n"));
        drop(link);
        assert!(eventually(|| !chain(&lab.world, &port, Side::Ingress).unwrap().contains(&theirs.id())));
    }
    assert_eq!(delivered(&watching), 0, "of {}", flood.end());
    assert!(theirs.runs().unwrap() > 100);

    // The control: with the agent dead, one that also ends the chain stands in front for good, and all of it arrives.
    agent.kill().unwrap();
    let flood = Flood::start(&lab);
    let theirs = Foreign::load("liar", Does::MarkAndAccept(JUDGED)).unwrap();
    let _link = theirs.tcx(&lab.world, &port, Side::Ingress, true).unwrap();
    assert!(
        eventually(|| watching.iter().all(|s| s.with(FLOOD).len() > 10)),
        "root can lie to the later hooks"
    );
    let agent = Agent::start_with(&lab.world, &[]).unwrap();
    let (before, dropped) = (delivered(&watching), lab.dropped(&agent, "no-rule").unwrap());
    assert!(eventually(|| lab.dropped(&agent, "no-rule").unwrap() > dropped + 100));
    assert_eq!(delivered(&watching), before, "the next agent is first again");
    drop((flood.end(), agent));
}

/// A pin of the sample's database.
fn pin(lab: &Lab, hook: &str) -> PathBuf {
    let index = lab.world.ifindex(HOST, &World::port_name("db", 0)).unwrap();
    lab.world.bpffs().join(format!("hydra/v{ABI}/links/{index}-{hook}"))
}

#[test]
fn every_way_of_taking_enforcement_away_is_noticed_said_and_mended() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let (port, maps) = (World::port_name("db", 0), lab.world.bpffs().join(format!("hydra/v{ABI}/maps")));
    let remove = |path: PathBuf| lab.world.enter(HOST, || std::fs::remove_file(path)).unwrap().unwrap();
    let say = |what: &str, (noticed, mended): (Duration, Duration)| {
        println!("{what}: said after {noticed:?}, all well after {mended:?}");
        verdicts_hold(&lab);
    };

    remove(pin(&lab, "port-in"));
    say("a link's pin", noticed_and_mended(&lab, &agent, &port, "no program at port-in"));
    detach(&lab.world, &pin(&lab, "port-out")).unwrap();
    say("a link", noticed_and_mended(&lab, &agent, &port, "no program at port-out"));
    remove(maps.join(names::FLOWS));
    say("a map's pin", noticed_and_mended(&lab, &agent, "pins", names::FLOWS));
    let address = Address::from(lab.address("db", false).unwrap());
    let endpoints = || -> HashMap<MapData, Address, Endpoint> {
        Map::from_map_data(MapData::from_pin(maps.join(names::ENDPOINTS)).unwrap())
            .unwrap()
            .try_into()
            .unwrap()
    };
    lab.world.enter(HOST, || endpoints().remove(&address).unwrap()).unwrap();
    say("a row", noticed_and_mended(&lab, &agent, "tables", "the rows of endpoints"));
    let generation = || -> aya::maps::Array<MapData, u32> {
        Map::from_map_data(MapData::from_pin(maps.join(names::GENERATION)).unwrap())
            .unwrap()
            .try_into()
            .unwrap()
    };
    lab.world.enter(HOST, || generation().set(0, 0, 0).unwrap()).unwrap();
    say("the generation", noticed_and_mended(&lab, &agent, "tables", "the generation is 0"));
    assert_eq!(status(&lab, &agent)["healthy"], true);
    assert!(agent.metric(&lab.world, "hydra_repairs_total").unwrap() >= 5.0);
}

#[test]
fn a_bridge_that_is_made_anew_under_its_name_is_covered_again() {
    let (mut lab, agent) = Lab::start(&sample::policy()).unwrap();
    let bridge: Bridge = lab.deployment.topology.bridges[2].clone();
    let before = lab.world.ifindex(HOST, &bridge.name).unwrap();
    lab.world.ip(HOST, &[format!("link del {}", bridge.name)]).unwrap();
    lab.world.add_bridge(&bridge).unwrap();
    let ports = lab.deployment.topology.containers.iter().flat_map(|c| {
        let on = c.ports.iter().enumerate().filter(|(_, port)| port.bridge == bridge.name);
        on.map(|(index, _)| format!("link set {} master {}", World::port_name(&c.name, index), bridge.name))
    });
    lab.world.ip(HOST, &ports.collect::<Vec<_>>()).unwrap();
    let _echo = listen(&lab);
    let covered = || {
        let hooks = status(&lab, &agent)["hooks"].as_array().unwrap().clone();
        let on = |h: &&Value| h["interface"] == bridge.name.as_str() && h["position"] == 0;
        hooks.iter().filter(on).count() == 2
    };
    assert!(eventually(covered), "{:#}", status(&lab, &agent));
    assert_ne!(lab.world.ifindex(HOST, &bridge.name).unwrap(), before);
    assert_eq!(lab.try_one("shop", "db", Kind::Tcp(5432), false).unwrap(), Outcome::TimedOut);
    assert!(eventually(|| lab.try_one("api", "db", Kind::Tcp(5432), false).unwrap() == Outcome::Answered));
}

#[test]
fn where_filters_are_the_mechanism_they_come_back_and_go_to_the_front() {
    let lab = Lab::of(&sample::policy()).unwrap();
    hydra_tests::agent::write(&lab.world, "policy.yaml", &sample::policy()).unwrap();
    let policy = lab.world.scratch("policy.yaml").display().to_string();
    let agent = Agent::start_with(&lab.world, &["--policy", &policy, "--attach", "clsact"]).unwrap();
    let _echo = listen(&lab);
    verdicts_hold(&lab);
    let port = World::port_name("db", 0);
    tc(&lab.world, &format!("qdisc del dev {port} clsact")).unwrap();
    let took = noticed_and_mended(&lab, &agent, &port, "no program at port-out");
    println!("tc qdisc del: said after {:?}, all well after {:?}", took.0, took.1);
    verdicts_hold(&lab);
    let theirs = Foreign::load("filter", Does::Accept).unwrap();
    theirs.clsact(&lab.world, &port, Side::Egress, 1).unwrap();
    let took =
        noticed_and_mended(&lab, &agent, &port, &format!("hydra's at port-out: program {}", theirs.id()));
    println!("a filter in front: said after {:?}, all well after {:?}", took.0, took.1);
    let before = theirs.runs().unwrap();
    verdicts_hold(&lab);
    assert_eq!(lab.try_one("cron", "db", Kind::Tcp(5432), false).unwrap(), Outcome::Answered);
    assert!(eventually(|| theirs.runs().unwrap() > before), "it is called for what passes");
}

#[test]
fn an_xdp_program_on_a_port_is_said_as_long_as_it_is_there() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let theirs = Foreign::load("xdp", Does::Xdp).unwrap();
    let port = World::port_name("shop", 0);
    theirs.xdp(&lab.world, &port).unwrap();
    theirs.xdp(&lab.world, "hyup0").unwrap();
    let why = format!("XDP program {} runs before hydra's: what it redirects is not judged", theirs.id());
    let rows = || status(&lab, &agent)["not_enforced"].clone();
    let wanted = serde_json::json!([{ "what": port, "why": why }]);
    assert!(eventually(|| rows() == wanted), "{:#}", rows());
    verdicts_hold(&lab);
    assert!(theirs.runs().unwrap() > 0);
    let looks = agent.log().iter().filter(|line| line.contains("XDP program")).count();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(rows(), wanted, "it is not ours to take away");
    assert_eq!(agent.log().iter().filter(|line| line.contains("XDP program")).count(), looks, "said once");
    lab.world.ip(HOST, &[format!("link set dev {port} xdpgeneric off")]).unwrap();
    assert!(eventually(|| status(&lab, &agent)["healthy"] == true), "{:#}", rows());
}

#[test]
fn purge_takes_away_hydras_own_and_nothing_else() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let port = World::port_name("shop", 0);
    let all: Vec<Foreign> = ["first", "last", "filter", "same-preference"]
        .into_iter()
        .map(|name| Foreign::load(name, Does::Pass).unwrap())
        .collect();
    let _links: Vec<OwnedFd> = vec![
        all[0].tcx(&lab.world, &port, Side::Ingress, true).unwrap(),
        all[1].tcx(&lab.world, &port, Side::Ingress, false).unwrap(),
    ];
    all[2].clsact(&lab.world, &port, Side::Ingress, 7).unwrap();
    all[3].clsact(&lab.world, &port, Side::Ingress, 1).unwrap();
    let xdp = Foreign::load("xdp", Does::Xdp).unwrap();
    xdp.xdp(&lab.world, &port).unwrap();
    let pinned = all[1].pin(&lab.world).unwrap();
    let netfilter = |arguments: &[&str]| {
        let mut command = std::process::Command::new("iptables");
        command.args(arguments);
        String::from_utf8(lab.world.output(HOST, command).unwrap().stdout).unwrap()
    };
    netfilter(&["-A", "FORWARD", "-m", "mark", "--mark", "0x7", "-j", "DROP"]);
    let ruleset = netfilter(&["-S"]);
    assert!(ruleset.contains("--mark 0x7"), "{ruleset}");
    let in_front = || chain(&lab.world, &port, Side::Ingress).unwrap()[0] == all[0].id();
    assert!(eventually(|| !in_front()));
    agent.stop().unwrap();
    let before = all[1].runs().unwrap();

    let output = purge(&lab.world).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(chain(&lab.world, &port, Side::Ingress).unwrap(), [all[0].id(), all[1].id()]);
    let shown = |arguments: &[&str]| {
        let mut command = std::process::Command::new(arguments[0]);
        command.args(&arguments[1..]);
        String::from_utf8(lab.world.output(HOST, command).unwrap().stdout).unwrap()
    };
    let filters = shown(&["tc", "filter", "show", "dev", &port, "ingress"]);
    for theirs in &all[2..] {
        assert!(filters.contains(&format!(" id {} ", theirs.id())), "{filters}");
    }
    assert!(!filters.contains("hydra"), "{filters}");
    assert!(shown(&["ip", "link", "show", "dev", &port]).contains(&format!("id {} ", xdp.id())));
    assert_eq!(netfilter(&["-S"]), ruleset);
    assert!(lab.world.enter(HOST, || pinned.exists()).unwrap());
    assert_eq!(
        lab.try_one("shop", "db", Kind::Tcp(5432), false).unwrap(),
        Outcome::Refused(std::io::ErrorKind::ConnectionRefused)
    );
    assert!(all.iter().chain([&xdp]).all(|f| f.runs().unwrap() > 0) && all[1].runs().unwrap() > before);
}
