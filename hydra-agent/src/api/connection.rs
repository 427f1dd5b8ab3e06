//! Connections: who is at the other end, how long it may take, how many there may be. `axum::serve` has no time limit for headers,
//! so hyper is driven here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{ControlSocket, Limits};

/// How long connections may finish what they do when the agent stops.
const FAREWELL: Duration = Duration::from_secs(1);
/// Headers of a request in bytes.
const HEADER_SIZE: usize = 16 << 10;

/// The process at the other end of the socket, as the kernel says (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, in the agent's process namespace.
    pub pid: Option<i32>,
}

impl std::fmt::Display for Peer {
    /// As the history keeps it: `uid=0 gid=0 pid=123`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "uid={} gid={}", self.uid, self.gid)?;
        self.pid.map_or(Ok(()), |pid| write!(f, " pid={pid}"))
    }
}

/// Serves the unix socket until told to stop.
pub(super) async fn serve_socket(
    socket: &ControlSocket,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let accept = || async {
        let (stream, _) = socket.listener.accept().await?;
        // A peer that cannot be named is not served.
        let credentials = stream.peer_cred()?;
        let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        Ok((stream, router.clone().layer(Extension(peer))))
    };
    serve(accept, limits, None, stop).await;
}

/// Accepts and serves until told to stop. `lifetime` ends every connection, whatever it does.
pub(super) async fn serve<S, A>(
    accept: impl Fn() -> A,
    limits: Limits,
    lifetime: Option<Duration>,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = io::Result<(S, Router)>>,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = room.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok((stream, router)) => {
                let stop = stop.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    let connection = converse(stream, router, limits, stop);
                    match lifetime {
                        Some(limit) => drop(tokio::time::timeout(limit, connection).await),
                        None => connection.await,
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most often: give others time to close theirs.
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let _ = tokio::time::timeout(FAREWELL, async { while tasks.join_next().await.is_some() {} }).await;
}

/// One connection, to its end.
async fn converse<S>(stream: S, router: Router, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_header_size(HEADER_SIZE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
