//! One collector with many connections, or many readers, beside others: they have their part, and
//! wait for themselves.

use std::time::Duration;

use http::Method;
use pganalytics::backend::store::Role;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use crate::backend_store::postgres_url;
use crate::support::backend::{Ask, Host, Served};
use crate::support::hostile::Target;
use crate::support::until_async;

const PATIENCE: Duration = Duration::from_secs(60);
/// Connections of the greedy collector.
const CONNECTIONS: usize = 64;

fn metrics() -> Value {
    json!([{"type": "custom.test", "timestamp": "2026-01-01T00:00:00Z", "n": 1}])
}

/// Sessions of the database that wait for a lock.
async fn waiting(client: &Client) -> i64 {
    // Within a transaction, what is shown of the others is what it was.
    client.batch_execute("SELECT pg_stat_clear_snapshot()").await.expect("a new look");
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
    client.query_one(waiting, &[]).await.expect("count").get(0)
}

/// Bodies that do not end take one collector's part of the room, not the others'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_bodies_of_one_collector_leave_room() {
    let served = Served::start_with(|config| {
        config.limits.bodies_bytes_max = 8 << 20;
        config.limits.connections_per_collector_max = 2 * CONNECTIONS;
    })
    .await;
    let host = served.register("db1").await;
    let answer = served.try_register(&json!({"name": "greedy", "hostname": "greedy"})).await.json();
    let text = |key: &str| answer[key].as_str().expect(key);
    let (running, own) = (served.running(), (text("certificate"), text("private_key")));
    let target = Target::verified(running.address(), running.ca_certificate(), own);
    let mut begun = Vec::new();
    for path in ["metrics/push", "collectors/renew-certificate"] {
        for _ in 0..CONNECTIONS {
            let head = format!(
                "POST /api/v1/{path} HTTP/1.1\r\nhost: localhost\r\n\
                 authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{{",
                text("token"),
                256 << 10
            );
            begun.push(target.half_a_body(&head, 0).await.expect("a connection"));
        }
        let reply = host.push(metrics()).await;
        assert_eq!(reply.status, 200, "beside {path}: {reply:?}");
    }
}

/// Pushes that the store keeps waiting hold one collector's part of the turns, not the others'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_pushes_of_one_collector_leave_turns() {
    let url = postgres_url(18).await;
    let served = Served::start_with(|config| {
        config.store = Some(url.clone());
        config.limits.connections_per_collector_max = 2 * CONNECTIONS;
    })
    .await;
    let (host, greedy) = (served.register("db1").await, served.register("greedy").await);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connect");
    tokio::spawn(connection);
    // Its row is not to be had: what it pushes waits in the store.
    let lock = format!("BEGIN; SELECT 1 FROM collectors WHERE id = '{}' FOR UPDATE", greedy.id);
    client.batch_execute(&lock).await.expect("lock");
    let mut pushes = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let greedy: Host = greedy.clone();
        pushes.spawn(async move { greedy.push(metrics()).await.status });
    }
    until_async("its pushes wait in the store", PATIENCE, async || waiting(&client).await >= 4)
        .await;
    for _ in 0..8 {
        let reply = host.push(metrics()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    client.batch_execute("ROLLBACK").await.expect("unlock");
    let statuses = pushes.join_all().await;
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
}

/// What people read waits in the store, and holds no connection that a push needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reads_leave_connections() {
    let url = postgres_url(18).await;
    let served = Served::start_with(|config| config.store = Some(url.clone())).await;
    let host = served.register("db1").await;
    let token = served.user_token(Role::Viewer).await;
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connect");
    tokio::spawn(connection);
    // Collectors are listed with what this table says of them; pushes have no need of it.
    let lock = "BEGIN; LOCK TABLE names IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await.expect("lock");
    let mut reads = JoinSet::new();
    for _ in 0..32 {
        let (stranger, token) = (served.stranger(), token.clone());
        let ask = Ask::new(Method::GET, "/api/v1/collectors").bearer(&token);
        reads.spawn(async move { stranger.send(ask).await.status });
    }
    until_async("they wait in the store", PATIENCE, async || waiting(&client).await >= 8).await;
    for _ in 0..8 {
        let reply = host.push(metrics()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    client.batch_execute("ROLLBACK").await.expect("unlock");
    let statuses = reads.join_all().await;
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
}

/// Viewers who do not read their answers, over either protocol, hold their part of the room for a
/// time: another one reads beside one of them, and after the deadline beside many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_answers_lock_no_reader_out() {
    const PATH: &str =
        "/api/v1/servers/1/metrics?metric_type=custom.big&start_time=2026-01-01T00:00:00Z";
    /// Texts of a document, and the characters of each.
    const TEXTS: [usize; 2] = [63, 55_000];
    let served = Served::start_with(|config| {
        config.limits.write_timeout = Duration::from_secs(5);
        config.limits.attempts_per_minute = 100;
    })
    .await;
    let host = served.register("db1").await;
    let texts = vec!["x".repeat(TEXTS[1]); TEXTS[0]];
    let big = |second: u32| {
        let at = format!("2026-01-01T00:00:0{second}Z");
        json!({"type": "custom.big", "timestamp": at, "texts": texts})
    };
    let reply = host.push(json!([big(1), big(2), big(3)])).await;
    assert_eq!(reply.json()["metrics_inserted"], 3, "{reply:?}");
    let running = served.running();
    let target = Target::new(running.address(), running.ca_certificate());
    let token = served.user_token(Role::Viewer).await;
    let read = async || {
        let reply = served.stranger().get(PATH, &token).await;
        assert_eq!(reply.status, 200, "{:?}", reply.headers);
        assert!(reply.body.len() > 3 * TEXTS[0] * TEXTS[1], "{} bytes", reply.body.len());
    };
    let mut unread = Vec::new();
    for n in 0..4 {
        let name = format!("greedy-{n}");
        served.add_user(&name, Role::Viewer).await;
        let login = served.login(&name).await;
        let greedy = login["token"].as_str().expect("a token");
        if n % 2 == 0 {
            unread.push(target.ask_without_window(PATH, greedy, 4).await.expect("it asks"));
        } else {
            for _ in 0..4 {
                unread.push(target.ask_and_not_read(PATH, greedy).await.expect("it asks"));
            }
        }
        if n == 0 {
            read().await;
        }
    }
    read().await;
    drop(unread);
}
