//! GET `/health`: whether the backend can store now.
//!
//! A read proves nothing: it succeeds on a full disk and beside a lock on writes. What is known is
//! the last push, and else one write that all who ask share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared as SharedFuture};
use http::StatusCode;
use serde_json::json;

use super::{Shared, error};
use crate::backend::store::{Store, StoreError};
use crate::clock;

/// How long a push, or a write made to see whether one can be made, says that it is so.
const FRESH: Duration = Duration::from_secs(5);
/// How long the write may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the store.
#[derive(Default)]
pub(super) struct Health {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The last push, and whether it was stored.
    pushed: Option<(Instant, bool)>,
    /// The last write that was made to see, and when it began. It goes on when the one who asked
    /// first is gone.
    probe: Option<(Instant, Probe)>,
}

type Probe = SharedFuture<BoxFuture<'static, bool>>;

impl Health {
    /// A push was stored, or could not be. A push that no store can hold says nothing.
    pub(super) fn note(&self, failure: Option<&StoreError>) {
        let is_good = match failure {
            None => true,
            Some(StoreError::Unavailable(_) | StoreError::Damaged(_)) => false,
            Some(StoreError::Conflict(_) | StoreError::TooMany(_) | StoreError::Refused(_)) => {
                return;
            }
        };
        self.lock().pushed = Some((clock::monotonic(), is_good));
    }

    /// Whether the store takes what is written.
    async fn database_ok(&self, store: &Arc<dyn Store>) -> bool {
        let now = clock::monotonic();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < FRESH;
        let probe = {
            let mut known = self.lock();
            if let Some((_, is_good)) = known.pushed.filter(|(at, _)| is_fresh(*at)) {
                return is_good;
            }
            match &known.probe {
                Some((began, probe)) if is_fresh(*began) => probe.clone(),
                _ => {
                    let probe = probe(Arc::clone(store));
                    known.probe = Some((now, probe.clone()));
                    probe
                }
            }
        };
        probe.await
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn probe(store: Arc<dyn Store>) -> Probe {
    let write = async move {
        let ready = tokio::time::timeout(PATIENCE, store.ready()).await;
        matches!(ready, Ok(Ok(())))
    };
    write.boxed().shared()
}

/// The handler.
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let database_ok = shared.health.database_ok(&shared.store).await;
    let (status, word) = if database_ok {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "error")
    };
    let body = json!({
        "status": word,
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": clock::rfc3339(clock::now()),
        "uptime": clock::monotonic().saturating_duration_since(shared.started).as_secs(),
        "database_ok": database_ok,
        // Metrics are kept in the same database.
        "timescale_ok": database_ok,
    });
    error::json(status, &body)
}
