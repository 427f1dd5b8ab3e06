//! The inventory against the real kernel: links, addresses, namespaces, and what wakes it. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod stage;

use std::net::IpAddr;
use std::time::Duration;

use hydra_agent::inventory::snapshot::{DockerState, LinkType, Snapshot, Stack};
use hydra_agent::inventory::{Engine, Inventory, Settings};
use hydra_common::address::Mac;

use stage::{Stage, on_stage};

fn settings(stage: &Stage) -> Settings {
    Settings {
        engine: Engine::None,
        netns_dir: stage.netns_dir(),
        every: Duration::from_hours(1),
        keep: None,
        cgroups: None,
    }
}

fn stack<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Stack {
    snapshot.stacks.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no `{name}` in {snapshot:#?}"))
}

fn index_of(snapshot: &Snapshot, name: &str) -> u32 {
    *snapshot.links.iter().find(|(_, l)| l.name == name).unwrap().0
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

/// Only so that a test that would hang fails instead; nothing is measured by it.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

#[test]
fn named_namespaces_are_seen_with_ports_addresses_and_gateways() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24", "fd00:3::1/64"]);
        stage.bridge("hybr1", &["172.30.4.1/24"]);
        stage.namespace("hy-db");
        stage.connect("hy-db", "hybr0", "hyp0", "eth0", &["172.30.3.10/24", "fd00:3::10/64"]);
        stage.connect("hy-db", "hybr1", "hyp1", "eth1", &["172.30.4.10/24"]);
        stage.ip_in("hy-db", "link set eth1 address 02:00:00:00:00:11");
        // A namespace that no veth leads to, a name without a namespace, and a pair whose ends are both here.
        stage.namespace("hy-elsewhere");
        std::fs::write(stage.netns_dir().join("hy-half-made"), "").unwrap();
        stage.ip("link add hyv0 type veth peer name hyv1");
        let snapshot = stage.run(async { Inventory::new(settings(stage)).unwrap().observe().await });

        assert_eq!(snapshot.problems, Vec::<String>::new());
        assert_eq!(snapshot.docker, DockerState::Off);
        assert_eq!(snapshot.stacks.len(), 1, "{:#?}", snapshot.stacks);
        let db = stack(&snapshot, "hy-db");
        assert_eq!(db.members, ["hy-db"]);
        assert_eq!(db.netns, Some(stage.netns_dir().join("hy-db")));
        assert!(!db.docker);
        let [first, second] = db.attachments.as_slice() else { panic!("{:#?}", db.attachments) };
        assert_eq!(first.port, index_of(&snapshot, "hyp0"));
        assert_eq!(first.interface, "eth0");
        assert_eq!(Vec::from_iter(first.addresses.clone()), ips(&["172.30.3.10", "fd00:3::10"]));
        assert_eq!(first.gateways, ips(&["172.30.3.1", "fd00:3::1"]));
        assert_eq!(second.interface, "eth1");
        assert_eq!(second.mac, Mac([2, 0, 0, 0, 0, 0x11]));
        assert_eq!(second.gateways, ips(&["172.30.4.1"]));

        let bridge = &snapshot.links[&index_of(&snapshot, "hybr0")];
        assert_eq!(bridge.kind, LinkType::Bridge);
        assert!(bridge.up);
        assert!(bridge.addresses.contains(&"172.30.3.1/24".parse().unwrap()));
        let port = &snapshot.links[&first.port];
        assert_eq!(
            (port.kind, port.master, port.peer_elsewhere),
            (LinkType::Veth, Some(index_of(&snapshot, "hybr0")), true)
        );
        assert!(!snapshot.links[&index_of(&snapshot, "hyv0")].peer_elsewhere);
        assert_eq!(snapshot.links[&1].kind, LinkType::Loopback);
    });
}

