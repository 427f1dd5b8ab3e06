//! `explain` says what the kernel does: questions to the agent's socket about random policies, each beside the frame that it is about in
//! the agent's own programs. `HYDRA_TUPLES` says how many, `HYDRA_SEED` which.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use hydra_common::verdict::Hook;
use hydra_tests::deployment::{OUTSIDE, STRANGER};
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::lab::Lab;
use hydra_tests::oracle::Who;
use hydra_tests::packets::Frame;
use hydra_tests::random::{self, Random};
use hydra_tests::sample;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;
use serde_json::Value;

/// Questions about each policy.
const EACH: usize = 1000;

fn count(otherwise: usize) -> usize {
    std::env::var("HYDRA_TUPLES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// A connection to the agent that stays open.
struct Line(BufReader<UnixStream>);

impl Line {
    fn open(socket: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn explain(&mut self, from: &str, to: &str, port: &str) -> Value {
        let request =
            format!("GET /v1/explain?from={from}&to={to}&port={port} HTTP/1.1\r\nHost: hydra\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

/// What the frames of a world need.
struct Places<'a> {
    lab: &'a Lab,
    ports: BTreeMap<String, (u32, [u8; 6], [u8; 6])>,
    uplink: u32,
}

impl<'a> Places<'a> {
    fn of(lab: &'a Lab) -> Self {
        let world = &lab.world;
        let containers = &lab.deployment.topology.containers;
        let port = |c: &hydra_tests::topology::Container| {
            let ifindex = world.ifindex(HOST, &World::port_name(&c.name, 0)).unwrap();
            let (own, gateway) =
                (world.mac(&c.name, "eth0").unwrap(), world.mac(HOST, &c.ports[0].bridge).unwrap());
            (c.name.clone(), (ifindex, own, gateway))
        };
        Self {
            lab,
            ports: containers.iter().map(port).collect(),
            uplink: world.ifindex(HOST, "hyup0").unwrap(),
        }
    }

    fn protects(&self, place: &str) -> bool {
        place != STRANGER && self.ports.contains_key(place)
    }

    /// A frame as it meets the first program that judges it.
    fn shot(
        &self,
        random: &mut Random,
        from: (&str, IpAddr),
        to: (&str, IpAddr),
        what: hydra_tests::oracle::What,
    ) -> Shot {
        let packet = random::packet(random, from.1, to.1, what);
        if self.protects(from.0) {
            let (ifindex, own, gateway) = self.ports[from.0];
            let frame = Frame::ip(own, gateway, &packet).bytes();
            return Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame };
        }
        let (ifindex, its, gateway) = self.ports[to.0];
        let ingress = match from.0 {
            HOST => 0,
            STRANGER => self.ports[STRANGER].0,
            _ => self.uplink,
        };
        Shot {
            hook: Hook::PortOut,
            ifindex,
            ingress,
            mark: 0,
            frame: Frame::ip(gateway, its, &packet).bytes(),
        }
    }

    /// The words for an end: its address; or the container's name, where it has one address of a family; or whose it is, where no rule
    /// asks for addresses.
    fn words(&self, random: &mut Random, place: &str, ip: IpAddr, owners: bool) -> String {
        let deployment = &self.lab.deployment;
        let containers = &deployment.topology.containers;
        let single = containers.iter().any(|c| c.name == place && c.ports.len() == 1);
        match random.below(3) {
            0 if single => place.to_owned(),
            1 if owners => match deployment.owners.get(place) {
                Some(who @ (Who::Tier(_) | Who::Service(..) | Who::Host | Who::Unmanaged)) => who.to_string(),
                Some(Who::External) | None => ip.to_string(),
            },
            _ => ip.to_string(),
        }
    }
}

#[test]
fn what_explain_says_is_what_the_kernel_does() {
    let (lab, agent) = Lab::start(&sample::policy()).unwrap();
    let socket = lab.world.scratch("run").join("agent.sock");
    let bpffs = lab.world.bpffs().join("hydra");
    let tuples = count(10_000);
    let (wrong, verdicts) = lab
        .world
        .enter(HOST, || {
            let places = Places::of(&lab);
            let mut line = Line::open(&socket);
            let mut runner = Runner::beside(&bpffs).unwrap();
            let mut random = Random::from_environment();
            let (mut asked, mut verdicts) = (0, BTreeMap::new());
            let mut wrong = Vec::new();
            let mut text = sample::policy();
            while asked < tuples && wrong.len() < 10 {
                let rules: Vec<String> =
                    text.lines().filter(|l| l.contains("- { name:")).map(|l| name_of(l).to_owned()).collect();
                let owners = !text.contains("cidr");
                for _ in 0..EACH.min(tuples - asked) {
                    asked += 1;
                    if let Err(how) =
                        one(&places, &mut line, &mut runner, &mut random, &rules, owners, &mut verdicts)
                    {
                        wrong.push(format!("{how}\n{text}"));
                    }
                }
                text = loop {
                    let mut text = random::policy(&mut random);
                    if random.one_in(2) {
                        let kept: Vec<&str> = text.lines().filter(|l| !l.contains("cidr")).collect();
                        let some = kept.iter().any(|l| l.contains("- { name:"));
                        text = kept.join("\n") + "\n";
                        if !some {
                            text = text.replace("rules:\n", "rules: []\n");
                        }
                    }
                    if agent.apply(&lab.world, &text).is_ok() {
                        break text;
                    }
                };
            }
            println!("figure: {asked} questions, {} differences: {verdicts:?}", wrong.len());
            (wrong, verdicts)
        })
        .unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(verdicts.len() == 3, "not all verdicts were met: {verdicts:?}");
}

fn name_of(line: &str) -> &str {
    line.split_once("name:").map_or("", |(_, rest)| rest.split([',', '}']).next().unwrap_or("").trim())
}

fn one(
    places: &Places<'_>,
    line: &mut Line,
    runner: &mut Runner,
    random: &mut Random,
    rules: &[String],
    owners: bool,
    verdicts: &mut BTreeMap<String, usize>,
) -> Result<(), String> {
    let topology = &places.lab.deployment.topology;
    let all = topology.places();
    let v6 = random.one_in(2);
    let address = |place: &str, random: &mut Random| {
        let of_family: Vec<IpAddr> =
            topology.addresses(place).into_iter().filter(|a| a.is_ipv6() == v6).collect();
        (!of_family.is_empty()).then(|| *random.one(&of_family))
    };
    let (from, to, source, mut destination) = loop {
        let (from, to) = (*random.one(&all), *random.one(&all));
        let judged = from != to && (places.protects(from) || places.protects(to));
        if let (true, Some(source), Some(destination)) = (judged, address(from, random), address(to, random))
        {
            break (from, to, source, destination);
        }
    };
    let mut receiver = to;
    if places.protects(from) && random.one_in(10) {
        // Nobody's.
        destination = if v6 { "fd70:2::c8" } else { "10.70.2.200" }.parse().unwrap();
        receiver = OUTSIDE;
    }
    let what = random::what(random, v6);
    // The family must be plain from one of them.
    let asked_from = places.words(random, from, source, owners);
    let named = asked_from.parse::<IpAddr>().is_err();
    let unknown = receiver != to;
    let asked_to = if named || unknown {
        destination.to_string()
    } else {
        places.words(random, receiver, destination, owners)
    };
    let port = what.question();
    let said = line.explain(&asked_from, &asked_to, &port);
    let mut seen = String::new();
    // The world's own chatter is counted, too: what differs once and not again was that.
    for _ in 0..3 {
        runner.forget().unwrap();
        // Questions assume that no limit is used up.
        runner.refill().unwrap();
        let shot = places.shot(&mut random.clone(), (from, source), (receiver, destination), what);
        let ran = runner.run(&shot).unwrap();
        let rule =
            usize::from(ran.rule()).checked_sub(1).and_then(|n| rules.get(n)).map_or("", String::as_str);
        let reason = ran.reason.map_or("none", |r| r.as_str());
        let verdict = ran.verdict().as_str();
        let text = |field: &str| said[field].as_str().unwrap_or("missing").to_owned();
        if (text("verdict"), text("reason"), text("rule")) == (verdict.into(), reason.into(), rule.into()) {
            *verdicts.entry(verdict.to_owned()).or_default() += 1;
            return Ok(());
        }
        seen = format!("{verdict} {reason} {rule:?}");
    }
    Err(format!(
        "explain {asked_from} {asked_to} {port} ({from} {source} to {receiver} {destination}): {said}\nkernel: {seen}"
    ))
}
