//! An agent is a guest on the host that it watches.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::intake::{metric, push_of};
use crate::support::backend_stub::Reply;
use crate::support::process::Process;
use crate::support::site::Site;
use crate::support::until;
use crate::verdicts::{Bench, said};

/// What the agent has allocated; its code is shared with no one, but differs between builds.
const ANONYMOUS_KIB_MAX: u64 = 12 << 10;
/// What an allocator may keep more, after nine thousand answers.
const GROWTH_KIB_MAX: u64 = 3 << 10;

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

fn anonymous_kib(agent: &Process) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{}/status", agent.id())).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}