#[test]
fn a_nameless_namespace_is_found_by_its_process() {
    on_stage(|stage| {
        let pid = stage.process();
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        stage.ip(&format!("link add hyp0 master hybr0 up type veth peer name eth0 netns {pid}"));
        let snapshot = stage.run(async { Inventory::new(settings(stage)).unwrap().observe().await });
        let [stack] = snapshot.stacks.as_slice() else { panic!("{:#?}", snapshot.stacks) };
        assert!(stack.name.starts_with("netns-"), "{}", stack.name);
        assert_eq!(stack.netns, Some(format!("/proc/{pid}/ns/net").into()));
        assert_eq!(stack.attachments[0].interface, "eth0");
        assert!(stack.attachments[0].addresses.is_empty());
    });
}

#[test]
fn a_namespace_made_anew_under_the_same_name_is_another_stack() {
    on_stage(|stage| {
        stage.bridge("hybr0", &[]);
        let mut keys = Vec::new();
        let mut inventory = None;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for round in 0..3 {
            stage.namespace("hy-db");
            stage.connect("hy-db", "hybr0", &format!("hyp{round}"), "eth0", &[]);
            let snapshot = runtime.block_on(async {
                inventory.get_or_insert_with(|| Inventory::new(settings(stage)).unwrap()).observe().await
            });
            keys.push(stack(&snapshot, "hy-db").key.clone());
            stage.ip(&format!("link delete hyp{round}"));
            stage.forget("hy-db");
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 3, "the inode number alone is given again: {keys:?}");
    });
}

#[test]
fn a_second_agent_sees_the_same_keys_in_the_same_order() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        for n in 0..12 {
            let name = format!("hy-n{n}");
            stage.namespace(&name);
            stage.connect(&name, "hybr0", &format!("hyp{n}"), "eth0", &[&format!("172.30.3.{}/24", n + 10)]);
        }
        let look = || stage.run(async { Inventory::new(settings(stage)).unwrap().observe().await });
        let (first, second) = (look(), look());
        assert_eq!(first.stacks, second.stacks);
        assert_eq!(first.stacks.len(), 12);
        assert!(first.stacks.is_sorted_by_key(|s| &s.key));
    });
}

#[test]
fn what_changes_inside_a_namespace_wakes_and_is_seen() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        stage.namespace("hy-db");
        stage.connect("hy-db", "hybr0", "hyp0", "eth0", &[]);
        stage.run(async {
            let mut inventory = Inventory::new(settings(stage)).unwrap();
            // Interfaces that come up go on sending news for a while.
            let mut snapshot = inventory.observe().await;
            assert!(stack(&snapshot, "hy-db").attachments[0].addresses.is_empty());
            stage.ip_in("hy-db", "address add 172.30.3.77/24 dev eth0");
            while stack(&snapshot, "hy-db").attachments[0].addresses.is_empty() {
                soon("an address inside a namespace wakes", inventory.changed()).await;
                snapshot = inventory.observe().await;
            }
            stage.ip("link add hyv0 type veth peer name hyv1");
            while !snapshot.links.values().any(|l| l.name == "hyv0") {
                soon("a new link wakes", inventory.changed()).await;
                snapshot = inventory.observe().await;
            }
            stage.forget("hy-db");
            while !snapshot.stacks.is_empty() {
                soon("a link that goes with its namespace wakes", inventory.changed()).await;
                snapshot = inventory.observe().await;
            }
        });
    });
}

#[test]
fn a_wake_survives_a_caller_that_gives_up() {
    on_stage(|stage| {
        stage.run(async {
            let mut inventory = Inventory::new(settings(stage)).unwrap();
            inventory.observe().await;
            stage.bridge("hybr0", &[]);
            // Polled often and dropped each time, as in a `select!` whose other arm is always first.
            for _ in 0..1000 {
                tokio::select! {
                    biased;
                    () = inventory.changed() => break,
                    () = tokio::task::yield_now() => {}
                }
            }
            soon("the change is still to come", inventory.changed()).await;
        });
    });
}

