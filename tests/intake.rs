//! The intake: what it takes, what it answers, and that an answer is a promise.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use jiff::SignedDuration;
use pganalytics::backend::store::StoredMetric;
use pganalytics::clock;
use serde_json::{Value, json};

use crate::support::backend_stub::set_mode;
use crate::support::intake::{Answer, Place, head};
use crate::support::port::Port;
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A registered site whose agent takes pushes on a Unix socket; `more` keys of `[intake]`.
pub async fn site(more: &str) -> (Site, Place) {
    with_intake(Site::registered().await, more)
}

/// Gives the host of a site an intake.
pub fn with_intake(site: Site, more: &str) -> (Site, Place) {
    let socket = site.directory.path().join("run/intake.sock");
    site.configure(&format!("[intake]\nlisten = \"unix:{}\"\n{more}\n", socket.display()));
    (site, Place::Unix(socket))
}

/// Starts the agent and waits until its intake listens.
#[track_caller]
pub fn run(site: &Site, place: &Place) -> Process {
    let agent = site.run();
    until("the intake listens", LIMIT, || place.connect().is_ok());
    agent
}

/// A sound metric with a number of its own.
pub fn metric(n: u64) -> Value {
    let at = jiff::Timestamp::from_second(1_767_225_600 + i64::try_from(n).expect("small"));
    json!({"type": "custom.test", "timestamp": at.expect("in range"), "n": n})
}

/// A push of these.
pub fn push_of(metrics: &[Value]) -> Vec<u8> {
    json!({"metrics": metrics}).to_string().into_bytes()
}

