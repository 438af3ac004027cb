//! What is sent again: a backend that has lost data is refilled, a dead host's queue is emptied,
//! dead letters get another chance; slowly if wanted, and whatever is killed meanwhile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use pganalytics::backend::store::StoredMetric;
use pganalytics::clock;
use serde_json::Value;

use crate::operator::{files, says};
use crate::support::process::{Finished, Process, agent, run};
use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::{directory, until, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// What makes a metric that metric.
type Name = (String, Timestamp, String);

fn names(stored: &[StoredMetric]) -> BTreeSet<Name> {
    stored.iter().map(|m| (m.kind.clone(), m.at, m.document.clone())).collect()
}

/// A site whose queue keeps what is delivered.
async fn keeping() -> Site {
    let site = Site::registered().await;
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text.replace("[queue]\n", "[queue]\nretain_delivered = \"64MiB\"\n");
    fs_err::write(site.config(), text).expect("write");
    site
}

/// A site that keeps, with no agent running, and what its backend has stored.
async fn kept(count: usize) -> (Site, BTreeSet<Name>) {
    let site = keeping().await;
    let agent = site.run();
    site.until_stored(count).await;
    agent.stop();
    let stored = names(&site.stored().await);
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"));
    (site, stored)
}

/// Takes everything that was pushed from the backend, as a restored backup of an earlier day does.
async fn wipe(site: &mut Site) {
    site.served.stop().await;
    let file = site.served.config.data_dir.join("metrics.db");
    let store = rusqlite::Connection::open(file).expect("open the store");
    store.execute_batch("DELETE FROM metrics; DELETE FROM pushes;").expect("wipe");
    drop(store);
    site.served.resume().await;
}

fn replay(site: &Site, arguments: &[&str]) -> Finished {
    site.command(&[&["replay"], arguments].concat())
}

/// Starts `agent replay` in the background, its output in `output`.
fn start_replay(site: &Site, output: &Path, arguments: &[&str]) -> Process {
    let config = site.config();
    let config = ["--config", config.to_str().expect("UTF-8")];
    Process::start(agent([&["replay"], arguments, &config].concat()), output)
}

/// A replay's own word, as JSON.
fn told(done: &Finished) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// The queue of an agent that was killed while the network was away, at a path of its own.
async fn left_by_a_dead_host(records: u64) -> (Site, PathBuf, u64) {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut agent = site.run();
    until("records are queued", LIMIT, || site.queue_number("records") >= records);
    agent.kill();
    let records = site.queue_number("records");
    let dir = site.directory.path().join("dead");
    fs_err::rename(site.queue(), &dir).expect("move the queue");
    site.proxy.set(Network::Up);
    (site, dir, records)
}

/// Q4: a backend that has lost everything is refilled with exactly that; one that has it stays as
/// it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_backend_is_refilled_exactly() {
    let (mut site, before) = kept(40).await;
    wipe(&mut site).await;
    assert!(site.stored().await.is_empty());

    let plan = told(&replay(&site, &["--delivered", "--dry-run", "--json"]));
    assert_eq!(plan["records"].as_u64(), Some(before.len() as u64), "{plan}");
    assert!(site.stored().await.is_empty(), "a dry run sends nothing");

    says(&replay(&site, &["--delivered"]), 0, &["delivered "]);
    let stored = site.stored().await;
    assert_eq!(names(&stored), before);
    assert_distinct(&stored);
    let again = told(&replay(&site, &["--delivered", "--json"]));
    assert_eq!(again["duplicates"], again["total"]["batches"], "{again}");
    assert_eq!(site.stored().await.len(), before.len());
}

