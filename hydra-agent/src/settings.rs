//! Where the agent finds its files and how it behaves: flags, then `HYDRA_*` variables, then the settings file, then defaults,
//! merged once into plain structs. Nothing else in the agent reads flags or the environment.

mod flows;
mod predrop;
mod uplinks;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Deserializer};

pub use self::flows::{FlowShare, Flows};
pub use self::predrop::Predrop;
pub use self::uplinks::Uplinks;
use crate::cgroup::Place as CgroupPlace;
use crate::diagnostic::{Diagnostic, Diagnostics, Place};

/// The settings file that is read when no other is named, if it is there.
pub const DEFAULT_CONFIG: &str = "/etc/hydra/agent.yaml";
/// The policy file that is taken over at start when no other is named, if it is there.
pub const DEFAULT_POLICY: &str = "/etc/hydra/policy.yaml";
/// Where state is kept when nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/hydra";
/// Where the socket is when nothing else is said.
pub const DEFAULT_RUN_DIR: &str = "/run/hydra";
/// Where programs, links and maps are pinned when nothing else is said.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/hydra";
/// Where `ip netns add` keeps names.
pub const DEFAULT_NETNS_DIR: &str = "/run/netns";
/// Metrics.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9473);
/// The socket's name in the run directory.
pub const SOCKET: &str = "agent.sock";

/// The command line of `hydra-agent`.
#[derive(Debug, Parser)]
#[command(name = "hydra-agent", version, about = "Enforces hydra's network policy on this host")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What the daemon can be told to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Enforce the policy until told to stop; enforcement goes on without the agent
    #[command(args_override_self = true)]
    Run(Flags),
    /// Take every program, link and map away: the only way enforcement ends
    #[command(args_override_self = true)]
    Purge(Flags),
}

/// Flags of both commands; each stands above its variable, and that above the settings file.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Settings file [default: /etc/hydra/agent.yaml, if it is there]
    #[arg(long, value_name = "FILE", env = "HYDRA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Policy to take over at start and on SIGHUP [default: /etc/hydra/policy.yaml, if it is there]
    #[arg(long, value_name = "FILE", env = "HYDRA_POLICY")]
    pub policy: Option<PathBuf>,
    /// Docker's socket, `auto` for the usual one, or `none` [default: auto]
    #[arg(long, value_name = "auto|none|SOCKET", env = "HYDRA_DOCKER")]
    pub docker: Option<Docker>,
    /// Numbers, policies and history [default: /var/lib/hydra]
    #[arg(long, value_name = "DIR", env = "HYDRA_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the socket is made [default: /run/hydra]
    #[arg(long, value_name = "DIR", env = "HYDRA_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where programs, links and maps are pinned [default: /sys/fs/bpf/hydra]
    #[arg(long, value_name = "DIR", env = "HYDRA_BPFFS")]
    pub bpffs: Option<PathBuf>,
    /// Metrics, on a loopback address, or `none` [default: 127.0.0.1:9473]
    #[arg(long, value_name = "ADDR|none", env = "HYDRA_LISTEN")]
    pub listen: Option<Listen>,
    /// Where named network namespaces are found [default: /run/netns]
    #[arg(long, value_name = "DIR", env = "HYDRA_NETNS_DIR")]
    pub netns_dir: Option<PathBuf>,
    /// Put the routes that allowed peers need into containers [default: true]
    #[arg(long, value_name = "true|false", env = "HYDRA_ROUTES", action = clap::ArgAction::Set)]
    pub routes: Option<bool>,
    /// How programs are attached [default: auto]
    #[arg(long, value_name = "auto|tcx|clsact", env = "HYDRA_ATTACH")]
    pub attach: Option<Attach>,
    /// Interfaces on which clients of published ports come from outside [default: auto]
    #[arg(long, value_name = "auto|none|NAME,NAME", env = "HYDRA_UPLINKS")]
    pub uplinks: Option<Uplinks>,
    /// Drop there by XDP what may not come in: by the driver, in the kernel's generic way, or `auto` for the first that works [default: off]
    #[arg(long, value_name = "off|auto|native|generic", env = "HYDRA_PREDROP")]
    pub predrop: Option<Predrop>,
    /// Where processes are refused at once: a folder of the cgroup v2 hierarchy, `auto` for its root, or `none` [default: auto]
    #[arg(long, value_name = "auto|none|DIR", env = "HYDRA_CGROUP")]
    pub cgroup: Option<CgroupPlace>,
    /// Let the label `hydra.tier=NAME` place a container [default: false]
    #[arg(long, value_name = "true|false", env = "HYDRA_LABELS", action = clap::ArgAction::Set)]
    pub labels: Option<bool>,
    /// How long TCP connections from before hydra are taken up from their middle; `0` for never [default: 1h]
    #[arg(long, value_name = "DURATION", env = "HYDRA_PICKUP")]
    pub pickup: Option<Pickup>,
    /// Flows that the table holds [default: 131072]
    #[arg(long, value_name = "NUMBER", env = "HYDRA_FLOWS")]
    pub flows: Option<Flows>,
    /// How much of the room in it that others leave one source may have [default: 25%]
    #[arg(long, value_name = "PERCENT", env = "HYDRA_FLOW_SHARE")]
    pub flow_share: Option<FlowShare>,
    /// What is logged: a level, or a tracing filter [default: info]
    #[arg(long, value_name = "FILTER", env = "HYDRA_LOG")]
    pub log: Option<String>,
}

