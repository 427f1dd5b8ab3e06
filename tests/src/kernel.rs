//! Runs the object's own programs in the kernel, one frame at a time (`BPF_PROG_TEST_RUN`), against tables that the agent's
//! datapath wrote, and reads from the counters and the flow table what they made of it.

mod sweep;

use std::path::Path;

pub use self::sweep::{Sweep, Wanted};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use hydra_agent::datapath::{Collector, Datapath, Drops, KernelReader, Mechanism, Predrop, Room};
use hydra_agent::desired::Desired;
use hydra_agent::published::{Counters, Reader as _};
use hydra_common::ABI;
use hydra_common::address::Address;
use hydra_common::flow::{Flow, FlowKey};
use hydra_common::names::{
    BUCKETS, FLOWS, FRAGMENTS, PREDROP_PROGRAM, PROGRAMS, PUBLISHED, REASONS, SHARES, SPILL, TABLE,
};
use hydra_common::share::Word;
use hydra_common::tables::{BucketKey, Count, DropKey, Fragment, FragmentKey, Publish, PublishKey};
use hydra_common::verdict::{Hook, Reason, Verdict};

/// A frame at a hook.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Which program.
    pub hook: Hook,
    /// The interface that the program sits on.
    pub ifindex: u32,
    /// The interface that the frame came into the host by; 0 for the host's own.
    pub ingress: u32,
    /// The frame's mark.
    pub mark: u32,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

/// What the program made of it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it returned.
    pub action: i32,
    /// The mark afterwards.
    pub mark: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The reason that was counted; none where another hook is to judge.
    pub reason: Option<Reason>,
    /// What was counted as a drop: denied or audited, and the rule's number.
    pub drop: Option<(Verdict, u16)>,
    /// The one entry of the flow table, if there is exactly one.
    pub flow: Option<(FlowKey, Flow)>,
}

/// `XDP_DROP`.
pub const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub const XDP_PASS: i32 = 2;
/// `TCX_NEXT`.
pub const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: i32 = 7;

impl Seen {
    /// Denied, allowed or audited.
    pub fn verdict(&self) -> Verdict {
        match self.drop {
            Some((verdict, _)) => verdict,
            None if self.action == SHOT => Verdict::Denied,
            None => self.flow.map_or(Verdict::Allowed, |(_, flow)| Verdict::from_row(flow.verdict)),
        }
    }

    /// The number of the rule that decided; 0 for none.
    pub fn rule(&self) -> u16 {
        self.drop.map(|(_, rule)| rule).or(self.flow.map(|(_, flow)| flow.rule)).unwrap_or(0)
    }
}

/// The programs, with tables of their own. Use it inside the world that its interfaces are in.
pub struct Runner {
    programs: Vec<SchedClassifier>,
    predrop: Option<Xdp>,
    flows: HashMap<MapData, FlowKey, Flow>,
    spill: HashMap<MapData, FlowKey, Flow>,
    shares: HashMap<MapData, Address, u64>,
    words: Array<MapData, u64>,
    buckets: HashMap<MapData, BucketKey, u64>,
    fragments: HashMap<MapData, FragmentKey, Fragment>,
    published: HashMap<MapData, PublishKey, Publish>,
    drops: Drops,
    reasons: PerCpuArray<MapData, Count>,
    /// The flow table was seen empty: looking through it costs more than a frame does.
    empty: bool,
    /// What writes the tables; none where an agent does.
    datapath: Option<Datapath>,
}

impl Runner {
    /// Loads the object below a directory of pins and fills its tables.
    pub fn open(bpffs: &Path, desired: &Desired) -> Result<Self> {
        Self::open_with(bpffs, desired, Room::default())
    }

    /// The same with a flow table of another size.
    pub fn open_with(bpffs: &Path, desired: &Desired, room: Room) -> Result<Self> {
        let mut datapath = Datapath::open_with(bpffs, Mechanism::Auto, room)?;
        let report = datapath.sync(desired)?;
        ensure!(report.not_enforced.is_empty(), "{:?}", report.not_enforced);
        Ok(Self { datapath: Some(datapath), ..Self::beside(bpffs)? })
    }

    /// The same with the program of XDP, on the uplinks of `desired` if there are any.
    pub fn open_predrop(bpffs: &Path, desired: &Desired, want: Predrop) -> Result<Self> {
        let datapath = Datapath::open_with(bpffs, Mechanism::Auto, Room::default())?;
        let mut datapath = datapath.with_predrop(want)?;
        let report = datapath.sync(desired)?;
        ensure!(report.not_enforced.is_empty(), "{:?}", report.not_enforced);
        ensure!(report.remarks.is_empty(), "{:?}", report.remarks);
        Ok(Self { datapath: Some(datapath), ..Self::beside(bpffs)? })
    }

