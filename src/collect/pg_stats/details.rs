//! The statements whose columns depend on the server's [`Level`].

use super::level::Level;
use super::queries::{DATABASES_MAX, RELATIONS_MAX};
use crate::collect::postgres::Query;

/// The counters of a database `d`, as every server has them.
macro_rules! database_counters {
    () => {
        "pg_stat_get_db_tuples_returned(d.oid) AS tuples_returned,
       pg_stat_get_db_tuples_fetched(d.oid) AS tuples_fetched,
       pg_stat_get_db_tuples_inserted(d.oid) AS tuples_inserted,
       pg_stat_get_db_tuples_updated(d.oid) AS tuples_updated,
       pg_stat_get_db_tuples_deleted(d.oid) AS tuples_deleted,
       pg_stat_get_db_blocks_fetched(d.oid)
           - pg_stat_get_db_blocks_hit(d.oid) AS blocks_read,
       pg_stat_get_db_blocks_hit(d.oid) AS blocks_hit,
       pg_stat_get_db_blk_read_time(d.oid) / 1000 AS block_read_s,
       pg_stat_get_db_blk_write_time(d.oid) / 1000 AS block_write_s,
       pg_stat_get_db_stat_reset_time(d.oid) AS stats_reset"
    };
}

macro_rules! databases {
    ($($more:ident),*) => {
        Query {
            name: "databases",
            rows_max: DATABASES_MAX,
            sql: concat!(
                "SELECT d.oid, d.datname AS name,
       has_database_privilege(d.oid, 'CONNECT') AS may_connect,
       age(d.datfrozenxid)::int8 AS xid_age,
       mxid_age(d.datminmxid)::int8 AS multixact_age,
       pg_stat_get_db_numbackends(d.oid)::int8 AS backends,
       pg_stat_get_db_xact_commit(d.oid) AS transactions_committed,
       pg_stat_get_db_xact_rollback(d.oid) AS transactions_rolledback,
       pg_stat_get_db_temp_files(d.oid) AS temp_files,
       pg_stat_get_db_temp_bytes(d.oid) AS temp_bytes,
       pg_stat_get_db_deadlocks(d.oid) AS deadlocks,
       pg_stat_get_db_conflict_all(d.oid) AS conflicts,
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_tablespace(d.oid) END
           AS conflicts_tablespace,
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_lock(d.oid) END
           AS conflicts_lock,
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_snapshot(d.oid) END
           AS conflicts_snapshot,
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_bufferpin(d.oid) END
           AS conflicts_bufferpin,
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_startup_deadlock(d.oid) END
           AS conflicts_deadlock,
       ",
                database_counters!(),
                $($more!(),)*
                "
  FROM pg_database d
 WHERE d.datallowconn AND NOT d.datistemplate AND d.datconnlimit <> -2
 ORDER BY d.datname"
            ),
        }
    };
}

macro_rules! databases_12 {
    () => {
        ",
       pg_stat_get_db_checksum_failures(d.oid) AS checksum_failures,
       pg_stat_get_db_checksum_last_failure(d.oid) AS checksum_last_failure"
    };
}

macro_rules! databases_14 {
    () => {
        ",
       pg_stat_get_db_session_time(d.oid) / 1000 AS session_s,
       pg_stat_get_db_active_time(d.oid) / 1000 AS active_s,
       pg_stat_get_db_idle_in_transaction_time(d.oid) / 1000 AS idle_in_transaction_s,
       pg_stat_get_db_sessions(d.oid) AS sessions,
       pg_stat_get_db_sessions_abandoned(d.oid) AS sessions_abandoned,
       pg_stat_get_db_sessions_fatal(d.oid) AS sessions_fatal,
       pg_stat_get_db_sessions_killed(d.oid) AS sessions_killed"
    };
}

macro_rules! databases_16 {
    () => {
        ",
       CASE WHEN pg_is_in_recovery() THEN pg_stat_get_db_conflict_logicalslot(d.oid) END
           AS conflicts_logicalslot"
    };
}

macro_rules! databases_18 {
    () => {
        ",
       pg_stat_get_db_parallel_workers_to_launch(d.oid) AS parallel_workers_planned,
       pg_stat_get_db_parallel_workers_launched(d.oid) AS parallel_workers_launched"
    };
}

/// Every database that can be connected to, with its counters.
pub(super) fn databases(level: Level) -> Query {
    match level {
        Level::V10 => databases!(),
        Level::V12 | Level::V13 => databases!(databases_12),
        Level::V14 => databases!(databases_12, databases_14),
        Level::V16 => databases!(databases_12, databases_14, databases_16),
        Level::V18 => databases!(databases_12, databases_14, databases_16, databases_18),
    }
}

/// What belongs to no database: the statistics have it as the database 0. Level 12.
pub(super) const SHARED_OBJECTS: Query = Query {
    name: "shared_objects",
    rows_max: 1,
    sql: concat!(
        "SELECT ",
        database_counters!(),
        databases_12!(),
        "
  FROM (SELECT 0::oid AS oid) d"
    ),
};

