//! A refusal is seen: counted by reason for its collector, in the store, the API and the page, and
//! once in the log.

use std::time::Duration;

use pganalytics::backend::store::Role;
use pganalytics::clock;
use serde_json::{Value, json};

use crate::backend_collectors::{claims, minted, signed};
use crate::backend_hostile::Spawned;
use crate::backend_store::postgres_url;
use crate::support::backend::{Ask, Client, Host, Served};
use crate::support::{until, until_async};

const AT: &str = "2026-01-01T00:00:00Z";
const PATIENCE: Duration = Duration::from_secs(60);

fn metric(n: u64) -> Value {
    json!({"type": "custom.test", "timestamp": AT, "n": n})
}

fn broken() -> Value {
    json!({"type": "sysstat", "timestamp": AT, "cpu": {"user": 101}})
}

/// What is counted of a host: reasons with their counts.
async fn counted(served: &Served, host: &Host, token: &str) -> Vec<(String, u64)> {
    let path = format!("/api/v1/collectors/{}", host.id);
    let shown = served.stranger().get(&path, token).await.json();
    let refusals = shown["refusals"].as_array().cloned().unwrap_or_default();
    let one = |refusal: &Value| {
        let reason = refusal["reason"].as_str().expect("a reason").to_owned();
        assert!(refusal["last_message"].as_str().is_some_and(|text| !text.is_empty()), "{refusal}");
        let last: jiff::Timestamp =
            refusal["last_at"].as_str().expect("a time").parse().expect("RFC 3339");
        assert!(clock::now().duration_since(last).as_secs() < 300, "{refusal}");
        (reason, refusal["count"].as_u64().expect("a count"))
    };
    refusals.iter().map(one).collect()
}

