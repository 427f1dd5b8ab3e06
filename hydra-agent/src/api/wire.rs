//! What goes over the socket: requests and replies, used by both ends. Rows of lists are flat objects whose field names are those of
//! the tables' columns; they are documented in `docs/hydractl.md` and only ever gain fields.

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostics, Severity};

/// The header by which both ends tell each other the layout that they know ([`hydra_common::ABI`]).
pub const ABI_HEADER: &str = "hydra-abi";
/// The header by which the agent tells its version.
pub const VERSION_HEADER: &str = "hydra-version";

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// A policy is enforced, and all of it.
    pub healthy: bool,
    /// The policy's number; 0 before the first.
    pub revision: u32,
    /// The policy's name.
    pub policy: String,
    /// `enforce`, `audit`, or `none` before the first policy.
    pub mode: String,
    /// The kernel's table state that carries it.
    pub generation: u32,
    /// The agent's version.
    pub agent_version: String,
    /// The layout of the tables.
    pub abi: u32,
    /// How the engine answers.
    pub docker: Docker,
    /// What sits on which interface.
    pub hooks: Vec<HookRow>,
    /// What should be enforced and is not.
    pub not_enforced: Vec<NotEnforcedRow>,
    /// Containers whose ports are closed because of what they are.
    #[serde(default)]
    pub closed: Vec<RemarkRow>,
    /// What an operator should look at.
    #[serde(default)]
    pub warnings: Vec<RemarkRow>,
    /// Addresses of containers that hydra knows.
    pub endpoints: u64,
    /// Live flows.
    pub flows: u64,
    /// Room for flows.
    pub flow_capacity: u64,
    /// Seconds for which TCP connections from before are still taken up from their middle.
    #[serde(default)]
    pub pickup_seconds: u32,
    /// Events that the kernel could not hand over; the counters hold them all the same.
    pub events_lost: u64,
}

/// How the engine answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Docker {
    /// `off`, `up` or `down`.
    pub state: String,
    /// Engine version, when up.
    pub version: String,
    /// What the last attempt said, when down.
    pub error: String,
}

/// One program on one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at crate::published::HookView, which it shows")]
pub struct HookRow {
    pub interface: String,
    pub ifindex: u32,
    pub hook: String,
    pub mechanism: String,
    pub program_id: u32,
    pub link_id: u32,
    pub position: u32,
}

/// What is not enforced, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotEnforcedRow {
    /// The interface, container, network or tier.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What there is to know of a container or interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at crate::published::Remark, which it shows")]
pub struct RemarkRow {
    pub what: String,
    pub why: String,
    pub hint: String,
}

/// `GET /v1/endpoints`: one address of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "documented at crate::published::EndpointView, which it shows")]
pub struct EndpointRow {
    pub container: String,
    pub tier: String,
    pub service: String,
    pub network: String,
    pub bridge: String,
    pub port: String,
    pub mac: String,
    pub address: String,
    pub identity: u16,
    pub attached: bool,
}

/// `GET /v1/ports`: one published port of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// The host's address; `0.0.0.0` or `::` for all of its family.
    pub address: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host's port.
    pub port: u16,
    /// The container that it leads to.
    pub container: String,
    /// The container's tier there; `unknown` where that is not certain and the port therefore closed.
    pub tier: String,
    /// Its service within the tier, or empty.
    pub service: String,
    /// The Docker network that the way goes by, or empty.
    pub network: String,
    /// The container's address, or empty where Docker told none.
    pub target: String,
    /// The container's port.
    pub target_port: u16,
    /// The number that the kernel works with.
    pub identity: u16,
    /// For the outside: `allowed`, `denied`, `audited`, or `not judged`.
    pub external: String,
    /// Address blocks of the policy that can reach it, and with `not` those that can't where the outside can.
    pub blocks: String,
    /// Tiers and services of this host that can reach it.
    pub tiers: String,
    /// For containers on networks that the policy does not name, as in `external`.
    pub unmanaged: String,
    /// For this host, as in `external`.
    pub host: String,
    /// What Docker's own rules would do.
    pub docker: String,
}

