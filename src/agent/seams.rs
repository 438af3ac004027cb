//! What joins the forwarder to the queue and to the link.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use crate::{
    clock,
    forward::{Outgoing, Source, Wire, WireAnswer, WireError},
    link::{Link, Push},
    metric::envelope::{AgentInfo, Backlog, LostRange, Rejected},
    queue::{Batch, BatchKey, DeadLetter, Loss, Queue},
};

/// Batches come from the queue.
#[derive(Debug)]
pub struct QueueSource {
    /// The queue.
    pub queue: Queue,
    /// For the clock's offset.
    pub link: Arc<Link>,
}

/// Batches travel over the link.
#[derive(Debug)]
pub struct LinkWire(pub Arc<Link>);

#[derive(serde::Serialize)]
struct Letter<'a> {
    at: Timestamp,
    batch: Uuid,
    seq: u64,
    path: &'a str,
    message: &'a str,
    metric: &'a RawValue,
}

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
        rejected: &[Rejected],
    ) -> Result<(), String> {
        let letters = letters(batch, rejected);
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
        Some(AgentInfo {
            queue_id: status.queue_id,
            config_version: 0,
            config_error: None,
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

/// What the backend has rejected of a batch, for the dead letters.
pub(super) fn letters<K>(batch: &Outgoing<K>, rejected: &[Rejected]) -> Vec<DeadLetter> {
    rejected.iter().filter_map(|rejected| letter(batch, rejected)).collect()
}

fn letter<K>(batch: &Outgoing<K>, rejected: &Rejected) -> Option<DeadLetter> {
    let payload = batch.metrics.get(rejected.index)?;
    let (seq, at_ms) = *batch.records.get(rejected.index)?;
    // What the backend found no JSON is kept as the text that it is.
    let raw = serde_json::from_slice::<&RawValue>(payload).map(ToOwned::to_owned);
    let metric = raw.or_else(|_| to_raw_value(&String::from_utf8_lossy(payload))).ok()?;
    let letter = Letter {
        at: clock::now(),
        batch: batch.id,
        seq,
        path: &rejected.path,
        message: &rejected.message,
        metric: &metric,
    };
    Some(DeadLetter { seq, at_ms, line: serde_json::to_string(&letter).ok()? })
}
