//! Pushes to the backend: what is taken, what is refused, what is known already.

use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use pganalytics::backend::store::{Page, Role, StoredMetric};
use pganalytics::clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::backend::{Ask, Client, Host, Served};

/// A valid metric, told apart by `n`.
fn metric(n: u64) -> Value {
    json!({"type": "custom.test", "timestamp": "2026-01-01T00:00:00.000Z", "n": n})
}

fn broken() -> Value {
    json!({"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z", "cpu": {"user": 101}})
}

async fn stored_numbers(served: &Served) -> Vec<u64> {
    let number = |metric: StoredMetric| {
        let document: Value = serde_json::from_str(&metric.document).expect("JSON");
        document["n"].as_u64().expect("a number")
    };
    let mut numbers: Vec<u64> = served.stored(None).await.into_iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// C45, C48: every type in one push; the count in the answer is that of the rows stored, and the
/// documents are the ones that were pushed.
#[tokio::test]
async fn a_push_stores_what_it_says_it_stored() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let at = "2026-01-01T00:00:00.123456Z";
    let entry = json!({"timestamp": at, "level": "LOG", "message": "ready"});
    let metrics = json!([
        {"type": "sysstat", "timestamp": at, "cpu": {"user": 1.5}},
        {"type": "disk_usage", "timestamp": at, "filesystems": []},
        {"type": "pg_stats", "timestamp": at, "database": "app", "tables": [], "indexes": []},
        {"type": "pg_log", "timestamp": at, "database": "app", "entries": [entry]},
        {"type": "custom.mine", "timestamp": at, "\u{e9}": "\u{0}\u{1f600}"},
    ]);
    let reply = host.push(metrics.clone()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(answer["status"], "success");
    assert_eq!(answer["collector_id"], host.id);
    assert_eq!(answer["metrics_inserted"], 5);
    assert_eq!(answer.get("duplicate"), None);
    assert_eq!(answer.get("rejected"), None);
    assert!(answer["next_check_in_seconds"].as_u64() > Some(0));
    let stored = served.stored(None).await;
    let documents: Vec<Value> =
        stored.iter().map(|m| serde_json::from_str(&m.document).expect("JSON")).collect();
    assert_eq!(json!(documents), metrics);
    let heads: Vec<_> = stored.iter().map(|m| (m.kind.as_str(), m.database.as_deref())).collect();
    let app = Some("app");
    let expected = [
        ("sysstat", None),
        ("disk_usage", None),
        ("pg_stats", app),
        ("pg_log", app),
        ("custom.mine", None),
    ];
    assert_eq!(heads, expected);
    assert!(stored.iter().all(|m| m.at == at.parse().expect("a time")));
}

/// C5: an empty push is valid and makes the server row.
#[tokio::test]
async fn an_empty_push_is_taken() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let reply = host.push(json!([])).await;
    assert_eq!(reply.json()["metrics_inserted"], 0, "{reply:?}");
    let servers = served.running().store().servers(Page::first(10)).await.expect("servers");
    let first = servers.rows.first().expect("one server");
    assert_eq!(first.hostname, "db1.example.com");
    assert_eq!(first.collector_id.map(|id| id.to_string()), Some(host.id));
}

/// C4, C48: an invalid metric is named with its place, and harms neither its neighbours nor the
/// next push.
#[tokio::test]
async fn an_invalid_metric_harms_no_other() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let unknown = json!({"type": "weather", "timestamp": "2026-01-01T00:00:00Z"});
    let reply = host.push(json!([metric(1), broken(), metric(2), unknown, 5])).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(answer["metrics_inserted"], 2);
    let rejected = answer["rejected"].as_array().expect("rejected");
    let places: Vec<_> =
        rejected.iter().map(|r| (r["index"].as_u64(), r["path"].as_str())).collect();
    assert_eq!(places, [(Some(1), Some("cpu.user")), (Some(3), Some("type")), (Some(4), Some(""))]);
    let message = rejected[1]["message"].as_str().expect("a message");
    assert!(message.contains("Unknown metric type"), "{message}");
    assert_eq!(host.push(json!([metric(3)])).await.status, 200);
    assert_eq!(stored_numbers(&served).await, [1, 2, 3]);
}

