//! The forwarder against a source and a wire of its own.

mod encodings; // backends that do not inflate
mod health; // backends that do not know what the agent says of itself
mod lanes; // several batches at once, fresh ones and the backlog
mod outage; // hours of failure

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use super::*;
use crate::answer::Purpose;

#[derive(Debug, Clone, Default)]
struct Queued(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    /// Batches of the backlog, and fresh ones.
    waiting: VecDeque<u64>,
    fresh: VecDeque<u64>,
    put_back: Vec<(u64, String)>,
    delivered: Vec<(u64, usize)>,
    /// What of a batch is what the agent says of itself, and what of it was left out.
    health: Vec<usize>,
    left_out: Vec<(u64, Vec<(u64, i64)>)>,
    heard: u64,
}

impl Queued {
    fn with(batches: u64) -> Self {
        let held = Held { waiting: (0..batches).collect(), ..Held::default() };
        Self(Arc::new(Mutex::new(held)))
    }
}

impl Source for Queued {
    type Key = u64;

    async fn next(&self, choice: Choice) -> Result<Option<Outgoing<u64>>, String> {
        let mut held = self.0.lock().unwrap();
        let fresh = (choice != Choice::OldestFirst).then(|| held.fresh.pop_back()).flatten();
        let (key, lane) = match fresh {
            Some(key) => (Some(key), Lane::Fresh),
            None if choice == Choice::FreshOnly => (None, Lane::Fresh),
            None => (held.waiting.pop_front().or_else(|| held.fresh.pop_front()), Lane::Backlog),
        };
        let batch = |key| Outgoing {
            key,
            id: Uuid::from_u128(u128::from(key)),
            lane,
            queue_id: Uuid::nil(),
            records: vec![(0, 0), (1, 0), (2, 0)],
            health: held.health.clone(),
            metrics: vec![Bytes::from_static(b"{}"); 3],
            left_out: Vec::new(),
        };
        Ok(key.map(batch))
    }

    async fn delivered(&self, batch: &Outgoing<u64>, refused: &[Refused]) -> Result<(), String> {
        let mut held = self.0.lock().unwrap();
        held.delivered.push((batch.key, refused.len()));
        if !batch.left_out.is_empty() {
            held.left_out.push((batch.key, batch.left_out.clone()));
        }
        Ok(())
    }

    async fn put_back(&self, key: u64, answer: String, _next_at: Timestamp) {
        self.0.lock().unwrap().put_back.push((key, answer));
    }

    async fn agent_info(&self) -> Option<AgentInfo> {
        Some(AgentInfo::unknown(0))
    }

    async fn heard(&self, _info: &AgentInfo) {
        self.0.lock().unwrap().heard += 1;
    }
}

const PAUSED: ForwarderState = ForwarderState::Paused;

type Answers = VecDeque<Result<Answer, WireError>>;

/// Answers, and the batch ids that were sent.
#[derive(Debug, Clone, Default)]
struct Script(Arc<Mutex<(Answers, Vec<Uuid>)>>);

impl Script {
    fn of(answers: Vec<Result<Answer, WireError>>) -> Self {
        Self(Arc::new(Mutex::new((answers.into(), Vec::new()))))
    }
}

impl Wire for Script {
    async fn push(&self, _body: Body, id: Uuid) -> Result<Answer, WireError> {
        let mut script = self.0.lock().unwrap();
        script.1.push(id);
        script.0.pop_front().expect("one answer per push")
    }

    async fn probe(&self) -> Result<Answer, WireError> {
        answer(404, "")
    }
}

#[expect(clippy::unnecessary_wraps, reason = "stands beside `unreachable` in a list")]
fn answer(status: u16, body: &str) -> Result<Answer, WireError> {
    Ok(Answer::new(Purpose::Data, status, body.to_owned()))
}

