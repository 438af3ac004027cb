//! What an agent says of itself, and documents over a limit: cut or refused by themselves, and
//! the sound metrics beside them stored.

use pganalytics::backend::store::{Page, Role};
use serde_json::{Value, json};

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
    check(json!({}), Value::Null).await;
    assert_eq!(served.stored(None).await.len(), 7);
}

/// A host may say that its clock is ahead, by as much as a clock may be; a number that no clock
/// has lets nothing past the bound.
#[tokio::test]
async fn an_offset_that_no_clock_has_is_not_believed() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let check = async |offset: Value, year: u64, inserted: u64| {
        let mut body = host.envelope(json!([
            {"type": "custom.test", "timestamp": format!("{year}-01-01T00:00:00Z")},
        ]));
        body["agent"] = json!({
            "queue_id": uuid::Uuid::nil(), "config_version": 0, "clock_offset_ms": offset,
            "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0},
        });
        let reply = host.client.send(host.ask(json!([])).json(&body)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["metrics_inserted"], inserted, "{offset} {year}: {reply:?}");
    };
    let decade = -315_576_000_000_i64;
    check(json!(decade), 2035, 1).await;
    check(json!(decade), 9999, 0).await;
    check(json!(-1_000_000_000_000_000_i64), 9999, 0).await;
    check(json!(-1e15), 9999, 0).await;
    check(json!(-1e15), 2035, 0).await;
    check(json!(i64::MIN), 9999, 0).await;
    check(json!(i64::MAX), 9999, 0).await;
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
    check(2, &twice, "", "a key stands twice").await;
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
    for (databases, beside) in [(2_000, 60_000), (300_000, 10)] {
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
