//! Stage 3: batches leave. One at a time, oldest first; what fails stays where it was.
//!
//! The forwarder knows neither where batches are kept ([`Source`]) nor how they travel ([`Wire`]).
//! After a failure of the backend or the network everything waits ([`pace`]). A batch that the
//! backend refuses is taken apart until the records are found that it refuses by themselves; those
//! go to the dead letters ([`split`]). Nothing is given up.

pub mod batch; // envelope + compression
pub mod pace; // how long to wait
pub mod split; // which part of a refused batch is sent next
pub mod verdict; // what an answer means

use std::{future::Future, ops::Range, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

pub use self::split::Refused;
use self::{
    pace::Pace,
    split::{Refusing, Split},
    verdict::{Refusal, Verdict},
};
use crate::{
    clock,
    metric::envelope::{AgentInfo, EnvelopeHead, PushResponse},
    units,
};

/// Where batches wait.
pub trait Source: Send + Sync {
    /// Names a batch to its source.
    type Key: Copy + Send + Sync;

    /// The oldest batch that is due; it counts as being sent until one of the two below.
    fn next(&self) -> impl Future<Output = Result<Option<Outgoing<Self::Key>>, String>> + Send;

    /// The backend has the batch, apart from what it refused.
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
        body: Bytes,
        batch_id: Uuid,
    ) -> impl Future<Output = Result<WireAnswer, WireError>> + Send;
}

/// A batch to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing<K> {
    /// Its name at the source.
    pub key: K,
    /// Its name at the backend, for ever.
    pub id: Uuid,
    /// The records' sequence numbers and times (milliseconds since 1970 UTC).
    pub records: Vec<(u64, i64)>,
    /// The records' JSON.
    pub metrics: Vec<Bytes>,
}

impl<K: Copy> Outgoing<K> {
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
        Self { key: self.key, id, records, metrics }
    }
}

/// What the backend said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireAnswer {
    /// The HTTP status.
    pub status: u16,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Bytes,
}

/// Why nothing came back, with a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// For a person.
    pub message: String,
}

/// `[forward]` of the configuration, and who is sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The agent's id at the backend.
    pub collector_id: String,
    /// This host.
    pub hostname: String,
    /// 0 (fast) to 9 (small).
    pub gzip_level: u32,
    /// The first and the highest ceiling of a pause after a failure.
    pub backoff: (Duration, Duration),
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
    pub rejected_records: u64,
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
}

/// How a drain has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drained {
    /// Nothing that is due is left.
    Empty,
    /// Everything waits this long.
    Waiting(Duration),
}

/// Sends batches until told otherwise.
#[derive(Debug)]
pub struct Forwarder<S, W> {
    source: S,
    wire: W,
    config: ForwardConfig,
    pace: Pace,
    troubled: bool,
    /// The batch that was being taken apart when everything had to wait.
    apart: Option<(Uuid, Split)>,
    status: watch::Sender<ForwardStatus>,
}

/// What has come of a request.
enum Tried {
    /// The backend has the records, apart from those that its answer names.
    Taken(u16, Option<PushResponse>),
    Refused(Refusing),
    /// Everything has to wait.
    Wait(String, Duration),
}

impl<S: Source, W: Wire> Forwarder<S, W> {
    /// A forwarder that has sent nothing yet, and where its status shows.
    pub fn new(
        source: S,
        wire: W,
        config: ForwardConfig,
    ) -> (Self, watch::Receiver<ForwardStatus>) {
        let (status, shown) = watch::channel(ForwardStatus::default());
        let pace = Pace::new(config.backoff.0, config.backoff.1);
        (Self { source, wire, config, pace, troubled: false, apart: None, status }, shown)
    }

    /// Goes on with another configuration.
    pub fn configure(&mut self, config: ForwardConfig) {
        if config.backoff != self.config.backoff {
            self.pace = Pace::new(config.backoff.0, config.backoff.1);
        }
        self.config = config;
    }

