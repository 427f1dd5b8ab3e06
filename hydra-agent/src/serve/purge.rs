//! `hydra-agent purge`: the end of enforcement, or the words on why it goes on.

use std::path::Path;

use super::{RunError, log, rights, routing, runtime, watching};
use crate::datapath;
use crate::inventory::Inventory;
use crate::settings::{Flags, Settings};
use crate::state::State;

/// Takes everything away. Gives what was done, a line each.
pub fn purge(flags: Flags) -> Result<Vec<String>, RunError> {
    let settings = Settings::load(flags)?;
    log::start(&settings.log).map_err(RunError::Log)?;
    rights::check()?;
    if State::in_use(&settings.directories.state) {
        return Err(RunError::AgentRuns(settings.directories.state));
    }
    let bpffs = settings.directories.bpffs.clone();
    let purged = datapath::purge(&bpffs)?;
    let (mut removed, mut failed) = (purged.removed, purged.failed);
    // Routes last: while somebody else's programs enforce on, they belong to these.
    let left = datapath::attached();
    if failed.is_empty() && !left.is_empty() {
        return Err(RunError::StillEnforced { bpffs, removed, left });
    }
    let routes = runtime()?.block_on(async {
        let mut inventory = Inventory::new(watching(&settings, None))?;
        let snapshot = inventory.observe().await;
        Ok::<_, RunError>(routing::remove_all(&snapshot).await)
    })?;
    removed.extend(routes.0);
    failed.extend(routes.1);
    if failed.is_empty() { Ok(said(&bpffs, &removed)) } else { Err(RunError::Purge(failed)) }
}

fn said(bpffs: &Path, removed: &[String]) -> Vec<String> {
    if removed.is_empty() {
        let bpffs = bpffs.display();
        return vec![format!(
            "nothing to remove: nothing in `{bpffs}`, no program of hydra on an interface of this host"
        )];
    }
    removed.iter().map(|what| format!("removed {what}")).collect()
}

/// A few of many names.
pub(super) fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_that_finds_nothing_says_where_it_looked() {
        assert_eq!(
            said(Path::new("/sys/fs/bpf/x"), &[]),
            [
                "nothing to remove: nothing in `/sys/fs/bpf/x`, no program of hydra on an interface of this host"
            ]
        );
        assert_eq!(said(Path::new("/"), &["map HYDRA_GEN".to_owned()]), ["removed map HYDRA_GEN"]);
    }

    #[test]
    fn enforcement_that_goes_on_is_said_with_where_and_what_to_do() {
        let left = ["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned).to_vec();
        let bpffs = "/sys/fs/bpf/x".into();
        let error = RunError::StillEnforced { bpffs, removed: Vec::new(), left };
        insta::assert_snapshot!(error.render(false), @r"
        error: hydra still enforces on `a`, `b`, `c`, `d`, `e` and 2 more: what put these programs there is not in `/sys/fs/bpf/x`

        hint: give the flags that the agent ran with: `hydra-agent purge --bpffs DIR --state-dir DIR`
        ");
        assert_eq!(error.exit_code(), 2);
    }
}