/// How long TCP connections from before hydra are taken up from their middle, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pickup(pub u32);

impl Default for Pickup {
    fn default() -> Self {
        Self(3600)
    }
}

impl FromStr for Pickup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str =
            "expected `0`, or a number with `s`, `m`, `h` or `d`, as in `30m`, of 365 days at most";
        let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
            None if text == "0" => (text, 1),
            None => return Err(WANTED.into()),
            Some(at) => {
                let (number, unit) = text.split_at(at);
                let seconds = match unit {
                    "s" => 1,
                    "m" => 60,
                    "h" => 3600,
                    "d" => 86_400,
                    _ => return Err(WANTED.into()),
                };
                (number, seconds)
            }
        };
        let seconds = number.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
        seconds.filter(|n| *n <= 365 * 86_400).map(Self).ok_or_else(|| WANTED.into())
    }
}

/// Which engine is asked for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Docker {
    /// The usual socket; absent is normal.
    #[default]
    Auto,
    /// Nobody: the kernel alone says who is where.
    None,
    /// This socket.
    Socket(PathBuf),
}

impl FromStr for Docker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            other => {
                let path = other.strip_prefix("unix://").unwrap_or(other);
                if path.starts_with('/') {
                    Ok(Self::Socket(path.into()))
                } else {
                    Err("expected `auto`, `none` or the absolute path of a unix socket".into())
                }
            }
        }
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    None,
    /// There.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        // The listener is for this machine alone: whoever collects from elsewhere asks by way of something that knows him.
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::At(address)),
            Ok(_) => {
                Err("expected `none` or a loopback address with its port, as in `127.0.0.1:9473`".into())
            }
            Err(_) => Err("expected `none` or an address with its port, as in `127.0.0.1:9473`".into()),
        }
    }
}

/// How programs are put on interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX or nothing.
    Tcx,
    /// The older way, on any kernel.
    Clsact,
}

impl FromStr for Attach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            _ => Err("expected `auto`, `tcx` or `clsact`".into()),
        }
    }
}

/// The settings file as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct File {
    /// As `--policy`.
    pub policy: Option<PathBuf>,
    /// As `--docker`.
    #[serde(deserialize_with = "parsed")]
    pub docker: Option<Docker>,
    /// As `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// As `--run-dir`.
    pub run_dir: Option<PathBuf>,
    /// As `--bpffs`.
    pub bpffs: Option<PathBuf>,
    /// As `--listen`.
    #[serde(deserialize_with = "parsed")]
    pub listen: Option<Listen>,
    /// As `--netns-dir`.
    pub netns_dir: Option<PathBuf>,
    /// As `--routes`.
    pub routes: Option<bool>,
    /// As `--attach`.
    #[serde(deserialize_with = "parsed")]
    pub attach: Option<Attach>,
    /// As `--uplinks`; names as a list.
    #[serde(deserialize_with = "uplinks::listed")]
    pub uplinks: Option<Uplinks>,
    /// As `--predrop`.
    #[serde(deserialize_with = "parsed")]
    pub predrop: Option<Predrop>,
    /// As `--cgroup`.
    #[serde(deserialize_with = "parsed")]
    pub cgroup: Option<CgroupPlace>,
    /// As `--labels`.
    pub labels: Option<bool>,
    /// As `--pickup`.
    #[serde(deserialize_with = "parsed")]
    pub pickup: Option<Pickup>,
    /// As `--flows`.
    #[serde(deserialize_with = "parsed")]
    pub flows: Option<Flows>,
    /// As `--flow-share`.
    #[serde(deserialize_with = "parsed")]
    pub flow_share: Option<FlowShare>,
    /// As `--log`.
    pub log: Option<String>,
}

/// A scalar in the same words as on the command line.
fn parsed<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|t| t.parse().map_err(serde::de::Error::custom)).transpose()
}

/// Directories that `run` and `purge` share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Numbers, policies, history.
    pub state: PathBuf,
    /// The socket.
    pub run: PathBuf,
    /// The pins.
    pub bpffs: PathBuf,
}

impl Directories {
    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.run.join(SOCKET)
    }
}

/// The policy file to take over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// Where.
    pub path: PathBuf,
    /// Somebody named it: it is an error when it is not there.
    pub named: bool,
}

