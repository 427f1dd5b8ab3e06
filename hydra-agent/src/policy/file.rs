//! What a policy file looks like: its keys, and the form of every value in them. What the values mean together is `check`'s
//! matter.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::shape::{At, Entries, Leaf, List, Named, Read, entries, shape, tell, unknown_key};
use super::yaml::{Node, Value};
use crate::diagnostic::{Diagnostic, Place};

shape! {
    /// A policy of hydra: which tier may talk to which.
    File {
        /// The language's version: 1.
        required "version" version: At<Version>,
        /// What the policy is called.
        optional "name" name: At<Title>,
        /// `enforce` (the default), or `audit`: nothing is dropped, everything is judged and counted.
        optional "mode" mode: At<Mode>,
        /// What holds where no rule speaks.
        optional "defaults" defaults: Defaults,
        /// What becomes of a container on networks of two tiers or more that no service names: `allow`, `warn` (the default: it is
        /// listed in `status`) or `deny` (its ports are closed).
        optional "multihome" multihome: At<Multihome>,
        /// What becomes of a network stack that containers of different tiers or services share: `refuse` (the default: its ports
        /// are closed) or `restrict` (it may do what each of them may do).
        optional "shared-stack" shared_stack: At<SharedStack>,
        /// How to create the networks; read live from Docker otherwise.
        optional "networks" networks: Named<Network>,
        /// Named groups of endpoints that the policy treats alike.
        required "tiers" tiers: Named<Tier>,
        /// Who may talk to whom. Every one has a name.
        optional "rules" rules: Entries<Rule>,
        /// The policy's own tests: run on validate, and refused at apply if one fails.
        optional "expect" expect: Entries<Expect>,
    }
}

shape! {
    /// What holds where no rule speaks.
    Defaults {
        /// Inside one declared tier: `allow` (the default), `deny` or `audit`.
        optional "intra-tier" intra_tier: At<Action>,
        /// From this host to anything: `allow` (the default), `deny` or `audit`.
        optional "from-host" from_host: At<Action>,
        /// Everything else: `deny` (the default) or `audit`.
        optional "cross-tier" cross_tier: At<Action>,
    }
}

shape! {
    /// A Docker network.
    Network {
        /// The block of its addresses.
        optional "subnet" subnet: At<Cidr>,
        /// A second block, of the other family.
        optional "subnet6" subnet6: At<Cidr>,
        /// The host's own address in it.
        optional "gateway" gateway: At<Address>,
        /// The part of the subnet that Docker gives addresses from.
        optional "ip-range" ip_range: At<Cidr>,
        /// No way out of the host.
        optional "internal" internal: At<Flag>,
        /// Largest packet in bytes.
        optional "mtu" mtu: At<Mtu>,
        /// Docker's labels.
        optional "labels" labels: Named<At<Text>>,
        /// Docker's driver options.
        optional "options" options: Named<At<Text>>,
        /// It exists already: never made or removed.
        optional "external" external: At<Flag>,
    }
}

shape! {
    /// A named group of endpoints.
    Tier {
        /// What it is for.
        optional "description" description: At<Text>,
        /// Docker networks that it lives on.
        optional "networks" networks: List<At<Text>>,
        /// Linux bridges that it lives on, by interface name.
        optional "bridges" bridges: List<At<Text>>,
        /// The blocks of its networks and bridges, for where there is no Docker to ask.
        optional "subnets" subnets: List<At<Cidr>>,
        /// Blocks of addresses outside this host.
        optional "addresses" addresses: List<At<Cidr>>,
        /// systemd units of this host, by their full names.
        optional "units" units: List<At<Text>>,
        /// `audit`: what no rule allows passes and is recorded.
        optional "mode" mode: At<Mode>,
        /// It may resolve to nothing.
        optional "optional" optional: At<Flag>,
        /// Named parts of it.
        optional "services" services: Named<Service>,
    }
}

shape! {
    /// A named part of a tier.
    Service {
        /// Docker's names of its containers.
        optional "containers" containers: List<At<Text>>,
        /// Its addresses, within the tier's blocks.
        optional "addresses" addresses: List<At<Cidr>>,
        /// A name for use in rules; they limit nothing by themselves.
        optional "ports" ports: List<At<Port>>,
        /// The further networks that it is attached to.
        optional "networks" networks: List<At<Text>>,
    }
}

shape! {
    /// Who may talk to whom, on which ports.
    Rule {
        /// Unique in the policy.
        required "name" name: At<Text>,
        /// Who opens the flow.
        required "from" from: List<Selector>,
        /// Who is called.
        required "to" to: List<Selector>,
        /// On which ports; everything if left out.
        optional "ports" ports: List<At<Port>>,
        /// `allow` (the default), `deny` or `audit`.
        optional "action" action: At<Action>,
        /// New flows per source address, and as many at once: `60/s`, `60/min` or `60/h`. For `allow` rules.
        optional "limit" limit: At<Limit>,
        /// From then on it is as if it were not there (RFC 3339).
        optional "expires" expires: At<Time>,
    }
}

