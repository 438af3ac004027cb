//! The agent's local socket: what it is doing, what is queued, "push now", and its metrics.
//!
//! `agent run` serves it, `agent status`, `inspect` and `replay` and a Prometheus scraper ask it.
//! It is HTTP/1.1 on a Unix socket, mode 0600, and answers processes of the same user or of root
//! only.
//!
//! | method, path | answer |
//! |---|---|
//! | GET `/v1/status` | 200 [`Status`] |
//! | GET `/v1/segments` | 200 `[SegmentInfo]`, oldest first |
//! | GET `/v1/batches` | 200 `[BatchInfo]`, oldest first |
//! | GET `/v1/segments/ID` | 200 `SegmentDetail`, 404 |
//! | GET `/v1/records` with a [`RecordQuery`] | 200 [`Records`], a page |
//! | POST `/v1/verify` with a [`VerifyQuery`] | 200 `SegmentCheck`, one step of a check |
//! | GET `/v1/ledger` | 200 `[Loss]`, oldest first |
//! | GET `/v1/dead` with a [`DeadQuery`] | 200 [`DeadLetters`], a page |
//! | GET `/v1/dead/count` | 200 `DeadCount` |
//! | GET `/v1/quarantine` | 200 `[Quarantined]` |
//! | POST `/v1/replay` | 202 [`Replay`]: what is queued now is pushed now, backoff or not |
//! | POST `/v1/replay`, a [`ReplayRequest`] | 202 [`ReplayProgress`]; 409: another is under way |
//! | GET `/v1/replay` | 200 [`ReplayProgress`] of what is under way or was last, or `null` |
//! | DELETE `/v1/replay` | 200 [`ReplayProgress`] of what has been ended, or `null` |
//! | GET `/metrics` | 200 the Prometheus text format |

mod client; // asks a running agent
mod gauges; // the queue in /metrics
mod look; // segments, records, dead letters and quarantine
mod replay; // what is sent again, and how far that is
mod server; // answers in the agent
mod status; // what the agent says about itself

pub use crate::socket::SocketError;
pub use client::{Client, ClientError};
pub use look::{
    DeadLetters, DeadQuery, QuarantineQuery, RecordQuery, Records, Scan, ShownRecord, VerifyQuery,
};
pub use replay::{
    Amount, Part, ReplayError, ReplayProgress, ReplayRequest, ReplayState, Selection,
};
pub use server::{Server, Sources, Subject};
pub use status::{
    AgentStatus, BackendStatus, CertificateStatus, CollectorStatus, ConfigStatus, DrainStatus,
    IntakeStatus, RefusedConfig, RemoteState, Replay, Status,
};
