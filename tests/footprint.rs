//! An agent is a guest on the host that it watches.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::intake::{metric, push_of};
use crate::operator::Host;
use crate::support::backend_stub::Reply;
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::until;
use crate::verdicts::{Bench, said};

/// What the agent has allocated; its code is shared with no one, but differs between builds.
const ANONYMOUS_KIB_MAX: u64 = 12 << 10;
/// What an allocator may keep more, after nine thousand answers.
const GROWTH_KIB_MAX: u64 = 3 << 10;

/// Almost as large as an answer may be.
const ANSWER_BYTES: usize = 4_000_000;
/// The most that the agent may ever have had in memory, its code included.
const PEAK_KIB_MAX: u64 = 160 << 10;

/// Memory stays where it was over many push windows: each opens and closes a database.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_small_over_many_windows() {
    let site = Site::registered().await;
    let config = fs_err::read_to_string(site.config()).expect("read");
    fs_err::write(site.config(), config.replace("\"300ms\"", "\"100ms\"")).expect("write");
    let agent = site.run();
    until("a hundred windows", Duration::from_secs(60), || {
        let seen = site.inspect();
        seen["queue"]["counts"]["delivered_batches"].as_u64() >= Some(100)
    });
    let kib = anonymous_kib(&agent);
    assert!(kib <= ANONYMOUS_KIB_MAX, "{kib} KiB");
    agent.stop();
}

/// Ten thousand refused, delayed and broken answers leave memory where it was after the first
/// thousand.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_over_bad_answers() {
    let bench = Bench::start("100ms", "10ms").await;
    let (answers, settled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, settling) = (Arc::clone(&answers), Arc::clone(&settled));
    bench.answer(move |numbers| {
        counted.fetch_add(1, Ordering::Relaxed);
        let status = [200, 503, 429, 500, 413, 400, 422, 415, 400, 422][fastrand::usize(..10)];
        if status == 200 || (status < 429 && numbers.len() == 1) {
            settling.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        }
        if fastrand::u8(..50) == 0 { Reply::Close } else { said(status) }
    });
    let mut pushed = 0;
    let mut until_answers = |count: u64| {
        while answers.load(Ordering::Relaxed) < count {
            let metrics: Vec<_> = (pushed..pushed + 100).map(metric).collect();
            bench.place.push(&[], &push_of(&metrics)).expect("an answer");
            pushed += 100;
            until("a batch is settled", Duration::from_secs(60), || {
                answers.load(Ordering::Relaxed) >= count
                    || settled.load(Ordering::Relaxed) + 100 >= pushed
            });
        }
        anonymous_kib(&bench.agent)
    };
    let (early, late) = (until_answers(1_000), until_answers(10_000));
    writeln!(std::io::stderr(), "{early} KiB, then {late} KiB").expect("say");
    assert!(late <= ANONYMOUS_KIB_MAX, "{late} KiB");
    assert!(late <= early + GROWTH_KIB_MAX, "{early} KiB, then {late} KiB");
}

/// The largest answers that the agent reads cost it a few times their size, whatever is in them.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_over_large_answers() {
    let list = |entry: &str, bytes: usize| vec![entry; bytes / (entry.len() + 1)].join(",");
    let entries = list(r#"{"":0}"#, ANSWER_BYTES);
    let refused = list(r#"{"index":0}"#, ANSWER_BYTES);
    let answers = [
        (200, format!(r#"{{"status":"success","x":[{entries}]}}"#)),
        (200, format!(r#"{{"status":"success","rejected":[{refused}]}}"#)),
        (503, format!(r#"{{"message":[{entries}]}}"#)),
        (409, format!(r#"{{"error":"x","x":[{entries}]}}"#)),
    ];
    for (status, body) in answers {
        let host = Host::new("300ms").await;
        let start = body[..40].to_owned();
        host.stub.answer_pushes(move |_| Reply::with(status, &[], &body));
        let agent = host.start();
        // A batch that is delivered or taken apart is followed by another push; else it waits.
        until("the answer is read", Duration::from_secs(60), || {
            let status = host.ask(&["status", "--json"]).stdout;
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            let forwarding = &status["backend"]["forwarding"];
            let pushes =
                || host.stub.requests().into_iter().filter(|it| it.path.ends_with("/push"));
            ["paused", "backing_off"].iter().any(|state| forwarding == state)
                || pushes().count() > 2
        });
        let most = kib(&agent, "VmHWM:");
        assert!(most <= PEAK_KIB_MAX, "{status} {start}: {most} KiB");
        agent.stop();
    }
}

fn anonymous_kib(agent: &Process) -> u64 {
    kib(agent, "RssAnon:")
}

/// A line of what the kernel says of the process.
pub fn kib(agent: &Process, name: &str) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{}/status", agent.id())).expect("status");
    let line = status.lines().find(|line| line.starts_with(name)).expect(name);
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}
