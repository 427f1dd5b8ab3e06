//! What `ports:` can say: protocols with ports or types, as ranges of the numbers that rule sets are searched by
//! ([`hydra_common::tables::selector`]). Service names are left for the caller, who knows the services.

use std::fmt;

use hydra_common::tables::selector;

/// The last number that a packet can have: protocol 255.
pub const LAST: u32 = selector(255, u16::MAX);

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Words that begin a port; a service of such a name must be written with its tier.
pub const WORDS: [&str; 7] = ["tcp", "udp", "sctp", "icmp", "icmpv6", "ping", "proto"];

/// ICMP types by their usual names (IANA, "ICMP Type Numbers").
const ICMP_TYPES: [(&str, u8); 11] = [
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
];

/// ICMPv6 types by their usual names (IANA, "ICMPv6 type Numbers").
const ICMPV6_TYPES: [(&str, u8); 14] = [
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("multicast-listener-query", 130),
    ("multicast-listener-report", 131),
    ("multicast-listener-done", 132),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbour-solicitation", 135),
    ("neighbour-advertisement", 136),
    ("redirect", 137),
];

/// A set of (protocol, port or type): ranges of selector numbers, both ends included, ascending, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(Vec<(u32, u32)>);

impl Ports {
    /// Every packet.
    pub fn all() -> Self {
        Self(vec![(0, LAST)])
    }

    /// The union of ranges.
    pub fn of(mut ranges: Vec<(u32, u32)>) -> Self {
        if ranges.len() < 2 {
            return Self(ranges);
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                Some(_) | None => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Whether a packet's number is in it.
    pub fn contains(&self, selector: u32) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&selector))
    }

    /// Whether every number belongs to a protocol of one family: `Some(true)` IPv4 alone, `Some(false)` IPv6 alone.
    pub fn family(&self) -> Option<bool> {
        let within = |p: u8| self.0.iter().all(|(a, b)| *a >= selector(p, 0) && *b <= selector(p, u16::MAX));
        if within(ICMP) { Some(true) } else { within(ICMPV6).then_some(false) }
    }
}

/// Ranges that are shown of a set.
const SHOWN: usize = 6;

impl fmt::Display for Ports {
    /// As a policy writes it, `everything` for all; of a set in many pieces the first few.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [(0, LAST)] {
            return f.write_str("everything");
        }
        let mut pieces: Vec<String> = Vec::new();
        for (from, to) in self.0.iter().copied() {
            let (first, last) = ((from >> 16) as u8, (to >> 16) as u8);
            if first == last {
                pieces.push(piece(first, (from & 0xffff) as u16, (to & 0xffff) as u16));
                continue;
            }
            if from & 0xffff != 0 {
                pieces.push(piece(first, (from & 0xffff) as u16, u16::MAX));
            }
            let whole_from = if from == selector(first, 0) { first } else { first + 1 };
            let whole_to = if to & 0xffff == 0xffff { last } else { last - 1 };
            match whole_from.cmp(&whole_to) {
                std::cmp::Ordering::Less => pieces.push(format!("proto/{whole_from}-{whole_to}")),
                std::cmp::Ordering::Equal => pieces.push(piece(whole_from, 0, u16::MAX)),
                std::cmp::Ordering::Greater => {}
            }
            if to & 0xffff != 0xffff {
                pieces.push(piece(last, 0, (to & 0xffff) as u16));
            }
        }
        let more = pieces.len() > SHOWN;
        pieces.truncate(SHOWN);
        f.write_str(&pieces.join(", "))?;
        if more { f.write_str(", …") } else { Ok(()) }
    }
}

fn piece(protocol: u8, from: u16, to: u16) -> String {
    let name = match protocol {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        other => return format!("proto/{other}"),
    };
    match (from, to) {
        (0, u16::MAX) => name,
        (from, to) if from == to => format!("{name}/{from}"),
        (from, to) => format!("{name}/{from}-{to}"),
    }
}

