//! The engines that the other Docker tests rest on: that they are the ones we mean, and what they do without hydra.

use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::{Engine, Options, Version};

#[test]
fn engine_20_comes_up_and_goes_away() {
    comes_up_and_goes_away(Version::V20, "20.10.");
}

#[test]
fn engine_28_comes_up_and_goes_away() {
    comes_up_and_goes_away(Version::V28, "28.");
}

fn comes_up_and_goes_away(version: Version, number: &str) {
    let engine = Engine::start(version, Options::default()).unwrap();
    let says = engine.docker(&["version", "--format", "{{.Server.Version}}"]).unwrap();
    assert!(says.starts_with(number), "{says}");
    engine.add_network(&Network::new("hydra-apps", &["172.30.2.0/24"])).unwrap();
    engine.add_container(&Container::new("web", &["hydra-apps"], "web 80")).unwrap();
    let said = engine.exec_until("web", &["curl", "-sS", "--max-time", "2", "http://web/"]).unwrap();
    assert_eq!(said, "web 172.30.2.2");
    eprintln!("{version:?} {says}");
}
