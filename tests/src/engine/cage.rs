//! A control group for everything that an engine starts, containers included, and a process that clears up when this one is
//! gone. Containers are nobody's children: neither a panic nor the end of the engine would end them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

const REAP: &str = include_str!("reap.sh");

/// A living group with its directory on disk.
pub struct Cage {
    group: PathBuf,
    disk: PathBuf,
    reaper: Child,
}

impl Cage {
    /// Makes both, for this name, and starts the process that will clear them up.
    pub fn new(name: &str, disk: &Path) -> Result<Self> {
        let group = own_group()?.join(name);
        fs::create_dir_all(disk).with_context(|| format!("cannot make `{}`", disk.display()))?;
        fs::create_dir(&group)
            .with_context(|| format!("cannot make the control group `{}`", group.display()))?;
        fs::create_dir(group.join("engine"))?;
        let reaper = reaper(&group, disk).stdin(Stdio::piped()).spawn().context("cannot start `sh`")?;
        Ok(Self { group, disk: disk.to_owned(), reaper })
    }

    /// The group.
    pub fn group(&self) -> &Path {
        &self.group
    }

    /// The directory on disk.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// A command that runs a program inside the group's own part, `engine`, or at its root where `root` is set.
    pub fn command(&self, root: bool, program: &str) -> Command {
        let group = if root { self.group.clone() } else { self.group.join("engine") };
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs")).arg(program);
        command
    }

    /// Clears up what earlier test processes left whose machine stopped under them: `named` tells whose is whose.
    pub fn sweep(directory: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
                reaper(&own_group()?.join(&name), &entry.path())
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .status()?;
            }
        }
        Ok(())
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // It waits for the end of its input.
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
    }
}

/// A name that says which process made what it names.
pub fn name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("hy{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("hy")?.split_once('-')?.0.parse().ok()
}

fn reaper(group: &Path, disk: &Path) -> Command {
    let mut command = Command::new("sh");
    // In a process group of its own: Ctrl-C is for the test, not for what clears up after it.
    command.args(["-c", REAP, "hydra-reaper"]).arg(group).arg(disk).stdout(Stdio::null()).process_group(0);
    command
}

/// Where this process itself is in the tree of control groups, version 2.
fn own_group() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4)).flatten()
    });
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let mount = mount.context("control groups of version 2 are not mounted on this machine")?;
    Ok(Path::new(mount).join(own.context("this process is in no control group of version 2")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        assert_eq!(owner(&name()), Some(std::process::id()));
        assert_eq!(owner("hydra"), None);
        assert_eq!(owner("something"), None);
    }
}
