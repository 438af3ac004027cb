//! What the backend says of its health: that it can store, not that it can read.

use std::time::Duration;

use pganalytics::clock;
use rusqlite::Connection;
use serde_json::json;

use crate::backend_store::postgres_url;
use crate::support::backend::{Reply, Served};
use crate::support::disk::Disk;
use crate::support::postgres::shared;
use crate::support::until_async;

fn database(served: &Served) -> Connection {
    Connection::open(served.config.data_dir.join("metrics.db")).expect("open the store")
}

async fn health(served: &Served) -> Reply {
    served.stranger().get("/api/v1/health", "x").await
}

/// Somebody holds the lock on writes: reads go on, and nothing can be stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_is_told() {
    let served = Served::start().await;
    let other = database(&served);
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let began = clock::monotonic();
    let (one, two) = tokio::join!(health(&served), health(&served));
    for reply in [one, two] {
        assert_eq!((reply.status, &reply.json()["database_ok"]), (503, &json!(false)));
        assert_eq!(reply.json()["status"], "error");
    }
    assert!(clock::monotonic() - began < Duration::from_secs(10), "each waits for itself");
    other.execute_batch("ROLLBACK").expect("unlock");
    until_async("it is healthy again", Duration::from_secs(20), async || {
        health(&served).await.status == 200
    })
    .await;
}

/// A store in PostgreSQL that may not be written, or whose tables are locked: both can be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_store_that_takes_nothing_is_told() {
    let url = postgres_url(15).await;
    let served = Served::start_with(|config| config.store = Some(url.clone())).await;
    let host = served.register("db1").await;
    assert_eq!((host.push(json!([])).await.status, health(&served).await.status), (200, 200));
    let name = url.split_once("@/").and_then(|(_, rest)| rest.split('?').next()).expect("a name");
    let postgres = shared(15);
    let becomes = async |status: u16| {
        until_async(&format!("health is {status}"), Duration::from_secs(30), async || {
            let reply = health(&served).await;
            let is_ok = json!(status == 200);
            reply.status == status && reply.json()["database_ok"] == is_ok
        })
        .await;
    };
    let read_only = async |word: &str| {
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = {word}");
        postgres.execute("postgres", &set).await;
        // Sessions that are open keep what they have begun with.
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        postgres.execute("postgres", &end).await;
    };
    read_only("on").await;
    becomes(503).await;
    read_only("off").await;
    becomes(200).await;
    assert_eq!(host.push(json!([])).await.status, 200);

    let other = postgres.client(name).await;
    let tables = "SELECT string_agg(quote_ident(relname), ', ') FROM pg_class
                   WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace";
    let tables: String = other.query_one(tables, &[]).await.expect("tables").get(0);
    let lock = format!("BEGIN; LOCK TABLE {tables} IN EXCLUSIVE MODE");
    other.batch_execute(&lock).await.expect("lock");
    becomes(503).await;
    other.batch_execute("ROLLBACK").await.expect("unlock");
    becomes(200).await;
    assert_eq!(host.push(json!([])).await.status, 200);
}

/// The disk is full: SQLite still reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told() {
    let Some(disk) = Disk::new(32) else { return };
    let place = disk.root();
    let mut served = Served::start_with(|config| config.data_dir = place.join("data")).await;
    let host = served.register("db1").await;
    assert_eq!(health(&served).await.status, 200);
    let mut files = Vec::new();
    for size in [1 << 20, 4096, 1] {
        while {
            let file = place.join(format!("fill-{}", files.len()));
            let written = std::fs::write(&file, vec![b'x'; size]);
            files.push(file);
            written.is_ok()
        } {}
    }
    until_async("pushes fail", Duration::from_secs(20), async || {
        host.push(json!([])).await.status == 503
    })
    .await;
    // Right after the failed push, and when that is long ago.
    assert_eq!(health(&served).await.status, 503);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(health(&served).await.status, 503);
    for file in files {
        let _ = std::fs::remove_file(file);
    }
    until_async("it is healthy again", Duration::from_secs(20), async || {
        health(&served).await.status == 200
    })
    .await;
    assert_eq!(host.push(json!([])).await.status, 200);
    served.stop().await;
}

/// However many ask: one write in five seconds, and none after a push.
#[tokio::test(flavor = "multi_thread")]
async fn all_who_ask_share_one_write() {
    let served = Served::start().await;
    let other = database(&served);
    let writes = || {
        let read = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        other.pragma_query_value(None, "user_version", read).expect("a number")
    };
    let before = writes();
    for _ in 0..5 {
        let (one, two) = tokio::join!(health(&served), health(&served));
        assert_eq!((one.status, two.status), (200, 200));
    }
    assert_eq!(writes(), before + 1);
    // A push says as much, and its own write is enough.
    let host = served.register("db1").await;
    for _ in 0..8 {
        assert_eq!(host.push(json!([])).await.status, 200);
        assert_eq!(health(&served).await.status, 200);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    assert_eq!(writes(), before + 1);
}
