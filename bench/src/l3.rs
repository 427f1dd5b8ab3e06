//! `L3`: what an application gets: bytes in bulk, questions and answers on one connection, and connections that are made, used once and
//! closed; between two networks, inside one, and from outside to a published port, with Docker's rules alone and with hydra beside them.
//!
//! Between networks Docker's own way is that of an operator who has allowed it (`DOCKER-USER`); hydra's is that of a host where nobody
//! has. What goes on in the two processes and the kernel's TCP is in the figures, as in life. Which CPU they run on is not left to the
//! scheduler: two hosts without hydra would else differ by up to a fifth, by whose server it happened to wake where.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::docker::Form::Raw;
use crate::docker::{SERVED, published};
use crate::environment::{Cpu, stay, stay_on};
use crate::guard::{Guard, RECEIVER};
use crate::progress::Progress;
use crate::report::{Goal, Report};
use crate::scene::{ALLOWED, CLIENT, Live, NAMES, Scene, Size};
use crate::stats::interleave;

/// Samples of each case, in either form.
const ROUNDS: usize = 30;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// Of one sample.
    time: Duration,
    long: bool,
}

impl Form {
    /// Two minutes and a half.
    pub const SHORT: Self = Self { time: Duration::from_millis(100), long: false };
    /// Six minutes.
    pub const LONG: Self = Self { time: Duration::from_millis(300), long: true };
}

/// What an application does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Bulk,
    Ask,
    Connect,
}

impl Work {
    const ALL: [Self; 3] = [Self::Bulk, Self::Ask, Self::Connect];

    fn unit(self) -> &'static str {
        if self == Self::Bulk { "Gbit/s" } else { "thousand/s" }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bulk => "bulk",
            Self::Ask => "questions and answers",
            Self::Connect => "connect, ask, close",
        })
    }
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Between,
    Inside,
    Published,
}

impl Way {
    const ALL: [Self; 3] = [Self::Between, Self::Inside, Self::Published];

    /// The numbers of the hosts without and with hydra.
    fn hosts(self) -> [usize; 2] {
        if self == Self::Published { [2, 3] } else { [0, 1] }
    }

    /// What work must be worth, by what it is without hydra.
    fn goal(self, work: Work) -> f64 {
        match (self, work) {
            (Self::Between, Work::Ask) => 1.3,
            (Self::Between, Work::Bulk | Work::Connect) => 1.2,
            (Self::Inside | Self::Published, _) => 0.98,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Between => "between networks",
            Self::Inside => "inside a network",
            Self::Published => "to a published port",
        })
    }
}

/// Where client and server run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On the same CPU, which is never idle: all that either does, and the kernel for them, is in the figure and nothing else.
    Together,
    /// On one each, and the first waits idle for the second: half of a short answer's time may be how long a CPU takes to wake.
    Apart,
}

impl Place {
    const ALL: [Self; 2] = [Self::Together, Self::Apart];

    /// Where the client runs. The server is on the first.
    fn client(self) -> Cpu {
        if self == Self::Together { Cpu::First } else { Cpu::Last }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Together { "one CPU" } else { "a CPU each" })
    }
}

/// Containers on the host beside those that talk.
const CONTAINERS: u16 = 10;
/// Bytes of one write, and of a question.
const CHUNK: usize = 128 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A host of its own, with servers in two containers.
struct Host {
    what: &'static str,
    scene: Scene,
    _links: Vec<OwnedFd>,
    hydra: Option<Live>,
}

/// One thing to measure.
struct Case {
    host: usize,
    way: Way,
    work: Work,
    place: Place,
}

