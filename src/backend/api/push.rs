//! POST `/metrics/push`: checked metric by metric, stored in one transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use uuid::Uuid;

use super::access::{self, Caller, Peer};
use super::bodies::Share;
use super::divided::{Divided, Taken};
use super::error::{ApiError, ok};
use super::{Shared, body};
use crate::backend::names;
use crate::backend::serve::to_its_end;
use crate::backend::store::{
    ConfigOutcome, LostRows, MetricRow, Push, Pushed, RefusalCount, RefusalReason, StoreError,
};
use crate::clock;
use crate::metric::agent_limits::Cut;
use crate::metric::envelope::{
    AgentInfo, NoPush, PushRequest, PushResponse, REJECTED_BYTES_MAX, REJECTED_NAMED_MAX, Rejected,
};
use crate::metric::{self, Invalid, Maker, Sound};

/// How long a push waits for its turn before it is sent away.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
const TURN_RETRY: Duration = Duration::from_secs(2);
/// A push whose body is longer than this, inflated, is a large one.
const LARGE_BYTES_MIN: u64 = 4 << 20;
/// Longest batch id taken, bytes.
const BATCH_ID_MAX: usize = 128;
/// A row is found by the start of its database's name, characters; the document has it all.
const DATABASE_MAX: usize = 255;
/// How far the envelope's time may be from what `clock_offset_ms` says that the host's clock shows:
/// a body may wait for its answer, and for another try.
const CLOCKS_APART_MAX: SignedDuration = SignedDuration::from_hours(24);
/// How long before a clock that is ahead its metrics may have been taken: as long as batches wait.
const BACKLOG_MAX: SignedDuration = SignedDuration::from_hours(400 * 24);

/// A push whose envelope is good.
struct Checked {
    push: Push,
    rejected: Refusals,
    cut: Cut,
    /// Its sender reads of no refusal.
    is_original: bool,
}

/// What is told of metrics that are not stored: the first of them, and how many there are.
#[derive(Default)]
struct Refusals {
    named: Vec<Rejected>,
    bytes: usize,
    total: u64,
}

/// What a metric is held against, beside its shape.
#[derive(Clone, Copy)]
struct Bounds {
    now: Timestamp,
    /// The host's clock, when it is ahead.
    ahead: Option<Timestamp>,
    /// Whether it came without an `agent` object.
    is_original: bool,
    document_bytes_max: usize,
}

/// What a push holds while it is worked on, on whichever thread, and though its sender has gone.
struct Held {
    turn: Taken,
    share: Share,
}

/// What has come of a push.
struct Stored {
    outcome: Pushed,
    rejected: Vec<Rejected>,
    rejected_total: Option<u64>,
}

/// What is kept of an agent's word on itself.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    agent: &'a AgentInfo,
    #[serde(skip_serializing_if = "Cut::is_empty")]
    cut: Cut,
}

/// The handler.
pub(super) async fn push(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let began = clock::monotonic();
    let caller = access::collector(&shared, &headers, &peer).await?;
    let id = caller.id;
    let answer = take(&shared, caller, &peer, &headers, body, began).await;
    if let Some((reason, message)) = answer.as_ref().err().and_then(ApiError::refusal) {
        shared.count_refusal(id, reason, message);
        if reason != RefusalReason::Store && shared.notices.is_first(id, reason.as_str()) {
            let (reason, hint) = (reason.as_str(), "its sender is told the same, each time");
            tracing::warn!(collector = %id, reason, why = message, hint, "a push was refused");
        }
    }
    answer
}

async fn take(
    shared: &Arc<Shared>,
    caller: Caller,
    peer: &Peer,
    headers: &HeaderMap,
    body: Body,
    began: Instant,
) -> Result<Response, ApiError> {
    let batch_id = batch_id(headers)?;
    let label = body::label(headers).map(str::to_owned);
    let limits = &shared.config.limits;
    let (id, limit, next_check) = (caller.id, limits.body_bytes_max, shared.config.next_check);
    let (received, share) = body::read(&shared.room, Some(id), headers, body, limit).await?;
    let bytes_received = received.len() as u64;
    let (body, held) = inflated(shared, id, label, received, share).await?;
    let stores = Arc::clone(shared);
    let work = async move {
        let Held { turn, share: _share } = held;
        store(&stores, caller, batch_id, body).await.map(|stored| (stored, turn))
    };
    let (Stored { outcome, rejected, rejected_total }, turn) = to_its_end(work).await?;
    let took = clock::monotonic().saturating_duration_since(began);
    let answer = ok(&PushResponse {
        status: "success".to_owned(),
        collector_id: id.to_string(),
        metrics_inserted: outcome.inserted,
        bytes_received,
        processing_time_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        next_config_version: outcome.config_version,
        next_check_in_seconds: next_check.as_secs(),
        duplicate: outcome.duplicate.then_some(true),
        rejected,
        rejected_total,
    });
    Ok(shared.answers.of_push(answer, turn, peer))
}

