//! Queues that earlier versions have left, as `tests/golden/` keeps them: opened by this version
//! with nothing lost. `golden/make.rs` says how they were made.

mod make; // a golden queue of this version

use std::collections::{BTreeMap, BTreeSet};
use std::fs::FileTimes;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use pganalytics::clock;
use serde_json::{Value, json};

use crate::intake::{metric, push_of};
use crate::operator::{files, says};
use crate::support::backend_stub::Recorded;
use crate::support::intake::Place;
use crate::support::process::{Finished, agent, run};
use crate::support::proxy::Network;
use crate::support::site::Site;
use crate::support::{directory, until, until_async};

const LIMIT: Duration = Duration::from_secs(60);
/// Numbers of metrics that no golden queue has.
const NEW: u64 = 1_000_000;

/// A queue of an earlier version, and what it holds as that version saw it.
struct Golden {
    name: String,
    archive: PathBuf,
    manifest: Value,
}

/// The golden queues, oldest first.
fn all() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let paths = fs_err::read_dir(&folder).expect("list").map(|entry| entry.expect("entry").path());
    let mut manifests: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
    manifests.sort_unstable();
    assert!(!manifests.is_empty(), "there is a golden queue");
    let golden = |path: PathBuf| Golden {
        name: path.file_stem().expect("a name").to_string_lossy().into_owned(),
        archive: path.with_extension("tar.gz"),
        manifest: serde_json::from_slice(&fs_err::read(&path).expect("read")).expect("JSON"),
    };
    manifests.into_iter().map(golden).collect()
}

impl Golden {
    /// Unpacks it: `queue` in `folder`.
    fn unpack(&self, folder: &Path) {
        fs_err::create_dir_all(folder).expect("make a folder");
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--no-same-owner", "--file"]).arg(&self.archive);
        let done = tar.arg("--directory").arg(folder).status().expect("start tar");
        assert!(done.success(), "{}: {done}", self.name);
    }

    fn list(&self, key: &str) -> &[Value] {
        self.manifest[key].as_array().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    /// The metrics that wait, and in which batch.
    fn waiting(&self) -> BTreeMap<String, String> {
        let pending = self.list("batches").iter().filter(|batch| batch["state"] == "pending");
        let pending: BTreeSet<String> = pending.map(|batch| text(&batch["id"])).collect();
        self.records().into_iter().filter(|(_, batch)| pending.contains(batch)).collect()
    }

    /// The metrics that can be read, and in which batch: those of a delivered batch of a segment
    /// that waits for others, too.
    fn records(&self) -> BTreeMap<String, String> {
        let batch = |line: &Value| (line["metric"].to_string(), text(&line["batch"]));
        self.list("records").iter().map(batch).collect()
    }

    /// The metrics of delivered batches that are kept, and in which batch.
    fn kept(&self) -> BTreeMap<String, String> {
        let batch = |batch: &Value| {
            let id = text(&batch["id"]);
            let metrics = batch["metrics"].as_array().expect("a list").clone();
            metrics.into_iter().map(move |metric| (metric.to_string(), id.clone()))
        };
        self.list("kept").iter().flat_map(batch).collect()
    }

    /// The metrics of the dead letters.
    fn dead(&self) -> BTreeSet<String> {
        let letter = |line: &Value| -> Value { serde_json::from_str(&text(line)).expect("JSON") };
        self.list("letters").iter().map(|line| letter(line)["metric"].to_string()).collect()
    }

    fn next_seq(&self) -> u64 {
        self.manifest["next_seq"].as_u64().expect("a number")
    }

    /// That `seen` has the entries of the ledger; one that the backend has heard of since is the
    /// same entry.
    #[track_caller]
    fn assert_ledger(&self, seen: &Value) {
        let entries = |list: &[Value]| -> BTreeSet<String> {
            let entry = |loss: &Value| {
                ["id", "reason", "records", "first_seq", "last_seq", "oldest_at", "noticed_at"]
                    .map(|key| loss[key].to_string())
                    .join(" ")
            };
            list.iter().map(entry).collect()
        };
        let seen = entries(seen["losses"].as_array().expect("a list"));
        let missing = &entries(self.list("losses")) - &seen;
        assert!(missing.is_empty(), "{}: {missing:?} of {seen:?}", self.name);
    }
}

/// The metrics of a push.
fn pushed(push: &Recorded) -> Vec<Value> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&push.body[..]).read_to_end(&mut text).expect("gzip");
    let push: Value = serde_json::from_slice(&text).expect("JSON");
    push["metrics"].as_array().expect("a list").clone()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn told(done: &Finished) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// Without an agent `inspect` tells what the version that wrote it told, and changes nothing.
