//! What `pg_stats` says of a whole server, on every major; the second source is an expression of
//! the server's own for each field, read before and after the collection.

use std::collections::BTreeSet;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::metric::catalogue::DOCUMENTS;
use pganalytics::metric::declare::Kind;
use pganalytics::metric::validate;
use serde_json::Value;
use tokio_postgres::Client;

use crate::support::postgres::{Postgres, majors, shared};
use crate::support::until_async;

const LIMIT: Duration = Duration::from_secs(30);

/// The parts of the document that are about the whole server.
const PARTS: &[&str] = &[
    "checkpointer",
    "bgwriter",
    "wal",
    "io",
    "slru",
    "archiver",
    "recovery_prefetch",
    "xid",
    "replication",
    "standby",
    "slots",
    "activity",
    "locks",
    "blocking",
    "progress",
    "prepared",
    "subscriptions",
    "settings",
    "files",
    "control",
    "statements",
];

/// How a field is held against the server's own word.
pub struct Check {
    /// The way to it in the document; in a list the part of it that `WHERE` names is meant.
    path: &'static str,
    /// The same, said by the server.
    sql: &'static str,
    /// The majors that have it.
    majors: (u32, u32),
}

pub const fn on(path: &'static str, sql: &'static str, first: u32, last: u32) -> Check {
    Check { path, sql, majors: (first, last) }
}

pub const fn all(path: &'static str, sql: &'static str) -> Check {
    on(path, sql, 10, 18)
}

