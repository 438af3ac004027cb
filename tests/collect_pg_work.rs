//! What `pg_stats` says of the work of a whole server that must be arranged first: who waits for
//! whom, how far long commands are, and roles that see little of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::collect_pg_server::{Check, all, collect, collector, collector_of, hold, on};
use crate::support::postgres::{Postgres, majors};
use crate::support::until_async;

const LIMIT: Duration = Duration::from_secs(30);

const VACUUM_CHECKS: &[Check] = &[
    all("progress[].kind", "SELECT 'vacuum'"),
    all("progress[].pid", "SELECT pid FROM pg_stat_progress_vacuum"),
    all("progress[].database", "SELECT 'postgres'"),
    all("progress[].relation", "SELECT 'public.held'"),
    all("progress[].phase", "SELECT phase FROM pg_stat_progress_vacuum"),
    all("progress[].hidden", "SELECT NULL::bool"),
    all("progress[].unit", "SELECT 'blocks'"),
    all("progress[].done", "SELECT heap_blks_scanned FROM pg_stat_progress_vacuum"),
    all("progress[].total", "SELECT heap_blks_total FROM pg_stat_progress_vacuum"),
    all("progress[].index_vacuums", "SELECT index_vacuum_count FROM pg_stat_progress_vacuum"),
    on("progress[].indexes_total", "SELECT indexes_total FROM pg_stat_progress_vacuum", 17, 18),
    on("progress[].indexes_done", "SELECT indexes_processed FROM pg_stat_progress_vacuum", 17, 18),
    on("progress[].dead_tuples", "SELECT num_dead_tuples FROM pg_stat_progress_vacuum", 10, 16),
    on("progress[].dead_tuples", "SELECT num_dead_item_ids FROM pg_stat_progress_vacuum", 17, 18),
    on("progress[].dead_tuples_max", "SELECT max_dead_tuples FROM pg_stat_progress_vacuum", 10, 16),
    on(
        "progress[].dead_tuple_bytes",
        "SELECT dead_tuple_bytes FROM pg_stat_progress_vacuum",
        17,
        18,
    ),
    on(
        "progress[].dead_tuple_bytes_max",
        "SELECT max_dead_tuple_bytes FROM pg_stat_progress_vacuum",
        17,
        18,
    ),
    on("progress[].delay_s", "SELECT delay_time / 1000 FROM pg_stat_progress_vacuum", 18, 18),
];

const ANALYZE_CHECKS: &[Check] = &[
    on("progress[].kind", "SELECT 'analyze'", 13, 18),
    on("progress[].relation", "SELECT 'public.held'", 13, 18),
    on("progress[].phase", "SELECT 'computing statistics'", 13, 18),
    on("progress[].unit", "SELECT 'blocks'", 13, 18),
    on("progress[].done", "SELECT sample_blks_scanned FROM pg_stat_progress_analyze", 13, 18),
    on("progress[].total", "SELECT sample_blks_total FROM pg_stat_progress_analyze", 13, 18),
    on("progress[].delay_s", "SELECT delay_time / 1000 FROM pg_stat_progress_analyze", 18, 18),
];

const CREATE_INDEX_CHECKS: &[Check] = &[
    on("progress[].kind", "SELECT 'create_index'", 12, 18),
    on("progress[].database", "SELECT 'postgres'", 12, 18),
    on("progress[].relation", "SELECT 'public.held'", 12, 18),
    on("progress[].command", "SELECT 'CREATE INDEX'", 12, 18),
    on("progress[].phase", "SELECT 'building index: scanning table'", 12, 18),
    on("progress[].unit", "SELECT 'blocks'", 12, 18),
    on("progress[].done", "SELECT blocks_done FROM pg_stat_progress_create_index", 12, 18),
    on("progress[].total", "SELECT blocks_total FROM pg_stat_progress_create_index", 12, 18),
];

const CONCURRENTLY_CHECKS: &[Check] = &[
    on("progress[].command", "SELECT 'CREATE INDEX CONCURRENTLY'", 12, 18),
    on("progress[].phase", "SELECT phase FROM pg_stat_progress_create_index", 12, 18),
    on("progress[].unit", "SELECT 'lockers'", 12, 18),
    on("progress[].done", "SELECT 0", 12, 18),
    on("progress[].total", "SELECT 1", 12, 18),
];

