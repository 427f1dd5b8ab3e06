//! For debug builds of the agent alone: another object by path, and the messages of one that logs what it decides
//! (`cargo xtask ebpf --log`).

use std::borrow::Cow;
use std::time::Duration;

use aya_log::EbpfLogger;

use super::error::DatapathError;
use super::load;

/// The object to load: the embedded one, or the file that `HYDRA_OBJECT` names.
pub fn object() -> Result<Cow<'static, [u8]>, DatapathError> {
    let Some(path) = std::env::var_os("HYDRA_OBJECT") else { return Ok(Cow::Borrowed(load::OBJECT)) };
    let bytes = std::fs::read(&path)
        .map_err(|e| DatapathError::Load(format!("`{}` cannot be read: {e}", path.to_string_lossy())))?;
    tracing::warn!(path = %path.to_string_lossy(), bytes = bytes.len(), "this object is loaded, not the embedded one");
    Ok(Cow::Owned(bytes))
}

/// Passes the messages of a program's object on to the agent's log, if it writes any.
pub fn follow(program: u32) {
    let Ok(mut logger) = EbpfLogger::init_from_id(program) else { return };
    std::thread::spawn(move || {
        loop {
            logger.flush();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}
