//! The datapath against a real kernel: each test in a network and mount namespace of its own, with a BPF file system of its own.
//! Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that can't go on ends here, one that can't begin says why"
)]

mod early;
mod hooks;
mod published;
mod reading;
mod start;
mod support;
mod tables;