/// The backend's word that it has a batch.
fn taken(status: u16) -> Result<Answer, WireError> {
    answer(status, r#"{"status":"success"}"#)
}

fn unreachable() -> Result<Answer, WireError> {
    Err(WireError { message: "connection refused".to_owned() })
}

async fn drain(
    batches: u64,
    answers: Vec<Result<Answer, WireError>>,
) -> (Drained, Queued, ForwardStatus) {
    let queued = Queued::with(batches);
    let script = Script::of(answers);
    let (mut forwarder, status) = Forwarder::new(queued.clone(), script.clone(), config().fixed());
    let drained = forwarder.drain().await;
    let status = status.borrow().clone();
    assert!(script.0.lock().unwrap().0.is_empty(), "every answer was asked for");
    (drained, queued, status)
}

fn config() -> ForwardConfig {
    // One after another, as the scripts go.
    ForwardConfig {
        collector_id: "c".to_owned(),
        hostname: "h".to_owned(),
        in_flight: 1,
        ..ForwardConfig::default()
    }
}

/// C19, C32
#[tokio::test]
async fn delivers_until_nothing_is_left() {
    let (drained, queued, status) = drain(3, vec![taken(200), taken(201), taken(208)]).await;
    assert_eq!(drained, Drained::Empty);
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 0), (1, 0), (2, 0)]);
    assert_eq!((status.delivered_batches, status.delivered_records), (3, 9));
    assert_eq!(status.last_answer.as_deref(), Some("208"));
    assert!(status.last_delivery_at.is_some());
    assert_eq!(status.last_delivery_at, status.last_answer_at);
}

/// C34, C36: one failure and everything waits; the batch is back where it was.
#[tokio::test]
async fn a_failure_keeps_the_batch_and_waits() {
    let page = || answer(200, "<html>Log in");
    for failure in [unreachable(), answer(503, ""), answer(401, ""), answer(403, ""), page()] {
        let (drained, queued, status) = drain(3, vec![taken(200), failure]).await;
        assert!(matches!(drained, Drained::Waiting(_)), "{drained:?}");
        let held = queued.0.lock().unwrap();
        assert_eq!((held.delivered.len(), held.put_back.len(), held.waiting.len()), (1, 1, 1));
        assert!(status.next_try_at.is_some() && status.failures == 1);
    }
}

/// The backend has heard what stood beside a batch when it says 2xx, and only then: a batch that it
/// knows already (409) may have been read no further than its id.
#[tokio::test]
async fn what_the_agent_says_is_heard_with_a_2xx() {
    let check = async |answer, expected| {
        let (_, queued, _) = drain(1, vec![answer]).await;
        assert_eq!(queued.0.lock().unwrap().heard, expected);
    };
    for status in [200, 201, 202, 208] {
        check(taken(status), 1).await;
    }
    check(answer(200, r#"{"status":"success","duplicate":true}"#), 1).await;
    check(answer(200, "<html>"), 0).await;
    check(answer(204, ""), 0).await;
    let known = r#"{"code":409,"error":"duplicate_batch","message":""}"#;
    for not in [answer(409, known), answer(503, ""), answer(403, ""), unreachable()] {
        check(not, 0).await;
    }
}

/// C35: of three records the last is bad. The others are delivered, and so is the next batch.
#[tokio::test]
async fn a_refused_batch_is_taken_apart() {
    let ok = || taken(200);
    for status in [400, 415, 422, 418, 409] {
        let no = || answer(status, r#"{"message":"no"}"#);
        // The whole, the first, the second (for the last two must hold it), the last, the next.
        let mut answers = vec![no(), ok(), ok(), no(), ok()];
        if matches!(status, 400 | 415) {
            answers.insert(0, no()); // the whole may be refused for its packing
        }
        let (drained, queued, status) = drain(2, answers).await;
        assert_eq!(drained, Drained::Empty);
        let held = queued.0.lock().unwrap();
        assert_eq!((&held.delivered[..], held.put_back.len()), (&[(0, 1), (1, 0)][..], 0));
        assert_eq!((status.delivered_records, status.refused_records), (5, 1));
        assert_eq!((status.delivered_batches, status.split_batches), (2, 1));
    }
}

/// A backend that refuses every record gets the next batch after a long pause.
#[tokio::test]
async fn a_backend_that_takes_nothing_is_left_alone() {
    let no = || answer(400, "");
    let (drained, queued, status) = drain(2, vec![no(), no(), no(), no(), no(), no()]).await;
    assert!(matches!(drained, Drained::Waiting(wait) if wait >= pace::CAP / 2), "{drained:?}");
    let held = queued.0.lock().unwrap();
    assert_eq!((&held.delivered[..], held.waiting.len()), (&[(0, 3)][..], 1));
    assert_eq!((status.state, status.hint.as_deref()), (PAUSED, Some(verdict::TAKES_NOTHING)));
    let shown = format!("400\n  hint: {}", verdict::TAKES_NOTHING);
    assert_eq!(status.last_answer, Some(shown));
}

/// Halves may be small enough where the whole was not: each is sent.
#[tokio::test]
async fn a_batch_that_is_too_large_is_halved() {
    let (ok, large) = (|| taken(200), || answer(413, ""));
    let (_, queued, status) = drain(1, vec![large(), ok(), large(), ok(), ok()]).await;
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 0)]);
    assert_eq!((status.delivered_records, status.delivered_batches), (3, 1));
}

