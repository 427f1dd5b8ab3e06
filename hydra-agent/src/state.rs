//! The state directory: what must survive the agent. Numbers of identities and containers, the texts of applied policies, their
//! history, and which one counts. Written whole or not at all; a file that cannot be read is said and never costs a good one.

mod disk;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hydra_common::id::Container;
use serde::{Deserialize, Serialize};

use self::disk::{
    Beside, make_dir, read_bounded, read_json, remove, remove_leftovers, write_json, write_whole,
};
use crate::policy::rows::Numbers;
use crate::published::RevisionView;

/// Applied policies that are kept to roll back to.
pub const KEPT_REVISIONS: usize = 256;
/// Container numbers that are reserved on disk at once, so that a container's start does not wait for the disk.
const RESERVED: u32 = 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or opened.
    #[error("the state directory `{}` cannot be used: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent works on it.
    #[error("another agent uses the state directory `{}`{}", path.display(), pid_text(*pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process that holds the lock, if it wrote its number.
        pid: Option<u32>,
    },
    /// A file cannot be written.
    #[error("`{}` cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StateError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Directory { path, .. } => {
                Some(format!("`ls -ld {}`, or choose another with `--state-dir`", path.display()))
            }
            Self::Locked { .. } => Some(
                "stop it, or give this one directories of its own: `--state-dir`, `--run-dir`, `--bpffs`"
                    .into(),
            ),
            Self::Write { path, .. } => {
                Some(format!("`df {}`", path.parent().unwrap_or(Path::new("/")).display()))
            }
        }
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|p| format!(": process {p}")).unwrap_or_default()
}

/// Something on disk that could not be read, and what is done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The file.
    pub path: PathBuf,
    /// Why, and what took its place; no final period.
    pub why: String,
}

/// Numbers of network stacks, kept as long as the tables live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Containers {
    /// Every number from here on has never been given; on disk ahead of the truth by up to [`RESERVED`].
    next: u32,
    /// By [`crate::inventory::snapshot::Stack::key`].
    numbers: BTreeMap<String, u32>,
    /// Who had which address, by the same key: of two that say so later, the one that had it keeps it.
    #[serde(default)]
    holders: BTreeMap<IpAddr, String>,
    /// What the disk says `next` is.
    #[serde(skip)]
    reserved: u32,
}

impl Containers {
    /// The number of a stack, if it has one.
    pub fn get(&self, key: &str) -> Option<Container> {
        self.numbers.get(key).map(|n| Container(*n))
    }

    /// The number of a stack, a new one if it has none.
    pub fn number(&mut self, key: &str) -> Container {
        if let Some(known) = self.get(key) {
            return known;
        }
        let number = self.next.max(1);
        self.next = number.saturating_add(1);
        self.numbers.insert(key.to_owned(), number);
        Container(number)
    }

    /// Who had an address, by key.
    pub fn holder(&self, address: IpAddr) -> Option<&str> {
        self.holders.get(&address).map(String::as_str)
    }

    /// Who has which address from now on.
    pub fn hold(&mut self, holders: BTreeMap<IpAddr, String>) {
        self.holders = holders;
    }

    /// The highest number given so far.
    pub fn highest(&self) -> Container {
        Container(self.next.saturating_sub(1))
    }

    /// Forgets stacks that are gone. Their numbers are not given again.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) {
        self.numbers.retain(|key, _| alive(key));
    }

    /// From now on only numbers that no earlier, lost list can have given: seconds grow faster than containers start.
    fn skip_lost(&mut self) {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        // 2020-09-13; leaves room until 2156.
        self.next =
            self.next.max(u32::try_from(seconds.saturating_sub(1_600_000_000)).unwrap_or(u32::MAX / 2));
    }
}

/// The state directory, locked for this process.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    _lock: File,
    numbers: Numbers,
    containers: Containers,
    containers_on_disk: Containers,
    history: Vec<RevisionView>,
    current: Option<u32>,
    fresh: bool,
}

