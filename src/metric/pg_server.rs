//! Parts of `pg_stats` that are about the whole server: they ride on the maintenance database's
//! metric. A field that the server's major does not have is absent.

use super::Time;
use super::declare::declare;

declare! {
    /// Checkpoints, under one set of names; up to PostgreSQL 16 they are counted by the
    /// background writer's view.
    pub struct Checkpointer, from "pg_stat_checkpointer" {
        /// Because `checkpoint_timeout` had passed.
        timed: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.num_timed, pg_stat_bgwriter.checkpoints_timed";
        /// Because somebody asked, or `max_wal_size` was reached.
        requested: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.num_requested, pg_stat_bgwriter.checkpoints_req";
        /// Those that were carried out.
        done: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.num_done" on 18..=18;
        /// On a standby: because `checkpoint_timeout` had passed.
        restartpoints_timed: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.restartpoints_timed" on 17..=18;
        /// On a standby: requested.
        restartpoints_requested: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.restartpoints_req" on 17..=18;
        /// On a standby: carried out.
        restartpoints_done: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_checkpointer.restartpoints_done" on 17..=18;
        /// Time in the part that writes.
        write_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_checkpointer.write_time, pg_stat_bgwriter.checkpoint_write_time";
        /// Time in the part that syncs.
        sync_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_checkpointer.sync_time, pg_stat_bgwriter.checkpoint_sync_time";
        /// Buffers written by checkpoints and restartpoints.
        buffers_written: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_checkpointer.buffers_written, pg_stat_bgwriter.buffers_checkpoint";
        /// SLRU buffers written by them.
        slru_written: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_checkpointer.slru_written" on 18..=18;
        /// Since when these count.
        stats_reset: Option<Time> = time(server);
    }

    /// The background writer, and buffers that backends had to write themselves.
    pub struct BgWriter, from "pg_stat_bgwriter" {
        /// Buffers written.
        buffers_clean: Option<u64> = counter("blocks" since "stats_reset");
        /// Rounds that ended because too much had been written.
        maxwritten_clean: Option<u64> = counter("runs" since "stats_reset");
        /// Buffers allocated.
        buffers_alloc: Option<u64> = counter("blocks" since "stats_reset");
        /// Buffers that backends wrote; from 17 on, `io` has them.
        buffers_backend: Option<u64> = counter("blocks" since "stats_reset") on 10..=16;
        /// Syncs that backends did.
        buffers_backend_fsync: Option<u64> = counter("runs" since "stats_reset") on 10..=16;
        /// Since when these count.
        stats_reset: Option<Time> = time(server);
    }

    /// The write-ahead log.
    pub struct Wal, from "pg_stat_wal" {
        /// Where it ends: the place of the next record on a primary, of the last one that was
        /// received on a standby.
        position_bytes: Option<u64> = gauge("bytes")
            from "pg_current_wal_lsn(), pg_last_wal_receive_lsn()";
        /// Records written.
        records: Option<u64> = counter("records" since "stats_reset")
            from "pg_stat_wal.wal_records" on 14..=18;
        /// Whole pages in them.
        full_page_images: Option<u64> = counter("pages" since "stats_reset")
            from "pg_stat_wal.wal_fpi" on 14..=18;
        /// Bytes written.
        bytes: Option<u64> = counter("bytes" since "stats_reset")
            from "pg_stat_wal.wal_bytes" on 14..=18;
        /// Writes because the WAL buffers were full.
        buffers_full: Option<u64> = counter("runs" since "stats_reset")
            from "pg_stat_wal.wal_buffers_full" on 14..=18;
        /// Writes to disk; from 18 on, `io` has them.
        writes: Option<u64> = counter("operations" since "stats_reset")
            from "pg_stat_wal.wal_write" on 14..=17;
        /// Syncs.
        syncs: Option<u64> = counter("operations" since "stats_reset")
            from "pg_stat_wal.wal_sync" on 14..=17;
        /// Time in writes; 0 unless `track_wal_io_timing`.
        write_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_wal.wal_write_time" on 14..=17;
        /// Time in syncs; 0 unless `track_wal_io_timing`.
        sync_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_wal.wal_sync_time" on 14..=17;
        /// Since when these count.
        stats_reset: Option<Time> = time(server) on 14..=18;
    }

    /// What one kind of backend did with one kind of object. What cannot happen there is absent;
    /// rows of nothing but zeros are left out.
    pub struct Io, from "pg_stat_io" {
        /// Such as `client backend`.
        backend_type: String = key on 16..=18;
        /// `relation`, `temp relation` or `wal`.
        object: String = key on 16..=18;
        /// `normal`, `vacuum`, `bulkread`, `bulkwrite` or `init`.
        context: String = key on 16..=18;
        /// Reads.
        reads: Option<u64> = counter("operations" since "stats_reset") on 16..=18;
        /// Bytes of them; up to 17, reads by the size of one.
        read_bytes: Option<u64> = counter("bytes" since "stats_reset") on 16..=18;
        /// Time in them; 0 unless `track_io_timing`.
        read_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_io.read_time" on 16..=18;
        /// Writes.
        writes: Option<u64> = counter("operations" since "stats_reset") on 16..=18;
        /// Bytes of them.
        write_bytes: Option<u64> = counter("bytes" since "stats_reset") on 16..=18;
        /// Time in them; 0 unless `track_io_timing`.
        write_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_io.write_time" on 16..=18;
        /// Requests to the kernel to write out.
        writebacks: Option<u64> = counter("operations" since "stats_reset") on 16..=18;
        /// Relations made longer.
        extends: Option<u64> = counter("operations" since "stats_reset") on 16..=18;
        /// Bytes of that.
        extend_bytes: Option<u64> = counter("bytes" since "stats_reset") on 16..=18;
        /// Time in that; 0 unless `track_io_timing`.
        extend_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_io.extend_time" on 16..=18;
        /// Blocks found in shared buffers.
        hits: Option<u64> = counter("blocks" since "stats_reset") on 16..=18;
        /// Buffers taken from another use.
        evictions: Option<u64> = counter("blocks" since "stats_reset") on 16..=18;
        /// Buffers of a ring used again.
        reuses: Option<u64> = counter("blocks" since "stats_reset") on 16..=18;
        /// Syncs.
        fsyncs: Option<u64> = counter("operations" since "stats_reset") on 16..=18;
        /// Time in syncs; 0 unless `track_io_timing`.
        fsync_s: Option<f64> = counter("s" since "stats_reset")
            from "pg_stat_io.fsync_time" on 16..=18;
        /// Since when these count.
        stats_reset: Option<Time> = time(server) on 16..=18;
    }

    /// One of the small caches in front of transaction state.
    pub struct Slru, from "pg_stat_slru" {
        /// Such as `Xact`, or `transaction` from 17 on.
        name: String = key on 13..=18;
        /// Blocks zeroed when they were made.
        blocks_zeroed: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_slru.blks_zeroed" on 13..=18;
        /// Blocks found in memory.
        blocks_hit: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_slru.blks_hit" on 13..=18;
        /// Blocks read.
        blocks_read: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_slru.blks_read" on 13..=18;
        /// Blocks written.
        blocks_written: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_slru.blks_written" on 13..=18;
        /// Blocks whose existence was asked for.
        blocks_exists: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_slru.blks_exists" on 13..=18;
        /// Flushes of dirty data.
        flushes: Option<u64> = counter("operations" since "stats_reset") on 13..=18;
        /// Truncations.
        truncates: Option<u64> = counter("operations" since "stats_reset") on 13..=18;
        /// Since when these count.
        stats_reset: Option<Time> = time(server) on 13..=18;
    }

    /// The archiver.
    pub struct Archiver, from "pg_stat_archiver" {
        /// Files archived.
        archived: Option<u64> = counter("files" since "stats_reset")
            from "pg_stat_archiver.archived_count";
        /// The last of them.
        last_archived_wal: Option<String> = text;
        /// When.
        last_archived_at: Option<Time> = time(server) from "pg_stat_archiver.last_archived_time";
        /// Attempts that failed.
        failed: Option<u64> = counter("files" since "stats_reset")
            from "pg_stat_archiver.failed_count";
        /// The last of them.
        last_failed_wal: Option<String> = text;
        /// When.
        last_failed_at: Option<Time> = time(server) from "pg_stat_archiver.last_failed_time";
        /// Since when these count.
        stats_reset: Option<Time> = time(server);
    }

    /// Prefetching of blocks during recovery.
    pub struct RecoveryPrefetch, from "pg_stat_recovery_prefetch" {
        /// Blocks prefetched.
        prefetches: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.prefetch" on 15..=18;
        /// Not, as they were in shared buffers.
        hits: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.hit" on 15..=18;
        /// Not, as they would be zeroed.
        skipped_init: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.skip_init" on 15..=18;
        /// Not, as they did not exist yet.
        skipped_new: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.skip_new" on 15..=18;
        /// Not, as a full page image was in the log.
        skipped_full_page: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.skip_fpw" on 15..=18;
        /// Not, as they had just been prefetched.
        skipped_repeated: Option<u64> = counter("blocks" since "stats_reset")
            from "pg_stat_recovery_prefetch.skip_rep" on 15..=18;
        /// How far the prefetcher looks ahead.
        wal_distance_bytes: Option<u64> = gauge("bytes")
            from "pg_stat_recovery_prefetch.wal_distance" on 15..=18;
        /// The same in blocks.
        block_distance: Option<u64> = gauge("blocks") on 15..=18;
        /// Prefetches begun and not known to be done.
        io_depth: Option<u64> = gauge("operations") on 15..=18;
        /// Since when these count.
        stats_reset: Option<Time> = time(server) on 15..=18;
    }

    /// Transaction ids: how far they are from wrapping around, and who keeps old rows alive.
    pub struct Xid, from "pg_database" {
        /// The next transaction id, 64 bits; reading it takes none.
        next: Option<u64> = gauge("transactions")
            from "txid_snapshot_xmax(txid_current_snapshot())";
        /// The oldest unfrozen transaction of all databases.
        age: Option<u64> = gauge("transactions") from "max(age(pg_database.datfrozenxid))";
        /// The oldest unfrozen multixact of all databases.
        multixact_age: Option<u64> = gauge("transactions")
            from "max(mxid_age(pg_database.datminmxid))";
        /// At this age autovacuum freezes whatever it costs.
        freeze_max_age: Option<u64> = gauge("transactions")
            from "current_setting('autovacuum_freeze_max_age')";
        /// The same for multixacts.
        multixact_freeze_max_age: Option<u64> = gauge("transactions")
            from "current_setting('autovacuum_multixact_freeze_max_age')";
        /// Who keeps vacuum from removing rows: of each kind the oldest.
        horizon: Vec<Horizon> = part;
    }

    /// One that needs old versions of rows.
    pub struct Horizon, from "pg_stat_activity" {
        /// `backend`, `prepared`, `slot`, `slot_catalog` or `standby`.
        kind: String = key;
        /// The process, the prepared transaction's number, the slot or the standby's name; of a
        /// standby without one its process here.
        id: String = key from "pid, transaction, slot_name, application_name";
        /// How many transactions ago the rows were current.
        age: Option<u64> = gauge("transactions") from "age(backend_xmin)";
        /// Since when, where that is known.
        since: Option<Time> = time(server) from "xact_start, prepared";
    }

    /// A standby or another receiver of the log.
    pub struct Sender, from "pg_stat_replication" {
        /// The name it gives itself, which may be empty.
        application: Option<String> = key from "pg_stat_replication.application_name";
        /// The sending process.
        pid: Option<u64> = key;
        /// Its address; absent on a Unix socket.
        client: Option<String> = key from "pg_stat_replication.client_addr";
        /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
        state: Option<String> = text;
        /// `async`, `potential`, `sync` or `quorum`.
        sync_state: Option<String> = text;
        /// What of the log has not been sent to it.
        send_behind_bytes: Option<u64> = gauge("bytes") from "pg_stat_replication.sent_lsn";
        /// What it has not written.
        write_behind_bytes: Option<u64> = gauge("bytes") from "pg_stat_replication.write_lsn";
        /// What it has not synced.
        flush_behind_bytes: Option<u64> = gauge("bytes") from "pg_stat_replication.flush_lsn";
        /// What it has not replayed.
        replay_behind_bytes: Option<u64> = gauge("bytes") from "pg_stat_replication.replay_lsn";
        /// How long a commit waits for it to write; absent when it has caught up and all is quiet.
        write_lag_s: Option<f64> = gauge("s") from "pg_stat_replication.write_lag";
        /// How long to sync.
        flush_lag_s: Option<f64> = gauge("s") from "pg_stat_replication.flush_lag";
        /// How long to replay.
        replay_lag_s: Option<f64> = gauge("s") from "pg_stat_replication.replay_lag";
        /// When it last spoke.
        reply_at: Option<Time> = time(server) from "pg_stat_replication.reply_time" on 12..=18;
    }

    /// A standby's own side.
    pub struct Standby, from "pg_stat_wal_receiver" {
        /// `streaming` and so on; absent without a receiver.
        receiver: Option<String> = text from "pg_stat_wal_receiver.status";
        /// Where the log comes from.
        sender_host: Option<String> = key on 11..=18;
        /// Its port.
        sender_port: Option<u64> = key on 11..=18;
        /// The slot used there.
        slot: Option<String> = text from "pg_stat_wal_receiver.slot_name";
        /// When the sender last spoke.
        last_message_at: Option<Time> = time(server)
            from "pg_stat_wal_receiver.last_msg_receipt_time";
        /// Received and not replayed.
        replay_behind_bytes: Option<u64> = gauge("bytes")
            from "pg_last_wal_receive_lsn() - pg_last_wal_replay_lsn()";
        /// How old the last replayed transaction is; 0 when all that was received is replayed.
        replay_lag_s: Option<f64> = gauge("s") from "pg_last_xact_replay_timestamp()";
        /// Somebody has paused the replay.
        paused: Option<bool> = state from "pg_is_wal_replay_paused()";
    }

    /// A replication slot.
    pub struct Slot, from "pg_replication_slots" {
        /// Its name.
        name: String = key from "pg_replication_slots.slot_name";
        /// `physical` or `logical`.
        kind: Option<String> = text from "pg_replication_slots.slot_type";
        /// A logical slot's output plugin.
        plugin: Option<String> = text;
        /// A logical slot's database.
        database: Option<String> = text;
        /// Somebody uses it.
        active: Option<bool> = state;
        /// Log that is kept for it.
        retained_bytes: Option<u64> = gauge("bytes") from "pg_replication_slots.restart_lsn";
        /// What its reader has not confirmed.
        unconfirmed_bytes: Option<u64> = gauge("bytes")
            from "pg_replication_slots.confirmed_flush_lsn";
        /// Rows that it keeps alive, by age.
        xmin_age: Option<u64> = gauge("transactions") from "age(pg_replication_slots.xmin)";
        /// Rows of the catalogue that it keeps alive.
        catalog_xmin_age: Option<u64> = gauge("transactions")
            from "age(pg_replication_slots.catalog_xmin)";
        /// `reserved`, `extended`, `unreserved` or `lost`.
        wal_status: Option<String> = text on 13..=18;
        /// What may be written before it is lost; absent without `max_slot_wal_keep_size`.
        safe_wal_bytes: Option<i64> = gauge("bytes")
            from "pg_replication_slots.safe_wal_size" on 13..=18;
        /// Since when nobody has used it.
        inactive_since: Option<Time> = time(server) on 17..=18;
        /// Why it is of no use any more.
        invalidation_reason: Option<String> = text on 17..=18;
    }

    /// Prepared transactions. Their names are not read: they are the application's.
    pub struct Prepared, from "pg_prepared_xacts" {
        /// How many there are.
        transactions: Option<u64> = gauge("transactions");
        /// How long ago the oldest was prepared.
        oldest_s: Option<f64> = gauge("s") from "pg_prepared_xacts.prepared";
        /// How many transactions ago the oldest began.
        oldest_age: Option<u64> = gauge("transactions")
            from "age(pg_prepared_xacts.transaction)";
    }

    /// A subscription of this server.
    pub struct Subscription, from "pg_stat_subscription" {
        /// Its database; absent where two databases have one of this name.
        database: Option<String> = key from "pg_subscription.subdbid";
        /// Its name.
        name: String = key from "pg_stat_subscription.subname";
        /// `running`, `stopped` (enabled, and its worker does not run) or `disabled`.
        state: Option<String> = text from "pg_stat_subscription.pid, pg_subscription.subenabled";
        /// Workers that copy a table's first contents.
        syncing: Option<u64> = gauge("tables") from "pg_stat_subscription.relid";
        /// Received and not confirmed as applied.
        behind_bytes: Option<u64> = gauge("bytes")
            from "pg_stat_subscription.received_lsn - latest_end_lsn";
        /// How long ago something was last confirmed; 0 when all that was received is.
        behind_s: Option<f64> = gauge("s") from "pg_stat_subscription.latest_end_time";
        /// When the publisher last spoke.
        last_message_at: Option<Time> = time(server)
            from "pg_stat_subscription.last_msg_receipt_time";
        ..counts: SubscriptionCounts;
    }

    /// What went wrong with a subscription.
    pub struct SubscriptionCounts, from "pg_stat_subscription_stats" {
        /// Errors while changes were applied.
        apply_errors: Option<u64> = counter("errors" since "stats_reset")
            from "pg_stat_subscription_stats.apply_error_count" on 15..=18;
        /// Errors while first contents were copied.
        sync_errors: Option<u64> = counter("errors" since "stats_reset")
            from "pg_stat_subscription_stats.sync_error_count" on 15..=18;
        /// Inserts of a row whose key was there.
        conflicts_insert_exists: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_insert_exists" on 18..=18;
        /// Updates of a row that somebody else had changed.
        conflicts_update_origin_differs: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_update_origin_differs" on 18..=18;
        /// Updates to a key that was there.
        conflicts_update_exists: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_update_exists" on 18..=18;
        /// Updates of a row that was not there.
        conflicts_update_missing: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_update_missing" on 18..=18;
        /// Deletes of a row that somebody else had changed.
        conflicts_delete_origin_differs: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_delete_origin_differs" on 18..=18;
        /// Deletes of a row that was not there.
        conflicts_delete_missing: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_delete_missing" on 18..=18;
        /// Rows with several keys that were there.
        conflicts_multiple_unique: Option<u64> = counter("rows" since "stats_reset")
            from "pg_stat_subscription_stats.confl_multiple_unique_conflicts" on 18..=18;
        /// Since when these count; absent: never reset.
        stats_reset: Option<Time> = time(server) on 15..=18;
    }
}
