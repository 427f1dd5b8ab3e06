//! Samples to figures: medians, and how sure they are.
//!
//! What is compared is measured in turns, forth and back (A B C, C B A, A B C …), so that what the machine does meanwhile meets all
//! alike; a ratio is the median over rounds of the ratio within a round. Intervals are percentile bootstraps with a fixed seed: the
//! same samples give the same figures.

use anyhow::{Result, ensure};
use hydra_tests::random::Random;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 4_000;
const SEED: u64 = 20;

/// What is said of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistic {
    /// The one in the middle.
    #[default]
    Median,
    /// The one that 99 of 100 do not exceed.
    P99,
    /// Their mean: of values that are 0 or 100 the share in hundredths.
    Mean,
}

impl Statistic {
    /// Whether it is what goes without saying.
    pub fn is_median(&self) -> bool {
        *self == Self::Median
    }

    fn of(self, values: &mut [f64]) -> f64 {
        match self {
            Self::Median => median(values),
            Self::P99 => {
                values.sort_by(f64::total_cmp);
                values[(values.len() * 99).div_ceil(100) - 1]
            }
            Self::Mean => values.iter().sum::<f64>() / values.len() as f64,
        }
    }
}

/// A median, or what else is said of values, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median, if nothing else is said.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How many values it is made of.
    pub n: usize,
}

impl Estimate {
    /// The median of values, at least one.
    pub fn of(values: &[f64]) -> Result<Self> {
        Self::of_as(values, Statistic::Median)
    }

    /// Something else of them.
    pub fn of_as(values: &[f64], statistic: Statistic) -> Result<Self> {
        ensure!(!values.is_empty(), "no values");
        let mut random = Random::new(SEED);
        let mut figures: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let mut again: Vec<f64> =
                    (0..values.len()).map(|_| values[random.below(values.len())]).collect();
                statistic.of(&mut again)
            })
            .collect();
        figures.sort_by(f64::total_cmp);
        let (mut low, mut high) = (figures[RESAMPLES / 40], figures[RESAMPLES - 1 - RESAMPLES / 40]);
        match statistic {
            Statistic::Median => {}
            // What is beyond the largest nobody has seen: no resample tells how far the tail goes.
            Statistic::P99 => high = values.iter().copied().fold(high, f64::max),
            Statistic::Mean => {
                let (least, most) = wilson(values);
                (low, high) = (low.min(least), high.max(most));
            }
        }
        Ok(Self { median: statistic.of(&mut values.to_vec()), low, high, n: values.len() })
    }

    /// Of the ratios of values that were measured in the same rounds.
    pub fn of_ratio(of: &[f64], to: &[f64]) -> Result<Self> {
        ensure!(of.len() == to.len(), "{} values and {} are no pairs", of.len(), to.len());
        Self::of(&of.iter().zip(to).map(|(a, b)| a / b).collect::<Vec<_>>())
    }
}

/// The interval of a share in hundredths (Wilson, 1927): one of all of them is not certain.
fn wilson(values: &[f64]) -> (f64, f64) {
    const Z: f64 = 1.96;
    let n = values.len() as f64;
    let share = values.iter().sum::<f64>() / n / 100.0;
    let middle = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).max(0.0).sqrt();
    (100.0 * (middle - half), 100.0 * (middle + half).min(1.0))
}

/// The median; of an even number the mean of the middle two.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// Measures each of `cases` once a round, forth and back, and answers the samples of each. `told` hears of every round.
pub fn interleave<C>(
    cases: &mut [C],
    rounds: usize,
    mut measure: impl FnMut(&mut C) -> Result<f64>,
    mut told: impl FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..rounds {
        for turn in 0..cases.len() {
            let index = if round.is_multiple_of(2) { turn } else { cases.len() - 1 - turn };
            samples[index].push(measure(&mut cases[index])?);
        }
        told(round + 1);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_its_interval_and_is_the_same_again() {
        let values: Vec<f64> = (1..=101).map(f64::from).collect();
        let first = Estimate::of(&values).unwrap();
        assert!((first.median - 51.0).abs() < 1e-9);
        assert!(first.low > 35.0 && first.low < 51.0 && first.high > 51.0 && first.high < 67.0, "{first:?}");
        assert_eq!(first, Estimate::of(&values).unwrap());
    }

    #[test]
    fn a_tail_and_a_share_have_intervals_too() {
        let values: Vec<f64> = (1..=1_000).rev().map(f64::from).collect();
        let tail = Estimate::of_as(&values, Statistic::P99).unwrap();
        assert!((tail.median - 990.0).abs() < 1e-9 && tail.low < 990.0 && tail.high > 990.0, "{tail:?}");
        let all = |n: usize| Estimate::of_as(&values[..n], Statistic::P99).unwrap().median;
        assert_eq!((all(1), all(99), all(100), all(101)), (1_000.0, 1_000.0, 999.0, 999.0));
        let shares: Vec<f64> = (0..200).map(|n| if n < 198 { 100.0 } else { 0.0 }).collect();
        let share = Estimate::of_as(&shares, Statistic::Mean).unwrap();
        assert!((share.median - 99.0).abs() < 1e-9 && share.low > 96.0 && share.high <= 100.0, "{share:?}");
        let all = Estimate::of_as(&[100.0; 100], Statistic::Mean).unwrap();
        assert!(all.low > 96.0 && all.low < 97.0 && all.high > 99.999, "{all:?}");
    }

    #[test]
    fn the_interval_holds_the_true_median_about_as_often_as_it_says() {
        let mut random = Random::new(7);
        let held = (0..200)
            .filter(|_| {
                let values: Vec<f64> = (0..31).map(|_| random.below(1_000_001) as f64).collect();
                let estimate = Estimate::of(&values).unwrap();
                estimate.low <= 500_000.0 && 500_000.0 <= estimate.high
            })
            .count();
        assert!((175..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn a_drift_that_meets_both_does_not_show_in_the_ratio() {
        let mut speed = 1.0;
        let samples = interleave(
            &mut [2.0, 1.0],
            40,
            |cost| {
                speed *= 1.01;
                Ok(*cost * speed)
            },
            |_| {},
        )
        .unwrap();
        let ratio = Estimate::of_ratio(&samples[0], &samples[1]).unwrap();
        assert!((ratio.median - 2.0).abs() < 0.03, "{ratio:?}");
    }

    #[test]
    fn rounds_go_forth_and_back() {
        let mut order = Vec::new();
        interleave(
            &mut ['a', 'b', 'c'],
            2,
            |c| {
                order.push(*c);
                Ok(1.0)
            },
            |_| {},
        )
        .unwrap();
        assert_eq!(order.iter().collect::<String>(), "abccba");
    }

    #[test]
    fn no_values_are_no_figure() {
        assert_eq!(Estimate::of(&[]).unwrap_err().to_string(), "no values");
        assert_eq!(Estimate::of_ratio(&[1.0], &[]).unwrap_err().to_string(), "1 values and 0 are no pairs");
    }
}
