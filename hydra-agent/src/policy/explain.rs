//! Answers questions: may FROM talk to TO on PORT, on which line of the precedence is that decided, and is it enforced here. The
//! answer is the verdict function's, over the policy's own tables.

use std::fmt;
use std::net::IpAddr;

use hydra_common::decide::{Ruling, ruling};
use hydra_common::id::Identity;
use hydra_common::verdict::{Reason, Verdict};
use serde::Serialize;

use super::limit::Limit;
use super::model::{Model, Party, Rule};
use super::ports::{self, Packet};
use super::precedence::line;
use super::rows::{Compiled, Owner};
use super::tables::{PolicyTables, seconds};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who opens the flow.
    pub from: Party,
    /// Who is called.
    pub to: Party,
    /// What is sent: one packet, or for `ping` one of each family.
    pub packets: Vec<Packet>,
}

/// Why a question can't be asked: a message and a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoQuestion {
    /// What is wrong with it.
    pub message: String,
    /// How to ask.
    pub hint: Option<String>,
}

impl fmt::Display for NoQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NoQuestion {}

impl Question {
    /// Reads a question's three words.
    pub fn read(model: &Model, from: &str, to: &str, port: &str) -> Result<Self, NoQuestion> {
        let party = |text| model.party(text).map_err(|(message, hint)| NoQuestion { message, hint });
        Self::between(model, party(from)?, party(to)?, port)
    }

    /// Reads a question's port; both ends are known.
    pub fn between(model: &Model, from: Party, to: Party, port: &str) -> Result<Self, NoQuestion> {
        let packets = ports::question(port, |name| model.ports_of(name))
            .map_err(|r| NoQuestion { message: r.message, hint: r.hint })?;
        let packets =
            packets_between(&from, &to, &packets).map_err(|message| NoQuestion { message, hint: None })?;
        Ok(Self { from, to, packets })
    }
}

/// The packets that can go between two ends: those of the family that an address says.
pub(super) fn packets_between(from: &Party, to: &Party, packets: &[Packet]) -> Result<Vec<Packet>, String> {
    let family = |party: &Party| match party {
        Party::Address(ip) => Some(ip.is_ipv4()),
        Party::Name(_) => None,
    };
    let (a, b) = (family(from), family(to));
    if let (Some(a), Some(b)) = (a, b)
        && a != b
    {
        return Err(format!("`{from}` and `{to}` are of two families: no packet goes between them"));
    }
    let family = a.or(b);
    let fits = |p: &Packet| p.family().is_none() || family.is_none() || p.family() == family;
    let packets: Vec<Packet> = packets.iter().copied().filter(fits).collect();
    if packets.is_empty() {
        let (is, other) = if family == Some(true) { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
        return Err(format!("the addresses are {is}, the ICMP is of {other}"));
    }
    Ok(packets)
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// FROM as asked.
    pub from: String,
    /// TO as asked.
    pub to: String,
    /// The packet, as `tcp/5432`.
    pub port: String,
    /// `allowed`, `denied` or `audited`: what the kernel does.
    pub verdict: String,
    /// What enforcing does where the whole policy is only audited; else the same as `verdict`.
    pub enforced_verdict: String,
    /// The reason's word; for an audited packet what enforcing would have said.
    pub reason: String,
    /// The rule that decided, or empty.
    pub rule: String,
    /// The line of the precedence that decided, 3 to 7.
    pub line: u8,
    /// Whose FROM is.
    pub from_owner: String,
    /// Whose TO is.
    pub to_owner: String,
    /// Unix seconds at which the answer may change, because a rule expires.
    pub until: Option<i64>,
    /// How many flows of one source address the deciding rule lets begin, as `60/min`. The answer assumes that it is not used up.
    pub limit: Option<Limit>,
    /// Unix seconds from which on the deciding rule is as if it were not there.
    pub expires: Option<i64>,
    /// What else there is to know: that it is not enforced here, that a mode softened it.
    pub notes: Vec<String>,
}

impl Answer {
    /// Whether the packet passes: `explain` exits with 0 then.
    pub fn passes(&self) -> bool {
        self.verdict != Verdict::Denied.as_str()
    }
}

/// Asks. Several answers only where a `ping` is answered differently by family.
pub fn explain(model: &Model, compiled: &Compiled, question: &Question, now: i64) -> Vec<Answer> {
    let from = identity_of(compiled, &question.from);
    let to = identity_of(compiled, &question.to);
    explain_identities(model, compiled, question, (from, to), now)
}

/// Asks about identities that the caller knows better than the policy's text: the agent, of live endpoints.
pub fn explain_identities(
    model: &Model,
    compiled: &Compiled,
    question: &Question,
    (from, to): (Identity, Identity),
    now: i64,
) -> Vec<Answer> {
    let tables = PolicyTables::new(compiled);
    let owner = |identity: Identity| {
        compiled.identities.get(&identity).map_or(Owner::External, |(class, _)| class.owner.clone())
    };
    let (from_owner, to_owner) = (owner(from), owner(to));
    let mut answers: Vec<Answer> = Vec::new();
    for packet in &question.packets {
        let ruling = ruling(&tables, 1, from, to, packet.selector(), seconds(now));
        let verdict = softened(compiled.audit, ruling.verdict);
        let answer = Answer {
            from: question.from.to_string(),
            to: question.to.to_string(),
            port: packet.to_string(),
            verdict: verdict.as_str().to_owned(),
            enforced_verdict: ruling.verdict.as_str().to_owned(),
            reason: ruling.reason.as_str().to_owned(),
            rule: compiled.rule(ruling.rule).unwrap_or_default().to_owned(),
            line: line_of(model, ruling),
            from_owner: from_owner.to_string(),
            to_owner: to_owner.to_string(),
            until: (ruling.until != 0).then_some(i64::from(ruling.until)),
            limit: deciding(model, ruling).and_then(|r| r.limit),
            expires: deciding(model, ruling).and_then(|r| r.expires),
            notes: notes(model, &from_owner, &to_owner, ruling, verdict),
        };
        let same = |a: &Answer| {
            (a.verdict.as_str(), a.rule.as_str(), a.line)
                == (answer.verdict.as_str(), answer.rule.as_str(), answer.line)
        };
        if !answers.iter().any(same) {
            answers.push(answer);
        }
    }
    answers
}

/// Asks about many pairs, verdicts alone: what the kernel does, the mode of the whole policy included.
#[derive(Debug)]
pub struct Judge<'c> {
    tables: PolicyTables<'c>,
    audit: bool,
    now: u32,
}

