//! Where clients of published ports come in: which interfaces carry the program, and that nothing else is touched there.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use hydra_tests::agent::{Agent, write};
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, probe};
use hydra_tests::sample;
use hydra_tests::topology::HOST;

/// The bridge of the world that no tier has: it is no uplink, and covered whatever the settings say.
const UNMANAGED: &str = "hyother";

/// The interfaces that carry the program, by name.
fn uplinks(lab: &Lab, agent: &Agent) -> Vec<String> {
    let status = agent.json(&lab.world, &["status"]).unwrap();
    let hooks = status["hooks"].as_array().unwrap().iter().filter(|h| h["hook"] == "uplink-in");
    let mut names: Vec<String> = hooks.map(|h| h["interface"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn sessions_to_the_host_itself_are_not_touched() {
    let lab = Lab::of(&sample::policy()).unwrap();
    let echo = Echo::start(&lab.world, &[(HOST.to_owned(), Kind::Tcp(22)), (HOST.to_owned(), Kind::Udp(53))])
        .unwrap();
    let agent = Agent::start(&lab.world, &sample::policy()).unwrap();
    assert_eq!(uplinks(&lab, &agent), [UNMANAGED, "hyup0"]);
    let uplink: Vec<_> = lab.deployment.topology.uplink.iter().map(ipnet::IpNet::addr).collect();
    assert!(!uplink.is_empty());
    for to in uplink {
        for kind in [Kind::Tcp(22), Kind::Udp(53), Kind::Ping] {
            let one = [Probe { from: "outside".to_owned(), source: None, to, kind }];
            let said = probe(&lab.world, &one, hydra_tests::lab::SILENCE).unwrap();
            assert_eq!(said, [Outcome::Answered], "{to} {kind:?}");
        }
    }
    let drops = agent.json(&lab.world, &["drops"]).unwrap();
    let drops = drops.as_array().unwrap().iter().filter(|d| d["hook"] == "uplink-in");
    assert_eq!(drops.count(), 0);
    drop(echo);
}

#[test]
fn named_uplinks_are_covered_as_soon_as_they_are_there() {
    let lab = Lab::of(&sample::policy()).unwrap();
    write(&lab.world, "agent.yaml", "uplinks: [hylate, hyup9]\n").unwrap();
    write(&lab.world, "policy.yaml", &sample::policy()).unwrap();
    let path = |name: &str| lab.world.scratch(name).to_string_lossy().into_owned();
    let (config, policy) = (path("agent.yaml"), path("policy.yaml"));
    let agent = Agent::start_with(&lab.world, &["--config", &config, "--policy", &policy]).unwrap();
    assert_eq!(uplinks(&lab, &agent), [UNMANAGED], "hyup0 is not named");
    let rename = |from: &str, to: &str| {
        let lines = [
            format!("link set {from} down"),
            format!("link set {from} name {to}"),
            format!("link set {to} up"),
        ];
        lab.world.ip(HOST, &lines).unwrap();
    };
    rename("hyup0", "hylate");
    assert!(eventually(|| uplinks(&lab, &agent) == ["hylate", UNMANAGED]), "{:?}", uplinks(&lab, &agent));
    rename("hylate", "hyup0");
    assert!(eventually(|| uplinks(&lab, &agent) == [UNMANAGED]), "{:?}", uplinks(&lab, &agent));
    let status = agent.json(&lab.world, &["status"]).unwrap();
    assert_eq!(status["healthy"], true, "{status:#}");
}

#[test]
fn uplinks_that_are_no_names_of_interfaces_are_refused_with_their_place() {
    let lab = Lab::of(&sample::policy()).unwrap();
    write(&lab.world, "agent.yaml", "uplinks:\n  - eth0\n  - this/is/none\n").unwrap();
    let config = lab.world.scratch("agent.yaml").to_string_lossy().into_owned();
    let Err(error) = Agent::start_with(&lab.world, &["--config", &config]) else {
        unreachable!("it started")
    };
    let said = format!("{error:#}");
    assert!(said.contains("`this/is/none` is none"), "{said}");
}
