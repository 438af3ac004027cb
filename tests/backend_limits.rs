//! What an agent says of itself, and documents over a limit: cut or refused by themselves, and
//! the sound metrics beside them stored.

use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::store::{Page, Role};
use pganalytics::clock;
use serde_json::{Value, json};

use crate::backend_store::postgres_url;
use crate::support::backend::{Host, Reply, Served};

const AT: &str = "2026-01-01T00:00:00Z";

fn metric(n: u64) -> Value {
    json!({"type": "custom.test", "timestamp": AT, "n": n})
}

/// A push of one metric with an `agent` object that differs from a sound one in this.
async fn push_with(host: &Host, n: u64, change: Value) -> Reply {
    let mut body = host.envelope(json!([metric(n)]));
    body["agent"] = json!({
        "queue_id": "6f6a7c1e-7d1b-4c0e-9d44-0a51f0a2a001", "config_version": 3,
        "clock_offset_ms": 0, "lost": [],
        "backlog": {"segments": 2, "batches": 3, "records": 44, "bytes": 5000},
    });
    let agent = body["agent"].as_object_mut().expect("an object");
    agent.extend(change.as_object().expect("an object").clone());
    host.client.send(host.ask(json!([])).json(&body)).await
}

fn loss(from: u64, reason: &str) -> Value {
    json!({"from": from, "to": from, "records": 1, "reason": reason, "at": AT})
}

/// Nothing in `agent` over a limit is a 4xx, which would send the records to the dead letters.
#[tokio::test]
async fn what_an_agent_says_of_itself_has_limits() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let token = served.user_token(Role::Viewer).await;
    let id = host.id.parse().expect("a UUID");
    let losses = async || {
        let store = served.running().store();
        store.lost(id, Page::first(1)).await.expect("lost").total
    };
    let mut sent = 0;
    let mut check = async |change: Value, cut: Value| {
        sent += 1;
        let reply = push_with(&host, sent, change).await;
        assert_eq!((reply.status, &reply.json()["metrics_inserted"]), (200, &json!(1)));
        let path = format!("/api/v1/collectors/{}", host.id);
        let shown = served.stranger().get(&path, &token).await;
        assert!(shown.body.len() < 8192, "{} bytes", shown.body.len());
        let report = shown.json()["agent"].clone();
        assert_eq!(report.get("cut").unwrap_or(&Value::Null), &cut, "{report}");
        report
    };
    check(json!({"config_error": "line 5"}), Value::Null).await;
    let long = "x".repeat(5 << 20);
    let change = json!({"config_error": long, "config_error_version": 4});
    let report = check(change, json!({"config_error_bytes": (5 << 20) - 4096})).await;
    assert_eq!(report["config_error"].as_str().map(str::len), Some(4096));
    let many: Vec<Value> = (0..30_000).map(|n| loss(n, "evict")).collect();
    check(json!({"lost": many}), json!({"lost": 29_000})).await;
    assert_eq!(losses().await, 1000);
    let reason = "r".repeat(1 << 20);
    let odd = json!([loss(90_000, &reason), loss(90_001, "corrupt"), loss(90_002, "else"), 5]);
    check(json!({"lost": odd}), json!({"lost": 3})).await;
    assert_eq!(losses().await, 1001);
    let report = check(json!({"clock_offset_ms": -1e15}), json!({"numbers": 1})).await;
    assert_eq!(report["clock_offset_ms"], 0);
    let wild = json!({"config_version": u64::MAX, "clock_offset_ms": i64::MIN});
    check(wild, json!({"numbers": 2})).await;
    let report = check(json!({"config_error": "a\0b"}), json!({"config_error_bytes": 1})).await;
    assert_eq!(report["config_error"], "ab");
    let late = json!({"segments": 0, "batches": 0, "records": 0, "bytes": 0,
        "oldest_at": "9999-12-31T23:59:59Z"});
    let report = check(json!({"backlog": late}), json!({"times": 1})).await;
    assert_eq!(report["backlog"].get("oldest_at"), None);
    check(json!({}), Value::Null).await;
    assert_eq!(served.stored(None).await.len(), 9);
}

