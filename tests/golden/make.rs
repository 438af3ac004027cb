//! Makes a golden queue: what the agent of this version leaves in a directory when most of what can
//! happen to a queue has happened to it, and what `agent inspect` of this version tells of it.
//!
//! `PGANALYTICS_GOLDEN=queue-2 cargo test --test main golden::make -- --ignored` writes two files
//! of that name into `tests/golden/`. A version that writes another format adds a queue of its own;
//! those that are there are never made again.

use std::collections::BTreeMap;
use std::fs::FileTimes;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pganalytics::clock;
use pganalytics::config::Config;
use pganalytics::queue::{Group, Home, NewRecord, Position};
use serde_json::{Value, json};

use super::pushed;
use crate::intake::{metric, push_of};
use crate::operator::Host;
use crate::support::backend_stub::Reply;
use crate::support::intake::Place;
use crate::support::process::Process;
use crate::support::until;

const SOON: Duration = Duration::from_secs(30);
/// Its name, without the ending.
const NAME: &str = "PGANALYTICS_GOLDEN";
/// A key that the intake will know for longer than this test lives: 2100-01-01.
const FAR_MS: i64 = 4_102_444_800_000;

/// What the backend does with a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    /// The first record of each push is refused.
    RefusesOne,
    /// The next push is taken, others are not.
    TakesOneMore,
    IsAway,
}

struct Maker {
    host: Host,
    place: Place,
    mood: Arc<Mutex<Mood>>,
    /// What the backend has taken, by batch.
    taken: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
    next: u64,
    keys: Vec<Value>,
}

impl Maker {
    async fn new() -> Self {
        let host = Host::new("300ms").await;
        let mood = Arc::new(Mutex::new(Mood::Takes));
        let taken = Arc::new(Mutex::new(BTreeMap::new()));
        let (now, batches) = (Arc::clone(&mood), Arc::clone(&taken));
        host.stub.answer_pushes(move |push| {
            let mut mood = now.lock().expect("nobody panicked");
            let reply = answer(*mood);
            if *mood != Mood::IsAway {
                let id = push.header("idempotency-key").to_owned();
                batches.lock().expect("nobody panicked").insert(id, pushed(push));
            }
            if *mood == Mood::TakesOneMore {
                *mood = Mood::IsAway;
            }
            reply
        });
        let place = Place::Unix(host.path("intake.sock"));
        Self { host, place, mood, taken, next: 0, keys: Vec::new() }
    }

    /// An agent with windows of this length and more keys of `[queue]`.
    fn run(&self, mood: Mood, window: &str, queue: &str) -> Process {
        *self.mood.lock().expect("nobody panicked") = mood;
        let path = |name: &str| self.host.path(name).display().to_string();
        let config = format!(
            "[collector]\nstate_dir = '{}'\npush_interval = {window:?}\n\
             [backend]\nurl = '{}'\n\
             [tls]\ncert_file = '{}'\nkey_file = '{}'\nca_file = '{}'\n\
             [queue]\ncommit_interval = \"10ms\"\nretain_delivered = \"64MiB\"\n{queue}\n\
             [forward]\nbackoff_first = \"3s\"\nbackoff_max = \"5s\"\n\
             [shutdown]\ndeadline = \"2s\"\n\
             [intake]\nlisten = \"unix:{}\"\n\
             [sysstat]\nenabled = false\n[disk_usage]\nenabled = false\n\
             [pg_stats]\nenabled = false\n[agent]\nenabled = false\n\
             [pg_log]\ninterval = \"200ms\"\ntimeout = \"200ms\"\npath = '{}'\n\
             line_prefix = \"%m [%p] \"\ntimezone = \"UTC\"\nstart_at = \"beginning\"\n",
            self.host.folder.path().display(),
            self.host.stub.url(),
            path("collector.crt"),
            path("collector.key"),
            path("ca.crt"),
            path("intake.sock"),
            path("log"),
        );
        fs_err::write(self.host.path("agent.toml"), config).expect("write");
        let agent = self.host.start();
        until("the intake listens", SOON, || self.place.connect().is_ok());
        agent
    }

    /// Pushes `count` metrics with a key: they are a block of their own.
    fn push(&mut self, count: u64) {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let metrics: Vec<Value> = numbers.clone().map(with_text).collect();
        let (key, body) = (format!("golden-{}", numbers.start), push_of(&metrics));
        let answer = self.place.push(&[("Idempotency-Key", &key)], &body).expect("an answer");
        assert_eq!((answer.status, answer.inserted()), (200, count), "{answer:?}");
        let body = String::from_utf8(body).expect("JSON is UTF-8");
        self.keys.push(json!({"key": key, "inserted": count, "body": body}));
    }

    /// A window of its own for each push.
    fn push_windows(&mut self, windows: u64, count: u64) {
        for _ in 0..windows {
            self.push(count);
            until("the window ends", SOON, || {
                let segments = self.host.json(&["inspect", "segments", "--json"]);
                let list = segments["segments"].as_array().expect("a list");
                list.iter().all(|segment| segment["state"] != "open")
            });
        }
    }

