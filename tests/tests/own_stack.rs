//! Processes on the host's own network stack, in cgroups of the test's own that look like systemd's: what they send and receive is
//! judged as their tier's, and what else runs on the host is as it was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use hydra_tests::agent::{Agent, write};
use hydra_tests::caller::{Caller, How, Said};
use hydra_tests::cgroup::Cgroup;
use hydra_tests::group::{hears, joined, routed};
use hydra_tests::lab::{Lab, SILENCE, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, probe};
use hydra_tests::sample;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::HOST;

const CALLER: &str = env!("CARGO_BIN_EXE_hydra-caller");

/// The sample's tiers with two units, and who may call them and be called by them.
fn policy(rules: &str) -> String {
    let tiers = format!(
        "{}  proxy: {{ units: [proxy.service] }}\n  other: {{ units: [other.service] }}\n",
        sample::TIERS
    );
    format!("version: 1\nname: own\n{tiers}{rules}")
}

const RULES: &str = "rules:
  - { name: in,    from: external, to: proxy,    ports: [tcp/80, udp/80] }
  - { name: inner, from: web,      to: [host, proxy], ports: [tcp/80] }
  - { name: out,   from: proxy,    to: partner,  ports: [tcp/9000, udp/9000] }
  - { name: app,   from: proxy,    to: app,      ports: [tcp/8000] }
  - { name: pair,  from: proxy,    to: [host, other], ports: [tcp/7000] }
  - { name: most,  from: other,    to: host }
";

struct Scene {
    lab: Lab,
    folder: Cgroup,
}

impl Scene {
    fn new() -> Self {
        Self { lab: Lab::of(&sample::policy()).unwrap(), folder: Cgroup::new().unwrap() }
    }

    fn unit(&self, name: &str) -> Caller {
        let folder = self.folder.below(&format!("system.slice/{name}")).unwrap();
        Caller::start(&self.lab.world, HOST, &folder, CALLER).unwrap()
    }

    fn agent(&self, policy: &str) -> Agent {
        self.agent_at(policy, &self.folder.path().to_string_lossy())
    }

    fn agent_at(&self, policy: &str, folder: &str) -> Agent {
        write(&self.lab.world, "policy.yaml", policy).unwrap();
        let path = self.lab.world.scratch("policy.yaml");
        let arguments = ["--policy", &path.to_string_lossy(), "--cgroup", folder];
        Agent::start_with(&self.lab.world, &arguments).unwrap()
    }

    /// A place outside, by the tier that it is in.
    fn outside(&self, partner: bool) -> String {
        let inside = |ip: &IpAddr| ip.to_string().starts_with("203.0.113.");
        let machines = &self.lab.deployment.topology.machines;
        let found = machines.iter().find(|m| m.addresses.iter().any(inside) == partner);
        found.unwrap_or_else(|| panic!("no such machine: {machines:?}")).name.clone()
    }

    /// This host's address towards the outside.
    fn uplink(&self) -> IpAddr {
        self.lab.deployment.topology.uplink.iter().find(|a| a.addr().is_ipv4()).unwrap().addr()
    }

    fn ask(&self, from: &str, to: IpAddr, kind: Kind) -> Outcome {
        let probes = [Probe { from: from.to_owned(), source: None, to, kind }];
        probe(&self.lab.world, &probes, SILENCE).unwrap()[0]
    }
}

