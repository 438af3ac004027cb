//! The documents say what the program does.

use pganalytics::backend::BackendConfig;

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
