//! `pg_stats`: one PostgreSQL database; the cluster rides on the maintenance database's metric.

use serde::Serialize;

use super::shape::Kind::{
    Amount, Any, Array, Bool, Count, Name, Number, Object, OneOf, Text, Time as At,
};
use super::shape::{Field, STATUS, optional, required};
use super::{Status, Time};

/// One database at one time. Counters are PostgreSQL's own, since its last statistics reset.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "pg_stats")]
pub struct PgStats {
    /// When the collection began.
    pub timestamp: Time,
    /// The database's name.
    pub database: String,
    /// `ok`, or why the first absent part is absent.
    pub status: Status,
    /// Each query that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// The database's own row; absent when it could not be read.
    #[serde(flatten)]
    pub own: Option<DatabaseStats>,
    /// The largest tables; absent when they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<Table>>,
    /// The largest indexes; absent when they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexes: Option<Vec<Index>>,
    /// How much `tables` and `indexes` leave out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relations: Option<Relations>,
    /// Every database of the cluster, on the maintenance database's metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub databases: Option<Vec<DatabaseSummary>>,
    /// The server, on the maintenance database's metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// What this collection asked of the server, on the maintenance database's metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// A query that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The query's name in the collector.
    pub query: &'static str,
    /// What it means for the numbers.
    pub status: Status,
    /// SQLSTATE, when the server gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlstate: Option<String>,
}

/// A database's row of `pg_stat_database`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DatabaseStats {
    /// `pg_database_size`, kept for some minutes; its age stands beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// How old `size_bytes` is, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_age_s: Option<u64>,
    /// Sessions connected now, the agent's included.
    pub backends: Option<u64>,
    /// `xact_commit`.
    pub transactions_committed: Option<u64>,
    /// `xact_rollback`.
    pub transactions_rolledback: Option<u64>,
    /// `tup_returned`.
    pub tuples_returned: Option<u64>,
    /// `tup_fetched`.
    pub tuples_fetched: Option<u64>,
    /// `tup_inserted`.
    pub tuples_inserted: Option<u64>,
    /// `tup_updated`.
    pub tuples_updated: Option<u64>,
    /// `tup_deleted`.
    pub tuples_deleted: Option<u64>,
    /// `blks_read`, blocks.
    pub blocks_read: Option<u64>,
    /// `blks_hit`, blocks.
    pub blocks_hit: Option<u64>,
    /// `temp_files`.
    pub temp_files: Option<u64>,
    /// `temp_bytes`.
    pub temp_bytes: Option<u64>,
    /// `deadlocks`.
    pub deadlocks: Option<u64>,
    /// `conflicts`, only on a standby.
    pub conflicts: Option<u64>,
    /// When these counters were last set to zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats_reset: Option<Time>,
}

/// A database in the list of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DatabaseSummary {
    /// Its name.
    pub name: String,
    /// Its numbers.
    #[serde(flatten)]
    pub stats: DatabaseStats,
    /// `age(datfrozenxid)`, transactions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid_age: Option<u64>,
}

/// One table or materialized view.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `n_live_tup`, an estimate.
    pub live_tuples: Option<u64>,
    /// `n_dead_tup`, an estimate.
    pub dead_tuples: Option<u64>,
    /// `n_mod_since_analyze`, an estimate.
    pub modified_since_analyze: Option<u64>,
    /// `pg_total_relation_size`: heap, TOAST, indexes, maps. Absent: see `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// How old `size_bytes` is, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_age_s: Option<u64>,
    /// Why `size_bytes` is absent or not fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Null: never.
    pub last_vacuum: Option<Time>,
    /// Null: never.
    pub last_autovacuum: Option<Time>,
    /// Null: never.
    pub last_analyze: Option<Time>,
    /// Null: never.
    pub last_autoanalyze: Option<Time>,
    /// By hand.
    pub vacuum_count: Option<u64>,
    /// By autovacuum.
    pub autovacuum_count: Option<u64>,
    /// By hand.
    pub analyze_count: Option<u64>,
    /// By autovacuum.
    pub autoanalyze_count: Option<u64>,
    /// Sequential scans.
    pub seq_scans: Option<u64>,
    /// `n_tup_ins`.
    pub tuples_inserted: Option<u64>,
    /// `n_tup_upd`.
    pub tuples_updated: Option<u64>,
    /// `n_tup_del`.
    pub tuples_deleted: Option<u64>,
    /// `n_tup_hot_upd`.
    pub tuples_hot_updated: Option<u64>,
    /// `age(relfrozenxid)`, transactions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid_age: Option<u64>,
}

/// One index.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Index {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The table it belongs to, in the same schema.
    pub table: String,
    /// `idx_scan`.
    pub scans: Option<u64>,
    /// `idx_tup_read`: entries that scans returned.
    pub tuples_read: Option<u64>,
    /// `idx_tup_fetch`: live rows that simple index scans fetched.
    pub tuples_returned: Option<u64>,
    /// `pg_relation_size`. Absent: see `size_status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// How old `size_bytes` is, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_age_s: Option<u64>,
    /// Why `size_bytes` is absent or not fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_status: Option<Status>,
    /// Whether a scan has used it since the last statistics reset.
    pub status: Option<Usage>,
    /// Enforces uniqueness.
    pub unique: bool,
    /// Belongs to the primary key.
    pub primary: bool,
    /// False after a failed `CREATE INDEX CONCURRENTLY`.
    pub valid: bool,
}

