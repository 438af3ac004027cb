//! Original collectors, which send no `agent` object, are taken as they are: with times as
//! PostgreSQL writes them, `""` for what they do not know, and their newer types.

use std::time::Duration;

use pganalytics::backend::store::StoredMetric;
use pganalytics::metric::ORIGINAL_TYPES;
use serde_json::{Value, json};

use crate::backend_hostile::Spawned;
use crate::support::backend::{Ask, Host, Reply, Served};
use crate::support::until;

const AT: &str = "2026-01-01T00:00:00+00:00";

fn table(name: &str, last_vacuum: &str) -> Value {
    json!({"schema": "public", "name": name, "live_tuples": 5, "last_vacuum": last_vacuum,
        "last_analyze": "never"})
}

/// What one goes round with.
fn cycle() -> Vec<Value> {
    let mut cycle = vec![
        json!({"type": "sysstat", "timestamp": AT, "cpu": {"user": 1.5}}),
        json!({"type": "disk_usage", "timestamp": AT, "filesystems": [
            {"device": "/dev/sda1", "mount": "", "total_gb": 10.5},
            {"device": "/dev/sdb1", "mount": "/data", "total_gb": 5},
        ]}),
        json!({"type": "pg_stats", "timestamp": "2026-01-01 00:00:00+00", "database": "a",
            "tables": [table("t", "2025-11-28 04:58:43.476193+00"), table("u", "")]}),
        json!({"type": "pg_stats", "timestamp": AT, "databases": [
            {"name": "b", "size_bytes": 8, "tables": [table("t", "2025-11-28 06:58:43+02")]},
            {"name": "c", "size_bytes": 9, "tables": []},
        ]}),
        json!({"type": "pg_log", "timestamp": AT, "database": "a", "entries": [
            {"timestamp": "2025-11-28 04:58:43.476+00", "level": "LOG", "message": "m"}]}),
    ];
    let newer = ORIGINAL_TYPES.map(|kind| {
        json!({"type": kind, "timestamp": AT, "rows": [{"since": "2025-11-28 04:58:43+00"}]})
    });
    cycle.extend(newer);
    cycle
}

async fn push(host: &Host, change: impl FnOnce(&mut Value)) -> Reply {
    let mut body = host.envelope(json!(cycle()));
    change(&mut body);
    host.client.send(host.ask(json!([])).json(&body)).await
}

#[tokio::test]
async fn an_originals_cycle_is_stored() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let reply = push(&host, |body| {
        body["timestamp"] = json!("2026-01-01 00:00:00.25+00");
        body["metrics_count"] = json!(99);
        body.as_object_mut().expect("an object").remove("version");
    })
    .await;
    assert_eq!((reply.status, reply.json().get("rejected")), (200, None), "{reply:?}");
    // One of them is about two databases.
    assert_eq!(reply.json()["metrics_inserted"], cycle().len() + 1);
    let stored: Vec<Value> = served.stored(None).await.iter().map(document).collect();
    let of = |kind: &str| stored.iter().filter(|document| document["type"] == kind).collect();
    let [disks]: [&Value; 1] = Vec::try_into(of("disk_usage")).expect("one");
    let mounts = ["/dev/sda1", "/data"].map(Value::from);
    assert_eq!(
        [&disks["filesystems"][0]["mount"], &disks["filesystems"][1]["mount"]],
        mounts.each_ref()
    );
    let databases: Vec<&Value> = of("pg_stats");
    let mut vacuums: Vec<Value> = Vec::new();
    for database in &databases {
        assert_eq!(database["timestamp"], "2026-01-01T00:00:00.000Z");
        for table in database["tables"].as_array().expect("a list") {
            vacuums.push(table["last_vacuum"].clone());
            assert_eq!(table["last_analyze"], Value::Null);
        }
    }
    vacuums.sort_by_key(Value::to_string);
    assert_eq!(
        vacuums,
        [json!("2025-11-28T04:58:43.000Z"), json!("2025-11-28T04:58:43.476Z"), Value::Null]
    );
    let [log]: [&Value; 1] = Vec::try_into(of("pg_log")).expect("one");
    assert_eq!(log["entries"][0]["timestamp"], "2025-11-28T04:58:43.476Z");
    let [locks]: [&Value; 1] = Vec::try_into(of("pg_locks")).expect("one");
    assert_eq!(locks["rows"][0]["since"], "2025-11-28 04:58:43+00", "nobody declares it");
}

