//! The wire to the backend: who is trusted, what is shown, and what each failure says.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use pganalytics::link::client::{Client, Outgoing};
use pganalytics::link::tls::{Fingerprint, Pin, Trust, client_config};
use pganalytics::link::{Identity, Link, LinkConfig, Push, SendError, SendErrorKind, TlsConfig};
use rcgen::{SerialNumber, date_time_ymd};
use secrecy::SecretString;
use tempfile::TempDir;

use crate::support::backend_stub::{
    Authority, Clients, Flaw, Pair, Reply, Stub, raw_server, set_mode,
};
use crate::support::directory;
use crate::support::port::Port;

pub const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

pub fn identity() -> Identity {
    let mut identity = Identity::new("0b0e8f4c-0000-4000-8000-000000000001", "db.example");
    identity.secret = Some(SecretString::from(SECRET));
    identity
}

pub fn push() -> Push {
    Push { body: Bytes::from_static(b"body"), encoding: "gzip", batch_id: None }
}

fn link(config: &LinkConfig) -> Link {
    Link::new(config, identity()).expect("a usable configuration")
}

/// A CA, a stub with a certificate of it, a host with a certificate of it.
pub struct World {
    pub authority: Authority,
    pub folder: TempDir,
    pub tls: TlsConfig,
    pub stub: Stub,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Flaw::None).await
    }

    pub async fn with(flaw: Flaw) -> Self {
        let authority = Authority::new("test CA");
        let folder = directory();
        let tls = authority.client().install(folder.path(), &authority);
        let stub = Stub::https(&authority.server(flaw), Clients::Of(&authority)).await;
        Self { authority, folder, tls, stub }
    }

    pub fn config(&self) -> LinkConfig {
        self.stub.link_config(self.tls.clone())
    }

    async fn fails(&self) -> SendError {
        let link = link(&self.config());
        link.push(push()).await.expect_err("no push over such a connection")
    }
}

