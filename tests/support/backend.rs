//! A backend in the test's own process, and hosts that talk to it as any HTTP client would.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use pganalytics::backend::store::{MetricQuery, Page, Role, StoredMetric};
use pganalytics::backend::{self, Backend, BackendConfig, Running, UserRequest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::port::Port;

/// Why there is no answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub const PASSWORD: &str = "correct horse battery";

/// A backend that ends with the test.
pub struct Served {
    pub config: BackendConfig,
    pub directory: TempDir,
    _port: Port,
    running: Option<Running>,
}

/// A registered host.
#[derive(Clone)]
pub struct Host {
    pub id: String,
    pub name: String,
    pub token: String,
    pub secret: String,
    pub client: Client,
    /// The whole answer to the registration.
    pub answer: Value,
}

/// An HTTP client with or without a certificate; one connection for each request.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    from: Option<IpAddr>,
    tls: Option<Arc<ClientConfig>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A request in the making.
#[derive(Clone)]
pub struct Ask {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Served {
    /// A backend with SQLite.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// A backend with other settings.
    pub async fn start_with(change: impl FnOnce(&mut BackendConfig)) -> Self {
        let directory = super::directory();
        let port = Port::reserve();
        let mut config = BackendConfig {
            listen: port.address(),
            page_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            data_dir: directory.path().join("data"),
            ..BackendConfig::default()
        };
        change(&mut config);
        let running = Backend::start(config.clone()).await.expect("start the backend");
        Self { config, directory, _port: port, running: Some(running) }
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("the backend runs")
    }

    /// Every metric that is stored, of one host or of all.
    pub async fn stored(&self, hostname: Option<&str>) -> Vec<StoredMetric> {
        let store = self.running().store();
        let mut servers = store.servers(Page::first(1000)).await.expect("servers").rows;
        servers.retain(|server| hostname.is_none_or(|name| server.hostname == name));
        let mut all = Vec::new();
        for server in servers {
            let query = MetricQuery {
                server_id: server.id,
                kind: None,
                start: Timestamp::MIN,
                end: Timestamp::MAX,
                step: None,
                limit: 1_000_000,
                bytes_max: usize::MAX,
            };
            all.extend(store.metrics(query).await.expect("metrics").metrics);
        }
        all
    }

    /// Stops the backend; its port stays its own.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    /// Starts it again where it was.
    pub async fn resume(&mut self) {
        let running = Backend::start(self.config.clone()).await.expect("start the backend again");
        self.running = Some(running);
    }

    /// A client without a certificate.
    pub fn stranger(&self) -> Client {
        Client::new(self.running().address(), self.running().ca_certificate(), None)
    }

    /// A client that shows this certificate.
    pub fn client(&self, certificate: &str, key: &str) -> Client {
        let running = self.running();
        Client::new(running.address(), running.ca_certificate(), Some((certificate, key)))
    }

    pub fn secret(&self) -> String {
        self.running().registration_secret().expose_secret().to_owned()
    }

    /// A request to register `body`, with the right secret.
    pub async fn try_register(&self, body: &Value) -> Reply {
        let ask = Ask::post("/api/v1/collectors/register").json(body);
        self.stranger().send(ask.header("x-registration-secret", &self.secret())).await
    }

    /// A host that registered with a signing request of its own.
    pub async fn register(&self, name: &str) -> Host {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
        let csr = csr.pem().expect("PEM");
        let host = format!("{name}.example.com");
        let reply = self.try_register(&json!({"name": name, "hostname": host, "csr": csr})).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let answer = reply.json();
        let text = |key: &str| answer[key].as_str().expect(key).to_owned();
        Host {
            id: text("collector_id"),
            name: name.to_owned(),
            token: text("token"),
            secret: text("secret"),
            client: self.client(&text("certificate"), &key.serialize_pem()),
            answer: answer.clone(),
        }
    }

    /// Adds a user with [`PASSWORD`].
    pub async fn add_user(&self, username: &str, role: Role) {
        let request = UserRequest {
            username: username.to_owned(),
            email: format!("{username}@example.com"),
            full_name: None,
            role,
            password: PASSWORD.into(),
        };
        backend::add_user(&self.config, request).await.expect("add a user");
    }

    pub async fn try_login(&self, username: &str, password: &str) -> Reply {
        let body = json!({"username": username, "password": password});
        self.stranger().send(Ask::post("/api/v1/auth/login").json(&body)).await
    }

    /// The answer to a login with [`PASSWORD`].
    pub async fn login(&self, username: &str) -> Value {
        let reply = self.try_login(username, PASSWORD).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The token of a new user.
    pub async fn user_token(&self, role: Role) -> String {
        self.add_user(role.as_str(), role).await;
        self.login(role.as_str()).await["token"].as_str().expect("a token").to_owned()
    }
}

impl Host {
    /// An envelope around `metrics`.
    #[allow(clippy::needless_pass_by_value, reason = "tests make it in place")]
    pub fn envelope(&self, metrics: Value) -> Value {
        json!({
            "collector_id": self.id,
            "hostname": format!("{}.example.com", self.name),
            "timestamp": "2026-01-01T00:00:00Z",
            "version": "1.0.0",
            "metrics": metrics,
        })
    }

    /// A push of `metrics`, not compressed.
    pub fn ask(&self, metrics: Value) -> Ask {
        Ask::post("/api/v1/metrics/push").json(&self.envelope(metrics)).bearer(&self.token)
    }

    pub async fn push(&self, metrics: Value) -> Reply {
        self.client.send(self.ask(metrics)).await
    }
}

impl Client {
    pub fn new(address: SocketAddr, authority: &str, own: Option<(&str, &str)>) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM");
        roots.add(authority).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                let chain = vec![certificate.expect("a certificate")];
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        Self { address, from: None, tls: Some(Arc::new(config)) }
    }

    /// Without TLS.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, from: None, tls: None }
    }

    /// The same client at another of this host's addresses.
    pub fn from(&self, address: IpAddr) -> Self {
        Self { from: Some(address), ..self.clone() }
    }

    /// A connection for several requests over HTTP/1.1.
    pub async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
        let stream = self.open().await?;
        let tls = self.tls.as_ref().expect("a connection is kept with TLS");
        let name = ServerName::from(self.address.ip());
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn open(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = self.from {
            socket.bind(SocketAddr::from((from, 0)))?;
        }
        socket.connect(self.address).await
    }

    /// The same client, ready for HTTP/2.
    pub fn with_http2(&self) -> Self {
        let mut config = ClientConfig::clone(self.tls.as_ref().expect("HTTP/2 needs TLS"));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { tls: Some(Arc::new(config)), ..*self }
    }

    pub async fn get(&self, path: &str, token: &str) -> Reply {
        self.send(Ask::new(Method::GET, path).bearer(token)).await
    }

    pub async fn send(&self, ask: Ask) -> Reply {
        self.try_send(ask).await.expect("an answer")
    }

    /// The same as [`Client::try_send`], and whether the TLS session was one of before.
    pub async fn send_resumed(&self, ask: Ask) -> Result<(HandshakeKind, Reply), Failure> {
        let tls = self.tls.as_ref().expect("sessions are TLS's");
        let name = ServerName::from(self.address.ip());
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, self.open().await?).await?;
        let kind = stream.get_ref().1.handshake_kind().ok_or("no handshake")?;
        Ok((kind, ask.http1(TokioIo::new(stream)).await?))
    }

    /// An error when the connection fails before the answer.
    pub async fn try_send(&self, ask: Ask) -> Result<Reply, Failure> {
        let stream = self.open().await?;
        let Some(tls) = &self.tls else { return ask.http1(TokioIo::new(stream)).await };
        let name = ServerName::from(self.address.ip());
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => ask.http2(TokioIo::new(stream)).await,
            _ => ask.http1(TokioIo::new(stream)).await,
        }
    }
}

