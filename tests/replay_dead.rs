//! Dead letters get another chance: what the backend takes now leaves them, the rest stays with its
//! attempts.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::operator::{Host, says};
use crate::support::backend_stub::Reply;
use crate::support::process::Finished;
use crate::support::shim::{Call, Fault, Faults, How};
use crate::support::until;

const SOON: Duration = Duration::from_secs(30);

/// An answer that refuses the records at `places`.
fn refusing(places: &[usize]) -> Reply {
    let rejected: Vec<Value> = places
        .iter()
        .map(|index| json!({"index": index, "path": "cpu", "message": "out of fashion"}))
        .collect();
    let body = json!({
        "status": "success", "collector_id": "c", "metrics_inserted": 1, "bytes_received": 1,
        "processing_time_ms": 1, "next_config_version": 0, "next_check_in_seconds": 60,
        "rejected": rejected,
    });
    Reply::with(200, &[], &body.to_string())
}

fn letters(host: &Host) -> Vec<Value> {
    let text = fs_err::read_to_string(host.path("queue/dead.ndjson")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The batch ids that the backend has seen since the `count`-th request.
fn ids(host: &Host, count: usize) -> Vec<String> {
    let requests = host.stub.requests();
    requests[count..].iter().map(|seen| seen.header("idempotency-key").to_owned()).collect()
}

/// An agent that has been killed with at least `count` dead letters.
async fn refused(count: usize) -> Host {
    let host = Host::new("300ms").await;
    host.stub.reply(vec![refusing(&[0]); 100_000]);
    let mut process = host.start();
    until("records are refused", SOON, || letters(&host).len() >= count);
    process.kill();
    host.stub.forget_replies();
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_sent_again_until_they_are_taken() {
    let host = refused(3).await;
    let before = letters(&host);
    let requests = host.stub.requests().len();

    let plan = host.json(&["replay", "--dead", "--dry-run", "--json"]);
    assert_eq!(plan["records"].as_u64(), Some(before.len() as u64), "{plan}");
    assert_eq!(host.stub.requests().len(), requests, "a dry run sends nothing");

    // The backend still refuses the second one.
    host.stub.reply([refusing(&[1])]);
    says(&host.ask(&["replay", "--dead"]), 2, &["delivered 1 of 1", "1 record: refused"]);
    let [left] = &letters(&host)[..] else { panic!("{:?}", letters(&host)) };
    assert_eq!((&left["seq"], &left["metric"]), (&before[1]["seq"], &before[1]["metric"]));
    assert_eq!((left["attempts"].as_u64(), &left["message"]), (Some(2), &json!("out of fashion")));

    // Refused alone, it stays and nothing is delivered.
    host.stub.reply([refusing(&[0])]);
    says(&host.ask(&["replay", "--dead"]), 1, &["1 record: refused"]);
    assert_eq!(letters(&host)[0]["attempts"].as_u64(), Some(3));

    // The backend takes it now. Each try had an id of its own: a backend answers one that it knows
    // from its memory.
    says(&host.ask(&["replay", "--dead"]), 0, &["delivered 1 of 1 batch (1 record)"]);
    assert!(letters(&host).is_empty());
    let mut tried = ids(&host, requests);
    assert_eq!(tried.len(), 3);
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), 3, "{tried:?}");
    says(&host.ask(&["replay", "--dead"]), 0, &["nothing to send"]);
}

/// The same by a running agent, which goes on to add to the dead letters meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_sends_its_dead_letters() {
    let host = refused(2).await;
    let before = letters(&host);
    let process = host.start();
    until("the agent answers", SOON, || host.ask(&["status"]).code == Some(0));
    says(&host.ask(&["replay", "--dead"]), 0, &["delivered "]);
    let left = letters(&host);
    assert!(before.iter().all(|letter| !left.contains(letter)), "{left:?}");
    process.stop();
}

