//! `pg_log`: entries of a PostgreSQL log.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Time;
use super::shape::Kind::{Amount, Any, Array, Bool, Count, Name, Number, Object, Text, Time as At};
use super::shape::{Field, optional, required};

/// Entries of one log file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "pg_log")]
pub struct PgLog {
    /// When the file was read.
    pub timestamp: Time,
    /// The database of the agent's connection; each entry names its own.
    pub database: String,
    /// What the server wrote.
    pub entries: Vec<Entry>,
    /// How many entries of each level `entries` holds.
    pub counts: BTreeMap<String, u64>,
    /// The file's path.
    pub file: String,
    /// Where the first of these entries starts in the file, bytes.
    pub from_offset: u64,
    /// Where the last of them ends, bytes.
    pub to_offset: u64,
    /// Bytes between the two that are in no entry: no log line, or over a limit.
    pub skipped_bytes: u64,
}

/// One entry, continuation lines joined.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Entry {
    /// When the server wrote it; absent when the line's zone is not known. The collector leaves
    /// such an entry out, since the contract requires a time.
    pub timestamp: Option<Time>,
    /// `LOG`, `ERROR`, ...
    pub level: String,
    /// The first line's text and its continuation lines.
    pub message: String,
    /// The server process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// The role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The database of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// `application_name` of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
    /// The client's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// SQLSTATE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlstate: Option<String>,
    /// What a `duration:` entry measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// `HINT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// `DETAIL`, only with redaction off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `CONTEXT`, only with redaction off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// `STATEMENT`, only with redaction off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// The session, `%c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The entry's number in its session, `%l`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Cut at a limit.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Text that may hold data was left out.
    #[serde(skip_serializing_if = "is_false")]
    pub redacted: bool,
}

pub(super) const SHAPE: &[Field] = &[
    required("database", Name),
    optional("entries", Array(&Object(ENTRY))),
    optional("counts", Any),
    optional("file", Text),
    optional("from_offset", Count),
    optional("to_offset", Count),
    optional("skipped_bytes", Count),
];

const ENTRY: &[Field] = &[
    required("timestamp", At),
    required("level", Name),
    required("message", Text),
    optional("pid", Count),
    optional("user", Text),
    optional("database", Text),
    optional("application", Text),
    optional("client", Text),
    optional("sqlstate", Text),
    optional("event", Text),
    optional("duration_ms", Amount),
    optional("query_id", Number),
    optional("detail", Text),
    optional("hint", Text),
    optional("context", Text),
    optional("statement", Text),
    optional("session_id", Text),
    optional("line", Count),
    optional("truncated", Bool),
    optional("redacted", Bool),
];

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(flag: &bool) -> bool {
    !flag
}
