//! What keeps a network going works while everything between tiers is denied: neighbour discovery, duplicate address detection,
//! multicast listener reports, DHCP, and the discovery of a path's MTU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::time::Duration;

use hydra_tests::agent::Agent;
use hydra_tests::lab::{Lab, SILENCE, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Probe, Stream, probe};
use hydra_tests::sample;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;

/// The sample without what it allows between all tiers, so that no rule lets ICMP pass.
fn strict() -> String {
    let policy = sample::policy();
    let kept: Vec<&str> = policy.lines().filter(|l| !l.contains("name: pings,")).collect();
    assert!(kept.len() < policy.lines().count());
    kept.join("\n") + "\n"
}

/// ICMPv6 messages of a type in what was received.
fn icmpv6(sniffer: &Sniffer, kinds: &[u8]) -> usize {
    let is = |f: &[u8]| f.len() > 54 && f[12..14] == [0x86, 0xdd] && f[20] == 58 && kinds.contains(&f[54]);
    sniffer.frames(is).len()
}

fn shown(world: &World, place: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = world.output(place, command).unwrap();
    assert!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn ipv6_connects_a_hundred_times_with_nobody_known_at_first() {
    let (lab, agent) = Lab::start(&strict()).unwrap();
    let _echo =
        Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004)), ("db".into(), Kind::Tcp(5432))]).unwrap();
    let ears: Vec<Sniffer> =
        ["shop", "db"].iter().map(|place| Sniffer::start(&lab.world, place).unwrap()).collect();
    let near = |to: &str| lab.deployment.topology.addresses(to).into_iter().rfind(IpAddr::is_ipv6).unwrap();
    let tries =
        |from: &str, to: IpAddr, port| Probe { from: from.into(), source: None, to, kind: Kind::Tcp(port) };
    // Over the gateway, to a neighbour on a bridge, and from another network.
    let probes = [
        tries("shop", lab.address("api", true).unwrap(), 8004),
        tries("api", near("db"), 5432),
        tries("cron", near("db"), 5432),
    ];
    for round in 0..100 {
        for place in [HOST, "shop", "api", "cron", "db"] {
            lab.world.ip(place, &["neigh flush all".into()]).unwrap();
        }
        let outcomes = probe(&lab.world, &probes, Duration::from_secs(10)).unwrap();
        assert_eq!(outcomes, [Outcome::Answered; 3], "round {round}");
    }
    // It was needed every time.
    for sniffer in &ears {
        assert!(icmpv6(sniffer, &[135, 136]) >= 100);
    }
    assert_eq!(lab.try_one("db", "api", Kind::Tcp(8004), true).unwrap(), Outcome::TimedOut);
    for reason in ["spoofed-neighbour", "spoofed-address", "header-chain", "malformed"] {
        assert_eq!(lab.dropped(&agent, reason).unwrap(), 0, "{reason}");
    }
}

#[test]
fn duplicate_addresses_are_found_and_others_are_not() {
    let (lab, agent) = Lab::start(&strict()).unwrap();
    let addresses = || shown(&lab.world, "cache", &["-6", "-oneline", "address", "show", "dev", "eth0"]);
    let line =
        |of: &str| addresses().lines().find(|l| l.contains(&format!("{of}/"))).unwrap_or_default().to_owned();
    lab.world.sysctl("cache", "net.ipv6.conf.eth0.accept_dad", "1").unwrap();
    lab.world.sysctl("cache", "net.ipv6.conf.eth0.dad_transmits", "1").unwrap();
    let db = lab.address("db", true).unwrap();
    for (address, taken) in [("fd70:3::99".parse::<IpAddr>().unwrap(), false), (db, true)] {
        lab.world.ip("cache", &[format!("address add {address}/64 dev eth0")]).unwrap();
        assert!(line(&address.to_string()).contains("tentative"), "{address} is believed at once");
        let decided = eventually(|| {
            !line(&address.to_string()).contains("tentative")
                || line(&address.to_string()).contains("dadfailed")
        });
        assert!(decided, "{}", line(&address.to_string()));
        assert_eq!(line(&address.to_string()).contains("dadfailed"), taken, "{}", line(&address.to_string()));
    }
    assert_eq!(lab.dropped(&agent, "spoofed-neighbour").unwrap(), 0);
}

#[test]
fn a_listener_report_reaches_the_link() {
    let (lab, agent) = Lab::start(&strict()).unwrap();
    let sniffer = Sniffer::start(&lab.world, "db").unwrap();
    let group: Ipv6Addr = "ff02::4859:4452".parse().unwrap();
    let index = lab.world.ifindex("cache", "eth0").unwrap();
    let _member = lab
        .world
        .enter("cache", || -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.join_multicast_v6(&group, index)?;
            Ok(socket)
        })
        .unwrap()
        .unwrap();
    assert!(eventually(|| !sniffer.with(&group.octets()).is_empty()), "no report arrives");
    assert_eq!(lab.dropped(&agent, "spoofed-neighbour").unwrap(), 0);
}

