//! What the agent does with every answer: the table of the contract's section 7, seen from a
//! backend that says it. Each row is one push of four numbers, and ends when nothing is queued.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pganalytics::metric::envelope::PushRequest;
use pganalytics::{clock, encoding};
use serde_json::{Value, value::RawValue};

use crate::intake::{metric, push_of};
use crate::operator::Host;
use crate::scrape::scrape_socket;
use crate::support::backend_stub::{Recorded, Reply};
use crate::support::intake::Place;
use crate::support::process::Process;
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(60);
/// The numbers of a push; the third is the bad one, where one is.
const NUMBERS: [u64; 4] = [0, 1, 2, 3];
const BAD: u64 = 2;
/// Two moments, a second apart, of a clock that is decades behind, and of one that is ahead.
const PAST: [&str; 2] = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"];
const FUTURE: [&str; 2] = ["Fri, 31 Dec 2100 23:59:58 GMT", "Fri, 31 Dec 2100 23:59:59 GMT"];

/// A running agent whose only metrics are those of the test.
pub struct Bench {
    pub host: Host,
    pub place: Place,
    pub agent: Process,
}

/// One request that carried metrics.
#[derive(Debug, Clone)]
pub struct Pushed {
    key: String,
    token: String,
    /// Its `Content-Encoding`; empty without one.
    pub encoding: String,
    pub numbers: Vec<u64>,
    at: Instant,
}

/// What came of one push of four numbers.
#[derive(Debug)]
pub struct Row {
    pub pushes: Vec<Pushed>,
    /// New dead letters.
    dead: Vec<Value>,
    /// What the agent has logged meanwhile.
    pub log: String,
}

impl Bench {
    /// With these windows, and pauses after failures up to `backoff_max`.
    pub async fn start(push_interval: &str, backoff_max: &str) -> Self {
        Self::with(push_interval, backoff_max, "").await
    }

    /// The same with more in its section `[forward]`, a line each.
    pub async fn with(push_interval: &str, backoff_max: &str, forward: &str) -> Self {
        let host = Host::new(push_interval).await;
        let socket = host.path("intake.sock");
        let file = host.path("agent.toml");
        let config = fs_err::read_to_string(&file).expect("read");
        let config = config.replace("[backend]\n", "[backend]\nrequest_timeout = \"1s\"\n");
        let pauses = "backoff_first = \"50ms\"\nbackoff_max = \"200ms\"";
        assert!(config.contains(pauses), "{config}");
        let other = format!("backoff_first = \"10ms\"\nbackoff_max = {backoff_max:?}\n{forward}");
        let config = config.replace(pauses, &other);
        let more = format!("[intake]\nlisten = \"unix:{}\"\n", socket.display());
        fs_err::write(&file, config + "[disk_usage]\nenabled = false\n" + &more).expect("write");
        let (agent, place) = (host.start(), Place::Unix(socket));
        until("the intake listens", LIMIT, || place.connect().is_ok());
        Self { host, place, agent }
    }

    /// What the backend says to each push from now on, by its numbers.
    pub fn answer(&self, answer: impl Fn(&[u64]) -> Reply + Send + Sync + 'static) {
        self.host.stub.answer_pushes(move |request| answer(&pushed(request).numbers));
    }

    /// Pushes four numbers while the backend says `answer` to the push with this index, which
    /// carries these numbers; waits until nothing is queued.
    fn row(&self, answer: impl Fn(usize, &[u64]) -> Reply + Send + Sync + 'static) -> Row {
        self.row_of(move |nth, push| answer(nth, &push.numbers))
    }