/// C3, C24: a wrong envelope is refused with the place of the mistake, and stores nothing.
#[tokio::test]
async fn a_wrong_envelope_is_refused() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    for field in ["hostname", "timestamp", "metrics"] {
        let mut body = host.envelope(json!([metric(1)]));
        body.as_object_mut().expect("an object").remove(field);
        let reply = host.client.send(host.ask(json!([])).json(&body)).await;
        assert_eq!(reply.refused(400), "bad_request");
        assert_eq!(reply.json()["details"]["path"], field);
    }
    for body in ["", "{", "[]", "nonsense"] {
        let reply = host.client.send(host.ask(json!([])).body(body)).await;
        reply.refused(400);
    }
    assert_eq!(stored_numbers(&served).await, [] as [u64; 0]);
}

/// A collector speaks for its own host, whatever the envelope calls it; only a replay brings
/// others, by names that look like what they are, and so many.
#[tokio::test]
async fn only_a_replay_brings_other_hosts() {
    let served = Served::start_with(|config| config.limits.hosts_per_collector = 2).await;
    let host = served.register("db1").await;
    let queue_id = uuid::Uuid::from_u128(7);
    let push = async |hostname: &str, is_replay: bool, n: u64| {
        let mut body = host.envelope(json!([metric(n)]));
        body["hostname"] = json!(hostname);
        if is_replay {
            body["agent"] = json!({
                "queue_id": uuid::Uuid::nil(), "config_version": 0, "clock_offset_ms": 0,
                "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
                "lost": [], "replay_of": {"queue_id": queue_id},
            });
        }
        host.client.send(host.ask(json!([])).json(&body)).await
    };
    for (n, pretended) in ["db2.example.com", "a\u{0}b", "\u{202e}1bd"].iter().enumerate() {
        assert_eq!(push(pretended, false, n as u64).await.status, 200, "{pretended:?}");
    }
    for (n, brought) in ["db2.example.com", "db1.example.com", "db2.example.com"].iter().enumerate()
    {
        assert_eq!(push(brought, true, 10 + n as u64).await.status, 200, "{brought}");
    }
    let reply = push("db3.example.com", true, 20).await;
    assert_eq!(reply.refused(429), "too_many_requests");
    assert!(!reply.header("retry-after").is_empty());
    for unseen in ["", "a\u{0}b", "db\u{200b}1"] {
        assert_eq!(push(unseen, true, 21).await.json()["details"]["path"], "hostname");
    }
    let servers = served.running().store().servers(Page::first(9)).await.expect("servers").rows;
    let seen: Vec<_> = servers.iter().map(|row| (row.hostname.as_str(), row.brought)).collect();
    let own = "db1.example.com";
    assert_eq!(seen, [(own, false), (own, true), ("db2.example.com", true)]);
    let collectors = served.running().store().collectors(Page::first(1), clock::now()).await;
    assert_eq!(collectors.expect("collectors").rows[0].report, None, "a replay is not a report");
}

/// C48: a collector speaks for itself only.
#[tokio::test]
async fn another_collectors_id_is_refused() {
    let served = Served::start().await;
    let (one, two) = (served.register("one").await, served.register("two").await);
    let body = two.envelope(json!([metric(1)]));
    let reply = one.client.send(one.ask(json!([])).json(&body)).await;
    assert_eq!(reply.refused(403), "collector_mismatch");
    assert_eq!(stored_numbers(&served).await, [] as [u64; 0]);
}

