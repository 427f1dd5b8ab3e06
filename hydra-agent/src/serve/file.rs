//! The policy file, as bytes that somebody else wrote.

use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use super::apply::Asked;

/// Larger than any policy; a device or a log named by mistake is not read to its end.
const LARGEST: u64 = 16 << 20;

/// Its text.
pub(super) fn read(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    if file.take(LARGEST + 1).read_to_end(&mut bytes)? as u64 > LARGEST {
        return Err(Error::new(ErrorKind::FileTooLarge, "it is larger than any policy"));
    }
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

/// For the log and the status.
pub(super) fn unreadable(path: &Path, error: &Error) -> String {
    // Rust's errors end with their number, which tells a person nothing.
    let why = error.to_string();
    let why = why.split(" (os error").next().unwrap_or_default();
    format!("the policy file `{}` cannot be read: {why}", path.display())
}

/// An apply of its text.
pub(super) fn asked(path: &Path, text: String) -> Asked {
    Asked {
        text: text.into(),
        source: path.display().to_string(),
        by: "--policy".to_owned(),
        dry_run: false,
        restores: None,
    }
}
