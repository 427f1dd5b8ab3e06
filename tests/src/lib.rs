//! What the tests and the demo share: a host of their own made of namespaces, the real agent in it, probes, a packet builder,
//! a runner for the kernel object, and a naive second opinion on what a policy means.
//!
//! Everything that is made here lives in network and mount namespaces that only the test process holds: they vanish with it,
//! however it ends.

pub mod agent;
pub mod attack;
pub mod binary;
pub mod caller;
pub mod cgroup;
pub mod demo;
pub mod deployment;
pub mod engine;
pub mod foreign;
pub mod frames;
pub mod fuzz;
pub mod group;
pub mod judge;
pub mod kernel;
pub mod lab;
pub mod load;
pub mod matrix;
pub mod messages;
pub mod oracle;
pub mod packets;
pub mod probe;
pub mod proxy;
pub mod random;
pub mod reading;
mod ready;
pub mod sample;
pub mod sniffer;
pub mod stage;
pub mod topology;
pub mod world;
