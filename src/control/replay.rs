//! A replay: what is sent again, how far it is, and how the agent is asked for it.
//!
//! A request without a body is not a replay of this kind: it has the agent push at once what waits.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::client::{Client, ClientError};
use super::server::{Failure, Sources, Subject};
use super::status::Replay;
use crate::queue::{BatchInfo, BatchState, SegmentInfo, SegmentState};

/// What is to be sent again, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayRequest {
    /// What.
    pub selection: Selection,
    /// Bytes of JSON per second at most; `None`: as fast as the backend takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Records after which it ends. Batches are sent whole: up to one batch more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Which records are sent again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Where they are.
    pub part: Part,
    /// Only windows that end at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Only windows that begin at this time or earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
}

/// A part of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What waits.
    #[default]
    Pending,
    /// What is delivered and was kept.
    Delivered,
    /// Both.
    Stored,
    /// One segment, delivered or not.
    Segment(u64),
    /// What the backend has refused.
    Dead,
}

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayProgress {
    /// Names this replay.
    pub id: Uuid,
    /// What was asked for.
    pub request: ReplayRequest,
    /// Whether it goes on.
    pub state: ReplayState,
    /// When it was asked for.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What has been taken by the backend, or was known there.
    pub done: Amount,
    /// What was selected.
    pub total: Amount,
    /// Batches that the backend had already.
    pub duplicates: u64,
    /// Records that the backend refused.
    pub refused: u64,
    /// Batches that the backend refused as a whole.
    pub refused_batches: u64,
    /// Records that are damaged on disk.
    pub corrupt: u64,
    /// Delivered batches that the queue has let go since they were selected.
    pub gone: u64,
    /// Bytes per second since it began, or since the agent's start.
    pub bytes_s: u64,
    /// Seconds that are left at that rate.
    pub eta_s: Option<u64>,
    /// The last answer of the backend.
    pub last_answer: Option<String>,
    /// Since when the backend takes nothing.
    pub failing_since: Option<Timestamp>,
}

/// The life of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// It is being sent, or waits for the backend.
    Running,
    /// Everything that was selected has been tried.
    Done,
    /// Somebody has ended it.
    Stopped,
    /// It could not be done; the last answer says why.
    Failed,
}

/// An amount of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Batches.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// Bytes before compression.
    pub bytes: u64,
}

impl ReplayRequest {
    /// What waits, all of it, as fast as it goes: the agent does that anyway.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

impl Selection {
    /// Whether `batch` is selected. The open segment never is: it may still change.
    pub fn picks(&self, batch: &BatchInfo) -> bool {
        let waits = match batch.state {
            BatchState::Open => return false,
            BatchState::Pending | BatchState::Sending => true,
            BatchState::Delivered | BatchState::Kept => false,
        };
        let in_part = match self.part {
            Part::Pending => waits,
            Part::Delivered => !waits,
            Part::Stored => true,
            Part::Segment(segment) => batch.segment == segment,
            Part::Dead => false,
        };
        in_part && self.spans(batch.window)
    }

    /// Whether `segment` may have batches that are picked.
    pub fn covers(&self, segment: &SegmentInfo) -> bool {
        let in_part = match self.part {
            Part::Pending => segment.state != SegmentState::Kept,
            Part::Delivered => segment.delivered > 0,
            Part::Stored => true,
            Part::Segment(id) => segment.id == id,
            Part::Dead => false,
        };
        in_part && self.spans((segment.opened_at, segment.sealed_at))
    }

