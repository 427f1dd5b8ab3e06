//! Containers without a port on this host: on a macvlan network they are judged at their sockets, by the same rules and flows.
#![allow(clippy::unwrap_used, reason = "a test that can't go on ends here")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hydra_common::address::{Address, Mac};
use hydra_tests::agent::Agent;
use hydra_tests::caller::{Caller, Said};
use hydra_tests::engine::container::{Attachment, Container, Network};
use hydra_tests::engine::stage::rows;
use hydra_tests::engine::{Engine, Options, Version, user};
use hydra_tests::lab::eventually;
use hydra_tests::packets::{Packet, Transport};
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{HOST, Machine, Topology};

const CALLER: &str = env!("CARGO_BIN_EXE_hydra-caller");
/// What `curl` ends with when the kernel refuses the connection.
const REFUSED: i32 = 7;
/// Of `page`, of `vault` on the same network, of `vault` on its bridge, and of the machine outside.
const OWN: [&str; 2] = ["198.51.100.20", "2001:db8:7::20"];
const OTHER: [&str; 2] = ["198.51.100.21", "2001:db8:7::21"];
const BRIDGED: &str = "172.31.1.21";
const USER: [&str; 2] = ["198.51.100.2", "2001:db8:7::2"];

const LAN: &str = "
version: 1
name: lan
tiers:
  lan: { networks: [hylan] }
  apps: { networks: [hyapps] }
  stores: { services: { vault: { containers: [vault] }, safe: { containers: [safe] } } }
rules:
  - { name: in,   from: external, to: lan,    ports: [tcp/80] }
  - { name: pair, from: lan,      to: stores, ports: [tcp/80, udp/7000] }
  - { name: out,  from: lan,      to: external, ports: [tcp/9000, udp/9002] }
  - { name: web,  from: external, to: stores, ports: [tcp/80] }
  - { name: back, from: apps,     to: stores, ports: [tcp/81] }
  - { name: far,  from: apps,     to: lan,    ports: [tcp/80] }
  - { name: say,  from: external, to: lan,    ports: [udp/7001, udp/7002] }
";

#[test]
fn containers_on_macvlan_on_20() {
    lan(Version::V20).unwrap();
}

#[test]
fn containers_on_macvlan_on_28() {
    lan(Version::V28).unwrap();
}

/// `page` is on the network of the uplink alone, `vault` on it and on a bridge, `shop` on the bridge alone.
fn scene(version: Version) -> Result<Engine> {
    let addresses = |text: [&str; 2]| text.map(str::parse::<IpAddr>);
    let user = addresses(USER).into_iter().collect::<Result<_, _>>()?;
    let around = Topology {
        uplink: vec!["198.51.100.1/24".parse()?, "2001:db8:7::1/64".parse()?],
        machines: vec![Machine { name: "user".to_owned(), addresses: user }],
        ..Topology::default()
    };
    let mut engine = Engine::start(version, Options::default(), &around)?;
    engine.add_network(&Network::new("hyapps", &["172.31.1.1/24"]))?;
    let made = "network create --driver=macvlan --opt=parent=hyup0 --ipv6 --subnet=198.51.100.0/24 --gateway=198.51.100.9 \
                --subnet=2001:db8:7::/64 --gateway=2001:db8:7::9 hylan";
    engine.docker(&made.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>())?;
    let vault = [("hylan", &OTHER[..]), ("hyapps", &[BRIDGED][..])];
    engine.add_containers(&[
        container("page", &[("hylan", &OWN[..])])?,
        container("vault", &vault)?,
        Container::new("shop", &["hyapps"], "web 80"),
    ])?;
    for name in ["page", "vault", "shop"] {
        engine.exec_until(name, &["curl", "-sS", "http://127.0.0.1/"])?;
    }
    for name in ["page", "vault"] {
        engine.adopt(name)?;
    }
    // On the same wire, and not behind this host.
    let routes = ["198.51.100.16/28 dev eth0", "2001:db8:7::20/123 dev eth0"];
    let mut lines: Vec<String> = routes.iter().map(|route| format!("route add {route}")).collect();
    lines.push("route add broadcast 198.51.100.255 dev eth0 table local".to_owned());
    engine.world().ip("user", &lines)?;
    // Who is on a bridge comes by a router: the host itself does not reach what is on its own interface.
    for (name, value) in
        [("ip_forward", "1"), ("conf.all.send_redirects", "0"), ("conf.eth0.send_redirects", "0")]
    {
        engine.world().sysctl("user", &format!("net.ipv4.{name}"), value)?;
    }
    engine.world().ip(HOST, &["route add 198.51.100.20 via 198.51.100.2".to_owned()])?;
    engine.world().ip("page", &["route add 198.51.100.1 via 198.51.100.2".to_owned()])?;
    Ok(engine)
}

