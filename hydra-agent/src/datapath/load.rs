//! Gets maps and programs into the kernel, or adopts what an earlier run of the agent pinned there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::programs::{ProgramError, SchedClassifier};
use hydra_common::names;
use hydra_common::verdict::Hook;

use super::error::DatapathError;
use super::pins::{self, Pins};
use super::raw::{self, GracePeriod};

/// The compiled programs, aligned as an ELF file must be.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../hydra-ebpf/hydra.bpf.o"));

/// The four programs of the object, loaded and pinned.
#[derive(Debug)]
pub struct Programs {
    by_hook: Vec<(OwnedFd, u32)>,
    /// The maps that they work on, by [`names::MAPS`].
    maps: Vec<OwnedFd>,
    /// Their own directory.
    pub directory: PathBuf,
    /// Made by this run, not adopted.
    pub fresh: bool,
}

impl Programs {
    /// The program of a hook.
    pub fn get(&self, hook: Hook) -> (&OwnedFd, u32) {
        let (fd, id) = &self.by_hook[hook as usize];
        (fd, *id)
    }
}

/// Checks what the kernel and this process can do, before anything is touched.
pub fn check() -> Result<GracePeriod, DatapathError> {
    raw::lift_memory_limit();
    GracePeriod::new().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => DatapathError::NoBpf(e),
        Some(libc::EPERM) => DatapathError::NoPrivilege(match missing_capabilities() {
            missing if missing.is_empty() => "a container's or a user namespace's limits".to_owned(),
            missing => format!("it lacks {}", missing.join(" and ")),
        }),
        _ => DatapathError::Load(e.to_string()),
    })
}

/// `CAP_SYS_ADMIN` stands for the others (`include/linux/capability.h`).
fn missing_capabilities() -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let held = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    [("CAP_BPF", 39, true), ("CAP_NET_ADMIN", 12, false)]
        .into_iter()
        .filter(|(_, bit, admin)| held >> bit & 1 == 0 && !(*admin && held >> SYS_ADMIN & 1 == 1))
        .map(|(name, ..)| name)
        .collect()
}

/// Maps and programs of `object`: what is pinned and fits is adopted, the rest is made. A failure takes back what it made.
pub fn load(pins: &Pins, object: &[u8]) -> Result<Programs, DatapathError> {
    let before = maps_there(pins)?;
    check_layout(pins, object)?;
    let directory = pins.programs.join(fingerprint(object));
    if before.len() == names::MAPS.len()
        && let Some(programs) = adopt(pins, &directory)?
    {
        return Ok(programs);
    }
    let result = create(pins, object, &directory);
    if result.is_err() {
        for name in maps_there(pins).unwrap_or_default().difference(&before) {
            let _ = fs::remove_file(pins.maps.join(name));
        }
    }
    result
}

/// The object's directory: twelve hex digits of its content. FNV-1a: tells builds apart, guards against nobody.
fn fingerprint(object: &[u8]) -> String {
    let hash = object
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:012x}", hash >> 16)
}

fn maps_there(pins: &Pins) -> Result<BTreeSet<String>, DatapathError> {
    let there = pins::names(&pins.maps).map_err(|e| DatapathError::pin("list", &pins.maps, e))?;
    Ok(there.into_iter().filter(|name| names::MAPS.contains(&name.as_str())).collect())
}

/// Compares every pinned map with the object's: aya opens a pin without a look at it.
fn check_layout(pins: &Pins, object: &[u8]) -> Result<(), DatapathError> {
    let parsed = aya_obj::Object::parse(object).map_err(|e| DatapathError::Load(e.to_string()))?;
    for name in names::MAPS {
        let Some(wanted) = parsed.maps.get(name) else {
            return Err(DatapathError::Load(format!("it has no map `{name}`")));
        };
        let path = pins.maps.join(name);
        let fd = match raw::open_pin(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(DatapathError::pin("open", &path, e)),
        };
        let found = raw::map_info(fd.as_fd()).map_err(|e| DatapathError::pin("look at", &path, e))?;
        for (field, found, expected) in [
            ("type", found.kind, wanted.map_type()),
            ("key size", found.key_size, wanted.key_size()),
            ("value size", found.value_size, wanted.value_size()),
            ("size", found.max_entries, wanted.max_entries()),
            ("flags", found.flags, wanted.map_flags()),
        ] {
            if found != expected {
                return Err(DatapathError::OtherLayout {
                    name: name.to_owned(),
                    field,
                    found,
                    expected,
                    bpffs: pins.bpffs.clone(),
                });
            }
        }
    }
    Ok(())
}

