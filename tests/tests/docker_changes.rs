//! What changes on a host with Docker while hydra enforces: containers restart, come back at another address, and the engine
//! itself goes away and comes back.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hydra_tests::engine::container::{Attachment, Container};
use hydra_tests::engine::hydra::{APP, CLIENT, POSTGRES, REDIS, Stack};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Options, Version};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn changes_on_20() {
    changes(Version::V20);
}

#[test]
fn changes_on_28() {
    changes(Version::V28);
}

fn changes(version: Version) {
    let mut stack = Stack::start(version, Options { live_restore: true, ..Options::default() }).unwrap();
    stack.enforce().unwrap();
    a_restarted_container_is_what_it_was(&stack).unwrap();
    a_container_made_anew_elsewhere_is_what_its_name_says(&stack).unwrap();
    an_address_means_who_has_it_now(&stack).unwrap();
    the_engine_may_go_and_come_back(&mut stack).unwrap();
    the_agent_may_die_and_come_back(&mut stack).unwrap();
}

fn a_restarted_container_is_what_it_was(stack: &Stack) -> Result<()> {
    stack.engine.docker(&["restart", "--time", "1", POSTGRES])?;
    stack.engine.exec_until(POSTGRES, &["psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1"])?;
    let address = stack.address(POSTGRES, "hydra-databases")?;
    stack.engine.psql(CLIENT, &address)?.unwrap();
    let said = stack.engine.psql(APP, &address)?.unwrap_err();
    ensure!(said.contains("timeout expired"), "{said}");
    Ok(())
}

fn a_container_made_anew_elsewhere_is_what_its_name_says(stack: &Stack) -> Result<()> {
    stack.engine.remove_container(REDIS)?;
    stack.engine.add_container(&container(REDIS, "hydra-databases", "172.30.3.200", "redis"))?;
    stack.engine.exec_until(REDIS, &["redis-cli", "ping"])?;
    let ping = ["timeout", "3", "redis-cli", "-h", "172.30.3.200", "ping"];
    let said = stack.engine.exec_until(CLIENT, &ping)?;
    ensure!(said == "PONG", "{said}");
    ensure!(stack.engine.exec(APP, &ping)?.status.code() == Some(124), "an app reached redis");
    let endpoints = stack.agent()?.json(stack.world(), &["endpoints"])?;
    let found = rows(
        &endpoints,
        &[("container", REDIS), ("address", "172.30.3.200"), ("tier", "databases"), ("service", "redis")],
    )?;
    ensure!(found.len() == 1, "{endpoints:#}");
    Ok(())
}

/// A container of another tier that takes over an address has its own rights there, not those of who had it before.
fn an_address_means_who_has_it_now(stack: &Stack) -> Result<()> {
    let (engine, postgres) = (&stack.engine, stack.address(POSTGRES, "hydra-databases")?);
    engine.add_container(&container("hyborrower", "hydra-ai-services", "172.30.1.200", "nothing"))?;
    engine.exec_until("hyborrower", &["psql", "-h", &postgres, "-U", "postgres", "-c", "select 1"])?;
    engine.docker(&["network", "disconnect", "hydra-ai-services", "hyborrower"])?;
    engine.docker(&["network", "connect", "hydra-apps", "hyborrower"])?;
    let since = Instant::now();
    // Not at once allowed again by something that is left of its former life.
    while since.elapsed() < Duration::from_secs(4) {
        let said = engine.psql("hyborrower", &postgres)?;
        ensure!(said.is_err(), "an app reached postgres by the rights of a former address");
    }
    engine.remove_container("hyborrower")
}

