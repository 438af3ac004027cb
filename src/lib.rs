//! pgAnalytics agent: a store-and-forward metrics agent for PostgreSQL hosts, and its backend.
//!
//! The data path, in the order of the modules below: a collector reads the host or PostgreSQL and
//! makes a *metric*; valid metrics become *records* of the queue, durable before they are
//! acknowledged; records of one push window form a *segment*; a segment is sent as *batches*; a
//! batch is deleted only when the backend has said that it has it. See `docs/ARCHITECTURE.md`.

#![forbid(unsafe_code)]

pub mod cli; // one file per command
pub mod config; // TOML -> one validated part per stage

pub mod metric; // the documents of the contract and their validation
pub mod collect; // stage 1: the host and PostgreSQL -> metrics
pub mod intake; // stage 1, too: other programs of this host -> metrics
pub mod queue; // stage 2: metrics -> durable records -> batches
pub mod forward; // stage 3: batches -> pushes
pub mod link; // the wire to the backend: TLS, tokens, the client, registration
pub mod control; // the local socket: status, inspect, replay, metrics
pub mod agent; // joins the stages
pub mod check; // whether each of them would work, and what mends it
pub mod backend; // the server that agents report to

pub mod answer; // what an answer of the backend means: the one table
pub mod encoding; // bodies: gzip, zstd, zlib, up to a limit
pub mod files; // what should be a file, opened
pub mod socket; // a Unix socket with one owner
pub mod clock; // the only reader of the clocks
pub mod units; // durations and sizes as text
pub mod shutdown; // signals, and telling tasks to stop
pub mod telemetry; // the agent's own logs and counters
