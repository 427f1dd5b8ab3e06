//! Which live flows a policy would end, judged over its tables before the kernel has them. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hydra_common::decide::ruling;
use hydra_common::flow::{Flow, FlowKey, Side};
use hydra_common::id::Identity;
use hydra_common::tables;
use hydra_common::track::{self, protocol};
use hydra_common::verdict::Verdict;

use crate::placement::{Placement, PortKey, PublishedPort};
use crate::policy::explain::owner_of_address;
use crate::policy::rows::{Compiled, Owner};
use crate::policy::tables::{PolicyTables, seconds};

/// The kernel's flow table at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Live<'f> {
    /// Entries.
    pub flows: &'f [(FlowKey, Flow)],
    /// Nanoseconds of the monotonic clock.
    pub monotonic: u64,
    /// Seconds since 1970.
    pub unix: i64,
}

/// The policy in force, over which the live flows were judged.
#[derive(Clone, Copy, Debug)]
pub struct Before<'p> {
    /// Its number.
    pub revision: u32,
    /// Its rows.
    pub compiled: &'p Compiled,
    /// Who is who under it.
    pub placement: &'p Placement,
}

/// The flows that pass now and would not under `compiled`, as `SOURCE -> DESTINATION PORT`, each pair once. A silent flow that the
/// policy in force has ended already, and that is shown until its next packet, is none of them.
pub fn cut(
    live: Live<'_>,
    before: Option<Before<'_>>,
    compiled: &Compiled,
    placement: &Placement,
) -> Vec<String> {
    if compiled.audit {
        return Vec::new();
    }
    let (tables, seconds) = (PolicyTables::new(compiled), seconds(live.unix));
    let before = before.filter(|b| !b.compiled.audit).map(|b| (b, PolicyTables::new(b.compiled)));
    let mut cut = BTreeSet::new();
    for (key, flow) in live.flows {
        let passes = Verdict::from_row(flow.verdict) != Verdict::Denied;
        if !passes || track::expired(flow, key.protocol, live.monotonic) {
            continue;
        }
        let Some(pair) = denied(&tables, compiled, placement, (key, flow), seconds) else { continue };
        // What the policy in force has decided itself passes, whatever is thought of it here.
        let old = before.as_ref().filter(|(b, _)| flow.revision != b.revision);
        if old.is_none_or(|(b, t)| denied(t, b.compiled, b.placement, (key, flow), seconds).is_none()) {
            cut.insert(pair);
        }
    }
    cut.into_iter().collect()
}

/// The flow's name, where a policy denies it.
fn denied(
    tables: &PolicyTables<'_>,
    compiled: &Compiled,
    placement: &Placement,
    (key, flow): (&FlowKey, &Flow),
    now: u32,
) -> Option<String> {
    let opener = Side::from_row(flow.opener);
    let (from, to) = (IpAddr::from(key.address(opener)), IpAddr::from(key.address(opener.other())));
    let mut source = end(compiled, placement, from);
    if flow.marks & Flow::CARRIED != 0 {
        // Numbers keep their meaning over policies.
        source = (flow.source, declared(compiled, flow.source));
    }
    let mut called = key.port(opener.other());
    let published = Some(flow.marks & Flow::PUBLISHED != 0).filter(|is| *is);
    let published = published.and_then(|_| behind(placement, key.protocol, to, called));
    let destination = match published {
        Some(port) => {
            called = port.target_port;
            let owner = port.owner.as_ref();
            let identity = owner.and_then(|o| compiled.identity(o, port.target));
            (identity.unwrap_or(Identity::UNKNOWN), owner.is_none_or(Owner::declared))
        }
        // A process of this host that a tier has: its address does not say so.
        None if own(placement, to) && declared(compiled, flow.destination) => (flow.destination, true),
        None => end(compiled, placement, to),
    };
    if !source.1 && !destination.1 {
        return None;
    }
    let selector = tables::selector(key.protocol, called);
    let said = ruling(tables, 0, source.0, destination.0, selector, now);
    (said.verdict == Verdict::Denied).then(|| {
        let to = published.map_or_else(|| name(placement, to), |p| p.container.clone());
        format!("{} -> {to} {}", name(placement, from), port(key.protocol, called))
    })
}

/// An address's identity under the policy, and whether it is a tier's or a service's.
fn end(compiled: &Compiled, placement: &Placement, ip: IpAddr) -> (Identity, bool) {
    let owner = match placement.addresses.get(&ip) {
        Some(home) => home.owner.clone(),
        None if own(placement, ip) => Owner::Host,
        // Behind a closed port: no cell lets it pass.
        None if placement.closed_addresses.contains_key(&ip) => return (Identity::UNKNOWN, true),
        None => owner_of_address(compiled, ip),
    };
    let identity = compiled.identity(&owner, Some(ip)).unwrap_or(Identity::UNKNOWN);
    (identity, owner.declared())
}

/// Whether it is an address of this host's own stack.
fn own(placement: &Placement, ip: IpAddr) -> bool {
    placement.host.contains(&ip) || ip.is_loopback()
}

