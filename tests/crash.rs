//! kill -9 and damage: what was acknowledged to the collectors is still there afterwards.

use std::time::Duration;

use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);

/// Pauses before a kill: long enough to have a window open, sealed or being sent, by chance.
const PAUSES_MS: [u64; 8] = [650, 130, 910, 370, 1200, 240, 520, 780];

/// C20: killed at random moments, half of them during an outage, the agent loses no record that was
/// on disk and none is stored twice.
#[tokio::test(flavor = "multi_thread")]
async fn acked_records_survive_kills() {
    let site = Site::registered().await;
    let mut durable = 0;
    for (round, pause) in PAUSES_MS.into_iter().enumerate() {
        site.proxy.set(if round % 2 == 0 { Network::Down } else { Network::Up });
        let mut agent = site.run();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        agent.kill();
        let next = site.queue_number("next_seq");
        assert!(next >= durable, "{next} records after {durable}: some have vanished");
        durable = next;
    }
    site.proxy.set(Network::Up);
    let agent = site.run();
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    let done = agent.stop();
    let stored = site.stored().await;
    assert!(durable > 10, "only {durable} records: the rounds are too short");
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_distinct(&stored);
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
    let state = site.queue().join("state/db");
    let mut bytes = fs_err::read(&state).expect("read the state");
    for byte in bytes.iter_mut().step_by(7) {
        *byte ^= 0x55;
    }
    fs_err::write(&state, bytes).expect("damage the state");
    site.proxy.set(Network::Up);
    let agent = site.run();
    site.until_stored(usize::try_from(queued).expect("fits")).await;
    let done = agent.stop();
    assert_eq!(site.queue_number("records"), 0, "{}", done.stderr);
    assert_distinct(&site.stored().await);
}