/// What to leave out of `ports`. Empty fields leave nothing out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortFilter {
    /// Only ports that this tier, service, container or address can reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Only ports of this tier, service or container, or on this host address or block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `tcp/8080`, `tcp` or `8080`: the host's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// At most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// `GET /v1/flows`: one live conversation, seen from the end that opened it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, else `proto/N`.
    pub protocol: String,
    /// Address of the end that opened it.
    pub source: String,
    /// Its port; for ICMP queries the identifier.
    pub source_port: u16,
    /// Its tier.
    pub source_tier: String,
    /// Its service within the tier, or empty.
    pub source_service: String,
    /// Its container, or empty where it is not on this host.
    pub source_container: String,
    /// Address of the end that was called.
    pub destination: String,
    /// Its port; for ICMP queries the request's type.
    pub destination_port: u16,
    /// Its tier.
    pub destination_tier: String,
    /// Its service within the tier, or empty.
    pub destination_service: String,
    /// Its container, or empty where it is not on this host.
    pub destination_container: String,
    /// `allowed` or `audited`.
    pub verdict: String,
    /// Why; for `audited` what enforcing would have said.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// The policy's revision under which it was decided last.
    pub revision: u32,
    /// Wire packets from source to destination.
    pub packets: u64,
    /// Wire bytes from source to destination, Ethernet header included.
    pub bytes: u64,
    /// Wire packets from destination to source.
    pub reply_packets: u64,
    /// Wire bytes from destination to source.
    pub reply_bytes: u64,
    /// `half-open`, `established`, `closing`, `closed` or `reset`.
    pub state: String,
    /// `stack` or `peer`.
    pub path: String,
    /// `published`: to a published port of this host, whose container the destination's names are; what it answers may be counted on
    /// another flow. `carried`: from somebody whose identity is known and whose address is translated. Else empty.
    #[serde(default)]
    pub via: String,
    /// RFC 3339, UTC.
    pub first_seen: String,
    /// RFC 3339, UTC.
    pub last_seen: String,
}

/// `GET /v1/drops`: one packet that was denied, or would have been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRow {
    /// RFC 3339, UTC.
    pub time: String,
    /// `denied`, or `audited` for one that passed all the same.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// As in [`FlowRow`]; `arp` or `ethertype/0x88cc` where the frame is not IP.
    pub protocol: String,
    /// Source address, or empty.
    pub source: String,
    /// Source port, or ICMP identifier.
    pub source_port: u16,
    /// The sender's tier.
    pub source_tier: String,
    /// The sender's service, or empty.
    pub source_service: String,
    /// The sending container, or empty.
    pub source_container: String,
    /// Destination address, or empty.
    pub destination: String,
    /// Destination port, or ICMP type.
    pub destination_port: u16,
    /// The receiver's tier.
    pub destination_tier: String,
    /// The receiver's service, or empty.
    pub destination_service: String,
    /// The receiving container, or empty.
    pub destination_container: String,
    /// Interface whose program decided.
    pub interface: String,
    /// Which program.
    pub hook: String,
    /// The process that asked, as `curl[1234]`, where one was refused at once; else empty.
    pub process: String,
    /// Frame length in bytes.
    pub bytes: u32,
    /// The policy's revision.
    pub revision: u32,
}

/// `GET /v1/drops/totals`: exact counts since the tables were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropTotalRow {
    /// The senders' tier.
    pub source_tier: String,
    /// The receivers' tier.
    pub destination_tier: String,
    /// `denied`, or `audited` for what passed all the same.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// Wire packets.
    pub packets: u64,
    /// Wire bytes.
    pub bytes: u64,
}

/// A line of `GET /v1/drops/follow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FollowLine {
    /// So many packets were not told, because this reader was too slow.
    Lost {
        /// How many.
        lost: u64,
    },
    /// A packet.
    Drop(Box<DropRow>),
}

/// What to leave out of `flows` and `drops`. Empty fields leave nothing out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// A tier, `tier/service`, container, address or address block of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The same of the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `tcp/5432`, `tcp` or `5432`: the destination's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// `allowed`, `audited` or `denied`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// `no-rule` and the others: drops only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// At most so many, the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The query of `GET /v1/policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRequest {
    /// Which; without it the one in force.
    #[serde(default)]
    pub revision: Option<u32>,
}