/// Of a server that does no more than answer.
const CHECKS: &[Check] = &[
    on("checkpointer.timed", "SELECT checkpoints_timed FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.timed", "SELECT num_timed FROM pg_stat_checkpointer", 17, 18),
    on("checkpointer.requested", "SELECT checkpoints_req FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.requested", "SELECT num_requested FROM pg_stat_checkpointer", 17, 18),
    on("checkpointer.done", "SELECT num_done FROM pg_stat_checkpointer", 18, 18),
    on(
        "checkpointer.restartpoints_timed",
        "SELECT restartpoints_timed FROM pg_stat_checkpointer",
        17,
        18,
    ),
    on(
        "checkpointer.restartpoints_requested",
        "SELECT restartpoints_req FROM pg_stat_checkpointer",
        17,
        18,
    ),
    on(
        "checkpointer.restartpoints_done",
        "SELECT restartpoints_done FROM pg_stat_checkpointer",
        17,
        18,
    ),
    on("checkpointer.write_s", "SELECT checkpoint_write_time / 1000 FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.write_s", "SELECT write_time / 1000 FROM pg_stat_checkpointer", 17, 18),
    on("checkpointer.sync_s", "SELECT checkpoint_sync_time / 1000 FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.sync_s", "SELECT sync_time / 1000 FROM pg_stat_checkpointer", 17, 18),
    on("checkpointer.buffers_written", "SELECT buffers_checkpoint FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.buffers_written", "SELECT buffers_written FROM pg_stat_checkpointer", 17, 18),
    on("checkpointer.slru_written", "SELECT slru_written FROM pg_stat_checkpointer", 18, 18),
    on("checkpointer.stats_reset", "SELECT stats_reset FROM pg_stat_bgwriter", 10, 16),
    on("checkpointer.stats_reset", "SELECT stats_reset FROM pg_stat_checkpointer", 17, 18),
    all("bgwriter.buffers_clean", "SELECT buffers_clean FROM pg_stat_bgwriter"),
    all("bgwriter.maxwritten_clean", "SELECT maxwritten_clean FROM pg_stat_bgwriter"),
    all("bgwriter.buffers_alloc", "SELECT buffers_alloc FROM pg_stat_bgwriter"),
    on("bgwriter.buffers_backend", "SELECT buffers_backend FROM pg_stat_bgwriter", 10, 16),
    on(
        "bgwriter.buffers_backend_fsync",
        "SELECT buffers_backend_fsync FROM pg_stat_bgwriter",
        10,
        16,
    ),
    all("bgwriter.stats_reset", "SELECT stats_reset FROM pg_stat_bgwriter"),
    all("wal.position_bytes", "SELECT pg_current_wal_lsn() - '0/0'"),
    on("wal.records", "SELECT wal_records FROM pg_stat_wal", 14, 18),
    on("wal.full_page_images", "SELECT wal_fpi FROM pg_stat_wal", 14, 18),
    on("wal.bytes", "SELECT wal_bytes FROM pg_stat_wal", 14, 18),
    on("wal.buffers_full", "SELECT wal_buffers_full FROM pg_stat_wal", 14, 18),
    on("wal.writes", "SELECT wal_write FROM pg_stat_wal", 14, 17),
    on("wal.syncs", "SELECT wal_sync FROM pg_stat_wal", 14, 17),
    on("wal.write_s", "SELECT wal_write_time / 1000 FROM pg_stat_wal", 14, 17),
    on("wal.sync_s", "SELECT wal_sync_time / 1000 FROM pg_stat_wal", 14, 17),
    on("wal.stats_reset", "SELECT stats_reset FROM pg_stat_wal", 14, 18),
    on("io[].backend_type", "SELECT 'client backend'", 16, 18),
    on("io[].object", "SELECT 'relation'", 16, 18),
    on("io[].context", "SELECT 'normal'", 16, 18),
    on("io[].reads", "SELECT reads FROM io", 16, 18),
    on("io[].read_bytes", "SELECT reads * op_bytes FROM io", 16, 17),
    on("io[].read_bytes", "SELECT read_bytes FROM io", 18, 18),
    on("io[].read_s", "SELECT read_time / 1000 FROM io", 16, 18),
    on("io[].writes", "SELECT writes FROM io", 16, 18),
    on("io[].write_bytes", "SELECT writes * op_bytes FROM io", 16, 17),
    on("io[].write_bytes", "SELECT write_bytes FROM io", 18, 18),
    on("io[].write_s", "SELECT write_time / 1000 FROM io", 16, 18),
    on("io[].writebacks", "SELECT writebacks FROM io", 16, 18),
    on("io[].extends", "SELECT extends FROM io", 16, 18),
    on("io[].extend_bytes", "SELECT extends * op_bytes FROM io", 16, 17),
    on("io[].extend_bytes", "SELECT extend_bytes FROM io", 18, 18),
    on("io[].extend_s", "SELECT extend_time / 1000 FROM io", 16, 18),
    on("io[].hits", "SELECT hits FROM io", 16, 18),
    on("io[].evictions", "SELECT evictions FROM io", 16, 18),
    on("io[].reuses", "SELECT reuses FROM io", 16, 18),
    on("io[].fsyncs", "SELECT fsyncs FROM io", 16, 18),
    on("io[].fsync_s", "SELECT fsync_time / 1000 FROM io", 16, 18),
    on("io[].stats_reset", "SELECT stats_reset FROM io", 16, 18),
    on("slru[].name", "SELECT name FROM slru", 13, 18),
    on("slru[].blocks_zeroed", "SELECT blks_zeroed FROM slru", 13, 18),
    on("slru[].blocks_hit", "SELECT blks_hit FROM slru", 13, 18),
    on("slru[].blocks_read", "SELECT blks_read FROM slru", 13, 18),
    on("slru[].blocks_written", "SELECT blks_written FROM slru", 13, 18),
    on("slru[].blocks_exists", "SELECT blks_exists FROM slru", 13, 18),
    on("slru[].flushes", "SELECT flushes FROM slru", 13, 18),
    on("slru[].truncates", "SELECT truncates FROM slru", 13, 18),
    on("slru[].stats_reset", "SELECT stats_reset FROM slru", 13, 18),
    all("archiver.archived", "SELECT archived_count FROM pg_stat_archiver"),
    all("archiver.last_archived_wal", "SELECT last_archived_wal FROM pg_stat_archiver"),
    all("archiver.last_archived_at", "SELECT last_archived_time FROM pg_stat_archiver"),
    all("archiver.failed", "SELECT failed_count FROM pg_stat_archiver"),
    all("archiver.last_failed_wal", "SELECT last_failed_wal FROM pg_stat_archiver"),
    all("archiver.last_failed_at", "SELECT last_failed_time FROM pg_stat_archiver"),
    all("archiver.stats_reset", "SELECT stats_reset FROM pg_stat_archiver"),
    all("xid.next", "SELECT txid_snapshot_xmax(txid_current_snapshot())"),
    all("xid.age", "SELECT max(age(datfrozenxid)) FROM pg_database"),
    all("xid.multixact_age", "SELECT max(mxid_age(datminmxid)) FROM pg_database"),
    all("xid.freeze_max_age", "SELECT 200000000"),
    all("xid.multixact_freeze_max_age", "SELECT 400000000"),
    all("xid.horizon[].kind", "SELECT 'prepared'"),
    all("xid.horizon[].id", "SELECT transaction::text FROM pg_prepared_xacts"),
    all("xid.horizon[].age", "SELECT age(transaction) FROM pg_prepared_xacts"),
    all("xid.horizon[].since", "SELECT prepared FROM pg_prepared_xacts"),
    all("slots[].name", "SELECT slot_name FROM pg_replication_slots"),
    all("slots[].kind", "SELECT slot_type FROM pg_replication_slots"),
    all("slots[].plugin", "SELECT plugin FROM pg_replication_slots"),
    all("slots[].database", "SELECT database FROM pg_replication_slots"),
    all("slots[].active", "SELECT active FROM pg_replication_slots"),
    all(
        "slots[].retained_bytes",
        "SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots",
    ),
    all(
        "slots[].unconfirmed_bytes",
        "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots",
    ),
    all("slots[].xmin_age", "SELECT age(xmin) FROM pg_replication_slots"),
    all("slots[].catalog_xmin_age", "SELECT age(catalog_xmin) FROM pg_replication_slots"),
    on("slots[].wal_status", "SELECT wal_status FROM pg_replication_slots", 13, 18),
    on("slots[].safe_wal_bytes", "SELECT safe_wal_size FROM pg_replication_slots", 13, 18),
    on("slots[].inactive_since", "SELECT inactive_since FROM pg_replication_slots", 17, 18),
    on(
        "slots[].invalidation_reason",
        "SELECT invalidation_reason FROM pg_replication_slots",
        17,
        18,
    ),
    all("activity.clients", "SELECT count(*) FROM others"),
    all("activity.active", "SELECT count(*) FROM others WHERE state = 'active'"),
    all("activity.idle", "SELECT count(*) FROM others WHERE state = 'idle'"),
    all(
        "activity.idle_in_transaction",
        "SELECT count(*) FROM others WHERE state = 'idle in transaction'",
    ),
    all("activity.waiting_for_lock", "SELECT count(*) FROM others WHERE wait_event_type = 'Lock'"),
    all("activity.hidden", "SELECT 0"),
    all("activity.connections_max", "SELECT 47"),
    all(
        "activity.longest_transaction_s",
        "SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM others",
    ),
    all(
        "activity.longest_query_s",
        "SELECT extract(epoch FROM clock_timestamp() - min(query_start)) FROM others
          WHERE state = 'active'",
    ),
    all(
        "activity.longest_idle_in_transaction_s",
        "SELECT extract(epoch FROM clock_timestamp() - min(state_change)) FROM others
          WHERE state = 'idle in transaction'",
    ),
    all("activity.groups[].backend_type", "SELECT 'client backend'"),
    all("activity.groups[].database", "SELECT current_database()"),
    all("activity.groups[].user", "SELECT 'postgres'"),
    all("activity.groups[].state", "SELECT 'active'"),
    all("activity.groups[].wait_event_type", "SELECT 'Lock'"),
    all(
        "activity.groups[].wait_event",
        "SELECT DISTINCT wait_event FROM others WHERE wait_event_type = 'Lock'",
    ),
    all(
        "activity.groups[].processes",
        "SELECT count(*) FROM others WHERE wait_event_type = 'Lock'",
    ),
    all("activity.others", "SELECT 0"),
    all(
        "activity.connections_used",
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
    ),
    all(
        "activity.connections_used_percent",
        "SELECT round(count(*) / 0.47, 2) FROM pg_stat_activity
          WHERE backend_type = 'client backend'",
    ),
    all("activity.longest[].kind", "SELECT 'transaction'"),
    all("activity.longest[].pid", "SELECT pid FROM others ORDER BY xact_start LIMIT 1"),
    all("activity.longest[].database", "SELECT current_database()"),
    all("activity.longest[].user", "SELECT 'postgres'"),
    all("activity.longest[].application", "SELECT 'the holder'"),
    all("activity.longest[].state", "SELECT 'idle in transaction'"),
    all("activity.longest[].wait_event_type", "SELECT 'Client'"),
    all("activity.longest[].wait_event", "SELECT 'ClientRead'"),
    all(
        "activity.longest[].lasted_s",
        "SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM others",
    ),
    all(
        "activity.by_state",
        "SELECT jsonb_object_agg(x.state, x.n)
           FROM (SELECT state, count(*) AS n FROM others GROUP BY state) x",
    ),
    all(
        "activity.by_backend_type",
        "SELECT jsonb_object_agg(x.kind, x.n)
           FROM (SELECT backend_type AS kind, count(*) AS n FROM pg_stat_activity
                  WHERE application_name NOT LIKE 'pganalytics-agent/%' GROUP BY 1) x",
    ),
    all("activity.waits[].wait_event_type", "SELECT 'Lock'"),
    all("activity.waits[].wait_event", "SELECT wait_event FROM others WHERE state = 'active'"),
    all("activity.waits[].processes", "SELECT 1"),
    all("blocking.waiting", "SELECT count(*) FROM pg_locks WHERE NOT granted"),
    all("blocking.not_looked_at", "SELECT 0"),
    all("blocking.roots", "SELECT 1"),
    all("blocking.others", "SELECT 0"),
    all("blocking.sessions[].pid", "SELECT pid FROM pg_locks WHERE NOT granted"),
    all("blocking.sessions[].depth", "SELECT 1"),
    all(
        "blocking.sessions[].blocked_by",
        "SELECT pg_blocking_pids(pid) FROM pg_locks WHERE NOT granted",
    ),
    all("blocking.sessions[].waiting_behind", "SELECT 0"),
    all("blocking.sessions[].database", "SELECT current_database()"),
    all("blocking.sessions[].user", "SELECT 'postgres'"),
    all("blocking.sessions[].application", "SELECT 'the waiter'"),
    all("blocking.sessions[].backend_type", "SELECT 'client backend'"),
    all("blocking.sessions[].state", "SELECT 'active'"),
    all("blocking.sessions[].hidden", "SELECT NULL::bool"),
    all(
        "blocking.sessions[].transaction_s",
        "SELECT extract(epoch FROM clock_timestamp() - xact_start) FROM others
          WHERE state = 'active'",
    ),
    all(
        "blocking.sessions[].state_s",
        "SELECT extract(epoch FROM clock_timestamp() - state_change) FROM others
          WHERE state = 'active'",
    ),
    on(
        "blocking.sessions[].waiting_s",
        "SELECT extract(epoch FROM clock_timestamp() - state_change) FROM others
          WHERE state = 'active'",
        10,
        13,
    ),
    on(
        "blocking.sessions[].waiting_s",
        "SELECT extract(epoch FROM clock_timestamp() - waitstart) FROM pg_locks
          WHERE NOT granted",
        14,
        18,
    ),
    all("blocking.sessions[].lock_type", "SELECT locktype FROM pg_locks WHERE NOT granted"),
    all("blocking.sessions[].lock_mode", "SELECT mode FROM pg_locks WHERE NOT granted"),
    all("blocking.sessions[].relation", "SELECT 'pg_catalog.pg_description'"),
    all("prepared.transactions", "SELECT count(*) FROM pg_prepared_xacts"),
    all(
        "prepared.oldest_s",
        "SELECT extract(epoch FROM clock_timestamp() - min(prepared)) FROM pg_prepared_xacts",
    ),
    all("prepared.oldest_age", "SELECT max(age(transaction)) FROM pg_prepared_xacts"),
    all("settings.loaded_at", "SELECT pg_conf_load_time()"),
    all("settings.pending_restart", "SELECT count(*) FROM pg_settings WHERE pending_restart"),
    all("settings.hidden", "SELECT false"),
    all("settings.file_errors", "SELECT count(*) FROM pg_file_settings WHERE error <> ''"),
    all("settings.file_errors_status", "SELECT NULL::text"),
    all("settings.list[].name", "SELECT 'shared_buffers'"),
    all("settings.list[].value", "SELECT setting FROM setting"),
    all("settings.list[].unit", "SELECT unit FROM setting"),
    all("settings.list[].source", "SELECT source FROM setting"),
    all("settings.list[].pending_restart", "SELECT pending_restart FROM setting"),
    all("files.wal_bytes", "SELECT sum(size) FROM pg_ls_waldir()"),
    all("files.wal_files", "SELECT count(*) FROM pg_ls_waldir()"),
    all("files.wal_status", "SELECT NULL::text"),
    on(
        "files.archive_ready",
        "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
        12,
        18,
    ),
    on("files.archive_status", "SELECT 'unsupported_version'", 10, 11),
    on("files.archive_status", "SELECT NULL::text", 12, 18),
    on("files.temp_bytes", "SELECT coalesce(sum(size), 0) FROM pg_ls_tmpdir()", 12, 18),
    on("files.temp_files", "SELECT count(*) FROM pg_ls_tmpdir()", 12, 18),
    on("files.temp_status", "SELECT 'unsupported_version'", 10, 11),
    on("files.temp_status", "SELECT NULL::text", 12, 18),
    all("control.system_identifier", "SELECT system_identifier::text FROM pg_control_system()"),
    all("control.timeline", "SELECT timeline_id FROM pg_control_checkpoint()"),
    all("control.checkpoint_at", "SELECT checkpoint_time FROM pg_control_checkpoint()"),
    all("control.checksums", "SELECT current_setting('data_checksums') = 'on'"),
    all("locks[].database", "SELECT current_database()"),
    all("locks[].mode", "SELECT 'AccessExclusiveLock'"),
    all("locks[].granted", "SELECT count(*) FROM exclusive WHERE granted"),
    all("locks[].waiting", "SELECT count(*) FROM exclusive WHERE NOT granted"),
];