impl State {
    /// Opens or makes the directory, and reads it. What is broken is moved aside and returned as a list.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Broken>), StateError> {
        let directory = |source| StateError::Directory { path: dir.to_owned(), source };
        let fresh = !dir.join("history.json").exists();
        make_dir(dir).map_err(directory)?;
        make_dir(&dir.join("policies")).map_err(directory)?;
        let lock = lock(dir)?;
        let mut broken = Vec::new();
        remove_leftovers(dir);
        remove_leftovers(&dir.join("policies"));
        let numbers = read_json(&dir.join("numbers.json"), &mut broken).unwrap_or_default();
        let mut containers: Containers = match read_json(&dir.join("containers.json"), &mut broken) {
            Some(read) => read,
            None if fresh => Containers::default(),
            None => {
                let mut lost = Containers::default();
                lost.skip_lost();
                lost
            }
        };
        containers.reserved = containers.next;
        let history: Vec<RevisionView> =
            read_json(&dir.join("history.json"), &mut broken).unwrap_or_default();
        let mut state = Self {
            dir: dir.to_owned(),
            _lock: lock,
            numbers,
            containers_on_disk: containers.clone(),
            containers,
            history,
            current: None,
            fresh,
        };
        state.current = state.read_current(&mut broken);
        Ok((state, broken))
    }

    /// Whether an agent works on this directory now.
    pub fn in_use(dir: &Path) -> bool {
        File::open(dir.join("lock")).is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Whether nothing was there before: the first start of this host.
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// The numbers of identities and tiers.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Keeps new numbers. Before anything in the kernel uses them.
    pub fn set_numbers(&mut self, numbers: Numbers) -> Result<(), StateError> {
        if numbers != self.numbers {
            write_json(&self.dir.join("numbers.json"), &numbers)?;
            self.numbers = numbers;
        }
        Ok(())
    }

    /// The numbers of network stacks.
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Takes the stacks' numbers back after a placement. Waits for the disk only when the reserved numbers are used up.
    pub fn set_containers(&mut self, mut containers: Containers) -> Result<(), StateError> {
        containers.reserved = self.containers.reserved;
        if containers.next > containers.reserved {
            containers.reserved = containers.next.saturating_add(RESERVED);
            let on_disk = Containers { next: containers.reserved, ..containers.clone() };
            write_json(&self.dir.join("containers.json"), &on_disk)?;
            self.containers_on_disk = containers.clone();
        }
        self.containers = containers;
        Ok(())
    }

    /// Brings the list of stacks on disk up to date; called when there is time.
    pub fn flush_containers(&mut self) -> Result<(), StateError> {
        let (now, disk) = (&self.containers, &self.containers_on_disk);
        if now.numbers != disk.numbers || now.holders != disk.holders {
            let on_disk = Containers { next: self.containers.reserved, ..self.containers.clone() };
            write_json(&self.dir.join("containers.json"), &on_disk)?;
            self.containers_on_disk = self.containers.clone();
        }
        Ok(())
    }

    /// The tables in the kernel were made under a state directory that is lost: numbers must not repeat theirs.
    pub fn distrust_containers(&mut self) {
        self.containers.skip_lost();
    }

    /// Applied policies, oldest first.
    pub fn history(&self) -> &[RevisionView] {
        &self.history
    }

    /// The revision in force, as far as the disk knows.
    pub fn current(&self) -> Option<u32> {
        self.current
    }

    /// The number that the next applied policy gets: above everything that was ever tried.
    pub fn next_revision(&self) -> u32 {
        let texts = self.revisions_on_disk().into_iter().max().unwrap_or(0);
        let listed = self.history.iter().map(|r| r.revision).max().unwrap_or(0);
        texts.max(listed).max(self.current.unwrap_or(0)).saturating_add(1)
    }

    /// The text of an applied revision.
    pub fn text(&self, revision: u32) -> Option<String> {
        read_bounded(&self.policy_path(revision)).ok()
    }

    /// Writes the text of a revision beside its place and waits for the disk, for whoever does so while it is not yet known whether it will
    /// be applied.
    pub fn draft(&self, revision: u32) -> impl FnOnce(&str) -> Result<Drafted, StateError> + Send + use<> {
        let path = self.policy_path(revision);
        move |text| Ok(Drafted { revision, text: Beside::write(&path, text.as_bytes())? })
    }

    /// Keeps a policy's text and makes it the current one: a crash from here on comes back with it.
    pub fn begin(&mut self, Drafted { revision, text }: Drafted) -> Result<(), StateError> {
        text.take_name()?;
        if let Err(e) = write_whole(&self.dir.join("current"), format!("{revision}\n").as_bytes()) {
            remove(&self.policy_path(revision));
            return Err(e);
        }
        self.current = Some(revision);
        Ok(())
    }

    /// The kernel did not take what [`State::begin`] kept: back to the one before.
    pub fn abandon(&mut self, revision: u32, previous: Option<u32>) -> Result<(), StateError> {
        let path = self.dir.join("current");
        match previous {
            Some(p) => write_whole(&path, format!("{p}\n").as_bytes())?,
            None => remove(&path),
        }
        self.current = previous;
        remove(&self.policy_path(revision));
        Ok(())
    }

    /// The kernel enforces it: it enters the history.
    pub fn commit(&mut self, view: RevisionView) -> Result<(), StateError> {
        self.history.push(view);
        let surplus = self.history.len().saturating_sub(KEPT_REVISIONS);
        let dropped: Vec<u32> = self.history.drain(..surplus).map(|r| r.revision).collect();
        write_json(&self.dir.join("history.json"), &self.history)?;
        for revision in dropped {
            remove(&self.policy_path(revision));
        }
        Ok(())
    }

    /// The text that the `--policy` file had when it was last taken over.
    pub fn policy_file_text(&self) -> Option<String> {
        read_bounded(&self.dir.join("policy-file.yaml")).ok()
    }

    /// Remembers the `--policy` file's text, so that a restart does not undo what was applied after it.
    pub fn set_policy_file_text(&mut self, text: &str) -> Result<(), StateError> {
        if self.policy_file_text().as_deref() == Some(text) {
            return Ok(());
        }
        write_whole(&self.dir.join("policy-file.yaml"), text.as_bytes())
    }

    fn policy_path(&self, revision: u32) -> PathBuf {
        self.dir.join("policies").join(format!("{revision}.yaml"))
    }

    fn revisions_on_disk(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.dir.join("policies")) else { return Vec::new() };
        entries.filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".yaml")?.parse().ok()).collect()
    }

    /// `current`, or if it is unreadable the newest revision of the history whose text is there.
    fn read_current(&self, broken: &mut Vec<Broken>) -> Option<u32> {
        let path = self.dir.join("current");
        let why = match read_bounded(&path) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(n) if self.policy_path(n).exists() => return Some(n),
                Ok(n) => format!("revision {n} has no text in `policies`"),
                Err(_) => "it does not hold a revision's number".to_owned(),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.history.is_empty() => return None,
            Err(e) => e.to_string(),
        };
        let good = self.history.iter().rev().map(|r| r.revision).find(|r| self.policy_path(*r).exists());
        let instead =
            good.map_or("no policy can be taken up".to_owned(), |r| format!("revision {r} is taken"));
        broken.push(Broken { path, why: format!("{why}; {instead}") });
        good
    }
}

/// A text on disk that is no revision's yet, and gone with this unless [`State::begin`] takes it. One at a time.
#[derive(Debug)]
pub struct Drafted {
    revision: u32,
    text: Beside,
}

fn lock(dir: &Path) -> Result<File, StateError> {
    let directory = |source| StateError::Directory { path: dir.to_owned(), source };
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(directory)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StateError::Locked { path: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(e)) => return Err(directory(e)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(directory)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
