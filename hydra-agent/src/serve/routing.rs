//! Keeps the routes of allowed peers in the stacks that lack them: visits a stack when what it needs has changed, and now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::inventory::routes::{self, Route, RouteError};
use crate::inventory::snapshot::{Snapshot, Stack};
use crate::published::NotEnforced;
use crate::reconcile::route_changes;

/// Somebody else may change routes in a stack without a word: look again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Stacks visited at once; each visit takes a thread.
const AT_ONCE: usize = 8;
/// A visit that takes longer is given up until the next look.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of one stack.
#[derive(Debug)]
struct Visit {
    wanted: BTreeSet<Route>,
    at: Instant,
    failed: Vec<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Routing {
    visits: BTreeMap<String, Visit>,
}

impl Routing {
    /// Brings the stacks' routes in line with what is wanted, by key; a stack without an entry wants none.
    pub async fn keep(&mut self, snapshot: &Snapshot, mut wanted: BTreeMap<String, BTreeSet<Route>>) {
        let now = Instant::now();
        self.visits.retain(|key, _| snapshot.stacks.iter().any(|s| s.key == *key));
        let due: Vec<(Stack, BTreeSet<Route>)> = snapshot
            .stacks
            .iter()
            .filter(|s| s.netns.is_some())
            .map(|s| (s, wanted.remove(&s.key).unwrap_or_default()))
            .filter(|(s, want)| match self.visits.get(&s.key) {
                // Where nothing is wanted and nothing was made, nothing can go missing.
                Some(v) if v.wanted == *want && v.failed.is_empty() => {
                    !want.is_empty() && now.duration_since(v.at) >= AGAIN
                }
                Some(v) => v.wanted != *want || now.duration_since(v.at) >= AGAIN,
                None => true,
            })
            .map(|(s, want)| (s.clone(), want))
            .collect();
        let visits = futures_util::stream::iter(due.into_iter().map(|(stack, want)| async move {
            let failed = match tokio::time::timeout(PATIENCE, visit(&stack, &want)).await {
                Ok(errors) => errors.iter().map(ToString::to_string).collect(),
                Err(_) => vec![format!("routes of `{}`: its namespace does not answer", stack.name)],
            };
            (stack.key.clone(), Visit { wanted: want, at: now, failed })
        }));
        let done: Vec<_> = visits.buffer_unordered(AT_ONCE).collect().await;
        self.visits.extend(done);
    }

    /// What could not be done. Of a stack that wants no routes nothing is missing.
    pub fn not_enforced(&self) -> impl Iterator<Item = NotEnforced> {
        let missing = self.visits.values().filter(|v| !v.wanted.is_empty());
        missing.flat_map(|v| &v.failed).map(|why| NotEnforced { what: "routes".to_owned(), why: why.clone() })
    }
}

async fn visit(stack: &Stack, wanted: &BTreeSet<Route>) -> Vec<RouteError> {
    let there = match routes::list(stack).await {
        Ok(there) => there,
        Err(error) => return vec![error],
    };
    let (add, remove) = route_changes(wanted, &there);
    for route in &add {
        tracing::info!(container = ?stack.name, %route, "a route to allowed peers is added");
    }
    for route in &remove {
        tracing::info!(container = ?stack.name, %route, "a route that nothing needs any more is removed");
    }
    routes::change(stack, add, remove).await
}

/// Takes every route of hydra's out of every stack; gives what was removed and what failed.
pub async fn remove_all(snapshot: &Snapshot) -> (Vec<String>, Vec<String>) {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for stack in snapshot.stacks.iter().filter(|s| s.netns.is_some()) {
        let there = match routes::list(stack).await {
            Ok(there) => there,
            Err(error) => {
                failed.push(error.to_string());
                continue;
            }
        };
        let (_, ours) = route_changes(&BTreeSet::new(), &there);
        removed.extend(ours.iter().map(|route| format!("route {route} in {}", stack.name)));
        failed.extend(routes::remove(stack, &ours).await.iter().map(ToString::to_string));
    }
    (removed, failed)
}