/// C20: a batch id is stored once: again, at the same time, and after a restart.
#[tokio::test]
async fn a_batch_is_stored_once() {
    let mut served = Served::start().await;
    let host = served.register("db1").await;
    let batch =
        |host: &Host| host.ask(json!([metric(1), broken()])).header("idempotency-key", "batch-1");
    let (one, two) = tokio::join!(host.client.send(batch(&host)), host.client.send(batch(&host)));
    let answers = [one.json(), two.json()];
    let duplicates = answers.iter().filter(|answer| answer["duplicate"] == true).count();
    assert_eq!(duplicates, 1, "{answers:?}");
    served.stop().await;
    served.resume().await;
    let again = host.client.send(batch(&host)).await.json();
    assert_eq!(again["duplicate"], true);
    assert_eq!(again["metrics_inserted"], 0);
    // The first answer may have been lost: what it refused is told again.
    assert_eq!(again["rejected"], answers[0]["rejected"]);
    assert_eq!(again["rejected"][0]["path"], "cpu.user");
    assert_eq!(stored_numbers(&served).await, [1]);
    // Another collector's batch of the same name is another batch.
    let other = served.register("db2").await;
    let reply = other.client.send(batch(&other)).await.json();
    assert_eq!(reply["metrics_inserted"], 1);
    // Without an id nothing is known again.
    host.push(json!([metric(7)])).await;
    host.push(json!([metric(7)])).await;
    assert_eq!(stored_numbers(&served).await, [1, 1, 7, 7]);
    for id in ["", " ", &"x".repeat(129)] {
        let ask = host.ask(json!([])).header("idempotency-key", id);
        host.client.send(ask).await.refused(400);
    }
}

/// S5: the answer counts what was not there yet.
#[tokio::test]
async fn a_metric_of_two_batches_is_stored_once() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let inserted = async |batch: &str, metrics: Value| {
        let reply = host.client.send(host.ask(metrics).header("idempotency-key", batch)).await;
        let answer = reply.json();
        assert_eq!(answer.get("duplicate"), None, "{answer}");
        answer["metrics_inserted"].as_u64()
    };
    assert_eq!(inserted("whole", json!([metric(1), metric(2), metric(3)])).await, Some(3));
    assert_eq!(inserted("half", json!([metric(2), metric(3), broken()])).await, Some(0));
    assert_eq!(inserted("other", json!([metric(3), metric(4), metric(4)])).await, Some(1));
    assert_eq!(stored_numbers(&served).await, [1, 2, 3, 4]);
}

/// An `agent` object that says so of the records' numbers.
fn agent_with(sequences: &Value) -> Value {
    json!({
        "queue_id": QUEUE, "config_version": 3, "clock_offset_ms": 0, "sequences": sequences,
        "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
    })
}

const QUEUE: &str = "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001";

/// S7: equal metrics are as many rows as there are records, over any number of pushes; a metric
/// that is refused has its number, too.
#[tokio::test]
async fn records_are_told_apart_by_their_numbers() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let inserted = async |metrics: Value, runs: Value| {
        let mut body = host.envelope(metrics);
        body["agent"] = agent_with(&json!({"queue_id": QUEUE, "runs": runs}));
        let answer = host.client.send(host.ask(json!([])).json(&body)).await.json();
        answer["metrics_inserted"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    };
    let equal = |count: usize| json!(vec![metric(1); count]);
    assert_eq!(inserted(equal(3), json!([[5, 3]])).await, 3);
    assert_eq!(inserted(equal(3), json!([[5, 1], [7, 2]])).await, 1);
    assert_eq!(
        inserted(json!([metric(1), broken(), metric(1)]), json!([[8, 2], [20, 1]])).await,
        1
    );
    assert_eq!(inserted(json!([metric(1), metric(1)]), json!([[9, 1], [20, 1]])).await, 1);
    let largest = json!([[u64::MAX, 1], [u64::MAX - 2, 2]]);
    assert_eq!(inserted(equal(3), largest).await, 3);
    // The parts of a document are one record with several texts.
    let database = |name: &str| json!({"name": name, "size_bytes": 5, "tables": [], "indexes": []});
    let nested = json!([{
        "type": "pg_stats", "timestamp": "2026-01-01T00:00:00Z",
        "databases": [database("a"), database("b")],
    }]);
    assert_eq!(inserted(nested.clone(), json!([[30, 1]])).await, 2);
    assert_eq!(inserted(nested, json!([[30, 1]])).await, 0);
    assert_eq!(served.stored(None).await.len(), 11);
    // They are not a part of what the agent reports of itself.
    let token = served.user_token(Role::Viewer).await;
    let path = format!("/api/v1/collectors/{}", host.id);
    let collector = served.stranger().get(&path, &token).await.json();
    assert_eq!(
        (&collector["agent"]["queue_id"], &collector["agent"]["config_version"]),
        (&json!(QUEUE), &json!(3))
    );
    assert_eq!(collector["agent"].get("sequences"), None);
}

