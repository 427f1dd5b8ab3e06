//! The cgroup v2 hierarchy of this machine: where hydra's hooks on processes sit, and whose folder is whose. The hybrid layout (v1
//! controllers, v2 beside them) has one too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hydra_common::tables::MAX_CGROUP_DEPTH;

use crate::inventory::namespaces::Process;

/// Levels of folders that are searched for units.
const SEARCH: usize = 8;
/// Kinds of units that have processes.
pub const UNITS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The kernel's number of the root of the v2 hierarchy (`kernfs_create_root`: the first of its own).
pub const ROOT: u64 = 1;

/// Where the hooks on processes sit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The root of the v2 hierarchy: every process of this machine passes them, those of containers are judged.
    #[default]
    Auto,
    /// Nowhere.
    None,
    /// That folder of the v2 hierarchy: only what runs below it.
    At(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => {
                Err("expected `auto`, `none` or the absolute path of a folder of the cgroup v2 hierarchy"
                    .into())
            }
        }
    }
}

/// The hierarchy, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    /// Where the hooks belong.
    pub place: PathBuf,
}

impl Hierarchy {
    /// Finds it; nothing where it is switched off. The error says, as a sentence without a period, why there is none.
    pub fn find(place: &Place) -> Result<Option<Self>, String> {
        if *place == Place::None {
            return Ok(None);
        }
        let table =
            fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("mounts cannot be read: {e}"))?;
        let mount = mount_point(&table).ok_or("this machine has no cgroup v2 hierarchy mounted")?;
        let place = match place {
            Place::At(path) => path.clone(),
            Place::Auto | Place::None => mount.clone(),
        };
        if !place.starts_with(&mount) {
            return Err(format!(
                "`{}` is not below `{}`, the cgroup v2 hierarchy",
                place.display(),
                mount.display()
            ));
        }
        match fs::metadata(&place) {
            Ok(meta) if meta.is_dir() => Ok(Some(Self { mount, place })),
            Ok(_) => Err(format!("`{}` is no folder", place.display())),
            Err(e) => Err(format!("`{}` cannot be looked at: {e}", place.display())),
        }
    }

    /// The kernel's number of a container's cgroup, by its first process. `None` where the process is gone, or has no cgroup of its
    /// own below the place of the hooks.
    pub fn of_container(&self, process: Process, id: &str) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok()?;
        // Asked after reading: a process that is there now has been there all the time.
        if Process::of(process.pid).ok()? != process {
            return None;
        }
        let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
        self.number(&self.mount.join(own_part(path, id).trim_start_matches('/')))
    }

    /// Every unit of systemd's that has a cgroup, by name: its folder has it, whatever slice it is in. Not those of a
    /// user's manager or inside a scope, where anybody can make a folder of any name. Of two of one name the one nearest to the root
    /// counts.
    pub fn units(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut level = vec![self.place.clone()];
        for _ in 0..SEARCH {
            let mut below = Vec::new();
            for folder in level {
                for (name, path) in folders(&folder) {
                    let unit = UNITS.iter().any(|kind| name.ends_with(kind));
                    if !unit {
                        continue;
                    }
                    // What the kernel could mistake for a file of its own has an underscore in front (systemd, `cg_escape`).
                    let name = name.strip_prefix('_').unwrap_or(&name).to_owned();
                    if !delegated(&name) {
                        below.push(path.clone());
                    }
                    if let Some(number) = self.number(&path) {
                        found.entry(name).or_insert(number);
                    }
                }
            }
            level = below;
        }
        found
    }

    /// The number of a folder that the hooks see and find: below theirs, and not too deep.
    fn number(&self, folder: &Path) -> Option<u64> {
        let depth = folder.strip_prefix(&self.mount).ok()?.components().count();
        let below = folder.starts_with(&self.place) && folder != self.place;
        if !below || depth > MAX_CGROUP_DEPTH as usize {
            return None;
        }
        fs::metadata(folder).ok().filter(fs::Metadata::is_dir).map(|m| m.ino())
    }
}

/// Whether what is below a unit is not systemd's own: a scope's (a container may well have a systemd inside), a user's manager's.
fn delegated(unit: &str) -> bool {
    match unit.rsplit_once('.') {
        Some((_, "scope")) => true,
        Some((name, kind)) => kind == "service" && name.starts_with("user@"),
        None => false,
    }
}

/// The kernel's number of a folder.
pub fn number(folder: &Path) -> io::Result<u64> {
    fs::metadata(folder).map(|m| m.ino())
}

/// Folders in a folder, by name; none where it cannot be read.
fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
        .collect();
    found.sort_unstable();
    found
}

/// Of a container's path the part down to the folder that is named after it: systemd and nested engines move the first process
/// into one of their own making below that.
fn own_part<'p>(path: &'p str, id: &str) -> &'p str {
    let Some(at) = path.find(id).filter(|_| !id.is_empty()) else { return path };
    match path[at..].find('/') {
        Some(end) => &path[..at + end],
        None => path,
    }
}

/// Where the whole v2 hierarchy is mounted (`proc_pid_mountinfo(5)`: the fourth field is the mounted part, the fifth the place, and
/// the type follows a lone hyphen).
fn mount_point(table: &str) -> Option<PathBuf> {
    let of = |line: &str| {
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let v2 = rest.split(' ').next() == Some("cgroup2");
        (v2 && root == "/").then(|| PathBuf::from(place))
    };
    // The last one mounted at a place is the one that is seen.
    table.lines().rev().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
27 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn the_hierarchy_is_found_in_both_layouts() {
        assert_eq!(mount_point(HYBRID), Some("/sys/fs/cgroup/unified".into()));
        let pure = "25 20 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount_point("26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        let part = "25 20 0:22 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(part), None, "only a part of it is to be seen");
    }

    #[test]
    fn a_containers_own_folder_is_the_one_named_after_it() {
        let id = "0123456789abcdef";
        for (path, own) in [
            ("/docker/0123456789abcdef", "/docker/0123456789abcdef"),
            ("/docker/0123456789abcdef/init.scope", "/docker/0123456789abcdef"),
            (
                "/system.slice/docker-0123456789abcdef.scope/init",
                "/system.slice/docker-0123456789abcdef.scope",
            ),
            ("/elsewhere", "/elsewhere"),
        ] {
            assert_eq!(own_part(path, id), own);
        }
    }

    #[test]
    fn units_are_found_by_their_folders_where_systemd_alone_makes_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for folder in [
            "place/system.slice/web.service",
            "place/system.slice/_cgroup.service",
            "place/user.slice/user-0.slice/user@0.service/app.slice/mine.service",
            "place/system.slice/docker-77.scope/system.slice/inside.service",
            "place/docker/x.service",
            "beside/system.slice/other.service",
        ] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let hierarchy = Hierarchy { mount: root.to_owned(), place: root.join("place") };
        let units = hierarchy.units();
        let names: Vec<&str> = units.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "cgroup.service",
                "docker-77.scope",
                "system.slice",
                "user-0.slice",
                "user.slice",
                "user@0.service",
                "web.service"
            ]
        );
        assert_eq!(units["web.service"], number(&root.join("place/system.slice/web.service")).unwrap());
        assert_eq!(hierarchy.number(&root.join("beside/system.slice")), None);
        assert_eq!(hierarchy.number(&root.join("place")), None, "everybody's");
    }
}
