//! The metric documents of the wire contract: what a collector hands on, what the agent validates
//! before it queues, and what the backend validates again before it stores.
//!
//! Each type has a file with its document (`Serialize`) and its shape. The shape is what
//! [`validate`] holds a JSON value against, so one table rules both ends of the wire. `null` or
//! absent means "not known" and is never replaced by 0.

pub mod agent_health;
pub mod agent_limits;
pub mod catalogue;
mod compat;
pub mod declare;
pub mod disk_usage;
pub mod envelope;
pub mod error_body;
pub mod exposition;
mod glance;
mod keys;
pub mod members;
mod number;
pub mod object;
pub mod pg_log;
pub mod pg_stats;
pub mod points;
mod quick;
pub mod sequences;
mod shape;
pub mod sysstat;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub use compat::split_compat;
pub use quick::Sound;
pub use shape::{ARRAY_ELEMENTS_MAX, DEPTH_MAX, STRING_BYTES_MAX};
pub use value::parse_value;

use crate::clock;
use declare::{Declared, Field, declare};

/// What a metric is about; the `type` of its document.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MetricType {
    /// CPU, memory, disk and network of the host.
    Sysstat,
    /// The host's file systems.
    DiskUsage,
    /// One PostgreSQL database, and the cluster on the maintenance database's metric.
    PgStats,
    /// Entries of a PostgreSQL log.
    PgLog,
    /// The agent's own health.
    Agent,
    /// What newer original collectors send beside these, one of [`ORIGINAL_TYPES`]: held against
    /// the common checks only.
    Original(&'static str),
    /// `custom.<name>`: a document of a user's own program; the name without its prefix.
    Custom(String),
}

/// Types of the original collectors that this agent does not make.
pub const ORIGINAL_TYPES: [&str; 8] = [
    "pg_query_stats",
    "pg_replication",
    "pg_schema",
    "pg_locks",
    "pg_bloat",
    "pg_cache",
    "pg_connections",
    "pg_extensions",
];

/// Why a metric or an envelope is refused, and where in its JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// The place, such as `metrics[3].cpu.user`; empty for the value itself.
    pub path: String,
    /// What is wrong there, lower case unless the contract gives the words.
    pub message: String,
}

/// An instant in a document: RFC 3339, UTC, milliseconds, ending in `Z`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

/// Why a number is absent, or `ok` when none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every number that this server can give is there.
    #[default]
    Ok,
    /// This version of PostgreSQL or of the kernel does not have it.
    UnsupportedVersion,
    /// The role lacks the right to read it.
    Permission,
    /// The relation is locked and was not touched.
    Locked,
    /// The statement ran into its timeout.
    Timeout,
    /// Not asked on a server in recovery.
    Recovery,
    /// Switched off.
    Disabled,
    /// Anything else; the agent's log has the words.
    Error,
}

impl Status {
    /// The values of `status` on the wire.
    pub(crate) const NAMES: &'static [&'static str] = &[
        "ok",
        "unsupported_version",
        "permission",
        "locked",
        "timeout",
        "recovery",
        "disabled",
        "error",
    ];

    /// The word on the wire.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Holds one metric against section 5 of the contract; paths are relative to the metric.
///
/// Returns the metric's type. `now` bounds its timestamps.
///
/// # Examples
///
/// ```
/// use pganalytics::metric::{MetricType, validate};
///
/// let now = "2026-01-02T00:00:00Z".parse()?;
/// let good = serde_json::json!({"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z"});
/// assert_eq!(validate(&good, now), Ok(MetricType::Sysstat));
///
/// let bad = serde_json::json!({
///     "type": "sysstat", "timestamp": "2026-01-01T00:00:00Z", "cpu": {"user": 101},
/// });
/// assert_eq!(validate(&bad, now).unwrap_err().path, "cpu.user");
/// # Ok::<(), jiff::Error>(())
/// ```
pub fn validate(metric: &Value, now: Timestamp) -> Result<MetricType, Invalid> {
    let Some(members) = metric.as_object() else {
        return Err(Invalid::new(
            "",
            format!("a metric is an object, not {}", shape::kind_name(metric)),
        ));
    };
    let name = match members.get("type") {
        None | Some(Value::Null) => return Err(Invalid::new("type", "missing")),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(Invalid::new(
                "type",
                format!("expected a string, found {}", shape::kind_name(other)),
            ));
        }
    };
    let metric_type: MetricType = name.parse().map_err(|message| Invalid::new("type", message))?;
    shape::check_metric(members, metric_type.fields(), now)?;
    Ok(metric_type)
}

/// [`validate`] for one metric's text, which must be a JSON value; no object in it may name a key
/// twice, and no number have more digits than a store can hold. A document of an older collector,
/// which [`split_compat`] splits, is sound when its parts are; the first is told of.
///
/// Sound text costs no memory. Text that is not sound becomes a value, so that its place can be
/// told, unless that would take more than 32 MiB: it could be a hundred times the text.
pub fn validate_text(text: &str, now: Timestamp) -> Result<Sound<'_>, Invalid> {
    let mut first = None;
    each_document(text, now, |sound, _| {
        first.get_or_insert(sound);
        Ok(())
    })?;
    first.ok_or_else(|| Invalid::new("", "no metric"))
}

