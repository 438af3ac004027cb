//! What is about the whole server: its own statistics, transaction ids, replication, activity.
//!
//! The columns of the statistics views differ from one major to the next. Their rows are read as
//! JSON, with whatever columns they have: one statement serves every major, and a fork's.

mod activity; // who is at work
mod blocking;
mod deltas; // of what statements count
mod json_row;
mod progress;
mod replicated; // prepared transactions, subscriptions
mod settings;
mod statements;
mod texts; // of statements, without their constants

use std::collections::HashSet;

use serde_json::Value;
use tokio_postgres::Row;

use super::{CollectError, Cost, Document, PgStatsCollector, Problem};
use crate::collect::postgres::{Query, Recovery};
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_server::{Archiver, BgWriter, Checkpointer, Horizon, Io, Wal, Xid};
use json_row::{JsonRow, Renamed, renamed, seconds};
pub(super) use settings::KnownSettings;
use statements::Account;
pub(super) use statements::StatementsSeen;

/// Which of the views below the server has.
const VIEWS: Query = Query {
    name: "views",
    sql: "SELECT c.relname AS name
  FROM pg_class c
 WHERE c.relnamespace = 'pg_catalog'::regnamespace
   AND c.relname IN ('pg_stat_checkpointer', 'pg_stat_wal', 'pg_stat_io', 'pg_stat_slru',
                     'pg_stat_recovery_prefetch', 'pg_stat_subscription_stats',
                     'pg_stat_progress_vacuum', 'pg_stat_progress_analyze',
                     'pg_stat_progress_create_index', 'pg_stat_progress_cluster',
                     'pg_stat_progress_basebackup', 'pg_stat_progress_copy')",
    rows_max: 12,
};

const BGWRITER: Query = Query {
    name: "bgwriter",
    sql: "SELECT to_json(v) AS row FROM pg_stat_bgwriter v",
    rows_max: 1,
};

const CHECKPOINTER: Query = Query {
    name: "checkpointer",
    sql: "SELECT to_json(v) AS row FROM pg_stat_checkpointer v",
    rows_max: 1,
};

const WAL: Query =
    Query { name: "wal", sql: "SELECT to_json(v) AS row FROM pg_stat_wal v", rows_max: 1 };

/// Where the log ends.
const WAL_POSITION: Query = Query {
    name: "wal_position",
    sql: "SELECT pg_wal_lsn_diff(
           CASE WHEN pg_is_in_recovery()
                THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                ELSE pg_current_wal_lsn() END, '0/0')::int8 AS position_bytes",
    rows_max: 1,
};

const IO: Query = Query {
    name: "io",
    sql: "SELECT to_json(v) AS row
  FROM pg_stat_io v
 WHERE coalesce(v.reads, 0) + coalesce(v.writes, 0) + coalesce(v.extends, 0)
       + coalesce(v.hits, 0) + coalesce(v.fsyncs, 0) > 0
 ORDER BY v.backend_type, v.object, v.context
 LIMIT 200",
    rows_max: 200,
};

const SLRU: Query = Query {
    name: "slru",
    sql: "SELECT to_json(v) AS row FROM pg_stat_slru v ORDER BY v.name LIMIT 50",
    rows_max: 50,
};

const ARCHIVER: Query = Query {
    name: "archiver",
    sql: "SELECT to_json(v) AS row FROM pg_stat_archiver v",
    rows_max: 1,
};

const RECOVERY_PREFETCH: Query = Query {
    name: "recovery_prefetch",
    sql: "SELECT to_json(v) AS row FROM pg_stat_recovery_prefetch v",
    rows_max: 1,
};

/// Nothing here takes a transaction id.
const XID: Query = Query {
    name: "xid",
    sql: "SELECT txid_snapshot_xmax(txid_current_snapshot()) AS next,
       max(age(d.datfrozenxid))::int8 AS age,
       max(mxid_age(d.datminmxid))::int8 AS multixact_age,
       current_setting('autovacuum_freeze_max_age')::int8 AS freeze_max_age,
       current_setting('autovacuum_multixact_freeze_max_age')::int8 AS multixact_freeze_max_age
  FROM pg_database d",
    rows_max: 1,
};

