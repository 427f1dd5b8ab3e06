//! `limit` and `expires` on the whole product: they hold and end in the kernel, whether the agent lives or was killed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use hydra_tests::agent::Agent;
use hydra_tests::lab::{Lab, eventually};
use hydra_tests::probe::{Echo, Kind, Outcome, Stream};
use hydra_tests::sample::TIERS;
use hydra_tests::sniffer::Sniffer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SHORT: Duration = Duration::from_secs(1);
/// Long enough for a start and a connection on a busy machine before it is over.
const LIFE: Duration = Duration::from_secs(12);

fn policy(rules: &str) -> String {
    format!("version: 1\nname: ends\n{TIERS}rules:\n{rules}")
}

fn unix() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

/// The second in which a rule that begins now ends, and how a policy writes it.
fn soon() -> (u64, String) {
    let end = unix().as_secs() + LIFE.as_secs();
    let text = OffsetDateTime::from_unix_timestamp(end.cast_signed()).unwrap().format(&Rfc3339).unwrap();
    (end, text)
}

/// Turns until the connection goes on no more, and gives the moment of the last turn that did.
fn until_it_ends(stream: &mut Stream) -> Duration {
    let mut last = Duration::ZERO;
    let start = Instant::now();
    while stream.turn(SHORT).is_ok() {
        last = unix();
        assert!(start.elapsed() < 4 * LIFE, "the connection goes on for ever");
    }
    last
}

/// A rule that ends under a live connection, another one that goes on, and what follows for new flows.
fn a_rule_ends(kill: bool) {
    let (lab, agent) = Lab::start(&policy("  - { name: none, from: data, to: web }\n")).unwrap();
    let (end, text) = soon();
    let rules = format!(
        "  - {{ name: brief, from: web/shop, to: app/api, ports: tcp/8004, expires: '{text}' }}
  - {{ name: brief-too, from: web/shop, to: app/api, ports: udp/8005, expires: '{text}' }}
  - {{ name: shut, from: web/shop, to: app/api, ports: tcp/8006, action: deny, expires: '{text}' }}
  - {{ name: lasting, from: web/shop, to: app/api, ports: [udp/8005, tcp/8006, tcp/8007] }}\n"
    );
    agent.apply(&lab.world, &policy(&rules)).unwrap();
    let listeners = [Kind::Tcp(8004), Kind::Udp(8005), Kind::Tcp(8006), Kind::Tcp(8007)];
    let _echo = Echo::start(&lab.world, &listeners.map(|kind| ("api".to_owned(), kind))).unwrap();
    let api = lab.address("api", false).unwrap();
    let mut kept = Stream::open(&lab.world, "shop", (api, 8007).into()).unwrap();
    let mut brief = Stream::open(&lab.world, "shop", (api, 8004).into()).unwrap();
    brief.turn(SHORT).unwrap();
    assert_eq!(lab.flows(&agent, "shop", "api").unwrap().iter().filter(|f| f["rule"] == "brief").count(), 1);
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8006), false).unwrap(), Outcome::TimedOut);
    assert!(
        unix().as_secs() < end,
        "the machine was too slow for this test: the rules ended before their flows began"
    );
    let mut agent = Some(agent);
    if kill {
        agent.take().unwrap().kill().unwrap();
    }
    let last = until_it_ends(&mut brief);
    // Not before its time, by the two seconds that the clocks may differ.
    assert!(last.as_secs() + 3 >= end, "it ended {} s early", end - last.as_secs());
    assert!(last.as_secs() < end + 2, "it went on for {} s", last.as_secs() - end);
    kept.turn(SHORT).unwrap();
    let sniffer = Sniffer::start(&lab.world, "api").unwrap();
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), false).unwrap(), Outcome::TimedOut);
    let calls =
        |port: u16| sniffer.frames(|f| f.len() > 38 && f[23] == 6 && f[36..38] == port.to_be_bytes()).len();
    assert_eq!(calls(8004), 0, "a new connection was delivered");
    // What stands behind: the next rule for UDP, and the rule that the deny rule hid.
    assert_eq!(lab.try_one("shop", "api", Kind::Udp(8005), false).unwrap(), Outcome::Answered);
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8006), false).unwrap(), Outcome::Answered);
    assert!(calls(8006) > 0, "the control: what is delivered is seen");

    let agent = agent.unwrap_or_else(|| Agent::start_with(&lab.world, &[]).unwrap());
    let mut told = String::new();
    let named = |rows: &serde_json::Value, reason: &str| {
        rows.as_array().unwrap().iter().any(|r| r["reason"] == reason && r["destination_port"] == 8004)
    };
    assert_eq!(lab.try_one("shop", "api", Kind::Tcp(8004), false).unwrap(), Outcome::TimedOut);
    assert!(
        eventually(|| {
            let rows = agent.json(&lab.world, &["drops", "--from", "shop"]).unwrap();
            told = rows.to_string();
            named(&rows, "no-rule")
        }),
        "{told}"
    );
    let rules: Vec<String> = lab
        .flows(&agent, "shop", "api")
        .unwrap()
        .iter()
        .filter(|f| f["destination_port"] == 8005 || f["destination_port"] == 8006)
        .map(|f| f["rule"].as_str().unwrap().to_owned())
        .collect();
    assert!(rules.len() >= 2 && rules.iter().all(|r| r == "lasting"), "{rules:?}");
    kept.turn(SHORT).unwrap();
}