/// [`validate_text`], and hands on each document of the text with its own: the text itself, or the
/// parts that [`split_compat`] makes of it, until one is not sound or is not taken.
pub fn each_document<'a>(
    text: &'a str,
    now: Timestamp,
    mut take: impl FnMut(Sound<'a>, Cow<'a, str>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    if let Some(sound) = quick::look(text, now) {
        return take(sound, text.into());
    }
    let (value, glance) = built(text)?;
    if !compat::is_split(&value) {
        let sound = sound(&value, now)?;
        glance.check_numbers(text)?;
        return take(sound, text.into());
    }
    glance.check_numbers(text)?;
    compat::check_split(&value, text.len())?;
    for part in split_compat(value) {
        take(sound(&part, now)?, part.to_string().into())?;
    }
    Ok(())
}

/// [`each_document`] for a text that is refused as it is, of an original collector: each document
/// in the contract's forms, where the originals have others (section 5, compat).
pub fn each_of_original(
    text: &str,
    now: Timestamp,
    mut take: impl FnMut(Sound<'_>, String) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    let (value, glance) = built(text)?;
    glance.check_numbers(text)?;
    compat::check_split(&value, text.len())?;
    for mut part in split_compat(value) {
        compat::adopt(&mut part);
        take(sound(&part, now)?, part.to_string())?;
    }
    Ok(())
}

/// A text as a value, when that does not take too much.
fn built(text: &str) -> Result<(Value, glance::Glance), Invalid> {
    let glance = glance::Glance::of(text);
    glance.check_size()?;
    let value = parse_value(text.as_bytes())
        .map_err(|error| Invalid::new("", format!("no JSON: column {}", error.column())))?;
    keys::check_keys(text, &value)?;
    Ok((value, glance))
}

fn sound(metric: &Value, now: Timestamp) -> Result<Sound<'static>, Invalid> {
    let metric_type = validate(metric, now)?;
    let text = |key| metric.get(key).and_then(Value::as_str);
    let at = text("timestamp").and_then(|at| at.parse().ok());
    let at = at.ok_or_else(|| Invalid::new("timestamp", "not a timestamp"))?;
    Ok(Sound { metric_type, at, database: text("database").map(|name| name.to_owned().into()) })
}

declare! {
    /// A document of a user's own program: anything besides.
    pub struct Custom, from "the intake" {
        /// When it was taken.
        timestamp: Time = time(host);
    }
}

impl MetricType {
    fn fields(&self) -> &'static [Field] {
        match self {
            Self::Sysstat => sysstat::Sysstat::FIELDS,
            Self::DiskUsage => disk_usage::DiskUsage::FIELDS,
            Self::PgStats => pg_stats::PgStats::FIELDS,
            Self::PgLog => pg_log::PgLog::FIELDS,
            Self::Agent => agent_health::AgentHealth::FIELDS,
            Self::Original(_) | Self::Custom(_) => Custom::FIELDS,
        }
    }
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysstat => f.write_str("sysstat"),
            Self::DiskUsage => f.write_str("disk_usage"),
            Self::PgStats => f.write_str("pg_stats"),
            Self::PgLog => f.write_str("pg_log"),
            Self::Agent => f.write_str("agent"),
            Self::Original(name) => f.write_str(name),
            Self::Custom(name) => write!(f, "custom.{name}"),
        }
    }
}

impl FromStr for MetricType {
    type Err = String;

    /// Reads the wire name. The error is the contract's `Unknown metric type` with the name.
    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "sysstat" => Self::Sysstat,
            "disk_usage" => Self::DiskUsage,
            "pg_stats" => Self::PgStats,
            "pg_log" => Self::PgLog,
            "agent" => Self::Agent,
            other => {
                let custom = other.strip_prefix("custom.").filter(|own| is_custom_name(own));
                let original = || ORIGINAL_TYPES.iter().find(|own| **own == other);
                let known = custom.map(|own| Self::Custom(own.to_owned()));
                known.or_else(|| original().map(|own| Self::Original(own))).ok_or_else(|| {
                    let shown: String = other.chars().take(80).collect();
                    format!("Unknown metric type: {shown:?}")
                })?
            }
        })
    }
}

impl Invalid {
    /// A refusal at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }

    /// The same refusal seen from the value that holds this one at `parent`, such as `metrics[3]`.
    #[must_use]
    pub fn under(mut self, parent: &str) -> Self {
        self.path = match self.path.as_str() {
            "" => parent.to_owned(),
            path if path.starts_with('[') => format!("{parent}{path}"),
            path => format!("{parent}.{path}"),
        };
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&clock::rfc3339(self.0))
    }
}

fn is_custom_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests;