/// Of each kind of holder the oldest.
const HORIZON: Query = Query {
    name: "horizon",
    sql: "(SELECT 'backend' AS kind, a.pid::text AS id, age(a.backend_xmin)::int8 AS age,
        a.xact_start AS since
   FROM pg_stat_activity a
  WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
    AND a.backend_type <> 'walsender'
  ORDER BY age(a.backend_xmin) DESC LIMIT 1)
 UNION ALL
(SELECT 'prepared', p.transaction::text, age(p.transaction)::int8, p.prepared
   FROM pg_prepared_xacts p ORDER BY age(p.transaction) DESC LIMIT 1)
 UNION ALL
(SELECT 'slot', s.slot_name::text, age(s.xmin)::int8, NULL
   FROM pg_replication_slots s WHERE s.xmin IS NOT NULL ORDER BY age(s.xmin) DESC LIMIT 1)
 UNION ALL
(SELECT 'slot_catalog', s.slot_name::text, age(s.catalog_xmin)::int8, NULL
   FROM pg_replication_slots s WHERE s.catalog_xmin IS NOT NULL
  ORDER BY age(s.catalog_xmin) DESC LIMIT 1)
 UNION ALL
(SELECT 'standby', coalesce(nullif(r.application_name, ''), r.pid::text),
        age(r.backend_xmin)::int8, NULL
   FROM pg_stat_replication r WHERE r.backend_xmin IS NOT NULL
  ORDER BY age(r.backend_xmin) DESC LIMIT 1)",
    rows_max: 5,
};

const SENDERS: Query = Query {
    name: "replication",
    sql: "SELECT r.application_name AS application, r.pid::int8 AS pid,
       host(r.client_addr) AS client, r.state, r.sync_state,
       CASE WHEN r.sent_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, r.sent_lsn), 0)::int8 END AS send_behind_bytes,
       CASE WHEN r.write_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, r.write_lsn), 0)::int8 END AS write_behind_bytes,
       CASE WHEN r.flush_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, r.flush_lsn), 0)::int8 END AS flush_behind_bytes,
       CASE WHEN r.replay_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, r.replay_lsn), 0)::int8 END AS replay_behind_bytes,
       extract(epoch FROM r.write_lag)::float8 AS write_lag_s,
       extract(epoch FROM r.flush_lag)::float8 AS flush_lag_s,
       extract(epoch FROM r.replay_lag)::float8 AS replay_lag_s,
       (to_jsonb(r) ->> 'reply_time')::timestamptz AS reply_at
  FROM pg_stat_replication r,
       (SELECT CASE WHEN pg_is_in_recovery()
                    THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                    ELSE pg_current_wal_lsn() END AS lsn) h
 ORDER BY r.application_name, r.pid
 LIMIT 100",
    rows_max: 100,
};

/// The seconds are 0 when all that was received is replayed: a primary that writes nothing sends
/// no new time. A receiver begins at the start of a file, which may have been replayed already.
const STANDBY: Query = Query {
    name: "standby",
    sql: "SELECT r.status AS receiver, to_jsonb(r) ->> 'sender_host' AS sender_host,
       (to_jsonb(r) ->> 'sender_port')::int8 AS sender_port, r.slot_name AS slot,
       r.last_msg_receipt_time AS last_message_at,
       CASE WHEN pg_last_wal_receive_lsn() IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(pg_last_wal_receive_lsn(),
                                          pg_last_wal_replay_lsn()), 0)::int8
       END AS replay_behind_bytes,
       CASE WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
            ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())
       END::float8 AS replay_lag_s,
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END AS paused
  FROM (SELECT) o LEFT JOIN pg_stat_wal_receiver r ON true",
    rows_max: 1,
};

const SLOTS: Query = Query {
    name: "slots",
    sql: "SELECT s.slot_name AS name, s.slot_type AS kind, s.plugin, s.database, s.active,
       CASE WHEN s.restart_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, s.restart_lsn), 0)::int8 END AS retained_bytes,
       CASE WHEN s.confirmed_flush_lsn IS NOT NULL
            THEN greatest(pg_wal_lsn_diff(h.lsn, s.confirmed_flush_lsn), 0)::int8
       END AS unconfirmed_bytes,
       age(s.xmin)::int8 AS xmin_age, age(s.catalog_xmin)::int8 AS catalog_xmin_age,
       to_jsonb(s) ->> 'wal_status' AS wal_status,
       (to_jsonb(s) ->> 'safe_wal_size')::int8 AS safe_wal_bytes,
       (to_jsonb(s) ->> 'inactive_since')::timestamptz AS inactive_since,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidation_reason
  FROM pg_replication_slots s,
       (SELECT CASE WHEN pg_is_in_recovery()
                    THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                    ELSE pg_current_wal_lsn() END AS lsn) h
 ORDER BY s.slot_name
 LIMIT 200",
    rows_max: 200,
};

