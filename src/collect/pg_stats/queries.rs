//! Every statement of the collector. They run on PostgreSQL 10 to 18 as they stand.
//!
//! The counters come from the `pg_stat_get_*` functions, not from the views: the views join and
//! group every relation of the database before they give the rows that are asked for. No
//! statement here but the three on sizes opens a relation of the user's.

use super::{DATABASE_SIZES_MAX, RELATION_SIZES_MAX};
use crate::collect::postgres::Query;

/// Databases of a server. The document that lists them is too large long before.
const DATABASES_MAX: u32 = 20_000;
/// The highest `tables_max` and `indexes_max` of a configuration.
const RELATIONS_MAX: u32 = 10_000;

/// The server itself.
pub(super) const SERVER: Query = Query {
    name: "server",
    rows_max: 1,
    sql: "SELECT current_setting('server_version_num')::int8 AS version_num,
       pg_is_in_recovery() AS in_recovery,
       pg_postmaster_start_time() AS started_at,
       current_setting('max_connections')::int8 AS max_connections",
};

/// Every database that can be connected to, with its counters.
pub(super) const DATABASES: Query = Query {
    name: "databases",
    rows_max: DATABASES_MAX,
    sql: "SELECT d.oid, d.datname AS name,
       has_database_privilege(d.oid, 'CONNECT') AS may_connect,
       age(d.datfrozenxid)::int8 AS xid_age,
       pg_stat_get_db_numbackends(d.oid)::int8 AS backends,
       pg_stat_get_db_xact_commit(d.oid) AS transactions_committed,
       pg_stat_get_db_xact_rollback(d.oid) AS transactions_rolledback,
       pg_stat_get_db_tuples_returned(d.oid) AS tuples_returned,
       pg_stat_get_db_tuples_fetched(d.oid) AS tuples_fetched,
       pg_stat_get_db_tuples_inserted(d.oid) AS tuples_inserted,
       pg_stat_get_db_tuples_updated(d.oid) AS tuples_updated,
       pg_stat_get_db_tuples_deleted(d.oid) AS tuples_deleted,
       pg_stat_get_db_blocks_fetched(d.oid)
           - pg_stat_get_db_blocks_hit(d.oid) AS blocks_read,
       pg_stat_get_db_blocks_hit(d.oid) AS blocks_hit,
       pg_stat_get_db_temp_files(d.oid) AS temp_files,
       pg_stat_get_db_temp_bytes(d.oid) AS temp_bytes,
       pg_stat_get_db_deadlocks(d.oid) AS deadlocks,
       pg_stat_get_db_conflict_all(d.oid) AS conflicts,
       pg_stat_get_db_stat_reset_time(d.oid) AS stats_reset
  FROM pg_database d
 WHERE d.datallowconn AND NOT d.datistemplate AND d.datconnlimit <> -2
 ORDER BY d.datname",
};

/// Sizes of the databases `$1`; those the role may not measure are left out.
pub(super) const DATABASE_SIZES: Query = Query {
    name: "database_sizes",
    rows_max: DATABASE_SIZES_MAX,
    sql: "SELECT d.oid, false AS locked, pg_database_size(d.oid) AS size_bytes
  FROM pg_database d
 WHERE d.oid = ANY ($1::oid[])
   AND (has_database_privilege(d.oid, 'CONNECT')
        OR pg_has_role('pg_read_all_stats', 'MEMBER'))",
};