/// A host may say that its clock is ahead, by as much as a clock may be, and its envelope says so,
/// too: then its metrics are taken, those of long before that clock are not. A number that no clock
/// has lets nothing past the bound.
#[tokio::test]
async fn an_offset_that_no_clock_has_is_not_believed() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let day = 86_400_000;
    let after = |days: i64| clock::now() + SignedDuration::from_hours(24 * days);
    let check = async |offset: Value, sent: Timestamp, at: Timestamp, inserted: u64| {
        let mut body =
            host.envelope(json!([{"type": "custom.test", "timestamp": clock::rfc3339(at)}]));
        body["timestamp"] = json!(clock::rfc3339(sent));
        body["agent"] = json!({
            "queue_id": uuid::Uuid::nil(), "config_version": 0, "clock_offset_ms": offset,
            "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
        });
        let reply = host.client.send(host.ask(json!([])).json(&body)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["metrics_inserted"], inserted, "{offset} {at}: {reply:?}");
    };
    let decade = 3_652;
    let ahead = json!(-decade * day);
    check(ahead.clone(), after(decade), after(decade), 1).await;
    check(ahead.clone(), after(decade), after(decade - 399), 1).await;
    check(ahead.clone(), after(decade), after(decade - 401), 0).await;
    check(ahead.clone(), after(decade), after(0), 1).await;
    check(ahead.clone(), after(decade), after(-100), 1).await;
    check(ahead.clone(), after(decade), after(decade + 2), 0).await;
    // The envelope's time and the offset do not agree.
    check(ahead.clone(), after(0), after(decade), 0).await;
    check(ahead, after(0), after(0), 1).await;
    let century = json!(-36_525 * day);
    check(century.clone(), after(0), after(34_000), 0).await;
    check(century, after(36_525), after(34_000), 0).await;
    for odd in [json!(-1_000_000_000_000_000_i64), json!(-1e15), json!(i64::MIN), json!(i64::MAX)] {
        check(odd, after(decade), after(decade), 0).await;
    }
}

/// What one store cannot hold, no store takes: the metric is refused and not the push, and a text
/// that an agent says harms nothing.
#[tokio::test]
async fn what_postgresql_cannot_hold_is_one_refusal() {
    let postgres = [postgres_url(10).await, postgres_url(18).await].map(Some);
    for store in [None].into_iter().chain(postgres) {
        let served = Served::start_with(|config| config.store.clone_from(&store)).await;
        let host = served.register("db1").await;
        let zeros = |count: usize| "0".repeat(count);
        let numbers = [
            ("1e-16383".to_owned(), true),
            ("1e-16384".to_owned(), false),
            ("-1.5e-16383".to_owned(), false),
            ("1e-20000".to_owned(), false),
            (format!("0.{}1", zeros(16_382)), true),
            (format!("0.{}1", zeros(16_383)), false),
            (format!("0.{}", zeros(20_000)), false),
            ("0e131071".to_owned(), true),
            ("0e131072".to_owned(), false),
            ("0e99999999999".to_owned(), false),
            ("1e308".to_owned(), true),
            ("-1e308".to_owned(), true),
            ("5e-324".to_owned(), true),
            (format!("{}.5", "9".repeat(308)), true),
        ];
        for (number, is_held) in numbers {
            let body = host.envelope(json!(["odd", metric(1)])).to_string();
            let odd = format!(r#"{{"type":"custom.x","timestamp":"{AT}","a":[{{"b":{number}}}]}}"#);
            let body = body.replacen("\"odd\"", &odd, 1);
            let reply = host.client.send(host.ask(json!([])).body(body)).await;
            let shown: String = number.chars().take(20).collect();
            assert_eq!(reply.status, 200, "{shown} {store:?}: {reply:?}");
            let answer = reply.json();
            assert_eq!(answer["metrics_inserted"], 1 + u64::from(is_held), "{shown}: {answer}");
            if !is_held {
                let rejected = &answer["rejected"][0];
                assert_eq!(rejected["path"], "a[0].b", "{rejected}");
                let message = rejected["message"].as_str().expect("text");
                assert!(message.contains("16383 digits after the point"), "{message}");
            }
        }
        let change = json!({"config_error": "line 5: \0", "config_error_version": 1});
        let reply = push_with(&host, 2, change).await;
        assert_eq!(reply.json()["metrics_inserted"], 1, "{store:?}: {reply:?}");
    }
}

/// What is said of refused metrics has a bound, in the answer and in the store. Whoever reads it
/// is not left with a part of it: it sends less at a time.
#[tokio::test]
async fn refusals_are_bounded() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let metrics = |bad: usize| {
        let bad = std::iter::repeat_n(json!(5), bad);
        json!(bad.chain([metric(1)]).collect::<Vec<_>>())
    };
    let answer = host.push(metrics(3_000)).await.json();
    assert_eq!(answer["metrics_inserted"], 1);
    assert_eq!(answer["rejected"].as_array().map(Vec::len), Some(1_000));
    assert_eq!(
        (&answer["rejected"][999]["index"], &answer["rejected_total"]),
        (&json!(999), &json!(3_000))
    );
    // Few, but long: the place of each is keys of 80 characters, 16 deep.
    let long = (0..16).fold(json!(0), |inner, _| json!({"k".repeat(80): inner}));
    let long = json!({"type": "custom.x", "timestamp": AT, "a": long});
    let one = host.push(json!([long])).await;
    assert!(one.json()["rejected"][0]["path"].as_str().is_some_and(|path| path.len() > 1_000));
    let many = json!(std::iter::repeat_n(long, 300).collect::<Vec<_>>());
    let reply = host.push(many.clone()).await;
    assert!(reply.body.len() < 400 << 10, "{} bytes", reply.body.len());
    assert_eq!(reply.json()["rejected_total"], 300);
    let with_key = |metrics: &Value| {
        host.ask(metrics.clone()).header("idempotency-key", &uuid::Uuid::new_v4().to_string())
    };
    assert_eq!(host.client.send(with_key(&many)).await.refused(413), "too_many_metrics");
    let reply = host.client.send(with_key(&metrics(1_001))).await;
    assert_eq!(reply.refused(413), "too_many_metrics");
    let answer = host.client.send(with_key(&metrics(1_000))).await.json();
    assert_eq!(answer["rejected"].as_array().map(Vec::len), Some(1_000));
    assert_eq!(answer.get("rejected_total"), None);
    let reply = host.push(json!(vec![5; 100_001])).await;
    assert_eq!(reply.refused(413), "too_many_metrics");
    assert_eq!(served.stored(None).await.len(), 2);
}

