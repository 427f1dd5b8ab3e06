//! The README tells the truth: its policy is applied on a real engine and its session is typed, line by line.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]

use hydra_tests::agent::{Agent, write};
use hydra_tests::binary::root;
use hydra_tests::engine::container::{Attachment, Container, Network};
use hydra_tests::engine::{Engine, Options, Version};
use hydra_tests::topology::Topology;

/// A command of the session and what the README says that it prints.
struct Typed {
    line: String,
    prints: String,
}

#[test]
fn the_readmes_policy_and_session_are_real() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let policy = blocks(&readme, "yaml").remove(0);
    let session = blocks(&readme, "console").into_iter().find(|block| block.contains("$ hydractl status"));
    let session = typed(&session.expect("the README has a session with hydractl"));

    let engine = Engine::start(Version::V28, Options::default(), &Topology::default()).unwrap();
    engine.add_network(&Network::new("shop-apps", &["172.20.1.1/24"])).unwrap();
    engine.add_network(&Network::new("shop-databases", &["172.20.2.1/24"])).unwrap();
    for (name, network, address, serve) in [
        ("shop-web", "shop-apps", "172.20.1.2", "web 80"),
        ("shop-postgres", "shop-databases", "172.20.2.2", "postgres"),
        ("shop-redis", "shop-databases", "172.20.2.3", "redis"),
    ] {
        let at = Attachment { network: network.to_owned(), addresses: vec![address.parse().unwrap()] };
        let mut container = Container::new(name, &[], serve);
        container.networks.push(at);
        engine.add_container(&container).unwrap();
    }
    engine
        .exec_until("shop-postgres", &["psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1"])
        .unwrap();
    engine.exec_until("shop-redis", &["redis-cli", "ping"]).unwrap();
    let socket = engine.socket();
    let agent = Agent::start_with(engine.world(), &["--docker", &socket.to_string_lossy()]).unwrap();
    write(engine.world(), "policy.yaml", &policy).unwrap();

    let file = engine.world().scratch("policy.yaml").to_string_lossy().into_owned();
    let mut transcript = String::new();
    let mut differs = Vec::new();
    for Typed { line, prints } in session {
        let seen = enter(&engine, &agent, &line, &file).replace(&file, "policy.yaml");
        transcript.extend(["$ ", &line, "\n", &seen]);
        if shape(&seen) != shape(&prints) {
            differs.push(line);
        }
    }
    assert!(differs.is_empty(), "the README differs at {differs:?}; this is what is seen:\n{transcript}");
}

/// Types a line of the session, and returns what it prints.
fn enter(engine: &Engine, agent: &Agent, line: &str, file: &str) -> String {
    let words = words(line);
    let words: Vec<&str> = words.iter().map(|word| if word == "policy.yaml" { file } else { word }).collect();
    let output = match words.as_slice() {
        ["sudo", "hydractl", rest @ ..] | ["hydractl", rest @ ..] => agent.ctl(engine.world(), rest).unwrap(),
        ["docker", "exec", container, rest @ ..] => engine.exec(container, rest).unwrap(),
        _ => panic!("the README's session has a line that this test cannot type: {line}"),
    };
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// The text of the fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block.to_owned())
        .collect()
}

fn typed(block: &str) -> Vec<Typed> {
    let mut session: Vec<Typed> = Vec::new();
    for line in block.lines() {
        match (line.strip_prefix("$ "), session.last_mut()) {
            (Some(line), _) => session.push(Typed { line: line.to_owned(), prints: String::new() }),
            (None, Some(last)) => last.prints.extend([line, "\n"]),
            (None, None) => panic!("the session begins with what is printed"),
        }
    }
    session
}

/// The words of a line; single quotes keep one together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// What stays the same from one run to the next: numbers and the width of columns do not.
fn shape(text: &str) -> Vec<String> {
    let same = |line: &str| {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| {
                let mut same = String::new();
                for letter in word.chars() {
                    let letter = if letter.is_ascii_digit() { '0' } else { letter };
                    if letter != '0' || !same.ends_with('0') {
                        same.push(letter);
                    }
                }
                same
            })
            .collect();
        words.join(" ")
    };
    text.lines().map(same).filter(|line| !line.is_empty()).collect()
}