    /// Sends what is due until nothing is left or everything has to wait.
    pub async fn drain(&mut self) -> Drained {
        self.status.send_modify(|status| status.next_try_at = None);
        loop {
            let batch = match self.source.next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return Drained::Empty,
                Err(error) => {
                    tracing::error!(%error, "cannot read the queue");
                    return Drained::Waiting(self.pace.after_failure(1.0, None));
                }
            };
            if let Some(wait) = self.send(&batch).await {
                let next = later(wait);
                self.status.send_modify(|status| status.next_try_at = Some(next));
                return Drained::Waiting(wait);
            }
        }
    }

    /// Sends one batch, whole or in parts. `Some` when everything has to wait.
    async fn send(&mut self, batch: &Outgoing<S::Key>) -> Option<Duration> {
        let begun = self.apart.take().filter(|(id, _)| *id == batch.id);
        let mut split = begun.map_or_else(|| Split::of(batch.metrics.len()), |(_, split)| split);
        while let Some(part) = split.next_part() {
            match self.push(&batch.part(part)).await {
                Tried::Taken(status, response) => {
                    let rejected = response.map_or_else(Vec::new, |response| response.rejected);
                    split.taken(rejected, status, clock::now());
                }
                Tried::Refused(answer) => {
                    if split.is_whole() {
                        self.taking_apart(batch, &answer);
                    }
                    split.refused(&answer);
                }
                Tried::Wait(answer, wait) => {
                    self.apart = Some((batch.id, split));
                    self.failed(batch, answer, wait).await;
                    return Some(wait);
                }
            }
        }
        let refused = split.into_refused();
        self.delivered(batch, &refused).await;
        // A backend that takes nothing at all is more likely wrong than every record is.
        let nothing = refused.len() > 1 && refused.len() == batch.metrics.len();
        (nothing && refused.iter().all(|record| record.status >= 400)).then(|| {
            let wait = self.pace.at_cap(fastrand::f64());
            let (wait_shown, hint) = (units::show_duration(wait), "is backend.url right?");
            tracing::error!(wait = wait_shown, hint, "the backend refuses every record");
            wait
        })
    }

    /// Sends some records as a batch of their own.
    async fn push(&mut self, batch: &Outgoing<S::Key>) -> Tried {
        let (body, agent) = self.encode(batch).await;
        let sent = (body.raw_bytes, body.bytes.len() as u64);
        let answer = match self.wire.push(body.bytes, batch.id).await {
            Ok(answer) => answer,
            Err(error) => {
                return Tried::Wait(error.message, self.pace.after_failure(fastrand::f64(), None));
            }
        };
        if let (200..300, Some(agent)) = (answer.status, &agent) {
            self.source.heard(agent).await;
        }
        let shown = show_answer(&answer);
        let known_batch = answer.status == 409 && names_known_batch(&answer.body);
        match Verdict::on_status(answer.status, answer.retry_after, known_batch) {
            Verdict::Delivered => Tried::Taken(answer.status, self.taken(&answer, sent)),
            Verdict::BackOff(at_least) => {
                Tried::Wait(shown, self.pace.after_failure(fastrand::f64(), at_least))
            }
            Verdict::Pause(trouble) => {
                let hint = trouble.hint(slug(&answer.body).as_deref());
                let text = format!("{shown}\n  hint: {hint}");
                Tried::Wait(text, self.pace.at_cap(fastrand::f64()))
            }
            Verdict::Refused(refusal) => {
                self.pace.reset();
                let status = answer.status;
                Tried::Refused(Refusing { refusal, status, message: shown, at: clock::now() })
            }
        }
    }

    fn taking_apart(&self, batch: &Outgoing<S::Key>, answer: &Refusing) {
        let what = match answer.refusal {
            Refusal::TooLarge => "the backend finds a batch too large; it is sent in halves",
            Refusal::Invalid => "the backend refuses a batch; it is sent in parts",
        };
        let (batch, answer) = (batch.id, &answer.message);
        tracing::warn!(%batch, answer, "{what}");
        self.status.send_modify(|status| {
            status.split_batches += 1;
            status.last_answer = Some(answer.clone());
            status.last_answer_at = Some(clock::now());
        });
    }

    async fn encode(&self, batch: &Outgoing<S::Key>) -> (batch::Body, Option<AgentInfo>) {
        let agent = self.source.agent_info().await;
        let (config, metrics) = (self.config.clone(), batch.metrics.clone());
        let timestamp = clock::now();
        let encode = move || {
            let head = EnvelopeHead {
                collector_id: &config.collector_id,
                hostname: &config.hostname,
                timestamp,
                agent: agent.as_ref(),
            };
            (batch::encode(&head, &metrics, config.gzip_level), agent)
        };
        // Compression of a full batch takes tens of milliseconds: not on the runtime's threads.
        tokio::task::spawn_blocking(encode).await.expect("compression does not panic")
    }

    /// Counts what the backend has taken with one request.
    fn taken(&mut self, answer: &WireAnswer, (raw, sent): (u64, u64)) -> Option<PushResponse> {
        let response: Option<PushResponse> = serde_json::from_slice(&answer.body).ok();
        if std::mem::take(&mut self.troubled) {
            tracing::info!("the backend takes batches again");
        }
        self.pace.reset();
        let duplicate = response.as_ref().is_some_and(|r| r.duplicate == Some(true));
        let now = clock::now();
        self.status.send_modify(|status| {
            status.duplicate_batches += u64::from(duplicate);
            status.sent_bytes += sent;
            status.raw_bytes += raw;
            status.last_batch_bytes = (raw, sent);
            status.last_answer = Some(show_answer(answer));
            status.last_answer_at = Some(now);
            status.last_delivery_at = Some(now);
            if let Some(response) = &response {
                status.next_config_version = Some(response.next_config_version);
            }
        });
        response
    }

    /// Every record of a batch is taken or refused.
    async fn delivered(&self, batch: &Outgoing<S::Key>, refused: &[Refused]) {
        if let Err(error) = self.source.delivered(batch, refused).await {
            // The batch may come again, under the same id, and the backend will know it.
            tracing::warn!(%error, "a delivery could not be noted in the queue");
        }
        if let Some(first) = refused.first() {
            tracing::error!(
                batch = %batch.id,
                records = refused.len(),
                of = batch.metrics.len(),
                first = format!("{}: {}", first.path, first.message),
                "the backend refused records; they are in the dead letters"
            );
        }
        let taken = batch.metrics.len().saturating_sub(refused.len()) as u64;
        self.status.send_modify(|status| {
            status.delivered_batches += u64::from(taken > 0);
            status.delivered_records += taken;
            status.rejected_records += refused.len() as u64;
        });
    }

    async fn failed(&mut self, batch: &Outgoing<S::Key>, answer: String, wait: Duration) {
        if !std::mem::replace(&mut self.troubled, true) {
            let wait = units::show_duration(wait);
            tracing::warn!(batch = %batch.id, answer, wait, "a batch was not delivered; it stays");
        }
        self.status.send_modify(|status| {
            status.failures += 1;
            status.last_answer = Some(answer.clone());
            status.last_answer_at = Some(clock::now());
        });
        self.source.put_back(batch.key, answer, later(wait)).await;
    }
}

fn later(wait: Duration) -> Timestamp {
    clock::now().saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// The status and the start of the message, for logs and `inspect`.
fn show_answer(answer: &WireAnswer) -> String {
    let body: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let message = body.as_ref().and_then(|body| body.get("message")?.as_str()).unwrap_or_default();
    let message: String = message.chars().take(200).collect();
    format!("{} {message}", answer.status).trim_end().to_owned()
}

/// Whether a 409 is about the batch id and not about something else.
fn names_known_batch(body: &[u8]) -> bool {
    slug(body).is_some_and(|slug| {
        matches!(slug.as_str(), "duplicate_batch" | "batch_exists" | "already_exists")
    })
}

/// The short name of the error in an error body.
fn slug(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body.get("error")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests;