#[test]
fn what_a_unit_receives_is_judged_and_what_else_the_host_serves_is_not() {
    let scene = Scene::new();
    let (mut proxy, mut nobody) = (scene.unit("proxy.service"), scene.unit("nobody.service"));
    let _other = scene.unit("other.service");
    for port in [80, 81] {
        proxy.listen(port).unwrap();
    }
    nobody.listen(82).unwrap();
    let (user, host) = (scene.outside(false), scene.uplink());
    for kind in [Kind::Tcp(80), Kind::Tcp(81), Kind::Tcp(82), Kind::Udp(80), Kind::Udp(81)] {
        assert_eq!(scene.ask(&user, host, kind), Outcome::Answered, "without hydra: {kind}");
    }
    let agent = scene.agent(&policy(RULES));
    let status = agent.json(&scene.lab.world, &["status"]).unwrap();
    let hooks = status["hooks"].as_array().unwrap().iter().filter(|h| h["mechanism"] == "cgroup").count();
    assert_eq!(hooks, 6, "{status:#}");
    assert_eq!(status["not_enforced"].as_array().unwrap().len(), 0, "{status:#}");
    for (kind, outcome) in [
        (Kind::Tcp(80), Outcome::Answered),
        (Kind::Udp(80), Outcome::Answered),
        (Kind::Tcp(81), Outcome::TimedOut),
        (Kind::Udp(81), Outcome::TimedOut),
        (Kind::Tcp(82), Outcome::Answered),
        (Kind::Udp(82), Outcome::Answered),
    ] {
        assert_eq!(scene.ask(&user, host, kind), outcome, "{kind}");
    }
    let shop = "shop";
    let gateway: IpAddr = "10.70.1.1".parse().unwrap();
    assert_eq!(scene.ask(shop, gateway, Kind::Tcp(80)), Outcome::Answered, "from a container that may");
    let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
    let denied: Vec<_> = drops.as_array().unwrap().iter().filter(|d| d["hook"] == "cgroup-in").collect();
    assert!(!denied.is_empty(), "{drops:#}");
    for row in denied {
        assert_eq!(
            (&row["destination_tier"], &row["source_tier"]),
            (&"proxy".into(), &"external".into()),
            "{row:#}"
        );
        assert_eq!((&row["reason"], &row["destination_port"]), (&"no-rule".into(), &81.into()), "{row:#}");
    }
    let flows = agent.json(&scene.lab.world, &["flows", "--to", "proxy"]).unwrap();
    let flow =
        flows.as_array().unwrap().iter().find(|f| f["protocol"] == "tcp" && f["source_tier"] == "external");
    let flow = flow.unwrap_or_else(|| panic!("{flows:#}"));
    assert_eq!((&flow["rule"], &flow["verdict"]), (&"in".into(), &"allowed".into()), "{flow:#}");
    assert!(flow["reply_packets"].as_u64().unwrap() >= 2, "{flow:#}");
}

#[test]
fn a_unit_hears_what_this_host_sends_to_all_of_a_network_where_it_may() {
    let scene = Scene::new();
    let mut proxy = scene.unit("proxy.service");
    let _other = scene.unit("other.service");
    proxy.listen(80).unwrap();
    let answered = || {
        let ask = || -> std::io::Result<bool> {
            let socket = UdpSocket::bind("10.70.1.1:0")?;
            socket.set_broadcast(true)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.send_to(b"who is there", "10.70.1.255:80")?;
            Ok(socket.recv(&mut [0; 64]).is_ok())
        };
        scene.lab.world.enter(HOST, ask).unwrap().unwrap()
    };
    assert!(answered(), "without hydra");
    let rules = format!("{RULES}  - {{ name: back, from: proxy, to: host }}\n");
    let agent = scene.agent(&policy(&rules));
    assert!(answered(), "{:#}", agent.json(&scene.lab.world, &["drops"]).unwrap());
    let closed = policy(&rules).replace("rules:", "defaults: { from-host: deny }\nrules:");
    agent.apply(&scene.lab.world, &closed).unwrap();
    assert!(!answered());
    let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
    let row = drops.as_array().unwrap().iter().find(|d| d["hook"] == "cgroup-in");
    let row = row.unwrap_or_else(|| panic!("{drops:#}"));
    assert_eq!(
        (&row["reason"], &row["source_tier"], &row["destination_tier"]),
        (&"from-host".into(), &"host".into(), &"proxy".into()),
        "{row:#}"
    );
}