/// Of a primary with a standby, and of the standby.
const REPLICATION_CHECKS: &[Check] = &[
    all("replication[].application", "SELECT application_name FROM pg_stat_replication"),
    all("replication[].pid", "SELECT pid FROM pg_stat_replication"),
    all("replication[].client", "SELECT host(client_addr) FROM pg_stat_replication"),
    all("replication[].state", "SELECT state FROM pg_stat_replication"),
    all("replication[].sync_state", "SELECT sync_state FROM pg_stat_replication"),
    all(
        "replication[].send_behind_bytes",
        "SELECT pg_current_wal_lsn() - sent_lsn FROM pg_stat_replication",
    ),
    all(
        "replication[].write_behind_bytes",
        "SELECT pg_current_wal_lsn() - write_lsn FROM pg_stat_replication",
    ),
    all(
        "replication[].flush_behind_bytes",
        "SELECT pg_current_wal_lsn() - flush_lsn FROM pg_stat_replication",
    ),
    all(
        "replication[].replay_behind_bytes",
        "SELECT pg_current_wal_lsn() - replay_lsn FROM pg_stat_replication",
    ),
    all(
        "replication[].write_lag_s",
        "SELECT extract(epoch FROM write_lag) FROM pg_stat_replication",
    ),
    all(
        "replication[].flush_lag_s",
        "SELECT extract(epoch FROM flush_lag) FROM pg_stat_replication",
    ),
    all(
        "replication[].replay_lag_s",
        "SELECT extract(epoch FROM replay_lag) FROM pg_stat_replication",
    ),
    on("replication[].reply_at", "SELECT reply_time FROM pg_stat_replication", 12, 18),
];

