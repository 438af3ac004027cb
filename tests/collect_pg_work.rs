//! What `pg_stats` says of the work of a whole server that must be arranged first: who waits for
//! whom, how far long commands are, subscriptions, changed settings, statements, and roles that
//! see little of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
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

const SUBSCRIPTION_CHECKS: &[Check] = &[
    all("subscriptions[].database", "SELECT 'subscriber'"),
    all("subscriptions[].name", "SELECT 'sub'"),
    all("subscriptions[].state", "SELECT 'running'"),
    all("subscriptions[].syncing", "SELECT 0"),
    all(
        "subscriptions[].behind_bytes",
        "SELECT received_lsn - latest_end_lsn FROM pg_stat_subscription",
    ),
    all(
        "subscriptions[].behind_s",
        "SELECT CASE WHEN received_lsn > latest_end_lsn
                     THEN extract(epoch FROM clock_timestamp() - latest_end_time) ELSE 0 END
           FROM pg_stat_subscription",
    ),
    all(
        "subscriptions[].last_message_at",
        "SELECT last_msg_receipt_time FROM pg_stat_subscription",
    ),
    on(
        "subscriptions[].apply_errors",
        "SELECT apply_error_count FROM pg_stat_subscription_stats",
        15,
        18,
    ),
    on(
        "subscriptions[].sync_errors",
        "SELECT sync_error_count FROM pg_stat_subscription_stats",
        15,
        18,
    ),
    on(
        "subscriptions[].conflicts_insert_exists",
        "SELECT confl_insert_exists FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_update_origin_differs",
        "SELECT confl_update_origin_differs FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_update_exists",
        "SELECT confl_update_exists FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_update_missing",
        "SELECT confl_update_missing FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_delete_origin_differs",
        "SELECT confl_delete_origin_differs FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_delete_missing",
        "SELECT confl_delete_missing FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on(
        "subscriptions[].conflicts_multiple_unique",
        "SELECT confl_multiple_unique_conflicts FROM pg_stat_subscription_stats",
        18,
        18,
    ),
    on("subscriptions[].stats_reset", "SELECT stats_reset FROM pg_stat_subscription_stats", 15, 18),
];

