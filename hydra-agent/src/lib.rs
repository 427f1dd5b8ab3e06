//! The agent of hydra and its operator's tool.
//!
//! `policy` and `inventory` know what should be, `datapath` is the only place that knows aya, `reconcile` decides without
//! touching anything, `serve` observes, reconciles, executes and publishes; `api` and `ctl` are the two ends of the socket.

pub mod api;
mod beside;
pub mod cgroup;
pub mod ctl;
pub mod datapath;
pub mod desired;
pub mod diagnostic;
pub mod inventory;
pub mod placement;
pub mod policy;
pub mod published;
pub mod reconcile;
pub mod render;
pub mod serve;
pub mod settings;
pub mod state;
pub mod usage;
