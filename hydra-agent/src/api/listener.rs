//! The loopback listener: read-only, GET only, and only for requests that name this machine as their host, so that no web page of
//! elsewhere can read it through a browser here (DNS rebinding).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::extract::{Refusal, no_route};
use super::{App, connection, metrics};

/// Between two attempts to bind.
const AGAIN: Duration = Duration::from_secs(10);
/// The longest that a connection may last: nothing here streams.
const LIFETIME: Duration = Duration::from_mins(1);

/// Serves until told to stop.
pub(super) async fn serve(address: SocketAddr, app: Arc<App>, stop: CancellationToken) {
    if !address.ip().is_loopback() {
        tracing::error!(%address, "no metrics: the listener must be on a loopback address");
        return;
    }
    let Some(listener) = bind(address, &stop).await else { return };
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, "metrics are served"),
        Err(error) => tracing::warn!(%error, "the listener has no address"),
    }
    serve_on(listener, app, stop).await;
}

/// Serves a bound listener until told to stop.
pub(super) async fn serve_on(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let limits = app.limits;
    let router = router(app);
    let accept = || async { listener.accept().await.map(|(stream, _)| (stream, router.clone())) };
    connection::serve(accept, limits, Some(LIFETIME), stop).await;
}

async fn bind(address: SocketAddr, stop: &CancellationToken) -> Option<TcpListener> {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(error) if told => tracing::debug!(%address, %error, "still no metrics"),
            Err(error) => {
                tracing::warn!(%address, %error, "no metrics yet: the listener cannot be bound, trying again");
            }
        }
        told = true;
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new().route("/metrics", get(scrape)).fallback(no_route).with_state(app).layer(from_fn(guard))
}

/// GET of a host that is this one; everything else is refused before it is looked at.
async fn guard(request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        let error = format!("the listener answers GET only, not `{}`", request.method());
        let refusal = Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            error,
            "changes go over the unix socket: `hydractl`",
        );
        return ([(header::ALLOW, "GET")], refusal).into_response();
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().filter(|h| is_this_host(h)),
        (None, _) | (Some(_), Some(_)) => None,
    };
    // An absolute URI overrides the header (RFC 9112, 3.2.2).
    if host.is_none() || request.uri().authority().is_some_and(|a| !is_this_host(a.as_str())) {
        let error = "the listener answers for `localhost` and loopback addresses only";
        return Refusal::new(StatusCode::MISDIRECTED_REQUEST, error, "`curl http://127.0.0.1:9473/metrics`")
            .into_response();
    }
    next.run(request).await
}

/// `localhost` or a loopback address, with or without a port. A name that only resolves to one does not count.
fn is_this_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn scrape(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Refusal> {
    let text = metrics::scrape(&app).await.map_err(Refusal::failed)?;
    let headers = [
        (header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, text))
}

#[cfg(test)]
mod tests {
    use super::is_this_host;

    #[test]
    fn only_this_machine_by_its_own_names() {
        for host in
            ["localhost", "LOCALHOST:9473", "127.0.0.1", "127.0.0.1:9473", "127.9.9.9:1", "[::1]:9473"]
        {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9473",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "10.0.0.1:9473",
            "0.0.0.0:9473",
            "http://localhost",
            "[::1",
            "localhost evil",
        ] {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
