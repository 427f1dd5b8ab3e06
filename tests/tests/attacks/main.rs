//! What a container with CAP_NET_RAW can put on its wire, and what comes of it: nothing. `hydra_tests::attack` says how each is shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can't go on ends here"
)]

mod claims;
mod errors;
mod groups;
mod link;
mod reuse;

use hydra_tests::attack::Attack;
use hydra_tests::lab::Lab;

/// Plays a scene in the sample's world.
fn play(scene: impl Fn(&Lab) -> Vec<Attack>) {
    nothing(&hydra_tests::attack::play(&hydra_tests::sample::policy(), scene).unwrap());
}

/// Nothing went otherwise than it must.
fn nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
