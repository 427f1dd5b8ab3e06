//! `explain`: what the kernel does with a packet, and why. The verdict is the verdict function's, over the rows that are in the
//! kernel and the identities of living endpoints.

mod docker;
mod ends;
mod published;
mod why;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hydra_common::id::Identity;
use hydra_common::verdict::{Reason, Verdict};

pub(super) use self::docker::binding;
pub(super) use self::ends::{End, named};
use super::App;
use super::extract::{Asked, Refusal};
use super::read::no_policy;
use super::wire::{ExplainRequest, Explanation};
use crate::policy::explain::{Answer, Question, explain_identities};
use crate::policy::model::{Model, Party};
use crate::policy::rows::Owner;
use crate::policy::{rfc3339, unix_now};
use crate::published::{Applied, Published, Remark};

/// What begins a note on what the kernel does not judge.
const NOT_ENFORCED: &str = "not enforced here: ";

pub(super) async fn explain(
    State(app): State<Arc<App>>,
    Asked(asked): Asked<ExplainRequest>,
) -> Result<Json<Explanation>, Refusal> {
    let state = app.state();
    let applied = state.applied.as_deref().ok_or_else(no_policy)?;
    answer(&state, applied, &asked).map(Json)
}

/// An answer without an agent: the policy's own. A `ping` may be answered differently by family: the worse answer counts.
pub(crate) fn of_file(asked: &ExplainRequest, answers: &[Answer]) -> Explanation {
    let badness = |a: &Answer| match a.verdict.as_str() {
        "allowed" => 0,
        "audited" => 1,
        _ => 2,
    };
    let Some(answer) = answers.iter().max_by_key(|a| badness(a)) else { return Explanation::default() };
    let mut why = why::why(answer);
    for other in answers.iter().filter(|a| a.port != answer.port) {
        let _ = write!(why, "; `{}` is {}: {}", other.port, other.verdict, why::why(other));
    }
    let not_enforced = answer.notes.iter().find_map(|n| n.strip_prefix(NOT_ENFORCED)).unwrap_or_default();
    Explanation {
        from: asked.from.clone(),
        to: asked.to.clone(),
        port: asked.port.clone(),
        packet: answer.port.clone(),
        verdict: answer.verdict.clone(),
        reason: answer.reason.clone(),
        rule: answer.rule.clone(),
        limit: answer.limit.map(|l| l.to_string()).unwrap_or_default(),
        expires: answer.expires.map(rfc3339).unwrap_or_default(),
        line: answer.line,
        source: answer.from_owner.clone(),
        destination: answer.to_owner.clone(),
        why,
        enforced: (!not_enforced.is_empty()).then_some(false),
        not_enforced: not_enforced.into(),
        ..Explanation::default()
    }
}

/// The agent's answer.
fn answer(state: &Published, applied: &Applied, asked: &ExplainRequest) -> Result<Explanation, Refusal> {
    let Applied { model, compiled, revision, .. } = applied;
    let from = End::find(state, applied, &asked.from)?;
    let to = End::find(state, applied, &asked.to)?;
    let (question, identities) = question(model, &from, &to, &asked.port)?;
    if let Some(port) = published::port(state, &asked.to, &from, &to, &question) {
        return Ok(published::answer(state, applied, asked, &from, identities.0, port));
    }
    let told = explain_identities(model, compiled, &question, identities, unix_now());
    let mut explanation = of_file(asked, &told);
    explanation.source = from.owner.to_string();
    explanation.destination = to.owner.to_string();
    explanation.source_identity = Some(identities.0.0);
    explanation.destination_identity = Some(identities.1.0);
    explanation.revision = *revision;
    if let Some(why) = from.closed.or(to.closed) {
        closed(&mut explanation, compiled.audit, why, from.closed.is_some());
    } else if from.unknown || (to.unknown && from.owner != Owner::Host) {
        unknown(&mut explanation, compiled.audit, from.unknown);
    }
    let passes = explanation.verdict != Verdict::Denied.as_str();
    let ends = ((asked.from.as_str(), &from.docker(model)), (asked.to.as_str(), &to.docker(model)));
    explanation.docker = docker::sentence(&state.snapshot, ends.0, ends.1, passes);
    let not_enforced = not_enforced(state, model, &from, &to);
    explanation.enforced = Some(not_enforced.is_none());
    explanation.not_enforced = not_enforced.unwrap_or_default();
    Ok(explanation)
}

