//! Cgroups of a test's own: programs are attached there, and to what the machine's other processes are in only where that is the point.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use hydra_agent::cgroup::{Hierarchy, Place};

/// What the folders of all tests begin with; the process's number follows.
const PREFIX: &str = "hydra-test-";

/// A folder of the v2 hierarchy with everything below it, taken away when dropped. What a killed test left behind the next one takes
/// away.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one at the root of the v2 hierarchy.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let found = Hierarchy::find(&Place::Auto).map_err(anyhow::Error::msg)?;
        let root = found.context("no cgroup v2 hierarchy")?.place;
        sweep(&root);
        // Units are looked for below folders that are named like units.
        let name = format!("{PREFIX}{}-{}.slice", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below it, made with those above.
    pub fn below(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were told to end need a moment to be gone.
        for _ in 0..100 {
            remove(&self.path);
            if !self.path.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Lets a program begin its life in a cgroup.
pub fn inside(command: &mut Command, folder: &Path) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let procs = std::ffi::CString::new(folder.join("cgroup.procs").into_os_string().into_encoded_bytes())?;
    // SAFETY: open, write and close are async-signal-safe, and the path was made before.
    unsafe {
        command.pre_exec(move || {
            let fd = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // `0` is the writer itself (`cgroup_procs_write`).
            let written = libc::write(fd, c"0".as_ptr().cast(), 1);
            let error = std::io::Error::last_os_error();
            libc::close(fd);
            if written == 1 { Ok(()) } else { Err(error) }
        });
    }
    Ok(())
}

fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Folders go from the leaves up; files in them are the kernel's own.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