const STANDBY_CHECKS: &[Check] = &[
    all("standby.receiver", "SELECT status FROM pg_stat_wal_receiver"),
    on("standby.sender_host", "SELECT sender_host FROM pg_stat_wal_receiver", 11, 18),
    on("standby.sender_port", "SELECT sender_port FROM pg_stat_wal_receiver", 11, 18),
    all("standby.slot", "SELECT slot_name FROM pg_stat_wal_receiver"),
    all("standby.last_message_at", "SELECT last_msg_receipt_time FROM pg_stat_wal_receiver"),
    all(
        "standby.replay_behind_bytes",
        "SELECT greatest(pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn(), 0)",
    ),
    all("standby.paused", "SELECT pg_is_wal_replay_paused()"),
    on("recovery_prefetch.prefetches", "SELECT prefetch FROM pg_stat_recovery_prefetch", 15, 18),
    on("recovery_prefetch.hits", "SELECT hit FROM pg_stat_recovery_prefetch", 15, 18),
    on("recovery_prefetch.skipped_init", "SELECT skip_init FROM pg_stat_recovery_prefetch", 15, 18),
    on("recovery_prefetch.skipped_new", "SELECT skip_new FROM pg_stat_recovery_prefetch", 15, 18),
    on(
        "recovery_prefetch.skipped_full_page",
        "SELECT skip_fpw FROM pg_stat_recovery_prefetch",
        15,
        18,
    ),
    on(
        "recovery_prefetch.skipped_repeated",
        "SELECT skip_rep FROM pg_stat_recovery_prefetch",
        15,
        18,
    ),
    on(
        "recovery_prefetch.wal_distance_bytes",
        "SELECT wal_distance FROM pg_stat_recovery_prefetch",
        15,
        18,
    ),
    on(
        "recovery_prefetch.block_distance",
        "SELECT block_distance FROM pg_stat_recovery_prefetch",
        15,
        18,
    ),
    on("recovery_prefetch.io_depth", "SELECT io_depth FROM pg_stat_recovery_prefetch", 15, 18),
    on(
        "recovery_prefetch.stats_reset",
        "SELECT stats_reset FROM pg_stat_recovery_prefetch",
        15,
        18,
    ),
];

