//! What joins the intake to the queue.

use bytes::Bytes;

use crate::{
    intake::{Key, Metric, Push, Sink, Taken},
    queue::{AppendError, Group, Haste, Home, NewRecord, Position, Queue},
};

/// Metrics of the intake go to the queue.
#[derive(Debug, Clone)]
pub(super) struct QueueSink(pub(super) Queue);

/// The name under which the queue keeps an idempotency key, among the collectors.
fn collector(key: &str) -> String {
    format!("intake/{key}")
}

impl Sink for QueueSink {
    async fn take(&self, push: Push) -> Taken {
        let record = |metric: Metric| NewRecord {
            kind: metric.kind,
            at_ms: metric.at_ms,
            payload: metric.payload,
        };
        let position = |key: Key| Position {
            collector: collector(&key.name),
            bytes: key.receipt,
            keep_until_ms: Some(key.keep_until_ms),
        };
        let group = Group {
            records: push.metrics.into_iter().map(record).collect(),
            position: push.key.map(position),
            rejected: 0, // the client has been told, and still has them
            haste: Haste::Now,
        };
        match self.0.append(group).await.map(|appended| appended.home) {
            Ok(Home::Disk) => Taken::Durable,
            Ok(Home::MemoryOnly) => Taken::InMemory,
            Ok(Home::Evicted) => Taken::Evicted,
            Err(AppendError::Full) => Taken::Full,
            Err(AppendError::NotReady) => Taken::NotReady,
            Err(AppendError::Closed(_)) => Taken::Closed,
        }
    }

    async fn receipt(&self, key: &str) -> Option<Bytes> {
        self.0.position(&collector(key)).await.ok().flatten()
    }

    async fn is_durable(&self) -> bool {
        self.0.status().await.is_ok_and(|status| status.disk_error.is_none())
    }
}
