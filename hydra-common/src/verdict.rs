//! What hydra can say about a packet, and why.

/// The answer for one packet. `Audited` passes, and is recorded as what it would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[must_use]
pub enum Verdict {
    /// Not allowed: the packet ends here.
    Denied = 0,
    /// Allowed: the next program or the kernel's own rules decide.
    Allowed = 1,
    /// Passes as if hydra were not there; the reason says what enforcing would have meant.
    Audited = 2,
}

impl Verdict {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Denied, Self::Allowed, Self::Audited];

    /// The word that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Allowed => "allowed",
            Self::Audited => "audited",
        }
    }

    /// From a table row. Anything unknown is a denial.
    #[inline(always)]
    pub const fn from_row(n: u8) -> Self {
        match n {
            1 => Self::Allowed,
            2 => Self::Audited,
            _ => Self::Denied,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $word:literal;)*) => {
        /// Why. One number for counters, events, logs, metrics and tests.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $n,)* }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word that operators see.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// From a table row. Anything unknown reads as an inconsistent table.
            #[inline(always)]
            pub const fn from_row(n: u8) -> Self {
                match n { $($n => Self::$name,)* _ => Self::BadTable }
            }
        }
    };
}

reasons! {
    /// The tables contradict themselves or lack a row that must be there.
    BadTable = 0, "bad-table";
    // What passes.
    /// A rule of the policy decided (line 3, 4 or 5 of the precedence); the rule's number says which.
    Rule = 1, "rule";
    /// A packet of a flow that was allowed before, or its reply (line 2).
    Reply = 2, "reply";
    /// Both ends are in one declared tier (line 6).
    IntraTier = 3, "intra-tier";
    /// This host opened it (line 6).
    FromHost = 4, "from-host";
    /// An ICMP error that belongs to a live flow (line 2).
    Related = 5, "related";
    /// ARP with true addresses: passes before line 1.
    Arp = 6, "arp";
    /// Neighbour discovery with true addresses (RFC 4861): passes before line 1.
    Neighbour = 7, "neighbour-discovery";
    /// DHCP and DHCPv6 of a client: passes before line 1.
    Dhcp = 8, "dhcp";
    /// Multicast listener reports (RFC 3810), which neighbour discovery needs behind a snooping bridge: before line 1.
    Mld = 9, "multicast-listener";
    /// Neither end is a container that the policy protects: not judged.
    NotJudged = 10, "not-judged";
    // Line 7.
    /// No rule allows it (line 7).
    NoRule = 16, "no-rule";
    // Line 4.
    /// Every rule that allows it has its limit used up for this source (line 4).
    Limit = 17, "limit";
    // Line 2.
    /// A TCP packet from the middle of a connection that is not known (line 2).
    NoConnection = 18, "no-connection";
    // Line 1: what claims to be what it isn't, or can't be understood.
    /// The frame's source MAC is not the port's.
    SpoofedMac = 32, "spoofed-mac";
    /// The source address belongs to another container, or to none on this port.
    SpoofedAddress = 33, "spoofed-address";
    /// An ARP sender field that is not the port's own.
    SpoofedArp = 34, "spoofed-arp";
    /// A neighbour discovery message that claims another's address.
    SpoofedNeighbour = 35, "spoofed-neighbour";
    /// A router advertisement or a redirect from a container.
    RouterMessage = 36, "router-message";
    /// The frame's destination MAC is neither the gateway's nor the destination's.
    WrongMac = 37, "wrong-mac";
    /// The sending port is not known yet.
    UnknownSource = 38, "unknown-source";
    /// The destination lies in a tier's network, but no endpoint of it is known.
    UnknownDestination = 39, "unknown-destination";
    /// A header is cut short or contradicts itself.
    Malformed = 48, "malformed";
    /// An EtherType that hydra does not judge.
    EtherType = 49, "ethertype";
    /// A VLAN tag on a port that carries none.
    Vlan = 50, "vlan";
    /// A piece of a fragmented datagram.
    Fragment = 51, "fragment";
    /// An IPv6 header chain that is too long or holds a header that hydra does not walk.
    HeaderChain = 52, "header-chain";
    /// An IPv4 source route option (RFC 7126, 4.3 and 4.4), or an IPv6 routing header of type 0 (RFC 5095).
    SourceRoute = 53, "source-route";
    /// An ICMP error that belongs to no live flow.
    UnmatchedError = 54, "unmatched-icmp-error";
    /// A loopback address on a wire (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3).
    Loopback = 55, "loopback";
    // The agent's and the tables' own.
    /// The flow table has no room.
    FlowTableFull = 64, "flow-table-full";
    /// No policy has been applied yet.
    NoPolicy = 65, "no-policy";
}

/// Where a program sits. As wide as what stands beside it in [`crate::decide::At`], so that all of that is written: before Linux 6.3 no
/// function is given memory of the stack that is not (commit 6715df8d5d24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Hook {
    /// TC ingress of a container's host-side veth: everything that the container sends.
    PortIn = 0,
    /// TC egress of the same veth: everything that the container receives.
    PortOut = 1,
    /// TC ingress of the bridge device: routed traffic of ports that have no program yet.
    BridgeIn = 2,
    /// TC egress of the bridge device: routed traffic to ports that have no program yet.
    BridgeOut = 3,
    /// TC ingress of an interface to the outside, or of a bridge that the policy does not name: traffic to published ports.
    UplinkIn = 4,
    /// A cgroup's connect and sendmsg: a process opens a flow.
    Connect = 5,
    /// A cgroup's ingress: what a process on this host's own stack receives.
    CgroupIn = 6,
    /// A cgroup's egress: what it sends.
    CgroupOut = 7,
}

impl Hook {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::PortIn,
        Self::PortOut,
        Self::BridgeIn,
        Self::BridgeOut,
        Self::UplinkIn,
        Self::Connect,
        Self::CgroupIn,
        Self::CgroupOut,
    ];

    /// Those of interfaces.
    pub const INTERFACES: [Self; 5] =
        [Self::PortIn, Self::PortOut, Self::BridgeIn, Self::BridgeOut, Self::UplinkIn];

    /// The word that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PortIn => "port-in",
            Self::PortOut => "port-out",
            Self::BridgeIn => "bridge-in",
            Self::BridgeOut => "bridge-out",
            Self::UplinkIn => "uplink-in",
            Self::Connect => "connect",
            Self::CgroupIn => "cgroup-in",
            Self::CgroupOut => "cgroup-out",
        }
    }

    /// From an event.
    pub const fn from_row(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::PortIn),
            1 => Some(Self::PortOut),
            2 => Some(Self::BridgeIn),
            3 => Some(Self::BridgeOut),
            4 => Some(Self::UplinkIn),
            5 => Some(Self::Connect),
            6 => Some(Self::CgroupIn),
            7 => Some(Self::CgroupOut),
            _ => None,
        }
    }
}
