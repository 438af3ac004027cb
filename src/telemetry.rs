//! The agent's own logs and counters.

mod console; // lines that hold nobody up

use std::{io::IsTerminal, path::Path};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing::Level;
use tracing_subscriber::{
    Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use console::Console;

/// Changes what a running log shows.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// Everything from `level` on is shown.
    pub fn set(&self, level: Level) {
        // The only error is that the log is gone, and then nothing shows.
        self.0.reload(shown(level)).ok();
    }
}

/// Starts the log on standard error: one line per event, in colour on a terminal. Lines that nobody
/// reads are left out and counted. A second call changes nothing.
pub fn start_log(level: Level) -> LogLevel {
    let colour = std::io::stderr().is_terminal();
    let console = Console::new(std::io::stderr(), colour);
    let lines = fmt::layer().with_target(false).with_ansi(colour).with_writer(console);
    let (filter, handle) = reload::Layer::new(shown(level));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().ok();
    LogLevel(handle)
}

/// Starts the log in a file, for a command that uses the terminal for something else.
pub fn start_log_file(path: &Path, level: Level) -> std::io::Result<()> {
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?.into_file();
    let console = Console::new(file, false);
    let lines = fmt::layer().with_target(false).with_ansi(false).with_writer(console);
    tracing_subscriber::registry().with(lines.with_filter(shown(level))).try_init().ok();
    Ok(())
}

/// Everything from `level` on; of the migrations only what is unexpected, and so of PostgreSQL's
/// client, which repeats every notice of a server.
fn shown(level: Level) -> Targets {
    Targets::new()
        .with_default(level)
        .with_target("tokio_postgres", Level::WARN)
        .with_target("refinery", Level::WARN)
        .with_target("refinery_core", Level::WARN)
}

/// Starts counting, for `/metrics` of the control socket. `None` when the process counts already.
pub fn start_counters() -> Option<PrometheusHandle> {
    PrometheusBuilder::new().install_recorder().ok()
}

/// Names of the counters, as Prometheus shows them.
pub mod counter {
    /// Metrics refused at the door, by `type` and JSON `path`.
    pub const REJECTED: &str = "agent_metrics_rejected_total";
    /// Collections, by `collector` and `result` (`ok`, `error`, `deadline`).
    pub const COLLECTIONS: &str = "agent_collections_total";
    /// Records that the queue took, by `collector`.
    pub const APPENDED: &str = "agent_records_appended_total";
    /// Requests to the intake, by `status`.
    pub const INTAKE_REQUESTS: &str = "agent_intake_requests_total";
    /// Metrics that the intake rejected.
    pub const INTAKE_REJECTED: &str = "agent_intake_metrics_rejected_total";
    /// Requests to the intake with an idempotency key that was known.
    pub const INTAKE_DUPLICATES: &str = "agent_intake_duplicates_total";
    /// Requests to the backend that were not answered as wanted, by `reason`.
    pub const SEND_FAILURES: &str = "agent_send_failures_total";
    /// Answers of the backend, by `status`.
    pub const ANSWERS: &str = "agent_answers_total";
    /// How often another backend of `backend.urls` came into use.
    pub const BACKEND_CHANGES: &str = "agent_backend_changes_total";
    /// Ticks that went by because a collection took too long, by `collector`.
    pub const MISSED: &str = "agent_collections_missed_total";
}
