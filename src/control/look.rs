//! Looking into the queue of a running agent: segments, records, checks, dead letters, quarantine.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::server::{Failure, Sources, Subject};
use crate::queue::{
    Aside, BatchState, Damage, DeadPage, DeadText, Queue, RecordFilter, RecordPage, SeenRecord,
    StoreError,
};

/// Records of one answer at most.
const RECORDS_MAX: usize = 10_000;
/// Dead letters of one answer at most.
const LETTERS_MAX: usize = 1_000;

/// Which records are wanted: the query of `GET /v1/records`. Ranges include both ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordQuery {
    /// The lowest sequence number.
    pub from: Option<u64>,
    /// The highest.
    pub to: Option<u64>,
    /// The earliest time, milliseconds since 1970 UTC.
    pub since_ms: Option<i64>,
    /// The latest.
    pub until_ms: Option<i64>,
    /// Only of this segment.
    pub segment: Option<u64>,
    /// How many; 1,000 when absent.
    pub limit: Option<usize>,
}

/// The answer to `GET /v1/records`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Records {
    /// In the order of their sequence numbers.
    pub records: Vec<ShownRecord>,
    /// What cannot be read between them.
    pub damage: Vec<Damage>,
    /// The sequence number at which the next page goes on; absent when there is no more.
    pub next: Option<u64>,
}

/// A record in words that programs may rely on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownRecord {
    /// Its sequence number.
    pub seq: u64,
    /// The metric's type.
    pub kind: String,
    /// When the metric was taken.
    pub at: Option<Timestamp>,
    /// Its segment.
    pub segment: u64,
    /// The id of its batch.
    pub batch: Uuid,
    /// Where its batch stands.
    pub state: BatchState,
    /// The number of its block's first frame in the segment.
    pub frame: u64,
    /// Bytes of its JSON.
    pub bytes: u64,
    /// The metric; text that is no JSON is shown as a string.
    pub metric: Box<RawValue>,
}

/// The answer to `GET /v1/dead`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadLetters {
    /// Oldest first, as they were written; a damaged line is shown as a string.
    pub letters: Vec<Box<RawValue>>,
    /// Where the next page begins; absent when there is no more.
    pub next: Option<u64>,
    /// Where what is added later will begin.
    pub end: u64,
}

/// The query of `GET /v1/dead`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct DeadQuery {
    /// Byte of the file to begin at.
    pub from: Option<u64>,
    /// How many.
    pub limit: Option<usize>,
}

/// The query of `POST /v1/verify`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct VerifyQuery {
    /// The segment.
    pub segment: u64,
    /// The frame to begin at.
    pub from: Option<u64>,
}

/// The query of `GET /v1/quarantine`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct QuarantineQuery {
    /// Whether the segments are read, to say what is readable of them.
    pub scan: Option<Scan>,
}

/// Whether segments in quarantine are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scan {
    /// They are only listed.
    No,
    /// They are read.
    Yes,
}

impl RecordQuery {
    /// What the queue is asked for.
    pub fn filter(&self) -> RecordFilter {
        RecordFilter {
            seq: (self.from.unwrap_or(0), self.to.unwrap_or(u64::MAX)),
            time_ms: (self.since_ms.unwrap_or(i64::MIN), self.until_ms.unwrap_or(i64::MAX)),
            segment: self.segment,
        }
    }

