//! Between agent and backend everything may fail; nothing may be lost or stored twice.

use std::time::Duration;

use crate::support::backend::Served;
use crate::support::process::Process;
use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct, longest_gap};
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// Everything arrives, once, and no sample is missing in between.
async fn finish(site: &Site, agent: Process) {
    let done = agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_eq!(site.queue_number("records"), 0, "{}", done.stderr);
    assert_distinct(&stored);
    assert!(longest_gap(&stored) < Duration::from_secs(2), "collecting has stalled");
}

/// Waits until `count` more records are queued than now.
fn until_queued(site: &Site, count: u64) {
    let before = site.queue_number("next_seq");
    until("records are queued", LIMIT, || site.queue_number("next_seq") >= before + count);
}

/// C19, C20, C36, C56: the backend goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_comes_back_gets_everything() {
    let mut site = Site::registered().await;
    let agent = site.run();
    site.until_stored(5).await;
    site.served.stop().await;
    until_queued(&site, 20);
    site.served.resume().await;
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    finish(&site, agent).await;
}

/// C19, C36, C40: refused connections, and the change is logged once in each direction.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_comes_back_carries_everything() {
    let site = Site::registered().await;
    let agent = site.run();
    site.until_stored(5).await;
    site.proxy.set(Network::Down);
    until_queued(&site, 20);
    site.proxy.set(Network::Up);
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    finish(&site, agent).await;
}

/// C20: the backend stored a push and its answer never arrived; the same batch goes out again under
/// its id and is stored once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_stores_nothing_twice() {
    let site = Site::registered().await;
    let agent = site.run();
    for lost in 1..=3 {
        site.until_stored(site.stored().await.len() + 5).await;
        site.proxy.set(Network::AnswersLost);
        until_async("an answer is lost", LIMIT, || async { site.proxy.answers_lost() >= lost })
            .await;
        site.proxy.set(Network::Up);
    }
    site.until_stored(site.stored().await.len() + 5).await;
    finish(&site, agent).await;
}

/// C37: a connection on which nothing comes back is given up after the request timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_given_up() {
    let site = Site::registered().await;
    let agent = site.run();
    site.until_stored(5).await;
    site.proxy.set(Network::Silent);
    until("the timeout is logged", LIMIT, || agent.stderr().contains("hint:"));
    site.proxy.set(Network::Up);
    site.until_stored(site.stored().await.len() + 30).await;
    finish(&site, agent).await;
}

/// An agent that starts while the backend is away collects, keeps, and delivers later.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_backend_collects() {
    let site = Site::registered().await;
    site.proxy.set(Network::Down);
    let agent = site.run();
    until("records are queued", LIMIT, || site.queue_number("next_seq") >= 10);
    // A stop during the outage is clean too, and keeps everything.
    agent.stop();
    let kept = site.queue_number("records");
    assert_eq!(kept, site.queue_number("next_seq"));
    site.proxy.set(Network::Up);
    let agent = site.run();
    site.until_stored(usize::try_from(kept).expect("fits") + 5).await;
    agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"));
    assert_distinct(&stored);
}

/// C39: a backend whose certificate is not trusted gets nothing, is named with a hint, and nothing
/// is lost meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_in_place_of_the_backend_gets_nothing() {
    let site = Site::registered().await;
    let stranger = Served::start().await;
    let good = fs_err::read_to_string(site.config()).expect("read");
    let own = site.proxy.address().port().to_string();
    let other = stranger.running().address().port().to_string();
    fs_err::write(site.config(), good.replace(&own, &other)).expect("write");
    let agent = site.run();
    until("the certificate is refused", LIMIT, || agent.stderr().contains("certificate"));
    until_queued(&site, 10);
    let done = agent.stop();
    assert!(done.stderr.contains("hint:"), "{}", done.stderr);
    let kept = site.queue_number("records");
    assert_eq!(kept, site.queue_number("next_seq"));

    fs_err::write(site.config(), good).expect("write");
    let agent = site.run();
    site.until_stored(usize::try_from(kept).expect("fits")).await;
    agent.stop();
    assert_distinct(&site.stored().await);
}
