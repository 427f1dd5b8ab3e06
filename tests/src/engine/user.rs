//! Somebody outside an engine's host: a machine on its uplink, and what it gets from the host's ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::Engine;
use crate::topology::{Machine, Topology};

/// The host's own address on the uplink.
const HOST: &str = "198.51.100.1";
/// The user's.
pub const USER: &str = "198.51.100.2";
/// How long the user waits for a connection, and for each part of an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host with the machine `user` on its uplink.
pub fn around() -> Result<Topology> {
    Ok(Topology {
        uplink: vec![format!("{HOST}/24").parse()?],
        machines: vec![Machine { name: "user".to_owned(), addresses: vec![USER.parse()?] }],
        ..Topology::default()
    })
}

/// What a server behind a port of the host says to the user: the last line of what came, or nothing.
pub fn get(engine: &Engine, port: u16) -> Result<Option<String>> {
    ask(engine, HOST, port)
}

/// The same of a server at any address.
pub fn ask(engine: &Engine, to: &str, port: u16) -> Result<Option<String>> {
    let address = SocketAddr::new(to.parse()?, port);
    engine.world().enter("user", || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        // Part of an answer is one.
        let _ = stream.read_to_end(&mut answer);
        Some(String::from_utf8_lossy(&answer).lines().last()?.trim().to_owned())
    })
}
