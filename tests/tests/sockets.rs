//! Processes in a cgroup of the test's own open flows in every way that Linux has: what their packets could only be denied is refused
//! at once, and nothing else is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hydra_agent::cgroup;
use hydra_agent::datapath::{Datapath, Mechanism, Seat};
use hydra_agent::desired;
use hydra_agent::inventory::namespaces;
use hydra_agent::published::{HookView, Reader};
use hydra_common::address::Address;
use hydra_common::event::Event;
use hydra_common::tables::{CgroupKey, Count};
use hydra_common::verdict::{Hook, Reason};
use hydra_tests::caller::{Caller, How, Said};
use hydra_tests::cgroup::Cgroup;
use hydra_tests::sample;
use hydra_tests::stage::Stage;
use hydra_tests::topology::HOST;
use hydra_tests::world::World;

const CALLER: &str = env!("CARGO_BIN_EXE_hydra-caller");

/// The sample's world with its interfaces up, a cgroup for the processes of one container, and no program yet.
struct Scene {
    stage: Stage,
    folder: Cgroup,
}

impl Scene {
    fn new(text: &str) -> Self {
        let stage = Stage::of(text).unwrap();
        let up: Vec<String> = stage
            .world
            .enter(HOST, || {
                let all = nix::net::if_::if_nameindex().unwrap();
                let names = all.iter().map(|i| i.name().to_string_lossy().into_owned());
                names.filter(|n| n.starts_with("hy")).map(|n| format!("link set {n} up")).collect()
            })
            .unwrap();
        stage.world.ip(HOST, &up).unwrap();
        Self { stage, folder: Cgroup::new().unwrap() }
    }

    fn address(&self, place: &str, v6: bool) -> IpAddr {
        let all = self.stage.deployment.topology.addresses(place);
        all.into_iter().find(|a| a.is_ipv6() == v6).unwrap()
    }

    /// Says that what runs in a folder below the test's is a container's.
    fn give(&mut self, folder: &str, container: &str) {
        let path = self.folder.below(folder).unwrap();
        let id = cgroup::number(&path).unwrap();
        let netns = self.stage.world.enter(container, namespaces::cookie_here).unwrap().unwrap();
        let addresses = self.stage.deployment.topology.addresses(container);
        for (place, address) in (0..).zip(addresses) {
            let address = Address::from(address);
            let endpoint = self.stage.desired.endpoints[&address];
            let row = desired::Cgroup {
                identity: endpoint.identity,
                netns,
                address,
                container: endpoint.container,
                ..desired::Cgroup::default()
            };
            self.stage.desired.cgroups.insert(CgroupKey::new(id, place), row);
        }
    }

    fn caller(&self, folder: &str, place: &str) -> Caller {
        Caller::start(&self.stage.world, place, &self.folder.below(folder).unwrap(), CALLER).unwrap()
    }

    fn enforce(&self) -> Enforced<'_> {
        let bpffs = self.stage.world.bpffs().join("hydra");
        let seat = Seat::At(self.folder.path().to_owned());
        let datapath = self.stage.world.enter(HOST, || {
            let mut datapath = Datapath::open(&bpffs, Mechanism::Auto).unwrap().with_sockets(seat).unwrap();
            let report = datapath.sync(&self.stage.desired).unwrap();
            assert_eq!(report.not_enforced, []);
            datapath
        });
        Enforced { datapath: datapath.unwrap(), world: &self.stage.world }
    }
}

struct Enforced<'w> {
    datapath: Datapath,
    world: &'w World,
}

impl Enforced<'_> {
    /// Those on the cgroup.
    fn hooks(&self) -> Vec<HookView> {
        let all = self.world.enter(HOST, || self.datapath.hooks()).unwrap();
        all.into_iter().filter(|h| h.mechanism == "cgroup").collect()
    }

    fn denied(&self, reason: Reason) -> u64 {
        let counters = self.world.enter(HOST, || self.datapath.reader().unwrap().counters().unwrap());
        counters.unwrap().reasons.get(&reason).copied().unwrap_or(Count::default()).packets
    }

    /// What the kernel has told so far.
    fn events(&self) -> Vec<Event> {
        let (told, mut all) = tokio::sync::broadcast::channel(4096);
        let events = self.world.enter(HOST, || self.datapath.events().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // It reads until it is dropped: what has been told by now is there at once.
            let _ = tokio::time::timeout(Duration::from_millis(200), events.run(told)).await;
        });
        std::iter::from_fn(|| all.try_recv().ok()).collect()
    }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        IpAddr::V6(_) => panic!("{ip} is not of IPv4"),
    }
}

