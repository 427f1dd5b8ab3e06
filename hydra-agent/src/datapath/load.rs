//! Gets maps and programs into the kernel, or adopts what an earlier run of the agent pinned there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use hydra_common::names;
use hydra_common::share::{Meetings, Word};
use hydra_common::verdict::Hook;
use tracing::warn;

use super::error::{DatapathError, table};
use super::maps::Table;
use super::pins::{self, Pins};
use super::raw::{self, GracePeriod};
use super::room::{Room, Words};
use super::store;

/// The compiled programs, aligned as an ELF file must be.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../hydra-ebpf/hydra.bpf.o"));

/// The programs of the object, loaded and pinned.
#[derive(Debug)]
pub struct Programs {
    by_hook: Vec<(OwnedFd, u32)>,
    /// The maps that they work on, by [`names::MAPS`].
    maps: Vec<OwnedFd>,
    /// What takes entries out of the flow table.
    pub sweep: OwnedFd,
    /// Those of cgroups, in the order of [`names::SOCKET_PROGRAMS`]; none where the kernel did not take them.
    pub sockets: Vec<(OwnedFd, u32)>,
    /// The same of [`names::PACKET_PROGRAMS`].
    pub packets: Vec<(OwnedFd, u32)>,
    /// That of interfaces to the outside, by XDP; none where nobody asked, or the kernel did not take it.
    pub predrop: Option<(OwnedFd, u32)>,
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

    /// All that are loaded, by the names of their pins.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &OwnedFd)> {
        let interfaces = names::PROGRAMS.into_iter().zip(&self.by_hook);
        let sockets = names::SOCKET_PROGRAMS.into_iter().zip(&self.sockets);
        let packets = names::PACKET_PROGRAMS.into_iter().zip(&self.packets);
        let hooks = interfaces.chain(sockets).chain(packets).map(|(name, (program, _))| (name, program));
        let predrop = self.predrop.iter().map(|(program, _)| (names::PREDROP_PROGRAM, program));
        hooks.chain(predrop).chain([(names::SWEEP_PROGRAM, &self.sweep)])
    }
}

