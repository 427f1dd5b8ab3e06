//! What `docker-proxy` does: a process of the host that takes connections on a port and opens its own to a container.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::topology::HOST;
use crate::world::World;

/// Carries until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Listens on this TCP port of all addresses of the host, of both families.
    pub fn start(world: &World, port: u16, to: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stop);
        let thread = world.enter(HOST, || -> Result<thread::JoinHandle<()>> {
            let listener =
                TcpListener::bind(("::", port)).with_context(|| format!("cannot listen on {port}"))?;
            listener.set_nonblocking(true)?;
            // Threads of this one stay on the host.
            Ok(thread::Builder::new().name("hy-proxy".into()).spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => drop(thread::spawn(move || carry(&client, to))),
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            })?)
        })??;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both directions, until both have ended.
fn carry(client: &TcpStream, to: SocketAddr) {
    let _ = client.set_nonblocking(false);
    let Ok(server) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut bytes = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
