//! Requests that change nothing, and the table of all routes.

use std::io;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderValue;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use hydra_common::tables::Gauge;
use tokio::sync::oneshot;

use super::extract::{Asked, Refusal, no_method, no_route};
use super::filter::Match;
use super::newest::Newest;
use super::view;
use super::wire::{
    ABI_HEADER, Docker, DropRow, DropTotalRow, EndpointRow, Filter, FlowRow, HookRow, NotEnforcedRow,
    PolicyReply, PolicyRequest, RemarkRow, Status, VERSION_HEADER,
};
use super::{App, change, explain, follow, ports};
use crate::inventory::snapshot::DockerState;
use crate::policy;
use crate::policy::model::Model;
use crate::published::{ApplyError, Command, Published, Reader, Remark, RevisionView};

/// All routes of the unix socket.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/ports", get(ports::ports))
        .route("/v1/flows", get(flows))
        .route("/v1/drops", get(drops))
        .route("/v1/drops/totals", get(totals))
        .route("/v1/drops/follow", get(follow::follow))
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
            let counters = r.counters()?;
            Ok((counters.flows, counters.gauge(Gauge::EventsLost), second))
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

async fn policy(
    State(app): State<Arc<App>>,
    Asked(asked): Asked<PolicyRequest>,
) -> Result<Json<PolicyReply>, Refusal> {
    let state = app.state();
    let applied = state.applied.as_deref().ok_or_else(no_policy)?;
    match asked.revision {
        Some(revision) if revision != applied.revision => earlier(&app, revision).await.map(Json),
        _ => Ok(Json(reply(applied.revision, &applied.model, applied.text.to_string()))),
    }
}

/// A revision that is not in force.
async fn earlier(app: &App, revision: u32) -> Result<PolicyReply, Refusal> {
    let (told, text) = oneshot::channel();
    let command = Command::Show { revision, reply: told };
    app.handle.commands.send(command).await.map_err(|_| Refusal::stopping())?;
    let text = text.await.map_err(|_| Refusal::stopping())?;
    let text = text.ok_or_else(|| change::refusal(ApplyError::NoRevision(revision)))?;
    let read = move || match policy::examine(&text, "", policy::unix_now()).0 {
        Some((model, _)) => reply(revision, &model, text),
        // What an older agent took may mean nothing to this one: the text is still what was asked for.
        None => PolicyReply { revision, text, ..PolicyReply::default() },
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| Refusal::failed(format!("the request broke: {e}")))
}

fn reply(revision: u32, model: &Model, text: String) -> PolicyReply {
    let services =
        model.tiers.iter().flat_map(|t| t.services.iter().map(|s| format!("{}/{}", t.name, s.name)));
    PolicyReply {
        revision,
        policy: model.name.clone(),
        mode: mode(model.audit).into(),
        tiers: model.tiers.iter().map(|t| t.name.clone()).collect(),
        services: services.collect(),
        rules: model.rules.iter().map(|r| r.name.clone()).collect(),
        text,
    }
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
    let state = app.state();
    let names = app.memory.names(&state);
    let filter = Match::new(filter, false, &state, &names)?;
    let rows = app
        .tables(move |reader| {
            let clocks = reader.clocks();
            let mut newest = Newest::of(filter.limit);
            reader.each_flow(&mut |key, flow| {
                if newest.wants(flow.seen) {
                    let row = names.flow(key, flow, clocks);
                    if filter.flow(&row) {
                        newest.push(flow.seen, row);
                    }
                }
            })?;
            Ok(newest.rows())
        })
        .await?;
    Ok(Json(rows))
}

async fn drops(
    State(app): State<Arc<App>>,
    Asked(filter): Asked<Filter>,
) -> Result<Json<Vec<DropRow>>, Refusal> {
    let state = app.state();
    let names = app.memory.names(&state);
    let filter = Match::new(filter, true, &state, &names)?;
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
