//! What arbitrary bytes must not do: the targets that `fuzz/` gives to libFuzzer and that `tests/fuzz.rs` runs over the seeds and
//! changes of them. Each panics where something does not hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is what a target has to say"
)]

mod frame;
mod mutate;
mod policy;

pub use self::frame::{frame, input};
pub use self::mutate::mutate;
pub use self::policy::policy;

use std::path::PathBuf;

/// The seeds of a target, by name: what every run begins with, finds of earlier ones among them.
///
/// # Panics
/// Where they cannot be read.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds")).join(target);
    let mut seeds: Vec<(String, Vec<u8>)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display()))
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    seeds.sort();
    seeds
}