const CHECKPOINTER_COLUMNS: &[Renamed] = &[
    renamed("timed", &["num_timed", "checkpoints_timed"]),
    renamed("requested", &["num_requested", "checkpoints_req"]),
    renamed("done", &["num_done"]),
    renamed("restartpoints_requested", &["restartpoints_req"]),
    renamed("buffers_written", &["buffers_written", "buffers_checkpoint"]),
    seconds("write_s", &["write_time", "checkpoint_write_time"]),
    seconds("sync_s", &["sync_time", "checkpoint_sync_time"]),
];

const WAL_COLUMNS: &[Renamed] = &[
    renamed("records", &["wal_records"]),
    renamed("full_page_images", &["wal_fpi"]),
    renamed("bytes", &["wal_bytes"]),
    renamed("buffers_full", &["wal_buffers_full"]),
    renamed("writes", &["wal_write"]),
    renamed("syncs", &["wal_sync"]),
    seconds("write_s", &["wal_write_time"]),
    seconds("sync_s", &["wal_sync_time"]),
];

const IO_COLUMNS: &[Renamed] = &[
    seconds("read_s", &["read_time"]),
    seconds("write_s", &["write_time"]),
    seconds("extend_s", &["extend_time"]),
    seconds("fsync_s", &["fsync_time"]),
];

const SLRU_COLUMNS: &[Renamed] = &[
    renamed("blocks_zeroed", &["blks_zeroed"]),
    renamed("blocks_hit", &["blks_hit"]),
    renamed("blocks_read", &["blks_read"]),
    renamed("blocks_written", &["blks_written"]),
    renamed("blocks_exists", &["blks_exists"]),
];

const ARCHIVER_COLUMNS: &[Renamed] = &[
    renamed("archived", &["archived_count"]),
    renamed("failed", &["failed_count"]),
    renamed("last_archived_at", &["last_archived_time"]),
    renamed("last_failed_at", &["last_failed_time"]),
];

const PREFETCH_COLUMNS: &[Renamed] = &[
    renamed("prefetches", &["prefetch"]),
    renamed("hits", &["hit"]),
    renamed("skipped_init", &["skip_init"]),
    renamed("skipped_new", &["skip_new"]),
    renamed("skipped_full_page", &["skip_fpw"]),
    renamed("skipped_repeated", &["skip_rep"]),
    renamed("wal_distance_bytes", &["wal_distance"]),
];

/// The names of statistics views that the server has.
pub(super) type Views = HashSet<String>;

/// What is asked of the server, and how that went.
struct Asking<'a> {
    collector: &'a mut PgStatsCollector,
    cost: &'a mut Cost,
    problems: &'a mut Vec<Problem>,
}

impl Asking<'_> {
    /// The rows of a statement; absent when it failed, which is noted.
    async fn rows(&mut self, query: Query) -> Result<Option<Vec<Row>>, CollectError> {
        self.collector.ask_main(query, &[], self.cost, self.problems).await
    }

    /// The rows as parts of the document.
    async fn list<T: Declared>(&mut self, query: Query) -> Result<Option<Vec<T>>, CollectError> {
        let rows = self.rows(query).await?;
        Ok(rows.map(|rows| rows.iter().filter_map(T::read).collect()))
    }

    async fn one<T: Declared>(&mut self, query: Query) -> Result<Option<T>, CollectError> {
        Ok(self.list(query).await?.and_then(|rows: Vec<T>| rows.into_iter().next()))
    }

    /// The rows of a view.
    async fn view(&mut self, query: Query) -> Result<Option<Vec<JsonRow>>, CollectError> {
        let rows = self.rows(query).await?;
        Ok(rows.map(|rows| rows.iter().filter_map(JsonRow::of).collect()))
    }

    /// The row of a view that has one.
    async fn single(&mut self, query: Query) -> Result<Option<JsonRow>, CollectError> {
        Ok(self.view(query).await?.and_then(|rows| rows.into_iter().next()))
    }

    /// The views of [`VIEWS`] that the server has.
    async fn views(&mut self) -> Result<Views, CollectError> {
        if let Some(known) = &self.collector.views {
            return Ok(known.clone());
        }
        let Some(rows) = self.rows(VIEWS).await? else { return Ok(Views::new()) };
        let views: Views = rows.iter().filter_map(|row| row.text("name")).collect();
        self.collector.views = Some(views.clone());
        Ok(views)
    }
}

