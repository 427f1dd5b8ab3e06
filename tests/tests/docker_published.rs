//! Published ports on a real engine: who comes from outside is `external` to hydra, whichever way Docker lets him in.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version, user};

const POLICY: &str = "
version: 1
name: published
tiers:
  apps: { networks: [hyapps] }
  databases: { networks: [hydatabases] }
rules:
  - { name: users, from: external, to: apps, ports: [tcp/80] }
";

const ALWAYS: &str = "--restart=always";
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn published_ports_on_20() {
    published_ports(Version::V20).unwrap();
}

#[test]
fn published_ports_on_28() {
    published_ports(Version::V28).unwrap();
}

fn published_ports(version: Version) -> Result<()> {
    let engine = Engine::start(version, Options::default(), &user::around()?)?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    engine.add_network(&Network::new("hydatabases", &["172.31.2.1/24"]))?;
    engine.add_container(
        &Container::new("page", &["hyapps"], "web 80").options(&["--publish=8080:80", ALWAYS]),
    )?;
    engine.add_container(
        &Container::new("store", &["hydatabases"], "web 80").options(&["--publish=8081:80", ALWAYS]),
    )?;
    for container in ["page", "store"] {
        engine.exec_until(container, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    for port in [8080, 8081] {
        ensure!(user::get(&engine, port)?.is_some(), "{port} is closed before hydra");
    }
    ensure!(through_the_gateway(&engine)?, "Docker no longer lets a container through a published port");
    let agent = engine.agent(POLICY)?;
    let said = user::get(&engine, 8080)?;
    ensure!(said.as_deref() == Some("page 198.51.100.2"), "{said:?}; {}", agent.log().join("\n"));
    ensure!(user::get(&engine, 8081)?.is_none(), "a user reached the store");
    let drops = agent.json(engine.world(), &["drops"])?;
    let wanted = [
        ("reason", "no-rule"),
        ("source_tier", "external"),
        ("source", "198.51.100.2"),
        ("destination_container", "store"),
        ("destination_port", "8081"),
        ("hook", "uplink-in"),
    ];
    ensure!(!rows(&drops, &wanted)?.is_empty(), "{drops:#}");
    let flows = agent.json(engine.world(), &["flows"])?;
    let wanted = [("source_tier", "external"), ("destination_container", "page"), ("rule", "users")];
    ensure!(!rows(&flows, &wanted)?.is_empty(), "{flows:#}");
    ensure!(
        !through_the_gateway(&engine)?,
        "a container of another tier reached the store by its published port"
    );

    // With stock settings everything ends with the daemon, and comes back on ports that are new to everybody.
    engine.stop_daemon()?;
    engine.start_daemon()?;
    for container in ["page", "store"] {
        engine.exec_until(container, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    let start = Instant::now();
    while user::get(&engine, 8080)?.as_deref() != Some("page 198.51.100.2") {
        ensure!(start.elapsed() < PATIENCE, "the page did not come back; {}", agent.log().join("\n"));
    }
    ensure!(user::get(&engine, 8081)?.is_none(), "a user reached the store after a restart of the engine");
    Ok(())
}

/// Whether one network's container reaches the other's by the host's address and the published port.
fn through_the_gateway(engine: &Engine) -> Result<bool> {
    let said = engine.exec("page", &["curl", "-sS", "--max-time", "2", "http://172.31.1.1:8081/"])?;
    Ok(String::from_utf8_lossy(&said.stdout).starts_with("store "))
}
