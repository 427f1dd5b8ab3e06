//! Files that are whole or not there: written beside, made durable, renamed; the version before is kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Broken, StateError};

/// Nothing that hydra writes comes near this; more is not ours.
const MAX_FILE: u64 = 64 << 20;

pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Reads a file of ours, or the copy of the version before it. What is broken is kept beside it for a human.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, broken: &mut Vec<Broken>) -> Option<T> {
    let why = match read_bounded(path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(value) => return Some(value),
            Err(e) => e.to_string(),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if !previous(path).exists() {
                return None;
            }
            "it is gone".to_owned()
        }
        Err(e) => e.to_string(),
    };
    let aside = with_suffix(path, ".broken");
    let kept = fs::rename(path, &aside).is_ok();
    let older = read_bounded(&previous(path)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let instead = if older.is_some() { "the version before it is taken" } else { "begun anew" };
    let aside =
        if kept { format!(", what was there is kept as `{}`", aside.display()) } else { String::new() };
    let why = format!("{why}; {instead}{aside}");
    broken.push(Broken { path: path.to_owned(), why });
    older
}

pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file is far larger than any that hydra writes",
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let failed = |source| StateError::Write { path: path.to_owned(), source };
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    // The version before stays reachable under its own name, whatever happens to this one.
    let older = previous(path);
    if path.exists() {
        remove(&older);
        if let Err(e) = fs::hard_link(path, &older) {
            tracing::debug!(path = %older.display(), error = %e, "no copy of the version before");
        }
    }
    write_whole(path, &text)
}

/// Writes beside the file, makes it durable, and takes the name in one step.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    Beside::write(path, bytes)?.take_name()
}

/// What is written beside a file, durable, and gone with this unless it has taken the file's name.
#[derive(Debug)]
pub(super) struct Beside {
    path: PathBuf,
    temporary: PathBuf,
    named: bool,
}

impl Beside {
    pub fn write(path: &Path, bytes: &[u8]) -> Result<Self, StateError> {
        let made = Self { path: path.to_owned(), temporary: with_suffix(path, ".new"), named: false };
        let written = (|| {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&made.temporary)?;
            file.write_all(bytes)?;
            file.sync_all()
        })();
        written.map_err(|source| StateError::Write { path: path.to_owned(), source })?;
        Ok(made)
    }

    pub fn take_name(mut self) -> Result<(), StateError> {
        let named = (|| {
            fs::rename(&self.temporary, &self.path)?;
            self.named = true;
            // The rename itself lives in the directory.
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        })();
        named.map_err(|source| StateError::Write { path: self.path.clone(), source })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.named {
            remove(&self.temporary);
        }
    }
}

pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "a file of the state directory could not be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

pub(super) fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.strip_suffix(".new").is_some()) {
            remove(&entry.path());
        }
    }
}

fn previous(path: &Path) -> PathBuf {
    with_suffix(path, ".previous")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
