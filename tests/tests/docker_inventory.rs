//! The inventory against real engines: what it shows of their containers and networks, whatever becomes of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hydra_agent::inventory::snapshot::{Binding, DockerState, Snapshot, Stack};
use hydra_agent::inventory::{Engine, Inventory, Settings, routes};
use hydra_tests::engine::{self, IMAGE, Options, Version};
use hydra_tests::topology::{HOST, Topology};

/// An engine of this test's own.
struct Docker {
    engine: engine::Engine,
}

impl Docker {
    fn new(version: Version) -> Self {
        let options = Options { live_restore: true, ..Options::default() };
        Self { engine: engine::Engine::start(version, options, &Topology::default()).unwrap() }
    }

    /// Runs a test on the host that the engine is on.
    fn follow(&self, test: impl AsyncFnOnce(&Self) + Send) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(test(self));
        };
        self.engine.world().enter(HOST, run).unwrap();
        // The next one begins with an empty engine.
        for container in self.run("ps --all --quiet").lines() {
            self.run(&format!("rm --force {container}"));
        }
        self.run("network prune --force");
    }

    fn words(&self, arguments: &[&str]) -> String {
        self.engine.docker(arguments).unwrap()
    }

    fn run(&self, arguments: &str) -> String {
        self.words(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    fn start(&self, name: &str, options: &str) {
        self.run(&format!("run -d --name {name} {options} {IMAGE} serve nothing"));
    }

    fn settings(&self) -> Settings {
        Settings {
            engine: Engine::Socket(self.engine.socket()),
            netns_dir: PathBuf::from("/nonexistent/hy-netns"),
            every: Duration::from_hours(1),
            keep: None,
            cgroups: None,
        }
    }
}

fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Stack> {
    snapshot.stacks.iter().find(|s| s.name == name)
}

/// Looks until the world is as it should be. Only an event or the kernel can make it look again within the hour.
async fn until(inventory: &mut Inventory, what: &str, as_it_should: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let mut snapshot = inventory.observe().await;
    let wait = async {
        while !as_it_should(&snapshot) {
            inventory.changed().await;
            snapshot = inventory.observe().await;
        }
        snapshot.clone()
    };
    let result = tokio::time::timeout(Duration::from_mins(1), wait).await;
    result.unwrap_or_else(|_| panic!("never: {what}: {snapshot:#?}"))
}

/// As the engine says; the way through the inventory is another one.
fn told(docker: &Docker, container: &str, network: &str, field: &str) -> String {
    let template = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}");
    docker.words(&["inspect", container, "--format", &template])
}

/// `ADDRESS PROTOCOL/PORT CONTAINER TARGET PORT`, in order.
fn bindings(snapshot: &Snapshot) -> Vec<String> {
    let text = |b: &Binding| {
        let target = b.target.map(|t| t.to_string()).unwrap_or_default();
        format!("{} {}/{} {} {target} {}", b.address, b.protocol, b.port, b.container, b.target_port)
    };
    snapshot.bindings.iter().map(text).collect()
}

fn complete(snapshot: &Snapshot, name: &str, networks: usize) -> bool {
    find(snapshot, name).is_some_and(|s| {
        s.docker && s.attachments.len() == networks && s.attachments.iter().all(|a| !a.addresses.is_empty())
    })
}

#[test]
fn inventory_of_20() {
    let docker = Docker::new(Version::V20);
    docker.follow(a_life_of_containers_is_followed);
    docker.follow(what_docker_said_last_survives_its_absence_and_the_agent_s_restart);
}

#[test]
fn inventory_of_28() {
    let docker = Docker::new(Version::V28);
    docker.follow(a_life_of_containers_is_followed);
    docker.follow(twenty_containers_at_once_are_all_found_and_a_new_agent_agrees);
    docker.follow(what_docker_said_last_survives_its_absence_and_the_agent_s_restart);
    docker.follow(an_engine_that_is_killed_and_comes_back_changes_nothing);
}