/// Numbers that are not those of the metrics refuse the envelope, and nothing is stored.
#[tokio::test]
async fn numbers_that_cannot_be_are_refused() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let check = async |sequences: Value, expected: &str| {
        let mut body = host.envelope(json!([metric(1), metric(2), metric(3)]));
        body["agent"] = agent_with(&sequences);
        let reply = host.client.send(host.ask(json!([])).json(&body)).await;
        assert_eq!(reply.refused(400), "bad_request");
        assert_eq!(reply.json()["details"]["path"], "agent.sequences", "{reply:?}");
        let message = reply.json()["message"].as_str().expect("text").to_owned();
        assert!(message.contains(expected) && message.len() < 300, "{message}");
    };
    let runs = |runs: Value| json!({"queue_id": QUEUE, "runs": runs});
    check(runs(json!([])), "0 numbers, the array of metrics holds 3").await;
    check(runs(json!([[1, 2]])), "2 numbers, the array of metrics holds 3").await;
    check(runs(json!([[1, 4]])), "4 numbers").await;
    check(runs(json!([[1, 3], [9, 0]])), "[9, 0] is not a run").await;
    check(runs(json!([[-1, 3]])), "invalid value: integer `-1`").await;
    check(runs(json!([[1, -3]])), "invalid value: integer `-3`").await;
    check(runs(json!([[1.0, 3]])), "floating point").await;
    check(runs(json!([["1", 3]])), "invalid type: string").await;
    check(runs(json!([[1, 3, 5]])), "trailing characters").await;
    check(runs(json!([[1]])), "invalid length 1").await;
    check(runs(json!([{"first": 1}])), "invalid type: map").await;
    check(runs(json!([[u64::MAX, 3]])), "is not a run").await;
    check(runs(json!([[u64::MAX - 1, 3]])), "is not a run").await;
    check(runs(json!([[3, u64::MAX]])), "is not a run").await;
    check(runs(json!([[0, u64::MAX], [0, u64::MAX], [0, 5]])), "numbers, the array").await;
    check(runs(json!([[0, 1_u64 << 40]])), "1099511627776 numbers").await;
    check(runs(json!(vec![[1, 1]; 100_000])), "100000 numbers").await;
    check(runs(json!("1-3")), "invalid type").await;
    check(runs(json!("x".repeat(1 << 20))), "invalid type").await;
    check(json!({"runs": [[1, 3]]}), "missing field `queue_id`").await;
    check(json!({"queue_id": QUEUE}), "missing field `runs`").await;
    check(json!({"queue_id": "mine", "runs": [[1, 3]]}), "UUID").await;
    check(json!([[1, 3]]), "invalid").await;
    assert_eq!(stored_numbers(&served).await, [] as [u64; 0]);
    // As many runs as metrics are not too many.
    let mut body = host.envelope(json!((0..5_000).map(metric).collect::<Vec<_>>()));
    let every_second: Vec<[u64; 2]> = (0..5_000).map(|n| [2 * n, 1]).collect();
    body["agent"] = agent_with(&runs(json!(every_second)));
    let reply = host.client.send(host.ask(json!([])).json(&body)).await;
    assert_eq!(reply.json()["metrics_inserted"], 5_000, "{reply:?}");
    body["agent"] = agent_with(&Value::Null);
    assert_eq!(host.client.send(host.ask(json!([])).json(&body)).await.status, 200);
}

