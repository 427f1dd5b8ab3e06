//! Pure: what a bank and the rows of containers should hold, what differs from what is held, and whether that takes a new
//! generation.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use hydra_common::address::Address;
use hydra_common::id::{Identity, MAX_IDENTITIES};
use hydra_common::tables::{
    Cell, Decision, Endpoint, Head, IdentityRow, Interval, Limit, MAX_CGROUPS, MAX_DECISIONS, MAX_ENDPOINTS,
    MAX_INTERVALS, MAX_LIMITS, MAX_LINKS, MAX_PREFIXES, MAX_PUBLISHED, MAX_RULE_SETS, PrefixData, PrefixRow,
    RuleSet,
};
use ipnet::{IpNet, Ipv4Net};

use super::error::DatapathError;
use crate::desired::{self, Desired};
use crate::policy::rows::Compiled;

/// The monotonic clock may be off by this many seconds before a rule's end is written anew: both clocks are read one after the
/// other, and the wall clock is slewed.
pub const CLOCK_SLACK: u32 = 2;

/// Key of the prefix table: the kernel's `bpf_lpm_trie_key`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
)]
#[repr(C)]
pub struct PrefixKey {
    /// Bits of `data` that count.
    pub bits: u32,
    /// The bank and the address.
    pub data: PrefixData,
}

impl PrefixKey {
    /// The key of a block in a bank.
    pub fn new(bank: u32, block: &IpNet) -> Self {
        let family = if block.addr().is_ipv4() { 96 } else { 0 };
        Self {
            bits: PrefixData::BANK_BITS + family + u32::from(block.prefix_len()),
            data: PrefixData { bank: bank.to_be_bytes(), address: Address::from(block.network()).octets() },
        }
    }

    /// The block, if the key can be one's.
    pub fn block(&self) -> Option<IpNet> {
        let ip = IpAddr::from(Address::v6(self.data.address));
        let family = if ip.is_ipv4() { 96 } else { 0 };
        let length = u8::try_from(self.bits.checked_sub(PrefixData::BANK_BITS + family)?).ok()?;
        IpNet::new(ip, length).ok()
    }

    /// The bank that it belongs to.
    pub fn bank(&self) -> u32 {
        u32::from_be_bytes(self.data.bank)
    }
}

/// Everything that one bank holds, but for the slots in the rows of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// Its generation is set when it is written.
    pub head: Head,
    /// By number, without gaps.
    pub identities: Vec<IdentityRow>,
    /// The matrix by source, each row as wide as `identities`.
    pub cells: BTreeMap<u16, Vec<Cell>>,
    /// By index.
    pub rule_sets: Vec<RuleSet>,
    /// By index.
    pub intervals: Vec<Interval>,
    /// By index, `until` in seconds of the monotonic clock.
    pub decisions: Vec<Decision>,
    /// By index.
    pub limits: Vec<Limit>,
    /// By block.
    pub prefixes: BTreeMap<IpNet, PrefixRow>,
}

/// Both clocks at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: u64,
    /// Since 1970.
    pub unix: i128,
}

impl Clocks {
    /// The second of the monotonic clock at which the wall clock will show `unix`; 1 where that is past (0 means never).
    pub fn second(&self, unix: i64) -> u32 {
        let ahead = i128::from(unix) * 1_000_000_000 - self.unix;
        let then = (i128::from(self.monotonic) + ahead + 500_000_000) / 1_000_000_000;
        u32::try_from(then.max(1)).unwrap_or(u32::MAX)
    }
}

impl Bank {
    /// The bank of a policy.
    pub fn new(revision: u32, compiled: &Compiled, clocks: Clocks) -> Self {
        let width = compiled.identities.keys().next_back().map_or(1, |i| usize::from(i.0) + 1);
        let mut identities = vec![IdentityRow::default(); width];
        for (number, (_, row)) in &compiled.identities {
            identities[usize::from(number.0)] = *row;
        }
        // A row for everybody, nobody's included: what the compiler leaves out denies, whatever the bank held before.
        let empty = vec![Cell::default(); width];
        let mut cells: BTreeMap<u16, Vec<Cell>> =
            compiled.identities.keys().map(|i| i.0).chain([0]).map(|i| (i, empty.clone())).collect();
        for ((source, destination), cell) in &compiled.cells {
            if let Some(place) = cells.get_mut(&source.0).and_then(|r| r.get_mut(usize::from(destination.0)))
            {
                *place = *cell;
            }
        }
        let decisions = compiled
            .decisions
            .iter()
            .map(|(row, until)| Decision { until: until.map_or(0, |at| clocks.second(at)), ..*row })
            .collect();
        let mut prefixes = compiled.prefixes.clone();
        // The trie keeps IPv4 inside ::ffff:0:0/96: a block of IPv6 around that must not catch the addresses of IPv4.
        let around = |block: &IpNet| match block {
            IpNet::V4(_) => false,
            IpNet::V6(block) => {
                block.prefix_len() <= 96 && block.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
            }
        };
        if prefixes.keys().any(around) {
            let external = PrefixRow { identity: Identity::EXTERNAL, flags: 0 };
            prefixes.entry(IpNet::V4(Ipv4Net::default())).or_insert(external);
        }
        Self {
            head: Head {
                generation: 0,
                revision,
                flags: if compiled.audit { Head::AUDIT } else { 0 },
                pickup_until: 0,
            },
            identities,
            cells,
            rule_sets: compiled.rule_sets.clone(),
            intervals: compiled.intervals.clone(),
            decisions,
            limits: compiled.limits.clone(),
            prefixes,
        }
    }

