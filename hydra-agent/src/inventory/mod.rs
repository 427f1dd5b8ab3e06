//! Who is where: Docker's containers and networks, the kernel's links and addresses, read into one pure snapshot.
//! Events only say "look again"; the lists are the truth.

mod appearances;
mod assemble;
mod bindings;
mod docker;
mod docker_ask;
mod docker_view;
mod kept;
pub mod namespaces;
pub mod netlink;
pub mod routes;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

pub use self::appearances::Appearances;
use self::assemble::{Inside, Kernelside, Space, assemble};
use self::docker::Client;
use self::docker_view::{Container, View};
use self::namespaces::{NamespaceError, Opened};
use self::netlink::{Kernel, NetlinkError, Watch};
use self::snapshot::{LinkType, Snapshot};
use crate::cgroup::Hierarchy;

/// Messages come in bursts: a start of a container makes about twenty.
const BURST: Duration = Duration::from_millis(3);
/// How often units are looked for.
const UNITS: Duration = Duration::from_secs(1);
/// How long the first look waits for the engine's first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How often a look is begun anew when a namespace goes away under it.
const ATTEMPTS: u32 = 4;

/// Which engine to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Docker's usual socket, as soon as it is there.
    #[default]
    Auto,
    /// None: the kernel alone says who is where.
    None,
    /// The one behind that socket, there or not.
    Socket(PathBuf),
}

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The engine.
    pub engine: Engine,
    /// The directory that names namespaces.
    pub netns_dir: PathBuf,
    /// A look is due after that time even if nothing seems to have changed.
    pub every: Duration,
    /// The cgroup v2 hierarchy, where there is one to look at.
    pub cgroups: Option<Hierarchy>,
    /// The file that keeps Docker's last word over restarts of the agent.
    pub keep: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            netns_dir: PathBuf::from("/run/netns"),
            every: Duration::from_secs(30),
            cgroups: None,
            keep: None,
        }
    }
}

/// Why the inventory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The kernel's lists.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A namespace's file.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No thread to enter namespaces with.
    #[error("no thread could be started to enter namespaces: {0}")]
    Thread(std::io::Error),
}

/// Watches the kernel and the engine, and puts together what they list.
#[derive(Debug)]
pub struct Inventory {
    settings: Settings,
    kernel: Kernel,
    /// Inode of the namespace that the sockets are in.
    own: u64,
    /// Its cookie.
    cookie: Option<u64>,
    watch: Watch,
    blind: Option<String>,
    docker: Option<Client>,
    last: Snapshot,
    /// When the last look began and ended.
    looked: Option<(Instant, Instant)>,
    due: bool,
}

impl Inventory {
    /// Opens the sockets in the calling thread's network namespace, and begins to ask the engine. Must be called inside a tokio
    /// runtime. A missing engine is no error, a kernel that does not answer is.
    pub fn new(settings: Settings) -> Result<Self, InventoryError> {
        let kernel = Kernel::open()?;
        let (watch, blind) = Watch::open()?;
        let docker = Client::start(&settings.engine, settings.every, settings.keep.as_deref());
        Ok(Self {
            settings,
            kernel,
            own: namespaces::own()?.inode,
            cookie: namespaces::cookie_here(),
            watch,
            blind,
            docker,
            last: Snapshot::default(),
            looked: None,
            due: false,
        })
    }

    /// The world now: the kernel is asked, of the engine the last word is taken (only the very first look waits for one). What
    /// fails keeps its last value and is named in [`Snapshot::problems`].
    pub async fn observe(&mut self) -> Snapshot {
        // First take back what would wake us, then list: a change in between wakes us again.
        self.watch.drain();
        let view = self.view().await;
        let begun = Instant::now();
        let (mut snapshot, doubts) = match self.kernelside(&view).await {
            Ok(listed) => {
                let (mut snapshot, mut doubts) = assemble(&listed.kernel, &view);
                snapshot.host_network = listed.host;
                snapshot.host_cgroups = listed.host_cgroups;
                snapshot.units = listed.units;
                snapshot.cookie = self.cookie;
                snapshot.problems.extend(listed.problems);
                doubts.containers.extend(listed.gone);
                (snapshot, doubts)
            }
            Err(error) => {
                let mut kept = self.last.clone();
                (kept.docker, kept.problems) = (view.state.clone(), view.problems.clone());
                kept.problems.push(error.to_string());
                (kept, assemble::Doubts::default())
            }
        };
        snapshot.problems.extend(self.blind.clone());
        snapshot.problems.sort_unstable();
        snapshot.problems.dedup();
        if let (Some(docker), false) = (&self.docker, doubts.is_empty()) {
            docker.doubt(doubts.containers);
        }
        self.last = snapshot.clone();
        self.looked = Some((begun, Instant::now()));
        snapshot
    }