fn container(name: &str, networks: &[(&str, &[&str])]) -> Result<Container> {
    let mut container = Container::new(name, &[], "web 80 81");
    for (network, addresses) in networks {
        let addresses = addresses.iter().map(|a| a.parse()).collect::<Result<_, _>>()?;
        container.networks.push(Attachment { network: (*network).to_owned(), addresses });
    }
    Ok(container)
}

/// Asks web servers from inside a container, all at once: `curl` must end like this.
fn inside(engine: &Engine, from: &str, asked: &[(&str, u16, i32)]) -> Result<()> {
    const SCRIPT: &str = "for url; do { curl -gsS -o /dev/null --max-time 2 \"$url\" 2>/dev/null; echo \"$url $?\"; } & done; wait";
    let url = |to: &str, port: u16| {
        if to.contains(':') { format!("http://[{to}]:{port}/") } else { format!("http://{to}:{port}/") }
    };
    let urls: Vec<String> = asked.iter().map(|(to, port, _)| url(to, *port)).collect();
    let mut command = vec!["sh", "-c", SCRIPT, "sh"];
    command.extend(urls.iter().map(String::as_str));
    let said = String::from_utf8(engine.exec(from, &command)?.stdout)?;
    for (url, (_, _, code)) in urls.iter().zip(asked) {
        let wanted = format!("{url} {code}");
        ensure!(said.lines().any(|line| line == wanted), "{from}: not `{wanted}`: {said}");
    }
    Ok(())
}

