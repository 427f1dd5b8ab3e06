//! Processes of real containers: what could only be denied is refused at once, by name; what is allowed goes on.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use anyhow::{Result, ensure};
use hydra_tests::engine::container::{Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version, user};

const POLICY: &str = "
version: 1
name: processes
tiers:
  apps: { networks: [hyapps] }
  databases: { networks: [hydatabases] }
  edges: { services: { edge: { containers: [edge] } } }
rules:
  - { name: pages, from: apps, to: databases, ports: [tcp/80] }
  - { name: users, from: external, to: edges, ports: [tcp/8090] }
";

/// What `curl` ends with when the kernel refuses the connection, and when nobody answers.
const REFUSED: i32 = 7;

#[test]
fn processes_on_20() {
    processes(Version::V20).unwrap();
}

#[test]
fn processes_on_28() {
    processes(Version::V28).unwrap();
}

fn processes(version: Version) -> Result<()> {
    let engine = Engine::start(version, Options::default(), &user::around()?)?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    engine.add_network(&Network::new("hydatabases", &["172.31.2.1/24"]))?;
    engine.add_container(&Container::new("page", &["hyapps"], "web 80"))?;
    engine.add_container(&Container::new("store", &["hydatabases"], "web 80 81"))?;
    engine.add_container(&Container::new("edge", &[], "web 8090 8091").options(&["--network=host"]))?;
    engine.exec_until("edge", &["curl", "-sS", "http://127.0.0.1:8090/"])?;
    for container in ["page", "store"] {
        engine.exec_until(container, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    let store = engine.address("store", "hydatabases")?;
    let get = |port: u16| -> Result<(Option<i32>, String)> {
        let url = format!("http://{store}:{port}/");
        let said = engine.exec("page", &["curl", "-sS", "--max-time", "3", &url])?;
        Ok((said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned()))
    };
    let (before, _) = get(81)?;
    ensure!(before != Some(REFUSED), "refused without hydra");
    let from_edge = |port: u16| -> Result<Option<i32>> {
        let url = format!("http://{store}:{port}/");
        Ok(engine.exec("edge", &["curl", "-sS", "--max-time", "3", &url])?.status.code())
    };
    ensure!(from_edge(80)? == Some(0), "the host's network does not reach the store without hydra");
    for port in [8090, 8091] {
        ensure!(user::get(&engine, port)?.is_some(), "{port} is closed without hydra");
    }

    let agent = engine.agent_on_processes(POLICY)?;
    let status = agent.json(engine.world(), &["status"])?;
    let hooks = rows(&status["hooks"], &[("mechanism", "cgroup")])?;
    ensure!(hooks.len() == 6, "{status:#}");
    ensure!(status["not_enforced"].as_array().is_some_and(Vec::is_empty), "{status:#}");
    let (code, said) = get(80)?;
    ensure!(code == Some(0) && said.starts_with("store "), "allowed, and {code:?} {said}");
    let (code, said) = get(81)?;
    ensure!(code == Some(REFUSED), "denied, and {code:?} {said}");
    let drops = agent.json(engine.world(), &["drops"])?;
    let wanted = [
        ("hook", "connect"),
        ("reason", "no-rule"),
        ("source_container", "page"),
        ("source_tier", "apps"),
        ("destination_container", "store"),
        ("destination_port", "81"),
        ("interface", ""),
    ];
    let refused = rows(&drops, &wanted)?;
    ensure!(!refused.is_empty(), "{drops:#}");
    // A container of the host's network is its service's, and no longer the host.
    ensure!(from_edge(80)? == Some(REFUSED), "the edge is still the host");
    ensure!(user::get(&engine, 8090)?.is_some(), "allowed from outside");
    ensure!(user::get(&engine, 8091)?.is_none(), "denied from outside");
    ensure!(refused[0]["process"].as_str().is_some_and(|p| p.starts_with("curl[")), "{drops:#}");
    Ok(())
}