/// Measures.
pub fn run(form: &Form, progress: &mut Progress) -> Result<Report> {
    let mut report = Report::new("L3", form.long)?;
    progress.at("four hosts");
    let docker = Guard::Docker(Raw, u32::from(CONTAINERS));
    let hydra = Guard::Hydra(Size::SMALL);
    let port = published(CONTAINERS);
    let hosts = [
        // Between networks Docker has to be asked; what it publishes it lets pass by itself.
        Host::build("without hydra", Scene::build(false)?, &[docker], true)?,
        Host::build("with hydra", Scene::build(true)?, &[docker, hydra], false)?,
        Host::build("without hydra", Scene::build_published(true, port)?, &[docker], false)?,
        Host::build("with hydra", Scene::build_published(true, port)?, &[docker, hydra], false)?,
    ];
    let mut cases = Vec::new();
    for way in Way::ALL {
        for work in Work::ALL {
            for place in Place::ALL
                .into_iter()
                .filter(|place| report.environment.cpus > 1 || *place == Place::Together)
            {
                cases.extend(way.hosts().map(|host| Case { host, way, work, place }));
            }
        }
    }
    let samples = interleave(
        &mut cases,
        ROUNDS,
        |case| hosts[case.host].work(case, form.time),
        |done| progress.at(&format!("round {done} of {ROUNDS}")),
    )?;
    for live in hosts.iter().filter_map(|host| host.hydra.as_ref()) {
        ensure!(live.flows()? > 0, "what was measured did not go by hydra");
    }
    let name =
        |case: &Case| format!("{}, {}, {}, {}", case.work, case.way, case.place, hosts[case.host].what);
    for (case, samples) in cases.iter().zip(samples) {
        report.add(&name(case), case.work.unit(), samples)?;
    }
    for pair in cases.chunks_exact(2) {
        let goal = Goal::Least(6, pair[1].way.goal(pair[1].work));
        report.compare(&name(&pair[1]), &name(&pair[0]), Some(goal))?;
    }
    Ok(report)
}

impl Host {
    fn build(what: &'static str, scene: Scene, guards: &[Guard], open: bool) -> Result<Self> {
        let client = scene.published().is_ok().then_some(CLIENT);
        for place in [NAMES[0].0, NAMES[1].0].into_iter().chain(client) {
            // A port serves again one second after its connection, not after sixty.
            scene.world.sysctl(place, "net.ipv4.tcp_tw_reuse", "1")?;
            scene.world.sysctl(place, "net.ipv4.ip_local_port_range", "10000 65000")?;
        }
        let mut links = Vec::new();
        let mut hydra = None;
        // The servers, which are started here, too.
        let _stay = stay()?;
        for guard in guards {
            hydra = guard.stand(&scene, open, &mut links)?;
        }
        for (place, port) in [(NAMES[1].0, ALLOWED), (NAMES[3].0, ALLOWED), (NAMES[1].0, SERVED)] {
            let listener = scene.world.enter(place, || TcpListener::bind(("0.0.0.0", port)))??;
            thread::spawn(move || {
                listener.incoming().map_while(Result::ok).for_each(|stream| {
                    // A caller that goes away in the middle says so itself.
                    let _ = serve(stream);
                });
            });
        }
        Ok(Self { what, scene, _links: links, hydra })
    }

    /// Works for so long; thousands, or gigabits, a second.
    fn work(&self, case: &Case, time: Duration) -> Result<f64> {
        let work = case.work;
        let (from, to) = match case.way {
            Way::Between => (NAMES[0].0, SocketAddr::new(RECEIVER.parse()?, ALLOWED)),
            Way::Inside => (NAMES[1].0, SocketAddr::new("10.81.0.13".parse()?, ALLOWED)),
            Way::Published => (CLIENT, self.scene.published()?),
        };
        let done = self.scene.world.enter(from, || {
            let _stay = stay_on(case.place.client())?;
            match work {
                Work::Bulk => bulk(to, time),
                Work::Ask => ask(to, time),
                Work::Connect => connections(to, time),
            }
        })?;
        done.with_context(|| format!("{work} from {from} {}", self.what))
    }
}

/// Serves one caller after the other: answers each byte of a caller who begins with `a`, and counts what one who begins with `b` sends.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind == *b"a" {
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        return Ok(());
    }
    let (mut bytes, mut buffer) = (0u64, vec![0; CHUNK]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            read => bytes += read as u64,
        }
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn bulk(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = connect(to)?;
    let begun = Instant::now();
    stream.write_all(b"b")?;
    let (mut sent, buffer) = (0u64, vec![0; CHUNK]);
    while begun.elapsed() < time {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut heard = [0; 8];
    stream.read_exact(&mut heard)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(u64::from_be_bytes(heard) == sent, "not all of {sent} bytes arrived");
    Ok(sent as f64 * 8.0 / seconds / 1e9)
}

fn ask(to: SocketAddr, time: Duration) -> Result<f64> {
    let mut stream = connect(to)?;
    stream.write_all(b"a")?;
    let begun = Instant::now();
    let (mut count, mut byte) = (0u64, [7]);
    while begun.elapsed() < time {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64() / 1e3)
}

fn connections(to: SocketAddr, time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let (mut count, mut byte) = (0u64, [7]);
    while begun.elapsed() < time {
        let mut stream = connect(to)?;
        stream.write_all(b"a\x07")?;
        stream.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64() / 1e3)
}