/// One entry of a `ports:` list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// Packets.
    Ranges(Vec<(u32, u32)>),
    /// The ports of a service, bare or with its tier.
    Service(String),
}

/// Why an entry is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong with it.
    pub message: String,
    /// How to write it.
    pub hint: Option<String>,
}

fn refuse<T>(message: impl Into<String>, hint: &str) -> Result<T, Refusal> {
    Err(Refusal { message: message.into(), hint: Some(hint.to_owned()) })
}

/// Reads one entry.
pub fn parse(text: &str) -> Result<Term, Refusal> {
    let (word, rest) = match text.split_once('/') {
        Some((word, rest)) => (word, Some(rest)),
        None => (text, None),
    };
    let whole = |p: u8| Ok(Term::Ranges(vec![(selector(p, 0), selector(p, u16::MAX))]));
    match (word, rest) {
        ("tcp", rest) => ported(text, TCP, rest),
        ("udp", rest) => ported(text, UDP, rest),
        ("sctp", rest) => ported(text, SCTP, rest),
        ("icmp", None) => whole(ICMP),
        ("icmpv6", None) => whole(ICMPV6),
        ("icmp", Some(kind)) => Ok(Term::Ranges(one(ICMP, icmp_type(text, kind, &ICMP_TYPES)?))),
        ("icmpv6", Some(kind)) => Ok(Term::Ranges(one(ICMPV6, icmp_type(text, kind, &ICMPV6_TYPES)?))),
        ("ping", None) => Ok(Term::Ranges([one(ICMP, 8), one(ICMPV6, 128)].concat())),
        ("ping", Some(_)) => {
            refuse(format!("`{text}` is no port"), "`ping` stands alone: it is an echo request")
        }
        ("proto", None) => refuse("`proto` lacks its number", "write `proto/47` for protocol 47"),
        ("proto", Some(number)) => match digits(number).and_then(|n| u8::try_from(n).ok()) {
            Some(p) => whole(p),
            None => refuse(
                format!("protocol `{number}` is out of range: 0 to 255"),
                "write `proto/47` for protocol 47",
            ),
        },
        _ => Ok(Term::Service(service(text)?)),
    }
}

fn one(protocol: u8, kind: u8) -> Vec<(u32, u32)> {
    let n = selector(protocol, u16::from(kind));
    vec![(n, n)]
}

fn ported(text: &str, protocol: u8, rest: Option<&str>) -> Result<Term, Refusal> {
    let Some(rest) = rest else {
        return Ok(Term::Ranges(vec![(selector(protocol, 0), selector(protocol, u16::MAX))]));
    };
    let (low, high) = rest.split_once('-').unwrap_or((rest, rest));
    let (low, high) = (port(text, low)?, port(text, high)?);
    if low > high {
        return refuse(format!("port range `{text}` runs backwards"), "write the lower port first");
    }
    Ok(Term::Ranges(vec![(selector(protocol, low), selector(protocol, high))]))
}

fn port(text: &str, number: &str) -> Result<u16, Refusal> {
    match digits(number).map(u16::try_from) {
        Some(Ok(n)) if n > 0 => Ok(n),
        Some(_) => refuse(
            format!("port `{number}` of `{text}` is out of range: 1 to 65535"),
            "a whole protocol is written without a port: `tcp`",
        ),
        None if number.is_empty() => {
            refuse(format!("`{text}` is no port"), "write `tcp/5432` or `tcp/8000-8999`")
        }
        None => refuse(format!("`{number}` of `{text}` is no port"), "write `tcp/5432` or `tcp/8000-8999`"),
    }
}

