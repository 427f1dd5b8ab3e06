//! The agent's end of the socket: requests and replies on the unix socket, metrics on the loopback listener. Reads what the loop
//! publishes and the kernel's tables; what changes something is handed to the loop.

pub mod metrics;
pub mod wire;

mod change;
mod connection;
pub(crate) mod explain;
mod extract;
mod filter;
mod follow;
mod listener;
mod memory;
mod newest;
mod ports;
mod read;
mod socket;
#[cfg(test)]
mod tests;
mod view;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::connection::Peer;
pub use self::socket::{ControlSocket, SOCKET_NAME, SocketError};
use crate::published::Handle;

/// Where the API listens and what it puts up with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The loopback listener of the metrics. `None`: no listener.
    pub listen: Option<SocketAddr>,
    /// What a client may take.
    pub limits: Limits,
}

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for a request's headers; also how long an idle connection is kept.
    pub header: Duration,
    /// Time for a request's body.
    pub body: Duration,
    /// Size of a request's body in bytes.
    pub body_size: usize,
    /// Connections at once, each for the socket and the listener.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
            body_size: 4 << 20,
            connections: 64,
        }
    }
}

/// What every request handler reads.
struct App {
    handle: Handle,
    memory: memory::Memory,
    limits: Limits,
    stop: CancellationToken,
}

/// Answers requests until `stop` is cancelled, then removes the socket. A loopback listener that cannot be bound is tried again,
/// since an occupied port must never keep a policy from being enforced.
///
/// Bind the socket first with [`ControlSocket::bind`], so that a second agent fails before it touches anything.
pub async fn serve(socket: ControlSocket, options: Options, handle: Handle, stop: CancellationToken) {
    let app = Arc::new(App {
        memory: memory::Memory::default(),
        limits: options.limits,
        stop: stop.clone(),
        handle,
    });
    let remember = memory::keep(app.clone());
    let control = connection::serve_socket(&socket, read::router(app.clone()), options.limits, stop.clone());
    let metrics = async {
        if let Some(address) = options.listen {
            listener::serve(address, app.clone(), stop.clone()).await;
        }
    };
    tokio::join!(remember, control, metrics);
    socket.remove();
}

/// The socket's path in a run directory.
pub fn socket_path(run_dir: &std::path::Path) -> PathBuf {
    run_dir.join(SOCKET_NAME)
}
