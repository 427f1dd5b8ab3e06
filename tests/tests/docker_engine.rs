//! The engines that the other Docker tests rest on: that they are the ones we mean, and what they do without hydra.

use anyhow::Result;
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::Topology;

#[test]
fn engine_20_comes_up_with_a_container_that_serves() {
    comes_up(Version::V20, "20.10.").unwrap();
}

#[test]
fn engine_28_comes_up_with_a_container_that_serves() {
    comes_up(Version::V28, "28.").unwrap();
}

fn comes_up(version: Version, number: &str) -> Result<()> {
    let engine = Engine::start(version, Options::default(), &Topology::default())?;
    let says = engine.docker(&["version", "--format", "{{.Server.Version}}"])?;
    assert!(says.starts_with(number), "{says}");
    engine.add_network(&Network::new("hydra-apps", &["172.30.2.1/24"]))?;
    engine.add_container(&Container::new("web", &["hydra-apps"], "web 80"))?;
    let said = engine.exec_until("web", &["curl", "-sS", "--max-time", "2", "http://web/"])?;
    assert_eq!(said, "web 172.30.2.2");
    Ok(())
}
