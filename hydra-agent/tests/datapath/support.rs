//! Namespaces, a small policy, and looks into the pinned maps.

use aya::maps::{Array, HashMap, Map, MapData};
use hydra_agent::datapath::{Datapath, Mechanism};
use hydra_agent::desired::{Desired, Endpoint, Link};
use hydra_agent::policy::rows::{Class, Compiled, Owner};
use hydra_common::address::{Address, Mac};
use hydra_common::id::{Container, Identity, Tier};
use hydra_common::tables::{self, Cell, Decision, IdentityRow, LinkKind, PrefixRow};
use hydra_common::verdict::{Hook, Reason, Verdict};
use hydra_common::{ABI, names};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Runs a test in namespaces of its own; they end with its thread.
pub fn apart(test: impl FnOnce(&Path) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let result = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::Builder::new().prefix("hy").tempdir().unwrap();
        mount(Some("hybpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip("link set lo up");
        test(&directory.path().join("hydra"));
        nix::mount::umount2(directory.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// A veth pair; gives the index of the named end.
pub fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    index(name)
}

pub const APPS: Identity = Identity(4);
pub const DATABASES: Identity = Identity(5);

/// Two tiers; the first may call the second where `open`.
pub fn policy(open: bool) -> Compiled {
    let mut compiled = Compiled::default();
    for (number, owner) in [
        (Identity::EXTERNAL, Owner::External),
        (Identity::HOST, Owner::Host),
        (Identity::UNMANAGED, Owner::Unmanaged),
        (APPS, Owner::Tier("apps".into())),
        (DATABASES, Owner::Tier("databases".into())),
    ] {
        let flags = if number >= Identity::FIRST_DECLARED {
            IdentityRow::INTERIOR | IdentityRow::DECLARED
        } else {
            0
        };
        compiled.tiers.insert(Tier(number.0), owner.tier().to_owned());
        compiled.identities.insert(
            number,
            (Class { owner, blocks: Vec::new() }, IdentityRow { tier: Tier(number.0), flags }),
        );
    }
    let row = |verdict: Verdict, reason: Reason, rule| Decision {
        verdict: verdict as u8,
        reason: reason as u8,
        rule,
        ..Decision::default()
    };
    compiled.decisions = vec![
        (row(Verdict::Denied, Reason::BadTable, 0), None),
        (row(Verdict::Denied, Reason::NoRule, 0), None),
        (row(Verdict::Allowed, Reason::Rule, 1), None),
    ];
    for source in compiled.identities.keys() {
        for destination in compiled.identities.keys() {
            compiled.cells.insert((*source, *destination), Cell::decision(1));
        }
    }
    if open {
        compiled.cells.insert((APPS, DATABASES), Cell::decision(2));
    }
    for (block, identity) in [("10.1.0.0/16", APPS), ("10.2.0.0/16", DATABASES)] {
        compiled.prefixes.insert(block.parse().unwrap(), PrefixRow { identity, flags: PrefixRow::INTERIOR });
    }
    compiled.rules = vec!["db-clients".to_owned()];
    compiled
}

pub fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

/// A container of a tier at a port.
pub fn container(desired: &mut Desired, port: u32, number: u32, at: &str, identity: Identity) {
    desired.endpoints.insert(
        address(at),
        Endpoint {
            identity,
            container: Container(number),
            port,
            flags: tables::Endpoint::ATTACHED | tables::Endpoint::PEER,
            mtu: 1500,
            ..Endpoint::default()
        },
    );
    desired.links.insert(
        port,
        Link {
            identity,
            container: Container(number),
            bridge: 0,
            kind: LinkKind::Port,
            flags: 0,
            mac: Mac::ZERO,
            gateway_mac: Mac::ZERO,
        },
    );
    desired.hooks.extend([(port, Hook::PortIn), (port, Hook::PortOut)]);
}

/// Revision 1 with one container at each of two ports.
pub fn two_containers() -> (Desired, u32, u32) {
    let (a, b) = (veth("hya"), veth("hyb"));
    let mut desired = Desired { revision: 1, compiled: Arc::new(policy(true)), ..Desired::default() };
    container(&mut desired, a, 1, "10.1.0.2", APPS);
    container(&mut desired, b, 2, "10.2.0.2", DATABASES);
    (desired, a, b)
}

pub fn open(bpffs: &Path) -> Datapath {
    Datapath::open(bpffs, Mechanism::Auto).unwrap()
}

pub fn root(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI}"))
}

/// (hook, program, link) by interface: what must stay over a restart.
pub fn ids(datapath: &Datapath) -> BTreeSet<(u32, String, u32, u32)> {
    datapath.hooks().into_iter().map(|h| (h.ifindex, h.hook, h.program_id, h.link_id)).collect()
}

pub fn map(bpffs: &Path, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(root(bpffs).join("maps").join(name)).unwrap()).unwrap()
}

pub fn map_ids(bpffs: &Path) -> BTreeMap<&'static str, u32> {
    names::MAPS
        .iter()
        .map(|name| (*name, aya::maps::MapInfo::from_pin(root(bpffs).join("maps").join(name)).unwrap().id()))
        .collect()
}

pub fn generation(bpffs: &Path) -> u32 {
    Array::<_, u32>::try_from(map(bpffs, names::GENERATION)).unwrap().get(&0, 0).unwrap()
}

pub fn endpoint(bpffs: &Path, at: &str) -> Option<tables::Endpoint> {
    HashMap::<_, Address, tables::Endpoint>::try_from(map(bpffs, names::ENDPOINTS))
        .unwrap()
        .get(&address(at), 0)
        .ok()
}

/// What the bank that packets read says about a pair.
pub fn cell(bpffs: &Path, source: Identity, destination: Identity) -> Cell {
    let bank = generation(bpffs) & 1;
    Array::<_, Cell>::try_from(map(bpffs, names::CELLS))
        .unwrap()
        .get(&tables::cell_index(bank, source, destination), 0)
        .unwrap()
}

/// Classic filters on one side of an interface, whose ever.
pub fn filters(interface: &str, side: &str) -> usize {
    let output = Command::new("tc").args(["filter", "show", "dev", interface, side]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).matches(" handle ").count()
}

/// Somebody else's program: ours under another loader, with maps of its own.
pub fn foreign() -> aya::Ebpf {
    let mut ebpf = aya::EbpfLoader::new().load(hydra_agent::datapath::OBJECT).unwrap();
    let program: &mut aya::programs::SchedClassifier =
        ebpf.program_mut(names::PROGRAMS[0]).unwrap().try_into().unwrap();
    program.load().unwrap();
    ebpf
}

/// Waits until it is calm enough for links.
pub fn settle(datapath: &mut Datapath) -> Vec<hydra_agent::published::HookView> {
    let start = std::time::Instant::now();
    loop {
        if let Some(settled) = datapath.settle() {
            return settled.hooks;
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "no links");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
