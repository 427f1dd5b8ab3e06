//! What a port that nobody knows yet can reach: nothing that is protected, whatever the agent is doing meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that can't go on ends here, and says how long things took"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hydra_tests::agent::Agent;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::probe::{Echo, Kind};
use hydra_tests::sample;
use hydra_tests::sniffer::Sniffer;
use hydra_tests::topology::{Container, HOST, Port};
use hydra_tests::world::World;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

/// A port that no service has, and that the policy lets nobody use who is not of the same tier.
const PORT: u16 = 9998;
/// Who may see something of it, and sees nothing.
const PLACES: [&str; 5] = ["db", "api", "shop", "outside", "stranger"];

/// Two containers on the bridge of the tier `data`.
fn newcomers(lab: &Lab) -> [Container; 2] {
    [("hynew", "50"), ("hyother", "51")].map(|(name, last)| Container {
        name: name.to_owned(),
        ports: vec![Port {
            bridge: lab.deployment.topology.bridges[2].name.clone(),
            addresses: vec![
                format!("10.70.3.{last}/24").parse().unwrap(),
                format!("fd70:3::{last}/64").parse().unwrap(),
            ],
        }],
    })
}

/// Adds them; the first knows everybody's MAC, so that its packets leave without a question.
fn come(lab: &mut Lab) {
    for container in newcomers(lab) {
        lab.world.add_container(&container).unwrap();
    }
    let bridge = lab.deployment.topology.bridges[2].name.clone();
    let mut known = vec![(HOST, bridge.clone(), HOST), ("hyother", "eth0".to_owned(), "hyother")];
    for place in ["db", "api"] {
        let container = lab.deployment.topology.containers.iter().find(|c| c.name == place).unwrap();
        let index = container.ports.iter().position(|p| p.bridge == bridge).unwrap();
        known.push((place, format!("eth{index}"), place));
    }
    let mut lines = Vec::new();
    for (place, interface, of) in known {
        let mac = lab.world.mac(place, &interface).unwrap().map(|b| format!("{b:02x}")).join(":");
        let addresses = lab.world.topology().addresses(of).into_iter();
        for address in addresses
            .filter(|a| a.to_string().starts_with("10.70.3.") || a.to_string().starts_with("fd70:3:"))
        {
            lines.push(format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
        }
    }
    lab.world.ip("hynew", &lines).unwrap();
}

fn go(lab: &mut Lab) {
    for name in ["hynew", "hyother"] {
        lab.world.remove_container(name).unwrap();
    }
}

/// Sends a mark from the newcomer to everybody, in every way, a few times.
fn send(lab: &Lab, mark: &str) {
    let index = lab.world.ifindex("hynew", "eth0").unwrap();
    let mut to: Vec<SocketAddr> = PLACES
        .iter()
        .chain(&["hyother", HOST])
        .flat_map(|place| lab.world.topology().addresses(place))
        .map(|address: IpAddr| SocketAddr::new(address, PORT))
        .collect();
    to.push(SocketAddr::from(([10, 70, 3, 255], PORT)));
    to.push(SocketAddr::from(([224, 0, 0, 251], PORT)));
    to.push(SocketAddrV6::new("ff02::1".parse().unwrap(), PORT, 0, index).into());
    let send = || {
        let v4 = UdpSocket::bind("0.0.0.0:0").unwrap();
        v4.set_broadcast(true).unwrap();
        let v6 = UdpSocket::bind("[::]:0").unwrap();
        for _ in 0..3 {
            for to in &to {
                let socket = if to.is_ipv6() { &v6 } else { &v4 };
                let _ = socket.send_to(mark.as_bytes(), to);
            }
            thread::sleep(Duration::from_millis(20));
        }
    };
    lab.world.enter("hynew", send).unwrap();
}

/// A connection from one newcomer to the other, tcp/22 on both ends: nobody saw who began it, and either direction is denied.
fn connect(lab: &Lab) -> TcpStream {
    let connect = || -> nix::Result<OwnedFd> {
        let any = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, any, SockProtocol::Tcp)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(10, 70, 3, 50, 22))?;
        nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrIn::new(10, 70, 3, 51, 22))?;
        Ok(fd)
    };
    let stream = TcpStream::from(lab.world.enter("hynew", connect).unwrap().unwrap());
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream
}

