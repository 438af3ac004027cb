//! From the collectors to the store, with nothing in the way.

use std::time::Duration;

use crate::support::site::{Site, assert_distinct};

/// C20, C32, C45, C54: what was taken into the queue is in the store, once; stopping delivers the
/// rest first.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_queued_is_stored_once() {
    let site = Site::registered().await;
    let agent = site.run();
    site.until_stored(20).await;
    let done = agent.stop();
    assert_eq!(site.queue_number("records"), 0, "{}", done.stderr);
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_distinct(&stored);
    for kind in ["sysstat", "disk_usage"] {
        assert!(stored.iter().any(|metric| metric.kind == kind), "no {kind}");
    }
    let left = fs_err::read_dir(site.queue().join("segments")).expect("list").count();
    assert_eq!(left, 0, "delivered segments are removed");
}

/// C28: a collector that is switched off collects nothing, the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_off_is_silent() {
    let site = Site::registered().await;
    let config = fs_err::read_to_string(site.config()).expect("read");
    let off = config.replace("[disk_usage]\n", "[disk_usage]\nenabled = false\n");
    fs_err::write(site.config(), off).expect("write");
    let agent = site.run();
    site.until_stored(10).await;
    agent.stop();
    let stored = site.stored().await;
    assert!(stored.iter().all(|metric| metric.kind != "disk_usage"));
}

/// A second agent on the same queue is refused, and the first is not disturbed.
#[tokio::test(flavor = "multi_thread")]
async fn one_agent_per_queue() {
    let site = Site::registered().await;
    let first = site.run();
    site.until_stored(1).await;
    let mut second = site.start();
    let done = second.finish(Duration::from_secs(10));
    assert_ne!(done.code, Some(0));
    assert!(done.stderr.contains("hint:"), "{}", done.stderr);
    site.until_stored(site.stored().await.len() + 5).await;
    first.stop();
}
