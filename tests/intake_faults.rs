//! The intake when things go wrong: kills, full disks and queues, slow and hostile clients.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pganalytics::clock;
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::intake::{delivered, metric, push_of, run, site, stored_numbers};
use crate::support::intake::{Answer, Connection, Place, head};
use crate::support::process::{self, Process};
use crate::support::proxy::Network;
use crate::support::site::{Site, longest_gap};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(60);
const KILLS: u64 = 8;
const CLIENTS: u64 = 4;

/// Stops the clients of a test when dropped, also when the test has failed: they would be waited
/// for without an end.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pushes numbers from `next` with a key each until `stop`, as a careful program does: what is not
/// answered 200 is sent again. Gives the numbers that were answered.
fn careful_client(place: &Place, next: &AtomicU64, stop: &AtomicBool) -> Vec<u64> {
    let mut answered = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let (key, body) = (format!("n-{n}"), push_of(&[metric(n)]));
        let begun = clock::monotonic();
        loop {
            assert!(begun.elapsed() < LIMIT, "{n} is never answered");
            match place.push(&[("Idempotency-Key", &key)], &body) {
                Ok(answer) if answer.status == 200 => break answered.push(n),
                _ => thread::sleep(Duration::from_millis(5)), // nobody there, or cut off
            }
        }
    }
    answered
}

/// C20, Q1: the agent is killed while clients push. What was answered is delivered, and what was
/// sent again because its answer was lost is not there twice.
#[tokio::test(flavor = "multi_thread")]
async fn answered_metrics_survive_kills_and_are_there_once() {
    let (site, place) = site("").await;
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let answered: Vec<u64> = thread::scope(|scope| {
        let client = || careful_client(&place, &next, &stop);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let stopping = Stopping(&stop);
        for round in 0..KILLS {
            site.proxy.set(if round % 2 == 0 { Network::Down } else { Network::Up });
            let mut agent = run(&site, &place);
            let goal = next.load(Ordering::Relaxed) + 20 + 7 * round;
            until("clients are answered", LIMIT, || next.load(Ordering::Relaxed) >= goal);
            agent.kill();
        }
        let _agent = run(&site, &place);
        drop(stopping);
        clients.into_iter().flat_map(|client| client.join().expect("ran")).collect()
    });
    assert_eq!(answered.len() as u64, next.load(Ordering::Relaxed));
    site.proxy.set(Network::Up);
    let agent = run(&site, &place);
    let expected: Vec<u64> = (0..next.load(Ordering::Relaxed)).collect();
    assert_eq!(delivered(&site, agent).await, expected);
}

/// Q1: killed at once after the 200, without a key and without another try.
#[tokio::test(flavor = "multi_thread")]
async fn a_200_is_a_promise() {
    let (site, place) = site("").await;
    site.proxy.set(Network::Down);
    for n in 0..5 {
        let mut agent = run(&site, &place);
        let answer = place.push(&[], &push_of(&[metric(2 * n), metric(2 * n + 1)]));
        agent.kill();
        assert_eq!(answer.expect("an answer").inserted(), 2);
    }
    site.proxy.set(Network::Up);
    let agent = run(&site, &place);
    assert_eq!(delivered(&site, agent).await, (0..10).collect::<Vec<_>>());
}

/// What a client has begun to send when the agent is told to stop is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_has_begun_is_finished() {
    let (site, place) = site("").await;
    let mut agent = run(&site, &place);
    let body = push_of(&[metric(1)]);
    let mut connection = place.connect().expect("a connection");
    let head = head("POST /api/v1/metrics/push", &[("Expect", "100-continue")], body.len());
    connection.send(head.as_bytes()).expect("sent");
    // The agent is waiting for the body when it says this.
    assert!(connection.line().expect("an interim answer").contains("100 Continue"));
    assert_eq!(connection.line().expect("its end").trim(), "");
    agent.terminate();
    until("it stops", LIMIT, || agent.stderr().contains("stopping"));
    connection.send(&body).expect("sent");
    assert_eq!(connection.answer().expect("an answer").inserted(), 1);
    assert_eq!(agent.finish(LIMIT).code, Some(0), "{}", agent.stderr());
    assert_eq!(stored_numbers(&site).await, [1]);
}

