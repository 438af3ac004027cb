//! What a person, another program, or a disk in trouble does to the directory of a queue, with the
//! agent as a process: nothing that was acknowledged is missing, and nothing is told to be lost
//! that is not.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::intake::{metric, push_of, run, site, stored_numbers, with_intake};
use crate::support::disk::Disk;
use crate::support::intake::Place;
use crate::support::process::{Finished, Process, agent};
use crate::support::proxy::Network;
use crate::support::site::Site;
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(60);
/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// Numbers, pushed one by one; all are answered 200.
fn push(place: &Place, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let answer = place.push(&[], &push_of(&[metric(n)])).expect("an answer");
        assert_eq!(answer.status, 200, "{n}: {answer:?}");
    }
}

fn ledger(site: &Site) -> Vec<Value> {
    let done = site.command(&["inspect", "ledger", "--json"]);
    let text: Value =
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    text["losses"].as_array().expect("a list").clone()
}

fn kept(site: &Site) -> usize {
    fs_err::read_dir(site.queue().join("delivered")).expect("list").count()
}

/// Everything below `path` and itself.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.is_dir() {
        for entry in fs_err::read_dir(path).expect("list") {
            all.extend(tree(&entry.expect("an entry").path()));
        }
    }
    all
}

fn give(path: &Path, user: u32) {
    for path in tree(path) {
        std::os::unix::fs::lchown(&path, Some(user), Some(user)).expect("give");
    }
}

/// `agent run` as a user without rights, from a copy of the program that this user can read.
fn run_as_nobody(site: &Site) -> Process {
    let program = site.directory.path().join("agent");
    // By a process: this one's other tests start theirs while it would have the copy open.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_agent")).arg(&program).status();
    assert!(copied.expect("copy the program").success());
    let config = site.config();
    let mut command = Command::new(program);
    command.args(["run", "--config", config.to_str().expect("UTF-8")]).env_remove("RUST_LOG");
    command.uid(NOBODY).gid(NOBODY);
    Process::start(command, site.output())
}

fn as_root_with_tight_mask(site: &Site, arguments: &str) -> Finished {
    let mut command = Command::new("sh");
    let config = site.config();
    let program = agent([]).get_program().to_str().expect("UTF-8").to_owned();
    let line = format!("umask 077; exec {program} {arguments} --config {}", config.display());
    command.args(["-c", &line]);
    crate::support::process::run(command)
}

/// Q12: commands that root has run in between leave nothing that the agent's user cannot use; and
/// files that it cannot read are waited for, with everything as it is, until it can.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_root_are_waited_for() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs as root");
        return;
    }
    let (site, place) = site("").await;
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text.replace("[queue]\n", "[queue]\nretain_delivered = \"1d\"\n");
    fs_err::write(site.config(), text).expect("write");
    fs_err::set_permissions(site.directory.path(), PermissionsExt::from_mode(0o755)).expect("open");
    give(site.directory.path(), NOBODY);
    let agent = run_as_nobody(&site);
    until("the intake listens", LIMIT, || place.connect().is_ok());
    push(&place, 0..20);
    until_numbers(&site, 0..20).await;
    agent.stop();
    let (numbers, segments) = (site.queue_number("next_seq"), kept(&site));
    assert!(segments > 0 && numbers >= 20);

    let done = as_root_with_tight_mask(&site, "replay --delivered");
    assert_eq!(done.code, Some(0), "{done:?}");
    let of_root = |path: &PathBuf| fs_err::symlink_metadata(path).expect("there").uid() == 0;
    let left: Vec<_> = tree(&site.queue()).into_iter().filter(of_root).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "root has left files in the queue");
    let agent = run_as_nobody(&site);
    until("the intake listens", LIMIT, || place.connect().is_ok());
    push(&place, 20..25);
    agent.stop();
    assert!(site.queue_number("next_seq") >= numbers + 5);

    let (numbers, segments) = (site.queue_number("next_seq"), kept(&site));
    // Somebody has copied the state back as root.
    let state = ["a", "b"].map(|name| site.queue().join("state").join(name));
    for file in &state {
        std::os::unix::fs::lchown(file, Some(0), Some(0)).expect("give");
        fs_err::set_permissions(file, PermissionsExt::from_mode(0o600)).expect("close");
    }
    let agent = run_as_nobody(&site);
    until("it says so", LIMIT, || agent.stderr().contains("the queue's state cannot be read"));
    until("the intake listens", LIMIT, || place.connect().is_ok());
    let answer = place.push(&[], &push_of(&[metric(90)])).expect("an answer");
    assert_eq!((answer.status, answer.error()), (503, "not_ready"), "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    let keyed = place.push(&[("Idempotency-Key", "k")], &push_of(&[metric(91)])).expect("one");
    assert_eq!(keyed.status, 503);
    let status = site.command(&["status"]);
    assert!(status.stdout.contains("cannot be read"), "{status:?}");
    for arguments in [&["inspect"][..], &["inspect", "segments"], &["replay"]] {
        let done = site.command(arguments);
        assert_eq!(done.code, Some(1), "{arguments:?}: {done:?}");
        assert!(done.stderr.contains("cannot read the queue's state"), "{arguments:?}: {done:?}");
    }
    assert_eq!(kept(&site), segments, "nothing was touched");
    give(&site.queue(), NOBODY);
    until("it goes on by itself", LIMIT, || agent.stderr().contains("can be read now"));
    push(&place, 25..30);
    until_numbers(&site, 0..30).await;
    agent.stop();
    assert!(site.queue_number("next_seq") >= numbers + 5, "no number is given twice");
    assert!(kept(&site) >= segments);
}

