//! What the agent says of itself, to backends that do not know the type.

use super::{
    lanes::{Road, s},
    *,
};

const UNKNOWN: &str = r#"{"message":"Unknown metric type: \"agent\""}"#;
const REJECTS: &str = r#"{"status":"success","rejected":[
    {"index":1,"path":"type","message":"Unknown metric type: \"agent\""}]}"#;

/// Batches whose second record is what the agent says of itself.
fn with_health(batches: u64) -> Queued {
    let queued = Queued::with(batches);
    queued.0.lock().unwrap().health = vec![1];
    queued
}

async fn drained(
    queued: &Queued,
    answers: Vec<Result<Answer, WireError>>,
) -> (ForwardStatus, Vec<Uuid>) {
    let script = Script::of(answers);
    let (mut forwarder, status) = Forwarder::new(queued.clone(), script.clone(), config().fixed());
    assert_eq!(forwarder.drain().await, Drained::Empty);
    let script = script.0.lock().unwrap();
    assert!(script.0.is_empty(), "every answer was asked for");
    (status.borrow().clone(), script.1.clone())
}

/// Section 5: a type that the backend refuses as unknown is remembered, whether the push was taken
/// without it or taken apart for it, and the next batches leave without it, under other ids.
#[tokio::test]
async fn a_backend_that_does_not_know_it_gets_it_once() {
    let ok = || taken(200);
    let apart = || vec![answer(422, UNKNOWN), ok(), answer(422, UNKNOWN), ok(), ok(), ok()];
    for answers in [vec![answer(200, REJECTS), ok(), ok()], apart()] {
        let queued = with_health(3);
        let (status, ids) = drained(&queued, answers).await;
        let held = queued.0.lock().unwrap();
        assert_eq!(held.delivered, [(0, 1), (1, 0), (2, 0)]);
        assert_eq!(held.left_out, [(1, vec![(1, 0)]), (2, vec![(1, 0)])]);
        assert!(status.refuses_health);
        assert_eq!((status.delivered_records, status.refused_records), (3 * 2, 0));
        let batch_ids = [1, 2].map(Uuid::from_u128);
        assert!(ids[ids.len() - 2..].iter().all(|id| !batch_ids.contains(id)), "{ids:?}");
    }
}

/// A batch of nothing else is settled without a push.
#[tokio::test]
async fn a_batch_of_nothing_else_is_not_sent() {
    let queued = with_health(2);
    let (_, ids) = drained(&queued, vec![answer(200, REJECTS), taken(200)]).await;
    assert_eq!(ids.len(), 2);
    let queued = with_health(2);
    queued.0.lock().unwrap().health = vec![0, 1, 2];
    let unknown = |index| format!(r#"{{"index":{index},"message":"Unknown metric type"}}"#);
    let all = [0, 1, 2].map(unknown).join(",");
    let body = format!(r#"{{"status":"success","rejected":[{all}]}}"#);
    let (status, ids) = drained(&queued, vec![answer(200, &body)]).await;
    assert_eq!(ids.len(), 1);
    let held = queued.0.lock().unwrap();
    assert_eq!(held.left_out, [(1, vec![(0, 0), (1, 0), (2, 0)])]);
    assert_eq!((status.delivered_records, status.refused_records), (0, 0));
}

/// Any other refusal is one of the record, and so is that of any other type.
#[tokio::test]
async fn another_refusal_is_of_the_record() {
    let check = async |health: Vec<usize>, said: &str| {
        let queued = with_health(2);
        queued.0.lock().unwrap().health = health;
        let (status, _) = drained(&queued, vec![answer(200, said), taken(200)]).await;
        assert!(!status.refuses_health, "{said}");
        assert_eq!((status.delivered_records, status.refused_records), (5, 1), "{said}");
        assert!(queued.0.lock().unwrap().left_out.is_empty());
    };
    check(vec![1], &REJECTS.replace("Unknown metric type", "no")).await;
    check(vec![0], REJECTS).await;
    check(vec![], REJECTS).await;
}

/// One that is another version after an outage may know it.
#[tokio::test(start_paused = true)]
async fn another_version_gets_it_again() {
    let version = Arc::new(Mutex::new(r#"{"version":"1"}"#));
    let (says, answers) = (Arc::clone(&version), Mutex::new(VecDeque::from([REJECTS])));
    let road = Road::new(move |_, _| {
        let rejects = answers.lock().unwrap().pop_front();
        (s(0), rejects.map_or_else(|| taken(200), |body| answer(200, body)))
    });
    let road = road.probed(move || (s(0), answer(200, *says.lock().unwrap())));
    let queued = with_health(1);
    let (mut forwarder, status) = Forwarder::new(queued.clone(), road, config().fixed());
    forwarder.drain().await;
    assert!(status.borrow().refuses_health);
    for (said, refuses) in [(r#"{"version":"1"}"#, true), (r#"{"version":"2"}"#, false)] {
        *version.lock().unwrap() = said;
        tokio::time::advance(s(3_601)).await;
        queued.0.lock().unwrap().waiting.push_back(7);
        forwarder.drain().await;
        assert_eq!(status.borrow().refuses_health, refuses, "{said}");
    }
    let held = queued.0.lock().unwrap();
    assert_eq!(held.left_out, [(7, vec![(1, 0)])], "the last was sent whole");
}
