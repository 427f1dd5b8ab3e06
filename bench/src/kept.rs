//! Files that stay after a run: they belong to whoever has the repository, not to root, as whom it measures.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, chown, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hydra_tests::binary::root;

/// Writes a file, with the folders that it lacks.
pub fn write(file: &Path, text: &str) -> Result<()> {
    let repository = root();
    let owner = fs::metadata(&repository)
        .with_context(|| format!("cannot look at `{}`", repository.display()))
        .map(|status| (status.uid(), status.gid()))?;
    write_for(owner, file, text)
}

fn write_for((user, group): (u32, u32), file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().context("a file without a folder")?;
    let made: Vec<PathBuf> =
        folder.ancestors().take_while(|place| !place.exists()).map(Path::to_owned).collect();
    fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let write = || -> std::io::Result<()> {
        for place in &made {
            chown(place, Some(user), Some(group))?;
        }
        let mut file = File::create(file)?;
        fchown(&file, Some(user), Some(group))?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write `{}`", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_its_owners_with_the_folders_that_were_made_for_it() {
        let top = std::env::temp_dir().join(format!("hydra-kept-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        let own = fs::metadata(&top).map(|status| (status.uid(), status.gid())).unwrap();
        // Only root can give away.
        let other = if own.0 == 0 { (65_533, 65_532) } else { own };
        let file = top.join("target/bench/L1.json");
        for text in ["first", "2"] {
            write_for(other, &file, text).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        let owner = |path: &Path| fs::metadata(path).map(|status| (status.uid(), status.gid())).unwrap();
        for place in [file.as_path(), &top.join("target/bench"), &top.join("target")] {
            assert_eq!(owner(place), other, "{}", place.display());
        }
        assert_eq!(owner(&top), own, "what was there stays as it was");
        fs::remove_dir_all(&top).unwrap();
    }
}
