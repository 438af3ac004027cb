//! An agent is a guest on the host that it watches.

use std::time::Duration;

use crate::support::site::Site;
use crate::support::until;

/// What the agent has allocated; its code is shared with no one, but differs between builds.
const ANONYMOUS_KIB_MAX: u64 = 12 << 10;

/// Memory stays where it was over many push windows: each opens and closes a database.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_small_over_many_windows() {
    let site = Site::registered().await;
    let config = fs_err::read_to_string(site.config()).expect("read");
    fs_err::write(site.config(), config.replace("\"300ms\"", "\"100ms\"")).expect("write");
    let agent = site.run();
    until("a hundred windows", Duration::from_secs(60), || {
        let seen = site.inspect();
        seen["queue"]["counts"]["delivered_batches"].as_u64() >= Some(100)
    });
    let status = fs_err::read_to_string(format!("/proc/{}/status", agent.id())).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(kib <= ANONYMOUS_KIB_MAX, "{kib} KiB");
    agent.stop();
}
