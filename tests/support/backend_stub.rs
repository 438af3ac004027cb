//! A backend that answers what a test tells it to: real TLS, real HTTP, scripted answers.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pganalytics::link::{CertificateClock, LinkConfig, TlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::port::Port;

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    OtherName,
    Expired,
    NotYetValid,
    SelfSigned,
}

/// A certificate with its key.
pub struct Pair {
    pub chain: Vec<CertificateDer<'static>>,
    pub cert_pem: String,
    pub key: KeyPair,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a CA") }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A certificate for 127.0.0.1, localhost and backend.example; its chain includes the CA.
    pub fn server(&self, flaw: Flaw) -> Pair {
        self.server_for(&["localhost", "127.0.0.1", "backend.example"], flaw)
    }

    /// The same for these hosts.
    pub fn server_for(&self, hosts: &[&str], flaw: Flaw) -> Pair {
        let names = match flaw {
            Flaw::OtherName => vec!["other.example".to_owned()],
            _ => hosts.iter().map(ToString::to_string).collect(),
        };
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "test backend");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        match flaw {
            Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Flaw::NotYetValid => params.not_before = date_time_ymd(2200, 1, 1),
            _ => {}
        }
        let key = KeyPair::generate().expect("a key");
        if flaw == Flaw::SelfSigned {
            let cert = params.self_signed(&key).expect("a certificate");
            return Pair { chain: vec![cert.der().clone()], cert_pem: cert.pem(), key };
        }
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair { chain: vec![cert.der().clone(), self.der()], cert_pem: cert.pem(), key }
    }

    /// A certificate for a collector.
    pub fn client(&self) -> Pair {
        self.client_with(|_| ())
    }

    /// A certificate for a collector, with something about it changed.
    pub fn client_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "collector");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair { chain: vec![cert.der().clone()], cert_pem: cert.pem(), key }
    }

    /// A list that revokes the certificate with this serial number.
    pub fn revokes(&self, serial: SerialNumber) -> CertificateRevocationListDer<'static> {
        let revoked = RevokedCertParams {
            serial_number: serial,
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2200, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").into()
    }

    /// Signs a request as a backend does at registration.
    pub fn sign(&self, csr_pem: &str) -> String {
        self.sign_with(csr_pem, |_| ())
    }

    /// The same with something about the certificate changed.
    pub fn sign_with(&self, csr_pem: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem).expect("a request");
        change(&mut csr.params);
        csr.signed_by(&self.issuer).expect("a certificate").pem()
    }
}

impl Pair {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Writes `collector.crt` and `collector.key` (mode 0600) and returns the `[tls]` section that
    /// names them, with `ca` as the trusted CA.
    pub fn install(&self, folder: &Path, ca: &Authority) -> TlsConfig {
        let write = |name: &str, text: &str| -> PathBuf {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("write");
            set_mode(&path, 0o600);
            path
        };
        TlsConfig {
            verify: true,
            clock: CertificateClock::Server,
            cert_file: write("collector.crt", &self.cert_pem),
            key_file: write("collector.key", &self.key.serialize_pem()),
            ca_file: Some(write("ca.crt", &ca.pem())),
        }
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set the mode");
}

/// How the stub treats one request.
#[derive(Clone)]
pub enum Reply {
    /// A whole answer: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Bytes),
    /// The head promises more body than is sent before the connection ends.
    Partial,
    /// The connection ends without an answer.
    Close,
    /// No answer, the connection stays.
    Hang,
    /// A whole answer that is made from the request.
    Made(Maker),
}

/// What makes a 2xx the backend's word that it has a push.
pub const TAKEN: &str = r#"{"status":"success"}"#;

/// What the stub replies to a push.
pub type PushScript = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;

/// Makes status and body of an answer from the request.
pub type Maker = Arc<dyn Fn(&Recorded) -> (u16, Bytes) + Send + Sync>;

impl Reply {
    /// With the body that the contract asks for where a push is taken.
    pub fn status(status: u16) -> Self {
        let body = if matches!(status, 200..=299) { TAKEN } else { "{}" };
        Self::with(status, &[], body)
    }

