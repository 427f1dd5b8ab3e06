//! A policy that allows everything does no harm: whatever connected before hydra connects with it, on stock engines. The same where
//! everything is only audited.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hydra_tests::agent::Agent;
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
    assert_none_lost(&stage, &agent, &before, "with everything allowed");
    let audit = format!("mode: audit\n{TIERS}defaults: {{ intra-tier: deny, from-host: deny }}\nrules: []\n");
    agent.apply(stage.engine.world(), &audit).unwrap();
    assert_all_live(&mut streams, "with everything audited");
    assert_none_lost(&stage, &agent, &before, "with everything audited");
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

fn assert_none_lost(stage: &Everything, agent: &Agent, before: &[&Attempt], when: &str) {
    let works = stage.run(before).unwrap();
    let lost: Vec<&Attempt> = before.iter().zip(works).filter(|(_, works)| !works).map(|(a, _)| *a).collect();
    // Once more: a busy machine loses a datagram now and then.
    let works = stage.run(&lost).unwrap();
    let lost: Vec<String> =
        lost.iter().zip(works).filter(|(_, works)| !works).map(|(a, _)| a.to_string()).collect();
    let drops = if lost.is_empty() {
        String::new()
    } else {
        agent.json(stage.engine.world(), &["drops", "--limit", "60"]).unwrap().to_string()
    };
    assert!(
        lost.is_empty(),
        "{} of {} are lost {when}:\n{}\n{drops}\nthe agent's log:\n{}",
        lost.len(),
        before.len(),
        lost.iter().take(80).cloned().collect::<Vec<_>>().join("\n"),
        agent.log().join("\n")
    );
}