    /// Whether packets could not tell the two apart; generations aside, and ends of rules within [`CLOCK_SLACK`].
    pub fn same(&self, other: &Self) -> bool {
        let close = |a: &Decision, b: &Decision| {
            (a.until == 0) == (b.until == 0)
                && a.until.abs_diff(b.until) <= CLOCK_SLACK
                && Decision { until: 0, ..*a } == Decision { until: 0, ..*b }
        };
        let head = |h: &Head| (h.revision, h.flags, h.pickup_until);
        head(&self.head) == head(&other.head)
            && self.identities == other.identities
            && self.cells == other.cells
            && self.rule_sets == other.rule_sets
            && self.intervals == other.intervals
            && self.limits == other.limits
            && self.prefixes == other.prefixes
            && self.decisions.len() == other.decisions.len()
            && self.decisions.iter().zip(&other.decisions).all(|(a, b)| close(a, b))
    }

    /// Whether an address that no endpoint has is nobody's: an interior block that is not open.
    fn closed(&self, address: &Address) -> bool {
        let ip = IpAddr::from(*address);
        self.prefixes
            .iter()
            .filter(|(block, _)| block.contains(&ip))
            .max_by_key(|(block, _)| block.prefix_len())
            .is_some_and(|(_, row)| {
                row.flags & (PrefixRow::INTERIOR | PrefixRow::OPEN) == PrefixRow::INTERIOR
            })
    }
}

/// Refuses what the tables can't hold, before a row is written.
pub fn check_room(bank: &Bank, desired: &Desired) -> Result<(), DatapathError> {
    for (table, needed, room) in [
        ("identities", bank.identities.len(), MAX_IDENTITIES),
        ("rule sets", bank.rule_sets.len(), MAX_RULE_SETS),
        ("intervals", bank.intervals.len(), MAX_INTERVALS),
        ("decisions", bank.decisions.len(), MAX_DECISIONS),
        ("limits", bank.limits.len(), MAX_LIMITS),
        ("address blocks", bank.prefixes.len(), MAX_PREFIXES),
        ("endpoints", desired.endpoints.len(), MAX_ENDPOINTS),
        ("interfaces", desired.links.len(), MAX_LINKS),
        ("published ports", desired.published.len(), MAX_PUBLISHED),
        ("cgroups", desired.cgroups.len(), MAX_CGROUPS),
    ] {
        if needed > room as usize {
            return Err(DatapathError::NoRoom { table, needed, room: room as usize });
        }
    }
    Ok(())
}

/// [`Head::pickup_until`]: `lasts` seconds from `now` where the window opens, else what was held, but no longer than that.
pub const fn pickup_until(held: u32, opens: bool, lasts: u32, now: u32) -> u32 {
    let end = if lasts == 0 { 0 } else { now.saturating_add(lasts) };
    if opens || (held > now && held > end) { end } else { held }
}

/// Whether an address appears that was the outside's, an open network's or a block's before: flows to it may have been judged so.
pub fn claimed(
    held: &BTreeMap<Address, Endpoint>,
    wanted: &BTreeMap<Address, desired::Endpoint>,
    current: &Bank,
) -> bool {
    wanted.keys().any(|address| !held.contains_key(address) && !current.closed(address))
}

