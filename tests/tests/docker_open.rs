//! A policy that allows everything does no harm: whatever connected before hydra connects with it, on stock engines. The same where
//! everything is only audited.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hydra_tests::agent::{Agent, purge};
use hydra_tests::engine::everything::{Attempt, Everything};
use hydra_tests::engine::{Options, Version};
use hydra_tests::probe::{Kind, Probe, Stream};

/// The network `hyfree` is named nowhere.
const TIERS: &str = "version: 1
tiers:
  apps: { networks: [hyapps] }
  data: { networks: [hydata] }
  inner: { networks: [hyinner] }
";

#[test]
fn nothing_is_lost_on_20() {
    nothing_is_lost(Version::V20, Options::default());
}

#[test]
fn nothing_is_lost_on_28() {
    nothing_is_lost(Version::V28, Options::default());
}

#[test]
fn nothing_is_lost_on_28_with_netfilter_on_bridges() {
    nothing_is_lost(Version::V28, Options { bridge_netfilter: true, ..Options::default() });
}

fn nothing_is_lost(version: Version, options: Options) {
    let stage = Everything::start(version, options).unwrap();
    let all: Vec<&Attempt> = stage.attempts.iter().collect();
    let works = stage.run(&all).unwrap();
    let before: Vec<&Attempt> = all.iter().zip(works).filter(|(_, works)| *works).map(|(a, _)| *a).collect();
    // Enough of every kind that the engine is what it is taken for.
    let of = |kind: fn(&Attempt) -> bool| before.iter().filter(|a| kind(a)).count();
    let counts = [
        of(|a| matches!(a, Attempt::Probe(_))),
        of(|a| matches!(a, Attempt::Local { .. })),
        of(|a| matches!(a, Attempt::Group { .. })),
        of(|a| matches!(a, Attempt::Name { .. })),
    ];
    let (tried, found) = (all.len(), before.len());
    let _ = writeln!(
        std::io::stderr(),
        "{version:?}: of {tried} pairs {found} connect without hydra (own and host's addresses and published ports, link-local, groups, names: {counts:?})"
    );
    assert!(counts.iter().zip([600, 40, 60, 10]).all(|(have, least)| *have >= least), "{counts:?}");

    // Some of them stay open all the time.
    let mut streams: Vec<(String, Stream)> = before
        .iter()
        .filter_map(|a| match a {
            Attempt::Probe(Probe { from, to, kind: Kind::Tcp(port), .. }) => {
                Some((a, from, SocketAddr::new(*to, *port)))
            }
            Attempt::Probe(_) | Attempt::Local { .. } | Attempt::Group { .. } | Attempt::Name { .. } => None,
        })
        .step_by(7)
        .map(|(a, from, to)| (a.to_string(), Stream::open(stage.engine.world(), from, to).unwrap()))
        .collect();
    assert!(streams.len() > 30, "{}", streams.len());
    let open = format!("{TIERS}rules:\n  - {{ name: all, from: any, to: any }}\n");
    let agent = stage.engine.agent(&open).unwrap();
    assert_all_live(&mut streams, "with everything allowed");
    let allowed = lost(&stage, &agent, &before, "with everything allowed");
    let audit = format!("mode: audit\n{TIERS}defaults: {{ intra-tier: deny, from-host: deny }}\nrules: []\n");
    agent.apply(stage.engine.world(), &audit).unwrap();
    assert_all_live(&mut streams, "with everything audited");
    let audited = lost(&stage, &agent, &before, "with everything audited");
    agent.stop().unwrap();
    assert!(purge(stage.engine.world()).unwrap().status.success());
    assert_lost_anyway(&stage, [allowed, audited]);
}

/// What connected before hydra and not with it, and what there is to say of that.
struct Lost<'a> {
    attempts: Vec<&'a Attempt>,
    told: String,
}

/// What an engine lets through now and then hydra has not taken: without it these must fail as well.
fn assert_lost_anyway(stage: &Everything, all: [Lost<'_>; 2]) {
    for Lost { attempts, told } in all {
        let mut worked = attempts;
        for _ in 0..3 {
            let works = stage.run(&worked).unwrap();
            worked = worked.into_iter().zip(works).filter(|(_, works)| *works).map(|(a, _)| a).collect();
        }
        assert!(
            worked.is_empty(),
            "{} are lost, and connect again without hydra:\n{}\n{told}",
            worked.len(),
            worked.iter().take(80).map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        );
    }
}

fn assert_all_live(streams: &mut [(String, Stream)], when: &str) {
    let all = streams.len();
    let turn = |(name, stream): &mut (String, Stream)| {
        let error = stream.turn(Duration::from_secs(5)).err()?;
        Some(format!("{name}: {error:#}"))
    };
    let dead: Vec<String> = streams.iter_mut().filter_map(turn).collect();
    assert!(dead.is_empty(), "{} of {all} connections end {when}:\n{}", dead.len(), dead.join("\n"));
}

fn lost<'a>(stage: &Everything, agent: &Agent, before: &[&'a Attempt], when: &str) -> Lost<'a> {
    let mut attempts = before.to_vec();
    // Once more: a busy machine loses a datagram now and then.
    for _ in 0..2 {
        let works = stage.run(&attempts).unwrap();
        attempts = attempts.into_iter().zip(works).filter(|(_, works)| !works).map(|(a, _)| a).collect();
    }
    if attempts.is_empty() {
        return Lost { attempts, told: String::new() };
    }
    let drops = agent.json(stage.engine.world(), &["drops", "--limit", "60"]).unwrap();
    let told = format!(
        "{} of {} {when}\n{drops}\nthe agent's log:\n{}",
        attempts.len(),
        before.len(),
        agent.log().join("\n")
    );
    let names: Vec<String> = attempts.iter().map(ToString::to_string).collect();
    let _ = writeln!(std::io::stderr(), "lost {when}: {names:?}");
    Lost { attempts, told }
}
