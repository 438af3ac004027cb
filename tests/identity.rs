//! A record is its queue and its number, not its text: equal documents are as many rows as there
//! were records, in however many batches they come.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::time::Duration;

use pganalytics::backend::store::{MetricRow, StoredMetric};
use pganalytics::metric::envelope::PushRequest;
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use crate::intake::{push_of, run, site};
use crate::operator::{Host, says};
use crate::support::backend_stub::{Recorded, Reply};
use crate::support::intake::Place;
use crate::support::relay::Meddling;
use crate::support::site::Site;
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(30);
const AT: &str = "2026-01-01T00:00:00Z";

/// A site whose agent has an intake and keeps what is delivered.
async fn keeping() -> (Site, Place) {
    let (site, place) = site("").await;
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text.replace("[queue]\n", "[queue]\nretain_delivered = \"64MiB\"\n");
    fs_err::write(site.config(), text).expect("write");
    (site, place)
}

fn login() -> Value {
    json!({"type": "custom.login", "timestamp": AT, "user": "ann"})
}

fn logins(count: usize) -> Vec<u8> {
    push_of(&vec![login(); count])
}

async fn stored_logins(site: &Site) -> usize {
    site.stored().await.iter().filter(|metric| metric.kind == "custom.login").count()
}

async fn until_logins(site: &Site, count: usize) {
    let what = format!("{count} logins are stored");
    until_async(&what, LIMIT, async || stored_logins(site).await >= count).await;
}

/// Runs SQL on the site's store while its backend is away.
async fn at_store(site: &mut Site, sql: &str) {
    site.served.stop().await;
    let file = site.served.config.data_dir.join("metrics.db");
    let store = rusqlite::Connection::open(file).expect("open the store");
    store.execute_batch(sql).expect("run the SQL");
    drop(store);
    site.served.resume().await;
}

/// Makes the store one in which every row is known by its text alone, as a backend of an earlier
/// version would have left it.
async fn forget_records(site: &mut Site) {
    let stored = site.stored().await;
    site.served.stop().await;
    let file = site.served.config.data_dir.join("metrics.db");
    let store = rusqlite::Connection::open(file).expect("open the store");
    store.execute_batch("UPDATE metrics SET digest = NULL").expect("forget");
    for metric in stored {
        let StoredMetric { kind, database, at, document } = metric;
        let row = MetricRow::new(kind, database, at, document);
        let key = rusqlite::params![row.digest, at.as_microsecond(), row.document];
        let set = "UPDATE OR IGNORE metrics SET digest = ?1 WHERE at = ?2 AND document = ?3";
        store.execute(set, key).expect("key a row by its text");
    }
    store
        .execute_batch(
            "DELETE FROM metrics WHERE digest IS NULL;
             UPDATE servers SET text_until = (SELECT max(at) FROM metrics);
             UPDATE pushes SET batch_id = batch_id || ' before'",
        )
        .expect("forget");
    drop(store);
    site.served.resume().await;
}

/// C20: three equal documents of one request are three rows; still three when their batch arrives
/// twice, when its answer is lost, and when it is replayed to a backend that has forgotten its id.
#[tokio::test(flavor = "multi_thread")]
async fn equal_metrics_are_as_many_rows() {
    let (mut site, place) = keeping().await;
    let relay = site.relay().await;
    let agent = run(&site, &place);
    let mut expected = 0;
    for meddling in [Meddling::None, Meddling::Twice, Meddling::LostAnswer, Meddling::Late] {
        relay.set(meddling);
        let struck = relay.struck();
        let answer = place.push(&[], &logins(3)).expect("an answer");
        assert_eq!(answer.inserted(), 3);
        expected += 3;
        until_logins(&site, expected).await;
        if meddling != Meddling::None {
            until_async("the relay strikes", LIMIT, async || relay.struck() > struck).await;
        }
        relay.set(Meddling::None);
    }
    site.proxy.retarget(site.served.running().address());
    until("everything is delivered", LIMIT, || site.queue_number("records") < 20);
    agent.stop();
    assert_eq!(stored_logins(&site).await, expected);
    let all = site.stored().await.len();
    assert_eq!(all as u64, site.queue_number("next_seq"));
    at_store(&mut site, "UPDATE pushes SET batch_id = batch_id || ' before'").await;
    says(&site.command(&["replay", "--delivered"]), 0, &["delivered "]);
    assert_eq!((stored_logins(&site).await, site.stored().await.len()), (expected, all));
    at_store(&mut site, "DELETE FROM metrics; DELETE FROM pushes").await;
    says(&site.command(&["replay", "--delivered"]), 0, &["delivered "]);
    assert_eq!((stored_logins(&site).await, site.stored().await.len()), (expected, all));
}

/// C35: the parts of a batch that is too large name the numbers of the whole.
#[tokio::test(flavor = "multi_thread")]
async fn equal_metrics_of_a_split_batch_are_as_many_rows() {
    const TAKEN_BYTES: usize = 8 << 10;
    let (mut site, place) = keeping().await;
    let set_limit = async |site: &mut Site, bytes: usize| {
        site.served.stop().await;
        site.served.config.limits.inflated_bytes_max = bytes as u64;
        site.served.resume().await;
    };
    set_limit(&mut site, TAKEN_BYTES).await;
    let agent = run(&site, &place);
    let mut metrics = vec![login(); 300];
    metrics[70]["filler"] = json!("x".repeat(TAKEN_BYTES));
    assert_eq!(place.push(&[], &push_of(&metrics)).expect("an answer").inserted(), 300);
    until_logins(&site, 299).await;
    let done = agent.stop();
    assert!(done.stderr.contains("it is sent in halves"), "{}", done.stderr);
    assert_eq!(stored_logins(&site).await, 299);

    // The backend takes larger ones now: the refused record, and then the whole batch once more.
    set_limit(&mut site, 64 << 20).await;
    says(&site.command(&["replay", "--dead"]), 0, &["delivered 1 of 1 batch (1 record)"]);
    assert_eq!(stored_logins(&site).await, 300);
    let all = site.stored().await.len();
    says(&site.command(&["replay", "--delivered"]), 0, &["delivered "]);
    assert_eq!((stored_logins(&site).await, site.stored().await.len()), (300, all));
}

