//! `pg_stats`: one PostgreSQL database; the cluster rides on the maintenance database's metric.

use super::declare::{declare, words};
use super::pg_server::{
    Activity, Archiver, BgWriter, Checkpointer, Io, LockGroup, RecoveryPrefetch, Sender, Slot,
    Slru, Standby, Wal, Xid,
};
use super::{Status, Time};

/// The `instance` of the server that the section `[postgres]` names.
pub const MAIN_INSTANCE: &str = "main";

declare! {
    /// One database. Counters are PostgreSQL's own, since its last statistics reset.
    pub struct PgStats = "pg_stats", from "pg_database" {
        /// When the collection began.
        timestamp: Time = time(host);
        /// Which server it is about: its name in the agent's configuration, `main` where that is
        /// absent.
        instance: Option<String> = key from "the configuration";
        /// The database's name.
        database: String = key from "pg_database.datname";
        /// `ok`, or why the first absent part is absent.
        status: Option<Status> = state;
        /// Each query that failed.
        problems: Vec<Problem> = part;
        /// The largest tables; absent when they could not be read.
        tables: Option<Vec<Table>> = part;
        /// The largest indexes; absent when they could not be read.
        indexes: Option<Vec<Index>> = part;
        /// How much `tables` and `indexes` leave out.
        relations: Option<Relations> = part;
        /// Every database of the cluster, on the maintenance database's metric.
        databases: Option<Vec<DatabaseSummary>> = part;
        /// The server, on the maintenance database's metric.
        server: Option<Server> = part;
        /// Checkpoints, on the maintenance database's metric like all of the following.
        checkpointer: Option<Checkpointer> = part;
        /// The background writer.
        bgwriter: Option<BgWriter> = part;
        /// The write-ahead log.
        wal: Option<Wal> = part;
        /// Input and output by who and what.
        io: Option<Vec<Io>> = part;
        /// The small caches of transaction state.
        slru: Option<Vec<Slru>> = part;
        /// The archiver.
        archiver: Option<Archiver> = part;
        /// Prefetching on a standby.
        recovery_prefetch: Option<RecoveryPrefetch> = part;
        /// Transaction ids.
        xid: Option<Xid> = part;
        /// Who receives the log from this server.
        replication: Option<Vec<Sender>> = part;
        /// A standby's own side.
        standby: Option<Standby> = part;
        /// Replication slots.
        slots: Option<Vec<Slot>> = part;
        /// The server's processes.
        activity: Option<Activity> = part;
        /// Locks by database and mode.
        locks: Option<Vec<LockGroup>> = part;
        /// What this collection asked of the server, on the maintenance database's metric.
        cost: Option<Cost> = part;
        // The database's own row; nothing of it is known when it could not be read.
        ..own: DatabaseStats;
    }

    /// A query that gave nothing.
    pub struct Problem, from "the collector" {
        /// The query's name in the collector.
        query: String = key;
        /// What it means for the numbers.
        status: Status = state;
        /// SQLSTATE, when the server gave one.
        sqlstate: Option<String> = text;
    }

    /// The counters of a database.
    pub struct DatabaseStats, from "pg_stat_database" {
        /// Its size, kept for some minutes; its age stands beside it.
        size_bytes: Option<u64> = gauge("bytes") from "pg_database_size(oid)";
        /// How old `size_bytes` is.
        size_age_s: Option<u64> = gauge("s") from "the collector";
        /// Sessions connected now, the agent's included.
        backends: Option<u64> = gauge("connections") from "pg_stat_get_db_numbackends(oid)";
        /// Transactions committed.
        transactions_committed: Option<u64> = counter("transactions" since "stats_reset")
            from "pg_stat_get_db_xact_commit(oid)";
        /// Transactions rolled back.
        transactions_rolledback: Option<u64> = counter("transactions" since "stats_reset")
            from "pg_stat_get_db_xact_rollback(oid)";
        /// Rows that scans read: live rows of sequential scans, entries of index scans.
        tuples_returned: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_returned(oid)";
        /// Live rows that index scans fetched.
        tuples_fetched: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_fetched(oid)";
        /// Rows inserted.
        tuples_inserted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_inserted(oid)";
        /// Rows updated.
        tuples_updated: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_updated(oid)";
        /// Rows deleted.
        tuples_deleted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_deleted(oid)";
        /// Blocks that were not in shared buffers.
        blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_db_blocks_fetched(oid) - pg_stat_get_db_blocks_hit(oid)";
        /// Blocks found in shared buffers.
        blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_db_blocks_hit(oid)";
        /// Temporary files that queries wrote.
        temp_files: Option<u64> = counter("files" since "stats_reset")
            from "pg_stat_get_db_temp_files(oid)";
        /// What was written to them.
        temp_bytes: Option<u64> = counter("bytes" since "stats_reset")
            from "pg_stat_get_db_temp_bytes(oid)";
        /// Deadlocks found.
        deadlocks: Option<u64> = counter("deadlocks" since "stats_reset")
            from "pg_stat_get_db_deadlocks(oid)";
        /// Queries cancelled for recovery, only on a standby.
        conflicts: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_all(oid)";
        /// When these counters were last set to zero; absent: never since the database is there.
        stats_reset: Option<Time> = time(server) from "pg_stat_get_db_stat_reset_time(oid)";
    }

    /// A database in the list of all.
    pub struct DatabaseSummary, from "pg_database" {
        /// Its name.
        name: String = key from "pg_database.datname";
        /// Transactions since its oldest unfrozen one.
        xid_age: Option<i64> = gauge("transactions") from "age(pg_database.datfrozenxid)";
        /// How long ago its tables and indexes were read; 0: in this collection. Absent: never, or
        /// they are not to be.
        visit_age_s: Option<u64> = gauge("s") from "the collector";
        ..stats: DatabaseStats;
    }

    /// One table or materialized view.
    pub struct Table, from "pg_class" {
        /// Its schema.
        schema: String = key from "pg_namespace.nspname";
        /// Its name.
        name: String = key from "pg_class.relname";
        /// An estimate.
        live_tuples: Option<u64> = gauge("tuples") from "pg_stat_get_live_tuples(oid)";
        /// An estimate.
        dead_tuples: Option<u64> = gauge("tuples") from "pg_stat_get_dead_tuples(oid)";
        /// Rows changed since the last analyze, an estimate.
        modified_since_analyze: Option<u64> = gauge("tuples")
            from "pg_stat_get_mod_since_analyze(oid)";
        /// Heap, TOAST, indexes and maps; absent: see `status`.
        size_bytes: Option<u64> = gauge("bytes") from "pg_total_relation_size(oid)";
        /// How old `size_bytes` is.
        size_age_s: Option<u64> = gauge("s") from "the collector";
        /// Why `size_bytes` is absent or not fresh.
        status: Option<Status> = state from "the collector";
        /// By hand; absent: never.
        last_vacuum: Option<Time> = time(server) from "pg_stat_get_last_vacuum_time(oid)";
        /// By autovacuum; absent: never.
        last_autovacuum: Option<Time> = time(server)
            from "pg_stat_get_last_autovacuum_time(oid)";
        /// By hand; absent: never.
        last_analyze: Option<Time> = time(server) from "pg_stat_get_last_analyze_time(oid)";
        /// By autovacuum; absent: never.
        last_autoanalyze: Option<Time> = time(server)
            from "pg_stat_get_last_autoanalyze_time(oid)";
        /// By hand.
        vacuum_count: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_get_vacuum_count(oid)";
        /// By autovacuum.
        autovacuum_count: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_get_autovacuum_count(oid)";
        /// By hand.
        analyze_count: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_get_analyze_count(oid)";
        /// By autovacuum.
        autoanalyze_count: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_get_autoanalyze_count(oid)";
        /// Sequential scans.
        seq_scans: Option<u64> = counter("scans" since "stats_reset")
            from "pg_stat_get_numscans(oid)";
        /// Rows inserted.
        tuples_inserted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_inserted(oid)";
        /// Rows updated.
        tuples_updated: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_updated(oid)";
        /// Rows deleted.
        tuples_deleted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_deleted(oid)";
        /// Of the updates, those that needed no new index entry.
        tuples_hot_updated: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_hot_updated(oid)";
        /// Transactions since its oldest unfrozen one.
        xid_age: Option<i64> = gauge("transactions") from "age(pg_class.relfrozenxid)";
    }

    /// One index.
    pub struct Index, from "pg_index" {
        /// Its schema.
        schema: Option<String> = key from "pg_namespace.nspname";
        /// Its name.
        name: String = key from "pg_class.relname";
        /// The table it belongs to, in the same schema.
        table: Option<String> = key from "pg_class.relname of indrelid";
        /// Scans of it.
        scans: Option<u64> = counter("scans" since "stats_reset")
            from "pg_stat_get_numscans(oid)";
        /// Entries that scans returned.
        tuples_read: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_returned(oid)";
        /// Live rows that simple index scans fetched.
        tuples_returned: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_fetched(oid)";
        /// Its size; absent: see `size_status`.
        size_bytes: Option<u64> = gauge("bytes") from "pg_relation_size(oid)";
        /// How old `size_bytes` is.
        size_age_s: Option<u64> = gauge("s") from "the collector";
        /// Why `size_bytes` is absent or not fresh.
        size_status: Option<Status> = state from "the collector";
        /// Whether a scan has used it since the last statistics reset.
        status: Option<Usage> = state from "pg_stat_get_numscans(oid)";
        /// Enforces uniqueness.
        unique: Option<bool> = state from "pg_index.indisunique";
        /// Belongs to the primary key.
        primary: Option<bool> = state from "pg_index.indisprimary";
        /// False after a failed `CREATE INDEX CONCURRENTLY`.
        valid: Option<bool> = state from "pg_index.indisvalid";
    }

    /// Exact totals, so that a cut list can be seen as one.
    pub struct Relations, from "pg_class" {
        /// Tables and materialized views of the database.
        tables_total: Option<u64> = gauge("tables");
        /// Of these, not listed.
        tables_left_out: Option<u64> = gauge("tables");
        /// Their heaps by `relpages`, as of their last vacuum or analyze.
        tables_left_out_bytes: Option<u64> = gauge("bytes");
        /// Indexes of the database.
        indexes_total: Option<u64> = gauge("indexes");
        /// Of these, not listed.
        indexes_left_out: Option<u64> = gauge("indexes");
        /// Those by `relpages`.
        indexes_left_out_bytes: Option<u64> = gauge("bytes");
    }

    /// The server as a whole.
    pub struct Server, from "pg_settings" {
        /// Its version, such as 170005.
        version_num: Option<u64> = key from "current_setting('server_version_num')";
        /// A standby, or still recovering.
        in_recovery: Option<bool> = state from "pg_is_in_recovery()";
        /// When the postmaster started.
        started_at: Option<Time> = time(server) from "pg_postmaster_start_time()";
        /// How many connections it takes.
        max_connections: Option<u64> = gauge("connections")
            from "current_setting('max_connections')";
    }

    /// What one collection asked of the server.
    pub struct Cost, from "the collector" {
        /// Statements run.
        queries: u64 = gauge("queries");
        /// Time until their last rows were there; the network included.
        elapsed_ms: f64 = gauge("ms");
        /// Rows read.
        rows: u64 = gauge("rows");
        /// Statements that ran into a timeout.
        timeouts: u64 = gauge("queries");
        /// Connections opened.
        connects: u64 = gauge("connections");
    }
}

/// Whether an index was ever scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Usage {
    /// At least one scan.
    Used,
    /// None.
    Unused,
}

impl Usage {
    /// The words on the wire.
    pub(crate) const NAMES: &'static [&'static str] = &["USED", "UNUSED"];
}

words!(Usage);