/// The generation after this one; 0 is "no policy", and its lowest bit always changes.
pub fn next_generation(generation: u32) -> u32 {
    match generation.wrapping_add(1) {
        0 => 2,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bank(prefixes: &[(&str, u16, u16)]) -> Bank {
        let prefixes = prefixes
            .iter()
            .map(|(block, identity, flags)| {
                (block.parse().unwrap(), PrefixRow { identity: Identity(*identity), flags: *flags })
            })
            .collect();
        let compiled = Compiled { prefixes, ..Compiled::default() };
        Bank::new(1, &compiled, Clocks { monotonic: 0, unix: 0 })
    }

    #[test]
    fn an_address_that_was_somebodys_before_takes_a_flip() {
        let bank = bank(&[
            ("10.1.0.0/16", 4, PrefixRow::INTERIOR),
            ("10.2.0.0/16", 4, PrefixRow::INTERIOR | PrefixRow::OPEN),
            ("10.1.9.0/24", 5, 0),
        ]);
        let nobody = BTreeMap::new();
        let new = |at: &str| {
            BTreeMap::from([(Address::from(at.parse::<IpAddr>().unwrap()), desired::Endpoint::default())])
        };
        assert!(!claimed(&nobody, &new("10.1.0.5"), &bank));
        for at in ["10.2.0.5", "10.1.9.5", "192.0.2.1", "2001:db8::1"] {
            assert!(claimed(&nobody, &new(at), &bank), "{at}");
        }
    }

    #[test]
    fn a_block_of_ipv6_around_the_mapped_addresses_does_not_catch_ipv4() {
        let everything = bank(&[("::/0", 9, 0)]);
        assert_eq!(everything.prefixes[&"0.0.0.0/0".parse().unwrap()].identity, Identity::EXTERNAL);
        let own = bank(&[("::/0", 9, 0), ("0.0.0.0/0", 8, 0)]);
        assert_eq!(own.prefixes[&"0.0.0.0/0".parse().unwrap()].identity, Identity(8));
        assert_eq!(bank(&[("2001:db8::/32", 9, 0)]).prefixes.len(), 1);
    }

    #[test]
    fn prefix_keys_read_back() {
        for (block, bits) in [("0.0.0.0/0", 128), ("10.1.0.0/16", 144), ("::/0", 32), ("2001:db8::/32", 64)] {
            let block: IpNet = block.parse().unwrap();
            let key = PrefixKey::new(1, &block);
            assert_eq!((key.bits, key.bank(), key.block()), (bits, 1, Some(block)));
        }
    }

    #[test]
    fn nobodys_row_denies_whatever_was_there() {
        let bank = bank(&[]);
        assert_eq!(bank.cells[&0], [Cell::default()]);
    }

    #[test]
    fn ends_of_rules_are_in_the_kernels_clock() {
        let clocks = Clocks { monotonic: 100_400_000_000, unix: 1_000_000_000_000 };
        assert_eq!(clocks.second(1_010), 110);
        assert_eq!(clocks.second(990), 90);
        assert_eq!(clocks.second(0), 1, "long past, and not `never`");
        assert_eq!(clocks.second(i64::MAX / 2), u32::MAX);
    }

    #[test]
    fn connections_are_taken_up_for_a_time() {
        // Opened, kept by later passes, and over.
        assert_eq!(pickup_until(0, true, 3600, 100), 3700);
        assert_eq!(pickup_until(3700, false, 3600, 200), 3700);
        assert_eq!(pickup_until(3700, false, 3600, 9000), 3700);
        // A shorter setting holds at once, a longer one when the window opens next.
        assert_eq!(pickup_until(3700, false, 60, 200), 260);
        assert_eq!(pickup_until(3700, false, 0, 200), 0);
        assert_eq!(pickup_until(3700, false, 7200, 200), 3700);
        assert_eq!(pickup_until(3700, true, 0, 200), 0);
    }

    #[test]
    fn a_clock_that_drifts_a_little_makes_no_new_policy() {
        let at =
            |until| Bank { decisions: vec![Decision { until, ..Decision::default() }], ..Bank::default() };
        assert!(at(100).same(&at(100 + CLOCK_SLACK)));
        assert!(!at(100).same(&at(101 + CLOCK_SLACK)));
        assert!(!at(0).same(&at(1)), "never is not soon");
    }

    #[test]
    fn generations_alternate_banks_and_skip_zero() {
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(7), 8);
        assert_eq!(next_generation(u32::MAX), 2);
    }

    #[test]
    fn too_much_is_refused_with_both_numbers() {
        let full =
            Bank { rule_sets: vec![RuleSet::default(); MAX_RULE_SETS as usize + 1], ..Bank::default() };
        let error = check_room(&full, &Desired::default()).unwrap_err();
        assert_eq!(error.to_string(), "the table of rule sets has no room: 65537 are needed, it holds 65536");
    }
}
