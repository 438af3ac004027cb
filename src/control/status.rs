//! What the agent says about itself, for people, scripts and `--json`.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::metric::agent_health::ForwarderState;
use crate::queue::QueueStatus;

/// The answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent.
    #[serde(flatten)]
    pub agent: AgentStatus,
    /// Its queue.
    pub queue: QueueStatus,
}

/// The agent without its queue. The agent keeps it current as it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The program's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// The configuration file in use.
    pub config_file: PathBuf,
    /// The collector as registered.
    pub collector_id: String,
    /// The host's name.
    pub hostname: String,
    /// The way to the backend.
    pub backend: BackendStatus,
    /// All collectors, enabled or not.
    pub collectors: Vec<CollectorStatus>,
    /// The configuration in force.
    #[serde(default)]
    pub config: ConfigStatus,
    /// What other programs push; absent when there is no intake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intake: Option<IntakeStatus>,
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigStatus {
    /// Since when it is in force.
    pub applied_at: Option<Timestamp>,
    /// Of the backend's configuration that lies over the host's file; 0 when none does.
    pub version: i64,
    /// Whether the backend has configurations.
    pub remote: RemoteState,
    /// The keys that it has set.
    pub remote_keys: Vec<String>,
    /// When the backend was asked last.
    pub asked_at: Option<Timestamp>,
    /// What came of that, in words.
    pub last_answer: Option<String>,
    /// The backend's configuration that was refused; absent once a later one is in force.
    pub refused: Option<RefusedConfig>,
    /// What the backend has set in the configuration in force and does not get; absent when it gets
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<String>,
    /// Why the host's file was refused when it was read last; absent when it was not.
    pub file_error: Option<String>,
    /// Keys that have changed since the start and take effect at the next one.
    pub needs_restart: Vec<String>,
}

/// Whether the backend has configurations for this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteState {
    /// It is asked at `collector.config_pull_interval`, and when a push answer names a newer one.
    #[default]
    Asked,
    /// It has none; it is asked each hour.
    Absent,
    /// `collector.remote_config = false`: it is not asked.
    Off,
}

/// A configuration of the backend that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedConfig {
    /// Its version.
    pub version: i64,
    /// What is wrong with it.
    pub error: String,
    /// When it came.
    pub at: Timestamp,
}

/// The intake, in numbers since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeStatus {
    /// Where it listens: `unix:/path`, or an address with its port.
    pub listen: String,
    /// Why it does not.
    pub error: Option<String>,
    /// Connections that are open now.
    pub connections: u64,
    /// Requests answered, whatever the answer.
    pub requests: u64,
    /// Requests not answered 200.
    pub refused: u64,
    /// Metrics that became records.
    pub metrics: u64,
    /// Metrics rejected, with their reason in the answer.
    pub rejects: u64,
    /// Requests that had been taken before.
    pub duplicates: u64,
    /// Memory for bodies that are being read or taken, bytes.
    pub body_bytes: u64,
}

/// How forwarding goes. Times are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// The URL of the backend in use.
    pub url: String,
    /// All of `backend.urls`, in order; absent when there is one only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Since when this one of them is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use_since: Option<Timestamp>,
    /// The proxy on the way to it, without user and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// `tls.verify`: whether the server's certificate is checked.
    pub verified: bool,
    /// What the forwarder does.
    pub forwarding: ForwarderState,
    /// What a person can do, while it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Why the latest push or probe failed, by its name in `agent_send_failures_total`; absent when
    /// it went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last answer or error, in words.
    pub last_answer: Option<String>,
    /// When it came.
    pub last_answer_at: Option<Timestamp>,
    /// When the backend last took a batch.
    pub last_delivery_at: Option<Timestamp>,
    /// When the next try is due, while backing off or paused.
    pub next_try_at: Option<Timestamp>,
    /// The server's clock minus this host's, in milliseconds.
    pub clock_offset_ms: i64,
    /// Bytes of push bodies that the backend has taken, as sent.
    pub sent_bytes: u64,
    /// Whether the backend has refused the type of what the agent says of itself: it gets none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refuses_health: bool,
    /// What this host shows to the backend; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateStatus>,
    /// The end of the token that the backend gave, by its clock; absent when the agent mints its
    /// own or reads it from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_expires_at: Option<Timestamp>,
    /// Batches on their way.
    #[serde(default)]
    pub in_flight: u64,
    /// How fast the backlog drains; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
}