/// Checks a push whose body is here, and stores it.
async fn store(
    shared: &Shared,
    caller: Caller,
    batch_id: Option<String>,
    body: Bytes,
) -> Result<Stored, ApiError> {
    let limits = &shared.config.limits;
    let (brought_max, id, now) = (limits.hosts_per_collector, caller.id, clock::now());
    let document_bytes_max = usize::try_from(limits.document_bytes_max).unwrap_or(usize::MAX);
    let bounds = Bounds { now, ahead: None, is_original: false, document_bytes_max };
    let checked = blocking(move || {
        let checked = check(&body, &caller, batch_id, bounds)?;
        let refused = checked.rejected.counted(now);
        Ok(Checked { push: Push { brought_max, refused, ..checked.push }, ..checked })
    });
    let checked = checked.await?;
    if !checked.cut.is_empty() && shared.notices.is_first(id, "cut") {
        let hint = "what it says of itself is over the limits; its metrics are stored";
        tracing::warn!(collector = %id, cut = ?checked.cut, hint, "a report was cut");
    }
    if let Some(Rejected { path, message, .. }) = checked.rejected.named.first()
        && shared.notices.is_first(id, RefusalReason::InvalidMetric.as_str())
    {
        let (metrics, reason) = (checked.rejected.total, message);
        let hint = if checked.is_original {
            "an original collector does not read this; the others are stored"
        } else {
            "its agent keeps them: `agent inspect dead` there; the others are stored"
        };
        tracing::warn!(collector = %id, metrics, path, reason, hint, "metrics are refused");
    }
    let outcome = shared.store.push(checked.push).await;
    shared.note_store(id, outcome.as_ref().err());
    let outcome = outcome?;
    let mut rejected_total = checked.rejected.rest();
    let mut rejected = checked.rejected.named;
    if let Some(first) = &outcome.rejected {
        rejected = serde_json::from_str(first).map_err(|e| StoreError::Damaged(e.to_string()))?;
        rejected_total = None;
    }
    Ok(Stored { outcome, rejected, rejected_total })
}

/// A body without its compression, and the turn of working on it. It begins when the body is here:
/// a slow line would keep others waiting. Large ones go one at a time, beside the others. Only who
/// waits for the answer waits for a turn, and a collector with many pushes waits for itself.
async fn inflated(
    shared: &Shared,
    collector: Uuid,
    label: Option<String>,
    received: Bytes,
    share: Share,
) -> Result<(Bytes, Held), ApiError> {
    let inflate = |limit: u64, held: Held| {
        let (label, received) = (label.clone(), received.clone());
        blocking(move || Ok((body::inflate(label.as_deref(), received, limit), held)))
    };
    let most = shared.config.limits.inflated_bytes_max;
    let held = Held { turn: self::turn(&shared.pushes, collector).await?, share };
    let (inflated, Held { turn, share }) = inflate(most.min(LARGE_BYTES_MIN), held).await?;
    match inflated {
        Err(error) if error.is_too_large() && most > LARGE_BYTES_MIN => {
            drop(turn);
            let held = Held { turn: self::turn(&shared.large_pushes, collector).await?, share };
            let (inflated, held) = inflate(most, held).await?;
            Ok((inflated?, held))
        }
        inflated => Ok((inflated?, Held { turn, share })),
    }
}

async fn turn(turns: &Divided, collector: Uuid) -> Result<Taken, ApiError> {
    match tokio::time::timeout(TURN_PATIENCE, turns.take(Some(collector), 1)).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(ApiError::too_many(TURN_RETRY)),
    }
}

/// Does what takes long where it keeps nobody waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|err| {
        tracing::error!(%err, "a push could not be checked");
        Err(ApiError::internal())
    })
}