impl<'c> Judge<'c> {
    /// Over a policy's rows at a moment in Unix seconds.
    pub fn new(compiled: &'c Compiled, now: i64) -> Self {
        Self { tables: PolicyTables::new(compiled), audit: compiled.audit, now: seconds(now) }
    }

    /// The verdict on a flow between two identities.
    pub fn verdict(&self, from: Identity, to: Identity, packet: Packet) -> Verdict {
        let ruling = ruling(&self.tables, 1, from, to, packet.selector(), self.now);
        softened(self.audit, ruling.verdict)
    }
}

/// The identity of one end of a question, as far as the policy's text tells.
pub fn identity_of(compiled: &Compiled, party: &Party) -> Identity {
    match party {
        Party::Name(owner) => compiled.identity(owner, None).unwrap_or(Identity::UNKNOWN),
        Party::Address(ip) => compiled.identity_of_address(*ip),
    }
}

/// Whose an address is, as far as the policy's text tells.
pub fn owner_of_address(compiled: &Compiled, ip: IpAddr) -> Owner {
    let identity = compiled.identity_of_address(ip);
    compiled.identities.get(&identity).map_or(Owner::External, |(class, _)| class.owner.clone())
}

/// The mode of the whole policy: nothing is dropped.
fn softened(audit: bool, verdict: Verdict) -> Verdict {
    if audit && verdict == Verdict::Denied { Verdict::Audited } else { verdict }
}

/// The rule that decided, if one did.
fn deciding(model: &Model, ruling: Ruling) -> Option<&Rule> {
    model.rules.get(usize::from(ruling.rule).wrapping_sub(1))
}

/// The line of the precedence on which a ruling was made.
fn line_of(model: &Model, ruling: Ruling) -> u8 {
    match deciding(model, ruling) {
        Some(rule) => line(rule.action),
        None if matches!(ruling.reason, Reason::IntraTier | Reason::FromHost) => 6,
        None => 7,
    }
}

fn notes(model: &Model, from: &Owner, to: &Owner, ruling: Ruling, verdict: Verdict) -> Vec<String> {
    let mut notes = Vec::new();
    let reserved = |o: &Owner| matches!(o, Owner::External | Owner::Host | Owner::Unmanaged);
    let here = |o: &Owner| model.tier(o.tier()).is_some_and(super::model::Tier::is_here);
    if reserved(from) && reserved(to) {
        notes.push(format!("not enforced here: `{from}` to `{to}` is never judged"));
    } else if !here(from) && !here(to) {
        notes.push(format!("not enforced here: neither `{from}` nor `{to}` is on this host"));
    }
    let rule = deciding(model, ruling);
    if ruling.verdict == Verdict::Denied && verdict == Verdict::Audited {
        notes.push("the policy's `mode: audit` lets it pass: enforced, it would be denied".to_owned());
    } else if verdict == Verdict::Audited {
        let would = match (rule, ruling.reason) {
            (Some(rule), reason) => {
                format!("rule `{}` only records: without it the answer is `{}`", rule.name, reason.as_str())
            }
            (None, Reason::NoRule) => "it passes and is recorded: enforced, it would be denied".to_owned(),
            (None, _) => "it passes and is recorded, as `defaults` says".to_owned(),
        };
        notes.push(would);
    }
    notes
}
