//! Rows of the server as parts of the document.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::sizes::{Answer, Oid, Shown};
use crate::metric::Time;
use crate::metric::pg_stats::{
    DatabaseStats, DatabaseSummary, Index, Relations, Server, Table, Usage,
};

/// A database and whether the role may connect to it.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) oid: Oid,
    pub(super) may_connect: bool,
    pub(super) summary: DatabaseSummary,
}

/// A column that is NULL, negative where a count is due, or not there, is not known.
fn optional<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Option<T> {
    row.try_get::<_, Option<T>>(column).ok().flatten()
}

fn count(row: &Row, column: &str) -> Option<u64> {
    optional::<i64>(row, column).and_then(|value| u64::try_from(value).ok())
}

fn time(row: &Row, column: &str) -> Option<Time> {
    optional::<Timestamp>(row, column).map(Time)
}

fn flag(row: &Row, column: &str) -> bool {
    optional(row, column).unwrap_or(false)
}

/// The row of `queries::SERVER`.
pub(super) fn server(row: &Row) -> Server {
    Server {
        version_num: count(row, "version_num"),
        in_recovery: optional(row, "in_recovery"),
        started_at: time(row, "started_at"),
        max_connections: count(row, "max_connections"),
    }
}

/// A row of `queries::DATABASES`; absent when its name is not text.
pub(super) fn database(row: &Row) -> Option<Database> {
    let stats = DatabaseStats {
        size_bytes: None,
        size_age_s: None,
        backends: count(row, "backends"),
        transactions_committed: count(row, "transactions_committed"),
        transactions_rolledback: count(row, "transactions_rolledback"),
        tuples_returned: count(row, "tuples_returned"),
        tuples_fetched: count(row, "tuples_fetched"),
        tuples_inserted: count(row, "tuples_inserted"),
        tuples_updated: count(row, "tuples_updated"),
        tuples_deleted: count(row, "tuples_deleted"),
        blocks_read: count(row, "blocks_read"),
        blocks_hit: count(row, "blocks_hit"),
        temp_files: count(row, "temp_files"),
        temp_bytes: count(row, "temp_bytes"),
        deadlocks: count(row, "deadlocks"),
        conflicts: count(row, "conflicts"),
        stats_reset: time(row, "stats_reset"),
    };
    let xid_age = count(row, "xid_age");
    let summary = DatabaseSummary { name: optional(row, "name")?, stats, xid_age };
    let oid = optional(row, "oid")?;
    Some(Database { oid, may_connect: flag(row, "may_connect"), summary })
}

/// A row of `queries::TABLES` with its size.
pub(super) fn table(row: &Row, size: Shown) -> Option<Table> {
    Some(Table {
        schema: optional(row, "schema")?,
        name: optional(row, "name")?,
        live_tuples: count(row, "live_tuples"),
        dead_tuples: count(row, "dead_tuples"),
        modified_since_analyze: count(row, "modified_since_analyze"),
        size_bytes: size.bytes,
        size_age_s: size.age_s,
        status: size.status,
        last_vacuum: time(row, "last_vacuum"),
        last_autovacuum: time(row, "last_autovacuum"),
        last_analyze: time(row, "last_analyze"),
        last_autoanalyze: time(row, "last_autoanalyze"),
        vacuum_count: count(row, "vacuum_count"),
        autovacuum_count: count(row, "autovacuum_count"),
        analyze_count: count(row, "analyze_count"),
        autoanalyze_count: count(row, "autoanalyze_count"),
        seq_scans: count(row, "seq_scans"),
        tuples_inserted: count(row, "tuples_inserted"),
        tuples_updated: count(row, "tuples_updated"),
        tuples_deleted: count(row, "tuples_deleted"),
        tuples_hot_updated: count(row, "tuples_hot_updated"),
        xid_age: count(row, "xid_age"),
    })
}

/// A row of `queries::INDEXES` with its size.
pub(super) fn index(row: &Row, size: Shown) -> Option<Index> {
    let scans = count(row, "scans");
    Some(Index {
        schema: optional(row, "schema")?,
        name: optional(row, "name")?,
        table: optional(row, "table_name")?,
        scans,
        tuples_read: count(row, "tuples_read"),
        tuples_returned: count(row, "tuples_returned"),
        size_bytes: size.bytes,
        size_age_s: size.age_s,
        size_status: size.status,
        status: scans.map(|scans| if scans > 0 { Usage::Used } else { Usage::Unused }),
        unique: flag(row, "is_unique"),
        primary: flag(row, "is_primary"),
        valid: flag(row, "is_valid"),
    })
}

/// The totals of a list that is not known to be whole; 0 of 0 when it is empty.
pub(super) fn relations(tables: Option<&[Row]>, indexes: Option<&[Row]>) -> Relations {
    let tables = tables.map(totals);
    let indexes = indexes.map(totals);
    Relations {
        tables_total: tables.map(|t| t.count),
        tables_left_out: tables.map(|t| t.left_out),
        tables_left_out_bytes: tables.map(|t| t.left_out_bytes),
        indexes_total: indexes.map(|t| t.count),
        indexes_left_out: indexes.map(|t| t.left_out),
        indexes_left_out_bytes: indexes.map(|t| t.left_out_bytes),
    }
}

/// The OID of a row of `queries::TABLES`, `INDEXES` or a size.
pub(super) fn oid(row: &Row) -> Option<Oid> {
    optional(row, "oid")
}

/// A row of one of the queries for sizes. A size that is NULL is that of a relation which was
/// dropped while it was asked for.
pub(super) fn size(row: &Row) -> Option<(Oid, Answer)> {
    let answer = match count(row, "size_bytes") {
        Some(bytes) => Answer::Size(bytes),
        None if flag(row, "locked") => Answer::Locked,
        None => return None,
    };
    Some((oid(row)?, answer))
}

#[derive(Clone, Copy)]
struct Totals {
    count: u64,
    left_out: u64,
    left_out_bytes: u64,
}

fn totals(rows: &[Row]) -> Totals {
    let first = |column| rows.first().and_then(|row| count(row, column)).unwrap_or(0);
    let listed = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    let listed_pages: u64 = rows.iter().filter_map(|row| count(row, "pages")).sum();
    let pages = first("total_pages").saturating_sub(listed_pages);
    Totals {
        count: first("total"),
        left_out: first("total").saturating_sub(listed),
        left_out_bytes: pages.saturating_mul(first("block_size")),
    }
}