fn says(error: &SendError, kind: SendErrorKind, parts: &[&str]) {
    assert_eq!(error.kind, kind, "{error}");
    for part in parts.iter().chain(&["; hint: "]) {
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

/// C39: TLS 1.3 with the client's certificate, over one kept connection.
#[tokio::test]
async fn client_certificate_is_shown_and_connection_kept() {
    let world = World::new().await;
    let link = link(&world.config());
    for _ in 0..3 {
        assert_eq!(link.push(push()).await.expect("answered").status, 200);
    }
    let requests = world.stub.requests();
    assert_eq!(world.stub.connections(), 1);
    assert!(requests.iter().all(|request| request.client_certificate.is_some()));
    assert_eq!(requests[0].version, http::Version::HTTP_2);
}

#[tokio::test]
async fn http_1_connection_is_kept_where_the_server_has_no_http_2() {
    let world = World::new().await;
    let server = world.authority.server(Flaw::None);
    let stub = Stub::https_with(&server, Clients::Of(&world.authority), &["http/1.1"]).await;
    let link = link(&stub.link_config(world.tls.clone()));
    for _ in 0..3 {
        assert_eq!(link.push(push()).await.expect("answered").status, 200);
    }
    assert_eq!(stub.connections(), 1);
    assert_eq!(stub.requests()[2].version, http::Version::HTTP_11);
    assert_eq!(stub.requests()[2].header("content-length"), "4");
}

/// C39: every wrong server certificate is refused, and the message says which wrong it is.
#[tokio::test]
async fn wrong_server_certificates_are_refused_with_their_own_reason() {
    let check = async |flaw, kind, parts: &[&str]| {
        let world = World::with(flaw).await;
        says(&world.fails().await, kind, parts);
        // A server whose certificate is out of its time may be asked for the time, and no more.
        let asked = world.stub.requests();
        assert!(asked.iter().all(|request| request.path == "/version"), "{asked:?}");
        assert!(asked.iter().all(|request| request.token().is_empty()), "{asked:?}");
    };
    check(
        Flaw::OtherName,
        SendErrorKind::TlsWrongName,
        &["is for other.example, not for 127.0.0.1", "127.0.0.1", "backend.url"],
    )
    .await;
    let expired = ["expired at 2020-01-01", "clock says 20"];
    check(Flaw::Expired, SendErrorKind::TlsExpired, &expired).await;
    let early = ["valid from 2200-01-01", "clock"];
    check(Flaw::NotYetValid, SendErrorKind::TlsNotYetValid, &early).await;
    let self_signed = ["is self-signed", "tls.ca_file"];
    check(Flaw::SelfSigned, SendErrorKind::TlsSelfSigned, &self_signed).await;
}

/// C39: a certificate of another CA is refused.
#[tokio::test]
async fn server_of_another_ca_is_refused() {
    let mut world = World::new().await;
    let other = Authority::new("other CA");
    world.tls = world.authority.client().install(world.folder.path(), &other);
    let parts = ["does not trust", "tls.ca_file"];
    says(&world.fails().await, SendErrorKind::TlsUnknownIssuer, &parts);
    assert_eq!(world.stub.requests().len(), 0);
}

/// C39: a self-signed certificate is accepted only with `tls.verify = false`.
#[tokio::test]
async fn unverified_server_is_accepted_only_when_told_so() {
    let mut world = World::with(Flaw::SelfSigned).await;
    world.tls.verify = false;
    let answer = link(&world.config()).push(push()).await.expect("answered");
    assert_eq!(answer.status, 200);
}

/// C39: a server that does not know this host's CA says so, whenever it comes to say it.
#[tokio::test]
async fn refused_client_certificate_is_named() {
    let mut world = World::new().await;
    let stranger = Authority::new("other CA").client();
    world.tls = stranger.install(world.folder.path(), &world.authority);
    let parts = ["client certificate refused by ", "agent register"];
    let server = world.authority.server(Flaw::None);
    for alpn in ["h2", "http/1.1"] {
        let clients = Clients::Of(&world.authority);
        world.stub = Stub::https_with(&server, clients, &[alpn]).await;
        for _ in 0..10 {
            says(&world.fails().await, SendErrorKind::TlsClientCert, &parts);
        }
        assert_eq!(world.stub.requests().len(), 0);
    }
}

/// C39: a server that wants a certificate and gets none, finds it expired, or revoked, says so, and
/// each is told apart from a certificate of an unknown CA.
#[tokio::test]
async fn what_a_server_has_against_a_client_certificate_is_told_apart() {
    let authority = Authority::new("test CA");
    let server = authority.server(Flaw::None);
    let serial = SerialNumber::from(4711);
    let revoked = authority.client_with(|params| params.serial_number = Some(serial.clone()));
    let expired = authority.client_with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let check = async |client: &Pair, clients: Clients<'_>, kind, parts: &[&str]| {
        let folder = directory();
        let stub = Stub::https(&server, clients).await;
        let tls = client.install(folder.path(), &authority);
        let error = link(&stub.link_config(tls)).push(push()).await.expect_err("refused");
        says(&error, kind, parts);
        assert_eq!(stub.requests().len(), 0);
    };
    let kind = SendErrorKind::TlsClientCertExpired;
    check(&expired, Clients::Of(&authority), kind, &["it has expired", "agent register"]).await;
    let kind = SendErrorKind::TlsClientCertRevoked;
    let clients = Clients::Except(&authority, serial.clone());
    check(&revoked, clients, kind, &["it is revoked", "agent register"]).await;

    let stub = Stub::https(&server, Clients::Of(&authority)).await;
    let tls = client_config(Trust::Only(vec![authority.der()]), None).expect("a client");
    let client = client(&stub.link_config(TlsConfig::default()), &tls);
    let error = client.send(Outgoing::new(http::Method::GET, "/version")).await;
    let parts = ["it wants one and got none", "tls.cert_file"];
    says(&error.expect_err("no certificate"), SendErrorKind::TlsNoClientCert, &parts);
}

fn client(settings: &LinkConfig, tls: &rustls::ClientConfig) -> Client {
    let endpoints = settings.endpoints().expect("a URL");
    Client::new(endpoints, settings, Some(tls)).expect("a client")
}

/// C39: TLS 1.2 is not spoken: neither with a server that refuses 1.3, nor with one that picks 1.2.
#[tokio::test]
async fn servers_without_tls_1_3_are_refused() {
    // A fatal alert `protocol_version`.
    const ALERT: &[u8] = &[0x15, 3, 3, 0, 2, 2, 70];
    let world = World::new().await;
    let check = async |bytes: &'static [u8], kind, parts: &[&str]| {
        let (address, _server) = raw_server(bytes).await;
        let url = format!("https://{address}");
        let error = link(&LinkConfig { url, ..world.config() }).push(push()).await;
        says(&error.expect_err("no TLS 1.3"), kind, parts);
    };
    check(ALERT, SendErrorKind::TlsVersion, &["no TLS 1.3 from"]).await;
    check(SERVER_HELLO_1_2, SendErrorKind::TlsVersion, &["TLS 1.3"]).await;
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    check(http, SendErrorKind::TlsOther, &["no TLS from", "https or http"]).await;
    check(b"", SendErrorKind::Reset, &[" broke: "]).await;
}