/// The kernel's copy for this host of what it routes to a group looks like the one of what it sends itself.
#[test]
fn what_this_host_routes_to_a_group_is_nothing_that_it_sends() {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    let scene = Scene::new();
    let world = &scene.lab.world;
    let mut proxy = scene.unit("proxy.service");
    let _other = scene.unit("other.service");
    proxy.listen_at((Ipv4Addr::UNSPECIFIED, 81).into()).unwrap();
    let (user, here) = (scene.outside(false), Ipv4Addr::new(10, 70, 1, 1));
    let machines = &scene.lab.deployment.topology.machines;
    let addresses = &machines.iter().find(|m| m.name == user).unwrap().addresses;
    let origin = addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let origin = origin.unwrap();
    let bridges = &scene.lab.deployment.topology.bridges;
    let bridge = bridges.iter().find(|b| b.addresses.iter().any(|a| a.addr() == IpAddr::V4(here))).unwrap();
    let index = |name: &str| world.ifindex(HOST, name).unwrap();
    let (uplink, bridge) = (index("hyup0"), index(&bridge.name));
    let _router = world.enter(HOST, || routed(origin, GROUP, uplink, bridge)).unwrap().unwrap();
    // Who is no unit's process, and is judged by nobody: it makes this host a member.
    let member = world.enter(HOST, || joined(GROUP.into(), here, bridge)).unwrap().unwrap();
    let answered = |words: &str| {
        let ask = || -> std::io::Result<(bool, bool)> {
            let socket = UdpSocket::bind((origin, 0))?;
            socket.set_multicast_ttl_v4(8)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.send_to(words.as_bytes(), (GROUP, member.local_addr()?.port()))?;
            let heard = hears(&member, words.as_bytes(), SILENCE);
            socket.send_to(words.as_bytes(), (GROUP, 81))?;
            Ok((heard, socket.recv(&mut [0; 64]).is_ok()))
        };
        world.enter(&user, ask).unwrap().unwrap()
    };
    assert_eq!(answered("without hydra"), (true, true));
    let agent = scene.agent(&policy(&format!("{RULES}  - {{ name: back, from: proxy, to: external }}\n")));
    assert_eq!(answered("with hydra"), (true, false), "the unit does not hear it");
    let drops = agent.json(world, &["drops"]).unwrap();
    let row = drops.as_array().unwrap().iter().find(|d| d["hook"] == "cgroup-in");
    let row = row.unwrap_or_else(|| panic!("{drops:#}"));
    assert_eq!(
        (&row["reason"], &row["source"], &row["destination_port"]),
        (&"unknown-source".into(), &origin.to_string().into(), &81.into()),
        "{row:#}"
    );
}

#[test]
fn what_a_unit_sends_is_judged_also_on_what_was_open_before() {
    let scene = Scene::new();
    let partner = scene.outside(true);
    let to = scene.lab.address(&partner, false).unwrap();
    let (mut proxy, mut nobody) = (scene.unit("proxy.service"), scene.unit("nobody.service"));
    let _other = scene.unit("other.service");
    for caller in [&mut proxy, &mut nobody] {
        assert_eq!(caller.call(How::Datagram, SocketAddr::new(to, 9001)).unwrap(), Said::Begun);
        assert!(caller.again().unwrap().went_out(), "without hydra");
    }
    let agent = scene.agent(&policy(RULES));
    // What the network has said of the datagram before comes first.
    let _ = (proxy.again().unwrap(), nobody.again().unwrap());
    // No hook on `connect` sees this one: its packets' does.
    assert_eq!(proxy.again().unwrap(), Said::REFUSED);
    assert!(nobody.again().unwrap().went_out(), "nobody's process");
    let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
    let row = drops.as_array().unwrap().iter().find(|d| d["hook"] == "cgroup-out");
    let row = row.unwrap_or_else(|| panic!("{drops:#}"));
    assert_eq!(
        (&row["source_tier"], &row["destination_tier"]),
        (&"proxy".into(), &"partner".into()),
        "{row:#}"
    );

    for how in How::ALL {
        assert_eq!(proxy.call(how, SocketAddr::new(to, 9001)).unwrap(), Said::REFUSED, "{how:?}");
        assert!(proxy.call(how, SocketAddr::new(to, 9000)).unwrap().went_out(), "{how:?}");
        assert!(nobody.call(how, SocketAddr::new(to, 9001)).unwrap().went_out(), "{how:?}");
    }
    let db = scene.lab.address("db", false).unwrap();
    let api = scene.lab.address("api", false).unwrap();
    assert_eq!(proxy.call(How::Connect, SocketAddr::new(db, 5432)).unwrap(), Said::REFUSED);
    assert!(proxy.call(How::Connect, SocketAddr::new(api, 8000)).unwrap().went_out());
}

