//! `agent`: the agent's own health, stored like any other metric.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Time;
use super::shape::Kind::{Amount, Any, Bool, Count, Object, Text, Time as At};
use super::shape::{Field, optional};

/// The agent at one time. Counters run since the agent started.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "agent")]
pub struct AgentHealth {
    /// When it was read.
    pub timestamp: Time,
    /// The agent's version.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: f64,
    /// Resident memory, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// CPU the agent has used, user and system, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_s: Option<f64>,
    /// The log on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// The ring in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<Ring>,
    /// The way to the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarder: Option<Forwarder>,
    /// By the collector's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub collectors: BTreeMap<String, CollectorHealth>,
    /// Records that were not delivered and never will be, by the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// What waits on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Queue {
    /// Segments, the open one included.
    pub segments: u64,
    /// Batches that are sealed and not delivered.
    pub batches: u64,
    /// Records not delivered.
    pub records: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// The budget, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// When the oldest of them was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_at: Option<Time>,
}

/// What is kept in memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Ring {
    /// Records in it.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bound, bytes.
    pub bytes_max: u64,
}

/// The forwarder's counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Forwarder {
    /// What it does.
    pub state: ForwarderState,
    /// Batches that a 2xx acknowledged.
    pub batches_delivered: u64,
    /// Records in them.
    pub records_delivered: u64,
    /// Bytes of request bodies sent, compressed.
    pub bytes_sent: u64,
    /// Pushes that were not acknowledged.
    pub failures: u64,
    /// The last answer's status code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u64>,
    /// When a batch was last acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_delivered_at: Option<Time>,
}

/// What the forwarder does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwarderState {
    /// Batches leave as they come.
    #[default]
    Flowing,
    /// A probe asks whether the backend is back.
    Probing,
    /// The backend or the way to it is down: nothing leaves until the next try.
    BackingOff,
    /// A person must look: nothing leaves until the next try, and then one batch.
    Paused,
}

impl ForwarderState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Flowing, Self::Probing, Self::BackingOff, Self::Paused];

    /// Its name in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flowing => "flowing",
            Self::Probing => "probing",
            Self::BackingOff => "backing_off",
            Self::Paused => "paused",
        }
    }
}

/// One collector's counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CollectorHealth {
    /// Collections begun.
    pub runs: u64,
    /// Collections that gave an error or ran into their deadline.
    pub failures: u64,
    /// Metrics handed on.
    pub metrics: u64,
    /// Metrics that were no valid documents.
    pub rejected: u64,
    /// How long the last collection took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<f64>,
    /// When the last good collection ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_ok_at: Option<Time>,
}

/// The loss ledger in sum.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Lost {
    /// Entries of the ledger.
    pub ranges: u64,
    /// Records in them.
    pub records: u64,
}

pub(super) const SHAPE: &[Field] = &[
    optional("version", Text),
    optional("uptime_s", Amount),
    optional("rss_bytes", Count),
    optional("cpu_s", Amount),
    optional("queue", Object(QUEUE)),
    optional("ring", Object(RING)),
    optional("forwarder", Object(FORWARDER)),
    optional("collectors", Any),
    optional("lost", Object(&[optional("ranges", Count), optional("records", Count)])),
];

const QUEUE: &[Field] = &[
    optional("segments", Count),
    optional("batches", Count),
    optional("records", Count),
    optional("bytes", Count),
    optional("bytes_max", Count),
    optional("oldest_at", At),
];

const RING: &[Field] =
    &[optional("records", Count), optional("bytes", Count), optional("bytes_max", Count)];

const FORWARDER: &[Field] = &[
    optional("state", Text),
    optional("batches_delivered", Count),
    optional("records_delivered", Count),
    optional("bytes_sent", Count),
    optional("failures", Count),
    optional("last_status", Count),
    optional("last_delivered_at", At),
    optional("paused", Bool),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_name() {
        for state in ForwarderState::ALL {
            let json = serde_json::to_value(state).expect("JSON");
            assert_eq!(json, state.as_str());
            assert_eq!(serde_json::from_value::<ForwarderState>(json).ok(), Some(state));
        }
    }
}