/// Q5, Q12: a start on a file system that is full to the last byte knows its ledger, its numbers
/// and its kept segments all the same, and every evicted record is in the ledger afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk_knows_its_ledger() {
    let Some(disk) = Disk::new(96) else { return };
    let (site, place) = with_intake(Site::registered().await, "");
    let text = fs_err::read_to_string(site.config()).expect("read");
    let queue = disk.root().join("queue");
    let keys = "bytes_max = \"16MiB\"\nsegment_bytes_max = \"64KiB\"\ndisk_free_min = 0\n";
    let text = text
        .replace("[sysstat]\n", "[sysstat]\nenabled = false\n")
        .replace("[disk_usage]\n", "[disk_usage]\nenabled = false\n")
        .replace("[queue]\n", &format!("[queue]\n{keys}"))
        .replace(site.queue().to_str().expect("UTF-8"), queue.to_str().expect("UTF-8"));
    fs_err::write(site.config(), text).expect("write");
    site.proxy.set(Network::Down);
    let agent = run(&site, &place);
    let mut pushed = push_until_evicted(&site, &place, 0);
    agent.stop();
    let (before, numbers) = (ledger(&site), site.queue_number("next_seq"));
    let filling = fill(&disk.root());
    let agent = run(&site, &place);
    until("it runs on a full disk", LIMIT, || place.connect().is_ok());
    assert_eq!(ledger(&site), before, "the ledger is what it was");
    assert_eq!(site.queue_number("next_seq"), numbers);
    for file in filling {
        fs_err::remove_file(file).expect("make room");
    }
    until("the disk takes records", LIMIT, || {
        place.push(&[], &push_of(&[large(pushed)])).is_ok_and(|answer| answer.status == 200)
    });
    pushed = push_until_evicted(&site, &place, pushed + 1);
    assert!(pushed > 300, "{pushed}");
    site.proxy.set(Network::Up);
    until("all is delivered", LIMIT, || site.queue_number("records") == 0);
    let (lost, given) = (evicted(&site), site.queue_number("next_seq"));
    agent.stop();
    let stored = site.stored().await.len() as u64;
    assert_eq!(stored + lost, given, "each is stored or in the ledger");
}