macro_rules! tables {
    ($($more:ident),*) => {
        Query {
            name: "table_details",
            rows_max: RELATIONS_MAX,
            sql: concat!(
                "SELECT t.oid, n.nspname AS schema, t.relname AS name,
       CASE WHEN t.relfrozenxid <> '0'::xid THEN age(t.relfrozenxid)::int8 END AS xid_age,
       CASE WHEN t.relminmxid <> '0'::xid THEN mxid_age(t.relminmxid)::int8 END AS multixact_age,
       CASE WHEN o.relfrozenxid <> '0'::xid THEN age(o.relfrozenxid)::int8 END AS toast_xid_age,
       CASE WHEN o.relminmxid <> '0'::xid THEN mxid_age(o.relminmxid)::int8 END
           AS toast_multixact_age,
       CASE WHEN t.reltuples > 0 OR t.reltuples = 0
                 AND (t.relpages > 0 OR current_setting('server_version_num')::int8 >= 140000)
            THEN t.reltuples::int8 END AS planner_tuples,
       pg_stat_get_live_tuples(t.oid) AS live_tuples,
       pg_stat_get_dead_tuples(t.oid) AS dead_tuples,
       pg_stat_get_mod_since_analyze(t.oid) AS modified_since_analyze,
       pg_stat_get_last_vacuum_time(t.oid) AS last_vacuum,
       pg_stat_get_last_autovacuum_time(t.oid) AS last_autovacuum,
       pg_stat_get_last_analyze_time(t.oid) AS last_analyze,
       pg_stat_get_last_autoanalyze_time(t.oid) AS last_autoanalyze,
       pg_stat_get_vacuum_count(t.oid) AS vacuum_count,
       pg_stat_get_autovacuum_count(t.oid) AS autovacuum_count,
       pg_stat_get_analyze_count(t.oid) AS analyze_count,
       pg_stat_get_autoanalyze_count(t.oid) AS autoanalyze_count,
       pg_stat_get_numscans(t.oid) AS seq_scans,
       pg_stat_get_tuples_returned(t.oid) AS seq_tuples_read,
       x.scans AS index_scans,
       x.fetched + pg_stat_get_tuples_fetched(t.oid) AS index_tuples_fetched,
       pg_stat_get_tuples_inserted(t.oid) AS tuples_inserted,
       pg_stat_get_tuples_updated(t.oid) AS tuples_updated,
       pg_stat_get_tuples_deleted(t.oid) AS tuples_deleted,
       pg_stat_get_tuples_hot_updated(t.oid) AS tuples_hot_updated,
       pg_stat_get_blocks_fetched(t.oid) - pg_stat_get_blocks_hit(t.oid) AS heap_blocks_read,
       pg_stat_get_blocks_hit(t.oid) AS heap_blocks_hit,
       x.blocks_fetched - x.blocks_hit AS index_blocks_read,
       x.blocks_hit AS index_blocks_hit,
       pg_stat_get_blocks_fetched(o.oid) - pg_stat_get_blocks_hit(o.oid) AS toast_blocks_read,
       pg_stat_get_blocks_hit(o.oid) AS toast_blocks_hit,
       y.blocks_fetched - y.blocks_hit AS toast_index_blocks_read,
       y.blocks_hit AS toast_index_blocks_hit",
                $($more!(),)*
                "
  FROM pg_class t
  JOIN pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_class o ON o.oid = t.reltoastrelid
  LEFT JOIN LATERAL (
       SELECT sum(pg_stat_get_numscans(i.indexrelid))::int8 AS scans,
              sum(pg_stat_get_tuples_fetched(i.indexrelid))::int8 AS fetched,
              sum(pg_stat_get_blocks_fetched(i.indexrelid))::int8 AS blocks_fetched,
              sum(pg_stat_get_blocks_hit(i.indexrelid))::int8 AS blocks_hit
         FROM pg_index i WHERE i.indrelid = t.oid) x ON true
  LEFT JOIN LATERAL (
       SELECT sum(pg_stat_get_blocks_fetched(i.indexrelid))::int8 AS blocks_fetched,
              sum(pg_stat_get_blocks_hit(i.indexrelid))::int8 AS blocks_hit
         FROM pg_index i WHERE i.indrelid = o.oid) y ON true
 WHERE t.oid = ANY ($1::oid[])"
            ),
        }
    };
}

macro_rules! tables_13 {
    () => {
        ",
       pg_stat_get_ins_since_vacuum(t.oid) AS inserted_since_vacuum"
    };
}

macro_rules! tables_16 {
    () => {
        ",
       pg_stat_get_tuples_newpage_updated(t.oid) AS tuples_newpage_updated,
       pg_stat_get_lastscan(t.oid) AS last_seq_scan,
       (SELECT max(pg_stat_get_lastscan(i.indexrelid))
          FROM pg_index i WHERE i.indrelid = t.oid) AS last_index_scan"
    };
}