/// Everything, merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The policy to take over at start and on SIGHUP.
    pub policy: PolicyFile,
    /// Which engine.
    pub docker: Docker,
    /// Where things are kept.
    pub directories: Directories,
    /// Metrics; `None` is nowhere.
    pub listen: Option<SocketAddr>,
    /// Where named namespaces are found.
    pub netns_dir: PathBuf,
    /// Put routes into containers.
    pub routes: bool,
    /// How programs are attached.
    pub attach: Attach,
    /// Where clients of published ports come from outside.
    pub uplinks: Uplinks,
    /// Whether XDP drops there what may not come in.
    pub predrop: Predrop,
    /// Where the hooks on processes sit.
    pub cgroup: CgroupPlace,
    /// Labels place containers.
    pub labels: bool,
    /// How long connections from before are taken up.
    pub pickup: Pickup,
    /// Flows that the table holds.
    pub flows: Flows,
    /// How much of it one source may have.
    pub flow_share: FlowShare,
    /// What is logged.
    pub log: String,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The settings file cannot be read.
    #[error("the settings file `{}` cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It can be read and is wrong.
    #[error("{}", .0.render(false).trim_end())]
    Invalid(Diagnostics),
    /// A path that nothing can be made of.
    #[error("`{setting}` is no path: {}", path.display())]
    NoPath {
        /// Which setting.
        setting: &'static str,
        /// The path.
        path: PathBuf,
    },
}

impl SettingsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { path, .. } => Some(format!("`ls -l {}`", path.display())),
            Self::Invalid(_) | Self::NoPath { .. } => None,
        }
    }
}

impl Settings {
    /// Reads the settings file and merges.
    pub fn load(flags: Flags) -> Result<Self, SettingsError> {
        let (path, named) = match &flags.config {
            Some(path) => (path.clone(), true),
            None => (PathBuf::from(DEFAULT_CONFIG), false),
        };
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => File::parse(&text, &path)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => File::default(),
            Err(source) => return Err(SettingsError::Unreadable { path, source }),
        };
        Self::merge(flags, file)
    }

    /// Flags (which hold the environment already) over the file over defaults.
    pub fn merge(flags: Flags, file: File) -> Result<Self, SettingsError> {
        let Flags {
            config: _,
            policy,
            docker,
            state_dir,
            run_dir,
            bpffs,
            listen,
            netns_dir,
            routes,
            attach,
            uplinks,
            predrop,
            cgroup,
            labels,
            pickup,
            flows,
            flow_share,
            log,
        } = flags;
        let policy = policy.or(file.policy);
        let named = policy.is_some();
        let listen = listen.or(file.listen).unwrap_or(Listen::At(DEFAULT_LISTEN));
        let path = |setting, flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            absolute(setting, flag.or(file).unwrap_or_else(|| default.into()))
        };
        Ok(Self {
            policy: PolicyFile { path: path("policy", policy, None, DEFAULT_POLICY)?, named },
            docker: docker.or(file.docker).unwrap_or_default(),
            directories: Directories {
                state: path("state-dir", state_dir, file.state_dir, DEFAULT_STATE_DIR)?,
                run: path("run-dir", run_dir, file.run_dir, DEFAULT_RUN_DIR)?,
                bpffs: path("bpffs", bpffs, file.bpffs, DEFAULT_BPFFS)?,
            },
            listen: match listen {
                Listen::None => None,
                Listen::At(address) => Some(address),
            },
            netns_dir: path("netns-dir", netns_dir, file.netns_dir, DEFAULT_NETNS_DIR)?,
            routes: routes.or(file.routes).unwrap_or(true),
            attach: attach.or(file.attach).unwrap_or_default(),
            uplinks: uplinks.or(file.uplinks).unwrap_or_default(),
            predrop: predrop.or(file.predrop).unwrap_or_default(),
            cgroup: cgroup.or(file.cgroup).unwrap_or_default(),
            labels: labels.or(file.labels).unwrap_or(false),
            pickup: pickup.or(file.pickup).unwrap_or_default(),
            flows: flows.or(file.flows).unwrap_or_default(),
            flow_share: flow_share.or(file.flow_share).unwrap_or_default(),
            log: log.or(file.log).unwrap_or_else(|| "info".into()),
        })
    }
}

/// A path on the command line is relative to where the command was given; the kernel's own answer, links kept as they are.
fn absolute(setting: &'static str, path: PathBuf) -> Result<PathBuf, SettingsError> {
    std::path::absolute(&path).map_err(|_| SettingsError::NoPath { setting, path })
}

impl File {
    /// From the text of a settings file.
    pub fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        // Only comments is a file too.
        if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options)
            .map_err(|e| SettingsError::Invalid(diagnose(&e, text, path)))
    }
}

/// The reader's own words less the place, which the caret shows.
fn diagnose(error: &serde_saphyr::Error, text: &str, path: &Path) -> Diagnostics {
    let mut all = Diagnostics::new(path.display().to_string(), text);
    let said = error.without_snippet().to_string();
    let mut said = said.strip_prefix("error: ").unwrap_or(&said).to_owned();
    let place = error.location().map(|l| (l.line(), l.column()));
    let place = place.filter(|(line, _)| *line > 0).map(|(line, column)| {
        if let Some(rest) = said.strip_prefix(&format!("line {line} column {column}: ")) {
            said = rest.to_string();
        }
        said = said.replace(&format!(" at line {line}, column {column}"), "");
        Place { line: line as u32, column: column as u32, length: 1 }
    });
    let mut diagnostic = Diagnostic::error(said);
    diagnostic.place = place;
    all.push(diagnostic);
    all
}

#[cfg(test)]
mod tests;