/// Whether it still carries anything: a byte there and back.
fn turn(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"h")?;
    stream.read_exact(&mut [0; 1])
}

#[test]
fn an_unknown_port_reaches_nothing_but_other_unknown_ports_of_its_bridge() {
    let mut lab = Lab::of(&sample::policy()).unwrap();
    let host = Echo::start(&lab.world, &[(HOST.to_owned(), Kind::Udp(PORT))]).unwrap();
    come(&mut lab);
    let watching: Vec<Sniffer> = PLACES.iter().map(|p| Sniffer::start(&lab.world, p).unwrap()).collect();
    let arrived =
        |mark: &str| -> Vec<usize> { watching.iter().map(|s| s.with(mark.as_bytes()).len()).collect() };
    let reached_host = || host.receipts().len();
    assert!(
        eventually(|| {
            send(&lab, "without");
            arrived("without").iter().all(|n| *n >= 2) && reached_host() > 0
        }),
        "without hydra all of it arrives: {:?}, {} at the host",
        arrived("without"),
        reached_host()
    );
    go(&mut lab);

    let mut agent = Agent::start(&lab.world, &sample::policy()).unwrap();
    for state in ["stopped", "dead"] {
        let dead = state == "dead";
        let before = reached_host();
        let running = if dead {
            agent.kill().unwrap();
            None
        } else {
            agent.freeze(true).unwrap();
            Some(agent)
        };
        come(&mut lab);
        let other = Sniffer::start(&lab.world, "hyother").unwrap();
        send(&lab, state);
        assert!(other.wait_for(state.as_bytes(), Duration::from_secs(5)), "neither of the two is known");
        assert_eq!(arrived(state), [0; PLACES.len()], "{state}: {PLACES:?}");
        assert_eq!(reached_host(), before, "{state}: the host");

        // What two of them began is judged like everything else once they are known.
        let _echo = Echo::start(&lab.world, &[("hyother".to_owned(), Kind::Tcp(22))]).unwrap();
        let mut stream = connect(&lab);
        turn(&mut stream).unwrap();
        agent = if let Some(agent) = running {
            agent.freeze(false).unwrap();
            agent
        } else {
            Agent::start_with(&lab.world, &[]).unwrap()
        };
        let since = Instant::now();
        while turn(&mut stream).is_ok() {
            assert!(since.elapsed() < Duration::from_secs(20), "{state}: a denied flow lives on");
        }
        println!("{state}: a flow of the window ended {:?} after the agent was back", since.elapsed());
        assert!(eventually(|| lab.dropped(&agent, "rule").unwrap() > 0), "{state}: by the rule no-ssh");
        go(&mut lab);
    }
}

#[test]
fn a_new_port_has_its_programs_while_every_pass_is_held_up() {
    let (mut lab, agent) = Lab::start(&sample::policy()).unwrap();
    // Without programs the two reach each other.
    agent.freeze(true).unwrap();
    come(&mut lab);
    let other = Sniffer::start(&lab.world, "hyother").unwrap();
    send(&lab, "frozen");
    assert!(other.wait_for(b"frozen", Duration::from_secs(5)), "neither of the two is known");
    go(&mut lab);
    agent.freeze(false).unwrap();
    let before = lab.dropped(&agent, "unknown-source").unwrap();

    let ports = ["hynew", "hyother"].map(|name| World::port_name(name, 0));
    let covered = |lab: &Lab| ports.iter().all(|port| lab.filters(port).unwrap() == 2);
    // Those who put programs on new ports may have to wait once for a pass that was stopped at the wrong moment.
    let held = (0..3).find_map(|_| {
        let held = agent.hold_all_but(&["hydra-links", "hydra-ports"]).unwrap();
        come(&mut lab);
        if eventually(|| covered(&lab)) {
            return Some(held);
        }
        go(&mut lab);
        None
    });
    assert!(held.is_some(), "no programs without a pass");
    let other = Sniffer::start(&lab.world, "hyother").unwrap();
    send(&lab, "held up");
    drop(held);
    let denied = || lab.dropped(&agent, "unknown-source").unwrap() > before;
    assert!(eventually(denied), "{}", agent.json(&lab.world, &["drops", "--totals"]).unwrap());
    assert_eq!(other.with(b"held up").len(), 0, "either port carries programs");
    let linked = || ports.iter().all(|port| lab.filters(port).unwrap() == 0);
    assert!(eventually(linked), "links take the filters' places");
}