macro_rules! tables_18 {
    () => {
        ",
       pg_stat_get_total_vacuum_time(t.oid) / 1000 AS vacuum_s,
       pg_stat_get_total_autovacuum_time(t.oid) / 1000 AS autovacuum_s,
       pg_stat_get_total_analyze_time(t.oid) / 1000 AS analyze_s,
       pg_stat_get_total_autoanalyze_time(t.oid) / 1000 AS autoanalyze_s"
    };
}

/// The tables `$1`.
pub(super) fn tables(level: Level) -> Query {
    match level {
        Level::V10 | Level::V12 => tables!(),
        Level::V13 | Level::V14 => tables!(tables_13),
        Level::V16 => tables!(tables_13, tables_16),
        Level::V18 => tables!(tables_13, tables_16, tables_18),
    }
}

macro_rules! indexes {
    ($($more:expr)?) => {
        Query {
            name: "index_details",
            rows_max: RELATIONS_MAX,
            sql: concat!(
                "SELECT t.oid, n.nspname AS schema, t.relname AS name, r.relname AS table,
       i.indisunique AS unique, i.indisprimary AS primary, i.indisvalid AS valid,
       pg_stat_get_numscans(t.oid) AS scans,
       pg_stat_get_tuples_returned(t.oid) AS tuples_read,
       pg_stat_get_tuples_fetched(t.oid) AS tuples_returned,
       pg_stat_get_blocks_fetched(t.oid) - pg_stat_get_blocks_hit(t.oid) AS blocks_read,
       pg_stat_get_blocks_hit(t.oid) AS blocks_hit",
                $($more,)?
                "
  FROM pg_class t
  JOIN pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_index i ON i.indexrelid = t.oid
  JOIN pg_class r ON r.oid = i.indrelid
 WHERE t.oid = ANY ($1::oid[])"
            ),
        }
    };
}

/// The indexes `$1`.
pub(super) fn indexes(level: Level) -> Query {
    if level >= Level::V16 {
        indexes!(
            ",
       pg_stat_get_lastscan(t.oid) AS last_scan"
        )
    } else {
        indexes!()
    }
}

/// Partitioned tables that are not a part of another one, those of `$1` first; the sums are over
/// the tables at the ends of the tree.
pub(super) const PARTITIONED: Query = Query {
    name: "partitioned",
    rows_max: 50,
    sql: concat!(
        "WITH RECURSIVE roots AS (
    SELECT p.oid, p.relname, p.relnamespace, count(*) OVER () AS total
      FROM pg_partitioned_table o JOIN pg_class p ON p.oid = o.partrelid
     WHERE NOT p.relispartition AND p.relpersistence <> 't'
       AND p.relnamespace NOT IN ",
        super::queries::system_schemas!(),
        "
     ORDER BY array_position($1::oid[], p.oid) NULLS LAST, p.oid
     LIMIT 50),
tree AS (
    SELECT r.oid AS root, r.oid, 'p'::\"char\" AS kind FROM roots r
     UNION ALL
    SELECT t.root, c.oid, c.relkind
      FROM tree t
      JOIN pg_inherits i ON i.inhparent = t.oid
      JOIN pg_class c ON c.oid = i.inhrelid),
parts AS (
    SELECT t.root, count(*) AS parts,
           max(CASE WHEN c.relfrozenxid <> '0'::xid THEN age(c.relfrozenxid)::int8 END) AS xid_age,
           sum(pg_stat_get_live_tuples(t.oid))::int8 AS live_tuples,
           sum(pg_stat_get_dead_tuples(t.oid))::int8 AS dead_tuples,
           sum(pg_stat_get_mod_since_analyze(t.oid))::int8 AS modified_since_analyze,
           sum(pg_stat_get_numscans(t.oid))::int8 AS seq_scans,
           sum(pg_stat_get_tuples_returned(t.oid))::int8 AS seq_tuples_read,
           sum((SELECT sum(pg_stat_get_numscans(i.indexrelid))
                  FROM pg_index i WHERE i.indrelid = t.oid))::int8 AS index_scans,
           sum(pg_stat_get_tuples_inserted(t.oid))::int8 AS tuples_inserted,
           sum(pg_stat_get_tuples_updated(t.oid))::int8 AS tuples_updated,
           sum(pg_stat_get_tuples_deleted(t.oid))::int8 AS tuples_deleted,
           sum(pg_stat_get_tuples_hot_updated(t.oid))::int8 AS tuples_hot_updated
      FROM tree t JOIN pg_class c ON c.oid = t.oid
     WHERE t.kind IN ('r', 'f')
     GROUP BY t.root)
SELECT r.oid, r.total, n.nspname AS schema, r.relname AS name, coalesce(p.parts, 0) AS parts,
       p.xid_age, p.live_tuples, p.dead_tuples, p.modified_since_analyze, p.seq_scans,
       p.seq_tuples_read, p.index_scans, p.tuples_inserted, p.tuples_updated, p.tuples_deleted,
       p.tuples_hot_updated
  FROM roots r
  JOIN pg_namespace n ON n.oid = r.relnamespace
  LEFT JOIN parts p ON p.root = r.oid"
    ),
};
