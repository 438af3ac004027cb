//! `agent`: the agent's own health, stored like any other metric.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Time;
use super::declare::declare;

/// The type of the document.
pub const TYPE: &str = "agent";

declare! {
    /// The agent's own health: what `agent status` and `/metrics` say, kept over time.
    pub struct AgentHealth = "agent", from "the agent" {
        /// When it was read.
        timestamp: Time = time(host);
        /// When the agent started: where the counters begin.
        started_at: Option<Time> = time(host);
        /// The agent's version.
        version: Option<String> = text;
        /// Since the agent started.
        uptime_s: Option<f64> = gauge("s");
        /// Resident memory.
        rss_bytes: Option<u64> = gauge("bytes") from "/proc/self/status: VmRSS";
        /// CPU the agent has used, user and system.
        cpu_s: Option<f64> = counter("s" since "started_at")
            from "clock_gettime(CLOCK_PROCESS_CPUTIME_ID)";
        /// What the agent has had written to disks. By `queue.bytes_appended` it is the write
        /// amplification: bytes to the device for each byte collected.
        device_bytes_written: Option<u64> = counter("bytes" since "started_at")
            from "/proc/self/io: write_bytes";
        /// The log on disk.
        queue: Option<Queue> = part;
        /// The ring in memory.
        ring: Option<Ring> = part;
        /// The way to the backend.
        forwarder: Option<Forwarder> = part;
        /// By the collector's name.
        collectors: BTreeMap<String, CollectorHealth> = part(by "collector");
        /// Records that were not delivered and never will be.
        lost: Option<Lost> = part;
    }

    /// What waits on disk.
    pub struct Queue, from "the agent" {
        /// Segments that wait, the open one included.
        segments: Option<u64> = gauge("segments");
        /// Batches that are not delivered.
        batches: Option<u64> = gauge("batches");
        /// Records not delivered.
        records: Option<u64> = gauge("records");
        /// On disk, as it counts towards the budget.
        bytes: Option<u64> = gauge("bytes");
        /// The budget.
        bytes_max: Option<u64> = gauge("bytes");
        /// Since when the oldest of them waits.
        oldest_at: Option<Time> = time(host);
        /// Whether the disk takes no records at present, and they stay in memory.
        degraded: Option<bool> = state;
        /// Records taken, those of other programs included.
        records_appended: Option<u64> = counter("records" since "started_at");
        /// Their bytes: documents as they were collected, before compression.
        bytes_appended: Option<u64> = counter("bytes" since "started_at");
    }

    /// What is kept in memory.
    pub struct Ring, from "the agent" {
        /// Records in it.
        records: Option<u64> = gauge("records");
        /// The memory that they occupy.
        bytes: Option<u64> = gauge("bytes");
        /// The bound, of records that are also on disk.
        bytes_max: Option<u64> = gauge("bytes");
    }

    /// The way to the backend.
    pub struct Forwarder, from "the agent" {
        /// What it does: `flowing`, `probing`, `backing_off` or `paused`.
        state: Option<String> = text;
        /// Batches on their way.
        in_flight: Option<u64> = gauge("batches");
        /// Batches that the backend has acknowledged.
        batches_delivered: Option<u64> = counter("batches" since "started_at");
        /// Records in them that it has taken.
        records_delivered: Option<u64> = counter("records" since "started_at");
        /// Request bodies that the backend has taken, compressed.
        bytes_sent: Option<u64> = counter("bytes" since "started_at");
        /// The same before compression.
        bytes_sent_raw: Option<u64> = counter("bytes" since "started_at");
        /// Pushes and probes that were not acknowledged.
        failures: Option<u64> = counter("requests" since "started_at");
        /// When a batch was last acknowledged.
        last_delivered_at: Option<Time> = time(host);
    }

    /// One collector.
    pub struct CollectorHealth, from "the agent" {
        /// Collections that have ended.
        runs: Option<u64> = counter("runs" since "started_at");
        /// Collections that gave an error or ran into their deadline.
        failures: Option<u64> = counter("runs" since "started_at");
        /// Metrics that became records.
        metrics: Option<u64> = counter("metrics" since "started_at");
        /// Metrics that were not valid documents.
        rejected: Option<u64> = counter("metrics" since "started_at");
        /// CPU of the agent for its collections, up to the queue. What it has other threads do,
        /// such as asking a file system for its size, is not in it.
        cpu_ms: Option<u64> = counter("ms" since "started_at")
            from "clock_gettime(CLOCK_THREAD_CPUTIME_ID)";
        /// How long the last collection took.
        last_ms: Option<u64> = gauge("ms");
        /// When it began.
        last_run_at: Option<Time> = time(host);
    }

    /// Records that were not delivered and never will be.
    pub struct Lost, from "the agent" {
        /// Entries of the ledger.
        ranges: Option<u64> = gauge("entries");
        /// Records in them.
        records: Option<u64> = gauge("records");
        /// Metrics that were not valid documents.
        rejected: Option<u64> = counter("metrics" since "started_at");
        /// Records that went for want of room.
        evicted: Option<u64> = counter("records" since "started_at");
        /// Records that the backend has refused.
        refused: Option<u64> = counter("records" since "started_at");
        /// Records that are damaged on disk.
        corrupt: Option<u64> = counter("records" since "started_at");
    }
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
