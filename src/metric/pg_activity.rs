//! Parts of `pg_stats` that are about who is at work on the server: sessions, locks, and how far
//! long commands have come.

use std::collections::BTreeMap;

use super::declare::declare;

declare! {
    /// The server's processes but the agent's own.
    pub struct Activity, from "pg_stat_activity" {
        /// Connections of clients.
        clients: Option<u64> = gauge("connections");
        /// Of these, working.
        active: Option<u64> = gauge("connections");
        /// Of these, between transactions.
        idle: Option<u64> = gauge("connections");
        /// Of these, waiting for their client within a transaction.
        idle_in_transaction: Option<u64> = gauge("connections");
        /// Of these, working and waiting for a lock.
        waiting_for_lock: Option<u64> = gauge("connections");
        /// Of these, those whose state the agent's role may not see: the counts and times beside
        /// this are without them.
        hidden: Option<u64> = gauge("connections");
        /// What clients may use: `max_connections` less what is reserved.
        connections_max: Option<u64> = gauge("connections")
            from "current_setting('max_connections')";
        /// Connections in use, the agent's own included; up to PostgreSQL 11 those of standbys,
        /// too.
        connections_used: Option<u64> = gauge("connections");
        /// Share of `connections_max` that is in use; 100 also where superusers use more.
        connections_used_percent: Option<f64> = gauge("%");
        /// How long the oldest transaction has run.
        longest_transaction_s: Option<f64> = gauge("s") from "pg_stat_activity.xact_start";
        /// How long the oldest statement has run.
        longest_query_s: Option<f64> = gauge("s") from "pg_stat_activity.query_start";
        /// How long the oldest idle transaction has been idle.
        longest_idle_in_transaction_s: Option<f64> = gauge("s")
            from "pg_stat_activity.state_change";
        /// Whose these three are.
        longest: Vec<LongSession> = part;
        /// Connections of clients by state; those that are `hidden` are in none.
        by_state: BTreeMap<String, u64> = gauge("connections" by "state");
        /// Processes by kind; those whose kind the agent's role may not see are in none.
        by_backend_type: BTreeMap<String, u64> = gauge("connections" by "backend_type");
        /// What processes wait for, the most frequent first, at most 50.
        waits: Vec<Wait> = part;
        /// Processes alike, the most numerous first.
        groups: Vec<ActivityGroup> = part;
        /// Processes in groups that are not listed.
        others: Option<u64> = gauge("connections");
    }

    /// The client whose transaction, statement or idle transaction is the oldest. The text of its
    /// statement is not read.
    pub struct LongSession, from "pg_stat_activity" {
        /// `transaction`, `statement` or `idle_in_transaction`.
        kind: String = key;
        /// Its process.
        pid: Option<u64> = key;
        /// Its database.
        database: Option<String> = key from "pg_stat_activity.datname";
        /// Its role.
        user: Option<String> = key from "pg_stat_activity.usename";
        /// The name it gives itself.
        application: Option<String> = key from "pg_stat_activity.application_name";
        /// `active`, `idle in transaction` and so on.
        state: Option<String> = text;
        /// Such as `Lock` or `IO`.
        wait_event_type: Option<String> = text;
        /// What it waits for.
        wait_event: Option<String> = text;
        /// For how long.
        lasted_s: Option<f64> = gauge("s")
            from "pg_stat_activity.xact_start, query_start, state_change";
    }

    /// Processes that wait for one thing.
    pub struct Wait, from "pg_stat_activity" {
        /// Such as `Lock` or `IO`.
        wait_event_type: String = key;
        /// What they wait for.
        wait_event: Option<String> = key;
        /// How many they are.
        processes: u64 = gauge("connections");
    }

    /// Processes of one kind, user, database and state.
    pub struct ActivityGroup, from "pg_stat_activity" {
        /// Such as `client backend` or `autovacuum worker`.
        backend_type: Option<String> = key;
        /// Their database.
        database: Option<String> = key from "pg_stat_activity.datname";
        /// Their role.
        user: Option<String> = key from "pg_stat_activity.usename";
        /// `active`, `idle`, `idle in transaction` and so on.
        state: Option<String> = key;
        /// Such as `Lock` or `IO`.
        wait_event_type: Option<String> = key;
        /// What they wait for.
        wait_event: Option<String> = key;
        /// How many they are.
        processes: u64 = gauge("connections");
    }

    /// Locks of one mode in one database, but the agent's own.
    pub struct LockGroup, from "pg_locks" {
        /// The database; absent for shared objects and transactions.
        database: Option<String> = key from "pg_database.datname";
        /// Such as `AccessShareLock`.
        mode: String = key;
        /// Those that are held.
        granted: Option<u64> = gauge("locks");
        /// Those that are waited for.
        waiting: Option<u64> = gauge("locks");
    }

    /// Who waits for a lock, and for whom.
    pub struct Blocking, from "pg_locks" {
        /// Processes that wait for a lock.
        waiting: Option<u64> = gauge("connections");
        /// Of these, those that have waited less long than 200 others: for whom they wait is not
        /// asked, because it holds up the server's locks.
        not_looked_at: Option<u64> = gauge("connections");
        /// Those that others wait for and that do not wait for a lock themselves.
        roots: Option<u64> = gauge("connections") from "pg_blocking_pids(pid)";
        /// Those that wait and those that are waited for: the roots first, then who waits for them,
        /// and so on; of each depth first who holds up the most. At most 50.
        sessions: Vec<BlockedSession> = part;
        /// Those that are not listed.
        others: Option<u64> = gauge("connections");
    }

    /// One that waits for a lock, or is waited for.
    pub struct BlockedSession, from "pg_stat_activity" {
        /// Its process; 0: prepared transactions, which have none.
        pid: u64 = key;
        /// 0 for a root, 1 for who waits for a root, and so on; absent for those who wait for each
        /// other, which the server's deadlock check is about to end.
        depth: Option<u64> = gauge("1") from "pg_blocking_pids(pid)";
        /// For whom it waits, at most 8.
        blocked_by: Vec<u64> = text from "pg_blocking_pids(pid)";
        /// How many wait for it, or for somebody who waits for it, and so on.
        waiting_behind: Option<u64> = gauge("connections") from "pg_blocking_pids(pid)";
        /// Its database.
        database: Option<String> = key from "pg_stat_activity.datname";
        /// Its role.
        user: Option<String> = key from "pg_stat_activity.usename";
        /// The name it gives itself.
        application: Option<String> = key from "pg_stat_activity.application_name";
        /// Such as `client backend` or `autovacuum worker`.
        backend_type: Option<String> = text;
        /// `active`, `idle in transaction` and so on.
        state: Option<String> = text;
        /// True when the agent's role may not see its state and times.
        hidden: Option<bool> = state;
        /// How long its transaction has run.
        transaction_s: Option<f64> = gauge("s") from "pg_stat_activity.xact_start";
        /// How long its state has lasted.
        state_s: Option<f64> = gauge("s") from "pg_stat_activity.state_change";
        /// How long it has waited; up to PostgreSQL 13, how long its statement has run.
        waiting_s: Option<f64> = gauge("s")
            from "pg_locks.waitstart, pg_stat_activity.state_change";
        /// What it waits for: `relation`, `transactionid`, `tuple` and so on.
        lock_type: Option<String> = text from "pg_locks.locktype";
        /// In which mode.
        lock_mode: Option<String> = text from "pg_locks.mode";
        /// Schema and name; the OID where the relation is not of the maintenance database.
        relation: Option<String> = text from "pg_locks.relation";
    }

    /// A long command that says how far it has come.
    pub struct Progress, from "pg_stat_progress_vacuum" {
        /// `vacuum`, `analyze` (from 13), `create_index` and `cluster` (from 12), `basebackup`
        /// (from 13) or `copy` (from 14).
        kind: String = key from "the view's name";
        /// Its process.
        pid: Option<u64> = key;
        /// Its database; absent for a base backup.
        database: Option<String> = key from "pg_stat_progress_vacuum.datname";
        /// Schema and name; the OID where the relation is not of the maintenance database.
        relation: Option<String> = key from "pg_stat_progress_vacuum.relid";
        /// Which of several commands of this kind it is, such as `REINDEX` or `COPY FROM`.
        command: Option<String> = text from "pg_stat_progress_copy.command";
        /// Its phase, in the server's words; absent for `copy`.
        phase: Option<String> = text;
        /// True when the agent's role may see no more than who it is.
        hidden: Option<bool> = state from "the columns that are NULL";
        /// What `done` and `total` count in this phase: `blocks`, `tuples`, `bytes` or `lockers`.
        unit: Option<String> = text from "the collector";
        /// How much is done.
        done: Option<u64> = gauge("1") from "pg_stat_progress_vacuum.heap_blks_scanned";
        /// Of how much; absent where the server does not know.
        total: Option<u64> = gauge("1") from "pg_stat_progress_vacuum.heap_blks_total";
        /// Of a vacuum: how often all indexes have been vacuumed.
        index_vacuums: Option<u64> = gauge("runs")
            from "pg_stat_progress_vacuum.index_vacuum_count";
        /// Of a vacuum: indexes to vacuum or clean up.
        indexes_total: Option<u64> = gauge("indexes") on 17..=18;
        /// Those that are done.
        indexes_done: Option<u64> = gauge("indexes")
            from "pg_stat_progress_vacuum.indexes_processed" on 17..=18;
        /// Of a vacuum: dead rows found since the indexes were vacuumed last.
        dead_tuples: Option<u64> = gauge("tuples")
            from "pg_stat_progress_vacuum.num_dead_item_ids, num_dead_tuples";
        /// How many it keeps before it vacuums the indexes.
        dead_tuples_max: Option<u64> = gauge("tuples")
            from "pg_stat_progress_vacuum.max_dead_tuples" on 10..=16;
        /// What it keeps of them takes.
        dead_tuple_bytes: Option<u64> = gauge("bytes") on 17..=18;
        /// How much it may take before it vacuums the indexes.
        dead_tuple_bytes_max: Option<u64> = gauge("bytes")
            from "pg_stat_progress_vacuum.max_dead_tuple_bytes" on 17..=18;
        /// Of a vacuum or an analyze: time slept for `vacuum_cost_delay`; 0 unless
        /// `track_cost_delay_timing`.
        delay_s: Option<f64> = gauge("s") from "pg_stat_progress_vacuum.delay_time" on 18..=18;
    }
}
