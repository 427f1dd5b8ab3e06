//! The whole matrix of the Hydra deployment on real engines: every pair of containers, machines and the host, both families, TCP,
//! UDP and ICMP, before hydra and with it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::Duration;

use hydra_tests::binary::root;
use hydra_tests::deployment::Deployment;
use hydra_tests::engine::stage::is_right;
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::matrix;
use ipnet::IpNet;

const SILENCE: Duration = Duration::from_millis(1200);

#[test]
fn on_20_the_wire_does_what_the_policy_says() {
    the_wire_does_what_the_policy_says(Version::V20, Options::default(), &[]);
}

#[test]
fn on_28_the_wire_does_what_the_policy_says() {
    the_wire_does_what_the_policy_says(Version::V28, Options::default(), &[]);
}

#[test]
fn on_28_with_netfilter_on_bridges_the_wire_does_what_the_policy_says() {
    let options = Options { bridge_netfilter: true, ..Options::default() };
    // And with the network that is being migrated from, whose block only Docker knows, in a tier that is audited.
    let block = ("hydra-network", "172.29.8.0/24".parse().unwrap());
    the_wire_does_what_the_policy_says(Version::V28, options, &[block]);
}

fn the_wire_does_what_the_policy_says(version: Version, options: Options, blocks: &[(&str, IpNet)]) {
    let text = std::fs::read_to_string(root().join("policies/hydra.yaml")).unwrap();
    let deployment = Deployment::with_blocks(&text, blocks).unwrap();
    let engine = Engine::deploy(version, options, &deployment, |_| "nothing".to_owned()).unwrap();
    let mut trials = matrix::trials(&deployment);
    let echo = matrix::listen(engine.world(), &trials).unwrap();

    matrix::run(engine.world(), &mut trials, SILENCE, |_| {}).unwrap();
    let before: Vec<_> = trials.iter().map(matrix::Trial::seen).collect();
    let opened = trials.iter().filter(|t| t.expected() && t.seen() == Some(false)).count();
    let closed = trials.iter().filter(|t| !t.expected() && t.seen() == Some(true)).count();
    assert!(opened > 0 && closed > 0, "the policy changes nothing: {opened} opened, {closed} closed");
    echo.clear();

    let agent = engine.agent(&text).unwrap();
    matrix::run(engine.world(), &mut trials, SILENCE, |_| {}).unwrap();
    let wrong: Vec<String> = trials
        .iter()
        .zip(&before)
        .filter(|(trial, before)| !is_right(trial, **before, &deployment))
        .map(|(trial, before)| format!("{trial}; before hydra answered: {before:?}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} are wrong:\n{}\nthe agent's log:\n{}",
        wrong.len(),
        trials.len(),
        wrong.iter().take(30).cloned().collect::<Vec<_>>().join("\n"),
        agent.log().join("\n")
    );
}
