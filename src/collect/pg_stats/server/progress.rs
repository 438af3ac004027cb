//! How far long commands have come, under one set of names.

use super::{Asking, CollectError, Document, Query, Views};
use crate::metric::pg_activity::Progress;

/// Of each view: its name, and how its commands are read.
const PROGRESS: [(&str, Query); 6] = [
    ("pg_stat_progress_vacuum", VACUUM),
    ("pg_stat_progress_analyze", ANALYZE),
    ("pg_stat_progress_create_index", CREATE_INDEX),
    ("pg_stat_progress_cluster", CLUSTER),
    ("pg_stat_progress_basebackup", BASEBACKUP),
    ("pg_stat_progress_copy", COPY),
];

/// Heap blocks are read twice, by two counts.
const VACUUM: Query = Query {
    name: "progress_vacuum",
    sql: "SELECT 'vacuum' AS kind, v.pid::int8 AS pid, v.datname AS database,
       coalesce(n.nspname || '.' || c.relname, v.relid::text) AS relation, v.phase,
       CASE WHEN v.relid IS NULL THEN true END AS hidden,
       CASE WHEN v.phase IS NOT NULL THEN 'blocks' END AS unit,
       CASE WHEN v.phase = 'vacuuming heap' THEN v.heap_blks_vacuumed
            ELSE v.heap_blks_scanned END AS done,
       v.heap_blks_total AS total, v.index_vacuum_count AS index_vacuums,
       (j.row ->> 'indexes_total')::int8 AS indexes_total,
       (j.row ->> 'indexes_processed')::int8 AS indexes_done,
       coalesce(j.row ->> 'num_dead_item_ids', j.row ->> 'num_dead_tuples')::int8 AS dead_tuples,
       (j.row ->> 'max_dead_tuples')::int8 AS dead_tuples_max,
       (j.row ->> 'dead_tuple_bytes')::int8 AS dead_tuple_bytes,
       (j.row ->> 'max_dead_tuple_bytes')::int8 AS dead_tuple_bytes_max,
       (j.row ->> 'delay_time')::float8 / 1000 AS delay_s
  FROM pg_stat_progress_vacuum v
 CROSS JOIN LATERAL (SELECT to_jsonb(v) AS row) j
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

const ANALYZE: Query = Query {
    name: "progress_analyze",
    sql: "SELECT 'analyze' AS kind, v.pid::int8 AS pid, v.datname AS database,
       coalesce(n.nspname || '.' || c.relname, v.relid::text) AS relation, v.phase,
       CASE WHEN v.relid IS NULL THEN true END AS hidden,
       CASE WHEN v.phase IS NOT NULL THEN 'blocks' END AS unit,
       v.sample_blks_scanned AS done, v.sample_blks_total AS total,
       (to_jsonb(v) ->> 'delay_time')::float8 / 1000 AS delay_s
  FROM pg_stat_progress_analyze v
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

/// Blocks while the table or the index is read, rows while they are put into the index, and other
/// transactions while these are waited for.
const CREATE_INDEX: Query = Query {
    name: "progress_create_index",
    sql: "SELECT 'create_index' AS kind, v.pid::int8 AS pid, v.datname AS database,
       coalesce(n.nspname || '.' || c.relname, v.relid::text) AS relation, v.command, v.phase,
       CASE WHEN v.relid IS NULL THEN true END AS hidden, u.unit,
       CASE u.unit WHEN 'lockers' THEN v.lockers_done WHEN 'tuples' THEN v.tuples_done
                   WHEN 'blocks' THEN v.blocks_done END AS done,
       nullif(CASE u.unit WHEN 'lockers' THEN v.lockers_total WHEN 'tuples' THEN v.tuples_total
                          WHEN 'blocks' THEN v.blocks_total END, 0) AS total
  FROM pg_stat_progress_create_index v
 CROSS JOIN LATERAL (SELECT CASE WHEN v.phase LIKE 'waiting for %' THEN 'lockers'
                                 WHEN v.blocks_total > 0 THEN 'blocks'
                                 WHEN v.phase IS NOT NULL THEN 'tuples' END AS unit) u
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

/// Blocks when the table is read in its order, rows when in that of an index.
const CLUSTER: Query = Query {
    name: "progress_cluster",
    sql: "SELECT 'cluster' AS kind, v.pid::int8 AS pid, v.datname AS database,
       coalesce(n.nspname || '.' || c.relname, v.relid::text) AS relation, v.command, v.phase,
       CASE WHEN v.relid IS NULL THEN true END AS hidden,
       CASE WHEN v.phase IS NULL THEN NULL WHEN v.heap_blks_total > 0 THEN 'blocks'
            ELSE 'tuples' END AS unit,
       CASE WHEN v.heap_blks_total > 0 THEN v.heap_blks_scanned
            ELSE v.heap_tuples_scanned END AS done,
       nullif(v.heap_blks_total, 0) AS total
  FROM pg_stat_progress_cluster v
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

const BASEBACKUP: Query = Query {
    name: "progress_basebackup",
    sql: "SELECT 'basebackup' AS kind, v.pid::int8 AS pid, v.phase,
       CASE WHEN v.phase IS NULL THEN true END AS hidden,
       CASE WHEN v.phase IS NOT NULL THEN 'bytes' END AS unit,
       v.backup_streamed AS done, v.backup_total AS total
  FROM pg_stat_progress_basebackup v
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

const COPY: Query = Query {
    name: "progress_copy",
    sql: "SELECT 'copy' AS kind, v.pid::int8 AS pid, v.datname AS database,
       coalesce(n.nspname || '.' || c.relname, nullif(v.relid, 0::oid)::text) AS relation,
       v.command, CASE WHEN v.relid IS NULL THEN true END AS hidden,
       CASE WHEN v.relid IS NOT NULL THEN 'bytes' END AS unit,
       v.bytes_processed AS done, nullif(v.bytes_total, 0) AS total
  FROM pg_stat_progress_copy v
  LEFT JOIN pg_class c ON c.oid = v.relid AND v.datname = current_database()
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY v.pid
 LIMIT 50",
    rows_max: 50,
};

impl Asking<'_> {
    /// Adds what is running. Absent when none of the views could be read.
    pub(super) async fn add_progress(
        &mut self,
        document: &mut Document,
        views: &Views,
    ) -> Result<(), CollectError> {
        for (view, query) in PROGRESS {
            if views.contains(view)
                && let Some(found) = self.list::<Progress>(query).await?
            {
                document.progress.get_or_insert_default().extend(found);
            }
        }
        Ok(())
    }
}
