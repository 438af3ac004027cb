//! SIGHUP: the file is read again and applied to a running agent.

use std::time::Duration;

use pganalytics::backend::store::Role;
use rustix::process::Signal;
use serde_json::Value;

use crate::intake::{self, metric, push_of, stored_numbers};
use crate::support::intake::head;
use crate::support::process::{Process, agent, run};
use crate::support::site::{Site, assert_distinct};
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// Changes the site's file and has the agent read it; returns when the log says `word` once more.
fn reload(site: &Site, agent: &Process, change: impl FnOnce(String) -> String, word: &str) {
    let said = || agent.stderr().matches(word).count();
    let before = said();
    let text = fs_err::read_to_string(site.config()).expect("read");
    fs_err::write(site.config(), change(text)).expect("write");
    agent.signal(Signal::HUP);
    until(word, LIMIT, || said() > before);
}

/// Asks the agent; its own file may be one that no command reads.
fn status(site: &Site) -> Value {
    let file = site.directory.path().join("ask.toml");
    let socket = site.directory.path().join("state/control.sock");
    fs_err::write(&file, format!("[control]\nsocket = \"{}\"\n", socket.display())).expect("write");
    let done = run(agent(["status", "--json", "--config", file.to_str().expect("UTF-8")]));
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

fn runs(status: &Value, name: &str) -> (bool, u64) {
    let all = status["collectors"].as_array().expect("collectors");
    let one = all.iter().find(|one| one["name"] == name).expect(name);
    (one["enabled"].as_bool().expect("enabled"), one["runs"].as_u64().expect("runs"))
}

const APPLIES: &str = "another configuration applies";
const REFUSED: &str = "the configuration is refused";

/// Sections of a newer original collector are told once each, however often the file is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_section_that_is_passed_over_is_told_once() {
    let site = Site::registered().await;
    site.configure("[pg_locks]\ninterval = 5\n");
    let agent = site.run();
    let more = |text: String| text + "[pg_bloat]\nenabled = true\n";
    reload(&site, &agent, more, "[pg_bloat]: this agent does not collect it");
    reload(&site, &agent, |text| text.replace("\"100ms\"", "\"200ms\""), APPLIES);
    let done = agent.stop();
    for section in ["[pg_locks]", "[pg_bloat]"] {
        let told = format!("{section}: this agent does not collect it");
        assert_eq!(done.stderr.matches(&told).count(), 1, "{section}: {}", done.stderr);
    }
}

/// C24, C26, C28: collectors come and go with the file, the others and the queue go on; what needs
/// a restart is named; a file that is not sound changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_applied_without_a_restart() {
    let site = Site::registered().await;
    let agent = site.run();
    site.until_stored(10).await;
    let off = "[disk_usage]\nenabled = false\n";
    reload(&site, &agent, |text| text.replace("[disk_usage]\n", off), APPLIES);
    let ended = status(&site);
    assert!(!runs(&ended, "disk_usage").0, "{ended}");
    site.until_stored(site.stored().await.len() + 10).await;
    let later = status(&site);
    assert_eq!(runs(&ended, "disk_usage"), runs(&later, "disk_usage"), "it is silent");
    assert!(runs(&later, "sysstat").1 > runs(&ended, "sysstat").1, "the other goes on");

    reload(&site, &agent, |text| text.replace(off, "[disk_usage]\n"), APPLIES);
    let begun = || runs(&status(&site), "disk_usage").1 > runs(&later, "disk_usage").1;
    until("it is back", LIMIT, begun);

    let bad = "[shutdown]\ndedline = \"hunter2\"\n";
    reload(&site, &agent, |text| text.replace("[shutdown]\n", bad), REFUSED);
    assert!(agent.stderr().contains("did you mean `deadline`?"), "{}", agent.stderr());
    let refused = status(&site);
    let error = refused["config"]["file_error"].as_str().expect("an error");
    assert!(error.contains("shutdown.dedline: unknown key"), "{error}");
    // Of a file that may hold passwords anywhere the backend hears no value.
    let token = site.served.user_token(Role::Admin).await;
    let path = format!("/api/v1/collectors/{}", refused["collector_id"].as_str().expect("an id"));
    let mut report = Value::Null;
    for _ in 0..200 {
        site.until_stored(site.stored().await.len() + 1).await;
        let seen = site.served.stranger().get(&path, &token).await.json();
        report = seen["agent"]["config_error"].clone();
        if report.is_string() {
            break;
        }
    }
    let told = report.as_str().expect("a report");
    assert!(told.contains(": unknown key"), "{told}");
    assert!(!told.contains("hunter2") && !told.contains("dedline"), "{told}");

    let more = "[log]\nlevel = \"debug\"\n[control]\nsocket = \"/nowhere.sock\"\n";
    let good = |text: String| text.replace(bad, "[shutdown]\n") + more;
    reload(&site, &agent, good, "needs a restart: control.socket");
    let after = status(&site);
    assert_eq!(after["config"]["file_error"], Value::Null);
    assert_eq!(after["config"]["needs_restart"][0], "control.socket", "{after}");

    let text = fs_err::read_to_string(site.config()).expect("read").replace(more, "");
    fs_err::write(site.config(), text).expect("write");
    let done = agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_distinct(&stored);
}

