//! `hydractl` against the agent's real API on a real socket: what it prints, in every format, and what it exits with. The agent's loop
//! and the kernel's tables are this test's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, its helpers too")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command as Process, Output, Stdio};
use std::sync::Arc;

use hydra_agent::api::{ControlSocket, Limits, Options, serve, socket_path};
use hydra_agent::diagnostic::{Diagnostic, Diagnostics};
use hydra_agent::inventory::snapshot::{DockerState, Link, LinkType, Network, Snapshot};
use hydra_agent::placement::PortKey;
use hydra_agent::policy::compile::{World as Known, compile};
use hydra_agent::policy::parse;
use hydra_agent::policy::rows::{Numbers, Owner};
use hydra_agent::published::{
    Applied, ApplyError, ApplyReport, Command, Counters, EndpointView, Handle, HookView, NotEnforced,
    PortView, Published, Reader, RevisionView,
};
use hydra_common::address::{Address, Mac};
use hydra_common::event::Event;
use hydra_common::flow::{Flow, FlowKey, Side};
use hydra_common::id::Container;
use hydra_common::tables::{Count, DropKey};
use hydra_common::verdict::{Reason, Verdict};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

const POLICY: &str = "\
version: 1
name: small
tiers:
  apps: { networks: [apps] }
  ai: { networks: [ai] }
  databases:
    networks: [databases]
    services:
      postgres: { containers: [postgres], ports: [tcp/5432] }
  inference: { addresses: [192.168.1.250/32] }
rules:
  - { name: db-clients, from: ai, to: databases }
  - { name: no-ssh, from: any, to: databases, ports: tcp/22, action: deny }
  - { name: models, from: ai, to: inference, ports: tcp/5000 }
  - { name: login, from: external, to: apps, ports: tcp/443, limit: 3/min, expires: 2036-12-01T00:00:00Z }
expect:
  - { from: apps, to: databases, port: tcp/5432, verdict: denied }
  - { from: ai, to: databases/postgres, port: tcp/5432, verdict: allowed, rule: db-clients }
";

/// Half past nine on a Saturday; the monotonic clock was at 100 s.
const NOW: (u64, i128) = (100_000_000_000, 1_795_253_400_000_000_000);

struct Tables(Vec<(FlowKey, Flow)>, Counters);

impl Reader for Tables {
    fn each_flow(&self, see: &mut dyn FnMut(&FlowKey, &Flow)) -> io::Result<()> {
        self.0.iter().for_each(|(key, flow)| see(key, flow));
        Ok(())
    }
    fn counters(&self) -> io::Result<Counters> {
        Ok(Counters { flows: self.0.len() as u64, ..self.1.clone() })
    }
    fn clocks(&self) -> (u64, i128) {
        NOW
    }
}

fn v4(text: &str) -> Address {
    Address::v4(text.parse::<Ipv4Addr>().unwrap().octets())
}

fn applied() -> Applied {
    let (model, _) = parse(POLICY, "small.yaml").unwrap();
    let subnets = [("apps", "172.30.4.0/24"), ("ai", "172.30.2.0/24"), ("databases", "172.30.3.0/24")];
    let known = Known {
        subnets: subnets.map(|(t, s)| (t.to_owned(), vec![(s.parse().unwrap(), false)])).into(),
        ..Known::default()
    };
    let compiled = compile(&model, &known, &mut Numbers::default()).unwrap();
    Applied {
        revision: 3,
        generation: 7,
        text: POLICY.into(),
        model: model.into(),
        compiled: compiled.into(),
    }
}

