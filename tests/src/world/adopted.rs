//! What somebody else made in a world, an engine for one, as part of it.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::World;
use crate::topology::Topology;

impl World {
    /// Makes a place of the stack that a process is in.
    pub fn adopt(&mut self, name: &str, process: u32) -> Result<()> {
        let path = format!("/proc/{process}/ns/net");
        let space = File::open(&path).with_context(|| format!("cannot open {path} of {name}"))?;
        self.spaces.insert(name.to_owned(), Arc::new(space));
        Ok(())
    }

    /// The topology, to note in it what was made.
    pub fn topology_mut(&mut self) -> &mut Topology {
        &mut self.topology
    }
}
