//! `agent inspect`: what it tells of a queue, asked of the agent or read from the directory, and
//! that it changes nothing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pganalytics::config::Config;
use pganalytics::control::{Server, Sources};
use pganalytics::queue::{DeadLetter, Group, Home, Log, NewRecord, Queue, QueueThread, RealDisk};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::control::Still;
use crate::support::process::{Finished, Process, agent, run};
use crate::support::proxy::Network;
use crate::support::site::Site;
use crate::support::{directory, until};

const SOON: Duration = Duration::from_secs(30);

/// A host with a queue, and nobody who delivers it.
struct Desk {
    folder: TempDir,
    config: Config,
}

/// The queue of a desk in an agent that only answers.
struct Served {
    queue: Queue,
    stop: oneshot::Sender<()>,
    tasks: JoinSet<()>,
    thread: QueueThread,
}

impl Desk {
    fn new() -> Self {
        let folder = directory();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[control]\nsocket = '{}'\n[queue]\ndir = '{}'\n",
            at("control.sock"),
            at("queue")
        );
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, text).expect("write");
        let config = Config::load(&file).expect("a configuration");
        Self { folder, config }
    }

    /// Three segments: two closed with `records` records each in blocks of ten, one that a kill
    /// left open; two dead letters.
    fn filled(records: u64) -> Self {
        let desk = Self::new();
        let mut log = desk.log();
        let mut numbers = 0..;
        for (segment, count) in [records, records, 10].into_iter().enumerate() {
            let at = i64::try_from(segment).expect("small") * 60_000;
            for _ in 0..count / 10 {
                let home = log.append(vec![group(numbers.by_ref().take(10))], at).home;
                assert_eq!(home, Home::Disk);
            }
            if segment < 2 {
                log.seal(at + 60_000);
            }
        }
        let batch = log.next_batch(i64::MAX).expect("a batch");
        log.put_back(batch.key, "503 down".to_owned(), 0);
        drop(log);
        let lines = "{\"at\":\"2026-11-21T10:00:00Z\",\"seq\":1,\"path\":\"cpu.user\",\
                     \"message\":\"over 100\",\"metric\":{\"type\":\"sysstat\"}}\n\
                     {\"no\":\"letter\"}\n";
        std::fs::write(desk.queue().join("dead.ndjson"), lines).expect("write");
        desk
    }

    fn log(&self) -> Log<RealDisk> {
        self.config.queue.open_log().expect("a queue")
    }

    fn queue(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    fn ask(&self, arguments: &[&str]) -> Finished {
        run(agent(self.arguments(arguments).iter().map(String::as_str)))
    }

    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let config = self.folder.path().join("agent.toml").display().to_string();
        let all = ["inspect"].iter().chain(arguments).map(|part| (*part).to_owned());
        all.chain(["--config".to_owned(), config]).collect()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let done = self.ask(&[arguments, &["--json"]].concat());
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    async fn serve(&self) -> Served {
        let server = Server::bind(&self.config.control_socket).await.expect("a socket");
        let (queue, thread) = self.config.queue.start().expect("a queue");
        let sources = Sources { queue: queue.clone(), agent: Still, metrics: None };
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(sources, async { stopped.await.unwrap_or_default() }));
        Served { queue, stop, tasks, thread }
    }

    /// Changes a byte in each of these frames of a segment.
    fn damage(segment: &Path, frames: &[u64]) {
        let file = segment.join("db");
        let mut bytes = std::fs::read(&file).expect("read");
        let magic = b"pgaB\x89\r\n\x1a";
        let starts: Vec<usize> =
            (0..bytes.len()).filter(|at| bytes[*at..].starts_with(magic)).collect();
        for start in starts {
            let number = bytes[start + 40..start + 48].try_into().expect("eight bytes");
            if frames.contains(&u64::from_le_bytes(number)) {
                bytes[start + 100] ^= 0x40;
            }
        }
        std::fs::write(&file, bytes).expect("write");
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.queue().join("segments")).expect("list");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
        paths.sort_unstable();
        paths
    }
}