/// The programs that an earlier run of the same object pinned, if all are there and work on the maps that are pinned now.
fn adopt(pins: &Pins, directory: &Path) -> Result<Option<Programs>, DatapathError> {
    let generation = pins.maps.join(names::GENERATION);
    let generation = raw::open_pin(&generation)
        .and_then(|fd| raw::map_info(fd.as_fd()))
        .map_err(|e| DatapathError::pin("look at", &generation, e))?
        .id;
    let mut programs = Vec::new();
    for name in names::PROGRAMS {
        let path = directory.join(name);
        let fd = match raw::open_pin(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DatapathError::pin("open", &path, e)),
        };
        let (info, maps) =
            raw::program_info(fd.as_fd()).map_err(|e| DatapathError::pin("look at", &path, e))?;
        // Programs of maps that were taken away and made anew would read tables that nobody writes.
        if info.kind != raw::PROG_SCHED_CLS || !maps.contains(&generation) {
            return Ok(None);
        }
        programs.push((fd, info.id));
    }
    let mut maps = Vec::new();
    for name in names::MAPS {
        let path = pins.maps.join(name);
        maps.push(raw::open_pin(&path).map_err(|e| DatapathError::pin("open", &path, e))?);
    }
    Ok(Some(Programs { by_hook: programs, maps, directory: directory.to_owned(), fresh: false }))
}

fn create(pins: &Pins, object: &[u8], directory: &Path) -> Result<Programs, DatapathError> {
    let broken = |e: &dyn std::error::Error| DatapathError::Load(chain(e));
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        loader.map_pin_path(name, pins.maps.join(name));
    }
    let mut ebpf = loader.load(object).map_err(|e| broken(&e))?;
    // Pinned beside the final place and moved there whole: a crash leaves no half set under the object's name.
    let new = directory.with_file_name(format!("{}-new", fingerprint(object)));
    remove_programs(&new)?;
    fs::create_dir(&new).map_err(|e| DatapathError::pin("make", &new, e))?;
    let mut load = || {
        // The verifier takes its time for each, and one CPU each.
        let mut programs: Vec<&mut SchedClassifier> = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            if names::PROGRAMS.contains(&name) {
                programs.push(program.try_into().map_err(|e: ProgramError| broken(&e))?);
            }
        }
        std::thread::scope(|scope| {
            let loads: Vec<_> = programs.into_iter().map(|program| scope.spawn(|| program.load())).collect();
            loads.into_iter().try_for_each(|load| match load.join() {
                Ok(loaded) => loaded.map_err(|e| broken(&e)),
                Err(_) => Err(DatapathError::Load("a loading thread ended early".to_owned())),
            })
        })?;
        for name in names::PROGRAMS {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .ok_or_else(|| DatapathError::Load(format!("it has no program `{name}`")))?
                .try_into()
                .map_err(|e: ProgramError| broken(&e))?;
            program.pin(new.join(name)).map_err(|e| broken(&e))?;
        }
        remove_programs(directory)?;
        fs::rename(&new, directory).map_err(|e| DatapathError::pin("move", &new, e))
    };
    if let Err(error) = load() {
        let _ = remove_programs(&new);
        return Err(error);
    }
    let programs = adopt(pins, directory)?;
    programs
        .map(|p| Programs { fresh: true, ..p })
        .ok_or_else(|| DatapathError::Load("its programs do not use the pinned maps".to_owned()))
}

/// Pins again what of the maps and programs in use has lost its pin: the next agent would begin without it.
pub fn pin_again(pins: &Pins, programs: &Programs) -> Result<(), DatapathError> {
    let maps = maps_there(pins)?;
    let own =
        pins::names(&programs.directory).map_err(|e| DatapathError::pin("list", &programs.directory, e))?;
    if maps.len() == names::MAPS.len() && names::PROGRAMS.iter().all(|name| own.iter().any(|own| own == name))
    {
        return Ok(());
    }
    // The directories may be gone, too.
    Pins::open(&pins.bpffs)?;
    if !programs.directory.exists() {
        fs::create_dir(&programs.directory)
            .map_err(|e| DatapathError::pin("make", &programs.directory, e))?;
    }
    let pinned = |object: &OwnedFd, path: &Path| match raw::pin(object.as_fd(), path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(DatapathError::pin("pin", path, e)),
        _ => Ok(()),
    };
    for (name, (program, _)) in names::PROGRAMS.into_iter().zip(&programs.by_hook) {
        pinned(program, &programs.directory.join(name))?;
    }
    names::MAPS.into_iter().zip(&programs.maps).try_for_each(|(name, map)| pinned(map, &pins.maps.join(name)))
}

/// Takes one object's pins away.
pub fn remove_programs(directory: &Path) -> Result<(), DatapathError> {
    let failed = |e| DatapathError::pin("remove", directory, e);
    for name in pins::names(directory).map_err(failed)? {
        fs::remove_file(directory.join(name)).map_err(failed)?;
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// An error with its causes: aya keeps the verifier's words in them. The end is what tells.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= 24 {
        return text;
    }
    format!("{} …\n{}", lines[0], lines[lines.len() - 20..].join("\n"))
}