impl Ask {
    pub fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    /// A request that somebody else has made, read to its end.
    pub async fn read(request: Request<hyper::body::Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let body = body.collect().await?.to_bytes();
        Ok(Self { method: head.method, path, headers: head.headers, body })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string()).header("content-type", "application/json")
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().expect("a header's value"));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    async fn http1<I>(self, io: I) -> Result<Reply, Failure>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        self.over(&mut sender).await
    }

    /// Over a connection that is open.
    pub async fn over(
        self,
        sender: &mut http1::SendRequest<Full<Bytes>>,
    ) -> Result<Reply, Failure> {
        let mut request = self.request();
        *request.uri_mut() = request.uri().path_and_query().expect("a path").as_str().parse()?;
        Reply::read(sender.send_request(request).await?).await
    }

    async fn http2<I>(self, io: I) -> Result<Reply, Failure>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Reply::read(sender.send_request(self.request()).await?).await
    }

    fn request(self) -> Request<Full<Bytes>> {
        let uri: Uri = format!("https://localhost{}", self.path).parse().expect("a path");
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers;
        if !request.headers().contains_key("host") {
            request.headers_mut().insert("host", "localhost".parse().expect("a host"));
        }
        request
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// Checks that this is the contract's error body with `status`, and returns its slug.
    #[track_caller]
    pub fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8", "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], status, "{body}");
        assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        body["error"].as_str().expect("a slug").to_owned()
    }

    async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Self, Failure> {
        let (parts, body) = response.into_parts();
        let status = StatusCode::as_u16(&parts.status);
        Ok(Self { status, headers: parts.headers, body: body.collect().await?.to_bytes() })
    }
}
