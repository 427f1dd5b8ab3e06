//! How much of a limit a source has used: the generic cell rate algorithm (ITU-T I.371, annex A), which needs one number for each
//! source and no timer. Pure: the number, the time and the limit in, the next number out.

use crate::tables::Limit;

/// Two CPUs read the clock within this many nanoseconds of each other, ticks of the coarse clock included.
const SLACK: u64 = 1_000_000_000;

/// Lets one flow begin. `tat` is the source's theoretical arrival time, 0 for one that is new; it and `now` are nanoseconds of the
/// monotonic clock. Gives the number to keep, or nothing where the limit is used up, and then nothing changes.
///
/// From any moment on, flows that begin within a time `t` are at most `burst + t / interval`. A number that this limit cannot have
/// left was left by another one that the rule had: then all but one flow of this one's burst count as used, so that nobody waits
/// for the end of an hour that is no longer the rule's. A row that was not written lets nothing begin.
#[inline(always)]
pub const fn take(tat: u64, now: u64, limit: &Limit) -> Option<u64> {
    let whole = limit.interval.wrapping_mul(limit.burst as u64);
    if limit.interval == 0 || limit.burst == 0 {
        return None;
    }
    let ahead = tat.saturating_sub(now);
    let used = if ahead > whole.wrapping_add(SLACK) { whole - limit.interval } else { ahead };
    let after = used + limit.interval;
    if after > whole { None } else { Some(now.wrapping_add(after)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 77 * SECOND;

    fn limit(burst: u32, unit: u64) -> Limit {
        Limit { interval: unit / u64::from(burst), burst, bucket: 0 }
    }

    /// How many of the flows that come at these times begin.
    fn begin(limit: &Limit, times: impl Iterator<Item = u64>) -> u64 {
        let mut tat = 0;
        let mut begun = 0;
        for now in times {
            if let Some(next) = take(tat, now, limit) {
                (tat, begun) = (next, begun + 1);
            }
        }
        begun
    }

    #[test]
    fn a_burst_of_all_of_it_and_then_one_in_each_interval() {
        let limit = limit(3, 60 * SECOND);
        let mut tat = 0;
        for _ in 0..3 {
            tat = take(tat, START, &limit).unwrap();
        }
        assert_eq!(take(tat, START, &limit), None);
        assert_eq!(take(tat, START + 20 * SECOND - 1, &limit), None);
        tat = take(tat, START + 20 * SECOND, &limit).unwrap();
        assert_eq!(take(tat, START + 20 * SECOND, &limit), None);
        // After a silence of the whole unit all of it is there again, and no more than that.
        let later = START + 500 * SECOND;
        assert_eq!(begin(&limit, core::iter::repeat_n(later, 9)), 3);
    }

    #[test]
    fn ten_times_the_limit_for_a_minute_or_three_units_is_the_burst_and_the_rate() {
        for (burst, unit) in
            [(60, 60 * SECOND), (6_000, 60 * SECOND), (7, SECOND), (1, SECOND), (50, 3_600 * SECOND)]
        {
            let limit = limit(burst, unit);
            let (time, gap) = ((3 * unit).max(60 * SECOND), limit.interval / 10);
            let begun = begin(&limit, (0..=time / gap).map(|n| START + n * gap));
            let formula = u64::from(burst) + time / limit.interval;
            assert!(begun.abs_diff(formula) <= 1, "{burst} in {unit}: {begun}, {formula}");
        }
    }

    #[test]
    fn the_ticks_of_a_coarse_clock_lose_nothing() {
        let limit = limit(6_000, 60 * SECOND);
        for tick in [1_000_000, 4_000_000, 10_000_000] {
            let times = (0..60_000u64).map(|n| START + n * 1_000_000 / tick * tick);
            let begun = begin(&limit, times);
            assert!(begun.abs_diff(12_000) <= 1 + tick / limit.interval, "{tick}: {begun}");
        }
    }

    #[test]
    fn a_narrower_or_a_wider_limit_takes_over_what_was_used() {
        let (hour, second) = (limit(10, 3_600 * SECOND), limit(60, SECOND));
        let mut tat = 0;
        while let Some(next) = take(tat, START, &hour) {
            tat = next;
        }
        // A minute later, and not an hour: one at once, and then one in each interval.
        let later = START + 60 * SECOND;
        tat = take(tat, later, &second).unwrap();
        assert_eq!(take(tat, later, &second), None);
        assert!(take(tat, later + second.interval, &second).is_some());
        let mut tat = 0;
        while let Some(next) = take(tat, START, &second) {
            tat = next;
        }
        assert!(take(tat, START, &hour).is_some());
    }

    #[test]
    fn a_cpu_whose_clock_is_a_tick_behind_gets_nothing_more() {
        let limit = limit(60, 60 * SECOND);
        let mut tat = 0;
        while let Some(next) = take(tat, START, &limit) {
            tat = next;
        }
        assert_eq!(take(tat, START - 10_000_000, &limit), None);
    }

    #[test]
    fn a_row_that_was_not_written_lets_nothing_begin() {
        assert_eq!(take(0, START, &Limit::default()), None);
        assert_eq!(take(0, START, &Limit { interval: 1, burst: 0, bucket: 0 }), None);
        assert_eq!(take(0, START, &Limit { interval: 0, burst: 1, bucket: 0 }), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            burst in 1u32..200,
            unit in prop::sample::select(&[SECOND, 60 * SECOND, 3_600 * SECOND][..]),
            gaps in prop::collection::vec(0u64..2_000_000_000, 1..400),
        ) {
            let limit = limit(burst, unit);
            let (mut tat, mut now, mut begun) = (0, START, 0u64);
            for gap in gaps {
                now += gap;
                if let Some(next) = take(tat, now, &limit) {
                    prop_assert!(next > now && next - now <= limit.interval * u64::from(burst));
                    (tat, begun) = (next, begun + 1);
                }
                prop_assert!(begun <= u64::from(burst) + (now - START) / limit.interval);
            }
        }
    }
}