/// Q7: the directory goes away, in parts and as a whole, and comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_goes_away_comes_back() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let mut pushed = 0;
    let mut push_some = || {
        let retry = |n: u64| {
            let body = push_of(&[metric(n)]);
            until("it is taken", LIMIT, || {
                place.push(&[], &body).is_ok_and(|answer| answer.status == 200)
            });
        };
        (pushed..pushed + 10).for_each(retry);
        pushed += 10;
        pushed
    };
    until_numbers(&site, 0..push_some()).await;
    let queue = site.queue();
    let moved = site.directory.path().join("moved");
    let ways: [&dyn Fn(); 3] = [
        &|| fs_err::remove_dir_all(queue.join("segments")).expect("remove"),
        &|| fs_err::remove_dir_all(&queue).expect("remove"),
        &|| fs_err::rename(&queue, &moved).expect("move"),
    ];
    for (n, go_away) in ways.into_iter().enumerate() {
        go_away();
        let said = format!("{}", n + 1);
        until(&said, LIMIT, || agent.stderr().matches("had gone away").count() == n + 1);
        until_numbers(&site, 0..push_some()).await;
    }
    assert!(!moved.join("state.new").exists() && queue.join("state/a").exists());
    let errors = agent.stderr().matches("had gone away").count();
    assert_eq!(errors, 3, "one word each");
    agent.stop();
}

/// Q3: the segments of another queue are put aside, and their records can be queued here.
#[tokio::test(flavor = "multi_thread")]
async fn segments_of_another_queue_can_be_queued() {
    let (site, place) = site("").await;
    site.proxy.set(Network::Down);
    let agent = run(&site, &place);
    push(&place, 0..10);
    agent.stop();
    let other = site.directory.path().join("other");
    fs_err::rename(site.queue(), &other).expect("move");
    let agent = run(&site, &place);
    push(&place, 10..15);
    agent.stop();
    for entry in fs_err::read_dir(other.join("segments")).expect("list") {
        let entry = entry.expect("an entry");
        let to = site.queue().join("segments").join(entry.file_name());
        fs_err::rename(entry.path(), to).expect("move");
    }
    site.proxy.set(Network::Up);
    let agent = run(&site, &place);
    until_numbers(&site, 10..15).await;
    let done = agent.stop();
    assert!(done.stderr.contains("a segment of another queue"), "{}", done.stderr);
    let listed = site.command(&["inspect", "quarantine"]);
    assert!(listed.stdout.contains("stranger"), "{listed:?}");
    let planned = site.command(&["queue", "repair"]);
    assert!(planned.stdout.contains("--requeue"), "{planned:?}");
    let done = site.command(&["queue", "repair", "--requeue", "--apply"]);
    assert!(matches!(done.code, Some(0 | 2)), "{done:?}");
    let agent = run(&site, &place);
    until_numbers(&site, 0..15).await;
    agent.stop();
}

/// Pushes numbers from `next` on until more are evicted than before; the next number.
fn push_until_evicted(site: &Site, place: &Place, mut next: u64) -> u64 {
    let known = evicted(site);
    while evicted(site) == known {
        for _ in 0..20 {
            let answer = place.push(&[], &push_of(&[large(next)])).expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            next += 1;
        }
    }
    next
}

/// Waits until the backend has the numbers below `count`, each once.
async fn until_numbers(site: &Site, numbers: std::ops::Range<u64>) {
    let expected: Vec<u64> = numbers.collect();
    until_async("they are stored", LIMIT, || async {
        stored_numbers(site).await.len() >= expected.len()
    })
    .await;
    assert_eq!(stored_numbers(site).await, expected);
}

fn evicted(site: &Site) -> u64 {
    let losses = ledger(site);
    let evicted = losses.iter().filter(|loss| loss["reason"] == "evict");
    evicted.map(|loss| loss["records"].as_u64().expect("a number")).sum()
}

/// A metric of 40 kB that does not compress.
fn large(n: u64) -> Value {
    let mut random = fastrand::Rng::with_seed(n);
    let text: String = (0..40_000).map(|_| random.alphanumeric()).collect();
    let mut metric = metric(n);
    metric["text"] = text.into();
    metric
}

/// Fills a file system to its last byte; the files that do so.
fn fill(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for bytes in [1 << 20, 4 << 10, 1] {
        loop {
            let file = root.join(format!("fill-{}", files.len()));
            let written = fs_err::write(&file, vec![7; bytes]);
            if file.exists() {
                files.push(file);
            }
            if written.is_err() {
                break;
            }
        }
    }
    files
}