    /// Whether a window has a part in the time that is selected. One without a time has.
    fn spans(&self, (begin, end): (Option<Timestamp>, Option<Timestamp>)) -> bool {
        let late_enough = self.from.zip(end).is_none_or(|(from, end)| end >= from);
        let early_enough = self.to.zip(begin).is_none_or(|(to, begin)| begin <= to);
        late_enough && early_enough
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            Part::Pending => f.write_str("what waits")?,
            Part::Delivered => f.write_str("what is delivered and kept")?,
            Part::Stored => f.write_str("what is stored")?,
            Part::Segment(segment) => write!(f, "segment {segment}")?,
            Part::Dead => f.write_str("the dead letters")?,
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        self.to.map_or(Ok(()), |to| write!(f, " to {to}"))
    }
}

impl Amount {
    /// Adds a batch.
    pub fn add(&mut self, records: u64, bytes: u64) {
        self.batches += 1;
        self.records += records;
        self.bytes += bytes;
    }
}

impl ReplayProgress {
    /// A replay that has not begun.
    pub fn new(request: ReplayRequest, now: Timestamp) -> Self {
        Self {
            id: Uuid::new_v4(),
            request,
            state: ReplayState::Running,
            started_at: now,
            ended_at: None,
            done: Amount::default(),
            total: Amount::default(),
            duplicates: 0,
            refused: 0,
            refused_batches: 0,
            corrupt: 0,
            gone: 0,
            bytes_s: 0,
            eta_s: None,
            last_answer: None,
            failing_since: None,
        }
    }

    /// 0: all that was selected is at the backend; 1: nothing is; 2: a part is.
    pub fn exit_code(&self) -> u8 {
        let flaws = self.refused + self.refused_batches + self.corrupt + self.gone;
        let complete = self.state == ReplayState::Done && flaws == 0;
        match (complete, self.done.records) {
            (true, _) => 0,
            (false, 0) => 1,
            (false, _) => 2,
        }
    }
}

/// Why a replay does not begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Another is under way.
    #[error("a replay of {0} is under way; hint: `agent replay --stop` ends it")]
    Busy(Selection),
    /// The agent is being stopped.
    #[error("the agent is stopping")]
    Stopping,
    /// It cannot be kept, and a restart would forget it.
    #[error("{0}")]
    Failed(String),
}

/// `/v1/replay`.
pub(super) fn route<A: Subject>() -> MethodRouter<Sources<A>> {
    get(progress::<A>).post(begin::<A>).delete(stop::<A>)
}

