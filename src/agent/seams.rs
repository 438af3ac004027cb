//! What joins the forwarder to the queue and to the link.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{letter, reload::ConfigState};
use crate::{
    forward::{Outgoing, Refused, Source, Wire, WireAnswer, WireError},
    link::{Link, Push},
    metric::envelope::{AgentInfo, Backlog, LostRange},
    queue::{Batch, BatchKey, Loss, Queue},
};

/// The most characters of a refusal that travel with each push.
const CONFIG_ERROR_MAX: usize = 2_000;

/// Batches come from the queue.
#[derive(Debug)]
pub struct QueueSource {
    /// The queue.
    pub queue: Queue,
    /// For the clock's offset.
    pub link: Arc<Link>,
    /// For the configuration in force.
    pub config: ConfigState,
}

/// Batches travel over the link.
#[derive(Debug)]
pub struct LinkWire(pub Arc<Link>);

impl Source for QueueSource {
    type Key = BatchKey;

    async fn next(&self) -> Result<Option<Outgoing<BatchKey>>, String> {
        let batch = self.queue.next_batch().await.map_err(|error| error.to_string())?;
        Ok(batch.map(|batch| {
            let key = batch.key;
            outgoing(batch, key)
        }))
    }

    async fn delivered(
        &self,
        batch: &Outgoing<BatchKey>,
        refused: &[Refused],
    ) -> Result<(), String> {
        let letters = letter::letters(batch, refused);
        let records = batch.metrics.len() as u64;
        let noted = self.queue.delivered(batch.key, records, letters).await;
        noted.map_err(|error| error.to_string())
    }

    async fn put_back(&self, key: BatchKey, answer: String, next_at: Timestamp) {
        // A queue that is closed needs nothing put back: the batch is on disk.
        self.queue.put_back(key, answer, next_at.as_millisecond()).await.ok();
    }

    async fn agent_info(&self) -> Option<AgentInfo> {
        let status = self.queue.status().await.ok()?;
        let lost = self.queue.losses_to_send().await.ok()?;
        let config = self.config.snapshot();
        let refused = config.refused.as_ref();
        let error = refused.map(|refused| &refused.error).or(config.file_error.as_ref());
        Some(AgentInfo {
            queue_id: status.queue_id,
            config_version: config.version,
            config_error: error.map(|error| error.chars().take(CONFIG_ERROR_MAX).collect()),
            config_error_version: refused.map(|refused| refused.version),
            clock_offset_ms: self.link.clock_offset_ms(),
            backlog: Backlog {
                segments: status.segments,
                batches: status.batches,
                records: status.records,
                bytes: status.disk_bytes,
                oldest_at: status.oldest_at,
            },
            lost: lost.iter().filter_map(lost_range).collect(),
        })
    }

    async fn heard(&self, info: &AgentInfo) {
        let ids: Vec<u64> = info.lost.iter().filter_map(|lost| lost.id).collect();
        if !ids.is_empty() {
            // A queue that is closed has the entries on disk: they are said again.
            self.queue.losses_acknowledged(ids).await.ok();
        }
    }
}

impl Wire for LinkWire {
    async fn push(&self, body: Bytes, batch_id: Uuid) -> Result<WireAnswer, WireError> {
        let push = Push { body, encoding: "gzip", batch_id: Some(batch_id) };
        let answer =
            self.0.push(push).await.map_err(|error| WireError { message: error.to_string() })?;
        let (status, retry_after) = (answer.status, answer.retry_after);
        Ok(WireAnswer { status, retry_after, body: answer.body })
    }
}

fn lost_range(loss: &Loss) -> Option<LostRange> {
    let Loss { id, from, to, records, reason, time_ms, at_ms, .. } = *loss;
    let time = |ms| Timestamp::from_millisecond(ms).ok();
    Some(LostRange {
        id: Some(id),
        from,
        to,
        records,
        reason: reason.to_string(),
        at: time(at_ms)?,
        first_at: time(time_ms.0),
        last_at: time(time_ms.1),
    })
}

/// A batch of the queue, ready to be sent.
pub(super) fn outgoing<K>(batch: Batch, key: K) -> Outgoing<K> {
    Outgoing {
        key,
        id: batch.id,
        records: batch.records.iter().map(|record| (record.seq, record.at_ms)).collect(),
        metrics: batch.records.into_iter().map(|record| record.payload).collect(),
    }
}