    /// The programs and tables of the agent that has these pins.
    pub fn beside(bpffs: &Path) -> Result<Self> {
        let root = bpffs.join(format!("v{ABI}"));
        let directory =
            std::fs::read_dir(root.join("programs"))?.next().context("no program is pinned")??.path();
        let programs = PROGRAMS
            .iter()
            .map(|name| Ok(SchedClassifier::from_pin(directory.join(name))?))
            .collect::<Result<Vec<_>>>()?;
        let predrop = directory.join(PREDROP_PROGRAM);
        let predrop =
            if predrop.exists() { Some(Xdp::from_pin(predrop, XdpAttachType::Interface)?) } else { None };
        let map = |name: &str| -> Result<Map> {
            Ok(Map::from_map_data(MapData::from_pin(root.join("maps").join(name))?)?)
        };
        Ok(Self {
            programs,
            predrop,
            flows: map(FLOWS)?.try_into()?,
            spill: map(SPILL)?.try_into()?,
            shares: map(SHARES)?.try_into()?,
            words: map(TABLE)?.try_into()?,
            buckets: map(BUCKETS)?.try_into()?,
            fragments: map(FRAGMENTS)?.try_into()?,
            published: map(PUBLISHED)?.try_into()?,
            drops: Drops::open(&root.join("maps"))?,
            reasons: map(REASONS)?.try_into()?,
            empty: false,
            datapath: None,
        })
    }

    /// Makes the tables hold something else.
    pub fn sync(&mut self, desired: &Desired) -> Result<()> {
        let datapath = self.datapath.as_mut().context("these tables are an agent's")?;
        let report = datapath.sync(desired)?;
        ensure!(report.not_enforced.is_empty(), "{:?}", report.not_enforced);
        Ok(())
    }

    /// Leads a port of this host to a container. Stays until the tables are made to hold something else.
    pub fn publish(&mut self, key: &PublishKey, row: &Publish) -> Result<()> {
        Ok(self.published.insert(key, row, 0)?)
    }

