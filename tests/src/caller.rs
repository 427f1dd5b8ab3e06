//! A process that opens flows in every way that Linux has, and says what the kernel answered at once. It is a program of its own
//! (`hydra-caller`), since a cgroup holds processes and not threads.

mod ring;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::cgroup;
use crate::world::World;

/// `IPPROTO_MPTCP` of `linux/in.h`.
const MPTCP: i32 = 262;

/// How a flow is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// `connect` of TCP.
    Connect,
    /// `sendto` with `MSG_FASTOPEN` (RFC 7413).
    FastOpen,
    /// `connect` of multipath TCP (RFC 8684).
    Multipath,
    /// `connect` of TCP by `io_uring`.
    Ring,
    /// `connect` of UDP.
    Datagram,
    /// `sendto` of UDP.
    SendTo,
    /// `sendmsg` of UDP.
    SendMsg,
}

impl How {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::FastOpen,
        Self::Multipath,
        Self::Ring,
        Self::Datagram,
        Self::SendTo,
        Self::SendMsg,
    ];

    /// Whether it is UDP.
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::Datagram | Self::SendTo | Self::SendMsg)
    }
}

/// What the kernel said before a packet could have come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It goes on.
    Begun,
    /// The error's number.
    Error(i32),
}

impl Said {
    /// What a denied flow gets.
    pub const REFUSED: Self = Self::Error(libc::EPERM);

    /// Whether a packet was on its way: it goes on, or the network has said no already, for which a ring waits.
    pub fn went_out(self) -> bool {
        matches!(self, Self::Begun | Self::Error(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ETIMEDOUT))
    }
}

