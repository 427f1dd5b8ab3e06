//! The whole matrix of the Hydra deployment on real engines: every pair of containers, machines and the host, both families, TCP,
//! UDP and ICMP, before hydra and with it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::Duration;

use hydra_tests::binary::root;
use hydra_tests::deployment::Deployment;
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::matrix::{self, Trial};

const SILENCE: Duration = Duration::from_millis(1200);

#[test]
fn matrix_on_20() {
    matrix_on(Version::V20);
}

#[test]
fn matrix_on_28() {
    matrix_on(Version::V28);
}

fn matrix_on(version: Version) {
    let text = std::fs::read_to_string(root().join("policies/hydra.yaml")).unwrap();
    let deployment = Deployment::of(&text).unwrap();
    let t = std::time::Instant::now();
    let engine = Engine::deploy(version, Options::default(), &deployment, |_| "nothing".into()).unwrap();
    eprintln!("deployed {:?}", t.elapsed());
    let mut trials = matrix::trials(&deployment);
    let _echo = matrix::listen(engine.world(), &trials).unwrap();
    matrix::run(engine.world(), &mut trials, SILENCE, |_| {}).unwrap();
    eprintln!("run {:?}", t.elapsed());
    for trial in &trials {
        eprintln!("{trial}");
    }
}
