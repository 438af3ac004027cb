//! What a database has beside tables and indexes.

use super::Time;
use super::declare::declare;

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

    /// Partitioned tables that are no part of another one.
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
}