fn declared(compiled: &Compiled, identity: Identity) -> bool {
    compiled.identities.get(&identity).is_some_and(|(class, _)| class.owner.declared())
}

/// The container behind a published port of this host.
fn behind(placement: &Placement, protocol: u8, address: IpAddr, port: u16) -> Option<&PublishedPort> {
    let everywhere: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    [address, everywhere]
        .into_iter()
        .find_map(|address| placement.published.get(&PortKey { address, protocol, port }))
}

fn name(placement: &Placement, ip: IpAddr) -> String {
    let stack = placement.addresses.get(&ip).and_then(|home| placement.stacks.get(home.stack));
    stack.map_or_else(|| ip.to_string(), |s| s.name.clone())
}

/// As in a policy.
fn port(number: u8, port_or_type: u16) -> String {
    match number {
        protocol::TCP => format!("tcp/{port_or_type}"),
        protocol::UDP => format!("udp/{port_or_type}"),
        protocol::SCTP => format!("sctp/{port_or_type}"),
        protocol::ICMP => format!("icmp/{port_or_type}"),
        protocol::ICMPV6 => format!("icmpv6/{port_or_type}"),
        other => format!("proto/{other}"),
    }
}

#[cfg(test)]
mod tests {
    use hydra_common::address::Address;
    use hydra_common::id::Container;

    use super::*;
    use crate::inventory::snapshot::Binding;
    use crate::placement::tests::{Scene, ip};
    use crate::placement::{Claims, place};
    use crate::policy;
    use crate::policy::compile::{World, compile};
    use crate::policy::rows::Numbers;
    use crate::state::Containers;

    const POLICY: &str = "version: 1\nname: t\ntiers:\n  apps: { networks: [front] }\n  databases:\n    networks: [back]\n    services:\n      postgres: { containers: [pg] }\nrules:\n";

    fn flow(from: &str, from_port: u16, to: &str, to_port: u16, protocol: u8) -> (FlowKey, Flow) {
        let (key, side) =
            FlowKey::of(Address::from(ip(from)), from_port, Address::from(ip(to)), to_port, protocol);
        let flow = Flow {
            verdict: Verdict::Allowed as u8,
            opener: side as u8,
            containers: [Container(1), Container(2)],
            seen: 1_000_000_000,
            ..Flow::default()
        };
        (key, flow)
    }

    /// A policy over a scene.
    fn made(scene: &Scene, text: &str) -> (Compiled, Placement) {
        let (model, _) = policy::parse(text, "t").unwrap();
        let placement = place(&Claims::of(&model), &scene.snapshot, false, &mut Containers::default());
        let world = World { live: crate::reconcile::homes(&placement).collect(), ..World::default() };
        (compile(&model, &world, &mut Numbers::default()).unwrap(), placement)
    }

    #[test]
    fn only_flows_that_lose_their_right_are_cut_and_each_is_named_once() {
        let mut scene = Scene::usual();
        scene.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
        scene.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
        let said = |rules: &str| {
            let (compiled, placement) = made(&scene, &format!("{POLICY}{rules}"));
            let flows = [
                flow("10.1.0.5", 40_000, "10.2.0.5", 5432, protocol::TCP),
                flow("10.1.0.5", 40_001, "10.2.0.5", 5432, protocol::TCP),
                flow("10.2.0.5", 9, "10.1.0.5", 53, protocol::UDP),
                flow("203.0.113.9", 50_000, "10.1.0.5", 443, protocol::TCP),
                flow("203.0.113.9", 50_000, "198.51.100.5", 22, protocol::TCP),
            ];
            let live = Live { flows: &flows, monotonic: 2_000_000_000, unix: 1_800_000_000 };
            cut(live, None, &compiled, &placement)
        };
        assert_eq!(
            said(
                "  - { name: a, from: apps, to: databases, ports: [tcp/5432] }\n  - { name: b, from: databases, to: apps }\n  - { name: c, from: external, to: apps }\n"
            ),
            [""; 0]
        );
        assert_eq!(
            said("  - { name: b, from: databases, to: apps, ports: [udp/54] }\n"),
            ["203.0.113.9 -> web tcp/443", "pg -> web udp/53", "web -> pg tcp/5432"]
        );
    }

    #[test]
    fn a_flow_that_the_policy_in_force_has_ended_is_not_cut_again() {
        let mut scene = Scene::usual();
        scene.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
        scene.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
        let closed = POLICY.replace("rules:\n", "rules: []\n");
        let open = format!("{POLICY}  - {{ name: a, from: apps, to: databases }}\n");
        let (compiled, placement) = made(&scene, &closed);
        let under = |revision: u32, text: &str| {
            let (key, flow) = flow("10.1.0.5", 40_000, "10.2.0.5", 5432, protocol::TCP);
            let flows = [(key, Flow { revision, ..flow })];
            let live = Live { flows: &flows, monotonic: 2_000_000_000, unix: 1_800_000_000 };
            let before = made(&scene, text);
            let before = Before { revision: 2, compiled: &before.0, placement: &before.1 };
            cut(live, Some(before), &compiled, &placement)
        };
        assert_eq!(under(1, &open), ["web -> pg tcp/5432"], "it has not sent since, and may go on now");
        assert_eq!(under(2, &open), ["web -> pg tcp/5432"]);
        assert_eq!(under(1, &closed), [""; 0], "revision 2 has cut it");
        assert_eq!(under(2, &closed), ["web -> pg tcp/5432"], "revision 2 lets it pass");
        assert_eq!(under(1, &format!("mode: audit\n{closed}")), ["web -> pg tcp/5432"]);
    }