/// The `$1` largest tables and materialized views by their pages, with the totals of all.
pub(super) const TABLES: Query = Query {
    name: "tables",
    rows_max: RELATIONS_MAX,
    sql: "SELECT t.oid, n.nspname AS schema, t.relname AS name, t.total, t.total_pages,
       t.relpages AS pages, current_setting('block_size')::int8 AS block_size,
       CASE WHEN t.relfrozenxid <> '0'::xid THEN age(t.relfrozenxid)::int8 END AS xid_age,
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
       pg_stat_get_tuples_inserted(t.oid) AS tuples_inserted,
       pg_stat_get_tuples_updated(t.oid) AS tuples_updated,
       pg_stat_get_tuples_deleted(t.oid) AS tuples_deleted,
       pg_stat_get_tuples_hot_updated(t.oid) AS tuples_hot_updated
  FROM (SELECT c.oid, c.relname, c.relnamespace, c.relfrozenxid, c.relpages::int8 AS relpages,
               count(*) OVER () AS total,
               (sum(c.relpages::int8) OVER ())::int8 AS total_pages
          FROM pg_class c
         WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
           AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace
                                       WHERE nspname IN ('pg_catalog', 'information_schema',
                                                         'pg_toast'))
         ORDER BY c.relpages DESC, c.oid
         LIMIT $1) t
  JOIN pg_namespace n ON n.oid = t.relnamespace
 ORDER BY t.relpages DESC, t.oid",
};

/// The `$1` largest indexes of such tables.
pub(super) const INDEXES: Query = Query {
    name: "indexes",
    rows_max: RELATIONS_MAX,
    sql: "SELECT t.oid, n.nspname AS schema, t.relname AS name, t.table_name AS table, t.total,
       t.total_pages, t.relpages AS pages, current_setting('block_size')::int8 AS block_size,
       t.indisunique AS unique, t.indisprimary AS primary, t.indisvalid AS valid,
       pg_stat_get_numscans(t.oid) AS scans,
       pg_stat_get_tuples_returned(t.oid) AS tuples_read,
       pg_stat_get_tuples_fetched(t.oid) AS tuples_returned
  FROM (SELECT c.oid, c.relname, c.relnamespace, c.relpages::int8 AS relpages,
               r.relname AS table_name, i.indisunique, i.indisprimary, i.indisvalid,
               count(*) OVER () AS total,
               (sum(c.relpages::int8) OVER ())::int8 AS total_pages
          FROM pg_index i
          JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
          JOIN pg_class r ON r.oid = i.indrelid AND r.relkind IN ('r', 'm')
         WHERE c.relpersistence <> 't'
           AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace
                                       WHERE nspname IN ('pg_catalog', 'information_schema',
                                                         'pg_toast'))
         ORDER BY c.relpages DESC, c.oid
         LIMIT $1) t
  JOIN pg_namespace n ON n.oid = t.relnamespace
 ORDER BY t.relpages DESC, t.oid",
};

/// Sizes of the tables `$1`, with TOAST and indexes.
///
/// A size function opens the table, its TOAST table and every index of the two. One of them that
/// someone locks, or waits to lock, is not touched: the newcomer would queue. Databases share
/// OIDs, so the locks are those of this database or of shared relations.
pub(super) const TABLE_SIZES: Query = Query {
    name: "table_sizes",
    rows_max: RELATION_SIZES_MAX,
    sql: "WITH locked AS (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL
       AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
blocked AS (
    SELECT l.relation AS oid FROM locked l
     UNION
    SELECT i.indrelid FROM locked l JOIN pg_index i ON i.indexrelid = l.relation),
relations AS (
    SELECT c.oid, EXISTS (SELECT FROM blocked b WHERE b.oid IN (c.oid, c.reltoastrelid)) AS locked
      FROM pg_class c
     WHERE c.oid = ANY ($1::oid[]))
SELECT r.oid, r.locked, CASE WHEN NOT r.locked THEN pg_total_relation_size(r.oid) END AS size_bytes
  FROM relations r",
};

/// Sizes of the indexes `$1`, by the same rule.
pub(super) const INDEX_SIZES: Query = Query {
    name: "index_sizes",
    rows_max: RELATION_SIZES_MAX,
    sql: "WITH locked AS (
    SELECT l.relation FROM pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.relation IS NOT NULL
       AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
relations AS (
    SELECT c.oid, EXISTS (SELECT FROM locked l WHERE l.relation = c.oid) AS locked
      FROM pg_class c
     WHERE c.oid = ANY ($1::oid[]))
SELECT r.oid, r.locked, CASE WHEN NOT r.locked THEN pg_relation_size(r.oid) END AS size_bytes
  FROM relations r",
};
