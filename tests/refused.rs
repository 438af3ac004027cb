//! Batches that the backend does not take: what is bad in them is found and put aside by itself.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::intake::{metric, push_of, run, site, stored_numbers};
use crate::support::until;

const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of JSON that the backend takes at once.
const TAKEN_BYTES: usize = 8 << 10;

/// C35: a backend that takes little at once gets a batch in parts, everything once; a metric that
/// is too large by itself goes to the dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_delivered_in_parts() {
    let (mut site, place) = site("").await;
    site.served.stop().await;
    site.served.config.limits.inflated_bytes_max = TAKEN_BYTES as u64;
    site.served.resume().await;
    let agent = run(&site, &place);
    let mut metrics: Vec<Value> = (0..300).map(metric).collect();
    metrics[70]["filler"] = json!("x".repeat(TAKEN_BYTES));
    let body = push_of(&metrics);
    assert!(body.len() > 2 * TAKEN_BYTES, "{} bytes", body.len());
    assert_eq!(place.push(&[], &body).expect("an answer").inserted(), 300);
    until("the batch is delivered", LIMIT, || dead(&site.queue()).len() == 1);
    let done = agent.stop();
    assert!(done.stderr.contains("it is sent in halves"), "{}", done.stderr);
    let expected: Vec<u64> = (0..300).filter(|n| *n != 70).collect();
    assert_eq!(stored_numbers(&site).await, expected);
    let [letter] = &dead(&site.queue())[..] else { panic!("one letter") };
    assert_eq!((&letter["metric"]["n"], &letter["status"]), (&json!(70), &json!(413)), "{letter}");
    assert!(letter["attempts"].as_u64() > Some(5) && letter["first_at"].is_string(), "{letter}");
}

fn dead(queue: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(queue.join("dead.ndjson")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
