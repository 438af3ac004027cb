//! Registration: what is sent and kept, and that a failure leaves an earlier identity whole.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pganalytics::clock;
use pganalytics::link::register::{Contact, RegisterError, Registration, register};
use pganalytics::link::tls::{Fingerprint, certificates_from_pem};
use pganalytics::link::{Identity, Link, LinkConfig, Push, SendErrorKind, TlsConfig};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::link_tls::{SECRET, push};
use crate::support::backend::Served;
use crate::support::backend_stub::{Authority, Clients, Flaw, Recorded, Reply, Stub, set_mode};
use crate::support::directory;
use crate::support::disk::Disk;

const COLLECTOR: &str = "0b0e8f4c-0000-4000-8000-000000000001";

/// Something that is wrong with a certificate.
type Change = fn(&mut CertificateParams);

/// What makes a certificate one that cannot be shown, and what is said of it.
pub const UNUSABLE: [(Change, &str); 3] = [
    (|params| params.not_after = date_time_ymd(2020, 1, 1), "is good from"),
    (|params| params.not_before = date_time_ymd(2200, 1, 1), "is good from 2200"),
    (
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        "is not for clients",
    ),
];

/// A backend that registers, and an empty host.
pub struct World {
    authority: Arc<Authority>,
    pub stub: Stub,
    folder: TempDir,
}

impl World {
    pub async fn new() -> Self {
        let authority = Arc::new(Authority::new("test CA"));
        let stub = Stub::https(&authority.server(Flaw::None), Clients::Anyone).await;
        Self { authority, stub, folder: directory() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The CA is known by its fingerprint, and no file exists yet.
    pub fn registration(&self) -> Registration {
        let tls = TlsConfig {
            verify: true,
            cert_file: self.path("tls/collector.crt"),
            key_file: self.path("tls/collector.key"),
            ..TlsConfig::default()
        };
        Registration {
            link: self.stub.link_config(tls),
            state_dir: self.path("state"),
            name: "db-1".to_owned(),
            hostname: "db.example".to_owned(),
            contact: Contact::Fingerprint(Fingerprint::of(&self.authority.der())),
            secret: Some(SecretString::from("the registration secret")),
        }
    }

    /// The next registration is answered with a certificate for the request's key and `extra`.
    pub fn accepts(&self, extra: &Value) {
        let (authority, extra) = (Arc::clone(&self.authority), extra.clone());
        self.stub.reply([Reply::Made(Arc::new(move |request: &Recorded| {
            let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
            let mut answer = json!({
                "collector_id": COLLECTOR,
                "token": "token",
                "certificate": authority.sign(sent["csr"].as_str().expect("a request")),
                "ca_certificate": authority.pem(),
                "secret": SECRET,
                "expires_at": "2030-01-01T00:00:00Z",
                "certificate_expires_at": "2031-01-01T00:00:00Z",
            });
            for (key, value) in extra.as_object().expect("an object") {
                answer[key] = value.clone();
            }
            (200, Bytes::from(answer.to_string()))
        }))]);
    }

    /// The next registration is answered with what `sign` makes of the request for signing.
    fn answers_with(&self, sign: impl Fn(&str) -> String + Send + Sync + 'static) {
        self.stub.reply([Reply::Made(Arc::new(move |request: &Recorded| {
            let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
            let certificate = sign(sent["csr"].as_str().expect("a request"));
            let answer =
                json!({"collector_id": COLLECTOR, "certificate": certificate, "secret": SECRET});
            (200, Bytes::from(answer.to_string()))
        }))]);
    }

    /// Every file below the host's folder with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => _ = files.insert(path.clone(), std::fs::read(path).expect("a file")),
                }
            }
        }
        files
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