async fn begin<A: Subject>(
    State(sources): State<Sources<A>>,
    body: Bytes,
) -> Result<Response, Failure> {
    if body.is_empty() {
        return push_now(&sources).await;
    }
    let request: ReplayRequest = serde_json::from_slice(&body)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let begun = sources.agent.start_replay(request).await.map_err(|error| {
        let status = match error {
            ReplayError::Busy(_) => StatusCode::CONFLICT,
            ReplayError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            ReplayError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(status, error.to_string())
    })?;
    Ok((StatusCode::ACCEPTED, Json(begun)).into_response())
}

async fn push_now<A: Subject>(sources: &Sources<A>) -> Result<Response, Failure> {
    sources.queue.seal().await?;
    let queued = queued(&sources.queue.segments().await?);
    sources.agent.push_now().await;
    Ok((StatusCode::ACCEPTED, Json(queued)).into_response())
}

fn queued(segments: &[SegmentInfo]) -> Replay {
    let waiting = || segments.iter().filter(|segment| segment.delivered < segment.batches);
    Replay {
        last_segment: waiting().map(|segment| segment.id).max(),
        batches: waiting().map(|segment| u64::from(segment.batches - segment.delivered)).sum(),
        records: waiting().map(|segment| segment.records).sum(),
    }
}

async fn progress<A: Subject>(State(sources): State<Sources<A>>) -> Response {
    Json(sources.agent.replay()).into_response()
}

async fn stop<A: Subject>(State(sources): State<Sources<A>>) -> Response {
    Json(sources.agent.stop_replay().await).into_response()
}

impl Client {
    /// Has the agent push now what is queued now, and says how much that is.
    pub async fn replay(&self) -> Result<Replay, ClientError> {
        self.ask_with(Method::POST, "/v1/replay", Bytes::new()).await
    }

    /// Has the agent begin a replay.
    pub async fn start_replay(
        &self,
        request: &ReplayRequest,
    ) -> Result<ReplayProgress, ClientError> {
        let body = serde_json::to_vec(request).unwrap_or_default();
        self.ask_with(Method::POST, "/v1/replay", Bytes::from(body)).await
    }

    /// The replay that is under way, or the last one.
    pub async fn replay_progress(&self) -> Result<Option<ReplayProgress>, ClientError> {
        self.ask_with(Method::GET, "/v1/replay", Bytes::new()).await
    }

    /// Ends the replay that is under way; `None` when there is none.
    pub async fn stop_replay(&self) -> Result<Option<ReplayProgress>, ClientError> {
        self.ask_with(Method::DELETE, "/v1/replay", Bytes::new()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Origin;

    fn batch(state: BatchState, window_s: (i64, i64)) -> BatchInfo {
        let at = |second| Timestamp::from_second(second).ok();
        BatchInfo {
            id: Uuid::nil(),
            segment: 7,
            number: 0,
            origin: Origin { segment: 7, batch: 0, thinned: 0 },
            window: (at(window_s.0), at(window_s.1)),
            state,
            first_seq: 0,
            records: 1,
            raw_bytes: 1,
            attempts: 0,
            last_answer: None,
            next_try_at: None,
        }
    }

    fn picks(selection: Selection, state: BatchState) -> bool {
        selection.picks(&batch(state, (100, 200)))
    }

    #[test]
    fn parts_pick_by_state_and_never_what_is_open() {
        let states = [
            BatchState::Open,
            BatchState::Pending,
            BatchState::Sending,
            BatchState::Delivered,
            BatchState::Kept,
        ];
        let check = |part, expected: [bool; 5]| {
            let selection = Selection { part, ..Selection::default() };
            assert_eq!(states.map(|state| picks(selection, state)), expected, "{part:?}");
        };
        check(Part::Pending, [false, true, true, false, false]);
        check(Part::Delivered, [false, false, false, true, true]);
        check(Part::Stored, [false, true, true, true, true]);
        check(Part::Segment(7), [false, true, true, true, true]);
        check(Part::Segment(8), [false; 5]);
        check(Part::Dead, [false; 5]);
    }

    #[test]
    fn windows_that_touch_the_time_are_picked() {
        let check = |from: Option<i64>, to: Option<i64>, expected| {
            let at = |second: Option<i64>| second.and_then(|s| Timestamp::from_second(s).ok());
            let selection = Selection { part: Part::Stored, from: at(from), to: at(to) };
            assert_eq!(picks(selection, BatchState::Pending), expected, "{from:?} to {to:?}");
        };
        check(None, None, true);
        check(Some(200), None, true);
        check(Some(201), None, false);
        check(None, Some(100), true);
        check(None, Some(99), false);
        check(Some(120), Some(130), true);
        check(Some(0), Some(99), false);
        check(Some(201), Some(300), false);
        let unknown = BatchInfo { window: (None, None), ..batch(BatchState::Pending, (0, 0)) };
        let selection = Selection { part: Part::Stored, from: Some(Timestamp::MAX), to: None };
        assert!(selection.picks(&unknown), "nobody knows that it is not of that time");
    }

    #[test]
    fn exit_code_tells_all_from_nothing_from_a_part() {
        let check = |state, done, refused, expected| {
            let mut progress = ReplayProgress::new(ReplayRequest::default(), Timestamp::MIN);
            (progress.state, progress.done.records, progress.refused) = (state, done, refused);
            assert_eq!(progress.exit_code(), expected, "{state:?}, {done} done, {refused} refused");
        };
        check(ReplayState::Done, 0, 0, 0);
        check(ReplayState::Done, 5, 0, 0);
        check(ReplayState::Done, 5, 1, 2);
        check(ReplayState::Done, 0, 5, 1);
        check(ReplayState::Stopped, 5, 0, 2);
        check(ReplayState::Stopped, 0, 0, 1);
        check(ReplayState::Failed, 0, 0, 1);
    }

    #[test]
    fn requests_survive_the_wire() {
        let check = |request: ReplayRequest| {
            let text = serde_json::to_string(&request).expect("encodes");
            assert_eq!(serde_json::from_str::<ReplayRequest>(&text).expect(&text), request);
        };
        check(ReplayRequest::default());
        let (from, to) = (Some(Timestamp::UNIX_EPOCH), Some(Timestamp::UNIX_EPOCH));
        let selection = Selection { part: Part::Segment(u64::MAX), from, to };
        check(ReplayRequest { selection, rate: Some(1), limit: Some(2) });
    }
}
