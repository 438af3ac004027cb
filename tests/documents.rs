//! The documents say what the program does.

use std::collections::BTreeSet;

use pganalytics::backend::BackendConfig;
use pganalytics::link::failure_reasons;

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