/// Fields that a test of their own looks at.
const ELSEWHERE: &[&str] = &[
    "standby.replay_lag_s",
    "settings.changes[]",
    "statements.interval_s",
    "statements.total.",
    "statements.other.",
];

/// What the expressions above are about.
const AROUND: &str = "
    io AS (SELECT * FROM pg_stat_io WHERE backend_type = 'client backend'
              AND object = 'relation' AND context = 'normal'),
    slru AS (SELECT * FROM pg_stat_slru ORDER BY name LIMIT 1),
    others AS (SELECT * FROM pg_stat_activity WHERE backend_type = 'client backend'
                  AND application_name NOT LIKE 'pganalytics-agent/%'),
    setting AS (SELECT * FROM pg_settings WHERE name = 'shared_buffers'),
    counted AS (SELECT * FROM pg_stat_statements WHERE query LIKE 'INSERT INTO counted%'),
    exclusive AS (SELECT * FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND database =
                     (SELECT oid FROM pg_database WHERE datname = current_database()))";

/// The server's word on each of the checks that its major has.
async fn words(client: &Client, checks: &[Check], major: u32) -> Vec<(&'static str, Value)> {
    let mut words = Vec::new();
    for check in checks.iter().filter(|check| (check.majors.0..=check.majors.1).contains(&major)) {
        let used: Vec<&str> = AROUND
            .split(",\n    ")
            .map(str::trim)
            .filter(|part| {
                let name = part.split(' ').next().unwrap_or_default();
                check.sql.contains(&format!("FROM {name}"))
            })
            .collect();
        let with =
            if used.is_empty() { String::new() } else { format!("WITH {} ", used.join(", ")) };
        let sql = format!("{with}SELECT to_json(({}))", check.sql);
        let row = client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        words.push((check.path, row.get::<_, Option<Value>>(0).unwrap_or(Value::Null)));
    }
    words
}

