//! Where pins lie: `<bpffs>/v<ABI>/{maps,programs/<object>,links}`, directories of this user alone.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hydra_common::ABI;
use hydra_common::verdict::Hook;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::DatapathError;
use super::predrop;
use super::sockets;

/// The directories of one layout. Names hold no dot: the kernel keeps those for itself (`bpf_lookup`).
#[derive(Clone, Debug)]
pub struct Pins {
    /// What the operator named.
    pub bpffs: PathBuf,
    /// One pin per map, by its name.
    pub maps: PathBuf,
    /// One directory per object.
    pub programs: PathBuf,
    /// One pin per interface and hook.
    pub links: PathBuf,
}

impl Pins {
    /// Opens or makes them.
    pub fn open(bpffs: &Path) -> Result<Self, DatapathError> {
        on_bpffs(bpffs)?;
        let layout = format!("v{ABI}");
        let (root, pins) = (bpffs.join(&layout), Self::below(bpffs, &layout));
        // Directories above the one named are somebody else's.
        if let Some(parent) = bpffs.parent() {
            fs::create_dir_all(parent).map_err(|e| DatapathError::pin("make", parent, e))?;
        }
        for directory in [bpffs, &root, &pins.maps, &pins.programs, &pins.links] {
            private(directory)?;
        }
        Ok(pins)
    }

    /// Those of a layout, there or not.
    pub fn below(bpffs: &Path, layout: &str) -> Self {
        let root = bpffs.join(layout);
        Self {
            bpffs: bpffs.to_owned(),
            maps: root.join("maps"),
            programs: root.join("programs"),
            links: root.join("links"),
        }
    }

    /// Keeps other agents off these pins, for as long as the value lives or this process does.
    pub fn lock(&self) -> Result<Flock<File>, DatapathError> {
        let directory = File::open(&self.maps).map_err(|e| DatapathError::pin("open", &self.maps, e))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == Errno::EWOULDBLOCK {
                DatapathError::InUse(self.bpffs.clone())
            } else {
                DatapathError::pin("lock", &self.maps, errno.into())
            }
        })
    }

    /// The pin of a TCX link.
    pub fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links.join(format!("{ifindex}-{}", hook.as_str()))
    }

    /// The pin of a link of a cgroup, by what it hooks.
    pub fn socket(&self, hook: &str) -> PathBuf {
        self.links.join(format!("{CGROUP}{hook}"))
    }

    /// The pin of a link of XDP.
    pub fn predrop(&self, ifindex: u32) -> PathBuf {
        self.links.join(format!("{ifindex}-{}", predrop::HOOK))
    }

    /// The pin that says that a clsact filter of ours is there: of the program that it runs.
    pub fn filter(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links.join(format!("{ifindex}-{}{CLSACT}", hook.as_str()))
    }
}

/// What the names of filters' pins end with.
const CLSACT: &str = "-clsact";
/// What the names of cgroups' pins begin with.
const CGROUP: &str = "cgroup-";

/// What stands behind an entry of the links' directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A TCX link.
    Link(u32, Hook),
    /// The mark of a clsact filter.
    Filter(u32, Hook),
    /// A link of a cgroup.
    Socket,
    /// A link of XDP.
    Predrop(u32),
}

/// Reads a name that [`Pins::link`], [`Pins::filter`], [`Pins::socket`] or [`Pins::predrop`] made.
pub fn entry(name: &str) -> Option<Entry> {
    if name.strip_prefix(CGROUP).is_some_and(|hook| sockets::names().any(|name| name == hook)) {
        return Some(Entry::Socket);
    }
    let (ifindex, rest) = name.split_once('-')?;
    let ifindex = ifindex.parse().ok()?;
    if rest == predrop::HOOK {
        return Some(Entry::Predrop(ifindex));
    }
    let (word, filter) = match rest.strip_suffix(CLSACT) {
        Some(word) => (word, true),
        None => (rest, false),
    };
    let hook = Hook::INTERFACES.into_iter().find(|h| h.as_str() == word)?;
    Some(if filter { Entry::Filter(ifindex, hook) } else { Entry::Link(ifindex, hook) })
}

/// Takes a pin away; one that is gone is fine.
pub fn remove(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The directories of all layouts.
pub fn layouts(bpffs: &Path) -> io::Result<Vec<String>> {
    let is_layout = |name: &String| {
        name.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(names(bpffs)?.into_iter().filter(is_layout).collect())
}

/// The names in a directory; none where there is none.
pub fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Refuses a path that is not, or would not be made, on a BPF file system.
pub fn on_bpffs(path: &Path) -> Result<(), DatapathError> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(there).map_err(|e| DatapathError::pin("look at", there, e.into()))?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(DatapathError::NotBpffs(path.to_owned()))
    }
}

fn private(directory: &Path) -> Result<(), DatapathError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(DatapathError::pin("make", directory, e)),
    }
    let meta = fs::symlink_metadata(directory).map_err(|e| DatapathError::pin("look at", directory, e))?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(DatapathError::NotOurs(directory.to_owned()));
    }
    // The mount point itself is often the administrator's to share; what lies below it is not.
    if meta.mode() & 0o077 != 0 && !is_mount_point(directory, &meta) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
            .map_err(|e| DatapathError::pin("protect", directory, e))?;
    }
    Ok(())
}

fn is_mount_point(directory: &Path, meta: &fs::Metadata) -> bool {
    directory.parent().and_then(|p| fs::metadata(p).ok()).is_some_and(|p| p.dev() != meta.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_read_back() {
        let pins =
            Pins { bpffs: "/b".into(), maps: "/b/m".into(), programs: "/b/p".into(), links: "/b/l".into() };
        for hook in Hook::INTERFACES {
            let name = |p: PathBuf| p.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(entry(&name(pins.link(7, hook))), Some(Entry::Link(7, hook)));
            assert_eq!(entry(&name(pins.filter(7, hook))), Some(Entry::Filter(7, hook)));
        }
        assert_eq!(entry(pins.predrop(7).file_name().unwrap().to_str().unwrap()), Some(Entry::Predrop(7)));
        for hook in sockets::names() {
            assert_eq!(entry(pins.socket(hook).file_name().unwrap().to_str().unwrap()), Some(Entry::Socket));
        }
        for foreign in [
            "",
            "cgroup-",
            "cgroup-connect5",
            "x",
            "7",
            "7-",
            "7-port",
            "-port-in",
            "7-port-in-",
            "7-predrop-clsact",
            "seven-port-in",
        ] {
            assert_eq!(entry(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_plain_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("hydra");
        assert!(matches!(Pins::open(&below), Err(DatapathError::NotBpffs(p)) if p == below));
        assert!(!below.exists(), "a refusal makes nothing");
    }
}
