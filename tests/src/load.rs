//! Many small conversations, several at a time: connected, asked, answered, closed; of UDP a few questions from one port. For paths that
//! must not lose one in a million.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::probe::{Kind, sent_again};
use crate::world::World;

/// Conversations at a time.
const WORKERS: usize = 4;
const QUESTION: &[u8] = b"question";
/// Questions of UDP from one port: those who translate addresses keep what is over for half a minute, and have as many ports as anybody.
const FROM_ONE_PORT: u64 = 16;

/// What came of many conversations.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// All of them.
    pub count: u64,
    /// Those that had no answer.
    pub lost: u64,
    /// Those of TCP that were answered, but only after a segment was sent again: what a loss looks like where TCP mends it.
    pub mended: u64,
    /// What was said of the lost ones.
    pub why: BTreeMap<String, u64>,
}

impl AddAssign for Heard {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.lost += other.lost;
        self.mended += other.mended;
        for (why, count) in other.why {
            *self.why.entry(why).or_default() += count;
        }
    }
}

/// Has so many conversations with an echo server ([`crate::probe::Echo`]); an answer may take as long as `patience`.
pub fn converse(
    world: &World,
    from: &str,
    to: IpAddr,
    kind: Kind,
    count: u64,
    patience: Duration,
) -> Result<Heard> {
    if kind == Kind::Ping {
        bail!("a ping is no conversation");
    }
    // A port serves again one second after its connection, not after sixty.
    world.sysctl(from, "net.ipv4.tcp_tw_reuse", "1")?;
    let left = AtomicU64::new(count);
    let work = || {
        let mut heard = Heard::default();
        let mut socket = None;
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            heard.count += 1;
            if heard.count % FROM_ONE_PORT == 0 {
                socket = None;
            }
            let done = match kind {
                Kind::Tcp(port) => connection(SocketAddr::new(to, port), patience),
                Kind::Udp(port) => datagram(&mut socket, SocketAddr::new(to, port), heard.count, patience),
                Kind::Ping => Err(ErrorKind::Unsupported.into()),
            };
            match done {
                Ok(again) => heard.mended += u64::from(again > 0),
                Err(error) => {
                    socket = None;
                    heard.lost += 1;
                    *heard.why.entry(error.to_string()).or_default() += 1;
                }
            }
        }
        heard
    };
    world.enter(from, || {
        // Threads of this one stay in its place.
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
            let mut all = Heard::default();
            for worker in workers {
                all += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            all
        })
    })
}

/// One of TCP; how many segments were sent again.
fn connection(to: SocketAddr, patience: Duration) -> io::Result<u32> {
    let mut stream = connect(to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    // The server greets with one byte.
    let mut answer = [0; 1 + QUESTION.len()];
    stream.write_all(QUESTION)?;
    stream.read_exact(&mut answer)?;
    if &answer[1..] == QUESTION { sent_again(&stream) } else { Err(ErrorKind::InvalidData.into()) }
}

/// One of UDP, with a number that no other question from this port has.
fn datagram(
    socket: &mut Option<UdpSocket>,
    to: SocketAddr,
    number: u64,
    patience: Duration,
) -> io::Result<u32> {
    let socket = if let Some(socket) = socket { socket } else { socket.insert(open(to, patience)?) };
    let question = number.to_be_bytes();
    socket.send(&question)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    if answer[..length] == question { Ok(0) } else { Err(ErrorKind::InvalidData.into()) }
}

fn open(to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let own: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Connects; where all ports are taken by connections that have just ended, later.
fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect_timeout(&to, patience) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}