fn published() -> Published {
    let applied = applied();
    let endpoint = |container: &str, number: u32, owner: Owner, network: &str, address: &str| EndpointView {
        container: container.into(),
        number: Container(number),
        tier: owner.tier().into(),
        service: owner.service().unwrap_or_default().into(),
        identity: applied.compiled.identity(&owner, address.parse().ok()).unwrap(),
        owner,
        network: network.into(),
        bridge: format!("hybr-{network}"),
        port: format!("hyve{number}"),
        mac: format!("02:00:00:00:00:{number:02x}"),
        address: address.into(),
        attached: true,
    };
    let postgres = Owner::Service { tier: "databases".into(), service: "postgres".into() };
    let endpoints = vec![
        endpoint("web", 1, Owner::Tier("apps".into()), "apps", "172.30.4.10"),
        endpoint("litellm", 2, Owner::Tier("ai".into()), "ai", "172.30.2.10"),
        endpoint("postgres", 3, postgres, "databases", "172.30.3.10"),
        endpoint("od\u{1b}[31md", 4, Owner::Tier("apps".into()), "apps", "172.30.4.11"),
    ];
    let published = |address: &str, port: u16, endpoint: &EndpointView, target_port: u16| PortView {
        key: PortKey { address: address.parse().unwrap(), protocol: 6, port },
        container: endpoint.container.clone(),
        number: endpoint.number,
        owner: Some(endpoint.owner.clone()),
        network: endpoint.network.clone(),
        target: endpoint.address.parse().ok(),
        target_port,
        identity: endpoint.identity,
        proxied: address.contains(':'),
    };
    let ports = vec![
        published("0.0.0.0", 15432, &endpoints[2], 5432),
        published("::", 15432, &endpoints[2], 5432),
        published("127.0.0.1", 8080, &endpoints[0], 80),
    ];
    let uplink = Link {
        name: "hyup0".into(),
        kind: LinkType::Other,
        mac: Mac([2, 0, 0, 0, 0, 77]),
        mtu: 1500,
        master: None,
        up: true,
        addresses: ["198.51.100.1/24", "2001:db8:9::1/64"].map(|a| a.parse().unwrap()).into(),
        peer_elsewhere: false,
    };
    let hook = |n: u32, hook: &str| HookView {
        interface: format!("hyve{n}"),
        ifindex: n,
        hook: hook.into(),
        mechanism: "tcx".into(),
        program_id: 40 + n,
        link_id: 50 + n,
        position: 0,
    };
    let network = |internal| Network {
        id: "0123456789ab".into(),
        driver: "bridge".into(),
        bridge: None,
        subnets: Vec::new(),
        gateways: Vec::new(),
        internal,
        localnet: false,
    };
    Published {
        closed: Vec::new(),
        warnings: Vec::new(),
        snapshot: Arc::new(Snapshot {
            docker: DockerState::Up { version: "28.5.2".into() },
            networks: [("apps", false), ("ai", false), ("databases", true)]
                .map(|(n, internal)| (n.into(), network(internal)))
                .into(),
            links: [(77, uplink)].into(),
            ..Snapshot::default()
        }),
        endpoints: Arc::new(endpoints),
        ports: Arc::new(ports),
        hooks: vec![hook(1, "port-in"), hook(1, "port-out"), hook(2, "port-in"), hook(77, "uplink-in")],
        not_enforced: Vec::new(),
        history: vec![
            RevisionView {
                revision: 2,
                policy: "small".into(),
                applied: "2026-11-20T08:00:00Z".into(),
                by: "--policy".into(),
                restores: None,
                bytes: 480,
            },
            RevisionView {
                revision: 3,
                policy: "small".into(),
                applied: "2026-11-21T08:00:00Z".into(),
                by: "uid=0 gid=0 pid=77 rollback to 1".into(),
                restores: Some(1),
                bytes: 512,
            },
        ],
        flow_capacity: 65_536,
        pickup_until: 0,
        attach_seconds: Vec::new(),
        repairs: 0,
        applied: Some(Arc::new(applied)),
    }
}