#[test]
fn a_link_takes_a_filters_place_and_no_packet_passes_both_but_for_an_instant() {
    let rule = format!("  - {{ name: out, from: data, to: external, ports: [udp/{PORT}] }}\n");
    let (mut lab, agent) = Lab::start(&(sample::policy() + &rule)).unwrap();
    let (port, to) = (World::port_name("hynew", 0), (lab.address("outside", false).unwrap(), PORT));
    // How many were counted twice. A link waits for a grace period of some milliseconds, so in each round many would be.
    let mut twice = Vec::new();
    while twice.len() < 5 && twice.iter().all(|over| *over > 5) {
        come(&mut lab);
        assert!(eventually(|| lab.filters(&port).unwrap() == 2), "the port is covered");
        let open = || lab.world.enter("hynew", || UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        let (first, outside) = (open(), Sniffer::start(&lab.world, "outside").unwrap());
        assert!(eventually(|| first.send_to(b"first", to).is_ok() && !outside.with(b"first").is_empty()));
        assert_eq!(lab.filters(&port).unwrap(), 2, "what is enforced is enforced by filters");
        drop(outside);
        let (socket, stop) = (open(), AtomicBool::new(false));
        let sent: u64 = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    sent += u64::from(socket.send_to(b"flood", to).is_ok());
                    thread::sleep(Duration::from_micros(50));
                }
                sent
            });
            let linked = eventually(|| lab.filters(&port).unwrap() == 0);
            stop.store(true, Ordering::Relaxed);
            assert!(linked, "links take the filters' places");
            flood.join().unwrap()
        });
        let own = u64::from(socket.local_addr().unwrap().port());
        let flows = agent.json(&lab.world, &["flows"]).unwrap();
        let flow = flows.as_array().unwrap().iter().find(|f| f["source_port"] == own && f["rule"] == "out");
        let counted = flow.unwrap()["packets"].as_u64().unwrap();
        println!("{sent} sent, {counted} counted");
        assert!(counted >= sent && sent > 1000, "{counted} of {sent}: none goes around both");
        twice.push(counted - sent);
        go(&mut lab);
    }
    assert!(twice.iter().any(|over| *over <= 5), "{twice:?} packets were counted twice");
}

#[test]
fn the_time_that_a_port_waited_is_measured_once_for_each() {
    let (mut lab, agent) = Lab::start(&sample::policy()).unwrap();
    let count = |agent: &Agent, lab: &Lab| agent.metric(&lab.world, "hydra_attach_seconds_count").unwrap();
    assert!(
        count(&agent, &lab) < 0.5,
        "ports that were there before the agent waited for nothing that it saw"
    );
    for round in 1..=10 {
        for container in newcomers(&lab) {
            lab.world.add_container(&container).unwrap();
        }
        let wanted = f64::from(2 * round);
        assert!(eventually(|| count(&agent, &lab) >= wanted), "{}", agent.metrics(&lab.world).unwrap());
        assert!(count(&agent, &lab) < wanted + 0.5);
        go(&mut lab);
    }
    let metrics = agent.metrics(&lab.world).unwrap();
    for line in metrics.lines().filter(|line| line.starts_with("hydra_attach_seconds")) {
        println!("{line}");
    }
    assert!(agent.metric(&lab.world, "hydra_attach_seconds_sum").unwrap() > 0.0);
    // Containers that come and go are nobody else.s hand.
    assert!(agent.metric(&lab.world, "hydra_repairs_total").unwrap() < 0.5, "{}", agent.log().join("\n"));
}
