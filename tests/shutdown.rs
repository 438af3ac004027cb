//! How an agent ends: within its deadline, at the second signal at once, and with nothing lost.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::process::Process;
use crate::support::proxy::Network;
use crate::support::site::{Site, assert_distinct};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);
/// Well below the deadlines and timeouts that must not count.
const SOON: Duration = Duration::from_secs(15);

/// A site whose requests and whose last push may take ten minutes, with `deadline` for the push.
async fn patient(deadline: &str) -> Site {
    let site = Site::registered().await;
    let text = fs_err::read_to_string(site.config()).expect("read");
    let text = text
        .replace("request_timeout = \"2s\"", "request_timeout = \"10min\"")
        .replace("deadline = \"3s\"", &format!("deadline = \"{deadline}\""));
    fs_err::write(site.config(), text).expect("write");
    site
}

fn until_queued(site: &Site, count: u64) {
    let before = site.queue_number("next_seq");
    until("records are queued", LIMIT, || site.queue_number("next_seq") >= before + count);
}

/// Whatever was acknowledged before is delivered by the next agent, once.
async fn all_arrives(site: &Site) {
    site.proxy.set(Network::Up);
    let kept = site.queue_number("next_seq");
    let agent = site.run();
    site.until_stored(usize::try_from(kept).expect("fits")).await;
    agent.stop();
    let stored = site.stored().await;
    assert_eq!(stored.len() as u64, site.queue_number("next_seq"));
    assert_distinct(&stored);
}

#[track_caller]
fn ends_soon(agent: &mut Process) -> String {
    let done = agent.finish(SOON);
    assert_eq!(done.code, Some(0), "{done:?}");
    done.stderr
}

/// C20: a backend that does not answer holds a stop for the deadline, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_ends_a_push_that_gets_no_answer() {
    let site = patient("1s").await;
    let mut agent = site.run();
    site.until_stored(3).await;
    site.proxy.set(Network::Silent);
    until_queued(&site, 10);
    agent.terminate();
    let log = ends_soon(&mut agent);
    assert!(log.contains("the shutdown deadline has come"), "{log}");
    all_arrives(&site).await;
}

/// C20: the second signal ends it whatever the deadline, with a backend that does not answer and
/// with one that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_signal_ends_it_at_once() {
    for (network, second) in [(Network::Silent, Signal::TERM), (Network::Down, Signal::INT)] {
        let site = patient("10min").await;
        let mut agent = site.run();
        site.until_stored(3).await;
        site.proxy.set(Network::Silent);
        until_queued(&site, 10);
        agent.terminate();
        until("it is stopping", LIMIT, || agent.stderr().contains("stopping"));
        site.proxy.set(network);
        agent.signal(second);
        let log = ends_soon(&mut agent);
        // With the backend not there, the last push may have failed before the signal came.
        let left = ["leaving at once", "stopped"].iter().any(|word| log.contains(word));
        assert!(left, "{log}");
        all_arrives(&site).await;
    }
}

/// A backend that is not there holds nothing: the deadline is for one that may answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_backend_does_not_hold_a_stop() {
    let site = patient("10min").await;
    let mut agent = site.run();
    site.until_stored(3).await;
    site.proxy.set(Network::Down);
    until_queued(&site, 10);
    agent.terminate();
    let log = ends_soon(&mut agent);
    assert!(log.contains("stopped"), "{log}");
    all_arrives(&site).await;
}

/// A collector that hangs in a system call for ever holds neither the others nor the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_does_not_hold_a_stop() {
    let site = Site::registered().await;
    let pipe = site.directory.path().join("postgresql.log");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("run mkfifo");
    assert!(made.success());
    let text = fs_err::read_to_string(site.config()).expect("read");
    // Nobody writes to the pipe: opening it does not return.
    let log = format!("[pg_log]\npath = {pipe:?}\nline_prefix = \"%m \"\ntimezone = \"UTC\"\n");
    let text = text.replace("[pg_log]\nenabled = false\n", &log);
    fs_err::write(site.config(), text).expect("write");
    let mut agent = site.run();
    site.until_stored(10).await;
    agent.terminate();
    ends_soon(&mut agent);
    fs_err::remove_file(&pipe).expect("remove");
    all_arrives(&site).await;
}