/// The value at `path`; of a list the element for which `is_meant`.
fn at<'a>(document: &'a Value, path: &str, is_meant: &dyn Fn(&str, &Value) -> bool) -> &'a Value {
    let mut value = document;
    for step in path.split('.') {
        value = match step.strip_suffix("[]") {
            None => &value[step],
            Some(list) => {
                let elements = value[list].as_array().unwrap_or_else(|| panic!("no {list}"));
                let meant = elements.iter().find(|element| is_meant(list, element));
                meant.unwrap_or_else(|| panic!("{path} in {elements:?}"))
            }
        };
    }
    value
}

fn is_meant(list: &str, element: &Value) -> bool {
    match list {
        "io" => {
            element["backend_type"] == "client backend"
                && element["object"] == "relation"
                && element["context"] == "normal"
        }
        "horizon" => element["kind"] == "prepared",
        "groups" | "waits" => element["wait_event_type"] == "Lock",
        "longest" => element["kind"] == "transaction",
        "sessions" => element["depth"] == 1,
        // Of statements, and of settings.
        "list" => element["rows"] == 1_000 || element["name"] == "shared_buffers",
        "locks" => element["mode"] == "AccessExclusiveLock" && element["database"] == "postgres",
        _ => true,
    }
}

/// Holds `ours` between what the server said before and after.
fn compare(path: &str, before: &Value, ours: &Value, after: &Value) {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let say = format!("{path}: {before}, ours {ours}, {after}");
    if let (Some(before), Some(after)) = (time(before), time(after)) {
        let ours = time(ours).unwrap_or_else(|| panic!("{say}")).as_millisecond();
        return assert!(
            (before.as_millisecond()..=after.as_millisecond()).contains(&ours),
            "{say}"
        );
    }
    match (before.as_f64(), after.as_f64()) {
        (Some(before), Some(after)) => {
            let ours = ours.as_f64().unwrap_or_else(|| panic!("{say}"));
            // What is behind may have caught up meanwhile.
            let (least, most) = (before.min(after), before.max(after));
            let slack = 1e-9 * most.abs();
            assert!((least - slack..=most + slack).contains(&ours), "{say}");
        }
        _ => assert!(ours == before || ours == after, "{say}"),
    }
}

pub fn collector(server: &Postgres) -> PgStatsCollector {
    collector_of(server, "postgres")
}

pub fn collector_of(server: &Postgres, user: &str) -> PgStatsCollector {
    let (host, database) = (server.socket_dir().display().to_string(), "postgres".to_owned());
    let connection =
        PgConnection { host, database, user: user.to_owned(), ..PgConnection::default() };
    PgStatsCollector::new(PgStatsConfig { connection, ..PgStatsConfig::default() })
}

pub async fn collect(collector: &mut PgStatsCollector) -> Value {
    let now = clock::now();
    let mut metrics = collector.collect(now).await.expect("collects").metrics;
    assert_eq!(metrics.len(), 1, "{metrics:?}");
    let document = metrics.remove(0);
    validate(&document, now).unwrap_or_else(|invalid| panic!("{invalid} in {document}"));
    assert_eq!(document["status"], "ok", "{}", document["problems"]);
    document
}

