//! The Hydra stack on real engines with stock settings: PostgreSQL, Redis and nginx as servers, their own clients, and what
//! `hydractl` says of it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use hydra_tests::engine::hydra::{APP, CLIENT, GRAFANA, LITELLM, PAGES, POSTGRES, REDIS, Stack};
use hydra_tests::engine::stage::{self, Segments, rows};
use hydra_tests::engine::{Options, Version};

#[test]
fn the_stack_on_20() {
    the_stack(Version::V20, Options::default());
}

#[test]
fn the_stack_on_28() {
    the_stack(Version::V28, Options { bridge_netfilter: true, ..Options::default() });
}

fn the_stack(version: Version, options: Options) {
    let mut stack = Stack::start(version, options).unwrap();
    without_hydra_docker_closes_all_of_it(&stack).unwrap();
    stack.enforce().unwrap();
    ai_services_reach_postgres(&stack).unwrap();
    apps_do_not_reach_databases(&stack).unwrap();
    redis_and_pages_answer_whom_they_may(&stack).unwrap();
    replies_of_a_container_on_two_networks_leave_by_the_other(&stack).unwrap();
    counts_are_those_of_the_wire(&stack).unwrap();
}

/// The control: what hydra opens was closed before, so that it is hydra that is seen below.
fn without_hydra_docker_closes_all_of_it(stack: &Stack) -> Result<()> {
    let postgres = stack.address(POSTGRES, "hydra-databases")?;
    for from in [CLIENT, APP] {
        let said = stack.engine.psql(from, &postgres)?.unwrap_err();
        assert!(said.contains("timeout expired"), "{from}: {said}");
    }
    // Its second network is one that it shares with the client.
    stack.engine.psql(CLIENT, &stack.address(POSTGRES, "hydra-ai-services")?)?.unwrap();
    Ok(())
}

fn ai_services_reach_postgres(stack: &Stack) -> Result<()> {
    let agent = stack.agent()?;
    let postgres = stack.address(POSTGRES, "hydra-databases")?;
    stack.engine.psql(CLIENT, &postgres)?.unwrap();
    // By name, which Docker resolves to the address on the network that both are on.
    stack.engine.psql(CLIENT, POSTGRES)?.unwrap();
    let flows = agent.json(stack.world(), &["flows"])?;
    let found = rows(
        &flows,
        &[
            ("protocol", "tcp"),
            ("source_container", CLIENT),
            ("source_tier", "ai-services"),
            ("source_service", "letta"),
            ("destination_container", POSTGRES),
            ("destination_tier", "databases"),
            ("destination_service", "postgres"),
            ("destination", &postgres),
            ("destination_port", "5432"),
            ("verdict", "allowed"),
            ("rule", "db-clients"),
            ("revision", "1"),
        ],
    )?;
    assert_eq!(found.len(), 1, "{flows:#}");
    assert!(
        found[0]["packets"].as_u64() > Some(4) && found[0]["reply_packets"].as_u64() > Some(3),
        "{:#}",
        found[0]
    );
    stack.explains(
        "ai-services",
        "databases/postgres",
        "tcp/5432",
        0,
        &[("verdict", "allowed"), ("rule", "db-clients")],
    )
}

fn apps_do_not_reach_databases(stack: &Stack) -> Result<()> {
    let agent = stack.agent()?;
    let postgres = stack.address(POSTGRES, "hydra-databases")?;
    let said = stack.engine.psql(APP, &postgres)?.unwrap_err();
    assert!(said.contains("timeout expired"), "{said}");
    let drops = agent.json(stack.world(), &["drops"])?;
    let found = rows(
        &drops,
        &[
            ("verdict", "denied"),
            ("reason", "no-rule"),
            ("protocol", "tcp"),
            ("source_container", APP),
            ("source_tier", "apps"),
            ("source_service", "open-webui"),
            ("destination_container", POSTGRES),
            ("destination_tier", "databases"),
            ("destination_service", "postgres"),
            ("destination", &postgres),
            ("destination_port", "5432"),
            ("hook", "port-in"),
        ],
    )?;
    assert!(!found.is_empty(), "{drops:#}");
    let flows = agent.json(stack.world(), &["flows"])?;
    assert!(
        rows(&flows, &[("source_container", APP), ("destination_container", POSTGRES)])?.is_empty(),
        "{flows:#}"
    );
    stack.explains(
        "apps",
        "databases",
        "tcp/5432",
        1,
        &[("verdict", "denied"), ("reason", "no-rule"), ("rule", "")],
    )?;
    stack.explains(
        APP,
        POSTGRES,
        "tcp/5432",
        1,
        &[("verdict", "denied"), ("reason", "no-rule"), ("enforced", "true")],
    )
}

