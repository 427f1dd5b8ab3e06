//! Real traffic between the places of a world: echo servers that note what reaches them, and clients that try.
//!
//! All attempts of a call run at once: a whole matrix takes as long as its slowest time-out.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt,
    recv, send, socket, sockopt,
};

use crate::ready::Ready;
use crate::world::World;

/// When a datagram without answer is sent again.
const AGAIN: Duration = Duration::from_millis(250);

/// What an attempt sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A connection to this port, answered by the server's first bytes.
    Tcp(u16),
    /// A datagram to this port, answered by its echo.
    Udp(u16),
    /// An echo request of the address's family.
    Ping,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Ping => f.write_str("ping"),
        }
    }
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// The place it comes from.
    pub from: String,
    /// The address it comes from, where the place has several.
    pub source: Option<IpAddr>,
    /// The address it goes to.
    pub to: IpAddr,
    /// How.
    pub kind: Kind,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both directions work.
    Answered,
    /// Somebody said no: a reset, or an ICMP error.
    Refused(ErrorKind),
    /// Silence.
    TimedOut,
}

/// Tries everything at once. Stops when each attempt has an outcome, or else when `patience` has passed since the last one
/// came in.
pub fn probe(world: &World, probes: &[Probe], patience: Duration) -> Result<Vec<Outcome>> {
    raise_file_limit()?;
    let mut by_place: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, probe) in probes.iter().enumerate() {
        by_place.entry(&probe.from).or_default().push(index);
    }
    let mut outcomes = vec![None; probes.len()];
    let mut sockets: Vec<(usize, OwnedFd)> = Vec::with_capacity(probes.len());
    for (place, indexes) in by_place {
        let opened =
            world.enter(place, || -> Vec<_> { indexes.iter().map(|&i| (i, open(&probes[i]))).collect() })?;
        for (index, result) in opened {
            match result {
                Ok(fd) => sockets.push((index, fd)),
                Err(error) => outcomes[index] = Some(Outcome::Refused(error.kind())),
            }
        }
    }
    let mut ready = Ready::new()?;
    for (index, fd) in &sockets {
        ready.add(fd.as_raw_fd(), *index)?;
    }
    let mut sockets: BTreeMap<usize, OwnedFd> = sockets.into_iter().collect();
    let mut last = Instant::now();
    let mut sent = Instant::now();
    while !sockets.is_empty() && last.elapsed() < patience {
        // A lost datagram is not a verdict: ask again until somebody answers.
        if sent.elapsed() > AGAIN {
            sent = Instant::now();
            for (index, fd) in sockets.iter().filter(|(i, _)| !matches!(probes[**i].kind, Kind::Tcp(_))) {
                let _ = send(fd.as_raw_fd(), &payload(&probes[*index]), MsgFlags::MSG_DONTWAIT);
            }
        }
        for index in ready.wait(50)? {
            let Some(outcome) = sockets.get(&index).and_then(outcome) else { continue };
            sockets.remove(&index);
            outcomes[index] = Some(outcome);
            last = Instant::now();
        }
    }
    Ok(outcomes.into_iter().map(|o| o.unwrap_or(Outcome::TimedOut)).collect())
}

/// A connection to an echo server, for traffic that goes on.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    sent: u64,
}

impl Stream {
    /// Connects and reads the server's greeting.
    pub fn open(world: &World, from: &str, to: SocketAddr) -> Result<Self> {
        let tcp = world
            .enter(from, || TcpStream::connect_timeout(&to, Duration::from_secs(5)))?
            .with_context(|| format!("{from} cannot connect to {to}"))?;
        tcp.set_nodelay(true)?;
        let mut stream = Self { tcp, sent: 0 };
        stream.wait(Duration::from_secs(5))?;
        stream.read(1)?;
        Ok(stream)
    }

    /// Sends a number and waits for its echo.
    pub fn turn(&mut self, patience: Duration) -> Result<()> {
        self.wait(patience)?;
        self.sent += 1;
        let message = self.sent.to_be_bytes();
        self.tcp.write_all(&message)?;
        let echo = self.read(message.len())?;
        anyhow::ensure!(echo == message, "the echo differs from what was sent");
        Ok(())
    }

