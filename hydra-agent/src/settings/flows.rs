//! The settings `flows` and `flow-share`: how large the flow table is, and how much of it one source may have.

use std::str::FromStr;

use crate::datapath::Room;

/// Flows that the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows(pub u32);

impl Default for Flows {
    fn default() -> Self {
        Self(Room::default().flows)
    }
}

impl FromStr for Flows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|n| (Room::FEWEST..=Room::MOST).contains(n));
        number.map(Self).ok_or_else(|| format!("expected a number from {} to {}", Room::FEWEST, Room::MOST))
    }
}

/// The part of the room left by others that one source may have, in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowShare(pub u8);

impl Default for FlowShare {
    fn default() -> Self {
        Self(Room::default().share)
    }
}

impl FromStr for FlowShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|n| n.parse().ok()).filter(|n| (1..=100).contains(n));
        number.map(Self).ok_or_else(|| "expected a part from `1%` to `100%`, as in `25%`".into())
    }
}
