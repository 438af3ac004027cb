//! The documents say what the program does.

use std::collections::BTreeSet;

use pganalytics::backend::BackendConfig;
use pganalytics::config::Config;
use pganalytics::config::reader::Change;
use pganalytics::link::failure_reasons;
use pganalytics::metric::catalogue;

/// Every reason why nothing is delivered has its row among those for operators.
#[test]
fn operations_document_has_every_reason() {
    let text = document("docs/OPERATIONS.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let written: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let missing: Vec<_> = failure_reasons().filter(|reason| !written.contains(reason)).collect();
    assert!(missing.is_empty(), "rows are missing: {missing:?}");
}

fn document(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    fs_err::read_to_string(root.join(path)).expect("read a document")
}

/// Every key of the backend has its row, with the default that the program has.
#[test]
fn configuration_document_has_every_backend_key() {
    let text = document("docs/CONFIGURATION.md");
    let missing: Vec<String> = BackendConfig::keys()
        .into_iter()
        .map(|key| format!("| `{}.{}` | `{}` | ", key.section, key.name, key.default))
        .filter(|row| !text.contains(row))
        .collect();
    assert!(missing.is_empty(), "rows are missing:\n{}", missing.join("\n"));
}

/// The rows of a section of the configuration document, without the table's head.
fn rows(heading: &str) -> Vec<String> {
    let text = document("docs/CONFIGURATION.md");
    let (_, rest) = text.split_once(&format!("\n### {heading}\n")).expect(heading);
    let section = rest.split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(str::to_owned);
    sorted(rows.collect())
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

/// The keys that take effect at a start only are listed, and no others are.
#[test]
fn configuration_document_says_what_takes_a_restart() {
    let keys = Config::keys().into_iter().filter(|key| key.change == Change::Restart);
    let expected = sorted(keys.map(|key| format!("| `{}` |", key.path())).collect());
    assert_eq!(rows("What takes a restart"), expected, "{}", expected.join("\n"));
}

/// The keys that a backend may set are listed with the reason, and no others are.
#[test]
fn configuration_document_says_what_is_the_backends() {
    let keys = Config::keys();
    let remote =
        keys.iter().filter_map(|key| key.remote.map(|why| format!("| `{}` | {why} |", key.path())));
    let expected = sorted(remote.collect());
    assert_eq!(rows("What the backend may set"), expected, "{}", expected.join("\n"));
}

/// The list of metrics is the declarations'; `agent metrics --markdown` writes it.
#[test]
fn metrics_document_is_the_declarations() {
    let (written, declared) = (document("docs/METRICS.md"), catalogue::markdown());
    let differs = written.lines().zip(declared.lines()).find(|(written, now)| written != now);
    assert_eq!(differs, None, "`agent metrics --markdown > docs/METRICS.md`");
    assert_eq!(written.len(), declared.len());
}
