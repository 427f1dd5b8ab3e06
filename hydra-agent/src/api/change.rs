//! Requests that carry a policy's text. Those that change something are handed to the loop, logged with who asked, and answered
//! when the kernel enforces the change.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use tokio::sync::oneshot;

use super::extract::{Given, Refusal};
use super::wire::{ApplyRequest, DiffReply, PolicyText, RollbackRequest, ValidateReply, ValidateRequest};
use super::{App, Peer};
use crate::policy;
use crate::published::{ApplyError, ApplyReport, Command};

type Outcome = Result<ApplyReport, ApplyError>;

pub(super) async fn validate(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Given(asked): Given<ValidateRequest>,
) -> Result<Json<ValidateReply>, Refusal> {
    let ValidateRequest { text, source, live } = asked;
    let checked = off_the_loop(move || (policy::parse(&text, &source), text, source)).await?;
    let (result, text, source) = checked;
    let (model, warnings) = result.map_err(Refusal::policy)?;
    if live {
        let by = peer.to_string();
        let check = |reply| Command::Apply { text, source, by, dry_run: true, reply };
        let _ = ask(app, "live validation", peer, check).await?;
    }
    Ok(Json(ValidateReply { policy: model.name, warnings }))
}

pub(super) async fn diff(
    State(app): State<Arc<App>>,
    Given(asked): Given<PolicyText>,
) -> Result<Json<DiffReply>, Refusal> {
    let applied = app.state().applied.clone();
    let revision = applied.as_ref().map_or(0, |a| a.revision);
    let changes = off_the_loop(move || {
        let (model, _) = policy::parse(&asked.text, &asked.source).map_err(Refusal::policy)?;
        let diff = policy::diff::diff(applied.as_deref().map(|a| &*a.model), &model, policy::unix_now());
        diff.map(|d| d.to_lines()).map_err(|e| Refusal::bad(e.to_string(), ""))
    })
    .await??;
    Ok(Json(DiffReply { revision, changes }))
}

/// Reading a large policy takes a while: not on the threads that answer others.
async fn off_the_loop<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Refusal::failed(format!("the request broke: {e}")))
}

pub(super) async fn apply(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Given(asked): Given<ApplyRequest>,
) -> Result<Json<ApplyReport>, Refusal> {
    let ApplyRequest { text, source, dry_run } = asked;
    let by = peer.to_string();
    let what = if dry_run { "dry run" } else { "apply" };
    ask(app, what, peer, |reply| Command::Apply { text, source, by, dry_run, reply }).await
}

pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Given(asked): Given<RollbackRequest>,
) -> Result<Json<ApplyReport>, Refusal> {
    let by = peer.to_string();
    ask(app, "rollback", peer, |reply| Command::Rollback { revision: asked.revision, by, reply }).await
}

/// Hands a command to the loop, and logs what came of it whether or not the asker waits for the answer.
async fn ask(
    app: Arc<App>,
    what: &'static str,
    peer: Peer,
    command: impl FnOnce(oneshot::Sender<Outcome>) -> Command,
) -> Result<Json<ApplyReport>, Refusal> {
    let (reply, answer) = oneshot::channel();
    let command = command(reply);
    let work = tokio::spawn(async move {
        app.handle.commands.send(command).await.map_err(|_| Refusal::stopping())?;
        let outcome = answer.await.map_err(|_| Refusal::stopping())?;
        log(what, peer, &outcome);
        outcome.map(Json).map_err(refusal)
    });
    work.await.map_err(|_| Refusal::stopping())?
}

fn log(what: &str, peer: Peer, outcome: &Outcome) {
    let Peer { uid, gid, pid } = peer;
    match outcome {
        Ok(report) => tracing::info!(uid, gid, pid, revision = report.revision, "policy: {what} done"),
        Err(error) => tracing::warn!(uid, gid, pid, %error, "policy: {what} refused"),
    }
}

/// As an answer.
pub(super) fn refusal(error: ApplyError) -> Refusal {
    let text = error.to_string();
    match error {
        ApplyError::Refused(diagnostics) => Refusal::policy(diagnostics),
        ApplyError::NoRevision(_) | ApplyError::NoEarlier => {
            Refusal::new(StatusCode::NOT_FOUND, text, "`hydractl policy history`")
        }
        ApplyError::Kernel(_) | ApplyError::Disk(_) => Refusal::failed(text),
    }
}