    pub fn with(status: u16, headers: &[(&'static str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self::Answer(status, headers, Bytes::copy_from_slice(body.as_bytes()))
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Counts accepted connections from 1.
    pub connection: usize,
    /// The client's certificate, when it showed one.
    pub client_certificate: Option<CertificateDer<'static>>,
}

impl Recorded {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    pub fn token(&self) -> &str {
        self.header("authorization").strip_prefix("Bearer ").unwrap_or("")
    }
}

#[derive(Default)]
struct Script {
    pushes: Option<PushScript>,
    replies: VecDeque<Reply>,
    requests: Vec<Recorded>,
    probes: Vec<Recorded>,
    date: Option<&'static str>,
    version: Option<&'static str>,
    connections: usize,
}

/// A running stub; it ends with the value.
pub struct Stub {
    pub address: SocketAddr,
    pub port: Arc<Port>,
    script: Arc<Mutex<Script>>,
    scheme: &'static str,
    tasks: JoinSet<()>,
}

/// Whose client certificates a stub accepts.
pub enum Clients<'a> {
    Anyone,
    Of(&'a Authority),
    /// Those of an authority, apart from the one with this serial number, which is revoked.
    Except(&'a Authority, SerialNumber),
}

impl Stub {
    /// HTTPS with this certificate, HTTP/1.1 and HTTP/2.
    pub async fn https(server: &Pair, clients: Clients<'_>) -> Self {
        Self::https_with(server, clients, &["h2", "http/1.1"]).await
    }

    pub async fn https_with(server: &Pair, clients: Clients<'_>, alpn: &[&str]) -> Self {
        Self::start("https", any_port(), Some(Self::acceptor(server, clients, alpn))).await
    }

    /// HTTPS where another stub has been before.
    pub async fn https_at(port: Arc<Port>, server: &Pair, clients: Clients<'_>) -> Self {
        let acceptor = Self::acceptor(server, clients, &["h2", "http/1.1"]);
        Self::start("https", port, Some(acceptor)).await
    }

    fn acceptor(server: &Pair, clients: Clients<'_>, alpn: &[&str]) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3");
        let builder = match clients {
            Clients::Anyone => builder.with_no_client_auth(),
            Clients::Of(authority) => {
                builder.with_client_cert_verifier(verifier(authority, Vec::new(), provider))
            }
            Clients::Except(authority, serial) => {
                let lists = vec![authority.revokes(serial)];
                builder.with_client_cert_verifier(verifier(authority, lists, provider))
            }
        };
        let mut config = builder
            .with_single_cert(server.chain.clone(), server.private_key())
            .expect("a certificate with its key");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Plain HTTP.
    pub async fn http() -> Self {
        Self::start("http", any_port(), None).await
    }

    async fn start(scheme: &'static str, port: Arc<Port>, tls: Option<TlsAcceptor>) -> Self {
        let address = port.address();
        let listener = TcpListener::bind(address).await.expect("bind");
        let script = Arc::new(Mutex::new(Script::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, tls, Arc::clone(&script)));
        Self { address, port, script, scheme, tasks }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.address.port())
    }

    /// Closes the port and every connection; what was asked stays known.
    pub async fn end(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Adds to the replies; after the last one the stub takes what comes.
    pub fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        self.script.lock().expect("script").replies.extend(replies);
    }

    /// From now on every push gets what `script` says, `/version` what a backend says, and other
    /// requests 404: for agents that ask for more than a test is about.
    pub fn answer_pushes(&self, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) {
        self.script.lock().expect("script").pushes = Some(Arc::new(script));
    }

    /// Drops the replies that have not been given: from now on the stub takes what comes.
    pub fn forget_replies(&self) {
        self.script.lock().expect("script").replies.clear();
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.script.lock().expect("script").requests.clone()
    }

    /// Requests for `/version`, which are not among the others.
    pub fn probes(&self) -> Vec<Recorded> {
        self.script.lock().expect("script").probes.clone()
    }

    /// From now on `/version` is answered with this `Date`.
    pub fn say_date(&self, date: &'static str) {
        self.script.lock().expect("script").date = Some(date);
    }

    /// From now on `/version` names this one.
    pub fn say_version(&self, version: &'static str) {
        self.script.lock().expect("script").version = Some(version);
    }

    pub fn connections(&self) -> usize {
        self.script.lock().expect("script").connections
    }

    /// How to reach this stub, with short limits.
    pub fn link_config(&self, tls: TlsConfig) -> LinkConfig {
        LinkConfig {
            url: self.url(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            tls,
            ..LinkConfig::default()
        }
    }
}

fn any_port() -> Arc<Port> {
    Arc::new(Port::reserve())
}

fn verifier(
    authority: &Authority,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Arc<dyn ClientCertVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der()).expect("a root");
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(revoked)
        .build()
        .expect("a verifier")
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, script: Arc<Mutex<Script>>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let number = {
            let mut script = script.lock().expect("script");
            script.connections += 1;
            script.connections
        };
        let (tls, script) = (tls.clone(), Arc::clone(&script));
        connections.spawn(connection(tcp, tls, number, script));
    }
}

async fn connection(
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    number: usize,
    script: Arc<Mutex<Script>>,
) {
    let Some(tls) = tls else {
        return serve(tcp, number, None, script).await;
    };
    let Ok(stream) = tls.accept(tcp).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.map(|shown| shown.clone().into_owned());
    serve(stream, number, certificate, script).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: usize,
    client_certificate: Option<CertificateDer<'static>>,
    script: Arc<Mutex<Script>>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (script, client_certificate) = (Arc::clone(&script), client_certificate.clone());
        async move {
            let (head, body) = request.into_parts();
            let recorded = Recorded {
                method: head.method.to_string(),
                path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                version: head.version,
                headers: head.headers,
                body: body.collect().await.map_err(io::Error::other)?.to_bytes(),
                connection,
                client_certificate,
            };
            let (pushes, reply) = {
                let mut script = script.lock().expect("script");
                if recorded.path == "/version" {
                    // A probe: it is no part of what most tests are about.
                    script.probes.push(recorded);
                    return perform_version(script.date, script.version);
                }
                script.requests.push(recorded.clone());
                (script.pushes.clone(), script.replies.pop_front())
            };
            let reply = match (reply, pushes) {
                (Some(reply), _) => reply,
                (None, None) => Reply::status(200),
                (None, Some(pushes)) => match recorded.path.as_str() {
                    "/api/v1/metrics/push" => pushes(&recorded),
                    _ => Reply::with(404, &[], "{}"),
                },
            };
            perform(reply, &recorded).await
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Body = Either<
    Full<Bytes>,
    StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, io::Error>>>>,
>;

fn perform_version(
    date: Option<&'static str>,
    version: Option<&'static str>,
) -> Result<Response<Body>, io::Error> {
    let version = version.unwrap_or("0.1.0");
    let version = Bytes::from(format!(r#"{{"version":"{version}","api":"1.0.0"}}"#));
    let mut response = Response::builder();
    if let Some(date) = date {
        response = response.header("date", date);
    }
    response.body(Either::Left(Full::new(version))).map_err(io::Error::other)
}

async fn perform(reply: Reply, request: &Recorded) -> Result<Response<Body>, io::Error> {
    let (status, headers, body) = match reply {
        Reply::Answer(status, headers, body) => (status, headers, body),
        Reply::Made(make) => {
            let (status, body) = make(request);
            (status, Vec::new(), body)
        }
        Reply::Close => return Err(io::Error::other("scripted close")),
        Reply::Hang => std::future::pending().await,
        Reply::Partial => {
            let half = vec![
                Ok(Frame::data(Bytes::from_static(b"{\"status\":"))),
                Err(io::Error::other("scripted end")),
            ];
            let body = StreamBody::new(futures_util::stream::iter(half));
            let answer = Response::builder().header("content-length", 100);
            return answer.body(Either::Right(body)).map_err(io::Error::other);
        }
    };
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    answer.body(Either::Left(Full::new(body))).map_err(io::Error::other)
}

/// A TCP server that reads a little, sends these bytes, and closes: what a peer of another
/// protocol or version looks like.
pub async fn raw_server(bytes: &'static [u8]) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut hello = [0; 4096];
            let _ = tcp.read(&mut hello).await;
            let _ = tcp.write_all(bytes).await;
            let _ = tcp.shutdown().await;
            // Read to the end, so that the peer gets our bytes before any reset.
            while matches!(tcp.read(&mut hello).await, Ok(1..)) {}
        }
    });
    (address, tasks)
}