/// The same from the machine outside: whether there is an answer.
fn outside(engine: &Engine, asked: &[(&str, u16, bool)]) -> Result<()> {
    let said: Vec<Result<bool>> = thread::scope(|scope| {
        let ask = |to, port| move || Ok(user::ask(engine, to, port)?.is_some());
        let all: Vec<_> = asked.iter().map(|&(to, port, _)| scope.spawn(ask(to, port))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (said, (to, port, passes)) in said.into_iter().zip(asked) {
        ensure!(said? == *passes, "from outside to {to} {port}: not {passes}");
    }
    Ok(())
}

/// Answers everybody on a port of the machine outside, for as long as the test's process lives.
fn answer(engine: &Engine, at: &str, port: u16) -> Result<()> {
    let at: IpAddr = at.parse()?;
    let server = engine.world().enter("user", || TcpListener::bind((at, port)))??;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            // One that ends early has been asked by nobody.
            let _ = stream.read(&mut [0; 1024]).and_then(|_| stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n"));
        }
    });
    Ok(())
}

/// A socket of the machine outside.
fn socket(engine: &Engine, port: u16) -> Result<UdpSocket> {
    let socket = engine.world().enter("user", || UdpSocket::bind((USER[0], port)))??;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Sends a datagram until somebody sends it back, and says who.
fn echo(socket: &UdpSocket, to: &str) -> Result<String> {
    socket.send_to(b"hydra", to)?;
    let (_, from) = socket.recv_from(&mut [0; 16]).with_context(|| format!("{to} sends nothing back"))?;
    Ok(from.to_string())
}

/// Whether a denial or would-be denial was told.
fn told(engine: &Engine, agent: &Agent, wanted: &[(&str, &str)]) -> Result<()> {
    let found =
        || -> Result<bool> { Ok(!rows(&agent.json(engine.world(), &["drops"])?, wanted)?.is_empty()) };
    if !eventually(|| found().unwrap_or(false)) {
        let drops = agent.json(engine.world(), &["drops"])?;
        ensure!(found()?, "nothing with {wanted:?}: {drops:#}");
    }
    Ok(())
}

/// Datagrams for `vault`'s `udp/7000`, from somebody else and from `page` itself, with these words in them.
fn datagrams(forged: &str, own: &str) -> Result<[Vec<u8>; 2]> {
    let to: IpAddr = OTHER[0].parse()?;
    let packet = |from: &str, what: &str| -> Result<Vec<u8>> {
        let what = Transport::Udp(4000, 7000, what.as_bytes().to_vec());
        Ok(Packet::new(from.parse::<IpAddr>()?, to, what).bytes())
    };
    Ok([packet("198.51.100.77", forged)?, packet(OWN[0], own)?])
}

fn lan(version: Version) -> Result<()> {
    let mut engine = scene(version)?;
    for (family, port) in [(0, 9000), (0, 9001), (1, 9000), (1, 9001)] {
        answer(&engine, USER[family], port)?;
    }
    let mut caller = Caller::start(engine.world(), "page", &engine.cgroup_of("page")?, CALLER)?;
    for port in [7001, 7002] {
        caller.listen(port)?;
    }
    let sniffer = Sniffer::start(engine.world(), "vault")?;
    let patience = Duration::from_secs(10);
    let (broadcast, peer) = (socket(&engine, 9002)?, socket(&engine, 9003)?);
    let (own_hears, all_hear) = (format!("{}:7002", OWN[0]), "198.51.100.255:7001");

    // The controls: without hydra everything passes.
    for at in 0..2 {
        outside(&engine, &[OWN, OTHER].map(|to| [80, 81].map(|port| (to[at], port, true))).concat())?;
        let others = [(OTHER[at], 80, 0), (OTHER[at], 81, 0), (USER[at], 9000, 0), (USER[at], 9001, 0)];
        inside(&engine, "page", &others)?;
        inside(&engine, "vault", &[(OWN[at], 80, 0)])?;
    }
    inside(&engine, "shop", &[(BRIDGED, 80, 0), (BRIDGED, 81, 0), (OWN[0], 80, 0), (OWN[0], 81, 0)])?;
    let [forged, _] = datagrams("forged before", "")?;
    ensure!(caller.send(&forged)? == Said::Begun, "a raw socket does not send without hydra");
    ensure!(sniffer.wait_for(b"forged before", patience), "not delivered without hydra");
    for to in [all_hear, &own_hears] {
        echo(&broadcast, to)?;
    }
    // Open before hydra comes: only the hook on its packets sees this one.
    let talks = "exec 3>/dev/udp/198.51.100.2/9001; while sleep 0.1; do echo x >&3; done";
    engine.docker(&["exec", "--detach", "page", "bash", "-c", talks])?;

    // What is only audited is told, and dropped nowhere.
    let agent = engine.agent_on_processes(&LAN.replace("name: lan\n", "name: lan\nmode: audit\n"))?;
    let status = agent.json(engine.world(), &["status"])?;
    ensure!(status["not_enforced"].as_array().is_some_and(Vec::is_empty), "{status:#}");
    outside(&engine, &[OWN, OTHER].map(|to| to.map(|to| (to, 81, true))).concat())?;
    inside(&engine, "page", &[(OTHER[0], 81, 0), (OTHER[1], 81, 0), (USER[0], 9001, 0), (USER[1], 9001, 0)])?;
    let [forged, _] = datagrams("forged audited", "")?;
    ensure!(caller.send(&forged)? == Said::Begun, "refused by an audited policy");
    ensure!(sniffer.wait_for(b"forged audited", patience), "not delivered by an audited policy");
    for (hook, reason, destination) in [
        ("cgroup-out", "no-rule", OTHER[1]),
        ("cgroup-in", "no-rule", OWN[1]),
        ("cgroup-out", "spoofed-address", OTHER[0]),
    ] {
        let wanted =
            [("verdict", "audited"), ("hook", hook), ("reason", reason), ("destination", destination)];
        told(&engine, &agent, &wanted)?;
    }

    agent.apply(engine.world(), LAN)?;
    let endpoints = agent.json(engine.world(), &["endpoints"])?;
    for (container, addresses, tier) in [("page", OWN, "lan"), ("vault", OTHER, "stores")] {
        for address in addresses {
            let row = [("container", container), ("address", address), ("tier", tier), ("network", "hylan")];
            ensure!(!rows(&endpoints, &row)?.is_empty(), "{endpoints:#}");
        }
    }
    // The kernels ask for their neighbours anew.
    for place in ["page", "vault", "user"] {
        engine.world().ip(place, &["neigh flush dev eth0".to_owned()])?;
    }
    let both = |to: [&'static str; 2], port, passes| to.map(|to| (to, port, passes));
    outside(
        &engine,
        &[both(OWN, 80, true), both(OWN, 81, false), both(OTHER, 80, true), both(OTHER, 81, false)].concat(),
    )?;
    let codes = |to: [&'static str; 2], port, code| to.map(|to| (to, port, code));
    let asked =
        [codes(OTHER, 80, 0), codes(OTHER, 81, REFUSED), codes(USER, 9000, 0), codes(USER, 9001, REFUSED)];
    inside(&engine, "page", &asked.concat())?;
    inside(&engine, "vault", &codes(OWN, 80, REFUSED))?;
    // From the address that it makes of its MAC where a router of the network lets it.
    let mac = Mac(engine.world().mac("page", "eth0")?);
    let mut made = [0; 16];
    made[..8].copy_from_slice(&OWN[1].parse::<Ipv6Addr>()?.octets()[..8]);
    made[8..].copy_from_slice(&Address::link_local_of(&mac).octets()[8..]);
    let made = Ipv6Addr::from(made).to_string();
    engine.world().ip("page", &[format!("addr add {made}/64 dev eth0 nodad")])?;
    engine.world().ip("user", &[format!("route add {made}/128 dev eth0")])?;
    let url = format!("http://[{}]:9000/", USER[1]);
    let said = engine.exec("page", &["curl", "-gsS", "--max-time", "2", "--interface", &made, &url])?;
    ensure!(said.status.success(), "from {made}: {}", String::from_utf8_lossy(&said.stderr));
    inside(
        &engine,
        "shop",
        &[(BRIDGED, 81, 0), (BRIDGED, 80, REFUSED), (OWN[0], 80, 0), (OWN[0], 81, REFUSED)],
    )?;
    let open = [("hook", "cgroup-out"), ("reason", "no-rule"), ("source", OWN[0]), ("protocol", "udp")];
    told(&engine, &agent, &[&open[..], &[("verdict", "denied")]].concat())?;
    for (tier, to) in [("lan", OWN), ("stores", OTHER)] {
        for destination in to {
            let wanted = [
                ("verdict", "denied"),
                ("hook", "cgroup-in"),
                ("reason", "no-rule"),
                ("source_tier", "external"),
                ("destination_tier", tier),
                ("destination", destination),
                ("destination_port", "81"),
            ];
            told(&engine, &agent, &wanted)?;
        }
    }
    let flows = agent.json(engine.world(), &["flows"])?;
    let pair = rows(&flows, &[("source_tier", "lan"), ("destination_tier", "stores"), ("rule", "pair")])?;
    ensure!(!pair.is_empty(), "{flows:#}");

    // Somebody else's address.
    let [forged, own] = datagrams("forged denied", "its own word")?;
    ensure!(caller.send(&forged)? == Said::REFUSED, "a forged address is not refused");
    ensure!(caller.send(&own)? == Said::Begun, "its own is");
    ensure!(sniffer.wait_for(b"its own word", patience), "the sniffer is deaf");
    ensure!(sniffer.with(b"forged denied").is_empty(), "a forged address was delivered");
    let wanted = [
        ("verdict", "denied"),
        ("hook", "cgroup-out"),
        ("reason", "spoofed-address"),
        ("source", "198.51.100.77"),
    ];
    told(&engine, &agent, &wanted)?;
    // What is for all of the network, by the outside's right.
    ensure!(echo(&broadcast, all_hear)? == format!("{}:7001", OWN[0]), "answered by somebody else");

    // What is open goes by the policy of now: a container without a port as any.
    let tightened = LAN
        .replace("name: in, ", "name: none,")
        .replace("tcp/80] }\n  - { name: pair", "tcp/8] }\n  - { name: pair");
    agent.apply(engine.world(), &tightened)?;
    outside(&engine, &[both(OWN, 80, false), both(OTHER, 80, true)].concat())?;

    // Another container on its address, of a tier that may less: what its peer goes on to say is not the old one's.
    ensure!(echo(&peer, &own_hears)? == own_hears, "answered by somebody else");
    drop(caller);
    engine.remove_container("page")?;
    engine.add_container(&container("safe", &[("hylan", &OWN[..])])?)?;
    engine.adopt("safe")?;
    let mut caller = Caller::start(engine.world(), "safe", &engine.cgroup_of("safe")?, CALLER)?;
    caller.listen(7002)?;
    let there = || -> Result<bool> {
        let endpoints = agent.json(engine.world(), &["endpoints"])?;
        Ok(!rows(&endpoints, &[("container", "safe"), ("address", OWN[0]), ("tier", "stores")])?.is_empty())
    };
    ensure!(eventually(|| there().unwrap_or(false)), "the agent does not see who has come");
    peer.send_to(b"hydra", &own_hears)?;
    let wanted = [
        ("verdict", "denied"),
        ("hook", "cgroup-in"),
        ("reason", "no-rule"),
        ("destination_tier", "stores"),
        ("destination", OWN[0]),
        ("destination_port", "7002"),
    ];
    told(&engine, &agent, &wanted)?;
    peer.set_nonblocking(true)?;
    ensure!(peer.recv_from(&mut [0; 16]).is_err(), "what was denied was answered");
    engine.exec_until("safe", &["curl", "-sS", "http://127.0.0.1/"])?;
    inside(&engine, "vault", &codes(OWN, 80, 0))?;
    Ok(())
}
