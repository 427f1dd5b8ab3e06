//! Any bytes as frames at the hooks of a small host: parsed and judged, one after the other over the same flow table. What is said of
//! them must hold together; whether it is right is the oracle's and the kernel's matter.

use std::net::IpAddr;
use std::sync::OnceLock;

use hydra_agent::policy::compile::{World, compile};
use hydra_agent::policy::rows::{Compiled, Numbers, Owner};
use hydra_agent::policy::tables::PolicyTables;
use hydra_common::address::{Address, Mac};
use hydra_common::decide::{At, Outcome, Step, Way, decide, entry};
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::id::Container;
use hydra_common::packet::{Kind, Packet};
use hydra_common::tables::{Endpoint, Link, LinkKind, Tables as _};
use hydra_common::track;
use hydra_common::verdict::{Hook, Reason, Verdict};

use crate::sample;

/// Three ports of containers, one that is not known yet.
const PORTS: [u32; 4] = [11, 21, 31, 13];
const BRIDGES: [u32; 2] = [10, 20];
/// The outside, and a network of nobody's.
const OTHERS: [u32; 2] = [2, 40];
/// Frames of one input.
const MOST: usize = 8;

/// An input of frames: each with its hook, its interface, the one that it came in by, and its mark's highest byte.
pub fn input(frames: &[(u8, u8, u8, u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (hook, interface, ingress, mark, frame) in frames {
        bytes.extend([*hook, *interface, *ingress, *mark]);
        bytes.extend((frame.len() as u16).to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}

fn compiled() -> &'static Compiled {
    static COMPILED: OnceLock<Compiled> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let Ok((model, _)) = hydra_agent::policy::parse(&sample::policy(), "sample") else {
            panic!("the sample is refused")
        };
        let subnets = ["front", "back", "store"].map(|name| model.networks[name].subnets.clone());
        let tiers = ["web", "app", "data"].map(str::to_owned);
        let open = |blocks: Vec<_>| blocks.into_iter().map(|block| (block, false)).collect();
        let world = World { subnets: tiers.into_iter().zip(subnets.map(open)).collect(), ..World::default() };
        compile(&model, &world, &mut Numbers::default()).expect("the sample compiles")
    })
}

/// The MAC of a port or a bridge.
fn mac(n: u32) -> Mac {
    Mac([2, 0, 0, 0, 0, n as u8])
}

fn tables() -> PolicyTables<'static> {
    let compiled = compiled();
    let mut tables = PolicyTables::new(compiled);
    let service =
        |tier: &str, service: &str| Owner::Service { tier: tier.to_owned(), service: service.to_owned() };
    for (port, bridge, owner, addresses) in [
        (11, 10, service("web", "shop"), ["10.70.1.10", "fd70:1::a"]),
        (21, 20, service("app", "api"), ["10.70.2.10", "fd70:2::a"]),
        (31, 10, Owner::Tier("web".to_owned()), ["10.70.1.11", "fd70:1::b"]),
    ] {
        let identity = compiled.identity(&owner, None).expect("an owner of the sample");
        tables.links.insert(
            port,
            Link {
                identity: [identity; 2],
                container: Container(port),
                bridge,
                kind: LinkKind::Port as u8,
                mac: mac(port),
                gateway_mac: mac(bridge),
                ..Link::default()
            },
        );
        for address in addresses {
            tables.endpoints.insert(
                Address::from(address.parse::<IpAddr>().unwrap()),
                Endpoint {
                    identity: [identity; 2],
                    container: Container(port),
                    port,
                    bridge,
                    flags: Endpoint::ATTACHED | Endpoint::PEER,
                    mtu: 1500,
                    mac: mac(port),
                    gateway_mac: mac(bridge),
                },
            );
        }
    }
    tables.links.insert(
        13,
        Link {
            kind: LinkKind::Port as u8,
            bridge: 10,
            mac: mac(13),
            gateway_mac: mac(10),
            ..Link::default()
        },
    );
    for (index, kind) in
        [(10, LinkKind::Bridge), (20, LinkKind::Bridge), (2, LinkKind::Uplink), (40, LinkKind::Unmanaged)]
    {
        tables
            .links
            .insert(index, Link { kind: kind as u8, bridge: index, mac: mac(index), ..Link::default() });
    }
    tables
}