#[test]
fn what_could_only_be_denied_is_refused_at_once_however_it_is_asked_for() {
    let mut scene = Scene::new(&sample::policy());
    scene.give("shop", "shop");
    let mut shop = scene.caller("shop", "shop");
    let mut nested = scene.caller("shop/made/inside", "shop");
    let mut nobody = scene.caller("nobody", "shop");
    let (db, db6) = (scene.address("db", false), scene.address("db", true));
    let (api, api6) = (scene.address("api", false), scene.address("api", true));
    let gateway: IpAddr = "10.70.1.1".parse().unwrap();
    let denied =
        [at(db, 5432), at(db6, 5432), at(mapped(db), 5432), at(gateway, 22), at(mapped(gateway), 22)];
    for how in How::ALL {
        for to in denied {
            let said = shop.call(how, to).unwrap();
            assert!(said.went_out(), "without hydra: {how:?} to {to}: {said:?}");
        }
    }

    let enforced = scene.enforce();
    let mut refused = 0;
    for how in How::ALL {
        for to in denied {
            assert_eq!(shop.call(how, to).unwrap(), Said::REFUSED, "{how:?} to {to}");
            refused += 1;
        }
    }
    assert_eq!(enforced.denied(Reason::NoRule), refused);
    assert_eq!(
        nested.call(How::Connect, at(db, 5432)).unwrap(),
        Said::REFUSED,
        "a cgroup inside the container's"
    );
    assert_eq!(
        nobody.call(How::Connect, at(db, 5432)).unwrap(),
        Said::Begun,
        "nobody's process is its packets' matter"
    );

    let events = enforced.events();
    let told: Vec<&Event> = events.iter().filter(|e| e.hook == Hook::Connect as u8).collect();
    let first = told[0];
    assert_eq!(first.process, shop.pid());
    assert_eq!(&first.command[..12], b"hydra-caller");
    assert_eq!((IpAddr::from(first.destination), first.destination_port), (db, 5432));
    let number = scene.stage.desired.endpoints[&Address::from(scene.address("shop", false))].container;
    assert_eq!(first.source_container, number);

    for how in How::ALL {
        let port = if how.is_udp() { continue } else { 8000 };
        for to in [at(api, port), at(api6, port), at(mapped(api), port)] {
            assert!(shop.call(how, to).unwrap().went_out(), "allowed: {how:?} to {to}");
        }
    }
}

#[test]
fn the_own_stack_and_what_only_packets_can_tell_is_not_refused() {
    let mut scene = Scene::new(&sample::policy());
    scene.give("shop", "shop");
    let mut shop = scene.caller("shop", "shop");
    let own = scene.address("shop", false);
    let _enforced = scene.enforce();
    for to in ["127.0.0.1", "127.255.3.4", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
        let to = at(to.parse().unwrap(), 5432);
        assert!(shop.call(How::Connect, to).unwrap().went_out(), "{to}");
    }
    assert!(shop.call(How::Connect, at(own, 5432)).unwrap().went_out(), "its own address");
    for to in ["224.0.0.251", "10.70.1.200", "10.70.3.200"] {
        assert_eq!(shop.call(How::Datagram, at(to.parse().unwrap(), 5353)).unwrap(), Said::Begun, "{to}");
    }
    let db = scene.address("db", false);
    assert_eq!(
        shop.call(How::Datagram, at(db, 0)).unwrap(),
        Said::Begun,
        "asks for a route, and sends nothing"
    );
    assert_eq!(shop.call(How::Datagram, at(db, 53)).unwrap(), Said::Begun, "audited is not denied");
    assert_eq!(shop.call(How::Connect, at(db, 53)).unwrap(), Said::REFUSED);
    let nowhere = at(IpAddr::V6(Ipv6Addr::LOCALHOST), 1);
    assert_ne!(shop.call(How::SendTo, nowhere).unwrap(), Said::REFUSED);
}

