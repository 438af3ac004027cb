//! Whatever is killed, lost or doubled: every record is in the store once.

use std::time::Duration;

use crate::support::chaos::{Audit, Chaos};
use crate::support::postgres::Postgres;

/// How long trouble is made in a run of the tests; the environment variable sets another length.
const SECONDS: u64 = 20;
const SECONDS_VARIABLE: &str = "PGANALYTICS_SOAK";

/// C20: agent and backend are killed at random moments while batches flow through a network that
/// fails in every way, loses answers and doubles requests. Every number that the intake took and
/// every sequence number that the queue gave is in the store, once.
#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_stored_once_whatever_is_killed() {
    let chaos = Chaos::start(None, fastrand::u64(..)).await;
    check(&chaos.run(length(SECONDS)).await);
}

/// The same with PostgreSQL as the store, where pushes cross.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_every_record_once_too() {
    let postgres = Postgres::start(15);
    let url = format!("postgres://postgres@/postgres?host={}", postgres.socket_dir().display());
    let chaos = Chaos::start(Some(url), fastrand::u64(..)).await;
    check(&chaos.run(length(SECONDS / 2)).await);
}

/// As long as the environment says, or else so many seconds.
fn length(seconds: u64) -> Duration {
    let asked = std::env::var(SECONDS_VARIABLE).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(seconds))
}

/// That there was trouble at all.
#[track_caller]
fn check(audit: &Audit) {
    audit.say();
    assert!(audit.done.agent_kills + audit.done.backend_kills > 0, "{audit:?}");
    assert!(audit.pushes > 0 && audit.connections > 0, "{audit:?}");
    assert!(audit.numbers > 100, "{audit:?}");
}