fn icmp_type(text: &str, kind: &str, names: &[(&str, u8)]) -> Result<u8, Refusal> {
    if let Some((_, n)) = names.iter().find(|(name, _)| *name == kind) {
        return Ok(*n);
    }
    if let Some(n) = digits(kind) {
        return u8::try_from(n).or_else(|_| {
            refuse(
                format!("type `{kind}` of `{text}` is out of range: 0 to 255"),
                "write a type by number or name",
            )
        });
    }
    let names = names.iter().map(|(name, _)| *name);
    let hint = super::suggest::nearest(kind, names).map_or_else(
        || "write a type by number, or `echo-request`".to_owned(),
        |n| format!("did you mean `{n}`?"),
    );
    refuse(format!("`{kind}` of `{text}` is no ICMP type"), &hint)
}

/// Only digits, no sign, no leading zero that could mean octal.
fn digits(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    Some(text.parse().unwrap_or(u32::MAX))
}

/// A service's name, or a good word about what it looks like instead.
fn service(text: &str) -> Result<String, Refusal> {
    if let Some((number, word)) = text.split_once('/')
        && WORDS.contains(&word)
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    {
        return refuse(format!("`{text}` is no port"), &format!("write `{word}/{number}`"));
    }
    if digits(text).is_some_and(|n| n == 0 || n > 65_535) {
        return refuse(format!("port `{text}` is out of range: 1 to 65535"), "write `tcp/5432` or `udp/53`");
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return refuse(
            format!("port `{text}` lacks its protocol"),
            &format!("write `tcp/{text}` or `udp/{text}`"),
        );
    }
    let lower = text.to_ascii_lowercase();
    if lower != text && parse(&lower).is_ok_and(|t| matches!(t, Term::Ranges(_))) {
        return refuse(format!("`{text}` is no port"), &format!("write `{lower}`"));
    }
    if text.is_empty() {
        return refuse("a port is empty", "write `tcp/5432`, or leave `ports` out for everything");
    }
    Ok(text.to_owned())
}

/// What a question asks about: one protocol, and one port or type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, or ICMP type, or 0.
    pub number: u16,
}

impl Packet {
    /// Its number in rule sets.
    pub fn selector(self) -> u32 {
        selector(self.protocol, self.number)
    }

    /// The only family that has this protocol: `Some(true)` IPv4, `Some(false)` IPv6.
    pub fn family(self) -> Option<bool> {
        match self.protocol {
            ICMP => Some(true),
            ICMPV6 => Some(false),
            _ => None,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            TCP => write!(f, "tcp/{}", self.number),
            UDP => write!(f, "udp/{}", self.number),
            SCTP => write!(f, "sctp/{}", self.number),
            ICMP => write!(f, "icmp/{}", self.number),
            ICMPV6 => write!(f, "icmpv6/{}", self.number),
            other => write!(f, "proto/{other}"),
        }
    }
}