/// Who brings the records of another queue than its own knows no state of this host's agent: what
/// is known of it stays.
#[tokio::test]
async fn a_replay_of_another_queue_is_not_a_report() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let token = served.user_token(Role::Viewer).await;
    let path = format!("/api/v1/collectors/{}", host.id);
    let nil = "00000000-0000-0000-0000-000000000000";
    let own = json!({"queue_id": QUEUE, "runs": []});
    let check = async |queue_id: &str, sequences: &Value, version: u64, shown: u64| {
        let mut body = host.envelope(json!([]));
        body["agent"] = agent_with(sequences);
        (body["agent"]["queue_id"], body["agent"]["config_version"]) =
            (json!(queue_id), json!(version));
        assert_eq!(host.client.send(host.ask(json!([])).json(&body)).await.status, 200);
        let collector = served.stranger().get(&path, &token).await.json();
        assert_eq!(collector["agent"]["config_version"], shown, "{collector}");
    };
    check(QUEUE, &own, 1, 1).await;
    check(nil, &own, 2, 1).await;
    check(QUEUE, &json!({"queue_id": nil, "runs": []}), 3, 1).await;
    check(QUEUE, &own, 4, 4).await;
    check(nil, &Value::Null, 5, 5).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::fast());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(vec![], Compression::fast());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

/// C31: gzip, zstd, and what existing collectors call gzip: a zlib stream or plain JSON.
#[tokio::test]
async fn every_encoding_is_read() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let body = host.envelope(json!([metric(1)])).to_string().into_bytes();
    let zstd = zstd::stream::encode_all(body.as_slice(), 3).expect("to memory");
    for bytes in [gzip(&body), zlib(&body), body, zstd] {
        let length = bytes.len();
        let ask = host.ask(json!([])).body(bytes).header("content-encoding", "gzip");
        let reply = host.client.send(ask).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["bytes_received"], length);
    }
    let ask = host.ask(json!([])).header("content-encoding", "br");
    assert_eq!(host.client.send(ask).await.refused(415), "unsupported_encoding");
    let ask = host.ask(json!([])).body(&b"\x1f\x8bnonsense"[..]);
    host.client.send(ask).await.refused(400);
    assert_eq!(stored_numbers(&served).await, [1, 1, 1, 1]);
}

/// C35: too large over the wire, or after decompression; the next push is not harmed.
#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let served = Served::start_with(|config| {
        config.limits.body_bytes_max = 64 << 10;
        config.limits.inflated_bytes_max = 1 << 20;
    })
    .await;
    let host = served.register("db1").await;
    let bomb = gzip(&vec![b' '; 4 << 20]);
    assert!(bomb.len() < 64 << 10);
    for body in [vec![b' '; 65 << 10], vec![b' '; 1 << 20], bomb] {
        let reply = host.client.send(host.ask(json!([])).body(body)).await;
        assert_eq!(reply.refused(413), "payload_too_large");
    }
    assert_eq!(host.push(json!([metric(1)])).await.status, 200);
}

/// C33, C35: a client that sends its whole body before it reads sees the refusal, no reset.
#[tokio::test]
async fn a_refusal_is_seen_after_a_large_body() {
    let served = Served::start_with(|config| {
        config.plaintext_listen = Some(([127, 0, 0, 1], 0).into());
        config.limits.body_bytes_max = 8 << 20;
    })
    .await;
    let address = served.running().plaintext_address().expect("it listens");
    let host = served.register("db1").await;
    let body = vec![b' '; 12 << 20];
    let check = async |path: &str, token: &str, expected: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("send the head");
        stream.write_all(&body).await.expect("send the whole body");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read the answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
    };
    check("/api/v1/metrics/push", "x", "401").await;
    check("/api/v1/metrics/push", &host.token, "413").await;
    check("/nowhere", "x", "404").await;
}

/// C55: pushes of many hosts at once all arrive, each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pushes_all_arrive() {
    let served = Served::start().await;
    let mut hosts = Vec::new();
    for name in ["a", "b", "c", "d"] {
        hosts.push(served.register(name).await);
    }
    let mut pushes = tokio::task::JoinSet::new();
    for n in 0..40 {
        let host = hosts[n % hosts.len()].clone();
        let n = u64::try_from(n).expect("small");
        pushes.spawn(async move { host.push(json!([metric(2 * n), metric(2 * n + 1)])).await });
    }
    while let Some(reply) = pushes.join_next().await {
        let reply = reply.expect("no panic");
        assert_eq!(reply.json()["metrics_inserted"], 2, "{reply:?}");
    }
    assert_eq!(stored_numbers(&served).await, (0..80).collect::<Vec<_>>());
}

