//! `agent`: the agent's own health as a metric, held against what the agent says elsewhere and
//! against what the system says of its process; and a backend that does not know the type.

use std::time::Duration;

use jiff::Timestamp;
use pganalytics::encoding;
use pganalytics::metric::envelope::PushRequest;
use serde_json::{Value, json};

use crate::operator::Host;
use crate::support::backend_stub::{Recorded, Reply};
use crate::support::process::{Process, agent, run};
use crate::support::site::Site;
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(60);

/// What the system says of a process: CPU seconds, and bytes written to disks.
fn system_says(process: &Process) -> (f64, u64) {
    let read = |name: &str| {
        fs_err::read_to_string(format!("/proc/{}/{name}", process.id())).expect("read")
    };
    // utime and stime are the 14th and 15th field; the second, the name, ends with a bracket.
    let stat = read("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum();
    let io = read("io");
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("a line");
    (ticks / 100.0, written.parse().expect("a number"))
}

fn status(site: &Site) -> Value {
    let done = site.command(&["status", "--json"]);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// The newest document of the type that the backend has, read after `since`.
async fn newest(site: &Site, since: Timestamp) -> Value {
    let mut found = None;
    until_async("a document of the agent", LIMIT, || async {
        let stored = site.stored().await;
        stored.iter().any(|metric| metric.kind == "agent" && metric.at > since)
    })
    .await;
    for metric in site.stored().await {
        if metric.kind == "agent" && found.as_ref().is_none_or(|(at, _)| *at < metric.at) {
            found = Some((metric.at, metric.document));
        }
    }
    let (_, document) = found.expect("one");
    serde_json::from_str(&document).expect("JSON")
}

/// Every counter of the document lies between what `agent status` and the system said before it
/// and after.
#[tokio::test(flavor = "multi_thread")]
async fn its_numbers_are_those_of_status_and_of_the_system() {
    let site = Site::registered().await;
    let config = fs_err::read_to_string(site.config()).expect("read");
    let on = config.replace("[agent]\nenabled = false\n", "[agent]\ninterval = \"200ms\"\n");
    assert_ne!(on, config);
    fs_err::write(site.config(), on).expect("write");
    let agent = site.run();
    site.until_stored(20).await;
    let (first, said_first) = (status(&site), system_says(&agent));
    let health = newest(&site, pganalytics::clock::now()).await;
    let (last, said_last) = (status(&site), system_says(&agent));
    let collector = |status: &Value| {
        let all = status["collectors"].as_array().expect("a list").clone();
        all.into_iter().find(|one| one["name"] == "sysstat").expect("sysstat")
    };
    let between = |field: &str, low: &Value, high: &Value| {
        let value = health.pointer(field).and_then(Value::as_f64);
        let (value, low) = (value.unwrap_or_else(|| panic!("{field}: {health}")), low.as_f64());
        let range = low.expect("a number")..=high.as_f64().expect("a number");
        assert!(range.contains(&value), "{field}: {value} of {range:?}");
    };
    for (field, pointer) in [
        ("/queue/records_appended", "/queue/counts/appended_records"),
        ("/queue/bytes_appended", "/queue/counts/appended_bytes"),
        ("/queue/bytes_max", "/queue/bytes_max"),
        ("/ring/bytes_max", "/queue/ring_bytes_max"),
        ("/forwarder/batches_delivered", "/queue/counts/delivered_batches"),
        ("/forwarder/records_delivered", "/queue/counts/delivered_records"),
        ("/forwarder/bytes_sent", "/backend/sent_bytes"),
    ] {
        let of = |status: &Value| status.pointer(pointer).expect(pointer).clone();
        between(field, &of(&first), &of(&last));
    }
    let (before, after) = (collector(&first), collector(&last));
    for (field, name) in [("runs", "runs"), ("metrics", "metrics"), ("failures", "failures")] {
        between(&format!("/collectors/sysstat/{field}"), &before[name], &after[name]);
    }
    between("/collectors/sysstat/cpu_ms", &before["cpu_ms"], &after["cpu_ms"]);
    assert!(before["cpu_ms"].as_u64() > Some(0), "{before}");
    // The system counts in hundredths of a second, and rounds.
    let cpu = (json!(said_first.0 - 0.03), json!(said_last.0 + 0.03));
    between("/cpu_s", &cpu.0, &cpu.1);
    between("/device_bytes_written", &said_first.1.into(), &said_last.1.into());
    assert_eq!(health["started_at"].as_str().map(str::len), Some("2026-01-01T00:00:00.000Z".len()));
    let time = |value: &Value| value.as_str().expect("a time").parse::<Timestamp>().expect("one");
    let apart = time(&health["started_at"]).duration_since(time(&last["started_at"]));
    assert!(apart.abs().as_millis() <= 1, "{apart}");
    between("/rss_bytes", &json!(1 << 20), &json!(1 << 30));
    assert_eq!(health["forwarder"]["state"], "flowing");
    assert_eq!(
        health["lost"],
        json!({
            "ranges": 0, "records": 0, "rejected": 0, "evicted": 0, "refused": 0, "corrupt": 0,
        })
    );
    agent.stop();
}

/// The metrics of a push, and those of them that are the agent's.
fn pushed(request: &Recorded) -> (usize, Vec<usize>) {
    let text = encoding::inflate(None, request.body.clone(), 1 << 20).expect("a body");
    let envelope = PushRequest::parse(&text).expect("an envelope");
    let is_health = |(_, metric): &(usize, &&serde_json::value::RawValue)| {
        metric.get().contains(r#""type":"agent""#)
    };
    let health = envelope.metrics.iter().enumerate().filter(is_health);
    (envelope.metrics.len(), health.map(|(place, _)| place).collect())
}

/// What an original backend says of a push, in one of the two ways that there are.
fn original(request: &Recorded, status: u16) -> Reply {
    let (records, health) = pushed(request);
    if health.is_empty() {
        return Reply::status(200);
    }
    let message = "Unknown metric type: \"agent\"";
    if status == 200 {
        let rejected = health.iter().map(|n| json!({"index": n, "message": message}));
        let rejected: Vec<_> = rejected.collect();
        let body = json!({"status": "success", "metrics_inserted": records, "rejected": rejected});
        return Reply::with(200, &[], &body.to_string());
    }
    Reply::with(status, &[], &json!({"error": "bad_request", "message": message}).to_string())
}

/// Section 5: a backend that does not know the type is asked once; nothing of it comes into the
/// dead letters, nobody is alarmed, and the ledger has what was not delivered. Another version gets
/// it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_know_the_type_gets_it_once() {
    for answer in [200, 400] {
        let host = Host::new("200ms").await;
        let file = host.path("agent.toml");
        let config = fs_err::read_to_string(&file).expect("read");
        let on = config.replace("[agent]\nenabled = false\n", "[agent]\ninterval = \"100ms\"\n");
        assert_ne!(on, config);
        fs_err::write(&file, on).expect("write");
        host.stub.answer_pushes(move |request| original(request, answer));
        let process = host.start();
        let asked = || host.json(&["status", "--json"]);
        until("it runs", LIMIT, || process.stderr().contains("the agent runs"));
        until("it is refused", LIMIT, || asked()["backend"]["refuses_health"] == true);
        let health = || {
            let pushes = host.stub.requests().into_iter().filter(|it| it.path.ends_with("push"));
            pushes.map(|push| pushed(&push).1.len()).sum::<usize>()
        };
        let runs = |status: &Value| status["collectors"][4]["runs"].as_u64().expect("a number");
        // Of a batch that was packed meanwhile nothing is known here: the next runs count.
        let begun = runs(&asked()) + 5;
        until("it goes on", LIMIT, || runs(&asked()) >= begun && host.queued("records") <= 1);
        let (sent, now) = (health(), asked());
        assert!(sent > 0, "{now}");
        until("it goes on", LIMIT, || runs(&asked()) >= begun + 10);
        assert_eq!(health(), sent, "none is sent again");
        let counts = &asked()["queue"]["counts"];
        assert_eq!(counts["refused_records"], 0, "{counts}");
        assert!(counts["unknown_records"].as_u64() > Some(0), "{counts}");
        assert_eq!(host.ask(&["status"]).code, Some(0), "nobody is alarmed");
        assert!(!host.path("queue/dead.ndjson").exists());
        let ledger = host.json(&["inspect", "ledger", "--json"]);
        assert!(ledger.to_string().contains("refuse"), "{ledger}");
        let log = process.stderr();
        assert_eq!(log.matches("does not know metrics of type `agent`").count(), 1, "{log}");
        assert!(!log.contains("they go to the dead letters"), "{log}");

        // An outage, after which the backend is another version.
        host.stub.say_version("2.0.0");
        host.stub.answer_pushes(|_| Reply::status(503));
        until("it is down", LIMIT, || asked()["backend"]["forwarding"] != "flowing");
        host.stub.answer_pushes(|_| Reply::status(200));
        until("it is sent again", LIMIT, || health() > sent);
        assert!(asked()["backend"]["refuses_health"].is_null());
        process.stop();
    }
}

/// Without a running agent there is nothing to tell: the command says where it is.
#[test]
fn it_is_not_collected_by_a_command() {
    let done = run(agent(["collect", "agent"]));
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), ""), "{done:?}");
    assert!(done.stderr.contains("hint: `agent status --json`"), "{done:?}");
}
