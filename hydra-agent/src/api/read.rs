//! Requests that change nothing, and the table of all routes.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use hydra_common::tables::Gauge;
use hydra_common::verdict::{Reason, Verdict};
use ipnet::IpNet;
use tokio::sync::broadcast::error::RecvError;

use super::extract::{Asked, Refusal, no_method, no_route};
use super::view;
use super::wire::{
    ABI_HEADER, Docker, DropRow, DropTotalRow, EndpointRow, Filter, FlowRow, FollowLine, HookRow,
    NotEnforcedRow, PolicyReply, RemarkRow, Status, VERSION_HEADER,
};
use super::{App, change, explain, ports};
use crate::inventory::snapshot::DockerState;
use crate::published::{Published, Reader, Remark, RevisionView};

/// All routes of the unix socket.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/ports", get(ports::ports))
        .route("/v1/flows", get(flows))
        .route("/v1/drops", get(drops))
        .route("/v1/drops/totals", get(totals))
        .route("/v1/drops/follow", get(follow))
        .route("/v1/policy", get(policy))
        .route("/v1/policy/history", get(history))
        .route("/v1/policy/validate", post(change::validate))
        .route("/v1/policy/diff", post(change::diff))
        .route("/v1/policy/apply", post(change::apply))
        .route("/v1/policy/rollback", post(change::rollback))
        .route("/v1/explain", get(explain::explain))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        // Bodies are read, and limited, in `extract`.
        .layer(DefaultBodyLimit::disable())
        .layer(map_response(introduce))
        .with_state(app)
}

/// Says who answers, so that the other end can tell a version that it does not know from a mistake.
async fn introduce(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(ABI_HEADER, HeaderValue::from(hydra_common::ABI));
    headers.insert(VERSION_HEADER, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    response
}

impl App {
    /// The agent's state now.
    pub(super) fn state(&self) -> Arc<Published> {
        self.handle.state.borrow().clone()
    }

    /// Reads the kernel's tables off the async threads.
    pub(super) async fn tables<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Reader) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let reader = self.handle.reader.clone();
        match tokio::task::spawn_blocking(move || read(&*reader)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(Refusal::failed(format!("the kernel's tables cannot be read: {e}"))),
            Err(e) => Err(Refusal::failed(format!("the request broke: {e}"))),
        }
    }
}

async fn status(State(app): State<Arc<App>>) -> Json<Status> {
    let state = app.state();
    let read = app
        .tables(|r| {
            let second = u32::try_from(r.clocks().0 / 1_000_000_000).unwrap_or(u32::MAX);
            Ok((r.flows()?.len() as u64, r.counters()?.gauge(Gauge::EventsLost), second))
        })
        .await;
    let mut not_enforced: Vec<_> = state
        .not_enforced
        .iter()
        .map(|n| NotEnforcedRow { what: n.what.clone(), why: n.why.clone() })
        .collect();
    if state.applied.is_none() && not_enforced.is_empty() {
        let why = "none has been applied: nothing is managed";
        not_enforced.push(NotEnforcedRow { what: "policy".into(), why: why.into() });
    }
    let (flows, events_lost, second) = read.unwrap_or_else(|refusal| {
        not_enforced.push(NotEnforcedRow { what: "tables".into(), why: refusal.text().into() });
        (0, 0, u32::MAX)
    });
    let applied = state.applied.as_deref();
    Json(Status {
        healthy: not_enforced.is_empty(),
        revision: applied.map_or(0, |a| a.revision),
        policy: applied.map_or_else(String::new, |a| a.model.name.clone()),
        mode: applied.map_or("none", |a| mode(a.compiled.audit)).into(),
        generation: applied.map_or(0, |a| a.generation),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        abi: hydra_common::ABI,
        docker: docker(&state.snapshot.docker),
        hooks: state
            .hooks
            .iter()
            .map(|h| HookRow {
                interface: h.interface.clone(),
                ifindex: h.ifindex,
                hook: h.hook.clone(),
                mechanism: h.mechanism.clone(),
                program_id: h.program_id,
                link_id: h.link_id,
                position: h.position,
            })
            .collect(),
        not_enforced,
        closed: state.closed.iter().map(remark).collect(),
        warnings: state.warnings.iter().map(remark).collect(),
        endpoints: state.endpoints.len() as u64,
        flows,
        flow_capacity: state.flow_capacity.into(),
        pickup_seconds: state.pickup_until.saturating_sub(second),
        events_lost,
    })
}

fn remark(remark: &Remark) -> RemarkRow {
    let Remark { what, why, hint } = remark.clone();
    RemarkRow { what, why, hint }
}

fn mode(audit: bool) -> &'static str {
    if audit { "audit" } else { "enforce" }
}

fn docker(state: &DockerState) -> Docker {
    match state {
        DockerState::Off => Docker { state: "off".into(), ..Docker::default() },
        DockerState::Up { version } => {
            Docker { state: "up".into(), version: version.clone(), error: String::new() }
        }
        DockerState::Down { error } => {
            Docker { state: "down".into(), version: String::new(), error: error.clone() }
        }
    }
}

