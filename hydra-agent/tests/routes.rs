//! Routes inside namespaces, against the real kernel. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

mod stage;

use std::time::Duration;

use hydra_agent::inventory::routes::{self, Route, RouteError, leads_to};
use hydra_agent::inventory::snapshot::Stack;
use hydra_agent::inventory::{Engine, Inventory, Settings};

use stage::{Stage, on_stage};

async fn stack(stage: &Stage, name: &str) -> Stack {
    let settings = Settings {
        engine: Engine::None,
        netns_dir: stage.netns_dir(),
        every: Duration::from_hours(1),
        keep: None,
        cgroups: None,
    };
    let snapshot = Inventory::new(settings).unwrap().observe().await;
    snapshot.stacks.into_iter().find(|s| s.name == name).unwrap()
}

fn route(destination: &str, gateway: &str) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        interface: "eth0".to_owned(),
    }
}

fn texts(errors: &[RouteError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn on_db(test: impl FnOnce(&mut Stage) + Send + 'static) {
    on_stage(|stage| {
        stage.bridge("hybr0", &["172.30.3.1/24", "fd00:3::1/64"]);
        stage.namespace("hy-db");
        stage.connect("hy-db", "hybr0", "hyp0", "eth0", &["172.30.3.10/24", "fd00:3::10/64"]);
        test(stage);
    });
}

#[test]
fn a_route_is_added_listed_as_ours_and_removed_both_families_any_number_of_times() {
    on_db(|stage| {
        stage.run(async {
            let db = stack(stage, "hy-db").await;
            let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            let before = routes::list(&db).await.unwrap();
            let wanted = [route("172.30.9.0/24", "172.30.3.1"), route("fd00:9::/64", "fd00:3::1")];
            let (v4, v6) = ("172.30.9.7".parse().unwrap(), "fd00:9::7".parse().unwrap());
            assert!(!leads_to(&before, v4) && !leads_to(&before, v6));
            for _ in 0..2 {
                assert_eq!(texts(&routes::add(&db, &wanted).await), Vec::<String>::new());
                let routes = routes::list(&db).await.unwrap();
                assert!(leads_to(&routes, v4) && leads_to(&routes, v6));
                let ours: Vec<_> = routes.iter().filter(|r| r.ours).collect();
                assert_eq!(ours.len(), 2);
                for (ours, wanted) in ours.iter().zip(&wanted) {
                    assert_eq!(ours.destination, wanted.destination);
                    assert_eq!(ours.gateway, Some(wanted.gateway));
                    assert_eq!(ours.interface, "eth0");
                }
            }
            for _ in 0..2 {
                assert_eq!(texts(&routes::remove(&db, &wanted).await), Vec::<String>::new());
                assert_eq!(routes::list(&db).await.unwrap(), before);
            }
            assert_eq!(
                std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
                own,
                "this thread has not moved"
            );
        });
    });
}

#[test]
fn a_default_route_leads_everywhere_and_a_blackhole_nowhere() {
    on_db(|stage| {
        stage.ip_in("hy-db", "route add blackhole 198.51.100.0/24");
        stage.ip_in("hy-db", "route add default via 172.30.3.1");
        stage.run(async {
            let routes = routes::list(&stack(stage, "hy-db").await).await.unwrap();
            assert!(leads_to(&routes, "203.0.113.1".parse().unwrap()));
            assert!(!leads_to(&routes, "2001:db8::1".parse().unwrap()));
            assert!(!routes.iter().any(|r| r.destination.to_string() == "198.51.100.0/24"));
        });
    });
}

#[test]
fn another_s_route_to_the_same_place_is_left_as_it_is() {
    on_db(|stage| {
        stage.ip_in("hy-db", "route add 172.30.9.0/24 via 172.30.3.254");
        stage.run(async {
            let db = stack(stage, "hy-db").await;
            let before = routes::list(&db).await.unwrap();
            let wanted = [route("172.30.9.0/24", "172.30.3.1")];
            assert_eq!(texts(&routes::add(&db, &wanted).await), Vec::<String>::new());
            assert_eq!(routes::list(&db).await.unwrap(), before);
            let theirs = [route("172.30.9.0/24", "172.30.3.254")];
            assert_eq!(texts(&routes::remove(&db, &theirs).await), Vec::<String>::new());
            assert_eq!(routes::list(&db).await.unwrap(), before, "removed a route that is not ours");
        });
    });
}

#[test]
fn our_route_by_another_gateway_is_replaced() {
    on_db(|stage| {
        stage.run(async {
            let db = stack(stage, "hy-db").await;
            for (to, old, new) in
                [("172.30.9.0/24", "172.30.3.254", "172.30.3.1"), ("fd00:9::/64", "fd00:3::fe", "fd00:3::1")]
            {
                routes::add(&db, &[route(to, old)]).await;
                assert_eq!(texts(&routes::add(&db, &[route(to, new)]).await), Vec::<String>::new());
                let routes = routes::list(&db).await.unwrap();
                let found: Vec<_> =
                    routes.iter().filter(|r| r.destination.to_string() == to).map(|r| r.gateway).collect();
                assert_eq!(found, [Some(new.parse().unwrap())]);
            }
        });
    });
}

#[test]
fn errors_name_the_stack_and_the_route_and_stop_nothing() {
    on_db(|stage| {
        stage.run(async {
            let db = stack(stage, "hy-db").await;
            let elsewhere = Route { interface: "eth7".to_owned(), ..route("172.30.8.0/24", "172.30.3.1") };
            let wanted =
                [elsewhere, route("172.30.7.0/24", "192.0.2.1"), route("172.30.9.0/24", "172.30.3.1")];
            let errors = texts(&routes::add(&db, &wanted).await);
            assert_eq!(errors.len(), 2, "{errors:?}");
            assert_eq!(
                errors[0],
                "route `172.30.8.0/24 via 172.30.3.1 dev eth7` could not be added to `hy-db`: it has no interface `eth7`"
            );
            assert!(
                errors[1].starts_with(
                    "route `172.30.7.0/24 via 192.0.2.1 dev eth0` could not be added to `hy-db`: "
                ),
                "{errors:?}"
            );
            assert!(leads_to(&routes::list(&db).await.unwrap(), "172.30.9.1".parse().unwrap()));
        });
    });
}

#[test]
fn a_namespace_that_took_the_place_of_the_one_meant_is_not_touched() {
    on_db(|stage| {
        stage.run(async {
            let db = stack(stage, "hy-db").await;
            stage.ip("link delete hyp0");
            stage.forget("hy-db");
            stage.namespace("hy-db");
            stage.connect("hy-db", "hybr0", "hyp1", "eth0", &["172.30.3.10/24"]);
            let errors = texts(&routes::add(&db, &[route("172.30.9.0/24", "172.30.3.1")]).await);
            let path = stage.netns_dir().join("hy-db");
            assert_eq!(
                errors,
                [format!(
                    "routes of `hy-db`: namespace `{}` is gone, another one has its place",
                    path.display()
                )]
            );
            assert!(!routes::list(&stack(stage, "hy-db").await).await.unwrap().iter().any(|r| r.ours));
            stage.forget("hy-db");
            let gone = routes::list(&db).await.unwrap_err().to_string();
            assert!(gone.starts_with("routes of `hy-db`: namespace `"), "{gone}");
        });
    });
}

#[test]
fn a_stack_without_a_file_is_said() {
    on_db(|stage| {
        stage.run(async {
            let hidden = Stack { netns: None, ..stack(stage, "hy-db").await };
            let error = routes::list(&hidden).await.unwrap_err().to_string();
            assert_eq!(error, "routes of `hy-db`: no file leads to its namespace");
        });
    });
}
