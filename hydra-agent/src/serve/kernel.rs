//! The datapath behind a door that an async loop can use: every call goes to a blocking thread.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hydra_common::id::Container;
use tokio::task::spawn_blocking;

use crate::datapath::{Collector, Datapath, SyncReport};
use crate::desired::Desired;
use crate::published::NotEnforced;

/// See the module.
#[derive(Clone, Debug)]
pub struct Kernel {
    datapath: Arc<Mutex<Datapath>>,
    collector: Arc<Mutex<Collector>>,
}

impl Kernel {
    /// Takes the datapath over.
    pub fn new(datapath: Datapath, collector: Collector) -> Self {
        Self { datapath: Arc::new(Mutex::new(datapath)), collector: Arc::new(Mutex::new(collector)) }
    }

    /// Makes the kernel hold it. The error is a whole sentence with what to do about it.
    pub async fn sync(&self, desired: Arc<Desired>) -> Result<SyncReport, String> {
        let datapath = self.datapath.clone();
        let done = spawn_blocking(move || lock(&datapath).sync(&desired)).await;
        match done {
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

    /// What is not as the last sync left it.
    pub async fn verify(&self, desired: Arc<Desired>) -> Vec<NotEnforced> {
        let datapath = self.datapath.clone();
        let looked = spawn_blocking(move || lock(&datapath).verify(&desired)).await;
        looked.unwrap_or_else(|e| vec![NotEnforced { what: "tables".to_owned(), why: e.to_string() }])
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

    /// Takes some silent flows out of the table.
    pub async fn collect(&self) {
        let collector = self.collector.clone();
        let done = spawn_blocking(move || {
            let mut collector = lock(&collector);
            for _ in 0..collector.steps() {
                if collector.step()?.round {
                    break;
                }
            }
            std::io::Result::Ok(())
        });
        if let Ok(Err(error)) = done.await {
            tracing::warn!(%error, "silent flows stay in the table");
        }
    }
}

/// A panic in there left the tables as they were, and the datapath reads again what it doubts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