shape! {
    /// A question and the answer that it must have.
    Expect {
        /// A tier, a service, or an address.
        required "from" from: At<Text>,
        /// A tier, a service, or an address.
        required "to" to: At<Text>,
        /// One protocol and port, or one ICMP type.
        required "port" port: At<Port>,
        /// `allowed`, `denied` or `audited`.
        required "verdict" verdict: At<Answer>,
        /// The rule that must decide.
        optional "rule" rule: At<Text>,
    }
}

/// One end of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Selector {
    /// A tier, `tier/service`, or a reserved word.
    Name(At<String>),
    /// An address block.
    Block {
        /// Where it stands.
        place: Place,
        /// The block.
        cidr: Option<At<Cidr>>,
        /// Less these.
        except: Option<List<At<Cidr>>>,
    },
}

impl Read for Selector {
    fn read(node: &Node, problems: &mut Vec<Diagnostic>) -> Option<Self> {
        if let Value::Text(name) = &node.value {
            return Some(Self::Name(At { value: name.clone().into_owned(), place: node.place }));
        }
        if !matches!(node.value, Value::Map(_)) {
            let message = format!("expected a tier, a service, or a block, found {}", node.kind());
            let hint = "write `databases`, `databases/postgres`, or `{ cidr: 10.0.0.0/8 }`";
            tell(problems, Diagnostic::error(message).at(node.place).hint(hint));
            return None;
        }
        let (mut cidr, mut except) = (None, None);
        let before = problems.len();
        for (key, value) in entries(node, problems)? {
            match key.value {
                "cidr" => cidr = At::<Cidr>::read(value, problems),
                "except" => except = List::<At<Cidr>>::read(value, problems),
                _ => unknown_key(&key, &["cidr", "except"], problems),
            }
        }
        if cidr.is_none() && problems.len() == before {
            tell(problems, Diagnostic::error("`cidr` is missing").at(node.place));
        }
        Some(Self::Block { place: node.place, cidr, except })
    }
}

impl JsonSchema for Selector {
    fn schema_name() -> Cow<'static, str> {
        "Selector".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let cidr = generator.subschema_for::<At<Cidr>>();
        let except = generator.subschema_for::<List<At<Cidr>>>();
        json_schema!({
            "description": "a tier, tier/service, any, internal, external, host, unmanaged, or an address block",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "cidr": cidr, "except": except },
                    "required": ["cidr"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// A text of any form.
pub type Text = String;

impl Leaf for Text {
    const EXPECTED: &'static str = "a text";
    fn leaf(value: &Value) -> Result<Self, Option<(String, Option<String>)>> {
        text_of(value).map(str::to_owned)
    }
    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// A scalar's text.
fn text_of<'n>(value: &'n Value) -> Result<&'n str, Option<(String, Option<String>)>> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Bool(true) => Ok("true"),
        Value::Bool(false) => Ok("false"),
        Value::Null | Value::List(_) | Value::Map(_) => Err(None),
    }
}

/// A leaf that is made from a text.
macro_rules! text_leaf {
    ($(#[doc = $doc:literal])* $name:ident($inner:ty), $expected:literal, $schema:tt, $read:expr) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl Leaf for $name {
            const EXPECTED: &'static str = $expected;
            fn leaf(value: &Value) -> Result<Self, Option<(String, Option<String>)>> {
                let read: fn(&str) -> Result<$inner, (String, Option<String>)> = $read;
                read(text_of(value)?).map(Self).map_err(Some)
            }
            fn schema() -> Schema {
                json_schema!($schema)
            }
        }
    };
}

text_leaf! {
    /// The language's version.
    Version(u32), "the version, a number", { "const": 1 },
    |text| match text {
        "1" => Ok(1),
        _ => Err((format!("version `{text}` is unknown"), Some("write `version: 1`".to_owned()))),
    }
}

text_leaf! {
    /// The policy's own name.
    Title(String), "a name", { "type": "string", "maxLength": 63 },
    |text| {
        let bad = text.is_empty() || text.chars().count() > 63 || text.chars().any(char::is_control);
        if bad { Err(("the policy's name is empty, too long or not printable".to_owned(), None)) } else { Ok(text.to_owned()) }
    }
}

text_leaf! {
    /// One entry of a `ports:` list; `ports` reads it.
    Port(String), "a port", { "type": "string" },
    |text| Ok(text.to_owned())
}

text_leaf! {
    /// A block of addresses; a bare address is its own block.
    Cidr(IpNet), "a block of addresses", { "type": "string" },
    block
}

text_leaf! {
    /// One address.
    Address(IpAddr), "an address", { "type": "string" },
    |text| match text.parse::<IpAddr>() {
        Ok(ip) if is_mapped(ip) => Err((format!("`{text}` is an IPv4-mapped IPv6 address"), Some("write the IPv4 address".to_owned()))),
        Ok(ip) => Ok(ip),
        Err(_) => Err((format!("`{text}` is no address"), None)),
    }
}

text_leaf! {
    /// A moment, in Unix seconds.
    Time(i64), "a time", { "type": "string", "format": "date-time" },
    |text| match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(t) => Ok(t.unix_timestamp()),
        Err(_) => Err((format!("`{text}` is no time of RFC 3339"), Some("write `2026-12-01T00:00:00Z`".to_owned()))),
    }
}

