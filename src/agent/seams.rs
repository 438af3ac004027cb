//! What joins the forwarder to the queue and to the link.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use super::{letter, reload::ConfigState};
use crate::{
    answer::Answer,
    forward::{Body, Choice, Lane, Outgoing, Refused, Source, Wire, WireError},
    link::{Link, Push, SendError},
    metric::{
        agent_health,
        envelope::{AgentInfo, Backlog, LostRange},
    },
    queue::{self, Batch, BatchKey, Loss, Pick, Picked, Queue, Record},
};

/// The most characters of a refusal that travel with each push.
const CONFIG_ERROR_MAX: usize = 2_000;

/// Batches come from the queue.
#[derive(Debug, Clone)]
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

/// A drain makes many pushes a second: they may say the same of the backlog.
const REPORT_AGE_MAX: Duration = Duration::from_secs(1);

impl Source for QueueSource {
    type Key = BatchKey;

    async fn next(&self, choice: Choice) -> Result<Option<Outgoing<BatchKey>>, String> {
        let pick = match choice {
            Choice::FreshFirst => Pick::FreshFirst,
            Choice::FreshOnly => Pick::FreshOnly,
            Choice::OldestFirst => Pick::Oldest,
        };
        let picked = self.queue.pick_batch(pick).await.map_err(|error| error.to_string())?;
        Ok(picked.map(|Picked { queue_id, batch, lane }| {
            let lane = match lane {
                queue::Lane::Fresh => Lane::Fresh,
                queue::Lane::Backlog => Lane::Backlog,
            };
            let key = batch.key;
            outgoing(batch, queue_id, key, lane)
        }))
    }

    async fn delivered(
        &self,
        batch: &Outgoing<BatchKey>,
        refused: &[Refused],
    ) -> Result<(), String> {
        let noted = self.queue.settle(batch.key, letter::settled(batch, refused)).await;
        noted.map_err(|error| error.to_string())
    }

    async fn put_back(&self, key: BatchKey, answer: String, next_at: Timestamp) {
        // A queue that is closed needs nothing put back: the batch is on disk.
        self.queue.put_back(key, answer, next_at.as_millisecond()).await.ok();
    }

    async fn agent_info(&self) -> Option<AgentInfo> {
        // Without its numbers a record could not be told from one with the same document.
        Some(self.report().await.unwrap_or_else(|| AgentInfo::unknown(self.link.clock_offset_ms())))
    }

    async fn heard(&self, info: &AgentInfo) {
        // The answer has just told the backend's time.
        self.queue.clock_is_off_by(self.link.clock_offset_ms()).await;
        let ids: Vec<u64> = info.lost.iter().filter_map(|lost| lost.id).collect();
        if !ids.is_empty() {
            // A queue that is closed has the entries on disk: they are said again.
            self.queue.losses_acknowledged(ids).await.ok();
        }
    }
}

impl QueueSource {
    /// What the agent knows of itself; `None` when the queue is closed.
    async fn report(&self) -> Option<AgentInfo> {
        let status = self.queue.recent_status(REPORT_AGE_MAX).await.ok()?;
        let lost = self.queue.losses_to_send().await.ok()?;
        let (config, reports) = self.config.with_reports();
        let refused = config.refused.as_ref();
        let error = reports.refused.as_ref().or(reports.file_error.as_ref());
        let withheld = config.withheld.as_ref().filter(|_| error.is_none());
        let in_part = withheld.map(|_| config.version);
        let error = error.or(withheld);
        Some(AgentInfo {
            queue_id: status.queue_id,
            sequences: None, // said of each push by the forwarder
            replay_of: None,
            config_version: config.version,
            config_error: error.map(|error| error.chars().take(CONFIG_ERROR_MAX).collect()),
            config_error_version: refused.map(|refused| refused.version).or(in_part),
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
}

impl Wire for LinkWire {
    async fn push(&self, body: Body, batch_id: Uuid) -> Result<Answer, WireError> {
        let encoding = body.encoding.label();
        let push = Push { body: body.bytes, encoding, batch_id: Some(batch_id) };
        self.0.push(push).await.map_err(WireError::from)
    }

    async fn probe(&self) -> Result<Answer, WireError> {
        self.0.probe().await.map_err(WireError::from)
    }

    fn wants_time(&self) -> bool {
        self.0.wants_time()
    }
}

impl From<SendError> for WireError {
    fn from(error: SendError) -> Self {
        Self { message: error.to_string() }
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
pub(super) fn outgoing<K>(batch: Batch, queue_id: Uuid, key: K, lane: Lane) -> Outgoing<K> {
    let is_health = |(_, record): &(usize, &Record)| record.kind == agent_health::TYPE;
    Outgoing {
        key,
        id: batch.id,
        lane,
        queue_id,
        records: batch.records.iter().map(|record| (record.seq, record.at_ms)).collect(),
        health: (0..).zip(&batch.records).filter(is_health).map(|(place, _)| place).collect(),
        left_out: Vec::new(),
        metrics: batch.records.into_iter().map(|record| record.payload).collect(),
    }
}