/// What was found out before everything had to wait is not asked again; the ids are the same.
#[tokio::test]
async fn taking_apart_goes_on_where_it_was() {
    let (ok, no) = (|| taken(200), || answer(422, ""));
    let script = Script::of(vec![no(), ok(), unreachable(), ok(), no()]);
    let queued = Queued::with(1);
    let (mut forwarder, _) = Forwarder::new(queued.clone(), script.clone(), config().fixed());
    assert!(matches!(forwarder.drain().await, Drained::Waiting(_)));
    assert_eq!(queued.0.lock().unwrap().put_back.len(), 1);
    queued.0.lock().unwrap().waiting.push_back(0);
    assert_eq!(forwarder.drain().await, Drained::Empty);
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 1)]);
    let ids = script.0.lock().unwrap().1.clone();
    assert_eq!((ids.len(), ids[2]), (5, ids[3]));
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), 4, "every part has an id of its own");
}

#[tokio::test]
async fn rejected_metrics_are_handed_to_the_source() {
    let body = r#"{"status":"success","collector_id":"c","metrics_inserted":2,"bytes_received":1,
        "processing_time_ms":1,"next_config_version":4,"next_check_in_seconds":60,
        "duplicate":true,"rejected":[{"index":1,"path":"cpu.user","message":"is negative"}]}"#;
    let (_, queued, status) = drain(1, vec![answer(200, body)]).await;
    assert_eq!(queued.0.lock().unwrap().delivered, [(0, 1)]);
    assert_eq!((status.delivered_records, status.refused_records), (2, 1));
    assert_eq!((status.duplicate_batches, status.next_config_version), (1, Some(4)));
}

/// What a backend has refused, and does not name so that it can be found, is not passed over: the
/// batch stays, and comes again under its id.
#[tokio::test]
async fn refusals_without_names_deliver_nothing() {
    for rejected in [r#"{"index":1}"#, r#"[{"index":"1"}]"#, r#"[{"index":3}]"#, "1"] {
        let body = format!(r#"{{"status":"success","metrics_inserted":2,"rejected":{rejected}}}"#);
        let (drained, queued, status) = drain(1, vec![answer(200, &body)]).await;
        assert!(matches!(drained, Drained::Waiting(_)), "{rejected}: {drained:?}");
        let held = queued.0.lock().unwrap();
        assert_eq!((held.delivered.len(), held.put_back.len()), (0, 1), "{rejected}");
        let hint = Some(verdict::UNNAMED_REFUSALS);
        assert_eq!((status.state, status.hint.as_deref()), (PAUSED, hint), "{rejected}");
        let answer = status.last_answer.unwrap_or_default();
        assert!(answer.starts_with("200: `rejected"), "{rejected}: {answer}");
    }
}