async fn endpoints(State(app): State<Arc<App>>) -> Json<Vec<EndpointRow>> {
    Json(app.state().endpoints.iter().map(view::endpoint).collect())
}

async fn policy(State(app): State<Arc<App>>) -> Result<Json<PolicyReply>, Refusal> {
    let state = app.state();
    let applied = state.applied.as_deref().ok_or_else(no_policy)?;
    Ok(Json(PolicyReply {
        revision: applied.revision,
        policy: applied.model.name.clone(),
        mode: mode(applied.compiled.audit).into(),
        tiers: applied.model.tiers.iter().map(|t| t.name.clone()).collect(),
        services: applied
            .model
            .tiers
            .iter()
            .flat_map(|t| t.services.iter().map(|s| format!("{}/{}", t.name, s.name)))
            .collect(),
        rules: applied.compiled.rules.clone(),
        text: applied.text.clone(),
    }))
}

/// Nothing has been applied yet.
pub(super) fn no_policy() -> Refusal {
    let status = axum::http::StatusCode::CONFLICT;
    Refusal::new(status, "the agent has no policy yet", "`hydractl policy apply FILE`")
}

async fn history(State(app): State<Arc<App>>) -> Json<Vec<RevisionView>> {
    Json(app.state().history.clone())
}

async fn flows(
    State(app): State<Arc<App>>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Vec<FlowRow>>, Refusal> {
    let filter = Match::new(filter, false)?;
    let names = app.memory.names(&app.state());
    let rows = app
        .tables(move |reader| {
            let mut flows = reader.flows()?;
            flows.sort_by_key(|(_, flow)| std::cmp::Reverse(flow.seen));
            let clocks = reader.clocks();
            let rows = flows.iter().map(|(key, flow)| names.flow(key, flow, clocks));
            Ok(rows.filter(|row| filter.flow(row)).take(filter.limit).collect())
        })
        .await?;
    Ok(Json(rows))
}

async fn drops(
    State(app): State<Arc<App>>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Vec<DropRow>>, Refusal> {
    let filter = Match::new(filter, true)?;
    let names = app.memory.names(&app.state());
    let clocks = app.handle.reader.clocks();
    let newest = app.memory.drops().into_iter().rev().map(|event| names.drop(&event, clocks));
    let mut rows: Vec<_> = newest.filter(|row| filter.drop(row)).take(filter.limit).collect();
    rows.reverse();
    Ok(Json(rows))
}

async fn totals(State(app): State<Arc<App>>) -> Result<Json<Vec<DropTotalRow>>, Refusal> {
    let names = app.memory.names(&app.state());
    let counters = app.tables(|reader| reader.counters()).await?;
    Ok(Json(app.memory.totals(&counters, &names)))
}

/// Drops as they come, a JSON object on each line, until the reader or the agent goes.
async fn follow(State(app): State<Arc<App>>, Asked(filter): Asked<Filter>) -> Result<Response, Refusal> {
    let filter = Match::new(filter, true)?;
    let events = app.handle.events.subscribe();
    let (state, names) = (app.handle.state.clone(), app.memory.names(&app.state()));
    let all = (app, events, filter, state, names);
    let lines = stream::unfold(all, |(app, mut events, filter, mut state, mut names)| async move {
        loop {
            let event = tokio::select! {
                () = app.stop.cancelled() => return None,
                event = events.recv() => event,
            };
            let line = match event {
                Ok(event) if Verdict::from_row(event.verdict) == Verdict::Allowed => continue,
                Ok(event) => {
                    if state.has_changed().unwrap_or(false) {
                        names = app.memory.names(&state.borrow_and_update().clone());
                    }
                    let row = names.drop(&event, app.handle.reader.clocks());
                    if !filter.drop(&row) {
                        continue;
                    }
                    FollowLine::Drop(Box::new(row))
                }
                Err(RecvError::Lagged(lost)) => FollowLine::Lost { lost },
                Err(RecvError::Closed) => return None,
            };
            let Ok(mut text) = serde_json::to_vec(&line) else { return None };
            text.push(b'\n');
            return Some((Ok::<_, Infallible>(Bytes::from(text)), (app, events, filter, state, names)));
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// A [`Filter`] that was understood.
struct Match {
    from: Option<Who>,
    to: Option<Who>,
    protocol: Option<String>,
    port: Option<u16>,
    verdict: Option<&'static str>,
    reason: Option<&'static str>,
    limit: usize,
}

pub(super) enum Who {
    Name(String),
    Block(IpNet),
}

impl Match {
    fn new(filter: Filter, drops: bool) -> Result<Self, Refusal> {
        let (protocol, port) = match filter.port.as_deref() {
            None => (None, None),
            Some(text) => service(text)?,
        };
        let of = if drops { "drops" } else { "flows" };
        let one_of = |what: &str, text: Option<String>, words: Vec<&'static str>| match text {
            None => Ok(None),
            Some(text) => words.iter().find(|w| **w == text).copied().map(Some).ok_or_else(|| {
                Refusal::bad(
                    format!("no {what} of {of}: `{text}`"),
                    format!("one of `{}`", words.join("`, `")),
                )
            }),
        };
        let verdicts = if drops { vec!["denied", "audited"] } else { vec!["allowed", "audited"] };
        if !drops && filter.reason.is_some() {
            return Err(Refusal::bad("flows cannot be chosen by `reason`", "`hydractl drops --reason …`"));
        }
        let reasons = Reason::ALL.iter().map(|r| r.as_str()).collect();
        Ok(Self {
            from: filter.from.map(Who::new),
            to: filter.to.map(Who::new),
            protocol,
            port,
            verdict: one_of("verdict", filter.verdict, verdicts)?,
            reason: one_of("reason", filter.reason, reasons)?,
            limit: filter.limit.unwrap_or(usize::MAX),
        })
    }

    fn flow(&self, row: &FlowRow) -> bool {
        self.ends(
            [&row.source_tier, &row.source_service, &row.source_container, &row.source],
            [&row.destination_tier, &row.destination_service, &row.destination_container, &row.destination],
        ) && self.rest(&row.protocol, row.destination_port, &row.verdict)
    }

    fn drop(&self, row: &DropRow) -> bool {
        self.ends(
            [&row.source_tier, &row.source_service, &row.source_container, &row.source],
            [&row.destination_tier, &row.destination_service, &row.destination_container, &row.destination],
        ) && self.rest(&row.protocol, row.destination_port, &row.verdict)
            && self.reason.is_none_or(|r| r == row.reason)
    }

    fn ends(&self, source: [&str; 4], destination: [&str; 4]) -> bool {
        self.from.as_ref().is_none_or(|w| w.is(source)) && self.to.as_ref().is_none_or(|w| w.is(destination))
    }

    fn rest(&self, protocol: &str, port: u16, verdict: &str) -> bool {
        self.protocol.as_deref().is_none_or(|p| p == protocol)
            && self.port.is_none_or(|p| p == port)
            && self.verdict.is_none_or(|v| v == verdict)
    }
}

impl Who {
    pub(super) fn new(text: String) -> Self {
        match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
            (Ok(ip), _) => Self::Block(ip.into()),
            (_, Ok(block)) => Self::Block(block),
            (Err(_), Err(_)) => Self::Name(text),
        }
    }

    /// `[tier, service, container, address]`.
    pub(super) fn is(&self, [tier, service, container, address]: [&str; 4]) -> bool {
        match self {
            Self::Block(block) => address.parse::<IpAddr>().is_ok_and(|ip| block.contains(&ip)),
            Self::Name(name) => {
                name == tier
                    || (!container.is_empty() && name == container)
                    || name.split_once('/').is_some_and(|(t, s)| t == tier && s == service && !s.is_empty())
            }
        }
    }
}

/// `tcp/5432`, `tcp`, `proto/47` or `5432`.
pub(super) fn service(text: &str) -> Result<(Option<String>, Option<u16>), Refusal> {
    const WORDS: [&str; 6] = ["tcp", "udp", "sctp", "icmp", "icmpv6", "arp"];
    let read = || {
        if let Ok(port) = text.parse() {
            return Some((None, Some(port)));
        }
        match text.split_once('/') {
            None if WORDS.contains(&text) => Some((Some(text.into()), None)),
            Some(("proto", number)) => Some((Some(view::protocol(number.parse().ok()?)), None)),
            Some((protocol, port)) if WORDS.contains(&protocol) => {
                Some((Some(protocol.into()), Some(port.parse().ok()?)))
            }
            None | Some(_) => None,
        }
    };
    read().ok_or_else(|| {
        Refusal::bad(
            format!("no protocol and port: `{text}`"),
            "`--port tcp/5432`, `--port tcp` or `--port 5432`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_protocol_a_number_or_both() {
        let service = |text| service(text).ok();
        assert_eq!(service("tcp/5432"), Some((Some("tcp".into()), Some(5432))));
        assert_eq!(service("udp"), Some((Some("udp".into()), None)));
        assert_eq!(service("5432"), Some((None, Some(5432))));
        assert_eq!(service("proto/6"), Some((Some("tcp".into()), None)));
        for bad in ["", "tcp/", "tcp/65536", "tcp/x", "http", "quic/1", "proto/256", "-1"] {
            assert_eq!(service(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_end_is_found_by_tier_service_container_address_and_block() {
        let end = ["databases", "postgres", "hydra-postgres", "172.30.3.10"];
        for name in ["databases", "databases/postgres", "hydra-postgres", "172.30.3.10", "172.30.3.0/24"] {
            assert!(Who::new(name.into()).is(end), "{name}");
        }
        for name in ["postgres", "apps", "databases/redis", "databases/", "172.30.3.11", "10.0.0.0/8", ""] {
            assert!(!Who::new(name.into()).is(end), "{name}");
        }
        assert!(!Who::new("databases/".into()).is(["databases", "", "", ""]), "no service is not a service");
    }
}