/// The numbers of the test's metrics that the backend has, sorted.
pub async fn stored_numbers(site: &Site) -> Vec<u64> {
    let is_own = |metric: &&StoredMetric| metric.kind == "custom.test";
    let number = |metric: &StoredMetric| {
        let document: Value = serde_json::from_str(&metric.document).expect("JSON");
        document["n"].as_u64().expect("a number")
    };
    let stored = site.stored().await;
    let mut numbers: Vec<u64> = stored.iter().filter(is_own).map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Waits until everything that is queued is delivered, and gives the numbers at the backend.
pub async fn delivered(site: &Site, agent: Process) -> Vec<u64> {
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    agent.stop();
    stored_numbers(site).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

fn lines(metrics: &[Value]) -> Vec<u8> {
    metrics.iter().map(|metric| metric.to_string() + "\n").collect::<String>().into_bytes()
}

/// Every form of a body that the contract names arrives at the backend, as it came.
#[tokio::test(flavor = "multi_thread")]
async fn every_encoding_is_delivered() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let json = [("Content-Type", "application/json")];
    let ndjson = [("Content-Type", "application/x-ndjson; charset=utf-8")];
    let gzipped = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    let of = |n| push_of(&[metric(n), metric(n + 1)]);
    let lines_of = |n| lines(&[metric(n), metric(n + 1)]);
    let zstd = |bytes: Vec<u8>| zstd::stream::encode_all(&bytes[..], 1).expect("to memory");
    let bodies: [(Headers, Vec<u8>); 9] = [
        (&json, of(0)),
        (&[], of(2)),
        (&gzipped, gzip(&of(4))),
        (&json, gzip(&of(6))),
        (&[("Content-Encoding", "zstd")], zstd(of(8))),
        (&gzipped, zlib(&of(10))),
        (&ndjson, lines_of(12)),
        (&[], lines_of(14)),
        (
            &[("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip")],
            gzip(&lines_of(16)),
        ),
    ];
    let mut connection = place.connect().expect("a connection");
    for (headers, body) in bodies {
        let answer = connection.push(headers, &body).expect("an answer");
        let expected = json!({"status": "success", "metrics_inserted": 2, "rejected": []});
        assert_eq!((answer.status, answer.body), (200, expected), "{headers:?}");
    }
    assert_eq!(delivered(&site, agent).await, (0..18).collect::<Vec<_>>());
}

/// What the intake takes, the backend takes: both refuse keys that stand twice, take keys that mean
/// something to a program of theirs as they are, and read a packed body to its end.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_is_stored_as_it_came() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let of = |more: &str| {
        format!(r#"{{{more}"type":"custom.keys","timestamp":"2026-01-01T00:00:00Z"}}"#)
    };
    let key = "$serde_json::private::RawValue";
    let sound = [
        of(""),
        of(&format!(r#""{key}":"{{\"type\":\"sysstat\"}}","#)),
        of(&format!(r#""{key}":"no json","#)),
        of(&format!(r#""{key}":7,"#)),
        of(&format!(r#""a":[{{"{key}":{{}}}}],"#)),
    ];
    let twice = [of(r#""a":1,"a":1,"#), of(r#""a":{"b":[{"c":1,"d":2,"c":3}]},"#)];
    let all: Vec<&str> = sound.iter().chain(&twice).map(String::as_str).collect();
    let body = format!("{{\"metrics\":[{}]}}", all.join(",")).into_bytes();
    let (first, second) = body.split_at(body.len() / 2);
    let answer = place.push(&[], &[gzip(first), gzip(second)].concat()).expect("an answer");
    assert_eq!((answer.status, answer.inserted()), (200, 5), "{answer:?}");
    let rejected = answer.body["rejected"].as_array().expect("a list");
    let named: Vec<_> = rejected.iter().map(|reject| reject["index"].as_u64()).collect();
    assert_eq!(named, [Some(5), Some(6)], "{answer:?}");
    for reject in rejected {
        assert_eq!(reject["message"], "a key stands twice in one object");
    }
    let mut cut = zlib(&body);
    cut.truncate(cut.len() / 2);
    for damaged in [[zlib(first), zlib(second)].concat(), cut] {
        let answer = place.push(&[], &damaged).expect("an answer");
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    until("everything is delivered", LIMIT, || site.queue_number("records") < 20);
    let done = agent.stop();
    assert!(!done.stderr.contains("the backend refused"), "{}", done.stderr);
    let stored = site.stored().await;
    let stored = stored.into_iter().filter(|metric| metric.kind == "custom.keys");
    let mut stored: Vec<String> = stored.map(|metric| metric.document).collect();
    stored.sort_unstable();
    let mut expected = sound.to_vec();
    expected.sort_unstable();
    assert_eq!(stored, expected);
}

/// C3, C4, C5: the bad ones are named, the sound ones taken; an empty push is fine.
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_metric_harms_no_other() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let bad = json!({"type": "sysstat", "timestamp": "2026-01-01T00:00:00Z", "cpu": {"user": 101}});
    let unknown = json!({"type": "sysstatt", "timestamp": "2026-01-01T00:00:00Z"});
    let body = push_of(&[metric(1), bad, metric(2), unknown, json!(5), metric(3)]);
    let answer = place.push(&[], &body).expect("an answer");
    assert_eq!((answer.status, answer.inserted()), (200, 3), "{answer:?}");
    let rejected = answer.body["rejected"].as_array().expect("a list");
    let named = |reject: &Value| (reject["index"].as_u64(), reject["path"].clone());
    let named: Vec<_> = rejected.iter().map(named).collect();
    let path = |path: &str| Value::from(path);
    assert_eq!(named, [(Some(1), path("cpu.user")), (Some(3), path("type")), (Some(4), path(""))]);
    let message = rejected[1]["message"].as_str().expect("a message");
    assert!(message.contains("Unknown metric type"), "{message}");
    let none = place.push(&[], br#"{"metrics":[]}"#).expect("an answer");
    assert_eq!((none.status, none.inserted()), (200, 0));
    let all_bad = place.push(&[], &push_of(&[json!({})])).expect("an answer");
    assert_eq!((all_bad.status, all_bad.inserted()), (200, 0));

    let status = site.command(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    let intake = &status["intake"];
    assert_eq!((&intake["metrics"], &intake["rejects"]), (&json!(3), &json!(4)), "{status}");
    assert_eq!((&intake["requests"], &intake["refused"]), (&json!(3), &json!(0)), "{status}");
    let page = site.command(&["status"]).stdout;
    assert!(page.contains("3 metrics taken, 4 rejected, 0 of 3 requests refused"), "{page}");
    assert_eq!(delivered(&site, agent).await, [1, 2, 3]);
}

/// Each answer of `docs/INTAKE.md` that a request alone can bring about, in the contract's form.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_contracts_form() {
    let (site, place) = site("body_bytes_max = \"4KiB\"\ntimeout = \"1s\"").await;
    let _agent = run(&site, &place);
    let check = |answer: Answer, status: u16, error: &str| {
        assert_eq!((answer.status, answer.error()), (status, error), "{answer:?}");
        assert_eq!(answer.body["code"], json!(status));
        assert!(!answer.body["message"].as_str().expect("a message").is_empty());
        answer
    };
    let ask = |target: &str, headers: &[(&str, &str)]| {
        let mut connection = place.connect().expect("a connection");
        connection.send(head(target, headers, 0).as_bytes()).expect("sent");
        connection.answer().expect("an answer")
    };
    let push =
        |headers: &[(&str, &str)], body: &[u8]| place.push(headers, body).expect("an answer");
    check(ask("POST /", &[]), 404, "not_found");
    let answer = check(ask("GET /api/v1/metrics/push", &[]), 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("post"));
    check(ask("POST /api/v1/metrics/push", &[("Origin", "http://a.example")]), 403, "forbidden");
    check(push(&[], b""), 400, "bad_request");
    check(push(&[], b"{\"metrics\":"), 400, "bad_request");
    let answer = check(push(&[], b"{\"metrics\":5}"), 400, "bad_request");
    assert!(answer.body["message"].as_str().expect("text").contains("expected an array"));
    let answer = check(push(&[], br#"{"metrics":[],"version":1}"#), 400, "bad_request");
    assert_eq!(answer.body["details"], json!({"path": "version"}));
    check(push(&[("Idempotency-Key", "")], b"{}"), 400, "bad_request");
    check(push(&[("Idempotency-Key", &"k".repeat(129))], b"{}"), 400, "bad_request");
    check(push(&[], &gzip(b"{}")[..12]), 400, "bad_request");
    check(push(&[("Content-Encoding", "br")], b"{}"), 415, "unsupported_encoding");

    // Over the limit: announced, found out on the way, and after inflating.
    let large = vec![b' '; 5 << 10];
    check(push(&[], &large), 413, "payload_too_large");
    let mut connection = place.connect().expect("a connection");
    let head =
        "POST /api/v1/metrics/push HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes()).expect("sent");
    connection.send(format!("{:x}\r\n", large.len()).as_bytes()).expect("sent");
    connection.send(&large).expect("sent");
    connection.send(b"\r\n0\r\n\r\n").expect("sent");
    check(connection.answer().expect("an answer"), 413, "payload_too_large");
    check(push(&[("Content-Encoding", "gzip")], &gzip(&large)), 413, "payload_too_large");

    // A body that does not come.
    let promised = self::head("POST /api/v1/metrics/push", &[], 10);
    let mut connection = place.connect().expect("a connection");
    connection.send(promised.as_bytes()).expect("sent");
    check(connection.answer().expect("an answer"), 408, "request_timeout");
    assert!(connection.is_ended(), "half a request is followed by nothing sound");
}

/// One key is one push, whether its requests come together, after a restart or after a kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_takes_nothing() {
    let (site, place) = site("").await;
    let mut agent = run(&site, &place);
    let body = push_of(&[metric(1), json!({}), metric(2)]);
    let again =
        |place: &Place| place.push(&[("Idempotency-Key", "nightly-1")], &body).expect("an answer");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..8).map(|_| scope.spawn(|| again(&place))).collect();
        requests.into_iter().map(|request| request.join().expect("ran")).collect()
    });
    let first: Vec<_> = answers.iter().filter(|a| a.body.get("duplicate").is_none()).collect();
    let [first] = first[..] else { panic!("one is the first: {answers:?}") };
    let mut expected = first.body.clone();
    expected["duplicate"] = json!(true);
    let repeated =
        |answer: &Answer| (answer.status, answer.body.clone()) == (200, expected.clone());
    assert_eq!(answers.iter().filter(|answer| repeated(answer)).count(), 7, "{answers:?}");

    agent.kill();
    agent = run(&site, &place);
    assert!(repeated(&again(&place)), "after a kill");
    agent.stop();
    agent = run(&site, &place);
    assert!(repeated(&again(&place)), "after a restart");
    // Other content under a known key is not taken either, and is said to the operator.
    let other = place.push(&[("Idempotency-Key", "nightly-1")], &push_of(&[metric(3)]));
    assert_eq!(other.expect("an answer").body["duplicate"], json!(true));
    assert!(agent.stderr().contains("other content under a key"), "{}", agent.stderr());
    let next = place.push(&[("Idempotency-Key", "nightly-2")], &push_of(&[metric(4)]));
    assert_eq!(next.expect("an answer").body.get("duplicate"), None);
    assert_eq!(delivered(&site, agent).await, [1, 2, 4]);
}

/// What was ahead of the clock when it came with a key is rejected as long as the key is known: its
/// client is not told that it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_rejects_the_same() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let soon = clock::now() + SignedDuration::from_secs(24 * 3_600 + 2);
    let ahead = json!({"type": "custom.test", "timestamp": soon.to_string(), "n": 2});
    let body = push_of(&[metric(1), ahead]);
    let push = || place.push(&[("Idempotency-Key", "ahead")], &body).expect("an answer").body;
    // Unpacked, this begins as what zlib has packed would.
    let lines = gzip(format!("x\n{}\n", metric(2)).as_bytes());
    let packed = [
        ("Idempotency-Key", "packed"),
        ("Content-Type", "application/x-ndjson"),
        ("Content-Encoding", "gzip"),
    ];
    let push_packed = || place.push(&packed, &lines).expect("an answer").body;
    let mut expected = push_packed();
    assert_eq!(expected["metrics_inserted"], 1, "{expected}");
    expected["duplicate"] = json!(true);
    assert_eq!(push_packed(), expected);

    let first = push();
    assert_eq!(
        (&first["metrics_inserted"], &first["rejected"][0]["index"]),
        (&json!(1), &json!(1))
    );
    let not_ahead = soon - SignedDuration::from_hours(24);
    until("it is not ahead any more", LIMIT, || clock::now() > not_ahead);
    let mut expected = first;
    expected["duplicate"] = json!(true);
    assert_eq!(push(), expected);
    assert_eq!(delivered(&site, agent).await, [1, 2]);
}

/// More clients than connections, on TCP: all are answered, and everything arrives once.
#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_few_connections() {
    let site = Site::registered().await;
    site.configure("[intake]\nlisten = \"127.0.0.1:0\"\nconnections_max = 5\n");
    let agent = site.run();
    let mut place = None;
    until("the intake listens", LIMIT, || {
        let log = agent.stderr();
        let listen = log.lines().find(|line| line.contains("the intake listens"));
        let address = listen.and_then(|line| line.split("listen=\"").nth(1)?.split('"').next());
        place = address.map(|address| Place::Tcp(address.to_owned()));
        place.is_some()
    });
    let place = place.expect("listens");
    std::thread::scope(|scope| {
        for client in 0..40 {
            let place = &place;
            scope.spawn(move || {
                let mut connection = place.connect().expect("a connection");
                for n in 0..5 {
                    let answer = connection.push(&[], &push_of(&[metric(client * 5 + n)]));
                    assert_eq!(answer.expect("an answer").inserted(), 1);
                }
            });
        }
    });
    assert_eq!(delivered(&site, agent).await, (0..200).collect::<Vec<_>>());
}

/// A client that ends its side with its request, as `nc -N` and `socat` do, gets its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_side_is_answered() {
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let Place::Unix(path) = &place else { panic!("{place:?}") };
    let mut stream = UnixStream::connect(path).expect("connect");
    let body = push_of(&[metric(1)]);
    stream.write_all(head("POST /api/v1/metrics/push", &[], body.len()).as_bytes()).expect("sent");
    stream.write_all(&body).expect("sent");
    stream.shutdown(Shutdown::Write).expect("its side ends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer, and the end");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(delivered(&site, agent).await, [1]);
}

/// A place that other hosts can reach is a mistake in the configuration.
#[tokio::test(flavor = "multi_thread")]
async fn only_this_host_can_be_listened_to() {
    let site = Site::registered().await;
    for listen in ["0.0.0.0:9187", "[::]:9187", "192.0.2.1:9187", "localhost", "unix:a.sock"] {
        site.configure(&format!("[intake]\nlisten = \"{listen}\"\n"));
        let done = site.command(&["config", "check"]);
        assert_eq!(done.code, Some(64), "{done:?}");
        assert!(done.stderr.contains(&format!("intake.listen = \"{listen}\": ")), "{done:?}");
        assert!(done.stderr.contains("hint: `unix:/run/pganalytics/intake.sock`"), "{done:?}");
        let mut agent = site.start();
        assert_eq!(agent.finish(LIMIT).code, Some(64), "{}", agent.stderr());
    }
}

/// The socket is for the agent's user and the group; a killed agent's is replaced, and a stopped
/// agent leaves none.
#[tokio::test(flavor = "multi_thread")]
async fn the_socket_has_its_mode_and_its_group() {
    const GROUP: u32 = 7;
    let is_root = rustix::process::geteuid().is_root();
    let (site, place) = site(if is_root { "group = \"7\"" } else { "" }).await;
    let Place::Unix(path) = &place else { panic!("a Unix socket") };
    let mut agent = run(&site, &place);
    let found = fs_err::symlink_metadata(path).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    assert!(!is_root || found.gid() == GROUP, "{}", found.gid());
    agent.kill();
    assert!(path.exists(), "nobody could remove it");
    let agent = run(&site, &place);
    assert_eq!(place.push(&[], &push_of(&[metric(1)])).expect("an answer").inserted(), 1);
    agent.stop();
    assert!(!path.exists());
}

/// Only root can become somebody else, so only root can try.
#[tokio::test(flavor = "multi_thread")]
async fn users_outside_the_group_are_kept_out() {
    use std::os::unix::process::CommandExt as _;
    const GROUP: u32 = 7;
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (site, place) = site("group = \"7\"").await;
    let Place::Unix(path) = &place else { panic!("a Unix socket") };
    let _agent = run(&site, &place);
    set_mode(site.directory.path(), 0o755);
    let ask = |group: u32| {
        let mut command = std::process::Command::new("curl");
        command.args(["--silent", "--unix-socket"]).arg(path);
        command.args(["--data-binary", r#"{"metrics":[]}"#]).uid(NOBODY).gid(group);
        command.arg("http://localhost/api/v1/metrics/push").output().expect("curl runs")
    };
    let member = ask(GROUP);
    assert!(String::from_utf8_lossy(&member.stdout).contains("success"), "{member:?}");
    let stranger = ask(NOBODY);
    assert!(!stranger.status.success() && stranger.stdout.is_empty(), "{stranger:?}");
}

/// A place that is taken stops nothing else: it is said, and had as soon as it is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_taken_is_tried_again() {
    let site = Site::registered().await;
    let port = Port::reserve();
    let taken = std::net::TcpListener::bind(port.address()).expect("a port");
    let address = port.address().to_string();
    site.configure(&format!("[intake]\nlisten = \"{address}\"\n"));
    let agent = site.run();
    site.until_stored(5).await;
    let status = site.command(&["status"]);
    assert_eq!(status.code, Some(2), "{status:?}");
    assert!(status.stdout.contains("other programs cannot push"), "{status:?}");
    drop(taken);
    let place = Place::Tcp(address);
    until("the intake listens", LIMIT, || place.connect().is_ok());
    assert_eq!(place.push(&[], &push_of(&[metric(1)])).expect("an answer").inserted(), 1);
    agent.stop();
}