    fn until_delivered(&self) {
        until("it is delivered", SOON, || self.host.queued("records") == 0);
    }

    fn losses(&self, reason: &str) -> usize {
        let ledger = self.host.json(&["inspect", "ledger", "--json"]);
        let losses = ledger["losses"].as_array().expect("a list");
        losses.iter().filter(|loss| loss["reason"] == reason).count()
    }

    fn segments(&self) -> Vec<Value> {
        let segments = self.host.json(&["inspect", "segments", "--json"]);
        segments["segments"].as_array().expect("a list").clone()
    }

    /// Flips a byte in the second frame of the newest segment.
    fn damage_newest(&self) {
        let waiting = self.segments().into_iter().filter(|segment| segment["state"] == "sealed");
        let id = waiting.filter_map(|segment| segment["id"].as_u64()).max().expect("a segment");
        let file = self.host.path(&format!("queue/segments/{id:020}/db"));
        let mut bytes = fs_err::read(&file).expect("read a segment");
        let frame = |window: &[u8]| {
            window.starts_with(b"pgaB\x89\r\n\x1a") && window[40..48] == 1u64.to_le_bytes()
        };
        let at = bytes.windows(48).position(frame).expect("a second frame");
        bytes[at + 100] ^= 0x40;
        fs_err::write(&file, bytes).expect("damage a segment");
    }
}

/// The queue tidies up when a second goes by in which nobody asks it anything.
#[track_caller]
fn until_idle(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, SOON, || {
        std::thread::sleep(Duration::from_millis(1_500));
        condition()
    });
}

/// A metric with some text, so that a frame is long enough to be damaged.
fn with_text(n: u64) -> Value {
    let mut metric = metric(n);
    metric["text"] = json!(format!("what was known when this was written: {n}"));
    metric
}

