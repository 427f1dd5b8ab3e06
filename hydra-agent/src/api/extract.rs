//! Bodies and queries of requests as values, or as an answer that says what is wrong with them.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;

use super::App;
use super::wire::{ErrorReply, refused};
use crate::diagnostic::Diagnostics;

/// A reply that is not 2xx.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Box<ErrorReply>,
}

impl Refusal {
    /// With a status, what happened, and what mends it (or nothing).
    pub(super) fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        let body = ErrorReply { error: error.into(), hint: hint.into(), ..ErrorReply::default() };
        Self { status, body: Box::new(body) }
    }

    /// The request cannot be understood.
    pub(super) fn bad(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }

    /// The policy is refused.
    pub(super) fn policy(diagnostics: Diagnostics) -> Self {
        let text = refused(&diagnostics);
        let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, text, "");
        refusal.body.diagnostics = diagnostics;
        refusal
    }

    /// The agent could not do its work.
    pub(super) fn failed(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error, "`journalctl -u hydra-agent` says more")
    }

    /// What happened.
    pub(super) fn text(&self) -> &str {
        &self.body.error
    }

    /// The agent is about to end.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping", "`systemctl status hydra-agent`")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// The JSON body of a request, whatever its content type says.
pub(super) struct Given<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Given<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Refusal> {
        let limit = app.limits.body_size;
        let read = Limited::new(request.into_body(), limit).collect();
        let bytes = match tokio::time::timeout(app.limits.body, read).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) if e.downcast_ref::<LengthLimitError>().is_some() => {
                let error = format!("the request's body is larger than {limit} bytes");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, error, ""));
            }
            Ok(Err(e)) => return Err(Refusal::bad(format!("the request's body broke off: {e}"), "")),
            Err(_) => {
                let error = "the request's body did not come in time";
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, error, ""));
            }
        };
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| Refusal::bad(format!("the request's body is not the expected JSON: {e}"), ""))
    }
}

/// The query of a request.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Query::try_from_uri(&parts.uri).map(|Query(value)| Self(value)).map_err(|e| {
            let text = e.body_text();
            let what = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            Refusal::bad(format!("the request's query is not understood: {what}"), "")
        })
    }
}

/// What nobody answers.
pub(super) async fn no_route(request: Request<Body>) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("nothing answers `{method} {path}`"),
        "agent and `hydractl` must be of the same version",
    )
}

/// What is there, but not for this method.
pub(super) async fn no_method(request: Request<Body>) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("`{path}` does not answer `{method}`"), "")
}