fn batch_id(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let id = value.to_str().unwrap_or_default().trim();
    if id.is_empty() || id.len() > BATCH_ID_MAX {
        let message = format!("an Idempotency-Key has 1 to {BATCH_ID_MAX} ASCII characters");
        return Err(ApiError::bad_request(message));
    }
    Ok(Some(id.to_owned()))
}

fn check(
    body: &[u8],
    caller: &Caller,
    batch_id: Option<String>,
    bounds: Bounds,
) -> Result<Checked, ApiError> {
    let now = bounds.now;
    let request = PushRequest::parse(body).map_err(|no_push| match no_push {
        NoPush::Invalid(invalid) => envelope_refused(&invalid),
        NoPush::TooMany => too_many(no_push.to_string()),
    })?;
    let collector_id = caller.id;
    if request.collector_id.parse() != Ok(collector_id) {
        let message = "the envelope names another collector than the token";
        return Err(ApiError::forbidden("collector_mismatch", message)
            .counted_as(RefusalReason::OtherCollector));
    }
    let is_brought = request.agent.as_ref().is_some_and(|agent| agent.replay_of.is_some());
    let hostname = if is_brought {
        names::checked("the host name", &request.hostname)
            .map_err(|why| envelope_refused(&Invalid::new("hostname", why)))?
    } else {
        // A collector speaks for its own host, whatever the envelope calls it.
        caller.hostname.clone()
    };
    // An original collector does not read what is refused; who does is not left with a part of it.
    let is_original = request.agent.is_none();
    let is_told_all = !is_original || batch_id.is_some();
    let (mut agent, cut) = (request.agent, request.cut);
    let ahead = agent.as_ref().and_then(|agent| clock_ahead(now, request.timestamp, agent));
    let bounds = Bounds { ahead, is_original, ..bounds };
    let sequences = agent.as_mut().and_then(|agent| agent.sequences.take());
    let records = sequences.as_ref().map(|of| of.numbers().map(|number| (of.queue_id, number)));
    let mut records = records.into_iter().flatten();
    let mut metrics = Vec::with_capacity(request.metrics.len());
    let mut rejected = Refusals::default();
    for (index, text) in request.metrics.into_iter().enumerate() {
        if let Err(invalid) = add(text.get(), records.next(), bounds, &mut metrics) {
            rejected.add(index, invalid);
        }
        if is_told_all && let Some(total) = rejected.rest() {
            return Err(too_many(format!("{total} metrics of a part of the push are refused")));
        }
    }
    let config = agent.as_ref().map(config_outcome).unwrap_or_default();
    let numbered_by = sequences.as_ref().map(|sequences| sequences.queue_id);
    let said = agent.map(|agent| said_by_agent(agent, numbered_by, cut));
    let (report, lost) = said.unwrap_or_default();
    // Kept for the answer to the same batch, when the first answer is lost.
    let is_kept = batch_id.is_some() && !rejected.named.is_empty();
    let refusals = is_kept.then(|| serde_json::to_string(&rejected.named));
    let push = Push {
        collector_id,
        hostname,
        is_brought,
        brought_max: 0,
        batch_id,
        received_at: now,
        metrics,
        rejected: refusals.transpose().map_err(|_| ApiError::internal())?,
        refused: None,
        report,
        config,
        lost,
    };
    Ok(Checked { push, rejected, cut, is_original })
}

impl Refusals {
    fn add(&mut self, index: usize, Invalid { path, message }: Invalid) {
        self.total += 1;
        let bytes = self.bytes + path.len() + message.len();
        let is_named = self.named.len() as u64 + 1 == self.total;
        if is_named && self.named.len() < REJECTED_NAMED_MAX && bytes <= REJECTED_BYTES_MAX {
            self.bytes = bytes;
            self.named.push(Rejected { index, path, message });
        }
    }

    /// What is counted for the collector.
    fn counted(&self, now: Timestamp) -> Option<RefusalCount> {
        let message = self.named.first().map(|Rejected { path, message, .. }| {
            Invalid::new(path.as_str(), message.as_str()).to_string()
        });
        let message = message.unwrap_or_default();
        (self.total > 0)
            .then(|| RefusalCount::new(RefusalReason::InvalidMetric, self.total, &message, now))
    }

    /// How many there are, when not all of them are named.
    fn rest(&self) -> Option<u64> {
        (self.named.len() as u64 != self.total).then_some(self.total)
    }
}

