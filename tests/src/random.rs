//! Random policies over the sample's tiers, and random packets: from a seed, so that what went wrong once goes wrong again.

use std::fmt::Write;
use std::net::IpAddr;

use crate::oracle::What;
use crate::packets::{Extension, Packet, Transport, flags};
use crate::sample::TIERS;

/// Numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the variable `HYDRA_SEED`, else a fixed one; it is printed, for the next time.
    pub fn from_environment() -> Self {
        let seed = std::env::var("HYDRA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_801);
        Self::new(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below another.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// True in one of so many cases.
    pub fn one_in(&mut self, cases: usize) -> bool {
        self.below(cases) == 0
    }

    /// One of them.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

const SELECTORS: [&str; 21] = [
    "any",
    "internal",
    "external",
    "host",
    "unmanaged",
    "web",
    "web/shop",
    "app",
    "app/api",
    "app/cron",
    "data",
    "data/db",
    "data/cache",
    "partner",
    "{ cidr: 10.70.0.0/16 }",
    "{ cidr: 10.70.2.0/24, except: [10.70.2.10/32] }",
    "{ cidr: 0.0.0.0/0, except: [10.70.3.0/24] }",
    "{ cidr: 203.0.113.0/25 }",
    "{ cidr: 'fd70::/16' }",
    "{ cidr: 'fd70:3::/64', except: ['fd70:3::a'] }",
    "{ cidr: '2000::/3' }",
];

const PORTS: [&str; 19] = [
    "tcp",
    "udp",
    "sctp",
    "icmp",
    "icmpv6",
    "ping",
    "tcp/22",
    "tcp/80",
    "tcp/1-1023",
    "tcp/8000-8009",
    "tcp/8005-9000",
    "udp/53",
    "udp/1-65535",
    "sctp/9003",
    "proto/47",
    "icmp/13",
    "icmpv6/echo-request",
    "app/api",
    "db",
];

const LIMITS: [&str; 3] = ["5/s", "60/min", "1/h"];

/// A policy's text. Most are valid; the rest says so.
pub fn policy(random: &mut Random) -> String {
    let mut text = String::from("version: 1\nname: random\n");
    if random.one_in(8) {
        text.push_str("mode: audit\n");
    }
    let mut tiers = TIERS.to_owned();
    for tier in ["web", "app", "data"] {
        if random.one_in(6) {
            tiers = tiers.replace(&format!("  {tier}:\n"), &format!("  {tier}:\n    mode: audit\n"));
        }
    }
    text.push_str(&tiers);
    let actions = ["allow", "deny", "audit"];
    let _ = writeln!(
        text,
        "defaults: {{ intra-tier: {}, from-host: {}, cross-tier: {} }}",
        if random.one_in(2) { "allow" } else { random.one(&actions) },
        if random.one_in(2) { "allow" } else { random.one(&actions) },
        if random.one_in(3) { "audit" } else { "deny" }
    );
    text.push_str("rules:\n");
    let rules = random.below(14);
    for number in 0..rules {
        let _ =
            write!(text, "  - {{ name: r{number}, from: {}, to: {}", selectors(random), selectors(random));
        if !random.one_in(3) {
            let count = 1 + random.below(3);
            let ports: Vec<&str> = (0..count).map(|_| *random.one(&PORTS)).collect();
            let _ = write!(text, ", ports: [{}]", ports.join(", "));
        }
        let action = random.one(&actions);
        let _ = write!(text, ", action: {action}");
        if *action == "allow" && random.one_in(2) {
            let _ = write!(text, ", limit: {}", random.one(&LIMITS));
        }
        match random.below(8) {
            0 => text.push_str(", expires: '2020-01-01T00:00:00Z'"),
            1 => text.push_str(", expires: '2099-01-01T00:00:00Z'"),
            _ => {}
        }
        text.push_str(" }\n");
    }
    if rules == 0 {
        text = text.replace("rules:\n", "rules: []\n");
    }
    text
}

fn selectors(random: &mut Random) -> String {
    if random.one_in(3) {
        let list: Vec<&str> = (0..2 + random.below(2)).map(|_| *random.one(&SELECTORS)).collect();
        return format!("[{}]", list.join(", "));
    }
    (*random.one(&SELECTORS)).to_owned()
}

/// What a random packet asks for: near the edges of the ports above.
pub fn what(random: &mut Random, v6: bool) -> What {
    let port = *random
        .one(&[0, 1, 21, 22, 23, 53, 80, 1023, 1024, 5432, 7999, 8000, 8005, 8009, 8010, 9000, 9003, 65_535]);
    match random.below(8) {
        0..=2 => What::Tcp(port),
        3 | 4 => What::Udp(port),
        5 => What::Sctp(port),
        6 if v6 => What::Icmpv6(*random.one(&[128, 139])),
        6 => What::Icmp(*random.one(&[8, 13])),
        _ => What::Other(*random.one(&[47, 50, 89])),
    }
}

/// A packet that asks for it and opens a flow, with harmless headers around.
pub fn packet(random: &mut Random, from: IpAddr, to: IpAddr, what: What) -> Packet {
    let source_port = 20_000 + random.below(20_000) as u16;
    let id = source_port.to_be_bytes();
    let transport = match what {
        What::Tcp(port) => Transport::Tcp(source_port, port, flags::SYN, vec![0; 4]),
        What::Udp(port) => Transport::Udp(source_port, port, b"datagram".to_vec()),
        What::Sctp(port) => Transport::Sctp(source_port, port, 1),
        What::Icmp(kind) | What::Icmpv6(kind) => Transport::Icmp(kind, 0, [id[0], id[1], 0, 1], vec![0; 16]),
        What::Other(number) => Transport::Raw(number, vec![0; 16]),
    };
    let mut packet = Packet::new(from, to, transport);
    if random.one_in(4) {
        if from.is_ipv6() {
            packet = packet.extension(Extension::HopByHop(vec![]));
            if random.one_in(2) {
                packet = packet.extension(Extension::Destination(vec![0; 6 + 8 * random.below(3)]));
            }
        } else {
            let harmless: [&[u8]; 3] = [&[1, 1, 1, 1], &[7, 7, 4, 0, 0, 0, 0], &[148, 4, 0, 0]];
            packet = packet.options(harmless[random.below(harmless.len())]);
        }
    }
    // The first piece of a datagram, or an IPv6 packet that says it is one and is all of it: judged like the whole.
    if random.one_in(6) {
        packet = if from.is_ipv6() {
            packet.extension(Extension::Fragment(0, random.one_in(2), 77))
        } else {
            packet.fragment(0, true)
        };
    }
    packet
}
