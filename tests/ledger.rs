//! The ledger of lost records on its way to the backend.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pganalytics::agent::{ConfigState, LinkWire, QueueSource};
use pganalytics::forward::{Drained, ForwardConfig, Forwarder};
use pganalytics::link::Link;
use pganalytics::metric::envelope::{LostRange, PushRequest};
use pganalytics::queue::{Group, Log, LogLimits, MemoryDisk, NewRecord, Queue, QueueThread};

use crate::link_tls::{World, identity};
use crate::support::backend_stub::{Recorded, Reply};

const FIRST_MS: i64 = 1_767_225_600_000;

fn queue() -> (Queue, QueueThread) {
    let log = Log::open(MemoryDisk::new().open(), LogLimits::default()).expect("a queue");
    Queue::start(log, Duration::ZERO).expect("a thread")
}

fn record(n: i64) -> NewRecord {
    let payload = format!(r#"{{"type":"custom.n","timestamp":"2026-01-01T00:00:00Z","n":{n}}}"#);
    NewRecord {
        kind: "custom.n".to_owned(),
        at_ms: FIRST_MS + n * 1_000,
        payload: Bytes::from(payload),
    }
}

/// The losses that a push carried.
fn lost(request: &Recorded) -> Vec<LostRange> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&request.body[..]).read_to_end(&mut text).expect("gzip");
    PushRequest::parse(&text).expect("an envelope").agent.expect("the agent speaks").lost
}

fn facts(lost: &[LostRange]) -> Vec<(u64, u64, u64, &str)> {
    lost.iter().map(|lost| (lost.from, lost.to, lost.records, lost.reason.as_str())).collect()
}

fn answer(rest: &str) -> Reply {
    let body = format!(
        r#"{{"status":"success","collector_id":"c","metrics_inserted":1,"bytes_received":1,
            "processing_time_ms":1,"next_config_version":0,"next_check_in_seconds":60{rest}}}"#
    );
    Reply::with(200, &[], &body)
}

/// Q5: what is lost is said with each push until a 2xx, and with no push after it.
#[tokio::test]
async fn a_loss_is_said_until_the_backend_has_heard_it() {
    let world = World::new().await;
    let link = Arc::new(Link::new(&world.config(), identity()).expect("a configuration"));
    let (queue, thread) = queue();
    let config = ForwardConfig {
        collector_id: "c".to_owned(),
        hostname: "h".to_owned(),
        ..ForwardConfig::default()
    };
    let config_state = ConfigState::default();
    let source =
        QueueSource { queue: queue.clone(), link: Arc::clone(&link), config: config_state };
    let (mut forwarder, _status) = Forwarder::new(source, LinkWire(link), config.fixed());
    let append = async |records: Vec<NewRecord>, rejected| {
        let group = Group { rejected, ..Group::of(records) };
        queue.append(group).await.expect("taken");
        queue.seal().await.expect("sealed");
    };
    append((0..3).map(record).collect(), 2).await;
    world.stub.reply([Reply::status(503)]);
    assert!(matches!(forwarder.drain().await, Drained::Waiting(_)));
    let refused = r#","rejected":[{"index":1,"path":"n","message":"not today"}]"#;
    world.stub.reply([answer(refused), answer(r#","duplicate":true"#), answer("")]);
    queue.retry_now().await.expect("open");
    assert_eq!(forwarder.drain().await, Drained::Empty);
    append(vec![record(5)], 0).await;
    assert_eq!(forwarder.drain().await, Drained::Empty);
    append(vec![record(6)], 0).await;
    assert_eq!(forwarder.drain().await, Drained::Empty);
    let said: Vec<Vec<LostRange>> = world.stub.requests().iter().map(lost).collect();
    let [unheard, again, refused, nothing] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(facts(unheard), [(3, 4, 2, "reject")]);
    assert_eq!(again, unheard, "it does not change once it was said");
    assert_eq!(facts(refused), [(1, 1, 1, "refuse")]);
    let time = refused[0].first_at.map(jiff::Timestamp::as_millisecond);
    assert_eq!((time, refused[0].last_at), (Some(FIRST_MS + 1_000), refused[0].first_at));
    assert_eq!(nothing, &[]);
    assert!(queue.losses().await.expect("open").iter().all(|loss| loss.acknowledged));
    queue.close().await.expect("open");
    thread.join();
}
