//! How fast a batch becomes a body: envelope, gzip or zstd.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use common::{document, median, result, timed};
use pganalytics::{
    clock,
    forward::batch::{self, Packing},
    metric::envelope::EnvelopeHead,
};

const BATCH_RECORDS: u64 = 1_000;
const ROUNDS: u64 = 40;

fn main() {
    for (packing, suffix) in [
        (Packing::Gzip(1), "_level_1"),
        (Packing::Gzip(6), ""), // the default
        (Packing::Zstd(3), "_zstd"),
    ] {
        let (mut rates, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let first = round * BATCH_RECORDS;
            let metrics: Vec<_> = (first..first + BATCH_RECORDS).map(document).collect();
            let head = EnvelopeHead {
                collector_id: "00000000-0000-0000-0000-000000000000",
                hostname: "bench",
                timestamp: clock::now(),
                agent: None,
            };
            let (body, took) = timed(|| batch::encode(&head, &metrics, packing));
            rates.push(body.raw_bytes as f64 / 1e6 / took.as_secs_f64());
            ratios.push(body.bytes.len() as f64 / body.raw_bytes as f64);
        }
        result(&format!("encode_mb_s{suffix}"), median(rates), "MB/s");
        result(&format!("encode_ratio{suffix}"), median(ratios), "1");
    }
}
