//! How the server is set up, what has changed of that, and the files in its directory.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::{Asking, CollectError, Document, Query};
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_settings::{ServerFiles, Setting, SettingChange, Settings};
use crate::metric::{Status, Time};

/// What is listed. A value that may hold a password does not leave the server. What only this
/// session has is not the server's.
const SETTINGS: Query = Query {
    name: "settings",
    sql: "SELECT s.name, s.unit, s.source, s.pending_restart, s.pending,
       CASE WHEN s.name NOT IN ('primary_conninfo', 'archive_command', 'restore_command',
                 'archive_cleanup_command', 'recovery_end_command', 'ssl_passphrase_command')
                 THEN left(s.setting, 200)
            WHEN coalesce(s.setting, '') IN ('', '(disabled)') THEN 'not set'
            ELSE 'set' END AS value,
       pg_conf_load_time() AS loaded_at,
       NOT pg_has_role(current_user, 'pg_read_all_settings', 'MEMBER') AS hidden
  FROM (SELECT v.name, v.setting, v.unit, v.source, v.pending_restart,
               count(*) FILTER (WHERE v.pending_restart) OVER () AS pending
          FROM pg_settings v) s
 WHERE s.source NOT IN ('client', 'session')
   AND s.name IN (
       'shared_buffers', 'work_mem', 'maintenance_work_mem', 'autovacuum_work_mem',
       'effective_cache_size', 'temp_buffers', 'hash_mem_multiplier', 'huge_pages',
       'logical_decoding_work_mem', 'temp_file_limit',
       'wal_level', 'wal_buffers', 'wal_compression', 'wal_segment_size', 'wal_log_hints',
       'max_wal_size', 'min_wal_size', 'wal_keep_segments', 'wal_keep_size',
       'max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'full_page_writes', 'fsync',
       'synchronous_commit', 'synchronous_standby_names', 'commit_delay', 'data_checksums',
       'archive_mode', 'archive_command', 'archive_library', 'archive_timeout',
       'archive_cleanup_command', 'restore_command', 'recovery_end_command',
       'checkpoint_timeout', 'checkpoint_completion_target', 'checkpoint_warning',
       'bgwriter_delay', 'bgwriter_lru_maxpages',
       'autovacuum', 'autovacuum_max_workers', 'autovacuum_worker_slots', 'autovacuum_naptime',
       'autovacuum_vacuum_threshold', 'autovacuum_vacuum_scale_factor',
       'autovacuum_vacuum_max_threshold', 'autovacuum_vacuum_insert_scale_factor',
       'autovacuum_analyze_scale_factor', 'autovacuum_vacuum_cost_delay',
       'autovacuum_vacuum_cost_limit', 'autovacuum_freeze_max_age',
       'autovacuum_multixact_freeze_max_age', 'vacuum_cost_limit', 'vacuum_failsafe_age',
       'max_connections', 'superuser_reserved_connections', 'reserved_connections',
       'max_prepared_transactions', 'max_locks_per_transaction', 'ssl',
       'ssl_passphrase_command', 'password_encryption', 'deadlock_timeout',
       'idle_session_timeout', 'transaction_timeout',
       'max_worker_processes', 'max_parallel_workers', 'max_parallel_maintenance_workers',
       'io_method', 'io_workers', 'effective_io_concurrency', 'random_page_cost',
       'default_statistics_target', 'shared_preload_libraries',
       'logging_collector', 'log_destination', 'log_min_duration_statement', 'log_checkpoints',
       'log_lock_waits', 'log_temp_files', 'log_autovacuum_min_duration', 'log_line_prefix',
       'max_wal_senders', 'max_replication_slots', 'hot_standby', 'hot_standby_feedback',
       'max_standby_streaming_delay', 'wal_sender_timeout', 'wal_receiver_timeout',
       'primary_conninfo', 'primary_slot_name', 'recovery_min_apply_delay',
       'track_activities', 'track_counts', 'track_io_timing', 'track_wal_io_timing',
       'track_functions', 'track_commit_timestamp', 'track_cost_delay_timing',
       'track_activity_query_size', 'compute_query_id')
 ORDER BY s.name
 LIMIT 120",
    rows_max: 120,
};