const CLUSTER_CHECKS: &[Check] = &[
    on("progress[].kind", "SELECT 'cluster'", 12, 18),
    on("progress[].relation", "SELECT 'public.held'", 12, 18),
    on("progress[].command", "SELECT 'VACUUM FULL'", 12, 18),
    on("progress[].phase", "SELECT 'rebuilding index'", 12, 18),
    on("progress[].unit", "SELECT 'blocks'", 12, 18),
    on("progress[].done", "SELECT heap_blks_scanned FROM pg_stat_progress_cluster", 12, 18),
    on("progress[].total", "SELECT heap_blks_total FROM pg_stat_progress_cluster", 12, 18),
];

const COPY_CHECKS: &[Check] = &[
    on("progress[].kind", "SELECT 'copy'", 14, 18),
    on("progress[].relation", "SELECT 'public.copied'", 14, 18),
    on("progress[].command", "SELECT 'COPY FROM'", 14, 18),
    on("progress[].phase", "SELECT NULL::text", 14, 18),
    on("progress[].unit", "SELECT 'bytes'", 14, 18),
    on("progress[].done", "SELECT bytes_processed FROM pg_stat_progress_copy", 14, 18),
    on("progress[].total", "SELECT bytes_total FROM pg_stat_progress_copy", 14, 18),
];

const BASEBACKUP_CHECKS: &[Check] = &[
    on("progress[].kind", "SELECT 'basebackup'", 13, 18),
    on("progress[].pid", "SELECT pid FROM pg_stat_progress_basebackup", 13, 18),
    on("progress[].database", "SELECT NULL::text", 13, 18),
    on("progress[].phase", "SELECT phase FROM pg_stat_progress_basebackup", 13, 18),
    on("progress[].unit", "SELECT 'bytes'", 13, 18),
    on("progress[].done", "SELECT backup_streamed FROM pg_stat_progress_basebackup", 13, 18),
    on("progress[].total", "SELECT backup_total FROM pg_stat_progress_basebackup", 13, 18),
];

/// The checks of this file's tests.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    let progress = [
        VACUUM_CHECKS,
        ANALYZE_CHECKS,
        CREATE_INDEX_CHECKS,
        CONCURRENTLY_CHECKS,
        CLUSTER_CHECKS,
        COPY_CHECKS,
        BASEBACKUP_CHECKS,
    ];
    progress.into_iter().flatten()
}

/// Waits until `sql`, which counts, gives `count`.
async fn until_count(client: &Client, sql: &str, count: i64) {
    let is_so = async || client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0) == count;
    until_async(sql, LIMIT, is_so).await;
}

/// Runs `sql` in a session of its own, beside the test.
async fn beside(server: &Postgres, sql: &'static str) -> JoinHandle<()> {
    let client = server.client("postgres").await;
    tokio::spawn(async move { client.batch_execute(sql).await.expect("ends well") })
}

fn assert_no_error(server: &Postgres) {
    let log = fs_err::read_to_string(server.log_file()).expect("the log");
    let error = log.lines().find(|line| line.contains("ERROR"));
    assert_eq!(error, None, "on {}: {log}", server.major());
}

