//! What several behaviour tests share.

#![allow(dead_code, reason = "each helper is one call away for the next test")]

pub mod backend;
pub mod backend_stub;
pub mod intake;
pub mod chaos;
pub mod connect_proxy;
pub mod disk;
pub mod false_postgres;
pub mod hostile;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod shim;
pub mod site;
pub mod writer;

use std::time::Duration;

use pganalytics::clock;

const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds and panics with `what` when it does not within `limit`.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = clock::monotonic() + limit;
    while !condition() {
        assert!(clock::monotonic() < end, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// [`until`] for asynchronous tests: `condition` makes a future that says whether it holds.
pub async fn until_async<F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let end = clock::monotonic() + limit;
    while !condition().await {
        assert!(clock::monotonic() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A directory of the test's own, removed with the value.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("pga-test-").tempdir().expect("make a temporary directory")
}