impl Served {
    async fn stop(mut self) {
        self.stop.send(()).expect("still serving");
        self.tasks.join_next().await;
        self.queue.close().await.expect("closed");
        tokio::task::spawn_blocking(|| self.thread.join()).await.expect("joined");
    }
}

fn group(numbers: impl Iterator<Item = u64>) -> Group {
    let record = |n: u64| NewRecord {
        kind: "custom.test".to_owned(),
        at_ms: i64::try_from(n).expect("small") * 1_000,
        payload: format!("{{\"type\":\"custom.test\",\"n\": {n}}}").into(),
    };
    Group::of(numbers.map(record).collect())
}

/// The records that an export printed.
#[track_caller]
fn exported(done: &Finished) -> Vec<Value> {
    let line =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    done.stdout.lines().map(line).collect()
}

fn seqs(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["seq"].as_u64().expect("a number")).collect()
}

/// Path, size, time of change and content of everything below `folder`.
fn files(folder: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let data = std::fs::symlink_metadata(&path).expect("metadata");
            let content =
                if data.is_dir() { Vec::new() } else { std::fs::read(&path).expect("read") };
            files.insert(path.clone(), (data.len(), data.modified().expect("a time"), content));
            if data.is_dir() {
                folders.push(path);
            }
        }
    }
    files
}

