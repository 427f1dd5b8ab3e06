//! `limit: 60/min`: how a file writes it, and its row.

use std::fmt;

use hydra_common::tables;

/// New flows per source address: so many in a unit of time, and as many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit {
    /// 1 to [`MOST`].
    pub flows: u32,
    /// In which time.
    pub unit: Unit,
}

/// A unit of time of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// `s`
    Second,
    /// `min`
    Minute,
    /// `h`
    Hour,
}

/// The most flows in any unit: the interval between two of them is told to the nanosecond, and this many are within a part in a
/// thousand of what is written.
pub const MOST: u32 = 1_000_000;

impl Unit {
    const ALL: [Self; 3] = [Self::Second, Self::Minute, Self::Hour];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
        }
    }

    const fn nanoseconds(self) -> u64 {
        1_000_000_000
            * match self {
                Self::Second => 1,
                Self::Minute => 60,
                Self::Hour => 3_600,
            }
    }
}

impl Limit {
    /// Reads one; `Err` is a message and a hint.
    pub fn parse(text: &str) -> Result<Self, (String, Option<String>)> {
        let form = || Some("write `60/s`, `60/min` or `60/h`: new flows per source address".to_owned());
        let Some((flows, unit)) = text.split_once('/') else {
            return Err((format!("limit `{text}` names no time"), form()));
        };
        let Some(unit) = Unit::ALL.into_iter().find(|u| u.as_str() == unit) else {
            return Err((format!("limit `{text}` has an unknown unit `{unit}`"), form()));
        };
        if flows.is_empty() || !flows.bytes().all(|b| b.is_ascii_digit()) {
            return Err((format!("limit `{text}` is no number of flows in a time"), form()));
        }
        match flows.parse::<u32>() {
            Ok(0) => {
                let hint = "write a rule with `action: deny`".to_owned();
                Err((format!("limit `{text}` lets nothing begin"), Some(hint)))
            }
            Ok(flows) if flows <= MOST => Ok(Self { flows, unit }),
            Ok(_) | Err(_) => Err((format!("limit `{text}` is out of range: 1 to {MOST}"), None)),
        }
    }

    /// Its row, for the bucket with this number.
    pub fn row(self, bucket: u32) -> tables::Limit {
        tables::Limit {
            interval: self.unit.nanoseconds() / u64::from(self.flows.max(1)),
            burst: self.flows,
            bucket,
        }
    }
}

impl fmt::Display for Limit {
    /// As in a file: `60/min`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.flows, self.unit.as_str())
    }
}

impl serde::Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_is_written() {
        for (text, interval, burst) in [
            ("1/s", 1_000_000_000, 1),
            ("60/min", 1_000_000_000, 60),
            ("7/min", 8_571_428_571, 7),
            ("10/h", 360_000_000_000, 10),
            ("1000000/s", 1_000, 1_000_000),
        ] {
            let limit = Limit::parse(text).unwrap();
            assert_eq!(limit.to_string(), text);
            assert_eq!(limit.row(3), tables::Limit { interval, burst, bucket: 3 });
        }
    }

    #[test]
    fn rounding_is_far_below_a_part_in_a_hundred() {
        for flows in (1..MOST).step_by(997) {
            let row = Limit { flows, unit: Unit::Second }.row(0);
            // The interval is right to less than a nanosecond, the shortest of them has a thousand.
            let off = 1_000_000_000 - row.interval * u64::from(flows);
            assert!(off * 1_000 <= 1_000_000_000, "{flows}: {off}");
        }
    }
}