#[test]
fn without_a_change_a_look_is_due_after_a_while() {
    on_stage(|stage| {
        stage.run(async {
            let short = Settings { every: Duration::from_millis(20), ..settings(stage) };
            let mut inventory = Inventory::new(short).unwrap();
            inventory.observe().await;
            soon("the regular look", inventory.changed()).await;
        });
    });
}

#[test]
fn a_world_that_never_stands_still_is_still_seen_whole() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        stage.namespace("hy-db");
        stage.connect("hy-db", "hybr0", "hyp0", "eth0", &["172.30.3.10/24"]);
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let noise = std::thread::spawn(move || {
            nix::sched::setns(&own, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut round = 0_u32;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for verb in ["add hynoise type veth peer name hyother", "delete hynoise"] {
                    let status = std::process::Command::new("ip")
                        .arg("link")
                        .args(verb.split_whitespace())
                        .status()
                        .unwrap();
                    assert!(status.success());
                }
                round += 1;
            }
            round
        });
        stage.run(async {
            let mut inventory = Inventory::new(settings(stage)).unwrap();
            for _ in 0..200 {
                let snapshot = inventory.observe().await;
                assert_eq!(snapshot.problems, Vec::<String>::new());
                assert_eq!(stack(&snapshot, "hy-db").attachments.len(), 1);
                for link in ["lo", "hybr0", "hyp0"] {
                    index_of(&snapshot, link);
                }
            }
        });
        stop.send(()).unwrap();
        assert!(noise.join().unwrap() > 0);
    });
}

#[test]
fn a_named_engine_that_is_not_there_is_down_and_the_kernel_is_seen_all_the_same() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        stage.namespace("hy-db");
        stage.connect("hy-db", "hybr0", "hyp0", "eth0", &["172.30.3.10/24"]);
        let engine = Engine::Socket(stage.directory().join("absent.sock"));
        let snapshot = stage
            .run(async { Inventory::new(Settings { engine, ..settings(stage) }).unwrap().observe().await });
        let DockerState::Down { error } = &snapshot.docker else { panic!("{:?}", snapshot.docker) };
        assert!(!error.is_empty());
        assert_eq!(stack(&snapshot, "hy-db").attachments[0].addresses.len(), 1);
    });
}

#[test]
fn an_engine_that_talks_nonsense_is_down() {
    on_stage(|stage| {
        let path = stage.directory().join("nonsense.sock");
        stage.run(async {
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let nonsense = tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ =
                        tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x00\xff nonsense\r\n\r\n").await;
                }
            });
            let engine = Engine::Socket(path.clone());
            let mut inventory = Inventory::new(Settings { engine, ..settings(stage) }).unwrap();
            let snapshot = inventory.observe().await;
            assert!(matches!(snapshot.docker, DockerState::Down { .. }), "{:?}", snapshot.docker);
            nonsense.abort();
        });
    });
}

/// Prints what a look costs; `--nocapture` shows it.
#[test]
fn fifty_namespaces_are_listed_in_one_look() {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24"]);
        for n in 0..50 {
            let name = format!("hy-n{n}");
            stage.namespace(&name);
            stage.connect(&name, "hybr0", &format!("hyp{n}"), "eth0", &[&format!("172.30.3.{}/24", n + 10)]);
        }
        stage.run(async {
            let mut inventory = Inventory::new(settings(stage)).unwrap();
            let mut times = Vec::new();
            for _ in 0..20 {
                let begun = std::time::Instant::now();
                let snapshot = inventory.observe().await;
                times.push(begun.elapsed());
                assert_eq!(snapshot.stacks.len(), 50);
                assert!(snapshot.stacks.iter().all(|s| s.attachments[0].addresses.len() == 1));
            }
            times.sort();
            println!("50 namespaces: median {:?}, worst {:?}", times[10], times[19]);
        });
    });
}