#[tokio::test]
async fn registration_writes_what_the_agent_needs_to_push() {
    let world = World::new().await;
    world.accepts(&json!({}));
    let registered = register(&world.registration()).await.expect("registered");

    let request = &world.stub.requests()[0];
    assert_eq!(request.path, "/api/v1/collectors/register");
    assert_eq!(request.header("x-registration-secret"), "the registration secret");
    let sent: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!((&sent["name"], &sent["hostname"]), (&json!("db-1"), &json!("db.example")));
    assert!(!String::from_utf8_lossy(&request.body).contains("PRIVATE KEY"));

    let names = ["tls/collector.key", "tls/collector.crt", "tls/ca.crt", "state/identity.json"];
    assert_eq!(registered.written, names.map(|name| world.path(name)));
    assert_eq!(mode(&world.path("tls/collector.key")), 0o600);
    assert_eq!(mode(&world.path("state/identity.json")), 0o600);
    assert_eq!(world.files().len(), names.len() + 1, "and the lock: {:?}", world.files().keys());

    let identity = Identity::load(&world.path("state")).expect("an identity");
    assert_eq!(identity.collector_id, COLLECTOR);
    assert_eq!((identity.name.as_str(), identity.hostname.as_str()), ("db-1", "db.example"));
    assert_eq!(identity.backend_url, world.stub.url());
    assert_eq!(identity.secret.as_ref().expect("a secret").expose_secret(), SECRET);
    assert_eq!(identity.ca_file, Some(world.path("tls/ca.crt")));
    assert!(!format!("{identity:?}").contains(SECRET));

    // What was written is enough for a push to a server that asks for certificates.
    let server = world.authority.server(Flaw::None);
    let stub = Stub::https(&server, Clients::Of(&world.authority)).await;
    let config = LinkConfig { url: stub.url(), ..world.registration().link };
    let answer = Link::new(&config, identity).expect("usable").push(push()).await;
    assert_eq!(answer.expect("answered").status, 200);
    assert!(stub.requests()[0].client_certificate.is_some());
}

/// The backend itself: trusted by its CA's fingerprint, and pushed to with a token of our own
/// minting and the certificate that it has just signed.
#[tokio::test]
async fn real_backend_takes_a_push_after_a_registration_by_fingerprint() {
    let served = Served::start().await;
    let world = World::new().await;
    let running = served.running();
    let ca = certificates_from_pem(running.ca_certificate().as_bytes(), "ca").expect("a CA");
    let mut registration = world.registration();
    registration.link.url = format!("https://{}", running.address());
    registration.contact = Contact::Fingerprint(Fingerprint::of(&ca[0]));
    registration.secret = Some(SecretString::from("not the secret"));
    let error = register(&registration).await.expect_err("another secret");
    assert!(matches!(error, RegisterError::Refused(_)), "{error}");
    registration.secret = Some(SecretString::from(served.secret()));
    let identity = register(&registration).await.expect("registered").identity;

    let envelope = json!({
        "collector_id": identity.collector_id, "hostname": "db.example", "version": "1.0.0",
        "timestamp": clock::rfc3339(clock::now()), "metrics_count": 0, "metrics": [],
    });
    let link = Link::new(&registration.link, identity).expect("usable");
    let body = Bytes::from(envelope.to_string());
    let push = Push { body, encoding: "identity", batch_id: None };
    let answer = link.push(push).await.expect("answered");
    assert_eq!(answer.status, 200, "{}", answer.message());
}

/// The backend proves itself before it is told the secret.
#[tokio::test]
async fn secret_is_not_sent_to_an_unknown_backend() {
    let world = World::new().await;
    let check = async |contact| {
        let registration = Registration { contact, ..world.registration() };
        let error = register(&registration).await.expect_err("unknown backend");
        let RegisterError::Send(error) = error else { panic!("{error}") };
        assert_eq!(error.kind, SendErrorKind::TlsUnknownIssuer, "{error}");
        let files = world.files();
        assert_eq!(files.keys().filter(|path| !path.ends_with("register.lock")).count(), 0);
    };
    let stranger = Authority::new("stranger");
    check(Contact::Fingerprint(Fingerprint::of(&stranger.der()))).await;
    std::fs::create_dir(world.path("elsewhere")).expect("a folder");
    let other = directory();
    let file = other.path().join("ca.crt");
    std::fs::write(&file, stranger.pem()).expect("write");
    check(Contact::Ca(file)).await;
    check(Contact::Configured).await;
    assert!(world.stub.requests().is_empty());
}

