//! The client certificate is renewed while the agent runs: against the real backend, and against
//! ones that do not do it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use pganalytics::backend::store::{Audit, Page, Renewal};
use pganalytics::link::register::{Contact, Registration, register};
use pganalytics::link::{CertificateState, Identity, Link, LinkConfig, Push, TlsConfig, renew};
use pganalytics::{clock, shutdown};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::link_register::UNUSABLE;
use crate::support::backend::Served;
use crate::support::backend_stub::{Authority, Clients, Flaw, Recorded, Reply, Stub, set_mode};
use crate::support::{directory, until_async};

const LIMIT: Duration = Duration::from_secs(30);

/// A host that is registered with a real backend.
pub struct Site {
    pub served: Served,
    pub folder: TempDir,
    pub config: LinkConfig,
}

impl Site {
    pub async fn registered() -> Self {
        Self::of(Served::start().await).await
    }

    pub async fn of(served: Served) -> Self {
        let folder = directory();
        let at = |name: &str| folder.path().join(name);
        let config = LinkConfig {
            url: format!("https://127.0.0.1:{}", served.running().address().port()),
            request_timeout: Duration::from_secs(10),
            tls: TlsConfig {
                cert_file: at("collector.crt"),
                key_file: at("collector.key"),
                ..TlsConfig::default()
            },
            ..LinkConfig::default()
        };
        let registration = Registration {
            link: config.clone(),
            state_dir: at("state"),
            name: "db1".to_owned(),
            hostname: "db1.example.com".to_owned(),
            contact: Contact::Ca(served.running().ca_file()),
            secret: Some(SecretString::from(served.secret())),
        };
        register(&registration).await.expect("registered");
        Self { served, folder, config }
    }

    pub fn identity(&self) -> Identity {
        Identity::load(&self.folder.path().join("state")).expect("an identity")
    }

    pub fn link(&self) -> Arc<Link> {
        Arc::new(Link::new(&self.config, self.identity()).expect("a usable configuration"))
    }

    pub fn push(&self) -> Push {
        empty_push(&self.identity().collector_id)
    }

    async fn grow_old(&self) {
        grow_old(&self.served, &self.config.tls, self.identity()).await;
    }

    async fn actions(&self) -> Vec<String> {
        let audits = self.served.running().store().audits(Page::first(20)).await.expect("audits");
        audits.rows.into_iter().map(|row| row.action).collect()
    }

    /// All that the host keeps, by name.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let identity = self.folder.path().join("state/identity.json");
        [self.config.tls.cert_file.clone(), self.config.tls.key_file.clone(), identity]
            .map(|path| (path.clone(), fs_err::read(path).expect("a file")))
            .to_vec()
    }
}

/// Gives a host a certificate that has lived for 300 of its 365 days.
pub async fn grow_old(served: &Served, tls: &TlsConfig, mut identity: Identity) {
    let keys = served.config.data_dir.join("keys");
    let read = |name| fs_err::read_to_string(keys.join(name)).expect("a file of the backend");
    let authority = KeyPair::from_pem(&read("ca.key")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).expect("an issuer");
    let key = KeyPair::generate().expect("a key");
    let end = clock::now() + SignedDuration::from_hours(65 * 24);
    let certificate = aged(end).signed_by(&key, &issuer).expect("a certificate");
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate.der());
    let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let thumbprint = hex.concat();
    let renewal = Renewal {
        id: identity.collector_id.parse().expect("an id"),
        thumbprint,
        certificate_expires_at: end,
        audit: Audit {
            at: clock::now(),
            actor: "test".to_owned(),
            action: "test".to_owned(),
            subject: String::new(),
        },
    };
    let store = served.running().store();
    assert!(store.renew_certificate(renewal).await.expect("kept"));
    fs_err::write(&tls.cert_file, certificate.pem()).expect("write");
    fs_err::write(&tls.key_file, key.serialize_pem()).expect("write");
    identity.certificate_expires_at = Some(end);
    identity.save().expect("saved");
}

pub fn empty_push(collector_id: &str) -> Push {
    let body = serde_json::json!({
        "collector_id": collector_id, "hostname": "db1.example.com",
        "timestamp": clock::rfc3339(clock::now()), "version": "1", "metrics": [],
    });
    Push { body: Bytes::from(body.to_string()), encoding: "identity", batch_id: None }
}

fn aged(end: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "collector");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let time = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second()).expect("in range")
    };
    params.not_before = time(end - SignedDuration::from_hours(365 * 24));
    params.not_after = time(end);
    params
}

