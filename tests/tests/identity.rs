//! A container cannot lie about who it is by its own stack either. What it can do with a raw socket is in `attacks`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use hydra_tests::agent::Agent;
use hydra_tests::lab::Lab;
use hydra_tests::probe::{Echo, Kind, Outcome};
use hydra_tests::sample;

#[test]
fn an_address_that_a_container_gives_itself_is_not_believed() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let _echo = Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004))]).unwrap();
    let stolen = lab.address("shop", false).unwrap();
    // What shop may do, web-other may not, whatever address it takes.
    lab.world.ip("web-other", &[format!("address add {stolen}/24 dev eth0")]).unwrap();
    let probes = [hydra_tests::probe::Probe {
        from: "web-other".into(),
        source: Some(stolen),
        to: lab.address("api", false).unwrap(),
        kind: Kind::Tcp(8004),
    }];
    let outcome = hydra_tests::probe::probe(&lab.world, &probes, hydra_tests::lab::SILENCE).unwrap();
    assert_eq!(outcome, [Outcome::TimedOut]);
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), false).unwrap(), Outcome::Answered);
    assert!(
        lab.dropped(&agent, "spoofed-address").unwrap() + lab.dropped(&agent, "spoofed-arp").unwrap() > 0
    );
    drop::<Agent>(agent);
}