/// A host that has become another collector has a server row of its own: what it delivered as the
/// former one is in that one's, and is not sent to be stored again unless somebody says so. One
/// that stays who it is, is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_collector_delivered_is_not_stored_twice() {
    let (site, before) = kept(20).await;
    let file = site.directory.path().join("secret");
    let secret = ["--secret-file", file.to_str().expect("UTF-8")];
    let renew = |more: &[&str]| {
        let done = site.command(&[&["register", "--force"], &secret[..], more].concat());
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    renew(&["--name", "renamed"]);
    says(&replay(&site, &["--delivered"]), 0, &["delivered "]);
    assert_eq!(site.stored().await.len(), before.len(), "it is the same collector");

    for name in ["collector.crt", "collector.key"] {
        fs_err::remove_file(site.directory.path().join(name)).expect("lose the certificate");
    }
    let text = fs_err::read_to_string(site.config()).expect("read");
    fs_err::write(site.config(), text.replace("db1.example.com", "db2.example.com"))
        .expect("write");
    let authority = site.served.running().ca_file();
    renew(&["--ca", authority.to_str().expect("UTF-8")]);
    for asked in [&["--delivered"][..], &["--to", "0s"], &["--delivered", "--dry-run"]] {
        says(&replay(&site, asked), 1, &["when this host became the collector", "hint: --twice"]);
    }
    says(&replay(&site, &[]), 0, &[]);
    assert_eq!(site.stored().await.len(), before.len());
    // What it delivers from now on is its own.
    let agent = site.run();
    site.until_stored(before.len() + 10).await;
    says(&replay(&site, &["--delivered"]), 1, &["hint: --twice"]);
    let since = fs_err::read_to_string(site.directory.path().join("state/identity.json"));
    let since: Value = serde_json::from_str(&since.expect("read")).expect("JSON");
    let since = since["collector_since"].as_str().expect("a time");
    says(&replay(&site, &["--delivered", "--from", since]), 0, &[]);
    agent.stop();
    let own = site.stored().await.len() - before.len();
    says(&replay(&site, &["--delivered", "--twice"]), 0, &["delivered "]);
    assert_eq!(site.stored().await.len(), 2 * before.len() + own);
}

/// The same by a running agent, whose own metrics arrive meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_refills_and_goes_on() {
    let (mut site, before) = kept(30).await;
    wipe(&mut site).await;
    let agent = site.run();
    let plan = told(&replay(&site, &["--delivered", "--dry-run", "--json"]));
    assert!(plan["records"].as_u64() >= Some(before.len() as u64), "{plan}");
    says(&replay(&site, &["--delivered"]), 0, &["delivered "]);
    let stored = site.stored().await;
    assert!(names(&stored).is_superset(&before));
    says(&replay(&site, &["--segment", "1"]), 1, &["segment 1 holds no records"]);
    site.until_stored(stored.len() + 10).await;
    agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"));
    assert_distinct(&stored);
}

/// A replay that takes its time holds nothing up, can be joined and ended, and there is one at a
/// time.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replay_holds_nothing_up() {
    let (mut site, before) = kept(60).await;
    wipe(&mut site).await;
    let agent = site.run();
    let output = directory();
    let mut slow = start_replay(&site, output.path(), &["--delivered", "--rate", "4KiB"]);
    until_async("the replay sends", LIMIT, || async {
        names(&site.stored().await).intersection(&before).next().is_some()
    })
    .await;
    says(&replay(&site, &["--dead"]), 1, &["is under way", "--stop"]);
    for _ in 0..10 {
        let now = clock::now();
        until_async("a fresh metric", Duration::from_secs(5), || async {
            site.stored().await.iter().any(|metric| metric.at > now)
        })
        .await;
    }
    assert!(slow.is_running(), "{}", slow.stderr());
    let there = names(&site.stored().await);
    assert!(!there.is_superset(&before), "4 KiB/s takes longer");
    // Joined by the same command, and ended by another.
    let mut joined = start_replay(&site, output.path(), &["--delivered"]);
    until("it joins", LIMIT, || joined.stderr().contains("this follows it"));
    says(&replay(&site, &["--stop"]), 0, &["ended the replay of what is delivered"]);
    for process in [&mut slow, &mut joined] {
        let done = process.finish(LIMIT);
        says(&done, 2, &["delivered ", "stays where it is"]);
    }
    says(&replay(&site, &["--stop"]), 0, &["no replay is under way"]);
    says(&replay(&site, &["--delivered"]), 0, &[]);
    agent.stop();
    assert!(names(&site.stored().await).is_superset(&before));
    assert_distinct(&site.stored().await);
}

