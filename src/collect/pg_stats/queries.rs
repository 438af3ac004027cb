//! Statements of the collector. They run on PostgreSQL 10 to 18 as they stand; those whose columns
//! differ from major to major are in [`details`](super::details).
//!
//! The counters come from the `pg_stat_get_*` functions, not from the views: the views join and
//! group every relation of the database before they give the rows that are asked for. No
//! statement here but the three on sizes opens a relation of the user's.
//!
//! Relations come in two steps: a list of all, some in each row, with what is needed to choose from
//! them; and what there is to say of those that were chosen.

use super::{DATABASE_SIZES_MAX, RELATION_SIZES_MAX};
use crate::collect::postgres::Query;

/// Databases of a server. The document that lists them is too large long before.
pub(super) const DATABASES_MAX: u32 = 15_000;
/// The highest `tables_max` and `indexes_max` of a configuration.
pub(super) const RELATIONS_MAX: u32 = 10_000;
/// The rows of a list, of 25 relations each: the 50,000 largest.
const LIST_ROWS_MAX: u32 = 2_001;

/// The schemas whose relations are not the user's.
macro_rules! system_schemas {
    () => {
        "(SELECT oid FROM pg_namespace
              WHERE nspname IN ('pg_catalog', 'information_schema', 'pg_toast'))"
    };
}
pub(super) use system_schemas;

/// The server itself.
pub(super) const SERVER: Query = Query {
    name: "server",
    rows_max: 1,
    sql: "SELECT current_setting('server_version_num')::int8 AS version_num,
       pg_is_in_recovery() AS in_recovery,
       pg_postmaster_start_time() AS started_at,
       current_setting('max_connections')::int8 AS max_connections",
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

/// All tables and materialized views. The largest by their pages come first, those of TOAST
/// included, and those of indexes if `$1` is true: they are dear, and what is measured does not
/// need them.
pub(super) const TABLES: Query = Query {
    name: "tables",
    rows_max: LIST_ROWS_MAX,
    sql: concat!(
        "WITH RECURSIVE parts AS (
    SELECT p.partrelid AS root, p.partrelid AS oid
      FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid AND NOT c.relispartition
     UNION ALL
    SELECT p.root, i.inhrelid FROM parts p JOIN pg_inherits i ON i.inhparent = p.oid),
indexes AS (
    SELECT i.indrelid AS oid, sum(c.relpages::int8)::int8 AS pages
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
     WHERE $1
     GROUP BY i.indrelid),
relations AS (
    SELECT c.oid, coalesce(r.root, 0::oid) AS root,
           (c.relpages + coalesce(x.pages, 0) + coalesce(o.relpages, 0) + coalesce(y.pages, 0))
               * current_setting('block_size')::int8 AS bytes,
           greatest(CASE WHEN c.relfrozenxid <> '0'::xid THEN age(c.relfrozenxid) END,
                    CASE WHEN o.relfrozenxid <> '0'::xid THEN age(o.relfrozenxid) END)::int8 AS age
      FROM pg_class c
      LEFT JOIN pg_class o ON o.oid = c.reltoastrelid
      LEFT JOIN indexes x ON x.oid = c.oid
      LEFT JOIN indexes y ON y.oid = c.reltoastrelid
      LEFT JOIN parts r ON r.oid = c.oid
     WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
       AND c.relnamespace NOT IN ",
        system_schemas!(),
        "),
places AS (
    SELECT r.*, row_number() OVER (ORDER BY r.bytes DESC, r.oid) AS place,
           count(*) OVER () AS total, (sum(r.bytes) OVER ())::int8 AS total_bytes
      FROM relations r)
SELECT min(p.total) AS total, min(p.total_bytes) AS total_bytes, array_agg(p.oid) AS oids,
       array_agg(p.root) AS roots, array_agg(p.bytes) AS bytes, array_agg(p.age) AS ages,
       array_agg(pg_stat_get_tuples_returned(p.oid) + pg_stat_get_tuples_fetched(p.oid)
                 + pg_stat_get_tuples_inserted(p.oid) + pg_stat_get_tuples_updated(p.oid)
                 + pg_stat_get_tuples_deleted(p.oid)) AS activity
  FROM places p
 WHERE p.place <= 50000
 GROUP BY p.place / 25
 ORDER BY p.place / 25"
    ),
};

/// All indexes of such tables, by the same rule.
pub(super) const INDEXES: Query = Query {
    name: "indexes",
    rows_max: LIST_ROWS_MAX,
    sql: concat!(
        "WITH relations AS (
    SELECT c.oid, c.relpages * current_setting('block_size')::int8 AS bytes
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
     WHERE c.relpersistence <> 't' AND c.relnamespace NOT IN ",
        system_schemas!(),
        "),
places AS (
    SELECT r.*, row_number() OVER (ORDER BY r.bytes DESC, r.oid) AS place,
           count(*) OVER () AS total, (sum(r.bytes) OVER ())::int8 AS total_bytes
      FROM relations r)
SELECT min(p.total) AS total, min(p.total_bytes) AS total_bytes, array_agg(p.oid) AS oids,
       array_agg(p.bytes) AS bytes,
       array_agg(pg_stat_get_numscans(p.oid) + pg_stat_get_tuples_returned(p.oid)) AS activity
  FROM places p
 WHERE p.place <= 50000
 GROUP BY p.place / 25
 ORDER BY p.place / 25"
    ),
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
    SELECT c.oid, c.reltoastrelid AS toast,
           EXISTS (SELECT FROM blocked b WHERE b.oid IN (c.oid, c.reltoastrelid)) AS locked
      FROM pg_class c
     WHERE c.oid = ANY ($1::oid[])),
sizes AS (
    SELECT r.oid, r.locked,
           CASE WHEN NOT r.locked
                THEN pg_relation_size(r.oid, 'main') + pg_relation_size(r.oid, 'fsm')
                     + pg_relation_size(r.oid, 'vm') + pg_relation_size(r.oid, 'init')
           END AS heap_bytes,
           CASE WHEN NOT r.locked THEN pg_indexes_size(r.oid) END AS index_bytes,
           CASE WHEN NOT r.locked AND r.toast <> 0 THEN pg_total_relation_size(r.toast) END
               AS toast_bytes
      FROM relations r)
SELECT s.oid, s.locked, s.index_bytes, s.toast_bytes,
       s.heap_bytes + s.index_bytes + coalesce(s.toast_bytes, 0) AS size_bytes
  FROM sizes s",
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