/// The daemon is killed under a live flow. Verdicts and flows stay; a container that was started meanwhile is closed; and with
/// the daemon back, everything is as before.
fn the_engine_may_go_and_come_back(stack: &mut Stack) -> Result<()> {
    let redis: SocketAddr = "172.30.3.200:6379".parse()?;
    let postgres: SocketAddr = format!("{}:5432", stack.address(POSTGRES, "hydra-databases")?).parse()?;
    stack.engine.adopt(REDIS)?;
    stack.engine.adopt(POSTGRES)?;
    let mut stream =
        stack.world().enter(CLIENT, || TcpStream::connect_timeout(&redis, Duration::from_secs(5)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    ping(&mut stream)?;

    stack.engine.kill_daemon()?;
    wait(stack, |docker| docker != "up")?;
    ping(&mut stream)?;
    let connect = |from: &str, to: SocketAddr| {
        stack
            .world()
            .enter(from, || TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|e| e.kind()))
    };
    ensure!(connect(CLIENT, postgres)?.is_ok(), "what is allowed is not with the engine away");
    ensure!(
        connect(APP, postgres)?.is_err_and(|kind| kind == std::io::ErrorKind::TimedOut),
        "what is denied is not with the engine away"
    );
    let flows = stack.agent()?.json(stack.world(), &["flows"])?;
    let found = rows(
        &flows,
        &[("source_container", CLIENT), ("destination", "172.30.3.200"), ("rule", "db-clients")],
    )?;
    ensure!(found.iter().any(|flow| flow["state"] == "established"), "{flows:#}");

    stack.engine.start_daemon()?;
    wait(stack, |docker| docker == "up")?;
    ping(&mut stream)?;
    stack.engine.psql(CLIENT, &postgres.ip().to_string())?.unwrap();
    let said = stack.engine.psql(APP, &postgres.ip().to_string())?.unwrap_err();
    ensure!(said.contains("timeout expired"), "{said}");
    ping(&mut stream)
}

/// The agent is killed under a live flow, which stays; a container that starts meanwhile is closed, whatever its network, until
/// the agent is back.
fn the_agent_may_die_and_come_back(stack: &mut Stack) -> Result<()> {
    let redis: SocketAddr = "172.30.3.200:6379".parse()?;
    let postgres = stack.address(POSTGRES, "hydra-databases")?;
    let mut stream =
        stack.world().enter(CLIENT, || TcpStream::connect_timeout(&redis, Duration::from_secs(5)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    ping(&mut stream)?;
    stack.take_agent()?.kill()?;
    ping(&mut stream)?;
    stack.engine.add_container(&container("hylate", "hydra-ai-services", "172.30.1.201", "nothing"))?;
    let said = stack.engine.psql("hylate", &postgres)?.unwrap_err();
    ensure!(said.contains("timeout expired"), "a container that nobody knew yet: {said}");
    stack.engine.psql(CLIENT, &postgres)?.unwrap();
    let said = stack.engine.psql(APP, &postgres)?.unwrap_err();
    ensure!(said.contains("timeout expired"), "{said}");

    stack.enforce()?;
    ping(&mut stream)?;
    stack.engine.psql("hylate", &postgres)?.unwrap();
    let flows = stack.agent()?.json(stack.world(), &["flows"])?;
    let port = stream.local_addr()?.port().to_string();
    let found =
        rows(&flows, &[("source_port", &port), ("source_container", CLIENT), ("state", "established")])?;
    // SYN, its acknowledgement, and three requests at least: the count went on while nobody was there to read it.
    ensure!(found.len() == 1 && found[0]["packets"].as_u64() >= Some(5), "{flows:#}");
    stack.engine.remove_container("hylate")
}

fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut said = [0; 7];
    stream.read_exact(&mut said)?;
    ensure!(&said == b"+PONG\r\n", "redis said {said:?}");
    Ok(())
}

fn wait(stack: &Stack, is_it: impl Fn(&str) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = stack.agent()?.json(stack.world(), &["status"])?;
        if is_it(status["docker"]["state"].as_str().unwrap_or_default()) {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "the agent does not notice the engine: {status:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn container(name: &str, network: &str, address: &str, serve: &str) -> Container {
    let addresses = address.parse().into_iter().collect();
    let networks = vec![Attachment { network: network.to_owned(), addresses }];
    Container { networks, ..Container::new(name, &[], serve) }
}
