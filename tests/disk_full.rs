//! No free blocks, no free inodes: the agent goes on from memory, and writes down what it has kept
//! when there is room again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::disk::Disk;
use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(60);

/// Writes files with `content` until there is no room for another; returns them.
fn fill(place: &Path, content: &[u8]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    loop {
        let file = place.join(format!("fill-{}", files.len()));
        let written = fs_err::write(&file, content);
        if file.exists() {
            files.push(file);
        }
        if written.is_err() {
            assert!(!files.is_empty(), "{written:?}");
            return files;
        }
    }
}

/// A backend that is away and a disk that fills up meanwhile: each alone would be harmless.
///
/// Without `disk_free_min`: a disk that is merely low would have the oldest make room for the new.
async fn check(options: &str, filling: &[u8]) {
    let site = Site::registered().await;
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text.replace("[queue]\n", "[queue]\ndisk_free_min = 0\n");
    fs_err::write(site.config(), text).expect("write");
    let (agent, place) = site.run_on(options);
    site.until_stored(5).await;
    site.proxy.set(Network::Down);
    let files = fill(&place, filling);
    until("the full disk is said", LIMIT, || agent.stderr().contains("no free blocks or inodes"));
    let before = site.queue_number("next_seq");
    until("it collects on", LIMIT, || site.queue_number("next_seq") >= before + 20);
    for file in files {
        fs_err::remove_file(file).expect("give room back");
    }
    until("it writes again", LIMIT, || agent.stderr().contains("takes records again"));
    site.proxy.set(Network::Up);
    let gone = until_gone(&site, before + 20);
    let stored = site.stored().await;
    let done = agent.stop();
    let count = stored.len() as u64;
    assert!(count >= gone, "{count} of {gone} records are stored: {}", done.stderr);
    assert_distinct(&stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inode_table_loses_nothing() {
    check("size=64m,nr_inodes=64", b"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    check("size=64m", &vec![7; 64 << 10]).await;
}

/// Q7: the file system turns read-only under a running agent, as one does after an error. What is
/// on it and what comes is delivered; repaired and mounted again, it is used as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_file_system_stops_nothing() {
    let Some(mut disk) = Disk::new(128) else { return };
    let site = Site::registered().await;
    std::os::unix::fs::symlink(disk.root(), site.directory.path().join("small")).expect("link");
    let agent = site.run();
    site.until_stored(5).await;
    site.proxy.set(Network::Down);
    let queued = site.queue_number("next_seq") + 10;
    until("records are queued", LIMIT, || site.queue_number("next_seq") >= queued);
    disk.break_down();
    until("it is said", LIMIT, || {
        let error = &site.inspect()["queue"]["disk_error"];
        error.as_str().is_some_and(|error| error.contains("mounted read-only"))
    });
    let before = site.queue_number("next_seq");
    until("it collects on", LIMIT, || site.queue_number("next_seq") >= before + 20);
    site.proxy.set(Network::Up);
    let gone = until_gone(&site, before + 20);
    let count = site.stored().await.len() as u64;
    let done = agent.stop();
    assert!(count >= gone, "{count} of {gone} records are stored: {}", done.stderr);

    disk.unmount();
    disk.repair();
    disk.mount();
    let agent = site.run();
    site.until_stored(usize::try_from(count).expect("fits") + 20).await;
    assert_eq!(site.inspect()["queue"]["disk_error"], serde_json::Value::Null);
    let done = agent.stop();
    assert!(!done.stderr.contains("records lost"), "{}", done.stderr);
    // What was delivered and could not be noted came again, under the same ids.
    assert_distinct(&site.stored().await);
}

/// Q7: files that may not grow (`ulimit -f`) are a full disk, and not the end of the agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_file_sizes_ends_nothing() {
    let site = Site::registered().await;
    let mut agent = site.run();
    site.until_stored(5).await;
    site.proxy.set(Network::Down);
    let pid = Pid::from_raw(agent.id().cast_signed());
    let limit = |bytes| {
        let old = prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None });
        old.expect("the limit of another process of this user");
    };
    limit(Some(8 << 10));
    until("the disk takes nothing", LIMIT, || {
        assert!(agent.is_running(), "{}", agent.stderr());
        site.inspect()["queue"]["disk_error"].is_string()
    });
    let before = site.queue_number("next_seq");
    until("it collects on", LIMIT, || site.queue_number("next_seq") >= before + 20);
    limit(None);
    until("it writes again", LIMIT, || site.inspect()["queue"]["disk_error"].is_null());
    site.proxy.set(Network::Up);
    let gone = until_gone(&site, before + 20);
    let stored = site.stored().await;
    let done = agent.stop();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(stored.len() as u64 >= gone, "{} of {gone} records are stored", stored.len());
    assert_distinct(&stored);
}

/// Waits until the first `count` records have left the queue, none of them by being lost; returns
/// how many have.
///
/// The agent goes on collecting, so the count is taken while it does: what is neither queued nor
/// evicted at one moment is stored already, however fast or slow anything is.
fn until_gone(site: &Site, count: u64) -> u64 {
    let mut gone = 0;
    until("what was collected meanwhile has left the queue", LIMIT, || {
        let seen = site.inspect();
        let number = |name: &str| seen["queue"][name].as_u64().expect("a number");
        assert_eq!(seen["queue"]["counts"]["evicted_records"], 0, "{seen}");
        assert_eq!(seen["queue"]["counts"]["corrupt_records"], 0, "{seen}");
        gone = number("next_seq") - number("records");
        gone >= count
    });
    gone
}
