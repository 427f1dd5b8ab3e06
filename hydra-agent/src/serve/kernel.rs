//! The datapath behind a door that an async loop can use: every call goes to a blocking thread.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hydra_common::id::Container;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use crate::datapath::{Collector, Datapath, Settled, SyncReport};
use crate::desired::Desired;
use crate::published::NotEnforced;

/// See the module.
#[derive(Clone, Debug)]
pub struct Kernel {
    datapath: Arc<Mutex<Datapath>>,
    collector: Arc<Mutex<Collector>>,
    cleaning: Arc<Beside>,
}

impl Kernel {
    /// Takes the datapath over.
    pub fn new(datapath: Datapath, collector: Collector) -> Self {
        Self {
            datapath: Arc::new(Mutex::new(datapath)),
            collector: Arc::new(Mutex::new(collector)),
            cleaning: Arc::default(),
        }
    }

    /// Makes the kernel hold it. The error is a whole sentence with what to do about it.
    pub async fn sync(&self, desired: Arc<Desired>) -> Result<SyncReport, String> {
        match self.ask(move |datapath| datapath.sync(&desired)).await {
            Ok(Ok(report)) => {
                if !report.gone.is_empty() {
                    self.forget(report.gone.clone());
                }
                Ok(report)
            }
            Ok(Err(error)) => Err(match error.hint() {
                Some(hint) => format!("{error} (hint: {hint})"),
                None => error.to_string(),
            }),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What is not as the last sync left it, by halves: [`Datapath::look`].
    pub async fn look(&self, desired: Arc<Desired>) -> Vec<NotEnforced> {
        self.wrong(move |datapath| datapath.look(&desired)).await
    }

    /// What is not as the last sync left it.
    pub async fn verify(&self, desired: Arc<Desired>) -> Vec<NotEnforced> {
        self.wrong(move |datapath| datapath.verify(&desired)).await
    }

    async fn wrong(
        &self,
        look: impl FnOnce(&mut Datapath) -> Vec<NotEnforced> + Send + 'static,
    ) -> Vec<NotEnforced> {
        let looked = self.ask(look).await;
        looked.unwrap_or_else(|e| vec![NotEnforced { what: "tables".to_owned(), why: e.to_string() }])
    }

    /// On a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Datapath) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let datapath = self.datapath.clone();
        spawn_blocking(move || question(&mut lock(&datapath))).await
    }

    /// Puts links in the places of filters, if it is time to.
    pub async fn settle(&self) -> Option<Settled> {
        self.ask(Datapath::settle).await.unwrap_or_default()
    }

    /// Takes the flows of containers that are gone out of the table, while the loop goes on.
    fn forget(&self, gone: BTreeSet<Container>) {
        let collector = self.collector.clone();
        spawn_blocking(move || {
            if let Err(error) = lock(&collector).forget(&gone) {
                tracing::warn!(%error, "flows of containers that are gone stay in the table until they are silent for too long");
            }
        });
    }

    /// Takes some silent flows out of the table, while the loop goes on: of a large table that is a tenth of a second's work.
    pub fn collect(&self) {
        let collector = self.collector.clone();
        self.cleaning.start(move || {
            if let Err(error) = collect(&collector) {
                tracing::warn!(%error, "silent flows stay in the table");
            }
        });
    }
}

/// Goes on with the round, a step at a time: whoever wants the flows of a container that is gone out of the table comes in between.
fn collect(collector: &Mutex<Collector>) -> std::io::Result<()> {
    let steps = lock(collector).steps();
    for _ in 0..steps {
        let mut collector = lock(collector);
        if !collector.due() || collector.step()?.round {
            break;
        }
    }
    Ok(())
}

/// Work beside the loop, one piece at a time: what is not done yet is not begun again.
#[derive(Debug, Default)]
struct Beside(Mutex<Option<JoinHandle<()>>>);

impl Beside {
    /// Begins it on a blocking thread and returns at once; `false`: the last one goes on.
    fn start(&self, work: impl FnOnce() + Send + 'static) -> bool {
        let mut last = lock(&self.0);
        let free = last.as_ref().is_none_or(JoinHandle::is_finished);
        if free {
            *last = Some(spawn_blocking(work));
        }
        free
    }
}

/// A panic in there left the tables as they were, and the datapath reads again what it doubts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_beside_the_loop_holds_nobody_up_and_does_not_pile_up() {
        let beside = Beside::default();
        let (go_on, wait) = mpsc::channel::<()>();
        let (done, seen) = mpsc::channel();
        let first = done.clone();
        let work = move || {
            // Returns when the sender is gone.
            let _ = wait.recv();
            let _ = first.send(1);
        };
        // The loop is here while the work waits for it.
        assert!(beside.start(work));
        assert!(!beside.start(|| ()), "one at a time");
        drop(go_on);
        let second = move || {
            let _ = done.send(2);
        };
        while !beside.start(second.clone()) {
            tokio::task::yield_now().await;
        }
        assert_eq!([seen.recv(), seen.recv()], [Ok(1), Ok(2)]);
    }
}
