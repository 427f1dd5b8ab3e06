//! What can go wrong between the agent and the kernel, in words for an operator.

use std::io;
use std::path::{Path, PathBuf};

/// Why the kernel does not hold what it should. Whatever was enforced before still is.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Not enough rights.
    #[error("the kernel refuses BPF to this process: {0}")]
    NoPrivilege(String),
    /// `bpf(2)` is not there.
    #[error("this kernel has no BPF: {0}")]
    NoBpf(io::Error),
    /// Programs of one CPU may interrupt each other there (Linux 6.18 without `CONFIG_PREEMPT_RT_NEEDS_BH_LOCK`): what they keep for a
    /// packet is not safe.
    #[error("this is a real-time kernel (PREEMPT_RT)")]
    Realtime,
    /// The pins' directory lies on another file system.
    #[error("`{}` is not on a BPF file system", .0.display())]
    NotBpffs(PathBuf),
    /// Somebody else's directory, or a file, stands where the pins belong.
    #[error("`{}` is not a directory of this user alone", .0.display())]
    NotOurs(PathBuf),
    /// Another agent works on the same pins.
    #[error("another agent works on the pins in `{}`", .0.display())]
    InUse(PathBuf),
    /// A directory or pin could not be read or changed.
    #[error("could not {what} `{}`: {source}", path.display())]
    Pin {
        /// The operation.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pinned map is another layout's.
    #[error("the pinned map `{name}` has another layout: its {field} is {found}, expected {expected}")]
    OtherLayout {
        /// The map.
        name: String,
        /// What differs.
        field: &'static str,
        /// What is there.
        found: u32,
        /// What the object wants.
        expected: u32,
        /// The pins' directory.
        bpffs: PathBuf,
    },
    /// The embedded object did not load.
    #[error("the kernel does not take the eBPF object: {0}")]
    Load(String),
    /// More rows than a table holds. Nothing was written.
    #[error("the table of {table} has no room: {needed} are needed, it holds {room}")]
    NoRoom {
        /// What is in the table.
        table: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many it holds.
        room: usize,
    },
    /// The flow table does not fit into memory. Nothing was made.
    #[error("a table of {flows} flows takes {needed} MiB, and the machine has {available} MiB available")]
    NoMemory {
        /// Flows asked for.
        flows: u32,
        /// MiB of both tables.
        needed: u64,
        /// MiB that are free or can be freed.
        available: u64,
        /// A size that they are enough for, if there is one.
        fits: Option<u32>,
    },
    /// A row that could not be written or read.
    #[error("could not {what} the table of {table}: {source}")]
    Table {
        /// `write`, `read`.
        what: &'static str,
        /// What is in the table.
        table: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error("the table of {table} does not hold what was written to it")]
    ReadBack {
        /// What is in the table.
        table: &'static str,
    },
    /// Programs that began under the old tables could not be waited for.
    #[error("could not wait for running programs: {0}")]
    Grace(io::Error),
    /// The event stream could not be opened.
    #[error("could not open the event stream: {0}")]
    Events(String),
}

impl DatapathError {
    /// The command or change that helps, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoPrivilege(_) => {
                Some("run it as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned())
            }
            Self::NoBpf(_) => Some("a kernel with CONFIG_BPF_SYSCALL=y, 5.10 or newer".to_owned()),
            Self::Realtime => Some("a kernel without PREEMPT_RT".to_owned()),
            Self::NotBpffs(path) => Some(format!("mount -t bpf bpf {}", mount_point(path).display())),
            Self::NotOurs(path) => Some(format!("chown root: {0} && chmod 0700 {0}", path.display())),
            Self::InUse(_) => {
                Some("stop it, or give this one a directory of its own with --bpffs".to_owned())
            }
            Self::OtherLayout { bpffs, .. } => {
                Some(format!("hydra-agent purge --bpffs {}, then start the agent", bpffs.display()))
            }
            Self::NoRoom { .. } => Some("fewer tiers, services, rules or address blocks".to_owned()),
            Self::NoMemory { fits: Some(fits), .. } => Some(format!(
                "`flows: {fits}` in the settings file, or --flows={fits}, for which there is room now"
            )),
            Self::NoMemory { fits: None, .. } => {
                Some("free memory: the smallest table finds none".to_owned())
            }
            Self::Pin { .. }
            | Self::Load(_)
            | Self::Table { .. }
            | Self::ReadBack { .. }
            | Self::Grace(_)
            | Self::Events(_) => None,
        }
    }

    pub(super) fn pin(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Pin { what, path: path.to_owned(), source }
    }
}

/// The usual place of the BPF file system for a path below it, else the path itself.
fn mount_point(path: &Path) -> &Path {
    let usual = Path::new("/sys/fs/bpf");
    if path.starts_with(usual) { usual } else { path }
}

/// What `write` and `read` of a table turn errors into.
pub(super) fn table(what: &'static str, table: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Table { what, table, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mount_names_the_command() {
        let error = DatapathError::NotBpffs("/sys/fs/bpf/hydra".into());
        assert_eq!(error.to_string(), "`/sys/fs/bpf/hydra` is not on a BPF file system");
        assert_eq!(error.hint().as_deref(), Some("mount -t bpf bpf /sys/fs/bpf"));
        assert_eq!(
            DatapathError::NotBpffs("/tmp/x".into()).hint().as_deref(),
            Some("mount -t bpf bpf /tmp/x")
        );
    }

    #[test]
    fn another_layout_names_the_map_and_the_command() {
        let error = DatapathError::OtherLayout {
            name: "HYDRA_FLOWS".into(),
            field: "value size",
            found: 96,
            expected: 104,
            bpffs: "/sys/fs/bpf/hydra".into(),
        };
        assert_eq!(
            error.to_string(),
            "the pinned map `HYDRA_FLOWS` has another layout: its value size is 96, expected 104"
        );
        assert!(error.hint().is_some_and(|h| h.starts_with("hydra-agent purge --bpffs /sys/fs/bpf/hydra")));
    }
}