text_leaf! {
    /// How many flows may begin.
    Limit(super::limit::Limit), "a number of flows in a time",
    { "type": "string", "pattern": "^0*[1-9][0-9]{0,6}/(s|min|h)$" },
    super::limit::Limit::parse
}

text_leaf! {
    /// A packet size in bytes.
    Mtu(u32), "a number of bytes", { "type": "integer", "minimum": 68, "maximum": 65535 },
    |text| match text.parse::<u32>() {
        Ok(n) if (68..=65_535).contains(&n) => Ok(n),
        Ok(_) | Err(_) => Err((format!("mtu `{text}` is out of range: 68 to 65535"), None)),
    }
}

/// `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(pub bool);

#[expect(clippy::derivable_impls, reason = "the macro that makes the words derives no default")]
impl Default for Multihome {
    fn default() -> Self {
        Self::Warn
    }
}

#[expect(clippy::derivable_impls, reason = "the macro that makes the words derives no default")]
impl Default for SharedStack {
    fn default() -> Self {
        Self::Refuse
    }
}

impl Leaf for Flag {
    const EXPECTED: &'static str = "`true` or `false`";
    fn leaf(value: &Value) -> Result<Self, Option<(String, Option<String>)>> {
        match value {
            Value::Bool(b) => Ok(Self(*b)),
            Value::Text(t) => Err(Some((format!("expected `true` or `false`, found `{t}`"), None))),
            Value::Null | Value::List(_) | Value::Map(_) => Err(None),
        }
    }
    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

/// One of a few words.
macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident, $expected:literal { $($(#[doc = $word_doc:literal])* $variant:ident = $word:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[doc = $word_doc])* $variant,)* }

        impl $name {
            /// The word in the file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl Leaf for $name {
            const EXPECTED: &'static str = $expected;
            fn leaf(value: &Value) -> Result<Self, Option<(String, Option<String>)>> {
                let text = text_of(value)?;
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => {
                        let near = super::suggest::nearest(text, [$($word),*]);
                        let hint = near.map(|n| format!("did you mean `{n}`?"));
                        Err(Some((format!("expected {}, found `{text}`", $expected), hint)))
                    }
                }
            }
            fn schema() -> Schema {
                json_schema!({ "enum": [$($word),*] })
            }
        }
    };
}

words! {
    /// Whether denials are carried out.
    Mode, "`enforce` or `audit`" {
        /// They are.
        Enforce = "enforce",
        /// They are recorded only.
        Audit = "audit",
    }
}

words! {
    /// What becomes of a container on networks of two tiers or more that no service names.
    Multihome, "`allow`, `warn` or `deny`" {
        /// It is on each network what the network makes of it.
        Allow = "allow",
        /// The same, and it is listed.
        Warn = "warn",
        /// Its ports are closed.
        Deny = "deny",
    }
}

words! {
    /// What becomes of a network stack whose members are of different tiers or services.
    SharedStack, "`refuse` or `restrict`" {
        /// Its ports are closed.
        Refuse = "refuse",
        /// It may do what each of its members may do.
        Restrict = "restrict",
    }
}

words! {
    /// What a rule or a default does.
    Action, "`allow`, `deny` or `audit`" {
        /// It passes.
        Allow = "allow",
        /// It ends.
        Deny = "deny",
        /// It passes and is recorded as what it would have been.
        Audit = "audit",
    }
}

words! {
    /// What an `expect` row says the answer is.
    Answer, "`allowed`, `denied` or `audited`" {
        /// It passes.
        Allowed = "allowed",
        /// It does not.
        Denied = "denied",
        /// It passes and is recorded.
        Audited = "audited",
    }
}

/// IPv4-mapped IPv6 (RFC 4291, 2.5.5.2): the tables keep IPv4 addresses that way, so a packet never has one.
fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Reads a block or a bare address.
pub fn block(text: &str) -> Result<IpNet, (String, Option<String>)> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => match text.parse::<IpAddr>() {
            Ok(ip) => IpNet::from(ip),
            Err(_) => {
                return Err((
                    format!("`{text}` is no block of addresses"),
                    Some("write `10.0.0.0/8`, `192.168.1.250` or `fd00::/8`".to_owned()),
                ));
            }
        },
    };
    // Blocks of ::ffff:0:0/96 itself and all that lie in it; a shorter prefix (`::/0`) only happens to hold them.
    if is_mapped(net.addr()) && net.prefix_len() >= 96 {
        let hint = "write the IPv4 block".to_owned();
        return Err((format!("`{text}` is an IPv4-mapped IPv6 block"), Some(hint)));
    }
    if net != net.trunc() {
        let hint = format!("write `{}`", net.trunc());
        return Err((format!("`{text}` has host bits set"), Some(hint)));
    }
    Ok(net)
}