/// C20: what a backend of an earlier version has stored by its text alone is the row of the first
/// record with that text, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_by_its_text_is_not_doubled() {
    let (mut site, place) = keeping().await;
    let agent = run(&site, &place);
    assert_eq!(place.push(&[], &logins(3)).expect("an answer").inserted(), 3);
    until_logins(&site, 3).await;
    until("everything is delivered", LIMIT, || site.queue_number("records") < 20);
    agent.stop();
    let all = site.stored().await.len();
    assert_eq!(all as u64, site.queue_number("next_seq"));
    forget_records(&mut site).await;
    assert_eq!(site.stored().await.len(), all - 2);
    for _ in 0..2 {
        says(&site.command(&["replay", "--delivered"]), 0, &["delivered "]);
        assert_eq!((stored_logins(&site).await, site.stored().await.len()), (3, all));
        at_store(&mut site, "UPDATE pushes SET batch_id = batch_id || ' before'").await;
    }
}

/// What a push says of its records: the agent's queue, the queue of the numbers, and each number
/// with its metric.
fn records(request: &Recorded) -> (Uuid, Uuid, Vec<(u64, Value)>) {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&request.body[..]).read_to_end(&mut text).expect("gzip");
    let PushRequest { agent, metrics, .. } = PushRequest::parse(&text).expect("an envelope");
    let agent = agent.expect("every push has an agent object");
    let sequences = agent.sequences.expect("every push names its records");
    let value = |metric: &RawValue| serde_json::from_str(metric.get()).expect("JSON");
    let numbered = sequences.numbers().zip(metrics.into_iter().map(value));
    (agent.queue_id, sequences.queue_id, numbered.collect())
}

/// Takes batches apart, and refuses every third record.
fn taking_apart(request: &Recorded) -> Reply {
    let (_, _, records) = records(request);
    match records[..] {
        [(number, _)] if number % 3 == 0 => Reply::status(422),
        [_] => Reply::with(200, &[], r#"{"status":"success"}"#),
        _ => Reply::status(413),
    }
}

/// Every push names its records, each by the number that it always has: the forwarder's, those of a
/// batch that is taken apart, and replays of what was refused and of what was kept, of this host
/// and from a directory. A backend that knows nothing of that takes them all.
#[tokio::test(flavor = "multi_thread")]
async fn every_push_names_its_records() {
    let host = Host::new("2s").await;
    let config = host.path("agent.toml");
    let text = fs_err::read_to_string(&config).expect("read");
    let text = text.replace("[queue]\n", "[queue]\nretain_delivered = \"64MiB\"\n");
    fs_err::write(&config, text).expect("write");
    host.stub.answer_pushes(taking_apart);
    let mut agent = host.start();
    let letters = || fs_err::read_to_string(host.path("queue/dead.ndjson")).unwrap_or_default();
    until("records are refused", LIMIT, || letters().lines().count() >= 3);
    let identity = fs_err::read_to_string(host.path("queue/QUEUE")).expect("read");
    let own: Uuid = identity.split_whitespace().last().expect("a word").parse().expect("a UUID");
    for letter in letters().lines() {
        assert_eq!(serde_json::from_str::<Value>(letter).expect("JSON")["queue"], json!(own));
    }
    let pushes = || {
        let mut requests = host.stub.requests();
        requests.retain(|request| request.path.ends_with("/metrics/push"));
        requests
    };
    let first = pushes().len();
    host.stub.answer_pushes(|_| Reply::with(200, &[], r#"{"status":"success"}"#));
    says(&host.ask(&["replay", "--dead"]), 0, &["delivered "]);
    says(&host.ask(&["replay", "--delivered"]), 0, &["delivered "]);
    agent.kill();
    let with_agent = pushes().len();
    let dir = host.path("queue");
    let dir = dir.to_str().expect("UTF-8");
    for selection in [&["--delivered"][..], &["--dir", dir, "--delivered"]] {
        says(&host.ask(&[&["replay"], selection].concat()), 0, &["delivered "]);
    }

    let requests = pushes();
    assert!(first > 10 && with_agent > first && requests.len() > with_agent, "{}", requests.len());
    let mut metrics = BTreeMap::new();
    let mut sizes = BTreeSet::new();
    for (place, request) in requests.iter().enumerate() {
        let (sender, queue, records) = records(request);
        assert_eq!(queue, own);
        assert_eq!(sender, if place < with_agent { own } else { Uuid::nil() }, "{place}");
        sizes.insert(records.len());
        for (number, metric) in records {
            let known = metrics.entry(number).or_insert_with(|| metric.clone());
            assert_eq!(*known, metric, "number {number} in request {place}");
        }
    }
    assert!(sizes.len() > 1, "{sizes:?}");
    let numbers: Vec<u64> = metrics.into_keys().collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
}
