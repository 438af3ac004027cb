//! `/metrics` of the control socket: what a scraper finds there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::proxy::Network;
use crate::support::site::Site;
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);
/// What the names of the series begin with.
const STAGES: [&str; 2] = ["agent_queue_", "agent_forward_"];

fn scrape(site: &Site) -> String {
    scrape_socket(&site.directory.path().join("state/control.sock"))
}

/// The text, without the head of the answer.
pub fn scrape_socket(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).expect("connect");
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    text.to_owned()
}

/// Series of queue and forwarder with their labels, and their values.
fn series(text: &str) -> BTreeMap<String, f64> {
    let of_these = |line: &&str| STAGES.iter().any(|stage| line.starts_with(stage));
    let lines = text.lines().filter(of_these);
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The numbers of queue and forwarder are those of the moment, each explained, and all of them are
/// in the operator's document with nothing beside them.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::float_cmp, reason = "these numbers are whole")]
async fn a_scraper_finds_the_queue() {
    let site = Site::registered().await;
    let agent = site.run();
    let mut flowing = BTreeMap::new();
    until("records are delivered", LIMIT, || {
        flowing = series(&scrape(&site));
        flowing["agent_queue_delivered_records_total"] >= 5.0
    });
    assert_eq!(flowing["agent_queue_bytes_max"], 1_073_741_824.0);
    assert_eq!(flowing["agent_queue_lost_records_total{reason=\"evict\"}"], 0.0);
    assert_eq!(flowing["agent_queue_degraded"], 0.0);
    assert_eq!(flowing["agent_queue_eta_full_seconds"], f64::INFINITY);
    assert_eq!(flowing["agent_forward_state{state=\"flowing\"}"], 1.0);
    assert_eq!(flowing["agent_forward_drain_eta_seconds"], 0.0);
    assert!(flowing["agent_forward_sent_bytes_total"] > 0.0);
    site.proxy.set(Network::Down);
    until("a backlog shows", LIMIT, || {
        let now = series(&scrape(&site));
        now["agent_queue_records"] > 10.0
            && now["agent_queue_oldest_age_seconds"] > 1.0
            && now["agent_queue_batches"] > 1.0
            && now["agent_queue_next_seq"] > flowing["agent_queue_next_seq"]
            && now["agent_queue_fill_ratio"] > 0.0
    });
    until("nothing may leave", LIMIT, || {
        let now = series(&scrape(&site));
        now["agent_forward_state{state=\"flowing\"}"] == 0.0
            && now["agent_forward_state{state=\"backing_off\"}"] == 1.0
            && now["agent_forward_next_try_seconds"] > 0.0
            && now["agent_forward_in_flight"] == 0.0
            && now["agent_forward_drain_eta_seconds"] == f64::INFINITY
    });
    let text = scrape(&site);
    let end = text.lines().find_map(|line| line.strip_prefix("agent_certificate_expires_seconds "));
    let days = end.and_then(|left| left.parse::<f64>().ok()).expect("a certificate") / 86_400.0;
    assert!((364.0..366.0).contains(&days), "{days}");
    let named = |line: &str| line.split([' ', '{']).next().map(str::to_owned);
    let found: BTreeSet<String> = series(&text).keys().filter_map(|name| named(name)).collect();
    for name in &found {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
    let document = include_str!("../docs/OPERATIONS.md");
    let cells =
        document.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
    let written: BTreeSet<String> = cells
        .filter(|cell| STAGES.iter().any(|stage| cell.starts_with(stage)))
        .map(str::to_owned)
        .collect();
    assert_eq!(written, found);
    agent.stop();
}