fn tables(state: &Published) -> Tables {
    let applied = state.applied.as_ref().unwrap();
    let number = |name: &str| applied.compiled.identity(&applied.model.owner(name).unwrap(), None).unwrap();
    let (key, side) = FlowKey::of(v4("172.30.2.10"), 40_000, v4("172.30.3.10"), 5432, 6);
    assert_eq!(side, Side::A);
    let flow = Flow {
        generation: 7,
        revision: 3,
        rule: 1,
        verdict: Verdict::Allowed as u8,
        reason: Reason::Rule as u8,
        opener: 0,
        path: 1,
        flags: [0x12, 0x12],
        source: number("ai"),
        destination: number("databases/postgres"),
        containers: [Container(2), Container(3)],
        created: NOW.0 - 61_000_000_000,
        seen: NOW.0 - 250_000_000,
        packets: [10, 8],
        bytes: [1500, 9000],
        ..Flow::default()
    };
    let tier = |name: &str| *applied.compiled.tiers.iter().find(|(_, n)| n.as_str() == name).unwrap().0;
    let drop = |from: &str, reason: Reason, rule: u16, packets: u64| {
        let key = DropKey {
            source: tier(from),
            destination: tier("databases"),
            reason: reason as u8,
            verdict: Verdict::Denied as u8,
            rule,
        };
        (key, Count { packets, bytes: packets * 74 })
    };
    let drops = BTreeMap::from([drop("apps", Reason::NoRule, 0, 12), drop("ai", Reason::Rule, 2, 3)]);
    Tables(vec![(key, flow)], Counters { drops, ..Counters::default() })
}

fn event(state: &Published) -> Event {
    let applied = state.applied.as_ref().unwrap();
    let number = |name: &str| applied.compiled.identity(&applied.model.owner(name).unwrap(), None).unwrap();
    Event {
        time: NOW.0 - 1_500_000_000,
        source: v4("172.30.4.10"),
        destination: v4("172.30.3.10"),
        source_port: 40_001,
        destination_port: 5432,
        source_identity: number("apps"),
        destination_identity: number("databases/postgres"),
        source_container: Container(1),
        destination_container: Container(3),
        ifindex: 9,
        length: 74,
        revision: 3,
        protocol: 6,
        tcp_flags: 2,
        verdict: Verdict::Denied as u8,
        reason: Reason::NoRule as u8,
        hook: 0,
        ethertype: 0x0800,
        ..Event::default()
    }
}

/// An agent whose loop does what each test says.
struct Agent {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    events: broadcast::Sender<Event>,
    _state: watch::Sender<Arc<Published>>,
}

impl Agent {
    fn start(published: Published, tables: Tables) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, (events, _)) = (CancellationToken::new(), broadcast::channel(64));
        let (state, receiver) = watch::channel(Arc::new(published));
        let (sender, commands) = mpsc::channel(4);
        let handle =
            Handle { state: receiver, commands: sender, reader: Arc::new(tables), events: events.clone() };
        let inside = runtime.enter();
        tokio::spawn(answer(commands));
        let socket = ControlSocket::bind(dir.path()).unwrap();
        let options = Options { listen: None, limits: Limits::default() };
        let task = tokio::spawn(serve(socket, options, handle, stop.clone()));
        drop(inside);
        Self { dir, runtime, stop, task, events, _state: state }
    }

    fn hydractl(&self, args: &[&str]) -> Process {
        let mut command = Process::new(env!("CARGO_BIN_EXE_hydractl"));
        command.arg("--socket").arg(socket_path(self.dir.path())).args(args);
        command.env("NO_COLOR", "1").env("COLUMNS", "100");
        command
    }

    fn run(&self, args: &[&str]) -> String {
        shown(args, &self.hydractl(args).output().unwrap())
    }

    fn with_stdin(&self, args: &[&str], text: &str) -> String {
        let mut child = self
            .hydractl(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        shown(args, &child.wait_with_output().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.runtime.block_on(&mut self.task);
    }
}

/// A loop that knows one policy and three revisions.
async fn answer(mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Apply { text, source, reply, .. } => {
                let answer = match parse(&text, &source) {
                    Err(problems) => Err(ApplyError::Refused(problems)),
                    Ok((model, _)) if model.name == "full" => {
                        Err(ApplyError::Kernel("cannot write `HYDRA_SETS`: Argument list too long".into()))
                    }
                    Ok((model, _)) if model.name == "elsewhere" => {
                        let mut problems = Diagnostics::new(&source, &text);
                        problems.push(Diagnostic::error("tier `apps` resolves to nothing"));
                        Err(ApplyError::Refused(problems))
                    }
                    Ok((model, warnings)) => Ok(ApplyReport {
                        revision: 4,
                        restores: None,
                        policy: model.name,
                        changes: vec!["- rule `no-ssh`".into(), "+ rule `web`".into()],
                        cut: vec!["litellm -> postgres tcp/5432".into()],
                        warnings: warnings
                            .iter()
                            .map(|w| w.message.clone())
                            .chain(["`eth7`: a card in the bridge of `apps`".to_owned()])
                            .collect(),
                    }),
                };
                let _ = reply.send(answer);
            }
            Command::Rollback { revision, reply, .. } => {
                let answer = match revision {
                    None | Some(2) => Ok(ApplyReport {
                        revision: 4,
                        restores: Some(2),
                        policy: "small".into(),
                        ..ApplyReport::default()
                    }),
                    Some(1) => Err(ApplyError::NoEarlier),
                    Some(other) => Err(ApplyError::NoRevision(other)),
                };
                let _ = reply.send(answer);
            }
            Command::Show { revision, reply } => {
                let _ = reply.send((revision == 2).then(|| POLICY.replace("name: small", "name: old")));
            }
        }
    }
}