#[test]
fn a_connection_that_a_unit_opened_before_it_was_known_goes_on_only_while_it_may() {
    let scene = Scene::new();
    let partner = scene.outside(true);
    let _echo = Echo::start(&scene.lab.world, &[(partner.clone(), Kind::Tcp(9000))]).unwrap();
    let to = SocketAddr::new(scene.lab.address(&partner, false).unwrap(), 9000);
    let open = |name: &str| {
        let mut unit = scene.unit(name);
        // A ring waits until the other end has answered.
        assert_eq!(unit.call(How::Ring, to).unwrap(), Said::Begun);
        unit
    };
    let rules = "rules: [{ name: out, from: [proxy, other], to: partner, ports: [tcp/9000] }]\n";
    let _other = scene.unit("other.service");
    let policy = policy(rules).replace("units: [other.service]", "units: [other.service, late.service]");
    write(&scene.lab.world, "policy.yaml", &policy).unwrap();
    let path = scene.lab.world.scratch("policy.yaml").to_string_lossy().into_owned();
    let folder = scene.folder.path().to_string_lossy().into_owned();
    let start = |pickup| {
        let arguments = ["--policy", &path, "--cgroup", &folder, "--pickup", pickup];
        Agent::start_with(&scene.lab.world, &arguments).unwrap()
    };
    let denied = |agent: &Agent| {
        let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
        let row = |d: &serde_json::Value| [&d["hook"], &d["reason"], &d["source_tier"]].map(Clone::clone);
        drops.as_array().unwrap().iter().any(|d| row(d) == ["cgroup-out", "no-connection", "proxy"])
    };
    let counted = |agent: &Agent, tier: &str| {
        let flows = agent.json(&scene.lab.world, &["flows", "--from", tier]).unwrap();
        let mut rows = flows.as_array().unwrap().iter();
        rows.any(|f| f["rule"] == "out" && f["reply_packets"].as_u64() > Some(0))
    };
    let mut proxy = open("proxy.service");
    let agent = start("0");
    assert_eq!(proxy.again().unwrap(), Said::Begun);
    assert!(eventually(|| denied(&agent)), "what comes from the middle passes");
    assert!(!counted(&agent, "proxy"), "no entry is made from the middle");
    agent.kill().unwrap();
    // Nobody looks while this one starts.
    let mut late = open("late.service");
    let agent = start("1h");
    let status = agent.json(&scene.lab.world, &["status"]).unwrap();
    assert_eq!(status["pickup_seconds"], 0, "the tables are old: {status:#}");
    assert_eq!(late.again().unwrap(), Said::Begun);
    assert!(eventually(|| counted(&agent, "other")), "a unit that is new");
    assert!(!counted(&agent, "proxy"), "one that was known");
}

#[test]
fn units_that_call_each_other_on_the_loopback_interface_are_judged_as_themselves() {
    let scene = Scene::new();
    let (mut proxy, mut other) = (scene.unit("proxy.service"), scene.unit("other.service"));
    for port in [7000, 7001] {
        other.listen(port).unwrap();
    }
    proxy.listen(80).unwrap();
    let local = |port| SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    assert_eq!(proxy.call(How::Ring, local(7001)).unwrap(), Said::Begun, "without hydra");
    let agent = scene.agent(&policy(RULES));
    // A ring waits for the answer.
    assert_eq!(proxy.call(How::Ring, local(7000)).unwrap(), Said::Begun);
    assert_eq!(proxy.call(How::Connect, local(7001)).unwrap(), Said::REFUSED, "host may not be called there");
    assert_eq!(proxy.call(How::Connect, "0.0.0.0:7001".parse().unwrap()).unwrap(), Said::REFUSED);
    // It may call the host, and not that unit: where the host is called, the unit's own hook says so.
    assert_eq!(other.call(How::Connect, local(80)).unwrap(), Said::Begun);
    assert!(
        eventually(|| {
            let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
            drops.as_array().unwrap().iter().any(|d| {
                d["hook"] == "cgroup-in" && d["source_tier"] == "other" && d["destination_tier"] == "proxy"
            })
        }),
        "{:#}",
        agent.json(&scene.lab.world, &["drops"]).unwrap()
    );
    assert_eq!(
        scene.ask(HOST, "127.0.0.1".parse().unwrap(), Kind::Tcp(80)),
        Outcome::Answered,
        "this host may"
    );
}

/// Rules that name no `host`.
const DIRECT: &str = "rules:
  - { name: inner, from: web,   to: proxy, ports: [tcp/80, udp/80, tcp/82] }
  - { name: pair,  from: other, to: proxy, ports: [tcp/80] }
";

