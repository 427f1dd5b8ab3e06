//! What the API remembers so that numbers keep their names: the policies under which flows and drops were decided, containers that
//! are gone, recent drops, and what the drop counters counted under earlier policies. Bounded; lost with the agent, which costs
//! names, never counts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hydra_common::event::Event;
use hydra_common::id::Container;
use hydra_common::tables::{Count, DropKey};
use hydra_common::verdict::Verdict;
use tokio::sync::broadcast::error::RecvError;

use super::App;
use super::metrics::AttachSeconds;
use super::view::Names;
use super::wire::DropTotalRow;
use crate::published::{Applied, Counters, Published};

/// Policies kept.
const POLICIES: usize = 16;
/// Names of containers kept.
const CONTAINERS: usize = 8192;
/// Drops kept.
const DROPS: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Memory(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    policies: BTreeMap<u32, Arc<Applied>>,
    containers: BTreeMap<Container, String>,
    drops: VecDeque<Event>,
    /// The counters when the current policy came.
    base: BTreeMap<DropKey, Count>,
    /// What they had counted until then, by name.
    before: BTreeMap<TotalKey, Count>,
    /// Attach times, summed, and the window of them that was seen last.
    attach: AttachSeconds,
    window: Vec<f64>,
}

/// Source tier, destination tier, verdict, reason, rule.
type TotalKey = (String, String, &'static str, &'static str, String);

impl Memory {
    /// Names for the numbers in flows and drops.
    pub(super) fn names(&self, state: &Published) -> Names {
        let inner = self.lock();
        let mut policies = inner.policies.clone();
        let mut containers = inner.containers.clone();
        drop(inner);
        if let Some(applied) = &state.applied {
            policies.insert(applied.revision, applied.clone());
        }
        containers.extend(state.endpoints.iter().map(|e| (e.number, e.container.clone())));
        let interfaces =
            state.snapshot.links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
        Names::new(state.applied.clone(), policies, containers, interfaces)
    }

    /// Recent drops, oldest first.
    pub(super) fn drops(&self) -> Vec<Event> {
        self.lock().drops.iter().copied().collect()
    }

    /// The drop counters with their names, most packets first.
    pub(super) fn totals(&self, counters: &Counters, names: &Names) -> Vec<DropTotalRow> {
        let inner = self.lock();
        let mut totals = inner.before.clone();
        add(&mut totals, &counters.drops, &inner.base, names);
        drop(inner);
        let mut rows: Vec<_> = totals
            .into_iter()
            .filter(|(_, count)| count.packets > 0)
            .map(|((source_tier, destination_tier, verdict, reason, rule), count)| DropTotalRow {
                source_tier,
                destination_tier,
                verdict: verdict.into(),
                reason: reason.into(),
                rule,
                packets: count.packets,
                bytes: count.bytes,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.packets));
        rows
    }

    /// Attach times since the agent started.
    pub(super) fn attach_seconds(&self) -> AttachSeconds {
        self.lock().attach.clone()
    }

    fn drop_seen(&self, event: Event) {
        let mut inner = self.lock();
        if inner.drops.len() == DROPS {
            inner.drops.pop_front();
        }
        inner.drops.push_back(event);
    }

    /// Remembers the names of a state.
    pub(super) fn seen(&self, state: &Published) {
        let mut inner = self.lock();
        for seconds in newer(&inner.window, &state.attach_seconds) {
            inner.attach.observe(*seconds);
        }
        inner.window.clone_from(&state.attach_seconds);
        for endpoint in state.endpoints.iter() {
            if inner.containers.get(&endpoint.number) != Some(&endpoint.container) {
                inner.containers.insert(endpoint.number, endpoint.container.clone());
            }
        }
        while inner.containers.len() > CONTAINERS {
            inner.containers.pop_first();
        }
        if let Some(applied) = &state.applied {
            inner.policies.insert(applied.revision, applied.clone());
            while inner.policies.len() > POLICIES {
                inner.policies.pop_first();
            }
        }
    }

    /// A policy is replaced: what was counted until now was counted under `names`.
    fn close(&self, counters: &Counters, names: &Names) {
        let mut inner = self.lock();
        let Inner { base, before, .. } = &mut *inner;
        add(before, &counters.drops, base, names);
        base.clone_from(&counters.drops);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a window that moves over a growing list shows now and did not before.
fn newer<'a>(before: &[f64], now: &'a [f64]) -> &'a [f64] {
    let gone = (0..=before.len()).find(|gone| now.starts_with(&before[*gone..])).unwrap_or(before.len());
    &now[before.len() - gone..]
}

/// Adds what `now` has more than `base`.
fn add(
    totals: &mut BTreeMap<TotalKey, Count>,
    now: &BTreeMap<DropKey, Count>,
    base: &BTreeMap<DropKey, Count>,
    names: &Names,
) {
    for (key, count) in now {
        let old = base.get(key).copied().unwrap_or_default();
        let total = totals.entry(names.total_key(*key)).or_default();
        total.packets += count.packets.saturating_sub(old.packets);
        total.bytes += count.bytes.saturating_sub(old.bytes);
    }
}

/// Follows the agent's state and events until told to stop.
pub(super) async fn keep(app: Arc<App>) {
    let mut state = app.handle.state.clone();
    let mut events = app.handle.events.subscribe();
    let mut current = state.borrow_and_update().clone();
    app.memory.seen(&current);
    loop {
        tokio::select! {
            () = app.stop.cancelled() => return,
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                let next = state.borrow_and_update().clone();
                if revision(&next) != revision(&current) && current.applied.is_some() {
                    let (app, current) = (app.clone(), current.clone());
                    let closed = tokio::task::spawn_blocking(move || {
                        let names = app.memory.names(&current);
                        app.handle.reader.counters().map(|counters| app.memory.close(&counters, &names))
                    });
                    if !matches!(closed.await, Ok(Ok(()))) {
                        tracing::warn!("drops of the previous policy may be shown under the new one's rule names");
                    }
                }
                app.memory.seen(&next);
                current = next;
            }
            event = events.recv() => match event {
                Ok(event) if Verdict::from_row(event.verdict) != Verdict::Allowed => app.memory.drop_seen(event),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn revision(state: &Published) -> u32 {
    state.applied.as_ref().map_or(0, |a| a.revision)
}

#[cfg(test)]
mod tests {
    use super::newer;

    #[test]
    fn every_attach_time_is_counted_once() {
        assert_eq!(newer(&[], &[1.0, 2.0]), [1.0, 2.0]);
        assert_eq!(newer(&[1.0, 2.0], &[1.0, 2.0]), [0.0; 0]);
        assert_eq!(newer(&[1.0, 2.0], &[1.0, 2.0, 3.0]), [3.0]);
        assert_eq!(newer(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0]), [4.0], "the window is full and moves");
        assert_eq!(newer(&[1.0, 2.0], &[7.0, 8.0]), [7.0, 8.0], "it moved by its whole length");
    }
}
