//! The unix socket in the run directory: made where nobody else can reach it, then moved into place; a stale one is replaced only
//! after nobody answers on it.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The socket's name in the run directory.
pub const SOCKET_NAME: &str = "agent.sock";
/// Locked by the agent that owns the run directory.
const LOCK_NAME: &str = "agent.lock";
/// Members of this group may use the socket, where it exists.
const GROUP: &str = "hydra";

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent lives in this run directory.
    #[error("another agent runs in `{0}`")]
    Busy(PathBuf),
    /// The directory is not one that only its owner can write to.
    #[error("the run directory `{path}` is not safe: {why}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What is at the socket's place is not a socket.
    #[error("`{path}` is in the way: {what}, not a socket")]
    InTheWay {
        /// The socket's path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The system refused.
    #[error("cannot {what} `{path}`: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SocketError {
    /// What mends it.
    pub fn hint(&self) -> String {
        match self {
            Self::Busy(_) => {
                "give the second agent directories of its own: `--run-dir`, `--state-dir`, `--bpffs`".into()
            }
            Self::Directory { path, .. } => {
                format!(
                    "`chown root {0} && chmod go-w {0}`, or choose another with `--run-dir`",
                    path.display()
                )
            }
            Self::InTheWay { path, .. } => format!("look what it is, then `rm {}`", path.display()),
            Self::Io { path, .. } => {
                format!("`ls -ld {}`", path.parent().unwrap_or(Path::new("/")).display())
            }
        }
    }
}

/// The bound socket. Holds the run directory's lock.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    _lock: File,
}

impl ControlSocket {
    /// Makes `agent.sock` in a run directory, 0660 and of the group `hydra` where there is one. Must be called within a tokio
    /// runtime.
    pub fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        let lock = prepare(run_dir)?;
        let path = run_dir.join(SOCKET_NAME);
        clear(&path)?;

        // In a directory that only we can enter, so that nobody connects before the mode is right. Short: the path of a socket
        // has 107 bytes.
        let nest = run_dir.join(format!(".{}", std::process::id()));
        let _ = fs::remove_dir_all(&nest);
        DirBuilder::new().mode(0o700).create(&nest).map_err(failed("make", &nest))?;
        let made = make(&nest.join("s"), &path);
        let _ = fs::remove_dir_all(&nest);
        let (listener, inode) = made?;
        Ok(Self { listener, path, inode, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket, unless somebody else's has taken its place.
    pub(crate) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The run directory, ours alone to write, locked.
fn prepare(run_dir: &Path) -> Result<File, SocketError> {
    DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(failed("make", run_dir))?;
    let meta = fs::metadata(run_dir).map_err(failed("read", run_dir))?;
    let unsafe_because = |why| SocketError::Directory { path: run_dir.to_owned(), why };
    if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(unsafe_because("it belongs to another user"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(unsafe_because("other users can write to it"));
    }
    let path = run_dir.join(LOCK_NAME);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(SocketError::Busy(run_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(SocketError::Io { what: "lock", path, source }),
    }
}

/// Takes a dead agent's socket away; refuses anything else.
fn clear(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("read", path)(e)),
    };
    let in_the_way = |what| SocketError::InTheWay { path: path.to_owned(), what };
    if kind.is_symlink() {
        return Err(in_the_way("a symbolic link"));
    }
    if kind.is_dir() {
        return Err(in_the_way("a directory"));
    }
    if !kind.is_socket() {
        return Err(in_the_way("a file"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove", path))
        }
        Err(e) => Err(failed("try", path)(e)),
        Ok(_) => Err(SocketError::Busy(path.parent().unwrap_or(path).to_owned())),
    }
}

/// Binds at `hidden`, gives it its mode and group, and moves it to `path`.
fn make(hidden: &Path, path: &Path) -> Result<(UnixListener, (u64, u64)), SocketError> {
    let listener = UnixListener::bind(hidden).map_err(failed("bind", path))?;
    fs::set_permissions(hidden, Permissions::from_mode(0o660)).map_err(failed("set the mode of", path))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP)
        && let Err(error) = std::os::unix::fs::chown(hidden, None, Some(group.gid.as_raw()))
    {
        tracing::warn!(group = GROUP, %error, "the socket keeps the agent's own group: only root can use it");
    }
    let meta = fs::symlink_metadata(hidden).map_err(failed("read", path))?;
    fs::rename(hidden, path).map_err(failed("place", path))?;
    Ok((listener, (meta.dev(), meta.ino())))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SocketError + 'a {
    move |source| SocketError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("hyr").permissions(Permissions::from_mode(0o755)).tempdir().unwrap()
    }

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_away() {
        let dir = run_dir();
        let socket = ControlSocket::bind(dir.path()).unwrap();
        let meta = fs::symlink_metadata(socket.path()).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.mode() & 0o777, 0o660);
        UnixStream::connect(socket.path()).unwrap();
        socket.remove();
        assert!(!socket.path().exists());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["agent.lock"], "nothing else stays behind");
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_a_dead_one_replaced() {
        let dir = run_dir();
        let first = ControlSocket::bind(dir.path()).unwrap();
        assert!(matches!(ControlSocket::bind(dir.path()), Err(SocketError::Busy(_))));
        drop(first);
        assert!(dir.path().join(SOCKET_NAME).exists(), "as after kill -9");
        ControlSocket::bind(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_living_socket_without_a_lock_is_not_replaced() {
        let dir = run_dir();
        let _other = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        assert!(matches!(ControlSocket::bind(dir.path()), Err(SocketError::Busy(_))));
    }

    #[tokio::test]
    async fn a_symbolic_link_a_file_and_a_directory_are_refused_and_stay() {
        for (what, make) in [
            (
                "a symbolic link",
                (|p| std::os::unix::fs::symlink("/etc/passwd", p)) as fn(&Path) -> io::Result<()>,
            ),
            ("a file", |p| fs::write(p, "")),
            ("a directory", |p| fs::create_dir(p)),
        ] {
            let dir = run_dir();
            let path = dir.path().join(SOCKET_NAME);
            make(&path).unwrap();
            let error = ControlSocket::bind(dir.path()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{}` is in the way: {what}, not a socket", path.display())
            );
            assert!(fs::symlink_metadata(&path).is_ok());
        }
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_refused() {
        let dir = run_dir();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let error = ControlSocket::bind(dir.path()).unwrap_err();
        assert!(
            matches!(error, SocketError::Directory { why: "other users can write to it", .. }),
            "{error}"
        );
    }
}