/// Killed in the middle, the agent goes on with its replay when it runs again, without being asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_goes_on_with_its_replay() {
    let (mut site, before) = kept(60).await;
    wipe(&mut site).await;
    let output = directory();
    let mut agent = site.run();
    let asked = ["--delivered", "--rate", "8KiB"];
    let mut asking = start_replay(&site, output.path(), &asked);
    until_async("the replay sends", LIMIT, || async {
        names(&site.stored().await).intersection(&before).count() > 5
    })
    .await;
    agent.kill();
    let done = asking.finish(LIMIT);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(!names(&site.stored().await).is_superset(&before), "killed in the middle");
    let agent = site.run();
    until_async("all of it is back", LIMIT, || async {
        names(&site.stored().await).is_superset(&before)
    })
    .await;
    agent.stop();
    assert_distinct(&site.stored().await);
}

/// Killed in the middle, a replay without an agent goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replay_goes_on_where_it_was() {
    let (mut site, before) = kept(60).await;
    wipe(&mut site).await;
    let output = directory();
    let mut slow = start_replay(&site, output.path(), &["--delivered", "--rate", "8KiB"]);
    let file = site.directory.path().join("state/replay.json");
    let sent = || {
        let job = fs_err::read(&file).ok()?;
        serde_json::from_slice::<Value>(&job).ok()?["done"]["batches"].as_u64()
    };
    until("a place is kept", LIMIT, || sent() >= Some(3));
    slow.kill();
    let there = site.stored().await.len();
    assert!(there < before.len(), "killed in the middle");
    says(&replay(&site, &["--segment", "7"]), 1, &["an interrupted replay", "--stop"]);
    let done = replay(&site, &["--delivered", "--json"]);
    says(&done, 0, &["an interrupted replay goes on"]);
    let told = told(&done);
    assert_eq!(told["done"], told["total"], "{told}");
    assert!(told["duplicates"].as_u64() < told["total"]["batches"].as_u64(), "{told}");
    let stored = site.stored().await;
    assert_eq!(names(&stored), before);
    assert_distinct(&stored);
}

/// What a dead host has left arrives once, under its own name, and its directory is only read: with
/// its state, without, and with nothing but frames.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_hosts_queue_arrives_under_its_name() {
    let (site, dir, records) = left_by_a_dead_host(30).await;
    let path = dir.to_str().expect("UTF-8");
    let before = files(&dir);
    let asked = ["--dir", path, "--hostname", "dead.example.com"];
    let plan = told(&replay(&site, &[&asked[..], &["--dry-run", "--json"]].concat()));
    assert_eq!(plan["records"].as_u64(), Some(records), "{plan}");
    assert!(site.stored().await.is_empty(), "a dry run sends nothing");

    says(&replay(&site, &asked), 0, &["delivered "]);
    let stored = site.served.stored(Some("dead.example.com")).await;
    assert_eq!(stored.len() as u64, records);
    assert_distinct(&stored);
    assert_eq!(files(&dir), before, "it is only read");

    fs_err::remove_dir_all(dir.join("state")).expect("remove the state");
    says(&replay(&site, &asked), 0, &["the backend had"]);
    fs_err::remove_file(dir.join("QUEUE")).expect("remove the identity");
    says(&replay(&site, &asked), 0, &["the backend had"]);
    assert_eq!(site.stored().await.len() as u64, records);

    // This host's own metrics are not mixed with them.
    let agent = site.run();
    until_async("own metrics", LIMIT, || async {
        !site.served.stored(Some("db1.example.com")).await.is_empty()
    })
    .await;
    agent.stop();
    assert_eq!(site.served.stored(Some("dead.example.com")).await.len() as u64, records);
}

/// A disk that cannot be written, as one of a dead host should be mounted.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_file_system_is_replayed() {
    const READ_ONLY: &str = r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" &&
        ! touch "$1/x" 2>/dev/null && shift && exec "$@""#;
    let (site, dir, records) = left_by_a_dead_host(20).await;
    let config = site.config();
    let (path, config) = (dir.to_str().expect("UTF-8"), config.to_str().expect("UTF-8"));
    let replay = agent(["replay", "--dir", path, "--config", config]);
    let mut command = Command::new("unshare");
    let namespaces = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
    command.args([namespaces, "--", "sh", "-c", READ_ONLY, "sh", path]);
    command.arg(replay.get_program()).args(replay.get_args()).env_remove("RUST_LOG");
    says(&run(command), 0, &["delivered "]);
    assert_eq!(site.stored().await.len() as u64, records);
}