/// What loosens formats loosens no limit, and nothing for an agent of ours.
#[tokio::test]
async fn what_is_wrong_of_an_original_is_refused() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let rejected = |reply: Reply| -> Vec<String> {
        assert_eq!(reply.status, 200, "{reply:?}");
        let rejected = reply.json()["rejected"].as_array().cloned().unwrap_or_default();
        rejected.iter().map(|one| format!("{}: {}", one["index"], one["path"])).collect()
    };
    let bad = json!([
        {"type": "sysstat", "timestamp": "", "cpu": {}},
        {"type": "sysstat", "timestamp": AT, "cpu": {"user": 101}},
        {"type": "sysstat", "timestamp": "9999-01-01T00:00:00+00:00"},
        {"type": "pg_stats", "timestamp": AT, "database": "a", "tables": [table("t", "yesterday")]},
        {"type": "disk_usage", "timestamp": AT, "filesystems": [{"device": "", "mount": ""}]},
        {"type": "pg_more", "timestamp": AT},
        {"type": "sysstat", "timestamp": AT},
    ]);
    let reply = push(&host, |body| body["metrics"] = bad).await;
    let expected = [
        "0: \"timestamp\"",
        "1: \"cpu.user\"",
        "2: \"timestamp\"",
        "3: \"tables[0].last_vacuum\"",
        "4: \"filesystems[0].device\"",
        "5: \"type\"",
    ];
    assert_eq!(rejected(reply), expected);
    assert_eq!(served.stored(None).await.len(), 1);

    let agent = json!({"queue_id": uuid::Uuid::from_u128(7), "config_version": 0,
        "clock_offset_ms": 0, "lost": [],
        "backlog": {"segments": 0, "batches": 0, "records": 0, "bytes": 0}});
    let reply = push(&host, |body| body["agent"] = agent.clone()).await;
    assert_eq!(rejected(reply).len(), cycle().len());
    for field in ["version", "metrics"] {
        let reply = push(&host, |body| {
            body["agent"] = agent.clone();
            body.as_object_mut().expect("an object").remove(field);
        });
        assert_eq!(reply.await.refused(400), "bad_request");
    }
    let reply = push(&host, |body| body["metrics"] = Value::Null).await;
    assert_eq!((rejected(reply), served.stored(None).await.len()), (vec![], 1));
}

/// An original reads of no refusal: whoever runs the backend does, once for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_metrics_of_an_original_are_warned_of() {
    let backend = tokio::task::spawn_blocking(Spawned::start).await.expect("it starts");
    let host = backend.register("db1").await;
    let mut body = host.envelope.clone();
    body["metrics"] = json!([{"type": "sysstat", "timestamp": AT, "cpu": {"user": 101}}]);
    for _ in 0..3 {
        let ask = Ask::post("/api/v1/metrics/push").json(&body).bearer(&host.token);
        let reply = host.client.send(ask).await;
        assert_eq!((reply.status, &reply.json()["metrics_inserted"]), (200, &json!(0)));
    }
    let said = || -> Vec<String> {
        let log = backend.process.stderr();
        let said = |line: &&str| line.contains("WARN") && line.contains("metrics are refused");
        log.lines().filter(said).map(str::to_owned).collect()
    };
    until("it is said", Duration::from_secs(20), || !said().is_empty());
    let [line] = &said()[..] else { panic!("once: {:?}", said()) };
    assert!(line.contains("cpu.user") && line.contains("101"), "{line}");
}

fn document(metric: &StoredMetric) -> Value {
    serde_json::from_str(&metric.document).expect("JSON")
}
