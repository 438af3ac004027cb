//! Stage 3: batches leave, several at once; what fails stays where it was.
//!
//! The forwarder knows neither where batches are kept ([`Source`]) nor how they travel ([`Wire`]).
//! There are two lanes: fresh windows go first, and the backlog drains beside them, as fast as it
//! may ([`rate`]). After a failure of the backend or the network everything waits ([`pace`]), and a
//! probe asks whether it is back ([`breaker`]). A batch that the backend refuses is taken apart
//! until the records are found that it refuses by themselves; those go to the dead letters
//! ([`split`]). Nothing is given up.

pub mod batch; // envelope + compression
pub mod breaker; // whether batches may leave, and how many at once
mod course; // what is remembered from one drain to the next
pub mod encodings; // how bodies are packed for each backend
mod drive; // what happens when: the only part that waits
mod flight; // one request after another for one batch
pub mod pace; // how long to wait
pub mod rate; // bytes per second
pub mod recent; // how fast the backlog leaves
pub mod split; // which part of a refused batch is sent next
pub mod verdict; // what an answer means

use std::{future::Future, ops::Range, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

pub use self::{
    batch::Body,
    drive::{Drained, Forwarder},
    recent::Speed,
    split::Refused,
};
use crate::{
    answer::Answer,
    encoding::Encoding,
    metric::{agent_health::ForwarderState, envelope::AgentInfo},
};

/// Where batches wait.
pub trait Source: Send + Sync {
    /// Names a batch to its source.
    type Key: Copy + Send + Sync;

    /// A batch that is due; it counts as being sent until one of the two below.
    fn next(
        &self,
        choice: Choice,
    ) -> impl Future<Output = Result<Option<Outgoing<Self::Key>>, String>> + Send;

    /// The backend has the batch, apart from what it refused and what was left out.
    fn delivered(
        &self,
        batch: &Outgoing<Self::Key>,
        refused: &[Refused],
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// The batch stays, and is due again at `next_at`.
    fn put_back(
        &self,
        key: Self::Key,
        answer: String,
        next_at: Timestamp,
    ) -> impl Future<Output = ()> + Send;

    /// What the agent says of itself in the envelope.
    fn agent_info(&self) -> impl Future<Output = Option<AgentInfo>> + Send;

    /// The backend has answered 2xx to a push that said this: its losses need not be said again.
    fn heard(&self, _info: &AgentInfo) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// How batches travel.
pub trait Wire: Send + Sync {
    /// Sends a body under its batch's id.
    fn push(
        &self,
        body: Body,
        batch_id: Uuid,
    ) -> impl Future<Output = Result<Answer, WireError>> + Send;

    /// Asks for a sign of life, as cheaply as possible. The body of the answer may say which
    /// encodings are taken: `{"encodings": ["gzip", "zstd"]}`.
    fn probe(&self) -> impl Future<Output = Result<Answer, WireError>> + Send;

    /// Whether it is not known how far this host's clock is off. Then the backend is asked before
    /// anything is sent: it refuses records of a clock that is ahead of its own by more than a day,
    /// unless the push says that the clock is.
    fn wants_time(&self) -> bool {
        false
    }
}

/// Which batch is wanted next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// A fresh one, or without one the oldest of the backlog.
    FreshFirst,
    /// A fresh one.
    FreshOnly,
    /// The oldest one.
    OldestFirst,
}

/// Where a batch comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// From a window that has just ended.
    Fresh,
    /// From what has waited.
    Backlog,
}

/// A batch to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing<K> {
    /// Its name at the source.
    pub key: K,
    /// Its name at the backend, for ever.
    pub id: Uuid,
    /// Where it comes from.
    pub lane: Lane,
    /// The queue that numbered its records.
    pub queue_id: Uuid,
    /// The records' sequence numbers and times (milliseconds since 1970 UTC).
    pub records: Vec<(u64, i64)>,
    /// The records' JSON.
    pub metrics: Vec<Bytes>,
    /// Which of them are what the agent says of itself. A backend may not know that, and it is kept
    /// for no other.
    pub health: Vec<usize>,
    /// Numbers and times of such records that are not sent: this backend does not know them.
    pub left_out: Vec<(u64, i64)>,
}

impl<K> Outgoing<K> {
    /// Its records, those that are left out included.
    pub fn count(&self) -> usize {
        self.metrics.len() + self.left_out.len()
    }

    /// Whether the record was refused for its type, and is what the agent says of itself: it is not
    /// worth keeping.
    pub fn is_unknown(&self, refused: &Refused) -> bool {
        self.is_unknown_at(refused.index, &refused.message)
    }

    fn is_unknown_at(&self, place: usize, said: &str) -> bool {
        self.health.contains(&place) && said.contains(UNKNOWN_TYPE)
    }
}