/// Checks what the kernel and this process can do, before anything is touched.
pub fn check() -> Result<GracePeriod, DatapathError> {
    if fs::read_to_string("/sys/kernel/realtime").is_ok_and(|is| is.trim() == "1") {
        return Err(DatapathError::Realtime);
    }
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
pub fn load(pins: &Pins, room: Room, object: &[u8]) -> Result<Programs, DatapathError> {
    let before = maps_there(pins)?;
    check_layout(pins, object)?;
    let directory = pins.programs.join(fingerprint(object));
    if before.len() == names::MAPS.len()
        && let Some(programs) = adopt(pins, &directory)?
    {
        return Ok(programs);
    }
    let there = |name: &&str| before.contains(*name);
    let entries = [names::FLOWS, names::SPILL].iter().any(there);
    // Bits that are newer than entries, and programs that set others than those, know nothing of them: from here on each is looked for.
    let lost = entries && ![names::FLOWS, names::SPILL, names::TABLE, names::MEETINGS].iter().all(there);
    let say = |word: u64| {
        let words = Words::open(pins)?;
        words.put(Word::Meetings, word).map_err(table("write", "flow table's words"))
    };
    if (lost || !entries) && there(&names::TABLE) {
        // Whoever comes after a crash finds all maps there.
        say(0)?;
    }
    let result = create(pins, room, object, &directory).and_then(|programs| {
        if lost || !entries {
            let bits: Table<u32, u64> = store::open(pins, names::MEETINGS, Table::open)?;
            say(Meetings::new(bits.room(), (!lost).then_some(0)).word())?;
        }
        Ok(programs)
    });
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
            // Those are the setting's.
            if field == "size" && [names::FLOWS, names::SPILL, names::MEETINGS].contains(&name) {
                continue;
            }
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
    let kind = raw::PROG_SCHED_CLS;
    let tables =
        [names::GENERATION, names::ENDPOINTS, names::LINKS, names::FLOWS, names::TABLE, names::MEETINGS];
    let Some(programs) = pinned(directory, &names::PROGRAMS, kind, &numbers(pins, &tables)?)? else {
        return Ok(None);
    };
    let tables = [names::FLOWS, names::SPILL, names::TABLE];
    let sweep = pinned(directory, &[names::SWEEP_PROGRAM], kind, &numbers(pins, &tables)?)?;
    let Some((sweep, _)) = sweep.and_then(|mut all| all.pop()) else { return Ok(None) };
    let mut maps = Vec::new();
    for name in names::MAPS {
        let path = pins.maps.join(name);
        maps.push(raw::open_pin(&path).map_err(|e| DatapathError::pin("open", &path, e))?);
    }
    Ok(Some(Programs {
        by_hook: programs,
        sweep,
        sockets: Vec::new(),
        packets: Vec::new(),
        predrop: None,
        maps,
        directory: directory.to_owned(),
        fresh: false,
    }))
}

/// The kernel's number of a pinned map.
fn number(pins: &Pins, name: &str) -> Result<u32, DatapathError> {
    let path = pins.maps.join(name);
    raw::open_pin(&path)
        .and_then(|fd| raw::map_info(fd.as_fd()))
        .map(|info| info.id)
        .map_err(|e| DatapathError::pin("look at", &path, e))
}

/// The same of several.
fn numbers(pins: &Pins, names: &[&str]) -> Result<Vec<u32>, DatapathError> {
    names.iter().map(|name| number(pins, name)).collect()
}

/// Pinned programs with their numbers, if all of them are there and work on the maps of those numbers.
fn pinned(
    directory: &Path,
    names: &[&str],
    kind: u32,
    needed: &[u32],
) -> Result<Option<Vec<(OwnedFd, u32)>>, DatapathError> {
    let mut programs = Vec::new();
    for name in names {
        let path = directory.join(name);
        let fd = match raw::open_pin(&path) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DatapathError::pin("open", &path, e)),
        };
        let (info, maps) =
            raw::program_info(fd.as_fd()).map_err(|e| DatapathError::pin("look at", &path, e))?;
        // Programs of maps that were taken away and made anew would read tables that nobody writes.
        if info.kind != kind || !needed.iter().all(|map| maps.contains(map)) {
            return Ok(None);
        }
        programs.push((fd, info.id));
    }
    Ok(Some(programs))
}

/// Reads an object, on the pinned maps.
fn loader(pins: &Pins) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        loader.map_pin_path(name, pins.maps.join(name));
    }
    loader
}

/// Hooks' programs and the one that the agent runs.
fn classifiers() -> impl Iterator<Item = &'static str> {
    names::PROGRAMS.into_iter().chain([names::SWEEP_PROGRAM])
}