/// A `ServerHello` of TLS 1.2: no `supported_versions`, suite `ECDHE-RSA-AES128-GCM-SHA256`.
const SERVER_HELLO_1_2: &[u8] = &[
    0x16, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0xc0, 0x2f, 0,
];

/// C14: a missing or malformed certificate or key is an error with a hint, not a crash.
#[tokio::test]
async fn unusable_certificate_files_are_refused_with_a_hint() {
    type Damage = fn(&mut TlsConfig);
    let check = |damage: Damage, parts: &[&str]| {
        let authority = Authority::new("test CA");
        let folder = directory();
        let mut tls = authority.client().install(folder.path(), &authority);
        damage(&mut tls);
        let config = LinkConfig { tls, ..LinkConfig::default() };
        let error = Link::new(&config, identity()).expect_err("refused").to_string();
        for part in parts.iter().chain(&["; hint: "]) {
            assert!(error.contains(part), "{error} lacks {part:?}");
        }
    };
    check(|tls| remove(&tls.cert_file), &["tls.cert_file", "collector.crt", "agent register"]);
    check(|tls| remove(&tls.key_file), &["tls.key_file", "collector.key", "agent register"]);
    check(|tls| overwrite(&tls.cert_file, ""), &["collector.crt holds no certificate"]);
    check(|tls| overwrite(&tls.cert_file, "nonsense"), &["holds no certificate"]);
    check(|tls| overwrite(&tls.cert_file, CUT), &["tls.cert_file", "is damaged"]);
    check(|tls| overwrite(&tls.cert_file, NO_DER), &["tls.cert_file", "damaged certificate"]);
    check(|tls| overwrite(&tls.key_file, "nonsense"), &["holds no usable private key"]);
    check(|tls| overwrite(&tls.key_file, NO_KEY), &["do not belong together or are damaged"]);
    check(
        |tls| overwrite(&tls.key_file, &Authority::new("x").client().key.serialize_pem()),
        &["do not belong together", "agent register --force"],
    );
    check(
        |tls| set_mode(&tls.key_file, 0o640),
        &["can be read by others (mode 0640)", "chmod 600 "],
    );
    check(|tls| set_mode(&tls.key_file, 0o604), &["can be read by others (mode 0604)"]);
    check(|tls| tls.ca_file = Some("/nonexistent/ca.crt".into()), &["/nonexistent/ca.crt"]);
    check(
        |tls| overwrite(tls.ca_file.as_ref().expect("set"), ""),
        &["tls.ca_file", "no certificate"],
    );
}