#[test]
fn dhcp_finds_its_server_in_both_families() {
    let (lab, agent) = Lab::start(&strict()).unwrap();
    let bridge = lab.deployment.bridge("store").unwrap();
    let bridge_index = lab.world.ifindex(HOST, &bridge).unwrap();
    let index = lab.world.ifindex("cache", "eth0").unwrap();
    let all: Ipv6Addr = "ff02::1:2".parse().unwrap();
    let patience = Some(Duration::from_secs(10));
    let (server6, server4) = lab
        .world
        .enter(HOST, || {
            let server6 = UdpSocket::bind("[::]:547").unwrap();
            server6.join_multicast_v6(&all, bridge_index).unwrap();
            (server6, UdpSocket::bind("0.0.0.0:67").unwrap())
        })
        .unwrap();
    let (client6, client4) = lab
        .world
        .enter("cache", || {
            let client4 = UdpSocket::bind("0.0.0.0:68").unwrap();
            client4.set_broadcast(true).unwrap();
            (UdpSocket::bind("[::]:546").unwrap(), client4)
        })
        .unwrap();
    for socket in [&server6, &server4, &client6, &client4] {
        socket.set_read_timeout(patience).unwrap();
    }
    let everybody6: SocketAddr = SocketAddrV6::new(all, 547, 0, index).into();
    let mut bytes = [0; 64];
    for (client, server, to) in
        [(&client6, &server6, everybody6), (&client4, &server4, "255.255.255.255:67".parse().unwrap())]
    {
        client.send_to(b"solicit", to).unwrap();
        let (length, from) =
            server.recv_from(&mut bytes).unwrap_or_else(|e| panic!("no question from {to}: {e}"));
        assert_eq!(&bytes[..length], b"solicit");
        server.send_to(b"advertise", from).unwrap();
        let (length, _) = client.recv_from(&mut bytes).unwrap_or_else(|e| panic!("no answer to {to}: {e}"));
        assert_eq!(&bytes[..length], b"advertise");
    }
    assert_eq!(lab.try_one("cache", "api", Kind::Tcp(8004), true).unwrap(), Outcome::TimedOut);
    drop::<Agent>(agent);
}

/// What a smaller next hop says: IPv4 "fragmentation needed", IPv6 "packet too big".
fn too_big(sniffer: &Sniffer) -> (usize, usize) {
    let v4 = |f: &[u8]| f.len() > 36 && f[12..14] == [8, 0] && f[23] == 1 && f[34..36] == [3, 4];
    (sniffer.frames(v4).len(), icmpv6(sniffer, &[2]))
}

/// Forgets what was learnt of paths.
fn forget_paths(world: &World, place: &str) {
    for family in ["-4", "-6"] {
        shown(world, place, &[family, "route", "flush", "cache"]);
    }
}

const ROUNDS: usize = 50;

/// A server inside answers a client outside, over an uplink that is smaller than everything else.
#[test]
fn a_smaller_uplink_is_found_out_every_time() {
    let (lab, agent) = Lab::start(&strict()).unwrap();
    let lines =
        ["198.51.100.2/32", "2001:db8:51::2/128"].map(|to| format!("route add {to} dev hyup0 mtu 1300"));
    lab.world.ip(HOST, &lines).unwrap();
    let _echo = Echo::start(&lab.world, &[("shop".into(), Kind::Tcp(80))]).unwrap();
    let ears = Sniffer::start(&lab.world, "shop").unwrap();
    for round in 0..ROUNDS {
        for v6 in [false, true] {
            forget_paths(&lab.world, "shop");
            let shop = lab.address("shop", v6).unwrap();
            let mut stream = Stream::open(&lab.world, "outside", (shop, 80).into()).unwrap();
            let done = stream.exchange(60_000, Duration::from_secs(10));
            assert!(done.is_ok(), "round {round}, IPv6 {v6}: {done:?}, {:?}", too_big(&ears));
        }
    }
    let (four, six) = too_big(&ears);
    assert!(four >= ROUNDS && six >= ROUNDS, "{four} and {six} times: it was not needed every time");
    assert_eq!(lab.dropped(&agent, "unmatched-icmp-error").unwrap(), 0);
}

/// Between containers of networks of different MTU: what goes straight from port to port must find out as well.
#[test]
fn a_smaller_network_is_found_out_every_time() {
    let lab = Lab::of(&strict()).unwrap();
    let back = lab.deployment.bridge("back").unwrap();
    let mut host = vec![format!("link set {back} mtu 1300")];
    for name in ["api", "cron", "app-other"] {
        host.push(format!("link set {} mtu 1300", World::port_name(name, 0)));
        lab.world.ip(name, &["link set eth0 mtu 1300".into()]).unwrap();
    }
    lab.world.ip(HOST, &host).unwrap();
    // The server's stack says that it takes more than its link does: otherwise nobody would try.
    let lines = ["10.70.2.1 advmss 1460", "fd70:2::1 advmss 1440"]
        .map(|via| format!("route change default via {via}"));
    lab.world.ip("api", &lines).unwrap();
    let agent = Agent::start(&lab.world, &strict()).unwrap();
    let _echo = Echo::start(&lab.world, &[("api".into(), Kind::Tcp(8004))]).unwrap();
    let ears = Sniffer::start(&lab.world, "shop").unwrap();
    for round in 0..ROUNDS {
        for v6 in [false, true] {
            forget_paths(&lab.world, "shop");
            let api = lab.address("api", v6).unwrap();
            let mut stream = Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap();
            let done = stream.exchange(60_000, Duration::from_secs(10));
            assert!(done.is_ok(), "round {round}, IPv6 {v6}: {done:?}, {:?}", too_big(&ears));
        }
    }
    let (four, six) = too_big(&ears);
    assert!(four >= ROUNDS && six >= ROUNDS, "{four} and {six} times: it was not needed every time");
    assert_eq!(lab.dropped(&agent, "unmatched-icmp-error").unwrap(), 0);
    let denied = probe(
        &lab.world,
        &[Probe {
            from: "shop".into(),
            source: None,
            to: lab.address("db", false).unwrap(),
            kind: Kind::Ping,
        }],
        SILENCE,
    );
    assert_eq!(denied.unwrap(), [Outcome::TimedOut]);
}
