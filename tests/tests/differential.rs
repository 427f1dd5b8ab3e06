//! Three opinions must agree: the naive oracle that reads the file, the compiled tables, and the kernel. Random policies, random
//! packets. `HYDRA_SEED` chooses others, `HYDRA_POLICIES` more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::IpAddr;
use std::sync::Arc;

use hydra_agent::policy::rows::Compiled;
use hydra_agent::policy::tables::{PolicyTables, seconds};
use hydra_agent::policy::unix_now;
use hydra_common::address::Address;
use hydra_common::decide::{Outcome, ruling, settle};
use hydra_common::id::Identity;
use hydra_common::tables::{Tables as _, selector};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_tests::deployment::{Deployment, OUTSIDE, STRANGER};
use hydra_tests::kernel::{Runner, Shot};
use hydra_tests::oracle::{Answer, End, Policy, Who};
use hydra_tests::packets::Frame;
use hydra_tests::random::{self, Random};
use hydra_tests::sample;
use hydra_tests::stage::{Stage, compiled, owner};
use hydra_tests::topology::HOST;

/// Questions to the tables of each policy.
const EACH: usize = 400;

fn count(otherwise: usize) -> usize {
    std::env::var("HYDRA_POLICIES").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The sample's world under a random policy that the agent takes; and how many it refused before.
fn valid(random: &mut Random, refused: &mut usize) -> (String, Deployment, Compiled) {
    loop {
        let text = random::policy(random);
        let deployment = Deployment::of(&text).unwrap();
        match compiled(&text, &deployment) {
            Ok((_, compiled)) => return (text, deployment, compiled),
            // A rule that can match nothing is refused, and a longer chain than the tables hold; anything else would be a fault.
            Err(error) if error.to_string().contains("match nothing") => *refused += 1,
            Err(error) if error.to_string().contains("one after the other on one port") => *refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A random place with one of its addresses, or an address that nobody has.
fn end(random: &mut Random, deployment: &Deployment) -> (String, End) {
    if random.one_in(6) {
        let far: [&str; 8] = [
            "198.51.100.2",
            "203.0.113.5",
            "203.0.113.128",
            "8.8.8.8",
            "2001:db8:51::2",
            "2001:db8:cafe::5",
            "2001:db8:cafd::5",
            "3fff::1",
        ];
        let ip: IpAddr = random.one(&far).parse().unwrap();
        return (OUTSIDE.into(), End { who: deployment.policy.owner(ip), address: Some(ip) });
    }
    let places: Vec<&String> = deployment.owners.keys().filter(|p| *p != OUTSIDE).collect();
    let place = (*random.one(&places)).clone();
    let address = *random.one(&deployment.topology.addresses(&place));
    let who = deployment.owners.get(&place).cloned().unwrap();
    (place, End { who, address: Some(address) })
}

/// The identity that the kernel would find.
fn identity(tables: &PolicyTables<'_>, compiled: &Compiled, end: &End) -> Identity {
    let ip = end.address.unwrap();
    match end.who {
        Who::External | Who::Tier(_) | Who::Service(..) | Who::Host | Who::Unmanaged => {
            compiled.identity(&owner(&end.who), Some(ip)).unwrap_or_else(|| {
                tables.prefix(0, &Address::from(ip)).map_or(Identity::EXTERNAL, |row| row.identity)
            })
        }
    }
}

fn name(compiled: &Compiled, rule: u16) -> Option<String> {
    compiled.rule(rule).map(str::to_owned)
}

#[test]
fn the_oracle_and_the_compiled_tables_agree() {
    let mut random = Random::from_environment();
    let mut refused = 0;
    let policies = count(300);
    for number in 0..policies {
        let begin = random.clone();
        let (text, deployment, compiled) = valid(&mut random, &mut refused);
        let tables = PolicyTables::new(&compiled);
        let now = unix_now();
        for _ in 0..EACH {
            let (_, from) = end(&mut random, &deployment);
            let (_, to) = end(&mut random, &deployment);
            let what = random::what(&mut random, to.address.unwrap().is_ipv6());
            let expected = deployment.policy.judge(&from, &to, what, now);
            let (source, destination) =
                (identity(&tables, &compiled, &from), identity(&tables, &compiled, &to));
            let said =
                ruling(&tables, 0, source, destination, selector(what.protocol(), what.port()), seconds(now));
            let verdict = if compiled.audit && said.verdict == Verdict::Denied {
                Verdict::Audited
            } else {
                said.verdict
            };
            let seen = Answer { verdict, reason: said.reason, rule: name(&compiled, said.rule) };
            assert_eq!(
                seen, expected,
                "policy {number} ({begin:?}): {from:?} -> {to:?} {what:?}, left the tables, right the oracle\n{text}"
            );
        }
    }
    println!(
        "figure: {policies} policies, {EACH} questions to each, 0 disagreements; {refused} more were refused"
    );
    assert!(refused < policies, "most random policies are refused");
}

#[test]
fn the_oracle_and_the_compiled_tables_agree_on_limits_that_are_used_up() {
    let mut random = Random::from_environment();
    let (mut refused, mut denied, mut next) = (0, 0, 0);
    for number in 0..count(300) {
        let begin = random.clone();
        let (text, deployment, compiled) = valid(&mut random, &mut refused);
        let tables = PolicyTables::new(&compiled);
        let limited = deployment.policy.limited();
        assert_eq!(limited.len(), compiled.limits.len());
        // In the tables a limit has the place of its rule among those that have one.
        let used: Vec<&str> = limited.iter().copied().filter(|_| !random.one_in(3)).collect();
        for _ in 0..200 {
            let (_, from) = end(&mut random, &deployment);
            let (_, to) = end(&mut random, &deployment);
            let what = random::what(&mut random, to.address.unwrap().is_ipv6());
            // Before, at and after the ends of rules.
            let now = *random.one(&[1_500_000_000, unix_now(), 4_070_908_799, 4_070_908_800]);
            let expected = deployment.policy.judge_new(&from, &to, what, now, &used);
            let (source, destination) =
                (identity(&tables, &compiled, &from), identity(&tables, &compiled, &to));
            let mut out = Outcome::CLOSED;
            out.generation = PolicyTables::GENERATION;
            out.ruled(&ruling(
                &tables,
                0,
                source,
                destination,
                selector(what.protocol(), what.port()),
                seconds(now),
            ));
            let first = out.rule;
            settle(
                &tables,
                seconds(now),
                &mut out,
                |_| false,
                |index| !used.contains(&limited[index as usize]),
            );
            if compiled.audit && out.verdict == Verdict::Denied {
                out.verdict = Verdict::Audited;
            }
            denied += usize::from(out.reason == Reason::Limit);
            next += usize::from(out.reason == Reason::Rule && out.rule != first);
            let seen = Answer { verdict: out.verdict, reason: out.reason, rule: name(&compiled, out.rule) };
            assert_eq!(
                seen, expected,
                "policy {number} ({begin:?}): {from:?} -> {to:?} {what:?}, used up {used:?}, left the tables, right the oracle\n{text}"
            );
        }
    }
    println!(
        "figure: {denied} flows were denied for a limit, {next} were allowed by a later rule, 0 disagreements"
    );
    assert!(denied > 0 && next > 0, "the random policies hardly use limits up: {denied}, {next}");
}

#[test]
fn names_in_questions_mean_what_the_oracle_says() {
    let text = std::fs::read_to_string(hydra_tests::binary::root().join("policies/hydra.yaml")).unwrap();
    let policy = Policy::read(&text).unwrap();
    let rows = hydra_tests::oracle::expectations(&text).unwrap();
    assert!(rows.len() >= 15);
    for row in rows {
        let end = |text: &str| match text.parse::<IpAddr>() {
            Ok(ip) => End { who: policy.owner(ip), address: Some(ip) },
            Err(_) => End { who: policy.name(text).unwrap(), address: None },
        };
        for what in hydra_tests::oracle::What::asked(&row.port).unwrap() {
            let answer = policy.judge(&end(&row.from), &end(&row.to), what, unix_now());
            assert_eq!(answer.verdict.as_str(), row.verdict, "{row:?}");
            assert!(row.rule.is_none() || row.rule == answer.rule, "{row:?}: {answer:?}");
        }
    }
}

/// A frame as it meets the first program that judges it; `None` where none does.
fn shot(
    stage: &Stage,
    random: &mut Random,
    from: &(String, End),
    to: &(String, End),
) -> Option<(Shot, bool)> {
    let (source, destination) = (from.1.address?, to.1.address?);
    let container = |place: &str| {
        stage.deployment.topology.containers.iter().any(|c| c.name == place) && place != STRANGER
    };
    let what = random::what(random, destination.is_ipv6());
    let packet = random::packet(random, source, destination, what);
    if container(&from.0) {
        let frame = Frame::ip(stage.mac(&from.0, 0).unwrap(), stage.gateway(&from.0, 0).unwrap(), &packet);
        let ifindex = stage.port(&from.0, 0).unwrap();
        return Some((
            Shot { hook: Hook::PortIn, ifindex, ingress: ifindex, mark: 0, frame: frame.bytes() },
            true,
        ));
    }
    if !container(&to.0) {
        return None;
    }
    let ingress = match from.0.as_str() {
        HOST => 0,
        STRANGER => stage.port(STRANGER, 0).unwrap(),
        _ => stage.link("hyup0").unwrap(),
    };
    let frame = Frame::ip(stage.gateway(&to.0, 0).unwrap(), stage.mac(&to.0, 0).unwrap(), &packet);
    let ifindex = stage.port(&to.0, 0).unwrap();
    Some((Shot { hook: Hook::PortOut, ifindex, ingress, mark: 0, frame: frame.bytes() }, false))
}

#[test]
fn the_oracle_and_the_kernel_agree() {
    let stage = Stage::of(&sample::policy()).unwrap();
    let bpffs = stage.world.bpffs().join("hydra");
    let mut random = Random::from_environment();
    let (mut refused, mut packets) = (0, 0_u64);
    let policies = count(12);
    let mut stage = stage;
    let mut runner = stage.world.enter(HOST, || Runner::open(&bpffs, &stage.desired)).unwrap().unwrap();
    for number in 0..policies {
        let begin = random.clone();
        let (text, deployment, compiled) = valid(&mut random, &mut refused);
        stage.restage(deployment, Arc::new(compiled), number as u32 + 2).unwrap();
        stage.world
            .enter(HOST, || {
                runner.sync(&stage.desired).unwrap();
                for _ in 0..250 {
                    let (from, to) = (end(&mut random, &stage.deployment), end(&mut random, &stage.deployment));
                    let families = |e: &End| e.address.unwrap().is_ipv6();
                    if from.0 == to.0 || families(&from.1) != families(&to.1) {
                        continue;
                    }
                    let asked = random.clone();
                    let Some((shot, _)) = shot(&stage, &mut random, &from, &to) else { continue };
                    let what = random::what(&mut asked.clone(), families(&to.1));
                    let expected = stage.deployment.policy.judge(&from.1, &to.1, what, unix_now());
                    runner.forget().unwrap();
                    // Questions assume that no limit is used up.
                    runner.refill().unwrap();
                    let seen = runner.run(&shot).unwrap();
                    packets += 1;
                    // The sender's own address on another of its ports, a block of its own network: line 1 is tested elsewhere.
                    let rule = name(&stage.desired.compiled, seen.rule());
                    let seen = Answer { verdict: seen.verdict(), reason: seen.reason.unwrap_or(Reason::BadTable), rule };
                    assert_eq!(
                        seen, expected,
                        "policy {number} ({begin:?}): {from:?} -> {to:?} {what:?}, left the kernel, right the oracle\n{text}"
                    );
                }
            })
            .unwrap();
    }
    println!("figure: {policies} policies in the kernel, {packets} packets, 0 disagreements");
}