    /// The whole flow table.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>> {
        Ok(self.flows.iter().chain(self.spill.iter()).collect::<Result<_, _>>()?)
    }

    /// A flow's entry, and whether it is one that can be evicted.
    pub fn flow(&self, key: &FlowKey) -> Option<(Flow, bool)> {
        let spilled = || Some((self.spill.get(key, 0).ok()?, true));
        self.flows.get(key, 0).ok().map(|flow| (flow, false)).or_else(spilled)
    }

    /// Entries of the first table that the kernel counts for an address.
    pub fn held(&self, source: &Address) -> u64 {
        self.shares.get(source, 0).unwrap_or(0)
    }

    /// A word of the flow table.
    pub fn word(&self, word: Word) -> Result<u64> {
        Ok(self.words.get(&(word as u32), 0)?)
    }

    /// What takes silent flows out.
    pub fn collector(&self) -> Result<Collector> {
        Ok(self.datapath.as_ref().context("these tables are an agent's")?.collector()?)
    }

    /// Packets that were denied or would have been, by reason.
    pub fn dropped(&self) -> Result<Vec<(DropKey, u64)>> {
        Ok(self.drops.all()?.into_iter().map(|(key, count)| (key, count.packets)).collect())
    }

    /// Forgets all flows.
    pub fn forget(&mut self) -> Result<()> {
        if self.empty {
            return Ok(());
        }
        let keys: Vec<FlowKey> = self.flows.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.flows.remove(&key)?;
        }
        let keys: Vec<FlowKey> = self.spill.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.spill.remove(&key)?;
        }
        let sources: Vec<Address> = self.shares.keys().collect::<Result<_, _>>()?;
        for source in sources {
            self.shares.remove(&source)?;
        }
        Ok(self.words.set(Word::Used as u32, 0, 0)?)
    }

    /// Forgets the first pieces of datagrams.
    pub fn forget_pieces(&mut self) -> Result<()> {
        let keys: Vec<FragmentKey> = self.fragments.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.fragments.remove(&key)?;
        }
        Ok(())
    }

    /// Forgets what was taken from limits.
    pub fn refill(&mut self) -> Result<()> {
        let keys: Vec<BucketKey> = self.buckets.keys().collect::<Result<_, _>>()?;
        for key in keys {
            self.buckets.remove(&key)?;
        }
        Ok(())
    }

    /// Gives a frame to a program.
    pub fn run(&mut self, shot: &Shot) -> Result<Seen> {
        self.watch(|runner| runner.fire(shot, 0))
    }

    /// The same with one frame for several, which its sender wants to be cut after each `size` bytes of data and has not counted.
    pub fn coalesced(&mut self, shot: &Shot, size: u32) -> Result<Seen> {
        self.watch(|runner| runner.fire(shot, size))
    }

    /// Gives a frame to the program of XDP, as if it had come in by `lo`.
    pub fn run_predrop(&mut self, frame: &[u8]) -> Result<Seen> {
        self.watch(|runner| {
            let program = runner.predrop.as_ref().context("it was not asked for")?;
            let mut after = vec![0; frame.len() + 256];
            let result = program
                .test_run(TestRunOptions {
                    data_in: Some(frame),
                    data_out: Some(&mut after),
                    ..TestRunOptions::default()
                })
                .context("cannot run the program of XDP")?;
            after.truncate(result.data_size_out as usize);
            Ok(Ran { action: result.return_value.cast_signed(), frame: after, after: [0; CONTEXT] })
        })
    }

    /// Runs a program, and looks at what it counted and kept.
    fn watch(&mut self, run: impl FnOnce(&Self) -> Result<Ran>) -> Result<Seen> {
        let (dropped, before) = (self.drops.all()?, self.counts()?);
        let Ran { action, frame, after } = run(self)?;
        let mark = u32::from_ne_bytes([after[MARK], after[MARK + 1], after[MARK + 2], after[MARK + 3]]);
        let counts = self.counts()?;
        let changed = counts.iter().zip(&before).position(|(now, before)| now != before);
        let drops = self.drops.all()?;
        let drop = drops.iter().find(|(key, count)| dropped.get(key) != Some(count));
        let mut flows = self.flows.iter();
        let first = flows.next();
        self.empty = first.is_none();
        let flow = match (first, if self.empty { None } else { flows.next() }) {
            (Some(only), None) => Some(only?),
            _ => None,
        };
        Ok(Seen {
            action,
            mark,
            frame,
            reason: changed.and_then(|n| Reason::ALL.get(n).copied()),
            drop: drop.map(|(key, _)| (Verdict::from_row(key.verdict), key.rule)),
            flow,
        })
    }

    /// Gives a frame to a program and looks only at what that returns: for many frames, and from several threads at once.
    pub fn action(&self, shot: &Shot) -> Result<i32> {
        Ok(self.fire(shot, 0)?.action)
    }

    /// All counters, as the agent reads them.
    pub fn counters(&self) -> Result<Counters> {
        Ok(self.reader()?.counters()?)
    }

    /// What the agent reads the tables with.
    pub fn reader(&self) -> Result<KernelReader> {
        Ok(self.datapath.as_ref().context("the tables are an agent's")?.reader()?)
    }

    fn fire(&self, shot: &Shot, size: u32) -> Result<Ran> {
        let mut context = [0; CONTEXT];
        context[MARK..MARK + 4].copy_from_slice(&shot.mark.to_ne_bytes());
        context[INGRESS..INGRESS + 4].copy_from_slice(&shot.ingress.to_ne_bytes());
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&shot.ifindex.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
        let mut after = [0; CONTEXT];
        let mut frame = vec![0; shot.frame.len() + 256];
        let program = self.programs.get(shot.hook as usize).context("no such program")?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&shot.frame),
                data_out: Some(&mut frame),
                ctx_in: Some(&context),
                ctx_out: Some(&mut after),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("cannot run {:?} on interface {}", shot.hook, shot.ifindex))?;
        frame.truncate(result.data_size_out as usize);
        Ok(Ran { action: result.return_value.cast_signed(), frame, after })
    }

    fn counts(&self) -> Result<Vec<u64>> {
        Reason::ALL.iter().map(|reason| self.count(*reason)).collect()
    }

    fn count(&self, reason: Reason) -> Result<u64> {
        Ok(self.reasons.get(&(reason as u32), 0)?.iter().map(|c| c.packets).sum())
    }
}

/// What a program returned and left.
struct Ran {
    action: i32,
    frame: Vec<u8>,
    after: [u8; CONTEXT],
}

/// Size and offsets of `struct __sk_buff` (`include/uapi/linux/bpf.h`).
const CONTEXT: usize = 192;
const MARK: usize = 8;
const INGRESS: usize = 36;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
