//! Parts of `pg_stats` that are about how the server is set up, and what lies in its directory.

use super::declare::declare;
use super::{Status, Time};

declare! {
    /// The settings that matter, and what has changed. What the agent's own sessions set, such as
    /// `statement_timeout`, is not among them: the server shows a session its own values.
    pub struct Settings, from "pg_settings" {
        /// When the server last read its configuration.
        loaded_at: Option<Time> = time(server) from "pg_conf_load_time()";
        /// Settings that wait for a restart, those that are not listed included.
        pending_restart: Option<u64> = gauge("1") from "pg_settings.pending_restart";
        /// True when the agent's role does not see those that only superusers see; they are not in
        /// `list`.
        hidden: Option<bool> = state from "pg_has_role('pg_read_all_settings')";
        /// Lines of the configuration files that the server cannot take.
        file_errors: Option<u64> = gauge("errors") from "pg_file_settings.error";
        /// Why `file_errors` is absent.
        file_errors_status: Option<Status> = state from "has_table_privilege()";
        /// About 90 of them.
        list: Vec<Setting> = part;
        /// Those of the list that have another value than at the last collection. What changes
        /// while the agent does not run is not seen.
        changes: Vec<SettingChange> = part;
    }

    /// A setting as a new session in the maintenance database has it.
    pub struct Setting, from "pg_settings" {
        /// Its name.
        name: String = key;
        /// Its value in `unit`, its first 200 characters; of one that may hold a password, such as
        /// `primary_conninfo` or `archive_command`, only `set` or `not set`.
        value: Option<String> = text from "pg_settings.setting";
        /// Such as `8kB` or `ms`.
        unit: Option<String> = text;
        /// `default`, `configuration file` and so on.
        source: Option<String> = text;
        /// True when it has another value from the next start on.
        pending_restart: Option<bool> = state;
    }

    /// A setting that has changed.
    pub struct SettingChange, from "the collector" {
        /// Its name.
        name: String = key;
        /// What it was.
        from: Option<String> = text;
        /// What it is.
        to: Option<String> = text;
        /// When that was seen; `loaded_at` is when the server took it, if it took it from a file.
        at: Option<Time> = time(host);
    }

    /// Files in the server's directory. The functions need `pg_monitor`.
    pub struct ServerFiles, from "pg_ls_waldir()" {
        /// What the files of the write-ahead log take.
        wal_bytes: Option<u64> = gauge("bytes");
        /// How many they are.
        wal_files: Option<u64> = gauge("files");
        /// Why these two are absent.
        wal_status: Option<Status> = state from "has_function_privilege()";
        /// Files of the log that wait to be archived.
        archive_ready: Option<u64> = gauge("files")
            from "pg_ls_archive_statusdir()" on 12..=18;
        /// Why that is absent.
        archive_status: Option<Status> = state from "has_function_privilege()";
        /// What temporary files take now, in all tablespaces.
        temp_bytes: Option<u64> = gauge("bytes") from "pg_ls_tmpdir()" on 12..=18;
        /// How many they are.
        temp_files: Option<u64> = gauge("files") from "pg_ls_tmpdir()" on 12..=18;
        /// Why these two are absent.
        temp_status: Option<Status> = state from "has_function_privilege()";
    }

    /// What the server's control file says.
    pub struct Control, from "pg_control_system()" {
        /// The same on a primary and its standbys, and on no other server.
        system_identifier: Option<String> = key;
        /// Its timeline as of the last checkpoint; another one after each promotion.
        timeline: Option<u64> = key from "pg_control_checkpoint().timeline_id";
        /// When the last checkpoint was made; on a standby, the last one that it has replayed.
        checkpoint_at: Option<Time> = time(server) from "pg_control_checkpoint().checkpoint_time";
        /// Pages have checksums.
        checksums: Option<bool> = state from "current_setting('data_checksums')";
    }
}