/// A renewal that runs until the value is dropped.
struct Renewing {
    _tasks: JoinSet<()>,
    _trigger: shutdown::Trigger,
}

fn renewing(link: &Arc<Link>) -> Renewing {
    let (trigger, shutdown) = shutdown::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(renew::run(Arc::clone(link), shutdown));
    Renewing { _tasks: tasks, _trigger: trigger }
}

async fn until_state(link: &Link, what: &str, holds: impl Fn(&CertificateState) -> bool) {
    until_async(what, LIMIT, || async { link.certificate().is_some_and(|state| holds(&state)) })
        .await;
}

/// C12: the new certificate is in use, on disk and at the backend, and no push noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_without_a_failed_push() {
    let site = Site::registered().await;
    site.grow_old().await;
    let (link, old) = (site.link(), site.files());
    let (stop, pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut pushing = JoinSet::new();
    for _ in 0..4 {
        let (link, push) = (Arc::clone(&link), site.push());
        let (stop, pushed) = (Arc::clone(&stop), Arc::clone(&pushed));
        pushing.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = link.push(push.clone()).await.expect("answered");
                assert_eq!(answer.status, 200, "{}", answer.message());
                pushed.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    until_async("pushes flow", LIMIT, || async { pushed.load(Ordering::Relaxed) > 20 }).await;
    let _renewing = renewing(&link);
    until_state(&link, "it is renewed", |state| state.renewed_at.is_some()).await;
    let so_far = pushed.load(Ordering::Relaxed);
    until_async("more", LIMIT, || async { pushed.load(Ordering::Relaxed) > so_far + 20 }).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = pushing.join_next().await {
        done.expect("every push was taken");
    }
    let actions = site.actions().await;
    let (given, used) = ("collector.renew_certificate", "collector.replace_certificate");
    assert_eq!(actions, [used, given, used, "test", "collector.register", "secret.add"]);
    let state = link.certificate().expect("one");
    let left = state.validity.ends.duration_since(clock::now());
    assert!(left > SignedDuration::from_hours(364 * 24), "{left}");
    let due = state.renew_at.expect("a time").duration_since(clock::now());
    let days = due.as_hours() / 24;
    assert!((160..240).contains(&days), "due in {days} days");
    for ((path, before), (_, now)) in old.iter().zip(site.files()) {
        assert_ne!(*before, now, "{} is another", path.display());
    }
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        fs_err::metadata(path).expect("a file").permissions().mode() & 0o777
    };
    assert_eq!(mode(&site.config.tls.key_file), 0o600);
    assert_eq!(site.identity().certificate_expires_at, Some(state.validity.ends));
    // A start from now on finds a pair that works.
    assert_eq!(site.link().push(site.push()).await.expect("answered").status, 200);
}

/// Whenever the host goes down in the middle, it comes back with a pair that the backend takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_went_down_in_a_renewal_comes_back() {
    let site = Site::registered().await;
    site.grow_old().await;
    let old = site.files();
    {
        let link = site.link();
        let _renewing = renewing(&link);
        until_state(&link, "it is renewed", |state| state.renewed_at.is_some()).await;
    }
    // The new certificate has not been used yet.
    let new = site.files();
    let journal = site.folder.path().join("state/registration.json");
    let next_to = |path: &Path| PathBuf::from(format!("{}.new", path.display()));
    let put = |path: &Path, content: &[u8]| {
        fs_err::write(path, content).expect("write");
        set_mode(path, 0o600);
    };
    let works = async || {
        let answer = site.link().push(site.push()).await.expect("answered");
        assert_eq!(answer.status, 200, "{}", answer.message());
    };
    // Before the point of no return: everything is prepared, or half of it.
    for (path, content) in &old {
        put(path, content);
    }
    works().await;
    for ((path, _), (_, content)) in old.iter().zip(&new) {
        put(&next_to(path), content);
        works().await;
    }
    assert_eq!(site.files(), old);
    // After it: none, some or all of the files are in place.
    let names: Vec<_> = new.iter().map(|(path, _)| path.clone()).collect();
    for moved in 0..=new.len() {
        for (at, ((path, old), (_, new))) in old.iter().zip(&new).enumerate() {
            if at < moved {
                put(path, new);
                fs_err::remove_file(next_to(path)).ok();
            } else {
                put(path, old);
                put(&next_to(path), new);
            }
        }
        let text = serde_json::json!({"files": names}).to_string();
        put(&journal, text.as_bytes());
        works().await;
        assert_eq!(site.files(), new, "{moved} were moved");
        assert!(!journal.exists());
    }
}

