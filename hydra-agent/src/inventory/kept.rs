//! Docker's last word on disk. It is worth something only until the machine starts again: process numbers begin anew then.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::docker_view::World;

#[derive(Serialize, Deserialize)]
struct Kept<W> {
    boot: String,
    world: W,
}

/// What was kept since the machine started; an empty world if nothing was. The error is a whole sentence.
pub fn load(file: &Path) -> Result<World, String> {
    let failed =
        |why: String| format!("what Docker said last could not be read from `{}`: {why}", file.display());
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(World::default()),
        Err(error) => return Err(failed(error.to_string())),
    };
    let kept: Kept<World> = serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
    let boot = boot().map_err(|e| failed(e.to_string()))?;
    Ok(if kept.boot == boot { kept.world } else { World::default() })
}

/// Replaces what is kept, whole or not at all. Not forced to the disk: after a loss of power it is void anyway.
pub fn store(file: &Path, world: &World) -> Result<(), String> {
    write(file, world)
        .map_err(|e| format!("what Docker said last could not be kept in `{}`: {e}", file.display()))
}

fn write(file: &Path, world: &World) -> io::Result<()> {
    let text = serde_json::to_vec(&Kept { boot: boot()?, world })?;
    if fs::read(file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let next = file.with_extension("new");
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    out.write_all(&text)?;
    drop(out);
    fs::rename(&next, file)
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::docker_view::DockerNetwork;
    use super::*;

    fn world() -> World {
        let network = DockerNetwork {
            id: "n".into(),
            driver: "bridge".into(),
            bridge: Some("br-n".into()),
            subnets: vec!["10.0.0.0/24".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            internal: false,
        };
        World { networks: [("front".to_owned(), network)].into(), ..World::default() }
    }

    #[test]
    fn what_is_kept_is_what_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("docker.json");
        assert_eq!(load(&file), Ok(World::default()));
        store(&file, &world()).unwrap();
        assert_eq!(load(&file), Ok(world()));
    }

    #[test]
    fn what_was_kept_before_the_machine_started_is_void() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("docker.json");
        let old = Kept { boot: "another".to_owned(), world: world() };
        fs::write(&file, serde_json::to_vec(&old).unwrap()).unwrap();
        assert_eq!(load(&file), Ok(World::default()));
    }

    #[test]
    fn a_damaged_file_is_said_and_harms_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("docker.json");
        fs::write(&file, "{\"boot\"").unwrap();
        let problem = load(&file).unwrap_err();
        assert!(problem.starts_with("what Docker said last could not be read from `"), "{problem}");
    }
}
