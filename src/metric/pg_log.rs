//! `pg_log`: entries of a PostgreSQL log.

use std::collections::BTreeMap;

use super::Time;
use super::declare::declare;

declare! {
    /// Entries of one log file, in the order of the file.
    pub struct PgLog = "pg_log", from "the server's log" {
        /// When the file was read.
        timestamp: Time = time(host);
        /// Which server wrote it: its name in the agent's configuration, `main` where that is
        /// absent.
        instance: Option<String> = key from "the configuration";
        /// The database of the agent's connection; each entry names its own.
        database: String = key from "current_database()";
        /// What the server wrote.
        entries: Option<Vec<Entry>> = part;
        /// How many entries of each level `entries` holds.
        counts: BTreeMap<String, u64> = gauge("entries" by "level");
        /// The file's path.
        file: Option<String> = text from "pg_current_logfile()";
        /// Where the first of these entries starts in the file.
        from_offset: Option<u64> = gauge("bytes");
        /// Where the last of them ends.
        to_offset: Option<u64> = gauge("bytes");
        /// What is between the two and in no entry: no log line, or over a limit.
        skipped_bytes: Option<u64> = gauge("bytes");
    }

    /// One entry, continuation lines joined.
    pub struct Entry, from "the server's log" {
        /// When the server wrote it.
        timestamp: Time = time(server) from "log_line_prefix %t, %m, %n";
        /// `LOG`, `ERROR` and so on.
        level: String = key;
        /// The first line's text and its continuation lines; with redaction one of the forms of
        /// PostgreSQL's own messages, or the class of the SQLSTATE and the length.
        message: String = text;
        /// The server process.
        pid: Option<u64> = key from "log_line_prefix %p";
        /// The role.
        user: Option<String> = key from "log_line_prefix %u";
        /// The database of the session.
        database: Option<String> = key from "log_line_prefix %d";
        /// `application_name` of the session.
        application: Option<String> = key from "log_line_prefix %a";
        /// The client's host.
        client: Option<String> = key from "log_line_prefix %h, %r";
        /// SQLSTATE.
        sqlstate: Option<String> = key from "log_line_prefix %e";
        /// What a `duration:` entry measured.
        duration_ms: Option<f64> = gauge("ms");
        /// `query_id`.
        query_id: Option<i64> = key from "log_line_prefix %Q" on 14..=18;
        /// `HINT`, only with redaction off.
        hint: Option<String> = text;
        /// `DETAIL`, only with redaction off.
        detail: Option<String> = text;
        /// `CONTEXT`, only with redaction off.
        context: Option<String> = text;
        /// `STATEMENT`, only with redaction off.
        statement: Option<String> = text;
        /// The session.
        session_id: Option<String> = text from "log_line_prefix %c";
        /// The entry's number in its session.
        line: Option<u64> = key from "log_line_prefix %l";
        /// Cut at a limit; absent: it is not.
        truncated: Option<bool> = state;
        /// Text that may hold data was left out; absent: it was not.
        redacted: Option<bool> = state;
    }
}