#[test]
fn an_earlier_versions_queue_is_looked_at() {
    for golden in all() {
        let folder = directory();
        golden.unpack(folder.path());
        let config = folder.path().join("agent.toml");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (socket, queue) = (at("control.sock"), at("queue"));
        let lines = format!("[control]\nsocket = '{socket}'\n[queue]\ndir = '{queue}'\n");
        fs_err::write(&config, lines).expect("write");
        let config = config.to_str().expect("UTF-8");
        let ask = |more: &[&str]| run(agent([&["inspect", "--config", config], more].concat()));
        let before = files(&folder.path().join("queue"));
        let seen = told(&ask(&["--json", "--verify"]));
        assert_eq!(seen["queue"]["queue_id"], golden.manifest["queue_id"], "{}", golden.name);
        assert_eq!(seen["queue"]["next_seq"], golden.manifest["next_seq"], "{}", golden.name);
        let damage = |list: &Value| {
            let keys = ["segment", "first_seq", "last_seq", "records"];
            let list = list.as_array().expect("a list").iter();
            list.map(|entry| keys.map(|key| entry[key].clone())).collect::<Vec<_>>()
        };
        let damaged = &golden.manifest["damaged"];
        assert_eq!(damage(&seen["verify"]["damage"]), damage(damaged), "{}", golden.name);
        let export = ask(&["export"]);
        let lines = export.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        // The ids of queue 1 said nothing of the records, and are not made any more.
        let known = |mut line: Value| {
            if golden.name == "queue-1" {
                line.as_object_mut().expect("an object").remove("batch");
            }
            line
        };
        let expected = golden.list("records").iter().cloned().map(known);
        let seen = lines.map(known).collect::<Vec<Value>>();
        assert_eq!(seen, expected.collect::<Vec<_>>(), "{}", golden.name);
        let same = |what: &str, list: &str, keys: &[&str]| {
            let seen = told(&ask(&[what, "--json"]));
            let part = |value: &Value| keys.iter().map(|key| value[*key].clone()).collect();
            let parts = |list: &[Value]| list.iter().map(part).collect::<Vec<Vec<Value>>>();
            let seen = parts(seen[list].as_array().expect("a list"));
            assert_eq!(seen, parts(golden.list(list)), "{}: {what}", golden.name);
        };
        same(
            "segments",
            "segments",
            &["id", "state", "records", "first_seq", "last_seq", "windows"],
        );
        same("batches", "batches", &["segment", "state", "records", "first_seq"]);
        same("quarantine", "quarantine", &["name", "kind"]);
        golden.assert_ledger(&told(&ask(&["ledger", "--json"])));
        let letters = told(&ask(&["dead", "--json"]));
        assert_eq!(letters["dead"]["letters"], golden.list("letters").len(), "{letters}");
        assert!(files(&folder.path().join("queue")) == before, "the directory has changed");
    }
}

/// Q1, Q4, Q5, Q8: an agent of this version goes on where that of an earlier version was.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_versions_queue_is_delivered() {
    for golden in all() {
        deliver(&golden).await;
    }
}

async fn deliver(golden: &Golden) {
    let (site, place) = site_of(golden).await;
    site.proxy.set(Network::Down);
    let agent = crate::intake::run(&site, &place);

    // A key of the intake is known, and new records have new numbers.
    let key = &golden.manifest["key"];
    let (name, body) = (text(&key["key"]), text(&key["body"]));
    let again = place.push(&[("Idempotency-Key", &name)], body.as_bytes()).expect("an answer");
    let expected = (200, Some(true), &key["inserted"]);
    let answer = (again.status, again.body["duplicate"].as_bool(), &again.body["metrics_inserted"]);
    assert_eq!(answer, expected, "{again:?}");
    let added: Vec<Value> = (NEW..NEW + 5).map(metric).collect();
    assert_eq!(place.push(&[], &push_of(&added)).expect("an answer").inserted(), 5);
    let exported = site.command(&["inspect", "export"]);
    let lines = exported.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let new: Vec<Value> = lines.filter(|line: &Value| added.contains(&line["metric"])).collect();
    let given = |line: &Value| line["seq"].as_u64() >= Some(golden.next_seq());
    assert!(new.len() == added.len() && new.iter().all(given), "{}: {new:?}", golden.name);

    // What waits is delivered under its ids, and the followed log goes on.
    site.proxy.set(Network::Up);
    let waiting = golden.waiting();
    let expected = waiting.len() + added.len() + 1;
    until_async("what waits is delivered", LIMIT, || async {
        site.stored().await.len() >= expected
    })
    .await;
    until("it is noted", LIMIT, || site.queue_number("records") == 0);
    let stored = by_document(&site);
    assert_same_batches(golden, &waiting, &stored);
    golden.assert_ledger(&told(&site.command(&["inspect", "ledger", "--json"])));
    assert_corrupt(golden, &site);

    // What is kept is kept, and can be sent again; so can the dead letters.
    let held: BTreeSet<String> = told(&site.command(&["inspect", "batches", "--json"]))["batches"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|batch| batch["state"] == "kept")
        .map(|batch| text(&batch["id"]))
        .collect();
    let kept = golden.kept();
    let kept_batches: BTreeSet<&String> = kept.values().collect();
    assert!(held.len() >= kept_batches.len(), "{}: {held:?}", golden.name);
    // This host is another collector than the one that delivered them.
    says(&site.command(&["replay", "--delivered", "--twice"]), 0, &["delivered "]);
    let stored = by_document(&site);
    assert_same_batches(golden, &kept, &stored);
    says(&site.command(&["replay", "--dead"]), 0, &["delivered "]);
    agent.stop();

    let mut all: BTreeSet<String> = golden.records().into_keys().collect();
    all.extend(golden.dead());
    all.extend(added.iter().map(Value::to_string));
    let mut stored = documents(&site);
    let log = stored.iter().position(|document| document["entries"][0]["level"] == "LOG");
    stored.remove(log.expect("the entry of the log"));
    let count = stored.len();
    let stored: BTreeSet<String> = stored.iter().map(Value::to_string).collect();
    let (lost, strange) = (&all - &stored, &stored - &all);
    assert!(lost.is_empty() && strange.is_empty(), "{}: {lost:?}, {strange:?}", golden.name);
    assert_eq!(count, stored.len(), "{}: each once", golden.name);
}

