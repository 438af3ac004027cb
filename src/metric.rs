//! The metric documents of the wire contract: what a collector hands on, what the agent validates
//! before it queues, and what the backend validates again before it stores.
//!
//! Each type has a file with its declaration, which [`admit`] holds a document's text against: one
//! table and one walk rule both ends of the wire. `null` or absent means "not known" and is never
//! replaced by 0.

mod admit;
pub mod agent_health;
pub mod agent_limits;
mod bounds;
pub mod catalogue;
mod compat;
pub mod declare;
pub mod disk_usage;
pub mod envelope;
pub mod error_body;
pub mod exposition;
pub mod members;
mod number;
pub mod object;
pub mod pg_activity;
pub mod pg_log;
pub mod pg_objects;
pub mod pg_server;
pub mod pg_settings;
pub mod pg_statements;
pub mod pg_stats;
pub mod points;
pub mod sequences;
pub mod sysstat;
mod scan;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use admit::{Sound, admit};
pub use bounds::{DEPTH_MAX, ELEMENTS_MAX, STRING_BYTES_MAX};
pub use compat::split_compat;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// Who made a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// Somebody who knows the contract.
    Ours,
    /// An original collector: what it writes in a form of its own is brought into the contract's
    /// (section 5, compat).
    Original,
}

/// [`admit`] for a value.
pub fn validate(metric: &Value, now: Timestamp) -> Result<MetricType, Invalid> {
    admit(&metric.to_string(), now).map(|sound| sound.metric_type)
}

/// [`admit`], and hands on each document of the text with its own: the text itself, or the parts
/// that [`split_compat`] makes of it, until one is not sound or is not taken.
pub fn each_document(
    text: &str,
    now: Timestamp,
    maker: Maker,
    mut take: impl FnMut(Sound<'_>, Cow<'_, str>) -> Result<(), Invalid>,
) -> Result<(), Invalid> {
    let refused = match admit(text, now) {
        Ok(sound) => return take(sound, text.into()),
        Err(refused) => refused,
    };
    let value = match maker {
        Maker::Ours => compat::nested(text)?.ok_or(refused)?,
        Maker::Original => compat::built(text)?,
    };
    for mut part in split_compat(value) {
        if maker == Maker::Original {
            compat::adopt(&mut part);
        }
        let part = part.to_string();
        take(admit(&part, now)?, part.as_str().into())?;
    }
    Ok(())
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

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer).map(Self)
    }
}

fn is_custom_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests;