    #[test]
    fn a_flow_to_a_published_port_is_the_container_s_behind_it() {
        let mut scene = Scene::usual();
        scene.container("pg", &[(101, 20, "back", &["10.2.0.5"])]);
        scene.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
        scene.snapshot.bindings.push(Binding {
            address: ip("0.0.0.0"),
            protocol: protocol::TCP,
            port: 15432,
            container: "pg".into(),
            stack: Some("key-pg".into()),
            network: "back".into(),
            target: Some(ip("10.2.0.5")),
            target_port: 5432,
            proxied: false,
        });
        let said = |rules: &str| {
            let (model, _) = policy::parse(&format!("{POLICY}{rules}"), "t").unwrap();
            let placement = place(&Claims::of(&model), &scene.snapshot, false, &mut Containers::default());
            let world = World { live: crate::reconcile::homes(&placement).collect(), ..World::default() };
            let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
            let apps = compiled.identity(&Owner::Tier("apps".into()), None).unwrap();
            let (key, flow) = flow("10.1.0.5", 40_000, "198.51.100.5", 15432, protocol::TCP);
            let called = (key, Flow { marks: Flow::PUBLISHED, ..flow });
            // Docker has put the gateway's address in the place of the client's.
            let (key, flow) = self::flow("10.2.0.1", 40_000, "10.2.0.5", 5432, protocol::TCP);
            let led = (key, Flow { marks: Flow::CARRIED, source: apps, ..flow });
            let live = Live { flows: &[called, led], monotonic: 2_000_000_000, unix: 1_800_000_000 };
            cut(live, None, &compiled, &placement)
        };
        assert_eq!(said("  - { name: a, from: apps, to: databases, ports: [tcp/5432] }\n"), [""; 0]);
        assert_eq!(
            said("  - { name: a, from: apps, to: host }\n"),
            ["10.2.0.1 -> pg tcp/5432", "web -> pg tcp/5432"]
        );
    }

    #[test]
    fn a_flow_to_a_process_of_a_tier_is_the_tier_s() {
        let mut scene = Scene::usual();
        scene.container("web", &[(102, 10, "front", &["10.1.0.5"])]);
        let said = |rules: &str| {
            let text = POLICY.replace("tiers:\n", "tiers:\n  proxy: { units: [proxy.service] }\n");
            let (model, _) = policy::parse(&format!("{text}{rules}"), "t").unwrap();
            let placement = place(&Claims::of(&model), &scene.snapshot, false, &mut Containers::default());
            let world = World { live: crate::reconcile::homes(&placement).collect(), ..World::default() };
            let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
            let destination = compiled.identity(&Owner::Tier("proxy".into()), None).unwrap();
            let (key, flow) = flow("10.1.0.5", 40_000, "127.0.0.1", 80, protocol::TCP);
            let flows = [(key, Flow { destination, ..flow })];
            let live = Live { flows: &flows, monotonic: 2_000_000_000, unix: 1_800_000_000 };
            cut(live, None, &compiled, &placement)
        };
        assert_eq!(said("  - { name: a, from: apps, to: proxy, ports: [tcp/80] }\n"), [""; 0]);
        assert_eq!(said("  - { name: a, from: apps, to: host }\n"), ["web -> 127.0.0.1 tcp/80"]);
    }

    #[test]
    fn what_closes_a_container_cuts_its_flows() {
        let mut scene = Scene::usual();
        scene.container("both", &[(101, 20, "back", &["10.2.0.6"]), (102, 10, "front", &["10.1.0.6"])]);
        scene.container("web", &[(103, 10, "front", &["10.1.0.5"])]);
        let said = |multihome: &str| {
            let text = format!("multihome: {multihome}\n{POLICY}  - {{ name: a, from: any, to: any }}\n");
            let (model, _) = policy::parse(&text, "t").unwrap();
            let placement = place(&Claims::of(&model), &scene.snapshot, false, &mut Containers::default());
            let world = World { live: crate::reconcile::homes(&placement).collect(), ..World::default() };
            let compiled = compile(&model, &world, &mut Numbers::default()).unwrap();
            let flows = [
                flow("10.1.0.5", 40_000, "10.1.0.6", 80, protocol::TCP),
                flow("10.1.0.5", 40_000, "10.1.0.1", 80, protocol::TCP),
            ];
            let live = Live { flows: &flows, monotonic: 2_000_000_000, unix: 1_800_000_000 };
            cut(live, None, &compiled, &placement)
        };
        assert_eq!(said("warn"), [""; 0]);
        assert_eq!(said("deny"), ["web -> 10.1.0.6 tcp/80"]);
    }
}
