//! The life of the agent: its first start, its death, its return, and what it leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on ends here"
)]

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hydra_tests::agent::{Agent, purge, purge_with, write};
use hydra_tests::binary::binary;
use hydra_tests::topology::{Bridge, Container, HOST, Port, Topology};
use hydra_tests::world::World;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const TIERS: &str = "version: 1\nname: life\ntiers:\n  apps: { bridges: [hyapps] }\n  databases:\n    bridges: [hydbs]\n    services:\n      postgres: { containers: [hypg], ports: [tcp/5432] }\n";

fn policy(rules: &str) -> String {
    format!("{TIERS}rules:{rules}\n")
}

fn open() -> String {
    policy("\n  - { name: clients, from: apps, to: databases/postgres, ports: postgres }")
}

fn closed() -> String {
    policy(" []")
}

fn container(name: &str, bridge: &str, address: &str) -> Container {
    let port = Port { bridge: bridge.into(), addresses: vec![address.parse().unwrap()] };
    Container { name: name.into(), ports: vec![port] }
}

fn world() -> World {
    let bridge =
        |name: &str, address: &str| Bridge { name: name.into(), addresses: vec![address.parse().unwrap()] };
    World::build(&Topology {
        bridges: vec![bridge("hyapps", "10.93.1.1/24"), bridge("hydbs", "10.93.2.1/24")],
        containers: vec![
            container("hyweb", "hyapps", "10.93.1.2/24"),
            container("hypg", "hydbs", "10.93.2.2/24"),
        ],
        ..Topology::default()
    })
    .unwrap()
}

