//! How a backend starts: its keys are made once, kept, and never written over.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use http::Method;
use pganalytics::backend::{Backend, BackendConfig};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::support::backend::{Ask, Served};
use crate::support::hostile::Target;
use crate::support::process::{agent, run};

async fn refusal(config: &BackendConfig) -> String {
    match Backend::start(config.clone()).await {
        Ok(_) => panic!("it starts"),
        Err(err) => err.to_string(),
    }
}

fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("read the directory");
    let entries = entries.map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).expect("read a file"))
        })
        .collect()
}

/// Everything secret is its owner's alone, and stays the same over restarts.
#[tokio::test]
async fn keys_are_private_and_kept() {
    let mut served = Served::start().await;
    let keys = served.config.data_dir.join("keys");
    for directory in [&served.config.data_dir, &keys] {
        let mode = std::fs::metadata(directory).expect("metadata").mode();
        assert_eq!(mode & 0o777, 0o700, "{}", directory.display());
    }
    let first = contents(&keys);
    assert_eq!(first.len(), 7);
    for name in first.keys() {
        let mode = std::fs::metadata(keys.join(name)).expect("metadata").mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let host = served.register("db1").await;
    let address = served.running().address();
    served.stop().await;
    served.resume().await;
    assert_eq!(contents(&keys), first);
    // C56: the host goes on with what it has, on the same port.
    assert_eq!(served.running().address(), address);
    assert_eq!(host.push(json!([])).await.status, 200);
}

/// With half of its keys, or keys of another backend, it does not start, and makes no new ones.
#[tokio::test]
async fn half_a_set_of_keys_is_refused() {
    let mut served = Served::start().await;
    served.stop().await;
    let keys = served.config.data_dir.join("keys");
    for (name, bytes) in contents(&keys) {
        if name == "server.crt" {
            continue; // it can be made anew
        }
        std::fs::remove_file(keys.join(&name)).expect("remove");
        let before = contents(&keys);
        let message = refusal(&served.config).await;
        assert!(message.contains(&name) && message.contains("hint: restore"), "{message}");
        assert_eq!(contents(&keys), before);
        std::fs::write(keys.join(&name), bytes).expect("write");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(keys.join(&name), mode).expect("chmod");
    }
    let away = served.config.data_dir.join("away");
    std::fs::rename(&keys, &away).expect("rename");
    let message = refusal(&served.config).await;
    assert!(message.contains("is missing"), "{message}");
    assert!(!keys.exists());
    let other = Served::start().await;
    std::fs::rename(other.config.data_dir.join("keys"), &keys).expect("rename");
    let message = refusal(&served.config).await;
    assert!(message.contains("sealed with other keys"), "{message}");
    std::fs::remove_dir_all(&keys).expect("remove");
    std::fs::rename(&away, &keys).expect("rename");
    served.resume().await;
}

/// The server certificate is made anew from the authority when it is missing: hosts notice nothing.
#[tokio::test]
async fn a_missing_server_certificate_is_made_anew() {
    let mut served = Served::start().await;
    let host = served.register("db1").await;
    served.stop().await;
    let keys = served.config.data_dir.join("keys");
    let before = contents(&keys);
    std::fs::remove_file(keys.join("server.crt")).expect("remove");
    served.resume().await;
    let mut after = contents(&keys);
    assert_eq!(host.push(json!([])).await.status, 200);
    let anew = after.insert("server.crt".to_owned(), before["server.crt"].clone());
    assert_ne!(anew.as_ref(), before.get("server.crt"));
    assert_eq!(after, before, "nothing else has changed");
}

/// A certificate that has to be made anew is, while the backend serves: new connections see it.
#[tokio::test]
async fn the_server_certificate_is_renewed_without_a_restart() {
    let served = Served::start().await;
    let host = served.register("db1").await;
    let running = served.running();
    let target = Target::new(running.address(), running.ca_certificate());
    let shown = async || {
        let stream = target.half_a_body("", 0).await.expect("a connection");
        stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
    };
    let first = shown().await;
    running.renew_certificate().await.expect("nothing to do");
    assert_eq!(shown().await, first);
    std::fs::remove_file(served.config.data_dir.join("keys/server.crt")).expect("remove");
    assert_eq!(shown().await, first);
    running.renew_certificate().await.expect("made anew");
    assert_ne!(shown().await, first);
    assert_eq!(host.push(json!([])).await.status, 200);
}

/// A key that others can read, or that is none, is named; certificates may be read by anyone.
#[tokio::test]
async fn an_open_or_damaged_key_is_refused() {
    let mut served = Served::start().await;
    served.stop().await;
    let keys = served.config.data_dir.join("keys");
    let chmod = |name: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(keys.join(name), mode).expect("chmod");
    };
    chmod("token.key", 0o640);
    let message = refusal(&served.config).await;
    assert!(message.contains("token.key can be read by others"), "{message}");
    chmod("token.key", 0o600);
    for name in ["token.key", "sealing.key", "registration-secret", "ca.key", "server.key"] {
        let bytes = std::fs::read(keys.join(name)).expect("read");
        std::fs::write(keys.join(name), "short").expect("write");
        let message = refusal(&served.config).await;
        assert!(message.contains(name) || name == "server.key", "{name}: {message}");
        std::fs::write(keys.join(name), bytes).expect("write");
    }
    chmod("ca.crt", 0o644);
    served.resume().await;
}