/// Compares every check, and that nothing else is said.
pub async fn hold(collector: &mut PgStatsCollector, client: &Client, checks: &[Check], major: u32) {
    let before = words(client, checks, major).await;
    let document = collect(collector).await;
    let after = words(client, checks, major).await;
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        compare(path, before, at(&document, path, &is_meant), after);
    }
    for check in checks.iter().filter(|check| !before.iter().any(|(path, _)| *path == check.path)) {
        let part = check.path.split(['.', '[']).next().unwrap_or_default();
        if !document[part].is_null() && !document[part].as_array().is_some_and(Vec::is_empty) {
            let ours = at(&document, check.path, &is_meant);
            assert!(ours.is_null(), "{}: {ours} on {major}, which does not have it", check.path);
        }
    }
}

/// The table of checks is whole: a field without one is a field that nobody has looked at.
#[test]
fn every_field_has_its_check() {
    let checks = CHECKS.iter().chain(REPLICATION_CHECKS).chain(STANDBY_CHECKS);
    let checks = checks.chain(super::collect_pg_work::checks());
    let all: BTreeSet<&str> = checks.map(|check| check.path).collect();
    let document = DOCUMENTS.iter().find(|document| document.name == "pg_stats").expect("declared");
    for entry in document.entries() {
        let part = entry.path.split(['.', '[']).next().unwrap_or_default();
        let is_part = entry.role() == "list" || entry.role() == "object";
        let is_elsewhere = ELSEWHERE.iter().any(|path| entry.path.starts_with(path));
        if PARTS.contains(&part) && !is_part && !is_elsewhere {
            assert!(all.contains(entry.path.as_str()), "{} has no check", entry.path);
        }
    }
}

/// The most elements of each list about a server, as the statements and the collector bound them.
const LISTS: &[(&str, usize)] = &[
    ("io", 200),
    ("slru", 50),
    ("xid.horizon", 5),
    ("replication", 100),
    ("slots", 200),
    ("activity.longest", 3),
    ("activity.by_state", 20),
    ("activity.by_backend_type", 50),
    ("activity.waits", 50),
    ("activity.groups", 100),
    ("locks", 100),
    ("blocking.sessions", 50),
    ("blocking.sessions[].blocked_by", 8),
    ("progress", 300),
    ("subscriptions", 100),
    ("settings.list", 120),
    ("settings.changes", 120),
    ("statements.list", 500),
];

/// What a value takes in JSON; a name has 63 bytes.
fn width(path: &str, kind: Kind) -> usize {
    let bound = || {
        let list = LISTS.iter().find(|(list, _)| *list == path);
        list.unwrap_or_else(|| panic!("{path} has no bound")).1
    };
    match kind {
        _ if path == "settings.list[].value" => 802,
        _ if path == "settings.changes[].from" || path == "settings.changes[].to" => 802,
        // A hundred of them have a text.
        _ if path == "statements.list[].query" => 2 * 2_048 / 5,
        Kind::Array(Kind::Object(_)) => 2,
        Kind::Array(Kind::Count) => bound() * 12,
        Kind::Map(Kind::Count) => bound() * 90,
        Kind::Text | Kind::Name => 66,
        _ => 32,
    }
}

/// A document with everything about a server leaves 1.5 of the 4 MiB that one may have to the lists
/// of tables and indexes.
#[test]
fn what_is_about_a_server_has_a_bound() {
    let document = DOCUMENTS.iter().find(|document| document.name == "pg_stats").expect("declared");
    let mut bytes = 0;
    for entry in document.entries() {
        if PARTS.contains(&entry.path.split(['.', '[']).next().unwrap_or_default()) {
            let around = entry.path.match_indices("[].").map(|(at, _)| &entry.path[..at]);
            let elements: usize = around
                .map(|list| {
                    let bound = LISTS.iter().find(|(known, _)| *known == list);
                    bound.unwrap_or_else(|| panic!("{list} has no bound")).1
                })
                .product();
            let name = entry.field.name.len() + 4;
            bytes += elements * (name + width(&entry.path, entry.field.kind));
        }
    }
    assert!(bytes < (5 << 20) / 2, "{bytes} bytes");
}