fn counts(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

/// Metrics that are refused are counted with their push, and once when it comes again.
async fn metrics_are_counted(store: Option<String>) {
    let served = Served::start_with(|config| config.store = store).await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let token = served.user_token(Role::Viewer).await;
    assert_eq!(counted(&served, &host, &token).await, []);
    let batch =
        |key: &str| host.ask(json!([broken(), metric(1), broken()])).header("idempotency-key", key);
    for (key, expected) in [("one", 2), ("one", 2), ("two", 4)] {
        assert_eq!(host.client.send(batch(key)).await.status, 200);
        let expected = counts(&[("invalid_metric", expected)]);
        assert_eq!(counted(&served, &host, &token).await, expected, "{key}");
    }
    assert_eq!(host.push(json!([broken()])).await.status, 200);
    assert_eq!(counted(&served, &host, &token).await, counts(&[("invalid_metric", 5)]));
    assert_eq!(counted(&served, &other, &token).await, []);
    let all = served.stranger().get("/api/v1/collectors", &token).await.json();
    let counts = |row: &Value| row["refusals"][0]["count"].clone();
    let listed: Vec<Value> = all["data"].as_array().expect("a list").iter().map(counts).collect();
    assert_eq!(listed, [json!(5), Value::Null], "by name");
}

#[tokio::test]
async fn refused_metrics_are_counted_in_sqlite() {
    metrics_are_counted(None).await;
}

#[tokio::test]
async fn refused_metrics_are_counted_in_postgres() {
    metrics_are_counted(Some(postgres_url(10).await)).await;
    metrics_are_counted(Some(postgres_url(18).await)).await;
}

/// Pushes that are refused as a whole, each for its reason; the counts survive a restart.
async fn pushes_are_counted(store: Option<String>) {
    let mut served = Served::start_with(|config| {
        config.store = store;
        config.limits.body_bytes_max = 1 << 20;
        config.limits.hosts_per_collector = 0;
    })
    .await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let token = served.user_token(Role::Viewer).await;
    let send = async |ask: Ask, status: u16| {
        let reply = host.client.send(ask).await;
        assert_eq!(reply.status, status, "{reply:?}");
    };
    let body = |change: Value| {
        let mut body = host.envelope(json!([metric(1)]));
        body.as_object_mut().expect("an object").extend(change.as_object().expect("one").clone());
        host.ask(json!([])).json(&body)
    };
    send(host.ask(json!([])).body(vec![b' '; 2 << 20]), 413).await;
    send(host.ask(json!(vec![0; 100_001])), 413).await;
    for _ in 0..3 {
        send(host.ask(json!([])).body("no push"), 400).await;
    }
    send(host.ask(json!([])).header("content-encoding", "br"), 415).await;
    send(host.ask(json!([])).header("idempotency-key", ""), 400).await;
    send(body(json!({"collector_id": other.id})), 403).await;
    let agent = json!({
        "queue_id": uuid::Uuid::from_u128(7), "replay_of": {"queue_id": uuid::Uuid::from_u128(8)},
        "config_version": 0, "clock_offset_ms": 0, "lost": [],
        "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
    });
    send(body(json!({"hostname": "dead", "agent": agent})), 429).await;
    send(host.ask(json!([metric(1)])), 200).await;
    let expected = counts(&[
        ("bad_push", 5),
        ("other_collector", 1),
        ("store", 1),
        ("too_large", 1),
        ("too_many_metrics", 1),
    ]);
    served.stop().await;
    served.resume().await;
    assert_eq!(counted(&served, &host, &token).await, expected);
    assert_eq!(counted(&served, &other, &token).await, []);
    // And while it runs, a storm of them.
    for _ in 0..100 {
        host.client.send(host.ask(json!([])).body("no push")).await.refused(400);
    }
    until_async("the storm is counted", PATIENCE, async || {
        counted(&served, &host, &token).await.first() == Some(&("bad_push".to_owned(), 105))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_pushes_are_counted_in_sqlite() {
    pushes_are_counted(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_pushes_are_counted_in_postgres() {
    pushes_are_counted(Some(postgres_url(18).await)).await;
}

/// A 401 is counted for a collector that is known by a signature or a certificate, and nobody
/// writes into the counts of another.
#[tokio::test]
async fn only_a_known_collector_is_counted() {
    let mut served = Served::start().await;
    let (host, other) = (served.register("db1").await, served.register("db2").await);
    let removed = served.register("db3").await;
    let admin = served.user_token(Role::Admin).await;
    let delete = Ask::new(http::Method::DELETE, &format!("/api/v1/collectors/{}", removed.id));
    assert_eq!(served.stranger().send(delete.bearer(&admin)).await.status, 204);
    let stranger = served.stranger();
    let send = async |client: &Client, token: &str, status: u16| {
        let reply = client.send(host.ask(json!([])).bearer(token)).await;
        assert_eq!(reply.status, status, "{reply:?}");
    };
    let mut ended = claims(&host.id);
    ended["exp"] = json!(clock::now().as_second() - 90);
    // Signed by the host itself, from wherever it comes.
    send(&host.client, &minted(&host, &ended), 401).await;
    send(&stranger, &minted(&host, &ended), 401).await;
    // Signed by nobody: only the certificate says whose it is.
    let forged = signed(&host.id, &[7; 32], &claims(&host.id));
    send(&stranger, &forged, 401).await;
    send(&other.client, &forged, 401).await;
    send(&stranger, "x", 401).await;
    send(&removed.client, &forged, 401).await;
    send(&removed.client, &removed.token, 401).await;
    // A good token without the certificate, and with another's.
    send(&stranger, &host.token, 403).await;
    send(&other.client, &host.token, 403).await;
    served.stop().await;
    served.resume().await;
    let expected = counts(&[("certificate", 2), ("unauthorized", 2)]);
    assert_eq!(counted(&served, &host, &admin).await, expected);
    assert_eq!(counted(&served, &other, &admin).await, counts(&[("unauthorized", 1)]));
    assert_eq!(counted(&served, &removed, &admin).await, []);
}

/// The page says what is not taken of a host; what was said of it may have words of a log in it,
/// and is for those who log in.
#[tokio::test]
async fn the_page_shows_refusals_without_their_words() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let odd = json!({"type": "geheim7", "timestamp": AT});
    assert_eq!(host.push(json!([metric(1), odd])).await.status, 200);
    let page = Client::plain(served.running().page_address().expect("there is a page"));
    let reply = page.get("/data/servers/1", "x").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let shown = reply.json()["refusals"].clone();
    assert_eq!((&shown[0]["reason"], &shown[0]["count"]), (&json!("invalid_metric"), &json!(1)));
    assert!(shown[0]["last_at"].is_i64(), "{shown}");
    assert!(!String::from_utf8_lossy(&reply.body).contains("geheim7"), "{reply:?}");
}

/// Once for a collector and a reason, of whichever agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_warned_of_once() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let host = backend.register("db1").await;
    let mut body = host.envelope.clone();
    let mut many = body.clone();
    many["metrics"] = json!(vec![0; 100_001]);
    body["metrics"] = json!([broken()]);
    body["agent"] = json!({
        "queue_id": uuid::Uuid::nil(), "config_version": 0, "clock_offset_ms": 0, "lost": [],
        "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
    });
    let ask = || Ask::post("/api/v1/metrics/push").bearer(&host.token);
    for _ in 0..3 {
        assert_eq!(host.client.send(ask().json(&body)).await.status, 200);
        host.client.send(ask().body("no push")).await.refused(400);
        host.client.send(ask().json(&many)).await.refused(413);
    }
    let said = |words: &str| {
        let log = backend.process.stderr();
        let said = |line: &&str| line.contains("WARN") && line.contains(words);
        log.lines().filter(said).count()
    };
    until("they are said", PATIENCE, || said("too_many_metrics") > 0);
    for words in ["metrics are refused", "bad_push", "too_many_metrics"] {
        assert_eq!(said(words), 1, "{words}: {}", backend.process.stderr());
    }
}