impl PgStatsCollector {
    /// Adds what is about the whole server to the maintenance database's document.
    pub(super) async fn add_server(
        &mut self,
        document: &mut Document,
        recovery: Recovery,
        cost: &mut Cost,
        problems: &mut Vec<Problem>,
    ) -> Result<(), CollectError> {
        let mut ask = Asking { collector: self, cost, problems };
        let views = ask.views().await?;
        let has = |view: &str| views.contains(view);
        ask.add_writers(document, has("pg_stat_checkpointer")).await?;
        ask.add_wal(document, has("pg_stat_wal")).await?;
        if has("pg_stat_io") {
            let rows = ask.view(IO).await?;
            document.io = rows.map(|rows| rows.iter().filter_map(io).collect());
        }
        if has("pg_stat_slru") {
            let rows = ask.view(SLRU).await?;
            let read = |row: &JsonRow| row.read(SLRU_COLUMNS);
            document.slru = rows.map(|rows| rows.iter().filter_map(read).collect());
        }
        let row = ask.single(ARCHIVER).await?;
        document.archiver = row.and_then(|row| row.read::<Archiver>(ARCHIVER_COLUMNS));
        document.xid = ask.one::<Xid>(XID).await?;
        if let Some(xid) = &mut document.xid {
            xid.horizon = ask.list::<Horizon>(HORIZON).await?.unwrap_or_default();
        }
        document.replication = ask.list(SENDERS).await?;
        document.slots = ask.list(SLOTS).await?;
        if recovery == Recovery::Standby {
            document.standby = ask.one(STANDBY).await?;
            if has("pg_stat_recovery_prefetch") {
                let row = ask.single(RECOVERY_PREFETCH).await?;
                document.recovery_prefetch = row.and_then(|row| row.read(PREFETCH_COLUMNS));
            }
        }
        ask.add_activity(document).await?;
        ask.add_blocking(document).await?;
        ask.add_progress(document, &views).await?;
        ask.add_prepared(document).await?;
        ask.add_subscriptions(document, &views).await?;
        ask.add_settings(document).await?;
        self.add_statements(document, Account { recovery, cost, problems }).await
    }
}

impl Asking<'_> {
    /// Up to PostgreSQL 16 the background writer's view has the checkpoints, too.
    async fn add_writers(
        &mut self,
        document: &mut Document,
        has_checkpointer: bool,
    ) -> Result<(), CollectError> {
        let bgwriter = self.single(BGWRITER).await?;
        document.bgwriter = bgwriter.as_ref().and_then(|row| row.read::<BgWriter>(&[]));
        let row = if has_checkpointer { self.single(CHECKPOINTER).await? } else { bgwriter };
        document.checkpointer = row.and_then(|row| row.read::<Checkpointer>(CHECKPOINTER_COLUMNS));
        Ok(())
    }

    async fn add_wal(
        &mut self,
        document: &mut Document,
        has_view: bool,
    ) -> Result<(), CollectError> {
        let row = if has_view { self.single(WAL).await? } else { None };
        let wal = row.and_then(|row| row.read::<Wal>(WAL_COLUMNS)).unwrap_or_default();
        let position = self.one::<Wal>(WAL_POSITION).await?.and_then(|wal| wal.position_bytes);
        document.wal = Some(Wal { position_bytes: position, ..wal });
        Ok(())
    }
}

/// Up to PostgreSQL 17 the bytes are what the operations are of.
fn io(row: &JsonRow) -> Option<Io> {
    let io: Io = row.read(IO_COLUMNS)?;
    let Some(size) = row.0.get("op_bytes").and_then(Value::as_u64) else { return Some(io) };
    let bytes = |operations: Option<u64>| operations.map(|count| count.saturating_mul(size));
    Some(Io {
        read_bytes: bytes(io.reads),
        write_bytes: bytes(io.writes),
        extend_bytes: bytes(io.extends),
        ..io
    })
}
