//! A policy that changes under traffic: tightening ends what it no longer allows, loosening ends nothing, and no packet meets a
//! mixture of two policies.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hydra_tests::lab::Lab;
use hydra_tests::probe::{Echo, Kind, Outcome, Stream};
use hydra_tests::sample;

const SHORT: Duration = Duration::from_secs(2);

fn without(rule: &str) -> String {
    let policy = sample::policy();
    let kept: Vec<&str> = policy.lines().filter(|l| !l.contains(&format!("name: {rule},"))).collect();
    assert!(kept.len() < policy.lines().count(), "the sample has no rule {rule}");
    kept.join("\n") + "\n"
}

#[test]
fn tightening_ends_the_connection_that_is_no_longer_allowed_and_no_other() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("db".into(), Kind::Tcp(5432))]).unwrap();
    for v6 in [false, true] {
        let (api, db) = (lab.address("api", v6).unwrap(), lab.address("db", v6).unwrap());
        agent.apply(&lab.world, &sample::policy()).unwrap();
        let mut cut = Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap();
        let mut kept = Stream::open(&lab.world, "cron", (db, 5432).into()).unwrap();
        let mut inside = Stream::open(&lab.world, "cache", (db, 5432).into()).unwrap();
        for stream in [&mut cut, &mut kept, &mut inside] {
            stream.turn(SHORT).unwrap();
        }
        agent.apply(&lab.world, &without("shop-api")).unwrap();
        // From the moment that apply has returned, not a byte more.
        assert!(cut.turn(SHORT).is_err(), "IPv6 {v6}: the connection goes on");
        kept.turn(SHORT).unwrap();
        inside.turn(SHORT).unwrap();
        assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), v6).unwrap(), Outcome::TimedOut);
        assert!(lab.dropped(&agent, "no-rule").unwrap() > 0);
    }
}

#[test]
fn a_deny_rule_ends_a_connection_and_is_named() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("db".into(), Kind::Tcp(5432))]).unwrap();
    let db = lab.address("db", false).unwrap();
    let mut stream = Stream::open(&lab.world, "cache", (db, 5432).into()).unwrap();
    stream.turn(SHORT).unwrap();
    let policy = sample::policy() + "  - { name: hands-off, from: data/cache, to: data/db, action: deny }\n";
    agent.apply(&lab.world, &policy).unwrap();
    assert!(stream.turn(SHORT).is_err());
    let drops = agent.json(&lab.world, &["drops", "--from", "cache"]).unwrap();
    assert!(
        drops.as_array().unwrap().iter().any(|d| d["reason"] == "rule" && d["rule"] == "hands-off"),
        "{drops}"
    );
}

#[test]
fn loosening_ends_nothing() {
    let (lab, agent) = Lab::start(&without("pings")).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("shop".into(), Kind::Tcp(9))]).unwrap();
    for v6 in [false, true] {
        let api = lab.address("api", v6).unwrap();
        let stream = Arc::new(Mutex::new(Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let (turning, end) = (Arc::clone(&stream), Arc::clone(&stop));
        let traffic = thread::spawn(move || {
            let mut turns = 0;
            while !end.load(Ordering::Relaxed) {
                turning
                    .lock()
                    .unwrap()
                    .turn(Duration::from_secs(5))
                    .map_err(|e| format!("turn {turns}: {e:#}"))?;
                turns += 1;
            }
            Ok::<_, String>(turns)
        });
        for _ in 0..4 {
            agent.apply(&lab.world, &sample::policy()).unwrap();
            agent.apply(&lab.world, &without("pings")).unwrap();
        }
        agent.apply(&lab.world, &sample::policy()).unwrap();
        stop.store(true, Ordering::Relaxed);
        let turns = traffic.join().unwrap().unwrap();
        assert!(turns > 10, "only {turns} turns");
        assert_eq!(stream.lock().unwrap().sent_again().unwrap(), 0, "packets were lost on the way");
        assert_eq!(lab.try_one("db", "shop", Kind::Ping, v6).unwrap(), Outcome::Answered);
        agent.apply(&lab.world, &without("pings")).unwrap();
    }
}

#[test]
fn no_packet_meets_a_mixture() {
    // Exactly one of two ports is open at any time. A sender calls them in turn: where both or neither of a pair arrive, a change
    // of policy lies between the two, so there are at most as many such pairs as changes.
    let policy = |port| {
        let rule = format!("  - {{ name: one, from: web/shop, to: data/db, ports: [udp/{port}] }}\n");
        without("watched") + &rule
    };
    let (lab, agent) = Lab::start(&policy(7001)).unwrap();
    let db = lab.address("db", false).unwrap();
    let receivers: Vec<UdpSocket> = [7001, 7002]
        .into_iter()
        .map(|port| {
            let socket = lab.world.enter("db", || UdpSocket::bind((db, port))).unwrap().unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let sender = lab.world.enter("shop", || UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0_u32)));
    let (end, count) = (Arc::clone(&stop), Arc::clone(&sent));
    let traffic = thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            let mut number = count.lock().unwrap();
            for port in [7001, 7002] {
                sender.send_to(&number.to_be_bytes(), SocketAddr::new(db, port)).unwrap();
            }
            *number += 1;
            drop(number);
            thread::sleep(Duration::from_micros(200));
        }
    });
    let arrived: [Mutex<Vec<u32>>; 2] = [Mutex::default(), Mutex::default()];
    let drain = || {
        for (receiver, arrived) in receivers.iter().zip(&arrived) {
            let mut bytes = [0; 4];
            loop {
                match receiver.recv(&mut bytes) {
                    Ok(_) => arrived.lock().unwrap().push(u32::from_be_bytes(bytes)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => unreachable!("{error}"),
                }
            }
        }
    };
    let changes = 12;
    let finished = AtomicBool::new(false);
    let (done, drain) = (&finished, &drain);
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                drain();
                thread::sleep(Duration::from_millis(2));
            }
        });
        for change in 0..changes {
            agent.apply(&lab.world, &policy(if change % 2 == 0 { 7002 } else { 7001 })).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
        thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    drain();
    let sent = *sent.lock().unwrap();
    let [first, second] =
        arrived.map(|a| a.into_inner().unwrap().into_iter().collect::<std::collections::BTreeSet<_>>());
    let odd: Vec<u32> = (0..sent).filter(|n| first.contains(n) == second.contains(n)).collect();
    assert!(sent > 200, "only {sent} pairs were sent");
    assert!(!first.is_empty() && !second.is_empty());
    assert!(odd.len() <= changes, "{} of {sent} pairs met both policies or none: {odd:?}", odd.len());
}
