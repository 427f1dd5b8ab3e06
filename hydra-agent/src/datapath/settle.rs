//! Links in the places of the filters that cover new ports. A link waits for a grace period under the lock of all network
//! configuration, and whoever starts a container needs that lock several times: so this waits until nobody does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hydra_common::verdict::Hook;
use tracing::debug;

use super::attach;
use super::sync::Datapath;
use crate::published::{HookView, NotEnforced};

/// No port was new for that long: nobody starts containers.
const CALM: Duration = Duration::from_secs(2);
/// Where somebody always does, a port gets its links after that time.
const LATE: Duration = Duration::from_mins(1);
/// Ports at one time, where it is calm.
const FEW: usize = 4;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What is attached now.
    pub hooks: Vec<HookView>,
    /// What was not as it was left, and is now.
    pub repaired: Vec<NotEnforced>,
}

impl Datapath {
    /// Gives links to some of the ports that have filters, if it is time to: nothing where nothing changed. Stops when
    /// a port appears. What fails is tried again: the filters enforce meanwhile.
    pub fn settle(&mut self) -> Option<Settled> {
        let newest = self.ground.newest();
        let (mut changed, mut repaired) = (false, Vec::new());
        for port in due(&self.waiting, newest, Instant::now()) {
            for hook in Hook::INTERFACES {
                if self.ground.newest() != newest {
                    break;
                }
                changed |= self.link(port, hook, &mut repaired);
            }
        }
        changed.then(|| {
            self.wait_for_links();
            Settled { hooks: self.views(), repaired }
        })
    }

    fn link(&mut self, port: u32, hook: Hook, repaired: &mut Vec<NotEnforced>) -> bool {
        let there = self.seated.get(&(port, hook)).is_some_and(|view| view.link_id == 0);
        if !there {
            return false;
        }
        let done = self.attacher.settle(&self.programs, port, hook);
        let view = done.and_then(|done| {
            repaired.extend(done.cured(hook).map(|why| NotEnforced { what: attach::interface(port), why }));
            self.attacher.view(port, hook)
        });
        match view {
            Ok(Some(view)) => drop(self.seated.insert((port, hook), view)),
            // The port is gone, as the next pass will see.
            Ok(None) => return false,
            Err(error) => {
                debug!(port = attach::interface(port), hook = hook.as_str(), %error, "a filter stays in a link's place");
                // Behind the others.
                self.waiting.insert(port, Instant::now());
                return false;
            }
        }
        true
    }

    /// Takes down which ports have filters that wait for links.
    pub(super) fn wait_for_links(&mut self) {
        let filters = self.seated.iter().filter(|(_, view)| self.attacher.tcx() && view.link_id == 0);
        let now = Instant::now();
        let since = |port: u32| (port, self.waiting.get(&port).copied().unwrap_or(now));
        self.waiting = filters.map(|((port, _), _)| since(*port)).collect();
    }
}

/// The ports that are to get their links now, the oldest first.
fn due(waiting: &BTreeMap<u32, Instant>, newest: Option<Instant>, now: Instant) -> Vec<u32> {
    let mut ports: Vec<(Instant, u32)> = waiting.iter().map(|(port, since)| (*since, *port)).collect();
    ports.sort_unstable();
    let calm = newest.is_none_or(|newest| now.saturating_duration_since(newest) >= CALM);
    if calm {
        ports.truncate(FEW);
    } else {
        ports.truncate(1);
        ports.retain(|(since, _)| now.saturating_duration_since(*since) >= LATE);
    }
    ports.into_iter().map(|(_, port)| port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_when_nobody_starts_anything_or_one_by_one() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let waiting: BTreeMap<u32, Instant> = (0..9).map(|port| (port, at(20 - u64::from(port)))).collect();
        assert_eq!(due(&waiting, None, at(20)), [8, 7, 6, 5], "an agent that has seen none come");
        assert_eq!(due(&waiting, Some(at(20)), at(22)), [8, 7, 6, 5]);
        assert_eq!(due(&waiting, Some(at(20)), at(21)), [] as [u32; 0]);
        assert_eq!(due(&waiting, Some(at(71)), at(71)), [] as [u32; 0]);
        assert_eq!(due(&waiting, Some(at(90)), at(90)), [8]);
        assert_eq!(due(&BTreeMap::new(), None, at(90)), [] as [u32; 0]);
    }
}