/// On every major each number is the server's own.
#[tokio::test]
async fn server_wide_numbers_are_those_of_the_server() {
    for major in majors() {
        let settings = [("max_prepared_transactions", "2"), ("autovacuum", "off")];
        let server = Postgres::start_with(major, &settings);
        server.execute("postgres", "CREATE TABLE held (i int); CHECKPOINT").await;
        server.execute("postgres", "SELECT pg_create_physical_replication_slot('s', true)").await;
        let holder = server.client("postgres").await;
        let open = "SET application_name = 'the holder'; \
                    BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION 'p'; \
                    BEGIN; LOCK TABLE pg_description IN ACCESS EXCLUSIVE MODE; SELECT 1";
        holder.batch_execute(open).await.expect("a transaction");
        let waiter = server.client("postgres").await;
        let waiting = tokio::spawn(async move {
            let wait = "SET application_name = 'the waiter'; \
                        BEGIN; LOCK TABLE pg_description IN ACCESS EXCLUSIVE MODE";
            waiter.batch_execute(wait).await
        });
        let client = server.client("postgres").await;
        let blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        let is_blocked =
            async || client.query_one(blocked, &[]).await.expect("a row").get::<_, i64>(0) == 1;
        until_async("somebody waits", LIMIT, is_blocked).await;
        let mut collector = collector(&server);
        // The first one opens the connection. From then on this test poses as the collector, whose
        // own sessions are left out.
        collect(&mut collector).await;
        let own = "SELECT set_config('application_name', application_name, false)
            FROM pg_stat_activity WHERE application_name LIKE 'pganalytics-agent/%'";
        client.query_one(own, &[]).await.expect("the collector's session");
        hold(&mut collector, &client, CHECKS, major).await;
        holder.batch_execute("ROLLBACK").await.expect("ends");
        waiting.await.expect("no panic").expect("the lock in the end");
        let log = fs_err::read_to_string(server.log_file()).expect("the log");
        assert!(!log.contains("ERROR"), "on {major}: {log}");
    }
}

/// A primary and its standby: what one sends is what the other receives, and a primary that writes
/// nothing has no lag.
#[tokio::test]
async fn replication_is_seen_from_both_sides() {
    for major in [13, 17] {
        let mut primary = Postgres::start(major);
        let standby = Postgres::standby_of(&mut primary);
        primary.execute("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000)").await;
        let (client, theirs) = (primary.client("postgres").await, standby.client("postgres").await);
        let caught_up = "SELECT to_regclass('t') IS NOT NULL";
        let has_table =
            async || theirs.query_one(caught_up, &[]).await.expect("a row").get::<_, bool>(0);
        until_async("the standby has caught up", LIMIT, has_table).await;
        let mut ours = (collector(&primary), collector(&standby));
        hold(&mut ours.0, &client, REPLICATION_CHECKS, major).await;
        hold(&mut ours.1, &theirs, STANDBY_CHECKS, major).await;
        // The server writes a little by itself now and then.
        let all_replayed = async {
            loop {
                let document = collect(&mut ours.1).await;
                if document["standby"]["replay_behind_bytes"] == 0 {
                    return document;
                }
            }
        };
        let document = tokio::time::timeout(LIMIT, all_replayed).await.expect("all is replayed");
        assert_eq!(document["standby"]["replay_lag_s"], 0.0, "{}", document["standby"]);
        assert_eq!(document["server"]["in_recovery"], true);
        assert_eq!(document["replication"], Value::Array(Vec::new()));

        // Received, and not replayed.
        theirs.batch_execute("SELECT pg_wal_replay_pause()").await.expect("paused");
        primary.execute("postgres", "INSERT INTO t SELECT generate_series(1, 1000)").await;
        let received = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";
        let is_behind =
            async || theirs.query_one(received, &[]).await.expect("a row").get::<_, bool>(0);
        until_async("the standby is behind", LIMIT, is_behind).await;
        let document = collect(&mut ours.1).await;
        let standby_says = &document["standby"];
        assert_eq!(standby_says["paused"], true);
        assert!(standby_says["replay_behind_bytes"].as_u64() > Some(1_000), "{standby_says}");
        assert!(standby_says["replay_lag_s"].as_f64() > Some(0.0), "{standby_says}");
        let document = collect(&mut ours.0).await;
        let sender = &document["replication"][0];
        assert!(sender["replay_behind_bytes"].as_u64() > Some(1_000), "{sender}");
        for server in [&primary, &standby] {
            let log = fs_err::read_to_string(server.log_file()).expect("the log");
            assert!(!log.contains("ERROR"), "on {major}: {log}");
        }
    }
}

/// A role that sees nothing of others says so, and not that nobody is there.
#[tokio::test]
async fn what_a_role_does_not_see_is_hidden_and_not_zero() {
    let server = shared(17);
    server.execute("postgres", "CREATE ROLE blind LOGIN").await;
    let other = server.client("postgres").await;
    other.batch_execute("BEGIN; SELECT 1").await.expect("a transaction");
    let mut blind = collector_of(server, "blind");
    let document = collect(&mut blind).await;
    let activity = &document["activity"];
    assert!(activity["hidden"].as_u64() >= Some(1), "{activity}");
    assert_eq!(activity.get("longest_idle_in_transaction_s"), None, "{activity}");
}
