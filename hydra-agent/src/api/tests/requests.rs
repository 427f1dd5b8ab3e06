//! Bodies, changes, and clients that behave badly.

use super::*;

#[tokio::test]
async fn bodies_that_are_not_the_expected_json_are_refused_with_what_is_wrong() {
    let world = World::start(Published::default(), Memory::default());
    let large = vec![b' '; 5000];
    let mut said = String::new();
    for (name, body) in [
        ("empty", b"".as_slice()),
        ("no JSON", b"version: 1"),
        ("not UTF-8", b"{\"text\": \"\xff\"}"),
        ("wrong type", b"{\"text\": 1}"),
        ("lacks text", b"{}"),
        ("unknown field", b"{\"text\": \"\", \"force\": true}"),
        ("an array", b"[]"),
        ("cut off", b"{\"text\": \"a"),
        ("two values", b"{\"text\": \"\"}{}"),
        ("deep", &[b'['; 4000]),
        ("large", &large),
    ] {
        let (code, answer) = world.ask("POST", "/v1/policy/apply", body).await;
        writeln!(said, "{name}: {code} {}", answer["error"].as_str().unwrap()).unwrap();
    }
    for (method, target) in
        [("GET", "/v1/policy/apply"), ("DELETE", "/v1/policy"), ("GET", "/"), ("POST", "/v2/x")]
    {
        let (code, answer) = world.ask(method, target, b"").await;
        writeln!(said, "{method} {target}: {code} {}", answer["error"].as_str().unwrap()).unwrap();
    }
    insta::assert_snapshot!(said);
    world.end().await;
}

#[tokio::test]
async fn a_change_reaches_the_loop_with_the_name_of_who_asked() {
    let mut world = World::start(Published::default(), Memory::default());
    let body = br#"{"text": "version: 1", "source": "p.yaml", "dry_run": true}"#;
    let stream = world.connect().await;
    let asking =
        tokio::spawn(async move { exchange(stream, "POST", "/v1/policy/apply", "agent", body).await });
    let Some(Command::Apply { text, source, by, dry_run, reply }) = world.commands.recv().await else {
        panic!("no apply")
    };
    assert_eq!((text.as_str(), source.as_str(), dry_run), ("version: 1", "p.yaml", true));
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    assert_eq!(by, format!("uid={uid} gid={gid} pid={}", std::process::id()));
    reply.send(Ok(ApplyReport { revision: 4, policy: "hydra".into(), ..ApplyReport::default() })).unwrap();
    let (code, _, body) = asking.await.unwrap();
    assert_eq!(code, 200);
    assert_eq!(serde_json::from_slice::<ApplyReport>(&body).unwrap().revision, 4);

    let stream = world.connect().await;
    let asking = tokio::spawn(async move {
        exchange(stream, "POST", "/v1/policy/rollback", "agent", b"{\"revision\": 9}").await
    });
    let Some(Command::Rollback { revision: Some(9), reply, .. }) = world.commands.recv().await else {
        panic!("no rollback")
    };
    reply.send(Err(ApplyError::NoRevision(9))).unwrap();
    let (code, _, body) = asking.await.unwrap();
    assert_eq!(code, 404);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error"], "there is no revision 9");
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_stops_says_so() {
    let mut world = World::start(Published::default(), Memory::default());
    world.commands.close();
    let (code, answer) = world.ask("POST", "/v1/policy/rollback", b"{}").await;
    assert_eq!((code, &answer["error"]), (503, &json!("the agent is stopping")));
    world.end().await;
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let world = World::start(Published::default(), Memory::default());
    // Headers that never end: the connection is closed.
    let mut slow = world.connect().await;
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nhost:").await.unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"));
    // A body that never comes: 408.
    let mut slow = world.connect().await;
    let head =
        b"POST /v1/policy/apply HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{";
    slow.write_all(head).await.unwrap();
    let (code, _, body) = answer(slow).await;
    assert_eq!(code, 408);
    assert!(String::from_utf8(body).unwrap().contains("did not come in time"));
    // More of them than there is room for: others are served as soon as those are let go.
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(world.connect().await);
    }
    assert_eq!(world.get("/v1/endpoints").await, json!([]));
    world.end().await;
}

#[tokio::test]
async fn a_reader_who_follows_does_not_keep_the_agent() {
    let world = World::start(Published::default(), Memory::default());
    let mut stream = world.connect().await;
    stream.write_all(b"GET /v1/drops/follow HTTP/1.1\r\nhost: agent\r\n\r\n").await.unwrap();
    while world.events.receiver_count() < 2 {
        tokio::task::yield_now().await;
    }
    world.end().await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}