/// A number of `/proc/<pid>/status`, KiB.
fn memory_kib(agent: &Process, name: &str) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{}/status", agent.id())).expect("status");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the line");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// 64 MiB of spaces in a few KiB, eight at once: each stops at the limit, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_stops_early() {
    const GROWTH_KIB_MAX: u64 = 64 << 10;
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    for _ in 0..64 {
        encoder.write_all(&vec![b' '; 1 << 20]).expect("to memory");
    }
    let bomb = encoder.finish().expect("to memory");
    let before = memory_kib(&agent, "VmHWM:");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answer = place.push(&[("Content-Encoding", "gzip")], &bomb);
                assert_eq!(answer.expect("an answer").status, 413);
            });
        }
    });
    let growth = memory_kib(&agent, "VmHWM:") - before;
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB");
}

/// A document that would need a hundred times its size as a value is rejected without making one.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_many_values_stays_small() {
    const GROWTH_KIB_MAX: u64 = 128 << 10;
    let (site, place) = site("").await;
    let agent = run(&site, &place);
    let list = format!("[{}0]", r#"{"":1},"#.repeat(1_000_000));
    let timestamp = "2026-01-01T00:00:00Z";
    let body =
        format!(r#"{{"metrics":[{{"type":"custom.a","timestamp":"{timestamp}","list":{list}}}]}}"#);
    let before = memory_kib(&agent, "VmHWM:");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answer = place.push(&[], body.as_bytes()).expect("an answer");
                assert!(answer.status == 429 || answer.body["rejected"][0]["index"] == json!(0));
            });
        }
    });
    let growth = memory_kib(&agent, "VmHWM:") - before;
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB");
}

/// Connections that are kept open and ask for nothing give their places to whoever comes.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_hold_nobody_up() {
    let (site, place) = site("timeout = \"5min\"\nconnections_max = 4").await;
    let agent = run(&site, &place);
    let keep = |n| {
        let mut connection = place.connect().expect("a connection");
        let answer = connection.push(&[], &push_of(&[metric(n)])).expect("an answer");
        assert_eq!(answer.inserted(), 1);
        connection
    };
    let mut kept: Vec<_> = (0..4).map(keep).collect();
    // As many as there are places have said nothing at all.
    let silent: Vec<_> = (0..4).map(|_| place.connect().expect("a connection")).collect();
    for n in 4..10 {
        let answer = place.push(&[], &push_of(&[metric(n)])).expect("an answer");
        assert_eq!(answer.inserted(), 1);
    }
    assert!(kept.iter_mut().all(Connection::is_ended), "they have given way");
    drop(silent);
    assert_eq!(delivered(&site, agent).await, (0..10).collect::<Vec<_>>());
}

/// Bodies that come slowly take the memory that there is for them, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_the_works_are_bounded_together() {
    let (site, place) = site("body_bytes_max = \"64KiB\"\ntimeout = \"20s\"").await;
    let _agent = run(&site, &place);
    let padded = |n| {
        let mut body = push_of(&[metric(n)]);
        body.resize(60 << 10, b' ');
        body
    };
    let begin_push = |n| {
        let mut connection = place.connect().expect("a connection");
        connection.send(head("POST /api/v1/metrics/push", &[], 60 << 10).as_bytes()).expect("sent");
        connection.send(&padded(n)[..50 << 10]).expect("sent");
        connection
    };
    let until_in = |bodies: u64| {
        until("so many bodies are in", LIMIT, || {
            let status: Value =
                serde_json::from_str(&site.command(&["status", "--json"]).stdout).expect("JSON");
            status["intake"]["body_bytes"] == json!(bodies * (50 << 10))
        });
    };
    let mut begun: Vec<_> = (0..5).map(begin_push).collect();
    until_in(5);
    // Five times 50 KiB is in; the sixth would be over four times 64 KiB.
    let refused = place.push(&[], &padded(9)).expect("an answer");
    assert_eq!((refused.status, refused.error()), (429, "busy"), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    begun.pop();
    until_in(4);
    let small = [&push_of(&[metric(8)])[..], &vec![b' '; 20 << 10]].concat();
    assert_eq!(place.push(&[], &small).expect("an answer").inserted(), 1);
    until_in(4);
    for (n, mut connection) in (0..).zip(begun) {
        connection.send(&padded(n)[50 << 10..]).expect("sent");
        assert_eq!(connection.answer().expect("an answer").inserted(), 1);
    }
    until_in(0);
}

