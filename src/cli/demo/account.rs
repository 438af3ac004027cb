//! Where every record of the demo has gone.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    agent::AgentView,
    backend::store::{MetricQuery, Page, Store},
};

/// The records of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Taken by the queue.
    pub collected: u64,
    /// In the backend's store, each counted once.
    pub delivered: u64,
    /// In the backend's store more than once.
    pub duplicated: u64,
    /// Batches that were sent again and that the backend knew.
    pub resent_batches: u64,
}

impl Account {
    /// Compares what the collectors gave since `begun` with what the store has of that time; an
    /// earlier demo in the same directory left records of its own.
    pub async fn take(
        view: &AgentView,
        store: &dyn Store,
        collector_id: Uuid,
        begun: Timestamp,
    ) -> anyhow::Result<Self> {
        let collected = view.collections.snapshot().values().map(|status| status.metrics).sum();
        let (mut stored, mut distinct) = (0, BTreeSet::new());
        let servers = store.servers(Page::first(100)).await?.rows;
        for server in servers.iter().filter(|server| server.collector_id == Some(collector_id)) {
            let all = MetricQuery {
                server_id: server.id,
                kind: None,
                start: begun,
                end: Timestamp::MAX,
                step: None,
                limit: u32::MAX,
                bytes_max: usize::MAX,
            };
            for metric in store.metrics(all).await?.metrics {
                stored += 1;
                distinct.insert((metric.kind, metric.database, metric.at));
            }
        }
        let delivered = distinct.len() as u64;
        Ok(Self {
            collected,
            delivered,
            duplicated: stored - delivered,
            resent_batches: view.forward.borrow().duplicate_batches,
        })
    }

    /// Records that were collected and are not in the store.
    pub fn lost(&self) -> u64 {
        self.collected.saturating_sub(self.delivered)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "records collected   {:>8}", self.collected)?;
        writeln!(f, "records delivered   {:>8}", self.delivered)?;
        writeln!(f, "records duplicated  {:>8}", self.duplicated)?;
        write!(f, "records lost        {:>8}", self.lost())?;
        if self.resent_batches > 0 {
            write!(f, "\n(batches sent again, and known to the backend: {})", self.resent_batches)?;
        }
        Ok(())
    }
}
