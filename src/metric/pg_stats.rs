//! `pg_stats`: one PostgreSQL database; the cluster rides on the maintenance database's metric.

use super::declare::{declare, words};
use super::pg_activity::{Activity, Blocking, LockGroup, Progress};
use super::pg_objects::{Extensions, Functions, PartitionedTables, Sequences, SharedObjects};
use super::pg_server::{
    Archiver, BgWriter, Checkpointer, Io, Prepared, RecoveryPrefetch, Sender, Slot, Slru, Standby,
    Subscription, Wal, Xid,
};
use super::pg_settings::{Control, ServerFiles, Settings};
use super::pg_statements::Statements;
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
        /// The largest tables, the most active and the oldest, the largest first; absent when they
        /// could not be read.
        tables: Option<Vec<Table>> = part;
        /// The largest indexes and the most active ones, in the same order; absent when they could
        /// not be read.
        indexes: Option<Vec<Index>> = part;
        /// How much `tables` and `indexes` leave out.
        relations: Option<Relations> = part;
        /// Partitioned tables as wholes.
        partitioned: Option<PartitionedTables> = part;
        /// Sequences, and which come to their end.
        sequences: Option<Sequences> = part;
        /// Functions that are tracked; absent where `track_functions` is off and there are none.
        functions: Option<Functions> = part;
        /// Extensions.
        extensions: Option<Extensions> = part;
        /// Every database of the cluster, on the maintenance database's metric.
        databases: Option<Vec<DatabaseSummary>> = part;
        /// Of the databases, the smallest, where the list of all would be too large.
        databases_left_out: Option<u64> = gauge("databases") from "the collector";
        /// The catalogs that all databases share, on the maintenance database's metric.
        shared_objects: Option<SharedObjects> = part;
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
        /// Who waits for whom.
        blocking: Option<Blocking> = part;
        /// Long commands that are running.
        progress: Option<Vec<Progress>> = part;
        /// Prepared transactions.
        prepared: Option<Prepared> = part;
        /// Subscriptions of all databases.
        subscriptions: Option<Vec<Subscription>> = part;
        /// How the server is set up.
        settings: Option<Settings> = part;
        /// Files in the server's directory.
        files: Option<ServerFiles> = part;
        /// The server's control file.
        control: Option<Control> = part;
        /// What statements have done.
        statements: Option<Statements> = part;
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
        /// Of these, for a tablespace that was dropped. On a standby, like those below.
        conflicts_tablespace: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_tablespace(oid)";
        /// Of these, for a lock.
        conflicts_lock: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_lock(oid)";
        /// Of these, for a snapshot that was too old.
        conflicts_snapshot: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_snapshot(oid)";
        /// Of these, for a pinned buffer.
        conflicts_bufferpin: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_bufferpin(oid)";
        /// Of these, for a deadlock with recovery.
        conflicts_deadlock: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_startup_deadlock(oid)";
        /// Uses of logical slots that were invalidated.
        conflicts_logicalslot: Option<u64> = counter("queries" since "stats_reset")
            from "pg_stat_get_db_conflict_logicalslot(oid)" on 16 ..= 18;
        /// Time spent reading blocks; 0 unless `track_io_timing` is on.
        block_read_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_blk_read_time(oid)";
        /// Time spent writing blocks; 0 unless `track_io_timing` is on.
        block_write_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_blk_write_time(oid)";
        /// Pages whose checksum was wrong; absent where checksums are off.
        checksum_failures: Option<u64> = counter("errors" since "stats_reset")
            from "pg_stat_get_db_checksum_failures(oid)" on 12 ..= 18;
        /// When the last of them was found.
        checksum_last_failure: Option<Time> = time(server)
            from "pg_stat_get_db_checksum_last_failure(oid)" on 12 ..= 18;
        /// Time that sessions were open; brought up to date when they do something.
        session_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_session_time(oid)" on 14 ..= 18;
        /// Time that they ran statements.
        active_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_active_time(oid)" on 14 ..= 18;
        /// Time that they were idle in a transaction.
        idle_in_transaction_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_idle_in_transaction_time(oid)" on 14 ..= 18;
        /// Sessions opened.
        sessions: Option<u64> = counter("connections" since "stats_reset")
            from "pg_stat_get_db_sessions(oid)" on 14 ..= 18;
        /// Sessions whose client was lost.
        sessions_abandoned: Option<u64> = counter("connections" since "stats_reset")
            from "pg_stat_get_db_sessions_abandoned(oid)" on 14 ..= 18;
        /// Sessions that a fatal error ended.
        sessions_fatal: Option<u64> = counter("connections" since "stats_reset")
            from "pg_stat_get_db_sessions_fatal(oid)" on 14 ..= 18;
        /// Sessions that an operator ended.
        sessions_killed: Option<u64> = counter("connections" since "stats_reset")
            from "pg_stat_get_db_sessions_killed(oid)" on 14 ..= 18;
        /// Parallel workers that queries planned to start.
        parallel_workers_planned: Option<u64> = counter("tasks" since "stats_reset")
            from "pg_stat_get_db_parallel_workers_to_launch(oid)" on 18 ..= 18;
        /// Parallel workers that were started for them.
        parallel_workers_launched: Option<u64> = counter("tasks" since "stats_reset")
            from "pg_stat_get_db_parallel_workers_launched(oid)" on 18 ..= 18;
        /// When these counters were last set to zero; absent: never since the database is there.
        stats_reset: Option<Time> = time(server) from "pg_stat_get_db_stat_reset_time(oid)";
    }

    /// A database in the list of all.
    pub struct DatabaseSummary, from "pg_database" {
        /// Its name.
        name: String = key from "pg_database.datname";
        /// Transactions since its oldest unfrozen one.
        xid_age: Option<i64> = gauge("transactions") from "age(pg_database.datfrozenxid)";
        /// The same for multixacts.
        multixact_age: Option<u64> = gauge("transactions")
            from "mxid_age(pg_database.datminmxid)";
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
        /// Rows inserted since the last vacuum, an estimate.
        inserted_since_vacuum: Option<u64> = gauge("tuples")
            from "pg_stat_get_ins_since_vacuum(oid)" on 13 ..= 18;
        /// Rows as of the last vacuum or analyze, which the planner reckons with; absent: neither
        /// has been yet.
        planner_tuples: Option<u64> = gauge("tuples") from "pg_class.reltuples";
        /// Heap, TOAST, indexes and maps; absent: see `status`, which is absent, too, before the
        /// first measurement.
        size_bytes: Option<u64> = gauge("bytes") from "pg_total_relation_size(oid)";
        /// Of `size_bytes`, its indexes.
        index_bytes: Option<u64> = gauge("bytes") from "pg_indexes_size(oid)";
        /// Of `size_bytes`, the TOAST table with its index; absent: it has none.
        toast_bytes: Option<u64> = gauge("bytes")
            from "pg_total_relation_size(pg_class.reltoastrelid)";
        /// Instead of `size_bytes`, where that is absent: pages as of the last vacuum or analyze,
        /// with those of TOAST and indexes.
        estimated_bytes: Option<u64> = gauge("bytes") from "pg_class.relpages";
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
        /// Time that vacuums by hand took.
        vacuum_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_total_vacuum_time(oid)" on 18 ..= 18;
        /// Time that vacuums by autovacuum took.
        autovacuum_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_total_autovacuum_time(oid)" on 18 ..= 18;
        /// Time that analyzes by hand took.
        analyze_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_total_analyze_time(oid)" on 18 ..= 18;
        /// Time that analyzes by autovacuum took.
        autoanalyze_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_total_autoanalyze_time(oid)" on 18 ..= 18;
        /// Sequential scans.
        seq_scans: Option<u64> = counter("scans" since "stats_reset")
            from "pg_stat_get_numscans(oid)";
        /// Live rows that they read.
        seq_tuples_read: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_returned(oid)";
        /// When the last one began; absent: none yet.
        last_seq_scan: Option<Time> = time(server)
            from "pg_stat_get_lastscan(oid)" on 16 ..= 18;
        /// Scans of its indexes; absent, as what else is of indexes: it has none.
        index_scans: Option<u64> = counter("scans" since "stats_reset")
            from "pg_stat_get_numscans of its indexes";
        /// Live rows that index scans fetched.
        index_tuples_fetched: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_fetched of it and its indexes";
        /// When the last scan of an index began; absent: none yet.
        last_index_scan: Option<Time> = time(server)
            from "pg_stat_get_lastscan of its indexes" on 16 ..= 18;
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
        /// Of the updates, those whose new version went to another page.
        tuples_newpage_updated: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_tuples_newpage_updated(oid)" on 16 ..= 18;
        /// Blocks of the heap that were not in shared buffers.
        heap_blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_fetched(oid) - pg_stat_get_blocks_hit(oid)";
        /// Blocks of the heap found in shared buffers.
        heap_blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_hit(oid)";
        /// The same of its indexes: not in shared buffers.
        index_blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_fetched - pg_stat_get_blocks_hit of its indexes";
        /// Found there.
        index_blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_hit of its indexes";
        /// The same of its TOAST table, where it has one: not in shared buffers.
        toast_blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_fetched - pg_stat_get_blocks_hit of reltoastrelid";
        /// Found there.
        toast_blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_hit of reltoastrelid";
        /// The same of the TOAST table's index: not in shared buffers.
        toast_index_blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_fetched - pg_stat_get_blocks_hit of reltoastrelid's index";
        /// Found there.
        toast_index_blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_hit of reltoastrelid's index";
        /// Transactions since its oldest unfrozen one.
        xid_age: Option<i64> = gauge("transactions") from "age(pg_class.relfrozenxid)";
        /// Multixacts since its oldest one.
        multixact_age: Option<u64> = gauge("transactions")
            from "mxid_age(pg_class.relminmxid)";
        /// Transactions since the oldest unfrozen one of its TOAST table.
        toast_xid_age: Option<i64> = gauge("transactions")
            from "age(pg_class.relfrozenxid) of reltoastrelid";
        /// Multixacts since the oldest one of its TOAST table.
        toast_multixact_age: Option<u64> = gauge("transactions")
            from "mxid_age(pg_class.relminmxid) of reltoastrelid";
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
        /// When the last scan began; absent: none yet.
        last_scan: Option<Time> = time(server) from "pg_stat_get_lastscan(oid)" on 16 ..= 18;
        /// Blocks that were not in shared buffers.
        blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_fetched(oid) - pg_stat_get_blocks_hit(oid)";
        /// Blocks found in shared buffers.
        blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_blocks_hit(oid)";
        /// Its size; absent: see `size_status`, which is absent, too, before the first measurement.
        size_bytes: Option<u64> = gauge("bytes") from "pg_relation_size(oid)";
        /// Instead of `size_bytes`, where that is absent: pages as of the last vacuum or analyze.
        estimated_bytes: Option<u64> = gauge("bytes") from "pg_class.relpages";
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

    /// Totals of all, so that a cut list can be seen as one.
    pub struct Relations, from "pg_class" {
        /// Tables and materialized views of the database.
        tables_total: Option<u64> = gauge("tables");
        /// Of these, not listed.
        tables_left_out: Option<u64> = gauge("tables");
        /// How large they are, with TOAST and indexes: as measured within the last rounds of
        /// `pg_stats.sizes_every`, else by pages as of the last vacuum or analyze.
        tables_left_out_bytes: Option<u64> = gauge("bytes");
        /// Of those left out, those that count by pages, because they are not measured.
        tables_left_out_estimated: Option<u64> = gauge("tables");
        /// Indexes of the database.
        indexes_total: Option<u64> = gauge("indexes");
        /// Of these, not listed.
        indexes_left_out: Option<u64> = gauge("indexes");
        /// How large they are, by the same rule.
        indexes_left_out_bytes: Option<u64> = gauge("bytes");
        /// Of those left out, those that count by pages, because they are not measured.
        indexes_left_out_estimated: Option<u64> = gauge("indexes");
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