/// A line that a crash has torn swallows no letter, and a letter in which a byte has changed is not
/// sent: both are named, and stay; the others go.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_letter_costs_no_other() {
    const TORN: &str = "{\"at\":\"x\",\"seq\":0,\"metr";
    let host = Host::new("300ms").await;
    let file = host.path("queue/dead.ndjson");
    fs_err::create_dir_all(host.path("queue")).expect("make the queue's directory");
    fs_err::write(&file, TORN).expect("write a torn line");
    host.stub.reply(vec![refusing(&[0]); 100_000]);
    let mut process = host.start();
    let read = || fs_err::read_to_string(&file).expect("read the letters");
    until("records are refused", SOON, || read().lines().count() > 3);
    process.kill();
    host.stub.forget_replies();
    let text = read();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], TORN, "nothing is added to it");
    let sound = lines.len() as u64 - 1;
    says(&host.ask(&["inspect", "dead"]), 2, &["1 damaged line", "damaged on disk", TORN]);
    let seen = host.json(&["inspect", "dead", "--json"]);
    assert_eq!((&seen["dead"]["letters"], &seen["dead"]["damaged"]), (&json!(sound), &json!(1)));

    let flipped = lines[2].replace("\"seq\":", "\"seQ\":");
    fs_err::write(&file, text.replace(lines[2], &flipped)).expect("damage a letter");
    let seen = host.json(&["inspect", "dead", "--json"]);
    assert_eq!((&seen["dead"]["damaged"], &seen["letters"][2]), (&json!(2), &json!(flipped)));
    let plan = host.ask(&["replay", "--dead", "--dry-run"]);
    says(&plan, 0, &["2 records: damaged on disk"]);

    let requests = host.stub.requests().len();
    says(&host.ask(&["replay", "--dead"]), 2, &["delivered 1 of 1", "2 records: damaged on disk"]);
    assert_eq!(ids(&host, requests).len(), 1);
    assert_eq!(read(), [TORN, &flipped, ""].join("\n"), "both stay as they are");
    says(&host.ask(&["replay", "--dead"]), 1, &["2 records: damaged on disk"]);
}

/// A batch whose answer is lost is sent again under the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_the_same_id() {
    let host = refused(2).await;
    let requests = host.stub.requests().len();
    host.stub.reply(vec![Reply::status(503); 3]);
    says(&host.ask(&["replay", "--dead"]), 0, &["delivered "]);
    let tried = ids(&host, requests);
    assert_eq!(tried.len(), 4);
    assert!(tried.iter().all(|id| *id == tried[0]), "{tried:?}");
    assert!(letters(&host).is_empty());
}

/// A disk that fails while letters are added, in this way: every record that is in the ledger as
/// refused has its letter afterwards, whole.
async fn letters_survive(calls: &[Call], how: How) -> (Host, Finished) {
    let host = Host::new("300ms").await;
    let root = fs_err::canonicalize(host.folder.path()).expect("a path");
    let faults = Faults::new(&root.join("queue"), host.folder.path());
    host.stub.reply(vec![refusing(&[0]); 100_000]);
    let process = host.start_with(|command| faults.strike_in(command));
    let count = || sound(&host).len();
    until("letters are written", SOON, || count() >= 2);
    faults.begin(&Fault { calls: calls.to_vec(), how, files: "dead.ndjson*" });
    until("the disk fails", SOON, || faults.struck() >= 2);
    let before = count();
    faults.end();
    until("letters are written again", SOON, || count() >= before + 2);
    let done = process.stop();
    let ledger = host.json(&["inspect", "ledger", "--json"]);
    let losses = ledger["losses"].as_array().expect("a list").iter();
    let refused: BTreeSet<u64> = losses.filter_map(|loss| loss["first_seq"].as_u64()).collect();
    let there: BTreeSet<u64> = sound(&host).into_iter().collect();
    assert!(refused.is_subset(&there), "{calls:?} {how:?}: {refused:?} of {there:?}");
    (host, done)
}

/// The numbers of the letters that are whole.
fn sound(host: &Host) -> Vec<u64> {
    let text = fs_err::read_to_string(host.path("queue/dead.ndjson")).unwrap_or_default();
    let seq = |line: &str| serde_json::from_str::<Value>(line).ok()?["seq"].as_u64();
    text.lines().filter_map(seq).collect()
}

/// The disk is full in the middle of a letter: nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_half_written_is_taken_back() {
    let (host, _) = letters_survive(&[Call::Write], How::Half).await;
    assert_eq!(host.json(&["inspect", "dead", "--json"])["dead"]["damaged"], 0);
}

/// Nor can it be taken back: what stays is seen, and the next letter is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_stays_half_harms_no_other() {
    let (host, _) = letters_survive(&[Call::Write, Call::Ftruncate], How::Half).await;
    let seen = host.json(&["inspect", "dead", "--json"]);
    assert!(seen["dead"]["damaged"].as_u64() >= Some(1), "{seen}");
}

/// A file whose sync has failed is not trusted: it is written anew.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_could_not_be_synced_are_written_anew() {
    let (host, done) = letters_survive(&[Call::Fsync], How::Error).await;
    assert!(done.stderr.contains("the dead letters are written anew"), "{}", done.stderr);
    assert!(!host.path("queue/dead.ndjson.new").exists(), "the draft of it is gone");
}

/// The same where the new file cannot take the place of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn letters_wait_for_a_disk_that_renames() {
    letters_survive(&[Call::Fsync, Call::Rename, Call::Unlink], How::ReadOnly).await;
}