/// The packets that a question's text means: one, or for `ping` one of each family. `ports_of` gives a service's ports.
pub fn question(text: &str, ports_of: impl Fn(&str) -> Option<Ports>) -> Result<Vec<Packet>, Refusal> {
    const HINT: &str = "ask about one: `tcp/5432`, `udp/53`, `icmp/echo-request`, `proto/47`";
    // A packet to port 0 can be asked about, though no rule can name it.
    if let Some((word, "0")) = text.split_once('/') {
        let protocol = match word {
            "tcp" => Some(TCP),
            "udp" => Some(UDP),
            "sctp" => Some(SCTP),
            _ => None,
        };
        if let Some(protocol) = protocol {
            return Ok(vec![Packet { protocol, number: 0 }]);
        }
    }
    let ranges = match parse(text)? {
        Term::Ranges(ranges) => ranges,
        Term::Service(name) => match ports_of(&name) {
            Some(ports) => ports.ranges().to_vec(),
            None => return refuse(format!("`{name}` is no port and no service with ports"), HINT),
        },
    };
    let packet = |(from, to): (u32, u32)| {
        let (protocol, number) = ((from >> 16) as u8, (from & 0xffff) as u16);
        let typed = [ICMP, TCP, UDP, SCTP, ICMPV6].contains(&protocol);
        let single = from == to || (!typed && number == 0 && to == selector(protocol, u16::MAX));
        single.then_some(Packet { protocol, number })
    };
    let packets: Option<Vec<Packet>> = ranges.iter().map(|r| packet(*r)).collect();
    match packets {
        Some(packets) if packets.len() == 1 || (text == "ping" && packets.len() == 2) => Ok(packets),
        Some(_) | None => refuse(format!("`{text}` is more than one port"), HINT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Vec<(u32, u32)> {
        match parse(text).unwrap() {
            Term::Ranges(r) => r,
            Term::Service(s) => panic!("{text} read as the service {s}"),
        }
    }

    #[test]
    fn every_form() {
        assert_eq!(ranges("tcp/5432"), [(0x6_1538, 0x6_1538)]);
        assert_eq!(ranges("tcp/8000-8999"), [(0x6_1f40, 0x6_2327)]);
        assert_eq!(ranges("udp"), [(0x11_0000, 0x11_ffff)]);
        assert_eq!(ranges("sctp/9003"), [(0x84_232b, 0x84_232b)]);
        assert_eq!(ranges("proto/47"), [(0x2f_0000, 0x2f_ffff)]);
        assert_eq!(ranges("proto/6"), ranges("tcp"));
        assert_eq!(ranges("icmp/8"), ranges("icmp/echo-request"));
        assert_eq!(ranges("icmpv6/packet-too-big"), [(0x3a_0002, 0x3a_0002)]);
        assert_eq!(ranges("ping"), [(0x1_0008, 0x1_0008), (0x3a_0080, 0x3a_0080)]);
        assert_eq!(parse("databases/postgres"), Ok(Term::Service("databases/postgres".into())));
        assert_eq!(parse("postgres"), Ok(Term::Service("postgres".into())));
    }

    #[test]
    fn every_refusal() {
        let mut out = String::new();
        for text in [
            "tcp/0",
            "tcp/65536",
            "tcp/",
            "tcp/-1",
            "tcp/80-",
            "tcp/90-80",
            "tcp/080",
            "tcp/+80",
            "tcp/http",
            "5432",
            "5432/tcp",
            "8000-8999",
            "TCP/80",
            "proto",
            "proto/256",
            "proto/gre",
            "ping/8",
            "icmp/256",
            "icmp/echo",
            "icmpv6/packet-to-big",
            "",
            "tcp/99999999999",
        ] {
            let r = parse(text).unwrap_err();
            out = format!("{out}{text:?}: {} ({})\n", r.message, r.hint.unwrap_or_default());
        }
        insta::assert_snapshot!(out);
    }

    #[test]
    fn questions_are_about_one_packet() {
        let none = |_: &str| None;
        assert_eq!(question("tcp/0", none).unwrap(), [Packet { protocol: 6, number: 0 }]);
        assert_eq!(question("proto/47", none).unwrap(), [Packet { protocol: 47, number: 0 }]);
        assert_eq!(question("ping", none).unwrap().len(), 2);
        for text in ["tcp", "tcp/1-2", "icmp", "proto/6", "postgres"] {
            assert!(question(text, none).is_err(), "{text}");
        }
        let two = |_: &str| Some(Ports::of(vec![(0x6_0001, 0x6_0001), (0x6_0005, 0x6_0005)]));
        assert!(question("postgres", two).is_err());
        let one = |_: &str| Some(Ports::of(vec![(0x6_0001, 0x6_0001)]));
        assert_eq!(question("postgres", one).unwrap()[0].to_string(), "tcp/1");
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(Ports::of(vec![(5, 9), (1, 4), (20, 30), (25, 40)]).ranges(), [(1, 9), (20, 40)]);
        assert_eq!(Ports::of(ranges("icmp")).family(), Some(true));
        assert_eq!(Ports::of(ranges("icmpv6/1")).family(), Some(false));
        assert_eq!(Ports::of(ranges("ping")).family(), None);
    }
}
