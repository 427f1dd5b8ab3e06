//! How long a port waits for its programs: from the kernel's first message of it to the moment both are attached.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Times kept for the metrics, and ports that have one.
const KEPT: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Times {
    /// Since when a port was there that has its time.
    known: BTreeMap<u32, Instant>,
    seconds: VecDeque<f64>,
}

impl Times {
    /// Both programs sit on this port, which has been there since then. The first time counts.
    pub fn attached(&mut self, index: u32, since: Instant, now: Instant) {
        if self.known.insert(index, since) == Some(since) {
            return;
        }
        if self.known.len() > KEPT {
            // The lowest index is that of the oldest interface.
            self.known.pop_first();
        }
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
    fn each_port_counts_once_and_an_index_that_comes_back_is_another_port() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut times = Times::default();
        times.attached(3, start, after(5));
        times.attached(3, start, after(9));
        times.attached(4, start, after(7));
        assert_eq!(times.seconds(), [0.005, 0.007]);
        times.attached(3, after(1000), after(3000));
        assert_eq!(times.seconds(), [0.005, 0.007, 2.0]);
    }
}