impl BackendStatus {
    /// The backend's time when this host's clock says `now`.
    pub fn server_time(&self, now: Timestamp) -> Timestamp {
        now.saturating_add(SignedDuration::from_millis(self.clock_offset_ms)).unwrap_or(now)
    }
}

/// The client certificate and its renewal. Times are the backend's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Good from.
    pub begins_at: Timestamp,
    /// Good to.
    pub expires_at: Timestamp,
    /// When it is renewed; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_at: Option<Timestamp>,
    /// When it was renewed, if that was since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed_at: Option<Timestamp>,
    /// Why it is not renewed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<String>,
    /// Why the last try to renew it failed, with a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CertificateStatus {
    /// Whether less than a sixth of its life is left at `now`, by the backend's clock.
    pub fn is_near_end(&self, now: Timestamp) -> bool {
        let life = self.expires_at.duration_since(self.begins_at);
        self.expires_at.duration_since(now) < life / 6
    }
}

/// How fast the backlog drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Batches of it that were delivered in the last minute.
    pub batches: u64,
    /// In how many milliseconds.
    pub millis: u64,
    /// Seconds until it is empty at that speed; absent when that is not known.
    pub eta_s: Option<u64>,
}

/// One collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorStatus {
    /// `sysstat`, `disk_usage`, `pg_stats`, `pg_log`, `agent`.
    pub name: String,
    /// Whether it is configured to run.
    pub enabled: bool,
    /// Milliseconds between its runs; 0 when it is not enabled.
    pub interval_ms: u64,
    /// When its last run ended.
    pub last_run_at: Option<Timestamp>,
    /// How long it took, milliseconds.
    #[serde(default)]
    pub last_ms: u64,
    /// CPU of its runs since the start, milliseconds.
    #[serde(default)]
    pub cpu_ms: u64,
    /// What was wrong with its last run; absent when it was good.
    pub last_error: Option<String>,
    /// Runs since the start.
    pub runs: u64,
    /// Runs that failed or came to their deadline.
    pub failures: u64,
    /// Metrics that became records.
    pub metrics: u64,
    /// Metrics rejected at the door.
    pub rejects: u64,
    /// The last one of those: its type, the place in its JSON, and what is wrong there.
    #[serde(default)]
    pub last_reject: Option<String>,
    /// What is wrong while it gives what it can, such as a database that is not there.
    #[serde(default)]
    pub notices: Vec<String>,
    /// Since when it waits for room in the queue, which is full.
    #[serde(default)]
    pub blocked_since: Option<Timestamp>,
}

/// The answer to `POST /v1/replay`: what was queued at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The newest segment that belongs to it; `None` when nothing was queued.
    pub last_segment: Option<u64>,
    /// Batches to deliver.
    pub batches: u64,
    /// Records in their segments.
    pub records: u64,
}

impl DrainStatus {
    /// How long `batches` more take, in seconds, rounded up.
    pub(super) fn seconds_for(&self, batches: u64) -> Option<u64> {
        let millis = u128::from(batches) * u128::from(self.millis);
        let millis = millis.checked_div(u128::from(self.batches))?;
        u64::try_from(millis.div_ceil(1_000)).ok()
    }
}

impl Status {
    /// Agent and queue together: when the backlog will be gone follows from both.
    pub fn new(mut agent: AgentStatus, queue: QueueStatus) -> Self {
        if let Some(drain) = &mut agent.backend.drain {
            drain.eta_s = drain.seconds_for(queue.batches);
        }
        Self { agent, queue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eta_is_what_waits_over_the_recent_speed() {
        let check = |batches, millis, waiting, expected| {
            let drain = DrainStatus { batches, millis, eta_s: None };
            assert_eq!(drain.seconds_for(waiting), expected);
        };
        check(120, 60_000, 1_000, Some(500));
        check(3, 1_000, 1, Some(1));
        check(0, 1_000, 1, None);
        check(1, u64::MAX, u64::MAX, None);
    }
}
