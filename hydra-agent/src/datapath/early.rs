//! Programs for ports that have just come to a bridge of the policy, whatever else the agent does at that moment. Rows, links and
//! everything else are the next pass's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hydra_common::verdict::Hook;
use tracing::debug;

use super::attach::{self, Attacher};
use super::load::Programs;
use crate::desired::Desired;

/// A port, and when it had both of its programs.
pub type Covered = (u32, Instant);

/// Interfaces and hooks on them.
type Hooks = BTreeSet<(u32, Hook)>;

/// See the module. Blocks, but never for a pass.
#[derive(Debug)]
pub struct Early {
    attacher: Attacher,
    programs: Vec<(Hook, OwnedFd, u32)>,
    ground: Arc<Ground>,
}

impl Early {
    pub(super) fn new(attacher: &Attacher, programs: &Programs, ground: &Arc<Ground>) -> io::Result<Self> {
        let program = |hook| {
            let (program, id) = programs.get(hook);
            Ok((hook, program.try_clone()?, id))
        };
        let programs = [Hook::PortIn, Hook::PortOut].into_iter().map(program).collect::<io::Result<_>>()?;
        Ok(Self { attacher: attacher.clone(), programs, ground: ground.clone() })
    }

    /// An interface has this master now, or none. Covers it if that is a bridge of the policy, and if nothing of ours sits there yet.
    /// Where that fails, the next pass will do it or say so.
    pub fn port(&self, ifindex: u32, master: Option<u32>) {
        let mut ground = self.ground.lock();
        let Some(master) = master.filter(|master| ground.bridges.contains(master)) else {
            ground.ports.remove(&ifindex);
            return;
        };
        // The kernel tells of a port again and again while it is set up; to look there each time would hold the next one up.
        if ground.ports.get(&ifindex) == Some(&master) {
            return;
        }
        ground.newest = Some(Instant::now());
        match self.attacher.cover(&self.programs, ifindex) {
            Ok(new) => {
                ground.ports.insert(ifindex, master);
                // A port that has long had them says something: it is as old as it was.
                ground.covered.extend(new.then(|| (ifindex, Instant::now())));
            }
            Err(error) => {
                debug!(port = attach::interface(ifindex), %error, "a new port waits for its programs");
            }
        }
    }
}

/// What [`Early`] and the passes share. While it is locked no port gets programs but by who holds it.
#[derive(Debug, Default)]
pub struct Ground(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whose ports carry programs.
    bridges: BTreeSet<u32>,
    /// Since this was last taken.
    covered: Vec<Covered>,
    /// Ports that were found or made covered, and their bridges, as long as the kernel says nothing else.
    ports: BTreeMap<u32, u32>,
    /// When a port that was not among them was last told of.
    newest: Option<Instant>,
}

impl Ground {
    /// A pass begins that has ports on these bridges covered: what is pinned, and the ports that got their programs since the pass
    /// before, which may be newer than what this one has seen.
    pub fn take(&self, attacher: &Attacher, bridges: &BTreeSet<u32>) -> io::Result<(Hooks, Vec<Covered>)> {
        let mut ground = self.lock();
        ground.bridges.retain(|index| bridges.contains(index));
        ground.ports.retain(|_, bridge| bridges.contains(bridge));
        Ok((attacher.pinned()?, std::mem::take(&mut ground.covered)))
    }

    /// A pass took a port's programs away.
    pub fn forget(&self, port: u32) {
        self.lock().ports.remove(&port);
    }

    /// When a new port was last told of.
    pub fn newest(&self) -> Option<Instant> {
        self.lock().newest
    }

    /// A pass is done that attached the programs of these bridges, with a policy: before there is one, programs deny everything.
    pub fn give(&self, bridges: BTreeSet<u32>) {
        self.lock().bridges = bridges;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bridges whose ports are to carry programs: those that carry some themselves.
pub fn bridges(desired: &Desired) -> BTreeSet<u32> {
    desired.hooks.iter().filter(|(_, hook)| *hook == Hook::BridgeIn).map(|(index, _)| *index).collect()
}