/// A chain behind a prepared transaction, and one who waits for both ends.
#[tokio::test]
async fn the_blocking_tree_has_its_roots_first() {
    for major in majors() {
        let server = Postgres::start_with(major, &[("max_prepared_transactions", "2")]);
        server.execute("postgres", "CREATE TABLE a (); CREATE TABLE b ()").await;
        let prepare = "BEGIN; LOCK TABLE a; PREPARE TRANSACTION 'p'";
        server.execute("postgres", prepare).await;
        let client = server.client("postgres").await;
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        let mut waiters = Vec::new();
        let locks = [
            "SET application_name = 'first'; BEGIN; LOCK TABLE b; LOCK TABLE a; COMMIT",
            "SET application_name = 'second'; BEGIN; LOCK TABLE b IN SHARE MODE; COMMIT",
        ];
        for (sql, count) in locks.into_iter().zip(1..) {
            waiters.push(beside(&server, sql).await);
            until_count(&client, waiting, count).await;
        }
        let mut collector = collector(&server);
        let document = collect(&mut collector).await;
        let blocking = &document["blocking"];
        let sessions = blocking["sessions"].as_array().expect("sessions");
        let seen: Vec<_> = sessions
            .iter()
            .map(|session| {
                let application = session["application"].as_str().unwrap_or("prepared");
                let number = |name: &str| session[name].as_u64();
                (application, number("depth"), number("waiting_behind"))
            })
            .collect();
        let expected = [
            ("prepared", Some(0), Some(2)),
            ("first", Some(1), Some(1)),
            ("second", Some(2), Some(0)),
        ];
        assert_eq!(seen, expected, "on {major}: {blocking}");
        assert_eq!(sessions[0]["pid"], 0);
        assert_eq!(sessions[1]["blocked_by"], serde_json::json!([0]));
        assert_eq!(sessions[2]["blocked_by"], serde_json::json!([sessions[1]["pid"]]));
        assert_eq!((&blocking["waiting"], &blocking["roots"]), (&2.into(), &1.into()));
        // Another database's relation is a number.
        let mut elsewhere = collector_in(&server, "template1", &[]);
        let document = collect(&mut elsewhere).await;
        let relation =
            document["blocking"]["sessions"][1]["relation"].as_str().expect("a relation");
        assert!(relation.parse::<u32>().is_ok(), "{relation}");
        client.batch_execute("ROLLBACK PREPARED 'p'").await.expect("ends");
        for waiter in waiters {
            waiter.await.expect("the lock in the end");
        }
        let document = collect(&mut collector).await;
        let nobody = serde_json::json!({"waiting": 0, "not_looked_at": 0, "roots": 0, "others": 0});
        assert_eq!(document["blocking"], nobody, "on {major}");
        assert_no_error(&server);
    }
}

fn collector_in(server: &Postgres, database: &str, databases: &[&str]) -> PgStatsCollector {
    PgStatsCollector::new(collector_config(server, database, databases))
}

fn collector_config(server: &Postgres, database: &str, databases: &[&str]) -> PgStatsConfig {
    let host = server.socket_dir().display().to_string();
    let (user, database) = ("postgres".to_owned(), database.to_owned());
    let connection = PgConnection { host, user, database, ..PgConnection::default() };
    let databases = databases.iter().map(ToString::to_string).collect();
    PgStatsConfig { connection, databases, ..PgStatsConfig::default() }
}

