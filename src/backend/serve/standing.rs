//! Whose place a connection has, looked at again while it is open: a collector may be removed, or
//! have another certificate, long after its handshake.

use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use uuid::Uuid;

use super::Tls;
use super::places::Place;
use crate::backend::pki::ClientCertificate;
use crate::clock;

/// A request looks again when the last look was so long ago. Who asks for nothing is idle, and ends
/// by that.
const AGAIN: Duration = Duration::from_secs(60);

/// A connection that has shown the present certificate of a collector.
pub(super) struct Standing {
    tls: Tls,
    certificate: ClientCertificate,
    /// The connection's own; it ends with the connection, not with its last request.
    place: Weak<Place>,
    looked: Looked,
}

/// When it was looked at last.
struct Looked(Mutex<Instant>);

/// What a certificate is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shows {
    /// It is the present one of this collector, or the one that is to replace it.
    Collector(Uuid),
    /// The collector has another one, or this one has ended.
    Another,
    /// The collector is removed, or there never was one.
    Nobody,
    /// The store does not say.
    Unknown,
}

impl Standing {
    pub(super) fn new(tls: Tls, certificate: ClientCertificate, place: Weak<Place>) -> Self {
        let looked = Looked(Mutex::new(clock::monotonic()));
        Self { tls, certificate, place, looked }
    }

    /// Before a request: looks again when it is time to.
    pub(super) async fn before_request(&self) {
        if self.looked.is_due(clock::monotonic()) {
            self.look().await;
        }
    }

    /// After an answer: who was turned away may be a collector no more.
    pub(super) async fn after_answer(&self, status: StatusCode) {
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.look().await;
        }
    }

    async fn look(&self) {
        let shows = self.tls.shows(&self.certificate).await;
        let Some(place) = self.place.upgrade() else { return };
        match shows {
            Shows::Collector(_) | Shows::Unknown => {}
            Shows::Another => place.forsaken(),
            Shows::Nobody => place.collector_removed(),
        }
    }
}

impl Looked {
    /// Whether it is time to look again, for the first of the requests that ask at once.
    fn is_due(&self, now: Instant) -> bool {
        let mut looked_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = now.saturating_duration_since(*looked_at) >= AGAIN;
        if is_due {
            *looked_at = now;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_looked_at_again_once_a_minute() {
        let start = clock::monotonic();
        let looked = Looked(Mutex::new(start));
        let due = [0, 59, 60, 60, 119, 120].map(|s| looked.is_due(start + Duration::from_secs(s)));
        assert_eq!(due, [false, false, true, false, false, true]);
    }
}
