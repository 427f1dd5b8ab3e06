//! The API on a real unix socket and a real listener, over tables in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hydra_common::address::Address;
use hydra_common::event::Event;
use hydra_common::flow::{Flow, FlowKey, Side};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::tables::{Count, DropKey, Gauge};
use hydra_common::verdict::{Reason, Verdict};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::policy::rows::Owner;
use crate::published::{
    ApplyError, ApplyReport, Command, Counters, EndpointView, NotEnforced, Published, Reader,
};

mod listening;
mod naming;
mod requests;

/// Half past nine on a Saturday; the monotonic clock was at 100 s.
const NOW: (u64, i128) = (100_000_000_000, 1_795_253_400_000_000_000);

/// Tables in memory.
#[derive(Default)]
struct Memory {
    flows: Vec<(FlowKey, Flow)>,
    counters: Mutex<Counters>,
    broken: bool,
}

impl Reader for Memory {
    fn each_flow(&self, see: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("no such map"));
        }
        self.flows.iter().for_each(|(key, flow)| see(key, flow));
        Ok(())
    }
    fn counters(&self) -> io::Result<Counters> {
        if self.broken {
            Err(io::Error::other("no such map"))
        } else {
            Ok(self.counters.lock().unwrap().clone())
        }
    }
    fn clocks(&self) -> (u64, i128) {
        NOW
    }
}

/// An agent's API without an agent.
struct World {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    state: watch::Sender<Arc<Published>>,
    commands: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

fn limits() -> Limits {
    Limits {
        header: Duration::from_millis(300),
        body: Duration::from_millis(300),
        body_size: 4096,
        connections: 8,
    }
}

impl World {
    fn start(published: Published, tables: Memory) -> Self {
        Self::over(published, Arc::new(tables))
    }

    fn over(published: Published, tables: Arc<Memory>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("hya")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let stop = CancellationToken::new();
        let (state, receiver) = watch::channel(Arc::new(published));
        let (sender, commands) = mpsc::channel(4);
        let (events, _) = broadcast::channel(16);
        let handle = Handle { state: receiver, commands: sender, reader: tables, events: events.clone() };
        let socket = ControlSocket::bind(dir.path()).unwrap();
        let options = Options { listen: None, limits: limits() };
        let task = tokio::spawn(serve(socket, options, handle.clone(), stop.clone()));
        Self { dir, stop, state, commands, events, handle, task }
    }

    fn path(&self) -> PathBuf {
        socket_path(self.dir.path())
    }