#[tokio::test]
async fn known_ca_file_is_trusted_and_kept() {
    let world = World::new().await;
    let file = world.path("known.crt");
    std::fs::write(&file, world.authority.pem()).expect("write");
    world.accepts(&json!({}));
    let contact = Contact::Ca(file.clone());
    register(&Registration { contact, ..world.registration() }).await.expect("registered");
    let written = std::fs::read_to_string(world.path("tls/ca.crt")).expect("written");
    assert_eq!(written.matches("BEGIN CERTIFICATE").count(), 1, "the same CA once");

    // A second registration finds that CA by itself.
    world.accepts(&json!({}));
    let again = Registration { contact: Contact::Configured, ..world.registration() };
    register(&again).await.expect("registered again");
}

/// A CA file of the operator's is read and never written, wherever it lies.
#[tokio::test]
async fn configured_ca_file_is_only_read() {
    for name in ["known.crt", "tls/ca.crt"] {
        let world = World::new().await;
        let file = world.path(name);
        let text = format!("# ours\n{}", world.authority.pem());
        std::fs::create_dir(world.path("tls")).expect("a folder");
        std::fs::write(&file, &text).expect("write");
        world.accepts(&json!({}));
        let mut registration = world.registration();
        registration.contact = Contact::Configured;
        registration.link.tls.ca_file = Some(file.clone());
        let registered = register(&registration).await.expect("registered");
        assert_eq!(std::fs::read_to_string(&file).expect("still there"), text);
        assert_ne!(registered.identity.ca_file, Some(file));
    }
}

#[tokio::test]
async fn missing_ca_file_is_refused_before_contact() {
    let world = World::new().await;
    let mut registration = Registration { contact: Contact::Configured, ..world.registration() };
    registration.link.tls.ca_file = Some(world.path("absent.crt"));
    let error = register(&registration).await.expect_err("no such file").to_string();
    assert!(error.contains("absent.crt does not exist; hint: pass --ca FILE"), "{error}");
    let contact = Contact::Ca(world.path("absent.crt"));
    let error = register(&Registration { contact, ..world.registration() }).await;
    let error = error.expect_err("no such file").to_string();
    assert!(error.contains("hint: it is `keys/ca.crt` in the backend's data"), "{error}");
    assert!(world.stub.requests().is_empty());
}

