//! The loopback listener and the metrics on it.

use super::*;
use crate::inventory::snapshot::{DockerState, Snapshot};

/// The listener on a port of its own.
async fn listen(world: &World) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = world.app();
    tokio::spawn(listener::serve_on(listener, app, world.stop.clone()));
    address
}

#[tokio::test]
async fn the_listener_answers_get_for_this_host_alone() {
    let world = World::start(Published::default(), Memory::default());
    let address = listen(&world).await;
    let ask = |method, target, host: &'static str| async move {
        let stream = TcpStream::connect(address).await.unwrap();
        let (status, head, body) = exchange(stream, method, target, host, b"").await;
        (status, head, String::from_utf8(body).unwrap())
    };
    let (code, head, body) = ask("GET", "/metrics", "localhost").await;
    assert_eq!(code, 200, "{head}");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(body.ends_with("# EOF\n"));
    assert!(!head.to_lowercase().contains("access-control"), "no other origin may read it");
    for host in ["evil.example", "10.0.0.1:9473", ""] {
        assert_eq!(ask("GET", "/metrics", host).await.0, 421, "{host}");
    }
    assert_eq!(ask("GET", "http://evil.example/metrics", "localhost").await.0, 421);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
        let (code, head, _) = ask(method, "/metrics", "localhost").await;
        assert_eq!(code, 405, "{method}");
        assert!(head.contains("allow: GET"));
    }
    for target in ["/", "/v1/status", "/v1/policy/apply"] {
        assert_eq!(ask("GET", target, "localhost").await.0, 404, "{target}");
    }
    // Two Host headers are a trick, none is not HTTP/1.1.
    for head in ["host: localhost\r\nhost: evil.example\r\n", ""] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\n{head}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(answer(stream).await.0, 421);
    }
    world.end().await;
}

#[tokio::test]
async fn metrics_have_the_documented_names() {
    let counters = Counters {
        traffic: BTreeMap::from([
            ((1, 3, false), Count { packets: 5, bytes: 500 }),
            ((3, 2, true), Count { packets: 2, bytes: 200 }),
        ]),
        drops: BTreeMap::from([
            (drop_key(Tier(1), Reason::NoRule, Verdict::Denied, 0), Count { packets: 7, bytes: 700 }),
            (drop_key(Tier(1), Reason::Rule, Verdict::Denied, 1), Count { packets: 2, bytes: 200 }),
            (drop_key(Tier(1), Reason::Rule, Verdict::Denied, 2), Count { packets: 3, bytes: 300 }),
            (drop_key(Tier(3), Reason::NoRule, Verdict::Audited, 0), Count { packets: 2, bytes: 200 }),
        ]),
        gauges: {
            let mut gauges = [0; hydra_common::tables::GAUGES as usize];
            gauges[Gauge::EventsLost as usize] = 4;
            gauges
        },
        ..Counters::default()
    };
    let published = Published {
        endpoints: Arc::new(vec![
            endpoint("a", 1, "apps", "", "172.30.4.2"),
            endpoint("b", 2, "apps", "", "172.30.4.3"),
            endpoint("we\"ird\n", 3, "databases", "", "172.30.3.2"),
        ]),
        flow_capacity: 65_536,
        attach_seconds: vec![0.0004, 0.02, 0.02, 9.0],
        ..Published::default()
    };
    let tables = Memory { counters: Mutex::new(counters), ..Memory::default() };
    let world = World::start(published, tables);
    let app = world.app();
    app.memory.seen(&world.state.borrow());
    insta::assert_snapshot!(metrics::scrape(&app).await.unwrap());
    world.end().await;
}

#[tokio::test]
async fn whether_docker_answers_is_a_metric_where_it_is_asked() {
    for (docker, expected) in [
        (DockerState::Off, None),
        (DockerState::Up { version: "28.5.2".into() }, Some("hydra_docker_up 1")),
        (DockerState::Down { error: "connection refused".into() }, Some("hydra_docker_up 0")),
    ] {
        let snapshot = Arc::new(Snapshot { docker, ..Snapshot::default() });
        let world = World::start(Published { snapshot, ..Published::default() }, Memory::default());
        let app = world.app();
        let text = metrics::scrape(&app).await.unwrap();
        assert_eq!(text.lines().find(|l| l.starts_with("hydra_docker_up ")), expected);
        world.end().await;
    }
}

#[tokio::test]
async fn metrics_of_unreadable_tables_are_left_out_not_zero() {
    let world = World::start(Published::default(), Memory { broken: true, ..Memory::default() });
    let app = world.app();
    let text = metrics::scrape(&app).await.unwrap();
    assert!(text.contains("hydra_enforcement_ok 0\n"), "{text}");
    assert!(!text.contains("hydra_flows "), "{text}");
    assert!(!text.contains("hydra_packets_total"), "{text}");
    world.end().await;
}

fn drop_key(source: Tier, reason: Reason, verdict: Verdict, rule: u16) -> DropKey {
    DropKey { source, destination: Tier::UNMANAGED, reason: reason as u8, verdict: verdict as u8, rule }
}