/// Of a statement that has run since the last collection, and not before.
const STATEMENT_CHECKS: &[Check] = &[
    all("statements.status", "SELECT 'ok'"),
    all("statements.found_in", "SELECT current_database()"),
    all(
        "statements.version",
        "SELECT extversion FROM pg_extension WHERE extname = 'pg_stat_statements'",
    ),
    all("statements.entries", "SELECT count(*) FROM pg_stat_statements"),
    all("statements.not_read", "SELECT 0"),
    all("statements.hidden", "SELECT 0"),
    on("statements.deallocations", "SELECT dealloc FROM pg_stat_statements_info", 14, 18),
    on("statements.stats_reset", "SELECT stats_reset FROM pg_stat_statements_info", 14, 18),
    all("statements.list[].database", "SELECT 'postgres'"),
    all("statements.list[].user", "SELECT 'postgres'"),
    all("statements.list[].query_id", "SELECT queryid::text FROM counted"),
    on("statements.list[].level", "SELECT 'top'", 14, 18),
    all("statements.list[].query", "SELECT NULL::text"),
    all("statements.list[].calls", "SELECT calls FROM counted"),
    on(
        "statements.list[].exec_s",
        "SELECT round(total_time * 1000)::float8 / 1e6 FROM counted",
        10,
        12,
    ),
    on(
        "statements.list[].exec_s",
        "SELECT round(total_exec_time * 1000)::float8 / 1e6 FROM counted",
        13,
        18,
    ),
    on("statements.list[].plans", "SELECT plans FROM counted", 13, 18),
    on(
        "statements.list[].plan_s",
        "SELECT round(total_plan_time * 1000)::float8 / 1e6 FROM counted",
        13,
        18,
    ),
    all("statements.list[].rows", "SELECT rows FROM counted"),
    all("statements.list[].shared_blocks_hit", "SELECT shared_blks_hit FROM counted"),
    all("statements.list[].shared_blocks_read", "SELECT shared_blks_read FROM counted"),
    all("statements.list[].shared_blocks_dirtied", "SELECT shared_blks_dirtied FROM counted"),
    all("statements.list[].shared_blocks_written", "SELECT shared_blks_written FROM counted"),
    all("statements.list[].local_blocks_read", "SELECT local_blks_read FROM counted"),
    all("statements.list[].local_blocks_written", "SELECT local_blks_written FROM counted"),
    all("statements.list[].temp_blocks_read", "SELECT temp_blks_read FROM counted"),
    all("statements.list[].temp_blocks_written", "SELECT temp_blks_written FROM counted"),
    on(
        "statements.list[].read_s",
        "SELECT round(blk_read_time * 1000)::float8 / 1e6 FROM counted",
        10,
        16,
    ),
    on(
        "statements.list[].read_s",
        "SELECT round((shared_blk_read_time + local_blk_read_time) * 1000)::float8 / 1e6
           FROM counted",
        17,
        18,
    ),
    on(
        "statements.list[].write_s",
        "SELECT round(blk_write_time * 1000)::float8 / 1e6 FROM counted",
        10,
        16,
    ),
    on(
        "statements.list[].write_s",
        "SELECT round((shared_blk_write_time + local_blk_write_time) * 1000)::float8 / 1e6
           FROM counted",
        17,
        18,
    ),
    on("statements.list[].wal_records", "SELECT wal_records FROM counted", 13, 18),
    on("statements.list[].wal_full_page_images", "SELECT wal_fpi FROM counted", 13, 18),
    on("statements.list[].wal_bytes", "SELECT wal_bytes FROM counted", 13, 18),
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
    progress.into_iter().flatten().chain(SUBSCRIPTION_CHECKS).chain(STATEMENT_CHECKS)
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

/// One database subscribes to another of the same server.
#[tokio::test]
async fn subscriptions_are_those_of_the_server() {
    for major in majors() {
        let server = Postgres::start_with(major, &[("wal_level", "logical")]);
        server
            .execute("postgres", "CREATE TABLE t (i int); CREATE PUBLICATION p FOR TABLE t")
            .await;
        let slot = "SELECT pg_create_logical_replication_slot('s', 'pgoutput')";
        server.execute("postgres", slot).await;
        server.execute("postgres", "CREATE DATABASE subscriber").await;
        let from = server.connection("postgres");
        let subscribe = format!(
            "CREATE TABLE t (i int); CREATE SUBSCRIPTION sub CONNECTION '{from}' PUBLICATION p
             WITH (create_slot = false, slot_name = 's', copy_data = false)"
        );
        for statement in subscribe.split("; ") {
            server.execute("subscriber", statement).await;
        }
        server.execute("postgres", "INSERT INTO t SELECT generate_series(1, 1000)").await;
        let theirs = server.client("subscriber").await;
        until_count(&theirs, "SELECT count(*) FROM t", 1_000).await;
        let client = server.client("postgres").await;
        hold(&mut collector(&server), &client, SUBSCRIPTION_CHECKS, major).await;
        theirs.batch_execute("ALTER SUBSCRIPTION sub DISABLE").await.expect("stops");
        until_count(&client, "SELECT count(pid) FROM pg_stat_subscription", 0).await;
        let document = collect(&mut collector(&server)).await;
        assert_eq!(document["subscriptions"][0]["state"], "disabled", "on {major}");
        assert_eq!(document["subscriptions"][0].get("behind_bytes"), None);
        assert_no_error(&server);
    }
}

/// What changes is told until it is in the queue; what may hold a password never leaves.
#[tokio::test]
async fn a_changed_setting_is_told_and_a_secret_is_not() {
    for major in majors() {
        let server = Postgres::start_with(major, &[("archive_mode", "on")]);
        let client = server.client("postgres").await;
        let mut collector = collector(&server);
        let document = collect(&mut collector).await;
        collector.committed();
        let value = |document: &Value, name: &str| {
            let list = document["settings"]["list"].as_array().expect("settings").clone();
            list.into_iter().find(|setting| setting["name"] == name).expect("listed")["value"]
                .clone()
        };
        assert_eq!(value(&document, "archive_command"), "not set", "on {major}");
        assert_eq!(document["settings"].get("changes"), None);
        for set in ["work_mem = '5MB'", "archive_command = 'true hush'", "max_connections = 60"] {
            client.batch_execute(&format!("ALTER SYSTEM SET {set}")).await.expect("set");
        }
        client.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
        let seen = "SELECT count(*) FROM pg_settings WHERE name = 'work_mem' AND setting = '5120'";
        until_count(&client, seen, 1).await;
        let told = |document: &Value| -> Vec<Value> {
            let changes = document["settings"]["changes"].as_array().cloned().unwrap_or_default();
            let change = |c: Value| serde_json::json!([c["name"], c["from"], c["to"]]);
            changes.into_iter().map(change).collect()
        };
        let expected = [
            serde_json::json!(["archive_command", "not set", "set"]),
            serde_json::json!(["work_mem", "4096", "5120"]),
        ];
        // The agent's session takes the new values a moment later.
        let all_seen = async {
            loop {
                let document = collect(&mut collector).await;
                if told(&document).len() == 2 {
                    return document;
                }
            }
        };
        let document = tokio::time::timeout(LIMIT, all_seen).await.expect("both are seen");
        assert_eq!(told(&document), expected, "on {major}");
        assert!(!document.to_string().contains("hush"), "{document}");
        assert_eq!(value(&document, "archive_command"), "set");
        assert_eq!(document["settings"]["pending_restart"], 1, "max_connections");
        // It was not committed.
        assert_eq!(told(&collect(&mut collector).await), expected, "on {major}");
        collector.committed();
        assert_eq!(told(&collect(&mut collector).await), [Value::Null; 0], "on {major}");
        assert_no_error(&server);
    }
}

const LOADED: &[(&str, &str)] = &[("shared_preload_libraries", "pg_stat_statements")];

/// The counts of a list of statements or of one sum.
fn counts(part: &Value, name: &str) -> f64 {
    match part {
        Value::Array(list) => list.iter().map(|element| counts(element, name)).sum(),
        part => part[name].as_f64().unwrap_or(0.0),
    }
}

/// By the version of the extension; the sums are exact, and the agent is not in them.
#[tokio::test]
async fn statements_are_those_of_the_extension() {
    for major in majors() {
        let server = Postgres::start_with(major, LOADED);
        server.execute("postgres", "CREATE TABLE counted (i int)").await;
        let client = server.client("postgres").await;
        let mut collector = collector(&server);
        let document = collect(&mut collector).await;
        assert_eq!(document["statements"], serde_json::json!({"status": "disabled"}), "on {major}");
        // In a schema whose name must be quoted.
        let create = "CREATE SCHEMA \"odd \"\"one\"; \
                      CREATE EXTENSION pg_stat_statements SCHEMA \"odd \"\"one\"";
        server.execute("postgres", create).await;
        let path =
            "SET pg_stat_statements.track = 'none'; SET search_path = \"odd \"\"one\", public";
        client.batch_execute(path).await.expect("set");
        let document = collect(&mut collector).await;
        assert_eq!(document["statements"].get("interval_s"), None, "the first has no interval");
        collector.committed();
        let count = "INSERT INTO counted SELECT generate_series(1, 1000)";
        server.execute("postgres", count).await;
        server.execute("postgres", "SELECT 1; SELECT 2").await;
        hold(&mut collector, &client, STATEMENT_CHECKS, major).await;
        // That document was lost.
        hold(&mut collector, &client, STATEMENT_CHECKS, major).await;
        collector.committed();

        server.execute("postgres", count).await;
        let document = collect(&mut collector).await;
        let statements = &document["statements"];
        assert!(statements["interval_s"].as_f64() > Some(0.0), "{statements}");
        let rows = counts(&statements["list"], "rows");
        assert!((rows - 1_000.0).abs() < 0.5, "since the last one: {statements}");
        for name in ["calls", "exec_s", "rows", "shared_blocks_hit", "wal_bytes"] {
            let sum = counts(&statements["list"], name) + counts(&statements["other"], name);
            let total = counts(&statements["total"], name);
            assert!((sum - total).abs() < 1e-6, "{name} on {major}: {statements}");
        }
        let own = "SELECT coalesce(sum(calls), 0)::int8 FROM pg_stat_statements
            WHERE query LIKE '/* agent:%'";
        until_count(&client, own, 0).await;
        assert_no_error(&server);
    }
}

/// Once, without what it was given, and only where the host says so.
#[tokio::test]
async fn a_text_leaves_once_and_without_constants() {
    let server = Postgres::start_with(18, LOADED);
    server.execute("postgres", "CREATE EXTENSION pg_stat_statements").await;
    let connection = collector_config(&server, "postgres", &[]);
    let config = PgStatsConfig { statements_text: true, ..connection };
    let mut collector = PgStatsCollector::new(config);
    collect(&mut collector).await;
    collector.committed();
    let run = ["SELECT 'hush' AS told", "CREATE ROLE hidden PASSWORD 'hush'"];
    let mut seen = Vec::new();
    for commits in [false, true, true] {
        for statement in run {
            server.execute("postgres", statement).await;
        }
        server.execute("postgres", "DROP ROLE hidden").await;
        let document = collect(&mut collector).await;
        assert!(!document.to_string().contains("hush"), "{document}");
        let list = document["statements"]["list"].as_array().cloned().unwrap_or_default();
        let texts = list.iter().filter_map(|statement| statement["query"].as_str());
        seen.push(texts.map(str::to_owned).collect::<Vec<_>>());
        if commits {
            collector.committed();
        }
    }
    for text in ["SELECT $1 AS told", "CREATE", "DROP"] {
        assert!(seen[0].iter().any(|seen| seen == text), "{text} in {seen:?}");
    }
    assert_eq!(seen[1..], [Vec::<String>::new(), Vec::new()], "asked for every ten minutes");
}

/// The extension in a database that is visited, and one that is not loaded.
#[tokio::test]
async fn statements_are_found_in_another_database() {
    let server = Postgres::start_with(17, LOADED);
    server.execute("postgres", "CREATE DATABASE other").await;
    server.execute("other", "CREATE EXTENSION pg_stat_statements").await;
    let mut collector = collector_in(&server, "postgres", &["other", "postgres"]);
    let mut last = Value::Null;
    for _ in 0..2 {
        let collected = collector.collect(clock::now()).await.expect("collects");
        collector.committed();
        last = collected.metrics.into_iter().find(|m| m["database"] == "postgres").expect("main");
    }
    assert_eq!(last["statements"]["found_in"], "other", "{}", last["statements"]);
    assert_eq!(last["statements"]["status"], "ok");
    assert!(last["statements"]["total"].is_object(), "{}", last["statements"]);

    let server = Postgres::start(17);
    server.execute("postgres", "CREATE EXTENSION pg_stat_statements").await;
    let document = collect(&mut self::collector(&server)).await;
    assert_eq!(document["statements"]["status"], "disabled", "{}", document["statements"]);
    assert_no_error(&server);
}

/// A role without rights is told so, and the server's log has no error of it.
#[tokio::test]
async fn what_a_role_may_not_see_has_a_reason() {
    for major in majors() {
        let server = Postgres::start_with(major, LOADED);
        let roles = "CREATE EXTENSION pg_stat_statements; CREATE ROLE blind LOGIN; \
                     CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor";
        server.execute("postgres", roles).await;
        let holder = server.client("postgres").await;
        holder.batch_execute("BEGIN; LOCK TABLE pg_description").await.expect("locks");
        let waiting = beside(&server, "BEGIN; LOCK TABLE pg_description; COMMIT").await;
        let client = server.client("postgres").await;
        until_count(&client, "SELECT count(*) FROM pg_locks WHERE NOT granted", 1).await;
        let mut blind = collector_of(&server, "blind");
        collect(&mut blind).await;
        blind.committed();
        let seen = collect(&mut blind).await;
        let sessions = seen["blocking"]["sessions"].as_array().expect("sessions");
        assert_eq!(sessions.len(), 2, "on {major}: {}", seen["blocking"]);
        for session in sessions {
            assert_eq!(session["hidden"], true, "on {major}: {session}");
            assert_eq!((session.get("state"), session.get("transaction_s")), (None, None));
        }
        assert_eq!(seen["settings"]["hidden"], true, "on {major}");
        assert_eq!(seen["settings"].get("file_errors"), None);
        assert_eq!(seen["settings"]["file_errors_status"], "permission");
        assert_eq!(seen["files"].get("wal_bytes"), None);
        assert_eq!(seen["files"]["wal_status"], "permission");
        let of_12 = if major < 12 { "unsupported_version" } else { "permission" };
        assert_eq!(seen["files"]["archive_status"], of_12);
        assert_eq!(seen["files"]["temp_status"], of_12);
        let statements = &seen["statements"];
        assert!(statements["hidden"].as_u64() > Some(0), "on {major}: {statements}");
        assert_eq!(statements.get("list"), None, "on {major}: {statements}");

        let mut monitor = collector_of(&server, "monitor");
        collect(&mut monitor).await;
        monitor.committed();
        let seen = collect(&mut monitor).await;
        assert_eq!(seen["blocking"]["sessions"][0].get("hidden"), None);
        assert_eq!(seen["blocking"]["sessions"][0]["state"], "idle in transaction");
        assert_eq!(seen["settings"]["hidden"], false, "on {major}");
        assert!(seen["files"]["wal_bytes"].as_u64() > Some(0), "on {major}: {}", seen["files"]);
        assert_eq!(seen["statements"]["hidden"], 0, "on {major}");
        let users = seen["statements"]["list"].as_array().cloned().unwrap_or_default();
        assert!(users.iter().all(|statement| statement["user"] != "monitor"), "{users:?}");
        holder.batch_execute("ROLLBACK").await.expect("ends");
        waiting.await.expect("the lock in the end");
        assert_no_error(&server);
    }
}