#[test]
fn who_may_call_a_unit_needs_no_right_to_the_host_and_gets_none() {
    let scene = Scene::new();
    let (mut proxy, mut other) = (scene.unit("proxy.service"), scene.unit("other.service"));
    let mut nobody = scene.unit("nobody.service");
    for port in [80, 81] {
        proxy.listen(port).unwrap();
    }
    nobody.listen(82).unwrap();
    let gateway: IpAddr = "10.70.1.1".parse().unwrap();
    let kinds = [Kind::Tcp(80), Kind::Udp(80), Kind::Tcp(81), Kind::Tcp(82)];
    for kind in kinds {
        assert_eq!(scene.ask("shop", gateway, kind), Outcome::Answered, "without hydra: {kind}");
    }
    // Only where every process of the machine meets the hook is a call left to it.
    let agent = scene.agent_at(&policy(DIRECT), "auto");
    for (kind, outcome) in
        kinds.into_iter().zip([Outcome::Answered, Outcome::Answered, Outcome::TimedOut, Outcome::TimedOut])
    {
        assert_eq!(scene.ask("shop", gateway, kind), outcome, "{kind}");
    }
    let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
    let hooks = |port: u16| -> Vec<_> {
        let rows = drops.as_array().unwrap().iter().filter(|d| d["destination_port"] == port);
        rows.map(|d| (d["hook"].clone(), d["reason"].clone(), d["destination_tier"].clone())).collect()
    };
    let (at_port, at_process) = (hooks(81), hooks(82));
    assert!(!at_port.is_empty() && !at_process.is_empty(), "{drops:#}");
    for found in at_port {
        assert_eq!(found, ("port-in".into(), "no-rule".into(), "host".into()), "{drops:#}");
    }
    for found in at_process {
        assert_eq!(found, ("cgroup-in".into(), "no-rule".into(), "host".into()), "{drops:#}");
    }
    let flows = agent.json(&scene.lab.world, &["flows", "--to", "proxy"]).unwrap();
    let of_shop = |f: &&serde_json::Value| f["source_container"] == "shop" && f["protocol"] == "tcp";
    let flow = flows.as_array().unwrap().iter().find(of_shop).unwrap_or_else(|| panic!("{flows:#}"));
    assert_eq!((&flow["rule"], &flow["source_tier"]), (&"inner".into(), &"web".into()), "{flow:#}");
    assert!(
        flow["packets"].as_u64().unwrap() >= 3 && flow["reply_packets"].as_u64().unwrap() >= 2,
        "{flow:#}"
    );
    let explained = agent.json(&scene.lab.world, &["explain", "web", "proxy", "tcp/80"]).unwrap();
    assert_eq!(explained["verdict"], "allowed", "{explained:#}");

    let local = |port| SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    assert_eq!(other.call(How::Ring, local(80)).unwrap(), Said::Begun);
    // Its own tier might listen there: whoever does has the word.
    assert_eq!(other.call(How::Connect, local(82)).unwrap(), Said::Begun);
    let said =
        |d: &serde_json::Value| (d["source_tier"].clone(), d["hook"].clone(), d["destination_tier"].clone());
    assert!(
        eventually(|| {
            let drops = agent.json(&scene.lab.world, &["drops"]).unwrap();
            let mut of_82 = drops.as_array().unwrap().iter().filter(|d| d["destination_port"] == 82);
            of_82.any(|d| said(d) == ("other".into(), "cgroup-in".into(), "host".into()))
        }),
        "a process that no tier has is called as the host"
    );
    agent.apply(&scene.lab.world, &policy("rules: []\n")).unwrap();
    assert_eq!(scene.ask("shop", gateway, Kind::Tcp(80)), Outcome::TimedOut, "no longer");
}

#[test]
fn a_container_judges_a_unit_by_its_tier_where_it_receives() {
    let scene = Scene::new();
    let api = SocketAddr::new(scene.lab.address("api", false).unwrap(), 9000);
    let (mut proxy, mut nobody) = (scene.unit("proxy.service"), scene.unit("nobody.service"));
    let _other = scene.unit("other.service");
    // Open already: what refuses a call at once has not seen this one.
    for caller in [&mut proxy, &mut nobody] {
        assert_eq!(caller.call(How::Datagram, api).unwrap(), Said::Begun);
    }
    let agent = scene.agent(&policy(RULES));
    for caller in [&mut proxy, &mut nobody] {
        let _ = (caller.again().unwrap(), caller.again().unwrap());
    }
    let of = |rows: &serde_json::Value, tier: &str| {
        let rows = rows.as_array().unwrap().iter().filter(|d| d["destination_container"] == "api");
        rows.filter(|d| d["source_tier"] == tier).cloned().collect::<Vec<_>>()
    };
    let denied = || of(&agent.json(&scene.lab.world, &["drops"]).unwrap(), "proxy");
    assert!(eventually(|| !denied().is_empty()), "the unit is not denied");
    for row in denied() {
        assert_eq!((&row["hook"], &row["reason"]), (&"port-out".into(), &"no-rule".into()), "{row:#}");
    }
    let passed = || of(&agent.json(&scene.lab.world, &["flows"]).unwrap(), "host");
    assert!(eventually(|| !passed().is_empty()), "the host's other processes may");
}