/// `GET /v1/policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReply {
    /// Its number.
    pub revision: u32,
    /// Its name.
    pub policy: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Tier names.
    pub tiers: Vec<String>,
    /// Services as `tier/service`.
    pub services: Vec<String>,
    /// Rule names, in the order of the file.
    pub rules: Vec<String>,
    /// The text as it was applied.
    pub text: String,
}

/// `POST /v1/policy/apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The policy.
    pub text: String,
    /// What messages call it, a file name most often.
    #[serde(default = "unnamed")]
    pub source: String,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /v1/policy/validate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidateRequest {
    /// The policy.
    pub text: String,
    /// What messages call it.
    #[serde(default = "unnamed")]
    pub source: String,
    /// Look as well whether what the policy names is here.
    #[serde(default)]
    pub live: bool,
}

/// `POST /v1/policy/diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// The policy.
    pub text: String,
    /// What messages call it.
    #[serde(default = "unnamed")]
    pub source: String,
}

fn unnamed() -> String {
    "policy".into()
}

/// The answer to `validate`; a refused policy is an [`ErrorReply`] with diagnostics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateReply {
    /// The policy's name.
    pub policy: String,
    /// Warnings.
    pub warnings: Diagnostics,
}

/// The answer to `diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReply {
    /// The revision that it is compared with; 0 before the first.
    pub revision: u32,
    /// One line per difference; empty: they mean the same.
    pub changes: Vec<String>,
}

/// `POST /v1/policy/rollback`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Which; without it the one before the current.
    #[serde(default)]
    pub revision: Option<u32>,
}

/// `GET /v1/explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// A tier, service, container or address.
    pub from: String,
    /// The same.
    pub to: String,
    /// `tcp/5432`, `ping`, `icmp/8` …
    pub port: String,
}

/// The answer to `explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// As asked.
    pub from: String,
    /// As asked.
    pub to: String,
    /// As asked.
    pub port: String,
    /// The packet that the answer is about: `tcp/5432`.
    pub packet: String,
    /// `allowed`, `denied` or `audited`.
    pub verdict: String,
    /// Why; for `audited` what enforcing would have said.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// Its limit, `60/min` of one source address, or empty. The answer assumes that it is not used up.
    #[serde(default)]
    pub limit: String,
    /// When it ends, RFC 3339 in UTC, or empty.
    #[serde(default)]
    pub expires: String,
    /// The line of the precedence that decided.
    pub line: u8,
    /// Whom `from` stands for: `databases/postgres`.
    pub source: String,
    /// The number that the kernel works with, where an agent answers.
    pub source_identity: Option<u16>,
    /// Whom `to` stands for.
    pub destination: String,
    /// Its number, where an agent answers.
    pub destination_identity: Option<u16>,
    /// The policy's revision; 0 where a file answers.
    pub revision: u32,
    /// A sentence for people.
    pub why: String,
    /// The container that the called port is published for, and the port there: `web tcp/80`; empty where it is none.
    #[serde(default)]
    pub published: String,
    /// What Docker's own layers would do, where an agent answers.
    pub docker: String,
    /// Whether it is enforced on this host. Without an agent it is not known.
    pub enforced: Option<bool>,
    /// Why it is not, or empty.
    pub not_enforced: String,
}

impl Explanation {
    /// No rule decided.
    pub(crate) fn no_rule(&mut self) {
        self.rule.clear();
        self.limit.clear();
        self.expires.clear();
    }
}

/// The body of every reply that is not 2xx.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What happened to what.
    pub error: String,
    /// What mends it, or empty.
    pub hint: String,
    /// The policy's problems, where it is refused.
    #[serde(default, skip_serializing_if = "Diagnostics::is_empty")]
    pub diagnostics: Diagnostics,
}

/// What is said of a policy with these problems.
pub fn refused(diagnostics: &Diagnostics) -> String {
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
    let problems = if errors == 1 { "1 problem".to_owned() } else { format!("{errors} problems") };
    format!("the policy `{}` is refused: {problems}", diagnostics.source())
}