fn answer(mood: Mood) -> Reply {
    let rejected = match mood {
        Mood::IsAway => return Reply::status(503),
        Mood::RefusesOne => json!([{"index": 0, "path": "n", "message": "out of fashion"}]),
        Mood::Takes | Mood::TakesOneMore => json!([]),
    };
    let body = json!({
        "status": "success", "collector_id": "c", "metrics_inserted": 1, "bytes_received": 1,
        "processing_time_ms": 1, "next_config_version": 0, "next_check_in_seconds": 60,
        "rejected": rejected,
    });
    Reply::with(200, &[], &body.to_string())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes a golden queue, once for each format"]
async fn make() {
    let name = std::env::var(NAME).expect("a name");
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let mut maker = Maker::new().await;
    tokio::task::block_in_place(|| maker.fill());
    let manifest = maker.manifest();
    let folder = maker.host.folder.path();
    let archive = to.with_extension("tar.gz");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sparse", "--owner=0", "--group=0", "--numeric-owner", "--sort=name"]);
    tar.args(["--use-compress-program", "gzip -9n", "--file"]).arg(&archive);
    let done = tar.arg("--directory").arg(folder).arg("queue").status().expect("start tar");
    assert!(done.success(), "tar: {done}");
    let text = serde_json::to_string_pretty(&manifest).expect("JSON");
    fs_err::write(to.with_extension("json"), text + "\n").expect("write the manifest");
}

impl Maker {
    fn fill(&mut self) {
        self.deliver_some();
        self.lose_some();
        self.merge_some();
        self.deliver_a_part();
        self.append_by_hand();
        self.leave_some_waiting();
    }

    /// Delivered and kept; refused; and a log that is followed.
    fn deliver_some(&mut self) {
        let log = self.host.path("log/pg.log");
        fs_err::create_dir(self.host.path("log")).expect("make a folder");
        fs_err::write(&log, "2026-03-01 12:00:00.000 UTC [7] LOG:  one\n").expect("write a log");
        let then = SystemTime::from(clock::now()) - Duration::from_secs(60);
        let file = fs_err::File::options().append(true).open(&log).expect("open");
        file.file().set_times(FileTimes::new().set_modified(then)).expect("set the time");
        let mut agent = self.run(Mood::Takes, "300ms", "");
        self.push_windows(3, 4);
        self.until_delivered();
        agent.kill();
        let mut agent = self.run(Mood::RefusesOne, "300ms", "");
        self.push_windows(2, 3);
        until("they are refused", SOON, || self.losses("refuse") == 2);
        self.until_delivered();
        agent.kill();
    }

    /// Too old; and damaged, found, and put into quarantine.
    fn lose_some(&mut self) {
        let mut agent = self.run(Mood::IsAway, "300ms", "");
        self.push_windows(2, 2);
        agent.kill();
        let mut agent = self.run(Mood::IsAway, "1h", "age_max = \"1s\"");
        until_idle("they are evicted", || {
            self.losses("evict") >= 1 && self.host.queued("records") == 0
        });
        agent.kill();
        let agent = self.run(Mood::IsAway, "1h", "");
        (0..4).for_each(|_| self.push(3));
        agent.stop();
        self.damage_newest();
        let mut agent = self.run(Mood::Takes, "300ms", "");
        until("the damage is found", SOON, || self.losses("corrupt") == 1);
        let quarantine = self.host.path("queue/quarantine");
        until("it is put aside", SOON, || fs_err::read_dir(&quarantine).expect("list").count() > 0);
        self.until_delivered();
        agent.kill();
    }

    /// Windows of an outage, most of them merged.
    fn merge_some(&mut self) {
        let mut agent = self.run(Mood::IsAway, "300ms", "");
        self.push_windows(20, 2);
        agent.kill();
        let mut agent = self.run(Mood::IsAway, "1h", "");
        until_idle("they are merged", || {
            self.segments().iter().any(|segment| segment["windows"].as_u64() >= Some(16))
        });
        agent.kill();
    }

    /// A segment of several batches, of which one is delivered.
    fn deliver_a_part(&mut self) {
        let agent = self.run(Mood::IsAway, "1h", "batch_records_max = 2");
        (0..4).for_each(|_| self.push(2));
        *self.mood.lock().expect("nobody panicked") = Mood::TakesOneMore;
        agent.stop();
        *self.mood.lock().expect("nobody panicked") = Mood::IsAway;
        let part = |segment: &Value| {
            (1..segment["batches"].as_u64().expect("a number"))
                .contains(&segment["delivered"].as_u64().expect("a number"))
        };
        assert!(self.segments().iter().any(part), "{:?}", self.segments());
    }

    /// What no scripted day brings: metrics rejected at the door, and a key that is never void.
    fn append_by_hand(&mut self) {
        let config = Config::load(&self.host.path("agent.toml")).expect("a configuration");
        let mut log = config.queue.open_log().expect("a queue");
        let known = self.keys[0].clone();
        let name = format!("intake/{}", known["key"].as_str().expect("text"));
        // The receipt of a key: metrics taken, until when it is known, the body's checksum.
        let mut receipt = log.position(&name).expect("a receipt").to_vec();
        receipt[8..16].copy_from_slice(&FAR_MS.to_le_bytes());
        let record = |n: u64| NewRecord {
            kind: "custom.test".to_owned(),
            at_ms: 1_767_225_600_000,
            payload: Bytes::from(with_text(n).to_string()),
        };
        let position =
            Position { collector: name, bytes: Bytes::from(receipt), keep_until_ms: Some(FAR_MS) };
        let group = Group {
            records: (self.next..self.next + 3).map(record).collect(),
            position: Some(position),
            rejected: 2,
            ..Group::default()
        };
        self.next += 3;
        let now_ms = clock::now().as_millisecond();
        assert_eq!(log.append(vec![group], now_ms).home, Home::Disk);
        log.close(now_ms + 1);
        self.keys.truncate(1);
    }

    /// Sealed, sealed and damaged, and open when the power of the process was cut.
    fn leave_some_waiting(&mut self) {
        for _ in 0..2 {
            let agent = self.run(Mood::IsAway, "1h", "");
            (0..4).for_each(|_| self.push(3));
            agent.stop();
        }
        self.damage_newest();
        let mut agent = self.run(Mood::IsAway, "1h", "");
        (0..3).for_each(|_| self.push(2));
        agent.kill();
    }

    /// What `agent inspect` says of it.
    fn manifest(&self) -> Value {
        let host = &self.host;
        let inspect = |arguments: &[&str]| host.json(&[&["inspect", "--json"], arguments].concat());
        let queue = &inspect(&[])["queue"];
        let export = host.ask(&["inspect", "export"]);
        let lines = export.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let records: Vec<Value> = lines.collect();
        let batches = inspect(&["batches"])["batches"].as_array().expect("a list").clone();
        let taken = self.taken.lock().expect("nobody panicked");
        let kept = batches.iter().filter(|batch| batch["state"] == "kept").map(|batch| {
            let metrics = &taken[batch["id"].as_str().expect("an id")];
            json!({"id": batch["id"], "metrics": metrics})
        });
        let kept: Vec<Value> = kept.collect();
        let letters = fs_err::read_to_string(host.path("queue/dead.ndjson")).expect("letters");
        json!({
            "made_by": env!("CARGO_PKG_VERSION"),
            "queue_id": queue["queue_id"],
            "next_seq": queue["next_seq"],
            "segments": inspect(&["segments"])["segments"],
            "batches": batches,
            "records": records,
            "kept": kept,
            "letters": letters.lines().collect::<Vec<_>>(),
            "losses": inspect(&["ledger"])["losses"],
            "damaged": inspect(&["--verify"])["verify"]["damage"],
            "quarantine": inspect(&["quarantine", "--verify"])["quarantine"],
            "key": self.keys[0],
        })
    }
}