/// C51, C54: what was pushed is there for a user's query when the answer comes.
#[tokio::test]
async fn a_push_is_visible_at_once() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let token = served.user_token(Role::Viewer).await;
    let began = clock::monotonic();
    for n in 0..20 {
        assert_eq!(host.push(json!([metric(n)])).await.status, 200);
    }
    let user = served.stranger();
    let servers = user.get("/api/v1/servers", &token).await.json();
    assert_eq!(servers["total"], 1);
    let id = &servers["data"][0]["id"];
    let path = format!(
        "/api/v1/servers/{id}/metrics?start_time=2025-12-31T00:00:00Z&end_time=2026-01-02T00:00:00Z"
    );
    let found = user.get(&path, &token).await.json();
    assert_eq!(found["metrics"].as_array().map(Vec::len), Some(20));
    assert_eq!(found["metrics"][19]["n"], 19);
    let one = user.get(&format!("{path}&metric_type=custom.test&limit=1"), &token).await.json();
    assert_eq!(one["metrics"][0]["n"], 19);
    let step = user.get(&format!("{path}&step=1h"), &token).await.json();
    assert_eq!(step["metrics"].as_array().map(Vec::len), Some(1));
    let none = user.get(&format!("{path}&metric_type=sysstat"), &token).await.json();
    assert_eq!(none["metrics"], json!([]));
    assert!(clock::monotonic() - began < Duration::from_secs(20), "a push takes too long");
    for wrong in ["limit=0", "limit=x", "step=never", "start_time=yesterday"] {
        user.get(&format!("/api/v1/servers/{id}/metrics?{wrong}"), &token).await.refused(400);
    }
    for unknown in ["999", "x"] {
        let path = format!("/api/v1/servers/{unknown}/metrics");
        user.get(&path, &token).await.refused(404);
    }
}

/// An older collector nests its databases: one row for each.
#[tokio::test]
async fn nested_databases_become_rows_of_their_own() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let database = |name: &str| json!({"name": name, "size_bytes": 5, "tables": [], "indexes": []});
    let nested = json!({
        "type": "pg_stats", "timestamp": "2026-01-01T00:00:00Z",
        "databases": [database("a"), database("b")],
    });
    let reply = host.push(json!([nested])).await;
    assert_eq!(reply.json()["metrics_inserted"], 2, "{reply:?}");
    let stored = served.stored(None).await;
    let databases: Vec<_> = stored.iter().map(|m| m.database.as_deref()).collect();
    assert_eq!(databases, [Some("a"), Some("b")]);
}