const CUT: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n";
const NO_DER: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const NO_KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("remove");
}

fn overwrite(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write");
}

/// First contact by fingerprint: of the CA that the server shows, or of the server's own
/// certificate; any other is refused with the fingerprints that were shown.
#[tokio::test]
async fn fingerprint_is_trusted_and_no_other() {
    let authority = Authority::new("test CA");
    let check = async |server: &Pair, wanted: Fingerprint| {
        let stub = Stub::https(server, Clients::Anyone).await;
        let pin = Pin::new(wanted);
        let tls = client_config(Trust::Pinned(pin.clone()), None).expect("a client");
        let settings = stub.link_config(TlsConfig::default());
        let client = client(&settings, &tls);
        let request = Outgoing::new(http::Method::GET, "/version");
        let result = client.send(request).await.map(|answer| answer.status);
        (result, pin.seen())
    };
    let good = authority.server(Flaw::None);
    let ca = Fingerprint::of(&authority.der());
    assert_eq!(check(&good, ca).await, (Ok(200), Some(authority.der())));
    let leaf = Fingerprint::of(&good.chain[0]);
    assert_eq!(check(&good, leaf).await, (Ok(200), Some(good.chain[0].clone())));

    let other = Fingerprint::of(&Authority::new("other").der());
    let (result, seen) = check(&good, other).await;
    let error = result.expect_err("another fingerprint");
    says(&error, SendErrorKind::TlsUnknownIssuer, &[&leaf.to_string(), &ca.to_string()]);
    assert_eq!(seen, None);

    // A server that shows the right CA beside a certificate that the CA did not sign.
    let mut liar = Authority::new("liar").server(Flaw::None);
    liar.chain.truncate(1);
    liar.chain.push(authority.der());
    let (result, seen) = check(&liar, ca).await;
    says(&result.expect_err("not signed by it"), SendErrorKind::TlsUnknownIssuer, &["not trust"]);
    assert_eq!(seen, None);

    let (result, _) = check(&authority.server(Flaw::OtherName), ca).await;
    says(&result.expect_err("another name"), SendErrorKind::TlsWrongName, &["other.example"]);
}

/// C37: the connect timeout covers a server that accepts and then says nothing.
#[tokio::test]
async fn connect_timeout_covers_the_tls_handshake() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let world = World::new().await;
    let config = LinkConfig {
        url: format!("https://{}", listener.local_addr().expect("an address")),
        connect_timeout: Duration::from_millis(200),
        ..world.config()
    };
    let error = link(&config).push(push()).await.expect_err("nobody answers");
    says(&error, SendErrorKind::ConnectTimeout, &["within 200ms"]);
}

#[tokio::test]
async fn unreachable_backends_are_told_apart() {
    let world = World::new().await;
    let free = Port::reserve();
    let check = async |url: String, kind, parts: &[&str]| {
        let error = link(&LinkConfig { url, ..world.config() }).push(push()).await;
        says(&error.expect_err("unreachable"), kind, parts);
    };
    let refused = format!("https://{}", free.address());
    check(refused, SendErrorKind::Connect, &["connection refused by"]).await;
    let unknown = "https://no-such-host.invalid:8080".to_owned();
    check(unknown, SendErrorKind::Dns, &["no-such-host.invalid"]).await;
}

/// Plain HTTP goes to loopback only, and only when it is allowed.
#[tokio::test]
async fn plain_http_needs_permission_and_no_certificates() {
    let stub = Stub::http().await;
    stub.reply([Reply::status(201)]);
    let config = stub.link_config(TlsConfig::default());
    let error = Link::new(&config, identity()).expect_err("not allowed").to_string();
    assert!(error.contains("backend.allow_plaintext"), "{error}");
    let url = stub.url().replace("127.0.0.1", "localhost");
    let config = LinkConfig { allow_plaintext: true, url, ..config };
    assert_eq!(link(&config).push(push()).await.expect("answered").status, 201);
}
