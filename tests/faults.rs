//! Every fault of a network and of what sits in it, one after the other, between a real agent and
//! a real backend: everything arrives, once.

use std::time::Duration;

use crate::support::process::Process;
use crate::support::proxy::Network;
use crate::support::relay::Meddling;
use crate::support::site::{Site, assert_distinct};
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(60);

/// Every record that was ever queued is in the store, once.
async fn finish(site: &Site, agent: Process) {
    until("the backlog is delivered", LIMIT, || site.queue_number("records") < 20);
    let done = agent.stop();
    let stored = site.stored().await;
    assert_eq!(site.queue_number("records"), 0, "{}", done.stderr);
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"), "{}", done.stderr);
    assert_distinct(&stored);
}

/// Waits until the backend has `count` more metrics than now.
async fn until_more(site: &Site, count: usize) {
    site.until_stored(site.stored().await.len() + count).await;
}

/// A fault strikes three times; then the network is well, and so is the agent.
async fn strikes(site: &Site, network: Network) {
    let before = site.proxy.struck();
    site.proxy.set(network);
    let what = format!("{network:?} strikes");
    until_async(&what, LIMIT, async || site.proxy.struck() >= before + 3).await;
    site.proxy.set(Network::Up);
    until_more(site, 5).await;
}

/// C19, C20, C36: connections that are reset before, in and after a handshake and in the middle of
/// requests and answers.
#[tokio::test(flavor = "multi_thread")]
async fn resets_at_any_byte_lose_nothing() {
    let site = Site::registered().await;
    let agent = site.run();
    until_more(&site, 5).await;
    for at in [0, 1, 300, 1_500, 2_500] {
        strikes(&site, Network::RequestReset(at)).await;
    }
    for at in [0, 1, 700, 1_500] {
        strikes(&site, Network::AnswerReset(at)).await;
        strikes(&site, Network::AnswerCut(at)).await;
    }
    finish(&site, agent).await;
}

/// C36, C37: what answers is no backend, or nobody answers at all.
#[tokio::test(flavor = "multi_thread")]
async fn noise_alerts_and_half_open_connections_lose_nothing() {
    let site = Site::registered().await;
    let agent = site.run();
    until_more(&site, 5).await;
    for network in [Network::Garbage, Network::Alert, Network::HalfOpen] {
        strikes(&site, network).await;
    }
    let log = agent.stderr();
    assert!(log.contains("hint:"), "{log}");
    finish(&site, agent).await;
}

/// Pushes go through a network that is slow and thin but whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_delivers() {
    let site = Site::registered().await;
    let agent = site.run();
    until_more(&site, 5).await;
    let latency = Duration::from_millis(100);
    site.proxy.set(Network::Slow { latency, bytes_per_s: 64 << 10 });
    until_more(&site, 20).await;
    finish(&site, agent).await;
}

/// C20: whole pushes whose answers are lost or cut off, and pushes that arrive twice: one after the
/// other, at the same time, and when the agent is long past them.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_doubled_requests_store_everything_once() {
    let site = Site::registered().await;
    let relay = site.relay().await;
    let agent = site.run();
    until_more(&site, 5).await;
    for meddling in Meddling::ALL {
        let before = relay.struck();
        relay.set(meddling);
        let what = format!("{meddling:?} strikes");
        until_async(&what, LIMIT, async || relay.struck() >= before + 3).await;
        relay.set(Meddling::None);
        until_more(&site, 5).await;
    }
    finish(&site, agent).await;
}
