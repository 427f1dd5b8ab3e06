//! The contract between hydra's kernel object and its user space, and the pure engine that both compile:
//! table rows, the packet parser, flow tracking and the one verdict function.
//!
//! No map, no system call, no clock: time and tables are arguments. Addresses and TCP/UDP ports keep the order
//! that their type says; see [`address`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]
#![allow(
    clippy::inline_always,
    reason = "a call costs a frame of 512 bytes and a verifier state in the kernel"
)]

#[cfg(any(test, feature = "user"))]
extern crate std;

pub mod address;
pub mod decide;
pub mod event;
pub mod flow;
pub mod id;
pub mod limit;
pub mod names;
pub mod packet;
pub mod share;
pub mod tables;
pub mod track;
#[cfg(feature = "user")]
pub mod user;
pub mod verdict;

/// The layout's number: part of the pin path, so that an agent never reads another layout's tables. Raised with every
/// change of a row, a key, the meaning of either, or how a table is made.
pub const ABI: u32 = 6;