#[test]
fn a_container_of_several_identities_is_refused_where_none_of_them_may() {
    let mut scene = Scene::new(&sample::policy());
    // As a stack would be whose addresses are two tiers'.
    scene.give("both", "shop");
    let id = cgroup::number(&scene.folder.below("both").unwrap()).unwrap();
    let cron = scene.stage.desired.endpoints[&Address::from(scene.address("cron", false))].identity;
    let row = desired::Cgroup { identity: cron, ..scene.stage.desired.cgroups[&CgroupKey::new(id, 0)] };
    scene.stage.desired.cgroups.insert(CgroupKey::new(id, 2), row);
    let mut both = scene.caller("both", "shop");
    let _enforced = scene.enforce();
    let (db, cache) = (scene.address("db", false), scene.address("cache", false));
    assert_eq!(both.call(How::Connect, at(db, 5432)).unwrap(), Said::Begun, "app may");
    assert_eq!(both.call(How::Connect, at(cache, 6379)).unwrap(), Said::REFUSED, "neither may");
}

#[test]
fn processes_in_another_namespace_of_their_making_are_not_the_containers() {
    let mut scene = Scene::new(&sample::policy());
    scene.give("shop", "shop");
    // What runs there has another stack, where the same addresses are others'.
    let mut inner = scene.caller("shop", "cron");
    let _enforced = scene.enforce();
    assert_eq!(inner.call(How::Connect, at(scene.address("cache", false), 22)).unwrap(), Said::Begun);
}

#[test]
fn an_audited_policy_refuses_nobody() {
    let mut scene = Scene::new(&format!("mode: audit\n{}", sample::policy()));
    scene.give("shop", "shop");
    let mut shop = scene.caller("shop", "shop");
    let _enforced = scene.enforce();
    assert_eq!(shop.call(How::Connect, at(scene.address("db", false), 5432)).unwrap(), Said::Begun);
}

#[test]
fn hooks_are_adopted_mended_and_taken_away() {
    let mut scene = Scene::new(&sample::policy());
    scene.give("shop", "shop");
    let mut shop = scene.caller("shop", "shop");
    let db = at(scene.address("db", false), 5432);
    let (world, bpffs) = (&scene.stage.world, scene.stage.world.bpffs().join("hydra"));
    let enforced = scene.enforce();
    let before = enforced.hooks();
    assert_eq!(before.len(), 4);
    assert_eq!(before[0].interface, scene.folder.path().display().to_string());
    drop(enforced);
    assert_eq!(shop.call(How::Connect, db).unwrap(), Said::REFUSED, "without an agent");

    let enforced = scene.enforce();
    assert_eq!(enforced.hooks(), before, "adopted as they were");
    let Enforced { mut datapath, .. } = enforced;
    let pin = bpffs.join(format!("v{}/links/cgroup-connect4", hydra_common::ABI));
    let wrong = world.enter(HOST, || {
        std::fs::remove_file(&pin).unwrap();
        datapath.verify(&scene.stage.desired)
    });
    let wrong = wrong.unwrap();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!(wrong[0].what, "cgroup connect4");
    world.enter(HOST, || datapath.sync(&scene.stage.desired).unwrap()).unwrap();
    assert_eq!(world.enter(HOST, || datapath.verify(&scene.stage.desired)).unwrap(), []);
    assert_eq!(shop.call(How::Connect, db).unwrap(), Said::REFUSED);
    drop(datapath);

    let purged = world.enter(HOST, || hydra_agent::datapath::purge(&bpffs)).unwrap().unwrap();
    assert_eq!(purged.failed, Vec::<String>::new());
    assert_eq!(shop.call(How::Connect, db).unwrap(), Said::Begun, "purge ends it at once");
}