#[tokio::test]
async fn refusals_are_said_in_plain_words_and_leave_the_old_identity() {
    let world = World::new().await;
    world.accepts(&json!({}));
    register(&world.registration()).await.expect("registered");
    let before = world.files();
    let check = async |status, headers: &[(&'static str, &str)], parts: &[&str]| {
        let body = format!(r#"{{"code":{status},"error":"x","message":"the reason"}}"#);
        world.stub.reply([Reply::with(status, headers, &body)]);
        let error = register(&world.registration()).await.expect_err("refused");
        assert!(matches!(error, RegisterError::Refused(_)), "{error}");
        for part in parts.iter().chain(&["; hint: "]) {
            assert!(error.to_string().contains(part), "{status}: {error} lacks {part:?}");
        }
        assert_eq!(world.files(), before, "{status}");
    };
    check(400, &[], &["the reason", "--name"]).await;
    check(401, &[], &["does not accept the registration secret"]).await;
    check(403, &[], &["does not accept the registration secret"]).await;
    let body = r#"{"code":401,"error":"x","message":"the reason"}"#;
    world.stub.reply([Reply::with(401, &[], body)]);
    let by_certificate = Registration { secret: None, ..world.registration() };
    let error = register(&by_certificate).await.expect_err("refused").to_string();
    assert!(error.contains("does not accept the certificate of this host"), "{error}");
    assert!(error.contains("collector release NAME`, and pass it with --secret-file"), "{error}");
    check(404, &[], &["has no registration", "backend.url"]).await;
    check(
        409,
        &[],
        &["does not register \"db-1\": the reason", "backend collector release", "set --name"],
    )
    .await;
    check(302, &[("location", "https://127.0.0.1:1/")], &["redirects elsewhere"]).await;
    check(429, &[("retry-after", "90")], &["try again in 1min 30s"]).await;
    check(503, &[], &["cannot register this host now", "nothing on this host has changed"]).await;
}

#[tokio::test]
async fn unusable_answers_leave_the_old_identity() {
    let world = World::new().await;
    world.accepts(&json!({}));
    register(&world.registration()).await.expect("registered");
    let before = world.files();
    let check = async |extra: Value, part: &str| {
        world.accepts(&extra);
        let error = register(&world.registration()).await.expect_err("unusable");
        assert!(matches!(error, RegisterError::Setup(_)), "{error}");
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        assert_eq!(world.files(), before, "{extra}");
    };
    for id in ["", "c-1", "..", &format!("{COLLECTOR}\r\nregistered"), &format!("{{{COLLECTOR}}}")]
    {
        check(json!({"collector_id": id}), "collector_id is not a UUID").await;
    }
    check(json!({"collector_id": 7}), "cannot be used").await;
    check(json!({"secret": null, "token": null}), "neither secret nor token").await;
    check(json!({"certificate": "nonsense"}), "holds no certificate").await;
    check(json!({"ca_certificate": "nonsense"}), "holds no certificate").await;
    check(json!({"expires_at": "soon"}), "cannot be used").await;
    let foreign = world.authority.client();
    check(json!({"certificate": foreign.cert_pem}), "is for another key").await;
    let refuses = async |sign: Box<dyn Fn(&str) -> String + Send + Sync>, part: &str| {
        world.answers_with(sign);
        let error = register(&world.registration()).await.expect_err("unusable");
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        assert_eq!(world.files(), before, "{part}");
    };
    for (change, part) in UNUSABLE {
        let authority = Arc::clone(&world.authority);
        refuses(Box::new(move |csr| authority.sign_with(csr, change)), part).await;
    }
    let other = Authority::new("test CA");
    refuses(Box::new(move |csr| other.sign(csr)), "is not of the authority").await;
    world.stub.reply([Reply::with(200, &[], "<html>")]);
    let error = register(&world.registration()).await.expect_err("no JSON").to_string();
    assert!(error.contains("cannot be used"), "{error}");
    world.stub.reply([Reply::Close]);
    let error = register(&world.registration()).await.expect_err("no answer");
    assert!(matches!(error, RegisterError::Send(_)), "{error}");
    assert_eq!(world.files(), before);
}

#[tokio::test]
async fn second_registration_replaces_the_first_as_a_whole() {
    let world = World::new().await;
    world.accepts(&json!({}));
    register(&world.registration()).await.expect("registered");
    let before = world.files();
    let id = "0b0e8f4c-0000-4000-8000-000000000002";
    world.accepts(&json!({"collector_id": id}));
    let registered = register(&world.registration()).await.expect("registered");
    assert_eq!(registered.identity.collector_id, id);
    let after = world.files();
    for name in ["tls/collector.key", "tls/collector.crt", "state/identity.json"] {
        assert_ne!(after[&world.path(name)], before[&world.path(name)], "{name}");
    }
}

#[tokio::test]
async fn damaged_identity_is_replaced_by_a_new_registration() {
    let world = World::new().await;
    std::fs::create_dir(world.path("state")).expect("a folder");
    std::fs::write(world.path("state/identity.json"), "{").expect("write");
    world.accepts(&json!({}));
    let registered = register(&world.registration()).await.expect("registered");
    assert_eq!(registered.identity.collector_id, COLLECTOR);
}

/// An older backend ignores the request for signing, makes the key, and gives no secret.
#[tokio::test]
async fn older_backend_that_makes_the_key_is_understood() {
    let world = World::new().await;
    let made = world.authority.client();
    let key = made.key.serialize_pem();
    world.accepts(&json!({
        "certificate": made.cert_pem, "private_key": key, "secret": null, "ca_certificate": null,
    }));
    register(&world.registration()).await.expect("registered");
    let kept = std::fs::read_to_string(world.path("tls/collector.key")).expect("written");
    assert_eq!(kept, key);
    assert_eq!(mode(&world.path("tls/collector.key")), 0o600);
    let identity = Identity::load(&world.path("state")).expect("an identity");
    assert!(identity.secret.is_none());
    assert!(identity.token.is_some());
}

/// A folder that cannot be written shows before the backend enrols this host.
#[tokio::test]
async fn unwritable_places_are_found_before_contact() {
    let world = World::new().await;
    std::fs::write(world.path("file"), "").expect("write");
    let mut registration = world.registration();
    registration.link.tls.cert_file = world.path("file/collector.crt");
    let error = register(&registration).await.expect_err("no folder");
    assert!(matches!(error, RegisterError::Setup(_)), "{error}");
    assert!(error.to_string().contains("file"), "{error}");
    assert!(world.stub.requests().is_empty());
    assert!(!world.path("tls/collector.key.new").exists());
}

/// So does a disk that has no room for the answer, and the files are gone again.
#[tokio::test]
async fn a_full_disk_is_found_before_contact() {
    let Some(disk) = Disk::new(16) else { return };
    let world = World::new().await;
    let mut registration = world.registration();
    registration.state_dir = disk.root().join("state");
    fs_err::create_dir(&registration.state_dir).expect("a folder");
    let filling = disk.root().join("filling");
    let mut file = fs_err::File::create(&filling).expect("a file");
    while file.write_all(&[0; 4096]).and_then(|()| file.sync_all()).is_ok() {}
    // Room for an empty file, or a small one.
    let length = file.metadata().expect("its length").len();
    file.set_len(length - (8 << 10)).expect("a little room");
    file.sync_all().expect("synced");
    let error = register(&registration).await.expect_err("no room");
    assert!(matches!(error, RegisterError::Setup(_)), "{error}");
    assert!(world.stub.requests().is_empty());
    let left = fs_err::read_dir(&registration.state_dir).expect("listed").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{left:?}");
}

/// Cut short before its point of no return a registration changes nothing, after it nothing is
/// missing.
#[tokio::test]
async fn interrupted_registration_is_whole_or_not_there() {
    let world = World::new().await;
    world.accepts(&json!({}));
    register(&world.registration()).await.expect("registered");
    let id = "0b0e8f4c-0000-4000-8000-000000000002";
    let identity_file = world.path("state/identity.json");
    let key_file = world.path("tls/collector.key");
    let next = |path: &Path| PathBuf::from(format!("{}.new", path.display()));
    let text = std::fs::read_to_string(&identity_file).expect("an identity");
    std::fs::write(next(&identity_file), text.replace(COLLECTOR, id)).expect("write");
    std::fs::write(next(&key_file), "the next key").expect("write");
    set_mode(&next(&identity_file), 0o600);

    let load = || Identity::load(&world.path("state")).expect("an identity").collector_id;
    assert_eq!(load(), COLLECTOR);

    let journal = world.path("state/registration.json");
    std::fs::write(&journal, json!({"files": [key_file, identity_file]}).to_string())
        .expect("write");
    set_mode(&journal, 0o600);
    assert_eq!(load(), id);
    assert_eq!(std::fs::read_to_string(&key_file).expect("moved"), "the next key");
    assert!(!journal.exists());
    assert_eq!(load(), id);
}

#[test]
fn unusable_identities_are_refused_with_a_hint() {
    let check = |text: Option<&str>, mode: u32, parts: &[&str]| {
        let folder = directory();
        let file = folder.path().join("identity.json");
        if let Some(text) = text {
            std::fs::write(&file, text).expect("write");
            set_mode(&file, mode);
        }
        let error = Identity::load(folder.path()).expect_err("unusable").to_string();
        for part in parts.iter().chain(&["identity.json", "; hint: "]) {
            assert!(error.contains(part), "{error} lacks {part:?}");
        }
    };
    check(None, 0o600, &["is not registered", "agent register"]);
    check(Some(""), 0o600, &["is damaged"]);
    check(Some("{\"version\":1}"), 0o600, &["is damaged: missing field"]);
    check(Some("{}"), 0o644, &["can be read by others (mode 0644)", "chmod 600"]);
}
