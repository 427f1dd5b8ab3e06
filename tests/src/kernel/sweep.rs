//! Millions of frames: what each must come to is known before, so that nothing is searched for. A frame costs three or four system calls;
//! looking through the tables costs ten times as much, and is done once at the end of a round.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use hydra_common::flow::FlowKey;
use hydra_common::tables::{DropKey, FragmentKey};
use hydra_common::verdict::{Reason, Verdict};

use super::{Runner, SHOT, Shot};

/// What a frame must come to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The verdict.
    pub verdict: Verdict,
    /// The one reason that it is counted for.
    pub reason: Reason,
    /// The rule that decided, counted from 1; 0 = none. The kernel says it of drops and entries alone.
    pub rule: u16,
    /// The one row that it is counted in where it is denied or audited.
    pub drop: DropKey,
    /// The one entry that it makes.
    pub flow: Option<FlowKey>,
    /// Of a first piece that passes the row for those that follow.
    pub fragment: Option<FragmentKey>,
}

/// A round: begins without flows and pieces of datagrams, and nothing else may meet the programs meanwhile.
pub struct Sweep<'a> {
    runner: &'a mut Runner,
    reasons: BTreeMap<Reason, u64>,
    drops: BTreeMap<DropKey, u64>,
    /// Frames, and those of them that were counted as drops.
    counted: (u64, u64),
}

impl<'a> Sweep<'a> {
    /// Begins.
    pub fn begin(runner: &'a mut Runner) -> Result<Self> {
        runner.forget()?;
        runner.forget_pieces()?;
        let reasons = by_reason(runner)?;
        let drops = runner.dropped()?.into_iter().collect();
        Ok(Self { runner, reasons, drops, counted: (0, 0) })
    }

    /// Whether a frame comes to what it must. After a "no" the round is over.
    pub fn holds(&mut self, shot: &Shot, wanted: &Wanted) -> Result<bool> {
        let action = self.runner.fire(shot, 0)?.action;
        let denied = wanted.verdict == Verdict::Denied;
        let now = self.runner.count(wanted.reason)?;
        self.counted.0 += 1;
        let mut right = (action == SHOT) == denied;
        right &= self.reasons.insert(wanted.reason, now).unwrap_or(0) + 1 == now;
        if denied || wanted.verdict == Verdict::Audited {
            let now = self.runner.drops.get(&wanted.drop)?.packets;
            self.counted.1 += 1;
            right &= self.drops.insert(wanted.drop, now).unwrap_or(0) + 1 == now;
        }
        if let Some(key) = &wanted.flow {
            let entry = self.runner.flows.get(key, 0).ok();
            right &= entry.is_some_and(|flow| {
                flow.rule == wanted.rule && Verdict::from_row(flow.verdict) == wanted.verdict
            });
            if entry.is_some() {
                self.runner.flows.remove(key)?;
            }
        }
        if let Some(key) = &wanted.fragment {
            right &= self.runner.fragments.remove(key).is_ok();
        }
        Ok(right)
    }

    /// Ends: no frame was counted twice or elsewhere as well, and none has left an entry that it must not make.
    pub fn end(self) -> Result<()> {
        let (frames, denied) = self.counted;
        let counts = by_reason(self.runner)?;
        ensure!(counts == self.reasons, "counted for other reasons, too: {counts:?}, not {:?}", self.reasons);
        let drops: BTreeMap<DropKey, u64> = self.runner.dropped()?.into_iter().collect();
        ensure!(drops == self.drops, "{denied} of {frames} frames were counted in other rows, too");
        let flows = self.runner.flows()?;
        ensure!(flows.is_empty(), "{frames} frames left {flows:?}");
        ensure!(self.runner.fragments.keys().next().is_none(), "{frames} frames left rows of pieces");
        Ok(())
    }
}

fn by_reason(runner: &Runner) -> Result<BTreeMap<Reason, u64>> {
    Ok(Reason::ALL.iter().copied().zip(runner.counts()?).collect())
}