    /// Returns when a look is due: something changed, or it has been long enough. Bursts are one change. Dropped before it is
    /// done, it forgets nothing.
    pub async fn changed(&mut self) {
        if !self.due {
            let latest = self.looked.map_or_else(Instant::now, |(begun, _)| begun + self.settings.every);
            tokio::select! {
                () = changed(self.docker.as_mut()) => {}
                result = self.watch.changed() => if let Err(error) = result {
                    tracing::warn!(%error, "the watch on links and addresses broke off and is opened again");
                    self.watch_again().await;
                },
                () = units_changed(self.settings.cgroups.as_ref(), &self.last.units) => {}
                () = tokio::time::sleep_until(latest) => {}
            }
            self.due = true;
        }
        // In a world that never stands still, at most half of the time goes into looking.
        let rest = self.looked.map(|(begun, ended)| ended + (ended - begun));
        let quiet = Instant::now() + BURST;
        tokio::time::sleep_until(rest.map_or(quiet, |rest| rest.max(quiet))).await;
        self.due = false;
    }

    async fn watch_again(&mut self) {
        match Watch::open() {
            Ok((watch, blind)) => (self.watch, self.blind) = (watch, blind),
            // Without a watch the regular look is what remains.
            Err(error) => {
                self.blind = Some(error.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn view(&mut self) -> View {
        let Some(docker) = &mut self.docker else { return View::default() };
        if self.looked.is_none() {
            docker.asked(FIRST_WORD).await;
        }
        docker.seen();
        View::clone(&docker.view())
    }

    async fn kernelside(&mut self, view: &View) -> Result<Listed, InventoryError> {
        let mut attempt = 1;
        loop {
            match self.list(view).await {
                Ok(found) => return Ok(found),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => {
                    attempt += 1;
                    if matches!(&error, InventoryError::Netlink(e) if e.is_fatal()) {
                        self.kernel = Kernel::open()?;
                    }
                }
            }
        }
    }

    async fn list(&self, view: &View) -> Result<Listed, InventoryError> {
        let links = self.kernel.links(None).await?;
        let addresses = self.kernel.addresses(None).await?;
        let behind: BTreeSet<i32> =
            links.iter().filter(|l| l.kind == LinkType::Veth).filter_map(|l| l.peer_nsid).collect();
        let mut inside = BTreeMap::new();
        for nsid in &behind {
            let links = self.kernel.links(Some(*nsid)).await?;
            let addresses = self.kernel.addresses(Some(*nsid)).await?;
            inside.insert(*nsid, Inside { links, addresses });
        }
        let mut found = Found::by_name_and_container(self.own, &self.settings, view)?;
        let places = std::mem::take(&mut found.places);
        let spaces = self.spaces(places, &behind).await?;
        let units = self.settings.cgroups.as_ref().map(Hierarchy::units).unwrap_or_default();
        let kernel = Kernelside { links, addresses, inside, spaces, cgroups: found.cgroups };
        Ok(Listed {
            kernel,
            gone: found.gone,
            host: found.host,
            host_cgroups: found.host_cgroups,
            units,
            problems: found.problems,
        })
    }

    /// Which of the namespaces found is behind which veth. Closes them all.
    async fn spaces(
        &self,
        places: BTreeMap<u64, Place>,
        behind: &BTreeSet<i32>,
    ) -> Result<Vec<Space>, InventoryError> {
        let mut missing = behind.clone();
        let mut wanted = BTreeMap::new();
        let mut known: BTreeSet<u64> = [self.own].into();
        for (inode, place) in places {
            known.insert(inode);
            let nsid = self.nsid(&place.opened).await?.filter(|nsid| missing.remove(nsid));
            if nsid.is_some() || !place.containers.is_empty() {
                wanted.insert(inode, (nsid, place));
            }
        }
        if !missing.is_empty() {
            for opened in namespaces::of_processes(&known) {
                if let Some(nsid) = self.nsid(&opened).await?.filter(|nsid| missing.remove(nsid)) {
                    let place = Place { opened, names: Vec::new(), containers: Vec::new() };
                    wanted.insert(place.opened.inode, (Some(nsid), place));
                }
            }
        }
        let (mut opened, mut rest) = (Vec::new(), Vec::new());
        for (nsid, place) in wanted.into_values() {
            opened.push(place.opened);
            rest.push((nsid, place.names, place.containers));
        }
        let identified = namespaces::identify(opened).await.map_err(InventoryError::Thread)?;
        Ok(identified
            .into_iter()
            .zip(rest)
            .map(|((opened, id), (nsid, names, containers))| Space {
                id,
                nsid,
                path: opened.path,
                names,
                containers,
            })
            .collect())
    }

    async fn nsid(&self, opened: &Opened) -> Result<Option<i32>, NetlinkError> {
        use std::os::fd::AsFd;
        self.kernel.nsid(opened.file.as_fd()).await
    }
}

/// Nothing tells of a unit that starts: the folders are looked at.
async fn units_changed(hierarchy: Option<&Hierarchy>, known: &BTreeMap<String, u64>) {
    let Some(hierarchy) = hierarchy else { return std::future::pending().await };
    loop {
        tokio::time::sleep(UNITS).await;
        if hierarchy.units() != *known {
            return;
        }
    }
}

async fn changed(docker: Option<&mut Client>) {
    match docker {
        Some(docker) => docker.changed().await,
        None => std::future::pending().await,
    }
}

/// What one look found.
#[derive(Debug)]
struct Listed {
    kernel: Kernelside,
    /// Containers whose process is gone though the engine lists them.
    gone: BTreeSet<String>,
    /// Names of the containers in the host's own stack.
    host: Vec<String>,
    /// Their cgroups.
    host_cgroups: BTreeMap<String, u64>,
    /// Cgroups of units.
    units: BTreeMap<String, u64>,
    problems: Vec<String>,
}

/// An open namespace and what it is called.
#[derive(Debug)]
struct Place {
    opened: Opened,
    names: Vec<String>,
    containers: Vec<String>,
}

/// Namespaces that have a name or a container, by inode; all open at once, so that no two share an inode.
#[derive(Debug, Default)]
struct Found {
    own: u64,
    places: BTreeMap<u64, Place>,
    gone: BTreeSet<String>,
    host: Vec<String>,
    host_cgroups: BTreeMap<String, u64>,
    /// By Docker's id.
    cgroups: BTreeMap<String, u64>,
    problems: Vec<String>,
}

impl Found {
    fn by_name_and_container(own: u64, settings: &Settings, view: &View) -> Result<Self, NamespaceError> {
        let mut found = Self { own, ..Self::default() };
        for (name, opened) in namespaces::named(&settings.netns_dir)? {
            if opened.inode != own {
                found.place(opened).names.push(name);
            }
        }
        for container in view.world.containers.values() {
            found.container(container, settings.cgroups.as_ref())?;
        }
        found.host.sort_unstable();
        Ok(found)
    }

    fn container(
        &mut self,
        container: &Container,
        hierarchy: Option<&Hierarchy>,
    ) -> Result<(), NamespaceError> {
        let cgroup = hierarchy.and_then(|h| h.of_container(container.process, &container.id));
        if container.mode == "host" {
            self.host(container, cgroup);
            return Ok(());
        }
        self.cgroups.extend(cgroup.map(|number| (container.id.clone(), number)));
        match Opened::of_process(container.process) {
            Ok(opened) if opened.inode == self.own => self.host(container, cgroup),
            Ok(opened) => self.place(opened).containers.push(container.id.clone()),
            // It ended; Docker will say so.
            Err(error) if error.is_absence() => drop(self.gone.insert(container.id.clone())),
            Err(error) if error.is_forbidden() => {
                self.problems.push(format!("container `{}`: {error}", container.name));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn host(&mut self, container: &Container, cgroup: Option<u64>) {
        self.host.push(container.name.clone());
        self.host_cgroups.extend(cgroup.map(|number| (container.name.clone(), number)));
    }

    fn place(&mut self, opened: Opened) -> &mut Place {
        self.places.entry(opened.inode).or_insert_with(|| Place {
            opened,
            names: Vec::new(),
            containers: Vec::new(),
        })
    }
}
