//! The database goes away under the backend, and comes back.

use std::time::Duration;

use pganalytics::backend::store::Page;
use serde_json::json;

use crate::support::backend::Served;
use crate::support::postgres::Postgres;
use crate::support::until_async;

/// C56, C52: 503 with a time to come again, no words of the driver; afterwards the same push is
/// stored, once.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_loses_nothing() {
    let mut postgres = Postgres::start(15);
    let url = format!("postgres://postgres@/postgres?host={}", postgres.socket_dir().display());
    let served = Served::start_with(|config| config.store = Some(url)).await;
    let host = served.register("db1").await;
    let batch = |id: &str| {
        let at = "2026-01-01T00:00:00Z";
        let metric = json!({"type": "custom.test", "timestamp": at, "id": id});
        host.ask(json!([metric])).header("idempotency-key", id)
    };
    assert_eq!(host.client.send(batch("one")).await.json()["metrics_inserted"], 1);
    postgres.stop();
    for id in ["one", "two"] {
        let reply = host.client.send(batch(id)).await;
        assert_eq!(reply.refused(503), "store_unavailable");
        assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|wait| wait > 0));
        let text = String::from_utf8_lossy(&reply.body).to_lowercase();
        for word in ["socket", "postgres", "connect", "sql", "/tmp"] {
            assert!(!text.contains(word), "{text}");
        }
    }
    let health = served.stranger().get("/api/v1/health", "x").await;
    assert_eq!(health.status, 503);
    assert_eq!(
        (&health.json()["status"], &health.json()["database_ok"]),
        (&json!("error"), &json!(false))
    );
    assert_eq!(served.stranger().get("/version", "x").await.status, 200);
    postgres.resume();
    until_async("pushes are taken again", Duration::from_secs(20), async || {
        host.client.send(batch("two")).await.status == 200
    })
    .await;
    assert_eq!(host.client.send(batch("one")).await.json()["duplicate"], true);
    assert_eq!(host.client.send(batch("two")).await.json()["duplicate"], true);
    let id = host.id.parse().expect("a UUID");
    let store = served.running().store();
    let collector = store.collector(id, pganalytics::clock::now()).await.expect("collector");
    assert_eq!(collector.expect("there").metrics_total, 2);
    assert_eq!(store.servers(Page::first(10)).await.expect("servers").total, 1);
}