    /// How many segments the client had to send again: 0 where none of its packets and no answer was lost for long.
    pub fn sent_again(&self) -> Result<u32> {
        Ok(sent_again(&self.tcp)?)
    }

    /// Sends so many bytes and reads their echo.
    pub fn exchange(&mut self, length: usize, patience: Duration) -> Result<()> {
        self.wait(patience)?;
        let mut writer = self.tcp.try_clone()?;
        thread::scope(|scope| {
            let writing = scope.spawn(move || writer.write_all(&vec![b'h'; length]));
            let read = self.read(length);
            writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            read.map(|_| ())
        })
    }

    /// The client's own address and port.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.tcp.local_addr()?)
    }

    fn wait(&self, patience: Duration) -> Result<()> {
        self.tcp.set_read_timeout(Some(patience))?;
        Ok(self.tcp.set_write_timeout(Some(patience))?)
    }

    fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.tcp.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// How many segments a connection's end had to send again.
pub(crate) fn sent_again(tcp: &TcpStream) -> io::Result<u32> {
    // SAFETY: all zero is a value of this plain struct.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: pointer and size are those of one struct that outlives the call.
    let done = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    if done == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}

/// Something that reached a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    /// Where.
    pub place: String,
    /// From where, as the server saw it.
    pub from: SocketAddr,
    /// To which of its addresses.
    pub to: SocketAddr,
    /// TCP, else UDP.
    pub tcp: bool,
}

/// Echo servers in many places, and one thread that runs them.
#[derive(Debug)]
pub struct Echo {
    receipts: Arc<Mutex<Vec<Receipt>>>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Server {
    Listener(String, TcpListener),
    Datagrams(String, UdpSocket),
    /// With what is still to be echoed.
    Connection(TcpStream, Vec<u8>),
}

impl Server {
    fn fd(&self) -> RawFd {
        match self {
            Self::Listener(_, s) => s.as_raw_fd(),
            Self::Datagrams(_, s) => s.as_raw_fd(),
            Self::Connection(s, _) => s.as_raw_fd(),
        }
    }
}

impl Echo {
    /// Listens on the given ports of every address of the given places. Pings are the kernel's.
    pub fn start(world: &World, listeners: &[(String, Kind)]) -> Result<Self> {
        raise_file_limit()?;
        let mut servers = Vec::new();
        let mut by_place: BTreeMap<&str, Vec<Kind>> = BTreeMap::new();
        for (place, kind) in listeners {
            by_place.entry(place).or_default().push(*kind);
        }
        for (place, kinds) in by_place {
            let addresses = world.topology().addresses(place);
            let opened = world.enter(place, || -> io::Result<Vec<Server>> {
                let mut opened = Vec::new();
                for (kind, address) in kinds.iter().flat_map(|k| addresses.iter().map(move |a| (*k, *a))) {
                    match kind {
                        Kind::Tcp(port) => {
                            let listener = TcpListener::bind((address, port))?;
                            listener.set_nonblocking(true)?;
                            opened.push(Server::Listener(place.to_owned(), listener));
                        }
                        Kind::Udp(port) => {
                            let socket = UdpSocket::bind((address, port))?;
                            socket.set_nonblocking(true)?;
                            opened.push(Server::Datagrams(place.to_owned(), socket));
                        }
                        Kind::Ping => {}
                    }
                }
                Ok(opened)
            })?;
            servers.extend(opened.with_context(|| format!("cannot listen in {place}"))?);
        }
        let mut ready = Ready::new()?;
        for (number, server) in servers.iter().enumerate() {
            ready.add(server.fd(), number)?;
        }
        let (receipts, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end) = (Arc::clone(&receipts), Arc::clone(&stop));
        let thread = thread::Builder::new().name("hy-echo".into()).spawn(move || {
            let mut servers: BTreeMap<usize, Server> = servers.into_iter().enumerate().collect();
            let mut next = servers.len();
            while !end.load(Ordering::Relaxed) {
                let Ok(numbers) = ready.wait(20) else { return };
                for number in numbers {
                    let mut fresh = Vec::new();
                    let Some(server) = servers.get_mut(&number) else { continue };
                    if serve(server, &mut fresh, &log).is_err() {
                        servers.remove(&number);
                    }
                    for connection in fresh {
                        if ready.add(connection.fd(), next).is_ok() {
                            servers.insert(next, connection);
                            next += 1;
                        }
                    }
                }
            }
        })?;
        Ok(Self { receipts, stop, thread: Some(thread) })
    }