/// An answer that is lost costs another try, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_is_asked_again() {
    let mut site = Site::registered().await;
    site.grow_old().await;
    let (link, old) = (site.link(), site.files());
    site.served.stop().await;
    {
        let _renewing = renewing(&link);
        until_state(&link, "it says so", |state| state.error.is_some()).await;
    }
    let state = link.certificate().expect("one");
    assert!(state.error.expect("an error").contains("hint: "), "with a hint");
    assert_eq!(site.files(), old);
    let left_over = |path: &Path| PathBuf::from(format!("{}.new", path.display())).exists();
    assert!(!old.iter().any(|(path, _)| left_over(path)));
    site.served.resume().await;
    let _renewing = renewing(&link);
    until_state(&link, "it is renewed", |state| state.renewed_at.is_some()).await;
    assert_eq!(link.certificate().expect("one").error, None);
}

/// A host whose files another registration has replaced does not touch them.
#[tokio::test(flavor = "multi_thread")]
async fn a_pair_of_another_registration_is_left_alone() {
    let site = Site::registered().await;
    site.grow_old().await;
    let link = site.link();
    site.grow_old().await;
    let other = site.files();
    let _renewing = renewing(&link);
    until_state(&link, "it says so", |state| state.error.is_some()).await;
    let error = link.certificate().and_then(|state| state.error).expect("an error");
    assert!(error.contains("was replaced while the agent runs; hint: restart"), "{error}");
    assert_eq!(site.files(), other);
    assert!(!site.actions().await.contains(&"collector.renew_certificate".to_owned()));
}

/// A host with an old certificate of its own and a backend that answers what a test tells it to.
async fn with_stub() -> (Stub, TempDir, LinkConfig) {
    let (authority, folder) = (Authority::new("test CA"), directory());
    let mut tls = authority.client().install(folder.path(), &authority);
    let key = KeyPair::generate().expect("a key");
    let end = clock::now() + SignedDuration::from_hours(24);
    let certificate = aged(end).self_signed(&key).expect("a certificate");
    tls.cert_file = folder.path().join("old.crt");
    tls.key_file = folder.path().join("old.key");
    fs_err::write(&tls.cert_file, certificate.pem()).expect("write");
    fs_err::write(&tls.key_file, key.serialize_pem()).expect("write");
    set_mode(&tls.key_file, 0o600);
    let stub = Stub::https(&authority.server(Flaw::None), Clients::Anyone).await;
    let config = stub.link_config(tls);
    (stub, folder, config)
}

fn kept_identity(folder: &Path) -> Identity {
    let identity = serde_json::json!({
        "version": 1, "collector_id": "0b0e8f4c-0000-4000-8000-000000000001",
        "hostname": "db1", "name": "db1", "backend_url": "https://b.example",
        "registered_at": "2026-01-01T00:00:00Z", "secret": crate::link_tls::SECRET,
    });
    let file = folder.join("identity.json");
    fs_err::write(&file, identity.to_string()).expect("write");
    set_mode(&file, 0o600);
    Identity::load(folder).expect("an identity")
}

/// A backend of another make is told about once, in status, and pushes go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_does_not_renew_is_named() {
    let (stub, folder, config) = with_stub().await;
    let link = Arc::new(Link::new(&config, kept_identity(folder.path())).expect("a link"));
    stub.reply([Reply::status(404)]);
    let _renewing = renewing(&link);
    until_state(&link, "it says so", |state| state.by_hand.is_some()).await;
    let why = link.certificate().and_then(|state| state.by_hand).expect("a reason");
    assert!(why.contains("renews no certificates (404): run `agent register --force`"), "{why}");
    let requests = stub.requests();
    let paths: Vec<_> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/api/v1/collectors/renew-certificate"]);
    assert_eq!(requests[0].token().split('.').count(), 3);
    let request: serde_json::Value = serde_json::from_slice(&requests[0].body).expect("JSON");
    assert!(request["csr"].as_str().expect("PEM").contains("BEGIN CERTIFICATE REQUEST"));
    assert_eq!(link.push(empty_push("x")).await.expect("answered").status, 200);
}