/// Every command that looks, as its arguments.
fn looks(segment: &str) -> Vec<Vec<&str>> {
    vec![
        vec![],
        vec!["--verify"],
        vec!["segments"],
        vec!["segment", segment, "--decode"],
        vec!["batches"],
        vec!["record", "7"],
        vec!["dead", "--decode"],
        vec!["ledger"],
        vec!["quarantine", "--verify"],
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn live_and_offline_tell_the_same() {
    let desk = Desk::filled(50);
    // What a start tidies up is tidied up before the two are compared.
    drop(desk.log());
    let first = desk.json(&["segments"])["segments"][0]["id"].to_string();
    let both = looks(&first);
    let strip = |mut value: Value, source: &str| {
        assert_eq!(value["source"], source);
        let all = value.as_object_mut().expect("an object");
        all.remove("source");
        let queue = all["queue"].as_object_mut().expect("the status");
        // Counted since the start of who answers.
        queue.remove("counts");
        // Memory of who answers.
        queue.remove("ring_bytes");
        value
    };
    let offline: Vec<Value> = both.iter().map(|look| strip(desk.json(look), "directory")).collect();
    let export = desk.ask(&["export"]).stdout;
    let served = desk.serve().await;
    for (look, offline) in both.iter().zip(offline) {
        let mut live = strip(desk.json(look), "agent");
        if let Some(free) = offline.get("file_system") {
            live["file_system"] = free.clone();
        }
        assert_eq!(live, offline, "{look:?}");
    }
    assert_eq!(desk.ask(&["export"]).stdout, export);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_changes_nothing() {
    let desk = Desk::filled(50);
    let quarantine = desk.queue().join("quarantine");
    std::fs::rename(&desk.segments()[1], quarantine.join("00000000000000000007")).expect("move");
    Desk::damage(&desk.segments()[0], &[1]);
    let first = desk.segments()[0].file_name().expect("a name").to_string_lossy().into_owned();
    let before = files(&desk.queue());
    for look in looks(&first).into_iter().chain([vec!["export"]]) {
        let done = desk.ask(&look);
        assert!(matches!(done.code, Some(0 | 2)), "{look:?}: {done:?}");
        let json = desk.ask(&[&look[..], &["--json"]].concat());
        assert_eq!(json.code, done.code, "{look:?}: {json:?}");
    }
    assert!(files(&desk.queue()) == before, "the directory has changed");
}

/// Q3: exactly the blocks that are damaged are reported, by frame and sequence numbers.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_the_exact_records() {
    let desk = Desk::filled(50);
    let sound = desk.ask(&["--verify"]);
    assert_eq!(sound.code, Some(0), "{sound:?}");
    assert!(sound.stdout.contains("checked: 110 records in 11 blocks of 3 segments"), "{sound:?}");
    // Of the second segment: records 50 to 99 in frames 0 to 4.
    Desk::damage(&desk.segments()[1], &[1, 2, 4]);
    let expected = [(1, 2, 60, 79, 20), (4, 4, 90, 99, 10)];
    let check = |value: &Value| {
        let damage = value["verify"]["damage"].as_array().expect("a list");
        let number = |entry: &Value, name: &str| entry[name].as_u64().expect("a number");
        let found: Vec<_> = damage
            .iter()
            .map(|entry| {
                let of = |name| number(entry, name);
                assert_eq!(of("segment"), value["segments"][1]["id"].as_u64().expect("an id"));
                let frames = (of("first_frame"), of("last_frame"));
                (frames.0, frames.1, of("first_seq"), of("last_seq"), of("records"))
            })
            .collect();
        assert_eq!(found, expected, "{value}");
        assert_eq!(value["verify"]["lost_records"], 30);
        assert_eq!(value["verify"]["records"], 80);
    };
    let done = desk.ask(&["segments", "--verify"]);
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(done.stdout.contains("60-79") && done.stdout.contains("90-99"), "{done:?}");
    check(&desk.json(&["segments", "--verify"]));

    let export = desk.ask(&["export"]);
    assert_eq!(export.code, Some(2), "{export:?}");
    assert!(export.stderr.contains("30 records could not be read"), "{export:?}");
    let expected: Vec<u64> = (0..60).chain(80..90).chain(100..110).collect();
    assert_eq!(seqs(&exported(&export)), expected);
    let lost = desk.ask(&["record", "61"]);
    assert_eq!(lost.code, Some(1), "{lost:?}");

    let served = desk.serve().await;
    check(&desk.json(&["segments", "--verify"]));
    assert_eq!(desk.ask(&["segments", "--verify"]).code, Some(2));
    assert_eq!(seqs(&exported(&desk.ask(&["export"]))), expected);
    served.stop().await;
}

#[test]
fn an_export_is_cut_where_it_is_asked_to() {
    let desk = Desk::filled(50);
    let check = |arguments: &[&str], expected: std::ops::RangeInclusive<u64>| {
        let done = desk.ask(&[&["export"], arguments].concat());
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
        assert_eq!(seqs(&exported(&done)), expected.collect::<Vec<_>>(), "{arguments:?}");
    };
    check(&[], 0..=109);
    check(&["--from", "13"], 13..=109);
    check(&["--from", "13", "--to", "71"], 13..=71);
    check(&["--from", "1970-01-01T00:01:00Z", "--to", "99"], 60..=99);
    check(&["--to", "1970-01-01T00:00:10Z"], 0..=10);
    let second = desk.json(&["segments"])["segments"][1]["id"].to_string();
    check(&["--segment", &second], 50..=99);
    check(&["--segment", &second, "--from", "95"], 95..=99);

    let lines = exported(&desk.ask(&["export", "--from", "42", "--to", "42"]));
    let batches = desk.json(&["batches"]);
    let first = &desk.json(&["segments"])["segments"][0]["id"];
    let expected = serde_json::json!({
        "seq": 42, "kind": "custom.test", "at": "1970-01-01T00:00:42Z", "segment": first,
        "batch": batches["batches"][0]["id"], "metric": {"type": "custom.test", "n": 42},
    });
    assert_eq!(lines, [expected]);
    let done = desk.ask(&["export", "--from", "yesterday"]);
    assert_eq!(done.code, Some(64), "{done:?}");
}

#[test]
fn a_record_is_found_or_it_is_said_why_not() {
    let desk = Desk::filled(50);
    let done = desk.ask(&["record", "77", "--decode"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("custom.test") && done.stdout.contains("\"n\": 77"), "{done:?}");
    let mut log = desk.log();
    let batch = log.next_batch(i64::MAX).expect("a batch");
    let line = "{\"seq\":3}".to_owned();
    log.delivered(batch.key, 50, &[DeadLetter { seq: 3, at_ms: 0, line }]).expect("delivered");
    drop(log);
    let check = |seq: &str, text: &str| {
        let done = desk.ask(&["record", seq]);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains(text), "{text}: {done:?}");
    };
    check("3", "record 3 is in the ledger: refuse");
    check("7", "record 7 is not queued any more: it has been delivered");
    check("110", "record 110 does not exist: the next one will be 110");
    let ledger = desk.json(&["ledger"]);
    assert_eq!(ledger["losses"][0]["reason"], "refuse", "{ledger}");
    assert_eq!(ledger["losses"][0]["first_seq"], 3, "{ledger}");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_tells_each_change_in_a_line() {
    let desk = Desk::filled(50);
    let served = desk.serve().await;
    let start = |arguments: &[&str]| {
        let arguments = desk.arguments(arguments);
        Process::start(agent(arguments.iter().map(String::as_str)), desk.folder.path())
    };
    let mut segments = start(&["segments", "--follow"]);
    let mut json = start(&["--follow", "--json"]);
    until("the first look", SOON, || {
        segments.stdout().lines().count() == 3 && json.stdout().lines().count() == 1
    });
    served.queue.append(group(110..115)).await.expect("appended");
    until("the new segment is told", SOON, || {
        segments.stdout().lines().any(|line| line.contains(" open, 5 records"))
    });
    served.queue.seal().await.expect("sealed");
    until("the change is told", SOON, || {
        segments.stdout().lines().any(|line| line.contains(" sealed, 5 records"))
    });
    until("programs hear of it too", SOON, || {
        let text = json.stdout();
        let last = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        last.is_some_and(|last| last["queue"]["records"] == 115)
    });
    // A look that finds nothing new says nothing.
    assert_eq!(segments.stdout().lines().count(), 5, "{}", segments.stdout());
    for process in [&mut segments, &mut json] {
        process.signal(Signal::INT);
        let done = process.finish(SOON);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    served.stop().await;
    let done = desk.ask(&["export", "--follow"]);
    assert_eq!(done.code, Some(64), "{done:?}");
}

#[test]
fn quarantine_is_listed_and_read_on_request() {
    let desk = Desk::filled(50);
    let empty = desk.ask(&["quarantine"]);
    assert_eq!((empty.code, empty.stdout.contains("is empty")), (Some(0), true), "{empty:?}");
    let second = desk.segments()[1].clone();
    let name = second.file_name().expect("a name").to_owned();
    Desk::damage(&second, &[0]);
    std::fs::rename(&second, desk.queue().join("quarantine").join(&name)).expect("move");
    let done = desk.ask(&["quarantine"]);
    assert_eq!(done.code, Some(2), "{done:?}");
    let list = desk.json(&["quarantine"]);
    assert_eq!(list["quarantine"][0]["readable"], Value::Null, "{list}");
    let list = desk.json(&["quarantine", "--verify"]);
    let readable = &list["quarantine"][0]["readable"];
    let found = (&readable["records"], &readable["first_seq"], &readable["last_seq"]);
    assert_eq!(found, (&40.into(), &60.into(), &99.into()), "{list}");
}

/// A page is in memory at a time: half of the output is read, and the process asked how much it
/// has needed so far.
#[test]
fn an_export_needs_little_memory() {
    let desk = Desk::new();
    let mut log = desk.log();
    let filler = |n: u64| (0..2_000_u64).map(move |m| (n * 7 + m * m * 31) % 10);
    for block in 0..400 {
        let record = |n: u64| NewRecord {
            kind: "custom.test".to_owned(),
            at_ms: 0,
            payload: format!(
                "{{\"filler\":\"{}\"}}",
                filler(n).map(|digit| digit.to_string()).collect::<String>()
            )
            .into(),
        };
        log.append(vec![Group::of((block * 100..block * 100 + 100).map(record).collect())], 0);
    }
    log.close(1);
    let arguments = desk.arguments(&["export"]);
    let mut command = agent(arguments.iter().map(String::as_str));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    for _ in 0..20_000 {
        line.clear();
        assert!(out.read_line(&mut line).expect("a line") > 2_000);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("alive");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    std::io::copy(&mut out.by_ref(), &mut std::io::sink()).expect("the rest");
    assert!(child.wait().expect("ended").success());
    assert!(peak < 100 << 10, "{peak} KiB for an export of 80 MB");
}

/// What an export says is queued is what the backend stores in the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_the_backend_stores() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut process = site.run();
    until("records are queued", SOON, || site.queue_number("records") >= 20);
    let live = site.command(&["inspect", "export"]);
    process.kill();
    let done = site.command(&["inspect", "export"]);
    assert_eq!((live.code, done.code), (Some(0), Some(0)), "{done:?}");
    let (live, lines) = (exported(&live), exported(&done));
    assert!(live.len() >= 20 && lines[..live.len()] == live[..], "live and offline agree");
    let numbers = seqs(&lines);
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());

    site.proxy.set(Network::Up);
    let process = site.run();
    site.until_stored(lines.len()).await;
    process.stop();
    let document = |text: &str| serde_json::from_str(text).expect("JSON");
    let mut stored: Vec<Value> =
        site.stored().await.iter().map(|metric| document(&metric.document)).collect();
    for line in &lines {
        let at = stored.iter().position(|document| *document == line["metric"]);
        stored.remove(at.unwrap_or_else(|| panic!("not stored: {line}")));
    }
}

/// `queue repair`: a plan first, then what it says; an agent that runs is not disturbed.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_is_repaired_by_hand() {
    let desk = Desk::filled(50);
    let repair = |arguments: &[&str]| {
        let config = desk.folder.path().join("agent.toml").display().to_string();
        let all = ["queue", "repair"].iter().chain(arguments).copied();
        run(agent(all.chain(["--config", config.as_str()])))
    };
    let done = repair(&[]);
    assert_eq!((done.code, done.stdout.contains("nothing to repair")), (Some(0), true), "{done:?}");
    Desk::damage(&desk.segments()[1], &[1]);
    std::fs::write(desk.queue().join("segments/notes.txt"), "mine").expect("write");

    let served = desk.serve().await;
    let busy = repair(&["--apply"]);
    assert_eq!(busy.code, Some(1), "{busy:?}");
    assert!(busy.stderr.contains("hint: another process has the queue open; stop the agent"));
    served.stop().await;

    let before = files(&desk.queue());
    let plan = repair(&[]);
    assert_eq!(plan.code, Some(2), "{plan:?}");
    assert!(plan.stdout.contains("10 of 50 records cannot be read: 60-69"), "{plan:?}");
    assert!(plan.stdout.contains("segments/notes.txt: is no segment"), "{plan:?}");
    assert!(files(&desk.queue()) == before, "a plan changes nothing");

    let done = repair(&["--apply", "--json"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(report["steps"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(report["repaired"]["records"], 100, "{report}");
    let backup = PathBuf::from(report["repaired"]["backup"].as_str().expect("a path"));
    assert_eq!(std::fs::read(backup.join("segments/notes.txt")).expect("moved"), b"mine");
    let again = repair(&[]);
    assert_eq!(again.code, Some(0), "{again:?}");
    let expected: Vec<u64> = (0..60).chain(70..110).collect();
    assert_eq!(seqs(&exported(&desk.ask(&["export"]))), expected);
    assert_eq!(desk.json(&["ledger"])["losses"][0]["first_seq"], 60);
}
