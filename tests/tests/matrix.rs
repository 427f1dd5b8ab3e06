//! The whole matrix of the Hydra deployment in namespaces: every pair, both families, TCP, UDP and ICMP, before hydra and with it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::Duration;

use hydra_tests::agent::Agent;
use hydra_tests::binary::root;
use hydra_tests::deployment::Deployment;
use hydra_tests::matrix::{self, Trial};
use hydra_tests::probe::Kind;
use hydra_tests::world::World;

const SILENCE: Duration = Duration::from_millis(1200);

fn wrong(trials: &[Trial], is_right: impl Fn(&Trial) -> bool) -> String {
    let wrong: Vec<String> = trials.iter().filter(|t| !is_right(t)).map(ToString::to_string).collect();
    let shown = wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n");
    if wrong.is_empty() { String::new() } else { format!("{} of {}:\n{shown}", wrong.len(), trials.len()) }
}

#[test]
fn without_hydra_everything_passes() {
    let text = std::fs::read_to_string(root().join("policies/hydra.yaml")).unwrap();
    let deployment = Deployment::of(&text).unwrap();
    let world = World::build(&deployment.topology).unwrap();
    let mut trials = matrix::trials(&deployment);
    let _echo = matrix::listen(&world, &trials).unwrap();
    matrix::run(&world, &mut trials, SILENCE, |_| {}).unwrap();
    assert_eq!(wrong(&trials, |t| t.seen() == Some(true)), "");
}

#[test]
fn with_hydra_the_wire_does_what_the_policy_says() {
    let text = std::fs::read_to_string(root().join("policies/hydra.yaml")).unwrap();
    let deployment = Deployment::of(&text).unwrap();
    let world = World::build(&deployment.topology).unwrap();
    let agent = Agent::start(&world, &text).unwrap();
    let mut trials = matrix::trials(&deployment);
    let echo = matrix::listen(&world, &trials).unwrap();
    matrix::run(&world, &mut trials, SILENCE, |_| {}).unwrap();
    assert_eq!(wrong(&trials, Trial::agrees), "", "the agent's log:\n{}", agent.log().join("\n"));
    // Nothing that was denied reached a server, not even half of it.
    let places = deployment.topology.places();
    for receipt in echo.receipts() {
        let port = receipt.to.port();
        let kind = if receipt.tcp { Kind::Tcp(port) } else { Kind::Udp(port) };
        let from = places.iter().find(|p| deployment.topology.addresses(p).contains(&receipt.from.ip()));
        let allowed = trials.iter().any(|t| {
            let way = (&t.to, t.probe.to, t.probe.kind) == (&receipt.place, receipt.to.ip(), kind);
            way && Some(&t.probe.from.as_str()) == from && t.expected()
        });
        assert!(allowed, "from {from:?}: {receipt:?}");
    }
}