/// See the module.
///
/// # Panics
/// Where something does not hold.
pub fn frame(mut bytes: &[u8]) {
    let mut tables = tables();
    for number in 0..MOST {
        let Some((head, rest)) = bytes.split_at_checked(6) else { return };
        let length = usize::from(u16::from_be_bytes([head[4], head[5]])).min(rest.len());
        let (one, more) = rest.split_at(length);
        bytes = more;
        let one_of = |list: &[u32], n: u8| list[usize::from(n) % list.len()];
        let hook = Hook::INTERFACES[usize::from(head[0]) % Hook::INTERFACES.len()];
        let own: &[u32] = match hook {
            Hook::PortIn | Hook::PortOut => &PORTS,
            Hook::BridgeIn | Hook::BridgeOut => &BRIDGES,
            Hook::UplinkIn => &OTHERS,
            Hook::Connect | Hook::CgroupIn | Hook::CgroupOut => continue,
        };
        let at = At {
            hook,
            ifindex: one_of(own, head[1]),
            ingress: one_of(&[&PORTS[..], &BRIDGES, &OTHERS, &[0, 99]].concat(), head[2]),
            mark: u32::from(head[3]) << 24,
            now: 1_000_000_000_000 + number as u64,
        };
        judge(&mut tables, one, &at);
    }
}

fn judge(tables: &mut PolicyTables<'_>, frame: &[u8], at: &At) {
    let mut packet = Packet::default();
    let parsed = packet.parse(&frame);
    well_formed(&packet, parsed, frame);
    let mut plain = Packet::default();
    if plain.plain(&frame) {
        assert_eq!((plain, Ok(())), (packet, parsed), "what is read at fixed places");
    }
    let (mut out, mut again) = (Outcome::CLOSED, Outcome::CLOSED);
    let _ = decide(tables, &mut packet.clone(), parsed, at, &mut again);
    let live = decide(tables, &mut packet, parsed, at, &mut out).is_some();
    assert_eq!(out, again, "the same frame twice");
    if let Err(reason) = parsed {
        // From the outside only calls of published ports are hydra's to judge.
        let left = at.hook == Hook::UplinkIn && out.reason == Reason::NotJudged && out.step == Step::Nothing;
        assert!(out.verdict == Verdict::Denied || left, "{reason:?} passes");
        return;
    }
    if out.verdict == Verdict::Denied {
        return;
    }
    true_sender(tables, &packet, at, &out);
    if out.way == Way::Peer {
        let end = tables.endpoint(&packet.destination).expect("straight to nobody");
        assert_eq!((out.hop.port, out.hop.mac), (end.port, end.mac), "straight to somebody else");
        assert_eq!(at.hook, Hook::PortIn);
    }
    match out.step {
        Step::End => panic!("what passes ends a flow"),
        Step::Nothing => {}
        Step::Create => {
            let mut flow = Flow::default();
            entry(&packet, &out, out.traffic(tables), at.now, &mut flow);
            assert!(flow.verdict == Verdict::Allowed as u8 || flow.verdict == Verdict::Audited as u8);
            tables.flows.insert(packet.key, flow);
        }
        Step::Count | Step::Renew => {
            assert!(live, "there is no flow to count on");
            let flow = tables.flows.get_mut(&packet.key).expect("a flow of this key");
            let stand = track::follow(flow, &packet);
            let side = packet.side().index();
            (flow.flags[side], flow.next[side], flow.acked[side]) = (stand.flags, stand.next, stand.acked);
            flow.syn = stand.syn;
            flow.seen = at.now;
        }
    }
}

/// What was understood lies within the frame, and the key is the one that the other direction has.
fn well_formed(packet: &Packet, parsed: Result<(), Reason>, frame: &[u8]) {
    let mut key: FlowKey = packet.key;
    key.canonical();
    assert_eq!(key, packet.key, "the key is not canonical");
    if parsed.is_err() || packet.kind == Kind::Arp {
        return;
    }
    let (network, transport, payload) =
        (usize::from(packet.network), usize::from(packet.transport), usize::from(packet.payload));
    assert!(network < transport, "{network} {transport}");
    assert!(packet.end as usize <= frame.len(), "it ends at {} of {}", packet.end, frame.len());
    // What is about another packet has a header that nobody repeats.
    if packet.kind == Kind::Ip {
        assert!(
            transport <= payload && payload <= packet.end as usize,
            "{transport} {payload} {}",
            packet.end
        );
    }
}

/// From a container's port passes only what has the container's own addresses.
fn true_sender(tables: &PolicyTables<'_>, packet: &Packet, at: &At, out: &Outcome) {
    if at.hook != Hook::PortIn {
        return;
    }
    let link = tables.link(at.ifindex).expect("a port that no row knows passes");
    if LinkKind::from_row(link.kind) == LinkKind::Port {
        assert_eq!(packet.source_mac, link.mac, "another's MAC passes");
    }
    let judged = matches!(out.reason, Reason::Rule | Reason::IntraTier | Reason::Reply | Reason::NoRule);
    if judged && out.way != Way::Checked {
        assert_ne!(link.container, Container::NONE, "a port of nobody's passes");
        let end = tables.endpoint(&packet.source).expect("an address of nobody's passes");
        assert_eq!(end.container, link.container, "another's address passes");
    }
}
