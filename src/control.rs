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
//! | POST `/v1/replay` | 202 [`Replay`]: what is queued now is pushed now, backoff or not |
//! | GET `/metrics` | 200 the Prometheus text format |

mod client; // asks a running agent
mod server; // answers in the agent
mod socket; // one owner per socket file, strangers kept out
mod status; // what the agent says about itself

pub use client::{Client, ClientError};
pub use server::{Server, Sources, Subject};
pub use socket::SocketError;
pub use status::{AgentStatus, BackendStatus, CollectorStatus, Forwarding, Replay, Status};