    /// The same, while the backend looks at more of a push than its numbers.
    pub fn row_of(&self, answer: impl Fn(usize, &Pushed) -> Reply + Send + Sync + 'static) -> Row {
        let (letters, logged) = (self.letters().len(), self.agent.stderr().len());
        let pushes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&pushes);
        self.host.stub.answer_pushes(move |request| {
            let mut seen = seen.lock().expect("nobody panicked");
            let push = pushed(request);
            let reply = answer(seen.len(), &push);
            seen.push(push);
            reply
        });
        let answer = self.place.push(&[], &push_of(&NUMBERS.map(metric))).expect("an answer");
        assert_eq!(answer.inserted(), 4);
        until("nothing is queued", LIMIT, || self.host.queued("records") == 0);
        let pushes = pushes.lock().expect("nobody panicked").clone();
        let log = self.agent.stderr()[logged..].to_owned();
        Row { pushes, dead: self.letters().split_off(letters), log }
    }

    fn letters(&self) -> Vec<Value> {
        let file = self.host.path("queue/dead.ndjson");
        let text = fs_err::read_to_string(file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn pushed(request: &Recorded) -> Pushed {
    let text = encoding::inflate(None, request.body.clone(), 1 << 20).expect("a body");
    let envelope = PushRequest::parse(&text).expect("an envelope");
    let number = |metric: &&RawValue| {
        serde_json::from_str::<Value>(metric.get()).expect("JSON")["n"].as_u64()
    };
    Pushed {
        key: request.header("idempotency-key").to_owned(),
        token: request.token().to_owned(),
        encoding: request.header("content-encoding").to_owned(),
        numbers: envelope.metrics.iter().filter_map(number).collect(),
        at: clock::monotonic(),
    }
}

impl Row {
    /// Sent this often, always whole and under one id; nothing is refused.
    #[track_caller]
    pub fn came_whole(&self, times: usize, what: &dyn std::fmt::Debug) {
        assert_eq!(self.pushes.len(), times, "{what:?}: {self:?}");
        let keys: BTreeSet<_> = self.pushes.iter().map(|push| &push.key).collect();
        assert_eq!(keys.len(), 1, "{what:?}: {self:?}");
        assert!(self.pushes.iter().all(|push| push.numbers == NUMBERS), "{what:?}: {self:?}");
        assert!(self.dead.is_empty(), "{what:?}: {self:?}");
    }

    /// Between the first push and the second.
    fn pause(&self) -> Duration {
        self.pushes[1].at.duration_since(self.pushes[0].at)
    }

    /// One number is in the dead letters, with this status; the others came with the last pushes.
    #[track_caller]
    pub fn lost_the_bad_one(&self, status: u16) {
        let [letter] = &self.dead[..] else { panic!("{status}: {self:?}") };
        assert_eq!(letter["metric"]["n"].as_u64(), Some(BAD), "{status}: {self:?}");
        assert_eq!(letter["status"].as_u64(), Some(u64::from(status)), "{status}: {self:?}");
        assert!(letter.to_string().contains("not this one"), "{status}: {letter}");
    }
}

/// A whole answer of a backend.
pub fn said(status: u16) -> Reply {
    if (200..300).contains(&status) {
        return Reply::status(status);
    }
    Reply::with(status, &[], &format!(r#"{{"code":{status},"error":"x","message":"said"}}"#))
}

/// C32: 200, 201, 202 and 208 that say so, and 409 for a batch that is known: delivered, with one
/// push.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_is_gone() {
    let bench = Bench::start("200ms", "200ms").await;
    for status in [200, 201, 202, 208] {
        bench.row(move |_, _| said(status)).came_whole(1, &status);
    }
    let known = r#"{"code":409,"error":"duplicate_batch","message":"known"}"#;
    bench.row(|_, _| Reply::with(409, &[], known)).came_whole(1, &409);
    // A backend that takes a batch but for some metrics says which.
    let body = r#"{"status":"success","collector_id":"c","metrics_inserted":3,"bytes_received":1,
        "processing_time_ms":1,"next_config_version":0,"next_check_in_seconds":60,
        "rejected":[{"index":2,"path":"n","message":"not this one"}]}"#;
    let row = bench.row(|_, _| Reply::with(200, &[], body));
    assert_eq!(row.pushes.len(), 1, "{row:?}");
    row.lost_the_bad_one(200);
}

/// A backend that names a metric twice makes one letter; one that refuses metrics without saying
/// which has taken nothing, whatever it says beside that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_never_passed_over() {
    let bench = Bench::start("200ms", "200ms").await;
    let taken = |rejected: &str| {
        let body = format!(r#"{{"status":"success","metrics_inserted":3,"rejected":{rejected}}}"#);
        Reply::with(200, &[], &body)
    };
    let twice = taken(
        r#"[{"index":2,"path":"n","message":"not this one"},
            {"index":2,"path":"x","message":"nor this place in it"}]"#,
    );
    bench.row(move |_, _| twice.clone()).lost_the_bad_one(200);
    for rejected in ["{}", "1", r#"[{"index":"2"}]"#, r#"[{"index":4}]"#, r#"[{"path":"n"}]"#] {
        let unnamed = taken(rejected);
        let row = bench.row(move |nth, _| if nth < 2 { unnamed.clone() } else { said(200) });
        row.came_whole(3, &rejected);
        assert!(row.log.contains("does not say which"), "{rejected}: {}", row.log);
    }
}

/// A page that a network's own server shows in place of what was asked for.
const PORTAL: &str = "<!DOCTYPE html>\n<html><title>Log in to the guest network</title></html>";

/// 2xx of something that is not the backend.
fn strangers() -> [(&'static str, Reply); 9] {
    let html = [("content-type", "text/html")];
    [
        ("a portal's page", Reply::with(200, &html, PORTAL)),
        ("an empty 200", Reply::with(200, &[], "")),
        ("204", Reply::with(204, &[], "")),
        ("204 that says success", Reply::with(204, &[("x-status", "success")], "")),
        ("206", Reply::status(206)),
        ("an array", Reply::with(200, &[], r#"["status","success"]"#)),
        ("an error", Reply::with(200, &[], r#"{"status":"error"}"#)),
        ("no status", Reply::with(201, &[], r#"{"success":true}"#)),
        ("a text", Reply::with(202, &[], r#""status: success""#)),
    ]
}

/// What answers 2xx without the backend's words has not taken anything: everything stays, waits,
/// and comes whole to the backend.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_takes_is_kept() {
    let bench = Bench::start("200ms", "200ms").await;
    for (name, reply) in strangers() {
        let row = bench.row(move |nth, _| if nth < 2 { reply.clone() } else { said(200) });
        row.came_whole(3, &name);
        assert!(row.pause() >= Duration::from_millis(100), "{name}: {:?}", row.pause());
        assert!(row.log.contains("hint: something on the way"), "{name}: {}", row.log);
    }
}

/// What the forwarder does is one fact: `agent status`, its JSON and `/metrics` say the same, and
/// go on to say it from one try to the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_a_pause_everywhere() {
    let bench = Bench::start("200ms", "200ms").await;
    let state = || {
        let status = bench.host.json(&["status", "--json"]);
        let metrics = scrape_socket(&bench.host.path("control.sock"));
        let mut lines = metrics.lines().filter(|line| line.ends_with(" 1"));
        let series = "agent_forward_state{state=\"";
        let shown = lines.find_map(|line| line.strip_prefix(series)?.strip_suffix("\"} 1"));
        let told = status["backend"]["forwarding"].as_str().expect("a state").to_owned();
        (told, shown.expect("a state").to_owned())
    };
    let both = |state: &str| (state.to_owned(), state.to_owned());
    let redirect = [("location", "https://portal.example/")];
    let answers = [
        ("403", said(403)),
        ("404", said(404)),
        ("302", Reply::with(302, &redirect, "")),
        ("a portal's page", Reply::with(200, &[], PORTAL)),
        ("400 to everything", said(400)),
    ];
    for (name, reply) in answers {
        bench.answer(move |_| reply.clone());
        bench.place.push(&[], &push_of(&NUMBERS.map(metric))).expect("an answer");
        until(name, LIMIT, || state() == both("paused"));
        for _ in 0..20 {
            bench.place.push(&[], &push_of(&NUMBERS.map(metric))).expect("an answer");
            assert_eq!(state(), both("paused"), "{name}");
        }
        let screen = bench.host.ask(&["status"]).stdout;
        assert!(screen.contains(" paused"), "{name}: {screen}");
        bench.answer(|_| said(200));
        until("everything is delivered", LIMIT, || {
            bench.host.queued("records") == 0 && state() == both("flowing")
        });
    }
}

/// C19, C36, C37: what may pass is waited for, and the batch comes again under its id.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again() {
    let bench = Bench::start("200ms", "200ms").await;
    for status in [408, 425, 429, 500, 502, 503, 504, 507, 599] {
        let row = bench.row(move |nth, _| if nth == 0 { said(status) } else { said(200) });
        row.came_whole(2, &status);
    }
    let broken = [("closed", Reply::Close), ("cut off", Reply::Partial), ("silent", Reply::Hang)];
    for (name, reply) in broken {
        let row = bench.row(move |nth, _| if nth == 0 { reply.clone() } else { said(200) });
        row.came_whole(2, &name);
        assert!(row.log.contains("hint:"), "{name}: {}", row.log);
    }
}

/// C36: `Retry-After` is a lower bound, in seconds or as a date by the backend's own clock, which
/// may be decades away from the host's.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_backend_asks_for_is_waited_for() {
    let bench = Bench::start("200ms", "200ms").await;
    let check = |status, headers: &'static [(&'static str, &'static str)]| {
        let ask = move |nth, _: &[u64]| match nth {
            0 => Reply::with(status, headers, "{}"),
            _ => said(200),
        };
        let row = bench.row(ask);
        row.came_whole(2, &headers);
        assert!(row.pause() >= Duration::from_secs(1), "{headers:?}: {:?}", row.pause());
    };
    check(429, &[("retry-after", "1")]);
    check(503, &[("retry-after", "1")]);
    let past = &[("date", PAST[0]), ("retry-after", PAST[1])];
    check(503, past);
    let future = &[("date", FUTURE[0]), ("retry-after", FUTURE[1])];
    check(429, future);
}

/// C33, C34: 401 is answered with a new token, at once and once; then, as after 403, what a person
/// must look at is said, and everything waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_so_and_keeps_everything() {
    let bench = Bench::start("200ms", "200ms").await;
    let row = bench.row(|nth, _| said(if nth == 0 { 401 } else { 200 }));
    row.came_whole(2, &"401 once");
    assert_ne!(row.pushes[0].token, row.pushes[1].token);
    let row = bench.row(|nth, _| said(if nth < 2 { 401 } else { 200 }));
    row.came_whole(3, &"401 twice");
    assert_ne!(row.pushes[0].token, row.pushes[1].token);
    assert!(row.log.contains("401") && row.log.contains("hint:"), "{}", row.log);
    let statuses = [403, 404, 405, 410, 501, 300, 301, 302, 303, 304, 307, 308];
    for status in statuses {
        let elsewhere = format!("{}/elsewhere", bench.host.stub.url());
        let row = bench.row(move |nth, _| match nth {
            0 | 1 => Reply::with(status, &[("location", &elsewhere)], ""),
            _ => said(200),
        });
        row.came_whole(3, &status);
        assert!(row.pause() >= Duration::from_millis(100), "{status}: {:?}", row.pause());
        let status = status.to_string();
        assert!(row.log.contains(&status) && row.log.contains("hint:"), "{}", row.log);
    }
    let requests = bench.host.stub.requests();
    assert!(requests.iter().all(|request| !request.path.contains("elsewhere")));
}

/// C35: what is too large is halved, and what is too large by itself is put aside.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_halved() {
    let bench = Bench::start("200ms", "200ms").await;
    let row = bench.row(|_, numbers| said(if numbers.len() > 1 { 413 } else { 200 }));
    assert!(row.dead.is_empty(), "{row:?}");
    let sizes: Vec<usize> = row.pushes.iter().map(|push| push.numbers.len()).collect();
    assert_eq!(sizes, [4, 2, 1, 1, 2, 1, 1]);
    let row = bench.row(|_, numbers| refusing(413, numbers));
    row.lost_the_bad_one(413);
    // What stands before a backend has words of its own.
    let row = bench.row(|_, numbers| {
        let is_bad = numbers.contains(&BAD);
        if is_bad { Reply::with(413, &[], "<html>\r\n<h1>not this one</h1>") } else { said(200) }
    });
    row.lost_the_bad_one(413);
}

/// C35: what is refused is looked for; the others are delivered, and the batch is not sent blindly
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_found_and_put_aside() {
    let bench = Bench::start("200ms", "200ms").await;
    bench.row(|_, _| said(200)).came_whole(1, &"a backend that inflates");
    for status in [400, 402, 406, 409, 415, 418, 422, 451] {
        let row = bench.row(move |_, numbers| refusing(status, numbers));
        row.lost_the_bad_one(status);
        // What an unknown encoding may be comes once more without one.
        let more = usize::from(status == 415);
        assert!(row.pushes.len() <= 6 + more, "{status}: {row:?}");
        let taken = row.pushes.iter().filter(|push| !push.numbers.contains(&BAD));
        let taken: Vec<u64> = taken.flat_map(|push| push.numbers.clone()).collect();
        assert_eq!(taken, [0, 1, 3], "{status}: {row:?}");
    }
}

/// Refuses every push that has the bad number.
pub fn refusing(status: u16, numbers: &[u64]) -> Reply {
    if !numbers.contains(&BAD) {
        return said(200);
    }
    let body = format!(r#"{{"code":{status},"error":"x","message":"not this one"}}"#);
    Reply::with(status, &[], &body)
}