#[test]
fn a_rule_ends_while_the_agent_lives() {
    a_rule_ends(false);
}

#[test]
fn a_rule_ends_after_the_agent_was_killed() {
    a_rule_ends(true);
}

/// Sends one datagram from each port to a place and port; what is denied is lost like any other.
fn send_each(lab: &Lab, from: &str, to: SocketAddr, ports: impl Iterator<Item = u16> + Send) -> u64 {
    let address = lab.address(from, to.is_ipv6()).unwrap();
    lab.world
        .enter(from, || {
            ports
                .map(|port| {
                    let socket = UdpSocket::bind((address, port)).unwrap();
                    u64::from(socket.send_to(b"hydra", to).is_ok())
                })
                .sum()
        })
        .unwrap()
}

#[test]
fn a_source_over_its_limit_is_denied_and_named_and_no_other_is() {
    let rules = "  - { name: login, from: web, to: app/api, ports: udp/8005, limit: 6000/min }\n";
    let (lab, agent) = Lab::start(&policy(rules)).unwrap();
    let api: IpAddr = lab.address("api", false).unwrap();
    let to = SocketAddr::from((api, 8005));
    let receiver = lab.world.enter("api", || UdpSocket::bind(to)).unwrap().unwrap();
    // What is delivered must not be lost for want of room.
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).unwrap();
    let (shop, other) = (lab.address("shop", false).unwrap(), lab.address("web-other", false).unwrap());
    // Who has sent how many first datagrams, until one comes from port 1.
    let counting = std::thread::spawn(move || {
        let (mut of_shop, mut of_other) = (0u64, 0u64);
        let mut buffer = [0; 64];
        loop {
            match receiver.recv_from(&mut buffer) {
                Ok((_, from)) if from.port() == 1 => return (of_shop, of_other),
                Ok((_, from)) if from.ip() == shop => of_shop += 1,
                Ok((_, from)) if from.ip() == other => of_other += 1,
                Ok(_) | Err(_) => {}
            }
        }
    });
    // The agent may die: the count goes on.
    let start = Instant::now();
    let sent = send_each(&lab, "shop", to, 2_000..22_000);
    agent.kill().unwrap();
    let more = send_each(&lab, "shop", to, 22_000..42_000);
    let took = start.elapsed();
    assert_eq!((sent, more), (20_000, 20_000));
    // The control: another source begins as many as it likes within its own limit.
    assert_eq!(send_each(&lab, "web-other", to, 2_000..7_000), 5_000);
    send_each(&lab, "web-other", to, std::iter::once(1));
    let (of_shop, of_other) = counting.join().unwrap();
    assert_eq!(of_other, 5_000, "the other source");
    let formula = 6_000 + took.as_millis() as u64 / 10;
    println!("{of_shop} of 40000 arrived in {took:?}: the formula says {formula}");
    // One in a hundred of a minute's 6,000.
    assert!(of_shop.abs_diff(formula) <= 60, "{of_shop}: the formula says {formula}");

    let agent = Agent::start_with(&lab.world, &[]).unwrap();
    assert_eq!(send_each(&lab, "shop", to, 42_000..49_000), 7_000);
    let mut told = String::new();
    assert!(
        eventually(|| {
            let rows = agent.json(&lab.world, &["drops", "--reason", "limit"]).unwrap();
            told = rows.to_string();
            let rows = rows.as_array().unwrap();
            !rows.is_empty()
                && rows.iter().all(|r| {
                    r["source"] == shop.to_string() && r["rule"] == "login" && r["verdict"] == "denied"
                })
        }),
        "{told}"
    );
    assert!(lab.dropped(&agent, "limit").unwrap() >= 40_000 - of_shop);
}
