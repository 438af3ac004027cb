//! Stage 1: collectors read the host and PostgreSQL and make metrics.
//!
//! Every number a collector gives is true or absent. A collector runs no shell and needs no
//! privileges; one part that cannot be read is left out and logged once, when that begins, and
//! once when it ends. Each collector runs by itself: none waits for another.

mod blocking; // calls that may hang, away from the runtime
pub mod disk_usage;
mod notices;
pub mod pg_check; // what a server allows the agent's role
pub mod pg_log;
pub mod pg_stats;
pub mod postgres;
pub mod schedule;
pub mod sysstat;

use std::future::Future;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

pub use notices::Notices;

use crate::metric::pg_stats::MAIN_INSTANCE;

/// What one collection gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Collected {
    /// Metrics of the contract, each of at most 256 KiB for `pg_log`.
    pub metrics: Vec<Value>,
    /// The collector's position after these metrics, opaque. It is stored in the same block as
    /// the records, so that a restart neither repeats nor skips.
    pub state: Option<Vec<u8>>,
}

/// Why a whole collection gave nothing. The text carries the hint; it stays the same while the
/// cause does, so that the caller can log it when it changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CollectError {
    message: String,
}

/// One source of metrics.
pub trait Collector: Send + 'static {
    /// `sysstat`, `disk_usage`, `pg_stats`, `pg_log` or `agent`.
    fn name(&self) -> &'static str;

    /// Which server it reads, where there may be several.
    fn instance(&self) -> &str {
        MAIN_INSTANCE
    }

    /// Reads once. `now` becomes the metrics' timestamp.
    ///
    /// Dropping the future at any point is safe: the caller puts a deadline around it.
    fn collect(
        &mut self,
        now: Timestamp,
    ) -> impl Future<Output = Result<Collected, CollectError>> + Send;

    /// Whether the last [`Collector::collect`] stopped at a limit: once its metrics are committed,
    /// the next collection need not wait for its interval.
    fn has_more(&self) -> bool {
        false
    }

    /// What is wrong while the collector gives what it can, a line for each part.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// The last [`Collector::collect`] was dropped before its end: what it has left open on a
    /// server is to be closed. The caller waits a little for that.
    fn given_up(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The queue holds what the last [`Collector::collect`] returned.
    fn committed(&mut self) {}
}

/// What a collector of an instance is called in status, logs and positions: `pg_stats`, or
/// `pg_stats@replica`.
pub fn label(name: &str, instance: &str) -> String {
    if instance == MAIN_INSTANCE { name.to_owned() } else { format!("{name}@{instance}") }
}

impl CollectError {
    /// An error for the log: lower case, the value, `hint:`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A typed document as the JSON value that the agent validates and stores.
pub(crate) fn document(metric: &impl Serialize) -> Result<Value, CollectError> {
    serde_json::to_value(metric)
        .map_err(|error| CollectError::new(format!("cannot encode a document: {error}")))
}

/// `value` with two decimals: more is noise that costs bytes on the wire.
pub(crate) fn round2(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