/// Waits for a condition of the published state.
fn until(agent: &Agent, world: &World, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let status = agent.json(world, &["status"]).unwrap();
        if holds(&status) {
            return status;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {status:#}\n{}", agent.log().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs the daemon to its end.
fn run(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("hydra-agent").unwrap());
    command.arg("run").args(Agent::directories(world)).args(arguments).env("HYDRA_CGROUP", "none");
    world.output(HOST, command).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn programs(status: &Value) -> Vec<(String, u64, u64)> {
    let hooks = status["hooks"].as_array().unwrap();
    hooks
        .iter()
        .map(|h| {
            let name = format!("{} {}", h["interface"].as_str().unwrap(), h["hook"].as_str().unwrap());
            (name, h["program_id"].as_u64().unwrap(), h["link_id"].as_u64().unwrap())
        })
        .collect()
}

fn pins(world: &World) -> Vec<String> {
    let root = world.bpffs().join("hydra");
    world
        .enter(HOST, || {
            let Ok(entries) = std::fs::read_dir(&root) else { return Vec::new() };
            entries.flatten().map(|e| e.path().display().to_string()).collect()
        })
        .unwrap()
}

fn is_there(world: &World, path: &Path) -> bool {
    world.enter(HOST, || path.exists()).unwrap()
}

fn routes(world: &World, place: &str) -> String {
    let mut command = Command::new("ip");
    command.args(["route", "show", "proto", "104"]);
    String::from_utf8(world.output(place, command).unwrap().stdout).unwrap()
}

#[test]
fn a_return_changes_nothing_whatever_the_file_says() {
    let world = world();
    let agent = Agent::start(&world, &open()).unwrap();
    let first = agent.json(&world, &["status"]).unwrap();
    assert_eq!((first["revision"].as_u64(), first["policy"].as_str()), (Some(1), Some("life")));
    assert_eq!(first["not_enforced"], Value::Array(vec![]), "{first:#}");
    agent.apply(&world, &closed()).unwrap();
    let before = agent.json(&world, &["status"]).unwrap();
    let endpoints = agent.json(&world, &["endpoints"]).unwrap();
    agent.kill().unwrap();

    // The file is as it was when it was taken over: what was applied after it stays.
    let agent = Agent::start(&world, &open()).unwrap();
    let after = agent.json(&world, &["status"]).unwrap();
    assert_eq!(after["revision"], 2);
    assert_eq!(after["generation"], before["generation"], "nothing was written anew");
    assert_eq!(programs(&after), programs(&before), "the same programs under the same links");
    assert_eq!(agent.json(&world, &["endpoints"]).unwrap(), endpoints, "the same numbers");
    agent.stop().unwrap();

    // A changed file is taken over.
    let agent = Agent::start(&world, &format!("{}# changed\n", open())).unwrap();
    assert_eq!(agent.json(&world, &["status"]).unwrap()["revision"], 3);
    let history = agent.json(&world, &["policy", "history"]).unwrap();
    let by: Vec<&str> = history.as_array().unwrap().iter().map(|r| r["by"].as_str().unwrap()).collect();
    assert_eq!((by[0], by[2]), ("--policy", "--policy"), "{history:#}");
}

#[test]
fn a_bad_policy_at_the_first_start_touches_nothing_and_later_changes_nothing() {
    let world = world();
    write(&world, "bad.yaml", "version: 1\ntiers:\n  apps: { bridge: [hyapps] }\nrules: []\n").unwrap();
    let bad = world.scratch("bad.yaml").display().to_string();
    let output = run(&world, &["--policy", &bad]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("bad.yaml:3:11") && said(&output).contains("bridge"), "{}", said(&output));
    assert_eq!(pins(&world), [""; 0]);

    write(&world, "nowhere.yaml", &open().replace("hydbs", "hynone")).unwrap();
    let output = run(&world, &["--policy", &world.scratch("nowhere.yaml").display().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("error: tier `databases` is nowhere on this host: bridge hynone"),
        "{}",
        said(&output)
    );
    assert_eq!(pins(&world), [""; 0]);

    let output = run(&world, &["--policy", "/nonexistent/hy.yaml"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(
        said(&output),
        "error: the policy file `/nonexistent/hy.yaml` cannot be read: No such file or directory\n\nhint: `ls -l /nonexistent/hy.yaml`\n"
    );
    let socket = world.scratch("run").join("agent.sock");
    assert!(!is_there(&world, &socket), "nobody is to knock where nobody is");

    Agent::start(&world, &open()).unwrap().stop().unwrap();
    let agent = Agent::start_with(&world, &["--policy", &bad]).unwrap();
    let status = agent.json(&world, &["status"]).unwrap();
    assert_eq!(status["revision"], 1, "the last good one stays");
    assert_eq!(status["healthy"], false);
    assert_eq!(status["not_enforced"][0]["what"], "policy file", "{status:#}");

    // A good apply is the end of the complaint.
    agent.apply(&world, &closed()).unwrap();
    let status = agent.json(&world, &["status"]).unwrap();
    assert_eq!(
        (status["revision"].as_u64(), status["healthy"].as_bool()),
        (Some(2), Some(true)),
        "{status:#}"
    );
}

#[test]
fn bad_settings_and_a_second_agent_are_refused_with_a_hint() {
    let world = world();
    write(&world, "agent.yaml", "routes: maybe\n").unwrap();
    let output = run(&world, &["--config", &world.scratch("agent.yaml").display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("agent.yaml:1:9") && said(&output).contains('^'), "{}", said(&output));

    let mut command = Command::new(binary("hydra-agent").unwrap());
    command.arg("run").args(Agent::directories(&world)).env("HYDRA_CGROUP", "none").uid(65534);
    let output = world.output(HOST, command).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).starts_with("error: the agent lacks CAP_NET_ADMIN and CAP_SYS_ADMIN\n"),
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("\nhint: run it as root"), "{}", said(&output));

    let agent = Agent::start(&world, &open()).unwrap();
    let output = run(&world, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("error: another agent ") && said(&output).contains("hint: "),
        "{}",
        said(&output)
    );
    let elsewhere = world.scratch("other-run").display().to_string();
    let output = run(&world, &["--run-dir", &elsewhere]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("another agent uses the state directory"), "{}", said(&output));
    let output = purge(&world).unwrap();
    assert_eq!(output.status.code(), Some(2), "not under a living agent");
    assert_eq!(agent.json(&world, &["status"]).unwrap()["healthy"], true);
}

#[test]
fn sighup_takes_the_file_over_and_sigterm_leaves_everything() {
    let world = world();
    let mut agent = Agent::start(&world, &open()).unwrap();
    let pid = Pid::from_raw(agent.pid().cast_signed());
    write(&world, "policy.yaml", &closed()).unwrap();
    kill(pid, Signal::SIGHUP).unwrap();
    until(&agent, &world, "the new revision", |s| s["revision"] == 2);
    write(&world, "policy.yaml", "version: 2\n").unwrap();
    kill(pid, Signal::SIGHUP).unwrap();
    let status = until(&agent, &world, "the complaint", |s| s["healthy"] == false);
    assert_eq!(status["revision"], 2);
    write(&world, "policy.yaml", &open()).unwrap();
    kill(pid, Signal::SIGHUP).unwrap();
    let status = until(&agent, &world, "the next revision", |s| s["revision"] == 3);
    assert_eq!(status["healthy"], true, "{status:#}");
    assert!(agent.runs());
    agent.stop().unwrap();
    assert_eq!(pins(&world).len(), 1, "enforcement stays");
    assert!(!is_there(&world, &world.scratch("run").join("agent.sock")));

    let elsewhere = world.bpffs().join("other").display().to_string();
    let output = purge_with(&world, &["--bpffs", &elsewhere]).unwrap();
    assert_eq!(output.status.code(), Some(2), "enforcement goes on: {}", said(&output));
    assert!(
        said(&output).starts_with("error: hydra still enforces on `") && said(&output).contains(&elsewhere),
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("\nhint: give the flags that the agent ran with"), "{}", said(&output));
    assert_eq!(pins(&world).len(), 1);

    let output = purge(&world).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(pins(&world), [""; 0]);
    let output = purge(&world).unwrap();
    assert_eq!(output.status.code(), Some(0), "nothing to do is fine: {}", said(&output));
    assert!(said(&output).starts_with("nothing to remove: "), "{}", said(&output));
}

#[test]
fn a_new_container_is_seen_at_once_and_a_gone_one_forgotten() {
    let mut world = world();
    let agent = Agent::start(&world, &open()).unwrap();
    let tier = |agent: &Agent, world: &World, name: &str| {
        let all = agent.json(world, &["endpoints"]).unwrap();
        let found = all.as_array().unwrap().iter().find(|e| e["container"] == name).cloned();
        found.map(|e| (e["tier"].as_str().unwrap().to_owned(), e["attached"] == true))
    };
    let there = Some(("databases".to_owned(), true));
    world.add_container(&container("hynew", "hydbs", "10.93.2.9/24")).unwrap();
    until(&agent, &world, "the new container", |_| tier(&agent, &world, "hynew") == there);
    world.remove_container("hynew").unwrap();
    until(&agent, &world, "its end", |_| tier(&agent, &world, "hynew").is_none());
    world.add_container(&container("hynew", "hydbs", "10.93.2.9/24")).unwrap();
    until(&agent, &world, "its like", |_| tier(&agent, &world, "hynew") == there);
    assert_eq!(agent.json(&world, &["status"]).unwrap()["healthy"], true);
}

#[test]
fn routes_come_and_go_with_the_rule_and_with_purge() {
    let world = world();
    // Containers of internal networks have no default route.
    for place in ["hyweb", "hypg"] {
        let mut command = Command::new("ip");
        command.args(["route", "del", "default"]);
        assert!(world.output(place, command).unwrap().status.success());
    }
    let agent = Agent::start(&world, &open()).unwrap();
    assert_eq!(routes(&world, "hyweb"), "10.93.2.0/24 via 10.93.1.1 dev eth0 \n");
    assert_eq!(routes(&world, "hypg"), "10.93.1.0/24 via 10.93.2.1 dev eth0 \n", "replies need one too");
    agent.apply(&world, &closed()).unwrap();
    assert_eq!((routes(&world, "hyweb"), routes(&world, "hypg")), (String::new(), String::new()));
    agent.apply(&world, &open()).unwrap();
    agent.stop().unwrap();
    assert_ne!(routes(&world, "hyweb"), "", "they stay without the agent");
    assert!(purge(&world).unwrap().status.success());
    assert_eq!((routes(&world, "hyweb"), routes(&world, "hypg")), (String::new(), String::new()));
}

#[test]
fn somebody_elses_hand_is_mended() {
    let world = world();
    let agent = Agent::start(&world, &open()).unwrap();
    let links = world.bpffs().join("hydra");
    let index = world.ifindex(HOST, &World::port_name("hypg", 0)).unwrap();
    let before = programs(&agent.json(&world, &["status"]).unwrap());
    let pin = links.join(format!("v{}/links/{index}-port-in", hydra_common::ABI));
    world.enter(HOST, || std::fs::remove_file(&pin)).unwrap().unwrap();
    let start = Instant::now();
    while !is_there(&world, &pin) {
        assert!(start.elapsed() < Duration::from_secs(20), "not mended\n{}", agent.log().join("\n"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = until(&agent, &world, "health", |s| s["healthy"] == true);
    assert_eq!(programs(&after).len(), before.len());
}

#[test]
fn the_service_manager_hears_ready_alive_and_stopping_in_this_order() {
    let world = world();
    write(&world, "policy.yaml", &open()).unwrap();
    let path = world.scratch("manager.sock");
    let socket = world.enter(HOST, || UnixDatagram::bind(&path)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Command::new(binary("hydra-agent").unwrap());
    command.arg("run").args(Agent::directories(&world));
    command.args(["--policy", &world.scratch("policy.yaml").display().to_string()]);
    command
        .env("HYDRA_CGROUP", "none")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "600000")
        .stderr(Stdio::null());
    let mut child = world.spawn(HOST, command).unwrap();
    let heard = |word: &str| {
        let mut message = [0; 4096];
        loop {
            let length = socket.recv(&mut message).unwrap_or_else(|e| panic!("{word} was not heard: {e}"));
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            let words: Vec<&str> = text.lines().collect();
            assert!(word != "READY=1" || !words.contains(&"WATCHDOG=1"), "alive before it was ready");
            if words.contains(&word) {
                return text;
            }
        }
    };
    assert!(heard("READY=1").contains("STATUS=enforcing life revision 1"));
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    heard("STOPPING=1");
    assert!(child.wait().unwrap().success());
}
