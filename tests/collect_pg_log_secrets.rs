//! `pg_log`: what leaves of a log when `pg_log.redact` is on.

use std::collections::BTreeMap;

use pganalytics::collect::Collector;
use pganalytics::collect::pg_log::{PgLogCollector, Redaction};
use proptest::prelude::*;
use serde_json::Value;

use crate::collect_pg_log::Log;

/// The places of a log where a secret can stand, and the secret.
const CORPUS: &str = include_str!("pg_log/corpus.txt");
const SECRET: &str = "geheim7";

/// A process's lines, each as it stands in the log.
fn corpus(process: u32) -> Vec<String> {
    let lines = CORPUS.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &str| match line.strip_prefix('!') {
        Some(bare) => format!("{bare}\n"),
        None if line.starts_with('\t') => format!("{line}\n"),
        None => format!("2026-03-01 12:00:00.000 UTC [{process}] {line}\n"),
    };
    lines.map(line).collect()
}

/// What leaves of a log with this text.
async fn sent(text: &str, prefix: &str) -> Vec<Value> {
    let mut log = Log::new("pg.log");
    log.config.redaction = Redaction::On;
    log.config.prefix = Some(prefix.to_owned());
    log.collector = PgLogCollector::new(log.config.clone(), None);
    log.append("pg.log", text);
    log.read().await.metrics
}

#[tokio::test]
async fn no_secret_leaves_in_any_language() {
    let metrics = sent(&corpus(7).concat(), "%m [%p] ").await;
    let text = serde_json::to_string(&metrics).expect("encodes").to_lowercase();
    assert!(!text.contains(SECRET), "{text}");
    // What is redacted is not lost: the levels of every language are counted.
    let mut levels: BTreeMap<&str, usize> = BTreeMap::new();
    let entries = metrics.iter().flat_map(|metric| metric["entries"].as_array().expect("a list"));
    for entry in entries {
        *levels.entry(entry["level"].as_str().expect("a level")).or_default() += 1;
    }
    let expected = [
        ("DEBUG", 1),
        ("DEBUG1", 1),
        ("ERROR", 34),
        ("FATAL", 3),
        ("INFO", 1),
        ("LOG", 37),
        ("NOTICE", 3),
        ("PANIC", 2),
        ("WARNING", 6),
    ];
    assert_eq!(levels.into_iter().collect::<Vec<_>>(), expected);
}

/// With redaction off everything is sent as the server wrote it: it is the host's choice.
#[tokio::test]
async fn a_host_may_send_everything() {
    let mut log = Log::new("pg.log");
    log.append("pg.log", &corpus(7).concat());
    let text = serde_json::to_string(&log.read().await.metrics).expect("encodes");
    assert!(text.matches(SECRET).count() > 100, "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Lines of several processes in any order and any number, and prefixes that are not the
    /// server's: nothing that is not a name of the prefix leaves.
    #[test]
    fn no_secret_leaves_whatever_the_order(
        picks in proptest::collection::vec((0..1_000_usize, 7..9_u32), 1..60),
        prefix in prop_oneof![
            Just("%m [%p] ".to_owned()),
            Just("%m [%p] %q%u@%d ".to_owned()),
            Just("%m [%p] %u@%d ".to_owned()),
            Just("%m [7] ".to_owned()),
            Just("%m ".to_owned()),
            "%m \\[%p\\] ?%[audrheclq]?[ @:,'(=]{0,2}%?[audrhelq]?[ '\"]?",
        ],
    ) {
        let corpora = [corpus(7), corpus(8)];
        let text: String = picks
            .iter()
            .map(|(line, process)| {
                let lines = &corpora[usize::from(*process == 8)];
                lines[line % lines.len()].as_str()
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let metrics = runtime.block_on(async {
            let mut log = Log::new("pg.log");
            log.config.redaction = Redaction::On;
            log.config.prefix = Some(prefix);
            log.restart();
            log.append("pg.log", &text);
            let later = pganalytics::clock::now() + std::time::Duration::from_secs(60);
            // A prefix that fits nothing is an error, and nothing leaves.
            let collected = log.collector.collect(later).await;
            collected.map(|collected| collected.metrics).unwrap_or_default()
        });
        for entry in metrics.iter().flat_map(|m| m["entries"].as_array().expect("a list")) {
            let mut entry = entry.clone();
            entry["level"] = Value::Null;
            let text = entry.to_string().to_lowercase();
            prop_assert!(!text.contains(SECRET), "{text}");
        }
    }
}
