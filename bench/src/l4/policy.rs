//! Texts of large policies, each rule of which decides somewhere.

use std::fmt::Write as _;

/// The port of UDP that the first tier may call in the second.
pub const DOOR: u16 = 7_001;

/// A policy's size and variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large {
    /// Tiers, two of which have bridges.
    pub tiers: usize,
    /// Rules.
    pub rules: usize,
    /// 0 or 1: all ports of TCP and UDP are others.
    pub variant: u16,
    /// What is added to [`DOOR`].
    pub door: u16,
}

impl Large {
    /// Its text: lists, ports of two protocols, denials, and rules for everybody, in the layout of the policies in the documents.
    pub fn text(self) -> String {
        let mut text = "version: 1\nname: large\ntiers:\n".to_owned();
        for n in 0..2 {
            let _ = writeln!(text, "  t{n}: {{ bridges: [hybr{n}], subnets: [10.8{n}.0.0/16] }}");
        }
        for n in 2..self.tiers {
            let _ = writeln!(text, "  t{n}: {{ addresses: [10.{}.{}.0/24] }}", 200 + n / 250, n % 250);
        }
        let door = DOOR + self.door;
        let _ = writeln!(text, "rules:\n  - {{ name: door, from: t0, to: t1, ports: [udp/{door}] }}");
        text += "  - { name: telemetry, from: internal, to: t2, ports: [tcp/4317, udp/514] }\n";
        text += "  - { name: no-telnet, from: any, to: t3, ports: [tcp/23], action: deny }\n";
        for n in 3..self.rules {
            let at = |m: usize| (n * 31 + n / self.tiers * m) % self.tiers;
            let (from, to) = (at(1), at(7) + 1);
            let to = to % self.tiers;
            let port = 10_000 + (n * 7 % 25_000) + 25_000 * usize::from(self.variant);
            let from = if n.is_multiple_of(4) {
                format!("[t{from}, t{}]", (from + 1) % self.tiers)
            } else {
                format!("t{from}")
            };
            let ports = if n.is_multiple_of(5) {
                format!("[tcp/{port}, udp/{port}]")
            } else {
                format!("[tcp/{port}]")
            };
            let action = if n.is_multiple_of(50) { ", action: deny" } else { "" };
            let _ = writeln!(
                text,
                "  - {{ name: rule-{n:05}, from: {from}, to: t{to}, ports: {ports}{action} }}"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_policy_is_valid_and_none_of_its_rules_is_useless() {
        for variant in [0, 1] {
            let text = Large { tiers: 64, rules: 3_000, variant, door: variant }.text();
            let (model, warnings) = hydra_agent::policy::parse(&text, "large.yaml").unwrap();
            assert_eq!((model.tiers.len(), model.rules.len()), (64, 3_000));
            assert_eq!(warnings.iter().count(), 0, "{}", warnings.render(false));
        }
    }
}
