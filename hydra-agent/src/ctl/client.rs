//! The other end of the agent's socket.

use std::fmt::Write as _;
use std::future::Future;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::failure::{Failure, version};
use crate::api::wire::{ABI_HEADER, ErrorReply, VERSION_HEADER};
use crate::render::{self, RenderError};

/// For what the agent only has to look up.
const READ: Duration = Duration::from_secs(30);
/// For what changes the kernel's tables.
const CHANGE: Duration = Duration::from_mins(3);

/// Asks the agent behind one socket.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects only when something is asked.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What is at `path`. `query` is a flat struct; fields that are null are left out.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> Result<T, Failure> {
        self.ask(READ, Request::get(target(path, query)), Bytes::new())
    }

    /// Sends `body` to `path`.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| self.broke(e))?;
        self.ask(CHANGE, Request::post(path).header("content-type", "application/json"), body.into())
    }

    /// What comes from `path`, line by line, until the agent ends it, which is a failure too, or `each` fails.
    pub(super) fn follow(
        &self,
        path: &str,
        query: &impl Serialize,
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let lines = async {
            let request = Request::get(target(path, query));
            let mut body = self.within(READ, self.send(request, Bytes::new())).await?.into_body();
            let mut pending: Vec<u8> = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|e| self.broke(e))?.into_data() else { continue };
                pending.extend_from_slice(&data);
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let rest = pending.split_off(end + 1);
                    each(&pending[..end])?;
                    pending = rest;
                }
            }
            Err(Failure::Ended(self.socket.clone()))
        };
        run(async {
            tokio::select! {
                done = lines => done,
                () = render::hung_up() => Err(RenderError::HungUp.into()),
            }
        })
    }

    /// An answer that does not belong to the question.
    pub(super) fn other(&self, what: impl std::fmt::Display) -> Failure {
        Failure::OtherAnswer { socket: self.socket.clone(), what: what.to_string() }
    }

    fn broke(&self, what: impl std::fmt::Display) -> Failure {
        Failure::Broke { socket: self.socket.clone(), what: what.to_string() }
    }

    fn ask<T: DeserializeOwned>(
        &self,
        patience: Duration,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<T, Failure> {
        run(self.within(patience, async {
            let response = self.send(request, body).await?;
            let bytes = response.into_body().collect().await.map_err(|e| self.broke(e))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|e| self.other(e))
        }))
    }

    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(patience, work).await {
            Ok(result) => result,
            Err(_) => Err(Failure::TimedOut { socket: self.socket.clone(), after: patience }),
        }
    }

    /// Sends a request; an answer that is not 2xx is a failure.
    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broke(e))?;
        tokio::spawn(connection);
        let request = request
            .header("host", "agent")
            .header(ABI_HEADER, hydra_common::ABI)
            .body(Full::new(body))
            .map_err(|e| self.broke(e))?;
        let sent = sender.send_request(request).await;
        let response = sent.map_err(|e| {
            if e.is_parse() { Failure::NotAnAgent(self.socket.clone()) } else { self.broke(e) }
        })?;
        self.check_version(&response)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|e| self.broke(e))?.to_bytes();
        Err(match serde_json::from_slice::<ErrorReply>(&bytes) {
            Ok(reply) => Failure::Agent(reply),
            Err(_) if status == StatusCode::REQUEST_TIMEOUT => {
                self.broke("the agent did not get the request in time")
            }
            Err(_) => self.broke(format!("it answers {status}")),
        })
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        // Connecting to a file that is no socket is "refused", as if an agent had died.
        if let Ok(meta) = std::fs::metadata(&self.socket)
            && !meta.file_type().is_socket()
        {
            return Err(Failure::NotASocket(self.socket.clone()));
        }
        UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Failure::Unreachable { socket: self.socket.clone(), source })
    }

    fn check_version(&self, response: &Response<Incoming>) -> Result<(), Failure> {
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        let Some(abi) = header(ABI_HEADER).and_then(|v| v.parse::<u32>().ok()) else {
            return Err(Failure::NotAnAgent(self.socket.clone()));
        };
        if abi == hydra_common::ABI {
            return Ok(());
        }
        let theirs = version(header(VERSION_HEADER).unwrap_or("unknown"), abi);
        Err(Failure::OtherVersion { socket: self.socket.clone(), theirs })
    }
}

/// Runs one request to its end.
fn run<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Start)?;
    runtime.block_on(work)
}

fn target(path: &str, query: &impl Serialize) -> String {
    let mut target = path.to_owned();
    let Ok(Value::Object(fields)) = serde_json::to_value(query) else { return target };
    let mut mark = '?';
    for (name, value) in fields {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                other.to_string()
            }
        };
        let _ = write!(target, "{mark}{name}=");
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    target.push(byte.into());
                }
                other => {
                    let _ = write!(target, "%{other:02X}");
                }
            }
        }
        mark = '&';
    }
    target
}

#[cfg(test)]
mod tests {
    use super::target;
    use crate::api::wire::Filter;

    #[test]
    fn a_query_survives_any_text() {
        let filter = Filter { from: Some("a/b&c=d é+%".into()), limit: Some(3), ..Filter::default() };
        assert_eq!(target("/v1/flows", &filter), "/v1/flows?from=a%2Fb%26c%3Dd%20%C3%A9%2B%25&limit=3");
        assert_eq!(target("/v1/flows", &Filter::default()), "/v1/flows");
        assert_eq!(target("/v1/status", &()), "/v1/status");
    }
}
