//! How fast the backend admits a push of 1,000 documents: the body becomes documents that are held
//! against their declarations, one thread, no store.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use common::{document, median, result, timed};
use pganalytics::{
    clock,
    metric::{
        Maker, each_document,
        envelope::{AgentInfo, EnvelopeHead, PushRequest},
    },
};

const DOCUMENTS: u64 = 1_000;
const ROUNDS: u64 = 100;

fn main() {
    let now = clock::now();
    let rates = (0..ROUNDS).map(|round| {
        let numbers = round * DOCUMENTS..(round + 1) * DOCUMENTS;
        let metrics: Vec<_> = numbers.map(document).collect();
        let agent = AgentInfo::unknown(0);
        let head = EnvelopeHead {
            collector_id: "00000000-0000-0000-0000-000000000000",
            hostname: "bench",
            timestamp: now,
            agent: Some(&agent),
        };
        let mut body = Vec::new();
        head.encode(&metrics, &mut body);
        let (documents, took) = timed(|| {
            let push = PushRequest::parse(&body).expect("a push");
            let mut documents = Vec::with_capacity(push.metrics.len());
            for metric in push.metrics {
                let admitted = each_document(metric.get(), now, Maker::Ours, |sound, text| {
                    documents.push((sound.metric_type, sound.at, text.into_owned()));
                    Ok(())
                });
                admitted.expect("a sound document");
            }
            documents
        });
        assert_eq!(documents.len() as u64, DOCUMENTS, "each document is admitted");
        body.len() as f64 / 1e6 / took.as_secs_f64()
    });
    result("admit_mb_s", median(rates.collect()), "MB/s");
}
