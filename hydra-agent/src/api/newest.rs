//! The newest rows of many: at most so many are kept while they go by, whatever their order. Pure.

use std::cmp::Reverse;

/// Rows with the time of each, of which the newest count.
pub(super) struct Newest<T> {
    limit: usize,
    rows: Vec<(u64, T)>,
    /// What is not newer than this is none of them.
    bar: Option<u64>,
}

impl<T> Newest<T> {
    /// At most so many.
    pub(super) fn of(limit: usize) -> Self {
        Self { limit, rows: Vec::new(), bar: None }
    }

    /// Whether a row of this time would be kept for now: one that would not need not be made.
    pub(super) fn wants(&self, time: u64) -> bool {
        self.limit > 0 && self.bar.is_none_or(|bar| time > bar)
    }

    /// Takes one that is wanted.
    pub(super) fn push(&mut self, time: u64, row: T) {
        self.rows.push((time, row));
        // Now and then, not each time.
        if self.rows.len() >= self.limit.saturating_mul(2) {
            self.cut();
        }
    }

    /// Newest first; of the same time as they came.
    pub(super) fn rows(mut self) -> Vec<T> {
        self.cut();
        self.rows.into_iter().map(|(_, row)| row).collect()
    }

    fn cut(&mut self) {
        self.rows.sort_by_key(|(time, _)| Reverse(*time));
        self.rows.truncate(self.limit);
        if self.rows.len() == self.limit {
            self.bar = self.rows.last().map(|(time, _)| *time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(limit: usize, times: &[u64]) -> Vec<(u64, usize)> {
        let mut newest = Newest::of(limit);
        for (n, time) in times.iter().enumerate() {
            if newest.wants(*time) {
                newest.push(*time, (*time, n));
            }
        }
        newest.rows()
    }

    #[test]
    fn as_many_as_are_asked_for_in_whatever_order_they_come() {
        let times: Vec<u64> = (0..1_000).map(|n| n * 7_919 % 500).collect();
        let mut all: Vec<(u64, usize)> = times.iter().enumerate().map(|(n, time)| (*time, n)).collect();
        all.sort_by_key(|(time, _)| Reverse(*time));
        for limit in [1, 2, 20, 999, 1_000, 5_000, usize::MAX] {
            assert_eq!(newest(limit, &times), all[..limit.min(1_000)], "{limit}");
        }
        assert_eq!(newest(0, &times), []);
        assert_eq!(newest(3, &[]), []);
    }

    #[test]
    fn what_is_too_old_need_not_be_made() {
        let mut newest = Newest::of(2);
        for time in [10, 30, 20, 40] {
            assert!(newest.wants(time));
            newest.push(time, ());
        }
        assert!(!newest.wants(30) && newest.wants(31));
        assert!(!Newest::<()>::of(0).wants(1));
    }
}