/// Readers differ in which of the two they take.
#[tokio::test]
async fn a_key_that_stands_twice_in_the_envelope_is_refused() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let body = host.envelope(json!([metric(1)])).to_string();
    for key in ["collector_id", "hostname", "timestamp", "version", "metrics", "agent"] {
        let twice = format!("{{\"agent\":null,\"{key}\":null,{}", &body[1..]);
        let reply = host.client.send(host.ask(json!([])).body(twice)).await;
        assert_eq!(reply.refused(400), "bad_request");
        assert_eq!(reply.json()["details"]["path"], key);
    }
    assert_eq!(served.stored(None).await.len(), 0);
}

/// A document that is too large, or whose readers would not agree, is refused by itself.
#[tokio::test]
async fn a_document_over_a_limit_harms_no_other() {
    let served = Served::start_with(|config| config.limits.document_bytes_max = 4096).await;
    let host = served.register("db1").await;
    let check = async |n: u64, odd: &str, path: &str, expected: &str| {
        let body = host.envelope(json!(["odd", metric(n)])).to_string();
        let body = body.replacen("\"odd\"", odd, 1);
        let reply = host.client.send(host.ask(json!([])).body(body)).await;
        assert_eq!((reply.status, &reply.json()["metrics_inserted"]), (200, &json!(1)));
        let rejected = reply.json()["rejected"].clone();
        assert_eq!((&rejected[0]["index"], &rejected[0]["path"]), (&json!(0), &json!(path)));
        let message = rejected[0]["message"].as_str().expect("text");
        assert!(message.contains(expected), "{message}");
    };
    let large = json!({"type": "custom.test", "timestamp": AT, "text": "x".repeat(4096)});
    check(1, &large.to_string(), "", "the limit is 4096").await;
    let twice =
        format!(r#"{{"type": "custom.test", "timestamp": "{AT}", "a": {{"b": 1, "\u0062": 2}}}}"#);
    check(2, &twice, "a", "a key stands twice").await;
    let twice = format!(r#"{{"type": "custom.a", "timestamp": "{AT}", "type": "custom.b"}}"#);
    check(3, &twice, "", "a key stands twice").await;
    assert_eq!(served.stored(None).await.len(), 3);
}

/// What stands beside the databases goes to each of them: a small text must not become a large
/// number of large ones.
#[tokio::test]
async fn a_split_makes_little_more_than_its_input() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let nested = |databases: usize, beside: usize| {
        let mut list = vec![json!({}); databases];
        list[0] = json!({"name": "a", "tables": [], "indexes": []});
        let text = "x".repeat(beside);
        json!([{"type": "pg_stats", "timestamp": AT, "text": text, "databases": list}, metric(1)])
    };
    for (databases, beside) in [(2_000, 60_000), (40_000, 100)] {
        let reply = host.push(nested(databases, beside)).await;
        assert_eq!(reply.json()["metrics_inserted"], 1, "{reply:?}");
        let rejected = reply.json()["rejected"][0].clone();
        assert_eq!(rejected["path"], "databases", "{rejected}");
    }
    let database = |n: usize| json!({"name": format!("d{n}"), "tables": [], "indexes": []});
    let sound: Vec<Value> = (0..500).map(database).collect();
    let sound = json!([{"type": "pg_stats", "timestamp": AT, "databases": sound}]);
    assert_eq!(host.push(sound).await.json()["metrics_inserted"], 500);
}