/// The push interval, the queue's budget and the forwarder's pauses change while a backlog waits,
/// and the backlog is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn limits_and_intervals_change_under_a_backlog() {
    let mut site = Site::registered().await;
    let agent = site.run();
    site.until_stored(3).await;
    site.served.stop().await;
    until("a backlog", LIMIT, || site.queue_number("records") >= 10);
    let change = |text: String| {
        text.replace("push_interval = \"300ms\"", "push_interval = \"1h\"")
            .replace("backoff_max = \"200ms\"", "backoff_max = \"1h\"")
            .replace("[queue]\n", "[queue]\nbytes_max = \"64MiB\"\nring_bytes_max = 0\n")
    };
    reload(&site, &agent, change, APPLIES);
    let bytes_max = || site.inspect()["queue"]["bytes_max"].as_u64();
    assert_eq!(bytes_max(), Some(64 << 20), "the running queue has it");
    let back = |text: String| {
        text.replace("push_interval = \"1h\"", "push_interval = \"200ms\"")
            .replace("backoff_max = \"1h\"", "backoff_max = \"100ms\"")
    };
    site.served.resume().await;
    reload(&site, &agent, back, APPLIES);
    until_async("the backlog is delivered", LIMIT, || async { site.queue_number("records") < 10 })
        .await;
    agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"));
    assert_distinct(&stored);
}

/// An intake with another setting finishes what it has begun to read, listens again at the same
/// place, and has forgotten nothing; one that is switched off takes nothing, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn an_intake_is_replaced_between_two_requests() {
    let (site, place) = intake::site("").await;
    let agent = intake::run(&site, &place);
    let applied = || status(&site)["config"]["applied_at"].clone();
    let change = |from: &str, to: &str| {
        let before = applied();
        reload(&site, &agent, |text| text.replace(from, to), APPLIES);
        until("it is applied", LIMIT, || applied() != before);
    };
    let taken = |n| place.push(&[], &push_of(&[metric(n)])).is_ok_and(|it| it.status == 200);

    let mut begun = place.connect().expect("connect");
    let body = push_of(&[metric(0)]);
    let ask = [("Expect", "100-continue")];
    begun.send(head("POST /api/v1/metrics/push", &ask, body.len()).as_bytes()).expect("send");
    assert!(begun.line().expect("an answer").starts_with("HTTP/1.1 100"));
    begun.line().expect("the end of it");
    change("[intake]\n", "[intake]\nconnections_max = 1\n");
    begun.send(&body).expect("send");
    let answer = begun.answer().expect("it is finished");
    assert_eq!((answer.status, answer.inserted()), (200, 1), "{answer:?}");
    assert!(begun.is_ended(), "the earlier intake is gone");
    until("it listens again", LIMIT, || taken(1));

    change("listen = \"unix:", "#listen = \"unix:");
    until("it is off", LIMIT, || place.connect().is_err());
    site.until_stored(site.stored().await.len() + 5).await;
    change("#listen = \"unix:", "listen = \"unix:");
    until("it is back", LIMIT, || taken(2));
    agent.stop();
    assert_eq!(stored_numbers(&site).await, [0, 1, 2]);
}