/// What the role may ask further. Asked first, so that a missing right is not an error in the
/// server's log; absent: the server does not have it.
const RIGHTS: Query = Query {
    name: "rights",
    sql: "SELECT has_function_privilege(to_regprocedure('pg_ls_waldir()')::oid, 'EXECUTE') AS wal,
       has_function_privilege(to_regprocedure('pg_ls_archive_statusdir()')::oid, 'EXECUTE')
           AS archive,
       has_function_privilege(to_regprocedure('pg_ls_tmpdir(oid)')::oid, 'EXECUTE') AS temp,
       has_table_privilege('pg_file_settings', 'SELECT')
           AND has_function_privilege('pg_show_all_file_settings()', 'EXECUTE') AS file_errors",
    rows_max: 1,
};

const WAL_FILES: Query = Query {
    name: "wal_files",
    sql: "SELECT coalesce(sum(f.size), 0)::int8 AS wal_bytes, count(*) AS wal_files
  FROM pg_ls_waldir() f",
    rows_max: 1,
};

const ARCHIVE_FILES: Query = Query {
    name: "archive_files",
    sql: "SELECT count(*) AS archive_ready
  FROM pg_ls_archive_statusdir() f WHERE f.name LIKE '%.ready'",
    rows_max: 1,
};

const TEMP_FILES: Query = Query {
    name: "temp_files",
    sql: "SELECT coalesce(sum(f.size), 0)::int8 AS temp_bytes, count(f.size) AS temp_files
  FROM pg_tablespace t CROSS JOIN LATERAL pg_ls_tmpdir(t.oid) f
 WHERE t.spcname <> 'pg_global'",
    rows_max: 1,
};

const FILE_ERRORS: Query = Query {
    name: "settings_files",
    sql: "SELECT count(*) AS file_errors FROM pg_file_settings f WHERE f.error IS NOT NULL",
    rows_max: 1,
};

const CONTROL: Query = Query {
    name: "control",
    sql: "SELECT s.system_identifier::text AS system_identifier, c.timeline_id::int8 AS timeline,
       c.checkpoint_time AS checkpoint_at, current_setting('data_checksums') = 'on' AS checksums
  FROM pg_control_system() s, pg_control_checkpoint() c",
    rows_max: 1,
};

/// The values of settings at two collections.
#[derive(Debug, Default)]
pub(in crate::collect::pg_stats) struct KnownSettings {
    /// At the last one whose document is in the queue.
    committed: Option<BTreeMap<String, String>>,
    /// At the one since then.
    collected: Option<BTreeMap<String, String>>,
}

impl KnownSettings {
    /// The changes from the last committed values to these.
    fn changes(&mut self, list: &[Setting], at: Time) -> Vec<SettingChange> {
        let value = |setting: &Setting| Some((setting.name.clone(), setting.value.clone()?));
        let now: BTreeMap<String, String> = list.iter().filter_map(value).collect();
        let before = self.committed.as_ref();
        let changes = now.iter().filter_map(|(name, to)| {
            let from = before?.get(name).filter(|from| *from != to)?;
            let (from, to) = (Some(from.clone()), Some(to.clone()));
            Some(SettingChange { name: name.clone(), from, to, at: Some(at) })
        });
        let changes = changes.collect();
        self.collected = Some(now);
        changes
    }

    /// The changes that were found are in the queue.
    pub(in crate::collect::pg_stats) fn commit(&mut self) {
        if let Some(collected) = self.collected.take() {
            self.committed = Some(collected);
        }
    }
}

