//! The fuzz targets over their seeds and random changes of them. `HYDRA_SEED` chooses other changes, `HYDRA_MUTATIONS` more; `fuzz/` has
//! the same targets for libFuzzer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on ends here")]
#![allow(clippy::print_stdout, reason = "what was measured, for whoever reads the log")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use hydra_tests::fuzz::{self, mutate, seeds};
use hydra_tests::random::Random;

fn run(target: &str, test: fn(&[u8]), words: &[&[u8]], otherwise: usize) {
    let mut random = Random::from_environment();
    println!("{random:?}");
    let seeds = seeds(target);
    assert!(seeds.len() >= 5, "{target} has {} seeds", seeds.len());
    let attempt = |name: &str, bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(bytes))) {
            println!("{target}, {name}: keep this as a seed:\n{}", bytes.escape_ascii());
            resume_unwind(panic);
        }
    };
    for (name, bytes) in &seeds {
        attempt(name, bytes);
    }
    let mutations = std::env::var("HYDRA_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    for _ in 0..mutations {
        let (name, bytes) = random.one(&seeds).clone();
        let other = random.one(&seeds).1.clone();
        attempt(&name, &mutate(&mut random, &bytes, &other, words));
    }
    println!("{} seeds and {mutations} changes of them", seeds.len());
}

#[test]
fn no_bytes_hurt_the_reader_of_policies() {
    let words: &[&[u8]] = &[
        b"limit: 60/min",
        b"expires: 2030-01-01T00:00:00Z",
        b"action: deny",
        b"action: audit",
        b"tcp/0-65535",
        b"ping",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"{ cidr: '::/0', except: ['fd00::/8'] }",
        b"!!binary ",
        b"|\n",
        b"? ",
        b"---\n",
        b"\xff\xfe",
        b"\0",
        b"\xe2\x80\xae",
        b"any",
        b"[",
        b"{",
        b"1e999",
        b"0x7fffffffffffffff",
        b"mode: audit",
        b"\t",
    ];
    run("policy", fuzz::policy, words, 400);
}

#[test]
fn no_bytes_hurt_the_parser_and_the_verdict() {
    let words: &[&[u8]] = &[
        &[0x81, 0x00],
        &[0x86, 0xdd],
        &[0x08, 0x06],
        &[0x45],
        &[0x4f],
        &[0x60],
        &[0, 44],
        &[43, 0],
        &[0, 60],
        &[6],
        &[17],
        &[58],
        &[1],
        &[10, 70, 1, 10],
        &[10, 70, 2, 10],
        &[127, 0, 0, 1],
        &[0xff; 6],
        &[0x01, 0, 0x5e, 0, 0, 1],
        &[0xff, 0x02],
    ];
    run("frame", fuzz::frame, words, 60_000);
}

#[test]
fn the_seeds_are_what_they_are_called() {
    // What passes and what is denied must both be reached, or the targets hold nothing against anything.
    for (name, bytes) in seeds("policy") {
        let accepted = hydra_agent::policy::parse_bytes(&bytes, "seed").is_ok();
        assert_eq!(accepted, name.starts_with("good-"), "{name}");
    }
}
