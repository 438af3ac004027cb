//! One kept HTTP connection (HTTP/1.1, or HTTP/2 by ALPN) with limits on time and size.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

use super::answer::{self, Answer, Exchange};
use super::endpoint::Endpoint;
use super::error::{Circumstances, ConnectTimedOut, LookupFailed};
use super::{LinkConfig, SendError};
use crate::clock;

/// A connection that has been quiet for longer is closed by this side: proxies forget theirs.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// How often a quiet HTTP/2 or TCP connection is checked while a request is under way.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A request without the parts that are the same for all.
#[derive(Debug, Clone)]
pub struct Outgoing {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    invalid: Option<HeaderName>,
}

impl Outgoing {
    /// A request for `path`, below the backend's URL.
    pub fn new(method: Method, path: &str) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { method, path: path.to_owned(), headers, body, invalid: None }
    }

    /// Sets a header.
    #[must_use]
    pub fn header(self, name: HeaderName, value: impl ToString) -> Self {
        let value = HeaderValue::from_str(&value.to_string());
        self.set(name, value)
    }

    /// Sets a header whose value is never shown.
    #[must_use]
    pub fn secret_header(self, name: HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value).map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self.set(name, value)
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    fn set<E>(mut self, name: HeaderName, value: Result<HeaderValue, E>) -> Self {
        match value {
            Ok(value) => _ = self.headers.insert(name, value),
            Err(_) => self.invalid = Some(name),
        }
        self
    }
}

/// Sends requests to one backend.
pub struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    endpoint: Endpoint,
    settings: LinkConfig,
    clock_offset_ms: AtomicI64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for this backend; `tls` is not needed for plain HTTP to loopback.
    pub fn new(endpoint: Endpoint, settings: &LinkConfig, tls: Option<ClientConfig>) -> Self {
        let hosts = if endpoint.is_plaintext() { Hosts::LoopbackOnly } else { Hosts::All };
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(2)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(settings.connect_timeout)
            .build(Connector::new(hosts, settings.connect_timeout, tls));
        let clock_offset_ms = AtomicI64::new(0);
        Self { http, endpoint, settings: settings.clone(), clock_offset_ms }
    }

    /// Sends a request and reads its whole answer, within the limits of time and size.
    pub async fn send(&self, request: Outgoing) -> Result<Answer, SendError> {
        let limit = self.settings.request_timeout;
        match tokio::time::timeout(limit, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(SendError::timeout(self.circumstances())),
        }
    }

    /// The server's clock minus this host's, in milliseconds; 0 until the first answer.
    pub fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Ordering::Relaxed)
    }

    /// Host and port of the backend.
    pub fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    async fn exchange(&self, request: Outgoing) -> Result<Answer, SendError> {
        let request = self.build(request)?;
        let sent = clock::now();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            SendError::classify(error, self.circumstances())
        };
        let response = self.http.request(request).await.map_err(|error| failed(&error))?;
        let exchange = Exchange { sent, received: clock::now() };
        let (head, body) = response.into_parts();
        self.learn_clock(&head.headers, exchange);
        let body = Limited::new(body, self.settings.answer_bytes_max)
            .collect()
            .await
            .map_err(|error| failed(error.as_ref()))?
            .to_bytes();
        let server_now = answer::shift(exchange.received, self.clock_offset_ms());
        Ok(Answer {
            status: head.status.as_u16(),
            retry_after: answer::retry_after(&head.headers, server_now),
            headers: head.headers,
            body,
        })
    }

    fn build(&self, request: Outgoing) -> Result<http::Request<Full<Bytes>>, SendError> {
        let impossible = |what: &str| {
            let kind = super::SendErrorKind::Protocol;
            SendError::new(kind, what, "report this: the request cannot be built")
        };
        if let Some(name) = request.invalid {
            return Err(impossible(&format!("header {name} has a value that HTTP cannot carry")));
        }
        let url = self.endpoint.url(&request.path);
        let mut built = http::Request::builder()
            .method(request.method)
            .uri(&url)
            .body(Full::new(request.body))
            .map_err(|error| impossible(&format!("{url}: {error}")))?;
        *built.headers_mut() = request.headers;
        if let Ok(agent) = HeaderValue::from_str(&self.settings.user_agent) {
            built.headers_mut().insert(header::USER_AGENT, agent);
        }
        Ok(built)
    }

    fn learn_clock(&self, headers: &HeaderMap, exchange: Exchange) {
        let Some(date) = answer::date(headers) else { return };
        let before = self.clock_offset_ms();
        let offset = answer::next_offset_ms(before, exchange, date);
        self.clock_offset_ms.store(offset, Ordering::Relaxed);
        if offset.abs_diff(before) >= 5_000 {
            tracing::warn!(
                offset_ms = offset,
                "this host's clock differs from the backend's; tokens follow the backend's clock"
            );
        }
    }

    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances {
            authority: self.endpoint.authority(),
            connect_timeout: self.settings.connect_timeout,
            request_timeout: self.settings.request_timeout,
        }
    }
}

/// Where a lookup may lead: `localhost` must not take plain HTTP off this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hosts {
    All,
    LoopbackOnly,
}

/// Looks names up like the system does, and says when that is what failed.
#[derive(Debug, Clone, Copy)]
struct Resolver {
    hosts: Hosts,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = LookupFailed;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let hosts = self.hosts;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|error| LookupFailed(error.to_string()))?;
            let found: Vec<SocketAddr> =
                found.filter(|address| hosts == Hosts::All || address.ip().is_loopback()).collect();
            if found.is_empty() {
                return Err(LookupFailed("the name has no usable address".to_owned()));
            }
            Ok(found.into_iter())
        })
    }
}

/// TCP and TLS within one limit.
#[derive(Clone)]
struct Connector {
    inner: HttpsConnector<HttpConnector<Resolver>>,
    limit: Duration,
}

impl Connector {
    fn new(hosts: Hosts, limit: Duration, tls: Option<ClientConfig>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver { hosts });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_connect_timeout(Some(limit));
        let inner = match tls {
            Some(tls) => HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_only()
                .enable_all_versions()
                .wrap_connector(tcp),
            None => HttpsConnector::from((tcp, no_tls())),
        };
        Self { inner, limit }
    }
}

/// The endpoint is plain HTTP, so this is never used: it trusts nobody.
fn no_tls() -> ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has the suites of TLS 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.inner.call(uri);
        let limit = self.limit;
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(result) => result,
                Err(_) => Err(ConnectTimedOut.into()),
            }
        })
    }
}