/// An answer for another key, or none at all, is not kept.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_fit_is_not_kept() {
    let check = async |answer: Reply, expected: &str| {
        let (stub, folder, config) = with_stub().await;
        let read = || fs_err::read(&config.tls.cert_file).expect("a file");
        let before = read();
        let link = Arc::new(Link::new(&config, kept_identity(folder.path())).expect("a link"));
        stub.reply([answer]);
        let _renewing = renewing(&link);
        until_state(&link, "it says so", |state| state.error.is_some()).await;
        let error = link.certificate().and_then(|state| state.error).expect("an error");
        assert!(error.contains(expected), "{error}");
        assert_eq!(read(), before);
        assert!(!folder.path().join("old.key.new").exists());
    };
    let other = Authority::new("test CA").client().cert_pem;
    let body = serde_json::json!({"certificate": other}).to_string();
    check(Reply::with(200, &[], &body), "do not belong together").await;
    check(Reply::with(200, &[], "{}"), "holds no certificate").await;
    check(Reply::with(403, &[], r#"{"message": "not you"}"#), "says 403 not you").await;
}

/// A certificate that could not be shown does not take the place of a pair that works.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_no_use_is_not_kept() {
    type Sign = Box<dyn Fn(&str) -> String + Send + Sync>;
    let check = async |of_authority: bool, sign: Sign, expected: Option<&str>| {
        let (authority, folder) = (Authority::new("test CA"), directory());
        let issuer = if of_authority { &authority } else { &Authority::new("clients' CA") };
        let end = clock::now() + SignedDuration::from_hours(24);
        let old = issuer.client_with(|params| *params = aged(end));
        let tls = old.install(folder.path(), &authority);
        let stub = Stub::https(&authority.server(Flaw::None), Clients::Anyone).await;
        let config = stub.link_config(tls);
        let link = Arc::new(Link::new(&config, kept_identity(folder.path())).expect("a link"));
        stub.reply([Reply::Made(Arc::new(move |request: &Recorded| {
            let sent: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
            let certificate = sign(sent["csr"].as_str().expect("a request"));
            (200, Bytes::from(serde_json::json!({"certificate": certificate}).to_string()))
        }))]);
        let _renewing = renewing(&link);
        let is_over =
            |state: &CertificateState| state.error.is_some() || state.renewed_at.is_some();
        until_state(&link, "it has an answer", is_over).await;
        let state = link.certificate().expect("one");
        let kept = fs_err::read_to_string(&config.tls.cert_file).expect("a file");
        assert_eq!(kept == old.cert_pem, expected.is_some(), "{state:?}");
        let error = state.error.unwrap_or_default();
        assert!(error.contains(expected.unwrap_or_default()), "{error} lacks {expected:?}");
        assert_eq!(error.is_empty(), expected.is_none(), "{error}");
    };
    // The stub's own authority is made in `check`: these are made by ones of its name.
    for (change, expected) in UNUSABLE {
        let other = Authority::new("clients' CA");
        check(false, Box::new(move |csr| other.sign_with(csr, change)), Some(expected)).await;
    }
    let (one, other) = (Authority::new("test CA"), Authority::new("clients' CA"));
    let (third, fourth) = (Authority::new("clients' CA"), Authority::new("another CA"));
    check(true, Box::new(move |csr| one.sign(csr)), Some("is not of the authority")).await;
    check(true, Box::new(move |csr| other.sign(csr)), Some("is not of the authority")).await;
    check(false, Box::new(move |csr| third.sign(csr)), None).await;
    check(false, Box::new(move |csr| fourth.sign(csr)), Some("is of CN=another CA")).await;
}

/// A certificate that is not the backend's to renew: said in status, and the backend is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_made_by_hand_is_left_to_its_maker() {
    let check = async |identity: &dyn Fn(&Path) -> Identity, expected: &str| {
        let (stub, folder, config) = with_stub().await;
        let link = Link::new(&config, identity(folder.path())).expect("a link");
        let link = Arc::new(link);
        let _renewing = renewing(&link);
        until_state(&link, "it says so", |state| state.by_hand.is_some()).await;
        let why = link.certificate().and_then(|state| state.by_hand).expect("a reason");
        assert!(why.contains(expected), "{why}");
        assert_eq!(stub.requests().len(), 0);
    };
    let unregistered = |_: &Path| crate::link_tls::identity();
    check(&unregistered, "is not registered").await;
    let other = |folder: &Path| {
        let mut identity = kept_identity(folder);
        identity.certificate_expires_at = Some(Timestamp::UNIX_EPOCH);
        identity
    };
    check(&other, "not the one of the registration").await;
}