/// Changes a byte of so many frames of a segment.
fn damage_frames(segment: &Path, frames: usize) {
    let file = segment.join("db");
    let mut bytes = fs_err::read(&file).expect("read a segment");
    let starts = bytes.windows(4).enumerate().filter(|(_, bytes)| *bytes == b"pgaB");
    let starts: Vec<usize> = starts.map(|(at, _)| at).take(frames).collect();
    assert!(!starts.is_empty(), "a frame");
    for start in starts {
        bytes[start + 100] ^= 0x40;
    }
    fs_err::write(&file, bytes).expect("damage a segment");
}

/// Q3: a batch of which nothing can be read is in the ledger, and does not wait beside that, when a
/// replay without an agent has come past it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_does_not_wait() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut agent = site.run();
    until("records wait", LIMIT, || site.queue_number("records") >= 15);
    agent.kill();
    let records = site.queue_number("records");
    let folders = fs_err::read_dir(site.queue().join("segments")).expect("list");
    let folders = folders.map(|entry| entry.expect("entry").path());
    damage_frames(&folders.min().expect("a segment"), usize::MAX);
    site.proxy.set(Network::Up);
    let done = replay(&site, &["--json"]);
    says(&done, 2, &["damaged on disk"]);
    let corrupt = told(&done)["corrupt"].as_u64().expect("a number");
    let ledger = site.command(&["inspect", "ledger", "--json"]);
    let ledger: serde_json::Value = serde_json::from_str(&ledger.stdout).expect("JSON");
    let entries = ledger["losses"].as_array().expect("a list").iter();
    let told: u64 = entries.filter_map(|entry| entry["records"].as_u64()).sum();
    assert_eq!((site.queue_number("records"), told), (0, corrupt), "{ledger}");
    assert_eq!(site.stored().await.len() as u64 + corrupt, records);
}

/// Killed in the middle, a dead host's replay goes on; damage costs what is damaged, is counted and
/// told by the exit code.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_dead_host_gives_what_it_has() {
    let (site, dir, records) = left_by_a_dead_host(40).await;
    let mut segments: Vec<_> = fs_err::read_dir(dir.join("segments"))
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .collect();
    segments.sort_unstable();
    damage_frames(&segments[1], 1);

    let output = directory();
    let asked = ["--dir", dir.to_str().expect("UTF-8")];
    let slow = [&asked[..], &["--rate", "8KiB"]].concat();
    let mut slow = start_replay(&site, output.path(), &slow);
    until_async("it sends", LIMIT, || async { site.stored().await.len() >= 5 }).await;
    slow.kill();
    let done = replay(&site, &[&asked[..], &["--json"]].concat());
    says(&done, 2, &["damaged on disk", "an interrupted replay goes on"]);
    let corrupt = told(&done)["corrupt"].as_u64().expect("a number");
    assert!(corrupt > 0);
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64 + corrupt, records);
    assert_distinct(&stored);
}

/// `--to` and `--from` take the windows of that time and no others.
#[tokio::test(flavor = "multi_thread")]
async fn a_time_range_takes_its_windows() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut agent = site.run();
    until("early records", LIMIT, || site.queue_number("records") >= 15);
    let middle = clock::now();
    until("late records", LIMIT, || site.queue_number("records") >= 45);
    agent.kill();
    let records = site.queue_number("records");
    site.proxy.set(Network::Up);
    let middle_text = middle.to_string();
    says(&replay(&site, &["--to", &middle_text]), 0, &["delivered "]);
    let early = site.stored().await;
    assert!(early.len() as u64 >= 15 && (early.len() as u64) < records, "{}", early.len());
    let window = Duration::from_secs(2);
    assert!(early.iter().all(|metric| metric.at < middle + window), "only windows of the time");
    assert!(site.queue_number("records") < records, "what is delivered is noted");
    says(&replay(&site, &["--from", &middle_text]), 0, &["delivered "]);
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, records);
    assert_distinct(&stored);
    says(&replay(&site, &[]), 0, &["nothing is queued"]);
}

/// `--limit` ends after the batch with which it is reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_ends_a_replay() {
    let (mut site, before) = kept(40).await;
    wipe(&mut site).await;
    says(&replay(&site, &["--delivered", "--limit", "10"]), 0, &["delivered "]);
    let stored = site.stored().await.len();
    assert!(stored >= 10 && stored < before.len(), "{stored} of {}", before.len());
}