/// Clients that send a byte now and then, that stop in their body, that never read: each is shown
/// the door, others are answered, and the collectors keep their interval.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_delay_nobody_else() {
    let (site, place) = site("timeout = \"1s\"\nconnections_max = 16").await;
    let agent = run(&site, &place);
    let (stop, ended) = (AtomicBool::new(false), AtomicU64::new(0));
    let dribble = |bytes: &[u8]| {
        let Ok(mut connection) = place.connect() else { return };
        for byte in bytes.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if connection.send(&[*byte]).is_err() {
                ended.fetch_add(1, Ordering::Relaxed);
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    };
    let deaf = || {
        let Ok(mut connection) = place.connect() else { return };
        let request = [head("POST /", &[], 0)].concat().repeat(50);
        while !stop.load(Ordering::Relaxed) {
            if connection.send(request.as_bytes()).is_err() {
                ended.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    };
    let body = head("POST /api/v1/metrics/push", &[], 1 << 20) + "{\"metrics\":[";
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| dribble(b"POST /api/v1/metrics/push HTTP/1.1\r\nX: yyyyyyyy"));
            scope.spawn(|| dribble(body.as_bytes()));
            scope.spawn(deaf);
        }
        let _stopping = Stopping(&stop);
        for n in 0..20 {
            let begun = clock::monotonic();
            let answer = place.push(&[], &push_of(&[metric(n)])).expect("an answer");
            assert_eq!(answer.inserted(), 1);
            assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        }
        until("all are shown the door", LIMIT, || ended.load(Ordering::Relaxed) == 18);
    });
    assert_eq!(delivered(&site, agent).await, (0..20).collect::<Vec<_>>());
    let gap = longest_gap(&site.stored().await);
    assert!(gap < Duration::from_secs(2), "the collectors waited {gap:?}");
}

/// A push of about a MiB that does not compress, with the metric `n`.
fn bulky(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    };
    let text = |_| (0..4_000).map(|_| noise()).collect::<String>();
    let texts: Vec<String> = (0..16).map(text).collect();
    let mut metric = metric(n);
    metric["texts"] = json!(texts);
    push_of(&[metric])
}

fn limited(place: &Place, on_full: &str) -> String {
    let Place::Unix(socket) = place else { panic!("a Unix socket") };
    let socket = socket.display();
    format!(
        "bytes_max = \"16MiB\"\non_full = \"{on_full}\"\n[intake]\nlisten = \"unix:{socket}\"\n"
    )
}

/// The site's configuration with more in `[queue]`.
fn limit_queue(site: &Site, place: &Place, on_full: &str) {
    site.configure("");
    let text = fs_err::read_to_string(site.config()).expect("read");
    let (before, after) = text.split_once("[forward]").expect("the section");
    let more = limited(place, on_full);
    fs_err::write(site.config(), format!("{before}{more}[forward]{after}")).expect("write");
}