/// The process.
#[derive(Debug)]
pub struct Caller {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Caller {
    /// Starts it in a place of the world and a cgroup. `program` is `hydra-caller`.
    pub fn start(world: &World, place: &str, folder: &Path, program: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        cgroup::inside(&mut command, folder)?;
        let mut child = world.spawn(place, command)?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Opens one flow.
    pub fn call(&mut self, how: How, to: SocketAddr) -> Result<Said> {
        let at = How::ALL.iter().position(|h| *h == how).context("an unknown way")?;
        self.ask(&format!("{at} {to}"))
    }

    /// Sends a byte on the flow that was opened last.
    pub fn again(&mut self) -> Result<Said> {
        self.ask("again -")
    }

    /// Answers on this port of TCP and UDP, both families, from now on.
    pub fn listen(&mut self, port: u16) -> Result<()> {
        self.listen_at((std::net::Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// The same at an address: groups of IPv4 that others have joined are heard by sockets of IPv4.
    pub fn listen_at(&mut self, at: SocketAddr) -> Result<()> {
        let said = self.ask(&format!("listen {at}"))?;
        ensure!(said == Said::Begun, "it cannot listen on {at}: {said:?}");
        Ok(())
    }

    /// Opens so many flows of UDP, each by two threads that send a byte at the same moment.
    pub fn race(&mut self, to: SocketAddr, flows: usize) -> Result<Said> {
        self.ask(&format!("race {to} {flows}"))
    }

    /// Sends a packet of IPv4 as it is, from its header on, by a raw socket.
    pub fn send(&mut self, packet: &[u8]) -> Result<Said> {
        let mut line = "raw ".to_owned();
        packet.iter().try_for_each(|byte| write!(line, "{byte:02x}"))?;
        self.ask(&line)
    }

    fn ask(&mut self, line: &str) -> Result<Said> {
        writeln!(self.input, "{line}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the caller ended");
        Ok(match line.trim().parse()? {
            0 => Said::Begun,
            error => Said::Error(error),
        })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program's part: a line `WAY ADDRESS:PORT` in, the error's number or 0 out, until the input ends.
pub fn serve() -> Result<()> {
    let mut open = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        let (how, to) = line.split_once(' ').context("no address")?;
        let done = match (how, open.last()) {
            ("again", Some(last)) => again(last),
            ("listen", _) => listen(to.parse()?),
            ("raw", _) => raw(to),
            ("race", _) => {
                let (to, flows) = to.split_once(' ').context("no number")?;
                race(to.parse()?, flows.parse()?).map(|sockets| open.extend(sockets))
            }
            (way, _) => match How::ALL.get(way.parse::<usize>()?) {
                // What goes on must not be cut off by closing it.
                Some(how) => call(*how, to.parse()?).map(|socket| open.push(socket)),
                None => bail!("no such way: {way}"),
            },
        };
        let said = done.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
        let mut out = io::stdout().lock();
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}

fn again(socket: &OwnedFd) -> io::Result<()> {
    nix::sys::socket::send(socket.as_raw_fd(), b"x", nix::sys::socket::MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// A packet in hexadecimal digits.
fn raw(digits: &str) -> io::Result<()> {
    let byte = |at| u8::from_str_radix(digits.get(at..at + 2).unwrap_or_default(), 16);
    let packet: Vec<u8> =
        (0..digits.len()).step_by(2).map(byte).collect::<Result<_, _>>().map_err(io::Error::other)?;
    let to = packet.get(16..20).and_then(|to| <[u8; 4]>::try_from(to).ok());
    let to = to.ok_or_else(|| io::Error::other("no header of IPv4"))?;
    let address = SockaddrStorage::from(SocketAddr::from((to, 0)));
    // SAFETY: numbers alone, the descriptor is nobody else's; then `packet` and `address` live through the call, with their lengths.
    let sent = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            address.as_ptr(),
            address.len(),
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn race(to: SocketAddr, flows: usize) -> io::Result<Vec<OwnedFd>> {
    let socket = |_| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        Ok(socket)
    };
    let sockets: Vec<UdpSocket> = (0..flows).map(socket).collect::<io::Result<_>>()?;
    let ready = [AtomicUsize::new(0), AtomicUsize::new(0)];
    // Both go to the end, whatever becomes of a send: the other one waits for them.
    let run = |me: usize| -> io::Result<()> {
        let mut done = Ok(());
        for (n, socket) in sockets.iter().enumerate() {
            ready[me].store(n + 1, Ordering::Release);
            while ready[1 - me].load(Ordering::Acquire) <= n {
                std::hint::spin_loop();
            }
            done = done.and(socket.send(b"x").map(|_| ()));
        }
        done
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let done = run(0);
        done.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(sockets.into_iter().map(OwnedFd::from).collect())
}

/// Greets on TCP, sends back on UDP.
fn listen(at: SocketAddr) -> io::Result<()> {
    let (tcp, udp) = (TcpListener::bind(at)?, UdpSocket::bind(at)?);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = tcp.accept() {
            let _ = stream.write_all(b"x");
            open.push(stream);
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..length], from);
        }
    });
    Ok(())
}

fn call(how: How, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (kind, protocol) = match how {
        How::Connect | How::FastOpen | How::Ring => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        How::Multipath => (libc::SOCK_STREAM, MPTCP),
        How::Datagram | How::SendTo | How::SendMsg => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    };
    // SAFETY: numbers alone; the descriptor is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let address = SockaddrStorage::from(to);
    if how == How::Ring {
        ring::connect(&socket, &address)?;
        return Ok(socket);
    }
    let fd = socket.as_raw_fd();
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let mut byte = *b"x";
    let (at, length) = (address.as_ptr(), address.len());
    // SAFETY: `address` and `byte` live through the call, with the lengths that are given.
    let done = unsafe {
        match how {
            How::Connect | How::Multipath | How::Datagram | How::Ring => {
                isize::try_from(libc::connect(fd, at, length)).unwrap_or(-1)
            }
            How::FastOpen => libc::sendto(fd, byte.as_ptr().cast(), 1, libc::MSG_FASTOPEN, at, length),
            How::SendTo => libc::sendto(fd, byte.as_ptr().cast(), 1, 0, at, length),
            How::SendMsg => {
                let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_name = at.cast_mut().cast();
                message.msg_namelen = length;
                message.msg_iov = &raw mut part;
                message.msg_iovlen = 1;
                libc::sendmsg(fd, &raw const message, 0)
            }
        }
    };
    if done >= 0 {
        return Ok(socket);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        error => Err(error),
    }
}