/// Whether an index was ever scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Usage {
    /// At least one scan.
    Used,
    /// None.
    Unused,
}

/// Exact totals, so that a cut list can be seen as one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Relations {
    /// Tables and materialized views of the database.
    pub tables_total: Option<u64>,
    /// Of these, not listed.
    pub tables_left_out: Option<u64>,
    /// Bytes of those by `relpages`, heap only, as of their last vacuum or analyze.
    pub tables_left_out_bytes: Option<u64>,
    /// Indexes of the database.
    pub indexes_total: Option<u64>,
    /// Of these, not listed.
    pub indexes_left_out: Option<u64>,
    /// Bytes of those by `relpages`.
    pub indexes_left_out_bytes: Option<u64>,
}

/// The server as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Server {
    /// `server_version_num`, such as 170005.
    pub version_num: Option<u64>,
    /// A standby, or still recovering.
    pub in_recovery: Option<bool>,
    /// When the postmaster started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// `max_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u64>,
}

/// What one collection asked of the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Statements run.
    pub queries: u64,
    /// Time until their last rows were there, milliseconds; the network included.
    pub elapsed_ms: f64,
    /// Rows read.
    pub rows: u64,
    /// Statements that ran into a timeout.
    pub timeouts: u64,
    /// Connections opened.
    pub connects: u64,
}

pub(super) const SHAPE: &[Field] = &[
    required("database", Name),
    optional("status", STATUS),
    optional("problems", Array(&Any)),
    optional("tables", Array(&Object(TABLE))),
    optional("indexes", Array(&Object(INDEX))),
    optional("relations", Any),
    optional("databases", Array(&Object(SUMMARY))),
    optional("size_bytes", Count),
    optional("size_age_s", Count),
    optional("backends", Count),
    optional("transactions_committed", Count),
    optional("transactions_rolledback", Count),
    optional("tuples_returned", Count),
    optional("tuples_fetched", Count),
    optional("tuples_inserted", Count),
    optional("tuples_updated", Count),
    optional("tuples_deleted", Count),
    optional("blocks_read", Count),
    optional("blocks_hit", Count),
    optional("temp_files", Count),
    optional("temp_bytes", Count),
    optional("deadlocks", Count),
    optional("conflicts", Count),
    optional("stats_reset", At),
    optional("server", Object(SERVER)),
    optional("cost", Object(COST)),
];

const TABLE: &[Field] = &[
    required("schema", Name),
    required("name", Name),
    optional("live_tuples", Count),
    optional("dead_tuples", Count),
    optional("modified_since_analyze", Count),
    optional("size_bytes", Count),
    optional("size_age_s", Count),
    optional("status", STATUS),
    optional("last_vacuum", At),
    optional("last_autovacuum", At),
    optional("last_analyze", At),
    optional("last_autoanalyze", At),
    optional("vacuum_count", Count),
    optional("autovacuum_count", Count),
    optional("analyze_count", Count),
    optional("autoanalyze_count", Count),
    optional("seq_scans", Count),
    optional("tuples_inserted", Count),
    optional("tuples_updated", Count),
    optional("tuples_deleted", Count),
    optional("tuples_hot_updated", Count),
    optional("xid_age", Number),
];

const INDEX: &[Field] = &[
    optional("schema", Text),
    required("name", Name),
    optional("table", Text),
    optional("scans", Count),
    optional("tuples_read", Count),
    optional("tuples_returned", Count),
    optional("size_bytes", Count),
    optional("size_age_s", Count),
    optional("size_status", STATUS),
    optional("status", OneOf(&["USED", "UNUSED"])),
    optional("unique", Bool),
    optional("primary", Bool),
    optional("valid", Bool),
];

const SUMMARY: &[Field] = &[
    required("name", Name),
    optional("size_bytes", Count),
    optional("size_age_s", Count),
    optional("backends", Count),
    optional("transactions_committed", Count),
    optional("transactions_rolledback", Count),
    optional("tuples_returned", Count),
    optional("tuples_fetched", Count),
    optional("tuples_inserted", Count),
    optional("tuples_updated", Count),
    optional("tuples_deleted", Count),
    optional("blocks_read", Count),
    optional("blocks_hit", Count),
    optional("temp_files", Count),
    optional("temp_bytes", Count),
    optional("deadlocks", Count),
    optional("conflicts", Count),
    optional("stats_reset", At),
    optional("xid_age", Number),
];

const SERVER: &[Field] = &[
    optional("version_num", Count),
    optional("in_recovery", Bool),
    optional("started_at", At),
    optional("max_connections", Count),
];

const COST: &[Field] = &[
    optional("queries", Count),
    optional("elapsed_ms", Amount),
    optional("rows", Count),
    optional("timeouts", Count),
    optional("connects", Count),
];