fn shown(args: &[&str], output: &Output) -> String {
    format!(
        "# hydractl {}\nexit {}\n{}{}\n",
        args.join(" "),
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn agent() -> Agent {
    let state = published();
    let tables = tables(&state);
    Agent::start(state, tables)
}

#[test]
fn what_is_there_in_every_format() {
    let agent = agent();
    let mut all = String::new();
    for what in ["status", "endpoints", "ports", "flows", "policy history", "policy show"] {
        for format in ["table", "json", "yaml"] {
            let args: Vec<_> = what.split(' ').chain(["-o", format]).collect();
            all += &agent.run(&args);
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn ports_are_chosen_by_either_end_and_by_port() {
    let agent = agent();
    let mut all = String::new();
    for args in [
        vec!["ports", "--from", "litellm"],
        vec!["ports", "--from", "apps"],
        vec!["ports", "--to", "databases/postgres", "--limit", "1"],
        vec!["ports", "--to", "127.0.0.0/8"],
        vec!["ports", "--port", "tcp/8080"],
        vec!["ports", "--port", "8081"],
        vec!["ports", "--port", "http"],
        vec!["ports", "--from", "databses"],
    ] {
        all += &agent.run(&args);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn drops_in_every_format_and_as_they_come() {
    let state = published();
    let (event, tables) = (event(&state), tables(&state));
    let agent = Agent::start(state, tables);
    let mut follow = agent.hydractl(&["drops", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    // The API's own ring, and the one that follows.
    while agent.events.receiver_count() < 2 {
        std::thread::yield_now();
    }
    agent.events.send(event).unwrap();
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(follow.stdout.take().unwrap()), &mut line).unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    // The ring is filled as events come, not when it is asked for.
    while !agent.run(&["drops", "-o", "json"]).contains("172.30.4.10") {
        std::thread::yield_now();
    }
    let mut all = format!("# hydractl drops --follow\n{line}\n");
    for format in ["table", "json", "yaml"] {
        let args = ["drops", "--follow", "-n", "1", "-o", format];
        let mut follow = agent.hydractl(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = io::BufReader::new(follow.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("databases") {
            io::BufRead::read_line(&mut out, &mut said).unwrap();
        }
        drop(out);
        let said_wrong = follow.wait_with_output().unwrap();
        assert!(said_wrong.status.success() && said_wrong.stderr.is_empty(), "{said_wrong:?}");
        writeln!(all, "# hydractl {}\n{said}", args.join(" ")).unwrap();
    }
    for args in [
        vec!["drops"],
        vec!["drops", "-o", "json"],
        vec!["drops", "--totals"],
        vec!["drops", "--totals", "-o", "yaml"],
        vec!["drops", "--reason", "spoofed-mac"],
        vec!["drops", "--from", "apps", "--to", "databases/postgres"],
    ] {
        all += &agent.run(&args);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn follow_ends_with_the_agent() {
    let agent = agent();
    let mut follow = agent.hydractl(&["drops", "--follow"]).stderr(Stdio::piped()).spawn().unwrap();
    while agent.events.receiver_count() < 2 {
        std::thread::yield_now();
    }
    drop(agent);
    let mut said = String::new();
    io::Read::read_to_string(&mut follow.stderr.take().unwrap(), &mut said).unwrap();
    let (error, hint) = said.split_once("\n\n").unwrap();
    assert!(error.starts_with("error: the agent on `") && error.ends_with("` ended the stream"), "{said}");
    assert_eq!(hint, "hint: `systemctl status hydra-agent`; what it enforced stays enforced meanwhile\n");
    assert_eq!(follow.wait().unwrap().code(), Some(2));
}

/// Nothing comes, so nothing is written: only the hang-up itself can tell.
#[test]
fn an_idle_follower_ends_when_its_reader_goes() {
    let agent = agent();
    let mut follow =
        agent.hydractl(&["drops", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while agent.events.receiver_count() < 2 {
        std::thread::yield_now();
    }
    drop(follow.stdout.take());
    let done = follow.wait_with_output().unwrap();
    assert_eq!((done.status.code(), String::from_utf8(done.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn a_name_that_nobody_has_is_refused_by_every_filter() {
    let agent = agent();
    let mut all = String::new();
    for args in [
        vec!["flows", "--from", "databse"],
        vec!["flows", "--to", "litelm"],
        vec!["flows", "--to", "postgres", "-o", "json"],
        vec!["flows", "--to", "any"],
        vec!["drops", "--to", "nope"],
        vec!["drops", "--follow", "--from", "weeb"],
        vec!["drops", "--reason", "no-ruel"],
        vec!["ports", "--to", "nope"],
        vec!["ports", "--from", "exernal"],
        vec!["explain", "litelm", "databases", "tcp/5432"],
    ] {
        all += &agent.run(&args);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn explain_names_rule_line_identities_and_docker() {
    let agent = agent();
    let mut all = String::new();
    for (from, to, port) in [
        ("apps", "databases", "tcp/5432"),
        ("web", "postgres", "tcp/5432"),
        ("litellm", "172.30.3.10", "postgres"),
        ("ai", "databases/postgres", "tcp/22"),
        ("web", "172.30.4.11", "tcp/80"),
        ("host", "postgres", "ping"),
        ("litellm", "198.51.100.1", "tcp/15432"),
        ("apps", "198.51.100.1", "tcp/15432"),
        ("external", "2001:db8:9::1", "tcp/15432"),
        ("ai", "host", "tcp/15432"),
        ("host", "127.0.0.1", "tcp/8080"),
        ("litellm", "198.51.100.1", "tcp/15433"),
        ("172.30.4.99", "postgres", "tcp/5432"),
        ("litellm", "172.30.3.99", "tcp/5432"),
        ("host", "172.30.3.99", "tcp/5432"),
        ("litellm", "192.168.1.250", "tcp/5000"),
        ("apps", "8.8.8.8", "udp/53"),
        ("external", "host", "tcp/22"),
        ("inference", "external", "tcp/22"),
        ("2001:db8::1", "web", "tcp/80"),
        ("external", "web", "tcp/443"),
        ("nobody", "apps", "tcp/80"),
        ("apps", "databses", "tcp/80"),
        ("apps", "databases", "tcp"),
        ("any", "databases", "tcp/80"),
        ("172.30.0.0/16", "databases", "tcp/80"),
    ] {
        all += &agent.run(&["explain", from, to, port]);
    }
    all += &agent.run(&["explain", "ai", "postgres", "tcp/5432", "-o", "json"]);
    all += &agent.run(&["explain", "apps", "postgres", "tcp/5432", "-o", "yaml"]);
    insta::assert_snapshot!(all);
}

#[test]
fn explain_says_what_is_not_enforced_here() {
    let mut state = published();
    state.not_enforced =
        vec![NotEnforced { what: "hyve3".into(), why: "the kernel refused the program".into() }];
    state.snapshot = Arc::default();
    let tables = tables(&state);
    let agent = Agent::start(state, tables);
    insta::assert_snapshot!(agent.run(&["explain", "ai", "postgres", "tcp/5432"]) + &agent.run(&["status"]));
}

#[test]
fn policies_are_shown_applied_refused_and_taken_back() {
    let agent = agent();
    let mistakes = "version: 1\ntiers:\n  apps: { networks: [apps] }\n  apps: { networks: [b] }\nrules:\n  - { name: a, from: appz, to: apps }\n  - { name: b, from: apps, to: apps, ports: tcp/99999 }\n";
    let named = |name: &str| POLICY.replace("name: small", &format!("name: {name}"));
    let mut all = String::new();
    for (args, text) in [
        (vec!["policy", "apply", "-"], POLICY),
        (vec!["policy", "apply", "-", "--dry-run"], POLICY),
        (vec!["policy", "apply", "-", "-o", "json"], POLICY),
        (vec!["policy", "apply", "-"], mistakes),
        (vec!["policy", "apply", "-"], named("full").as_str()),
        (vec!["policy", "apply", "-"], named("elsewhere").as_str()),
        (vec!["policy", "validate", "-", "--live"], named("elsewhere").as_str()),
        (vec!["policy", "validate", "-", "--live"], POLICY),
        (vec!["policy", "rollback"], ""),
        (vec!["policy", "rollback", "1"], ""),
        (vec!["policy", "show", "2"], ""),
        (vec!["policy", "show", "2", "-o", "json"], ""),
        (vec!["policy", "show", "9"], ""),
        (vec!["policy", "rollback", "9"], ""),
        (vec!["policy", "diff", "-"], POLICY),
        (vec!["policy", "diff", "-"], mistakes),
        (vec!["policy", "diff", "-"], POLICY.replace("ports: tcp/22", "ports: tcp/23").as_str()),
        (
            vec!["policy", "diff", "-", "-o", "json"],
            POLICY.replace("ports: tcp/22", "ports: tcp/23").as_str(),
        ),
    ] {
        all += &agent.with_stdin(&args, text);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn files_are_validated_tested_compared_and_explained_without_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
    write("good.yaml", POLICY.as_bytes());
    write("failing.yaml", POLICY.replace("verdict: denied", "verdict: allowed").as_bytes());
    write("changed.yaml", POLICY.replace("ports: tcp/22", "ports: tcp/23").as_bytes());
    write("broken.yaml", b"version: 1\ntiers: {}\nrules: [{ name: A, from: x, to: y }]\ncolour: red\n");
    write("syntax.yaml", b"version: 1\ntiers: [\n");
    write("latin1.yaml", b"version: 1\nname: caf\xe9\n");
    write("empty.yaml", b"");
    write("huge.yaml", &vec![b'#'; (4 << 20) + 1]);
    let mut all = String::new();
    for args in [
        "policy validate good.yaml",
        "policy validate good.yaml broken.yaml failing.yaml",
        "policy validate broken.yaml -o json",
        "policy validate good.yaml -o json",
        "policy validate syntax.yaml",
        "policy validate latin1.yaml",
        "policy validate empty.yaml",
        "policy validate huge.yaml",
        "policy test good.yaml failing.yaml",
        "policy test failing.yaml -o json",
        "policy test broken.yaml",
        "policy diff good.yaml changed.yaml",
        "policy diff good.yaml good.yaml",
        "policy diff good.yaml broken.yaml",
        "explain apps databases tcp/5432 --policy good.yaml",
        "explain ai postgres postgres --policy good.yaml -o json",
        "explain ai nobody tcp/1 --policy good.yaml",
        "explain apps databases tcp/5432 --policy failing.yaml",
        "policy test good.yaml broken.yaml",
        "explain ai databases tcp/1 --policy broken.yaml",
    ] {
        let args: Vec<_> = args.split(' ').collect();
        let mut command = Process::new(env!("CARGO_BIN_EXE_hydractl"));
        command.current_dir(dir.path()).args(&args).env("NO_COLOR", "1").env("HYDRA_SOCKET", "/nonexistent");
        all += &shown(&args, &command.output().unwrap());
    }
    insta::assert_snapshot!(all);
}
