//! Why a command could not do its work, with what mends it and the exit code.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::api::wire::{ErrorReply, refused};
use crate::diagnostic::Diagnostics;
use crate::render::{self, RenderError};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The socket did not take the connection.
    #[error("{}", unreachable(socket, source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is there is something else.
    #[error("`{0}` is not a socket")]
    NotASocket(PathBuf),
    /// The agent knows another layout of requests and tables.
    #[error("the agent on `{socket}` has {theirs}, this `hydractl` has {ours}", ours = version(env!("CARGO_PKG_VERSION"), hydra_common::ABI))]
    OtherVersion {
        /// The socket.
        socket: PathBuf,
        /// Its version and layout.
        theirs: String,
    },
    /// Somebody answers, but not as an agent does.
    #[error("what answers on `{0}` is not a hydra agent")]
    NotAnAgent(PathBuf),
    /// The agent has nothing more to tell: it stops.
    #[error("the agent on `{0}` ended the stream")]
    Ended(PathBuf),
    /// The agent has not answered.
    #[error("the agent on `{socket}` has not answered for {} s", after.as_secs())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// For how long.
        after: Duration,
    },
    /// The connection ended before the answer.
    #[error("the connection to the agent on `{socket}` broke: {what}")]
    Broke {
        /// The socket.
        socket: PathBuf,
        /// How.
        what: String,
    },
    /// The agent's answer is not the one that belongs to the question.
    #[error("the agent on `{socket}` gives an answer that this `hydractl` does not understand: {what}")]
    OtherAnswer {
        /// The socket.
        socket: PathBuf,
        /// What is not understood.
        what: String,
    },
    /// The agent says no.
    #[error("{}", .0.error)]
    Agent(ErrorReply),
    /// A policy is refused; its problems were printed.
    #[error("{0}")]
    Refused(String),
    /// A policy is refused that was only needed to answer something else; its problems were printed.
    #[error("{0}")]
    Unusable(String),
    /// A file cannot be used.
    #[error("cannot read `{path}`: {why}")]
    File {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// A question cannot be asked.
    #[error("{what}")]
    Question {
        /// What is wrong with it.
        what: String,
        /// What mends it, or empty.
        hint: String,
    },
    /// Stdout did not take the answer.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The system gave no runtime.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Failure {
    /// Says it on stderr.
    pub(super) fn report(&self) -> ExitCode {
        render::error(&self.to_string(), self.hint().as_deref());
        ExitCode::from(if self.is_an_answer() { 1 } else { 2 })
    }

    /// A refused policy: its problems are printed.
    pub(super) fn refused(diagnostics: &Diagnostics) -> Self {
        problems(diagnostics);
        Self::Refused(refused(diagnostics))
    }

    /// A policy that the agent refused, printed with the text that it was sent.
    pub(super) fn with_text(self, source: &str, text: &str) -> Self {
        let Self::Agent(reply) = self else { return self };
        if reply.diagnostics.is_empty() {
            return Self::Agent(reply);
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self::refused(&reply.diagnostics.with_source(source).with_text(text))
    }

    /// The same where the policy was needed to answer something else.
    pub(super) fn unusable(self) -> Self {
        if let Self::Refused(what) = self { Self::Unusable(what) } else { self }
    }

    /// Whether the command did its work and the answer is no.
    fn is_an_answer(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { socket, source } => mend(socket, source.kind()),
            Self::NotASocket(path) => format!("`ls -l {}`", path.display()),
            Self::OtherVersion { .. } | Self::OtherAnswer { .. } => {
                "install both from one package, then `systemctl restart hydra-agent`".into()
            }
            Self::NotAnAgent(_) => "name the agent's socket with `hydractl --socket PATH …`".into(),
            Self::TimedOut { .. } | Self::Broke { .. } => "`journalctl -u hydra-agent` says more".into(),
            Self::Ended(_) => {
                "`systemctl status hydra-agent`; what it enforced stays enforced meanwhile".into()
            }
            Self::Agent(reply) => reply.hint.clone(),
            Self::Question { hint, .. } => hint.clone(),
            Self::File { path, .. } => format!("`ls -l {path}`"),
            Self::Refused(_) | Self::Unusable(_) | Self::Render(_) | Self::Start(_) => return None,
        })
    }
}

/// Problems of a policy, to stderr.
pub(super) fn problems(diagnostics: &Diagnostics) {
    let text = diagnostics.render(render::error_colours());
    if !text.is_empty() {
        render::words(&text);
    }
}

/// A version and its layout, as a sentence's part.
pub(super) fn version(version: &str, abi: u32) -> String {
    format!("version {version} with layout {abi}")
}

/// What mends a socket that does not take the connection.
fn mend(socket: &Path, kind: ErrorKind) -> String {
    if kind == ErrorKind::NotFound {
        "`systemctl start hydra-agent`, or name its socket with `hydractl --socket PATH …`".into()
    } else if kind == ErrorKind::PermissionDenied {
        "`sudo hydractl …`, or become a member of the group: `sudo usermod -aG hydra $USER`".into()
    } else if kind == ErrorKind::ConnectionRefused {
        "`systemctl restart hydra-agent`; what it enforced stays enforced meanwhile".into()
    } else {
        format!("`ls -l {}`", socket.display())
    }
}

fn unreachable(socket: &Path, source: &io::Error) -> String {
    let socket = socket.display();
    // Rust's errors end with their number, which tells a person nothing.
    let why = source.to_string();
    let why = why.split(" (os error").next().unwrap_or_default();
    let kind = source.kind();
    if kind == ErrorKind::NotFound {
        format!("there is no agent on `{socket}`: {why}")
    } else if kind == ErrorKind::PermissionDenied {
        format!("not allowed to use the agent's socket `{socket}`: {why}")
    } else if kind == ErrorKind::ConnectionRefused {
        format!("no agent listens on `{socket}`: {why}")
    } else {
        format!("cannot connect to `{socket}`: {why}")
    }
}