/// The question, between the two addresses (or names) of the ends that a packet would most likely have: of one family, and if there
/// is one, on a network that both share.
fn question(
    model: &Model,
    from: &End<'_>,
    to: &End<'_>,
    port: &str,
) -> Result<(Question, (Identity, Identity)), Refusal> {
    let parties = |end: &End<'_>| -> Vec<(Party, Identity)> {
        if end.addresses.is_empty() {
            return vec![(Party::Name(end.owner.clone()), end.identity)];
        }
        end.addresses.iter().map(|(ip, identity)| (Party::Address(*ip), *identity)).collect()
    };
    let (sources, destinations) = (parties(from), parties(to));
    let mut pairs: Vec<_> = sources.iter().flat_map(|s| destinations.iter().map(move |d| (s, d))).collect();
    // Stable: otherwise in the order of the addresses.
    pairs.sort_by_key(|((s, _), (d, _))| !share_network(from, s, to, d));
    let mut refused = None;
    for ((source, source_identity), (destination, destination_identity)) in pairs {
        match Question::between(model, source.clone(), destination.clone(), port) {
            Ok(question) => return Ok((question, (*source_identity, *destination_identity))),
            Err(no) => refused = refused.or(Some(no)),
        }
    }
    let no = refused.map(|no| (no.message, no.hint.unwrap_or_default())).unwrap_or_default();
    Err(Refusal::bad(no.0, no.1))
}

fn share_network(from: &End<'_>, source: &Party, to: &End<'_>, destination: &Party) -> bool {
    let network = |end: &End<'_>, party: &Party| match party {
        Party::Name(_) => None,
        Party::Address(ip) => end.endpoints.iter().find(|e| is(&e.address, *ip)).map(|e| e.bridge.clone()),
    };
    let (a, b) = (network(from, source), network(to, destination));
    a.is_some() && a == b
}

fn is(text: &str, ip: IpAddr) -> bool {
    text.parse() == Ok(ip)
}

/// Line 1: a port that is closed.
fn closed(explanation: &mut Explanation, audit: bool, why: &Remark, source: bool) {
    let (reason, end) = if source {
        (Reason::UnknownSource, &mut explanation.source)
    } else {
        (Reason::UnknownDestination, &mut explanation.destination)
    };
    "unknown".clone_into(end);
    let verdict = if audit { Verdict::Audited } else { Verdict::Denied };
    explanation.why = why.to_string();
    explanation.reason = reason.as_str().into();
    explanation.verdict = verdict.as_str().into();
    explanation.no_rule();
    explanation.line = 1;
}

/// Line 1: an address in a network of a tier that no endpoint has.
fn unknown(explanation: &mut Explanation, audit: bool, source: bool) {
    let (reason, who) = if source {
        (Reason::SpoofedAddress, &explanation.from)
    } else {
        (Reason::UnknownDestination, &explanation.to)
    };
    let verdict = if audit { Verdict::Audited } else { Verdict::Denied };
    explanation.why =
        format!("`{who}` lies in a network of a tier, but no endpoint there is known to have it");
    explanation.reason = reason.as_str().into();
    explanation.verdict = verdict.as_str().into();
    explanation.no_rule();
    explanation.line = 1;
}

/// Why the verdict is not enforced on this host, if it isn't.
fn not_enforced(state: &Published, model: &Model, from: &End<'_>, to: &End<'_>) -> Option<String> {
    if from.closed.is_some() || to.closed.is_some() {
        return None;
    }
    let reserved = |o: &Owner| matches!(o, Owner::External | Owner::Host | Owner::Unmanaged);
    let (source, destination) = (&from.owner, &to.owner);
    if reserved(source) && reserved(destination) {
        return Some(format!("`{source}` to `{destination}` is never judged"));
    }
    if !from.is_here(model) && !to.is_here(model) {
        return Some(format!("neither `{source}` nor `{destination}` is on this host"));
    }
    let names: Vec<String> = [from, to].iter().flat_map(|end| end.names(model)).collect();
    if let Some(known) = state.not_enforced.iter().find(|n| names.contains(&n.what)) {
        return Some(format!("{}: {}", known.what, known.why));
    }
    // One port with programs is enough: it judges for both.
    let mut ends = [from, to].into_iter().filter(|end| !end.endpoints.is_empty()).peekable();
    let bare = |end: &End<'_>| end.endpoints.iter().find(|e| !e.attached).map(|e| e.container.clone());
    ends.peek()?;
    let bare: Option<Vec<String>> = ends.map(bare).collect();
    bare.and_then(|b| b.into_iter().next())
        .map(|container| format!("the port of `{container}` has no programs yet"))
}