async fn a_life_of_containers_is_followed(docker: &Docker) {
    docker.run("network create --ipv6 --subnet 172.29.1.0/24 --subnet fd00:29:1::/64 hynet-front");
    docker.run("network create --internal --subnet 172.29.2.0/24 -o com.docker.network.bridge.name=hyback hynet-back");
    let mut inventory = Inventory::new(docker.settings()).unwrap();
    let snapshot = inventory.observe().await;
    let DockerState::Up { version } = &snapshot.docker else { panic!("{:?}", snapshot.docker) };
    assert_eq!(*version, docker.run("version --format {{.Server.Version}}"));
    assert_eq!(snapshot.problems, Vec::<String>::new());

    // Networks are complete from the first look.
    let front = &snapshot.networks["hynet-front"];
    assert!(!front.internal);
    assert_eq!(front.subnets.len(), 2, "{front:?}");
    assert_eq!(front.gateways, ["172.29.1.1", "fd00:29:1::1"].map(|g| g.parse::<IpAddr>().unwrap()));
    assert_eq!(snapshot.links[&front.bridge.unwrap()].name, format!("br-{}", &front.id[..12]));
    let back = &snapshot.networks["hynet-back"];
    assert!(back.internal);
    assert_eq!(snapshot.links[&back.bridge.unwrap()].name, "hyback");

    // A container appears, with Docker's addresses and the kernel's names.
    docker.start(
        "hy-web",
        "--network hynet-front --label hydra.tier=front --publish 18080:80 --publish 127.0.0.1:18053:53/udp",
    );
    let snapshot = until(&mut inventory, "hy-web starts", |s| complete(s, "hy-web", 1)).await;
    let web = find(&snapshot, "hy-web").unwrap();
    assert_eq!(web.labels["hy-web"]["hydra.tier"], "front");
    let attachment = &web.attachments[0];
    assert_eq!(attachment.network.as_deref(), Some("hynet-front"));
    assert_eq!(attachment.interface, "eth0");
    let addresses: Vec<String> = attachment.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(
        addresses,
        [
            told(docker, "hy-web", "hynet-front", "IPAddress"),
            told(docker, "hy-web", "hynet-front", "GlobalIPv6Address")
        ]
    );
    let mac: Vec<String> = attachment.mac.0.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(mac.join(":"), told(docker, "hy-web", "hynet-front", "MacAddress"));
    assert_eq!(attachment.gateways.len(), 2);
    assert_eq!(snapshot.links[&attachment.port].master, snapshot.networks["hynet-front"].bridge);
    let key = web.key.clone();
    // On both engines a binding to all addresses is one of each family; the network has both.
    let bound = bindings(&snapshot);
    let (v4, v6) = (
        told(docker, "hy-web", "hynet-front", "IPAddress"),
        told(docker, "hy-web", "hynet-front", "GlobalIPv6Address"),
    );
    assert_eq!(
        bound,
        [
            format!("0.0.0.0 6/18080 hy-web {v4} 80"),
            format!("127.0.0.1 17/18053 hy-web {v4} 53"),
            format!(":: 6/18080 hy-web {v6} 80")
        ]
    );
    assert!(snapshot.bindings.iter().all(|b| b.stack.as_ref() == Some(&key)));
    assert!(!snapshot.networks["hynet-front"].localnet, "docker-proxy runs");

    // It gets another network while it runs, and loses it.
    docker.run("network connect hynet-back hy-web");
    let snapshot = until(&mut inventory, "hy-web is connected", |s| complete(s, "hy-web", 2)).await;
    let web = find(&snapshot, "hy-web").unwrap();
    assert_eq!(web.key, key, "the same stack");
    assert_eq!(bindings(&snapshot), bound, "an internal network leads nowhere");
    let second = web.attachments.iter().find(|a| a.network.as_deref() == Some("hynet-back")).unwrap();
    assert_eq!(
        second.addresses.first().unwrap().to_string(),
        told(docker, "hy-web", "hynet-back", "IPAddress")
    );
    docker.run("network disconnect hynet-back hy-web");
    until(&mut inventory, "hy-web is disconnected", |s| complete(s, "hy-web", 1)).await;

    // One shares its stack, one has the host's, one has none.
    docker.start("hy-guest", "--network container:hy-web");
    docker.start("hy-host", "--network host");
    docker.start("hy-none", "--network none");
    let snapshot = until(&mut inventory, "guests are members", |s| {
        find(s, "hy-web").is_some_and(|w| w.members == ["hy-web", "hy-guest"])
            && s.host_network == ["hy-host"]
            && find(s, "hy-none").is_some()
    })
    .await;
    assert!(find(&snapshot, "hy-guest").is_none() && find(&snapshot, "hy-host").is_none());
    assert!(find(&snapshot, "hy-none").unwrap().attachments.is_empty());

    // A rename, a restart (the same container in another namespace), an end.
    docker.run("rename hy-none hy-nothing");
    until(&mut inventory, "hy-none is renamed", |s| find(s, "hy-nothing").is_some()).await;
    docker.run("rm -f hy-guest");
    docker.run("restart -t 0 hy-web");
    let snapshot = until(&mut inventory, "hy-web is back", |s| {
        complete(s, "hy-web", 1) && find(s, "hy-web").is_some_and(|w| w.key != key)
    })
    .await;
    let web = find(&snapshot, "hy-web").unwrap();
    assert_eq!(web.members, ["hy-web"]);

    // Its namespace can be visited: a container on an internal network has no way out from 26.1 on, here it always has one.
    assert!(routes::list(web).await.unwrap().iter().any(|r| r.interface == "eth0"));
    docker.run("rm -f hy-web");
    let gone = |s: &Snapshot| find(s, "hy-web").is_none() && s.bindings.is_empty();
    let snapshot = until(&mut inventory, "hy-web is gone", gone).await;
    assert!(snapshot.stacks.iter().all(|s| s.docker), "nothing is left behind: {:#?}", snapshot.stacks);

    // Networks come and go.
    docker.run("network rm hynet-back");
    until(&mut inventory, "hynet-back is gone", |s| !s.networks.contains_key("hynet-back")).await;
}