impl Asking<'_> {
    pub(super) async fn add_settings(
        &mut self,
        document: &mut Document,
    ) -> Result<(), CollectError> {
        self.collector.settings.collected = None;
        let rows = self.rows(SETTINGS).await?;
        let rights = self.rows(RIGHTS).await?.and_then(|rows| rows.into_iter().next());
        if let Some(mut settings) = rows.as_deref().and_then(settings) {
            let at = document.timestamp;
            settings.changes = self.collector.settings.changes(&settings.list, at);
            let answer = self.permitted(rights.as_ref(), "file_errors", FILE_ERRORS).await?;
            settings.file_errors = answer.row.and_then(|row| row.count("file_errors"));
            settings.file_errors_status = answer.absent;
            document.settings = Some(settings);
        }
        document.files = Some(self.files(rights.as_ref()).await?);
        document.control = self.one(CONTROL).await?;
        Ok(())
    }

    async fn files(&mut self, rights: Option<&Row>) -> Result<ServerFiles, CollectError> {
        let wal = self.permitted(rights, "wal", WAL_FILES).await?;
        let archive = self.permitted(rights, "archive", ARCHIVE_FILES).await?;
        let temp = self.permitted(rights, "temp", TEMP_FILES).await?;
        let number = |answer: &Answer, name| answer.row.as_ref().and_then(|row| row.count(name));
        Ok(ServerFiles {
            wal_bytes: number(&wal, "wal_bytes"),
            wal_files: number(&wal, "wal_files"),
            wal_status: wal.absent,
            archive_ready: number(&archive, "archive_ready"),
            archive_status: archive.absent,
            temp_bytes: number(&temp, "temp_bytes"),
            temp_files: number(&temp, "temp_files"),
            temp_status: temp.absent,
        })
    }

    /// The row of `query` if the role has the right that is `name` in a row of [`RIGHTS`].
    async fn permitted(
        &mut self,
        rights: Option<&Row>,
        name: &str,
        query: Query,
    ) -> Result<Answer, CollectError> {
        let absent = match rights.map(|row| row.flag(name)) {
            Some(Some(true)) => None,
            Some(Some(false)) => Some(Status::Permission),
            Some(None) => Some(Status::UnsupportedVersion),
            None => Some(Status::Error),
        };
        if absent.is_some() {
            return Ok(Answer { row: None, absent });
        }
        let row = self.rows(query).await?.and_then(|rows| rows.into_iter().next());
        // `problems` says what went wrong.
        let absent = row.is_none().then_some(Status::Error);
        Ok(Answer { row, absent })
    }
}

/// A row, or why there is none.
struct Answer {
    row: Option<Row>,
    absent: Option<Status>,
}

/// Rows of [`SETTINGS`].
fn settings(rows: &[Row]) -> Option<Settings> {
    let first = rows.first()?;
    Some(Settings {
        loaded_at: first.time("loaded_at"),
        pending_restart: first.count("pending"),
        hidden: first.flag("hidden"),
        list: rows.iter().filter_map(Setting::read).collect(),
        ..Settings::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(values: &[(&str, &str)]) -> Vec<Setting> {
        let setting = |(name, value): &(&str, &str)| Setting {
            name: (*name).to_owned(),
            value: Some((*value).to_owned()),
            ..Setting::default()
        };
        values.iter().map(setting).collect()
    }

    /// A change is told until its document is in the queue, and then no more.
    #[test]
    fn a_change_is_told_until_it_is_committed() {
        let mut known = KnownSettings::default();
        let mut check =
            |values: &[(&str, &str)], commits: bool, expected: &[(&str, &str, &str)]| {
                let changes = known.changes(&list(values), Time::default());
                let told: Vec<_> = changes
                    .iter()
                    .map(|change| {
                        let (from, to) = (change.from.as_deref(), change.to.as_deref());
                        (change.name.as_str(), from.unwrap_or_default(), to.unwrap_or_default())
                    })
                    .collect();
                assert_eq!(told, expected);
                if commits {
                    known.commit();
                }
            };
        check(&[("a", "1"), ("b", "x")], true, &[]);
        check(&[("a", "2"), ("b", "x")], false, &[("a", "1", "2")]);
        check(&[("a", "2"), ("b", "x")], true, &[("a", "1", "2")]);
        check(&[("a", "2"), ("b", "x")], true, &[]);
        // One that comes, such as with a new version, or goes, has not changed.
        check(&[("a", "2"), ("c", "y")], true, &[]);
        check(&[("a", "2"), ("c", "z")], true, &[("c", "y", "z")]);
    }
}