/// A function in an index holds each command up for as long as the test has the gate's lock.
const HELD: &str = "
    CREATE FUNCTION gate(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(1); RETURN i; END $$;
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(1); RETURN new; END $$;
    CREATE TABLE held AS SELECT generate_series(1, 2000) AS i;
    CREATE TABLE copied (i int);
    CREATE TRIGGER gate BEFORE INSERT ON copied FOR EACH ROW EXECUTE PROCEDURE gate()";

/// Each command is caught on its way, and its numbers are the view's.
#[tokio::test]
async fn progress_is_that_of_the_views() {
    for major in majors() {
        let server = Postgres::start_with(major, &[("autovacuum", "off")]);
        server.execute("postgres", HELD).await;
        let file = server.data_dir().join("copied");
        let export = format!("COPY held TO '{}'", file.display());
        server.execute("postgres", &export).await;
        let import: &'static str =
            Box::leak(format!("COPY copied FROM '{}'", file.display()).into_boxed_str());
        let client = server.client("postgres").await;
        let mut collector = collector(&server);
        let at_gate = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'";
        let held = [
            ("CREATE INDEX held_gate ON held (gate(i))", CREATE_INDEX_CHECKS),
            ("ANALYZE held", ANALYZE_CHECKS),
            ("VACUUM FULL held", CLUSTER_CHECKS),
            (import, COPY_CHECKS),
        ];
        for (command, checks) in held {
            client.batch_execute("SELECT pg_advisory_lock(1)").await.expect("the gate");
            let running = beside(&server, command).await;
            until_count(&client, at_gate, 1).await;
            hold(&mut collector, &client, checks, major).await;
            client.batch_execute("SELECT pg_advisory_unlock(1)").await.expect("opens");
            running.await.expect("ends");
        }

        // A vacuum that must freeze waits for who looks at a page. The rewrite has frozen all of
        // them.
        let anew = "TRUNCATE held; INSERT INTO held SELECT generate_series(1, 2000)";
        server.execute("postgres", anew).await;
        let reader = server.client("postgres").await;
        let look = "BEGIN; DECLARE c CURSOR FOR SELECT * FROM held; FETCH 1 FROM c";
        reader.batch_execute(look).await.expect("a pin");
        let running = beside(&server, "VACUUM (FREEZE) held").await;
        let pinned = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'BufferPin'";
        until_count(&client, pinned, 1).await;
        hold(&mut collector, &client, VACUUM_CHECKS, major).await;
        reader.batch_execute("COMMIT").await.expect("looks away");
        running.await.expect("ends");

        // An index that is made beside others waits for their transactions.
        reader
            .batch_execute("BEGIN; LOCK TABLE copied IN ROW EXCLUSIVE MODE")
            .await
            .expect("opens");
        let running = beside(&server, "CREATE INDEX CONCURRENTLY ON copied (i)").await;
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        until_count(&client, waits, 1).await;
        hold(&mut collector, &client, CONCURRENTLY_CHECKS, major).await;
        reader.batch_execute("COMMIT").await.expect("ends");
        running.await.expect("ends");
        let document = collect(&mut collector).await;
        assert_eq!(document["progress"], Value::Array(Vec::new()), "on {major}");

        assert_no_error(&server);
        if major >= 13 {
            let backup = stuck_backup(&server);
            let streaming = "SELECT count(*) FROM pg_stat_progress_basebackup
                              WHERE phase = 'streaming database files'";
            until_count(&client, streaming, 1).await;
            hold(&mut collector, &client, BASEBACKUP_CHECKS, major).await;
            drop(backup);
        }
    }
}

/// A base backup that nobody reads.
fn stuck_backup(server: &Postgres) -> UnixStream {
    let mut stream =
        UnixStream::connect(server.socket_dir().join(".s.PGSQL.5432")).expect("connect");
    let parameters = b"user\0postgres\0replication\0true\0\0";
    let length = u32::try_from(8 + parameters.len()).expect("short");
    let start = [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), parameters].concat();
    stream.write_all(&start).expect("start");
    let mut kind = [0];
    while kind != *b"Z" {
        let mut length = [0; 4];
        stream.read_exact(&mut kind).expect("a message");
        stream.read_exact(&mut length).expect("its length");
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut body).expect("its body");
    }
    let command: &[u8] = match server.major() {
        15.. => b"BASE_BACKUP (PROGRESS, CHECKPOINT 'fast')\0",
        _ => b"BASE_BACKUP PROGRESS FAST\0",
    };
    let length = u32::try_from(4 + command.len()).expect("short");
    stream.write_all(&[b"Q", &length.to_be_bytes()[..], command].concat()).expect("ask");
    stream
}

/// A role without rights is told so, and the server's log has no error of it.
#[tokio::test]
async fn what_a_role_may_not_see_has_a_reason() {
    for major in majors() {
        let server = Postgres::start(major);
        let roles = "CREATE ROLE blind LOGIN; \
                     CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor";
        server.execute("postgres", roles).await;
        let holder = server.client("postgres").await;
        holder.batch_execute("BEGIN; LOCK TABLE pg_description").await.expect("locks");
        let waiting = beside(&server, "BEGIN; LOCK TABLE pg_description; COMMIT").await;
        let client = server.client("postgres").await;
        until_count(&client, "SELECT count(*) FROM pg_locks WHERE NOT granted", 1).await;
        let mut blind = collector_of(&server, "blind");
        let seen = collect(&mut blind).await;
        let sessions = seen["blocking"]["sessions"].as_array().expect("sessions");
        assert_eq!(sessions.len(), 2, "on {major}: {}", seen["blocking"]);
        for session in sessions {
            assert_eq!(session["hidden"], true, "on {major}: {session}");
            assert_eq!((session.get("state"), session.get("transaction_s")), (None, None));
        }

        let mut monitor = collector_of(&server, "monitor");
        let seen = collect(&mut monitor).await;
        assert_eq!(seen["blocking"]["sessions"][0].get("hidden"), None);
        assert_eq!(seen["blocking"]["sessions"][0]["state"], "idle in transaction");
        holder.batch_execute("ROLLBACK").await.expect("ends");
        waiting.await.expect("the lock in the end");
        assert_no_error(&server);
    }
}
