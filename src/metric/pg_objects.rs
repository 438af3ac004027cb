//! What a database has beside tables and indexes.

use super::declare::declare;
use super::{Status, Time};

declare! {
    /// What belongs to no database, such as the lists of databases and roles.
    pub struct SharedObjects, from "pg_stat_database" {
        /// Rows that scans read: live rows of sequential scans, entries of index scans.
        tuples_returned: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_returned(0)" on 12 ..= 18;
        /// Live rows that index scans fetched.
        tuples_fetched: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_fetched(0)" on 12 ..= 18;
        /// Rows inserted.
        tuples_inserted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_inserted(0)" on 12 ..= 18;
        /// Rows updated.
        tuples_updated: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_updated(0)" on 12 ..= 18;
        /// Rows deleted.
        tuples_deleted: Option<u64> = counter("tuples" since "stats_reset")
            from "pg_stat_get_db_tuples_deleted(0)" on 12 ..= 18;
        /// Blocks that were not in shared buffers.
        blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_db_blocks_fetched(0) - pg_stat_get_db_blocks_hit(0)" on 12 ..= 18;
        /// Blocks found in shared buffers.
        blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_get_db_blocks_hit(0)" on 12 ..= 18;
        /// Time spent reading blocks; 0 unless `track_io_timing` is on.
        block_read_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_blk_read_time(0)" on 12 ..= 18;
        /// Time spent writing blocks; 0 unless `track_io_timing` is on.
        block_write_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_db_blk_write_time(0)" on 12 ..= 18;
        /// Pages whose checksum was wrong; absent where checksums are off.
        checksum_failures: Option<u64> = counter("errors" since "stats_reset")
            from "pg_stat_get_db_checksum_failures(0)" on 12 ..= 18;
        /// When the last of them was found.
        checksum_last_failure: Option<Time> = time(server)
            from "pg_stat_get_db_checksum_last_failure(0)" on 12 ..= 18;
        /// When these counters were last set to zero; absent: never since the server is there.
        stats_reset: Option<Time> = time(server)
            from "pg_stat_get_db_stat_reset_time(0)" on 12 ..= 18;
    }

    /// Partitioned tables that are not a part of another one.
    pub struct PartitionedTables, from "pg_class" {
        /// How many there are.
        total: Option<u64> = gauge("tables");
        /// Of these, not listed.
        left_out: Option<u64> = gauge("tables");
        /// The largest.
        largest: Vec<Partitioned> = part;
    }

    /// One partitioned table: the sums of the parts that it has now, at every depth. They are
    /// gauges, because they fall when a part is dropped.
    pub struct Partitioned, from "pg_class and pg_inherits" {
        /// Its schema.
        schema: String = key from "pg_namespace.nspname";
        /// Its name.
        name: String = key from "pg_class.relname";
        /// Tables and foreign tables at the ends of its tree.
        parts: Option<u64> = gauge("tables") from "pg_inherits";
        /// Their sizes, as measured last or by pages.
        size_bytes: Option<u64> = gauge("bytes") from "pg_total_relation_size of its parts";
        /// The parts that count by pages, because they are not measured.
        parts_estimated: Option<u64> = gauge("tables") from "the collector";
        /// An estimate.
        live_tuples: Option<u64> = gauge("tuples") from "pg_stat_get_live_tuples of its parts";
        /// An estimate.
        dead_tuples: Option<u64> = gauge("tuples") from "pg_stat_get_dead_tuples of its parts";
        /// Rows changed since each part's last analyze, an estimate.
        modified_since_analyze: Option<u64> = gauge("tuples")
            from "pg_stat_get_mod_since_analyze of its parts";
        /// Sequential scans.
        seq_scans: Option<u64> = gauge("scans") from "pg_stat_get_numscans of its parts";
        /// Live rows that they read.
        seq_tuples_read: Option<u64> = gauge("tuples")
            from "pg_stat_get_tuples_returned of its parts";
        /// Scans of the parts' indexes; absent: they have none.
        index_scans: Option<u64> = gauge("scans")
            from "pg_stat_get_numscans of its parts' indexes";
        /// Rows inserted.
        tuples_inserted: Option<u64> = gauge("tuples")
            from "pg_stat_get_tuples_inserted of its parts";
        /// Rows updated.
        tuples_updated: Option<u64> = gauge("tuples")
            from "pg_stat_get_tuples_updated of its parts";
        /// Rows deleted.
        tuples_deleted: Option<u64> = gauge("tuples")
            from "pg_stat_get_tuples_deleted of its parts";
        /// Of the updates, those that needed no new index entry.
        tuples_hot_updated: Option<u64> = gauge("tuples")
            from "pg_stat_get_tuples_hot_updated of its parts";
        /// Transactions since the oldest unfrozen one of any part.
        xid_age: Option<i64> = gauge("transactions") from "age(relfrozenxid) of its parts";
    }

    /// The sequences of a database, but temporary ones. They are read as seldom as sizes.
    pub struct Sequences, from "pg_sequence" {
        /// How many there are.
        total: Option<u64> = gauge("sequences");
        /// Of these, those whose value the role may not read: it has neither SELECT nor USAGE,
        /// which `GRANT SELECT ON ALL SEQUENCES IN SCHEMA ...` would give it.
        hidden: Option<u64> = gauge("sequences") from "has_sequence_privilege(oid)";
        /// Of these, those that were locked and not touched.
        locked: Option<u64> = gauge("sequences") from "pg_locks";
        /// Of these, those beyond the 2,000 oldest, which were not read.
        unread: Option<u64> = gauge("sequences");
        /// Those that have used half of their values or more. One that cycles has no end.
        near_end: Option<u64> = gauge("sequences") from "pg_sequence_last_value(oid)";
        /// Of these, not listed.
        left_out: Option<u64> = gauge("sequences");
        /// How old this is.
        age_s: Option<u64> = gauge("s") from "the collector";
        /// Why it was not read; absent when it was.
        status: Option<Status> = state from "the collector";
        /// Of those near their end, the nearest.
        nearest: Vec<Sequence> = part;
    }

    /// A sequence near its end.
    pub struct Sequence, from "pg_sequence" {
        /// Its schema.
        schema: String = key from "pg_namespace.nspname";
        /// Its name.
        name: String = key from "pg_class.relname";
        /// The table that it belongs to, if it belongs to one.
        table: Option<String> = key from "pg_depend";
        /// The column there.
        column: Option<String> = key from "pg_depend";
        /// Its last value.
        last_value: Option<i64> = gauge("1") from "pg_sequence_last_value(oid)";
        /// The last one that it, or its column, can have.
        end_value: Option<i64> = gauge("1") from "pg_sequence and pg_attribute.atttypid";
        /// The share of its values that is used.
        used_percent: Option<f64> = gauge("%") from "pg_sequence_last_value(oid)";
    }

    /// Functions with statistics.
    pub struct Functions, from "pg_stat_user_functions" {
        /// How many there are.
        total: Option<u64> = gauge("functions");
        /// Of these, not listed.
        left_out: Option<u64> = gauge("functions");
        /// Those that took the most time, then those called most.
        top: Vec<Function> = part;
    }

    /// One function.
    pub struct Function, from "pg_stat_user_functions" {
        /// Its schema.
        schema: String = key from "pg_namespace.nspname";
        /// Its name.
        name: String = key from "pg_proc.proname";
        /// Its arguments, at most 200 characters.
        arguments: Option<String> = key from "pg_get_function_identity_arguments(oid)";
        /// How often it was called.
        calls: Option<u64> = counter("calls" since "stats_reset")
            from "pg_stat_get_function_calls(oid)";
        /// Time spent in it, and in what it called.
        total_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_function_total_time(oid)";
        /// Time spent in it alone.
        self_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_get_function_self_time(oid)";
    }

    /// The extensions of a database, read as seldom as sizes.
    pub struct Extensions, from "pg_extension" {
        /// How many there are.
        total: Option<u64> = gauge("extensions");
        /// Of these, not listed.
        left_out: Option<u64> = gauge("extensions");
        /// How old this is.
        age_s: Option<u64> = gauge("s") from "the collector";
        /// Why the default versions were not read; absent when they were.
        status: Option<Status> = state from "the collector";
        /// In the order of their names.
        installed: Vec<Extension> = part;
    }

    /// One extension.
    pub struct Extension, from "pg_extension" {
        /// Its name.
        name: String = key from "pg_extension.extname";
        /// The version that the database has.
        version: Option<String> = key from "pg_extension.extversion";
        /// The version that a new database would get; absent: its files are not there, or see
        /// `status`.
        default_version: Option<String> = key from "pg_available_extensions().default_version"
            on 13 ..= 18;
    }
}
