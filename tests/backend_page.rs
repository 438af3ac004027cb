//! The page on loopback: what it shows, and to whom.

use http::Method;
use pganalytics::clock;
use serde_json::{Value, json};

use crate::support::backend::{Ask, Client, Served};

fn page(served: &Served) -> Client {
    Client::plain(served.running().page_address().expect("there is a page"))
}

async fn get(client: &Client, path: &str) -> Value {
    let reply = client.get(path, "x").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// One file with everything in it, and a policy that lets nothing else run.
#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let served = Served::start().await;
    let reply = page(&served).get("/", "x").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "text/html; charset=utf-8"));
    let text = std::str::from_utf8(&reply.body).expect("UTF-8");
    for outside in ["src=", "@import", "{{"] {
        assert!(!text.contains(outside), "{outside}");
    }
    let policy = reply.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

/// What a browser needs to be told, with every answer of the page and of the API.
#[tokio::test]
async fn every_answer_is_shielded() {
    let served = Served::start().await;
    let foreign = Ask::new(Method::GET, "/").header("host", "evil.example.com");
    let answers = [
        page(&served).get("/", "x").await,
        page(&served).get("/data/overview", "x").await,
        page(&served).get("/nowhere", "x").await,
        page(&served).send(foreign).await,
        served.stranger().get("/api/v1/collectors", "x").await,
        served.stranger().get("/version", "x").await,
    ];
    for answer in answers {
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(answer.header(name), value, "{name}: {answer:?}");
        }
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    }
}

/// A page of another site that points its own name here is turned away.
#[tokio::test]
async fn only_loopback_names_are_answered() {
    let served = Served::start().await;
    let client = page(&served);
    for path in ["/", "/data/overview", "/nowhere"] {
        for foreign in ["evil.example.com", "127.0.0.1.evil.com", "localhost.evil.com:8081"] {
            let reply = client.send(Ask::new(Method::GET, path).header("host", foreign)).await;
            assert_eq!(reply.refused(403), "foreign_host");
        }
    }
    for own in ["localhost:8081", "127.0.0.1", "[::1]:1"] {
        let reply = client.send(Ask::new(Method::GET, "/data/overview").header("host", own)).await;
        assert_eq!(reply.status, 200, "{own}");
    }
    assert_eq!(client.get("/nowhere", "x").await.refused(404), "not_found");
    client.send(Ask::post("/data/overview")).await.refused(405);
    // The page's port has nothing of the API.
    client.get("/api/v1/health", "x").await.refused(404);
}

/// Who is on the host sees the page without a login, and no log line on it.
#[tokio::test]
async fn the_page_asks_for_no_login_and_shows_no_log() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let at = clock::rfc3339(clock::now());
    let entry = json!({"timestamp": at, "level": "ERROR", "message": "geheim7"});
    let log = json!([
        {"type": "pg_log", "timestamp": at, "database": "geheim7", "entries": [entry]},
    ]);
    assert_eq!(host.push(log).await.json()["metrics_inserted"], 1);
    let client = page(&served);
    for path in ["/", "/data/overview", "/data/servers/1"] {
        let reply = client.send(Ask::new(Method::GET, path)).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(!String::from_utf8_lossy(&reply.body).contains("geheim7"), "{path}: {reply:?}");
    }
}

/// Nothing yet; then an agent; then its numbers.
#[tokio::test]
async fn agents_and_their_numbers_are_shown() {
    let served = Served::start().await;
    let client = page(&served);
    let empty = get(&client, "/data/overview").await;
    assert_eq!((&empty["agents"], &empty["servers"]), (&json!([]), &json!([])));
    let host = served.register("db1").await;
    let one = get(&client, "/data/overview").await;
    assert_eq!(one["agents"][0]["status"], "registered");
    let now = clock::now();
    let at = clock::rfc3339(now);
    let before = |minutes| clock::rfc3339(now - jiff::SignedDuration::from_mins(minutes));
    let filesystem = json!({
        "device": "/dev/sda1", "mount": "/", "total_gb": 10.0, "used_gb": 4.0, "free_gb": 6.0,
        "percent_used": 40.0,
    });
    let disk = json!({
        "device": "sda", "read_iops": 1, "write_iops": 1, "read_mb_s": 1.5, "write_mb_s": 2.5,
        "read_ops": 1, "write_ops": 1, "read_sectors": 1, "write_sectors": 1,
    });
    let metrics = json!([
        {"type": "sysstat", "timestamp": at, "cpu": {"user": 12.5, "load_1m": 0.5, "cores": 4},
         "memory": {"total_mb": 1000, "used_mb": 400, "cached_mb": 100}, "disk_io": [disk]},
        {"type": "disk_usage", "timestamp": at, "filesystems": [filesystem]},
        {"type": "pg_stats", "timestamp": at, "database": "app", "size_bytes": 5000,
         "tables": [], "indexes": []},
    ]);
    let mut body = host.envelope(metrics);
    body["agent"] = json!({
        "queue_id": uuid::Uuid::nil(), "config_version": 0, "clock_offset_ms": 30,
        "backlog": {"segments": 0, "batches": 0, "records": 7, "bytes": 5},
        "lost": [
            {"from": 1, "to": 1, "records": 1, "reason": "corrupt", "at": at},
            {"from": 2, "to": 4, "records": 3, "reason": "evict", "at": at,
             "first_at": before(30), "last_at": before(20)},
            {"from": 5, "to": 5, "records": 1, "reason": "evict", "at": at,
             "first_at": before(90), "last_at": before(80)},
        ],
    });
    let reply = host.client.send(host.ask(json!([])).json(&body)).await;
    assert_eq!(reply.json()["metrics_inserted"], 3, "{reply:?}");
    let two = get(&client, "/data/overview").await;
    let agent = &two["agents"][0];
    assert_eq!((&agent["status"], &agent["metrics_24h"]), (&json!("active"), &json!(3)));
    assert_eq!(agent["report"]["backlog"]["records"], 7);
    let shown_id = &two["servers"][0]["id"];
    let shown = get(&client, &format!("/data/servers/{shown_id}?range=1h")).await;
    let charts = &shown["charts"];
    let last = |chart: &str, line: usize| charts[chart][line]["points"][0][1].as_f64();
    assert_eq!((last("cpu", 0), last("load", 0)), (Some(12.5), Some(0.5)));
    assert_eq!(last("memory", 0), Some(400.0 * f64::from(1 << 20)));
    assert_eq!(
        (last("disk_io", 0), &charts["disk_io"][0]["name"]),
        (Some(2.5), &json!("sda write"))
    );
    assert_eq!(charts["mounts"][0]["percent"], 40.0);
    assert_eq!((last("databases", 0), &charts["cores"]), (Some(5000.0), &json!(4.0)));
    let spans: Vec<_> = shown["lost"].as_array().expect("holes").iter().collect();
    let span = |n: usize| spans[n]["to"].as_i64().zip(spans[n]["from"].as_i64());
    let lengths: Vec<_> = (0..spans.len()).map(|n| span(n).map(|(to, from)| to - from)).collect();
    assert_eq!(lengths, [Some(600_000), Some(0)], "{spans:?}");
    for wrong in ["range=x", "range=0s", "range=400d"] {
        client.get(&format!("/data/servers/{shown_id}?{wrong}"), "x").await.refused(400);
    }
    client.get("/data/servers/999", "x").await.refused(404);
}