impl<K: Copy> Outgoing<K> {
    /// The same without what the agent says of itself. That is another content, and so has another
    /// id.
    fn without_health(self) -> Self {
        if self.health.is_empty() {
            return self;
        }
        let left_out = self.health.iter().filter_map(|place| self.records.get(*place)).copied();
        let stays = |place: &usize| !self.health.contains(place);
        let kept =
            |place: usize| Some((*self.records.get(place)?, self.metrics.get(place)?.clone()));
        let (records, metrics) = (0..self.metrics.len()).filter(stays).filter_map(kept).unzip();
        Self {
            id: Uuid::new_v5(&self.id, b"without the agent's health"),
            records,
            metrics,
            health: Vec::new(),
            left_out: left_out.collect(),
            ..self
        }
    }

    /// Some of the records as a batch of their own. Its id is a function of the batch's and of the
    /// records' numbers; all of them are the batch itself.
    fn part(&self, records: Range<usize>) -> Self {
        if records == (0..self.metrics.len()) {
            return self.clone();
        }
        let metrics = self.metrics[records.clone()].to_vec();
        let records = self.records[records].to_vec();
        let number = |record: Option<&(u64, i64)>| record.map_or(0, |(seq, _)| *seq);
        let name = format!("{}..{}", number(records.first()), number(records.last()));
        let id = Uuid::new_v5(&self.id, name.as_bytes());
        let (health, left_out) = (Vec::new(), Vec::new());
        Self { id, records, metrics, health, left_out, ..*self }
    }
}

/// What a backend says of a type that it does not know, among other words.
const UNKNOWN_TYPE: &str = "Unknown metric type";

/// Why nothing came back, with a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// For a person.
    pub message: String,
}

/// `[forward]` of the configuration, and who is sending. `Default` holds the documented defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The agent's id at the backend.
    pub collector_id: String,
    /// The host that the metrics are of: this one, but for a replay.
    pub hostname: String,
    /// It is another host, which this one brings.
    pub brings_other: bool,
    /// Batches on their way at once at most, 1 to 16.
    pub in_flight: usize,
    /// Which batches go first.
    pub order: Order,
    /// Bytes of compressed bodies a second that the backlog may take; `None`: all there is.
    pub backlog_rate: Option<u64>,
    /// How bodies are packed, if the backend takes it: identity, gzip or zstd.
    pub encoding: Encoding,
    /// Of gzip: 0 (fast) to 9 (small).
    pub gzip_level: u32,
    /// Of zstd: 1 (fast) to 19 (small).
    pub zstd_level: i32,
    /// The first and the highest ceiling of a pause after a failure.
    pub backoff: (Duration, Duration),
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            collector_id: String::new(),
            hostname: String::new(),
            brings_other: false,
            in_flight: 4,
            order: Order::FreshFirst,
            backlog_rate: None,
            encoding: Encoding::Gzip,
            gzip_level: 6,
            zstd_level: 3,
            backoff: (pace::FIRST, pace::CAP),
        }
    }
}

impl ForwardConfig {
    /// For a forwarder whose settings never change.
    pub fn fixed(self) -> watch::Receiver<Self> {
        watch::channel(self).1
    }
}

/// Which batches go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Windows that have just ended, and the backlog beside them.
    FreshFirst,
    /// Everything in the order in which it was collected.
    OldestFirst,
}

/// What the forwarder has done and is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStatus {
    /// Batches that the backend took.
    pub delivered_batches: u64,
    /// Records in them.
    pub delivered_records: u64,
    /// Batches that the backend had already.
    pub duplicate_batches: u64,
    /// Records that the backend refused.
    pub refused_records: u64,
    /// Batches that were refused and taken apart.
    #[serde(default)]
    pub split_batches: u64,
    /// Bytes that were sent and taken, compressed.
    pub sent_bytes: u64,
    /// The same before compression.
    pub raw_bytes: u64,
    /// Size of the last batch, before and after compression.
    pub last_batch_bytes: (u64, u64),
    /// Tries that failed.
    pub failures: u64,
    /// The last answer.
    pub last_answer: Option<String>,
    /// When it came.
    pub last_answer_at: Option<Timestamp>,
    /// When the backend took records last: the time of the last answer, if it was that.
    pub last_delivery_at: Option<Timestamp>,
    /// When the next try is due, while everything waits.
    pub next_try_at: Option<Timestamp>,
    /// The version of the configuration that the backend has for this agent.
    pub next_config_version: Option<i64>,
    /// Whether the backend in use does not know what the agent says of itself, and gets none of it.
    #[serde(default)]
    pub refuses_health: bool,
    /// What it does at the moment.
    #[serde(default)]
    pub state: ForwarderState,
    /// What a person can do while it is paused.
    #[serde(default)]
    pub hint: Option<String>,
    /// Batches on their way.
    #[serde(default)]
    pub in_flight: u64,
    /// How fast the backlog leaves, while it does.
    #[serde(default)]
    pub drain: Option<Speed>,
}

#[cfg(test)]
mod tests;