#[test]
fn a_process_of_a_unit_in_a_namespace_of_its_own_has_not_this_hosts_stack() {
    let scene = Scene::new();
    let folder = scene.folder.below("system.slice/other.service").unwrap();
    let (mut here, _proxy) = (scene.unit("other.service"), scene.unit("proxy.service"));
    let (aside, host) = (scene.outside(false), scene.uplink());
    // In there it can have any address: this host's, and one of a container.
    scene.lab.world.ip(&aside, &[format!("address add {host}/32 dev lo")]).unwrap();
    let mut there = Caller::start(&scene.lab.world, &aside, &folder, CALLER).unwrap();
    there.listen(7001).unwrap();
    here.listen(7002).unwrap();
    let agent = scene.agent(&policy(RULES));
    let known = |port: u16| {
        let rows = |what: &str| agent.json(&scene.lab.world, &[what]).unwrap().as_array().unwrap().clone();
        let of = |rows: Vec<serde_json::Value>| rows.iter().any(|row| row["destination_port"] == port);
        (of(rows("flows")), of(rows("drops")))
    };
    assert_eq!(here.call(How::Datagram, SocketAddr::new(host, 7002)).unwrap(), Said::Begun);
    assert!(here.again().unwrap().went_out());
    assert_eq!(known(7002), (true, false), "the control: on the host's own stack that is a flow of its tier");
    let mut caller = Caller::start(&scene.lab.world, &aside, &folder, CALLER).unwrap();
    for how in [How::Datagram, How::Connect] {
        assert_eq!(caller.call(how, SocketAddr::new(host, 7001)).unwrap(), Said::Begun, "{how:?}");
        assert!(caller.again().unwrap().went_out(), "{how:?}");
    }
    assert_eq!(known(7001), (false, false), "neither judged nor kept");
}

#[test]
fn a_flow_that_two_processors_begin_at_once_counts_both_packets() {
    const ROUNDS: usize = 16;
    const FLOWS: usize = 50;
    // A datagram of UDP for this port.
    let ours = |frame: &[u8]| frame.len() >= 43 && frame[23] == 17 && frame[36..38] == 9000_u16.to_be_bytes();
    let scene = Scene::new();
    let mut proxy = scene.unit("proxy.service");
    let _other = scene.unit("other.service");
    let partner = scene.outside(true);
    let to = SocketAddr::new(scene.lab.address(&partner, false).unwrap(), 9000);
    let agent = scene.agent(&policy(RULES));
    // A port that nobody has is an error at the next send.
    let _echo = Echo::start(&scene.lab.world, &[(partner.clone(), Kind::Udp(9000))]).unwrap();
    let arrive = Sniffer::start(&scene.lab.world, &partner).unwrap();
    // Its link-layer address is known from here on: what waits for that is kept in a short queue.
    assert_eq!(proxy.call(How::SendTo, to).unwrap(), Said::Begun);
    assert!(eventually(|| !arrive.frames(ours).is_empty()));
    for round in 1..=ROUNDS {
        assert_eq!(proxy.race(to, FLOWS).unwrap(), Said::Begun);
        let all = || arrive.frames(ours).len() > 2 * FLOWS * round;
        assert!(eventually(all), "{round}: {}", arrive.frames(ours).len());
    }
    let flows = agent.json(&scene.lab.world, &["flows", "--to", "partner", "--limit", "10000"]).unwrap();
    let flows = flows.as_array().unwrap();
    assert_eq!(flows.len(), ROUNDS * FLOWS + 1);
    let counted: u64 = flows.iter().filter_map(|f| f["packets"].as_u64()).sum();
    assert_eq!(counted, (2 * ROUNDS * FLOWS + 1) as u64, "each of them has arrived");
}
