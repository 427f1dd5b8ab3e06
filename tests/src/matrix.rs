//! The whole matrix of a deployment: what the oracle expects of every pair, what real traffic shows, and the two as grids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::deployment::Deployment;
use crate::oracle::{Answer, End, What};
use crate::probe::{Echo, Kind, Outcome, Probe, probe};
use crate::topology::HOST;
use crate::world::World;

/// A port that no rule names, for each of TCP and UDP.
const UNNAMED: [Kind; 2] = [Kind::Tcp(8099), Kind::Udp(8099)];
/// Attempts at a time.
const BATCH: usize = 3000;

/// One attempt with what must come of it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The attempt.
    pub probe: Probe,
    /// The place that it goes to.
    pub to: String,
    /// What the oracle says; `None` where hydra does not judge.
    pub answer: Option<Answer>,
    /// What came of it.
    pub outcome: Option<Outcome>,
}

impl Trial {
    /// Whether it must arrive.
    pub fn expected(&self) -> bool {
        self.answer.as_ref().is_none_or(Answer::passes)
    }

    /// Whether it did.
    pub fn seen(&self) -> Option<bool> {
        self.outcome.map(|o| o == Outcome::Answered)
    }

    /// Whether the two agree. What is denied must be silent: a refusal would mean that something arrived.
    pub fn agrees(&self) -> bool {
        let wanted = self.expected();
        self.outcome.is_some_and(|o| if wanted { o == Outcome::Answered } else { o == Outcome::TimedOut })
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Probe { from, to, kind, .. } = &self.probe;
        write!(f, "{from} -> {} ({to}) {kind}: expected ", self.to)?;
        match &self.answer {
            None => f.write_str("to pass, not judged")?,
            Some(Answer { verdict, reason, rule }) => {
                write!(f, "{}, {}", verdict.as_str(), reason.as_str())?;
                if let Some(rule) = rule {
                    write!(f, " {rule}")?;
                }
            }
        }
        match self.outcome {
            None => f.write_str("; not tried"),
            Some(Outcome::Answered) => f.write_str("; it was answered"),
            Some(Outcome::TimedOut) => f.write_str("; it timed out"),
            Some(Outcome::Refused(how)) => write!(f, "; it was refused, {how}"),
        }
    }
}

/// All attempts that are worth making: every place to every address of every other, with each port that a rule names for the
/// destination, one that none names, and a ping.
pub fn trials(deployment: &Deployment) -> Vec<Trial> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    let topology = &deployment.topology;
    let mut trials = Vec::new();
    for from in topology.places() {
        let families: Vec<bool> = topology.addresses(from).iter().map(IpAddr::is_ipv6).collect();
        for to in topology.places().into_iter().filter(|to| *to != from) {
            for address in addresses(deployment, to).into_iter().filter(|a| families.contains(&a.is_ipv6())) {
                let (source, destination) = deployment.ends(from, to, address);
                for kind in kinds(deployment, &destination) {
                    let what = what(kind, address);
                    let judged = deployment.judged(from, to);
                    let answer = judged.then(|| deployment.policy.judge(&source, &destination, what, now));
                    let probe = Probe { from: from.to_owned(), source: None, to: address, kind };
                    trials.push(Trial { probe, to: to.to_owned(), answer, outcome: None });
                }
            }
        }
    }
    trials
}

/// Listens on everything that the trials go to.
pub fn listen(world: &World, trials: &[Trial]) -> Result<Echo> {
    let mut listeners: Vec<(String, Kind)> = trials.iter().map(|t| (t.to.clone(), t.probe.kind)).collect();
    listeners.sort_unstable();
    listeners.dedup();
    Echo::start(world, &listeners)
}