/// What was one batch to that version is one batch now.
fn assert_same_batches(
    golden: &Golden,
    then: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) {
    let mut ids: BTreeMap<&String, &String> = BTreeMap::new();
    for (metric, batch) in then {
        let id = now.get(metric).unwrap_or_else(|| panic!("{}: no {metric}", golden.name));
        assert_eq!(ids.entry(batch).or_insert(id), &id, "{}: {metric}", golden.name);
    }
    let distinct: BTreeSet<_> = ids.values().collect();
    assert_eq!(distinct.len(), ids.len(), "{}: {ids:?}", golden.name);
}

/// A site whose agent has the queue, keeps what is delivered, has an intake and follows a log.
async fn site_of(golden: &Golden) -> (Site, Place) {
    let site = Site::registered().await;
    golden.unpack(site.queue().parent().expect("a folder"));
    let log = site.directory.path().join("log");
    let (site, place) = crate::intake::with_intake(site, "");
    let text = fs_err::read_to_string(site.config()).expect("read");
    let follow = format!(
        "[pg_log]\ninterval = \"200ms\"\ntimeout = \"200ms\"\npath = '{}'\n\
         line_prefix = \"%m [%p] \"\ntimezone = \"UTC\"\n",
        log.display()
    );
    let text = text
        .replace("[queue]\n", "[queue]\nretain_delivered = \"64MiB\"\n")
        .replace("[sysstat]\ninterval = \"100ms\"", "[sysstat]\nenabled = false")
        .replace("[disk_usage]\ninterval = \"500ms\"", "[disk_usage]\nenabled = false")
        .replace("[pg_log]\nenabled = false\n", &follow);
    fs_err::write(site.config(), text).expect("write");
    // Written since: it is read from its start, because the place of the log before it is known.
    // Without one the agent would begin at its end.
    fs_err::create_dir(&log).expect("make a folder");
    let file = log.join("next.log");
    fs_err::write(&file, "2026-03-01 12:00:00.000 UTC [7] LOG:  two\n").expect("write a log");
    let then = SystemTime::from(clock::now()) - Duration::from_secs(5);
    let file = fs_err::File::options().append(true).open(&file).expect("open");
    file.file().set_times(FileTimes::new().set_modified(then)).expect("set the time");
    (site, place)
}

/// What was damaged when the earlier version ended is in the ledger, and nothing else is new there.
#[track_caller]
fn assert_corrupt(golden: &Golden, site: &Site) {
    let ledger = told(&site.command(&["inspect", "ledger", "--json"]));
    let known: BTreeSet<_> = golden.list("losses").iter().map(|l| l["id"].as_u64()).collect();
    let new = ledger["losses"].as_array().expect("a list").iter();
    let new: Vec<_> = new
        .filter(|loss| !known.contains(&loss["id"].as_u64()))
        .map(|loss| json!([loss["reason"], loss["first_seq"], loss["last_seq"], loss["records"]]))
        .collect();
    let damaged = golden.list("damaged").iter();
    let damaged: Vec<_> = damaged
        .map(|part| json!(["corrupt", part["first_seq"], part["last_seq"], part["records"]]))
        .collect();
    assert_eq!(new, damaged, "{}", golden.name);
}

fn rows(site: &Site) -> Vec<(Option<String>, Value)> {
    let file = site.served.config.data_dir.join("metrics.db");
    let store = rusqlite::Connection::open(file).expect("open the store");
    let sql = "SELECT batch_id, document FROM metrics JOIN pushes ON pushes.id = push_id";
    let mut query = store.prepare(sql).expect("a query");
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?));
    let rows = query.query_map([], row).expect("rows");
    rows.map(|row| {
        let (batch, document) = row.expect("a row");
        (batch, serde_json::from_str(&document).expect("JSON"))
    })
    .collect()
}

fn documents(site: &Site) -> Vec<Value> {
    rows(site).into_iter().map(|(_, document)| document).collect()
}

/// The batch that each metric was stored with.
fn by_document(site: &Site) -> BTreeMap<String, String> {
    let batch = |(batch, document): (Option<String>, Value)| Some((document.to_string(), batch?));
    rows(site).into_iter().filter_map(batch).collect()
}