    /// What has reached the servers so far.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what has reached them.
    pub fn clear(&self) {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(server: &mut Server, fresh: &mut Vec<Server>, log: &Mutex<Vec<Receipt>>) -> io::Result<()> {
    let note = |receipt| log.lock().unwrap_or_else(PoisonError::into_inner).push(receipt);
    let mut bytes = [0; 8192];
    match server {
        Server::Listener(place, listener) => {
            while let Ok((mut connection, from)) = listener.accept() {
                let Ok(to) = connection.local_addr() else { continue };
                note(Receipt { place: place.clone(), from, to, tcp: true });
                connection.set_nonblocking(true)?;
                if connection.write_all(b"!").is_ok() {
                    fresh.push(Server::Connection(connection, Vec::new()));
                }
            }
            Ok(())
        }
        Server::Datagrams(place, socket) => {
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                note(Receipt { place: place.clone(), from, to: socket.local_addr()?, tcp: false });
                let _ = socket.send_to(&bytes[..length], from);
            }
            Ok(())
        }
        Server::Connection(connection, pending) => loop {
            while !pending.is_empty() {
                match connection.write(pending) {
                    Ok(length) => drop(pending.drain(..length)),
                    // Told again when there is room: until then nothing more is read.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            match connection.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => pending.extend(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        },
    }
}

fn open(probe: &Probe) -> io::Result<OwnedFd> {
    let (family, ping) = if probe.to.is_ipv6() {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    let (kind, protocol, port) = match probe.kind {
        Kind::Tcp(port) => (SockType::Stream, SockProtocol::Tcp, port),
        Kind::Udp(port) => (SockType::Datagram, SockProtocol::Udp, port),
        Kind::Ping => (SockType::Datagram, ping, 0),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, kind, flags, protocol)?;
    if let Some(source) = probe.source {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(probe.to, port))) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    if !matches!(probe.kind, Kind::Tcp(_)) {
        send(fd.as_raw_fd(), &payload(probe), MsgFlags::empty())?;
    }
    Ok(fd)
}

fn payload(probe: &Probe) -> Vec<u8> {
    match (probe.kind, probe.to) {
        // Type, code, checksum, identifier (the kernel fills in the last two), sequence, a little data.
        (Kind::Ping, IpAddr::V4(_)) => vec![8, 0, 0, 0, 0, 0, 0, 1, b'h', b'y'],
        (Kind::Ping, IpAddr::V6(_)) => vec![128, 0, 0, 0, 0, 0, 0, 1, b'h', b'y'],
        (Kind::Tcp(_) | Kind::Udp(_), _) => b"hydra".to_vec(),
    }
}

/// What a socket that has something to tell tells.
fn outcome(fd: &OwnedFd) -> Option<Outcome> {
    let refused = |errno: nix::errno::Errno| Some(Outcome::Refused(io::Error::from(errno).kind()));
    match getsockopt(&fd.as_fd(), sockopt::SocketError) {
        Ok(0) => {}
        Ok(number) => return refused(nix::errno::Errno::from_raw(number)),
        Err(errno) => return refused(errno),
    }
    let mut bytes = [0; 2048];
    match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => Some(Outcome::Refused(ErrorKind::UnexpectedEof)),
        Ok(_) => Some(Outcome::Answered),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOTCONN) => None,
        Err(errno) => refused(errno),
    }
}

/// A matrix needs more sockets than the usual soft limit.
fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a struct of the right type that outlives the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    if got == 0 && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