/// Other names make another server certificate of the same authority.
#[tokio::test]
async fn new_names_make_a_new_server_certificate() {
    let mut served = Served::start_with(|config| config.server_names = vec!["::1".into()]).await;
    let refused = served.stranger().try_send(Ask::new(Method::GET, "/version")).await;
    assert!(refused.is_err(), "a certificate for another name is taken");
    served.stop().await;
    served.config.server_names = vec!["127.0.0.1".into(), "localhost".into()];
    served.resume().await;
    assert_eq!(served.stranger().get("/version", "x").await.status, 200);
}

/// The registration secret may come from a file of the owner's.
#[tokio::test]
async fn the_registration_secret_may_be_given() {
    let directory = crate::support::directory();
    let file = directory.path().join("secret");
    std::fs::write(&file, "a secret of my own\n").expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let served =
        Served::start_with(|config| config.registration_secret_file = Some(file.clone())).await;
    let secret = served.running().registration_secret();
    assert_eq!(secret.expose_secret(), "a secret of my own");
    assert_eq!(served.running().secret_file(), file);
}

/// C52: health and version.
#[tokio::test]
async fn health_and_version_are_for_anyone() {
    let served = Served::start().await;
    let client = served.stranger();
    let health = client.get("/api/v1/health", "x").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    let body = health.json();
    assert_eq!((&body["database_ok"], &body["timescale_ok"]), (&json!(true), &json!(true)));
    assert!(body["uptime"].is_u64() && body["version"].is_string(), "{body}");
    assert!(body["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')));
    let version = client.with_http2().get("/version", "x").await.json();
    assert_eq!(
        (&version["api"], &version["encodings"]),
        (&json!("1.0.0"), &json!(["gzip", "zstd"]))
    );
}

/// A port that is taken, and a setting that is wrong, end the program with words and a code.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_says_why_it_does_not_serve() {
    let served = Served::start().await;
    let directory = crate::support::directory();
    let file = directory.path().join("backend.toml");
    let start = async |text: String| {
        std::fs::write(&file, text).expect("write");
        let file = file.to_str().expect("UTF-8").to_owned();
        let work = move || run(agent(["backend", "--config", &file]));
        tokio::task::spawn_blocking(work).await.expect("no panic")
    };
    let address = served.running().address();
    let data = directory.path().join("data");
    let finished = start(format!(
        "[backend]\nlisten = \"{address}\"\npage_listen = \"off\"\ndata_dir = {data:?}\n"
    ))
    .await;
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let expected = format!(
        "agent backend: cannot listen on {address}: Address already in use (os error 98)\n  \
         hint: is another backend running?\n"
    );
    assert!(finished.stderr.ends_with(&expected), "{}", finished.stderr);
    let finished = start("[backend]\npage_listen = \"0.0.0.0:0\"\n".to_owned()).await;
    assert_eq!(finished.code, Some(64), "{}", finished.stderr);
    assert!(finished.stderr.contains("backend.toml:2: backend.page_listen"), "{}", finished.stderr);
    let finished = start("[backend]\nlisten_at = 5\n".to_owned()).await;
    assert_eq!(finished.code, Some(64), "{}", finished.stderr);
    assert!(finished.stderr.contains("did you mean `listen`?"), "{}", finished.stderr);
}