/// What the host's clock shows, when it is ahead. Metrics keep their host's time, and a host whose
/// clock is wrong says so; it is believed when the time of its envelope says the same.
fn clock_ahead(now: Timestamp, sent: Timestamp, agent: &AgentInfo) -> Option<Timestamp> {
    let offset = SignedDuration::from_millis(agent.clock_offset_ms);
    let host = now.checked_sub(offset).ok().filter(|host| *host > now)?;
    (host.duration_since(sent).abs() <= CLOCKS_APART_MAX).then_some(host)
}

/// Adds the rows of one metric: one, or one for each database of an older collector's document.
fn add(
    text: &str,
    record: Option<(Uuid, u64)>,
    bounds: Bounds,
    rows: &mut Vec<MetricRow>,
) -> Result<(), Invalid> {
    check_size(text, bounds)?;
    let before = rows.len();
    let latest = bounds.ahead.unwrap_or(bounds.now);
    let maker = if bounds.is_original { Maker::Original } else { Maker::Ours };
    let added = metric::each_document(text, latest, maker, |sound, document| {
        let row = row(sound, document.into_owned(), bounds)?;
        rows.push(match record {
            Some((queue_id, number)) => row.of_record(queue_id, number),
            None => row,
        });
        Ok(())
    });
    if added.is_err() {
        rows.truncate(before);
    }
    added
}

fn row(sound: Sound<'_>, document: String, bounds: Bounds) -> Result<MetricRow, Invalid> {
    check_size(&document, bounds)?;
    check_time(sound.at, bounds)?;
    let database = sound.database.map(|name| name.chars().take(DATABASE_MAX).collect());
    Ok(MetricRow::new(sound.metric_type.to_string(), database, sound.at, document))
}

/// A time that is ahead of the backend's clock is one that the host's clock has shown.
fn check_time(at: Timestamp, bounds: Bounds) -> Result<(), Invalid> {
    let Some(ahead) = bounds.ahead else { return Ok(()) };
    let is_ahead = at > bounds.now.saturating_add(CLOCKS_APART_MAX).unwrap_or(Timestamp::MAX);
    if is_ahead && ahead.duration_since(at) > BACKLOG_MAX {
        let message = "is ahead of the backend's clock, and long before the host's";
        return Err(Invalid::new("timestamp", message));
    }
    Ok(())
}

fn check_size(document: &str, bounds: Bounds) -> Result<(), Invalid> {
    let (bytes, most) = (document.len(), bounds.document_bytes_max);
    if bytes <= most {
        return Ok(());
    }
    Err(Invalid::new("", format!("a document of {bytes} bytes, the limit is {most}")))
}

/// What the agent says of the configurations that it was given.
fn config_outcome(agent: &AgentInfo) -> ConfigOutcome {
    ConfigOutcome {
        applied: Some(agent.config_version).filter(|version| *version > 0),
        refused: agent.config_error_version.zip(agent.config_error.clone()),
    }
}

/// The agent's report and its losses, which are kept apart from it. `numbered_by` is the queue that
/// the records are of: one that replays those of another queue than its own has no report to make.
fn said_by_agent(
    mut agent: AgentInfo,
    numbered_by: Option<Uuid>,
    cut: Cut,
) -> (Option<String>, Vec<LostRows>) {
    let queue_id = agent.queue_id;
    // No agent is older, and databases differ in how far back they go.
    let kept = |at: Timestamp| at.max(Timestamp::UNIX_EPOCH);
    let lost = std::mem::take(&mut agent.lost)
        .into_iter()
        .map(|lost| LostRows {
            queue_id,
            from: lost.from,
            to: lost.to,
            records: lost.records,
            reason: lost.reason,
            at: kept(lost.at),
            first_at: lost.first_at.map(kept),
            last_at: lost.last_at.map(kept),
        })
        .collect();
    let is_own = agent.replay_of.is_none();
    let is_report = is_own && numbered_by.is_none_or(|numbered_by| numbered_by == queue_id);
    let report = is_report.then(|| serde_json::to_string(&Report { agent: &agent, cut }).ok());
    (report.flatten(), lost)
}

/// 413: who sends fewer at a time is served.
fn too_many(message: String) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_metrics", message)
        .counted_as(RefusalReason::TooManyMetrics)
}

fn envelope_refused(invalid: &Invalid) -> ApiError {
    let details = serde_json::json!({"path": invalid.path});
    ApiError::bad_request(invalid.to_string()).with_details(details)
}