async fn twenty_containers_at_once_are_all_found_and_a_new_agent_agrees(docker: &Docker) {
    docker.run("network create --subnet 172.29.3.0/24 hynet-many");
    let mut inventory = Inventory::new(docker.settings()).unwrap();
    inventory.observe().await;
    std::thread::scope(|scope| {
        for lane in 0..4 {
            scope.spawn(move || {
                for n in 0..5 {
                    docker.start(&format!("hy-m{lane}{n}"), "--network hynet-many");
                }
            });
        }
    });
    let all = |s: &Snapshot| s.stacks.iter().filter(|k| complete(s, &k.name, 1)).count() == 20;
    let snapshot = until(&mut inventory, "twenty containers", all).await;
    let fresh = Inventory::new(docker.settings()).unwrap().observe().await;
    assert_eq!(fresh.stacks, snapshot.stacks);
    assert_eq!(fresh.networks, snapshot.networks);
}

async fn what_docker_said_last_survives_its_absence_and_the_agent_s_restart(docker: &Docker) {
    let folder = tempfile::Builder::new().prefix("hy").tempdir().unwrap();
    // The agent's way to the engine is a link that can be taken away: to it, the engine is gone then.
    let socket = folder.path().join("docker.sock");
    std::os::unix::fs::symlink(docker.engine.socket(), &socket).unwrap();
    let settings = Settings {
        engine: Engine::Socket(socket.clone()),
        keep: Some(folder.path().join("docker.json")),
        ..docker.settings()
    };
    docker.run("network create --subnet 172.29.4.0/24 hynet-keep");
    docker.start("hy-kept", "--network hynet-keep");
    docker.start("hy-dies", "--network hynet-keep");
    let mut inventory = Inventory::new(settings.clone()).unwrap();
    let both = |s: &Snapshot| complete(s, "hy-kept", 1) && complete(s, "hy-dies", 1);
    let before = until(&mut inventory, "two containers", both).await;
    drop(inventory);

    std::fs::remove_file(&socket).unwrap();
    docker.run("rm -f hy-dies");
    let mut inventory = Inventory::new(settings).unwrap();
    let snapshot = inventory.observe().await;
    let DockerState::Down { .. } = &snapshot.docker else { panic!("{:?}", snapshot.docker) };
    assert_eq!(find(&snapshot, "hy-kept"), find(&before, "hy-kept"));
    assert_eq!(snapshot.networks, before.networks);
    assert!(find(&snapshot, "hy-dies").is_none(), "its process has ended, whoever says that it runs");

    // A container that starts meanwhile is a stranger without addresses on Docker's network, until Docker is back.
    docker.start("hy-new", "--network hynet-keep");
    let stranger = |s: &Snapshot| {
        s.stacks.iter().any(|k| !k.docker && k.attachments.iter().any(|a| a.network.is_some()))
    };
    let snapshot = until(&mut inventory, "a stranger", stranger).await;
    let strangers = || snapshot.stacks.iter().filter(|s| !s.docker);
    assert!(
        strangers().flat_map(|s| &s.attachments).all(|a| a.addresses.is_empty()),
        "{:#?}",
        snapshot.stacks
    );
    std::os::unix::fs::symlink(docker.engine.socket(), &socket).unwrap();
    let snapshot = until(&mut inventory, "hy-new is known", |s| complete(s, "hy-new", 1)).await;
    assert!(matches!(snapshot.docker, DockerState::Up { .. }));
    assert!(!stranger(&snapshot));
}

async fn an_engine_that_is_killed_and_comes_back_changes_nothing(docker: &Docker) {
    docker.run("network create --subnet 172.29.5.0/24 hynet-live");
    docker.start("hy-lives", "--network hynet-live");
    let mut inventory = Inventory::new(docker.settings()).unwrap();
    let known = |s: &Snapshot| complete(s, "hy-lives", 1);
    let before = until(&mut inventory, "hy-lives is known", known).await;
    docker.engine.kill_daemon().unwrap();
    let down = |s: &Snapshot| matches!(s.docker, DockerState::Down { .. });
    let snapshot = until(&mut inventory, "the engine is down", down).await;
    assert_eq!((&snapshot.stacks, &snapshot.networks), (&before.stacks, &before.networks));
    docker.engine.start_daemon().unwrap();
    let up = |s: &Snapshot| matches!(s.docker, DockerState::Up { .. });
    let snapshot = until(&mut inventory, "the engine is back", up).await;
    assert_eq!((&snapshot.stacks, &snapshot.networks), (&before.stacks, &before.networks));
    // The new engine's events are heard.
    docker.start("hy-later", "--network hynet-live");
    until(&mut inventory, "hy-later is known", |s| complete(s, "hy-later", 1) && known(s)).await;
}
