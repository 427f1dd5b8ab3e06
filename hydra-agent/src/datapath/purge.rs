//! The end of enforcement: takes every link, filter, program, map and directory of hydra below one path away, of every layout,
//! and touches nothing else.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use hydra_common::names;
use nix::net::if_::if_nameindex;

use super::attach::detach_now;
use super::clsact;
use super::error::DatapathError;
use super::pins::{self, Entry};
use super::predrop;
use super::raw;
use super::sockets;

/// What went and what stayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// In the order in which it went.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

impl Purged {
    fn note(&mut self, what: &str, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(what.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => self.failed.push(format!("{what}: {e}")),
        }
    }
}

/// Takes everything away; goes on after a failure.
pub fn purge(bpffs: &Path) -> Result<Purged, DatapathError> {
    let mut purged = Purged::default();
    if !bpffs.exists() {
        return Ok(purged);
    }
    pins::on_bpffs(bpffs)?;
    let layouts = pins::layouts(bpffs).map_err(|e| DatapathError::pin("list", bpffs, e))?;
    for layout in &layouts {
        purge_layout(&bpffs.join(layout), &mut purged, Filters::Removed);
    }
    if !layouts.is_empty() {
        purge_filters(&mut purged);
    }
    match fs::remove_dir(bpffs) {
        Ok(()) => purged.removed.push(format!("directory {}", bpffs.display())),
        // A mount point, or somebody else's things in it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY | libc::EPERM)) => {}
        Err(e) => purged.failed.push(format!("directory {}: {e}", bpffs.display())),
    }
    Ok(purged)
}

/// Takes away what agents of other layouts left below `bpffs`, once those of `own` (a directory's name) are at every hook: in a chain
/// they would run behind them, on tables that nobody writes any more. Filters went when the new ones took their place, unless those
/// are links.
pub(super) fn purge_others(bpffs: &Path, own: &str, links: bool) -> Purged {
    let mut purged = Purged::default();
    let filters = if links { Filters::Removed } else { Filters::Replaced };
    let layouts = pins::layouts(bpffs).unwrap_or_else(|e| {
        purged.failed.push(format!("{}: {e}", bpffs.display()));
        Vec::new()
    });
    for layout in layouts.iter().filter(|name| *name != own) {
        purge_layout(&bpffs.join(layout), &mut purged, filters);
    }
    purged
}

/// What became of the filters that a layout's marks are about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filters {
    /// To be removed.
    Removed,
    /// They are another layout's by now.
    Replaced,
}

fn purge_layout(root: &Path, purged: &mut Purged, filters: Filters) {
    let links = root.join("links");
    for name in listed(&links, purged) {
        let path = links.join(&name);
        match pins::entry(&name) {
            Some(Entry::Link(ifindex, hook)) => {
                let detached =
                    raw::open_pin(&path).and_then(|link| match raw::link_info(link.as_fd())?.kind {
                        raw::LINK_TCX => detach_now(&link),
                        _ => Err(io::Error::other("not a link of hydra")),
                    });
                let result = detached.and_then(|()| fs::remove_file(&path));
                purged.note(
                    &format!("link {} at {}", hook.as_str(), super::attach::interface(ifindex)),
                    result,
                );
            }
            Some(Entry::Filter(ifindex, hook)) if filters == Filters::Replaced => {
                let what =
                    format!("mark of the filter {} at {}", hook.as_str(), super::attach::interface(ifindex));
                purged.note(&what, fs::remove_file(&path));
            }
            Some(Entry::Filter(ifindex, hook)) => {
                let result = clsact::remove(ifindex, hook).and_then(|()| fs::remove_file(&path));
                purged.note(
                    &format!("filter {} at {}", hook.as_str(), super::attach::interface(ifindex)),
                    result,
                );
            }
            Some(Entry::Socket) => purged.note(&format!("link {name}"), sockets::remove(&path)),
            Some(Entry::Predrop(ifindex)) => {
                let what = format!("link {} at {}", predrop::HOOK, super::attach::interface(ifindex));
                purged.note(&what, predrop::remove(&path));
            }
            None => purged.failed.push(format!("{}: not made by hydra", path.display())),
        }
    }
    let programs = root.join("programs");
    for object in listed(&programs, purged) {
        let directory = programs.join(&object);
        for name in listed(&directory, purged) {
            if names::PROGRAMS
                .iter()
                .chain(&names::SOCKET_PROGRAMS)
                .chain(&names::PACKET_PROGRAMS)
                .chain(&[names::SWEEP_PROGRAM, names::PREDROP_PROGRAM])
                .any(|n| *n == name)
            {
                purged.note(&format!("program {name}"), fs::remove_file(directory.join(&name)));
            }
        }
        purged.note(&format!("directory {}", directory.display()), fs::remove_dir(&directory));
    }
    let maps = root.join("maps");
    for name in listed(&maps, purged) {
        // Another layout may have maps that this one has not; hydra's names all begin alike.
        if name.starts_with("HYDRA_") {
            purged.note(&format!("map {name}"), fs::remove_file(maps.join(&name)));
        }
    }
    for directory in [&links, &programs, &maps, root] {
        purged.note(&format!("directory {}", directory.display()), fs::remove_dir(directory));
    }
}

fn listed(directory: &Path, purged: &mut Purged) -> Vec<String> {
    pins::names(directory).unwrap_or_else(|e| {
        purged.failed.push(format!("{}: {e}", directory.display()));
        Vec::new()
    })
}

/// Filters of ours whose marks were lost: on every interface of this namespace.
fn purge_filters(purged: &mut Purged) {
    let Ok(interfaces) = if_nameindex() else { return };
    for interface in &interfaces {
        for hook in hydra_common::verdict::Hook::INTERFACES {
            if matches!(clsact::seat(interface.index(), hook), Ok(Some(_))) {
                let what = format!("filter {} at {}", hook.as_str(), interface.name().to_string_lossy());
                purged.note(&what, clsact::remove(interface.index(), hook));
            }
        }
    }
}
