//! kill -9 and damage: what was acknowledged to the collectors is still there afterwards.

use std::io::Write;
use std::time::Duration;

use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

/// Kills in a run of the tests; the environment variable sets another number.
const KILLS: u64 = 200;
const KILLS_VARIABLE: &str = "PGANALYTICS_KILLS";

/// C20: killed at random moments (while it starts and recovers, collects, seals, sends, merges),
/// with the backend away half of the time, the agent loses no record that was on disk and none is
/// stored twice.
#[tokio::test(flavor = "multi_thread")]
async fn acked_records_survive_kills() {
    let kills = std::env::var(KILLS_VARIABLE).ok().and_then(|text| text.parse().ok());
    let (kills, seed) = (kills.unwrap_or(KILLS), fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let site = Site::registered().await;
    let mut durable = 0;
    for round in 0..kills {
        site.proxy.set(if random.bool() { Network::Down } else { Network::Up });
        let mut agent = site.start();
        // A third within the start, which takes some 100 ms; the others at work, up to a second.
        let pause_ms = if round % 3 == 0 { random.u64(..150) } else { random.u64(150..800) };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        agent.kill();
        if round % 10 == 9 {
            let next = site.queue_number("next_seq");
            assert!(next >= durable, "seed {seed}: {next} records after {durable}");
            durable = next;
        }
    }
    site.proxy.set(Network::Up);
    let agent = site.run();
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    let done = agent.stop();
    // What the shutdown's deadline has left is on disk, and goes with the next.
    let agent = site.run();
    until("the rest is delivered", LIMIT, || site.queue_number("records") < 20);
    agent.stop();
    let stored = site.stored().await.len() as u64;
    assert!(durable > kills / 2, "seed {seed}: only {durable} records");
    let left = site.inspect();
    let number = |name: &str| left["queue"][name].as_u64().expect("a number");
    assert_eq!(stored + number("records"), number("next_seq"), "seed {seed}: {}", done.stderr);
    assert_distinct(&site.stored().await);
    let mut error = std::io::stderr();
    writeln!(error, "{kills} kills, seed {seed}: {durable} records, {stored} stored").expect("say");
}

/// A segment with damaged bytes is delivered as far as it can be read, kept for a person, said at
/// ERROR, and holds nothing else up.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_holds_nothing_up() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut agent = site.run();
    let segments = site.queue().join("segments");
    let count = || fs_err::read_dir(&segments).map_or(0, Iterator::count);
    until("five segments", LIMIT, || count() >= 5 && site.queue_number("records") >= 20);
    agent.kill();
    let queued = site.queue_number("records");

    let mut names: Vec<_> =
        fs_err::read_dir(&segments).expect("list").map(|e| e.expect("entry").path()).collect();
    names.sort_unstable();
    let file = names[1].join("db");
    let mut bytes = fs_err::read(&file).expect("read a segment");
    let frames: Vec<usize> =
        bytes.windows(4).enumerate().filter(|(_, w)| *w == b"pgaB").map(|(at, _)| at).collect();
    for at in frames {
        bytes[at + 100] ^= 0x40;
    }
    fs_err::write(&file, bytes).expect("damage a segment");

    site.proxy.set(Network::Up);
    let agent = site.run();
    until("the damage is found", LIMIT, || agent.stderr().contains("quarantine"));
    let done = agent.stop();
    assert!(done.stderr.contains("ERROR") && done.stderr.contains("quarantine"), "{}", done.stderr);
    let stored = site.stored().await;
    let lost = site.queue_number("next_seq") - stored.len() as u64;
    assert!(lost > 0 && lost < queued / 2, "{lost} of {queued} lost");
    assert_distinct(&stored);
    let kept = fs_err::read_dir(site.queue().join("quarantine")).expect("list").count();
    assert_eq!(kept, 1, "the damaged segment is kept");
}

/// What is no queue at all (a file in the way, rubbish in the state) is said, not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_costs_no_record() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let mut agent = site.run();
    until("records are queued", LIMIT, || site.queue_number("next_seq") >= 10);
    agent.kill();
    let queued = site.queue_number("records");
    for file in ["state/a", "state/b"].map(|name| site.queue().join(name)) {
        let mut bytes = fs_err::read(&file).expect("read the state");
        for byte in bytes.iter_mut().step_by(7) {
            *byte ^= 0x55;
        }
        fs_err::write(&file, bytes).expect("damage the state");
    }
    site.proxy.set(Network::Up);
    let agent = site.run();
    site.until_stored(usize::try_from(queued).expect("fits")).await;
    let done = agent.stop();
    assert_eq!(site.queue_number("records"), 0, "{}", done.stderr);
    assert_distinct(&site.stored().await);
}
