//! How long a port waits for its programs: from the kernel's first message of it to the moment both are attached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

/// Times kept for the metrics.
const KEPT: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Times {
    known: BTreeSet<u32>,
    waiting: BTreeMap<u32, Instant>,
    seconds: VecDeque<f64>,
}

impl Times {
    /// These interfaces are there; `appeared` knows since when, of those that came while somebody listened.
    pub fn seen(
        &mut self,
        interfaces: impl IntoIterator<Item = u32>,
        appeared: impl Fn(u32) -> Option<Instant>,
    ) {
        let now: BTreeSet<u32> = interfaces.into_iter().collect();
        for new in now.difference(&self.known) {
            if let Some(since) = appeared(*new) {
                self.waiting.insert(*new, since);
            }
        }
        self.waiting.retain(|index, _| now.contains(index));
        self.known = now;
    }

    /// Both programs sit on this port.
    pub fn attached(&mut self, index: u32, now: Instant) {
        let Some(since) = self.waiting.remove(&index) else { return };
        self.seconds.push_back(now.saturating_duration_since(since).as_secs_f64());
        if self.seconds.len() > KEPT {
            self.seconds.pop_front();
        }
    }

    /// Newest last.
    pub fn seconds(&self) -> Vec<f64> {
        self.seconds.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_ports_that_appeared_while_listening_count_and_once() {
        let start = Instant::now();
        let mut times = Times::default();
        times.seen([1, 2], |_| None);
        times.attached(2, start);
        times.seen([1, 2, 3], |_| Some(start));
        times.attached(1, start + Duration::from_millis(5));
        times.attached(3, start + Duration::from_millis(5));
        times.attached(3, start + Duration::from_millis(9));
        assert_eq!(times.seconds(), [0.005]);
        times.seen([1, 2], |_| Some(start));
        times.seen([1, 2, 3], |_| Some(start + Duration::from_secs(1)));
        times.attached(3, start + Duration::from_secs(3));
        assert_eq!(times.seconds(), [0.005, 2.0]);
    }
}
