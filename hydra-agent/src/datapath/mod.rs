//! The kernel's side of the agent: loads and pins maps and programs, attaches them, writes and reads the tables. The only place
//! that knows aya. Everything here blocks: call it from `spawn_blocking`.
//!
//! `Datapath::open` adopts what is pinned; `sync` makes the kernel hold what is desired; `verify` says what is not as it was left, and
//! `look` by halves; `purge` takes everything away. What is decided is decided in `tables` and `rows`, without a
//! system call.

mod attach;
mod clsact;
#[cfg(debug_assertions)]
mod debug;
mod early;
mod error;
mod events;
mod flows;
mod known;
mod left;
mod load;
mod maps;
mod pins;
mod places;
mod predrop;
mod purge;
mod raw;
mod reader;
mod room;
mod rows;
pub mod rtnetlink;
mod settle;
mod sockets;
mod store;
mod sync;
mod tables;
mod verify;
mod xdp;

pub use attach::Mechanism;
pub use early::Early;
pub use error::DatapathError;
pub use events::Events;
pub use flows::{Collected, Collector, GRACE};
pub use left::attached;
pub use load::OBJECT;
pub use predrop::Predrop;
pub use purge::{Purged, purge};
pub use raw::{give_memory_back, keep_memory};
pub use reader::{Drops, KernelReader};
pub use room::Room;
pub use settle::Settled;
pub use sockets::Seat;
pub use sync::{Datapath, Held, SyncReport};
