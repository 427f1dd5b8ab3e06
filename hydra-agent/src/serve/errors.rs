//! Why the agent does not run, and with which exit code.

use std::path::PathBuf;

use super::purge::some;
use crate::api::SocketError;
use crate::datapath::DatapathError;
use crate::diagnostic::Diagnostics;
use crate::inventory::InventoryError;
use crate::settings::SettingsError;
use crate::state::StateError;

/// Why the agent does not run, or cannot purge.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Flags, environment or file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log filter.
    #[error("{0}")]
    Log(String),
    /// The run directory.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The policy is refused, and there is no earlier one.
    #[error("{}", .0.render(false).trim_end())]
    Policy(Diagnostics),
    /// The policy file cannot be read, and there is no earlier policy.
    #[error("{why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, with its name.
        why: String,
    },
    /// The policy could not be put in force, and there is no earlier one.
    #[error("{0}")]
    NoPolicy(String),
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The kernel's lists.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Not enough rights, said before anything is tried.
    #[error("the agent lacks {}", .0.join(" and "))]
    Rights(Vec<&'static str>),
    /// The first look at the host saw nothing.
    #[error("this host can't be looked at: {}", .0.join("; "))]
    Blind(Vec<String>),
    /// Threads, signals.
    #[error("the agent could not begin: {0}")]
    Begin(std::io::Error),
    /// Purge under a living agent.
    #[error("an agent works with the state directory `{}`: purging under it would not last", .0.display())]
    AgentRuns(PathBuf),
    /// There is more than the directories lead to.
    #[error("hydra still enforces on {}: what put these programs there is not in `{}`{}", some(.left), .bpffs.display(), also(.removed))]
    StillEnforced {
        /// Where pins were looked for.
        bpffs: PathBuf,
        /// What was taken away all the same.
        removed: Vec<String>,
        /// Interfaces.
        left: Vec<String>,
    },
    /// Something stayed.
    #[error("not everything could be taken away: {}", .0.join("; "))]
    Purge(Vec<String>),
}

impl RunError {
    /// 1 for a refused policy, 2 for everything that kept the agent from its work.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Policy(_) | Self::NoPolicy(_) => 1,
            Self::Settings(_)
            | Self::Unreadable { .. }
            | Self::Log(_)
            | Self::Socket(_)
            | Self::State(_)
            | Self::Datapath(_)
            | Self::Inventory(_)
            | Self::Rights(_)
            | Self::Blind(_)
            | Self::Begin(_)
            | Self::AgentRuns(_)
            | Self::StillEnforced { .. }
            | Self::Purge(_) => 2,
        }
    }

    /// The whole message for a person, hint included. Ends with a newline.
    pub fn render(&self, colour: bool) -> String {
        if let Self::Policy(diagnostics) = self {
            return diagnostics.render(colour);
        }
        if let Self::Settings(SettingsError::Invalid(diagnostics)) = self {
            return diagnostics.render(colour);
        }
        match self.hint() {
            Some(hint) => format!("error: {self}\n\nhint: {hint}\n"),
            None => format!("error: {self}\n"),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Settings(e) => e.hint(),
            Self::Log(_) => {
                Some("`--log info`, or a filter such as `info,hydra_agent::datapath=debug`".into())
            }
            Self::Socket(e) => Some(e.hint()),
            Self::State(e) => e.hint(),
            Self::Unreadable { path, .. } => Some(format!("`ls -l {}`", path.display())),
            Self::NoPolicy(_) => {
                Some("`hydractl policy validate FILE` says what is wrong with a policy".into())
            }
            Self::Datapath(e) => e.hint(),
            Self::AgentRuns(_) => Some("`systemctl stop hydra-agent`, then purge".into()),
            Self::StillEnforced { .. } => Some(
                "give the flags that the agent ran with: `hydra-agent purge --bpffs DIR --state-dir DIR`"
                    .into(),
            ),
            Self::Rights(_) => Some("run it as root: `sudo hydra-agent …`".into()),
            Self::Policy(_) | Self::Inventory(_) | Self::Blind(_) | Self::Begin(_) | Self::Purge(_) => None,
        }
    }
}

fn also(removed: &[String]) -> String {
    if removed.is_empty() { String::new() } else { format!(" ({} other things were removed)", removed.len()) }
}