/// Makes the attempts, and calls back after each part with how many are done.
pub fn run(
    world: &World,
    trials: &mut [Trial],
    patience: Duration,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let mut done = 0;
    for part in trials.chunks_mut(BATCH) {
        let probes: Vec<Probe> = part.iter().map(|t| t.probe.clone()).collect();
        for (trial, outcome) in part.iter_mut().zip(probe(world, &probes, patience)?) {
            trial.outcome = Some(outcome);
        }
        done += part.len();
        progress(done);
    }
    Ok(())
}

/// Pairs of places of which an attempt that the policy allows is not made, because nothing follows from it.
pub type LeftOut = BTreeSet<(String, String)>;

/// A grid of places: `#` where everything passes, `+` where some of it does, `.` where nothing does, `!` where it differs from
/// what is expected. Blank where nothing was tried, or only what is denied.
pub fn grid(deployment: &Deployment, trials: &[Trial], left_out: &LeftOut, seen: bool) -> String {
    let places = deployment.topology.places();
    let mut cells: BTreeMap<(&str, &str), Vec<&Trial>> = BTreeMap::new();
    for trial in trials {
        cells.entry((&trial.probe.from, &trial.to)).or_default().push(trial);
    }
    let label = |place: &str| {
        let owner = deployment.owners.get(place);
        let shared = deployment.owners.values().filter(|o| Some(*o) == owner).count() > 1;
        owner.filter(|_| !shared).map_or_else(|| place.to_owned(), ToString::to_string)
    };
    let width = places.iter().map(|p| label(p).len()).max().unwrap_or(0);
    // Columns have the numbers of the rows, read downwards.
    let mut text = String::new();
    for (unit, title) in [(10, "to"), (1, "from")] {
        let _ = write!(text, "{title:>width$}    ");
        for index in 1..=places.len() {
            let digit = index / unit % 10;
            let _ = if digit == 0 && unit == 10 { write!(text, "  ") } else { write!(text, " {digit}") };
        }
        text.push('\n');
    }
    for (index, from) in places.iter().enumerate() {
        let _ = write!(text, "{:>width$} {:>2} ", label(from), index + 1);
        for to in &places {
            let symbol = match cells.get(&(*from, *to)) {
                None => ' ',
                Some(trials) if seen && !trials.iter().all(|t| t.agrees()) => '!',
                Some(trials) => {
                    let passes =
                        trials.iter().filter(|t| if seen { t.seen() == Some(true) } else { t.expected() });
                    match passes.count() {
                        0 if left_out.contains(&((*from).to_owned(), (*to).to_owned())) => ' ',
                        0 => '.',
                        n if n == trials.len() => '#',
                        _ => '+',
                    }
                }
            };
            let _ = write!(text, " {symbol}");
        }
        text.push('\n');
    }
    text
}

/// For the host one address of each family is enough inside, and one on the uplink.
fn addresses(deployment: &Deployment, place: &str) -> Vec<IpAddr> {
    let all = deployment.topology.addresses(place);
    if place != HOST {
        return all;
    }
    let first = deployment.topology.bridges.first();
    let inside = first.into_iter().flat_map(|b| b.addresses.iter().map(ipnet::IpNet::addr));
    inside.chain(deployment.topology.uplink.iter().map(ipnet::IpNet::addr)).collect()
}

fn kinds(deployment: &Deployment, to: &End) -> Vec<Kind> {
    let mut kinds = UNNAMED.to_vec();
    kinds.push(Kind::Ping);
    for what in deployment.policy.named_ports(to) {
        match what {
            What::Tcp(port) => kinds.push(Kind::Tcp(port)),
            What::Udp(port) => kinds.push(Kind::Udp(port)),
            What::Sctp(_) | What::Icmp(_) | What::Icmpv6(_) | What::Other(_) => {}
        }
    }
    kinds
}

fn what(kind: Kind, to: IpAddr) -> What {
    match kind {
        Kind::Tcp(port) => What::Tcp(port),
        Kind::Udp(port) => What::Udp(port),
        Kind::Ping if to.is_ipv6() => What::Icmpv6(128),
        Kind::Ping => What::Icmp(8),
    }
}