/// The agent's words about itself are kept: its backlog, and each known hole once.
#[tokio::test]
async fn the_agents_report_is_kept() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let lost = json!([{
        "from": 5, "to": 9, "records": 4, "reason": "evict", "at": "2026-01-01T00:00:00Z",
        "first_at": "2025-12-31T22:00:00Z", "last_at": "2025-12-31T23:00:00Z",
    }]);
    let mut body = host.envelope(json!([]));
    body["agent"] = json!({
        "queue_id": "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", "config_version": 3,
        "clock_offset_ms": -250, "lost": lost,
        "backlog": {"segments": 2, "batches": 3, "records": 44, "bytes": 5000},
    });
    for _ in 0..2 {
        let reply = host.client.send(host.ask(json!([])).json(&body)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let token = served.user_token(Role::Viewer).await;
    let path = format!("/api/v1/collectors/{}", host.id);
    let collector = served.stranger().get(&path, &token).await.json();
    assert_eq!(collector["status"], "active");
    assert_eq!(collector["agent"]["backlog"]["records"], 44);
    assert_eq!(collector["agent"]["clock_offset_ms"], -250);
    let id = host.id.parse().expect("a UUID");
    let lost = served.running().store().lost(id, Page::first(10)).await.expect("lost");
    assert_eq!(lost.total, 1);
    assert_eq!((lost.rows[0].from, lost.rows[0].to, lost.rows[0].records), (5, 9, 4));
    let shown_id =
        served.running().store().servers(Page::first(1)).await.expect("servers").rows[0].id;
    let at = |query: &str| format!("/api/v1/servers/{shown_id}/metrics?{query}");
    let shown = "start_time=2025-12-31T00:00:00Z&end_time=2026-01-02T00:00:00Z";
    let shown = served.stranger().get(&at(shown), &token).await.json();
    let expected = json!([{
        "queue_id": "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", "from": 5, "to": 9, "records": 4,
        "reason": "evict", "at": "2026-01-01T00:00:00.000Z",
        "first_at": "2025-12-31T22:00:00.000Z", "last_at": "2025-12-31T23:00:00.000Z",
    }]);
    assert_eq!(shown["lost"], expected);
    let after = "start_time=2025-12-31T23:30:00Z&end_time=2026-01-02T00:00:00Z";
    let after = served.stranger().get(&at(after), &token).await.json();
    assert_eq!(after.get("lost"), None, "{after}");
    // A push without an agent object forgets nothing.
    host.push(json!([])).await;
    let collector = served.stranger().get(&path, &token).await.json();
    assert_eq!(collector["agent"]["backlog"]["records"], 44);
}

/// C38: a push of 400 metrics.
#[tokio::test]
async fn four_hundred_metrics_are_one_push() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let metrics: Vec<Value> = (0..400).map(metric).collect();
    let reply = host.push(json!(metrics)).await;
    assert_eq!(reply.json()["metrics_inserted"], 400, "{reply:?}");
    assert_eq!(stored_numbers(&served).await, (0..400).collect::<Vec<_>>());
}

/// The API answers in JSON where it knows no path or no method, and over HTTP/2 as well.
#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let served = Served::start().await;
    let client = served.stranger();
    assert_eq!(client.get("/nowhere", "x").await.refused(404), "not_found");
    assert_eq!(client.get("/api/v1/nowhere", "x").await.refused(404), "not_found");
    let reply = client.get("/api/v1/metrics/push", "x").await;
    assert_eq!(reply.refused(405), "method_not_allowed");
    assert_eq!(reply.header("allow"), "POST");
    let reply = client.with_http2().send(Ask::post("/version")).await;
    assert_eq!(reply.refused(405), "method_not_allowed");
}

/// Reading has a bound in bytes: the newest within it, and a word that older ones are left out.
#[tokio::test]
async fn an_answer_with_documents_has_a_bound() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let token = served.user_token(Role::Viewer).await;
    let text = "x".repeat(60_000);
    let now = clock::now();
    for push in 0..4 {
        let document = |n: i64| {
            let (kind, n) = ("disk_usage", 40 * push + n);
            let at = clock::rfc3339(now - jiff::SignedDuration::from_secs(20 * (159 - n)));
            json!({"type": kind, "timestamp": at, "n": n, "text": vec![&text; 4]})
        };
        let documents: Vec<Value> = (0..40).map(document).collect();
        assert_eq!(host.push(json!(documents)).await.json()["metrics_inserted"], 40);
    }
    let path = "/api/v1/servers/1/metrics?limit=10000";
    let end = clock::rfc3339(clock::now() + jiff::SignedDuration::from_secs(60));
    let path = format!("{path}&end_time={end}");
    let found = served.stranger().get(&path, &token).await;
    assert!((30 << 20..33 << 20).contains(&found.body.len()), "{} bytes", found.body.len());
    let found = found.json();
    assert_eq!(found["cut"], true);
    let metrics = found["metrics"].as_array().expect("metrics");
    assert_eq!(metrics.last().expect("one")["n"], 159);
    assert_eq!(metrics[0]["n"], 160 - metrics.len());
    let page = Client::plain(served.running().page_address().expect("there is a page"));
    let charts = page.get("/data/servers/1?range=1h", "x").await;
    assert_eq!((charts.status, &charts.json()["cut"]), (200, &json!(true)));
    let path = path.replace("limit=10000", "limit=5");
    let few = served.stranger().get(&path, &token).await.json();
    assert_eq!((few["metrics"].as_array().map(Vec::len), few.get("cut")), (Some(5), None));
}
