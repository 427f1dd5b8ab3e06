//! The agent's death changes no verdict, and the next one takes over what it finds.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hydra_common::ABI;
use hydra_common::names::MAPS;
use hydra_tests::agent::{Agent, purge};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Stream};
use hydra_tests::sample;
use hydra_tests::topology::HOST;
use serde_json::Value;

/// The ids of everything in the kernel: maps by name, programs and links by interface and hook.
fn ids(lab: &Lab, agent: &Agent) -> BTreeMap<String, (u64, u64)> {
    let pins = lab.world.bpffs().join(format!("hydra/v{ABI}/maps"));
    let maps = lab.world.enter(HOST, || {
        MAPS.map(|name| {
            (name.to_owned(), (u64::from(aya::maps::MapInfo::from_pin(pins.join(name)).unwrap().id()), 0))
        })
    });
    let mut ids: BTreeMap<_, _> = maps.unwrap().into_iter().collect();
    let status = agent.json(&lab.world, &["status"]).unwrap();
    for hook in status["hooks"].as_array().unwrap() {
        let name = format!("{} {}", hook["interface"], hook["hook"]);
        let number = |key: &str| hook[key].as_u64().unwrap();
        assert_eq!(hook["position"], 0, "{hook}");
        ids.insert(name, (number("program_id"), number("link_id")));
    }
    ids
}

fn verdicts_hold(lab: &Lab) {
    for v6 in [false, true] {
        let one = |from, to, kind| lab.try_one(from, to, kind, v6).unwrap();
        assert_eq!(one("shop", "api", Kind::Tcp(8004)), Outcome::Answered);
        assert_eq!(one("db", "shop", Kind::Ping), Outcome::Answered);
        assert_eq!(one("outside", "shop", Kind::Tcp(443)), Outcome::Answered);
        assert_eq!(one("shop", "db", Kind::Tcp(5432)), Outcome::TimedOut);
        assert_eq!(one("outside", "db", Kind::Tcp(5432)), Outcome::TimedOut);
    }
}

fn listen(lab: &Lab) -> Echo {
    let listeners = [("api", 8004), ("db", 5432), ("shop", 443)];
    Echo::start(&lab.world, &listeners.map(|(place, port)| (place.to_owned(), Kind::Tcp(port)))).unwrap()
}

#[test]
fn killed_under_traffic_it_leaves_everything_in_force_and_the_next_one_adopts_it() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    let before = ids(&lab, &agent);
    let stop = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = [("shop", "api", 8004, false), ("cron", "db", 5432, true)]
        .into_iter()
        .map(|(from, to, port, v6)| {
            let address = lab.address(to, v6).unwrap();
            let mut stream = Stream::open(&lab.world, from, (address, port).into()).unwrap();
            let end = Arc::clone(&stop);
            thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    stream.turn(Duration::from_secs(5)).map_err(|e| format!("{e:#}"))?;
                }
                Ok::<_, String>(stream.sent_again().unwrap())
            })
        })
        .collect();
    agent.kill().unwrap();
    verdicts_hold(&lab);
    let agent = Agent::start_with(&lab.world, &[]).unwrap();
    assert_eq!(before, ids(&lab, &agent), "maps, programs and links stay the same");
    let status = agent.json(&lab.world, &["status"]).unwrap();
    assert_eq!((&status["revision"], &status["healthy"]), (&Value::from(1), &Value::from(true)), "{status}");
    verdicts_hold(&lab);
    stop.store(true, Ordering::Relaxed);
    for stream in streams {
        assert_eq!(stream.join().unwrap(), Ok(0), "packets were lost on the way");
    }
    let flows = lab.flows(&agent, "shop", "api").unwrap();
    assert!(flows.iter().any(|f| f["packets"].as_u64() > Some(10)), "{flows:?}");
}

#[test]
fn asked_to_stop_it_leaves_everything_in_force_too_and_only_purge_ends_it() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = listen(&lab);
    agent.stop().unwrap();
    verdicts_hold(&lab);
    let output = purge(&lab.world).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.try_one("shop", "db", Kind::Tcp(5432), false).unwrap(), Outcome::Answered);
}

#[test]
fn a_container_that_starts_while_no_agent_runs_is_closed_until_one_does() {
    let policy = sample::policy();
    let (mut lab, agent) = Lab::start(&policy).unwrap();
    let mut cache = lab.deployment.topology.containers.iter().find(|c| c.name == "cache").unwrap().clone();
    lab.world.remove_container("cache").unwrap();
    assert!(eventually(|| {
        let endpoints = agent.json(&lab.world, &["endpoints"]).unwrap();
        !endpoints.as_array().unwrap().iter().any(|e| e["container"] == "cache")
    }));
    agent.kill().unwrap();
    lab.world.add_container(&cache).unwrap();
    let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432))]).unwrap();
    // Its port is not known: what it sends to a protected port of the same bridge is denied there.
    assert_eq!(lab.try_one("cache", "db", Kind::Tcp(5432), false).unwrap(), Outcome::TimedOut);
    let agent = Agent::start_with(&lab.world, &[]).unwrap();
    assert_eq!(lab.try_one("cache", "db", Kind::Tcp(5432), false).unwrap(), Outcome::Answered);
    // And one that starts beside a running agent works as soon as it is known.
    lab.world.remove_container("cache").unwrap();
    cache.ports.truncate(1);
    lab.world.add_container(&cache).unwrap();
    assert!(eventually(|| lab.try_one("cache", "db", Kind::Tcp(5432), true).unwrap() == Outcome::Answered));
    drop(agent);
}
