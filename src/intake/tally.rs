//! What the intake has done since the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;

use crate::telemetry::counter;

/// What the intake has done, for whoever asks. Clones ask the same one.
#[derive(Debug, Clone, Default)]
pub struct IntakeView(Arc<Tally>);

#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
    metrics: AtomicU64,
    rejects: AtomicU64,
    duplicates: AtomicU64,
    body_bytes: Arc<AtomicU64>,
    place: Mutex<Place>,
}

#[derive(Debug, Clone, Default)]
struct Place {
    listen: Option<String>,
    error: Option<String>,
}

/// Numbers since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IntakeCounts {
    /// Where it listens; with the port that the system gave. `None` when it does not.
    pub listen: Option<String>,
    /// Why it does not listen.
    pub error: Option<String>,
    /// Connections that are open now.
    pub connections: u64,
    /// Requests answered, whatever the answer.
    pub requests: u64,
    /// Requests not answered 200.
    pub refused: u64,
    /// Metrics taken and durable before the answer.
    pub metrics: u64,
    /// Metrics rejected, with their reason in the answer.
    pub rejects: u64,
    /// Requests whose idempotency key was known: nothing was taken.
    pub duplicates: u64,
    /// Memory for bodies that are being read or taken, bytes.
    pub body_bytes: u64,
}

/// One open connection, as long as the value lives.
#[derive(Debug)]
pub(super) struct Connected(IntakeView);

impl IntakeView {
    /// The numbers now.
    pub fn counts(&self) -> IntakeCounts {
        let tally = &self.0;
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let place = tally.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        IntakeCounts {
            listen: place.listen,
            error: place.error,
            connections: number(&tally.connections),
            requests: number(&tally.requests),
            refused: number(&tally.refused),
            metrics: number(&tally.metrics),
            rejects: number(&tally.rejects),
            duplicates: number(&tally.duplicates),
            body_bytes: number(&tally.body_bytes),
        }
    }

    pub(super) fn listening(&self, listen: Result<String, String>) {
        let (listen, error) = match listen {
            Ok(listen) => (Some(listen), None),
            Err(error) => (None, Some(error)),
        };
        *self.0.place.lock().unwrap_or_else(PoisonError::into_inner) = Place { listen, error };
    }

    /// Where the memory for bodies is counted.
    pub(super) fn body_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.body_bytes)
    }

    pub(super) fn connected(&self) -> Connected {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self.clone())
    }

    pub(super) fn answered(&self, status: StatusCode) {
        let label = status.as_str().to_owned();
        metrics::counter!(counter::INTAKE_REQUESTS, "status" => label).increment(1);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.refused.fetch_add(u64::from(status != StatusCode::OK), Ordering::Relaxed);
    }

    pub(super) fn taken(&self, metrics: u64) {
        metrics::counter!(counter::APPENDED, "collector" => "intake").increment(metrics);
        self.0.metrics.fetch_add(metrics, Ordering::Relaxed);
    }

    /// Types and paths are the client's words, which would make labels without end.
    pub(super) fn rejected(&self, metrics: u64) {
        metrics::counter!(counter::INTAKE_REJECTED).increment(metrics);
        self.0.rejects.fetch_add(metrics, Ordering::Relaxed);
    }

    pub(super) fn duplicate(&self) {
        metrics::counter!(counter::INTAKE_DUPLICATES).increment(1);
        self.0.duplicates.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