    /// As the part of an address behind the question mark.
    pub(super) fn to_query(&self) -> String {
        let parts = [
            self.from.map(|from| format!("from={from}")),
            self.to.map(|to| format!("to={to}")),
            self.since_ms.map(|since| format!("since_ms={since}")),
            self.until_ms.map(|until| format!("until_ms={until}")),
            self.segment.map(|segment| format!("segment={segment}")),
            self.limit.map(|limit| format!("limit={limit}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("&")
    }

    /// How many records at most.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(1_000).clamp(1, RECORDS_MAX)
    }
}

impl From<SeenRecord> for ShownRecord {
    fn from(seen: SeenRecord) -> Self {
        let SeenRecord { record, segment, frame, batch, state } = seen;
        Self {
            seq: record.seq,
            at: Timestamp::from_millisecond(record.at_ms).ok(),
            segment,
            batch,
            state,
            frame,
            bytes: record.payload.len() as u64,
            metric: json(&record.payload),
            kind: record.kind,
        }
    }
}

impl From<RecordPage> for Records {
    fn from(page: RecordPage) -> Self {
        let records = page.records.into_iter().map(ShownRecord::from).collect();
        Self { records, damage: page.damage, next: page.next }
    }
}

impl From<DeadPage> for DeadLetters {
    fn from(page: DeadPage) -> Self {
        let letters = page.lines.iter().map(|line| match line {
            DeadText::Letter(text) => json(text.as_bytes()),
            DeadText::Damaged(text) => as_text(text),
        });
        let letters = letters.collect();
        Self { letters, next: page.next, end: page.end }
    }
}

/// The JSON in `bytes`, else a JSON string of them.
fn json(bytes: &[u8]) -> Box<RawValue> {
    serde_json::from_slice(bytes).unwrap_or_else(|_| as_text(bytes))
}

/// `bytes` as a JSON string.
fn as_text(bytes: &[u8]) -> Box<RawValue> {
    // A string always has JSON.
    to_raw_value(&String::from_utf8_lossy(bytes)).expect("text becomes JSON")
}

pub(super) fn routes<A: Subject>() -> Router<Sources<A>> {
    Router::new()
        .route("/v1/segments/{id}", get(segment::<A>))
        .route("/v1/records", get(records::<A>))
        .route("/v1/verify", post(verify::<A>))
        .route("/v1/ledger", get(ledger::<A>))
        .route("/v1/dead", get(dead::<A>))
        .route("/v1/dead/count", get(dead_count::<A>))
        .route("/v1/quarantine", get(quarantine::<A>))
}

async fn segment<A: Subject>(
    State(sources): State<Sources<A>>,
    Path(id): Path<u64>,
) -> Result<Response, Failure> {
    match sources.queue.look_segment(id).await? {
        Some(detail) => Ok(Json(detail).into_response()),
        None => Err(Failure::new(StatusCode::NOT_FOUND, format!("no segment {id} is queued"))),
    }
}

async fn records<A: Subject>(
    State(sources): State<Sources<A>>,
    Query(query): Query<RecordQuery>,
) -> Result<Response, Failure> {
    let page = sources.queue.look_records(query.filter(), query.limit()).await?;
    Ok(Json(Records::from(page)).into_response())
}

async fn verify<A: Subject>(
    State(sources): State<Sources<A>>,
    Query(query): Query<VerifyQuery>,
) -> Result<Response, Failure> {
    let check = sources.queue.look_check(query.segment, query.from.unwrap_or(0)).await?;
    Ok(Json(check).into_response())
}

async fn ledger<A: Subject>(State(sources): State<Sources<A>>) -> Result<Response, Failure> {
    Ok(Json(sources.queue.losses().await?).into_response())
}

async fn dead<A: Subject>(
    State(sources): State<Sources<A>>,
    Query(query): Query<DeadQuery>,
) -> Result<Response, Failure> {
    let limit = query.limit.unwrap_or(LETTERS_MAX).clamp(1, LETTERS_MAX);
    let from = query.from.unwrap_or(0);
    let page = beside(&sources.queue, move |aside| aside.dead(from, limit)).await?;
    Ok(Json(DeadLetters::from(page)).into_response())
}

async fn dead_count<A: Subject>(State(sources): State<Sources<A>>) -> Result<Response, Failure> {
    Ok(Json(beside(&sources.queue, |aside| aside.dead_count()).await?).into_response())
}

async fn quarantine<A: Subject>(
    State(sources): State<Sources<A>>,
    Query(query): Query<QuarantineQuery>,
) -> Result<Response, Failure> {
    let list = beside(&sources.queue, move |aside| match query.scan.unwrap_or(Scan::No) {
        Scan::No => aside.quarantine(),
        Scan::Yes => aside.quarantine_read(),
    });
    Ok(Json(list.await?).into_response())
}

/// Reads files of the queue's directory, apart from the log's thread.
async fn beside<T: Send + 'static>(
    queue: &Queue,
    read: impl FnOnce(Aside) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Failure> {
    let internal = |text: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let Some(aside) = queue.dir().map(Aside::of) else {
        return Err(internal("the queue has no directory".to_owned()));
    };
    match tokio::task::spawn_blocking(move || read(aside)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(internal(error.to_string())),
        Err(error) => Err(internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_stay_as_they_are() {
        assert_eq!(json(b"{\"a\": 1.50}").get(), "{\"a\": 1.50}");
        assert_eq!(json(b"no \"json\"").get(), "\"no \\\"json\\\"\"");
        assert_eq!(json(b"\xff").get(), "\"\u{fffd}\"");
    }

    #[test]
    fn a_query_has_bounds() {
        let query = RecordQuery { limit: Some(0), ..RecordQuery::default() };
        assert_eq!((query.limit(), query.filter()), (1, RecordFilter::default()));
        let query = RecordQuery { limit: Some(usize::MAX), ..RecordQuery::default() };
        assert_eq!(query.limit(), RECORDS_MAX);
    }
}