/// Pushes until the queue is full during an outage; what was answered 200 is delivered once, and
/// the request that was refused is taken when there is room again.
async fn check_full(on_full: &str) {
    let (site, place) = site("").await;
    limit_queue(&site, &place, on_full);
    site.proxy.set(Network::Down);
    let agent = run(&site, &place);
    let push = |n: u64| place.push(&[("Idempotency-Key", &format!("k{n}"))], &bulky(n));
    let mut taken = 0;
    let refused: Answer = loop {
        let answer = push(taken).expect("an answer");
        if answer.status != 200 {
            break answer;
        }
        taken += 1;
        assert!(taken < 100, "the queue is never full");
    };
    assert_eq!((refused.status, refused.error()), (429, "queue_full"), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("10"));
    site.proxy.set(Network::Up);
    until("it is taken", LIMIT, || push(taken).expect("an answer").body["metrics_inserted"] == 1);
    let numbers = delivered(&site, agent).await;
    assert_eq!(numbers, (0..=taken).collect::<Vec<_>>(), "{on_full}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_blocks_answers_429() {
    check_full("block").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_evicts_the_newest_answers_429() {
    check_full("evict_newest").await;
}

/// Q7: no 200 while the disk takes nothing; what was in memory when it failed is not doubled.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_gives_no_200() {
    let (site, place) = site("timeout = \"1s\"").await;
    // On a disk that is merely low the oldest would make room for the new.
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text.replace("[queue]\n", "[queue]\ndisk_free_min = 0\n");
    fs_err::write(site.config(), text).expect("write");
    let (agent, root) = site.run_on("size=64m");
    until("the intake listens", LIMIT, || place.connect().is_ok());
    site.proxy.set(Network::Down);
    let mut files = 0;
    while fs_err::write(root.join(format!("fill-{files}")), vec![7; 64 << 10]).is_ok() {
        files += 1;
    }
    let (refused, answered) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeSet::new()));
    let push = |n: u64| {
        let answer = place.push(&[("Idempotency-Key", &format!("k{n}"))], &push_of(&[metric(n)]));
        let answer = answer.expect("an answer");
        if answer.status == 200 {
            answered.lock().expect("a set").insert(n);
        } else {
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("10")));
            refused.lock().expect("a set").insert(answer.error().to_owned());
        }
        answer.status
    };
    let mut n = 0;
    until("both refusals are seen", LIMIT, || {
        n += 1;
        push(n);
        refused.lock().expect("a set").len() == 2
    });
    for file in 0..=files {
        fs_err::remove_file(root.join(format!("fill-{file}"))).ok();
    }
    for n in 1..=n {
        until("it is taken at last", LIMIT, || push(n) == 200);
    }
    let all: Value = site.inspect();
    assert_eq!(all["queue"]["counts"]["evicted_records"], json!(0), "{all}");
    site.proxy.set(Network::Up);
    let seen: Vec<String> = refused.into_inner().expect("a set").into_iter().collect();
    assert_eq!(seen, ["no_disk", "not_durable"]);
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    agent.stop();
    assert_eq!(stored_numbers(&site).await, (1..=n).collect::<Vec<_>>());
}

/// C40: standard error is a pipe that nobody reads. What does not fit is left out; clients are
/// answered, and the agent ends when it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    let (site, place) = site("[log]\nlevel = \"trace\"").await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let config = site.config();
    let mut command = process::agent(["run", "--config", config.to_str().expect("UTF-8")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut agent = Unread(command.spawn().expect("start the agent"));
    until("the intake listens", LIMIT, || place.connect().is_ok());
    let mut next = 0;
    let mut push = || {
        let answer = place.push(&[], &push_of(&[metric(next)])).expect("an answer");
        assert_eq!(answer.inserted(), 1, "{answer:?}");
        next += 1;
    };
    let unread = || ioctl_fionread(&reader).expect("a pipe");
    until("the pipe takes no more", LIMIT, || {
        let before = unread();
        push();
        before > 32 << 10 && unread() == before
    });
    (0..50).for_each(|_| push());
    let pid = Pid::from_raw(agent.0.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::TERM).expect("tell it to stop");
    let mut ended = None;
    until("it ends", LIMIT, || {
        ended = agent.0.try_wait().expect("ask for the state");
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    let expected: Vec<u64> = (0..next).collect();
    drop(reader);
    let agent = run(&site, &place);
    assert_eq!(delivered(&site, agent).await, expected);
}

/// An agent whose output is not read, killed when the value is dropped.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
