//! Finding network namespaces by file: the names under the netns directory, the processes of containers, and, for what is left,
//! any process. Opening one never enters it; entering happens on a thread of its own, here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

/// The type of the file system that namespaces' files live on (`NSFS_MAGIC` of `linux/magic.h`).
const NSFS: libc::__fsword_t = 0x6e73_6673;
/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Its file does not open.
    #[error("namespace `{}` could not be opened: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The file is something else.
    #[error("`{}` is not a network namespace", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// It opens, and no thread can go in.
    #[error("namespace `{}` could not be entered: {source}", path.display())]
    Enter {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The file now leads to another namespace than the one that was meant.
    #[error("namespace `{}` is gone, another one has its place", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
}

impl NamespaceError {
    /// It is gone, and that is no fault.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Open { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH)
            }
            Self::Replaced { .. } => true,
            Self::Other { .. } | Self::Enter { .. } => false,
        }
    }

    /// The agent may not look there, and will not be able to later.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Tells one namespace from every other. Inode numbers are given again as soon as they are free; the kernel's cookie never is,
/// but Linux has it since 5.14 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Of its file.
    pub inode: u64,
    /// The kernel's own number, where it could be had.
    pub cookie: Option<u64>,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cookie {
            Some(cookie) => write!(f, "{}.{cookie}", self.inode),
            None => write!(f, "{}", self.inode),
        }
    }
}

/// An open namespace: while it is open, its inode number is nobody else's. It also keeps the namespace alive: hold it briefly.
#[derive(Debug)]
pub struct Opened {
    /// Where it was found.
    pub path: PathBuf,
    /// Of its file.
    pub inode: u64,
    /// The namespace.
    pub file: File,
}

impl Opened {
    /// Opens a namespace's file, and makes sure that it is one.
    pub fn at(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |source| NamespaceError::Open { path: path.to_owned(), source };
        let file = fs::OpenOptions::new()
            .read(true)
            // A pipe laid in the directory must not stop us.
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(failed)?;
        let system = fstatfs(&file).map_err(|e| failed(e.into()))?;
        if system.filesystem_type() != FsType(NSFS) {
            return Err(NamespaceError::Other { path: path.to_owned() });
        }
        let inode = file.metadata().map_err(failed)?.ino();
        Ok(Self { path: path.to_owned(), inode, file })
    }

    /// That of a process, if it is still the process that started at that moment.
    pub fn of_process(process: Process) -> Result<Self, NamespaceError> {
        let path = process.namespace();
        let opened = Self::at(&path)?;
        // Asked after opening: a process that is there now has been there all the time.
        match Process::of(process.pid) {
            Ok(now) if now == process => Ok(opened),
            Ok(_) => Err(NamespaceError::Replaced { path }),
            Err(source) => Err(NamespaceError::Open { path, source }),
        }
    }
}

/// A process, told from later ones of the same number by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from the machine's start to its own.
    pub start: u64,
}

impl Process {
    /// The process that has that number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        start_of(&stat)
            .map(|start| Self { pid, start })
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in `stat`"))
    }

    /// The file of its network namespace.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }
}

/// The 22nd field. The second one is the program's name in brackets, and may hold anything, brackets and blanks included.
fn start_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The calling thread's namespace.
pub fn own() -> Result<Opened, NamespaceError> {
    Opened::at(Path::new("/proc/thread-self/ns/net"))
}

/// Every namespace that has a name in the directory, by name. What is not a namespace (a name whose namespace is just being
/// made or taken away) is left out; a directory that is not there is an empty one.
pub fn named(directory: &Path) -> Result<BTreeMap<String, Opened>, NamespaceError> {
    let failed = |source| NamespaceError::Open { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        match Opened::at(&entry.path()) {
            Ok(opened) => drop(found.insert(name, opened)),
            Err(error) if error.is_absence() || matches!(error, NamespaceError::Other { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// One process of every namespace that is not among the known ones, the lowest number first.
pub fn of_processes(known: &BTreeSet<u64>) -> Vec<Opened> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> =
        entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok()).collect();
    pids.sort_unstable();
    let mut seen = known.clone();
    let mut found = Vec::new();
    for pid in pids {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        // Reading the link is a tenth of the work of opening it, and most processes share the host's namespace.
        let inode = fs::read_link(&path)
            .ok()
            .and_then(|link| link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse::<u64>().ok());
        if inode.is_some_and(|inode| !seen.contains(&inode))
            && let Ok(opened) = Opened::at(&path)
            && seen.insert(opened.inode)
        {
            found.push(opened);
        }
    }
    found
}

/// Runs `work` on a thread of its own: a thread that entered a namespace must never serve anything else again.
pub async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, io::Error> {
    let (reply, answer) = oneshot::channel();
    std::thread::Builder::new().name("hydra-netns".to_owned()).spawn(move || {
        // Nobody listens any more if the caller was dropped; that is fine.
        let _ = reply.send(work());
    })?;
    answer.await.map_err(|_| io::Error::other("the thread ended without an answer"))
}

/// Moves the calling thread, for good.
pub fn enter(namespace: &Opened) -> Result<(), NamespaceError> {
    setns(namespace.file.as_fd(), CloneFlags::CLONE_NEWNET)
        .map_err(|e| NamespaceError::Enter { path: namespace.path.clone(), source: e.into() })
}

/// Moves the calling thread, for good, and says which namespace it is in now.
pub fn enter_and_identify(namespace: &Opened) -> Result<Id, NamespaceError> {
    enter(namespace)?;
    Ok(Id { inode: namespace.inode, cookie: cookie_here() })
}

/// Cookies of namespaces, in their order, `None` where there is none to be had. Gives the namespaces back.
pub async fn identify(namespaces: Vec<Opened>) -> io::Result<Vec<(Opened, Id)>> {
    if namespaces.is_empty() {
        return Ok(Vec::new());
    }
    on_own_thread(move || {
        namespaces
            .into_iter()
            .map(|opened| {
                let cookie = enter(&opened).ok().and_then(|()| cookie_here());
                let id = Id { inode: opened.inode, cookie };
                (opened, id)
            })
            .collect()
    })
    .await
}

/// The cookie of the calling thread's namespace.
pub fn cookie_here() -> Option<u64> {
    use std::os::fd::AsRawFd;
    let socket = std::os::unix::net::UnixDatagram::unbound().ok()?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which lives through the call and is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<u64>()).then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_hostile_program_name() {
        let stat = "7 (a) b (c) 9 9) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 424242 99 11";
        assert_eq!(start_of(stat), Some(424_242));
        assert_eq!(start_of("7 (x) S 1"), None);
        assert_eq!(start_of(""), None);
    }

    #[test]
    fn own_process_is_itself_and_its_namespace_opens() {
        let me = Process::of(std::process::id()).unwrap();
        assert_eq!(Opened::of_process(me).unwrap().inode, own().unwrap().inode);
    }

    #[test]
    fn a_later_process_of_the_same_number_is_refused() {
        let me = Process::of(std::process::id()).unwrap();
        let earlier = Process { start: me.start.wrapping_sub(1), ..me };
        let error = Opened::of_process(earlier).unwrap_err();
        assert!(matches!(error, NamespaceError::Replaced { .. }), "{error}");
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("hy-half-made"), "").unwrap();
        assert!(named(directory.path()).unwrap().is_empty());
        assert!(named(&directory.path().join("absent")).unwrap().is_empty());
        let error = Opened::at(&directory.path().join("hy-half-made")).unwrap_err();
        assert!(error.to_string().ends_with("hy-half-made` is not a network namespace"), "{error}");
    }
}