fn create(pins: &Pins, room: Room, object: &[u8], directory: &Path) -> Result<Programs, DatapathError> {
    let broken = |e: &dyn std::error::Error| DatapathError::Load(chain(e));
    let mut loader = loader(pins);
    loader.map_max_entries(names::FLOWS, room.flows).map_max_entries(names::SPILL, room.spill());
    loader.map_max_entries(names::MEETINGS, room.meetings());
    let mut ebpf = loader.load(object).map_err(|e| broken(&e))?;
    // Pinned beside the final place and moved there whole: a crash leaves no half set under the object's name.
    let new = directory.with_file_name(format!("{}-new", fingerprint(object)));
    remove_programs(&new)?;
    fs::create_dir(&new).map_err(|e| DatapathError::pin("make", &new, e))?;
    let mut load = || {
        // The verifier takes its time for each, and one CPU each.
        let mut programs: Vec<&mut SchedClassifier> = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            if classifiers().any(|known| known == name) {
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
        for name in classifiers() {
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
    if maps.len() == names::MAPS.len() && programs.named().all(|(name, _)| own.iter().any(|own| own == name))
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
    for (name, program) in programs.named() {
        pinned(program, &programs.directory.join(name))?;
    }
    names::MAPS.into_iter().zip(&programs.maps).try_for_each(|(name, map)| pinned(map, &pins.maps.join(name)))
}

/// The programs of cgroups beside them: what is pinned is adopted, the rest loaded. What the kernel does not take is left out: the
/// others work without.
pub fn sockets(pins: &Pins, object: &[u8], programs: &mut Programs) -> Result<(), DatapathError> {
    let kinds = [
        (&names::SOCKET_PROGRAMS[..], raw::PROG_SOCK_ADDR),
        (&names::PACKET_PROGRAMS[..], raw::PROG_CGROUP_SKB),
    ];
    let generation = number(pins, names::GENERATION)?;
    // What these do with flows they do with the other programs' tables, or with nobody's.
    let flows = [names::GENERATION, names::FLOWS, names::SPILL, names::TABLE, names::MEETINGS];
    let tables = numbers(pins, &flows)?;
    let adopted = |(names, kind)| {
        let used = if kind == raw::PROG_CGROUP_SKB { &tables[..] } else { &[generation] };
        pinned(&programs.directory, names, kind, used)
    };
    let [mut sockets, mut packets] = [adopted(kinds[0])?, adopted(kinds[1])?];
    if sockets.is_none() || packets.is_none() {
        let mut ebpf = loader(pins).load(object).map_err(|e| DatapathError::Load(chain(&e)))?;
        load_sockets(&mut ebpf);
        for (names, _) in kinds {
            pin_all(&ebpf, names, &programs.directory)?;
        }
        [sockets, packets] = [adopted(kinds[0])?, adopted(kinds[1])?];
    }
    programs.sockets = sockets.unwrap_or_default();
    programs.packets = packets.unwrap_or_default();
    Ok(())
}

/// The program of XDP beside them, in the same way; where the kernel does not take it, why not.
pub fn predrop(pins: &Pins, object: &[u8], programs: &mut Programs) -> Result<Option<String>, DatapathError> {
    let tables = numbers(pins, &[names::GENERATION, names::ENDPOINTS, names::TABLE, names::MEETINGS])?;
    let adopted = |programs: &Programs| {
        let found = pinned(&programs.directory, &[names::PREDROP_PROGRAM], raw::PROG_XDP, &tables)?;
        Ok(found.and_then(|mut all| all.pop()))
    };
    programs.predrop = adopted(programs)?;
    if programs.predrop.is_some() {
        return Ok(None);
    }
    let broken = |e: &dyn std::error::Error| DatapathError::Load(chain(e));
    let mut ebpf = loader(pins).load(object).map_err(|e| broken(&e))?;
    let program: &mut Xdp = ebpf
        .program_mut(names::PREDROP_PROGRAM)
        .ok_or_else(|| DatapathError::Load(format!("it has no program `{}`", names::PREDROP_PROGRAM)))?
        .try_into()
        .map_err(|e: ProgramError| broken(&e))?;
    if let Err(error) = program.load() {
        return Ok(Some(chain(&error)));
    }
    pin_all(&ebpf, &[names::PREDROP_PROGRAM], &programs.directory)?;
    programs.predrop = adopted(programs)?;
    Ok(programs.predrop.is_none().then(|| "its pin was not found again".to_owned()))
}

/// The verifier takes its time for each, and one CPU each.
fn load_sockets(ebpf: &mut Ebpf) {
    std::thread::scope(|scope| {
        let mut loads = Vec::new();
        for (_, program) in ebpf.programs_mut() {
            if let Program::CgroupSockAddr(program) = program {
                loads.push(scope.spawn(|| program.load()));
            } else if let Program::CgroupSkb(program) = program {
                loads.push(scope.spawn(|| program.load()));
            }
        }
        for load in loads {
            if let Ok(Err(error)) = load.join() {
                let error = chain(&error);
                warn!(error, "the kernel does not take a program of cgroups");
            }
        }
    });
}

/// Pins programs if all of them are loaded.
fn pin_all(ebpf: &Ebpf, names: &[&str], directory: &Path) -> Result<(), DatapathError> {
    let loaded: Vec<_> =
        names.iter().filter_map(|name| Some((name, ebpf.program(name)?.fd().ok()?))).collect();
    if loaded.len() < names.len() {
        return Ok(());
    }
    for (name, program) in loaded {
        let path = directory.join(name);
        pins::remove(&path).map_err(|e| DatapathError::pin("remove", &path, e))?;
        raw::pin(program.as_fd(), &path).map_err(|e| DatapathError::pin("make", &path, e))?;
    }
    Ok(())
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
