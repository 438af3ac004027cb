//! Part of `pg_stats`: the statements that `pg_stat_statements` counts.

use super::declare::declare;
use super::{Status, Time};

declare! {
    /// What statements have done since the last collection. The numbers are differences that the
    /// agent makes, so that they add up over documents: an entry that the extension gives up and
    /// takes in again counts from 0. Statements of the agent are left out: where its role is a
    /// superuser they are not counted, else those of its role are passed over.
    pub struct Statements, from "pg_stat_statements(false)" {
        /// `ok`, `disabled` (the extension is in none of the databases, or not loaded), or why the
        /// rest is absent.
        status: Option<Status> = state from "the collector";
        /// The database in which the extension was found.
        found_in: Option<String> = text from "pg_extension";
        /// Its version there, which decides about its columns.
        version: Option<String> = text from "pg_extension.extversion";
        /// How long `total`, `other` and `list` have counted; they are absent in the first document
        /// after a start of the agent.
        interval_s: Option<f64> = gauge("s") from "the collector";
        /// Entries of the extension.
        entries: Option<u64> = gauge("entries");
        /// Of these, beyond the 20000 with the longest time, which are read.
        not_read: Option<u64> = gauge("entries");
        /// Of these, those whose statement the agent's role may not see: they are in `other`.
        hidden: Option<u64> = gauge("entries");
        /// How often entries were given up because there were too many: what they had counted since
        /// the last collection is not known.
        deallocations: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_statements_info.dealloc" on 14..=18;
        /// Since when the extension counts.
        stats_reset: Option<Time> = time(server)
            from "pg_stat_statements_info.stats_reset" on 14..=18;
        /// All statements.
        total: Option<StatementCounts> = part;
        /// All but those that are listed.
        other: Option<StatementCounts> = part;
        /// Those with the most time, calls, rows, blocks, temporary blocks or log, taken in turn
        /// until there are `pg_stats.statements_max`.
        list: Vec<Statement> = part;
    }

    /// One normalized statement of one role in one database.
    pub struct Statement, from "pg_stat_statements(false)" {
        /// Its database; its OID where that was dropped.
        database: Option<String> = key from "pg_stat_statements.dbid";
        /// Its role; its OID where that was dropped.
        user: Option<String> = key from "pg_stat_statements.userid";
        /// The number that the server gives to statements alike; the log has it, too.
        query_id: String = key from "pg_stat_statements.queryid";
        /// `top`, or `nested` when a function ran it.
        level: Option<String> = key from "pg_stat_statements.toplevel" on 14..=18;
        /// Its text without constants, at most 2 KiB and once a day, where
        /// `pg_stats.statements_text` is true; of a utility statement its first word.
        query: Option<String> = text;
        ..counts: StatementCounts;
    }

    /// What statements did. The majors are those that bring the version of the extension.
    pub struct StatementCounts, from "pg_stat_statements(false)" {
        /// Executions.
        calls: Option<u64> = gauge("queries");
        /// Time in them.
        exec_s: Option<f64> = gauge("s") from "pg_stat_statements.total_exec_time, total_time";
        /// Plans made; 0 unless `pg_stat_statements.track_planning`.
        plans: Option<u64> = gauge("runs") on 13..=18;
        /// Time in them.
        plan_s: Option<f64> = gauge("s") from "pg_stat_statements.total_plan_time" on 13..=18;
        /// Rows returned or changed.
        rows: Option<u64> = gauge("rows");
        /// Blocks found in shared buffers.
        shared_blocks_hit: Option<u64> = gauge("blocks")
            from "pg_stat_statements.shared_blks_hit";
        /// Blocks read.
        shared_blocks_read: Option<u64> = gauge("blocks")
            from "pg_stat_statements.shared_blks_read";
        /// Blocks made dirty.
        shared_blocks_dirtied: Option<u64> = gauge("blocks")
            from "pg_stat_statements.shared_blks_dirtied";
        /// Blocks that they had to write themselves.
        shared_blocks_written: Option<u64> = gauge("blocks")
            from "pg_stat_statements.shared_blks_written";
        /// Blocks of temporary tables read.
        local_blocks_read: Option<u64> = gauge("blocks")
            from "pg_stat_statements.local_blks_read";
        /// Blocks of temporary tables written.
        local_blocks_written: Option<u64> = gauge("blocks")
            from "pg_stat_statements.local_blks_written";
        /// Blocks of sorts, hashes and the like read from disk.
        temp_blocks_read: Option<u64> = gauge("blocks") from "pg_stat_statements.temp_blks_read";
        /// Those written.
        temp_blocks_written: Option<u64> = gauge("blocks")
            from "pg_stat_statements.temp_blks_written";
        /// Time in reads of tables; 0 unless `track_io_timing`.
        read_s: Option<f64> = gauge("s")
            from "pg_stat_statements.shared_blk_read_time + local_blk_read_time, blk_read_time";
        /// Time in their writes.
        write_s: Option<f64> = gauge("s")
            from "pg_stat_statements.shared_blk_write_time + local_blk_write_time, blk_write_time";
        /// Records written to the log.
        wal_records: Option<u64> = gauge("records") on 13..=18;
        /// Whole pages in them.
        wal_full_page_images: Option<u64> = gauge("pages")
            from "pg_stat_statements.wal_fpi" on 13..=18;
        /// Bytes of them.
        wal_bytes: Option<u64> = gauge("bytes") on 13..=18;
    }
}