fn redis_and_pages_answer_whom_they_may(stack: &Stack) -> Result<()> {
    let (engine, redis) = (&stack.engine, stack.address(REDIS, "hydra-databases")?);
    let ping = ["timeout", "3", "redis-cli", "-h", &redis, "ping"];
    let said = engine.exec(CLIENT, &ping)?;
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "PONG");
    let said = engine.exec(APP, &ping)?;
    assert_eq!(said.status.code(), Some(124), "{}", String::from_utf8_lossy(&said.stdout));

    // An allowed flow keeps its addresses: nothing translates them on the way.
    let litellm = format!("http://{}:4000/", stack.address(LITELLM, "hydra-ai-services")?);
    let said = engine.exec(APP, &["curl", "-sS", "--max-time", "3", &litellm])?;
    let own = stack.address(APP, "hydra-apps")?;
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), format!("hydra-litellm {own}"));

    let pages = format!("http://{}/", stack.address(PAGES, "hydra-apps")?);
    let said = engine.exec(CLIENT, &["curl", "-sS", "--max-time", "3", &pages])?;
    assert_eq!(
        said.status.code(),
        Some(28),
        "curl says 28 for a time-out: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

/// Grafana is called at its address on hydra-infra, and answers by hydra-apps, where it shares a network with the caller.
fn replies_of_a_container_on_two_networks_leave_by_the_other(stack: &Stack) -> Result<()> {
    let address = stack.address(GRAFANA, "hydra-infra")?;
    let said =
        stack.engine.exec(APP, &["curl", "-sS", "--max-time", "3", &format!("http://{address}:3003/")])?;
    let own = stack.address(APP, "hydra-apps")?;
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), format!("hydra-grafana {own}"));
    let flows = stack.agent()?.json(stack.world(), &["flows"])?;
    let found = rows(&flows, &[("source_container", APP), ("destination", &address), ("rule", "telemetry")])?;
    assert_eq!(found.len(), 1, "{flows:#}");
    assert!(found[0]["reply_packets"].as_u64() > Some(3), "{:#}", found[0]);
    Ok(())
}

/// What the sender's own TCP says of its segments, and datagrams that are counted by hand.
fn counts_are_those_of_the_wire(stack: &Stack) -> Result<()> {
    let agent = stack.agent()?;
    let redis: SocketAddr = format!("{}:6379", stack.address(REDIS, "hydra-databases")?).parse()?;
    let (stream, segments, port) =
        stack.world().enter(CLIENT, || -> Result<(TcpStream, Segments, u16)> {
            let mut stream = TcpStream::connect_timeout(&redis, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            // Long enough both ways for segments that the sender merges, and the wire does not have merged.
            let long = "x".repeat(1_000_000);
            write!(stream, "*3\r\n$3\r\nSET\r\n$4\r\nlong\r\n$1000000\r\n{long}\r\n")?;
            let mut said = [0; 5];
            stream.read_exact(&mut said)?;
            assert_eq!(&said, b"+OK\r\n");
            write!(stream, "GET long\r\n")?;
            let mut said = vec![0; "$1000000\r\n\r\n".len() + long.len()];
            stream.read_exact(&mut said)?;
            let (segments, port) = (stage::segments(&stream)?, stream.local_addr()?.port());
            Ok((stream, segments, port))
        })??;
    let flows = agent.json(stack.world(), &["flows"])?;
    let found =
        rows(&flows, &[("source_port", &port.to_string()), ("destination", &redis.ip().to_string())])?;
    assert_eq!(found.len(), 1, "{flows:#}");
    let counted = |name: &str| found[0][name].as_u64();
    assert_eq!(
        (counted("packets"), counted("reply_packets")),
        (Some(segments.sent.into()), Some(segments.received.into())),
        "{:#}",
        found[0]
    );
    drop(stream);

    let echo: SocketAddr = format!("{}:7", stack.address(REDIS, "hydra-databases")?).parse()?;
    let server = stack.world().enter(REDIS, || UdpSocket::bind(("0.0.0.0", 7)))??;
    let client = stack.world().enter(CLIENT, || UdpSocket::bind(("0.0.0.0", 0)))??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let mut buffer = [0; 2000];
    for _ in 0..7 {
        client.send_to(&[1; 100], echo)?;
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(&[2; 300], from)?;
        client.recv_from(&mut buffer)?;
    }
    let port = client.local_addr()?.port().to_string();
    let flows = agent.json(stack.world(), &["flows"])?;
    let found =
        rows(&flows, &[("protocol", "udp"), ("source_port", &port), ("destination_container", REDIS)])?;
    assert_eq!(found.len(), 1, "{flows:#}");
    let (ours, theirs) = (14 + 20 + 8 + 100, 14 + 20 + 8 + 300);
    let wanted = [("packets", 7), ("bytes", 7 * ours), ("reply_packets", 7), ("reply_bytes", 7 * theirs)];
    for (name, wanted) in wanted {
        assert_eq!(found[0][name].as_u64(), Some(wanted), "{name}: {:#}", found[0]);
    }
    Ok(())
}