    /// What the routes work on, beside the server's own.
    fn app(&self) -> Arc<App> {
        Arc::new(App {
            handle: self.handle.clone(),
            memory: memory::Memory::default(),
            limits: limits(),
            stop: self.stop.clone(),
        })
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    /// Status and body of a request; the body as JSON.
    async fn ask(&self, method: &str, target: &str, body: &[u8]) -> (u16, Value) {
        let (status, head, body) = exchange(self.connect().await, method, target, "agent", body).await;
        assert!(
            head.contains(&format!("hydra-abi: {}", hydra_common::ABI)),
            "every answer says who answers: {head}"
        );
        (status, serde_json::from_slice(&body).unwrap_or(Value::String(String::from_utf8(body).unwrap())))
    }

    async fn get(&self, target: &str) -> Value {
        let (status, body) = self.ask("GET", target, b"").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The drops, once there are so many: they are kept as they come, not when they are asked for.
    async fn drops(&self, n: usize) -> Value {
        loop {
            let drops = self.get("/v1/drops").await;
            if drops.as_array().unwrap().len() >= n {
                return drops;
            }
        }
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap();
        assert!(!socket_path(self.dir.path()).exists());
    }
}

async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    method: &str,
    target: &str,
    host: &str,
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The other end may have said no before it has read everything.
    let _ = stream.write_all(body).await;
    answer(stream).await
}

async fn answer(mut stream: impl tokio::io::AsyncRead + Unpin) -> (u16, String, Vec<u8>) {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP answer");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, bytes[end + 4..].to_vec())
}

fn endpoint(container: &str, number: u32, tier: &str, service: &str, address: &str) -> EndpointView {
    EndpointView {
        container: container.into(),
        number: Container(number),
        owner: Owner::Tier(tier.into()),
        tier: tier.into(),
        service: service.into(),
        network: format!("hydra-{tier}"),
        bridge: "hybr0".into(),
        port: format!("hyve{number}"),
        mac: "02:00:00:00:00:01".into(),
        address: address.into(),
        identity: Identity(4),
        attached: true,
    }
}

fn v4(text: &str) -> Address {
    Address::v4(text.parse::<std::net::Ipv4Addr>().unwrap().octets())
}

fn event(source: &str, port: u16, verdict: Verdict) -> Event {
    Event {
        time: NOW.0 - 1_500_000_000,
        source: v4(source),
        destination: v4("172.30.3.10"),
        source_port: 40_000,
        destination_port: port,
        source_identity: Identity::UNMANAGED,
        destination_identity: Identity::HOST,
        source_container: Container(7),
        protocol: 6,
        ethertype: 0x0800,
        verdict: verdict as u8,
        reason: Reason::NoRule as u8,
        hook: 0,
        length: 74,
        ..Event::default()
    }
}

#[tokio::test]
async fn status_says_that_there_is_no_policy_yet() {
    let world = World::start(Published::default(), Memory::default());
    let status = world.get("/v1/status").await;
    assert_eq!(status["healthy"], false);
    assert_eq!(status["mode"], "none");
    assert_eq!(
        status["not_enforced"],
        json!([{ "what": "policy", "why": "none has been applied: nothing is managed" }])
    );
    assert_eq!(status["docker"]["state"], "off");
    let (code, body) = world.ask("GET", "/v1/policy", b"").await;
    assert_eq!((code, &body["error"]), (409, &json!("the agent has no policy yet")));
    world.end().await;
}

#[tokio::test]
async fn status_is_not_healthy_while_something_is_not_enforced_or_tables_cannot_be_read() {
    let published = Published {
        not_enforced: vec![NotEnforced { what: "hyve9".into(), why: "the kernel refused".into() }],
        ..Published::default()
    };
    let world = World::start(published, Memory { broken: true, ..Memory::default() });
    let status = world.get("/v1/status").await;
    assert_eq!(status["healthy"], false);
    assert_eq!(
        status["not_enforced"],
        json!([
            { "what": "hyve9", "why": "the kernel refused" },
            { "what": "tables", "why": "the kernel's tables cannot be read: no such map" },
        ])
    );
    let (code, body) = world.ask("GET", "/v1/flows", b"").await;
    assert_eq!((code, &body["error"]), (500, &json!("the kernel's tables cannot be read: no such map")));
    world.end().await;
}

#[tokio::test]
async fn flows_are_told_from_the_end_that_opened_them() {
    // B opened: 172.30.3.10 is the smaller end.
    let (key, side) = FlowKey::of(v4("172.30.4.20"), 40_000, v4("172.30.3.10"), 5432, 6);
    assert_eq!(side, Side::B);
    let flow = Flow {
        generation: 1,
        revision: 1,
        verdict: Verdict::Allowed as u8,
        reason: Reason::FromHost as u8,
        opener: Side::B as u8,
        path: 1,
        flags: [0x12, 0x12],
        source: Identity::HOST,
        destination: Identity(99),
        containers: [Container(3), Container::NONE],
        created: NOW.0 - 61_000_000_000,
        seen: NOW.0 - 250_000_000,
        packets: [10, 20],
        bytes: [1000, 2000],
        ..Flow::default()
    };
    let published = Published {
        endpoints: Arc::new(vec![endpoint("hydra-postgres", 3, "databases", "postgres", "172.30.3.10")]),
        ..Published::default()
    };
    let world = World::start(published, Memory { flows: vec![(key, flow)], ..Memory::default() });
    let flows = world.get("/v1/flows").await;
    assert_eq!(
        flows,
        json!([{
            "protocol": "tcp",
            "source": "172.30.4.20", "source_port": 40000, "source_tier": "host", "source_service": "",
            "source_container": "",
            "destination": "172.30.3.10", "destination_port": 5432, "destination_tier": "identity-99",
            "destination_service": "", "destination_container": "hydra-postgres",
            "verdict": "allowed", "reason": "from-host", "rule": "", "revision": 1,
            "packets": 20, "bytes": 2000, "reply_packets": 10, "reply_bytes": 1000,
            "state": "established", "path": "peer", "via": "",
            "first_seen": "2026-11-21T09:28:59.000Z", "last_seen": "2026-11-21T09:29:59.750Z",
        }])
    );
    for (query, n) in [
        ("?to=hydra-postgres", 1),
        ("?from=172.30.4.0/24&port=tcp/5432&verdict=allowed", 1),
        ("?from=hydra-postgres", 0),
        ("?port=udp", 0),
        ("?limit=0", 0),
    ] {
        assert_eq!(world.get(&format!("/v1/flows{query}")).await.as_array().unwrap().len(), n, "{query}");
    }
    world.end().await;
}

#[tokio::test]
async fn what_a_filter_cannot_mean_is_refused_with_what_it_could() {
    let world = World::start(Published::default(), Memory::default());
    let mut said = String::new();
    for target in [
        "/v1/flows?port=http",
        "/v1/flows?verdict=denied",
        "/v1/flows?reason=no-rule",
        "/v1/flows?limit=many",
        "/v1/flows?colour=red",
        "/v1/drops?reason=because",
        "/v1/drops?verdict=allowed",
    ] {
        let (code, body) = world.ask("GET", target, b"").await;
        assert_eq!(code, 400, "{target}");
        write!(
            said,
            "{target}\n  {}\n  {}\n",
            body["error"].as_str().unwrap(),
            body["hint"].as_str().unwrap()
        )
        .unwrap();
    }
    insta::assert_snapshot!(said);
    world.end().await;
}

#[tokio::test]
async fn drops_are_kept_named_and_streamed() {
    let published = Published {
        endpoints: Arc::new(vec![endpoint("hydra-web", 7, "apps", "", "172.30.4.20")]),
        ..Published::default()
    };
    let world = World::start(published, Memory::default());
    let mut stream = world.connect().await;
    let request = b"GET /v1/drops/follow?port=tcp/5432 HTTP/1.1\r\nhost: agent\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    // The head comes with the first line at the latest; subscribe before sending.
    while world.events.receiver_count() < 2 {
        tokio::task::yield_now().await;
    }
    world.events.send(event("172.30.4.20", 22, Verdict::Denied)).unwrap();
    world.events.send(event("172.30.4.20", 5432, Verdict::Allowed)).unwrap();
    world.events.send(event("172.30.4.20", 5432, Verdict::Denied)).unwrap();
    while !seen.contains("}\n") {
        let n = stream.read(&mut buffer).await.unwrap();
        assert_ne!(n, 0, "{seen}");
        seen += std::str::from_utf8(&buffer[..n]).unwrap();
    }
    let line = seen.lines().find(|l| l.starts_with('{')).unwrap();
    let row: Value = serde_json::from_str(line).unwrap();
    assert_eq!(row["reason"], "no-rule");
    assert_eq!(row["destination_port"], 5432);
    assert_eq!(row["source_container"], "hydra-web");
    assert_eq!(row["source_tier"], "unmanaged");
    assert_eq!(row["time"], "2026-11-21T09:29:58.500Z");
    drop(stream);

    let drops = world.drops(2).await;
    let ports: Vec<_> =
        drops.as_array().unwrap().iter().map(|d| d["destination_port"].as_u64().unwrap()).collect();
    assert_eq!(ports, [22, 5432], "oldest first, allowed ones left out");
    assert_eq!(world.get("/v1/drops?limit=1").await[0]["destination_port"], 5432, "the newest");

    // The container goes; its drops keep its name.
    world.state.send(Arc::new(Published::default())).unwrap();
    assert_eq!(world.get("/v1/drops?limit=1").await[0]["source_container"], "hydra-web");
    world.end().await;
}

#[tokio::test]
async fn totals_are_exact_and_named() {
    let key = DropKey {
        source: Tier::EXTERNAL,
        destination: Tier::HOST,
        reason: Reason::NoRule as u8,
        verdict: Verdict::Denied as u8,
        rule: 0,
    };
    let tables = Memory::default();
    tables.counters.lock().unwrap().drops.insert(key, Count { packets: 3, bytes: 222 });
    let world = World::start(Published::default(), tables);
    assert_eq!(
        world.get("/v1/drops/totals").await,
        json!([{
            "source_tier": "external", "destination_tier": "host", "verdict": "denied", "reason": "no-rule",
            "rule": "", "packets": 3, "bytes": 222,
        }])
    );
    world.end().await;
}
